//! How requests are shared among endpoints.

use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

use ringway_tests::failing::{Clients, Fickle, Mood};
use ringway_tests::{Client, Gateway};

fn start(endpoints: &[&str], service: &str) -> Gateway {
    let list: Vec<String> = endpoints.iter().map(|endpoint| format!("\"{endpoint}\"")).collect();
    Gateway::start(&format!(
        "admin: {{ address: ADMIN, changes: true }}\n\
         services: [{{ name: app, endpoints: [{}], {service} }}]\nroutes: [{{ name: all, service: app }}]\n",
        list.join(", ")
    ))
}

/// Who answers, by key.
fn places(client: &mut Client, field: impl Fn(usize) -> String) -> BTreeMap<usize, String> {
    let ask = |key: usize| client.ask(format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n\r\n", field(key))).text();
    let keys: Vec<usize> = (0..60).collect();
    let mut ask = ask;
    keys.into_iter().map(|key| (key, ask(key))).collect()
}

#[test]
fn the_same_key_goes_to_the_same_endpoint_and_few_move() {
    let [a, b, c] = ["a", "b", "c"].map(Fickle::new);
    let all = [a.endpoint(), b.endpoint(), c.endpoint()];
    type Field = fn(usize) -> String;
    let cases: [(&str, Field); 2] = [
        ("header X-Tenant", |key| format!("x-tenant: {key}")),
        ("cookie cart", |key| format!("Cookie: x=1; cart={key}")),
    ];
    for (on, field) in cases {
        let gateway = start(&all, &format!("balance: {{ consistent_hash: {{ on: {on} }} }}"));
        let mut client = gateway.connect();
        let before = places(&mut client, field);
        assert_eq!(before, places(&mut gateway.connect(), field));
        for name in ["a", "b", "c"] {
            assert!(before.values().filter(|place| *place == name).count() >= 8, "{before:?}");
        }
        let path = format!("/services/app/endpoints/{}/drain", a.endpoint());
        assert_eq!(gateway.post_admin(&path).0, 200);
        let after = places(&mut client, field);
        let moved = before.iter().filter(|(key, place)| *place != "a" && after[key] != **place).count();
        assert!(moved <= 6, "{moved} of those whose endpoint is there have moved");
        assert!(after.values().all(|place| place != "a"));
        assert_eq!(gateway.post_admin(&path.replace("drain", "enable")).0, 200);
        assert_eq!(places(&mut client, field), before);
    }
    // All from one address; and those without the header go anywhere.
    let gateway = start(&all, "balance: { consistent_hash: { on: client_ip } }");
    let mut seen: Vec<String> = places(&mut gateway.connect(), |_| "x: y".into()).into_values().collect();
    seen.dedup();
    assert_eq!(seen.len(), 1);
    let gateway = start(&all, "balance: { consistent_hash: { on: header X-Tenant } }");
    let mut seen: Vec<String> = places(&mut gateway.connect(), |_| "x: y".into()).into_values().collect();
    seen.sort();
    seen.dedup();
    assert_eq!(seen.len(), 3);
}

#[test]
fn users_keep_their_endpoint() {
    const SECRET: &str = "0123456789abcdef0123456789abcdef";
    let [a, b, c] = ["a", "b", "c"].map(Fickle::new);
    let gateway = Gateway::start(&format!(
        "authenticators: [{{ name: main, jwt: {{ algorithms: HS256, keys: {{ secret: \"{SECRET}\" }} }} }}]\n\
         services: [{{ name: app, endpoints: [\"{}\", \"{}\", \"{}\"], balance: {{ consistent_hash: {{ on: user }} }} }}]\n\
         routes: [{{ name: all, service: app, authenticate: main }}]\n",
        a.endpoint(),
        b.endpoint(),
        c.endpoint()
    ));
    let expires = SystemTime::now().duration_since(UNIX_EPOCH).expect("a time after 1970").as_secs() + 600;
    // Another token of the same user goes there too.
    let field = |round: usize| {
        move |user: usize| {
            let claims = serde_json::json!({ "sub": format!("user-{user}"), "exp": expires, "round": round });
            let key = jsonwebtoken::EncodingKey::from_secret(SECRET.as_bytes());
            let token = jsonwebtoken::encode(&Default::default(), &claims, &key).expect("a token");
            format!("Authorization: Bearer {token}")
        }
    };
    let before = places(&mut gateway.connect(), field(1));
    assert_eq!(before, places(&mut gateway.connect(), field(2)));
    for name in ["a", "b", "c"] {
        assert!(before.values().any(|place| place == name), "{before:?}");
    }
}

#[test]
fn the_slow_one_gets_few_requests_by_peak_ewma() {
    let [a, b, c] = ["a", "b", "c"].map(Fickle::new);
    a.set(Mood::Slow);
    let gateway = start(&[a.endpoint(), b.endpoint(), c.endpoint()], "balance: peak_ewma");
    let clients = Clients::start(gateway.address(), 4, 400);
    clients.more(600);
    let served = [&a, &b, &c].map(Fickle::served);
    assert!(served[0] * 10 <= served[1].min(served[2]), "{served:?}");
    let latency =
        gateway.metric(&format!("gateway_endpoint_latency_seconds{{service=\"app\",endpoint=\"{}\"}}", a.endpoint()));
    assert!((0.02..0.5).contains(&latency), "{latency}");
    assert_eq!(clients.failures(), 0);
}

#[test]
fn random_is_by_weight() {
    let [a, b] = ["a", "b"].map(Fickle::new);
    let gateway = Gateway::start(&format!(
        "services: [{{ name: app, balance: random, endpoints: [\"{}\", {{ address: \"{}\", weight: 3 }}] }}]\n\
         routes: [{{ name: all, service: app }}]\n",
        a.endpoint(),
        b.endpoint()
    ));
    let mut client = gateway.connect();
    (0..400).for_each(|_| drop(client.get("/")));
    assert!((60..140).contains(&a.served()) && a.served() + b.served() == 400, "{} {}", a.served(), b.served());
}
