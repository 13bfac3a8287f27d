//! The end of the process: what is open when `SIGTERM` comes ends well, in time.

use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

use ringway_tests::{Backend, Gateway, Load, PATIENCE, eventually, settles_at};
use rustix::process::Signal;

/// Longer than anything here takes, so that a drain that waits for it shows.
const LONG: Duration = Duration::from_secs(10);

fn config(backend: &Backend, drain: &str, more: &str) -> String {
    format!("drain: {{ {drain} }}\n{more}{}", Gateway::route_to(backend.endpoint()))
}

/// Ends a gateway and waits until its notice is over.
fn drain(gateway: &Gateway) {
    gateway.terminate();
    eventually(PATIENCE, || gateway.admin("/ready").1.contains("draining"));
}

/// Whether nobody listens any more. A connection that comes while the last handshakes end is dropped, and refused when
/// its SYN comes again.
fn is_refused(gateway: &Gateway) -> bool {
    TcpStream::connect_timeout(&gateway.address(), Duration::from_millis(100)).is_err()
}

/// Answers `/slow` after this time, the rest at once.
fn slow(pause: Duration) -> Backend {
    Backend::start(move |conn| {
        while let Some(request) = conn.next_request() {
            if request.target() == "/slow" {
                thread::sleep(pause);
            }
            conn.send("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ndone");
        }
    })
}

#[test]
fn readiness_fails_at_once_while_new_connections_are_served_through_the_notice() {
    let backend = Backend::ok();
    let mut gateway = Gateway::start(&config(&backend, "notice: 3s, timeout: 10s", ""));
    assert_eq!(gateway.admin("/ready").0, 200);
    let begun = Instant::now();
    gateway.terminate();
    settles_at(503, || gateway.admin("/ready").0);
    assert_eq!(gateway.admin("/health").0, 200);
    // So soon that new connections have most of the notice before them.
    for _ in 0..20 {
        assert_eq!(gateway.get("/").status(), 200);
    }
    eventually(PATIENCE, || is_refused(&gateway));
    assert!(begun.elapsed() >= Duration::from_secs(3), "the notice ended early: {:?}", begun.elapsed());
    assert!(gateway.wait_exit(PATIENCE).success(), "{}", gateway.stderr());
}

#[test]
fn idle_connections_are_closed_after_the_notice() {
    let backend = Backend::ok();
    let mut gateway = Gateway::start(&config(&backend, "notice: 300ms, timeout: 10s", ""));
    let mut used = gateway.connect();
    assert_eq!(used.get("/").status(), 200);
    let mut fresh = gateway.connect();
    let begun = Instant::now();
    gateway.terminate();
    used.expect_closed();
    fresh.expect_closed();
    assert!(begun.elapsed() >= Duration::from_millis(300), "{:?}", begun.elapsed());
    assert!(gateway.wait_exit(PATIENCE).success(), "{}", gateway.stderr());
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    assert!(!gateway.stderr().contains("cut off"), "{}", gateway.stderr());
    backend.expect_all_closed();
}

#[test]
fn a_request_in_flight_gets_its_answer_and_the_connection_ends() {
    let backend = slow(Duration::from_millis(1500));
    let mut gateway = Gateway::start(&config(&backend, "notice: 0s, timeout: 10s", ""));
    let mut client = gateway.connect();
    client.send("GET /slow HTTP/1.1\r\nHost: test\r\n\r\n");
    settles_at(1, || backend.requests().len());
    drain(&gateway);
    let answer = client.read_response();
    assert_eq!((answer.status(), answer.text().as_str()), (200, "done"));
    assert_eq!(answer.get("connection"), Some("close"));
    client.expect_closed();
    assert!(gateway.wait_exit(PATIENCE).success());
    assert_eq!(gateway.log_lines().len(), 1, "the last line is written");
}

#[test]
fn a_body_that_is_on_its_way_arrives() {
    let backend = Backend::echo();
    let mut gateway = Gateway::start(&config(&backend, "notice: 0s, timeout: 10s", ""));
    let mut client = gateway.connect();
    client.send("POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 6\r\n\r\nabc");
    settles_at(1, || backend.requests().len());
    drain(&gateway);
    thread::sleep(Duration::from_millis(300));
    client.send("def");
    assert_eq!(client.read_response().text(), "abcdef");
    client.expect_closed();
    assert!(gateway.wait_exit(PATIENCE).success());
}

#[test]
fn a_client_that_sends_its_next_request_in_time_is_served() {
    let backend = Backend::ok();
    let mut gateway = Gateway::start(&config(&backend, "notice: 0s, timeout: 10s", ""));
    // Between two requests, and between its connection and its first request: a close now would cross them.
    let (mut used, mut fresh) = (gateway.connect(), gateway.connect());
    assert_eq!(used.get("/").status(), 200);
    settles_at(2.0, || gateway.metric("gateway_active_connections"));
    drain(&gateway);
    thread::sleep(Duration::from_millis(200));
    for client in [&mut used, &mut fresh] {
        let answer = client.get("/");
        assert_eq!((answer.status(), answer.get("connection")), (200, Some("close")));
        client.expect_closed();
    }
    assert!(gateway.wait_exit(PATIENCE).success());
}

