//! WebSocket and other upgrades: the handshake, bytes both ways, and every way in which a tunnel ends.

use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

use ringway_tests::websocket::*;
use ringway_tests::{Backend, Client, Conn, End, Gateway, Head, PATIENCE, Setup, eventually, settles_at};
use tungstenite::handshake::derive_accept_key;
use tungstenite::handshake::server::{Request, Response};
use tungstenite::protocol::WebSocketConfig;
use tungstenite::protocol::frame::Frame;
use tungstenite::protocol::frame::coding::{Data, OpCode};
use tungstenite::{Message, WebSocket};

/// [`HI`] in a frame of a service.
const HI_BACK: [u8; 4] = [0x81, 2, b'H', b'i'];

fn agreement(more: &str) -> String {
    format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Accept: {}\r\n{more}\r\n",
        derive_accept_key(KEY.as_bytes())
    )
}

/// Agrees to the next request, whatever it is.
#[track_caller]
fn agree(conn: &mut Conn) -> Head {
    let head = conn.next_request_head().expect("a request");
    conn.send(agreement(""));
    head
}

/// Sends back what comes, in tunnels; answers other requests with 200.
fn echo() -> Backend {
    Backend::start(|conn| {
        while let Some(head) = conn.next_request_head() {
            if !head.has("upgrade") {
                conn.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
                continue;
            }
            conn.send(agreement(""));
            while let Ok(bytes) = conn.read_some() {
                if conn.try_send(bytes).is_err() {
                    return;
                }
            }
            return;
        }
    })
}

/// A WebSocket server of a library, that sends messages back.
fn library_echo() -> Backend {
    Backend::start(|conn| {
        let config = WebSocketConfig::default().max_message_size(None).max_frame_size(None);
        let stream = conn.stream();
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        #[allow(clippy::result_large_err)] // the library's own type
        let choose = |request: &Request, mut response: Response| {
            if let Some(protocols) = request.headers().get("sec-websocket-protocol") {
                let first = protocols.to_str().expect("text").split(", ").next().expect("one");
                response.headers_mut().insert("sec-websocket-protocol", first.parse().expect("a value"));
            }
            let of = |name| request.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or("-");
            let seen = format!("{} {} {}", request.uri(), of("upgrade"), of("connection"));
            response.headers_mut().insert("x-seen", seen.parse().expect("a value"));
            Ok(response)
        };
        let mut socket = tungstenite::accept_hdr_with_config(stream, choose, Some(config)).expect("a handshake");
        while let Ok(message) = socket.read() {
            if (message.is_text() || message.is_binary()) && socket.send(message).is_err() {
                return;
            }
        }
    })
}

fn library_client(gateway: &Gateway, request: tungstenite::ClientRequestBuilder) -> (WebSocket<TcpStream>, Response2) {
    let stream = TcpStream::connect(gateway.address()).expect("a connection");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    let config = WebSocketConfig::default().max_message_size(None).max_frame_size(None);
    tungstenite::client::client_with_config(request, stream, Some(config)).expect("a handshake")
}

type Response2 = tungstenite::handshake::client::Response;

fn to(path: &str) -> tungstenite::ClientRequestBuilder {
    tungstenite::ClientRequestBuilder::new(format!("ws://test{path}").parse().expect("a URI"))
}

