//! Connections of HTTP/2 that do what comes to their mind and go away at random points: nothing of them stays.

use std::net::{Shutdown, SocketAddr};
use std::thread;
use std::time::Duration;

use fastrand::Rng;
use ringway_tests::http2::*;
use ringway_tests::{Backend, Gateway, PATIENCE, Setup, eventually, ten_thousand};

/// A frame, mostly one that is allowed on one of a few streams.
fn frame(rng: &mut Rng, next: &mut u32) -> Vec<u8> {
    let some = |rng: &mut Rng, next: u32| rng.u32(0..next.max(2)) | 1;
    match rng.u32(0..20) {
        0..=6 => {
            let stream = *next;
            *next += 2;
            Http2::get_bytes(stream, ["/", "/large", "/slow", "/none"][rng.usize(0..4)])
        }
        7..=8 => {
            let post = [(":method", "POST"), (":scheme", "http"), (":path", "/"), (":authority", "a.test")];
            let stream = *next;
            *next += 2;
            Http2::bytes(HEADERS, END_HEADERS, stream, &fields(&post))
        }
        9..=11 => {
            let (flags, size) = (rng.u8(0..2), rng.usize(0..3_000));
            Http2::bytes(DATA, flags, some(rng, *next), &vec![b'x'; size])
        }
        12..=13 => Http2::bytes(RST_STREAM, 0, some(rng, *next), &CANCEL.to_be_bytes()),
        14 => Http2::bytes(WINDOW_UPDATE, 0, some(rng, *next), &rng.u32(1..70_000).to_be_bytes()),
        15 => Http2::bytes(WINDOW_UPDATE, 0, 0, &rng.u32(1..70_000).to_be_bytes()),
        16 => Http2::bytes(PING, 0, 0, &rng.u64(..).to_be_bytes()),
        17 => {
            let window = [&SETTINGS_INITIAL_WINDOW_SIZE.to_be_bytes()[..], &rng.u32(0..100_000).to_be_bytes()].concat();
            Http2::bytes(SETTINGS, 0, 0, &window)
        }
        18 => {
            // Trailers, or a second head.
            Http2::bytes(HEADERS, END_HEADERS | END_STREAM, some(rng, *next), &field("x-a", "1"))
        }
        _ => {
            // Anything.
            let payload: Vec<u8> = (0..rng.usize(0..40)).map(|_| rng.u8(..)).collect();
            Http2::bytes(rng.u8(0..12), rng.u8(..), rng.u32(0..8), &payload)
        }
    }
}

fn connection(address: SocketAddr, rng: &mut Rng) {
    let mut client = Http2::connect(address);
    let mut bytes: Vec<u8> = Vec::new();
    let mut next = 1;
    for _ in 0..rng.usize(0..30) {
        bytes.extend(frame(rng, &mut next));
    }
    // In pieces, and cut off anywhere.
    let end = rng.usize(0..bytes.len() + 1);
    let mut rest = &bytes[..if rng.bool() { bytes.len() } else { end }];
    while !rest.is_empty() {
        let (piece, after) = rest.split_at(rng.usize(1..rest.len() + 1));
        if client.try_send(piece).is_err() {
            break;
        }
        rest = after;
        if rng.u8(0..4) == 0 {
            client.stays_silent(Duration::from_millis(rng.u64(0..3)));
        }
    }
    match rng.u8(0..4) {
        0 => client.reset_on_close(),
        1 => {
            let _ = client.stream().shutdown(Shutdown::Write);
            client.stays_silent(Duration::from_millis(rng.u64(0..5)));
        }
        2 => {
            client.stays_silent(Duration::from_millis(rng.u64(0..5)));
        }
        _ => {}
    }
}

fn held(gateway: &Gateway) -> [f64; 3] {
    ["gateway_active_connections", "gateway_active_requests", "gateway_http2_connections"]
        .map(|name| gateway.metric(name))
}

#[test]
fn nothing_of_a_connection_stays_behind() {
    let backend = Backend::start(|conn| {
        while let Some(head) = conn.next_request_head() {
            let sent = match (head.method(), head.target()) {
                ("POST", _) => {
                    // It may break off: whatever comes of it is read.
                    let _ = conn.try_send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok");
                    conn.drain();
                    return;
                }
                (_, "/large") => conn
                    .try_send([&b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n"[..], &[b'x'; 100_000]].concat()),
                (_, "/slow") => {
                    thread::sleep(Duration::from_millis(3));
                    conn.try_send(
                        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nx-sum: 1\r\n\r\n",
                    )
                }
                _ => conn.try_send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"),
            };
            if sent.is_err() {
                return;
            }
        }
    });
    // Uploads end in the middle, and answers have clients that never take them.
    let listener = "timeouts: { write: 1s, body: 1s, idle: 2s, head: 1s }";
    let service = "pool: { idle: 0 }";
    let gateway = Setup { listener, service, ..Setup::default() }.start(backend.endpoint());
    let mut probe = Http2::connect(gateway.address());
    probe.get(1, "/");
    assert_eq!(probe.status(1), 200);
    drop(probe);
    eventually(PATIENCE, || held(&gateway) == [0.0; 3]);
    let descriptors = gateway.open_fds();
    let buffers = gateway.metric("gateway_buffers_in_use{worker=\"0\"}");

    ten_thousand(|rng| connection(gateway.address(), rng));

    eventually(PATIENCE, || held(&gateway) == [0.0; 3]);
    eventually(PATIENCE, || gateway.open_fds() <= descriptors);
    eventually(PATIENCE, || gateway.metric("gateway_buffers_in_use{worker=\"0\"}") == buffers);
    assert!(gateway.rss_bytes() < 96 << 20, "{} bytes", gateway.rss_bytes());
    let mut client = Http2::connect(gateway.address());
    client.get(1, "/");
    assert_eq!(client.status(1), 200);
}
