//! Circuit breakers and retries: good sections, bad sections and what is said about them.

mod common;

use std::time::Duration;

use common::{compiled, repository};
use ringway_config::Snapshot;
use ringway_config::resilience::{Fallback, Hedge, Retries, RetryOn, Scope};
use ringway_config::snapshot::{Action, Overload, RouteRetries};
use ringway_core::adaptive::AdaptiveSettings;
use ringway_core::auth::ClaimPath;
use ringway_core::breaker::{BreakerSettings, SlowCalls};
use ringway_core::bulkhead::BulkheadSettings;
use ringway_core::grpc::Status;
use ringway_core::overload::{Criticality, OverloadSettings};
use ringway_core::priorities::Priorities;
use ringway_core::retry_budget::BudgetSettings;

const SECOND: u64 = 1_000_000;

/// A file with the services `app` (line 4), with these keys on a line each, and `spare`; and what follows.
fn file(keys: &str, more: &str) -> String {
    let keys: String = keys.lines().map(|line| format!("    {line}\n")).collect();
    format!(
        "listeners:\n  - {{ name: public, address: \"127.0.0.1:3000\" }}\nservices:\n  - name: app\n    \
         endpoints: \"127.0.0.1:8080\"\n{keys}  - {{ name: spare, endpoints: \"127.0.0.1:8081\" }}\n{more}"
    )
}

#[track_caller]
fn good(keys: &str, more: &str) -> Snapshot {
    compiled(&file(keys, more)).unwrap_or_else(|errors| panic!("{errors}"))
}

/// What is said, without the count.
#[track_caller]
fn said(text: &str, expected: &str) {
    let said = compiled(text).unwrap_err().to_string();
    let (errors, _) = said.rsplit_once('\n').unwrap();
    assert_eq!(errors, expected, "about\n{text}");
}

#[test]
fn nothing_is_the_default_and_an_empty_section_is_of_use() {
    let snapshot = good("", "");
    assert!(snapshot.services[0].circuit_breaker.is_none() && snapshot.services[0].retries.is_none());

    let snapshot = good("circuit_breaker: {}\nretries: {}", "");
    let service = &snapshot.services[0];
    let breaker = service.circuit_breaker.as_ref().unwrap();
    let expected = BreakerSettings {
        error_share: Some(50),
        min_requests: 20,
        window_us: 10 * SECOND,
        consecutive_failures: Some(10),
        slow: None,
        open_us: 30 * SECOND,
        probes: 3,
    };
    assert_eq!((breaker.settings, breaker.scope), (expected, Scope::Service));
    assert!(breaker.fallback.is_none() && breaker.failing.spares_retry_after);
    assert!(breaker.failing.has(503) && !breaker.failing.has(501) && !breaker.failing.has(429));
    let (connect, refused, reset) = (RetryOn::ConnectFailure, RetryOn::RefusedStream, RetryOn::Reset);
    let retries = Retries {
        attempts: 2,
        on: [connect, refused, reset, RetryOn::Status(502), RetryOn::Status(503), RetryOn::Status(504)].into(),
        backoff_base: Duration::from_millis(25),
        backoff_max: Duration::from_millis(250),
        per_try: None,
        hedge: None,
        body_bytes_max: 0,
    };
    assert_eq!(service.retries.as_ref(), Some(&retries));
    assert_eq!(service.retry_budget, BudgetSettings { share: 20, min_per_second: 10 });
}

#[test]
fn which_calls_of_grpc_have_failed_and_what_is_kept_of_bodies() {
    let failures = |keys| {
        let failures = good(keys, "").services[0].grpc_failures;
        (0..Status::COUNT).filter(|code| failures.has(Status::parse(code.to_string().as_bytes()))).collect::<Vec<_>>()
    };
    assert_eq!(failures("retries: {}"), [2, 4, 13, 14, 15]);
    assert_eq!(failures("grpc_failures: [cancelled, unauthenticated]"), [1, 16]);
    assert_eq!(failures("grpc_failures: off"), [0; 0]);
    let retries = good("retries: { on: [grpc_unavailable, grpc_resource_exhausted] }", "").services[0].retries.clone();
    let on = [Status::UNAVAILABLE, Status::RESOURCE_EXHAUSTED].map(RetryOn::Grpc);
    assert_eq!(retries.unwrap().on, on.into());
    let retries = good("retries: { body: 64KiB }", "").services[0].retries.clone();
    assert_eq!(retries.unwrap().body_bytes_max, 65_536);
    let error = compiled(&file("grpc_failures: [unavailble]", "")).unwrap_err().to_string();
    assert!(error.contains("did you mean `unavailable`?"), "{error}");
}

