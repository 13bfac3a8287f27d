//! Drain and reload, with traffic.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use ringway_tests::{Backend, Client, Gateway, PATIENCE, Setup, eventually, settles_at};

/// A backend that holds each request for `/held` until it is let go.
fn holding_backend() -> (Backend, Arc<AtomicBool>) {
    let go = Arc::new(AtomicBool::new(false));
    let may_go = Arc::clone(&go);
    let backend = Backend::start(move |conn| {
        while let Some(request) = conn.next_request() {
            if request.target() == "/held" {
                eventually(PATIENCE, || may_go.load(Ordering::Acquire));
            }
            if conn.try_send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").is_err() {
                return;
            }
        }
    });
    (backend, go)
}

#[test]
fn a_drain_ends_idle_connections_and_lets_requests_finish() {
    let (backend, go) = holding_backend();
    let mut gateway = Gateway::to(backend.endpoint());
    let mut idle = gateway.connect();
    idle.get("/");
    let mut held = gateway.connect();
    held.send("GET /held HTTP/1.1\r\nHost: a\r\n\r\n");
    // The next request is sent ahead: it is not served any more, and its sender can tell.
    held.send("GET /next HTTP/1.1\r\nHost: a\r\n\r\n");
    eventually(PATIENCE, || backend.requests().len() == 2);

    gateway.terminate();
    idle.expect_closed();
    assert_eq!(gateway.admin("/ready").0, 503);
    eventually(PATIENCE, || std::net::TcpStream::connect(gateway.address()).is_err());
    go.store(true, Ordering::Release);
    let answer = held.read_response();
    assert_eq!((answer.status(), answer.get("connection")), (200, Some("close")));
    held.expect_closed();
    assert!(gateway.wait_exit(PATIENCE).success(), "{}", gateway.stderr());
    assert_eq!(backend.requests().len(), 2, "what was sent ahead is not served");
    assert_eq!(gateway.log_lines().len(), 2, "the last lines are written");
}

#[test]
fn a_drain_does_not_wait_for_ever() {
    let (backend, _go) = holding_backend();
    let setup = Setup { sections: "drain: { notice: 0s, timeout: 500ms }\n", ..Setup::default() };
    let mut gateway = setup.start(backend.endpoint());
    let mut held = gateway.connect();
    held.send("GET /held HTTP/1.1\r\nHost: a\r\n\r\n");
    eventually(PATIENCE, || backend.requests().len() == 1);
    gateway.terminate();
    assert!(gateway.wait_exit(PATIENCE).success(), "{}", gateway.stderr());
    held.expect_end();
}

#[test]
fn notice_comes_before_the_drain() {
    let (backend, _go) = holding_backend();
    let setup = Setup { sections: "drain: { notice: 1s, timeout: 5s }\n", ..Setup::default() };
    let mut gateway = setup.start(backend.endpoint());
    let mut client = gateway.connect();
    client.get("/");
    gateway.terminate();
    settles_at(503, || gateway.admin("/ready").0);
    assert_eq!(client.get("/").get("connection"), None, "all goes on");
    assert_eq!(gateway.get("/").status(), 200, "new connections too");
    client.expect_closed();
    assert!(gateway.wait_exit(PATIENCE).success());
}

#[test]
fn a_drain_under_load_fails_no_request() {
    let backend = Backend::ok();
    let mut gateway = Setup::default().start(backend.endpoint());
    let address = gateway.address();
    let workers: Vec<_> = (0..8)
        .map(|_| {
            thread::spawn(move || {
                let mut served = 0;
                let mut client = Client::connect(address);
                loop {
                    // Between two requests the gateway may close; a request that it has begun to answer is whole.
                    if client.is_over() || client.try_send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").is_err() {
                        return served;
                    }
                    let Ok(head) = client.next_head() else { return served };
                    assert_eq!(head.status(), 200);
                    assert_eq!(client.read_exact(2), b"ok");
                    served += 1;
                    if head.get("connection") == Some("close") {
                        client.expect_end();
                        return served;
                    }
                }
            })
        })
        .collect();
    eventually(PATIENCE, || backend.requests().len() > 500);
    gateway.terminate();
    let served: usize = workers.into_iter().map(|worker| worker.join().expect("a client")).sum();
    assert!(gateway.wait_exit(PATIENCE).success());
    assert_eq!(gateway.log_lines().iter().filter(|line| line["statusCode"] == 200).count(), served);
    assert_eq!(gateway.log_lines().len(), served);
}

#[test]
fn reloads_under_load_fail_no_request() {
    let backends = [Backend::ok(), Backend::ok()];
    let setup = Setup { sections: "runtime: { workers: 2, pin: false }\n", ..Setup::default() };
    let configs = backends.each_ref().map(|backend| setup.yaml(backend.endpoint()));
    let gateway = Gateway::start(&configs[0]);
    let address = gateway.address();
    let stop = Arc::new(AtomicBool::new(false));
    let workers: Vec<_> = (0..6)
        .map(|i| {
            let stop = Arc::clone(&stop);
            thread::spawn(move || {
                let mut client = Client::connect(address);
                while !stop.load(Ordering::Acquire) {
                    let answer = match i % 2 {
                        0 => client.get("/"),
                        _ => client.ask("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi"),
                    };
                    assert_eq!((answer.status(), answer.get("connection")), (200, None));
                }
            })
        })
        .collect();
    for round in 1..=10 {
        assert!(gateway.replace_config(&configs[round % 2]));
        // The new service is in use before the next change.
        let before = backends[round % 2].requests().len();
        eventually(PATIENCE, || backends[round % 2].requests().len() > before);
    }
    stop.store(true, Ordering::Release);
    workers.into_iter().for_each(|worker| worker.join().expect("a client"));
    assert!(gateway.log_lines().iter().all(|line| line["statusCode"] == 200));
    assert_eq!(gateway.metric("gateway_worker_panics_total"), 0.0);
}

#[test]
fn a_request_in_flight_finishes_under_the_old_configuration() {
    let (backend, go) = holding_backend();
    let header = |value| format!("response_headers: {{ set: {{ x-config: {value} }} }}");
    let yaml = |value| Setup { route: &header(value), ..Setup::default() }.yaml(backend.endpoint());
    let gateway = Gateway::start(&yaml("old"));
    let mut held = gateway.connect();
    held.send("GET /held HTTP/1.1\r\nHost: a\r\n\r\n");
    eventually(PATIENCE, || backend.requests().len() == 1);
    assert!(gateway.replace_config(&yaml("new")));
    assert_eq!(gateway.get("/").get("x-config"), Some("new"));
    go.store(true, Ordering::Release);
    assert_eq!(held.read_response().get("x-config"), Some("old"));
    assert_eq!(held.get("/").get("x-config"), Some("new"));
}
