//! WebSockets to services of HTTP/2 (RFC 8441), and each kind of client with each kind of service.

mod ends;
mod offers;
mod random;

use std::future::poll_fn;
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;
use ends::*;
use h2::Reason;
use http::{Method, Response, Version};
use jsonwebtoken::{EncodingKey, Header};
use ringway_tests::http2::*;
use ringway_tests::websocket::*;
use ringway_tests::{Backend, Client, End, Gateway, PATIENCE, Setup, eventually, settles_at};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use tokio_rustls::TlsAcceptor;
use tungstenite::ClientRequestBuilder;
use tungstenite::handshake::derive_accept_key;

/// One of HTTP/2, on stream 1.
#[track_caller]
fn open2(gateway: &Gateway, path: &str) -> Http2 {
    let mut client = Http2::connect(gateway.address());
    client.send(Http2::connect_bytes(1, "websocket", path, &[]));
    assert_eq!(client.status(1), 200);
    client
}

/// The status of a request for a WebSocket, of HTTP/1.1 and of HTTP/2.
#[track_caller]
fn both(gateway: &Gateway, path: &str, token: Option<&str>) -> [u16; 2] {
    let line = token.map_or(String::new(), |token| format!("Authorization: Bearer {token}\r\n"));
    let first = gateway.connect().send(handshake(path, &line)).read_head().status();
    let mut request = http::Request::builder().uri(format!("http://a.test{path}"));
    if let Some(token) = token {
        request = request.header("authorization", format!("Bearer {token}"));
    }
    [first, client(gateway.address(), None, request).map_or_else(|status| status, |(_, head)| head.status.as_u16())]
}

/// A library's server of HTTP/1.1, that sends messages back.
fn library() -> Backend {
    Backend::start(|conn| {
        conn.stream().set_read_timeout(Some(PATIENCE)).expect("a timeout");
        use tungstenite::handshake::server::{Request, Response};
        #[allow(clippy::result_large_err)] // the library's own type
        let choose = |request: &Request, mut response: Response| {
            if let Some(protocols) = request.headers().get("sec-websocket-protocol") {
                let first = protocols.to_str().expect("text").split(", ").next().expect("one");
                response.headers_mut().insert("sec-websocket-protocol", first.parse().expect("a value"));
            }
            response.headers_mut().insert("x-service", "1".parse().expect("a value"));
            Ok(response)
        };
        let accepted = tungstenite::accept_hdr_with_config(conn.stream(), choose, Some(no_limits()));
        send_back(accepted.expect("a handshake"));
    })
}

/// A client's side of TLS that asks for a protocol.
type Tls<'a> = &'a dyn Fn(&str) -> Arc<ClientConfig>;

/// What the clients of a gateway go through: a library's over HTTP/1.1 and HTTP/2, over TLS where there is a way to it.
fn messages_of_both_clients(gateway: &Gateway, tls: Option<Tls<'_>>, service: &str) {
    let scheme = if tls.is_some() { "wss" } else { "ws" };
    let uri = format!("{scheme}://localhost/chat?x=1").parse().expect("a URI");
    let request = ClientRequestBuilder::new(uri).with_sub_protocol("v2.chat").with_sub_protocol("v1");
    let tcp = TcpStream::connect(gateway.address()).expect("a connection");
    tcp.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    let answer = match tls {
        None => {
            let made = tungstenite::client::client_with_config(request, tcp, Some(no_limits()));
            let (mut socket, answer) = made.expect("a handshake");
            messages_of_every_kind(&mut socket);
            answer
        }
        Some(tls) => {
            let name = ServerName::try_from("localhost").expect("a name");
            let session = ClientConnection::new(tls("http/1.1"), name).expect("a session");
            let tls = StreamOwned::new(session, tcp);
            let made = tungstenite::client::client_with_config(request, tls, Some(no_limits()));
            let (mut socket, answer) = made.expect("a handshake");
            messages_of_every_kind(&mut socket);
            answer
        }
    };
    assert_eq!(
        (&answer.headers()["sec-websocket-protocol"], &answer.headers()["x-service"]),
        (&"v2.chat".parse().unwrap(), &service.parse().unwrap())
    );

    let scheme = if tls.is_some() { "https" } else { "http" };
    let request = http::Request::builder().uri(format!("{scheme}://localhost/chat?x=1"));
    let request = request.header("sec-websocket-protocol", "v2.chat, v1");
    let (mut socket, head) = client(gateway.address(), tls.map(|tls| tls("h2")), request).expect("a tunnel");
    assert_eq!(
        (&head.headers["sec-websocket-protocol"], &head.headers["x-service"]),
        (&"v2.chat".parse().unwrap(), &service.parse().unwrap())
    );
    assert!(!head.headers.contains_key("sec-websocket-accept"));
    messages_of_every_kind(&mut socket);
    drop(socket);
    gateway.expect_idle();
    settles_at(0.0, || gateway.metric("gateway_active_tunnels"));
    assert_eq!(gateway.metric("gateway_tunnels_total{route=\"all\",protocol=\"websocket\"}"), 2.0);
}

