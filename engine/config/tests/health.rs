//! Checks, ejection and balance of services: good sections, bad sections and what is said about them.

mod common;

use std::time::Duration;

use common::compiled;
use ringway_config::Hub;
use ringway_config::health::{CheckKind, HttpCheck};
use ringway_config::snapshot::{Balance, HashOn, Service};
use ringway_core::health::Reason;

fn with(service: &str) -> String {
    format!(
        "listeners:\n- {{ name: public, address: 127.0.0.1:3000 }}\nservices:\n- name: app\n  endpoints: 127.0.0.1:8080\n{service}"
    )
}

#[track_caller]
fn good(service: &str) -> Service {
    let mut snapshot = compiled(&with(service)).unwrap_or_else(|errors| panic!("{errors}"));
    std::sync::Arc::into_inner(snapshot.services.remove(0)).expect("the only one")
}

/// What is said of lines from the sixth on, without the count.
#[track_caller]
fn said(service: &str, expected: &str) {
    let said = compiled(&with(service)).unwrap_err().to_string();
    let (errors, _) = said.rsplit_once('\n').unwrap_or((&said, ""));
    assert_eq!(errors, expected, "about\n{service}");
}

#[test]
fn what_is_not_said_is_off() {
    let watch = good("").watch;
    assert_eq!((watch.check, watch.ejection, watch.panic_threshold), (None, None, 50));
}

#[test]
fn checks() {
    let check = |section: &str| good(&format!("  protocol: http2\n  health_check: {section}\n")).watch.check.unwrap();
    let simple = check("{ http: {} }");
    let http = HttpCheck { path: "/".into(), host: None, statuses: [200].into(), body: None };
    assert_eq!(simple.kind, CheckKind::Http(http));
    let second = Duration::from_secs(1);
    assert_eq!((simple.interval, simple.timeout, simple.slow_start), (5 * second, second, None));
    assert_eq!((simple.unhealthy, simple.healthy, simple.jitter), (3, 2, 10));

    let full = check(
        "{ http: { path: '/h?a=b', host: 'app.test:80', status: [200, 204], body: ready }, interval: 1m, jitter: 0%, \
         timeout: 50ms, unhealthy_threshold: 1, healthy_threshold: 5, slow_start: 30s }",
    );
    let http = HttpCheck {
        path: "/h?a=b".into(),
        host: Some("app.test:80".into()),
        statuses: [200, 204].into(),
        body: Some("ready".into()),
    };
    assert_eq!(full.kind, CheckKind::Http(http));
    assert_eq!((full.unhealthy, full.healthy, full.slow_start), (1, 5, Some(30 * second)));
    assert_eq!(check("{ tcp: {} }").kind, CheckKind::Tcp);
    assert_eq!(check("{ grpc: {} }").kind, CheckKind::Grpc("".into()));
    assert_eq!(check("{ grpc: { service: shop.Stock } }").kind, CheckKind::Grpc("shop.Stock".into()));
}

#[test]
fn ejection() {
    let settings = |section: &str| good(&format!("  outlier_ejection: {section}\n")).watch.ejection.unwrap();
    let defaults = settings("{}");
    assert_eq!((defaults.consecutive_failures, defaults.consecutive_connect_failures), (Some(5), Some(2)));
    assert_eq!((defaults.base_us, defaults.max_us, defaults.max_share), (30_000_000, 300_000_000, 50));
    assert_eq!((defaults.success_rate, defaults.latency), (None, None));
    let full = settings(
        "{ consecutive_failures: off, consecutive_connect_failures: off, success_rate: {}, latency: { factor: 2, \
         min_requests: 7 }, interval: 1s, base_time: 2s, max_time: 2s, max_share: 100% }",
    );
    assert_eq!((full.consecutive_failures, full.consecutive_connect_failures), (None, None));
    let (rate, latency) = (full.success_rate.unwrap(), full.latency.unwrap());
    assert_eq!((rate.margin, rate.min_requests, latency.factor, latency.min_requests), (20, 50, 200, 7));
    assert_eq!(latency.margin_us, 10_000);
}

#[test]
fn balance_backups_and_weights() {
    let balance = |section: &str| good(&format!("  balance: {section}\n")).balance;
    assert_eq!(balance("peak_ewma"), Balance::PeakEwma);
    assert_eq!(balance("random"), Balance::Random);
    for (on, hash_on) in [
        ("client_ip", HashOn::ClientIp),
        ("user", HashOn::User),
        ("header X-Tenant", HashOn::Header("x-tenant".into())),
        ("cookie Cart", HashOn::Cookie("Cart".into())),
    ] {
        assert_eq!(balance(&format!("{{ consistent_hash: {{ on: {on} }} }}")), Balance::ConsistentHash(hash_on));
    }
    let service = "listeners:\n- { name: public, address: 127.0.0.1:3000 }\nservices:\n- name: app\n  panic_threshold: 0%\n  \
                   endpoints: [{ address: \"127.0.0.1:1\", weight: 0 }, { address: \"127.0.0.1:2\", backup: true }]\n";
    let snapshot = compiled(service).unwrap();
    let endpoints: Vec<_> =
        snapshot.services[0].endpoints.iter().map(|endpoint| (endpoint.weight, endpoint.priority)).collect();
    assert_eq!(endpoints, [(0, 0), (1, 1)]);
    assert_eq!(snapshot.services[0].watch.panic_threshold, 0);
}

