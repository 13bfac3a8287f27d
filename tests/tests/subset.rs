//! Routes that go to some of a service's endpoints, by what is known of them.

use std::collections::BTreeSet;

use ringway_tests::failing::{Fickle, Mood};
use ringway_tests::{Gateway, PATIENCE, eventually};

const CHECK: &str =
    "health_check: { http: { path: /health }, interval: 50ms, unhealthy_threshold: 2, healthy_threshold: 2 }";
const FALLBACKS: &str = "gateway_subset_fallbacks_total{service=\"app\"}";

/// `a` and `b` are of the first version, `c` of the second, of which `/new` is and where its header is told `/any`.
fn start(all: &[Fickle], service: &str) -> Gateway {
    let said = ["version: v1, disk: ssd", "version: v1", "version: v2, disk: ssd"];
    let list: Vec<String> = all
        .iter()
        .zip(said)
        .map(|(one, said)| format!("{{ address: \"{}\", metadata: {{ {said} }} }}", one.endpoint()))
        .collect();
    Gateway::start(&format!(
        "admin: {{ address: ADMIN, changes: true }}\n\
         services: [{{ name: app, endpoints: [{}], balance: round_robin, {service} }}]\n\
         routes:\n\
         - {{ name: all, service: app }}\n\
         - {{ name: old, match: {{ path: /old }}, service: app, subset: {{ metadata: {{ version: v1 }} }} }}\n\
         - {{ name: new, match: {{ path: /new }}, service: app, subset: {{ metadata: {{ version: v2 }}, fallback: any }} }}\n\
         - {{ name: both, match: {{ path: /both }}, service: app, subset: {{ metadata: {{ disk: ssd, version: v1 }} }} }}\n\
         - {{ name: none, match: {{ path: /none }}, service: app, subset: {{ metadata: {{ version: v3 }} }} }}\n\
         - {{ name: told, match: {{ headers: {{ x-version: v2 }} }}, service: app, subset: {{ metadata: {{ version: v2 }} }} }}\n",
        list.join(", ")
    ))
}

fn three() -> [Fickle; 3] {
    ["a", "b", "c"].map(Fickle::new)
}

/// Who answers 40 requests.
fn answering(gateway: &Gateway, path: &str) -> BTreeSet<String> {
    let mut client = gateway.connect();
    (0..40)
        .map(|_| {
            let answer = client.get(path);
            assert_eq!(answer.status(), 200, "{path}");
            answer.text()
        })
        .collect()
}

fn set(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

#[test]
fn a_route_goes_to_the_endpoints_that_it_names() {
    let all = three();
    let gateway = start(&all, "");
    for (path, names) in
        [("/", &["a", "b", "c"][..]), ("/old", &["a", "b"]), ("/new", &["c"]), ("/both", &["a"]), ("/old", &["a", "b"])]
    {
        assert_eq!(answering(&gateway, path), set(names), "{path}");
    }
    let mut client = gateway.connect();
    let told = client.ask("GET / HTTP/1.1\r\nHost: a\r\nX-Version: v2\r\n\r\n");
    assert_eq!(told.text(), "c");
    // Nobody has it.
    assert_eq!(gateway.get("/none").status(), 502);
    assert_eq!(gateway.backend_errors("no_endpoint"), 1.0);
    assert_eq!(gateway.metric(FALLBACKS), 0.0);
}

#[test]
fn shares_within_a_subset_are_by_weight() {
    let all = three();
    let gateway = start(&all, "");
    let path = format!("/services/app/endpoints/{}/weight/3", all[0].endpoint());
    assert_eq!(gateway.post_admin(&path).0, 200);
    let before = [all[0].served(), all[1].served()];
    let mut client = gateway.connect();
    (0..40).for_each(|_| assert_eq!(client.get("/old").status(), 200));
    assert_eq!([all[0].served() - before[0], all[1].served() - before[1]], [30, 10]);
}

#[test]
fn where_nobody_of_it_is_usable_others_answer_or_nobody() {
    let all = three();
    let gateway = start(&all, &format!("panic_threshold: 0%, {CHECK}"));
    let healthy = |index: usize| {
        let sample = format!("gateway_endpoint_healthy{{service=\"app\",endpoint=\"{}\"}}", all[index].endpoint());
        gateway.metric(&sample) == 1.0
    };
    assert_eq!(answering(&gateway, "/new"), set(&["c"]));
    all[2].set(Mood::Broken);
    eventually(PATIENCE, || !healthy(2));
    assert_eq!(answering(&gateway, "/new"), set(&["a", "b"]));
    assert_eq!(gateway.metric(FALLBACKS), 40.0);
    let told = gateway.connect().ask("GET / HTTP/1.1\r\nHost: a\r\nX-Version: v2\r\n\r\n");
    assert_eq!(told.status(), 502);
    all[2].set(Mood::Good);
    eventually(PATIENCE, || healthy(2));
    assert_eq!(answering(&gateway, "/new"), set(&["c"]));
    assert_eq!(gateway.metric(FALLBACKS), 40.0);
}

#[test]
fn a_retry_stays_in_the_subset() {
    let all = three();
    let gateway = start(&all, "retries: { on: [500], attempts: 3, budget: { min_per_second: 100 } }");
    all[0].set(Mood::Broken);
    assert_eq!(answering(&gateway, "/old"), set(&["b"]));
    assert!(all[0].served() > 0 && all[2].served() == 0);
}

#[test]
fn a_session_does_not_leave_the_subset() {
    let all = three();
    let gateway = start(&all, "sticky: { cookie: stay }");
    let answer = gateway.get("/new");
    assert_eq!(answer.text(), "c");
    let pair = answer.get("set-cookie").and_then(|line| line.split(';').next()).expect("a cookie").to_owned();
    let mut client = gateway.connect();
    let mut ask = |path: &str| client.ask(format!("GET {path} HTTP/1.1\r\nHost: a\r\nCookie: {pair}\r\n\r\n"));
    for _ in 0..10 {
        assert_eq!((ask("/").text().as_str(), ask("/new").text().as_str()), ("c", "c"));
        let old = ask("/old");
        assert!(old.text() != "c" && old.has("set-cookie"), "another one, and a session with it");
    }
}
