//! Services whose endpoints are found, and that reloads bring, change and leave alone.

use std::fs;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use ringway_tests::dns::{NameServer, Record};
use ringway_tests::etcd::Etcd;
use ringway_tests::redis::Redis;
use ringway_tests::{Backend, Gateway, Load, PATIENCE, eventually, settles_at};

const EMPTY: &str = "gateway_discovery_lookups_total{service=\"app\",result=\"empty\"}";
const FAILURES: &str = "gateway_discovery_lookups_total{service=\"app\",result=\"failure\"}";

fn named(name: &str) -> Backend {
    Backend::fixed(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{name}", name.len()))
}

/// A name server on which `app.test` is this backend.
fn name_server(backend: &Backend) -> NameServer {
    let server = NameServer::start();
    server.set("host.test", &[Record::A(Ipv4Addr::LOCALHOST)]);
    let port = backend.address().port();
    server.set("app.test", &[Record::Srv { priority: 1, weight: 1, port, target: "host.test" }]);
    server
}

fn srv(server: &NameServer) -> String {
    format!("dns: {{ name: app.test, records: srv, servers: [\"{}\"] }}", server.address())
}

#[test]
fn a_service_that_a_reload_adds_has_its_endpoints_with_the_first_request() {
    let [written, by_dns, by_file, by_etcd, registered] =
        ["written", "by_dns", "by_file", "by_etcd", "registered"].map(named);
    let (server, etcd, redis) = (name_server(&by_dns), Etcd::start(), Redis::start());
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("endpoints.yaml");
    fs::write(&file, by_file.endpoint()).unwrap();
    etcd.put("/services/app/1", by_etcd.endpoint());
    let sections = |services: &str, to: &str| {
        format!(
            "redis: {{ url: \"{}\" }}\nadmin: {{ address: ADMIN, changes: true }}\n\
             services:\n- {{ name: written, endpoints: \"{}\" }}\n- {{ name: stock, discovery: {{ registry: {{}} }} }}\n\
             {services}routes: [{{ name: all, service: {to} }}]\n",
            redis.url(),
            written.endpoint()
        )
    };
    let gateway = Gateway::start(&sections("", "written"));
    let body = format!(r#"{{"address":"{}","ttl":"1h"}}"#, registered.endpoint());
    assert_eq!(gateway.change("PUT", "/registry/stock/1", &body).0, 201);
    server.set_delay(Duration::from_millis(100));
    let load = Load::start(gateway.address(), 4, &["/"]);
    for (name, backend, discovery) in [
        ("by_dns", &by_dns, srv(&server)),
        ("by_file", &by_file, format!("file: \"{}\"", file.display())),
        ("by_etcd", &by_etcd, format!("etcd: {{ endpoints: \"{}\", prefix: /services/app/ }}", etcd.url())),
        ("registered", &registered, "registry: { service: stock }".into()),
    ] {
        for (services, to, backend) in [
            (format!("- {{ name: {name}, discovery: {{ {discovery} }} }}\n"), name, backend),
            (String::new(), "written", &written),
        ] {
            assert!(gateway.replace_config(&sections(&services, to)), "{name}");
            let (seen, before) = (load.answered(), backend.requests().len());
            eventually(PATIENCE, || load.answered() > seen + 8);
            assert!(backend.requests().len() > before, "{name}");
        }
    }
    assert!(load.finish() > 64);
    assert!(!gateway.stderr().contains("no endpoints were found in time"), "{}", gateway.stderr());
}

#[test]
fn a_reload_that_brings_another_redis_brings_its_instances_with_it() {
    let backends = ["written", "one", "two"].map(named);
    let redis = [Redis::start(), Redis::start()];
    let config = |redis: &Redis, to: &str| {
        format!(
            "redis: {{ url: \"{}\" }}\nadmin: {{ address: ADMIN, changes: true }}\n\
             services:\n- {{ name: written, endpoints: \"{}\" }}\n- {{ name: stock, discovery: {{ registry: {{}} }} }}\n\
             routes: [{{ name: all, service: {to} }}]\n",
            redis.url(),
            backends[0].endpoint()
        )
    };
    for (redis, backend) in redis.iter().zip(&backends[1..]) {
        let other = Gateway::start(&config(redis, "written"));
        let body = format!(r#"{{"address":"{}","ttl":"1h"}}"#, backend.endpoint());
        assert_eq!(other.change("PUT", "/registry/stock/1", &body).0, 201);
    }
    // At first there is no Redis at all.
    let gateway = Gateway::start(&Gateway::route_to(backends[0].endpoint()));
    let load = Load::start(gateway.address(), 4, &["/"]);
    for (redis, backend) in redis.iter().zip(&backends[1..]) {
        assert!(gateway.replace_config(&config(redis, "stock")));
        let (seen, before) = (load.answered(), backend.requests().len());
        eventually(PATIENCE, || load.answered() > seen + 8);
        assert!(backend.requests().len() > before);
    }
    load.finish();
    assert!(!gateway.stderr().contains("no endpoints were found in time"), "{}", gateway.stderr());
}

#[test]
fn a_place_that_does_not_answer_holds_a_reload_up_for_two_seconds() {
    let (one, two) = (named("one"), named("two"));
    let server = name_server(&two);
    server.silence(true);
    let written = Gateway::route_to(one.endpoint());
    let gateway = Gateway::start(&written);
    let more = format!(
        "services:\n- {{ name: app, endpoints: \"{}\" }}\n- {{ name: later, discovery: {{ {}, interval: 1s }} }}\n\
         routes: [{{ name: all, service: app }}, {{ name: later, match: {{ path: /later }}, service: later }}]\n",
        one.endpoint(),
        srv(&server)
    );
    let begun = Instant::now();
    assert!(gateway.replace_config(&more));
    let took = begun.elapsed();
    assert!(Duration::from_secs(2) <= took && took < Duration::from_secs(8), "{took:?}");
    let warning = "service `later`: no endpoints were found in time: going on without them";
    assert_eq!(gateway.stderr().matches(warning).count(), 1, "{}", gateway.stderr());
    assert_eq!((gateway.get("/").status(), gateway.get("/later").status()), (200, 502));
    // The next one does not wait for it again.
    let begun = Instant::now();
    assert!(gateway.replace_config(&more.replace("name: all", "name: every")));
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    server.silence(false);
    settles_at("two".to_owned(), || gateway.get("/later").text());
    assert_eq!(gateway.stderr().matches(warning).count(), 1, "{}", gateway.stderr());
}

#[test]
fn what_was_found_stays_where_only_the_way_of_looking_changes() {
    let backend = named("one");
    let server = name_server(&backend);
    let config = |more: &str| {
        format!(
            "services: [{{ name: app, discovery: {{ {}, {more} }} }}]\nroutes: [{{ name: all, service: app }}]\n",
            srv(&server)
        )
    };
    let gateway = Gateway::start(&config("interval: 1s"));
    assert_eq!(gateway.get("/").text(), "one");
    server.silence(true);
    let begun = Instant::now();
    assert!(gateway.replace_config(&config("interval: 2s")));
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    eventually(PATIENCE, || gateway.metric(FAILURES) >= 1.0);
    assert_eq!(gateway.get("/").text(), "one");
    // And an empty answer, the first one to who looks now, does not take it away within the time of grace.
    server.set("app.test", &[]);
    server.silence(false);
    eventually(PATIENCE, || gateway.metric(EMPTY) >= 1.0);
    assert_eq!(gateway.get("/").text(), "one");
}
