//! Services whose instances register themselves with any of the gateways that share a Redis: a real one.

use std::collections::HashSet;
use std::fs;
use std::time::{Duration, Instant};

use ringway_tests::redis::Redis;
use ringway_tests::{Backend, Client, Gateway, PATIENCE, eventually, settles_at};
use serde_json::Value;

const ENDPOINTS: &str = "gateway_discovery_endpoints{service=\"app\"}";
const FAILURES: &str = "gateway_discovery_lookups_total{service=\"app\",result=\"failure\"}";
/// Longer than a slow machine takes for a few requests, and short enough to wait for its end.
const TTL: &str = "3s";

fn named(name: &str) -> Backend {
    Backend::fixed(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{name}", name.len()))
}

fn config(url: &str, more: &str) -> String {
    format!(
        "redis: {{ url: \"{url}\" }}\n\
         admin: {{ address: ADMIN, changes: true }}\n\
         services: [{{ name: app, balance: round_robin, discovery: {{ registry: {{}}, {more} }} }}]\n\
         routes: [{{ name: all, service: app }}]\n"
    )
}

fn gateway(redis: &Redis) -> Gateway {
    Gateway::start(&config(&redis.url(), "grace: 0s"))
}

/// The status of a registration.
fn register(gateway: &Gateway, name: &str, backend: &Backend, ttl: &str) -> u16 {
    let body = format!(r#"{{"address":"{}","ttl":"{ttl}"}}"#, backend.endpoint());
    gateway.change("PUT", &format!("/registry/app/{name}"), &body).0
}

fn beat(gateway: &Gateway, name: &str) -> u16 {
    gateway.change("POST", &format!("/registry/app/{name}/heartbeat"), "").0
}

fn leave(gateway: &Gateway, name: &str) -> u16 {
    gateway.change("DELETE", &format!("/registry/app/{name}"), "").0
}

/// Who is registered, as the admin listener shows it.
fn registered(gateway: &Gateway) -> Vec<String> {
    let (status, page) = gateway.admin("/registry/app");
    assert_eq!(status, 200, "{page}");
    let page: Value = serde_json::from_str(&page).unwrap();
    let instances = page[0]["instances"].as_array().unwrap();
    instances.iter().map(|instance| instance["name"].as_str().unwrap().to_owned()).collect()
}

/// Who answers eight requests; nobody where there is no endpoint.
fn answering(gateway: &Gateway) -> HashSet<String> {
    let answers = (0..8).map(|_| gateway.get("/")).filter(|answer| answer.status() == 200);
    answers.map(|answer| answer.text()).collect()
}

fn set(names: &[&str]) -> HashSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

#[test]
fn all_gateways_see_who_comes_and_goes_within_a_second() {
    let redis = Redis::start();
    let (here, there) = (gateway(&redis), gateway(&redis));
    let (one, two) = (named("one"), named("two"));
    assert_eq!(here.get("/").status(), 502);
    assert_eq!(register(&here, "one", &one, "60s"), 201);
    assert_eq!(register(&there, "one", &one, "60s"), 200);
    // The quickest of five: what others run on this machine is not measured.
    let quickest = (0..5).map(|_| {
        assert_eq!(register(&here, "two", &two, "60s"), 201);
        let come = Instant::now();
        settles_at(set(&["one", "two"]), || answering(&there));
        let (come, gone) = (come.elapsed(), Instant::now());
        settles_at(set(&["one", "two"]), || answering(&here));
        assert_eq!(leave(&there, "two"), 200);
        settles_at(set(&["one"]), || answering(&here));
        settles_at(set(&["one"]), || answering(&there));
        come.max(gone.elapsed())
    });
    let quickest = quickest.min().unwrap();
    assert!(quickest < Duration::from_secs(1), "{quickest:?}");
    assert_eq!((leave(&here, "two"), beat(&there, "two")), (404, 404));
    assert_eq!((registered(&here), registered(&there)), (vec!["one".into()], vec!["one".into()]));
    for gateway in [&here, &there] {
        assert_eq!(gateway.metric(FAILURES), 0.0, "{}", gateway.stderr());
    }
}

#[test]
fn who_gives_no_sign_of_life_goes() {
    let redis = Redis::start();
    let gateway = gateway(&redis);
    let (one, two) = (named("one"), named("two"));
    assert_eq!([register(&gateway, "one", &one, TTL), register(&gateway, "two", &two, TTL)], [201; 2]);
    settles_at(set(&["one", "two"]), || answering(&gateway));
    let begun = Instant::now();
    settles_at(set(&["one"]), || {
        assert_eq!(beat(&gateway, "one"), 200);
        answering(&gateway)
    });
    assert_eq!(beat(&gateway, "two"), 404);
    // Registering again is a sign of life too.
    eventually(PATIENCE, || {
        assert_eq!(register(&gateway, "one", &one, TTL), 200);
        begun.elapsed() > Duration::from_secs(8)
    });
    assert_eq!(answering(&gateway), set(&["one"]));
    // And the last one goes.
    settles_at(502, || gateway.get("/").status());
    assert_eq!(gateway.metric(ENDPOINTS), 0.0);
    // It comes again.
    assert_eq!(register(&gateway, "one", &one, TTL), 201);
    settles_at(200, || gateway.get("/").status());
}

#[test]
fn what_an_instance_says_of_itself_is_shown_and_changes() {
    let redis = Redis::start();
    let gateway = gateway(&redis);
    let (heavy, light) = (named("heavy"), named("light"));
    let put = |weight| {
        let address = heavy.endpoint();
        let body = format!(
            r#"{{"address":"{address}","weight":{weight},"zone":"eu-1","metadata":{{"version":"v2"}},"ttl":"1m"}}"#
        );
        gateway.change("PUT", "/registry/app/heavy", &body).0
    };
    assert_eq!((put(3), register(&gateway, "light", &light, "1m")), (201, 201));
    settles_at(2.0, || gateway.metric(ENDPOINTS));
    settles_at(30, || (0..40).filter(|_| gateway.get("/").text() == "heavy").count());
    let page: Value = serde_json::from_str(&gateway.admin("/registry").1).unwrap();
    let shown = &page[0]["instances"][0];
    let known = [&page[0]["service"], &shown["name"], &shown["address"]].map(Value::to_string);
    assert_eq!(known, ["app", "heavy", heavy.endpoint()].map(|text| format!("\"{text}\"")));
    assert_eq!((&shown["ttlMs"], &shown["zone"]), (&Value::from(60_000), &Value::from("eu-1")));
    assert!((1..=60_000).contains(&shown["leftMs"].as_u64().unwrap()), "{shown}");
    let page: Value = serde_json::from_str(&gateway.admin("/services").1).unwrap();
    let endpoints = page[0]["endpoints"].as_array().unwrap();
    let shown = endpoints.iter().find(|endpoint| endpoint["address"] == *heavy.endpoint()).unwrap();
    assert_eq!((&shown["zone"], &shown["metadata"]["version"]), (&Value::from("eu-1"), &Value::from("v2")));
    let connections = heavy.connections();
    assert_eq!(put(1), 200);
    settles_at(20, || (0..40).filter(|_| gateway.get("/").text() == "heavy").count());
    assert_eq!(heavy.connections(), connections, "only its weight is another");
}

#[test]
fn an_instance_of_a_later_priority_waits_for_its_turn() {
    let redis = Redis::start();
    let gateway = gateway(&redis);
    let (first, backup) = (named("first"), named("backup"));
    let put = |name: &str, backend: &Backend, priority: &str| {
        let body = format!(r#"{{"address":"{}","priority":{priority},"ttl":"1m"}}"#, backend.endpoint());
        gateway.change("PUT", &format!("/registry/app/{name}"), &body)
    };
    assert_eq!((put("first", &first, "0").0, put("backup", &backup, "1").0), (201, 201));
    for wrong in ["128", "-1", "\"high\""] {
        let (status, said) = put("backup", &backup, wrong);
        assert!(status == 400 && said.contains("from 0 to 127"), "{wrong}: {said}");
    }
    settles_at(2.0, || gateway.metric(ENDPOINTS));
    assert_eq!(answering(&gateway), set(&["first"]));
    let shown = |path: &str, pointer: &str, address: &Backend| -> u64 {
        let page: Value = serde_json::from_str(&gateway.admin(path).1).unwrap();
        let all = page.pointer(pointer).unwrap().as_array().unwrap();
        all.iter().find(|one| one["address"] == *address.endpoint()).unwrap()["priority"].as_u64().unwrap()
    };
    for (path, pointer) in [("/registry/app", "/0/instances"), ("/services", "/0/endpoints")] {
        assert_eq!((shown(path, pointer, &first), shown(path, pointer, &backup)), (0, 1), "{path}");
    }
    assert_eq!(leave(&gateway, "first"), 200);
    settles_at(set(&["backup"]), || answering(&gateway));
    // A registration may change it.
    assert_eq!((put("first", &first, "1").0, put("backup", &backup, "0").0), (201, 200));
    settles_at((2.0, 1, 0), || {
        let of = |backend| shown("/services", "/0/endpoints", backend);
        let count = gateway.metric(ENDPOINTS);
        if count == 2.0 { (count, of(&first), of(&backup)) } else { (count, 0, 0) }
    });
    settles_at(set(&["backup"]), || answering(&gateway));
}

#[test]
fn a_redis_that_dies_takes_nobody_with_it() {
    let mut redis = Redis::start();
    let gateway = gateway(&redis);
    let (one, two, three) = (named("one"), named("two"), named("three"));
    for (name, backend) in [("one", &one), ("two", &two), ("three", &three)] {
        assert_eq!(register(&gateway, name, backend, TTL), 201);
    }
    let all = set(&["one", "two", "three"]);
    settles_at(all.clone(), || answering(&gateway));
    redis.kill();
    let killed = Instant::now();
    eventually(PATIENCE, || register(&gateway, "one", &one, TTL) == 503);
    assert_eq!(gateway.admin("/registry").0, 503);
    // For longer than anybody lives without a sign of life.
    eventually(PATIENCE, || killed.elapsed() > Duration::from_secs(4));
    assert_eq!(answering(&gateway), all);
    assert!(gateway.metric(FAILURES) >= 4.0);
    assert_eq!(gateway.stderr().matches("looking for endpoints: there is no connection to Redis").count(), 1);

    // It has forgotten everything. One comes back, one takes its leave, one is dead.
    redis.restart();
    eventually(PATIENCE, || register(&gateway, "one", &one, TTL) == 201);
    let back = Instant::now();
    assert_eq!(leave(&gateway, "three"), 404, "Redis does not know it");
    settles_at(set(&["one", "two"]), || answering(&gateway));
    assert!(back.elapsed() < Duration::from_secs(3), "only who has left is gone so soon");
    settles_at(set(&["one"]), || {
        assert_eq!(beat(&gateway, "one"), 200);
        answering(&gateway)
    });
    assert!(back.elapsed() > Duration::from_secs(2), "the others have their time to come back");
    assert!(gateway.stderr().contains("its endpoints are found again"), "{}", gateway.stderr());
}

#[test]
fn times_that_end_while_redis_is_frozen_begin_anew() {
    let redis = Redis::start();
    let gateway = gateway(&redis);
    let (one, two) = (named("one"), named("two"));
    assert_eq!([register(&gateway, "one", &one, TTL), register(&gateway, "two", &two, TTL)], [201; 2]);
    settles_at(set(&["one", "two"]), || answering(&gateway));
    redis.stop();
    let frozen = Instant::now();
    eventually(PATIENCE, || frozen.elapsed() > Duration::from_secs(4));
    assert_eq!(beat(&gateway, "one"), 503);
    assert_eq!(answering(&gateway), set(&["one", "two"]));
    redis.cont();
    // Their times have ended, and they are there.
    eventually(PATIENCE, || beat(&gateway, "one") == 404);
    assert_eq!(answering(&gateway), set(&["one", "two"]));
    assert_eq!(register(&gateway, "one", &one, TTL), 201);
    settles_at(set(&["one"]), || {
        assert_eq!(beat(&gateway, "one"), 200);
        answering(&gateway)
    });
}

#[test]
fn a_cluster_is_a_registry_too_and_reloads_go_on_with_it() {
    let nodes = Redis::cluster();
    let url = format!("redis+cluster://127.0.0.1:{}", nodes[0].port());
    let gateway = Gateway::start(&config(&url, ""));
    let (one, two) = (named("one"), named("two"));
    assert_eq!(register(&gateway, "one", &one, "1m"), 201);
    settles_at(set(&["one"]), || answering(&gateway));
    let yaml = config(&url, "").replace("name: all", "name: every");
    fs::write(gateway.directory().join("gateway.yaml"), gateway.render(&yaml)).unwrap();
    settles_at(1.0, || gateway.metric("gateway_config_reloads_total{result=\"success\"}"));
    assert_eq!(answering(&gateway), set(&["one"]));
    assert_eq!(register(&gateway, "two", &two, "1m"), 201);
    settles_at(set(&["one", "two"]), || answering(&gateway));
    assert_eq!(leave(&gateway, "one"), 200);
    settles_at(set(&["two"]), || answering(&gateway));
    // Within the time of grace nobody takes the last one away.
    assert_eq!(leave(&gateway, "two"), 200);
    settles_at(true, || gateway.metric("gateway_discovery_lookups_total{service=\"app\",result=\"empty\"}") >= 4.0);
    assert_eq!(answering(&gateway), set(&["two"]));
    assert_eq!(gateway.stderr().matches("there are none any more").count(), 1, "{}", gateway.stderr());
}

#[test]
fn what_is_refused_changes_nothing() {
    let redis = Redis::start();
    let gateway = gateway(&redis);
    let good = r#"{"address":"127.0.0.1:1"}"#;
    let long = format!(r#"{{"address":"127.0.0.1:1","zone":"{}"}}"#, "x".repeat(20_000));
    let name = "x".repeat(129);
    for (method, path, body, status, said) in [
        ("PUT", "/registry/app/a", "{}", 400, "the key `address` is missing"),
        ("PUT", "/registry/app/a", r#"{"address":"127.0.0.1:1","address":"127.0.0.1:2"}"#, 400, "a key twice"),
        ("PUT", "/registry/app/a", r#"{"address":"127.0.0.1:1","tls":true}"#, 400, "unknown key `tls`"),
        ("PUT", "/registry/app/a", r#"{"address":"127.0.0.1:1","ttl":"2h"}"#, 400, "from 1s to 1h"),
        ("PUT", "/registry/app/a", "127.0.0.1:1", 400, "no JSON"),
        ("PUT", "/registry/app/a", &long, 413, "16384 bytes"),
        ("PUT", "/registry/app/a%20b", good, 400, "letters, digits"),
        ("PUT", &format!("/registry/app/{name}"), good, 400, "from 1 to 128"),
        ("PUT", "/registry/other/a", good, 404, "no service of that name"),
        ("GET", "/registry/other", "", 404, "no service of that name"),
        ("PUT", "/registry/app", good, 405, "GET /registry"),
        ("GET", "/registry/app/a", "", 405, "GET /registry"),
        ("POST", "/registry/app/a", good, 405, "GET /registry"),
        ("PUT", "/registry/app/a/b", good, 404, "GET /registry"),
        ("POST", "/registry/app/a/heartbeat", "", 404, "no such instance"),
    ] {
        let (seen, answer) = gateway.change(method, path, body);
        assert_eq!(seen, status, "{method} {path} {body}: {answer}");
        assert!(answer.contains(said), "{method} {path} {body}: {answer}");
    }
    // From a browser's page.
    let mut page = Client::connect(gateway.admin_address());
    let length = good.len();
    let request = format!(
        "PUT /registry/app/a HTTP/1.1\r\nHost: x\r\nOrigin: http://a.test\r\nContent-Length: {length}\r\n\r\n{good}"
    );
    assert_eq!(page.ask(request).status(), 403);
    assert_eq!(registered(&gateway), Vec::<String>::new());

    let yaml = config(&redis.url(), "").replace("changes: true", "changes: false");
    let shut = Gateway::start(&yaml);
    assert_eq!(shut.change("PUT", "/registry/app/a", good).0, 403);
    assert_eq!((beat(&shut, "a"), leave(&shut, "a")), (403, 403));
    assert_eq!(registered(&shut), Vec::<String>::new());
}

#[test]
fn a_service_has_as_many_instances_as_it_may() {
    let redis = Redis::start();
    let gateway = gateway(&redis);
    let mut client = Client::connect(gateway.admin_address());
    let mut put = |number: usize| {
        let body = format!(r#"{{"address":"127.0.{}.{}:9","ttl":"1h"}}"#, number / 256, number % 256);
        let length = body.len();
        let head = format!("PUT /registry/app/n{number} HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n");
        client.ask(head + &body).status()
    };
    for number in 0..1024 {
        assert_eq!(put(number), 201, "{number}");
    }
    assert_eq!((put(1024), put(7)), (409, 200));
    assert_eq!(registered(&gateway).len(), 1024);
    settles_at(1024.0, || gateway.metric(ENDPOINTS));
    // The list is read in parts, not on the connection of the rate limits.
    let seen = redis.ask(&["CLIENT", "LIST"]);
    assert_eq!(
        seen.lines().filter(|line| line.contains("cmd=hscan") || line.contains("cmd=evalsha")).count(),
        2,
        "{seen}"
    );
    let stats = redis.ask(&["INFO", "commandstats"]);
    let calls =
        stats.lines().find_map(|line| line.strip_prefix("cmdstat_hscan:calls=")?.split(',').next()?.parse().ok());
    assert!(calls.is_some_and(|calls: u64| calls >= 32), "{stats}");
    assert!(!stats.contains("cmdstat_hgetall:calls="), "{stats}");
}
