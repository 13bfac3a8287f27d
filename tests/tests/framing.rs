//! Where messages begin and end, on both sides of the gateway.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use ringway_tests::{Backend, Client, Gateway, Message, PATIENCE, Setup, Wire, eventually, settles_at};

/// A backend that answers with the request's target, and a gateway before it.
fn echo_of_targets() -> (Backend, Gateway) {
    let backend = Backend::start(|conn| {
        while let Some(request) = conn.next_request() {
            let target = request.target();
            conn.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{target}", target.len()));
        }
    });
    let gateway = Gateway::to(backend.endpoint());
    (backend, gateway)
}

/// The answer of a backend that says just this, to one GET.
#[track_caller]
fn answer_of(answer: &str) -> (Message, Client, Backend, Gateway) {
    let backend = Backend::fixed(answer);
    let gateway = Gateway::to(backend.endpoint());
    let mut client = gateway.connect();
    let answer = client.get("/");
    (answer, client, backend, gateway)
}

#[test]
fn connections_live_on_both_sides() {
    let (backend, gateway) = echo_of_targets();
    let mut client = gateway.connect();
    for target in ["/a", "/b?x", "/c"] {
        let answer = client.get(target);
        assert_eq!((answer.text().as_str(), answer.get("connection")), (target, None));
    }
    assert_eq!(backend.connections(), 1);
    let endpoint = format!("{{service=\"app\",endpoint=\"{}\"}}", backend.endpoint());
    assert_eq!(gateway.metric(&format!("gateway_endpoint_connects_total{endpoint}")), 1.0);
    assert_eq!(gateway.metric(&format!("gateway_endpoint_reuses_total{endpoint}")), 2.0);
    settles_at(1.0, || gateway.metric(&format!("gateway_endpoint_idle_connections{endpoint}")));
    let answer = client.ask("GET /d HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
    assert_eq!((answer.text().as_str(), answer.get("connection")), ("/d", Some("close")));
    client.expect_closed();
    assert_eq!(backend.connections(), 1, "the client's close is not the service's");
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let (_backend, gateway) = echo_of_targets();
    let mut client = gateway.connect();
    let all: String = (0..100).map(|i| format!("GET /{i} HTTP/1.1\r\nHost: a\r\n\r\n")).collect();
    client.send(all);
    for i in 0..100 {
        assert_eq!(client.read_response().text(), format!("/{i}"));
    }
    // With bodies, and with an error in between.
    let post = "POST /post HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc";
    let chunked = "POST /chunked HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n";
    let bad = "GET /%00 HTTP/1.1\r\nHost: a\r\n\r\n";
    client.send([post, chunked, bad, post, chunked].concat());
    for expected in ["/post", "/chunked", "", "/post", "/chunked"] {
        let answer = client.read_response();
        match expected {
            "" => assert_eq!(answer.status(), 400),
            target => assert_eq!(answer.text(), target),
        }
    }
}

#[test]
fn pipelined_requests_behind_a_streamed_body_are_answered() {
    let (_backend, gateway) = echo_of_targets();
    let mut client = gateway.connect();
    client.send("POST /post HTTP/1.1\r\nHost: a\r\nContent-Length: 6\r\n\r\nabc");
    client.send("defGET /next HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(client.read_response().text(), "/post");
    assert_eq!(client.read_response().text(), "/next");
}

#[test]
fn a_request_that_fails_after_its_body_does_not_eat_the_next_one() {
    let backend = Backend::start(|conn| {
        let request = conn.request();
        if request.target() == "/next" {
            conn.send("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n/next");
            conn.stall();
        }
    });
    let gateway = Gateway::to(backend.endpoint());
    let mut client = gateway.connect();
    client.send("POST /post HTTP/1.1\r\nHost: a\r\nContent-Length: 6\r\n\r\nabc");
    eventually(PATIENCE, || backend.connections() == 1);
    // The rest of the body and half of the next request in one piece.
    client.send("defGET /next HTTP/1.1\r\nHo");
    let answer = client.read_response();
    assert_eq!(answer.status(), 502);
    match answer.get("connection") {
        Some("close") => client.expect_closed(),
        _ => assert_eq!(client.ask("st: a\r\n\r\n").text(), "/next"),
    }
}

#[test]
fn empty_lines_before_a_request_are_skipped() {
    let (_backend, gateway) = echo_of_targets();
    let mut client = gateway.connect();
    assert_eq!(client.ask("\r\n\r\nGET /a HTTP/1.1\r\nHost: a\r\n\r\n").text(), "/a");
    client.send("\r");
    assert_eq!(client.ask("\nGET /b HTTP/1.1\r\nHost: a\r\n\r\n").text(), "/b");
}

#[test]
fn a_trailer_cannot_be_what_the_route_removes_or_sets() {
    let backend = Backend::start(|conn| {
        while let Some(request) = conn.next_request() {
            let names: Vec<_> = request.trailers.iter().map(|(name, _)| name.as_str()).collect();
            let body = format!("{} {}", request.get("x-user").unwrap_or_default(), names.join(","));
            conn.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len()));
        }
    });
    let setup = Setup { route: "request_headers: { set: { x-user: nobody }, remove: [x-role] }", ..Setup::default() };
    let gateway = setup.start(backend.endpoint());
    let body = "3\r\nabc\r\n0\r\nX-User: admin\r\nX-Role: root\r\nX-Sum: 1\r\n\r\n";
    let head = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
    assert_eq!(gateway.connect().ask(format!("{head}{body}")).text(), "nobody X-Sum");
}

