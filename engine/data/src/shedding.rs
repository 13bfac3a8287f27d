//! What a worker with more to do than it can refuses: how it does is looked at with each tick, who is refused is decided
//! right behind the choice of the route, before anything is verified or asked.

use std::cell::{Cell, RefCell};

use ringway_config::snapshot::{Action, Overload, Route};
use ringway_core::breaker::retry_after_secs;
use ringway_core::failure::Failure;
use ringway_core::http::{RequestHead, Target};
use ringway_core::overload::{Criticality, Load, Shedder};
use ringway_core::priorities::Priorities;
use ringway_io::LoopCounts;

use crate::clock::us;
use crate::connection::Connection;
use crate::deadline::SWEEP;
use crate::request::Exchange;

/// What a worker knows of how it does.
#[derive(Default)]
pub(crate) struct Shedding {
    is_active: Cell<bool>,
    shedder: RefCell<Shedder>,
    last: Cell<Last>,
}

/// The last tick.
#[derive(Clone, Copy, Default)]
struct Last {
    at: u64,
    idle_ns: u64,
    waited_us2: u64,
    /// When the next one is due.
    due: u64,
}

impl Shedding {
    /// Whether requests are to be asked about.
    #[inline]
    pub(crate) fn is_active(&self) -> bool {
        self.is_active.get()
    }

    /// Looks at how the worker has done since the last tick; gives that, and the share of requests that it refuses now.
    pub(crate) fn tick(&self, overload: Option<&Overload>, counts: &LoopCounts, now: u64) -> (Load, f64) {
        let last = self.last.get();
        let load = if counts.turns > 0 { of_loop(&last, counts, now) } else { of_ticks(&last, now) };
        let due = if now < last.due || last.at == 0 { now } else { now - (now - last.due) % us(SWEEP) };
        let (idle_ns, waited_us2) = (counts.idle_ns, counts.waited_us2);
        self.last.set(Last { at: now, idle_ns, waited_us2, due: due + us(SWEEP) });
        let mut shedder = self.shedder.borrow_mut();
        // The first one tells nothing.
        if last.at > 0 {
            shedder.tell(overload.map(|overload| &overload.settings), load, now);
        }
        self.is_active.set(shedder.is_active());
        (load, shedder.refused())
    }
}

/// What the loop has counted. Who comes at any moment waits for the rest of the round, and in the next one for those who came
/// before: for a round in all. The mean over all moments is that of the squares.
fn of_loop(last: &Last, counts: &LoopCounts, now: u64) -> Load {
    let passed = now.saturating_sub(last.at).max(1);
    let idle_us = counts.idle_ns.saturating_sub(last.idle_ns) / 1000;
    let waited_us2 = counts.waited_us2.saturating_sub(last.waited_us2);
    Load { delay_us: waited_us2 / passed, busy: 1.0 - (idle_us as f64 / passed as f64).min(1.0) }
}

/// Where the loop is not the engine's own (epoll): how late the tick is. How busy it was is not known.
fn of_ticks(last: &Last, now: u64) -> Load {
    Load { delay_us: if last.at == 0 { 0 } else { now.saturating_sub(last.due) }, busy: 0.0 }
}

/// Refuses the request, if it is one of those that the worker has no time for. Asks once for each request.
///
/// # Errors
/// It is.
#[cold]
pub(crate) fn shed(
    conn: &Connection,
    exchange: &mut Exchange,
    route: &Route,
    request: &RequestHead<'_, '_>,
    trusted: bool,
) -> Result<(), Failure> {
    // What the gateway answers itself costs no more than a refusal.
    if std::mem::replace(&mut exchange.is_admitted, true) || !matches!(route.action, Action::Forward(_)) {
        return Ok(());
    }
    let criticality = criticality(conn, exchange, route, request, trusted);
    let Some(reason) = conn.worker.shedding.shedder.borrow_mut().sheds(criticality) else { return Ok(()) };
    if let Some(cell) = conn.view.route_stats(exchange.route).workers.get(conn.worker.id) {
        cell.record_shed(reason);
    }
    exchange.shed = Some(reason.label());
    Err(Failure::Shed(retry_after_secs(0, conn.worker.random())))
}

/// The route's, or that of who asks, or the one in the header.
fn criticality(
    conn: &Connection,
    exchange: &Exchange,
    route: &Route,
    request: &RequestHead<'_, '_>,
    trusted: bool,
) -> Criticality {
    let Some(overload) = &conn.view.published.snapshot.overload else { return route.criticality };
    let claimed = overload.claim.as_ref().and_then(|priorities| claimed(conn, exchange, route, request, priorities));
    let own = claimed.unwrap_or(route.criticality);
    let Some(name) = overload.header.as_deref() else { return own };
    let mut headers = request.headers.iter();
    let asked = headers.find(|header| header.name.eq_ignore_ascii_case(name));
    asked.map_or(own, |header| own.or_asked(header.value, trusted))
}

/// What a claim says, where it is known without the work that is to be saved. What is not verified says nothing.
fn claimed(
    conn: &Connection,
    exchange: &Exchange,
    route: &Route,
    request: &RequestHead<'_, '_>,
    priorities: &Priorities,
) -> Option<Criticality> {
    let published = &conn.view.published;
    let query = match request.target {
        Target::Path { query, .. } => query,
        Target::Asterisk => None,
    };
    let carried = (request.headers, query, conn.secured.certificate());
    let now_s = conn.worker.clock.unix_ms(exchange.started) / 1000;
    let mut tokens = conn.view.tokens.borrow_mut();
    let known = route.policy.authenticate.iter().find_map(|index| {
        let at = *index as usize;
        let (authenticator, live) = (published.snapshot.authenticators.get(at)?, published.live.get(at)?);
        authenticator.recall(*index, live, carried, &mut tokens, now_s)
    });
    priorities.of(&known?.claims)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TICK: u64 = 50_000;

    #[test]
    fn a_wait_is_as_long_as_the_rounds_are() {
        let shedding = Shedding::default();
        let mut counts = LoopCounts { turns: 1, ..LoopCounts::default() };
        shedding.tick(None, &counts, 1_000);
        // Ten rounds of 2 ms, and idle for the rest.
        counts.waited_us2 += 10 * 2_000 * 2_000;
        counts.idle_ns += 30_000_000;
        let (load, refused) = shedding.tick(None, &counts, 1_000 + TICK);
        assert_eq!((load.delay_us, refused), (800, 0.0));
        assert!((load.busy - 0.4).abs() < 1e-9);
        // One round that took the whole time.
        counts.waited_us2 += TICK * TICK;
        let (load, _) = shedding.tick(None, &counts, 1_000 + 2 * TICK);
        assert_eq!(load, Load { delay_us: TICK, busy: 1.0 });
    }

    #[test]
    fn without_an_own_loop_late_ticks_tell() {
        let shedding = Shedding::default();
        let mut tick = |now| shedding.tick(None, &LoopCounts::default(), now).0.delay_us;
        assert_eq!([1_000, 51_000, 101_300, 171_000, 201_000].map(&mut tick), [0, 0, 300, 20_000, 0]);
    }
}
