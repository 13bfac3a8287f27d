//! Services that take tunnels, do not, or do not say.

use std::time::{Duration, Instant};

use http::Method;
use ringway_tests::http2::*;
use ringway_tests::websocket::*;
use ringway_tests::{Backend, Setup};

use super::both;
use super::ends::*;

#[test]
fn a_service_that_does_not_offer_it_is_not_asked() {
    let service = Service::with(false, None, |call| async move { call.echo().await });
    let gateway = service.gateway("", "upgrades: [websocket, foo]");
    let mut client = gateway.connect();
    let refused = client.ask(handshake("/", ""));
    assert_eq!(refused.status(), 501);
    assert!(refused.text().contains("\"error\":\"Upgrade not supported\""), "{}", refused.text());
    assert_eq!(service.requests(), 0);
    // The connection lives on.
    assert_eq!(client.get("/").status(), 200);
    assert_eq!(both(&gateway, "/", None), [501, 501]);
    assert_eq!(service.requests(), 1);
    for kind in ["bad_answer", "reset", "connect"] {
        assert_eq!(gateway.backend_errors(kind), 0.0, "{kind}");
    }
    assert_eq!(gateway.log_line(4)["statusCode"], 501);

    // No other protocol has a name there, though the route allows one.
    let service = Service::start(|call| async move { call.echo().await });
    let gateway = service.gateway("", "upgrades: [websocket, foo]");
    let mut client = gateway.connect();
    let answer = client.ask("GET / HTTP/1.1\r\nHost: a.test\r\nConnection: upgrade\r\nUpgrade: foo\r\n\r\n");
    assert_eq!((answer.status(), service.request(0).method), (200, Method::GET));
    let mut client = Http2::connect(gateway.address());
    client.send(Http2::connect_bytes(1, "foo", "/", &[]));
    assert_eq!(client.status(1), 501);
    assert_eq!(service.requests(), 1);
}

#[test]
fn what_a_service_offers_is_waited_for() {
    // Frames by hand: the service says nothing before the gateway has had the time to ask too early.
    let backend = Backend::start(|conn| {
        conn.read_exact(24);
        let mut early = Vec::new();
        while !conn.stays_silent(Duration::from_millis(300)) {
            early.extend(conn.read_some().expect("frames"));
        }
        let mut frames = &early[..];
        while let [a, b, c, kind, ..] = *frames {
            assert_ne!(kind, HEADERS, "asked before SETTINGS");
            frames = &frames[9 + u32::from_be_bytes([0, a, b, c]) as usize..];
        }
        if conn.index > 0 {
            return;
        }
        conn.send(Http2::bytes(SETTINGS, 0, 0, &[0, 8, 0, 0, 0, 1]));
        let stream = loop {
            let head = conn.read_exact(9);
            conn.read_exact(u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize);
            if head[3] == HEADERS {
                assert_eq!(head[4] & END_STREAM, 0);
                break u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
            }
        };
        // `:status` 200.
        conn.send(
            [Http2::bytes(HEADERS, END_HEADERS, stream, &[0x88]), Http2::bytes(DATA, 0, stream, b"hello")].concat(),
        );
        conn.stall();
    });
    let gateway = Setup { service: "protocol: http2", ..Setup::default() }.start(backend.endpoint());
    let mut client = open(&gateway, "/");
    assert_eq!(client.read_exact(5), b"hello");
    // One that goes away without a word.
    let gateway = Setup { service: "protocol: http2", ..Setup::default() }.start(backend.endpoint());
    assert_eq!(gateway.connect().ask(handshake("/", "")).status(), 502);
}

#[test]
fn what_a_service_offers_is_waited_for_as_long_as_a_connection_is() {
    let backend = Backend::start(|conn| {
        conn.stall();
    });
    let service = "protocol: http2, timeouts: { connect: 400ms }";
    let gateway = Setup { service, ..Setup::default() }.start(backend.endpoint());
    for waited in 1..3 {
        let started = Instant::now();
        assert_eq!(both(&gateway, "/", None), [504, 504]);
        assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
        assert_eq!(gateway.backend_errors("connect_timeout"), f64::from(2 * waited));
    }
    assert_eq!(backend.connections(), 4, "none of them is used again");
}