#[test]
fn messages_of_every_kind_go_both_ways_in_all_four_combinations() {
    let backend = library();
    messages_of_both_clients(&Gateway::to(backend.endpoint()), None, "1");
    let service = Service::library(None);
    messages_of_both_clients(&service.gateway("", ""), None, "2");
    assert_eq!((service.requests(), service.shared.connections.load(Ordering::Acquire)), (2, 1), "two streams");
}

#[test]
fn and_over_tls_on_both_sides() {
    let directory = tempfile::tempdir().expect("a directory");
    let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
    let rcgen::CertifiedKey { cert, signing_key } = rcgen::generate_simple_self_signed(names).expect("a certificate");
    let [pem, key] = ["own.pem", "own.key"].map(|name| directory.path().join(name));
    std::fs::write(&pem, cert.pem()).expect("a file");
    std::fs::write(&key, signing_key.serialize_pem()).expect("a file");
    let listener =
        format!("tls: {{ certificates: {{ certificate: \"{}\", key: \"{}\" }} }}", pem.display(), key.display());
    let config = |protocol: &str| {
        let mut roots = RootCertStore::empty();
        roots.add(cert.der().clone()).expect("a root");
        let mut config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
        config.alpn_protocols = vec![protocol.as_bytes().to_vec()];
        Arc::new(config)
    };
    let backend = library();
    let gateway = Setup { listener: &listener, ..Setup::default() }.start(backend.endpoint());
    messages_of_both_clients(&gateway, Some(&config), "1");

    let private = rustls::pki_types::PrivatePkcs8KeyDer::from(signing_key.serialize_der());
    let server = rustls::ServerConfig::builder().with_no_client_auth();
    let mut server = server.with_single_cert(vec![cert.der().clone()], private.into()).expect("a certificate");
    server.alpn_protocols = vec![b"h2".to_vec()];
    let service = Service::library(Some(TlsAcceptor::from(Arc::new(server))));
    let more = format!("protocol: http2, tls: {{ ca: \"{}\" }}", pem.display());
    let gateway = Setup { listener: &listener, service: &more, ..Setup::default() }.start(&service.endpoint);
    messages_of_both_clients(&gateway, Some(&config), "2");
    assert_eq!(service.request(0).uri.scheme_str(), Some("https"));
}