#[test]
fn chunked_bodies_keep_their_trailers_both_ways() {
    let backend = Backend::start(|conn| {
        while let Some(request) = conn.next_request() {
            assert_eq!(request.get("transfer-encoding"), Some("chunked"));
            assert!(!request.has("content-length"));
            let sum = request.trailers.iter().find(|(name, _)| name == "X-Sum").expect("X-Sum").1.clone();
            assert_eq!(request.trailers.len(), 1, "{:?}", request.trailers);
            conn.send("HTTP/1.1 200 OK\r\nTrailer: X-Sum\r\nTransfer-Encoding: chunked\r\n\r\n");
            conn.send(format!("{:x};note=\"x\"\r\n{}\r\n", request.body.len(), request.text()));
            conn.send(format!("0\r\nX-Sum: {sum}\r\nContent-Length: 5\r\nTransfer-Encoding: x\r\n\r\n"));
        }
    });
    let gateway = Gateway::to(backend.endpoint());
    let mut client = gateway.connect();
    let request = "POST / HTTP/1.1\r\nHost: a\r\nTrailer: X-Sum\r\nTransfer-Encoding: Chunked\r\n\r\n\
                   5\r\nhello\r\n6;x=y\r\n world\r\n0\r\nX-Sum: 42\r\nHost: evil\r\nContent-Length: 1\r\n\r\n";
    for pieces in [1, 7, request.len()] {
        for piece in request.as_bytes().chunks(pieces) {
            client.send(piece);
        }
        let answer = client.read_response();
        assert_eq!(answer.text(), "hello world");
        assert_eq!(answer.trailers, [("X-Sum".to_owned(), "42".to_owned())]);
        assert_eq!(answer.get("trailer"), Some("X-Sum"));
    }
    assert_eq!(backend.connections(), 1);
}

#[test]
fn answers_may_come_in_one_byte_pieces() {
    let answers = [
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n6\r\n world\r\n0\r\nX: y\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 11\r\n\r\nhello world",
    ];
    let backend = Backend::start(move |conn| {
        for answer in answers {
            conn.request();
            for byte in answer.bytes() {
                conn.send([byte]);
            }
        }
        conn.stall();
    });
    let gateway = Gateway::to(backend.endpoint());
    let mut client = gateway.connect();
    for _ in answers {
        assert_eq!(client.get("/").text(), "hello world");
    }
    assert_eq!(backend.connections(), 1);
}

#[test]
fn continue_is_relayed() {
    let backend = Backend::start(|conn| {
        while let Some(head) = conn.next_request_head() {
            assert_eq!(head.get("expect"), Some("100-Continue"));
            conn.send("HTTP/1.1 100 Continue\r\n\r\n");
            let request = conn.body_of(head);
            conn.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{}", request.body.len(), request.text()));
        }
    });
    let gateway = Gateway::to(backend.endpoint());
    let mut client = gateway.connect();
    for framing in ["Content-Length: 5", "Transfer-Encoding: chunked"] {
        client.send(format!("PUT / HTTP/1.1\r\nHost: a\r\nExpect: 100-Continue\r\n{framing}\r\n\r\n"));
        assert_eq!(client.read_response().status(), 100);
        client.send(if framing.starts_with('C') { "hello" } else { "5\r\nhello\r\n0\r\n\r\n" });
        let answer = client.read_response();
        assert_eq!((answer.status(), answer.text().as_str()), (200, "hello"));
    }
    assert_eq!(backend.connections(), 1);
}

