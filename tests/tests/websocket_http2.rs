//! WebSocket over a stream of HTTP/2 (RFC 8441), to services of HTTP/1.1.

use std::time::Duration;

use ringway_tests::http2::*;
use ringway_tests::websocket::GOING_AWAY;
use ringway_tests::{Backend, Conn, End, Gateway, Head, PATIENCE, Setup, eventually, settles_at};
use tungstenite::handshake::derive_accept_key;

const ENABLE_CONNECT_PROTOCOL: u16 = 8;

/// A client that has its tunnel, on stream 1, and may be sent a megabyte.
#[track_caller]
fn open(gateway: &Gateway, path: &str) -> Http2 {
    let mut client = Http2::connect_with(gateway.address(), &[(SETTINGS_INITIAL_WINDOW_SIZE, 1 << 20)]);
    client.frame(WINDOW_UPDATE, 0, 0, &(1u32 << 20).to_be_bytes());
    client.send(Http2::connect_bytes(1, "websocket", path, &[]));
    assert_eq!(client.status(1), 200);
    client
}

#[track_caller]
fn agree(conn: &mut Conn) -> Head {
    let head = conn.next_request_head().expect("a request");
    let accept = derive_accept_key(head.get("sec-websocket-key").expect("a key").as_bytes());
    conn.send(format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Accept: {accept}\r\nX-Own: 1\r\n\r\n"
    ));
    head
}

fn echo() -> Backend {
    Backend::start(|conn| {
        agree(conn);
        while let Ok(bytes) = conn.read_some() {
            if conn.try_send(bytes).is_err() {
                return;
            }
        }
    })
}

#[test]
fn a_stream_becomes_a_tunnel_beside_others() {
    let backend = echo();
    let gateway = Setup::default().start(backend.endpoint());
    let mut client = open(&gateway, "/chat?x=1");
    client.frame(DATA, 0, 1, b"hello");
    assert_eq!(client.read_data(1, 5), b"hello");
    // Another one, and its key is not the client's.
    client.send(Http2::connect_bytes(3, "websocket", "/2", &[("sec-websocket-key", "mine"), ("cookie", "a=1")]));
    assert_eq!(client.status(3), 200);
    client.frame(DATA, 0, 3, b"there");
    assert_eq!(client.read_data(3, 5), b"there");
    settles_at([1.0, 2.0, 0.0], || {
        ["gateway_active_connections", "gateway_active_tunnels", "gateway_active_requests"]
            .map(|name| gateway.metric(name))
    });
    let [first, second] = &backend.requests()[..] else { panic!("{:?}", backend.requests()) };
    assert_eq!((first.method(), first.target(), first.get("host")), ("GET", "/chat?x=1", Some("a.test")));
    assert_eq!((first.get("upgrade"), first.get("connection")), (Some("websocket"), Some("upgrade")));
    assert_eq!(first.get("sec-websocket-version"), Some("13"));
    assert_eq!((second.all("sec-websocket-key").count(), second.get("cookie")), (1, Some("a=1")));
    let [a, b] = [first, second].map(|head| head.get("sec-websocket-key").unwrap_or_default());
    assert!(a.len() == 24 && b.len() == 24 && a != b, "{a} {b}");

    // Its end is the end of one direction, as FIN is in HTTP/1.1.
    client.frame(DATA, END_STREAM, 1, b"bye");
    let mut last = client.next_of(DATA, 1);
    assert_eq!(last.payload, b"bye");
    while last.flags & END_STREAM == 0 {
        last = client.next_of(DATA, 1);
    }
    let line = gateway.log_line(1);
    assert_eq!((&line["statusCode"], &line["httpVersion"]), (&200.into(), &"2.0".into()));
    assert_eq!((&line["upgrade"], &line["path"]), (&"websocket".into(), &"/chat".into()));
    assert_eq!((&line["tunnelBytesIn"], &line["tunnelBytesOut"]), (&8.into(), &8.into()));
    client.frame(DATA, 0, 3, b"still");
    assert_eq!(client.read_data(3, 5), b"still");
}

