//! Routes that go to some of a service's endpoints, by what is known of them.

use std::collections::BTreeSet;

use ringway_tests::failing::{Fickle, Mood};
use ringway_tests::{Gateway, PATIENCE, eventually, settles_at};
use serde_json::{Value, json};

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

/// One route, whose requests choose by `X-Version`.
fn start_by_header(endpoints: &str, service: &str, subset: &str) -> Gateway {
    Gateway::start(&format!(
        "services: [{{ name: app, {endpoints}, balance: round_robin, {service} }}]\n\
         routes: [{{ name: all, service: app, subset: {{ {subset} }} }}]\n"
    ))
}

fn versions(all: &[Fickle]) -> String {
    let one =
        |(one, version): (&Fickle, &str)| format!("{{ address: \"{}\", metadata: {{ {version} }} }}", one.endpoint());
    let said = ["version: v1, disk: ssd", "version: v1", "version: v2, disk: ssd"];
    all.iter().zip(said).map(one).collect::<Vec<_>>().join(", ")
}

/// Who answers eight requests with this header; the status where nobody does.
fn answering_to(gateway: &Gateway, header: &str) -> Result<BTreeSet<String>, u16> {
    let mut client = gateway.connect();
    let answers = (0..8).map(|_| {
        let answer = client.ask(format!("GET / HTTP/1.1\r\nHost: a\r\n{header}\r\n"));
        if answer.status() == 200 { Ok(answer.text()) } else { Err(answer.status()) }
    });
    answers.collect()
}

#[test]
fn a_request_chooses_by_a_header() {
    let all = three();
    let endpoints = format!("endpoints: [{}]", versions(&all));
    let strict = start_by_header(&endpoints, "", "by_header: { name: X-Version, metadata: version }");
    for (header, names) in [
        ("", &["a", "b", "c"][..]),
        ("X-Version: v1\r\n", &["a", "b"]),
        ("x-version: v2\r\n", &["c"]),
        ("X-Version: v2\r\nX-Version: v1\r\n", &["c"]),
        ("X-Version:  v1 \r\n", &["a", "b"]),
    ] {
        assert_eq!(answering_to(&strict, header), Ok(set(names)), "{header:?}");
    }
    // Nobody has it.
    for unknown in ["X-Version: v3\r\n", "X-Version: V1\r\n", "X-Version:\r\n", "X-Version: v\r\n"] {
        assert_eq!(answering_to(&strict, unknown), Err(502), "{unknown:?}");
    }
    assert_eq!((strict.metric(FALLBACKS), strict.backend_errors("no_endpoint")), (0.0, 4.0));

    let lenient =
        "metadata: { disk: ssd }, by_header: { name: X-Version, metadata: version, default: v1 }, fallback: any";
    let lenient = start_by_header(&endpoints, "", lenient);
    for (header, names) in [("", &["a"][..]), ("X-Version: v1\r\n", &["a"]), ("X-Version: v2\r\n", &["c"])] {
        assert_eq!(answering_to(&lenient, header), Ok(set(names)), "{header:?}");
    }
    assert_eq!(lenient.metric(FALLBACKS), 0.0);
    assert_eq!(answering_to(&lenient, "X-Version: v3\r\n"), Ok(set(&["a", "b", "c"])));
    assert_eq!(lenient.metric(FALLBACKS), 8.0);
}

