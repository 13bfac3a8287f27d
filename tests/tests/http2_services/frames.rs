//! Services that send frames which no library would.

use http::Response;
use ringway_tests::{Backend, End, Setup};

use super::service::Service;

/// A frame (RFC 9113 section 4.1).
pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    frame.extend_from_slice(&[kind, flags]);
    frame.extend_from_slice(&stream.to_be_bytes());
    frame.extend_from_slice(payload);
    frame
}

/// A field of a head, as a literal without Huffman coding (RFC 7541 section 6.2.2).
fn literal(name: &str, value: &[u8]) -> Vec<u8> {
    let mut field = vec![0];
    for part in [name.as_bytes(), value] {
        assert!(part.len() < 127, "a length of one byte");
        field.push(part.len() as u8);
        field.extend_from_slice(part);
    }
    field
}

/// A service that answers its first stream with these frames, behind a status line of 200 in a block of its own.
fn answering(fields: &[(&str, &[u8])], flags: u8, behind: Vec<u8>) -> Backend {
    let mut block = vec![0x88];
    fields.iter().for_each(|(name, value)| block.extend_from_slice(&literal(name, value)));
    Backend::start(move |conn| {
        conn.read_exact(24);
        conn.send(frame(4, 0, 0, &[]));
        // Frames up to the request's head.
        loop {
            let head = conn.read_exact(9);
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
            conn.read_exact(length as usize);
            if head[3] == 1 {
                break;
            }
        }
        conn.send(frame(1, flags, 1, &block));
        let _ = conn.try_send(&behind);
        conn.stall();
    })
}

const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

#[test]
fn nothing_of_an_answer_frames_another_in_http_1() {
    let smuggled = b"a\r\nContent-Length: 0\r\n\r\nHTTP/1.1 200 OK\r\n";
    for fields in [
        &[("x", &smuggled[..])][..],
        &[("x\r\ncontent-length", b"0")],
        &[("transfer-encoding", b"chunked")],
        &[("connection", b"keep-alive")],
        &[("upgrade", b"websocket")],
        &[("X-Upper", b"1")],
        &[("content-length", b"5"), ("content-length", b"6")],
        &[("content-length", b"+5")],
        &[("content-length", b"5, 5")],
        &[("x y", b"1")],
        &[("x:", b"1")],
        &[("x", b"a\0b")],
        &[(":status", b"200")],
    ] {
        let backend = answering(fields, END_HEADERS, frame(0, END_STREAM, 1, b"hello"));
        let gateway = Setup { service: "protocol: http2", ..Setup::default() }.start(backend.endpoint());
        let answer = gateway.get("/");
        assert_eq!(answer.status(), 502, "{fields:?}: {}", answer.text());
    }
}

#[test]
fn bodies_that_are_not_as_long_as_they_say_break_off() {
    for (length, body) in [(b"50", &b"hello"[..]), (b"03", b"hello")] {
        let backend = answering(&[("content-length", length)], END_HEADERS, frame(0, END_STREAM, 1, body));
        let gateway = Setup { service: "protocol: http2", ..Setup::default() }.start(backend.endpoint());
        let mut client = gateway.connect();
        client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
        let (told, end) = client.read_to_end();
        let told = String::from_utf8_lossy(&told).into_owned();
        assert!(end == End::Reset || told.starts_with("HTTP/1.1 502"), "{told}");
    }
}

#[test]
fn heads_that_are_too_large_are_refused() {
    let service = Service::start(|mut call| async move {
        let mut head = Response::builder();
        for index in 0..100 {
            head = head.header(format!("x-{index}"), "v".repeat(1000));
        }
        call.answer(head, "");
    });
    let gateway = service.gateway("");
    assert_eq!(gateway.get("/").status(), 502);
    let backend = Backend::start(|conn| {
        conn.read_exact(24);
        conn.send(frame(4, 0, 0, &[]));
        loop {
            let head = conn.read_exact(9);
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
            conn.read_exact(length as usize);
            if head[3] == 1 {
                break;
            }
        }
        conn.send(frame(1, 0, 1, &[0x88]));
        for _ in 0..10_000 {
            if conn.try_send(frame(9, 0, 1, &literal("x", &[b'v'; 100]))).is_err() {
                return;
            }
        }
        panic!("a flood of CONTINUATION was taken");
    });
    let gateway = Setup { service: "protocol: http2", ..Setup::default() }.start(backend.endpoint());
    assert_eq!(gateway.get("/").status(), 502);
}

#[test]
fn a_flood_of_interim_answers_is_a_bad_answer() {
    let mut flood = Vec::new();
    for _ in 0..200 {
        let mut block = literal(":status", b"103");
        block.extend_from_slice(&literal("x", b"y"));
        flood.extend_from_slice(&frame(1, END_HEADERS, 1, &block));
    }
    let backend = Backend::start(move |conn| {
        conn.read_exact(24);
        conn.send(frame(4, 0, 0, &[]));
        conn.send(&flood);
        conn.stall();
    });
    let gateway = Setup { service: "protocol: http2", ..Setup::default() }.start(backend.endpoint());
    let mut client = gateway.connect();
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    let mut interims = 0;
    let last = loop {
        match client.read_response().status() {
            103 => interims += 1,
            status => break status,
        }
    };
    assert!(interims <= 32, "{interims}");
    assert_eq!(last, 502);
}