#[test]
fn a_final_answer_instead_of_continue_ends_the_connection() {
    let backend = Backend::start(|conn| {
        conn.next_request_head();
        conn.send("HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno");
        conn.stall();
    });
    let gateway = Gateway::to(backend.endpoint());
    let mut client = gateway.connect();
    let answer = client.ask("PUT / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n");
    assert_eq!((answer.status(), answer.text().as_str()), (403, "no"));
    assert_eq!(answer.get("connection"), Some("close"), "nobody knows whether the body comes");
    client.expect_closed();
    backend.expect_all_closed();
}

#[test]
fn an_expectation_of_http_10_is_ignored() {
    let backend = Backend::ok();
    let gateway = Gateway::to(backend.endpoint());
    let answer = gateway.connect().ask("PUT / HTTP/1.0\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\nx");
    assert_eq!(answer.status(), 200);
    assert!(!backend.request().has("expect"));
}

#[test]
fn an_answer_to_head_has_no_body() {
    for framing in ["Content-Length: 5", "Transfer-Encoding: chunked", "X: y"] {
        let backend = Backend::fixed(format!("HTTP/1.1 200 OK\r\n{framing}\r\n\r\n"));
        let gateway = Gateway::to(backend.endpoint());
        let mut client = gateway.connect();
        for _ in 0..2 {
            client.send("HEAD / HTTP/1.1\r\nHost: a\r\n\r\n");
            let answer = client.read_response_to_head();
            assert_eq!(answer.status(), 200);
            assert_eq!(answer.get("content-length"), framing.strip_prefix("Content-Length: "));
        }
        assert_eq!(backend.connections(), 1, "{framing}");
    }
}

#[test]
fn answers_without_a_body_end_with_their_head() {
    for (start, length) in [("204 No Content", None), ("304 Not Modified", Some("5"))] {
        let (answer, mut client, backend, _gateway) = answer_of(&format!(
            "HTTP/1.1 {start}\r\n{}ETag: \"x\"\r\n\r\n",
            length.map(|length| format!("Content-Length: {length}\r\n")).unwrap_or_default()
        ));
        assert_eq!(answer.start, format!("HTTP/1.1 {start}"));
        assert_eq!((answer.get("content-length"), answer.has("transfer-encoding")), (length, false));
        assert_eq!(client.get("/").get("etag"), Some("\"x\""));
        assert_eq!(backend.connections(), 1);
    }
}

#[test]
fn interim_answers_are_relayed_but_not_to_http_10() {
    let answer = "HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\n\
                  HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
    let backend = Backend::fixed(answer);
    let gateway = Gateway::to(backend.endpoint());
    let mut client = gateway.connect();
    for _ in 0..2 {
        assert_eq!(client.get("/").status(), 102);
        let hints = client.read_response();
        assert_eq!((hints.status(), hints.get("link")), (103, Some("</a.css>")));
        assert_eq!(client.read_response().text(), "ok");
    }
    let answer = gateway.connect().ask("GET / HTTP/1.0\r\n\r\n");
    assert_eq!((answer.status(), answer.text().as_str()), (200, "ok"));
    assert_eq!(gateway.log_line(3)["statusCode"], 200);
    assert_eq!(backend.connections(), 1);
}

#[test]
fn close_delimited_answers_become_chunked() {
    let backend = Backend::start(|conn| {
        conn.next_request();
        conn.send("HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nhello").send(" world");
    });
    let gateway = Gateway::to(backend.endpoint());
    let mut client = gateway.connect();
    for _ in 0..2 {
        let answer = client.get("/");
        assert_eq!((answer.get("transfer-encoding"), answer.get("connection")), (Some("chunked"), None));
        assert_eq!(answer.text(), "hello world");
    }
    assert_eq!(backend.connections(), 2);

    let mut old = gateway.connect();
    let answer = old.ask("GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n");
    assert_eq!((answer.get("transfer-encoding"), answer.get("connection")), (None, Some("close")));
    assert_eq!(answer.text(), "hello world");
}