#[test]
fn a_key_is_answered_by_the_gateway_and_stays_there() {
    let service = Service::start(|mut call| async move {
        let head = Response::builder()
            .header("sec-websocket-extensions", "permessage-deflate")
            // Is not the client's business.
            .header("sec-websocket-accept", "AAAA");
        let mut stream = call.begin(head);
        while let Some(data) = call.read_some().await {
            send_all(&mut stream, data, &call.shared.sent).await.expect("room");
        }
        stream.send_data(Bytes::new(), true).expect("a stream");
    });
    let gateway = service.gateway("", "");
    let mut client = gateway.connect();
    client.send(handshake("/chat?x=1", "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n"));
    let answer = client.read_head();
    assert_eq!(
        (answer.status(), answer.get("upgrade"), answer.get("connection")),
        (101, Some("websocket"), Some("upgrade"))
    );
    let accepts: Vec<_> = answer.all("sec-websocket-accept").collect();
    assert_eq!(accepts, [derive_accept_key(KEY.as_bytes()).as_str()]);
    assert_eq!(answer.get("sec-websocket-extensions"), Some("permessage-deflate"));
    assert!(!answer.has("content-length") && !answer.has("transfer-encoding"), "{answer:?}");
    client.send(HI);
    assert_eq!(client.read_exact(HI.len()), HI);
    drop(client);

    let request = service.request(0);
    assert_eq!((&request.method, request.version), (&Method::CONNECT, Version::HTTP_2));
    assert_eq!(request.extensions.get::<h2::ext::Protocol>().map(h2::ext::Protocol::as_str), Some("websocket"));
    assert_eq!(request.uri.to_string(), "http://a.test/chat?x=1");
    let field = |name: &str| request.headers.get(name).map(|value| value.to_str().expect("text"));
    assert_eq!(field("sec-websocket-version"), Some("13"));
    assert_eq!(field("sec-websocket-extensions"), Some("permessage-deflate; client_max_window_bits"));
    for name in ["sec-websocket-key", "upgrade", "connection"] {
        assert_eq!(field(name), None, "{name}");
    }
    let line = gateway.log_line(1);
    assert_eq!(
        (&line["statusCode"], &line["method"], &line["upgrade"]),
        (&101.into(), &"GET".into(), &"websocket".into())
    );
    assert_eq!((&line["tunnelBytesIn"], &line["tunnelBytesOut"]), (&8.into(), &8.into()));
}

#[test]
fn other_answers_are_answers_like_any() {
    let service = Service::start(|mut call| async move {
        let head = Response::builder().status(if call.path() == "/no" { 403 } else { 302 });
        let mut stream = call.begin(head.header("x-own", "1"));
        stream.send_data(Bytes::from_static(b"no tunnel"), true).expect("a stream");
        let reset = poll_fn(|cx| stream.poll_reset(cx)).await;
        call.note_reset(reset);
    });
    let gateway = service.gateway("", "");
    let mut client = gateway.connect();
    for (path, status) in [("/no", 403), ("/elsewhere", 302)] {
        let answer = client.ask(handshake(path, ""));
        assert_eq!((answer.status(), answer.text().as_str(), answer.get("x-own")), (status, "no tunnel", Some("1")));
    }
    let mut client = Http2::connect(gateway.address());
    client.send(Http2::connect_bytes(1, "websocket", "/no", &[]));
    assert_eq!(client.status(1), 403);
    assert_eq!(client.read_data(1, 9), b"no tunnel");
    settles_at(vec![Reason::CANCEL; 3], || service.resets());
    assert_eq!(gateway.metric("gateway_active_tunnels"), 0.0);
}

#[test]
fn either_side_may_end_before_the_other() {
    let service = Service::start(|mut call| async move {
        let mut stream = call.begin(Response::builder());
        let sent = call.shared.clone();
        if call.path() == "/client" {
            assert_eq!(call.read_exact(11).await.expect("bytes"), b"all of mine");
            assert!(call.read_some().await.is_none() && call.body.is_end_stream());
            send_all(&mut stream, Bytes::from_static(b"and mine"), &sent.sent).await.expect("room");
            stream.send_data(Bytes::new(), true).expect("a stream");
        } else {
            stream.send_data(Bytes::from_static(b"all of mine"), true).expect("a stream");
            if call.path() == "/service" {
                assert_eq!(call.read_exact(8).await.expect("bytes"), b"and mine");
                assert!(call.read_some().await.is_none() && call.body.is_end_stream());
                sent.sent.fetch_add(1000, Ordering::AcqRel);
            }
            // Else it takes no more: the stream is let go of, and `h2` says so (NO_ERROR).
        }
    });
    let gateway = service.gateway("", "");
    let mut client = open(&gateway, "/client");
    client.send("all of mine").half_close();
    assert_eq!(client.read_to_end(), (b"and mine".to_vec(), End::Closed));
    let mut client = open(&gateway, "/service");
    assert_eq!(client.read_exact(11), b"all of mine");
    client.expect_closed();
    client.send("and mine").half_close();
    settles_at(1008, || service.shared.sent.load(Ordering::Acquire));
    let mut client = open(&gateway, "/no-more");
    assert_eq!(client.read_to_end(), (b"all of mine".to_vec(), End::Closed));
    drop(client);

    let mut client = open2(&gateway, "/client");
    client.frame(DATA, END_STREAM, 1, b"all of mine");
    assert_eq!(client.read_data(1, 8), b"and mine");
    assert_eq!(client.next_of(DATA, 1).flags & END_STREAM, END_STREAM);
    settles_at([0.0, 0.0], || ["gateway_active_tunnels", "gateway_active_requests"].map(|name| gateway.metric(name)));
    settles_at(0, || service.open());
}

