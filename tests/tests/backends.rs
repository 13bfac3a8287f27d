//! Broken services: what the client sees, what is counted, which connection is used again.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use ringway_tests::{Backend, End, Gateway, PATIENCE, Setup, eventually};

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

fn stale_retries(gateway: &Gateway) -> f64 {
    gateway.metric("gateway_backend_stale_retries_total{service=\"app\"}")
}

#[test]
fn a_reset_before_the_answer_is_502() {
    let backend = Backend::start(|conn| match conn.index {
        0 => conn.reset(),
        1 => {
            conn.next_request_head();
            conn.reset();
        }
        _ => {
            conn.request();
            conn.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX: ");
            conn.reset();
        }
    });
    let gateway = Gateway::to(backend.endpoint());
    let mut client = gateway.connect();
    for kinds in 1..=3 {
        let answer = client.get("/");
        assert_eq!((answer.status(), answer.get("connection")), (502, None));
        let errors = gateway.backend_errors("reset") + gateway.backend_errors("connect");
        assert_eq!(errors, f64::from(kinds));
    }
    assert_eq!(stale_retries(&gateway), 0.0, "a fresh connection is not tried twice");
    assert_eq!(backend.connections(), 3);
}

#[test]
fn a_body_that_breaks_off_is_not_taken_for_whole() {
    for (framing, target) in [
        ("Content-Length: 10\r\n\r\nhello", "/reset"),
        ("Content-Length: 10\r\n\r\nhello", "/close"),
        ("Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n", "/reset"),
        ("Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n", "/close"),
        ("Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n", "/garble"),
        ("Connection: close\r\n\r\nhello", "/reset"),
    ] {
        let backend = Backend::start(move |conn| {
            let request = conn.request();
            conn.send(format!("HTTP/1.1 200 OK\r\n{framing}"));
            // The gateway has passed this on before the connection breaks.
            assert!(conn.stays_silent(Duration::from_millis(50)));
            match request.target() {
                "/reset" => conn.reset(),
                "/garble" => _ = conn.send("zz\r\n").drain(),
                _ => {}
            }
        });
        let gateway = Gateway::to(backend.endpoint());
        for version in ["HTTP/1.1", "HTTP/1.0"] {
            let mut client = gateway.connect();
            client.send(format!("GET {target} {version}\r\nHost: a\r\n\r\n"));
            assert_eq!(client.read_head().status(), 200);
            let (body, end) = client.read_to_end();
            assert_eq!(end, End::Reset, "{version} {target} {framing:?}: {:?}", String::from_utf8_lossy(&body));
            assert!(!body.ends_with(b"0\r\n\r\n"));
        }
        eventually(PATIENCE, || gateway.backend_errors("body") == 2.0);
        assert_eq!(gateway.log_line(2)["statusCode"], 200);
        gateway.expect_idle();
    }
}

#[test]
fn a_body_that_stalls_is_given_up() {
    let backend = Backend::start(|conn| {
        conn.request();
        conn.send("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello");
        conn.stall();
    });
    let setup = Setup { service: "timeouts: { idle: 300ms }", ..Setup::default() };
    let gateway = setup.start(backend.endpoint());
    let mut client = gateway.connect();
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").read_head();
    assert_eq!(client.read_to_end(), (b"hello".to_vec(), End::Reset));
    eventually(PATIENCE, || gateway.backend_errors("body") == 1.0);
    backend.expect_all_closed();
}

