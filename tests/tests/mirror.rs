//! Copies of requests for another service: which there are, what they look like, and that the original does not feel them.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use ringway_tests::failing::{Fickle, Mood};
use ringway_tests::{Backend, Gateway, Message, Nobody, PATIENCE, eventually};

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

fn config(app: &str, shadow: &str, mirror: &str, more: &str) -> String {
    format!(
        "services: [{{ name: app, endpoints: \"{app}\" }}, {{ name: shadow, endpoints: \"{shadow}\" {more} }}]\n\
         routes:\n  - name: all\n    service: app\n    mirror: {{ service: shadow{mirror} }}\n"
    )
}

fn mirrored(gateway: &Gateway, outcome: &str) -> f64 {
    gateway.metric(&format!("gateway_mirrored_requests_total{{route=\"all\",outcome=\"{outcome}\"}}"))
}

#[track_caller]
fn expect(gateway: &Gateway, outcome: &str, count: f64) {
    eventually(PATIENCE, || mirrored(gateway, outcome) == count);
}

/// A backend that keeps what it is asked.
fn keeping() -> (Backend, Arc<Mutex<Vec<Message>>>) {
    let kept: Arc<Mutex<Vec<Message>>> = Arc::default();
    let requests = Arc::clone(&kept);
    let backend = Backend::start(move |conn| {
        while let Some(request) = conn.next_request() {
            requests.lock().expect("a list").push(request);
            conn.send(OK);
        }
    });
    (backend, kept)
}

#[test]
fn a_copy_is_the_request_with_a_mark_and_without_credentials() {
    let (app, shadow) = (Backend::ok(), keeping());
    let route = "    host: endpoint\n    authenticate: keys\n    request_headers: { set: { x-set: \"1\" } }\n    rewrite: { path: /new }\n";
    let directory = tempfile::tempdir().expect("a directory");
    let (key, hash) = ringway_core::auth::api_key::generate([7; 32]);
    let file = directory.path().join("keys.yaml");
    std::fs::write(&file, format!("clients: [{{ name: me, keys: [{{ hash: \"{hash}\" }}] }}]\n")).expect("a file");
    let keys = format!(
        "authenticators: [{{ name: keys, api_keys: {{ file: \"{}\", forward_credentials: none }} }}]\n",
        file.display()
    );
    let gateway = Gateway::start(&format!("{keys}{}{route}", config(app.endpoint(), shadow.0.endpoint(), "", "")));
    let ask = |key: &str| {
        let head = format!("POST /old?a=b HTTP/1.1\r\nHost: a\r\nX-API-Key: {key}\r\nX-Mirrored: no\r\n");
        gateway.connect().ask(format!("{head}Expect: 100-continue\r\nContent-Length: 5\r\n\r\nhello")).status()
    };
    assert_eq!(ask(&key), 200);
    expect(&gateway, "answered", 1.0);
    assert_eq!(ask("wrong"), 401);
    let copies = shadow.1.lock().expect("a list");
    let (copy, original) = (&copies[0], app.request());
    assert_eq!(
        (copies.len(), copy.text().as_str(), copy.target(), original.target()),
        (1, "hello", "/new?a=b", "/new?a=b")
    );
    for name in ["x-set", "x-request-id", "x-forwarded-for", "content-length", "via"] {
        assert!(copy.has(name) && copy.get(name) == original.get(name), "{name}");
    }
    assert_eq!(copy.all("x-mirrored").collect::<Vec<_>>(), ["true"]);
    assert_eq!((copy.get("host"), original.get("host")), (Some(shadow.0.endpoint()), Some(app.endpoint())));
    assert!(!copy.has("x-api-key") && !copy.has("expect") && original.get("x-mirrored") == Some("no"));
    assert_eq!(gateway.metric("gateway_backend_duration_seconds_count{service=\"shadow\"}"), 1.0);
}

#[test]
fn bodies_that_come_in_pieces_are_copied_when_they_are_whole() {
    let ((app, originals), (shadow, copies)) = (keeping(), keeping());
    let gateway = Gateway::start(&config(app.endpoint(), shadow.endpoint(), ", body_max: 128B", ""));
    let piecewise = |head: &str, pieces: &[&str]| {
        let mut client = gateway.connect();
        client.send(format!("POST / HTTP/1.1\r\nHost: a\r\n{head}\r\n\r\n"));
        for piece in pieces {
            client.send_slowly(piece, Duration::from_millis(2));
        }
        client.read_response().status()
    };
    assert_eq!(piecewise("Content-Length: 10", &["hello", "world"]), 200);
    expect(&gateway, "answered", 1.0);
    assert_eq!(piecewise("Transfer-Encoding: chunked", &["5\r\nhello\r\n", "5\r\nworld\r\n0\r\n\r\n"]), 200);
    expect(&gateway, "answered", 2.0);
    // Too long, as is known at once, and with the last piece.
    assert_eq!(piecewise("Content-Length: 129", &["x", &"x".repeat(128)]), 200);
    expect(&gateway, "body_too_large", 1.0);
    let long = format!("64\r\n{}\r\n", "x".repeat(100));
    assert_eq!(piecewise("Transfer-Encoding: chunked", &[&long, &long, "0\r\n\r\n"]), 200);
    expect(&gateway, "body_too_large", 2.0);
    let texts = |kept: &Mutex<Vec<Message>>| kept.lock().expect("a list").iter().map(Message::text).collect::<Vec<_>>();
    assert_eq!(texts(&copies), ["helloworld", "helloworld"]);
    assert_eq!(texts(&originals).iter().map(String::len).collect::<Vec<_>>(), [10, 10, 129, 200]);

    // One that does not come whole is nobody's.
    let mut client = gateway.connect();
    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nhello");
    eventually(PATIENCE, || app.requests().len() == 5);
    client.reset();
    expect(&gateway, "aborted", 1.0);
    assert_eq!(shadow.requests().len(), 2);
}