#[test]
fn messages_of_every_kind_go_both_ways_between_libraries() {
    let backend = library_echo();
    let gateway = Gateway::to(backend.endpoint());
    let (mut socket, answer) =
        library_client(&gateway, to("/chat?x=1").with_sub_protocol("v2.chat").with_sub_protocol("v1"));
    assert_eq!(answer.headers()["sec-websocket-protocol"], "v2.chat");
    assert!(answer.headers().contains_key("x-request-id"));
    assert_eq!(answer.headers()["x-seen"], "/chat?x=1 websocket upgrade");
    socket.send(Message::text("Grüße")).expect("sent");
    assert_eq!(socket.read().expect("an echo"), Message::text("Grüße"));

    // In three frames, with a ping between them.
    for (part, opcode, last) in [("one ", Data::Text, false), ("two ", Data::Continue, false)] {
        socket.send(Message::Frame(Frame::message(part, OpCode::Data(opcode), last))).expect("sent");
    }
    socket.send(Message::Ping("are you there".into())).expect("sent");
    socket.send(Message::Frame(Frame::message("three", OpCode::Data(Data::Continue), true))).expect("sent");
    let both = [socket.read().expect("a message"), socket.read().expect("a message")];
    assert!(both.contains(&Message::Pong("are you there".into())), "{both:?}");
    assert!(both.contains(&Message::text("one two three")), "{both:?}");

    let large: Vec<u8> = (0..16 << 20).map(|n: u32| ((n * 31) >> 3) as u8).collect();
    socket.send(Message::binary(large.clone())).expect("sent");
    assert!(socket.read().expect("an echo").into_data() == large, "16 MiB come back as they were");

    socket.close(None).expect("sent");
    while socket.read().is_ok() {}
}

#[test]
fn a_tunnel_is_counted_and_logged_once_at_its_end() {
    let backend = echo();
    let gateway = Gateway::to(backend.endpoint());
    let mut client = open(&gateway, "/ws?secret=1");
    let in_flight = format!("gateway_endpoint_in_flight{{service=\"app\",endpoint=\"{}\"}}", backend.endpoint());
    settles_at([1.0, 1.0, 0.0, 1.0], || {
        ["gateway_active_connections", "gateway_active_tunnels", "gateway_active_requests", &in_flight]
            .map(|name| gateway.metric(name))
    });
    client.send(HI);
    assert_eq!(client.read_exact(HI.len()), HI);
    thread::sleep(Duration::from_millis(300));
    assert!(gateway.log_lines().is_empty());
    drop(client);
    let line = gateway.log_line(1);
    assert_eq!((&line["statusCode"], &line["method"], &line["path"]), (&101.into(), &"GET".into(), &"/ws".into()));
    assert_eq!((&line["upgrade"], &line["backendService"]), (&"websocket".into(), &"app".into()));
    assert_eq!((&line["tunnelBytesIn"], &line["tunnelBytesOut"]), (&8.into(), &8.into()));
    let of = |field: &str| line[field].as_f64().expect("a number");
    assert!(of("tunnelMs") >= 300.0 && of("latencyMs") < 300.0, "{line}");
    gateway.expect_idle();
    settles_at([0.0; 2], || ["gateway_active_tunnels", &in_flight].map(|name| gateway.metric(name)));
    assert_eq!(gateway.metric("gateway_tunnels_total{route=\"all\",protocol=\"websocket\"}"), 1.0);
    assert_eq!(gateway.metric("gateway_requests_total{route=\"all\",status=\"101\"}"), 1.0);
    assert_eq!(gateway.metric("gateway_tunnel_received_bytes_total{route=\"all\"}"), 8.0);
    assert_eq!(gateway.metric("gateway_tunnel_sent_bytes_total{route=\"all\"}"), 8.0);
    // The service's connection is not used again.
    assert_eq!(gateway.get("/").text(), "ok");
    assert_eq!(backend.connections(), 2);
}

#[test]
fn extensions_are_settled_between_the_ends_and_their_frames_are_left_alone() {
    let deflated = [0xc1, 0x07, 0xf2, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00];
    let backend = Backend::start(move |conn| {
        let head = conn.next_request_head().expect("a request");
        assert_eq!(head.get("sec-websocket-extensions"), Some("permessage-deflate; client_max_window_bits"));
        conn.send(agreement("Sec-WebSocket-Extensions: permessage-deflate\r\n"));
        assert_eq!(conn.read_exact(deflated.len()), deflated);
        conn.send(deflated);
        conn.stall();
    });
    let gateway = Gateway::to(backend.endpoint());
    let mut client = gateway.connect();
    client.send(handshake("/", "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n"));
    assert_eq!(client.read_head().get("sec-websocket-extensions"), Some("permessage-deflate"));
    assert_eq!(client.send(deflated).read_exact(deflated.len()), deflated);
}

