//! The error table: each row's status, shape, headers, counter and log line.

use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ringway_tests::{Backend, Gateway, Message, Nobody, PATIENCE, Setup, eventually};
use serde_json::json;
use socket2::{Domain, Socket, Type};

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";

/// An error in the gateway's own shape.
#[track_caller]
fn assert_error(answer: &Message, status: u16, message: &str) {
    assert_eq!(answer.status(), status, "{}", answer.text());
    let id = answer.get("x-request-id").expect("X-Request-ID");
    assert_eq!(answer.json(), json!({ "error": message, "requestId": id }));
    assert_eq!(answer.get("content-type"), Some("application/json"));
    assert!(answer.has("date"));
    assert_eq!(answer.has("retry-after"), status == 503, "{answer:?}");
    assert!(!answer.has("proxy-status"), "only where it is asked for");
}

/// What the log and the metrics say of the only request so far.
#[track_caller]
fn assert_traces(gateway: &Gateway, answer: &Message, route: &str, kind: Option<&str>) {
    let status = answer.status();
    let line = gateway.log_line(1);
    assert_eq!(line["statusCode"], status, "{line}");
    assert_eq!(line["requestId"].as_str(), answer.get("x-request-id"), "{line}");
    let sample = format!("gateway_requests_total{{route=\"{route}\",status=\"{status}\"}}");
    assert_eq!(gateway.metric(&sample), 1.0, "{sample}");
    let kinds = ["connect", "connect_timeout", "reset", "answer_timeout", "bad_answer", "body", "no_endpoint"];
    for each in kinds {
        let expected = if kind == Some(each) { 1.0 } else { 0.0 };
        assert_eq!(gateway.backend_errors(each), expected, "{each}");
    }
}

/// One request whose head the gateway refuses: the error, then the end of the connection; no byte for the service.
#[track_caller]
fn assert_refused(setup: Setup<'_>, request: impl AsRef<[u8]>, status: u16, message: &str) {
    let backend = Backend::ok();
    let gateway = setup.start(backend.endpoint());
    let mut client = gateway.connect();
    let answer = client.ask(request);
    assert_error(&answer, status, message);
    assert_eq!(answer.get("connection"), Some("close"));
    client.expect_closed();
    assert_traces(&gateway, &answer, "unmatched", None);
    assert_eq!(backend.connections(), 0);
}

/// One request that a service fails; the client's connection lives.
#[track_caller]
fn assert_failed(setup: Setup<'_>, endpoint: &str, status: u16, message: &str, kind: &str) {
    let gateway = setup.start(endpoint);
    let mut client = gateway.connect();
    let answer = client.get("/a");
    assert_error(&answer, status, message);
    assert_traces(&gateway, &answer, "all", Some(kind));
    assert_eq!(gateway.log_line(1)["backendService"], "app");
    assert!(!answer.has("connection"));
    assert_eq!(client.get("/b").status(), status, "the connection lives");
    expect_idle_endpoints(&gateway);
}

/// No request is in flight at any endpoint.
#[track_caller]
fn expect_idle_endpoints(gateway: &Gateway) {
    eventually(PATIENCE, || {
        let page = gateway.admin("/metrics").1;
        let mut samples = page.lines().filter(|line| line.starts_with("gateway_endpoint_in_flight{"));
        samples.all(|line| line.ends_with(" 0"))
    });
}

#[test]
fn no_route_is_404() {
    let gateway = Gateway::start("routes: [{ name: one, match: { path: /one }, respond: { text: one } }]\n");
    let mut client = gateway.connect();
    let answer = client.get("/two?secret=1");
    assert_error(&answer, 404, "Not found");
    let line = gateway.log_line(1);
    assert_eq!((&line["path"], &line["statusCode"]), (&json!("/two"), &json!(404)));
    assert_eq!(line["backendService"], json!(null));
    assert_eq!(gateway.metric("gateway_requests_total{route=\"unmatched\",status=\"404\"}"), 1.0);
    assert_eq!(client.get("/one").text(), "one", "the connection lives");
}

