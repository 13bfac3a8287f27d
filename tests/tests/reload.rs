//! A new configuration for a running gateway: taken whole, or not at all, and no client notices the change.

use std::fs;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use ringway_tests::{Backend, Client, Gateway, Load, PATIENCE, eventually, free_port, settles_at};
use rustix::process::Signal;

const FAILED: &str = "gateway_config_reloads_total{result=\"failure\"}";
const SUCCEEDED: &str = "gateway_config_reloads_total{result=\"success\"}";
const LAST_OK: &str = "gateway_config_last_reload_successful";

fn answers(text: &str) -> String {
    format!("routes: [{{ respond: {{ text: {text} }} }}]\n")
}

/// The service at `endpoint`, with `version` in every answer's head.
fn versioned(endpoint: &str, version: &str) -> String {
    format!(
        "services: [{{ name: app, endpoints: [\"{endpoint}\"] }}]\n\
         routes: [{{ name: all, service: app, response_headers: {{ set: {{ x-version: \"{version}\" }} }} }}]\n"
    )
}

fn config_path(gateway: &Gateway) -> PathBuf {
    gateway.directory().join("gateway.yaml")
}

/// Replaces the file as editors and tools do, and leaves it to the gateway to notice.
fn install(gateway: &Gateway, yaml: &str) {
    let new = gateway.directory().join("next.yaml");
    fs::write(&new, gateway.render(yaml)).unwrap();
    fs::rename(new, config_path(gateway)).unwrap();
}

fn accepts(address: SocketAddr) -> bool {
    TcpStream::connect_timeout(&address, Duration::from_millis(200)).is_ok()
}

#[test]
fn a_renamed_file_is_noticed() {
    let gateway = Gateway::start(&answers("one"));
    assert_eq!(gateway.get("/").text(), "one");
    install(&gateway, &answers("two"));
    settles_at("two".to_owned(), || gateway.get("/").text());
    assert_eq!((gateway.metric(SUCCEEDED), gateway.metric("gateway_config_generation")), (1.0, 2.0));
    assert_eq!(gateway.metric(FAILED), 0.0);
}

#[test]
fn a_symbolic_link_that_is_swapped_is_noticed() {
    // As Kubernetes updates a ConfigMap.
    let gateway = Gateway::start(&answers("one"));
    let at = |name: &str| gateway.directory().join(name);
    for (version, text) in [("v1", "two"), ("v2", "three")] {
        fs::create_dir(at(version)).unwrap();
        fs::write(at(version).join("gateway.yaml"), gateway.render(&answers(text))).unwrap();
    }
    symlink("v1", at("..data")).unwrap();
    symlink("..data/gateway.yaml", at("link")).unwrap();
    fs::rename(at("link"), config_path(&gateway)).unwrap();
    settles_at("two".to_owned(), || gateway.get("/").text());
    symlink("v2", at("..data_tmp")).unwrap();
    fs::rename(at("..data_tmp"), at("..data")).unwrap();
    settles_at("three".to_owned(), || gateway.get("/").text());
}

#[test]
fn a_file_that_is_being_written_is_waited_for() {
    let failed = |_| {
        let gateway = Gateway::start(&answers("one"));
        let whole = gateway.render(&answers("two"));
        // Each look, once a second, finds another piece, unless this test itself is held up.
        for part in 1..=6 {
            fs::write(config_path(&gateway), &whole[..whole.len() * part / 6]).unwrap();
            thread::sleep(Duration::from_millis(400));
        }
        settles_at("two".to_owned(), || gateway.get("/").text());
        gateway.metric(FAILED)
    };
    assert!((0..3).map(failed).any(|failed| failed == 0.0));
}

#[test]
fn half_a_file_is_refused_and_the_whole_one_taken() {
    let gateway = Gateway::start(&answers("one"));
    let whole = gateway.render(&answers("two"));
    fs::write(config_path(&gateway), &whole[..whole.len() / 2]).unwrap();
    settles_at(1.0, || gateway.metric(FAILED));
    assert_eq!((gateway.get("/").text().as_str(), gateway.metric(LAST_OK)), ("one", 0.0));
    fs::write(config_path(&gateway), &whole).unwrap();
    settles_at("two".to_owned(), || gateway.get("/").text());
    assert_eq!(gateway.metric(LAST_OK), 1.0);
}