#[test]
fn a_side_that_is_gone_takes_the_other_with_it() {
    let service = Service::start(|mut call| async move {
        let mut stream = call.begin(Response::builder());
        if call.path() == "/stays" {
            let reset = poll_fn(|cx| stream.poll_reset(cx)).await;
            return call.note_reset(reset);
        }
        // When the tunnel stands at both ends.
        call.read_some().await.expect("a byte");
        call.respond.send_reset(Reason::CANCEL);
    });
    let gateway = service.gateway("", "");
    open(&gateway, "/stays").reset();
    settles_at(vec![Reason::CANCEL], || service.resets());
    let mut client = open2(&gateway, "/stays");
    client.frame(RST_STREAM, 0, 1, &CANCEL.to_be_bytes());
    settles_at(vec![Reason::CANCEL; 2], || service.resets());
    drop(open2(&gateway, "/stays"));
    settles_at(vec![Reason::CANCEL; 3], || service.resets());

    open(&gateway, "/goes").send("x").expect_reset();
    client.send(Http2::connect_bytes(3, "websocket", "/goes", &[]));
    assert_eq!(client.status(3), 200);
    client.frame(DATA, 0, 3, b"x");
    assert_eq!(client.next_of(RST_STREAM, 3).error(), CANCEL);
    settles_at(0.0, || gateway.metric("gateway_active_tunnels"));

    // So does a service that is lost.
    let mut clients = [open(&gateway, "/stays"), open(&gateway, "/stays")];
    let mut third = open2(&gateway, "/stays");
    drop(service);
    clients.iter_mut().for_each(|client| client.expect_reset());
    assert_eq!(third.next_of(RST_STREAM, 1).error(), CANCEL);
    drop((clients, third, client));
    gateway.expect_idle();
}

/// Notes what of the last eight bytes of a tunnel is a close frame of a client, without its mask.
fn goodbyes() -> Service {
    Service::start(|mut call| async move {
        let mut stream = call.begin(Response::builder());
        let mut all = Vec::new();
        while let Some(data) = call.read_some().await {
            all.extend_from_slice(&data);
            if data == HI[..] {
                stream.send_data(data, false).expect("a stream");
            }
        }
        let told = [all[all.len() - 2] ^ all[all.len() - 6], all[all.len() - 1] ^ all[all.len() - 5]];
        if all[all.len() - 8..all.len() - 6] == [0x88, 0x82] && call.body.is_end_stream() {
            call.shared.sent.store(u16::from_be_bytes(told).into(), Ordering::Release);
        }
        stream.send_data(Bytes::new(), true).expect("a stream");
    })
}

#[test]
fn a_tunnel_that_the_gateway_ends_says_so_to_both_sides() {
    for is_http2 in [false, true] {
        let service = goodbyes();
        let gateway = service.gateway("timeouts: { idle: 300ms, answer: 300ms }", "timeouts: { tunnel_idle: 600ms }");
        let begun = Instant::now();
        if is_http2 {
            let mut client = open2(&gateway, "/");
            assert_eq!(client.read_data(1, 4), GOING_AWAY);
        } else {
            assert_eq!(open(&gateway, "/").read_to_end(), (GOING_AWAY.to_vec(), End::Closed));
        }
        assert!(begun.elapsed() >= Duration::from_millis(600), "{:?}", begun.elapsed());
        settles_at(1001, || service.shared.sent.load(Ordering::Acquire));
        settles_at(0.0, || gateway.metric("gateway_active_tunnels"));

        let service = goodbyes();
        let more =
            Setup { service: "protocol: http2", sections: "drain: { notice: 0s, timeout: 1s }\n", ..Setup::default() };
        let mut gateway = more.start(&service.endpoint);
        if is_http2 {
            let mut client = open2(&gateway, "/");
            gateway.terminate();
            eventually(PATIENCE, || gateway.admin("/ready").1.contains("draining"));
            client.frame(DATA, 0, 1, &HI);
            assert_eq!(client.read_data(1, 8), HI);
            assert_eq!(client.read_data(1, 4), GOING_AWAY);
        } else {
            let mut client = open(&gateway, "/");
            gateway.terminate();
            eventually(PATIENCE, || gateway.admin("/ready").1.contains("draining"));
            assert_eq!(client.send(HI).read_exact(8), HI);
            assert_eq!(client.read_to_end(), (GOING_AWAY.to_vec(), End::Closed));
        }
        settles_at(1001, || service.shared.sent.load(Ordering::Acquire));
        assert!(gateway.wait_exit(PATIENCE).success(), "{}", gateway.stderr());
    }
}