#[test]
fn a_wrong_method_is_405_with_allow() {
    let gateway = Gateway::start(
        "routes: [{ match: { path: /a, methods: [GET, PUT] }, respond: { text: a } }, \
         { match: { path: /a, methods: DELETE }, respond: { text: d } }]\n",
    );
    let answer = gateway.connect().ask("POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n");
    assert_error(&answer, 405, "Method not allowed");
    let mut allowed: Vec<&str> = answer.get("allow").expect("Allow").split(", ").collect();
    allowed.sort_unstable();
    assert_eq!(allowed, ["DELETE", "GET", "HEAD", "PUT"]);
    assert_traces(&gateway, &answer, "unmatched", None);
}

#[test]
fn a_malformed_request_is_400() {
    let setup = Setup::default();
    assert_refused(setup, "GET / HTTP/1.1\r\nA : b\r\nHost: a\r\n\r\n", 400, "Malformed header field");
    assert_refused(setup, "GET / HTTP/1.1\r\n\r\n", 400, "Missing Host header");
    assert_refused(setup, "GET  / HTTP/1.1\r\nHost: a\r\n\r\n", 400, "Malformed request line");
    assert_refused(setup, "GET a HTTP/1.1\r\nHost: a\r\n\r\n", 400, "Malformed request target");
    assert_refused(setup, "\x16\x03\x01\x02\x00\x01\x00", 400, "This is not HTTP");
}

#[test]
fn a_bad_path_is_400_and_the_connection_lives() {
    let backend = Backend::ok();
    let gateway = Gateway::to(backend.endpoint());
    let mut client = gateway.connect();
    for (path, message) in [
        ("/a/../../b", "The path leads above the root"),
        ("/a%2fb", "The path has an encoded slash"),
        ("/a%0ab", "The path has an encoded control character"),
        ("/a%zz", "The path has an invalid percent-encoding"),
    ] {
        assert_error(&client.get(path), 400, message);
    }
    assert_eq!(backend.connections(), 0);
    assert_eq!(client.get("/").status(), 200);
}

#[test]
fn a_slow_head_is_408() {
    let setup = Setup { listener: "timeouts: { head: 300ms }", ..Setup::default() };
    assert_refused(setup, "GET / HTTP/1.1\r\nHo", 408, "Request timeout");
}

#[test]
fn a_slow_body_is_408() {
    let backend = Backend::start(|conn| {
        conn.next_request_head();
        conn.stall();
    });
    let setup = Setup { listener: "timeouts: { body: 300ms }", ..Setup::default() };
    let gateway = setup.start(backend.endpoint());
    let mut client = gateway.connect();
    let answer = client.ask("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n12345");
    assert_error(&answer, 408, "Request timeout");
    client.expect_closed();
    assert_traces(&gateway, &answer, "all", None);
    backend.expect_all_closed();
}

#[test]
fn a_body_that_is_announced_too_large_is_413_at_once() {
    let backend = Backend::ok();
    let setup = Setup { route: "limits: { body: 1KiB }", ..Setup::default() };
    let gateway = setup.start(backend.endpoint());
    for expect in ["", "Expect: 100-continue\r\n"] {
        let mut client = gateway.connect();
        let answer = client.ask(format!("POST / HTTP/1.1\r\nHost: a\r\n{expect}Content-Length: 1025\r\n\r\n"));
        assert_error(&answer, 413, "Request body too large");
        client.expect_closed();
    }
    assert_eq!(backend.connections(), 0);
    let within = format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1024\r\n\r\n{}", "x".repeat(1024));
    assert_eq!(gateway.connect().ask(within).status(), 200);
}