#[test]
fn it_is_offered_and_the_answer_has_no_proof_for_the_client_to_check() {
    let backend = echo();
    let gateway = Setup::default().start(backend.endpoint());
    let mut client = Http2::connect(gateway.address());
    let settings = client.next_of(SETTINGS, 0).payload;
    let wanted = [ENABLE_CONNECT_PROTOCOL.to_be_bytes().to_vec(), 1u32.to_be_bytes().to_vec()].concat();
    assert!(settings.chunks(6).any(|setting| setting == wanted), "{settings:?}");
    client.send(Http2::connect_bytes(1, "websocket", "/", &[]));
    let answer = client.next_of(HEADERS, 1);
    assert_eq!((answer.status(), answer.flags & END_STREAM), (200, 0));
    assert_eq!(backend.requests().len(), 1);
}

#[test]
fn a_stream_that_is_reset_takes_the_service_with_it_and_the_other_way_round() {
    let backend = Backend::start(|conn| {
        agree(conn);
        match conn.index {
            0 => assert_eq!(conn.stall(), End::Reset),
            // When the tunnel stands at both ends.
            _ => {
                conn.read_some().expect("a byte");
                conn.reset();
            }
        }
    });
    let gateway = Setup::default().start(backend.endpoint());
    let mut client = open(&gateway, "/");
    client.frame(RST_STREAM, 0, 1, &CANCEL.to_be_bytes());
    backend.expect_all_closed();
    client.send(Http2::connect_bytes(3, "websocket", "/", &[]));
    assert_eq!(client.status(3), 200);
    client.frame(DATA, 0, 3, b"x");
    assert_eq!(client.next_of(RST_STREAM, 3).error(), CANCEL);
    settles_at(0.0, || gateway.metric("gateway_active_tunnels"));
    // So does a connection that is gone.
    let backend = Backend::start(|conn| {
        agree(conn);
        conn.stall();
    });
    let gateway = Setup::default().start(backend.endpoint());
    drop(open(&gateway, "/"));
    backend.expect_all_closed();
    gateway.expect_idle();
}

#[test]
fn what_is_no_tunnel_is_never_told_to_be_one() {
    let backend = Backend::start(|conn| {
        while let Some(head) = conn.next_request_head() {
            let accept = derive_accept_key(b"another key");
            let _ = match head.target() {
                "/no" => conn.try_send("HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno"),
                "/fine" => conn.try_send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"),
                _ => conn.try_send(format!(
                    "HTTP/1.1 101 Switching\r\nUpgrade: websocket\r\nConnection: upgrade\r\nSec-WebSocket-Accept: {accept}\r\n\r\n"
                )),
            };
        }
    });
    let gateway = Gateway::start(&format!(
        "services: [{{ name: app, endpoints: [\"{}\"] }}]\nroutes:\n\
         - {{ name: all, service: app }}\n\
         - {{ name: off, match: {{ prefix: /off }}, service: app, upgrades: off }}\n\
         - {{ name: denied, match: {{ prefix: /denied }}, service: app, ip: {{ deny: [127.0.0.0/8] }} }}\n\
         - {{ name: fixed, match: {{ prefix: /fixed }}, respond: {{ text: hello }} }}\n",
        backend.endpoint()
    ));
    let asks = |protocol: &str, path: &str, more: &[(&str, &str)]| {
        let mut client = Http2::connect(gateway.address());
        client.send(Http2::connect_bytes(1, protocol, path, more));
        client.status(1)
    };
    assert_eq!(asks("websocket", "/denied", &[]), 403);
    assert_eq!(asks("websocket", "/off", &[]), 501);
    assert_eq!(asks("websocket", "/fixed", &[]), 501);
    assert_eq!(asks("foo", "/", &[]), 501);
    assert_eq!(asks("websocket", "/", &[("content-length", "3")]), 501);
    assert_eq!(backend.requests().len(), 0);
    assert_eq!(asks("websocket", "/no", &[]), 403);
    assert_eq!(asks("websocket", "/fine", &[]), 502, "200 would be a tunnel");
    assert_eq!(asks("websocket", "/unproven", &[]), 502);

    // No line of a head comes in through the name of a protocol.
    let requests = backend.requests().len();
    let mut client = Http2::connect(gateway.address());
    client.send(Http2::connect_bytes(1, "a\r\nX-Evil: 1", "/", &[]));
    assert_eq!(client.next_of(RST_STREAM, 1).error(), PROTOCOL_ERROR);
    // Plain CONNECT is refused.
    let head = fields(&[(":method", "CONNECT"), (":authority", "a.test:80")]);
    client.frame(HEADERS, END_HEADERS, 3, &head);
    assert_eq!(client.status(3), 501);
    assert_eq!(backend.requests().len(), requests);
    assert_eq!(gateway.metric("gateway_active_tunnels"), 0.0);
}