#[test]
fn bad_checks() {
    said("  health_check: {}\n", "f:6:17: expected exactly one of `http`, `tcp` and `grpc`");
    said("  health_check: { http: {}, tcp: {} }\n", "f:6:17: expected exactly one of `http`, `tcp` and `grpc`");
    said(
        "  health_check: { grpc: {} }\n",
        "f:6:25: gRPC is spoken over HTTP/2\n    hint: say `protocol: http2`, or check by `http`",
    );
    said(
        "  health_check: { http: { path: health } }\n",
        "f:6:33: `health` is no path\n    hint: such as `/health`; what is not ASCII is percent-encoded",
    );
    said(
        "  health_check: { http: { host: http://a/ } }\n",
        "f:6:33: `http://a/` is no host\n    hint: `name`, or `name:port`",
    );
    said(
        "  health_check: { http: { status: 100 }, interval: 1ms }\n",
        "f:6:35: expected a whole number from 200 to 599, found `100`\n\
         f:6:52: expected a duration from 50ms to 1h, found `1ms`",
    );
}

#[test]
fn bad_ejection_and_balance() {
    said(
        "  outlier_ejection: { base_time: 10s, max_time: 5s }\n",
        "f:6:49: `max_time` is shorter than `base_time`\n    hint: the same, or longer",
    );
    said(
        "  outlier_ejection: { consecutive_failures: off, consecutive_connect_failures: off }\n",
        "f:6:21: nothing ejects an endpoint here\n    hint: leave `outlier_ejection` out, or say one of \
         `consecutive_failures`, `consecutive_connect_failures`, `success_rate` and `latency`",
    );
    said(
        "  outlier_ejection: { max_share: 50 }\n",
        "f:6:34: expected a share from 1% to 100%, found `50`\n    hint: give it a unit: `50%`",
    );
    said(
        "  balance: { consistent_hash: { on: ip } }\n",
        "f:6:37: expected `client_ip`, `user`, `header NAME` or `cookie NAME`, found `ip`\n    hint: did you mean `client_ip`?",
    );
    said(
        "  balance: peak_ewm\n",
        "f:6:12: expected one of `round_robin`, `least_loaded`, `peak_ewma`, `random`, found `peak_ewm`\n    \
         hint: did you mean `peak_ewma`?",
    );
}

/// Endpoints of these ports.
fn of_ports(ports: &[u16], service: &str) -> ringway_config::Snapshot {
    let list: Vec<String> = ports.iter().map(|port| format!("\"127.0.0.1:{port}\"")).collect();
    let text = format!(
        "listeners: [{{ name: public, address: 127.0.0.1:3000 }}]\n\
         services: [{{ name: app, endpoints: [{}], {service} }}]\n",
        list.join(", ")
    );
    compiled(&text).unwrap_or_else(|errors| panic!("{errors}"))
}

#[test]
fn what_is_known_of_endpoints_outlives_reloads() {
    let (half, third) = ("outlier_ejection: {}", "outlier_ejection: { max_share: 30% }");
    let snapshot = of_ports(&[1, 2, 3, 4], half);
    let settings = snapshot.services[0].watch.ejection.unwrap();
    let hub = Hub::new(snapshot, 1);
    let first = hub.published();
    let endpoints = &first.health[0].endpoints;
    let is_ejected = |index: usize| endpoints[index].ejection().is_some();
    for endpoint in &endpoints[..3] {
        settings.eject(endpoint, Reason::Failures, 0);
    }
    assert_eq!([0, 1, 2, 3].map(is_ejected), [true, true, false, false]);
    endpoints[3].set_drained(true);
    endpoints[2].set_healthy(false);

    // In another order, one gone and one new.
    hub.publish(of_ports(&[4, 5, 3, 2], half));
    let second = hub.published();
    let health = &second.health[0];
    assert!(std::sync::Arc::ptr_eq(&health.endpoints[0], &endpoints[3]) && health.endpoints[0].is_drained());
    assert!(health.endpoints[1].is_usable());
    assert_eq!((health.fleet.ejected(), health.fleet.cap(), is_ejected(0)), (1, 2, false));
    // Who is gone takes no place, whatever a core with the older configuration says of it.
    assert_eq!(settings.eject(&endpoints[0], Reason::Failures, 0), None);
    // Checks are no longer asked for: nobody says that it is unwell.
    assert!(endpoints[2].is_healthy());

    assert!(settings.eject(&endpoints[2], Reason::Latency, 0).is_some());
    hub.publish(of_ports(&[2, 3, 4], third));
    assert_eq!((hub.published().health[0].fleet.ejected(), is_ejected(1), is_ejected(2)), (1, false, true));
    hub.publish(of_ports(&[2, 3, 4], "balance: random"));
    assert_eq!((hub.published().health[0].fleet.ejected(), is_ejected(2)), (0, false));
    assert!(endpoints[3].is_drained());
}
