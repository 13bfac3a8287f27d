//! Services whose endpoints come and go while the gateway runs: found by DNS and in files.

use std::collections::HashSet;
use std::fs;
use std::net::{Ipv4Addr, TcpListener};

use ringway_tests::dns::{NameServer, Record};
use ringway_tests::failing::{Fickle, Mood};
use ringway_tests::{Backend, Conn, Gateway, PATIENCE, eventually, settles_at};

const ENDPOINTS: &str = "gateway_discovery_endpoints{service=\"app\"}";
const FAILURES: &str = "gateway_discovery_lookups_total{service=\"app\",result=\"failure\"}";
const EMPTY: &str = "gateway_discovery_lookups_total{service=\"app\",result=\"empty\"}";
const FOUND: &str = "gateway_discovery_lookups_total{service=\"app\",result=\"found\"}";

fn named(name: &str) -> Backend {
    Backend::fixed(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{name}", name.len()))
}

fn config(discovery: &str) -> String {
    format!(
        "services: [{{ name: app, balance: round_robin, discovery: {{ {discovery} }} }}]\n\
         routes: [{{ name: all, service: app }}]\n"
    )
}

fn srv(backend: &Backend) -> Record {
    Record::Srv { priority: 1, weight: 1, port: backend.address().port(), target: "host.test" }
}

/// A name server on which `host.test` is this machine.
fn name_server() -> NameServer {
    let server = NameServer::start();
    server.set("host.test", &[Record::A(Ipv4Addr::LOCALHOST)]);
    server
}

/// Who answers eight requests.
fn answering(gateway: &Gateway) -> HashSet<String> {
    (0..8)
        .map(|_| {
            let answer = gateway.get("/");
            assert_eq!(answer.status(), 200);
            answer.text().to_owned()
        })
        .collect()
}

fn set(names: &[&str]) -> HashSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

fn srv_config(server: &NameServer, more: &str) -> String {
    let dns = format!("dns: {{ name: app.test, records: srv, servers: [\"{}\"] }}", server.address());
    config(&format!("{dns}, interval: 1s{more}"))
}

#[test]
fn the_addresses_of_a_name_are_followed() {
    // The same port on two addresses of this machine.
    let pair = || {
        let first = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).ok()?;
        let port = first.local_addr().ok()?.port();
        Some((first, TcpListener::bind((Ipv4Addr::new(127, 0, 0, 2), port)).ok()?, port))
    };
    let (first, second, port) = (0..100).find_map(|_| pair()).unwrap();
    let answer = |text: &'static str| {
        move |conn: &mut Conn| {
            while conn.next_request().is_some() {
                conn.send(format!("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n{text}"));
            }
        }
    };
    let _backends = [Backend::on(first, answer("one")), Backend::on(second, answer("two"))];
    let server = NameServer::start();
    let [one, two] = [1, 2].map(|last| Record::A(Ipv4Addr::new(127, 0, 0, last)));
    server.set("app.test", std::slice::from_ref(&one));
    let dns = format!("dns: {{ name: app.test, port: {port}, servers: [\"{}\"] }}, interval: 1s", server.address());
    let gateway = Gateway::start(&config(&dns));
    // From the first request on: the start waits for the first answer.
    assert_eq!(answering(&gateway), set(&["one"]));
    server.set("app.test", &[one, two.clone()]);
    settles_at(set(&["one", "two"]), || answering(&gateway));
    server.set("app.test", &[two]);
    settles_at(set(&["two"]), || answering(&gateway));
    assert_eq!(gateway.metric(ENDPOINTS), 1.0);
}