#[test]
fn a_bad_file_is_refused_and_everyone_is_told() {
    let backend = Backend::ok();
    let good = Gateway::route_to(backend.endpoint());
    let gateway = Gateway::start(&good);
    let mut client = gateway.connect();
    assert_eq!(client.get("/").status(), 200);
    let loaded = gateway.metric("gateway_config_last_reload_success_timestamp_seconds");
    assert!(loaded > 1.7e9, "{loaded}");

    let bad = format!("{good}colour: red\nlimits: {{ connections: many }}\n");
    assert!(!gateway.replace_config(&bad));
    assert_eq!((gateway.metric(SUCCEEDED), gateway.metric(LAST_OK)), (0.0, 0.0));
    assert_eq!(gateway.metric("gateway_config_generation"), 1.0);
    assert_eq!(gateway.metric("gateway_config_last_reload_success_timestamp_seconds"), loaded);
    let log = gateway.stderr();
    for part in
        ["configuration refused, the running one stays", "gateway.yaml:3:1: unknown key `colour`", "gateway.yaml:4:"]
    {
        assert!(log.lines().any(|line| line.contains("ERROR") && line.contains(part)), "{part} is not in\n{log}");
    }
    assert_eq!(client.get("/").status(), 200, "the same connection goes on");

    assert!(gateway.replace_config(&good));
    assert_eq!(gateway.metric(LAST_OK), 1.0);
    assert!(gateway.metric("gateway_config_last_reload_success_timestamp_seconds") >= loaded);
}

#[test]
fn a_missing_file_changes_nothing() {
    let gateway = Gateway::start(&answers("one"));
    fs::remove_file(config_path(&gateway)).unwrap();
    gateway.signal(Signal::HUP);
    settles_at(1.0, || gateway.metric(FAILED));
    assert_eq!(gateway.get("/").text(), "one");
    install(&gateway, &answers("two"));
    settles_at("two".to_owned(), || gateway.get("/").text());
}

#[test]
fn requests_in_flight_finish_under_the_old_configuration() {
    let backend = Backend::start(|conn| {
        while let Some(request) = conn.next_request() {
            if request.target() == "/slow" {
                thread::sleep(Duration::from_millis(1500));
            }
            conn.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
        }
    });
    let gateway = Gateway::start(&versioned(backend.endpoint(), "old"));
    let (mut busy, mut idle) = (gateway.connect(), gateway.connect());
    assert_eq!(idle.get("/").get("x-version"), Some("old"));
    busy.send("GET /slow HTTP/1.1\r\nHost: test\r\n\r\n");
    settles_at(2, || backend.requests().len());
    assert!(gateway.replace_config(&versioned(backend.endpoint(), "new")));
    assert_eq!(
        idle.get("/").get("x-version"),
        Some("new"),
        "an open connection takes the new one with its next request"
    );
    let answer = busy.read_response();
    assert_eq!((answer.status(), answer.get("x-version")), (200, Some("old")));
    assert_eq!(busy.get("/").get("x-version"), Some("new"));
}

/// Reloads again and again under load; no request fails and no connection is lost.
fn reloads_under_load(runtime: &str, reloads: usize) {
    let backends = [Backend::ok(), Backend::ok()];
    let both = format!("{}\", \"{}", backends[0].endpoint(), backends[1].endpoint());
    // The service keeps its endpoint, loses it, gets another, and has both.
    let endpoints = [backends[0].endpoint(), &both, backends[1].endpoint()];
    let config = |round: usize| format!("{runtime}{}", versioned(endpoints[round % 3], &round.to_string()));
    let mut gateway = Gateway::start(&config(0));
    let load = Load::start(gateway.address(), 4, &["/a", "/b?c"]);
    for round in 1..=reloads {
        let seen = load.answered();
        assert!(gateway.replace_config(&config(round)));
        eventually(PATIENCE, || load.answered() > seen + 8);
    }
    assert_eq!(load.reconnects(), 0, "no connection is closed");
    let answered = load.finish();
    // One more where the file was noticed before the signal came.
    assert!(gateway.metric(SUCCEEDED) >= reloads as f64 && gateway.metric(FAILED) == 0.0);
    settles_at(answered as f64, || gateway.metric("gateway_requests_total{route=\"all\",status=\"200\"}"));
    gateway.terminate();
    assert!(gateway.wait_exit(PATIENCE).success());
}