#[test]
fn much_goes_both_ways_within_the_windows_and_small_frames_are_no_abuse() {
    let backend = echo();
    let gateway = Setup::default().start(backend.endpoint());
    let mut client = open(&gateway, "/");
    for round in 0..40u8 {
        let bytes: Vec<u8> = (0..16_000).map(|n| (n >> 3) as u8 ^ round).collect();
        client.frame(DATA, 0, 1, &bytes);
        assert!(client.read_data(1, bytes.len()) == bytes);
        for stream in [0, 1] {
            client.frame(WINDOW_UPDATE, 0, stream, &16_000u32.to_be_bytes());
        }
    }
    for _ in 0..20 {
        client.send((0..500).flat_map(|_| Http2::bytes(DATA, 0, 1, b"x")).collect::<Vec<u8>>());
        assert_eq!(client.read_data(1, 500), [b'x'; 500]);
    }
    assert_eq!(gateway.metric("gateway_http2_abuse_total{kind=\"flood\"}"), 0.0);
}

#[test]
fn a_client_that_opens_no_window_slows_the_service_down() {
    let backend = Backend::start(|conn| {
        agree(conn);
        let taken = conn.try_send_now(vec![7; 64 << 20]);
        assert!(taken < 32 << 20, "{taken}");
        conn.stall();
    });
    let gateway = Setup::default().start(backend.endpoint());
    let mut client = Http2::connect(gateway.address());
    client.send(Http2::connect_bytes(1, "websocket", "/", &[]));
    assert_eq!(client.status(1), 200);
    let before = gateway.rss_bytes();
    assert_eq!(client.read_data(1, 65_535).len(), 65_535);
    assert!(client.stays_silent(Duration::from_millis(500)));
    let grown = gateway.rss_bytes().saturating_sub(before);
    assert!(grown < 8 << 20, "{grown} bytes");
}

#[test]
fn a_tunnel_that_the_gateway_ends_says_so_within_the_stream() {
    let backend = echo();
    let setup = Setup {
        route: "timeouts: { tunnel_idle: 300ms }",
        sections: "drain: { notice: 0s, timeout: 1s }\n",
        ..Setup::default()
    };
    let gateway = setup.start(backend.endpoint());
    let mut client = open(&gateway, "/");
    assert_eq!(client.read_data(1, 4), GOING_AWAY);
    backend.expect_all_closed();

    let setup = Setup { route: "", ..setup };
    let mut gateway = setup.start(backend.endpoint());
    let mut client = open(&gateway, "/");
    gateway.terminate();
    eventually(PATIENCE, || gateway.admin("/ready").1.contains("draining"));
    client.frame(DATA, 0, 1, &[0x89, 0]);
    assert_eq!(client.read_data(1, 2), [0x89, 0]);
    assert_eq!(client.read_data(1, 4), GOING_AWAY);
    drop(client);
    assert!(gateway.wait_exit(PATIENCE).success(), "{}", gateway.stderr());
}
