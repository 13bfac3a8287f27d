//! Counters that one core writes and anyone may read.
//!
//! A worker owns its cells: it adds with a plain load and store, no locked instruction. The control plane reads
//! them when it is asked for metrics. Each worker's cells lie on cache lines of their own.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crossbeam::utils::CachePadded;

pub use self::traffic::{MirrorOutcome, MirrorStats, SplitStats};
use crate::bulkhead::Full;
use crate::grpc::Status;
use crate::overload::Reason;
use crate::sticky::Outcome;

mod hedges;

pub use hedges::{Hedged, Hedges};

mod tls;

pub use tls::{Handshake, TlsCell, TlsStats};

mod traffic;

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

/// Statuses with a counter of their own; any other is counted under its class (`"2xx"`).
pub const STATUSES: [u16; 59] = [
    100, 101, 103, 200, 201, 202, 203, 204, 205, 206, 207, 208, 226, 300, 301, 302, 303, 304, 307, 308, 400, 401, 402,
    403, 404, 405, 406, 407, 408, 409, 410, 411, 412, 413, 414, 415, 416, 417, 418, 421, 422, 423, 424, 425, 426, 428,
    429, 431, 451, 499, 500, 501, 502, 503, 504, 505, 507, 508, 511,
];
const CLASSES: usize = 5;
const CLASS_LABELS: [&str; CLASSES] = ["1xx", "2xx", "3xx", "4xx", "5xx"];

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
        let slot = STATUS_SLOT.get(usize::from(status.wrapping_sub(100))).copied().unwrap_or(0);
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
                None => CLASS_LABELS.get(slot - STATUSES.len()).copied().unwrap_or("other").to_string(),
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

/// Why a try at a service failed: the `kind` label of `gateway_backend_errors_total`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum BackendError {
    /// The connection was refused, reset or unreachable while it was made.
    Connect,
    ConnectTimeout,
    /// The connection could not be secured.
    Tls,
    /// The connection broke before the answer's head was whole.
    Reset,
    AnswerTimeout,
    /// What came is not HTTP, or is framed wrongly.
    BadAnswer,
    /// The connection broke, or stalled, within the answer's body.
    Body,
    /// No endpoint, or all connections that the service allows are in use.
    NoEndpoint,
}

impl BackendError {
    pub const ALL: [Self; 8] = [
        Self::Connect,
        Self::ConnectTimeout,
        Self::Tls,
        Self::Reset,
        Self::AnswerTimeout,
        Self::BadAnswer,
        Self::Body,
        Self::NoEndpoint,
    ];

    pub const fn label(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::ConnectTimeout => "connect_timeout",
            Self::Tls => "tls",
            Self::Reset => "reset",
            Self::AnswerTimeout => "answer_timeout",
            Self::BadAnswer => "bad_answer",
            Self::Body => "body",
            Self::NoEndpoint => "no_endpoint",
        }
    }
}

/// How a TLS handshake with a service ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(usize)]
pub enum ServiceHandshake {
    Full,
    /// With a ticket of an earlier one.
    Resumed,
    /// The service's certificate is not valid, or not for its name.
    Untrusted,
    Failed,
    Timeout,
}

/// What one worker counts for one service.
#[derive(Debug, Default)]
pub struct ServiceCell {
    errors: [Counter; BackendError::ALL.len()],
    handshakes: [Counter; Self::HANDSHAKES.len()],
    /// From the request sent to the answer's head.
    pub latency: Histogram,
    /// Sent again on a fresh connection because the pooled one had just been closed.
    pub stale_retries: Counter,
    /// Tries after the first one, by whether their answer was one to keep.
    pub retries_succeeded: Counter,
    pub retries_failed: Counter,
    /// Failed tries that were to be followed by another one: the budget was used up, or a breaker is open.
    pub retries_denied_by_budget: Counter,
    pub retries_denied_by_breaker: Counter,
    pub hedges: Hedges,
    /// Requests that found a breaker open.
    pub breaker_rejected: Counter,
    bulkhead_rejected: [Counter; Full::ALL.len()],
    /// Requests for endpoints none of which was usable, that went to others.
    pub subset_fallbacks: Counter,
    calls: [Counter; Status::COUNT],
    sessions: [Counter; Outcome::ALL.len()],
}

impl ServiceCell {
    const HANDSHAKES: [&str; 5] = ["full", "resumed", "untrusted", "failed", "timeout"];

    pub fn record_handshake(&self, ended: ServiceHandshake) {
        if let Some(counter) = self.handshakes.get(ended as usize) {
            counter.add(1);
        }
    }

    /// Of TLS, by result.
    pub fn handshakes(&self) -> impl Iterator<Item = (&'static str, u64)> {
        Self::HANDSHAKES.into_iter().zip(self.handshakes.iter().map(Counter::get))
    }

    #[inline]
    pub fn record_error(&self, error: BackendError) {
        if let Some(counter) = self.errors.get(error as usize) {
            counter.add(1);
        }
    }

