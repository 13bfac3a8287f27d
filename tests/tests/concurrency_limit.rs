//! How many requests may be under way at the same time, through the real binary.

use std::collections::HashMap;
use std::fs;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use ringway_tests::{Backend, Client, Gateway, Message, PATIENCE, Setup, settles_at};
use serde_json::Value;

const UNDER_WAY: &str = "gateway_concurrency_limit_requests{policy=\"few\"}";
const TWO_WORKERS: &str = "runtime: { workers: 2, pin: false, driver: \"${env:RINGWAY_TEST_DRIVER:-auto}\" }\n";

/// How a held request goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    Answer,
    /// The head and the first half of the body; then it is held again.
    Half,
    Rest,
    Reset,
}

/// A service that holds each request until it is told how to go on with it, by its path. `/now` is answered at once.
struct Holding {
    backend: Backend,
    told: Arc<Mutex<HashMap<String, Next>>>,
}

impl Holding {
    fn start() -> Self {
        let told: Arc<Mutex<HashMap<String, Next>>> = Arc::default();
        let backend = Backend::start({
            let told = told.clone();
            move |conn| {
                while let Some(head) = conn.next_request_head() {
                    let path = head.target().to_owned();
                    let mut next = (path == "/now").then_some(Next::Answer);
                    loop {
                        match next.take() {
                            Some(Next::Answer) => {
                                conn.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
                                break;
                            }
                            Some(Next::Half) => drop(conn.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\no")),
                            Some(Next::Rest) => {
                                conn.send("k");
                                break;
                            }
                            Some(Next::Reset) => return conn.reset(),
                            None if conn.is_over() => return,
                            None => thread::sleep(Duration::from_millis(2)),
                        }
                        next = told.lock().unwrap().remove(&path);
                    }
                }
            }
        });
        Self { backend, told }
    }

    fn tell(&self, path: &str, next: Next) {
        self.told.lock().unwrap().insert(path.to_owned(), next);
    }

    fn setup<'a>(&self, sections: &'a str, route: &'a str) -> Setup<'a> {
        // A reset on a connection that was used before would just be tried again.
        Setup { route, sections, service: "retry_stale: false", ..Setup::default() }
    }

    fn endpoint(&self) -> &str {
        self.backend.endpoint()
    }
}

fn get(path: &str, fields: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: test\r\n{fields}\r\n")
}

/// Begins a request that is to be held, on a connection of its own, and waits until so many are.
#[track_caller]
fn hold(gateway: &Gateway, path: &str, fields: &str, under_way: usize) -> Client {
    let mut client = gateway.connect();
    client.send(get(path, fields));
    settles_at(under_way as f64, || gateway.metric(UNDER_WAY));
    client
}

#[track_caller]
fn expect_refused(answer: &Message) {
    assert_eq!((answer.status(), answer.get("retry-after")), (429, Some("1")), "{}", answer.text());
    assert_eq!(answer.json()["error"].as_str(), Some("Too many requests at the same time"));
}

#[test]
fn a_place_comes_back_however_a_request_ends() {
    const PLACES: usize = 4;
    let service = Holding::start();
    let sections = format!("{TWO_WORKERS}concurrency_limits: [{{ name: few, requests: {PLACES} }}]\n");
    let gateway = service.setup(&sections, "concurrency_limit: few, limits: { body: 10B }").start(service.endpoint());
    // Connections of both workers.
    let mut idle = Vec::new();
    let connections = |worker: u32| gateway.metric(&format!("gateway_worker_connections{{worker=\"{worker}\"}}"));
    let deadline = Instant::now() + PATIENCE;
    while connections(0).min(connections(1)) == 0.0 {
        assert!(Instant::now() < deadline, "one worker has all connections");
        idle.push(gateway.connect());
    }
    let mut held: Vec<(String, Client)> = Vec::new();
    let mut fill = |held: &mut Vec<(String, Client)>, round: &str| {
        while held.len() < PLACES {
            let path = format!("/{round}/{}", held.len());
            let client = hold(&gateway, &path, "", held.len() + 1);
            held.push((path, client));
        }
        for client in &mut idle {
            expect_refused(&client.get("/now"));
        }
        expect_refused(&gateway.get("/now"));
    };
    let comes_back = |held: &[(String, Client)]| settles_at(held.len() as f64, || gateway.metric(UNDER_WAY));

    fill(&mut held, "answered");
    let (path, mut client) = held.remove(0);
    service.tell(&path, Next::Answer);
    assert_eq!(client.read_response().status(), 200);
    comes_back(&held);

    fill(&mut held, "streamed");
    let (path, mut client) = held.remove(1);
    service.tell(&path, Next::Half);
    assert_eq!(client.read_head().status(), 200);
    expect_refused(&gateway.get("/now"));
    service.tell(&path, Next::Rest);
    assert_eq!(client.read_exact(2), b"ok");
    comes_back(&held);

    fill(&mut held, "reset-by-the-service");
    let (path, mut client) = held.remove(2);
    service.tell(&path, Next::Reset);
    assert_eq!(client.read_response().status(), 502);
    comes_back(&held);

    fill(&mut held, "broken-off");
    let (path, mut client) = held.remove(0);
    service.tell(&path, Next::Half);
    assert_eq!(client.read_head().status(), 200);
    service.tell(&path, Next::Reset);
    client.drain();
    comes_back(&held);

    fill(&mut held, "closed-by-the-client");
    let (path, client) = held.remove(0);
    drop(client);
    // It may just have nothing more to send, and wait for its answer.
    expect_refused(&gateway.get("/now"));
    service.tell(&path, Next::Answer);
    comes_back(&held);

    fill(&mut held, "reset-by-the-client");
    held.remove(3).1.reset();
    comes_back(&held);

    fill(&mut held, "left-in-the-middle");
    let (path, mut client) = held.remove(1);
    service.tell(&path, Next::Half);
    assert_eq!(client.read_head().status(), 200);
    client.reset();
    comes_back(&held);

    // Refused later on: the body.
    let mut long = gateway.connect();
    for _ in 0..2 * PLACES {
        let refused = long.ask("POST /now HTTP/1.1\r\nHost: test\r\nContent-Length: 11\r\n\r\nhello world");
        assert_eq!(refused.status(), 413);
        long = gateway.connect();
    }
    comes_back(&held);
    let mut chunked = gateway.connect();
    chunked.send("POST /chunked HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n");
    settles_at(PLACES as f64, || gateway.metric(UNDER_WAY));
    expect_refused(&gateway.get("/now"));
    chunked.send("b\r\nhello world\r\n0\r\n\r\n");
    assert_eq!(chunked.read_response().status(), 413);
    comes_back(&held);

    fill(&mut held, "last");
    for (path, mut client) in held.drain(..) {
        service.tell(&path, Next::Answer);
        assert_eq!(client.read_response().status(), 200);
    }
    comes_back(&held);
    assert_eq!(gateway.get("/now").status(), 200);
}

#[test]
fn a_client_that_asks_one_by_one_is_never_refused() {
    let service = Holding::start();
    let sections = format!("{TWO_WORKERS}concurrency_limits: [{{ name: few, requests: 1 }}]\n");
    let gateway = service.setup(&sections, "concurrency_limit: few").start(service.endpoint());
    let mut clients: Vec<Client> = (0..8).map(|_| gateway.connect()).collect();
    for turn in 0..2_000 {
        let answer = clients[turn % 8].get("/now");
        assert_eq!(answer.status(), 200, "request {turn}: {}", answer.text());
    }
    assert_eq!(gateway.metric(UNDER_WAY), 0.0);
}

#[test]
fn a_refusal_is_told_counted_and_costs_no_token() {
    let service = Holding::start();
    let sections = "audit_log: { file: DIR/audit.log }\n\
        rate_limits: [{ name: rate, limit: 5/h }]\n\
        concurrency_limits: [{ name: few, requests: 1 }, { name: all, requests: 10, key: all }]\n";
    let route = "rate_limit: rate, concurrency_limit: [all, few]";
    let gateway = service.setup(sections, route).start(service.endpoint());
    let mut held = hold(&gateway, "/held", "", 1);
    let mut client = gateway.connect();
    for _ in 0..20 {
        let refused = client.get("/now");
        expect_refused(&refused);
        assert!(!refused.has("ratelimit-limit"));
    }
    assert_eq!(gateway.metric("gateway_concurrency_limit_requests{policy=\"all\"}"), 1.0, "only the held one");
    let mut other = Client::connect_from([127, 0, 0, 2].into(), gateway.address());
    assert_eq!(other.get("/now").status(), 200, "another client has its own places");
    service.tell("/held", Next::Answer);
    assert_eq!(held.read_response().get("ratelimit-remaining"), Some("4"));
    assert_eq!(client.get("/now").get("ratelimit-remaining"), Some("3"), "a refused request takes no token");

    settles_at(23, || gateway.log_lines().len());
    for line in gateway.log_lines() {
        let refused = line["statusCode"] == 429;
        assert_eq!(line.get("concurrencyLimit"), refused.then(|| Value::from("few")).as_ref(), "{line}");
        assert_eq!(line["rateLimitRemaining"].is_null(), refused, "{line}");
    }
    let audit = gateway.directory().join("audit.log");
    let records = || -> Vec<Value> {
        let text = fs::read_to_string(&audit).unwrap_or_default();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    settles_at(20, || records().len());
    for record in records() {
        let told = ["kind", "policy", "reason"].map(|field| record[field].as_str().unwrap_or_default().to_owned());
        assert_eq!((told, &record["status"]), (["concurrency_limit", "few", "limit"].map(str::to_owned), &429.into()));
    }
    let exceeded = "gateway_concurrency_limit_exceeded_total{policy=\"few\",client=\"127.0.0.1\"}";
    assert_eq!(gateway.metric(exceeded), 20.0);
    assert_eq!(gateway.metric("gateway_concurrency_limit_exceeded_total{policy=\"all\",client=\"\"}"), 0.0);
    assert_eq!(gateway.metric("gateway_concurrency_limit_keys{policy=\"few\"}"), 2.0);
}

#[test]
fn a_reload_keeps_what_is_under_way() {
    let service = Holding::start();
    let sections = |requests: u32, keys: u32| {
        format!("{TWO_WORKERS}concurrency_limits: [{{ name: few, requests: {requests}, keys: {keys} }}]\n")
    };
    let yaml = |requests: u32, keys: u32, more: &str| {
        let (sections, route) = (sections(requests, keys), "concurrency_limit: few");
        Setup { route, sections: &sections, service: more, ..Setup::default() }.yaml(service.endpoint())
    };
    let gateway = Gateway::start(&yaml(2, 100, ""));
    let (mut first, mut second) = (hold(&gateway, "/1", "", 1), hold(&gateway, "/2", "", 2));
    assert!(gateway.replace_config(&yaml(2, 100, "balance: round_robin")));
    expect_refused(&gateway.get("/now"));
    assert!(gateway.replace_config(&yaml(3, 100, "")));
    let mut third = hold(&gateway, "/3", "", 3);
    expect_refused(&gateway.get("/now"));
    // Less than what is under way.
    assert!(gateway.replace_config(&yaml(1, 100, "")));
    for (path, client, left) in [("/1", &mut first, 2), ("/2", &mut second, 1)] {
        expect_refused(&gateway.get("/now"));
        service.tell(path, Next::Answer);
        assert_eq!(client.read_response().status(), 200);
        settles_at(f64::from(left), || gateway.metric(UNDER_WAY));
    }
    expect_refused(&gateway.get("/now"));
    // Room for another number of keys is other room: it begins anew, and what was counted elsewhere ends there.
    assert!(gateway.replace_config(&yaml(1, 50, "")));
    assert_eq!(gateway.get("/now").status(), 200);
    service.tell("/3", Next::Answer);
    assert_eq!(third.read_response().status(), 200);
    assert_eq!((gateway.get("/now").status(), gateway.metric(UNDER_WAY)), (200, 0.0));
}

#[test]
fn keys_beyond_the_cap_share_one_limit() {
    let service = Holding::start();
    let sections =
        format!("{TWO_WORKERS}concurrency_limits: [{{ name: few, requests: 1, key: header X-Client, keys: 2 }}]\n");
    let gateway = service.setup(&sections, "concurrency_limit: few").start(service.endpoint());
    let of = |key: &str| format!("X-Client: {key}\r\n");
    let _own = [hold(&gateway, "/a", &of("a"), 1), hold(&gateway, "/b", &of("b"), 2)];
    let mut shared = hold(&gateway, "/c", &of("c"), 3);
    for key in ["a", "b", "c", "d", "e"] {
        expect_refused(&gateway.connect().ask(get("/now", &of(key))));
    }
    assert_eq!(gateway.metric("gateway_concurrency_limit_keys{policy=\"few\"}"), 2.0);
    service.tell("/c", Next::Answer);
    assert_eq!(shared.read_response().status(), 200);
    for key in ["c", "d", "e"] {
        assert_eq!(gateway.connect().ask(get("/now", &of(key))).status(), 200);
    }
    for key in ["a", "b"] {
        expect_refused(&gateway.connect().ask(get("/now", &of(key))));
    }
}
