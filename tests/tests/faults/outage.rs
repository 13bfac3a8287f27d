//! All three fail: every client is told in time, the services are not flooded, and it is over when it is over.

use std::time::Duration;

use ringway_tests::failing::Origin;
use ringway_tests::steady::Steady;
use ringway_tests::{PATIENCE, eventually};
use rustix::process::Signal;

use crate::{Fleet, rate};

const CHECKS: &str =
    "    health_check: { http: {}, interval: 300ms, timeout: 150ms, unhealthy_threshold: 2, healthy_threshold: 1 }\n";
/// What a machine may take besides.
const SLACK: Duration = Duration::from_secs(2);

/// Everything is answered, with one of these, within the deadline.
#[track_caller]
fn expect_told(load: &Steady, deadline: Duration, statuses: &[u16]) {
    let all = load.statuses();
    assert!(all.keys().all(|status| *status == 200 || statuses.contains(status)), "{all:?}");
    assert!(load.failures() > 0, "{all:?}");
    let samples = load.between(Duration::ZERO, load.now());
    let longest = samples.iter().map(|sample| sample.done - sample.sent).max().expect("a sample");
    assert!(longest <= deadline + SLACK, "{longest:?}");
    println!("{all:?}, the longest {} ms", longest.as_millis());
}

/// From now on all are good; how long that took.
#[track_caller]
fn recovers(load: &Steady) -> Duration {
    let begun = load.now();
    eventually(PATIENCE, || {
        let now = load.now();
        let of_late = load.between(now.saturating_sub(Duration::from_millis(400)), now);
        of_late.len() > 5 && of_late.iter().all(|sample| sample.is_good())
    });
    let samples = load.between(begun, load.now());
    let last = samples.iter().filter(|sample| !sample.is_good()).map(|sample| sample.done).max();
    let took = last.map_or(Duration::ZERO, |last| last.saturating_sub(begun));
    println!("over after {} ms", took.as_millis());
    took
}

#[track_caller]
fn all_killed(settings: &str, returns_within: Duration) {
    let (rate, is_free) = rate();
    let mut fleet = Fleet::start([&[]; 3], settings, "timeouts: { request: 1s }");
    let load = fleet.load(rate);
    let addresses: Vec<_> = fleet.origins.iter().map(Origin::address).collect();
    fleet.origins.drain(..).for_each(Origin::kill);
    load.go_on(Duration::from_secs(2));
    expect_told(&load, Duration::from_secs(1), &[502, 503, 504]);
    fleet.origins.extend(addresses.into_iter().map(Origin::start_at));
    let took = recovers(&load);
    assert!(!is_free || took <= returns_within, "{took:?}");
}

#[test]
fn all_killed_is_told_at_once_and_over_with_the_next_check() {
    let settings = format!("{CHECKS}    outlier_ejection: {{}}\n    retries: {{}}\n");
    all_killed(&settings, Duration::from_millis(330));
    // Also where nobody is asked who is not known to be well.
    all_killed(&format!("{settings}    panic_threshold: 0%\n"), Duration::from_millis(500));
}

#[test]
fn all_killed_opens_the_breaker_and_its_probes_close_it() {
    let settings = format!("{CHECKS}    retries: {{}}\n    circuit_breaker: {{ open: 1s }}\n");
    all_killed(&settings, Duration::from_millis(1300));
}

#[test]
fn all_frozen_is_told_within_the_deadline() {
    let settings = format!("{CHECKS}    retries: {{ on: [connect_failure, timeout], per_try_timeout: 400ms }}\n");
    let fleet = Fleet::start([&[]; 3], &settings, "timeouts: { request: 1s }");
    // Each client waits for a second: a higher rate would find none that is free.
    let load = fleet.load(20);
    fleet.origins.iter().for_each(|origin| origin.signal(Signal::STOP));
    load.go_on(Duration::from_secs(3));
    expect_told(&load, Duration::from_secs(1), &[504]);
    fleet.origins.iter().for_each(|origin| origin.signal(Signal::CONT));
    recovers(&load);
}

/// All answer 500 at once; requests that clients have sent, those that the services have had without checks, retries.
fn storm(settings: &str) -> (u64, u64, u64, Duration) {
    let flags: &[&str] = &["--fail=100%", "--fail-status=500"];
    // Checks ask for another answer, so that nobody is left out.
    let checks = "    health_check: { http: { path: '/health?status=200' }, interval: 300ms }\n";
    let fleet = Fleet::start([flags; 3], &format!("{checks}{settings}"), "");
    let load = Steady::start(fleet.gateway.address(), crate::CLIENTS, rate().0);
    load.go_on(Duration::from_secs(3));
    let took = load.now();
    let requests = load.finish() as u64;
    let (retries, checks, Fleet { origins, gateway, .. }) = (fleet.retries(), fleet.checks(), fleet);
    // No more checks.
    drop(gateway);
    let seen: u64 = origins.into_iter().map(Origin::finish).sum();
    println!("{requests} requests, {seen} seen by the services, {retries} retries, {checks} checks");
    // One check of each may have been on its way.
    (requests, seen.saturating_sub(checks + 3), retries, took)
}

#[test]
fn services_that_fail_everything_see_the_budget_and_no_storm() {
    let on = "retries: { attempts: 5, on: [500], backoff: { base: 1ms, max: 2ms } }";
    let (requests, seen, retries, took) = storm(&format!("    {on}\n"));
    let budget = requests / 5 + 10 * (took.as_secs() + 2);
    assert!(retries > requests / 10 && retries <= budget, "{retries} retries of {requests}, {budget} allowed");
    assert!(seen <= requests + retries, "{seen} > {requests} + {retries}");

    // Ejections do not make it more.
    let (requests, seen, retries, took) = storm(&format!("    {on}\n    outlier_ejection: {{}}\n"));
    let budget = requests / 5 + 10 * (took.as_secs() + 2);
    assert!(retries <= budget && seen <= requests + budget, "{requests}, {seen}, {retries}");
}

#[test]
fn a_breaker_keeps_the_load_away_from_services_that_fail_everything() {
    let (requests, seen, _, _) =
        storm("    retries: { attempts: 5, on: [500] }\n    circuit_breaker: { error_share: 50%, open: 30s }\n");
    // Ten in a row open it; each client may have been on its way.
    assert!(seen <= 10 + u64::from(crate::CLIENTS), "{seen} of {requests}");
    assert!(requests > 300, "{requests}");
}

#[test]
fn a_kill_with_many_requests_on_their_way_does_not_open_the_breaker() {
    let slow: &[&str] = &["--latency=300ms"];
    let settings =
        "    outlier_ejection: {}\n    retries: { budget: { share: 100% } }\n    circuit_breaker: { open: 30s }\n";
    let mut fleet = Fleet::start([slow; 3], settings, "");
    let load = Steady::start(fleet.gateway.address(), 80, 200);
    load.go_on(Duration::from_secs(1));
    let endpoint = fleet.endpoints[0].clone();
    // More than it takes to open a breaker.
    eventually(PATIENCE, || fleet.seen(&endpoint)["inFlight"].as_u64() >= Some(15));
    fleet.origins.remove(0).kill();
    eventually(PATIENCE, || fleet.seen(&endpoint)["state"] == "ejected");
    load.go_on(Duration::from_secs(1));
    assert_eq!(fleet.page()["circuitBreaker"]["opened"], 0, "{}\n{}", fleet.page(), fleet.gateway.stderr());
    assert_eq!(load.failures(), 0, "{:?}", load.statuses());
}
