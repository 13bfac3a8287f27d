//! What an idle connection costs the target in memory.

use std::time::Duration;

use crate::capacity::observe::Observed;
use crate::capacity::probe::watched;
use crate::failure::Failure;
use crate::scenario::Scenario;
use crate::schedule::Process;

/// Enough that pages and not single allocations decide, and few enough for the limits that servers have by default.
const CONNECTIONS_MORE: usize = 400;
const LENGTH: Duration = Duration::from_secs(2);

/// Bytes of resident memory for each of several hundred connections that are kept open and hardly used, after a run
/// with the scenario's own. None where the target did not take them all, or its memory did not grow.
pub(crate) fn per_connection(scenario: &Scenario, target: &Observed) -> Result<Option<f64>, Failure> {
    // So slow that connections wait nearly all the time.
    let mut few = scenario.at_rate(100.0, Process::Constant, Duration::from_millis(500), LENGTH);
    few.timeout = few.timeout.min(Duration::from_secs(2));
    let mut many = few.clone();
    many.connections += CONNECTIONS_MORE;
    let mut target = Some(target.clone());
    let (_, before) = watched(&few, &mut target)?;
    // Too many open files, here or there, is no reason to fail at the end of a long search.
    let Ok((results, after)) = watched(&many, &mut target) else { return Ok(None) };
    let grown = after.rss_bytes.zip(before.rss_bytes).map(|(after, before)| after.saturating_sub(before));
    let all_there = results.counts.failed == 0 && results.counts.connections_opened <= many.connections as u64;
    Ok(grown.filter(|bytes| all_there && *bytes > 0).map(|bytes| bytes as f64 / CONNECTIONS_MORE as f64))
}