#[test]
fn a_chunked_body_that_becomes_too_large_is_413() {
    let backend = Backend::start(|conn| {
        conn.next_request_head();
        let (body, _) = conn.read_to_end();
        assert!(!body.ends_with(b"0\r\n\r\n"), "the service must not take it for whole");
    });
    let setup = Setup { route: "limits: { body: 1KiB }", ..Setup::default() };
    let gateway = setup.start(backend.endpoint());
    let head = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
    let chunk = format!("200\r\n{}\r\n", "x".repeat(512));

    // All at once: nothing of it is forwarded.
    let answer = gateway.connect().ask(format!("{head}{chunk}{chunk}{chunk}0\r\n\r\n"));
    assert_error(&answer, 413, "Request body too large");
    assert_traces(&gateway, &answer, "all", None);
    assert_eq!(backend.connections(), 0);

    // As it comes.
    let mut client = gateway.connect();
    client.send(format!("{head}{chunk}{chunk}"));
    eventually(PATIENCE, || backend.requests().len() == 1);
    let answer = client.ask("1\r\nx\r\n");
    assert_error(&answer, 413, "Request body too large");
    client.expect_closed();
    backend.expect_all_closed();
}

#[test]
fn a_long_target_is_414() {
    let setup = Setup { listener: "limits: { head: 1KiB }", ..Setup::default() };
    let request = format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "a".repeat(1024));
    assert_refused(setup, request, 414, "Request target too long");
}

#[test]
fn a_large_head_is_431() {
    let setup = Setup { listener: "limits: { head: 1KiB }", ..Setup::default() };
    let request = format!("GET / HTTP/1.1\r\nHost: a\r\nA: {}\r\n\r\n", "a".repeat(1024));
    assert_refused(setup, request, 431, "Request header fields too large");
    // Also one that never ends.
    let request = format!("GET / HTTP/1.1\r\nHost: a\r\nA: {}", "a".repeat(1024));
    assert_refused(setup, request, 431, "Request header fields too large");
}

#[test]
fn too_many_header_fields_are_431() {
    let setup = Setup { listener: "limits: { headers: 10 }", ..Setup::default() };
    let request = format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "A: b\r\n".repeat(10));
    assert_refused(setup, request, 431, "Request header fields too large");
    let backend = Backend::ok();
    let gateway = setup.start(backend.endpoint());
    let request = format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "A: b\r\n".repeat(9));
    assert_eq!(gateway.connect().ask(request).status(), 200);
}

#[test]
fn an_unknown_expectation_is_417() {
    let request = "POST / HTTP/1.1\r\nHost: a\r\nExpect: tea\r\nContent-Length: 3\r\n\r\nabc";
    assert_refused(Setup::default(), request, 417, "Expectation failed");
}

#[test]
fn what_is_not_implemented_is_501() {
    let gzip = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n";
    assert_refused(Setup::default(), gzip, 501, "Transfer coding not supported");
    let connect = "CONNECT example.com:443 HTTP/1.1\r\nHost: example.com:443\r\n\r\n";
    assert_refused(Setup::default(), connect, 501, "Method not supported");
}

#[test]
fn another_http_version_is_505() {
    for request in ["GET / HTTP/2.0\r\nHost: a\r\n\r\n", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"] {
        let listener = "http2: { enabled: false }";
        assert_refused(Setup { listener, ..Setup::default() }, request, 505, "HTTP version not supported");
    }
}

#[test]
fn a_refused_connection_is_502() {
    let nobody = Nobody::new();
    assert_failed(Setup::default(), nobody.endpoint(), 502, "Bad gateway", "connect");
    assert_failed(Setup::default(), "unix:/nowhere/app.sock", 502, "Bad gateway", "connect");
}

#[test]
fn a_connection_that_breaks_before_the_answer_is_502() {
    let closing = Backend::start(|conn| drop(conn.next_request()));
    assert_failed(Setup::default(), closing.endpoint(), 502, "Bad gateway", "reset");
    let resetting = Backend::start(|conn| {
        conn.next_request();
        conn.send("HTTP/1.1 200 OK\r\nContent-Le");
        conn.reset();
    });
    assert_failed(Setup::default(), resetting.endpoint(), 502, "Bad gateway", "reset");
}

