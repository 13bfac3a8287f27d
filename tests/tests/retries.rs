//! Another try for requests that failed: when there is one, where it goes, and when there is none.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use ringway_tests::{Backend, Conn, Gateway, Nobody, PATIENCE, eventually, settles_at};

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
const UNAVAILABLE: &str = "HTTP/1.1 503 Service Unavailable\r\nX-From: first\r\nContent-Length: 4\r\n\r\nbusy";

fn retries(gateway: &Gateway, outcome: &str) -> f64 {
    gateway.metric(&format!("gateway_retries_total{{service=\"app\",outcome=\"{outcome}\"}}"))
}

fn denied(gateway: &Gateway, reason: &str) -> f64 {
    gateway.metric(&format!("gateway_retries_denied_total{{service=\"app\",reason=\"{reason}\"}}"))
}

/// A gateway before one service with these endpoints.
fn before(endpoints: &[&str], service: &str, route: &str) -> Gateway {
    let endpoints: Vec<String> = endpoints.iter().map(|endpoint| format!("\"{endpoint}\"")).collect();
    Gateway::start(&format!(
        "services: [{{ name: app, endpoints: [{}], balance: round_robin, {service} }}]\n\
         routes: [{{ name: all, service: app, {route} }}]\n",
        endpoints.join(", ")
    ))
}

/// A backend that fails the first requests this way.
fn failing_first(failures: usize, answer: &'static str) -> Backend {
    let seen = AtomicUsize::new(0);
    Backend::start(move |conn| {
        while conn.next_request().is_some() {
            let fails = seen.fetch_add(1, Ordering::AcqRel) < failures;
            conn.send(if fails { answer } else { OK });
        }
    })
}

#[test]
fn an_endpoint_that_is_gone_costs_a_try_and_no_request() {
    let (nobody, good) = (Nobody::new(), Backend::ok());
    let gateway = before(&[nobody.endpoint(), good.endpoint()], "retries: {}", "");
    let mut client = gateway.connect();
    for _ in 0..10 {
        assert_eq!(client.get("/").status(), 200);
        // Nothing was sent, so that the method does not matter.
        assert_eq!(client.ask("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi").status(), 200);
    }
    // What is counted once the client has its answer.
    settles_at([10.0, 0.0], || ["success", "failure"].map(|outcome| retries(&gateway, outcome)));
    assert_eq!(good.requests().len(), 20);
    assert_eq!(gateway.backend_errors("connect"), 10.0);
    gateway.log_line(20);
    let tries: Vec<_> = gateway.log_lines().iter().map(|line| line["attempts"].as_u64()).collect();
    assert_eq!(tries.iter().filter(|tries| **tries == Some(2)).count(), 10, "{tries:?}");
    assert_eq!(tries.iter().filter(|tries| tries.is_none()).count(), 10, "{tries:?}");
}

#[test]
fn a_body_that_still_comes_goes_to_the_endpoint_that_is_there() {
    let (nobody, good) = (Nobody::new(), Backend::echo());
    let gateway = before(&[nobody.endpoint(), good.endpoint()], "retries: {}", "");
    for _ in 0..4 {
        let mut client = gateway.connect();
        client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nhello");
        assert!(client.stays_silent(Duration::from_millis(100)));
        assert_eq!(client.send("world").read_response().text(), "helloworld");
    }
    settles_at(2.0, || retries(&gateway, "success"));
}

#[test]
fn an_answer_to_try_again_is_not_seen() {
    let backend = failing_first(2, UNAVAILABLE);
    let gateway = before(&[backend.endpoint()], "retries: {}", "");
    let mut client = gateway.connect();
    let answer = client.ask("PUT /a HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello");
    assert_eq!((answer.status(), answer.text().as_str(), answer.get("x-from")), (200, "ok", None));
    assert_eq!(backend.requests().len(), 3);
    assert_eq!(backend.connections(), 1, "an answer that has come whole leaves its connection");
    settles_at([1.0; 2], || ["success", "failure"].map(|outcome| retries(&gateway, outcome)));
    assert_eq!(gateway.log_line(1)["attempts"], 3);
    for head in backend.requests() {
        assert_eq!((head.target(), head.get("content-length")), ("/a", Some("5")));
    }
}

