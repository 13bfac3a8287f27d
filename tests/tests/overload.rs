//! A worker with more to do than it can, through the real binary.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use ringway_tests::{Backend, Client, Gateway, PATIENCE, eventually};

/// Few enough for the tests of many clients, much enough to keep a worker busy: a body that is checked.
const NUMBERS: usize = 12_000;
const VALIDATE: &str =
    "validate: { body: { max: 64KiB, schema: { type: array, items: { type: integer, minimum: 0 } } } }";

fn post(path: &str, fields: &str) -> String {
    let body = format!("[{}0]", "1234,".repeat(NUMBERS - 1));
    format!(
        "POST {path} HTTP/1.1\r\nHost: test\r\nContent-Type: application/json\r\n{fields}Content-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

/// Clients that ask the same all the time, and count how often they are answered and refused.
struct Crowd {
    stop: Arc<AtomicBool>,
    /// 200, and 503.
    counts: Arc<[AtomicU64; 2]>,
    threads: Vec<JoinHandle<()>>,
}

impl Crowd {
    fn start(address: SocketAddr, clients: usize, pause: Duration, request: &str) -> Self {
        let (stop, counts) = (Arc::<AtomicBool>::default(), Arc::<[AtomicU64; 2]>::default());
        let run = |_| {
            let (stop, counts, request) = (Arc::clone(&stop), Arc::clone(&counts), request.to_owned());
            thread::spawn(move || {
                let mut client = Client::connect(address);
                while !stop.load(Ordering::Acquire) {
                    let answer = client.ask(&request);
                    match answer.status() {
                        200 => counts[0].fetch_add(1, Ordering::AcqRel),
                        503 => {
                            let seconds: u32 = answer.get("retry-after").expect("Retry-After").parse().unwrap();
                            assert!((1..=2).contains(&seconds));
                            counts[1].fetch_add(1, Ordering::AcqRel)
                        }
                        status => panic!("{status}: {}", answer.text()),
                    };
                    if answer.get("connection") == Some("close") {
                        client = Client::connect(address);
                    }
                    thread::sleep(pause);
                }
            })
        };
        let threads = (0..clients).map(run).collect();
        Self { stop, counts, threads }
    }

    fn counts(&self) -> [u64; 2] {
        [0, 1].map(|index| self.counts[index].load(Ordering::Acquire))
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        for thread in self.threads.drain(..) {
            let ended = thread.join();
            if !thread::panicking() {
                ended.expect("a client");
            }
        }
    }
}

fn shed(gateway: &Gateway, route: &str, reason: &str) -> f64 {
    gateway.metric(&format!("gateway_shed_requests_total{{route=\"{route}\",reason=\"{reason}\"}}"))
}

fn yaml(endpoint: &str, overload: &str) -> String {
    format!(
        "listeners: [{{ name: public, address: LISTEN, trusted_proxies: [127.0.0.1] }}]\n\
         overload: {overload}\n\
         services: [{{ name: app, endpoints: \"{endpoint}\" }}]\n\
         routes:\n\
         \x20 - {{ name: critical, match: {{ path: /critical }}, service: app, criticality: critical, {VALIDATE} }}\n\
         \x20 - {{ name: low, match: {{ path: /low }}, service: app, criticality: low, {VALIDATE} }}\n\
         \x20 - {{ name: health, match: {{ path: /health }}, respond: {{ text: ok }}, criticality: low }}\n"
    )
}

#[test]
fn the_less_important_are_refused_first_and_the_critical_are_served() {
    let backend = Backend::ok();
    let gateway = Gateway::start(&yaml(backend.endpoint(), "{ delay: 2ms, interval: 100ms, header: X-Criticality }"));
    let address = gateway.address();
    let critical = Crowd::start(address, 1, Duration::from_millis(20), &post("/critical", ""));
    let by_header = Crowd::start(address, 1, Duration::from_millis(20), &post("/low", "X-Criticality: critical\r\n"));
    let low = Crowd::start(address, 40, Duration::from_millis(1), &post("/low", ""));
    let mut health = gateway.connect();
    eventually(PATIENCE, || {
        assert_eq!(health.get("/health").status(), 200, "what the gateway answers itself is not shed");
        low.counts()[1] >= 500 && critical.counts()[0] >= 100 && by_header.counts()[0] >= 100
    });
    let ratio = || gateway.metric("gateway_worker_shed_ratio{worker=\"0\"}");
    eventually(PATIENCE, || ratio() > 0.0);
    let [[served, lost], [also_served, also_lost], [_, refused]] = [&critical, &by_header, &low].map(Crowd::counts);
    let shares = [(served, lost), (also_served, also_lost)].map(|(served, lost)| lost as f64 / (served + lost) as f64);
    assert!(shares.iter().all(|share| *share < 0.1), "{served} {lost}, {also_served} {also_lost}, {refused}");
    drop((critical, by_header, low));
    assert!(shed(&gateway, "low", "delay") >= refused as f64);

    // It is over.
    eventually(PATIENCE, || ratio() == 0.0);
    let mut client = gateway.connect();
    assert_eq!(client.ask(post("/low", "")).status(), 200);
    drop((client, health));
    gateway.expect_idle();
    let lines = gateway.log_lines();
    let refused = lines.iter().filter(|line| line["statusCode"] == 503);
    let mut took: Vec<f64> = refused
        .map(|line| {
            assert_eq!((&line["shed"], line["backendService"].is_null()), (&"delay".into(), true), "{line}");
            line["latencyMs"].as_f64().unwrap()
        })
        .collect();
    took.sort_by(f64::total_cmp);
    // The others met a worker, or a machine, that was at something else.
    assert!(took[took.len() / 2] < 5.0, "{:?}", took.last());
}

/// A token of this tier, signed with this secret.
fn token(tier: &str, secret: &str) -> String {
    let claims = serde_json::json!({ "sub": tier, "tier": tier, "exp": 4_000_000_000_u64 });
    let key = jsonwebtoken::EncodingKey::from_secret(secret.as_bytes());
    format!(
        "Authorization: Bearer {}\r\n",
        jsonwebtoken::encode(&jsonwebtoken::Header::default(), &claims, &key).unwrap()
    )
}

#[test]
fn a_claim_that_was_verified_goes_before_the_route_and_one_that_was_not_says_nothing() {
    const SECRET: &str = "0123456789abcdef0123456789abcdef";
    let backend = Backend::ok();
    let gateway = Gateway::start(&format!(
        "overload: {{ delay: 2ms, interval: 100ms, claim: {{ name: tier, critical: [gold], low: [free] }} }}\n\
         authenticators: [{{ name: main, jwt: {{ algorithms: HS256, audience: \"*\", keys: {{ secret: {SECRET} }} }} }}]\n\
         services: [{{ name: app, endpoints: \"{}\" }}]\n\
         routes: [{{ name: all, service: app, authenticate: main, {VALIDATE} }}]\n",
        backend.endpoint()
    ));
    let (gold, silver, forged) =
        (token("gold", SECRET), token("silver", SECRET), token("gold", &SECRET.replace('0', "1")));
    // Verified before there is too much.
    assert_eq!(gateway.connect().ask(post("/", &gold)).status(), 200);
    let crowd = Crowd::start(gateway.address(), 40, Duration::from_millis(1), &post("/", &silver));
    let ratio = || gateway.metric("gateway_worker_shed_ratio{worker=\"0\"}");
    eventually(PATIENCE, || crowd.counts()[1] >= 500 && ratio() > 0.1);
    let best = Crowd::start(gateway.address(), 1, Duration::from_millis(20), &post("/", &gold));
    eventually(PATIENCE, || best.counts()[0] >= 100);
    let [served, lost] = best.counts();
    assert!(lost as f64 / (served + lost) as f64 <= 0.1, "{served} {lost}, {:?}", crowd.counts());
    // Gold by its own word is refused as its route is.
    let mut client = gateway.connect();
    let mut refused = 0;
    eventually(PATIENCE, || {
        let answer = client.ask(post("/", &forged));
        assert!([401, 503].contains(&answer.status()), "{}", answer.status());
        refused += usize::from(answer.status() == 503);
        if answer.get("connection") == Some("close") {
            client = gateway.connect();
        }
        refused >= 20
    });
}

#[test]
fn a_worker_that_is_busier_than_it_may_be_refuses_until_it_is_not() {
    let backend = Backend::ok();
    let gateway = Gateway::start(&yaml(backend.endpoint(), "{ delay: off, busy: 60%, interval: 100ms }"));
    if gateway.metric("gateway_worker_driver_info{worker=\"0\",driver=\"epoll\"}") == 1.0 {
        return;
    }
    let low = Crowd::start(gateway.address(), 40, Duration::from_millis(1), &post("/low", ""));
    let critical = Crowd::start(gateway.address(), 1, Duration::from_millis(20), &post("/critical", ""));
    eventually(PATIENCE, || low.counts()[1] >= 500 && critical.counts()[0] >= 100);
    let ([served, lost], refused) = (critical.counts(), low.counts()[1]);
    assert!(lost as f64 / (served + lost) as f64 <= 0.1, "{served} {lost}, {refused}");
    let ratio = || gateway.metric("gateway_worker_shed_ratio{worker=\"0\"}");
    eventually(PATIENCE, || ratio() > 0.0 && gateway.metric("gateway_worker_busy_ratio{worker=\"0\"}") > 0.0);
    drop((low, critical));
    assert!(shed(&gateway, "low", "busy") >= refused as f64);
    assert_eq!(shed(&gateway, "low", "delay"), 0.0);
    eventually(PATIENCE, || ratio() == 0.0);
    assert_eq!(gateway.connect().ask(post("/low", "")).status(), 200);
    assert!(gateway.log_lines().iter().any(|line| line["shed"] == "busy"));
}

#[test]
fn off_nothing_is_refused_however_much_there_is() {
    let backend = Backend::ok();
    let gateway = Gateway::start(&yaml(backend.endpoint(), "off"));
    let low = Crowd::start(gateway.address(), 40, Duration::from_millis(1), &post("/low", ""));
    eventually(PATIENCE, || low.counts()[0] >= 500);
    assert_eq!(low.counts()[1], 0);
    let delay = || gateway.metric("gateway_worker_queueing_delay_seconds{worker=\"0\"}");
    eventually(PATIENCE, || delay() > 0.0);
}