#[test]
fn an_answer_that_is_not_http_is_502() {
    for garbage in [
        "SSH-2.0-OpenSSH_9.9\r\n\r\n",
        "HTTP/1.1 OK\r\n\r\n",
        "HTTP/2 200 OK\r\n\r\n",
        "HTTP/1.1 200 OK\nContent-Length: 0\n\n",
        "HTTP/1.1 200 OK\r\nContent-Length : 0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nA: b\r\n c\r\n\r\n",
        "\x15\x03\x03\x00\x02\x02\x16",
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
    ] {
        let backend = Backend::fixed(garbage);
        assert_failed(Setup::default(), backend.endpoint(), 502, "Bad gateway", "bad_answer");
    }
}

#[test]
fn an_answer_that_is_framed_wrongly_is_502() {
    for fields in [
        "Content-Length: 5\r\nTransfer-Encoding: chunked",
        "Content-Length: 5\r\nContent-Length: 6",
        "Content-Length: -5",
        "Content-Length: 5, 5",
        "Transfer-Encoding: gzip",
        "Transfer-Encoding: chunked, chunked",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
    ] {
        let backend = Backend::fixed(format!("HTTP/1.1 200 OK\r\n{fields}\r\n\r\nhello"));
        assert_failed(Setup::default(), backend.endpoint(), 502, "Bad gateway", "bad_answer");
    }
}

#[test]
fn an_answer_head_over_its_limit_is_502() {
    let setup = Setup { service: "head: 1KiB", ..Setup::default() };
    let long = format!("HTTP/1.1 200 OK\r\nA: {}\r\nContent-Length: 0\r\n\r\n", "a".repeat(1024));
    let backend = Backend::fixed(long);
    assert_failed(setup, backend.endpoint(), 502, "Bad gateway", "bad_answer");
}

#[test]
fn the_cap_on_connections_is_503() {
    let go = Arc::new(AtomicBool::new(false));
    let may_go = Arc::clone(&go);
    let backend = Backend::start(move |conn| {
        while conn.next_request().is_some() {
            eventually(PATIENCE, || may_go.load(Ordering::Acquire));
            conn.send(OK);
        }
    });
    let setup = Setup { service: "pool: { connections: 1 }", ..Setup::default() };
    let gateway = setup.start(backend.endpoint());
    let mut first = gateway.connect();
    first.send("GET /first HTTP/1.1\r\nHost: a\r\n\r\n");
    eventually(PATIENCE, || backend.requests().len() == 1);

    let mut second = gateway.connect();
    let answer = second.get("/second");
    assert_error(&answer, 503, "Service temporarily unavailable");
    assert_eq!(answer.get("retry-after"), Some("1"));
    assert_traces(&gateway, &answer, "all", Some("no_endpoint"));
    go.store(true, Ordering::Release);
    assert_eq!(first.read_response().status(), 200);
    assert_eq!(second.get("/third").status(), 200);
    assert_eq!(backend.connections(), 1);
}

/// A listener whose queue is full, so that the kernel drops what would connect.
fn deaf_listener() -> (Socket, Vec<TcpStream>) {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).expect("a port");
    socket.listen(0).expect("a listener");
    let address = socket.local_addr().ok().and_then(|address| address.as_socket()).expect("an address");
    let mut waiting = Vec::new();
    while let Ok(stream) = TcpStream::connect_timeout(&address, Duration::from_millis(200)) {
        waiting.push(stream);
        assert!(waiting.len() < 100, "the queue has no end");
    }
    (socket, waiting)
}

#[test]
fn a_connection_that_is_not_made_in_time_is_504() {
    let (socket, _waiting) = deaf_listener();
    let address = socket.local_addr().ok().and_then(|address| address.as_socket()).expect("an address");
    let setup = Setup { service: "timeouts: { connect: 200ms }", ..Setup::default() };
    assert_failed(setup, &address.to_string(), 504, "Gateway timeout", "connect_timeout");
}