#[test]
fn the_last_answer_is_the_clients() {
    let backend = Backend::fixed(UNAVAILABLE);
    let gateway = before(&[backend.endpoint()], "retries: { attempts: 3 }", "");
    let answer = gateway.get("/");
    assert_eq!((answer.status(), answer.text().as_str(), answer.get("x-from")), (503, "busy", Some("first")));
    settles_at((4, 3.0, 0.0), || {
        (backend.requests().len(), retries(&gateway, "failure"), retries(&gateway, "success"))
    });
}

#[test]
fn what_may_do_harm_twice_is_tried_once() {
    for (answer, request) in [
        (Some(UNAVAILABLE), "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi"),
        (None, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi"),
        (None, "PATCH / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi"),
    ] {
        let backend = Backend::start(move |conn| {
            conn.request();
            match answer {
                Some(answer) => _ = conn.send(answer),
                None => conn.reset(),
            }
        });
        let gateway = before(&[backend.endpoint()], "retries: {}", "");
        let status = gateway.connect().ask(request).status();
        assert_eq!((status, backend.requests().len()), (if answer.is_some() { 503 } else { 502 }, 1));
    }
}

#[test]
fn a_body_that_is_no_longer_at_hand_is_not_sent_again() {
    let backend = failing_first(usize::MAX, UNAVAILABLE);
    let gateway = before(&[backend.endpoint()], "retries: {}", "");
    let mut client = gateway.connect();
    client.send("PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nhello");
    eventually(PATIENCE, || backend.requests().len() == 1);
    assert_eq!(client.send("world").read_response().status(), 503);
    assert_eq!(backend.requests().len(), 1);
}

/// A backend whose first connections fail in this way, and whose others answer with what they got.
fn echo_after(failures: usize, fail: impl Fn(&mut Conn) + Send + Sync + 'static) -> Backend {
    Backend::start(move |conn| {
        if conn.index < failures {
            return fail(conn);
        }
        while let Some(request) = conn.next_request() {
            let body = request.text();
            conn.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len()));
        }
    })
}

/// Letters that differ, so that a piece that is missing or comes twice is seen.
fn letters(count: usize) -> String {
    (0..count).map(|index| char::from(b'a' + (index * 7 / 3 % 26) as u8)).collect()
}

#[test]
fn a_longer_body_is_kept_where_that_is_asked() {
    let text = letters(60_000);
    let chunk = |text: &str| format!("{:x}\r\n{text}\r\n", text.len());
    let by_length = vec![text[..100].to_owned(), text[100..40_000].to_owned(), text[40_000..].to_owned()];
    let mut in_chunks: Vec<String> = by_length.iter().map(|part| chunk(part)).collect();
    in_chunks.push("0\r\n\r\n".into());
    let (length, chunked) = ("Content-Length: 60000", "Transfer-Encoding: chunked");
    for (framing, pieces) in [(length, &by_length), (chunked, &in_chunks)] {
        for route in ["", "retries: { body: 1MiB, attempts: 2 }"] {
            let backend = echo_after(2, |conn| {
                conn.request();
                if conn.index == 0 {
                    conn.send(UNAVAILABLE);
                } else {
                    conn.reset();
                }
            });
            let service = if route.is_empty() { "retries: { body: 64KiB }" } else { "" };
            let gateway = before(&[backend.endpoint()], service, route);
            let mut client = gateway.connect();
            for _ in 0..2 {
                client.send(format!("PUT / HTTP/1.1\r\nHost: a\r\n{framing}\r\n\r\n"));
                for piece in pieces {
                    client.send(piece);
                }
                let answer = client.read_response();
                assert!(answer.status() == 200 && answer.text() == text, "{framing}: {}", answer.text().len());
            }
            settles_at([1.0; 2], || ["success", "failure"].map(|outcome| retries(&gateway, outcome)));
            assert_eq!(gateway.log_line(2).get("attempts"), None, "{framing} {route}");
            settles_at(0.0, || gateway.metric("gateway_buffers_in_use{worker=\"0\"}"));
        }
    }
}