#[test]
fn what_comes_with_a_head_is_the_first_of_the_tunnel() {
    let backend = Backend::start(|conn| {
        conn.next_request_head().expect("a request");
        conn.send([agreement("").as_bytes(), &HI_BACK].concat());
        assert_eq!(conn.read_exact(HI.len()), HI);
        conn.send(HI_BACK);
        conn.stall();
    });
    let gateway = Gateway::to(backend.endpoint());
    let mut client = gateway.connect();
    client.send([handshake("/", "").as_bytes(), &HI].concat());
    assert_eq!(client.read_head().status(), 101);
    assert_eq!(client.read_exact(8), [HI_BACK, HI_BACK].concat());
}

#[test]
fn either_side_may_end_before_the_other() {
    let backend = Backend::start(|conn| {
        agree(conn);
        if conn.index == 0 {
            let (sent, end) = conn.read_to_end();
            assert_eq!((sent.as_slice(), end), (&b"all of mine"[..], End::Closed));
            conn.send("and mine");
        } else {
            conn.send("all of mine").half_close();
            assert_eq!(conn.read_to_end(), (b"and mine".to_vec(), End::Closed));
        }
    });
    let gateway = Gateway::to(backend.endpoint());
    let mut client = open(&gateway, "/");
    client.send("all of mine");
    client.half_close();
    assert_eq!(client.read_to_end(), (b"and mine".to_vec(), End::Closed));
    let mut client = open(&gateway, "/");
    assert_eq!(client.read_exact(11), b"all of mine");
    client.expect_closed();
    client.send("and mine").half_close();
    backend.expect_all_closed();
    gateway.expect_idle();
}

#[test]
fn a_side_that_is_gone_takes_the_other_with_it() {
    let backend = Backend::start(|conn| {
        agree(conn);
        match conn.index {
            0 => conn.reset(),
            _ => assert_eq!(conn.stall(), End::Reset),
        }
    });
    let gateway = Gateway::to(backend.endpoint());
    open(&gateway, "/").expect_reset();
    open(&gateway, "/").reset();
    backend.expect_all_closed();
    gateway.expect_idle();
    assert_eq!(gateway.log_line(2)["statusCode"], 101);
}

#[test]
fn other_answers_are_answers_like_any() {
    let backend = Backend::start(|conn| {
        while let Some(head) = conn.next_request_head() {
            assert!(head.has("upgrade"));
            conn.send(match head.target() {
                "/ok" => "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nUpgrade: websocket\r\n\r\nok",
                "/no" => "HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno",
                _ => {
                    "HTTP/1.1 426 Upgrade Required\r\nUpgrade: h2c, websocket\r\nConnection: upgrade\r\n\
                      Sec-WebSocket-Version: 13\r\nContent-Length: 0\r\n\r\n"
                }
            });
        }
    });
    let gateway = Gateway::to(backend.endpoint());
    let mut client = gateway.connect();
    let answer = client.ask(handshake("/ok", ""));
    assert_eq!((answer.status(), answer.text().as_str(), answer.has("upgrade")), (200, "ok", false));
    assert_eq!(client.ask(handshake("/no", "")).text(), "no");
    let answer = client.ask(handshake("/version", ""));
    assert_eq!((answer.status(), answer.get("upgrade")), (426, Some("websocket")));
    assert_eq!(answer.get("sec-websocket-version"), Some("13"));
    assert_eq!(backend.connections(), 1, "both connections live on");
    assert_eq!(gateway.metric("gateway_active_tunnels"), 0.0);
}

#[test]
fn no_request_passes_unseen_behind_an_upgrade_that_did_not_happen() {
    let backend = Backend::ok();
    let gateway = Gateway::start(&format!(
        "services: [{{ name: app, endpoints: [\"{}\"] }}]\n\
         routes:\n- {{ name: all, service: app }}\n\
         - {{ name: admin, match: {{ prefix: /admin }}, service: app, ip: {{ deny: [127.0.0.0/8] }} }}\n",
        backend.endpoint()
    ));
    let mut client = gateway.connect();
    client.send(handshake("/", "") + "GET /admin HTTP/1.1\r\nHost: test\r\n\r\n");
    assert_eq!(client.read_response().status(), 200);
    assert_eq!(client.read_response().status(), 403);
    assert_eq!(backend.request().target(), "/");
}