#[test]
fn what_takes_longer_than_the_timeout_is_cut_off() {
    let backend = slow(LONG);
    let mut gateway = Gateway::start(&config(&backend, "notice: 0s, timeout: 1s", ""));
    let mut client = gateway.connect();
    client.send("GET /slow HTTP/1.1\r\nHost: test\r\n\r\n");
    settles_at(1, || backend.requests().len());
    let begun = Instant::now();
    gateway.terminate();
    client.expect_end();
    assert!(gateway.wait_exit(PATIENCE).success());
    let took = begun.elapsed();
    assert!(took >= Duration::from_secs(1) && took < LONG, "{took:?}");
    assert!(gateway.stderr().contains("1 connections cut off"), "{}", gateway.stderr());
}

#[test]
fn a_second_signal_ends_at_once() {
    for (second, code) in [(Signal::TERM, 143), (Signal::INT, 130)] {
        let backend = slow(LONG);
        let mut gateway = Gateway::start(&config(&backend, "notice: 30s, timeout: 30s", ""));
        let mut client = gateway.connect();
        client.send("GET /slow HTTP/1.1\r\nHost: test\r\n\r\n");
        settles_at(1, || backend.requests().len());
        gateway.terminate();
        settles_at(503, || gateway.admin("/ready").0);
        let begun = Instant::now();
        gateway.signal(second);
        assert_eq!(gateway.wait_exit(PATIENCE).code(), Some(code));
        assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    }
}

#[test]
fn the_admin_listener_answers_to_the_end() {
    let backend = slow(Duration::from_millis(1000));
    let mut gateway = Gateway::start(&config(&backend, "notice: 0s, timeout: 10s", ""));
    let mut client = gateway.connect();
    client.send("GET /slow HTTP/1.1\r\nHost: test\r\n\r\n");
    settles_at(1, || backend.requests().len());
    drain(&gateway);
    let (status, body) = gateway.admin("/ready");
    assert!(status == 503 && body.contains("draining"), "{body}");
    assert_eq!(gateway.metric("gateway_active_requests"), 1.0);
    assert!(is_refused(&gateway));
    assert_eq!(client.read_response().status(), 200);
    assert!(gateway.wait_exit(PATIENCE).success());
}

/// Ends a gateway under load again and again; every request is answered.
fn drains_under_load(more: &str, rounds: usize) {
    for _ in 0..rounds {
        let backend = Backend::ok();
        let mut gateway = Gateway::start(&config(&backend, "notice: 200ms, timeout: 10s", more));
        let load = Load::start(gateway.address(), 6, &["/a", "/b"]);
        eventually(PATIENCE, || load.answered() > 200);
        gateway.terminate();
        assert!(gateway.wait_exit(PATIENCE).success(), "{}", gateway.stderr());
        // Every client finds nobody listening at last.
        settles_at(6, || load.ended());
        let answered = load.finish();
        assert_eq!(gateway.log_lines().len() as u64, answered, "each has its line");
        assert!(!gateway.stderr().contains("cut off"), "{}", gateway.stderr());
    }
}

#[test]
fn no_request_fails_under_load() {
    drains_under_load("", 6);
}

#[test]
fn no_request_fails_under_load_with_two_workers() {
    drains_under_load("runtime: { workers: 2, pin: false }\n", 6);
}

#[test]
fn no_request_fails_under_load_on_epoll() {
    drains_under_load("runtime: { workers: 1, pin: false, driver: epoll }\n", 4);
}

#[test]
fn connections_that_wait_to_be_accepted_are_served() {
    let backend = Backend::ok();
    // 300 connections reach the backend at once, and its machine may be busy.
    let yaml = config(&backend, "notice: 0s, timeout: 10s", "");
    let yaml = yaml.replace("name: app, endpoints", "name: app, timeouts: { connect: 10s }, endpoints");
    let mut gateway = Gateway::start(&yaml);
    // More than the gateway accepts in one go, all of them before it learns that it is to end.
    gateway.signal(Signal::STOP);
    let mut clients: Vec<_> = (0..300).map(|_| gateway.connect()).collect();
    for client in &mut clients {
        client.send("GET / HTTP/1.1\r\nHost: test\r\n\r\n");
    }
    gateway.terminate();
    gateway.signal(Signal::CONT);
    for client in &mut clients {
        assert_eq!(client.read_response().status(), 200);
    }
    assert!(gateway.wait_exit(PATIENCE).success());
}
