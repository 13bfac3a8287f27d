//! What a run has measured, as `--json` writes it and everything else reads it.

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use hdrhistogram::Histogram;
use hdrhistogram::serialization::{Serializer, V2DeflateSerializer};
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
    /// 0: all others, of a target that sends more statuses than are told apart.
    pub(crate) status: u16,
    pub(crate) latency: Latency,
}

impl Status {
    pub(crate) fn name(&self) -> String {
        if self.status == 0 { "others".to_owned() } else { self.status.to_string() }
    }
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

/// Longest time that a histogram tells apart; what took longer counts as this.
const TIME_US_MAX: u64 = 3_600_000_000;
/// Points of the curve for each halving of the distance to 100 %.
const CURVE_POINTS_PER_HALF: u32 = 5;

/// A histogram of microseconds, up to an hour, three digits exact: it never grows, so that recording never allocates.
pub(crate) fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, TIME_US_MAX, 3).expect("the bounds are fixed and right")
}

impl Latency {
    /// The summary of a histogram of microseconds.
    pub(crate) fn of(histogram: &Histogram<u64>) -> Self {
        // The histogram rounds the largest value up to the end of its cell, and so may percentiles lie above it.
        let at = |percentile| histogram.value_at_percentile(percentile);
        let curve = histogram
            .iter_quantiles(CURVE_POINTS_PER_HALF)
            .map(|point| (point.quantile_iterated_to() * 100.0, point.value_iterated_to()));
        Self {
            count: histogram.len(),
            mean: histogram.mean(),
            stdev: histogram.stdev(),
            min: histogram.min(),
            p50: at(50.0),
            p75: at(75.0),
            p90: at(90.0),
            p95: at(95.0),
            p99: at(99.0),
            p999: at(99.9),
            p9999: at(99.99),
            max: histogram.max(),
            curve: if histogram.is_empty() { Vec::new() } else { curve.collect() },
            histogram: encode(histogram),
        }
    }
}

/// HdrHistogram V2 with DEFLATE, base64: the form in which other tools exchange histograms.
fn encode(histogram: &Histogram<u64>) -> String {
    let mut bytes = Vec::new();
    match V2DeflateSerializer::new().serialize(histogram, &mut bytes) {
        Ok(_) => BASE64.encode(bytes),
        // Into memory only counts beyond what the format holds could fail.
        Err(_) => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hdrhistogram::serialization::Deserializer;

    #[test]
    fn a_summary_holds_what_was_recorded() {
        let mut recorded = histogram();
        (1..=10_000u64).for_each(|us| recorded.record(us).expect("within the bounds"));
        let latency = Latency::of(&recorded);
        assert_eq!((latency.count, latency.min), (10_000, 1));
        for (value, exact) in [
            (latency.p50, 5_000.0),
            (latency.p75, 7_500.0),
            (latency.p90, 9_000.0),
            (latency.p95, 9_500.0),
            (latency.p99, 9_900.0),
            (latency.p999, 9_990.0),
            (latency.p9999, 9_999.0),
            (latency.max, 10_000.0),
        ] {
            assert!((value as f64 / exact - 1.0).abs() < 0.001, "{value} for {exact}");
        }
        assert!((latency.mean - 5_000.5).abs() < 5.0 && (latency.stdev - 2_886.7).abs() < 5.0);
    }

    #[test]
    fn the_curve_rises_to_the_maximum_and_is_denser_there() {
        let mut recorded = histogram();
        (1..=100_000u64).for_each(|us| recorded.record(us).expect("within the bounds"));
        let curve = Latency::of(&recorded).curve;
        assert!(curve.windows(2).all(|pair| pair[0].0 <= pair[1].0 && pair[0].1 <= pair[1].1));
        assert_eq!(curve.last().map(|last| (last.0, last.1)), Some((100.0, recorded.max())));
        let above = curve.iter().filter(|point| point.0 > 99.0).count();
        assert!(above * 3 > curve.len() && curve.len() < 200, "{above} of {}", curve.len());
    }

    #[test]
    fn histograms_survive_their_text_form_and_merge() {
        let (mut one, mut other) = (histogram(), histogram());
        (0..1_000u64).for_each(|n| one.record(n * 7).expect("within the bounds"));
        (0..500u64).for_each(|n| other.record(1_000_000 + n).expect("within the bounds"));
        let decode = |text: &str| -> Histogram<u64> {
            let bytes = BASE64.decode(text).expect("base64");
            Deserializer::new().deserialize(&mut bytes.as_slice()).expect("a histogram")
        };
        let mut merged = decode(&Latency::of(&one).histogram);
        assert_eq!(merged, one);
        merged.add(decode(&Latency::of(&other).histogram)).expect("the same bounds");
        assert_eq!(merged.len(), 1_500);
        assert_eq!(merged.max(), other.max());
        assert_eq!(merged.value_at_quantile(1_000.0 / 1_500.0), one.max());
    }

    #[test]
    fn nothing_recorded_is_all_zero() {
        let latency = Latency::of(&histogram());
        assert_eq!((latency.count, latency.p50, latency.max, latency.curve.len()), (0, 0, 0, 0));
    }
}
