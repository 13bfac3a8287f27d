//! Active checks: who is not well gets no requests, and why is told; backups, panics, drains, the return of the recovered.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};

use bytes::Bytes;
use http::Response;
use ringway_tests::failing::{Clients, Fickle, Mood, Origin};
use ringway_tests::tls::{Authority, TlsBackend};
use ringway_tests::{Backend, Gateway, Nobody, PATIENCE, Setup, eventually, settles_at};
use serde_json::Value;

/// Soon unwell, soon well again.
const QUICK: &str = "interval: 50ms, unhealthy_threshold: 2, healthy_threshold: 2";

fn of(endpoint: &str, metric: &str) -> String {
    format!("{metric}{{service=\"app\",endpoint=\"{endpoint}\"}}")
}

fn healthy(gateway: &Gateway, endpoint: &str) -> bool {
    gateway.metric(&of(endpoint, "gateway_endpoint_healthy")) == 1.0
}

fn checks(gateway: &Gateway, endpoint: &str, result: &str) -> f64 {
    let labels = format!("{{service=\"app\",endpoint=\"{endpoint}\",result=\"{result}\"}}");
    gateway.metric(&format!("gateway_health_checks_total{labels}"))
}

/// One service of these endpoints, and what it says besides.
fn yaml(endpoints: &[&str], service: &str) -> String {
    let list: Vec<String> = endpoints.iter().map(|endpoint| format!("\"{endpoint}\"")).collect();
    format!(
        "admin: {{ address: ADMIN, changes: true }}\n\
         services: [{{ name: app, endpoints: [{}], {service} }}]\nroutes: [{{ name: all, service: app }}]\n",
        list.join(", ")
    )
}

/// The page's word on an endpoint.
fn seen(gateway: &Gateway, endpoint: &str) -> Value {
    let page: Value = serde_json::from_str(&gateway.admin("/services").1).expect("JSON");
    let all = page[0]["endpoints"].as_array().expect("endpoints").clone();
    all.into_iter().find(|seen| seen["address"] == endpoint).expect("the endpoint")
}

/// Who answers so many requests.
fn answering(gateway: &Gateway, requests: usize) -> Vec<String> {
    let mut client = gateway.connect();
    let mut names: Vec<String> = (0..requests).map(|_| client.get("/").text()).collect();
    names.sort();
    names.dedup();
    names
}

#[test]
fn who_fails_its_checks_gets_no_requests_until_it_is_well_again() {
    let [a, b, c] = ["a", "b", "c"].map(Fickle::new);
    let check = format!("health_check: {{ http: {{ path: /health, host: checks.test }}, {QUICK} }}");
    let all = [a.endpoint(), b.endpoint(), c.endpoint()];
    let gateway = Gateway::start(&yaml(&all, &check));
    assert_eq!(answering(&gateway, 60), ["a", "b", "c"]);
    let checked = a.backend().requests().into_iter().find(|request| request.target() == "/health");
    let checked = checked.or_else(|| {
        eventually(PATIENCE, || checks(&gateway, a.endpoint(), "success") > 0.0);
        a.backend().requests().into_iter().find(|request| request.target() == "/health")
    });
    assert_eq!(checked.expect("a check").get("host"), Some("checks.test"));

    a.set(Mood::Broken);
    eventually(PATIENCE, || !healthy(&gateway, a.endpoint()));
    assert_eq!(answering(&gateway, 60), ["b", "c"]);
    let word = seen(&gateway, a.endpoint());
    assert_eq!((&word["state"], &word["inUse"]), (&"unhealthy".into(), &false.into()));
    assert_eq!(word["why"], "GET /health was answered with 500");
    let line = format!("endpoint `{}`: unhealthy: GET /health was answered with 500", a.endpoint());
    assert!(gateway.stderr().contains(&line), "{}", gateway.stderr());
    assert!(checks(&gateway, a.endpoint(), "failure") >= 2.0);

    a.set(Mood::Good);
    eventually(PATIENCE, || healthy(&gateway, a.endpoint()));
    assert_eq!(answering(&gateway, 60), ["a", "b", "c"]);
    assert_eq!(seen(&gateway, a.endpoint())["state"], "healthy");
}