#[test]
fn an_agreement_that_proves_nothing_is_a_bad_answer() {
    let switching = "HTTP/1.1 101 Switching Protocols\r\n";
    let accept = format!("Sec-WebSocket-Accept: {}\r\n", derive_accept_key(KEY.as_bytes()));
    let answers = [
        format!("{switching}\r\n"),
        format!("{switching}Upgrade: websocket\r\nConnection: upgrade\r\n\r\n"),
        format!("{switching}Upgrade: websocket\r\n{accept}\r\n"),
        format!("{switching}Upgrade: h2c\r\nConnection: upgrade\r\n{accept}\r\n"),
        format!("{switching}Upgrade: websocket, foo\r\nConnection: upgrade\r\n{accept}\r\n"),
        format!("{switching}Upgrade: websocket\r\nConnection: upgrade\r\nSec-WebSocket-Accept: AAAA\r\n\r\n"),
        format!("{switching}Upgrade: websocket\r\nConnection: upgrade\r\n{accept}{accept}\r\n"),
    ];
    let count = answers.len();
    let backend = Backend::start(move |conn| {
        conn.next_request_head().expect("a request");
        let index = conn.index;
        conn.send(&answers[index]);
        conn.stall();
    });
    let gateway = Gateway::to(backend.endpoint());
    for _ in 0..count {
        assert_eq!(gateway.connect().ask(handshake("/", "")).status(), 502);
    }
    assert_eq!(gateway.backend_errors("bad_answer"), count as f64);

    // Nor is one that nobody asked for.
    let backend = Backend::fixed(agreement(""));
    let gateway = Gateway::to(backend.endpoint());
    assert_eq!(gateway.get("/").status(), 502);
}

#[test]
fn what_may_not_be_upgraded_is_asked_without_it() {
    let backend = Backend::ok();
    let gateway = Gateway::to(backend.endpoint());
    let asks = |head: &str| gateway.connect().ask(head).status();
    let fields = format!("Upgrade: websocket\r\nSec-WebSocket-Key: {KEY}\r\n");
    for head in [
        // Not named by Connection; HTTP/1.0; with a body; h2c, and a protocol that the route does not name.
        format!("GET /0 HTTP/1.1\r\nHost: a\r\n{fields}\r\n"),
        format!("GET /1 HTTP/1.0\r\nHost: a\r\nConnection: upgrade\r\n{fields}\r\n"),
        format!("GET /2 HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\n{fields}Content-Length: 1\r\n\r\n1"),
        "GET /3 HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n\r\n".into(),
        "GET /4 HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: foo\r\n\r\n".into(),
    ] {
        assert_eq!(asks(&head), 200, "{head}");
    }
    let seen = backend.requests();
    assert_eq!(seen.len(), 5);
    for head in seen {
        assert!(!head.has("upgrade") && !head.has("connection") && !head.has("http2-settings"), "{head:?}");
    }
    let malformed = |more: &str| {
        asks(&format!("GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n{more}\r\n"))
    };
    assert_eq!(malformed(""), 400);
    assert_eq!(malformed("Sec-WebSocket-Key: short\r\n"), 400);
    assert_eq!(malformed(&format!("Sec-WebSocket-Key: {KEY}\r\nSec-WebSocket-Key: {KEY}\r\n")), 400);
    assert_eq!(asks(&handshake("/", "").replace("GET", "POST")), 400);
    assert_eq!(asks("CONNECT test:80 HTTP/1.1\r\nHost: test:80\r\n\r\n"), 501);
    assert_eq!(backend.requests().len(), 5);
}