#[test]
fn every_key() {
    let snapshot = good(
        "circuit_breaker:
  per: both
  error_share: off
  min_requests: 5
  window: 1m
  consecutive_failures: 4
  slow_call: 2s
  slow_share: 80%
  open: 500ms
  half_open_probes: 1
  count: [429, 500]
  fallback: { service: spare }
retries:
  attempts: 1
  on: [timeout, 429]
  budget: { share: 0%, min_per_second: 1 }
  backoff: { base: 0s, max: 1s }
  per_try_timeout: 300ms",
        "routes:
  - { service: app, retries: off }
  - { service: app, match: { path: /a }, retries: { attempts: 3, on: reset } }
  - { service: app, match: { path: /b } }
",
    );
    let service = &snapshot.services[0];
    let breaker = service.circuit_breaker.as_ref().unwrap();
    let expected = BreakerSettings {
        error_share: None,
        min_requests: 5,
        window_us: 60 * SECOND,
        consecutive_failures: Some(4),
        slow: Some(SlowCalls { from_us: 2 * SECOND, share: 80 }),
        open_us: SECOND / 2,
        probes: 1,
    };
    assert_eq!((breaker.settings, breaker.scope), (expected, Scope::Both));
    assert!(matches!(breaker.fallback, Some(Fallback::Service(1))));
    assert!(breaker.failing.has(429) && !breaker.failing.has(503) && !breaker.failing.spares_retry_after);
    let retries = service.retries.as_ref().unwrap();
    assert_eq!(&retries.on[..], [RetryOn::Timeout, RetryOn::Status(429)]);
    assert_eq!((retries.attempts, retries.per_try), (1, Some(Duration::from_millis(300))));
    assert_eq!(service.retry_budget, BudgetSettings { share: 0, min_per_second: 1 });
    let own: Vec<_> = snapshot
        .routes
        .iter()
        .map(|route| match &route.action {
            Action::Forward(forward) => match &forward.retries {
                RouteRetries::OfService => "of service".into(),
                RouteRetries::Off => "off".into(),
                RouteRetries::Own(own) => format!("{} {:?}", own.attempts, own.on),
            },
            _ => panic!(),
        })
        .collect();
    assert_eq!(own, ["off", "3 [Reset]", "of service"]);
}

