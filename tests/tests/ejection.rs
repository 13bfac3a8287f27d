//! Passive ejection: what one bad endpoint of several costs the clients, how it comes back, and what is never ejected.

use ringway_tests::failing::{Clients, Fickle, Mood, Origin};
use ringway_tests::{Gateway, Nobody, PATIENCE, eventually, settles_at};
use rustix::process::Signal;
use serde_json::Value;

fn start(endpoints: &[&str], service: &str) -> Gateway {
    Gateway::start(&yaml(endpoints, service))
}

fn yaml(endpoints: &[&str], service: &str) -> String {
    let list: Vec<String> = endpoints.iter().map(|endpoint| format!("\"{endpoint}\"")).collect();
    format!(
        "services: [{{ name: app, endpoints: [{}], {service} }}]\nroutes: [{{ name: all, service: app }}]\n",
        list.join(", ")
    )
}

fn is_ejected(gateway: &Gateway, endpoint: &str) -> bool {
    gateway.metric(&format!("gateway_endpoint_ejected{{service=\"app\",endpoint=\"{endpoint}\"}}")) == 1.0
}

fn ejections(gateway: &Gateway, endpoint: &str, reason: &str) -> f64 {
    let labels = format!("{{service=\"app\",endpoint=\"{endpoint}\",reason=\"{reason}\"}}");
    gateway.metric(&format!("gateway_outlier_ejections_total{labels}"))
}

fn seen(gateway: &Gateway, endpoint: &str) -> Value {
    let page: Value = serde_json::from_str(&gateway.admin("/services").1).expect("JSON");
    let all = page[0]["endpoints"].as_array().expect("endpoints").clone();
    all.into_iter().find(|seen| seen["address"] == endpoint).expect("the endpoint")
}

#[test]
fn a_killed_service_costs_a_few_requests_and_one_for_each_return() {
    let origins: Vec<Origin> = (0..3).map(|_| Origin::start()).collect();
    let endpoints: Vec<String> = origins.iter().map(Origin::endpoint).collect();
    let all: Vec<&str> = endpoints.iter().map(String::as_str).collect();
    let gateway = start(&all, "outlier_ejection: { base_time: 1s, max_time: 1s }");
    let clients = Clients::start(gateway.address(), 4, 400);
    clients.more(100);
    assert_eq!(clients.failures(), 0, "{:?}", clients.statuses());

    let mut origins = origins.into_iter();
    let killed = origins.next().expect("an origin");
    let address = killed.address();
    killed.kill();
    eventually(PATIENCE, || is_ejected(&gateway, &endpoints[0]));
    clients.more(100);
    let failures = clients.failures();
    assert!(failures <= 5, "{:?}", clients.statuses());
    assert_eq!(ejections(&gateway, &endpoints[0], "connect_failures"), 1.0);
    let word = seen(&gateway, &endpoints[0]);
    assert_eq!((&word["state"], &word["why"]), (&"ejected".into(), &"connections to it fail".into()));
    assert!(word["ejectedForMs"].as_u64().is_some_and(|left| left <= 1000), "{word}");
    let line = format!("endpoint `{}`: ejected for 1.0 s: connections to it fail", endpoints[0]);
    assert!(gateway.stderr().contains(&line), "{}", gateway.stderr());

    // Its time over, the first request that fails is enough.
    eventually(PATIENCE, || ejections(&gateway, &endpoints[0], "connect_failures") >= 4.0);
    let (returns, more) = (ejections(&gateway, &endpoints[0], "connect_failures") as u64 - 1, clients.failures());
    // Each client may be on its way when the first fails.
    assert!(more <= failures + 4 * (returns + 1), "{more} failures, {returns} returns");

    let _again = Origin::start_at(address);
    let requests =
        || gateway.metric(&format!("gateway_endpoint_requests_total{{service=\"app\",endpoint=\"{}\"}}", endpoints[0]));
    eventually(PATIENCE, || !is_ejected(&gateway, &endpoints[0]));
    let (before, failures) = (requests(), clients.failures());
    eventually(PATIENCE, || requests() > before + 50.0);
    assert!(clients.failures() <= failures + 4, "{:?}", clients.statuses());
    assert!(!is_ejected(&gateway, &endpoints[0]));
}

#[test]
fn a_frozen_service_is_ejected_for_being_silent() {
    let (frozen, good) = (Origin::start(), Origin::start());
    let endpoints = [frozen.endpoint(), good.endpoint()];
    let gateway = start(&[&endpoints[0], &endpoints[1]], "timeouts: { answer: 300ms }, outlier_ejection: {}");
    let clients = Clients::start(gateway.address(), 4, 200);
    clients.more(50);
    frozen.signal(Signal::STOP);
    eventually(PATIENCE, || is_ejected(&gateway, &endpoints[0]));
    clients.more(100);
    // Five in a row, and what the other clients wait for then.
    let statuses = clients.statuses();
    assert!(clients.failures() <= 8 && clients.failures() == statuses[&504], "{statuses:?}");
    assert_eq!(ejections(&gateway, &endpoints[0], "failures"), 1.0);
    frozen.signal(Signal::CONT);
}