#[test]
fn an_answer_that_is_not_in_time_is_504() {
    let backend = Backend::start(|conn| {
        conn.next_request();
        conn.stall();
    });
    for setup in [
        Setup { service: "timeouts: { answer: 200ms }", ..Setup::default() },
        Setup { route: "timeouts: { request: 200ms }", ..Setup::default() },
        Setup { route: "timeouts: { per_try: 200ms }", ..Setup::default() },
    ] {
        assert_failed(setup, backend.endpoint(), 504, "Gateway timeout", "answer_timeout");
    }
    backend.expect_all_closed();
}

#[test]
fn half_an_answer_head_that_is_not_in_time_is_504() {
    let backend = Backend::start(|conn| {
        conn.next_request();
        conn.send("HTTP/1.1 200 OK\r\nConte");
        conn.stall();
    });
    let setup = Setup { service: "timeouts: { answer: 200ms }", ..Setup::default() };
    assert_failed(setup, backend.endpoint(), 504, "Gateway timeout", "answer_timeout");
}

#[test]
fn problem_json_where_it_is_accepted() {
    let nobody = Nobody::new();
    let gateway = Gateway::to(nobody.endpoint());
    let answer = gateway.connect().ask("GET / HTTP/1.1\r\nHost: a\r\nAccept: application/problem+json\r\n\r\n");
    assert_eq!(answer.get("content-type"), Some("application/problem+json"));
    let id = answer.get("x-request-id").expect("X-Request-ID");
    let expected = json!({
        "type": "about:blank", "title": "Bad Gateway", "status": 502, "detail": "Bad gateway", "requestId": id
    });
    assert_eq!(answer.json(), expected);
    let answer = gateway.connect().ask("GET / HTTP/1.1\r\nHost: a\r\nAccept: application/json, */*\r\n\r\n");
    assert_error(&answer, 502, "Bad gateway");
}

#[test]
fn an_error_to_head_has_no_body() {
    let nobody = Nobody::new();
    let gateway = Gateway::to(nobody.endpoint());
    let mut client = gateway.connect();
    client.send("HEAD / HTTP/1.1\r\nHost: a\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n");
    let answer = client.read_response_to_head();
    assert_eq!(answer.status(), 502);
    assert!(answer.has("content-length") && answer.has("x-request-id"));
    assert_error(&client.read_response(), 502, "Bad gateway");
}

#[test]
fn proxy_status_where_it_is_asked_for() {
    let setup = Setup { listener: "proxy_status: true, via: edge", ..Setup::default() };
    let nobody = Nobody::new();
    let answer = setup.start(nobody.endpoint()).get("/");
    assert_eq!(answer.get("proxy-status"), Some("edge; error=connection_refused"));
    let garbage = Backend::fixed("garbage\r\n\r\n");
    let gateway = setup.start(garbage.endpoint());
    assert_eq!(gateway.get("/").get("proxy-status"), Some("edge; error=http_protocol_error"));
    assert_eq!(gateway.get("/..").get("proxy-status"), Some("edge; error=http_request_error"));
    let backend = Backend::ok();
    assert_eq!(setup.start(backend.endpoint()).get("/").get("proxy-status"), None);
}

#[test]
fn a_trusted_request_id_stands_in_the_error() {
    let setup = Setup { listener: "trusted_proxies: [127.0.0.1]", ..Setup::default() };
    let nobody = Nobody::new();
    let gateway = setup.start(nobody.endpoint());
    let answer = gateway.connect().ask("GET / HTTP/1.1\r\nHost: a\r\nX-Request-ID: abc-1\r\n\r\n");
    assert_eq!(answer.get("x-request-id"), Some("abc-1"));
    assert_error(&answer, 502, "Bad gateway");
}