#[test]
fn a_body_may_be_expected_and_a_check_has_its_time() {
    let mood = Arc::new(AtomicU8::new(0));
    let of_backend = Arc::clone(&mood);
    let backend = Backend::start(move |conn| {
        while conn.next_request().is_some() {
            match of_backend.load(Ordering::Acquire) {
                0 => drop(conn.send("HTTP/1.1 204 X\r\n\r\n")),
                1 => drop(conn.send("HTTP/1.1 200 X\r\nContent-Length: 15\r\n\r\n{\"db\": \"ready\"}")),
                2 => drop(conn.send("HTTP/1.1 200 X\r\nContent-Length: 14\r\n\r\n{\"db\": \"down\"}")),
                _ => drop(conn.stall()),
            }
        }
    });
    let check = format!(
        "panic_threshold: 0%, health_check: {{ http: {{ path: '/h?x=1', status: [200, 299], body: ready }}, \
         timeout: 150ms, {QUICK} }}"
    );
    let gateway = Gateway::start(&yaml(&[backend.endpoint()], &check));
    let why = || seen(&gateway, backend.endpoint())["why"].as_str().unwrap_or_default().to_owned();
    settles_at("GET /h?x=1 was answered with 204".to_owned(), why);
    mood.store(1, Ordering::Release);
    eventually(PATIENCE, || healthy(&gateway, backend.endpoint()));
    mood.store(2, Ordering::Release);
    settles_at("the body of /h?x=1 does not have \"ready\"".to_owned(), why);
    // Nobody is left, and nobody is asked.
    assert_eq!(gateway.get("/").status(), 502);
    assert!(backend.requests().iter().all(|request| request.target() == "/h?x=1"));
    mood.store(3, Ordering::Release);
    settles_at("no answer within 150ms".to_owned(), why);
}

#[test]
fn a_killed_service_is_found_by_connecting_and_comes_back() {
    let origins: Vec<Origin> = (0..3).map(|_| Origin::start()).collect();
    let endpoints: Vec<String> = origins.iter().map(Origin::endpoint).collect();
    let all: Vec<&str> = endpoints.iter().map(String::as_str).collect();
    let settings = format!("health_check: {{ tcp: {{}}, {QUICK} }}, outlier_ejection: {{}}");
    let gateway = Gateway::start(&yaml(&all, &settings));
    let clients = Clients::start(gateway.address(), 4, 400);
    clients.more(100);
    assert_eq!(clients.failures(), 0, "{:?}", clients.statuses());

    let mut origins = origins.into_iter();
    let killed = origins.next().expect("an origin");
    let address = killed.address();
    killed.kill();
    eventually(PATIENCE, || !healthy(&gateway, &endpoints[0]));
    clients.more(200);
    let failures = clients.failures();
    assert!(failures <= 5, "{:?}", clients.statuses());

    let _again = Origin::start_at(address);
    eventually(PATIENCE, || healthy(&gateway, &endpoints[0]));
    let requests = || gateway.metric(&of(&endpoints[0], "gateway_endpoint_requests_total"));
    let before = requests();
    // Back at once, though an ejection would last 30 seconds.
    eventually(PATIENCE, || requests() > before + 10.0);
    assert_eq!(clients.failures(), failures, "{:?}", clients.statuses());
}

#[test]
fn a_frozen_service_gets_no_more_requests_than_it_had() {
    let (frozen, good) = (Origin::start(), Origin::start());
    let check = format!("timeouts: {{ answer: 1s }}, health_check: {{ http: {{}}, timeout: 100ms, {QUICK} }}");
    let endpoints = [frozen.endpoint(), good.endpoint()];
    let gateway = Gateway::start(&yaml(&[&endpoints[0], &endpoints[1]], &check));
    let clients = Clients::start(gateway.address(), 4, 200);
    clients.more(50);
    frozen.signal(rustix::process::Signal::STOP);
    eventually(PATIENCE, || !healthy(&gateway, &endpoints[0]));
    clients.more(200);
    // Each client waits for one answer at most.
    assert!(clients.failures() <= 4, "{:?}", clients.statuses());
    frozen.signal(rustix::process::Signal::CONT);
    eventually(PATIENCE, || healthy(&gateway, &endpoints[0]));
}

