//! HTTP/2 clients that mean harm: their connection ends with the right error and is counted, others do not notice.

use std::time::Duration;

use ringway_tests::http2::*;
use ringway_tests::{Backend, Gateway, PATIENCE, Setup, eventually, settles_at};

const ABUSE: &str = "gateway_http2_abuse_total";

/// Sends the bytes on a connection of their own, which ends with ENHANCE_YOUR_CALM or is reset, and is counted under `kind`;
/// a neighbour's stream goes on, and memory does not grow.
#[track_caller]
fn expect_calm(gateway: &Gateway, kind: &str, bytes: &[u8]) {
    let mut neighbour = Http2::connect(gateway.address());
    neighbour.get(1, "/");
    assert_eq!(neighbour.status(1), 200);
    let before = gateway.rss_bytes();
    let counted = gateway.metric(&format!("{ABUSE}{{kind=\"{kind}\"}}"));
    let mut client = Http2::connect(gateway.address());
    let _ = client.try_send(bytes);
    let error = client.expect_go_away();
    assert!(error.is_none_or(|error| error == ENHANCE_YOUR_CALM), "{error:?}");
    settles_at(counted + 1.0, || gateway.metric(&format!("{ABUSE}{{kind=\"{kind}\"}}")));
    neighbour.get(3, "/");
    assert_eq!(neighbour.status(3), 200);
    let grown = gateway.rss_bytes().saturating_sub(before);
    assert!(grown < 8 << 20, "{kind}: {grown} bytes");
}

fn repeated(count: u32, frame: impl Fn(u32) -> Vec<u8>) -> Vec<u8> {
    (0..count).flat_map(frame).collect()
}

#[test]
fn rapid_resets() {
    let backend = Backend::ok();
    let gateway = Setup::default().start(backend.endpoint());
    let resets = repeated(5_000, |index| {
        let stream = index * 2 + 1;
        [Http2::get_bytes(stream, "/"), Http2::bytes(RST_STREAM, 0, stream, &CANCEL.to_be_bytes())].concat()
    });
    expect_calm(&gateway, "resets", &resets);
    // No more reached the service than the client could open at a time, and give up.
    assert!(backend.requests().len() <= 202, "{}", backend.requests().len());
    eventually(PATIENCE, || gateway.metric("gateway_active_requests") == 0.0);
}

#[test]
fn streams_that_are_served_and_given_up() {
    let backend = Backend::start(|conn| {
        conn.request();
        conn.stall();
    });
    let gateway = Setup::default().start(backend.endpoint());
    let mut client = Http2::connect(gateway.address());
    // Each one has reached its service before it is given up.
    let mut given_up = 0;
    let error = loop {
        let stream = given_up * 2 + 1;
        if client.try_send(Http2::get_bytes(stream, "/")).is_err() {
            break None;
        }
        let reached = given_up as usize + 1;
        let end = std::time::Instant::now() + Duration::from_secs(2);
        while backend.requests().len() < reached && std::time::Instant::now() < end {
            std::thread::sleep(Duration::from_millis(1));
        }
        if backend.requests().len() < reached {
            break client.expect_go_away();
        }
        let _ = client.try_send(Http2::bytes(RST_STREAM, 0, stream, &CANCEL.to_be_bytes()));
        given_up += 1;
        assert!(given_up < 400, "no end");
    };
    assert!(error.is_none_or(|error| error == ENHANCE_YOUR_CALM), "{error:?}");
    assert!(given_up >= 100, "{given_up}");
    eventually(PATIENCE, || backend.open() == 0);
    settles_at(1.0, || gateway.metric(&format!("{ABUSE}{{kind=\"resets\"}}")));
}

#[test]
fn floods_of_frames_that_ask_for_nothing() {
    let backend = Backend::ok();
    let gateway = Setup::default().start(backend.endpoint());
    let floods: [(u8, u32, &[u8]); 6] = [
        (SETTINGS, 0, &[]),
        (PING, 0, &[7; 8]),
        (PRIORITY, 1, &[0, 0, 0, 0, 9]),
        (PRIORITY_UPDATE, 0, b"\0\0\0\x01u=0"),
        (WINDOW_UPDATE, 0, &[0, 0, 0, 1]),
        // Unknown frames are ignored (RFC 9113 section 4.1), not for free.
        (0xee, 0, b"junk"),
    ];
    for (kind, stream, payload) in floods {
        expect_calm(&gateway, "control_frames", &repeated(4_000, |_| Http2::bytes(kind, 0, stream, payload)));
    }
}

#[test]
fn pings_within_reason_are_answered() {
    let backend = Backend::ok();
    let gateway = Setup::default().start(backend.endpoint());
    let mut client = Http2::connect(gateway.address());
    for round in 0..1_000u64 {
        client.frame(PING, 0, 0, &round.to_be_bytes());
        let answer = client.next_of(PING, 0);
        assert_eq!((answer.flags, answer.payload), (ACK, round.to_be_bytes().to_vec()));
    }
    client.get(1, "/");
    assert_eq!(client.status(1), 200);
}

