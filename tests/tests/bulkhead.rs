//! Services that have so many requests in flight and no more, through the real binary.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use ringway_tests::failing::Clients;
use ringway_tests::{Backend, Client, Gateway, Message, PATIENCE, Setup, eventually, settles_at, websocket};
use serde_json::Value;

const TWO_WORKERS: &str = "runtime: { workers: 2, pin: false, driver: \"${env:RINGWAY_TEST_DRIVER:-auto}\" }\n";
const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
const GET: &str = "GET / HTTP/1.1\r\nHost: test\r\n\r\n";

/// A service that takes its time, and knows how many requests it has at most.
struct Busy {
    backend: Backend,
    inside: Arc<AtomicUsize>,
    most: Arc<AtomicUsize>,
}

impl Busy {
    /// `takes`: how long with so many requests inside.
    fn start(takes: impl Fn(usize) -> Duration + Send + Sync + 'static) -> Self {
        let (inside, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let (count, peak) = (Arc::clone(&inside), Arc::clone(&most));
        let backend = Backend::start(move |conn| {
            while conn.next_request().is_some() {
                let now = count.fetch_add(1, Ordering::AcqRel) + 1;
                peak.fetch_max(now, Ordering::AcqRel);
                thread::sleep(takes(now));
                count.fetch_sub(1, Ordering::AcqRel);
                conn.send(OK);
            }
        });
        Self { backend, inside, most }
    }
}

/// A service that holds every request until it is let go.
fn holding() -> (Backend, Arc<AtomicBool>, Arc<AtomicUsize>) {
    let (goes, held) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let (go, count) = (Arc::clone(&goes), Arc::clone(&held));
    let backend = Backend::start(move |conn| {
        while conn.next_request().is_some() {
            count.fetch_add(1, Ordering::AcqRel);
            while !go.load(Ordering::Acquire) && !conn.is_over() {
                thread::sleep(Duration::from_millis(2));
            }
            count.fetch_sub(1, Ordering::AcqRel);
            conn.send(OK);
        }
    });
    (backend, goes, held)
}

fn of_app(gateway: &Gateway, name: &str) -> f64 {
    gateway.metric(&format!("gateway_{name}{{service=\"app\"}}"))
}

fn rejected(gateway: &Gateway, reason: &str) -> f64 {
    gateway.metric(&format!("gateway_bulkhead_rejected_total{{service=\"app\",reason=\"{reason}\"}}"))
}

fn service(gateway: &Gateway) -> Value {
    serde_json::from_str::<Value>(&gateway.admin("/services").1).unwrap()[0].clone()
}

fn begin(gateway: &Gateway) -> Client {
    let mut client = gateway.connect();
    client.send(GET);
    client
}

#[track_caller]
fn expect_refused(answer: &Message) {
    let seconds: u32 = answer.get("retry-after").expect("Retry-After").parse().unwrap();
    assert_eq!((answer.status(), (1..=2).contains(&seconds)), (503, true), "{}", answer.text());
    assert_eq!(answer.json()["error"], "Service temporarily unavailable");
    assert_ne!(answer.get("connection"), Some("close"));
}

#[test]
fn a_service_never_has_more_requests_than_it_may_and_the_others_are_refused_at_once() {
    let busy = Busy::start(|_| Duration::from_millis(50));
    let setup = Setup { service: "bulkhead: { requests: 10 }", sections: TWO_WORKERS, ..Setup::default() };
    let gateway = setup.start(busy.backend.endpoint());
    {
        let clients = Clients::start(gateway.address(), 40, 4_000);
        clients.more(2_000);
        let statuses = clients.statuses();
        assert!(statuses.keys().all(|status| [200, 503].contains(status)), "{statuses:?}");
        assert!(statuses[&200] > 0 && statuses[&503] > 0, "{statuses:?}");
    }
    assert_eq!(busy.most.load(Ordering::Acquire), 10);
    gateway.expect_idle();
    let lines = gateway.log_lines();
    let mut took: Vec<f64> = lines
        .iter()
        .filter(|line| line["statusCode"] == 503)
        .map(|line| {
            assert_eq!((&line["shed"], &line["backendService"]), (&"requests".into(), &"app".into()), "{line}");
            line["latencyMs"].as_f64().unwrap()
        })
        .collect();
    took.sort_by(f64::total_cmp);
    // Whoever waited for anything waited for the service, which takes 50 ms. All but those at whose moment the machine, which
    // has fewer cores than threads here, was elsewhere.
    assert!(took[took.len() * 9 / 10] < 25.0, "{:?}", took.last());
    assert_eq!((of_app(&gateway, "bulkhead_requests"), gateway.backend_errors("no_endpoint")), (0.0, 0.0));
    assert!(rejected(&gateway, "requests") >= took.len() as f64);
    assert!(lines.iter().filter(|line| line["statusCode"] == 200).all(|line| line.get("shed").is_none()));
}

#[test]
fn places_come_back_and_refusals_are_no_failures() {
    let (backend, goes, held) = holding();
    let keys = "bulkhead: { requests: 2 }, retries: {}, \
                circuit_breaker: { min_requests: 1, consecutive_failures: 1 }, outlier_ejection: { consecutive_failures: 1 }";
    let gateway = Setup { service: keys, ..Setup::default() }.start(backend.endpoint());
    let mut clients = [begin(&gateway), begin(&gateway)];
    settles_at(2, || held.load(Ordering::Acquire));
    let mut third = gateway.connect();
    for _ in 0..5 {
        expect_refused(&third.get("/"));
    }
    assert_eq!((rejected(&gateway, "requests"), of_app(&gateway, "bulkhead_requests")), (5.0, 2.0));
    let seen = service(&gateway);
    assert_eq!((&seen["bulkhead"]["requests"], &seen["bulkhead"]["limit"]), (&2.into(), &2.into()), "{seen}");
    assert_eq!(gateway.metric("gateway_circuit_breaker_state{service=\"app\"}"), 0.0);
    assert_eq!(gateway.metric("gateway_retries_denied_total{service=\"app\",reason=\"budget\"}"), 0.0);

    // One that goes away gives its place to another.
    let [gone, mut stays] = std::mem::replace(&mut clients, [gateway.connect(), gateway.connect()]);
    gone.reset();
    settles_at(1.0, || of_app(&gateway, "bulkhead_requests"));
    goes.store(true, Ordering::Release);
    assert_eq!((third.get("/").status(), stays.read_response().status()), (200, 200));
    settles_at(0.0, || of_app(&gateway, "bulkhead_requests"));

    // A reload keeps what is counted, and other limits act at once.
    goes.store(false, Ordering::Release);
    stays.send(GET);
    settles_at(1.0, || of_app(&gateway, "bulkhead_requests"));
    let less = Setup { service: "bulkhead: { requests: 1 }", ..Setup::default() };
    assert!(gateway.replace_config(&less.yaml(backend.endpoint())));
    expect_refused(&gateway.get("/"));
    goes.store(true, Ordering::Release);
    assert_eq!(stays.read_response().status(), 200);
    assert_eq!(gateway.get("/").status(), 200);
}

#[test]
fn so_many_wait_for_so_long_and_get_their_places_in_order() {
    let (backend, goes, held) = holding();
    let keys = "bulkhead: { requests: 1, pending: 2, wait: 10s }";
    let gateway = Setup { service: keys, ..Setup::default() }.start(backend.endpoint());
    let mut first = begin(&gateway);
    settles_at(1, || held.load(Ordering::Acquire));
    let mut waiting = Vec::new();
    for count in 1..=2 {
        waiting.push(begin(&gateway));
        settles_at(f64::from(count), || of_app(&gateway, "bulkhead_pending_requests"));
    }
    expect_refused(&gateway.get("/"));
    assert_eq!((rejected(&gateway, "pending"), backend.requests().len()), (1.0, 1));
    assert_eq!(gateway.log_line(1)["shed"], "pending");
    goes.store(true, Ordering::Release);
    assert_eq!(first.read_response().status(), 200);
    for client in &mut waiting {
        assert_eq!(client.read_response().status(), 200);
    }
    settles_at([0.0; 2], || ["bulkhead_requests", "bulkhead_pending_requests"].map(|name| of_app(&gateway, name)));

    goes.store(false, Ordering::Release);
    let setup = Setup { service: "bulkhead: { requests: 1, pending: 2, wait: 50ms }", ..Setup::default() };
    assert!(gateway.replace_config(&setup.yaml(backend.endpoint())));
    first.send(GET);
    settles_at(1, || held.load(Ordering::Acquire));
    let begun = Instant::now();
    let mut late = [begin(&gateway), begin(&gateway)];
    for client in &mut late {
        expect_refused(&client.read_response());
    }
    assert!((Duration::from_millis(50)..PATIENCE / 4).contains(&begun.elapsed()), "{:?}", begun.elapsed());
    assert_eq!(rejected(&gateway, "timeout"), 2.0);
    goes.store(true, Ordering::Release);
    assert_eq!(first.read_response().status(), 200);
}

#[test]
fn what_an_auth_service_is_asked_takes_its_places() {
    let (auth, goes, held) = holding();
    let app = Backend::ok();
    let yaml = |bulkhead: &str| {
        format!(
            "services: [{{ name: back, endpoints: \"{}\" }}, {{ name: app, endpoints: \"{}\", bulkhead: {bulkhead} }}]\n\
             authenticators: [{{ name: a, auth_service: {{ service: app, timeout: 10s, cache: {{ ttl: off }}, breaker: {{ failures: 1 }} }} }}]\n\
             routes: [{{ name: all, service: back, authenticate: a }}]\n",
            app.endpoint(),
            auth.endpoint()
        )
    };
    let gateway = Gateway::start(&yaml("{ requests: 1 }"));
    let ask = |token: &str| {
        let mut client = gateway.connect();
        client.send(format!("GET / HTTP/1.1\r\nHost: test\r\nAuthorization: Bearer {token}\r\n\r\n"));
        client
    };
    let mut first = ask("a");
    settles_at(1, || held.load(Ordering::Acquire));
    assert_eq!(of_app(&gateway, "bulkhead_requests"), 1.0);
    for count in 1..=3 {
        assert_eq!(ask("b").read_response().status(), 503);
        assert_eq!((rejected(&gateway, "requests"), auth.requests().len()), (f64::from(count), 1));
    }
    // Nobody has failed: the auth service is still asked.
    goes.store(true, Ordering::Release);
    assert_eq!(first.read_response().status(), 200);
    assert_eq!(ask("b").read_response().status(), 200);
    settles_at(0.0, || of_app(&gateway, "bulkhead_requests"));

    // Where requests may wait, so may questions.
    goes.store(false, Ordering::Release);
    assert!(gateway.replace_config(&yaml("{ requests: 1, pending: 1, wait: 10s }")));
    let mut clients = [ask("c")];
    settles_at(1, || held.load(Ordering::Acquire));
    let mut waits = ask("d");
    settles_at(1.0, || of_app(&gateway, "bulkhead_pending_requests"));
    assert_eq!(ask("e").read_response().status(), 503);
    assert_eq!(rejected(&gateway, "pending"), 1.0);
    goes.store(true, Ordering::Release);
    assert_eq!([&mut clients[0], &mut waits].map(|client| client.read_response().status()), [200, 200]);
    settles_at([0.0; 2], || ["bulkhead_requests", "bulkhead_pending_requests"].map(|name| of_app(&gateway, name)));
}

#[test]
fn a_tunnel_counts_as_long_as_it_is_open_but_not_where_latency_decides() {
    let backend = Backend::start(|conn| {
        conn.next_request_head();
        conn.send(
            "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n",
        );
        conn.stall();
    });
    for (keys, counted) in [("bulkhead: { requests: 1 }", 1.0), ("adaptive_concurrency: {}", 0.0)] {
        let gateway = Setup { service: keys, ..Setup::default() }.start(backend.endpoint());
        let tunnel = websocket::open(&gateway, "/");
        settles_at(counted, || of_app(&gateway, "bulkhead_requests"));
        if counted > 0.0 {
            expect_refused(&gateway.get("/"));
        }
        tunnel.reset();
        settles_at(0.0, || of_app(&gateway, "bulkhead_requests"));
    }
}

#[test]
fn a_service_whose_latency_rises_keeps_it_bounded() {
    // Eight at a time take 5 ms; more wait for each other.
    let busy = Busy::start(|inside| Duration::from_micros(5_000 * inside.div_ceil(8) as u64));
    let keys = "adaptive_concurrency: { min: 2, probe_interval: 1s }";
    let setup = Setup { service: keys, sections: TWO_WORKERS, ..Setup::default() };
    let gateway = setup.start(busy.backend.endpoint());
    let clients = Clients::start(gateway.address(), 60, 4_000);
    let limit = || of_app(&gateway, "adaptive_concurrency_limit");
    // It has been found, and what was before it is over.
    let mut settled = Instant::now();
    eventually(PATIENCE, || {
        if !(2.0..=30.0).contains(&limit()) || of_app(&gateway, "adaptive_concurrency_baseline_seconds") > 0.015 {
            settled = Instant::now();
        }
        settled.elapsed() > Duration::from_secs(2)
    });
    busy.most.store(0, Ordering::Release);
    let count = |status: u16| clients.statuses().get(&status).copied().unwrap_or(0);
    let (served, refused) = (count(200), count(503));
    eventually(PATIENCE, || count(200) >= served + 300 && count(503) > refused);
    assert!(busy.most.load(Ordering::Acquire) < 50, "{} of 60 at a time", busy.most.load(Ordering::Acquire));
    assert!(rejected(&gateway, "adaptive") > 0.0);
    drop(clients);
    settles_at(0, || busy.inside.load(Ordering::Acquire));
    assert_eq!(gateway.get("/").status(), 200);
}
