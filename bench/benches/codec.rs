//! The HTTP/1.1 codec: heads of requests and answers, chunked bodies.
//!
//! Beside it `httparse` alone (what the codec is built on: the difference is the price of its judgement) and, with the
//! feature `monoio-http`, the decoders of that crate's codec. Those take what they have read out of a `BytesMut`; filling
//! one, which a read does otherwise, is not measured.

use std::hint::black_box;

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use ringway_bench::{REQUEST_HEADS, RESPONSE_HEADS, chunked_body};
use ringway_core::http::{Chunked, HEADERS_MAX, HeadScan, HeadScanner, HeadStorage, RequestHead, ResponseHead};

/// From bytes as they were received to a head that is safe to act on: its end found, parsed, judged.
fn request_head(c: &mut Criterion) {
    let mut group = c.benchmark_group("request_head");
    for (name, head) in REQUEST_HEADS {
        group.throughput(Throughput::Bytes(head.len() as u64));
        group.bench_with_input(BenchmarkId::new("ringway", name), head, |b, head| {
            b.iter(|| {
                let head = black_box(head);
                let HeadScan::Complete(length) = HeadScanner::default().scan(head) else { panic!("a whole head") };
                let mut storage = HeadStorage::new();
                let request = RequestHead::parse(&head[..length], 100, &mut storage).expect("a good head");
                black_box((request.framing, request.keep_alive));
            });
        });
        group.bench_with_input(BenchmarkId::new("httparse", name), head, |b, head| {
            b.iter(|| {
                let mut headers = [const { std::mem::MaybeUninit::uninit() }; HEADERS_MAX];
                let mut request = httparse::Request::new(&mut []);
                let parsed = request.parse_with_uninit_headers(black_box(head), &mut headers);
                black_box(parsed).expect("a good head");
            });
        });
        #[cfg(feature = "monoio-http")]
        group.bench_with_input(BenchmarkId::new("monoio-http", name), head, |b, head| {
            baseline::decode(b, head, monoio_http::h1::codec::decoder::RequestHeadDecoder::default);
        });
    }
    group.finish();
}

fn response_head(c: &mut Criterion) {
    let mut group = c.benchmark_group("response_head");
    for (name, head) in RESPONSE_HEADS {
        group.throughput(Throughput::Bytes(head.len() as u64));
        group.bench_with_input(BenchmarkId::new("ringway", name), head, |b, head| {
            b.iter(|| {
                let head = black_box(head);
                let HeadScan::Complete(length) = HeadScanner::default().scan(head) else { panic!("a whole head") };
                let mut storage = HeadStorage::new();
                let answer = ResponseHead::parse(&head[..length], false, &mut storage).expect("a good head");
                black_box((answer.framing, answer.keep_alive));
            });
        });
        group.bench_with_input(BenchmarkId::new("httparse", name), head, |b, head| {
            b.iter(|| {
                let mut headers = [const { std::mem::MaybeUninit::uninit() }; HEADERS_MAX];
                let mut response = httparse::Response::new(&mut []);
                let config = httparse::ParserConfig::default();
                let parsed = config.parse_response_with_uninit_headers(&mut response, black_box(head), &mut headers);
                black_box(parsed).expect("a good head");
            });
        });
        #[cfg(feature = "monoio-http")]
        group.bench_with_input(BenchmarkId::new("monoio-http", name), head, |b, head| {
            baseline::decode(b, head, monoio_http::h1::codec::decoder::ResponseHeadDecoder::default);
        });
    }
    group.finish();
}

/// A body of 16 KiB that has been received in one piece.
fn chunked(c: &mut Criterion) {
    let mut group = c.benchmark_group("chunked");
    for (name, count, size) in [("1x16KiB", 1, 16 * 1024), ("16x1KiB", 16, 1024), ("256x64B", 256, 64)] {
        let body = chunked_body(count, size);
        group.throughput(Throughput::Bytes(body.len() as u64));
        group.bench_with_input(BenchmarkId::new("ringway", name), &body, |b, body| {
            // It decodes in place: each run needs the body anew.
            let decode = |bytes: &mut Vec<u8>| {
                let mut decoder = Chunked::default();
                let decoded = decoder.decode(black_box(bytes)).expect("a good body");
                assert!(decoder.is_done());
                black_box(decoded);
            };
            b.iter_batched_ref(|| body.clone(), decode, BatchSize::SmallInput);
        });
        #[cfg(feature = "monoio-http")]
        group.bench_with_input(BenchmarkId::new("monoio-http", name), &body, |b, body| {
            baseline::decode_chunks(b, body);
        });
    }
    group.finish();
}

#[cfg(feature = "monoio-http")]
mod baseline {
    use std::hint::black_box;

    use bytes::BytesMut;
    use criterion::{BatchSize, Bencher};
    use monoio_codec::{Decoded, Decoder};
    use monoio_http::h1::codec::decoder::ChunkedBodyDecoder;

    pub(crate) fn decode<D: Decoder>(b: &mut Bencher<'_>, bytes: &[u8], decoder: impl Fn() -> D) {
        let decode = |bytes: BytesMut| {
            let mut bytes = black_box(bytes);
            match decoder().decode(&mut bytes) {
                Ok(Decoded::Some(head)) => head,
                _ => panic!("a good head"),
            }
        };
        b.iter_batched(|| BytesMut::from(bytes), decode, BatchSize::SmallInput);
    }

    pub(crate) fn decode_chunks(b: &mut Bencher<'_>, bytes: &[u8]) {
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

criterion_group!(benches, request_head, response_head, chunked);
criterion_main!(benches);
