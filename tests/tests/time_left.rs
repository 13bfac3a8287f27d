//! What services are told of the time that a request has left.

use std::thread;
use std::time::Duration;

use ringway_tests::{Backend, Gateway};

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
const BUSY: &str = "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n";
/// Not a field, though it looks like one.
const BODY: &str = "\r\nx-left-ms: 9999\r\n\r\n";

fn start(backend: &Backend, service: &str, route: &str) -> Gateway {
    Gateway::start(&format!(
        "services: [{{ name: app, endpoints: \"{}\", deadline_header: X-Left-Ms, {service} }}]\n\
         routes: [{{ name: all, service: app, {route} }}]\n",
        backend.endpoint()
    ))
}

/// What each request said.
fn told(backend: &Backend) -> Vec<Option<u64>> {
    let value = |head: &ringway_tests::Head| {
        assert!(head.all("x-left-ms").count() <= 1);
        head.get("x-left-ms").map(|text| text.parse().expect("a number"))
    };
    backend.requests().iter().map(value).collect()
}

#[test]
fn a_service_is_told_what_is_left_and_each_retry_less() {
    // Slow to refuse.
    let backend = Backend::start(|conn| {
        while let Some(request) = conn.next_request() {
            thread::sleep(Duration::from_millis(200));
            conn.send(if request.text() == BODY { BUSY } else { OK });
        }
    });
    let gateway = start(&backend, "retries: { attempts: 2, backoff: { base: 0s } }", "timeouts: { request: 10s }");
    let put = format!("PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n{BODY}", BODY.len());
    assert_eq!(gateway.connect().ask(put).status(), 503);
    let told: Vec<u64> = told(&backend).into_iter().map(|told| told.expect("a header")).collect();
    assert_eq!(told.len(), 3);
    assert!((9_000..=10_000).contains(&told[0]), "{told:?}");
    assert!(told[1] <= told[0] - 150 && told[2] <= told[1] - 150, "{told:?}");
    assert!(told[2] >= 5_000, "{told:?}");
}

#[test]
fn the_least_counts_and_nothing_is_told_of_no_limit() {
    let ask = |service: &str, route: &str, fields: &str| {
        let backend = Backend::ok();
        let gateway = start(&backend, service, route);
        let request = format!("GET / HTTP/1.1\r\nHost: a\r\n{fields}\r\n");
        assert_eq!(gateway.connect().ask(request).status(), 200);
        told(&backend)[0]
    };
    let between = |told: Option<u64>, least: u64, most: u64| {
        assert!(told.is_some_and(|told| (least..=most).contains(&told)), "{told:?}");
    };
    assert_eq!(ask("", "", ""), None);
    between(ask("", "timeouts: { request: 20s, per_try: 5s }", ""), 4_000, 5_000);
    between(ask("retries: { per_try_timeout: 3s }", "timeouts: { request: 20s }", ""), 2_000, 3_000);
    // Who asks the gateway gives up sooner, or later.
    between(ask("", "timeouts: { request: 20s }", "x-left-ms: 800\r\n"), 500, 800);
    between(ask("", "timeouts: { request: 2s }", "X-LEFT-MS: 90000\r\n"), 1_000, 2_000);
    between(ask("", "", "x-left-ms: 800\r\n"), 500, 800);
    assert_eq!(ask("", "", "x-left-ms: soon\r\n"), None);
    // What the route says of it itself.
    let own = "timeouts: { request: 20s }, request_headers: { set: { x-left-ms: \"7\" } }";
    assert_eq!(ask("", own, ""), Some(7));
}