#[test]
fn chunked_answers_lose_their_coding_for_http_10() {
    let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n1\r\n!\r\n0\r\nX: y\r\n\r\n";
    let backend = Backend::fixed(chunked);
    let gateway = Gateway::to(backend.endpoint());
    for connection in ["", "Connection: keep-alive\r\n"] {
        let answer = gateway.connect().ask(format!("GET / HTTP/1.0\r\n{connection}\r\n"));
        assert_eq!((answer.get("transfer-encoding"), answer.get("connection")), (None, Some("close")));
        assert_eq!(answer.text(), "hello!");
    }
    assert_eq!(backend.connections(), 1);
}

#[test]
fn http_10_connections_live_only_where_they_ask() {
    let (backend, gateway) = echo_of_targets();
    let mut client = gateway.connect();
    for target in ["/a", "/b"] {
        let answer = client.ask(format!("GET {target} HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n"));
        assert_eq!((answer.text().as_str(), answer.get("connection")), (target, Some("keep-alive")));
    }
    let answer = client.ask("GET /c HTTP/1.0\r\n\r\n");
    assert_eq!((answer.text().as_str(), answer.get("connection")), ("/c", Some("close")));
    client.expect_closed();
    let heads = backend.requests();
    assert!(heads.iter().all(|head| head.start.ends_with(" HTTP/1.1") && head.get("via") == Some("1.0 ringway")));
}

#[test]
fn an_absolute_target_wins_over_host() {
    let gateway = Gateway::start(
        "routes: [{ match: { host: a.test }, respond: { text: a } }, \
         { match: { host: b.test }, respond: { text: b } }]\n",
    );
    let mut client = gateway.connect();
    assert_eq!(client.ask("GET http://a.test/x HTTP/1.1\r\nHost: b.test\r\n\r\n").text(), "a");
    assert_eq!(client.ask("GET HTTP://B.test:80 HTTP/1.1\r\nHost: a.test\r\n\r\n").text(), "b");

    let (backend, gateway) = echo_of_targets();
    let answer = gateway.connect().ask("GET http://a.test:81?q HTTP/1.1\r\nHost: b.test\r\n\r\n");
    assert_eq!(answer.text(), "/?q");
    assert_eq!(backend.request().all("host").collect::<Vec<_>>(), ["a.test:81"]);
}

#[test]
fn options_of_the_server_and_max_forwards_stop_here() {
    let (backend, gateway) = echo_of_targets();
    let mut client = gateway.connect();
    for request in [
        "OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n",
        "OPTIONS http://a.test HTTP/1.1\r\nHost: a\r\n\r\n",
        "OPTIONS /x HTTP/1.1\r\nHost: a\r\nMax-Forwards: 0\r\n\r\n",
    ] {
        let answer = client.ask(request);
        assert_eq!((answer.status(), answer.get("content-length")), (200, Some("0")));
        assert!(answer.get("allow").is_some_and(|allow| allow.contains("GET")));
    }
    assert_eq!(backend.connections(), 0);
    client.ask("OPTIONS /x HTTP/1.1\r\nHost: a\r\nMax-Forwards: 3\r\n\r\n");
    assert_eq!(backend.request().get("max-forwards"), Some("2"));
    let answer = client.ask("TRACE /x HTTP/1.1\r\nHost: a\r\nMax-Forwards: 0\r\n\r\n");
    assert_eq!(answer.status(), 501);
    client.expect_closed();
}

#[test]
fn what_concerns_one_connection_is_not_passed_on() {
    let backend = Backend::fixed(
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: keep-alive, X-Hop\r\nKeep-Alive: timeout=5\r\n\
         Proxy-Authenticate: Basic\r\nUpgrade: h2c\r\nX-Hop: 1\r\nX-End: 2\r\n\r\nok",
    );
    let gateway = Gateway::to(backend.endpoint());
    let mut client = gateway.connect();
    let answer = client.ask(
        "GET / HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, x-hop, content-length, host\r\nX-Hop: 1\r\n\
         Keep-Alive: 5\r\nProxy-Connection: keep-alive\r\nProxy-Authorization: Basic eDp5\r\nTE: trailers, deflate\r\n\
         Upgrade: websocket\r\nHTTP2-Settings: AAAA\r\nX-End: 2\r\n\r\n",
    );
    for gone in ["x-hop", "keep-alive", "proxy-authenticate", "upgrade", "connection"] {
        assert!(!answer.has(gone), "{gone}: {answer:?}");
    }
    assert_eq!((answer.get("x-end"), answer.text().as_str()), (Some("2"), "ok"));
    let request = backend.request();
    for gone in ["x-hop", "keep-alive", "proxy-connection", "proxy-authorization", "upgrade"] {
        assert!(!request.has(gone), "{gone}: {request:?}");
    }
    assert_eq!((request.get("x-end"), request.get("host")), (Some("2"), Some("a")));
    assert_eq!((request.get("te"), request.get("connection")), (Some("trailers"), Some("TE")));
}