#[test]
fn what_may_be_chosen_follows_the_endpoints() {
    let all = three();
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("endpoints.yaml");
    let install = |text: &str| {
        let new = directory.path().join("new");
        std::fs::write(&new, text).expect("a list");
        std::fs::rename(&new, &path).expect("a list");
    };
    let one = |index: usize, version: &str| {
        format!("- {{ address: \"{}\", metadata: {{ version: {version} }} }}\n", all[index].endpoint())
    };
    install(&one(0, "v1"));
    let discovery = format!("discovery: {{ file: \"{}\" }}", path.display());
    let by_header = "by_header: { name: X-Version, metadata: version }";
    let gateway = start_by_header(&discovery, &format!("panic_threshold: 0%, {CHECK}"), by_header);
    let asked = |version: &str| answering_to(&gateway, &format!("X-Version: {version}\r\n"));
    assert_eq!((asked("v1"), asked("v2")), (Ok(set(&["a"])), Err(502)));
    install(&(one(0, "v1") + &one(1, "v0") + &one(2, "v2")));
    eventually(PATIENCE, || asked("v2") == Ok(set(&["c"])));
    assert_eq!((asked("v0"), asked("v1")), (Ok(set(&["b"])), Ok(set(&["a"]))));
    // Its health counts, and no others stand in.
    all[2].set(Mood::Broken);
    eventually(PATIENCE, || asked("v2") == Err(502));
    all[2].set(Mood::Good);
    eventually(PATIENCE, || asked("v2") == Ok(set(&["c"])));
    install(&(one(0, "v1") + &one(2, "v1")));
    eventually(PATIENCE, || asked("v1") == Ok(set(&["a", "c"])));
    assert_eq!(asked("v2"), Err(502));
}

#[test]
fn a_session_holds_for_the_value_that_it_began_with() {
    let all = three();
    let endpoints = format!("endpoints: [{}]", versions(&all));
    let gateway =
        start_by_header(&endpoints, "sticky: { cookie: stay }", "by_header: { name: X-Version, metadata: version }");
    let mut client = gateway.connect();
    let mut ask = |more: &str| client.ask(format!("GET / HTTP/1.1\r\nHost: a\r\n{more}\r\n"));
    let answer = ask("X-Version: v2\r\n");
    assert_eq!(answer.text(), "c");
    let pair = answer.get("set-cookie").and_then(|line| line.split(';').next()).expect("a cookie").to_owned();
    for _ in 0..10 {
        let [same, any] = ["X-Version: v2\r\n", ""].map(|more| ask(&format!("Cookie: {pair}\r\n{more}")).text());
        assert_eq!([same, any], ["c", "c"]);
        let other = ask(&format!("Cookie: {pair}\r\nX-Version: v1\r\n"));
        assert!(other.text() != "c" && other.has("set-cookie"), "another one, and a session with it");
    }
}

#[test]
fn operators_see_whom_a_subset_consists_of() {
    let all = three();
    let endpoints = format!("endpoints: [{}]", versions(&all));
    let gateway = start_by_header(
        &endpoints,
        &format!("panic_threshold: 0%, {CHECK}"),
        "metadata: { disk: ssd }, by_header: { name: X-Version, metadata: version, default: v1 }, fallback: any",
    );
    let shown = || -> Value {
        let page: Value = serde_json::from_str(&gateway.admin("/services").1).expect("JSON");
        assert_eq!(page[0]["subsets"].as_array().map(Vec::len), Some(1), "{page}");
        page[0]["subsets"][0].clone()
    };
    let [a, c] = [0, 2].map(|index| all[index].endpoint());
    let part = |endpoints: &[&str], in_use: &[&str]| json!({ "endpoints": endpoints, "inUse": in_use, "panic": false, "fallsBack": in_use.is_empty() });
    let expected = |c_in_use: &[&str], all_in_use: &[&str]| {
        let mut expected = json!({
            "routes": ["all"],
            "metadata": { "disk": "ssd" },
            "byHeader": { "name": "x-version", "metadata": "version", "default": "v1" },
            "fallback": "any",
        });
        let (mut v1, mut v2) = (part(&[a], &[a]), part(&[c], c_in_use));
        (v1["value"], v2["value"]) = (json!("v1"), json!("v2"));
        expected["values"] = json!([v1, v2]);
        let all = part(&[a, c], all_in_use);
        all.as_object().expect("a part").iter().for_each(|(key, value)| expected[key] = value.clone());
        expected
    };
    assert_eq!(shown(), expected(&[c], &[a, c]));
    all[2].set(Mood::Broken);
    settles_at(expected(&[], &[a]), shown);
}