#[test]
fn a_body_longer_than_what_is_kept_is_sent_once() {
    for (framing, body) in [
        ("Content-Length: 40000", letters(40_000)),
        ("Transfer-Encoding: chunked", format!("9c40\r\n{}\r\n0\r\n\r\n", letters(40_000))),
    ] {
        let backend = echo_after(1, |conn| {
            conn.request();
            conn.send(UNAVAILABLE);
        });
        let gateway = before(&[backend.endpoint()], "retries: { body: 32KiB }", "");
        let answer = gateway.connect().ask(format!("PUT / HTTP/1.1\r\nHost: a\r\n{framing}\r\n\r\n{body}"));
        assert_eq!(
            (answer.status(), answer.get("x-from"), backend.connections()),
            (503, Some("first"), 1),
            "{framing}"
        );
    }
    // Nor is one of a method that may do harm twice.
    let backend = echo_after(1, |conn| {
        conn.request();
        conn.reset();
    });
    let gateway = before(&[backend.endpoint()], "retries: { body: 64KiB }", "");
    let answer = gateway
        .connect()
        .ask(format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 40000\r\n\r\n{}", letters(40_000)));
    assert_eq!((answer.status(), backend.connections()), (502, 1));
}

#[test]
fn a_try_that_breaks_while_the_body_comes_is_followed_by_one_that_gets_all_of_it() {
    let text = letters(50_000);
    let backend = echo_after(1, |conn| {
        conn.read_head();
        conn.read_exact(30_000);
        conn.reset();
    });
    let gateway = before(&[backend.endpoint()], "retries: { body: 64KiB }", "");
    let mut client = gateway.connect();
    client.send(format!("PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 50000\r\n\r\n{}", &text[..30_000]));
    eventually(PATIENCE, || backend.connections() == 2);
    client.send(&text[30_000..]);
    let answer = client.read_response();
    assert!(answer.status() == 200 && answer.text() == text, "{}", answer.text().len());
    assert_eq!(gateway.log_line(1)["attempts"], 2);
    // Its connection goes on.
    assert_eq!(client.ask("PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi").text(), "hi");
}

#[test]
fn a_broken_connection_is_tried_again_where_it_is_safe() {
    let backend = Backend::start(|conn| {
        conn.request();
        match conn.index {
            0 => conn.reset(),
            1 => _ = conn.send("HTTP/1.1 20"),
            _ => _ = conn.send(OK),
        }
    });
    let gateway = before(&[backend.endpoint()], "retries: {}", "");
    assert_eq!(gateway.get("/").status(), 200);
    assert_eq!((backend.connections(), gateway.backend_errors("reset")), (3, 2.0));
}

#[test]
fn what_was_passed_on_is_not_asked_for_again() {
    // An interim answer has gone to the client.
    let backend = Backend::fixed(format!("HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n{UNAVAILABLE}"));
    let gateway = before(&[backend.endpoint()], "retries: {}", "");
    let mut client = gateway.connect();
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(client.read_head().status(), 103);
    assert_eq!(client.read_response().status(), 503);
    assert_eq!(backend.requests().len(), 1);

    let backend = Backend::start(|conn| {
        conn.request();
        conn.send("HTTP/1.1 103 Early Hints\r\n\r\n");
        conn.reset();
    });
    let gateway = before(&[backend.endpoint()], "retries: {}", "");
    let mut client = gateway.connect();
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    let status = client.read_head().status();
    assert!(status == 502 || client.read_response().status() == 502);
    assert_eq!(backend.requests().len(), 1);
}

#[test]
fn a_slow_endpoint_is_given_up_for_another_one() {
    let (slow, good) = (Backend::start(|conn| _ = conn.stall()), Backend::ok());
    let keys = "retries: { on: timeout, per_try_timeout: 500ms, backoff: { base: 0s } }";
    let gateway = before(&[slow.endpoint(), good.endpoint()], keys, "timeouts: { request: 5s }");
    (0..4).for_each(|_| assert_eq!(gateway.get("/").status(), 200));
    assert_eq!((good.requests().len(), gateway.backend_errors("answer_timeout")), (4, 2.0));
}

#[test]
fn the_deadline_of_the_whole_request_holds() {
    let silent = Backend::start(|conn| _ = conn.stall());
    let keys = "retries: { attempts: 10, on: [timeout], per_try_timeout: 1s, backoff: { base: 0s } }";
    let gateway = before(&[silent.endpoint()], keys, "timeouts: { request: 1500ms }");
    let begun = Instant::now();
    assert_eq!(gateway.get("/").status(), 504);
    // All tries together would take eleven seconds.
    assert!((1_500..8_000).contains(&begun.elapsed().as_millis()), "{:?}", begun.elapsed());
    assert_eq!(silent.connections(), 2);
    // There is no time for the wait before another try.
    let busy = Backend::fixed(UNAVAILABLE);
    let keys = "retries: { attempts: 10, backoff: { base: 10s, max: 10s } }";
    let gateway = before(&[busy.endpoint()], keys, "timeouts: { request: 100ms }");
    let begun = Instant::now();
    assert_eq!(gateway.get("/").status(), 503);
    assert!(begun.elapsed() < Duration::from_secs(5));
}

#[test]
fn a_route_has_its_own_or_none() {
    let backend = Backend::fixed(UNAVAILABLE);
    for (route, requests) in
        [("retries: off", 1), ("retries: { attempts: 4 }", 5), ("", 3), ("retries: { on: 502 }", 1)]
    {
        let before_it = backend.requests().len();
        let gateway = before(&[backend.endpoint()], "retries: {}", route);
        assert_eq!(gateway.get("/").status(), 503);
        assert_eq!(backend.requests().len() - before_it, requests, "{route}");
    }
    // The budget is there without the service's saying so.
    let gateway = before(&[backend.endpoint()], "", "retries: { attempts: 1 }");
    assert_eq!(gateway.get("/").status(), 503);
    settles_at(1.0, || retries(&gateway, "failure"));
}

#[test]
fn the_endpoints_name_goes_with_it() {
    let (nobody, good) = (Nobody::new(), Backend::ok());
    let gateway = before(&[nobody.endpoint(), good.endpoint()], "retries: {}", "host: endpoint");
    (0..4).for_each(|_| assert_eq!(gateway.get("/a?b").status(), 200));
    for head in good.requests() {
        assert_eq!((head.target(), head.get("host")), ("/a?b", Some(good.endpoint())));
    }
}

#[test]
fn an_open_breaker_ends_the_tries() {
    let backend = Backend::fixed(UNAVAILABLE);
    let keys = "retries: { attempts: 5 }, circuit_breaker: { error_share: off, consecutive_failures: 2 }";
    let gateway = before(&[backend.endpoint()], keys, "");
    assert_eq!(gateway.get("/").status(), 503);
    assert_eq!((backend.requests().len(), denied(&gateway, "breaker")), (2, 1.0));
    assert_eq!(gateway.get("/").status(), 503);
    assert_eq!(backend.requests().len(), 2);
}

#[test]
fn no_retry_storm() {
    let backends: Vec<_> = (0..3).map(|_| Backend::fixed(UNAVAILABLE)).collect();
    let endpoints: Vec<_> = backends.iter().map(Backend::endpoint).collect();
    let keys = "retries: { attempts: 5, budget: { share: 20%, min_per_second: 5 }, backoff: { base: 2ms, max: 5ms } }";
    let gateway = before(&endpoints, keys, "");
    let begun = Instant::now();
    let asked: usize = std::thread::scope(|scope| {
        let ask = || {
            let mut client = gateway.connect();
            let mut asked = 0;
            while begun.elapsed() < Duration::from_secs(3) {
                assert_eq!(client.get("/").status(), 503);
                asked += 1;
            }
            asked
        };
        let clients = [(); 8].map(|()| scope.spawn(ask));
        clients.into_iter().map(|client| client.join().unwrap()).sum()
    });
    let seconds = begun.elapsed().as_secs_f64().ceil() as usize + 1;
    let seen: usize = backends.iter().map(|backend| backend.requests().len()).sum();
    let allowed = asked + asked / 5 + 5 * seconds;
    eprintln!("{asked} requests, {seen} tries, {allowed} allowed");
    assert!(seen <= allowed, "{asked} requests became {seen}, {allowed} were allowed");
    assert!(seen > asked + asked / 10, "{asked} requests became {seen}: the budget was not used");
    settles_at(seen - asked, || retries(&gateway, "failure") as usize);
    assert!(denied(&gateway, "budget") > 0.0);
}