    /// Counts a request that found no place.
    pub fn record_full(&self, full: Full) {
        if let Some(counter) = self.bulkhead_rejected.get(full as usize) {
            counter.add(1);
        }
    }

    /// Counts an answer by what became of its session.
    #[inline]
    pub fn record_session(&self, outcome: Outcome) {
        if let Some(counter) = self.sessions.get(outcome as usize) {
            counter.add(1);
        }
    }

    pub fn full(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        Full::ALL.iter().zip(&self.bulkhead_rejected).map(|(full, counter)| (full.label(), counter.get()))
    }

    pub fn sessions(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        Outcome::ALL.iter().zip(&self.sessions).map(|(outcome, counter)| (outcome.label(), counter.get()))
    }

    /// Counts a gRPC call by how it ended.
    pub fn record_call(&self, status: Status) {
        if let Some(counter) = self.calls.get(usize::from(status.code())) {
            counter.add(1);
        }
    }

    /// gRPC calls by the code of `grpc-status`.
    pub fn calls(&self) -> impl Iterator<Item = (usize, u64)> + '_ {
        self.calls.iter().map(Counter::get).enumerate()
    }

    pub fn errors(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        BackendError::ALL.iter().zip(&self.errors).map(|(error, counter)| (error.label(), counter.get()))
    }
}

/// A service's counters, one cell a worker.
#[derive(Debug)]
pub struct ServiceStats {
    pub service: Arc<str>,
    pub workers: Box<[CachePadded<ServiceCell>]>,
}

impl ServiceStats {
    pub fn new(service: Arc<str>, workers: usize) -> Self {
        Self { service, workers: (0..workers).map(|_| CachePadded::new(ServiceCell::default())).collect() }
    }
}

/// What one worker counts for one endpoint; balancing reads `in_flight` of all workers.
#[derive(Debug, Default)]
pub struct EndpointCell {
    /// Requests in flight (a gauge).
    pub in_flight: Counter,
    /// Idle pooled connections (a gauge).
    pub idle: Counter,
    /// Open connections, idle or not (a gauge).
    pub open: Counter,
    pub requests: Counter,
    pub connects: Counter,
    pub reuses: Counter,
    /// Answers, and their time from the request sent to their head; counted where somebody judges by them, as are the next.
    pub answers: Counter,
    pub latency_us: Counter,
    /// Answers of 5xx, and requests without an answer; and these alone.
    pub failures: Counter,
    pub unanswered: Counter,
    /// Connections of HTTP/2 that were closed since nothing came after a PING.
    pub keepalive_timeouts: Counter,
}

/// An endpoint's counters, one cell a worker. They outlive reloads as long as the endpoint stays in its service.
#[derive(Debug)]
pub struct EndpointStats {
    pub service: Arc<str>,
    pub endpoint: Arc<str>,
    pub workers: Box<[CachePadded<EndpointCell>]>,
}

impl EndpointStats {
    pub fn new(service: Arc<str>, endpoint: Arc<str>, workers: usize) -> Self {
        Self { service, endpoint, workers: (0..workers).map(|_| CachePadded::new(EndpointCell::default())).collect() }
    }

    /// Requests in flight over all workers.
    #[inline]
    pub fn in_flight(&self) -> u64 {
        self.workers.iter().map(|cell| cell.in_flight.get()).sum()
    }

    /// Open connections over all workers.
    #[inline]
    pub fn open(&self) -> u64 {
        self.workers.iter().map(|cell| cell.open.get()).sum()
    }
}

/// What became of a credential: the `outcome` label of `gateway_authentications_total`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Authentication {
    /// Verified anew.
    Verified,
    /// Remembered.
    Cached,
    /// There was none.
    Missing,
    Refused,
    /// There was nothing to judge it with.
    Unavailable,
}

impl Authentication {
    pub const ALL: [Self; 5] = [Self::Verified, Self::Cached, Self::Missing, Self::Refused, Self::Unavailable];

    pub const fn label(self) -> &'static str {
        match self {
            Self::Verified => "verified",
            Self::Cached => "cached",
            Self::Missing => "missing",
            Self::Refused => "refused",
            Self::Unavailable => "unavailable",
        }
    }
}

/// What one worker counts for one authenticator.
#[derive(Debug, Default)]
pub struct AuthenticatorCell {
    outcomes: [Counter; Authentication::ALL.len()],
    /// 1 while the worker's breaker of the auth service is open, as of the last request that asked it.
    pub breaker_open: Counter,
}

impl AuthenticatorCell {
    #[inline]
    pub fn record(&self, outcome: Authentication) {
        if let Some(counter) = self.outcomes.get(outcome as usize) {
            counter.add(1);
        }
    }

    pub fn outcomes(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        Authentication::ALL.iter().zip(&self.outcomes).map(|(outcome, counter)| (outcome.label(), counter.get()))
    }
}

/// An authenticator's counters, one cell a worker.
#[derive(Debug)]
pub struct AuthenticatorStats {
    pub authenticator: Arc<str>,
    pub workers: Box<[CachePadded<AuthenticatorCell>]>,
}