#[test]
fn a_connection_field_cannot_unframe_a_message() {
    let backend = Backend::echo();
    let gateway = Gateway::to(backend.endpoint());
    let mut client = gateway.connect();
    for framing in ["Content-Length: 3\r\n\r\nabc", "Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"] {
        let answer = client.ask(format!(
            "POST / HTTP/1.1\r\nHost: a\r\nConnection: content-length, transfer-encoding, host\r\n{framing}"
        ));
        assert_eq!(answer.text(), "abc");
    }
    let (answer, ..) = answer_of("HTTP/1.1 200 OK\r\nConnection: content-length\r\nContent-Length: 5\r\n\r\nhello");
    assert_eq!((answer.get("content-length"), answer.text().as_str()), (Some("5"), "hello"));
}

#[test]
fn a_service_that_says_too_much_is_not_asked_again_on_that_connection() {
    for answer in [
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\nextra",
        "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\nextra",
    ] {
        let (first, mut client, backend, _gateway) = answer_of(answer);
        let second = client.get("/");
        assert_eq!((first.text(), second.text()), (second.text(), first.text()));
        assert!(!first.text().contains("extra") && !first.text().contains("evil"));
        assert_eq!(backend.connections(), 2, "{answer:?}");
    }
}

#[test]
fn a_body_in_an_answer_that_has_none_is_not_passed_on() {
    for (request, start) in [("HEAD", "200 OK"), ("GET", "304 Not Modified"), ("GET", "204 No Content")] {
        let backend = Backend::fixed(format!("HTTP/1.1 {start}\r\nContent-Length: 5\r\n\r\nevil!"));
        let gateway = Gateway::to(backend.endpoint());
        let mut client = gateway.connect();
        for _ in 0..2 {
            client.send(format!("{request} / HTTP/1.1\r\nHost: a\r\n\r\n"));
            let answer = client.read_response_to_head();
            assert_eq!(answer.start, format!("HTTP/1.1 {start}"));
        }
        assert!(client.stays_silent(std::time::Duration::from_millis(50)));
        assert_eq!(backend.connections(), 2, "{request} {start}");
    }
}

#[test]
fn what_a_service_says_between_two_requests_is_no_answer() {
    let (pooled, said) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let (is_pooled, has_said) = (Arc::clone(&pooled), Arc::clone(&said));
    let backend = Backend::start(move |conn| {
        conn.request();
        conn.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
        if conn.index == 0 {
            eventually(PATIENCE, || is_pooled.load(Ordering::Acquire));
            conn.send("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil");
            has_said.store(true, Ordering::Release);
        }
        conn.stall();
    });
    let gateway = Gateway::to(backend.endpoint());
    let mut client = gateway.connect();
    assert_eq!(client.get("/").text(), "ok");
    pooled.store(true, Ordering::Release);
    eventually(PATIENCE, || said.load(Ordering::Acquire));
    assert_eq!(client.get("/").text(), "ok");
    assert_eq!(backend.connections(), 2);
}

#[test]
fn a_service_that_closes_is_asked_on_a_new_connection() {
    for connection in ["HTTP/1.1 200 OK\r\nConnection: close", "HTTP/1.0 200 OK"] {
        let (answer, mut client, backend, _gateway) =
            answer_of(&format!("{connection}\r\nContent-Length: 2\r\n\r\nok"));
        assert_eq!((answer.start.as_str(), answer.get("connection")), ("HTTP/1.1 200 OK", None));
        assert_eq!(client.get("/").text(), "ok");
        assert_eq!(backend.connections(), 2);
    }
}

#[test]
fn bodies_that_nobody_needs_are_read_and_dropped() {
    let gateway = Gateway::start("routes: [{ match: { path: /a }, respond: { text: a } }]\n");
    let mut client = gateway.connect();
    let body = "x".repeat(40_000);
    client.send(format!("POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n{body}", body.len()));
    assert_eq!(client.read_response().text(), "a");
    assert_eq!(client.get("/a").text(), "a");
    // One that is too long for that ends the connection, without a reset before the answer was read.
    let body = "x".repeat(100_000);
    client.send(format!("POST /b HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n{body}", body.len()));
    let answer = client.read_response();
    assert_eq!((answer.status(), answer.get("connection")), (404, Some("close")));
    client.expect_closed();
}