#[test]
fn an_idle_tunnel_holds_little() {
    let service = Service::start(|call| async move { call.echo().await });
    let each = idle_tunnel_bytes(&service.gateway("", ""));
    assert!(each < 12 * 1024, "{each} bytes for each idle tunnel");
}

/// What a gateway may hold for one slow reader.
const SLOW_BYTES_MAX: u64 = 1 << 20;

#[test]
fn a_client_that_does_not_read_slows_the_service_down_and_nobody_else() {
    let service = Service::start(|mut call| async move {
        if call.path() != "/flood" {
            return call.echo().await;
        }
        let mut stream = call.begin(Response::builder());
        let shared = Arc::clone(&call.shared);
        for _ in 0..1024 {
            if send_all(&mut stream, Bytes::from_static(&[7; 64 << 10]), &shared.sent).await.is_err() {
                return;
            }
        }
    });
    let gateway = service.gateway("http2: { connections: 1 }", "");
    let mut other = open(&gateway, "/");
    assert_eq!(other.send(HI).read_exact(8), HI);
    let before = gateway.rss_bytes();
    let mut first = Client::connect_narrow(gateway.address());
    first.send(handshake("/flood", ""));
    assert_eq!(first.read_head().status(), 101);
    // Of HTTP/2, with the windows that there are at first.
    let second = open2(&gateway, "/flood");
    let mut last = usize::MAX;
    eventually(PATIENCE, || {
        std::thread::sleep(Duration::from_millis(200));
        std::mem::replace(&mut last, service.shared.sent.load(Ordering::Acquire)) == last
    });
    assert!(last < 16 << 20, "{last} bytes were taken from the service for clients that do not read");
    let grown = gateway.rss_bytes().saturating_sub(before);
    println!("{last} bytes taken, {grown} bytes more resident");
    assert!(grown < 2 * SLOW_BYTES_MAX, "{grown} bytes for two slow readers");
    assert_eq!(other.send(HI).read_exact(8), HI, "its neighbour on the same connection goes on");
    assert!(first.read_exact(32 << 20).iter().all(|byte| *byte == 7));
    drop((first, second, other));
    gateway.expect_idle();
}

#[test]
fn a_service_that_does_not_read_slows_the_client_down() {
    let service = Service::start(|mut call| async move {
        if call.path() != "/stuck" {
            return call.echo().await;
        }
        let mut stream = call.begin(Response::builder());
        let reset = poll_fn(|cx| stream.poll_reset(cx)).await;
        call.note_reset(reset);
    });
    let gateway = service.gateway("http2: { connections: 1 }", "");
    let mut other = open(&gateway, "/");
    assert_eq!(other.send(HI).read_exact(8), HI);
    let before = gateway.rss_bytes();
    let mut client = open(&gateway, "/stuck");
    let taken = client.try_send_now(vec![7; 64 << 20]);
    assert!(taken < 16 << 20, "{taken}");
    let grown = gateway.rss_bytes().saturating_sub(before);
    println!("{taken} bytes taken, {grown} bytes more resident");
    assert!(grown < SLOW_BYTES_MAX, "{grown} bytes for one slow reader");
    assert_eq!(other.send(HI).read_exact(8), HI, "its neighbour on the same connection goes on");
    client.reset();
    settles_at(vec![Reason::CANCEL], || service.resets());
}

/// Has a client send until nothing more is taken, and go away with a reset.
fn flood_and_go(gateway: &Gateway) {
    let mut client = open(gateway, "/stuck");
    assert!(client.try_send_now(vec![7; 64 << 20]) < 32 << 20);
    settles_at(1.0, || gateway.metric("gateway_active_tunnels"));
    client.reset();
    settles_at(0.0, || gateway.metric("gateway_active_tunnels"));
}

