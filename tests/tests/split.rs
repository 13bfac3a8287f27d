//! A route whose requests several services share: by weight, always the same one for the same client, and as a client says.

use std::time::{SystemTime, UNIX_EPOCH};

use ringway_tests::failing::{Fickle, Mood};
use ringway_tests::{Backend, Client, Gateway, Nobody, PATIENCE, eventually};

/// Two services, `v1` and `v2`, with what else is in them, that share the requests of the route `all`.
fn config(services: [(&str, &str); 2], weights: [u32; 2], more: &str) -> String {
    let [v1, v2] = services.map(|(endpoint, more)| format!("endpoints: \"{endpoint}\", {more}"));
    format!(
        "services: [{{ name: v1, {v1} }}, {{ name: v2, {v2} }}]\nroutes:\n  - name: all\n    service: {{ split: \
         [{{ service: v1, weight: {} }}, {{ service: v2, weight: {} }}], {more} }}\n",
        weights[0], weights[1]
    )
}

fn split(gateway: &Gateway, service: &str) -> f64 {
    gateway.metric(&format!("gateway_split_requests_total{{route=\"all\",service=\"{service}\"}}"))
}

/// Who answers each of so many keys.
fn sides(client: &mut Client, keys: usize, field: impl Fn(usize) -> String) -> Vec<String> {
    let mut ask = |key| client.ask(format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n\r\n", field(key))).text();
    (0..keys).map(&mut ask).collect()
}

fn of(sides: &[String], name: &str) -> usize {
    sides.iter().filter(|side| *side == name).count()
}

#[test]
fn requests_are_shared_by_weight_and_counted_where_they_went() {
    let [v1, v2] = ["1", "2"].map(Fickle::new);
    let gateway = Gateway::start(&config([(v1.endpoint(), ""), (v2.endpoint(), "")], [80, 20], ""));
    let sides = sides(&mut gateway.connect(), 400, |_| "x: y".into());
    let canary = of(&sides, "2");
    assert!((40..=120).contains(&canary), "{canary} of 400");
    assert_eq!((split(&gateway, "v1"), split(&gateway, "v2")), ((400 - canary) as f64, canary as f64));
    gateway.log_line(400);
    let logged = gateway.log_lines().iter().filter(|line| line["backendService"] == "v2").count();
    assert_eq!(logged, canary);
    let of_service = gateway.metric("gateway_backend_duration_seconds_count{service=\"v2\"}");
    assert_eq!(of_service, canary as f64);
}

#[test]
fn the_same_key_keeps_its_side_and_a_raised_weight_moves_keys_to_it_only() {
    let [v1, v2] = ["1", "2"].map(Fickle::new);
    let services = [(v1.endpoint(), ""), (v2.endpoint(), "")];
    let key = |key| format!("x-tenant: {key}");
    let gateway = Gateway::start(&config(services, [90, 10], "sticky: header X-Tenant"));
    let before = sides(&mut gateway.connect(), 200, key);
    assert_eq!(before, sides(&mut gateway.connect(), 200, key));
    assert!((4..=50).contains(&of(&before, "2")), "{before:?}");

    assert!(gateway.replace_config(&config(services, [90, 60], "sticky: header X-Tenant")));
    let after = sides(&mut gateway.connect(), 200, key);
    assert!((40..=120).contains(&of(&after, "2")), "{after:?}");
    for (before, after) in before.iter().zip(&after) {
        assert!(before == after || after == "2", "{before} {after}");
    }
    // What was counted stays.
    assert_eq!(split(&gateway, "v1") + split(&gateway, "v2"), 600.0);

    assert!(gateway.replace_config(&config(services, [1, 0], "sticky: header X-Tenant")));
    assert_eq!(of(&sides(&mut gateway.connect(), 200, key), "2"), 0, "a weight of 0 is none");
}

#[test]
fn a_client_gets_a_cookie_and_keeps_its_side_by_it() {
    let [v1, v2] = ["1", "2"].map(Fickle::new);
    let services = [(v1.endpoint(), ""), (v2.endpoint(), "")];
    let gateway = Gateway::start(&config(services, [1, 1], "sticky: cookie side"));
    let mut client = gateway.connect();
    let (mut seen, mut values) = (Vec::new(), Vec::new());
    for _ in 0..24 {
        let answer = client.get("/");
        let cookie = answer.get("set-cookie").expect("a cookie").to_owned();
        let (pair, attributes) = cookie.split_once("; ").expect("attributes");
        assert_eq!(attributes, "Path=/; HttpOnly; SameSite=Lax");
        let value = pair.strip_prefix("side=").expect("the name");
        assert!(value.len() == 16 && value.bytes().all(|byte| byte.is_ascii_hexdigit()), "{value}");
        for _ in 0..3 {
            let again = client.ask(format!("GET / HTTP/1.1\r\nHost: a\r\nCookie: x=y; {pair}\r\n\r\n"));
            assert_eq!((again.text(), again.get("set-cookie")), (answer.text(), None));
        }
        seen.push(answer.text());
        values.push(value.to_owned());
    }
    values.sort();
    values.dedup();
    assert_eq!(values.len(), 24, "each client has a key of its own");
    assert!(of(&seen, "1") > 0 && of(&seen, "2") > 0, "{seen:?}");
}

#[test]
fn all_of_an_address_go_to_one_side_and_users_keep_theirs() {
    const SECRET: &str = "0123456789abcdef0123456789abcdef";
    let [v1, v2] = ["1", "2"].map(Fickle::new);
    let services = [(v1.endpoint(), ""), (v2.endpoint(), "")];
    let gateway = Gateway::start(&config(services, [1, 1], "sticky: client_ip"));
    let mut seen = sides(&mut gateway.connect(), 30, |_| "x: y".into());
    seen.dedup();
    assert_eq!(seen.len(), 1);

    let gateway = Gateway::start(&format!(
        "authenticators: [{{ name: main, jwt: {{ algorithms: HS256, keys: {{ secret: \"{SECRET}\" }} }} }}]\n{}    \
         authenticate: main\n",
        config(services, [1, 1], "sticky: user")
    ));
    let expires = SystemTime::now().duration_since(UNIX_EPOCH).expect("a time after 1970").as_secs() + 600;
    let token = |round: usize| {
        move |user: usize| {
            let claims = serde_json::json!({ "sub": format!("user-{user}"), "exp": expires, "round": round });
            let key = jsonwebtoken::EncodingKey::from_secret(SECRET.as_bytes());
            let token = jsonwebtoken::encode(&Default::default(), &claims, &key).expect("a token");
            format!("Authorization: Bearer {token}")
        }
    };
    let before = sides(&mut gateway.connect(), 40, token(1));
    assert_eq!(before, sides(&mut gateway.connect(), 40, token(2)));
    assert!(of(&before, "1") > 4 && of(&before, "2") > 4, "{before:?}");
}

#[test]
fn a_client_may_choose_where_it_may() {
    let [v1, v2] = ["1", "2"].map(Fickle::new);
    let services = [(v1.endpoint(), ""), (v2.endpoint(), "")];
    let gateway = Gateway::start(&config(services, [1, 0], "override: { header: X-Canary }, sticky: cookie side"));
    let mut client = gateway.connect();
    let mut ask = |field: &str| client.ask(format!("GET / HTTP/1.1\r\nHost: a\r\n{field}\r\n\r\n"));
    let chosen = ask("x-canary: v2");
    assert_eq!((chosen.text(), chosen.get("set-cookie")), ("2".into(), None));
    for field in ["x-canary: v1", "x-canary: V2", "x-canary: other", "x-canary: ", "x: v2"] {
        assert_eq!(ask(field).text(), "1", "{field}");
    }
    // Where nothing is said of it the header is one like any other.
    let gateway = Gateway::start(&config(services, [1, 0], ""));
    assert_eq!(gateway.connect().ask("GET / HTTP/1.1\r\nHost: a\r\nx-canary: v2\r\n\r\n").text(), "1");
}

#[test]
fn breaker_and_retries_are_those_of_the_chosen_service() {
    let (v1, v2, nobody) = (Fickle::new("1"), Fickle::new("2"), Nobody::new());
    v2.set(Mood::Broken);
    let fallback = "circuit_breaker: { consecutive_failures: 2, open: 1h, fallback: { respond: { text: cut } } }";
    let gateway = Gateway::start(&config(
        [(v1.endpoint(), ""), (v2.endpoint(), fallback)],
        [1, 0],
        "override: { header: X-Canary }",
    ));
    let mut client = gateway.connect();
    let mut ask = |side: &str| client.ask(format!("GET / HTTP/1.1\r\nHost: a\r\nX-Canary: {side}\r\n\r\n"));
    let statuses = [(); 4].map(|()| ask("v2").status());
    assert_eq!(statuses, [500, 500, 200, 200]);
    assert_eq!(ask("v2").text(), "cut");
    assert_eq!((ask("v1").text(), v2.served()), ("1".into(), 2));
    assert_eq!(gateway.metric("gateway_circuit_breaker_state{service=\"v2\"}"), 2.0);

    // Tries again where `v2` says so, and stays within it.
    let backend = Backend::ok();
    let both = format!("{}\", \"{}", nobody.endpoint(), backend.endpoint());
    let yaml = config([(v1.endpoint(), ""), ("unused", "")], [0, 1], "")
        .replace("endpoints: \"unused\", ", &format!("endpoints: [\"{both}\"], balance: round_robin, retries: {{}} "));
    let gateway = Gateway::start(&yaml);
    let mut client = gateway.connect();
    for _ in 0..10 {
        assert_eq!(client.get("/").text(), "ok");
    }
    assert_eq!((backend.requests().len(), v1.served()), (10, 1));
    // The last one is counted after its answer.
    eventually(PATIENCE, || gateway.metric("gateway_retries_total{service=\"v2\",outcome=\"success\"}") == 5.0);
}

#[test]
fn who_waits_for_a_place_keeps_the_side_that_it_was_given() {
    let [v1, v2] = ["1", "2"].map(Fickle::new);
    let narrow = "bulkhead: { requests: 1, pending: 100, wait: 10s }";
    let gateway = Gateway::start(&config([(v1.endpoint(), narrow), (v2.endpoint(), narrow)], [1, 1], ""));
    v1.set(Mood::Slow);
    v2.set(Mood::Slow);
    std::thread::scope(|scope| {
        for _ in 0..12 {
            scope.spawn(|| assert_eq!(gateway.connect().get("/").status(), 200));
        }
    });
    // Each was chosen for once, though most were looked at twice.
    assert_eq!((split(&gateway, "v1"), split(&gateway, "v2")), (v1.served() as f64, v2.served() as f64));
    assert_eq!(v1.served() + v2.served(), 12);
}