#[test]
fn a_head_in_endless_continuations() {
    let backend = Backend::ok();
    let gateway = Setup::default().start(backend.endpoint());
    let mut head = Http2::bytes(HEADERS, END_STREAM, 1, &fields(&[(":method", "GET"), (":scheme", "http")]));
    head.extend(repeated(3_000, |_| Http2::bytes(CONTINUATION, 0, 1, &field("x-a", &"a".repeat(100)))));
    expect_calm(&gateway, "flood", &head);
    let mut head = Http2::bytes(HEADERS, END_STREAM, 1, &fields(&[(":method", "GET"), (":scheme", "http")]));
    head.extend(repeated(3_000, |_| Http2::bytes(CONTINUATION, 0, 1, &[])));
    expect_calm(&gateway, "flood", &head);
    // Never more than the one neighbour's requests.
    assert_eq!(backend.requests().len(), 4);
}

#[test]
fn empty_and_tiny_data() {
    let backend = Backend::start(|conn| {
        while let Some(head) = conn.next_request_head() {
            if head.method() == "POST" {
                conn.stall();
                return;
            }
            conn.body_of(head);
            conn.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
        }
    });
    let gateway = Setup::default().start(backend.endpoint());
    let post = fields(&[(":method", "POST"), (":scheme", "http"), (":path", "/"), (":authority", "a.test")]);
    let head = Http2::bytes(HEADERS, END_HEADERS, 1, &post);
    let empty = [head.clone(), repeated(3_000, |_| Http2::bytes(DATA, 0, 1, b""))].concat();
    expect_calm(&gateway, "flood", &empty);
}

/// A field of 3,900 bytes for HPACK's dynamic table (literal with indexing), then its index, so many times.
fn unfolding(times: usize) -> Vec<u8> {
    let mut head = vec![0x82, 0x86, 0x84, 0x41, 1, b'a', 0x40, 3];
    head.extend_from_slice(b"x-a");
    // The length in HPACK's prefix form (RFC 7541 section 5.1).
    head.extend_from_slice(&[0x7f, (3_900u32 - 127) as u8 | 0x80, ((3_900u32 - 127) >> 7) as u8]);
    head.extend_from_slice(&[b'a'; 3_900]);
    head.resize(head.len() + times, 0xbe);
    head
}

#[test]
fn a_head_that_unfolds_into_megabytes() {
    let backend = Backend::ok();
    let gateway = Setup::default().start(backend.endpoint());
    expect_calm(&gateway, "flood", &Http2::bytes(HEADERS, END_STREAM | END_HEADERS, 1, &unfolding(4_000)));
    // A little too much is answered, and the connection goes on.
    let mut client = Http2::connect(gateway.address());
    client.frame(HEADERS, END_STREAM | END_HEADERS, 1, &unfolding(9));
    assert_eq!(client.status(1), 431);
    client.get(3, "/");
    assert_eq!(client.status(3), 200);
    assert_eq!(backend.requests().len(), 3);
}

#[test]
fn streams_that_the_gateway_is_made_to_reset() {
    let backend = Backend::start(|conn| {
        conn.request();
        conn.stall();
    });
    let gateway = Setup::default().start(backend.endpoint());
    let mut client = Http2::connect(gateway.address());
    // A window beyond 2^31-1 is an error of its stream (RFC 9113 section 6.9.1): "MadeYouReset".
    let made = repeated(1_000, |index| {
        let stream = index * 2 + 1;
        [Http2::get_bytes(stream, "/"), Http2::bytes(WINDOW_UPDATE, 0, stream, &[0x7f, 0xff, 0xff, 0xff])].concat()
    });
    let _ = client.try_send(&made);
    let error = client.expect_go_away();
    assert!(error.is_none_or(|error| error == ENHANCE_YOUR_CALM), "{error:?}");
    settles_at(1.0, || gateway.metric(&format!("{ABUSE}{{kind=\"flood\"}}")));
    // Their requests have ended, and no more of them were begun than may be at a time, besides those that were reset.
    eventually(PATIENCE, || gateway.metric("gateway_active_requests") == 0.0);
    assert!(backend.requests().len() <= 202, "{}", backend.requests().len());
}

#[test]
fn more_streams_than_there_may_be_are_refused() {
    let backend = Backend::start(|conn| {
        conn.request();
        conn.stall();
    });
    let listener = "http2: { max_concurrent_streams: 5 }";
    let gateway = Setup { listener, ..Setup::default() }.start(backend.endpoint());
    let mut client = Http2::connect(gateway.address());
    for stream in [1, 3, 5, 7, 9, 11] {
        client.get(stream, "/");
    }
    assert_eq!(client.next_of(RST_STREAM, 11).error(), REFUSED_STREAM);
    settles_at(5, || backend.requests().len());
}

