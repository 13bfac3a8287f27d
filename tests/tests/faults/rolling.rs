//! All services are deployed anew, one after the other, under load: nobody notices.

use std::fs;
use std::path::Path;
use std::time::Duration;

use ringway_tests::failing::Origin;
use ringway_tests::steady::Steady;
use ringway_tests::{Gateway, PATIENCE, eventually, settles_at};
use rustix::process::Signal;

use crate::{Fleet, address, rate, recommended, until_idle};

/// Something is on its way at any time.
const BUSY: &[&str] = &["--latency=10ms", "--grace=10s"];

/// It gets its part of the load.
#[track_caller]
fn until_used(fleet: &Fleet, endpoint: &str) {
    let requests = || fleet.of(endpoint, "gateway_endpoint_requests_total");
    let before = requests();
    eventually(PATIENCE, || requests() > before + 10.0);
}

#[track_caller]
fn nobody_noticed(load: Steady, fleet: &Fleet) {
    load.go_on(Duration::from_millis(500));
    assert_eq!(load.failures(), 0, "{:?}\n{}", load.statuses(), fleet.gateway.stderr());
    println!("{} requests, {} retries", load.finish(), fleet.retries());
}

#[test]
fn an_operator_drains_each_and_even_a_kill_is_not_noticed() {
    // No retries: what is drained gets nothing.
    let mut fleet = Fleet::start([BUSY; 3], "", "");
    let load = fleet.load(rate().0);
    for nth in 0..3 {
        let endpoint = fleet.endpoints[nth].clone();
        let post = |action: &str| {
            let (status, said) = fleet.gateway.post_admin(&format!("/services/app/endpoints/{endpoint}/{action}"));
            assert_eq!(status, 200, "{said}");
        };
        post("drain");
        until_idle(&fleet, &endpoint);
        let word = fleet.seen(&endpoint);
        assert_eq!((&word["state"], &word["inUse"]), (&"drained".into(), &false.into()), "{word}");
        let old = fleet.origins.remove(nth);
        let at = old.address();
        old.kill();
        fleet.origins.insert(nth, Origin::start_with(at, BUSY));
        let (status, said) = fleet.gateway.post_admin(&format!("/services/app/endpoints/{endpoint}/enable"));
        assert_eq!(status, 200, "{said}");
        until_used(&fleet, &endpoint);
    }
    nobody_noticed(load, &fleet);
}

/// Another list takes the place of the old one in one step.
fn write(path: &Path, endpoints: &[String]) {
    let new = path.with_extension("new");
    fs::write(&new, serde_json::to_string(endpoints).expect("JSON")).expect("a file");
    fs::rename(&new, path).expect("a file");
}

#[test]
fn a_list_names_the_new_ones_and_the_old_ones_are_let_go() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("endpoints.json");
    let mut origins: Vec<Origin> = (0..3).map(|_| Origin::start_with(address(), BUSY)).collect();
    let names = |origins: &[Origin]| origins.iter().map(Origin::endpoint).collect::<Vec<_>>();
    write(&path, &names(&origins));
    let gateway = Gateway::start(&format!(
        "runtime: {{ workers: 2, pin: false }}\nservices: [{{ name: app, discovery: {{ file: \"{}\" }} }}]\n\
         routes: [{{ name: all, service: app }}]\n",
        path.display()
    ));
    let endpoints = || gateway.metric("gateway_discovery_endpoints{service=\"app\"}");
    settles_at(3.0, endpoints);
    let load = Steady::start(gateway.address(), crate::CLIENTS, rate().0);
    load.go_on(Duration::from_secs(1));
    for _ in 0..3 {
        let old = origins.remove(0);
        write(&path, &names(&origins));
        settles_at(2.0, endpoints);
        // What is on its way is answered before it ends; the gateway's idle connections to it are closed.
        old.signal(Signal::TERM);
        old.expect_end();
        origins.push(Origin::start_with(address(), BUSY));
        write(&path, &names(&origins));
        settles_at(3.0, endpoints);
        let newest = origins[2].endpoint();
        let requests =
            || gateway.metric(&format!("gateway_endpoint_requests_total{{service=\"app\",endpoint=\"{newest}\"}}"));
        eventually(PATIENCE, || requests() > 10.0);
    }
    assert_eq!(load.failures(), 0, "{:?}\n{}", load.statuses(), gateway.stderr());
    println!("{} requests", load.finish());
}

#[test]
fn without_a_drain_services_that_end_gracefully_are_not_missed() {
    let mut fleet = Fleet::start([BUSY; 3], &recommended(), "");
    let load = fleet.load(rate().0);
    for nth in 0..3 {
        let endpoint = fleet.endpoints[nth].clone();
        let old = fleet.origins.remove(nth);
        let at = old.address();
        old.signal(Signal::TERM);
        old.expect_end();
        eventually(PATIENCE, || fleet.seen(&endpoint)["inUse"] == false);
        fleet.origins.insert(nth, Origin::start_with(at, BUSY));
        eventually(PATIENCE, || fleet.seen(&endpoint)["inUse"] == true);
        until_used(&fleet, &endpoint);
    }
    nobody_noticed(load, &fleet);
}
