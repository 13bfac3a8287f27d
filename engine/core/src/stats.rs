//! Counters that one core writes and anyone may read.
//!
//! A worker owns its cells: it adds with a plain load and store, no locked instruction. The control plane reads
//! them when it is asked for metrics. Each worker's cells lie on cache lines of their own.

use std::sync::atomic::{AtomicU64, Ordering};

pub use self::admission::{
    Authentication, AuthenticatorCell, AuthenticatorStats, LimitCell, LimitStats, REFUSED_CLIENTS_MAX,
};
pub use self::hedges::{Hedged, Hedges};
pub use self::route::{RouteCell, RouteStats, STATUSES, TunnelCounters};
pub use self::service::{BackendError, EndpointCell, EndpointStats, ServiceCell, ServiceHandshake, ServiceStats};
pub use self::tls::{Handshake, TlsCell, TlsStats};
pub use self::traffic::{MirrorOutcome, MirrorStats, SplitStats};
pub use self::worker::{Driver, Http2Abuse, WorkerCell, WorkerStats};

mod admission;
mod hedges;
mod route;
mod service;
mod tls;
mod traffic;
mod worker;

/// A number with one writer.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    pub const fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    #[inline]
    pub fn add(&self, n: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
    }

    #[inline]
    pub fn sub(&self, n: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_sub(n), Ordering::Relaxed);
    }

    #[inline]
    pub fn set(&self, n: u64) {
        self.0.store(n, Ordering::Relaxed);
    }

    #[inline]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Upper bounds of the latency buckets, in microseconds; one more bucket is open-ended.
pub const LATENCY_BOUNDS_US: [u64; 16] = [
    250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 2_500_000, 5_000_000,
    10_000_000, 30_000_000,
];

/// A latency histogram with one writer.
#[derive(Debug, Default)]
pub struct Histogram {
    buckets: [Counter; LATENCY_BOUNDS_US.len() + 1],
    sum_us: Counter,
}

impl Histogram {
    #[inline]
    pub fn record_us(&self, us: u64) {
        let bucket = LATENCY_BOUNDS_US.iter().position(|bound| us <= *bound).unwrap_or(LATENCY_BOUNDS_US.len());
        if let Some(counter) = self.buckets.get(bucket) {
            counter.add(1);
        }
        self.sum_us.add(us);
    }

    /// Counts per bucket, not cumulative, the open-ended one last.
    pub fn buckets(&self) -> [u64; LATENCY_BOUNDS_US.len() + 1] {
        self.buckets.each_ref().map(Counter::get)
    }

    pub fn sum_us(&self) -> u64 {
        self.sum_us.get()
    }
}
#[cfg(test)]
mod tests;