#[test]
fn too_few_left_is_a_panic_and_all_are_used() {
    let [a, b, c] = ["a", "b", "c"].map(Fickle::new);
    let check = format!("health_check: {{ http: {{ path: /health }}, {QUICK} }}");
    let gateway = Gateway::start(&yaml(&[a.endpoint(), b.endpoint(), c.endpoint()], &check));
    let panics = || gateway.metric("gateway_service_panic{service=\"app\"}");
    a.set(Mood::Broken);
    eventually(PATIENCE, || !healthy(&gateway, a.endpoint()));
    assert_eq!((answering(&gateway, 60), panics()), (vec!["b".into(), "c".into()], 0.0));
    b.set(Mood::Broken);
    eventually(PATIENCE, || !healthy(&gateway, b.endpoint()));
    assert_eq!((answering(&gateway, 60), panics()), (vec!["a".into(), "b".into(), "c".into()], 1.0));
    let page: Value = serde_json::from_str(&gateway.admin("/services").1).expect("JSON");
    assert_eq!(page[0]["panic"], true);
    a.set(Mood::Good);
    eventually(PATIENCE, || healthy(&gateway, a.endpoint()));
    assert_eq!((answering(&gateway, 60), panics()), (vec!["a".into(), "c".into()], 0.0));
}

#[test]
fn backups_stand_in_where_the_others_are_gone() {
    let [a, b] = ["a", "b"].map(Fickle::new);
    let yaml = format!(
        "services: [{{ name: app, endpoints: [\"{}\", {{ address: \"{}\", backup: true }}], \
         health_check: {{ http: {{ path: /health }}, {QUICK} }} }}]\nroutes: [{{ name: all, service: app }}]\n",
        a.endpoint(),
        b.endpoint()
    );
    let gateway = Gateway::start(&yaml);
    assert_eq!(answering(&gateway, 30), ["a"]);
    a.set(Mood::Broken);
    eventually(PATIENCE, || !healthy(&gateway, a.endpoint()));
    assert_eq!(answering(&gateway, 30), ["b"]);
    a.set(Mood::Good);
    eventually(PATIENCE, || healthy(&gateway, a.endpoint()));
    assert_eq!(answering(&gateway, 30), ["a"]);
}

#[test]
fn operators_drain_enable_and_weigh_and_it_survives_a_reload() {
    let [a, b] = ["a", "b"].map(Fickle::new);
    let text = yaml(&[a.endpoint(), b.endpoint()], "balance: round_robin");
    let gateway = Gateway::start(&text);
    let post =
        |endpoint: &str, action: &str| gateway.post_admin(&format!("/services/app/endpoints/{endpoint}/{action}")).0;
    assert_eq!(answering(&gateway, 20), ["a", "b"]);
    assert_eq!(post(a.endpoint(), "drain"), 200);
    assert_eq!(answering(&gateway, 20), ["b"]);
    assert_eq!(seen(&gateway, a.endpoint())["state"], "drained");
    assert_eq!(gateway.metric(&of(a.endpoint(), "gateway_endpoint_weight")), 0.0);
    assert!(gateway.replace_config(&format!("{text}defaults: {{}}\n")));
    assert_eq!(answering(&gateway, 20), ["b"]);
    assert_eq!(post(b.endpoint(), "drain"), 200);
    assert_eq!(gateway.get("/").status(), 502);
    assert_eq!((post(a.endpoint(), "enable"), post(b.endpoint(), "enable")), (200, 200));
    assert_eq!(answering(&gateway, 20), ["a", "b"]);
    assert_eq!(post(a.endpoint(), "weight/3"), 200);
    let before = (a.served(), b.served());
    answering(&gateway, 40);
    assert_eq!((a.served() - before.0, b.served() - before.1), (30, 10));
    assert_eq!(post(a.endpoint(), "weight/configured"), 200);
    assert_eq!(post("127.0.0.1:1", "drain"), 404);

    // Not without being allowed.
    assert!(gateway.replace_config(&text.replace(", changes: true", "")));
    assert_eq!(post(a.endpoint(), "drain"), 403);
    assert_eq!(answering(&gateway, 20), ["a", "b"]);
}

#[test]
fn a_weight_of_zero_is_a_drain() {
    let [a, b] = ["a", "b"].map(Fickle::new);
    let with = |weight: u32| {
        format!(
            "services: [{{ name: app, endpoints: [{{ address: \"{}\", weight: {weight} }}, \"{}\"] }}]\n\
             routes: [{{ name: all, service: app }}]\n",
            a.endpoint(),
            b.endpoint()
        )
    };
    let gateway = Gateway::start(&with(1));
    assert_eq!(answering(&gateway, 40), ["a", "b"]);
    assert!(gateway.replace_config(&with(0)));
    assert_eq!(answering(&gateway, 40), ["b"]);
}