#[test]
fn a_service_that_does_not_take_the_body_is_given_up() {
    let backend = Backend::start(|conn| {
        conn.next_request_head();
        // The fault: it reads no further.
        eventually(PATIENCE, || conn.is_over());
    });
    let setup =
        Setup { service: "timeouts: { idle: 300ms, answer: 1s }", route: "limits: { body: off }", ..Setup::default() };
    let gateway = setup.start(backend.endpoint());
    let mut client = gateway.connect();
    let length = 64 << 20;
    client.send(format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n"));
    client.try_send_now(vec![b'x'; length]);
    assert_eq!(client.read_response().status(), 504);
    assert_eq!(gateway.backend_errors("answer_timeout"), 1.0);
    gateway.expect_idle();
}

#[test]
fn a_pooled_connection_that_closes_unseen_costs_one_more_try() {
    let backend = Backend::start(|conn| {
        conn.request();
        conn.send(OK);
        // Takes the next request and closes, as a service does whose idle time has just passed.
        if conn.index > 0 || conn.next_request().is_none() {
            conn.stall();
        }
    });
    let gateway = Gateway::to(backend.endpoint());
    let mut client = gateway.connect();
    assert_eq!(client.get("/1").text(), "ok");
    let put = client.ask("PUT /2 HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello");
    assert_eq!(put.text(), "ok");
    assert_eq!(stale_retries(&gateway), 1.0);
    assert_eq!(backend.connections(), 2);
    let targets: Vec<String> = backend.requests().iter().map(|head| head.target().to_owned()).collect();
    assert_eq!(targets, ["/1", "/2", "/2"]);
    assert_eq!(gateway.backend_errors("reset"), 0.0);
    gateway.log_line(2);
}

#[test]
fn a_request_is_sent_again_only_once() {
    let backend = Backend::start(|conn| {
        if conn.index == 0 {
            conn.request();
            conn.send(OK);
        }
        conn.next_request();
    });
    let gateway = Gateway::to(backend.endpoint());
    let mut client = gateway.connect();
    assert_eq!(client.get("/1").text(), "ok");
    assert_eq!(client.get("/2").status(), 502);
    assert_eq!((backend.connections(), backend.requests().len()), (2, 3));
    assert_eq!((stale_retries(&gateway), gateway.backend_errors("reset")), (1.0, 1.0));
}

#[test]
fn a_request_that_may_do_harm_twice_is_not_sent_again() {
    let backend = Backend::start(|conn| {
        conn.request();
        conn.send(OK);
        conn.next_request();
    });
    let gateway = Gateway::to(backend.endpoint());
    let mut client = gateway.connect();
    assert_eq!(client.get("/1").text(), "ok");
    let answer = client.ask("POST /2 HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi");
    assert_eq!(answer.status(), 502);
    assert_eq!((stale_retries(&gateway), backend.requests().len()), (0.0, 2));
    assert_eq!(gateway.backend_errors("reset"), 1.0);
}

#[test]
fn an_answer_that_has_begun_is_not_asked_for_again() {
    let backend = Backend::start(|conn| {
        conn.request();
        conn.send(OK);
        if conn.next_request().is_some() {
            conn.send("HTTP/1.1 2");
        }
    });
    let gateway = Gateway::to(backend.endpoint());
    let mut client = gateway.connect();
    assert_eq!(client.get("/1").text(), "ok");
    assert_eq!(client.get("/2").status(), 502);
    assert_eq!((stale_retries(&gateway), backend.requests().len()), (0.0, 2));
}

#[test]
fn sending_again_can_be_switched_off() {
    let backend = Backend::start(|conn| {
        conn.request();
        conn.send(OK);
        conn.next_request();
    });
    let setup = Setup { service: "retry_stale: false", ..Setup::default() };
    let gateway = setup.start(backend.endpoint());
    let mut client = gateway.connect();
    assert_eq!(client.get("/1").text(), "ok");
    assert_eq!(client.get("/2").status(), 502);
    assert_eq!(backend.connections(), 1);
}

#[test]
fn a_pooled_connection_that_closed_visibly_is_not_used() {
    let backend = Backend::start(|conn| {
        conn.request();
        conn.send(OK);
        if conn.index % 2 == 1 {
            conn.reset();
        }
    });
    let gateway = Gateway::to(backend.endpoint());
    let mut client = gateway.connect();
    for i in 1..=20 {
        let answer = client.ask("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi");
        assert_eq!(answer.text(), "ok", "request {i}");
        backend.expect_all_closed();
        assert_eq!(backend.connections(), i);
    }
    assert_eq!(stale_retries(&gateway), 0.0);
}

#[test]
fn an_endless_head_is_502() {
    let backend = Backend::start(|conn| {
        conn.request();
        let _ = conn.try_send("HTTP/1.1 200 OK\r\n");
        while conn.try_send("X-Endless: and so on\r\n").is_ok() {}
    });
    let gateway = Gateway::to(backend.endpoint());
    assert_eq!(gateway.get("/").status(), 502);
    assert_eq!(gateway.backend_errors("bad_answer"), 1.0);
    backend.expect_all_closed();
}

#[test]
fn a_start_line_without_end_is_502() {
    let backend = Backend::start(|conn| {
        conn.request();
        while conn.try_send("HTTP/1.1 200 OK").is_ok() {}
    });
    let gateway = Gateway::to(backend.endpoint());
    assert_eq!(gateway.get("/").status(), 502);
    backend.expect_all_closed();
}

#[test]
fn endless_interim_answers_are_502() {
    let sent = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&sent);
    let backend = Backend::start(move |conn| {
        conn.request();
        while conn.try_send("HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n").is_ok() {
            count.fetch_add(1, Ordering::AcqRel);
        }
    });
    let gateway = Gateway::to(backend.endpoint());
    let mut client = gateway.connect();
    let mut interim = 0;
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    let last = loop {
        let answer = client.read_response();
        if answer.status() != 103 {
            break answer;
        }
        interim += 1;
    };
    assert_eq!(last.status(), 502);
    assert!(interim <= 32, "{interim}");
    backend.expect_all_closed();
}

