//! What the cases are measured beside: `httparse` alone, which the codec is built on (the difference is the price of its
//! judgement), `serde_json` for the log line and, with the feature `monoio-http`, the decoders of that crate's codec.
//! Those take what they have read out of a `BytesMut`; filling one, which a read does otherwise, is not measured.

use std::hint::black_box;
use std::mem::MaybeUninit;

use criterion::{BenchmarkId, Criterion, Throughput};
use ringway_bench::cases::LINE;
use ringway_bench::messages::{REQUEST_HEADS, RESPONSE_HEADS};
use ringway_core::http::HEADERS_MAX;
use ringway_core::log_line::{Formatter, LINE_BYTES_MAX};
use serde::Serialize;

use crate::cpu_time::CpuTime;

pub(crate) fn heads(c: &mut Criterion<CpuTime>) {
    let mut group = c.benchmark_group("request_head");
    for (name, head) in REQUEST_HEADS {
        group.throughput(Throughput::Bytes(head.len() as u64));
        group.bench_with_input(BenchmarkId::new("httparse", name), head, |b, head| {
            b.iter(|| {
                let mut headers = [const { MaybeUninit::uninit() }; HEADERS_MAX];
                let mut request = httparse::Request::new(&mut []);
                let parsed = request.parse_with_uninit_headers(black_box(head), &mut headers);
                black_box(parsed).expect("a good head");
            });
        });
        #[cfg(feature = "monoio-http")]
        group.bench_with_input(BenchmarkId::new("monoio-http", name), head, |b, head| {
            monoio::decode(b, head, monoio_http::h1::codec::decoder::RequestHeadDecoder::default);
        });
    }
    group.finish();

    let mut group = c.benchmark_group("response_head");
    for (name, head) in RESPONSE_HEADS {
        group.throughput(Throughput::Bytes(head.len() as u64));
        group.bench_with_input(BenchmarkId::new("httparse", name), head, |b, head| {
            b.iter(|| {
                let mut headers = [const { MaybeUninit::uninit() }; HEADERS_MAX];
                let mut response = httparse::Response::new(&mut []);
                let config = httparse::ParserConfig::default();
                let parsed = config.parse_response_with_uninit_headers(&mut response, black_box(head), &mut headers);
                black_box(parsed).expect("a good head");
            });
        });
        #[cfg(feature = "monoio-http")]
        group.bench_with_input(BenchmarkId::new("monoio-http", name), head, |b, head| {
            monoio::decode(b, head, monoio_http::h1::codec::decoder::ResponseHeadDecoder::default);
        });
    }
    group.finish();
}

#[cfg(not(feature = "monoio-http"))]
pub(crate) fn chunked(_: &mut Criterion<CpuTime>) {}

#[cfg(feature = "monoio-http")]
pub(crate) fn chunked(c: &mut Criterion<CpuTime>) {
    use ringway_bench::cases::CHUNKED_BODIES;
    use ringway_bench::messages::chunked_body;

    let mut group = c.benchmark_group("chunked");
    for (name, count, size) in CHUNKED_BODIES {
        let body = chunked_body(count, size);
        group.throughput(Throughput::Bytes(body.len() as u64));
        group.bench_with_input(BenchmarkId::new("monoio-http", name), &body, |b, body| monoio::decode_chunks(b, body));
    }
    group.finish();
}

/// The log line for `serde_json`, which gets strings and a timestamp that are ready to be written.
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

pub(crate) fn log_line(c: &mut Criterion<CpuTime>) {
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
    let mut ours = Vec::with_capacity(LINE_BYTES_MAX);
    Formatter::new().write(&LINE, &mut ours);
    let write = |out: &mut Vec<u8>| {
        out.clear();
        serde_json::to_writer(&mut *out, black_box(&line)).expect("a vector takes it");
        out.push(b'\n');
    };
    let mut out = Vec::with_capacity(LINE_BYTES_MAX);
    write(&mut out);
    assert_eq!(text(&ours), text(&out), "both write the same line");
    let mut group = c.benchmark_group("log_line");
    group.bench_function("serde_json", |b| b.iter(|| write(&mut out)));
    group.finish();
}

#[cfg(feature = "monoio-http")]
mod monoio {
    use std::hint::black_box;

    use bytes::BytesMut;
    use criterion::{BatchSize, Bencher};
    use monoio_codec::{Decoded, Decoder};
    use monoio_http::h1::codec::decoder::ChunkedBodyDecoder;

    use crate::cpu_time::CpuTime;

    pub(crate) fn decode<D: Decoder>(b: &mut Bencher<'_, CpuTime>, bytes: &[u8], decoder: impl Fn() -> D) {
        let decode = |bytes: BytesMut| {
            let mut bytes = black_box(bytes);
            match decoder().decode(&mut bytes) {
                Ok(Decoded::Some(head)) => head,
                _ => panic!("a good head"),
            }
        };
        b.iter_batched(|| BytesMut::from(bytes), decode, BatchSize::SmallInput);
    }

    pub(crate) fn decode_chunks(b: &mut Bencher<'_, CpuTime>, bytes: &[u8]) {
        let decode = |bytes: &mut BytesMut| {
            let mut decoder = ChunkedBodyDecoder::default();
            while let Ok(Decoded::Some(Some(data))) = decoder.decode(black_box(bytes)) {
                black_box(data);
            }
            assert!(bytes.is_empty());
        };
        b.iter_batched_ref(|| BytesMut::from(bytes), decode, BatchSize::SmallInput);
    }
}
