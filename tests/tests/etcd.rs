//! Services whose endpoints are keys in etcd: a real one.

use std::collections::HashSet;
use std::fs;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use ringway_tests::etcd::Etcd;
use ringway_tests::redis::Slow;
use ringway_tests::{Backend, Gateway, Nobody, PATIENCE, eventually, settles_at};

const ENDPOINTS: &str = "gateway_discovery_endpoints{service=\"app\"}";
const FAILURES: &str = "gateway_discovery_lookups_total{service=\"app\",result=\"failure\"}";

fn named(name: &str) -> Backend {
    Backend::fixed(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{name}", name.len()))
}

fn config(endpoints: &str, more: &str) -> String {
    format!(
        "services:\n\
         - name: app\n\
         \x20 balance: round_robin\n\
         \x20 discovery: {{ etcd: {{ endpoints: {endpoints}, prefix: /services/app/, {more} }}, grace: 0s }}\n\
         routes: [{{ name: all, service: app }}]\n"
    )
}

fn url(etcd: &Etcd) -> String {
    format!("\"{}\"", etcd.url())
}

/// Who answers eight requests.
fn answering(gateway: &Gateway) -> HashSet<String> {
    (0..8).map(|_| gateway.get("/").text().to_owned()).collect()
}

fn set(names: &[&str]) -> HashSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

#[test]
fn keys_are_listed_and_followed() {
    let (one, two) = (named("one"), named("two"));
    let etcd = Etcd::start();
    etcd.put("/services/app/one", one.endpoint());
    etcd.put("/services/apple/two", two.endpoint());
    let gateway = Gateway::start(&config(&url(&etcd), ""));
    assert_eq!(answering(&gateway), set(&["one"]));
    let value = format!(r#"{{"address":"{}","weight":3,"zone":"eu-1","metadata":{{"version":"v2"}}}}"#, two.endpoint());
    // The quickest of five: what others run on this machine is not measured.
    let quickest = (0..5).map(|_| {
        etcd.put("/services/app/two", &value);
        let put = Instant::now();
        settles_at(set(&["one", "two"]), || answering(&gateway));
        let (seen, deleted) = (put.elapsed(), Instant::now());
        etcd.delete("/services/app/two");
        settles_at(set(&["one"]), || answering(&gateway));
        seen.max(deleted.elapsed())
    });
    let quickest = quickest.min().unwrap();
    assert!(quickest < Duration::from_secs(1), "{quickest:?}");

    etcd.put("/services/app/two", &value);
    settles_at(2.0, || gateway.metric(ENDPOINTS));
    let page: serde_json::Value = serde_json::from_str(&gateway.admin("/services").1).unwrap();
    let shown = page[0]["endpoints"].as_array().unwrap();
    let shown = shown.iter().find(|endpoint| endpoint["address"] == *two.endpoint()).unwrap();
    let parts = format!("{} {} {}", shown["weight"], shown["zone"], shown["metadata"]);
    assert_eq!(parts, r#"3 "eu-1" {"version":"v2"}"#);

    // What cannot be read leaves its key as it was, and is told.
    etcd.put("/services/app/one", r#"{"address":"127.0.0.1:1","adress":2}"#);
    eventually(PATIENCE, || gateway.stderr().contains("did you mean `address`?"));
    assert_eq!(answering(&gateway), set(&["one", "two"]));
    etcd.delete("/services/app/one");
    etcd.delete("/services/app/two");
    settles_at(502, || gateway.get("/").status());
    assert_eq!(gateway.metric(FAILURES), 0.0);
}

#[test]
fn an_instance_of_a_later_priority_waits_for_its_turn() {
    let (first, backup) = (named("first"), named("backup"));
    let etcd = Etcd::start();
    etcd.put("/services/app/first", first.endpoint());
    etcd.put("/services/app/backup", &format!(r#"{{"address":"{}","priority":7}}"#, backup.endpoint()));
    let gateway = Gateway::start(&config(&url(&etcd), ""));
    assert_eq!(gateway.metric(ENDPOINTS), 2.0);
    assert_eq!(answering(&gateway), set(&["first"]));
    etcd.put("/services/app/backup", &format!(r#"{{"address":"{}","priority":128}}"#, backup.endpoint()));
    eventually(PATIENCE, || gateway.stderr().contains("from 0 to 127"));
    etcd.delete("/services/app/first");
    settles_at(set(&["backup"]), || answering(&gateway));
}

#[test]
fn an_instance_goes_with_its_lease() {
    let (one, two) = (named("one"), named("two"));
    let etcd = Etcd::start();
    etcd.put("/services/app/one", one.endpoint());
    etcd.put_for("/services/app/two", two.endpoint(), 2);
    let gateway = Gateway::start(&config(&url(&etcd), ""));
    assert_eq!(answering(&gateway), set(&["one", "two"]));
    settles_at(set(&["one"]), || answering(&gateway));
}

#[test]
fn what_was_found_stays_while_etcd_is_down() {
    let (one, two) = (named("one"), named("two"));
    let mut etcd = Etcd::start();
    etcd.put("/services/app/one", one.endpoint());
    // One of the servers is never there.
    let nobody = Nobody::new();
    let gateway = Gateway::start(&config(&format!("[\"http://{}\", {}]", nobody.endpoint(), url(&etcd)), ""));
    settles_at(set(&["one"]), || answering(&gateway));
    etcd.kill();
    let failures = gateway.metric(FAILURES);
    eventually(PATIENCE, || gateway.metric(FAILURES) >= failures + 4.0);
    assert_eq!(answering(&gateway), set(&["one"]));
    etcd.restart();
    etcd.put("/services/app/two", two.endpoint());
    settles_at(set(&["one", "two"]), || answering(&gateway));
    etcd.delete("/services/app/one");
    settles_at(set(&["two"]), || answering(&gateway));
    // It was told that etcd was away, and not at every try.
    let told = gateway.stderr().matches("looking for endpoints: etcd: ").count();
    assert!((1..=4).contains(&told), "{}", gateway.stderr());
}

#[test]
fn history_that_is_gone_is_listed_anew() {
    let (one, two) = (named("one"), named("two"));
    let etcd = Etcd::start();
    let slow = Slow::before(etcd.address());
    // A machine that is busy may be late.
    let gateway = (0..3).find_map(|_| {
        etcd.put("/services/app/one", one.endpoint());
        // So slow that what is listed has become history when the watch begins.
        slow.set_delay_each_way(Duration::from_millis(1_200));
        let gateway = Gateway::start(&config(&format!("\"http://{}\"", slow.address()), ""));
        etcd.put("/services/app/two", two.endpoint());
        etcd.delete("/services/app/one");
        etcd.compact();
        settles_at(set(&["two"]), || answering(&gateway));
        gateway.stderr().contains("etcd has compacted what was to be watched").then_some(gateway)
    });
    let gateway = gateway.expect("a watch of what was compacted");
    assert_eq!(gateway.metric(FAILURES), 0.0);
    // And goes on from there.
    slow.set_delay_each_way(Duration::ZERO);
    etcd.put("/services/app/one", one.endpoint());
    settles_at(set(&["one", "two"]), || answering(&gateway));
}

#[test]
fn logs_in_and_speaks_tls() {
    let one = named("one");
    let etcd = Etcd::with_tls();
    etcd.put("/services/app/one", one.endpoint());
    etcd.protect("gateway", "a word");
    let ca = etcd.ca();
    let login = |password: &str| format!("tls: {{ ca: \"{}\" }}, user: gateway, password: {password}", ca.display());
    let gateway = Gateway::start(&config(&url(&etcd), &login("a word")));
    assert_eq!(answering(&gateway), set(&["one"]));
    assert_eq!(gateway.metric(FAILURES), 0.0);
    // With another password there is nothing more to be learnt, and the reason is told.
    let yaml = config(&url(&etcd), &login("another"));
    fs::write(gateway.directory().join("gateway.yaml"), gateway.render(&yaml)).unwrap();
    eventually(PATIENCE, || gateway.stderr().contains("authentication failed"));
    assert!(!gateway.stderr().contains("another"), "{}", gateway.stderr());
}

#[test]
fn shows_its_own_certificate_where_etcd_asks_for_one() {
    let (one, two) = (named("one"), named("two"));
    let etcd = Etcd::with_client_certificates();
    etcd.put("/services/app/one", one.endpoint());
    let (ca, [certificate, key]) = (etcd.ca(), etcd.certificate());
    let [ca, certificate, key] = [ca, certificate, key].map(|path| path.display().to_string());
    let without = config(&url(&etcd), &format!("tls: {{ ca: \"{ca}\" }}"));
    let gateway = Gateway::start(&without);
    eventually(PATIENCE, || gateway.metric(FAILURES) >= 2.0);
    assert_eq!(gateway.get("/").status(), 502);
    let with = config(&url(&etcd), &format!("tls: {{ ca: \"{ca}\", certificate: \"{certificate}\", key: \"{key}\" }}"));
    assert!(gateway.replace_config(&with));
    settles_at(set(&["one"]), || answering(&gateway));
    etcd.put("/services/app/two", two.endpoint());
    settles_at(set(&["one", "two"]), || answering(&gateway));
    // One that does not fit is said at once, and changes nothing.
    assert!(!gateway.replace_config(&with.replace(&key, &ca)));
    assert!(gateway.stderr().contains("cannot be used"), "{}", gateway.stderr());
    assert_eq!(answering(&gateway), set(&["one", "two"]));
    // Without one there is nothing more to be learnt, and what was found stays.
    let failures = gateway.metric(FAILURES);
    assert!(gateway.replace_config(&without));
    eventually(PATIENCE, || gateway.metric(FAILURES) > failures);
    assert_eq!(answering(&gateway), set(&["one", "two"]));
}

/// Something between the gateway and etcd has dropped the connection and told nobody.
#[test]
fn a_watch_that_has_silently_died_is_begun_anew() {
    let one = named("one");
    let (endpoint, lists) = (one.endpoint().to_owned(), AtomicUsize::new(0));
    // Each list has news, of which no watch says anything.
    let etcd = Backend::start(move |conn| {
        while let Some(request) = conn.next_request() {
            if request.target() == "/v3/watch" {
                let line = "{\"result\":{\"created\":true}}\n";
                conn.send(format!(
                    "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{:x}\r\n{line}\r\n",
                    line.len()
                ));
                conn.stall();
                return;
            }
            let revision = lists.fetch_add(1, Ordering::AcqRel) + 1;
            let value = BASE64.encode(format!("{{\"address\":\"{endpoint}\",\"weight\":{revision}}}"));
            let key = BASE64.encode("/services/app/one");
            let body = format!(
                "{{\"header\":{{\"revision\":{revision}}},\"kvs\":[{{\"key\":\"{key}\",\"value\":\"{value}\"}}]}}"
            );
            conn.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len()));
        }
    });
    let settings =
        config(&format!("\"http://{}\"", etcd.endpoint()), "").replace("grace: 0s", "grace: 0s, interval: 1s");
    let gateway = Gateway::start(&settings);
    let watches = || etcd.requests().iter().filter(|request| request.target() == "/v3/watch").count();
    eventually(PATIENCE, || watches() >= 2);
    assert_eq!(answering(&gateway), set(&["one"]));
    assert!(gateway.stderr().contains("etcd: the watch is silent"), "{}", gateway.stderr());
}