#[test]
fn interim_answers_do_not_prolong_the_wait_for_the_final_one() {
    let backend = Backend::start(|conn| {
        conn.request();
        while conn.try_send("HTTP/1.1 102 Processing\r\n\r\n").is_ok() {
            std::thread::sleep(Duration::from_millis(100));
        }
    });
    let setup = Setup { service: "timeouts: { answer: 500ms }", ..Setup::default() };
    let gateway = setup.start(backend.endpoint());
    let mut client = gateway.connect();
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    let last = loop {
        let answer = client.read_response();
        if answer.status() != 102 {
            break answer;
        }
    };
    assert_eq!(last.status(), 504);
}

#[test]
fn a_body_that_breaks_off_while_the_client_sends_is_not_taken_for_whole() {
    let backend = Backend::start(|conn| {
        conn.next_request_head();
        conn.send("HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nhello");
        assert!(conn.stays_silent(Duration::from_millis(100)));
        conn.reset();
    });
    let gateway = Gateway::to(backend.endpoint());
    let mut client = gateway.connect();
    client.send("POST / HTTP/1.0\r\nContent-Length: 100\r\n\r\n");
    assert_eq!(client.read_head().status(), 200);
    let (body, end) = client.read_to_end();
    assert_eq!(end, End::Reset, "{:?}", String::from_utf8_lossy(&body));
    eventually(PATIENCE, || gateway.backend_errors("body") == 1.0);
}

#[test]
fn a_body_that_is_garbled_from_its_start_is_502() {
    let backend = Backend::fixed("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nhello\r\n");
    let gateway = Gateway::to(backend.endpoint());
    let mut client = gateway.connect();
    for i in 1..=2 {
        let answer = client.get("/");
        assert_eq!((answer.status(), answer.get("connection")), (502, None));
        assert_eq!(gateway.backend_errors("bad_answer"), f64::from(i));
    }
    assert_eq!(gateway.log_line(2)["statusCode"], 502);
}

#[test]
fn a_try_may_not_take_longer_because_the_body_comes_slowly() {
    let backend = Backend::start(|conn| {
        conn.next_request_head();
        conn.stall();
    });
    let setup = Setup { route: "timeouts: { per_try: 400ms }", ..Setup::default() };
    let gateway = setup.start(backend.endpoint());
    let mut client = gateway.connect();
    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\nx");
    let began = std::time::Instant::now();
    while began.elapsed() < PATIENCE && client.stays_silent(Duration::from_millis(50)) {
        let _ = client.try_send("x");
    }
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
    assert_eq!(client.read_response().status(), 504);
    assert_eq!(gateway.backend_errors("answer_timeout"), 1.0);
}

#[test]
fn an_answer_that_stalls_behind_a_long_upload_is_given_up() {
    let backend = Backend::start(|conn| {
        let head = conn.next_request_head().expect("a request");
        let length: usize = head.get("content-length").expect("a length").parse().expect("a number");
        conn.send("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello");
        // Slow enough for the gateway to wait for room.
        std::thread::sleep(Duration::from_millis(200));
        conn.read_exact(length);
        conn.stall();
    });
    let setup = Setup { service: "timeouts: { idle: 500ms }", route: "limits: { body: off }", ..Setup::default() };
    let gateway = setup.start(backend.endpoint());
    let mut client = gateway.connect();
    let length = 32 << 20;
    client.send(format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n"));
    assert_eq!(client.read_head().status(), 200);
    client.send(vec![b'x'; length]);
    assert_eq!(client.read_to_end(), (b"hello".to_vec(), End::Reset));
    backend.expect_all_closed();
}