#[test]
fn who_goes_while_the_other_does_not_read_is_missed_all_the_same() {
    let service = Service::start(|mut call| async move {
        let mut stream = call.begin(Response::builder());
        if call.path() == "/flood" {
            let shared = Arc::clone(&call.shared);
            for _ in 0..64 {
                let room = send_all(&mut stream, Bytes::from_static(&[7; 16 << 10]), &shared.sent);
                if tokio::time::timeout(Duration::from_millis(300), room).await.is_err() {
                    return call.respond.send_reset(Reason::CANCEL);
                }
            }
            return;
        }
        let reset = poll_fn(|cx| stream.poll_reset(cx)).await;
        call.note_reset(reset);
    });
    let gateway = service.gateway("", "");
    flood_and_go(&gateway);
    settles_at(vec![Reason::CANCEL], || service.resets());
    let mut client = open2(&gateway, "/stuck");
    // As much as the service's window lets through, and some more.
    for part in [16_384, 16_384, 16_384, 16_383] {
        client.frame(DATA, 0, 1, &vec![7; part]);
    }
    client.next_of(WINDOW_UPDATE, 1);
    client.frame(DATA, 0, 1, &[7; 16_384]);
    settles_at(1.0, || gateway.metric("gateway_buffers_in_use{worker=\"0\"}"));
    client.frame(RST_STREAM, 0, 1, &CANCEL.to_be_bytes());
    settles_at(vec![Reason::CANCEL; 2], || service.resets());
    let mut client = Client::connect_narrow(gateway.address());
    client.send(handshake("/flood", ""));
    assert_eq!(client.read_head().status(), 101);
    settles_at(0.0, || gateway.metric("gateway_active_tunnels"));
    drop(client);

    let backend = Backend::start(|conn| {
        let head = conn.next_request_head().expect("a request");
        let accept = derive_accept_key(head.get("sec-websocket-key").expect("a key").as_bytes());
        conn.send(format!(
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Accept: {accept}\r\n\r\n"
        ));
        if head.target() == "/flood" {
            conn.try_send_now(vec![7; 64 << 20]);
            return conn.reset();
        }
        eventually(PATIENCE, || conn.is_over());
    });
    let gateway = Gateway::to(backend.endpoint());
    flood_and_go(&gateway);
    backend.expect_all_closed();
    let mut client = Client::connect_narrow(gateway.address());
    client.send(handshake("/flood", ""));
    assert_eq!(client.read_head().status(), 101);
    settles_at(0.0, || gateway.metric("gateway_active_tunnels"));
}

#[test]
fn who_has_no_token_has_no_tunnel() {
    const SECRET: &str = "a secret of at least thirty-two bytes";
    let sections = format!(
        "authenticators: [{{ name: main, jwt: {{ issuer: \"https://id.example\", audience: api, algorithms: HS256, \
         keys: {{ secret: \"{SECRET}\" }} }} }}]\n"
    );
    let token = {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_secs();
        let claims = serde_json::json!({"iss": "https://id.example", "aud": "api", "sub": "ann", "exp": now + 600});
        jsonwebtoken::encode(&Header::default(), &claims, &EncodingKey::from_secret(SECRET.as_bytes()))
            .expect("a token")
    };
    let asks = |gateway: &Gateway| {
        assert_eq!(both(gateway, "/", None), [401, 401]);
        assert_eq!(both(gateway, "/", Some("no.to.ken")), [401, 401]);
        assert_eq!(both(gateway, "/", Some(&token)), [101, 200]);
        gateway.expect_idle();
        settles_at(0.0, || gateway.metric("gateway_active_tunnels"));
        // Lines are written once a tick.
        settles_at(4, || gateway.log_lines().iter().filter(|line| line["statusCode"] == 401).count());
    };
    let service = Service::library(None);
    let setup =
        Setup { service: "protocol: http2", route: "authenticate: main", sections: &sections, ..Setup::default() };
    asks(&setup.start(&service.endpoint));
    assert_eq!(service.requests(), 2, "it hears of those alone that may");
    let backend = library();
    asks(&Setup { service: "", ..setup }.start(backend.endpoint()));
    assert_eq!(backend.connections(), 2);
}