#[test]
fn whatever_becomes_of_the_copy_the_original_is_answered() {
    let app = Backend::ok();
    // Nobody there, an error, no answer at all, an answer without an end.
    let nobody = Nobody::new();
    let broken = Fickle::new("x");
    broken.set(Mood::Broken);
    let silent = Backend::start(|conn| {
        conn.request();
        conn.stall();
    });
    let endless = Backend::start(|conn| {
        conn.request();
        conn.send("HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nx");
        conn.stall();
    });
    for (shadow, outcome) in [
        (nobody.endpoint(), "failed"),
        (broken.endpoint(), "server_error"),
        (silent.endpoint(), "failed"),
        (endless.endpoint(), "failed"),
    ] {
        let gateway = Gateway::start(&config(app.endpoint(), shadow, ", timeout: 2s", ""));
        let begun = Instant::now();
        let mut client = gateway.connect();
        for _ in 0..3 {
            assert_eq!(client.get("/").text(), "ok");
        }
        // Each would have waited for two seconds.
        assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
        expect(&gateway, outcome, 3.0);
        assert_eq!(gateway.log_line(3)["backendService"], "app");
    }
}

#[test]
fn no_more_copies_than_places_and_upgrades_are_none() {
    let app = Backend::ok();
    let silent = Backend::start(|conn| {
        conn.request();
        conn.stall();
    });
    let gateway = Gateway::start(&config(app.endpoint(), silent.endpoint(), ", in_flight: 2, timeout: 2s", ""));
    let mut client = gateway.connect();
    for _ in 0..5 {
        assert_eq!(client.get("/").status(), 200);
    }
    eventually(PATIENCE, || silent.requests().len() == 2);
    expect(&gateway, "in_flight", 3.0);
    client.ask("GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n");
    expect(&gateway, "upgrade", 1.0);
    // Their places are free again when they are given up.
    expect(&gateway, "failed", 2.0);
    assert_eq!(client.get("/").status(), 200);
    eventually(PATIENCE, || silent.requests().len() == 3);
}

#[test]
fn a_share_is_copied_and_a_breaker_spares_the_shadow() {
    let (app, shadow) = (Backend::ok(), Fickle::new("x"));
    let gateway = Gateway::start(&config(app.endpoint(), shadow.endpoint(), ", share: 25%", ""));
    let mut client = gateway.connect();
    for _ in 0..400 {
        assert_eq!(client.get("/").status(), 200);
    }
    let copies = || mirrored(&gateway, "answered") + mirrored(&gateway, "in_flight");
    eventually(PATIENCE, || copies() >= 50.0);
    assert!((50.0..=150.0).contains(&copies()), "{}", copies());

    shadow.set(Mood::Broken);
    let breaker = ", circuit_breaker: { consecutive_failures: 3, open: 1h }";
    let gateway = Gateway::start(&config(app.endpoint(), shadow.endpoint(), "", breaker));
    let mut client = gateway.connect();
    for round in 1..=5 {
        assert_eq!(client.get("/").status(), 200);
        let told = || mirrored(&gateway, "server_error") + mirrored(&gateway, "breaker_open");
        eventually(PATIENCE, || told() == f64::from(round));
    }
    assert_eq!((mirrored(&gateway, "server_error"), mirrored(&gateway, "breaker_open")), (3.0, 2.0));
}

#[test]
fn copies_take_places_of_the_shadow_service_and_none_of_them_waits() {
    let app = Backend::ok();
    let silent = Backend::start(|conn| {
        conn.request();
        conn.stall();
    });
    let bulkhead = ", bulkhead: { requests: 2, pending: 10, wait: 10s }";
    let gateway = Gateway::start(&config(app.endpoint(), silent.endpoint(), ", timeout: 2s", bulkhead));
    let begun = Instant::now();
    let mut client = gateway.connect();
    for _ in 0..5 {
        assert_eq!(client.get("/").text(), "ok");
    }
    assert!(begun.elapsed() < Duration::from_millis(1_500), "{:?}", begun.elapsed());
    expect(&gateway, "bulkhead_full", 3.0);
    let of_shadow = |name: &str| gateway.metric(&format!("gateway_bulkhead_{name}"));
    assert_eq!(of_shadow("requests{service=\"shadow\"}"), 2.0);
    assert_eq!(of_shadow("rejected_total{service=\"shadow\",reason=\"requests\"}"), 3.0);
    // Their places are free again when they are given up.
    expect(&gateway, "failed", 2.0);
    assert_eq!(of_shadow("requests{service=\"shadow\"}"), 0.0);
    assert_eq!(client.get("/").status(), 200);
    eventually(PATIENCE, || silent.requests().len() == 3);
}
