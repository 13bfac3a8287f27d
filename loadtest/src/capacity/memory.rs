//! What an idle connection costs the target in memory.

use std::time::Duration;

use crate::capacity::observe::Observed;
use crate::capacity::probe::watched;
use crate::failure::Failure;
use crate::results::Counts;
use crate::scenario::Scenario;
use crate::schedule::Process;

/// Connections that are open besides the scenario's own. The first step takes what a process grows by once, when it has
/// more connections than ever; the second is what counts. Where a target does not take that many, the first must do.
const CONNECTIONS_MORE: [usize; 2] = [400, 2000];
const LENGTH: Duration = Duration::from_secs(2);

/// Bytes of resident memory for each of many connections that are kept open and hardly used. None where the target did
/// not take them, or its memory did not grow.
pub(crate) fn per_connection(scenario: &Scenario, target: &Observed) -> Result<Option<f64>, Failure> {
    let Some(none) = rss_with(scenario, target, 0)? else { return Ok(None) };
    let mut levels = vec![(0, none)];
    for more in CONNECTIONS_MORE {
        match rss_with(scenario, target, more)? {
            Some(rss_bytes) => levels.push((more, rss_bytes)),
            None => break,
        }
    }
    let (Some((most, after)), Some((fewer, before))) = (levels.pop(), levels.pop()) else { return Ok(None) };
    let grown = after.saturating_sub(before);
    Ok((grown > 0).then(|| grown as f64 / (most - fewer) as f64))
}

/// Whether each connection was made once and kept. One that is refused or closed is opened again; where clients have
/// addresses of their own, or requests their own connections, they are opened only when they are needed.
fn all_were_held(counts: &Counts, connections: usize) -> bool {
    counts.failed == 0 && counts.connections_opened == connections as u64
}

/// None where not all connections could be had and kept.
fn rss_with(scenario: &Scenario, target: &Observed, more: usize) -> Result<Option<u64>, Failure> {
    // So slow that connections wait nearly all the time.
    let mut slow = scenario.at_rate(100.0, Process::Constant, Duration::from_millis(500), LENGTH);
    slow.timeout = slow.timeout.min(Duration::from_secs(2));
    slow.connections += more;
    match watched(&slow, &mut Some(target.clone())) {
        Ok((results, cost)) => Ok(cost.rss_bytes.filter(|_| all_were_held(&results.counts, slow.connections))),
        Err(failure) if crate::run::is_interrupted() => Err(failure),
        // Too many open files, here or there, is no reason to fail at the end of a long search.
        Err(_) => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_that_are_not_held_show_nothing() {
        let held = |failed, connections_opened| {
            all_were_held(&Counts { failed, connections_opened, ..Counts::default() }, 464)
        };
        assert!(held(0, 464));
        assert!(!held(1, 464), "refused");
        assert!(!held(0, 465), "closed and opened again");
        assert!(!held(0, 50), "opened as they were needed");
    }
}