#[test]
fn a_route_names_the_protocols_that_it_allows() {
    let backend = Backend::start(|conn| {
        while let Some(head) = conn.next_request_head() {
            if head.get("upgrade") != Some("Foo/1") {
                assert!(!head.has("upgrade"));
                conn.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
                continue;
            }
            conn.send("HTTP/1.1 101 Go\r\nUpgrade: foo/1\r\nConnection: upgrade\r\n\r\nhello");
            assert_eq!(conn.read_exact(3), b"bye");
            return;
        }
    });
    let routes = format!(
        "services: [{{ name: app, endpoints: [\"{}\"] }}]\nroutes:\n\
         - {{ name: off, match: {{ prefix: /off }}, service: app, upgrades: off }}\n\
         - {{ name: foo, match: {{ prefix: /foo }}, service: app, upgrades: [foo/1] }}\n",
        backend.endpoint()
    );
    let gateway = Gateway::start(&routes);
    assert_eq!(gateway.connect().ask(handshake("/off", "")).status(), 200);
    assert_eq!(gateway.connect().ask(handshake("/foo", "")).status(), 200);
    let mut client = gateway.connect();
    client.send("POST /foo HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket, Foo/1\r\n\r\n");
    let head = client.read_head();
    assert_eq!((head.status(), head.get("upgrade")), (101, Some("Foo/1")));
    assert_eq!(client.read_exact(5), b"hello");
    client.send("bye").expect_closed();
    drop(client);
    settles_at(3, || gateway.log_lines().len());
    assert_eq!(gateway.metric("gateway_tunnels_total{route=\"foo\",protocol=\"other\"}"), 1.0);
}

#[test]
fn the_gate_and_the_limits_come_first() {
    let backend = echo();
    let yaml = format!(
        "concurrency_limits: [{{ name: one, requests: 1 }}]\n\
         rate_limits: [{{ name: few, limit: 4/min }}]\n\
         services: [{{ name: app, endpoints: [\"{}\"] }}]\nroutes:\n\
         - {{ name: denied, match: {{ prefix: /denied }}, service: app, ip: {{ deny: [127.0.0.0/8] }} }}\n\
         - {{ name: all, service: app, concurrency_limit: one, rate_limit: few }}\n",
        backend.endpoint()
    );
    let gateway = Gateway::start(&yaml);
    let asks = |path: &str| gateway.connect().ask(handshake(path, "")).status();
    assert_eq!(asks("/denied"), 403);
    let client = open(&gateway, "/");
    assert_eq!(asks("/"), 429, "the tunnel holds its place");
    drop(client);
    settles_at(0.0, || gateway.metric("gateway_concurrency_limit_requests{policy=\"one\"}"));
    drop(open(&gateway, "/"));
    settles_at(0.0, || gateway.metric("gateway_active_tunnels"));
    let mut refused = 0;
    for _ in 0..4 {
        let status = gateway.connect().ask("GET / HTTP/1.1\r\nHost: test\r\n\r\n").status();
        refused += usize::from(status == 429);
    }
    assert!(refused >= 2, "upgrades are requests to a rate limit");
    assert_eq!(backend.requests().iter().filter(|head| head.has("upgrade")).count(), 2);
}

#[test]
fn tunnels_count_among_the_connections_to_an_endpoint() {
    let backend = echo();
    let setup = Setup { service: "pool: { connections: 1 }", ..Setup::default() };
    let gateway = setup.start(backend.endpoint());
    let client = open(&gateway, "/");
    assert_eq!(gateway.get("/").status(), 503);
    drop(client);
    eventually(PATIENCE, || gateway.get("/").status() == 200);
}

#[test]
fn a_tunnel_without_a_byte_is_closed_in_time_and_says_so() {
    let backend = Backend::start(|conn| {
        agree(conn);
        let frame = conn.read_exact(8);
        let (mask, told) = (&frame[2..6], &frame[6..]);
        assert_eq!(&frame[..2], [0x88, 0x82]);
        assert_eq!([told[0] ^ mask[0], told[1] ^ mask[1]], GOING_AWAY[2..]);
        conn.expect_closed();
    });
    let gateway = Setup { route: "timeouts: { tunnel_idle: 400ms }", ..Setup::default() }.start(backend.endpoint());
    let begun = Instant::now();
    let mut client = open(&gateway, "/");
    assert_eq!(client.read_to_end(), (GOING_AWAY.to_vec(), End::Closed));
    assert!(begun.elapsed() >= Duration::from_millis(400), "{:?}", begun.elapsed());
    drop(client);
    backend.expect_all_closed();
    gateway.expect_idle();
}