#[test]
fn fifty_reloads_under_load_fail_no_request() {
    reloads_under_load("runtime: { workers: 1, pin: false }\n", 50);
}

#[test]
fn fifty_reloads_under_load_fail_no_request_with_two_workers() {
    reloads_under_load("runtime: { workers: 2, pin: false }\n", 50);
}

#[test]
fn reloads_under_load_fail_no_request_on_epoll() {
    reloads_under_load("runtime: { workers: 1, pin: false, driver: epoll }\n", 20);
}

#[test]
fn signals_in_a_row_are_as_good_as_one() {
    let gateway = Gateway::start(&answers("one"));
    let load = Load::start(gateway.address(), 2, &["/"]);
    fs::write(config_path(&gateway), gateway.render(&answers("two"))).unwrap();
    for _ in 0..100 {
        gateway.signal(Signal::HUP);
    }
    settles_at("two".to_owned(), || gateway.get("/").text());
    load.finish();
    assert_eq!(gateway.metric(FAILED), 0.0);
}

#[test]
fn a_listener_comes_and_goes() {
    let backend = Backend::start(|conn| {
        while conn.next_request().is_some() {
            thread::sleep(Duration::from_millis(800));
            conn.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
        }
    });
    let second = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let one = Gateway::route_to(backend.endpoint());
    let two =
        format!("{one}listeners: [{{ name: public, address: LISTEN }}, {{ name: more, address: \"{second}\" }}]\n");
    let gateway = Gateway::start(&one);
    assert!(!accepts(second));
    assert!(gateway.replace_config(&two));
    let mut on_second = Client::connect(second);
    assert_eq!(on_second.get("/").text(), "ok");

    on_second.send("GET / HTTP/1.1\r\nHost: test\r\n\r\n");
    settles_at(2, || backend.requests().len());
    assert!(gateway.replace_config(&one));
    eventually(PATIENCE, || !accepts(second));
    let answer = on_second.read_response();
    assert_eq!((answer.status(), answer.text().as_str()), (200, "ok"), "in flight when its listener went");
    // One more request may have been on its way; then the connection ends.
    let last = on_second.get("/");
    assert_eq!((last.status(), last.get("connection")), (200, Some("close")));
    on_second.expect_closed();
    assert_eq!(gateway.get("/").status(), 200);

    // It can come again.
    assert!(gateway.replace_config(&two));
    assert_eq!(Client::connect(second).get("/").status(), 200);
}

#[test]
fn what_cannot_be_bound_or_opened_changes_nothing() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let gateway = Gateway::start(&answers("one"));
    for (section, message) in [
        (
            format!("listeners: [{{ name: public, address: LISTEN }}, {{ name: more, address: \"{address}\" }}]\n"),
            format!("listener `more`: cannot listen on {address}: Address already in use"),
        ),
        (
            format!("admin: {{ address: \"{address}\" }}\n"),
            format!("admin: cannot listen on {address}: Address already"),
        ),
        ("access_log: { file: /nowhere/access.log }\n".into(), "access log: cannot open /nowhere/access.log".into()),
    ] {
        assert!(!gateway.replace_config(&format!("{}{section}", answers("two"))), "{section}");
        assert!(gateway.stderr().contains(&message), "{message} is not in {}", gateway.stderr());
        assert_eq!(gateway.get("/").text(), "one");
    }
    assert!(gateway.metric(FAILED) >= 3.0);
}

#[test]
fn what_the_runtime_says_cannot_change() {
    let gateway = Gateway::start(&answers("one"));
    let new = format!("runtime: {{ workers: 2, pin: false, driver: epoll }}\n{}", answers("two"));
    assert!(!gateway.replace_config(&new));
    assert_eq!(gateway.get("/").text(), "one");
    let log = gateway.stderr();
    let line = log.lines().find(|line| line.contains("`runtime` cannot change")).unwrap_or_else(|| panic!("{log}"));
    for part in ["workers", "driver", "restart"] {
        assert!(line.contains(part), "{line}");
    }
}