#[test]
fn the_state_and_the_checks_survive_a_reload() {
    let [a, b] = ["a", "b"].map(Fickle::new);
    // So seldom that a check that began anew would be noticed.
    let check = "health_check: { http: { path: /health }, interval: 60s, jitter: 0%, unhealthy_threshold: 1 }";
    a.set(Mood::Broken);
    let text = yaml(&[a.endpoint(), b.endpoint()], check);
    let gateway = Gateway::start(&text);
    eventually(PATIENCE, || !healthy(&gateway, a.endpoint()) && checks(&gateway, b.endpoint(), "success") == 1.0);
    assert!(gateway.replace_config(&format!("{text}defaults: {{}}\n")));
    assert!(!healthy(&gateway, a.endpoint()));
    assert_eq!(answering(&gateway, 30), ["b"]);
    assert_eq!(checks(&gateway, a.endpoint(), "failure"), 1.0, "the checker has begun anew");
    // Without checks there is nobody to say that it is unwell.
    assert!(gateway.replace_config(&yaml(&[a.endpoint(), b.endpoint()], "balance: random")));
    assert_eq!(answering(&gateway, 40), ["a", "b"]);
}

#[test]
fn a_recovered_endpoint_gets_its_share_back_slowly() {
    let [a, b] = ["a", "b"].map(Fickle::new);
    let check = format!("health_check: {{ http: {{ path: /health }}, slow_start: 2s, {QUICK} }}");
    let gateway = Gateway::start(&yaml(&[a.endpoint(), b.endpoint()], &check));
    let weight = || gateway.metric(&of(a.endpoint(), "gateway_endpoint_weight"));
    assert_eq!(weight(), 1.0);
    a.set(Mood::Broken);
    eventually(PATIENCE, || !healthy(&gateway, a.endpoint()));
    a.set(Mood::Good);
    eventually(PATIENCE, || healthy(&gateway, a.endpoint()));
    let first = weight();
    assert!(first < 0.9, "{first}");
    eventually(PATIENCE, || weight() > first && weight() < 1.0);
    settles_at(1.0, weight);
    assert_eq!(answering(&gateway, 40), ["a", "b"]);
}

#[test]
fn checks_go_over_unix_sockets_and_say_why_there_is_no_connection() {
    let directory = tempfile::tempdir().expect("a directory");
    let backend = Backend::start_unix(&directory.path().join("a.sock"), |conn| {
        while conn.next_request().is_some() {
            conn.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
        }
    });
    let nobody = Nobody::new();
    let check = format!("health_check: {{ http: {{}}, {QUICK} }}");
    let gateway = Gateway::start(&yaml(&[backend.endpoint(), nobody.endpoint()], &check));
    eventually(PATIENCE, || !healthy(&gateway, nobody.endpoint()));
    let why = seen(&gateway, nobody.endpoint())["why"].as_str().expect("a reason").to_owned();
    assert!(why.starts_with("cannot connect: "), "{why}");
    assert!(checks(&gateway, backend.endpoint(), "success") > 0.0 && healthy(&gateway, backend.endpoint()));
    let hosts: Vec<_> = backend.requests().iter().map(|request| request.get("host").map(str::to_owned)).collect();
    assert!(hosts.contains(&Some("localhost".into())), "{hosts:?}");
    let mut client = gateway.connect();
    assert!((0..20).all(|_| client.get("/").status() == 200));
}

#[test]
fn checks_are_made_over_tls_and_trust_whom_the_service_trusts() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    let good = TlsBackend::echo(authority.server(&rustls::version::TLS13));
    let bad = TlsBackend::echo(stranger.server(&rustls::version::TLS13));
    let [good_at, bad_at] = [good.at("127.0.0.1"), bad.at("127.0.0.1")];
    let settings = format!("tls: {{ ca: {} }}, health_check: {{ http: {{}}, {QUICK} }}", authority.ca());
    let gateway = Gateway::start(&yaml(&[&good_at, &bad_at], &settings));
    eventually(PATIENCE, || !healthy(&gateway, &bad_at) && checks(&gateway, &good_at, "success") > 1.0);
    assert!(healthy(&gateway, &good_at));
    let why = seen(&gateway, &bad_at)["why"].as_str().expect("a reason").to_owned();
    assert!(why.starts_with("no TLS: "), "{why}");
}