#[test]
fn a_window_that_stays_shut_holds_up_its_own_stream_only() {
    let body = "x".repeat(100_000);
    let backend = Backend::fixed(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len()));
    let listener = "timeouts: { write: 1s }";
    let gateway = Setup { listener, ..Setup::default() }.start(backend.endpoint());
    let mut client = Http2::connect_with(gateway.address(), &[(SETTINGS_INITIAL_WINDOW_SIZE, 0)]);
    client.get(1, "/").get(3, "/");
    client.frame(WINDOW_UPDATE, 0, 3, &200_000u32.to_be_bytes());
    client.frame(WINDOW_UPDATE, 0, 0, &1_000_000u32.to_be_bytes());
    let mut received = 0;
    while received < body.len() {
        let frame = client.next_frame().unwrap();
        assert!(frame.kind != DATA || frame.stream == 3, "{frame:?}");
        received += if frame.kind == DATA { frame.payload.len() } else { 0 };
    }
    assert_eq!(client.next_of(RST_STREAM, 1).error(), CANCEL);
    client.get(5, "/").frame(WINDOW_UPDATE, 0, 5, &200_000u32.to_be_bytes());
    assert_eq!(client.status(5), 200);
    eventually(PATIENCE, || gateway.metric("gateway_active_requests") <= 1.0);
}

#[test]
fn broken_frames_end_the_connection() {
    let backend = Backend::ok();
    let gateway = Setup::default().start(backend.endpoint());
    let broken: [(&str, Vec<u8>); 6] = [
        ("DATA on no stream", Http2::bytes(DATA, 0, 0, b"x")),
        ("a PING that is too short", Http2::bytes(PING, 0, 0, b"x")),
        ("CONTINUATION of nothing", Http2::bytes(CONTINUATION, 0, 1, b"")),
        ("an index that is not there", Http2::bytes(HEADERS, END_STREAM | END_HEADERS, 1, &[0xff, 0xff, 0x7f])),
        ("a stream of the gateway's", Http2::get_bytes(2, "/")),
        ("a frame that is too large", Http2::bytes(0xee, 0, 1, &[0; 20_000])),
    ];
    for (index, (what, bytes)) in broken.iter().enumerate() {
        let mut client = Http2::connect(gateway.address());
        let _ = client.try_send(bytes);
        let error = client.expect_go_away();
        assert!(error.is_none_or(|error| (1..=10).contains(&error)), "{what}: {error:?}");
        settles_at((index + 1) as f64, || gateway.metric(&format!("{ABUSE}{{kind=\"protocol\"}}")));
    }
    assert_eq!(backend.connections(), 0);
    gateway.expect_idle();
}

#[test]
fn what_would_be_read_differently_by_a_service_does_not_reach_it() {
    let backend = Backend::ok();
    let gateway = Setup::default().start(backend.endpoint());
    let head = |more: &[(&str, &str)]| {
        let fixed = [(":method", "POST"), (":scheme", "http"), (":path", "/"), (":authority", "a.test")];
        fields(&[&fixed[..], more].concat())
    };
    let bad: [(&str, Vec<u8>); 14] = [
        ("chunked", head(&[("transfer-encoding", "chunked")])),
        ("a connection field", head(&[("connection", "x-a"), ("x-a", "1")])),
        ("keep-alive", head(&[("keep-alive", "1")])),
        ("an upgrade", head(&[("upgrade", "h2c")])),
        ("another TE", head(&[("te", "gzip")])),
        ("two lengths", head(&[("content-length", "0"), ("content-length", "5")])),
        ("a length that the body does not keep", head(&[("content-length", "5")])),
        ("a negative length", head(&[("content-length", "-1")])),
        ("a line in a value", head(&[("x-a", "1\r\nx-b: 2")])),
        ("a line in a name", head(&[("x-a: 1\r\nx-b", "2")])),
        ("upper case", head(&[("X-A", "1")])),
        ("a space in a name", head(&[("content-length ", "5")])),
        ("a pseudo-header behind", [head(&[("x-a", "1")]), field(":path", "/admin")].concat()),
        (
            "a line in the path",
            fields(&[
                (":method", "GET"),
                (":scheme", "http"),
                (":path", "/ HTTP/1.1\r\nhost: b\r\n\r\nGET /admin"),
                (":authority", "a.test"),
            ]),
        ),
    ];
    for (what, head) in bad {
        let mut client = Http2::connect(gateway.address());
        client.frame(HEADERS, END_HEADERS | END_STREAM, 1, &head);
        loop {
            match client.next_frame() {
                Ok(frame) if frame.kind == HEADERS => break assert_eq!(frame.status(), 400, "{what}"),
                Ok(frame) if matches!(frame.kind, RST_STREAM | GOAWAY) => {
                    break assert_eq!(frame.error(), PROTOCOL_ERROR, "{what}");
                }
                Ok(_) => {}
                Err(end) => panic!("{what}: {end:?}"),
            }
        }
    }
    assert_eq!(backend.requests().len(), 0);
}