#[test]
fn srv_records_say_where_and_how_much() {
    let (heavy, light, backup) = (named("heavy"), named("light"), named("backup"));
    let record = |backend: &Backend, priority, weight| Record::Srv {
        priority,
        weight,
        port: backend.address().port(),
        target: "host.test",
    };
    let server = name_server();
    server.set("app.test", &[record(&heavy, 1, 3), record(&light, 1, 1), record(&backup, 2, 1)]);
    let gateway = Gateway::start(&srv_config(&server, ""));
    // The one of the later priority waits until the others are gone.
    assert_eq!(gateway.metric(ENDPOINTS), 3.0);
    let by_heavy = (0..40).filter(|_| gateway.get("/").text() == "heavy").count();
    assert_eq!(by_heavy, 30, "three of four");
    server.set("app.test", &[record(&backup, 2, 1)]);
    settles_at(set(&["backup"]), || answering(&gateway));
}

#[test]
fn connections_to_endpoints_that_stay_go_on() {
    let (stays, goes) = (named("stays"), named("goes"));
    let server = name_server();
    server.set("app.test", &[srv(&stays), srv(&goes)]);
    let gateway = Gateway::start(&format!("runtime: {{ workers: 1 }}\n{}", srv_config(&server, "")));
    assert_eq!(answering(&gateway).len(), 2);
    let before = stays.connections();
    server.set("app.test", &[srv(&stays)]);
    settles_at(set(&["stays"]), || answering(&gateway));
    assert_eq!(stays.connections(), before);
    // Those to the one that is gone are closed.
    goes.expect_all_closed();
}

#[test]
fn what_was_found_stays_while_looking_fails() {
    let backend = named("one");
    let server = name_server();
    server.set("app.test", &[srv(&backend)]);
    let gateway = Gateway::start(&srv_config(&server, ""));
    assert_eq!(answering(&gateway), set(&["one"]));
    // No answer at all.
    server.silence(true);
    eventually(PATIENCE, || gateway.metric(FAILURES) >= 1.0);
    assert_eq!(answering(&gateway), set(&["one"]));
    server.silence(false);
    let found = gateway.metric(FOUND);
    eventually(PATIENCE, || gateway.metric(FOUND) > found);
    // An answer without records, within the time of grace.
    server.set("app.test", &[]);
    eventually(PATIENCE, || gateway.metric(EMPTY) >= 2.0);
    assert_eq!(answering(&gateway), set(&["one"]));
    assert_eq!(gateway.metric(ENDPOINTS), 1.0);
    // It survives a reload.
    let yaml = srv_config(&server, "").replace("name: all", "name: every");
    fs::write(gateway.directory().join("gateway.yaml"), gateway.render(&yaml)).unwrap();
    settles_at(1.0, || gateway.metric("gateway_config_reloads_total{result=\"success\"}"));
    assert_eq!(answering(&gateway), set(&["one"]));
}

#[test]
fn without_grace_an_empty_answer_is_believed_at_once() {
    let backend = named("one");
    let server = name_server();
    server.set("app.test", &[srv(&backend)]);
    let gateway = Gateway::start(&srv_config(&server, ", grace: 0s"));
    assert_eq!(answering(&gateway), set(&["one"]));
    server.set("app.test", &[]);
    settles_at(502, || gateway.get("/").status());
    server.set("app.test", &[srv(&backend)]);
    settles_at(200, || gateway.get("/").status());
}

#[test]
fn a_name_server_that_is_down_delays_the_start_and_does_not_prevent_it() {
    let backend = named("one");
    let server = name_server();
    server.set("app.test", &[srv(&backend)]);
    server.silence(true);
    let gateway = Gateway::start(&srv_config(&server, ""));
    assert_eq!(gateway.get("/").status(), 502);
    server.silence(false);
    settles_at(200, || gateway.get("/").status());
    assert!(server.asked() > 1);
}