#[test]
fn what_follows_a_last_request_is_not_served() {
    let (backend, gateway) = echo_of_targets();
    let mut client = gateway.connect();
    client.send("GET /a HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\nGET /b HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(client.read_response().text(), "/a");
    client.expect_closed();
    assert_eq!(backend.request().target(), "/a");
}

#[test]
fn heads_pass_up_to_their_limit() {
    let long = "x".repeat(30_000);
    let answer = format!("HTTP/1.1 200 OK\r\nX-Long: {long}\r\nContent-Length: 50000\r\n\r\n{}", "y".repeat(50_000));
    let backend = Backend::fixed(answer);
    let gateway = Gateway::to(backend.endpoint());
    let mut client = gateway.connect();
    let request = format!("POST / HTTP/1.1\r\nHost: a\r\nX-Long: {long}\r\nContent-Length: 50000\r\n\r\n");
    for _ in 0..3 {
        let answer = client.ask([request.as_bytes(), &[b'z'; 50_000]].concat());
        assert_eq!(answer.get("x-long"), Some(long.as_str()));
        assert_eq!(answer.body, [b'y'; 50_000]);
    }
    assert_eq!(backend.connections(), 1);
    assert!(backend.requests().iter().all(|head| head.get("x-long") == Some(long.as_str())));
}

/// Numbers that look random and are the same in every run.
fn numbers(mut seed: u64) -> impl FnMut(usize) -> usize {
    move |below| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) as usize % below
    }
}

/// A body, framed as chunks of random sizes or by its length, with the field that says so.
fn framed(body: &[u8], chunked: bool, random: &mut impl FnMut(usize) -> usize) -> (String, Vec<u8>) {
    if !chunked {
        return (format!("Content-Length: {}", body.len()), body.to_vec());
    }
    let (mut out, mut rest) = (Vec::new(), body);
    while !rest.is_empty() {
        let size = 1 << random(16);
        let (chunk, left) = rest.split_at(rest.len().min(1 + random(size)));
        out.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
        out.extend_from_slice(chunk);
        out.extend_from_slice(b"\r\n");
        rest = left;
    }
    out.extend_from_slice(b"0\r\n\r\n");
    ("Transfer-Encoding: chunked".to_owned(), out)
}

/// Sends in pieces of random sizes.
fn send_in_pieces(wire: &mut Wire, mut bytes: &[u8], random: &mut impl FnMut(usize) -> usize) {
    while !bytes.is_empty() {
        let size = 1 << random(17);
        let (piece, rest) = bytes.split_at(bytes.len().min(1 + random(size)));
        wire.send(piece);
        bytes = rest;
    }
}

#[test]
fn bodies_arrive_as_they_were_sent_however_they_are_framed_and_cut() {
    let backend = Backend::start(|conn| {
        let mut random = numbers(conn.index as u64);
        while let Some(request) = conn.next_request() {
            let (field, bytes) = framed(&request.body, random(2) == 0, &mut random);
            conn.send(format!("HTTP/1.1 200 OK\r\n{field}\r\n\r\n"));
            send_in_pieces(conn, &bytes, &mut random);
        }
    });
    let gateway = Gateway::to(backend.endpoint());
    let mut random = numbers(7);
    let mut client = gateway.connect();
    for round in 0..150 {
        let size = 1 << random(20);
        let body: Vec<u8> = (0..random(size)).map(|_| random(256) as u8).collect();
        let (field, mut bytes) = framed(&body, random(2) == 0, &mut random);
        bytes.splice(0..0, format!("PUT /{round} HTTP/1.1\r\nHost: a\r\n{field}\r\n\r\n").into_bytes());
        send_in_pieces(&mut client, &bytes, &mut random);
        let answer = client.read_response();
        assert_eq!(answer.status(), 200, "round {round}");
        assert!(answer.body == body, "round {round}: {} bytes came back as {}", body.len(), answer.body.len());
    }
    assert_eq!(backend.connections(), 1);
}

#[test]
fn any_split_of_a_request_is_the_same_request() {
    let backend = Backend::echo();
    let gateway = Gateway::to(backend.endpoint());
    let request = "POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nX-A: b\r\n\r\nhello";
    let mut client = gateway.connect();
    for at in 1..request.len() {
        client.send(&request[..at]).send(&request[at..]);
        assert_eq!(client.read_response().text(), "hello", "split at {at}");
    }
}
