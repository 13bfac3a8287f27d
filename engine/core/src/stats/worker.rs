//! What a worker counts of itself.

use crossbeam::utils::CachePadded;

use super::Counter;

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
