//! What a request is known by and what it leaves behind: IDs, trace context, its line in the access log.

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use ringway_core::log_line::{Formatter, LINE_BYTES_MAX, Line};
use ringway_core::request_id::RequestId;
use ringway_core::trace::{NewTrace, valid_traceparent};
use serde::Serialize;

const LINE: Line<'static> = Line {
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
};

/// The same line for `serde_json`, which gets strings and a timestamp that are ready to be written.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct SerdeLine<'a> {
    timestamp: &'a str,
    request_id: &'a str,
    method: &'a str,
    path: &'a str,
    status_code: u16,
    latency_ms: f64,
    client_ip: &'a str,
    user_agent: Option<&'a str>,
    user_id: Option<&'a str>,
    rate_limit_remaining: Option<u64>,
    backend_service: Option<&'a str>,
    backend_latency_ms: Option<f64>,
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).expect("text")
}

fn log_line(c: &mut Criterion) {
    let mut group = c.benchmark_group("log_line");
    let mut out = Vec::with_capacity(LINE_BYTES_MAX);
    let mut formatter = Formatter::new();
    group.bench_function("ringway", |b| {
        b.iter(|| {
            out.clear();
            formatter.write(black_box(&LINE), &mut out);
        });
    });
    let line = SerdeLine {
        timestamp: "2026-03-23T10:15:30.123Z",
        request_id: text(LINE.request_id),
        method: text(LINE.method),
        path: text(LINE.path),
        status_code: LINE.status,
        latency_ms: 8.417,
        client_ip: text(LINE.client_ip),
        user_agent: LINE.user_agent.map(text),
        user_id: None,
        rate_limit_remaining: None,
        backend_service: LINE.backend_service,
        backend_latency_ms: Some(8.003),
    };
    let mut serde_out = Vec::with_capacity(LINE_BYTES_MAX);
    group.bench_function("serde_json", |b| {
        b.iter(|| {
            serde_out.clear();
            serde_json::to_writer(&mut serde_out, black_box(&line)).expect("a vector takes it");
            serde_out.push(b'\n');
        });
    });
    assert_eq!(text(&out), text(&serde_out), "both write the same line");
    group.finish();
}

fn request_id(c: &mut Criterion) {
    let mut group = c.benchmark_group("request_id");
    group.bench_function("generate", |b| {
        b.iter(|| {
            RequestId::generate(black_box(1_774_260_930_123), black_box(0x0123_4567_89ab_cdef_0123_4567_89ab_cdef))
        });
    });
    group.bench_function("accept", |b| b.iter(|| RequestId::accept(black_box(LINE.request_id))));
    group.finish();
}

fn traceparent(c: &mut Criterion) {
    let mut group = c.benchmark_group("traceparent");
    let value = b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    group.bench_function("validate", |b| b.iter(|| valid_traceparent(black_box(value))));
    let mut out = Vec::with_capacity(64);
    group.bench_function("start", |b| {
        b.iter(|| {
            out.clear();
            NewTrace::from_random(black_box(u128::MAX / 3), black_box(u64::MAX / 5)).write_traceparent(&mut out);
        });
    });
    group.finish();
}

criterion_group!(benches, log_line, request_id, traceparent);
criterion_main!(benches);
