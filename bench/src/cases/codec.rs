//! HTTP/1.1: heads found, parsed and written again; bodies decoded and framed anew.

use std::hint::black_box;

use ringway_core::http::{
    BodyDecoder, CHUNK_HEAD_MAX, Chunked, Framing, HeadLines, HeadScan, HeadScanner, HeadStorage, Name, RequestHead,
    ResponseHead, claims_a_hop, is_look_alike, leading_empty_lines, list_has_token, write_chunk_head, write_trailers,
};

use super::{Case, leak, received};
use crate::messages::{BROWSER_HEAD, REQUEST_HEADS, RESPONSE_HEADS, chunked_body};

/// Bodies of 16 KiB: how they are called, how many chunks, of how many bytes.
pub const CHUNKED_BODIES: [(&str, usize, usize); 3] =
    [("1x16KiB", 1, 16 * 1024), ("16x1KiB", 16, 1024), ("256x64B", 256, 64)];

pub(super) fn cases() -> Vec<Case> {
    let mut cases: Vec<Case> = Vec::new();
    cases.extend(REQUEST_HEADS.map(|(name, head)| head_scan(name, head)));
    cases.push(head_in_pieces());
    cases.extend(REQUEST_HEADS.map(|(name, head)| request_head(name, head)));
    cases.extend(REQUEST_HEADS.map(|(name, head)| head_lines(name, head)));
    cases.push(connection_tokens());
    cases.extend(RESPONSE_HEADS.map(|(name, head)| response_head(name, head)));
    cases.extend(CHUNKED_BODIES.map(|(name, count, size)| chunked(name, count, size)));
    cases.push(Case::new("body", "length", || {
        let bytes = received(&[b'x'; 1024]);
        move || {
            let mut decoder = BodyDecoder::new(black_box(Framing::Length(2048)));
            decoder.decode(black_box(bytes)).map(|decoded| decoded.consumed)
        }
    }));
    cases.push(Case::new("chunk_head", "16KiB", || {
        let mut room = [0; CHUNK_HEAD_MAX];
        move || write_chunk_head(black_box(16 * 1024), black_box(&mut room))
    }));
    cases.push(Case::new("trailers", "two_fields", || {
        let section: &[u8] = received(b"grpc-status: 0\r\nx-checksum: 5f0b8a1e7c9d4b62\r\n");
        let mut out = Vec::with_capacity(256);
        move || {
            out.clear();
            write_trailers(black_box(section), |_| true, &mut out)
        }
    }));
    cases
}

fn head_scan(name: &'static str, head: &'static [u8]) -> Case {
    Case::new("head_scan", name, move || {
        let head: &[u8] = received(head);
        move || {
            let head = black_box(head);
            (leading_empty_lines(head), HeadScanner::default().scan(head))
        }
    })
    .of_bytes(head.len())
}

/// As a slow client sends it: each piece must cost its own bytes only.
fn head_in_pieces() -> Case {
    Case::new("head_scan", "browser_16_pieces", || {
        let head: &[u8] = received(BROWSER_HEAD);
        move || {
            let mut scanner = HeadScanner::default();
            let mut scan = HeadScan::Partial;
            for piece in 1..=16 {
                scan = scanner.scan(black_box(&head[..head.len() * piece / 16]));
            }
            scan
        }
    })
    .of_bytes(BROWSER_HEAD.len())
}

/// From bytes as they were received to a head that is safe to act on: its end found, parsed, judged.
fn request_head(name: &'static str, head: &'static [u8]) -> Case {
    Case::new("request_head", name, move || {
        let head: &[u8] = received(head);
        move || {
            let head = black_box(head);
            let HeadScan::Complete(length) = HeadScanner::default().scan(head) else { panic!("a whole head") };
            let mut storage = HeadStorage::new();
            let request = RequestHead::parse(&head[..length], 100, &mut storage).expect("a good head");
            (request.framing, request.keep_alive)
        }
    })
    .of_bytes(head.len())
}

fn response_head(name: &'static str, head: &'static [u8]) -> Case {
    Case::new("response_head", name, move || {
        let head: &[u8] = received(head);
        move || {
            let head = black_box(head);
            let HeadScan::Complete(length) = HeadScanner::default().scan(head) else { panic!("a whole head") };
            let mut storage = HeadStorage::new();
            let answer = ResponseHead::parse(&head[..length], false, &mut storage).expect("a good head");
            (answer.framing, answer.keep_alive)
        }
    })
    .of_bytes(head.len())
}

/// What of a client's header section goes on to a service.
fn head_lines(name: &'static str, head: &'static [u8]) -> Case {
    Case::new("head_lines", name, move || {
        let head: &[u8] = received(head);
        let request = RequestHead::parse(head, 100, leak(HeadStorage::new())).expect("a good head");
        let mut out = Vec::with_capacity(4096);
        move || {
            out.clear();
            let lines = HeadLines { head, headers: request.headers, names: request.names };
            black_box(lines).copy(&mut out, |name, header| match name {
                Name::Other => !is_look_alike(header.name) && !claims_a_hop(header.name),
                Name::Host | Name::XRequestId => false,
                name => !name.is_hop_by_hop(),
            });
            out.len()
        }
    })
    .of_bytes(head.len())
}

/// Whether `Connection` names a field.
fn connection_tokens() -> Case {
    Case::new("connection", "three_tokens", || {
        let value: &[u8] = received(b"keep-alive, X-Debug, Upgrade");
        move || list_has_token(black_box([value]).into_iter(), black_box(b"upgrade"))
    })
}

/// A body that has been received in one piece. It is decoded in place, so that each call first makes good what the one
/// before has changed: the data is the same everywhere, what stands between it has to be written again.
fn chunked(name: &'static str, count: usize, size: usize) -> Case {
    let length = chunked_body(count, size).len();
    Case::new("chunked", name, move || {
        let body = received(&chunked_body(count, size));
        let head = format!("{size:x}\r\n");
        let (start, end) = (head.len(), head.len() + size);
        move || {
            for chunk in body.chunks_exact_mut(end + 2).take(count) {
                chunk[..start].copy_from_slice(head.as_bytes());
                chunk[end..].copy_from_slice(b"\r\n");
            }
            let mut decoder = Chunked::default();
            let (data, used) = decoder.decode(black_box(body)).expect("a good body");
            assert_eq!((data.len(), used, decoder.is_done()), (count * size, length, true));
            data
        }
    })
    .of_bytes(length)
}