#[test]
fn a_ping_now_and_then_keeps_a_tunnel_and_no_other_timeout_ends_it() {
    let backend = echo();
    let setup = Setup {
        listener: "timeouts: { idle: 300ms, head: 300ms, body: 300ms }",
        service: "timeouts: { idle: 300ms, answer: 300ms }",
        route: "timeouts: { tunnel_idle: 800ms, request: 300ms }",
        ..Setup::default()
    };
    let gateway = setup.start(backend.endpoint());
    let mut client = open(&gateway, "/");
    let ping = [0x89, 0x80, 0, 0, 0, 0];
    for _ in 0..6 {
        thread::sleep(Duration::from_millis(400));
        assert_eq!(client.send(ping).read_exact(6), ping);
    }
    assert_eq!(client.read_to_end().0, GOING_AWAY);
}

#[test]
fn a_drain_leaves_tunnels_until_its_timeout_and_then_says_goodbye() {
    let backend = echo();
    let mut gateway =
        Setup { sections: "drain: { notice: 0s, timeout: 1500ms }\n", ..Setup::default() }.start(backend.endpoint());
    let (mut whole, mut within) = (open(&gateway, "/"), open(&gateway, "/"));
    // Half of a frame, in both directions: nothing can be put in there.
    within.send(&HI[..7]);
    assert_eq!(within.read_exact(7), HI[..7]);
    let begun = Instant::now();
    gateway.terminate();
    eventually(PATIENCE, || gateway.admin("/ready").1.contains("draining"));
    assert_eq!(whole.send(HI).read_exact(8), HI);
    assert_eq!(whole.read_to_end(), (GOING_AWAY.to_vec(), End::Closed));
    let after = begun.elapsed();
    assert!(after >= Duration::from_millis(1450) && after < Duration::from_secs(5), "{after:?}");
    assert_eq!(within.read_to_end(), (Vec::new(), End::Closed));
    drop((whole, within));
    assert!(gateway.wait_exit(PATIENCE).success(), "{}", gateway.stderr());
    assert_eq!(gateway.log_lines().len(), 2);
}

#[test]
fn a_tunnel_outlives_the_configuration_that_opened_it() {
    let backend = echo();
    let yaml = |routes: &str| {
        format!("services: [{{ name: app, endpoints: [\"{}\"] }}]\nroutes:\n{routes}", backend.endpoint())
    };
    let gateway = Gateway::start(&yaml("- { name: chat, service: app }\n"));
    let mut client = open(&gateway, "/ws");
    assert!(gateway.replace_config(
        "services: [{ name: other, endpoints: [\"127.0.0.1:1\"] }]\nroutes: [{ name: other, service: other }]\n"
    ));
    assert_eq!(gateway.get("/").status(), 502);
    assert_eq!(client.send(HI).read_exact(8), HI);
    // Nor does it end with its listener.
    let elsewhere = format!("127.0.0.1:{}", ringway_tests::free_port());
    assert!(gateway.replace_config(&format!(
        "listeners: [{{ name: other, address: \"{elsewhere}\" }}]\n{}",
        yaml("- { name: chat, service: app }\n")
    )));
    assert_eq!(client.send(HI).read_exact(8), HI);
    drop(client);
    let line = gateway.log_line(2);
    assert_eq!((&line["backendService"], &line["tunnelBytesIn"]), (&"app".into(), &16.into()));
    gateway.expect_idle();
}

