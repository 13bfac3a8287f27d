//! What is counted of the requests of a route.

use std::sync::Arc;

use crossbeam::utils::CachePadded;

use super::{Counter, Histogram};
use crate::overload::Reason;

/// Statuses with a counter of their own; any other is counted under its class (`"2xx"`), and those that have none, which
/// services may send all the same, as `other`.
pub const STATUSES: [u16; 59] = [
    100, 101, 103, 200, 201, 202, 203, 204, 205, 206, 207, 208, 226, 300, 301, 302, 303, 304, 307, 308, 400, 401, 402,
    403, 404, 405, 406, 407, 408, 409, 410, 411, 412, 413, 414, 415, 416, 417, 418, 421, 422, 423, 424, 425, 426, 428,
    429, 431, 451, 499, 500, 501, 502, 503, 504, 505, 507, 508, 511,
];
const CLASSES: usize = 6;
const CLASS_LABELS: [&str; CLASSES] = ["1xx", "2xx", "3xx", "4xx", "5xx", "other"];

const OTHER_SLOT: u8 = (STATUSES.len() + CLASSES - 1) as u8;

/// Maps a status to its slot with one load.
#[allow(clippy::indexing_slicing)] // evaluated by the compiler: an index out of bounds does not build
static STATUS_SLOT: [u8; 500] = {
    let mut table = [0u8; 500];
    let mut status = 0;
    while status < 500 {
        table[status] = (STATUSES.len() + status / 100) as u8;
        status += 1;
    }
    let mut slot = 0;
    while slot < STATUSES.len() {
        table[STATUSES[slot] as usize - 100] = slot as u8;
        slot += 1;
    }
    table
};

/// What one worker counts for one route.
#[derive(Debug)]
pub struct RouteCell {
    statuses: [Counter; STATUSES.len() + CLASSES],
    pub latency: Histogram,
    pub tunnels: TunnelCounters,
    shed: [Counter; Reason::ALL.len()],
}

/// What went through a route after an upgrade.
#[derive(Debug, Default)]
pub struct TunnelCounters {
    /// Tunnels that were opened: of WebSocket, and of all other protocols.
    pub websocket: Counter,
    pub other: Counter,
    /// Bytes from and to clients, counted when a tunnel ends.
    pub bytes_in: Counter,
    pub bytes_out: Counter,
}

impl Default for RouteCell {
    fn default() -> Self {
        Self {
            statuses: [const { Counter::new() }; STATUSES.len() + CLASSES],
            latency: Histogram::default(),
            tunnels: TunnelCounters::default(),
            shed: Default::default(),
        }
    }
}

impl RouteCell {
    /// Counts an answered request.
    ///
    /// Hot; watched by the benchmark `stats`.
    #[inline]
    pub fn record(&self, status: u16, us: u64) {
        let slot = STATUS_SLOT.get(usize::from(status.wrapping_sub(100))).copied().unwrap_or(OTHER_SLOT);
        if let Some(counter) = self.statuses.get(usize::from(slot)) {
            counter.add(1);
        }
        self.latency.record_us(us);
    }

    /// Counts a request that the worker had no time for.
    pub fn record_shed(&self, reason: Reason) {
        if let Some(counter) = self.shed.get(reason as usize) {
            counter.add(1);
        }
    }

    pub fn shed(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        Reason::ALL.iter().zip(&self.shed).map(|(reason, counter)| (reason.label(), counter.get()))
    }

    /// (status label, count) of every status that occurred.
    pub fn statuses(&self) -> impl Iterator<Item = (String, u64)> + '_ {
        self.statuses.iter().enumerate().filter(|(_, counter)| counter.get() > 0).map(|(slot, counter)| {
            let label = match STATUSES.get(slot) {
                Some(status) => status.to_string(),
                None => CLASS_LABELS.get(slot - STATUSES.len()).copied().unwrap_or_default().to_string(),
            };
            (label, counter.get())
        })
    }
}

/// A route's counters, one cell a worker. They outlive reloads as long as the route's name does.
#[derive(Debug)]
pub struct RouteStats {
    pub route: Arc<str>,
    pub workers: Box<[CachePadded<RouteCell>]>,
}

impl RouteStats {
    pub fn new(route: Arc<str>, workers: usize) -> Self {
        Self { route, workers: (0..workers).map(|_| CachePadded::new(RouteCell::default())).collect() }
    }
}