#[test]
fn what_is_known_of_an_endpoint_is_shown_and_a_change_of_it_costs_no_connection() {
    let backend = named("one");
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("endpoints.yaml");
    let install = |known: &str| {
        let new = directory.path().join("new");
        fs::write(&new, format!("- {{ address: {}, {known} }}\n", backend.endpoint())).unwrap();
        fs::rename(&new, &path).unwrap();
    };
    install("zone: eu-1, metadata: { version: v1, canary: true }");
    let gateway = Gateway::start(&config(&format!("file: \"{}\"", path.display())));
    let shown = || {
        let page: serde_json::Value = serde_json::from_str(&gateway.admin("/services").1).unwrap();
        let endpoint = &page[0]["endpoints"][0];
        let known = [&endpoint["weight"], &endpoint["priority"], &endpoint["zone"], &endpoint["metadata"]];
        known.map(ToString::to_string).join(" ")
    };
    assert_eq!(shown(), r#"1 0 "eu-1" {"canary":"true","version":"v1"}"#);
    assert_eq!(answering(&gateway), set(&["one"]));
    let before = backend.connections();
    install("weight: 2, priority: 3, zone: eu-2");
    settles_at(r#"2 3 "eu-2" null"#.to_owned(), shown);
    let generation = gateway.metric("gateway_config_generation");
    settles_at(true, || gateway.metric("gateway_worker_config_generation{worker=\"0\"}") >= generation);
    assert_eq!(answering(&gateway), set(&["one"]));
    assert_eq!(backend.connections(), before);
}

#[test]
fn a_file_is_followed() {
    let (first, second) = (named("one"), named("two"));
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("endpoints.yaml");
    let install = |text: &str| {
        let new = directory.path().join("new");
        fs::write(&new, text).unwrap();
        fs::rename(&new, &path).unwrap();
    };
    install(&format!("- {}\n", first.endpoint()));
    let gateway = Gateway::start(&config(&format!("file: \"{}\"", path.display())));
    assert_eq!(answering(&gateway), set(&["one"]));
    install(&format!("[\"{}\", {{ \"address\": \"{}\", \"weight\": 2 }}]", first.endpoint(), second.endpoint()));
    settles_at(set(&["one", "two"]), || answering(&gateway));
    // What cannot be read changes nothing.
    install("- nobody\n");
    eventually(PATIENCE, || gateway.metric(FAILURES) >= 1.0);
    assert_eq!(answering(&gateway), set(&["one", "two"]));
    fs::remove_file(&path).unwrap();
    eventually(PATIENCE, || gateway.metric(FAILURES) >= 2.0);
    assert_eq!(answering(&gateway), set(&["one", "two"]));
    install(&format!("- {}\n", second.endpoint()));
    settles_at(set(&["two"]), || answering(&gateway));
}

#[test]
fn what_is_found_is_checked() {
    let (first, second) = (Fickle::new("one"), Fickle::new("two"));
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("endpoints.yaml");
    fs::write(&path, format!("- {}\n", first.endpoint())).unwrap();
    let check = "health_check: { http: { path: /health }, interval: 50ms, unhealthy_threshold: 2 }";
    let gateway = Gateway::start(&format!(
        "services: [{{ name: app, discovery: {{ file: \"{}\" }}, {check} }}]\nroutes: [{{ name: all, service: app }}]\n",
        path.display()
    ));
    let healthy = |endpoint: &str| {
        let sample = format!("gateway_endpoint_healthy{{service=\"app\",endpoint=\"{endpoint}\"}} ");
        let page = gateway.admin("/metrics").1;
        page.lines().find_map(|line| line.strip_prefix(&sample)).map(|value| value == "1")
    };
    settles_at(Some(true), || healthy(first.endpoint()));
    let new = directory.path().join("new");
    fs::write(&new, format!("- {}\n- {}\n", first.endpoint(), second.endpoint())).unwrap();
    fs::rename(&new, &path).unwrap();
    settles_at(set(&["one", "two"]), || answering(&gateway));
    // It was not there when the gateway began.
    second.set(Mood::Broken);
    settles_at(Some(false), || healthy(second.endpoint()));
    assert_eq!(answering(&gateway), set(&["one"]));
    // Nobody asks who is gone.
    fs::write(&new, format!("- {}\n", first.endpoint())).unwrap();
    fs::rename(&new, &path).unwrap();
    settles_at(None, || healthy(second.endpoint()));
}