#[test]
fn a_slow_reader_slows_the_other_side_down_and_costs_a_block() {
    const TOTAL: usize = 24 << 20;
    let pattern = |range: std::ops::Range<usize>| range.map(|n| ((n * 7) >> 4) as u8).collect::<Vec<u8>>();
    let backend = Backend::start(move |conn| {
        agree(conn);
        conn.send(pattern(0..TOTAL));
        conn.half_close();
        conn.stall();
    });
    let gateway = Gateway::to(backend.endpoint());
    let before = gateway.rss_bytes();
    let mut client = Client::connect_narrow(gateway.address());
    client.send(handshake("/", ""));
    assert_eq!(client.read_head().status(), 101);
    settles_at(1.0, || gateway.metric("gateway_buffers_in_use{worker=\"0\"}"));
    let sent = || gateway.metric("gateway_sent_bytes_total");
    let mut last = -1.0;
    eventually(PATIENCE, || {
        thread::sleep(Duration::from_millis(200));
        std::mem::replace(&mut last, sent()) == last
    });
    assert!(last < (TOTAL / 2) as f64, "{last} bytes were taken from the service for a client that does not read");
    let grown = gateway.rss_bytes().saturating_sub(before);
    assert!(grown < 8 << 20, "{grown} bytes for one slow reader");
    let (all, end) = client.read_to_end();
    assert!(all == pattern(0..TOTAL) && end == End::Closed, "{} bytes", all.len());
}

#[test]
fn an_idle_tunnel_holds_no_block() {
    let backend = echo();
    let each = idle_tunnel_bytes(&Gateway::to(backend.endpoint()));
    assert!(each < 8 * 1024, "{each} bytes for each idle tunnel");
}

/// What the service does of its own accord.
const PATHS: [&str; 7] = ["/", "/", "/", "/close", "/reset", "/refuse", "/stall"];

#[test]
fn ten_thousand_connections_come_and_go_and_nothing_stays() {
    const THREADS: usize = 4;
    const EACH: usize = 2_500;
    let seed = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(|| fastrand::u64(..));
    println!("SEED={seed}");
    let backend = Backend::start(|conn| {
        let Some(head) = conn.next_request_head() else { return };
        match head.target() {
            "/refuse" => return drop(conn.try_send("HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")),
            "/stall" => {
                conn.stall();
                return;
            }
            _ => {}
        }
        if conn.try_send(agreement("")).is_err() || head.target() == "/close" {
            return;
        }
        if head.target() == "/reset" {
            return conn.reset();
        }
        while let Ok(bytes) = conn.read_some() {
            if conn.try_send(bytes).is_err() {
                return;
            }
        }
    });
    let gateway = Gateway::to(backend.endpoint());
    let run = |each: usize, seed: u64| {
        thread::scope(|scope| {
            for index in 0..THREADS {
                let (gateway, mut random) = (&gateway, fastrand::Rng::with_seed(seed ^ index as u64));
                scope.spawn(move || (0..each).for_each(|_| come_and_go(gateway, &mut random, &PATHS, "/stall")));
            }
        });
        gateway.expect_idle();
        backend.expect_all_closed();
    };
    // As much memory as so many at a time take is there from now on.
    run(EACH / 2, !seed);
    let labels = format!("{{service=\"app\",endpoint=\"{}\"}}", backend.endpoint());
    let gauges = [
        "gateway_active_tunnels".to_owned(),
        "gateway_buffers_in_use{worker=\"0\"}".to_owned(),
        format!("gateway_endpoint_in_flight{labels}"),
        format!("gateway_endpoint_open_connections{labels}"),
    ];
    settles_at([0.0; 4], || gauges.each_ref().map(|gauge| gateway.metric(gauge)));
    let (fds, rss) = (gateway.open_fds(), gateway.rss_bytes());
    run(EACH / 2, seed);
    settles_at([0.0; 4], || gauges.each_ref().map(|gauge| gateway.metric(gauge)));
    eventually(PATIENCE, || gateway.open_fds() <= fds);
    let grown = gateway.rss_bytes().saturating_sub(rss);
    assert!(grown < 4 << 20, "{grown} bytes more than after the first half");
    assert!(
        gateway.metric("gateway_tunnels_total{route=\"all\",protocol=\"websocket\"}") > (EACH * THREADS / 4) as f64
    );
    assert_eq!(gateway.metric("gateway_worker_panics_total"), 0.0);
}