#[test]
fn another_endpoint_takes_over() {
    let named = |name: &'static str| Backend::fixed(format!("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n{name}"));
    let (a, b) = (named("a"), named("b"));
    let gateway = Gateway::to(a.endpoint());
    let mut client = gateway.connect();
    assert_eq!(client.get("/").text(), "a");
    assert_eq!((a.open(), b.open()), (1, 0));
    assert!(gateway.replace_config(&Gateway::route_to(b.endpoint())));
    a.expect_all_closed();
    for _ in 0..10 {
        assert_eq!(client.get("/").text(), "b");
    }
    assert_eq!((a.requests().len(), b.requests().len(), b.connections()), (1, 10, 1));
    let sample = |endpoint: &str| format!("gateway_endpoint_requests_total{{service=\"app\",endpoint=\"{endpoint}\"}}");
    settles_at(10.0, || gateway.metric(&sample(b.endpoint())));
}

#[test]
fn counters_and_pooled_connections_go_on() {
    let backend = Backend::ok();
    let gateway = Gateway::start(&versioned(backend.endpoint(), "1"));
    let mut client = gateway.connect();
    for round in 1..=5 {
        assert_eq!(client.get("/").status(), 200);
        assert_eq!(client.get("/").status(), 200);
        let counts = ["requests_total{route=\"all\",status=\"200\"}", "request_duration_seconds_count{route=\"all\"}"];
        settles_at([f64::from(2 * round); 2], || counts.map(|count| gateway.metric(&format!("gateway_{count}"))));
        assert!(gateway.replace_config(&versioned(backend.endpoint(), &round.to_string())));
    }
    assert_eq!(backend.connections(), 1);
    // A route of another name counts from 0, and the old one is gone.
    assert!(gateway.replace_config(&versioned(backend.endpoint(), "x").replace("name: all", "name: other")));
    assert_eq!(client.get("/").status(), 200);
    settles_at(1.0, || gateway.metric("gateway_requests_total{route=\"other\",status=\"200\"}"));
    assert!(!gateway.admin("/metrics").1.contains("route=\"all\""));
}

#[test]
fn the_access_log_moves_and_can_be_switched() {
    let gateway = Gateway::start(&answers("one"));
    let lines = |name: &str| fs::read_to_string(gateway.directory().join(name)).unwrap_or_default().lines().count();
    gateway.get("/1");
    settles_at(1, || lines("access.log"));
    let to = |target: &str| gateway.replace_config(&format!("access_log: {target}\n{}", answers("one")));
    assert!(to("{ file: DIR/other.log }"));
    gateway.get("/2");
    gateway.get("/3");
    settles_at(2, || lines("other.log"));
    assert!(to("off"));
    gateway.get("/4");
    assert!(to("{ file: DIR/access.log }"));
    gateway.get("/5");
    settles_at(2, || lines("access.log"));
    assert_eq!(lines("other.log"), 2);
}

#[test]
fn the_admin_listener_moves() {
    let gateway = Gateway::start(&answers("one"));
    let new = SocketAddr::from(([127, 0, 0, 1], free_port()));
    install(&gateway, &format!("admin: {{ address: \"{new}\" }}\n{}", answers("two")));
    settles_at("two".to_owned(), || gateway.get("/").text());
    assert_eq!(Client::connect(new).get("/health").status(), 200);
    eventually(PATIENCE, || !accepts(gateway.admin_address()));
}

#[test]
fn the_running_configuration_is_shown_without_secrets() {
    let gateway = Gateway::start_with("routes: [{ respond: { text: \"${env:RELOAD_TEST_SECRET}\" } }]\n", |command| {
        command.env("RELOAD_TEST_SECRET", "hush");
    });
    assert_eq!(gateway.get("/").text(), "hush");
    let (status, text) = gateway.admin("/config");
    assert!(status == 200 && text.contains("[redacted]") && !text.contains("hush"), "{text}");
    assert!(gateway.replace_config(&answers("plain")));
    assert!(gateway.admin("/config").1.contains("plain"));
}