/// A server of HTTP/2 that answers every request with this status, body and trailers.
fn http2_server(
    answer: impl Fn(&str) -> (u16, Bytes, Option<u8>) + Send + Sync + 'static,
) -> (String, Arc<AtomicUsize>) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.set_nonblocking(true).expect("a socket that does not block");
    let endpoint = listener.local_addr().expect("an address").to_string();
    let (answer, count) = (Arc::new(answer), Arc::new(AtomicUsize::new(0)));
    let counted = Arc::clone(&count);
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let listener = tokio::net::TcpListener::from_std(listener).expect("a listener");
            while let Ok((stream, _)) = listener.accept().await {
                let (answer, counted) = (Arc::clone(&answer), Arc::clone(&counted));
                tokio::spawn(async move {
                    let Ok(mut connection) = h2::server::handshake(stream).await else { return };
                    while let Some(Ok((request, mut respond))) = connection.accept().await {
                        counted.fetch_add(1, Ordering::AcqRel);
                        let (status, body, grpc) = answer(request.uri().path());
                        let head = Response::builder().status(status).body(()).expect("a head");
                        let Ok(mut stream) = respond.send_response(head, false) else { continue };
                        let _ = stream.send_data(body, grpc.is_none());
                        if let Some(code) = grpc {
                            let mut trailers = http::HeaderMap::new();
                            trailers.insert("grpc-status", u16::from(code).into());
                            let _ = stream.send_trailers(trailers);
                        }
                    }
                });
            }
        });
    });
    (endpoint, count)
}

#[test]
fn grpc_says_how_it_is_by_its_own_protocol() {
    // 1: serving, 2: not serving, 0: not even asked.
    let state = Arc::new(AtomicU8::new(1));
    let of_server = Arc::clone(&state);
    let (endpoint, count) = http2_server(move |path| match (path, of_server.load(Ordering::Acquire)) {
        ("/grpc.health.v1.Health/Check", 0) => (200, Bytes::new(), Some(12)),
        ("/grpc.health.v1.Health/Check", state) => (200, vec![0, 0, 0, 0, 2, 8, state].into(), Some(0)),
        _ => (404, Bytes::new(), None),
    });
    let settings = format!("protocol: http2, health_check: {{ grpc: {{ service: shop.Stock }}, {QUICK} }}");
    let gateway = Gateway::start(&yaml(&[&endpoint], &settings));
    eventually(PATIENCE, || checks(&gateway, &endpoint, "success") > 1.0);
    assert!(healthy(&gateway, &endpoint) && count.load(Ordering::Acquire) > 1);
    let why = || seen(&gateway, &endpoint)["why"].as_str().unwrap_or_default().to_owned();
    state.store(2, Ordering::Release);
    settles_at("it says that it is not serving".to_owned(), why);
    state.store(0, Ordering::Release);
    settles_at("/grpc.health.v1.Health/Check was answered with grpc-status 12".to_owned(), why);
    state.store(1, Ordering::Release);
    eventually(PATIENCE, || healthy(&gateway, &endpoint));
}

#[test]
fn services_of_http2_are_checked_in_http2() {
    let (endpoint, count) = http2_server(|path| match path {
        "/health" => (200, "all is well".into(), None),
        _ => (404, Bytes::new(), None),
    });
    let settings = format!("protocol: http2, health_check: {{ http: {{ path: /health, body: is well }}, {QUICK} }}");
    let gateway = Gateway::start(&yaml(&[&endpoint], &settings));
    eventually(PATIENCE, || checks(&gateway, &endpoint, "success") > 1.0);
    assert!(healthy(&gateway, &endpoint) && count.load(Ordering::Acquire) > 1);
    assert_eq!(checks(&gateway, &endpoint, "failure"), 0.0);
}

#[test]
fn a_proxy_header_says_that_nobody_stands_behind_a_check() {
    let backend = Backend::start(|conn| {
        assert_eq!(conn.read_exact(15), b"PROXY UNKNOWN\r\n");
        while conn.next_request().is_some() {
            conn.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
        }
    });
    let check = format!("proxy_protocol: v1, health_check: {{ http: {{}}, {QUICK} }}");
    let gateway = Setup { service: &check, ..Setup::default() }.start(backend.endpoint());
    eventually(PATIENCE, || checks(&gateway, backend.endpoint(), "success") > 1.0);
}
