//! The real binary, and the results of a run that it can show.

use std::process::Command;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use hdrhistogram::Histogram;
use hdrhistogram::serialization::{Serializer, V2DeflateSerializer};
use serde_json::{Value, json};

/// What a command left behind.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

pub(crate) fn loadtest(args: &[&str]) -> Ended {
    ended(Command::new(env!("CARGO_BIN_EXE_loadtest")).args(args))
}

pub(crate) fn ended(command: &mut Command) -> Ended {
    let output = command.output();
    let output = output.unwrap_or_else(|error| panic!("{} is needed: {error}", command.get_program().display()));
    let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
    Ended { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
}

impl Ended {
    /// Ended with this code, nothing on stdout, and a message that has `part`.
    #[track_caller]
    pub(crate) fn assert_failed(&self, code: i32, part: &str) {
        assert_eq!((self.code, self.stdout.as_str()), (Some(code), ""), "{}", self.stderr);
        assert!(self.stderr.contains(part), "`{part}` is not in {}", self.stderr);
        assert!(!self.stderr.contains("panicked"), "{}", self.stderr);
    }

    /// The same, with one line.
    #[track_caller]
    pub(crate) fn assert_failed_in_a_line(&self, code: i32, part: &str) {
        self.assert_failed(code, part);
        assert_eq!(self.stderr.lines().count(), 1, "{}", self.stderr);
        assert!(self.stderr.starts_with("loadtest: "), "{}", self.stderr);
    }

    #[track_caller]
    pub(crate) fn assert_done(&self) {
        assert_eq!((self.code, self.stderr.as_str()), (Some(0), ""));
    }
}

/// A run at 1,000/s for 30 s whose target stood still for 300 ms after 10 s: the form that a run writes.
pub(crate) fn results() -> Value {
    let (mut latency, mut service) = (histogram(), histogram());
    let mut timeline = Vec::new();
    for second in 0..30_u64 {
        let mut this = histogram();
        for at_ms in 0..1000_u64 {
            // Spread like an answer of a service, without chance: most near 200 us, a tail to 3 ms.
            let place = (second * 1000 + at_ms) * 7919 % 10_000;
            let took = 150 + place / 80 + if place > 9_900 { (place - 9_900) * 28 } else { 0 };
            let stood_us = if second == 10 { 300_000_u64.saturating_sub(at_ms * 1000) } else { 0 };
            service.record(if stood_us == 300_000 { stood_us + took } else { took }).expect("within the bounds");
            latency.record(stood_us + took).expect("within the bounds");
            this.record(stood_us + took).expect("within the bounds");
        }
        let at = |percentile| this.value_at_percentile(percentile);
        let failed = u64::from(second == 11) * 3;
        timeline.push(json!({ "at": second as f64, "due": 1000, "answered": 1000 - failed, "failed": failed,
            "p50": at(50.0), "p99": at(99.0), "max": this.max() }));
    }
    json!({
        "format": 1,
        "started": "2026-11-24T08:00:00Z",
        "environment": { "cpu": "Example CPU 3.0 GHz", "cores": 2, "memory_mib": 8192, "kernel": "Linux 6.18.0 x86_64",
            "os": "Debian GNU/Linux 12", "version": "0.1.0",
            "command_line": ["loadtest", "run", "--rate", "1000", "http://127.0.0.1:8080/"] },
        "target": "http://127.0.0.1:8080/",
        "load": { "model": "open", "description": "1000/s constant for 30 s", "rate": 1000.0, "connections": 64, "threads": 1 },
        "seconds": 30.0,
        "counts": { "due": 30_000, "sent": 30_000, "answered": 29_997, "failed": 3, "unexpected": 120,
            "connections_opened": 67, "bytes_sent": 60_000_000, "bytes_received": 480_000_000 },
        "latency": summary(&latency),
        "service_time": summary(&service),
        "classes": [
            { "name": "GET /products", "failed": 3, "latency": summary(&latency), "statuses": [
                { "status": 200, "latency": summary(&latency) },
                { "status": 503, "latency": summary(&service) },
            ] },
            { "name": "POST /orders", "failed": 0, "latency": summary(&service), "statuses": [
                { "status": 201, "latency": summary(&service) },
            ] },
        ],
        "errors": [{ "kind": "timeout", "count": 2 }, { "kind": "reset", "count": 1 }],
        "timeline": timeline,
        "generator": { "cpu_us_per_request": 9.4, "busy": 0.11, "on_schedule": 0.9998, "late_max_us": 412, "warnings": [] },
    })
}

fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 3_600_000_000, 3).expect("fixed bounds")
}

fn summary(histogram: &Histogram<u64>) -> Value {
    let at = |percentile| histogram.value_at_percentile(percentile);
    // So many digits that reading changes none of them.
    let rounded = |value: f64| (value * 1e6).round() / 1e6;
    let steps = histogram.iter_quantiles(5);
    let curve: Vec<_> =
        steps.map(|step| (rounded(step.quantile_iterated_to() * 100.0), step.value_iterated_to())).collect();
    let mut bytes = Vec::new();
    V2DeflateSerializer::new().serialize(histogram, &mut bytes).expect("memory");
    json!({
        "count": histogram.len(), "mean": rounded(histogram.mean()), "stdev": rounded(histogram.stdev()), "min": histogram.min(),
        "p50": at(50.0), "p75": at(75.0), "p90": at(90.0), "p95": at(95.0), "p99": at(99.0), "p999": at(99.9),
        "p9999": at(99.99), "max": histogram.max(), "curve": curve, "histogram": BASE64.encode(bytes),
    })
}
