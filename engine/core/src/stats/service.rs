//! What is counted of services and their endpoints.

use std::sync::Arc;

use crossbeam::utils::CachePadded;

use super::{Counter, Hedges, Histogram};
use crate::bulkhead::Full;
use crate::grpc::Status;
use crate::sticky::Outcome;

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
