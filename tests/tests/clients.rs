//! Slow and broken clients: nobody waits for them for ever, and nothing of them stays.

use std::io::Read;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use ringway_tests::{Backend, Client, End, Gateway, PATIENCE, Setup, eventually, settles_at};

/// How often each way to break off is tried: a leak of one descriptor a time would show.
const TIMES: usize = 20;

/// No connection, no request, no descriptor is left of what came after `fds` were counted.
#[track_caller]
fn assert_nothing_left(gateway: &Gateway, backend: &Backend, fds: usize) {
    gateway.expect_idle();
    let endpoint = format!("{{service=\"app\",endpoint=\"{}\"}}", backend.endpoint());
    settles_at(0.0, || gateway.metric(&format!("gateway_endpoint_in_flight{endpoint}")));
    settles_at(0.0, || gateway.metric(&format!("gateway_endpoint_open_connections{endpoint}")));
    backend.expect_all_closed();
    // The page itself may still hold its own connection.
    eventually(PATIENCE, || gateway.open_fds() <= fds + 1);
    assert_eq!(gateway.metric("gateway_worker_panics_total"), 0.0);
}

/// What [`assert_nothing_left`] compares with.
fn fds(gateway: &Gateway) -> usize {
    gateway.expect_idle();
    gateway.open_fds()
}

/// A backend that reads whatever comes and never answers.
fn silent_backend() -> Backend {
    Backend::start(|conn| {
        if conn.next_request_head().is_some() {
            conn.stall();
        }
    })
}

#[test]
fn a_head_that_comes_byte_by_byte_is_a_head() {
    let backend = Backend::echo();
    let gateway = Gateway::to(backend.endpoint());
    let mut client = gateway.connect();
    for _ in 0..2 {
        client.send_slowly("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc", Duration::from_millis(1));
        assert_eq!(client.read_response().text(), "abc");
    }
}

#[test]
fn a_head_that_comes_too_slowly_is_refused_however_steadily_it_comes() {
    let setup = Setup { listener: "timeouts: { head: 400ms }", ..Setup::default() };
    let backend = Backend::ok();
    let gateway = setup.start(backend.endpoint());
    let mut client = gateway.connect();
    let began = Instant::now();
    while began.elapsed() < PATIENCE && client.stays_silent(Duration::from_millis(50)) {
        let _ = client.try_send("G");
    }
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    assert_eq!(client.read_response().status(), 408);
    client.expect_end();
    // The same for the second request of a connection.
    let mut client = gateway.connect();
    client.get("/");
    assert_eq!(client.ask("GET / HT").status(), 408);
    assert_eq!(backend.connections(), 1);
}

#[test]
fn an_idle_connection_is_closed_without_a_word() {
    let setup = Setup { listener: "timeouts: { idle: 300ms }", ..Setup::default() };
    let backend = Backend::ok();
    let gateway = setup.start(backend.endpoint());
    gateway.connect().expect_closed();
    let mut client = gateway.connect();
    client.get("/");
    client.expect_closed();
    settles_at(1, || gateway.log_lines().len());
    gateway.expect_idle();
}

#[test]
fn a_body_below_its_rate_is_refused() {
    let setup = Setup { listener: "timeouts: { body: 500ms, body_rate: 1KiB }", ..Setup::default() };
    let backend = silent_backend();
    let gateway = setup.start(backend.endpoint());
    let mut client = gateway.connect();
    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n");
    // A byte each 50 ms: never silent for long, and far below the rate.
    let began = Instant::now();
    while began.elapsed() < PATIENCE && client.stays_silent(Duration::from_millis(50)) {
        let _ = client.try_send("x");
    }
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    assert_eq!(client.read_response().status(), 408);
    backend.expect_all_closed();
}