impl AuthenticatorStats {
    pub fn new(authenticator: Arc<str>, workers: usize) -> Self {
        let workers = (0..workers).map(|_| CachePadded::new(AuthenticatorCell::default())).collect();
        Self { authenticator, workers }
    }
}

/// Clients of a limit that have a count of their own, by worker; those beyond are counted together.
pub const REFUSED_CLIENTS_MAX: usize = 100;

/// What one worker counts for one rate limit: refusals, by client.
#[derive(Debug, Default)]
pub struct LimitCell {
    /// Locked by its worker with a refusal, and when somebody asks for the metrics.
    refused: Mutex<HashMap<Box<[u8]>, u64>>,
    others: Counter,
}

impl LimitCell {
    /// Counts a refusal of this key.
    pub fn refuse(&self, key: &[u8]) {
        let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = refused.get_mut(key) {
            *count += 1;
        } else if refused.len() < REFUSED_CLIENTS_MAX {
            refused.insert(key.into(), 1);
        } else {
            self.others.add(1);
        }
    }

    /// Refusals by key, and those of keys without a count of their own.
    pub fn refused(&self) -> (HashMap<Box<[u8]>, u64>, u64) {
        let refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        (refused.clone(), self.others.get())
    }
}

/// A rate limit's counters, one cell a worker.
#[derive(Debug)]
pub struct LimitStats {
    pub policy: Arc<str>,
    pub workers: Box<[CachePadded<LimitCell>]>,
}

impl LimitStats {
    pub fn new(policy: Arc<str>, workers: usize) -> Self {
        Self { policy, workers: (0..workers).map(|_| CachePadded::new(LimitCell::default())).collect() }
    }
}

/// How a worker waits for I/O.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Driver {
    /// Not up yet.
    None = 0,
    IoUring = 1,
    Epoll = 2,
}

/// What one worker counts besides routes and services.
#[derive(Debug, Default)]
pub struct WorkerCell {
    /// A [`Driver`] as a number.
    pub driver: Counter,
    /// 1 once the worker has looked at the newest snapshot, by generation.
    pub generation: Counter,
    /// Open client connections (a gauge).
    pub connections: Counter,
    /// Requests between their head and the end of their answer (a gauge).
    pub requests: Counter,
    /// Connections, and streams, that carry another protocol after an upgrade (a gauge).
    pub tunnels: Counter,
    pub accepted: Counter,
    /// Connections given to a less busy worker.
    pub handed_over: Counter,
    /// Refused because of the limit on connections in all.
    pub refused_total: Counter,
    /// Refused because of the limit on connections of one client address.
    pub refused_per_ip: Counter,
    pub accept_errors: Counter,
    /// Panics of connection tasks that were caught.
    pub panics: Counter,
    /// Deadlines that passed: head, body, idle, and those towards services.
    pub deadlines: Counter,
    /// Operations submitted to the ring (or waits on epoll).
    pub ring_ops: Counter,
    /// Times that the loop asked its ring for events, and those at which there were none and it slept.
    pub loop_turns: Counter,
    pub loop_sleeps: Counter,
    /// How long what was ready has waited of late, in microseconds (a gauge).
    pub queueing_us: Counter,
    /// Thousandths of the time in which there was something to do, and of the requests that are shed (gauges).
    pub busy: Counter,
    pub shed: Counter,
    /// Heap allocations of this thread.
    pub allocations: Counter,
    /// Buffers taken from the pool now (a gauge), and made since the start.
    pub buffers_in_use: Counter,
    pub buffers_made: Counter,
    pub client_bytes_in: Counter,
    pub client_bytes_out: Counter,
    /// Open client connections that speak HTTP/2 (a gauge).
    pub http2_connections: Counter,
    http2_abuse: [Counter; Http2Abuse::NAMES.len()],
}

/// Why the gateway ended an HTTP/2 connection: what its client did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(usize)]
pub enum Http2Abuse {
    /// Too many streams opened and given up again.
    Resets,
    /// Too many frames besides requests.
    ControlFrames,
    /// Too much of what the protocol's library bounds: CONTINUATION, small DATA frames, streams that break the protocol.
    Flood,
    /// It broke the protocol.
    Protocol,
}

impl Http2Abuse {
    const NAMES: [&str; 4] = ["resets", "control_frames", "flood", "protocol"];
}

impl WorkerCell {
    pub fn record_abuse(&self, kind: Http2Abuse) {
        if let Some(counter) = self.http2_abuse.get(kind as usize) {
            counter.add(1);
        }
    }

    /// By kind.
    pub fn http2_abuse(&self) -> impl Iterator<Item = (&'static str, u64)> {
        Http2Abuse::NAMES.into_iter().zip(self.http2_abuse.iter().map(Counter::get))
    }
}

/// All workers' own counters.
#[derive(Debug)]
pub struct WorkerStats {
    pub workers: Box<[CachePadded<WorkerCell>]>,
}

impl WorkerStats {
    pub fn new(workers: usize) -> Self {
        Self { workers: (0..workers).map(|_| CachePadded::new(WorkerCell::default())).collect() }
    }
}

#[cfg(test)]
mod tests;