#[test]
fn bad_breakers() {
    said(
        &file(
            "circuit_breaker:
  error_share: 50
  min_requests: 0
  window: 10ms
  consecutive_failures: none
  open: 30
  half_open_probes: 100
  count: [200]
  per: host
  probes: 3",
            "",
        ),
        "f:7:20: expected a share from 1% to 100%, or `off`, found `50`
    hint: give it a unit: `50%`
f:8:21: expected a whole number from 1 to 100000, found `0`
f:9:15: expected a duration from 1s to 1h, found `10ms`
f:10:29: expected a whole number from 1 to 1000000, or `off`, found `none`
    hint: did you mean `off`?
f:11:13: expected a duration from 100ms to 1h, found `30`
    hint: give it a unit: `30s`, `30ms`
f:12:25: expected a whole number from 1 to 31, found `100`
f:13:15: expected a whole number from 400 to 599, found `200`
f:14:12: expected one of `service`, `endpoint`, `both`, found `host`
f:15:7: unknown key `probes`
    hint: the keys here: `per`, `error_share`, `min_requests`, `window`, `consecutive_failures`, `slow_call`, `slow_share`, `open`, `half_open_probes`, `count`, `fallback`",
    );
    said(
        &file("circuit_breaker: { error_share: off, consecutive_failures: off }", ""),
        "f:6:22: nothing opens this breaker
    hint: leave `circuit_breaker` out, or say one of `error_share`, `consecutive_failures` and `slow_call`",
    );
    said(&file("circuit_breaker: { fallback: {} }", ""), "f:6:34: expected exactly one of `respond` and `service`");
    said(
        &file("circuit_breaker: { fallback: { service: spar } }", ""),
        "f:6:45: no service is named `spar`\n    hint: did you mean `spare`?",
    );
    said(
        &file("circuit_breaker: { fallback: { service: app } }", ""),
        "f:6:45: a service cannot stand in for itself\n    hint: name another one",
    );
    let chain = "listeners:\n  - { name: public, address: \"127.0.0.1:3000\" }\nservices:
  - { name: a, endpoints: \"127.0.0.1:1\", circuit_breaker: { fallback: { service: b } } }
  - { name: b, endpoints: \"127.0.0.1:2\", circuit_breaker: { fallback: { service: c } } }
  - { name: c, endpoints: \"127.0.0.1:3\" }\n";
    said(chain, "f:4:82: `b` falls back to a third service itself\n    hint: one service may stand in for another");
}

#[test]
fn bad_retries() {
    said(
        &file("retries: { attempts: 0, on: [404], budget: { share: 120% }, backoff: { max: 1h } }", ""),
        "f:6:26: expected a whole number from 1 to 10, found `0`
f:6:34: expected one of `connect_failure`, `refused_stream`, `reset`, `timeout`, `429`, `500`, `502`, `503`, `504`, `grpc_cancelled`, `grpc_deadline_exceeded`, `grpc_resource_exhausted`, `grpc_internal`, `grpc_unavailable`, found `404`
    hint: did you mean `504`?
f:6:57: expected a share from 0% to 100%, found `120%`
f:6:81: expected a duration from 0s to 10s, found `1h`",
    );
    said(
        &file("", "routes:\n  - { respond: { text: a }, retries: {} }\n"),
        "f:8:38: `retries` has no effect in a route without a `service`",
    );
}

#[test]
fn hedges() {
    let hedge = |millis, max| Some(Hedge { after: Duration::from_millis(millis), max });
    let of_service = |keys: &str| good(keys, "").services[0].retries.as_ref().unwrap().hedge;
    assert_eq!(of_service("retries: { hedge: { after: 50ms } }"), hedge(50, 1));
    assert_eq!(of_service("retries: { per_try_timeout: 2s, hedge: { after: 1s, max: 3 } }"), hedge(1000, 3));
    let route = |keys: &str| format!("routes:\n  - {{ service: app, {keys} }}\n");
    let snapshot = good("", &route("timeouts: { request: 51ms }, retries: { hedge: { after: 50ms, max: 2 } }"));
    let Action::Forward(forward) = &snapshot.routes[0].action else { panic!() };
    assert!(matches!(&forward.retries, RouteRetries::Own(own) if own.hedge == hedge(50, 2)));

    said(
        &file("retries: { hedge: { after: 0s, max: 4, before: 1s } }", ""),
        "f:6:32: expected a duration from 1ms to 1m, found `0s`
f:6:41: expected a whole number from 1 to 3, found `4`
f:6:44: unknown key `before`
    hint: the keys here: `after`, `max`",
    );
    said(
        &file("retries: { hedge: { max: 0 } }", ""),
        "f:6:23: the key `after` is missing: a duration from 1ms to 1m\nf:6:30: expected a whole number from 1 to 3, found `0`",
    );
    // One that would come when nothing is awaited any more.
    let late = |at: &str, key: &str| format!("{at}: nothing is awaited any more: `after` is not below `{key}`");
    said(&file("retries: { per_try_timeout: 1s, hedge: { after: 1s } }", ""), &late("f:6:44", "per_try_timeout"));
    said(&file("timeouts: { answer: 1s }\nretries: { hedge: { after: 2s } }", ""), &late("f:7:23", "timeouts.answer"));
    for (timeouts, at, key) in
        [("request: 50ms", "f:8:68", "timeouts.request"), ("request: 5s, per_try: 50ms", "f:8:81", "timeouts.per_try")]
    {
        let route = route(&format!("timeouts: {{ {timeouts} }}, retries: {{ hedge: {{ after: 50ms }} }}"));
        said(&file("", &route), &late(at, key));
    }
}

#[test]
fn the_quickstart_has_the_breaker_of_the_article() {
    let path = repository().join("configs/quickstart.yaml");
    let snapshot = compiled(&std::fs::read_to_string(path).unwrap()).unwrap_or_else(|errors| panic!("{errors}"));
    let product = &snapshot.services[0];
    let breaker = product.circuit_breaker.as_ref().unwrap();
    assert_eq!((breaker.settings.error_share, breaker.settings.open_us), (Some(50), 30 * SECOND));
    assert_eq!(product.timeouts.answer, Duration::from_secs(5));
}

#[test]
fn bulkheads() {
    assert!(good("", "").services[0].bulkhead.is_none());
    let snapshot = good("bulkhead: { requests: 7 }\nadaptive_concurrency: {}", "");
    let adaptive = AdaptiveSettings { min: 5, max: 1000, tolerance: 25, probe_interval_us: 30 * SECOND };
    let expected = BulkheadSettings { requests: Some(7), pending: 0, wait_us: SECOND / 10, adaptive: Some(adaptive) };
    assert_eq!(snapshot.services[0].bulkhead, Some(expected));
    let settings = good("adaptive_concurrency: { max: 9, tolerance: 50% }", "").services[0].bulkhead.unwrap();
    assert_eq!((settings.requests, settings.pending), (None, 0));
    assert_eq!(settings.adaptive, Some(AdaptiveSettings { max: 9, tolerance: 50, ..adaptive }));

    said(&file("bulkhead: {}", ""), "f:6:15: the key `requests` is missing: a whole number from 1 to 1000000");
    said(&file("adaptive_concurrency: { min: 10, max: 9 }", ""), "f:6:27: `min` (10) is above `max` (9)");
    said(
        &file("bulkhead: { requests: 4 }\nadaptive_concurrency: {}", ""),
        "f:7:27: `min` (5) is above what `bulkhead.requests` (4) allows\n    hint: lower `min`, or leave one of them out",
    );
}

#[test]
fn overload() {
    let snapshot = good("", "");
    assert!(snapshot.overload.is_none());
    let text =
        "overload: {}\nroutes:\n  - { service: app, criticality: low }\n  - { match: { path: /a }, service: app }\n";
    let snapshot = good("", text);
    let settings = OverloadSettings { delay_us: Some(20_000), busy: None, interval_us: 200_000 };
    assert_eq!(snapshot.overload, Some(Overload { settings, header: None, claim: None }));
    let criticality: Vec<_> = snapshot.routes.iter().map(|route| route.criticality).collect();
    assert_eq!(criticality, [Criticality::Low, Criticality::Normal]);
    let snapshot = good("", "overload: { delay: off, busy: 90%, interval: 1s, header: X-Class }\n");
    let settings = OverloadSettings { delay_us: None, busy: Some(90), interval_us: SECOND };
    assert_eq!(snapshot.overload, Some(Overload { settings, header: Some("x-class".into()), claim: None }));
    let claim = "overload:\n  claim: { name: plan.tier, critical: gold, low: [free, trial] }\n";
    let values = [("gold", Criticality::Critical), ("free", Criticality::Low), ("trial", Criticality::Low)];
    let name = ClaimPath::parse("plan.tier").unwrap();
    let expected = Priorities::new(name, values.map(|(value, criticality)| (value.into(), criticality)));
    assert_eq!(good("", claim).overload.and_then(|overload| overload.claim), Some(expected));
    for (claim, error) in [
        ("{ name: tier }", "no value matters here"),
        ("{ name: tier, critical: a, low: [b, a] }", "`a` stands here twice"),
        ("{ critical: a }", "the key `name` is missing"),
    ] {
        let said = compiled(&file("", &format!("overload:\n  claim: {claim}\n"))).unwrap_err().to_string();
        assert!(said.contains(error), "{said}");
    }
    said(
        &file("", "overload: { delay: off }\n"),
        "f:7:11: nothing is overload here\n    hint: `overload: off`, or say one of `delay` and `busy`",
    );
}