#[test]
fn errors_and_closed_connections_in_a_row_eject() {
    for (mood, status) in [(Mood::Broken, 500), (Mood::Closing, 502)] {
        let [a, b, c] = ["a", "b", "c"].map(Fickle::new);
        let gateway = start(&[a.endpoint(), b.endpoint(), c.endpoint()], "outlier_ejection: {}");
        let clients = Clients::start(gateway.address(), 4, 400);
        clients.more(60);
        a.set(mood);
        eventually(PATIENCE, || is_ejected(&gateway, a.endpoint()));
        clients.more(100);
        let (statuses, served) = (clients.statuses(), a.served());
        assert!(clients.failures() <= 9 && clients.failures() == statuses[&status], "{statuses:?}");
        clients.more(100);
        assert_eq!(a.served(), served, "it still gets requests");
    }
}

#[test]
fn never_more_than_the_cap_is_ejected() {
    let [a, b, c, d] = ["a", "b", "c", "d"].map(Fickle::new);
    let all = [a.endpoint(), b.endpoint(), c.endpoint(), d.endpoint()];
    let gateway = start(&all, "panic_threshold: 0%, outlier_ejection: { max_share: 50%, base_time: 60s }");
    [&a, &b, &c].iter().for_each(|fickle| fickle.set(Mood::Broken));
    let clients = Clients::start(gateway.address(), 4, 400);
    let ejected = || all.iter().filter(|endpoint| is_ejected(&gateway, endpoint)).count();
    settles_at(2, ejected);
    clients.more(300);
    assert_eq!(ejected(), 2);
    assert!(!is_ejected(&gateway, d.endpoint()));
    // A service's only endpoint is never ejected.
    let nobody = Nobody::new();
    let gateway = start(&[nobody.endpoint()], "panic_threshold: 0%, outlier_ejection: {}");
    for _ in 0..20 {
        assert_eq!(gateway.get("/").status(), 502);
    }
    assert!(!is_ejected(&gateway, nobody.endpoint()));
    assert!(gateway.backend_errors("connect") == 20.0);
}

#[test]
fn who_fails_more_often_than_the_others_is_ejected() {
    let [a, b, c] = ["a", "b", "c"].map(Fickle::new);
    let settings = "outlier_ejection: { success_rate: { min_requests: 20 }, interval: 500ms }";
    let gateway = start(&[a.endpoint(), b.endpoint(), c.endpoint()], settings);
    a.set(Mood::Half);
    let clients = Clients::start(gateway.address(), 4, 400);
    eventually(PATIENCE, || is_ejected(&gateway, a.endpoint()));
    assert_eq!(ejections(&gateway, a.endpoint(), "success_rate"), 1.0);
    let failures = clients.failures();
    clients.more(100);
    assert!(clients.failures() <= failures + 4, "{:?}", clients.statuses());
    assert!(![&b, &c].iter().any(|fickle| is_ejected(&gateway, fickle.endpoint())));
    assert_eq!(seen(&gateway, a.endpoint())["why"], "it fails much more often than the others");
}

#[test]
fn who_is_slower_than_the_others_is_ejected() {
    let [a, b, c] = ["a", "b", "c"].map(Fickle::new);
    // In turn: by load it would get few requests, and nobody could tell.
    let settings =
        "balance: round_robin, outlier_ejection: { latency: { factor: 5, min_requests: 5 }, interval: 500ms }";
    let gateway = start(&[a.endpoint(), b.endpoint(), c.endpoint()], settings);
    a.set(Mood::Slow);
    let clients = Clients::start(gateway.address(), 8, 400);
    eventually(PATIENCE, || is_ejected(&gateway, a.endpoint()));
    assert_eq!(ejections(&gateway, a.endpoint(), "latency"), 1.0);
    assert_eq!(clients.failures(), 0);
    assert!(seen(&gateway, a.endpoint())["latencyMs"].as_f64().is_some_and(|ms| ms > 20.0));
}

#[test]
fn who_is_many_times_slower_but_not_by_much_stays() {
    let [a, b, c] = ["a", "b", "c"].map(Fickle::new);
    let settings = "balance: round_robin, \
                    outlier_ejection: { latency: { factor: 2, margin: 60s, min_requests: 5 }, interval: 100ms }";
    let gateway = start(&[a.endpoint(), b.endpoint(), c.endpoint()], settings);
    a.set(Mood::Slow);
    let clients = Clients::start(gateway.address(), 16, 400);
    // Of several intervals.
    eventually(PATIENCE, || a.served() > 100);
    assert_eq!((ejections(&gateway, a.endpoint(), "latency"), clients.failures()), (0.0, 0));
}

#[test]
fn an_ejection_survives_a_reload_and_ends_where_it_is_no_longer_wanted() {
    let [a, b] = ["a", "b"].map(Fickle::new);
    let settings = "outlier_ejection: { consecutive_failures: 3, base_time: 60s }";
    let all = [a.endpoint(), b.endpoint()];
    let gateway = start(&all, settings);
    a.set(Mood::Broken);
    let mut client = gateway.connect();
    eventually(PATIENCE, || {
        client.get("/");
        is_ejected(&gateway, a.endpoint())
    });
    let served = a.served();
    assert!(gateway.replace_config(&format!("{}defaults: {{}}\n", yaml(&all, settings))));
    assert!(is_ejected(&gateway, a.endpoint()));
    assert!((0..20).all(|_| client.get("/").status() == 200));
    assert_eq!(a.served(), served);
    a.set(Mood::Good);
    assert!(gateway.replace_config(&yaml(&all, "balance: round_robin")));
    assert!((0..20).all(|_| client.get("/").status() == 200));
    assert_eq!(a.served(), served + 10);
}
