//! What a request is known by and what it leaves behind: IDs, trace context, times, counters, its line in the log.

use std::hint::black_box;

use ringway_core::auth::TlsFacts;
use ringway_core::log_line::{Formatter, LINE_BYTES_MAX, Line};
use ringway_core::log_queue::{BUFFER_BYTES, LogQueue};
use ringway_core::request_id::RequestId;
use ringway_core::stats::{Counter, Histogram, RouteCell};
use ringway_core::timestamp::{imf_fixdate, rfc3339_millis};
use ringway_core::trace::{NewTrace, valid_b3, valid_b3_id, valid_traceparent};

use super::Case;

pub const LINE: Line<'static> = Line {
    unix_ms: 1_774_260_930_123,
    request_id: b"019d1a2e-7c4b-7d3e-8f10-2b6c5a493e71",
    method: b"GET",
    path: b"/api/products/123",
    status: 200,
    latency_us: 8_417,
    client_ip: b"203.0.113.42",
    user_agent: Some(b"Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/140.0.0.0"),
    user_id: None,
    rate_limit_remaining: None,
    backend_service: Some("product-service"),
    backend_latency_us: Some(8_003),
    http_version: None,
    concurrency_limit: None,
    tls: TlsFacts::NONE,
    grpc_status: None,
    attempts: 1,
    hedge: None,
    circuit_breaker: None,
    shed: None,
    session: None,
    tunnel: None,
};

pub(super) fn cases() -> Vec<Case> {
    let trace = || NewTrace::from_random(black_box(u128::MAX / 3), black_box(u64::MAX / 5));
    vec![
        Case::new("request_id", "generate", || {
            || RequestId::generate(black_box(LINE.unix_ms), black_box(0x0123_4567_89ab_cdef_0123_4567_89ab_cdef))
        }),
        Case::new("request_id", "accept", || || RequestId::accept(black_box(LINE.request_id))),
        Case::new("trace", "valid_traceparent", || {
            || valid_traceparent(black_box(b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"))
        }),
        Case::new("trace", "valid_b3", || {
            || valid_b3(black_box(b"4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-1"))
        }),
        Case::new("trace", "valid_b3_id", || || valid_b3_id(black_box(b"4bf92f3577b34da6a3ce929d0e0e4736"))),
        Case::writes("trace", "start_w3c", move |out| trace().write_traceparent(out)),
        Case::writes("trace", "start_b3", move |out| trace().write_b3(out)),
        Case::writes("trace", "start_b3_multi", move |out| {
            let trace = trace();
            trace.write_trace_id(out);
            trace.write_span_id(out);
        }),
        Case::writes("timestamp", "imf_fixdate", |out| imf_fixdate(black_box(LINE.unix_ms / 1000), out)),
        Case::writes("timestamp", "rfc3339_millis", |out| rfc3339_millis(black_box(LINE.unix_ms), out)),
        Case::new("stats", "counter", || {
            let counter = Counter::new();
            move || counter.add(black_box(1))
        }),
        Case::new("stats", "histogram", || {
            let histogram = Histogram::default();
            move || histogram.record_us(black_box(LINE.latency_us))
        }),
        Case::new("stats", "route", || {
            let cell = RouteCell::default();
            move || cell.record(black_box(LINE.status), black_box(LINE.latency_us))
        }),
        log_line(),
        Case::new("log_queue", "round", || {
            let queue = LogQueue::new(4);
            let mut buffer = Vec::with_capacity(BUFFER_BYTES);
            // A core's buffer to the writer and another one back, which happens once in about a hundred requests.
            move || {
                buffer.push(b'\n');
                queue.swap(black_box(&mut buffer));
                queue.pop().map(|full| queue.give_back(full))
            }
        }),
    ]
}

fn log_line() -> Case {
    Case::new("log_line", "twelve_fields", || {
        let mut out = Vec::with_capacity(LINE_BYTES_MAX);
        let mut formatter = Formatter::new();
        move || {
            out.clear();
            formatter.write(black_box(&LINE), &mut out);
            out.len()
        }
    })
}
