//! Counters of requests that a route shares out or copies.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crossbeam::utils::CachePadded;

use super::Counter;

/// The requests that a route gave to one of the services of its split, one counter a worker. They outlive reloads as long
/// as both names do.
#[derive(Debug)]
pub struct SplitStats {
    pub route: Arc<str>,
    pub service: Arc<str>,
    pub workers: Box<[CachePadded<Counter>]>,
}

impl SplitStats {
    pub fn new(route: Arc<str>, service: Arc<str>, workers: usize) -> Self {
        Self { route, service, workers: (0..workers).map(|_| CachePadded::default()).collect() }
    }
}

/// What became of a request that was to be copied: the `outcome` label of `gateway_mirrored_requests_total`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum MirrorOutcome {
    /// Sent, and answered with less than 500.
    Answered,
    ServerError,
    /// Sent, but not answered whole or in time; or there was no endpoint.
    Failed,
    /// The original's body did not come whole.
    Aborted,
    // Not copied:
    BodyTooLarge,
    Upgrade,
    /// Too many at a time.
    NoPlace,
    BreakerOpen,
    /// The other service has as many requests in flight as it may.
    BulkheadFull,
}

impl MirrorOutcome {
    pub const ALL: [Self; 9] = [
        Self::Answered,
        Self::ServerError,
        Self::Failed,
        Self::Aborted,
        Self::BodyTooLarge,
        Self::Upgrade,
        Self::NoPlace,
        Self::BreakerOpen,
        Self::BulkheadFull,
    ];

    pub const fn label(self) -> &'static str {
        match self {
            Self::Answered => "answered",
            Self::ServerError => "server_error",
            Self::Failed => "failed",
            Self::Aborted => "aborted",
            Self::BodyTooLarge => "body_too_large",
            Self::Upgrade => "upgrade",
            Self::NoPlace => "in_flight",
            Self::BreakerOpen => "breaker_open",
            Self::BulkheadFull => "bulkhead_full",
        }
    }
}

/// The copies of a route's requests. They outlive reloads as long as the route's name does.
#[derive(Debug)]
pub struct MirrorStats {
    pub route: Arc<str>,
    /// Copies that are gathered or under way, over all workers.
    under_way: AtomicUsize,
    workers: Box<[CachePadded<[Counter; MirrorOutcome::ALL.len()]>]>,
}

impl MirrorStats {
    pub fn new(route: Arc<str>, workers: usize) -> Self {
        Self { route, under_way: AtomicUsize::new(0), workers: (0..workers).map(|_| CachePadded::default()).collect() }
    }

    /// Takes one of so many places, if one is free; it is given back with [`MirrorStats::leave`].
    pub fn enter(&self, places: usize) -> bool {
        let take = |taken: usize| (taken < places).then_some(taken + 1);
        self.under_way.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok()
    }

    pub fn leave(&self) {
        self.under_way.fetch_sub(1, Ordering::Relaxed);
    }

    pub fn record(&self, worker: usize, outcome: MirrorOutcome) {
        if let Some(counter) = self.workers.get(worker).and_then(|cell| cell.get(outcome as usize)) {
            counter.add(1);
        }
    }

    pub fn outcomes(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let sum = |outcome: MirrorOutcome| {
            self.workers.iter().filter_map(|cell| cell.get(outcome as usize)).map(Counter::get).sum()
        };
        MirrorOutcome::ALL.into_iter().map(move |outcome| (outcome.label(), sum(outcome)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_take_no_more_places_than_there_are() {
        let stats = MirrorStats::new("r".into(), 4);
        let taken: usize = std::thread::scope(|scope| {
            let take = || (0..1_000).filter(|_| stats.enter(100)).count();
            let threads = [(); 4].map(|()| scope.spawn(take));
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        assert_eq!(taken, 100);
        stats.leave();
        assert!(stats.enter(100) && !stats.enter(100));
        MirrorOutcome::ALL.into_iter().for_each(|outcome| stats.record(outcome as usize % 4, outcome));
        assert!(stats.outcomes().all(|(_, count)| count == 1));
    }
}