#[test]
fn a_reset_within_the_head_leaves_nothing() {
    let backend = Backend::ok();
    let gateway = Gateway::to(backend.endpoint());
    let before = fds(&gateway);
    for _ in 0..TIMES {
        let mut client = gateway.connect();
        client.send("GET / HTTP/1.1\r\nHo");
        client.reset();
    }
    assert_nothing_left(&gateway, &backend, before);
    assert_eq!(backend.connections(), 0);
}

#[test]
fn a_reset_within_the_body_leaves_nothing() {
    let backend = silent_backend();
    let gateway = Gateway::to(backend.endpoint());
    let before = fds(&gateway);
    for i in 0..TIMES {
        let mut client = gateway.connect();
        client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n123");
        eventually(PATIENCE, || backend.requests().len() == i + 1);
        client.reset();
    }
    assert_nothing_left(&gateway, &backend, before);
    assert_eq!(gateway.log_line(TIMES)["statusCode"], 499);
}

#[test]
fn a_reset_while_the_service_works_leaves_nothing() {
    let backend = silent_backend();
    let gateway = Gateway::to(backend.endpoint());
    let before = fds(&gateway);
    let clients: Vec<Client> = (0..TIMES)
        .map(|_| {
            let mut client = gateway.connect();
            client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
            client
        })
        .collect();
    eventually(PATIENCE, || backend.requests().len() == TIMES);
    clients.into_iter().for_each(Client::reset);
    assert_nothing_left(&gateway, &backend, before);
    assert_eq!(gateway.log_line(TIMES)["statusCode"], 499);
    assert_eq!(gateway.metric("gateway_requests_total{route=\"all\",status=\"499\"}"), TIMES as f64);
    for kind in ["reset", "answer_timeout", "body"] {
        assert_eq!(gateway.backend_errors(kind), 0.0, "{kind} is not the service's");
    }
}

#[test]
fn a_reset_within_the_answer_leaves_nothing() {
    let backend = Backend::start(|conn| {
        conn.request();
        conn.send("HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\n\r\n");
        while conn.try_send([b'x'; 65536]).is_ok() {}
    });
    let gateway = Gateway::to(backend.endpoint());
    let before = fds(&gateway);
    for _ in 0..TIMES {
        let mut client = gateway.connect();
        client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").read_head();
        client.reset();
    }
    assert_nothing_left(&gateway, &backend, before);
    assert_eq!(gateway.backend_errors("body"), 0.0);
}

#[test]
fn a_client_that_leaves_in_good_order_leaves_nothing() {
    let backend = Backend::start(|conn| {
        while let Some(head) = conn.next_request_head() {
            match head.target() {
                "/half" => drop(conn.stall()),
                "/slow" => std::thread::sleep(Duration::from_millis(200)),
                _ => {}
            }
            let _ = conn.try_send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
        }
    });
    let setup = Setup { service: "pool: { idle: 0 }", ..Setup::default() };
    let gateway = setup.start(backend.endpoint());
    let before = fds(&gateway);
    for i in 0..TIMES {
        let mut client = gateway.connect();
        match i % 4 {
            0 => {}
            1 => _ = client.send("POST /half HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n12"),
            2 => _ = client.send("GET /slow HTTP/1.1\r\nHost: a\r\n\r\n"),
            _ => _ = client.get("/"),
        }
    }
    assert_nothing_left(&gateway, &backend, before);
}

#[test]
fn a_client_that_never_reads_is_given_up() {
    let ended = Arc::new(Mutex::new(0));
    let count = Arc::clone(&ended);
    let backend = Backend::start(move |conn| {
        conn.request();
        conn.send("HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\n\r\n");
        while conn.try_send([b'x'; 65536]).is_ok() {}
        *count.lock().expect("a number") += 1;
    });
    let setup = Setup { listener: "timeouts: { write: 500ms }", ..Setup::default() };
    let gateway = setup.start(backend.endpoint());
    let before = fds(&gateway);
    let mut clients: Vec<Client> = (0..3).map(|_| Client::connect_narrow(gateway.address())).collect();
    for client in &mut clients {
        client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    }
    settles_at(3, || *ended.lock().expect("a number"));
    assert_nothing_left(&gateway, &backend, before);
    assert_eq!(gateway.backend_errors("body"), 0.0);
    for client in &mut clients {
        assert!(client.drain().0 < 100_000_000);
    }
}

