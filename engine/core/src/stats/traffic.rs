//! Counters of requests that a route shares out or copies.

use std::sync::Arc;

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