#[test]
fn a_client_that_has_stopped_sending_still_gets_its_answer() {
    let backend = Backend::start(|conn| {
        while let Some(request) = conn.next_request() {
            // Longer than it takes the gateway to look after its client.
            std::thread::sleep(Duration::from_millis(800));
            conn.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{}", request.body.len(), request.text()));
        }
    });
    let gateway = Gateway::to(backend.endpoint());
    let mut client = gateway.connect();
    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello").half_close();
    assert_eq!(client.read_response().text(), "hello");
    client.expect_closed();
    gateway.expect_idle();
}

/// It may still read, one day: it gets the time that the configuration gives it, and nobody else waits for it.
#[test]
fn a_half_closed_client_that_does_not_read_holds_up_nobody() {
    const BYTES: usize = 64 << 20;
    let backend = Backend::start(|conn| {
        while let Some(request) = conn.next_request() {
            let length = if request.target() == "/large" { BYTES } else { 2 };
            let _ = conn.try_send(format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n"));
            if conn.try_send(vec![b'x'; length]).is_err() {
                return;
            }
        }
    });
    let setup = Setup { listener: "timeouts: { write: 2s }", ..Setup::default() };
    let gateway = setup.start(backend.endpoint());
    let mut stuck = gateway.connect();
    stuck.send("GET /large HTTP/1.1\r\nHost: a\r\n\r\n").half_close();
    eventually(PATIENCE, || gateway.metric("gateway_sent_bytes_total") > 100_000.0);
    let before = gateway.metric("gateway_worker_loop_turns_total{worker=\"0\"}");
    for _ in 0..10 {
        assert_eq!(gateway.get("/").text(), "xx");
    }
    // Its own deadline ends it, and the loop has not gone round and round meanwhile.
    settles_at(0.0, || gateway.metric("gateway_active_connections"));
    let turns = gateway.metric("gateway_worker_loop_turns_total{worker=\"0\"}") - before;
    assert!(turns < 5_000.0, "{turns} turns");
}

#[test]
fn a_client_that_stops_within_its_body_is_closed() {
    let backend = silent_backend();
    let gateway = Gateway::to(backend.endpoint());
    for framing in ["Content-Length: 5\r\n\r\n12", "Transfer-Encoding: chunked\r\n\r\n5\r\n12"] {
        let mut client = gateway.connect();
        client.send(format!("POST / HTTP/1.1\r\nHost: a\r\n{framing}")).half_close();
        client.expect_end();
    }
    backend.expect_all_closed();
    assert_eq!(gateway.log_line(2)["statusCode"], 499);
}

#[test]
fn tls_on_the_plain_port_is_refused_at_once() {
    let backend = Backend::ok();
    let gateway = Gateway::to(backend.endpoint());
    let mut client = gateway.connect();
    // The beginning of a ClientHello, with a line feed in it.
    let mut hello = vec![0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3];
    hello.extend((0..200).map(|i| i as u8));
    let answer = client.ask(hello);
    assert_eq!(answer.status(), 400);
    client.expect_closed();
}

#[test]
fn garbage_is_refused_at_once() {
    let backend = Backend::ok();
    let gateway = Gateway::to(backend.endpoint());
    for garbage in [&b"\0\0\0\0"[..], b"\xff\xfe\xfd", b"\n", b" GET", b"\x80\x80\x01\x03\x01", b"hello\nworld\n"] {
        let mut client = gateway.connect();
        assert_eq!(client.ask(garbage).status(), 400, "{garbage:?}");
        client.expect_closed();
    }
    assert_eq!(backend.connections(), 0);
    gateway.expect_idle();
}

#[test]
fn a_flood_after_an_error_does_not_destroy_the_answer() {
    let backend = Backend::ok();
    let setup = Setup { route: "limits: { body: 1KiB }", ..Setup::default() };
    let gateway = setup.start(backend.endpoint());
    for _ in 0..10 {
        let mut client = gateway.connect();
        client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 200000\r\n\r\n");
        let _ = client.try_send([b'x'; 200_000]);
        assert_eq!(client.read_response().status(), 413);
        client.expect_closed();
    }
}

#[test]
fn many_slow_clients_do_not_disturb_a_fast_one() {
    let backend = Backend::ok();
    let gateway = Gateway::to(backend.endpoint());
    let mut slow: Vec<Client> = (0..200).map(|_| gateway.connect()).collect();
    for client in &mut slow {
        client.send("GET / HTTP/1.1\r\nHost: a\r\nX: ");
    }
    let mut fast = gateway.connect();
    let began = Instant::now();
    for _ in 0..100 {
        assert_eq!(fast.get("/").status(), 200);
        slow.iter_mut().take(20).for_each(|client| {
            client.send("x");
        });
    }
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    for client in &mut slow {
        assert_eq!(client.ask("\r\n\r\n").text(), "ok");
    }
}

#[test]
fn a_stream_ends_when_its_request_may_not_take_longer() {
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = Arc::clone(&stop);
    let backend = Backend::start(move |conn| {
        conn.request();
        conn.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
        while conn.try_send("1\r\nx\r\n").is_ok() && !stopped.load(Ordering::Acquire) {
            std::thread::sleep(Duration::from_millis(20));
        }
    });
    let setup = Setup { route: "timeouts: { request: 500ms }", ..Setup::default() };
    let gateway = setup.start(backend.endpoint());
    let mut client = gateway.connect();
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").read_head();
    let (body, end) = client.read_to_end();
    assert_eq!(end, End::Reset, "not to be taken for whole");
    assert!(!body.ends_with(b"0\r\n\r\n"));
    stop.store(true, Ordering::Release);
    let mut rest = Vec::new();
    let _ = client.stream().read_to_end(&mut rest);
    gateway.expect_idle();
}

#[test]
fn a_reset_within_an_answer_that_pauses_leaves_nothing() {
    let backend = Backend::start(|conn| {
        conn.request();
        conn.send("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: 1\n\n");
        conn.stall();
    });
    let gateway = Gateway::to(backend.endpoint());
    let before = fds(&gateway);
    let clients: Vec<Client> = (0..TIMES)
        .map(|_| {
            let mut client = gateway.connect();
            client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").read_head();
            client.read_chunk();
            client
        })
        .collect();
    clients.into_iter().for_each(Client::reset);
    assert_nothing_left(&gateway, &backend, before);
    assert_eq!(gateway.backend_errors("body"), 0.0, "it is the client who left");
}

#[test]
fn a_slow_service_is_not_the_clients_fault() {
    let backend = Backend::start(|conn| {
        let head = conn.next_request_head().expect("a request");
        let length: usize = head.get("content-length").expect("a length").parse().expect("a number");
        // The fault: the service does not read for longer than a body may take.
        std::thread::sleep(Duration::from_millis(1500));
        conn.read_exact(length);
        conn.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
        conn.stall();
    });
    let setup = Setup {
        listener: "timeouts: { body: 300ms, body_rate: 64MiB }",
        route: "limits: { body: off }",
        ..Setup::default()
    };
    let gateway = setup.start(backend.endpoint());
    let mut client = gateway.connect();
    let (first, second) = (32 << 20, 1 << 20);
    client.send(format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n", first + second));
    client.send(vec![b'x'; first]);
    // A short pause, once all of that was taken.
    std::thread::sleep(Duration::from_millis(100));
    let _ = client.try_send(vec![b'x'; second]);
    assert_eq!(client.read_response().status(), 200);
}
