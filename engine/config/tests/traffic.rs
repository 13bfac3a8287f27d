//! Splits and mirrors: good sections, bad sections and what is said about them.

mod common;

use common::compiled;
use ringway_config::snapshot::{Action, Forward, HashOn, Mirror, Route};

/// A file with the services `v1` and `v2` and one route, in line 4.
fn file(route: &str) -> String {
    format!(
        "listeners: [{{ name: public, address: \"127.0.0.1:3000\" }}]\nservices: [{{ name: v1, endpoints: \
         \"127.0.0.1:1\" }}, {{ name: v2, endpoints: \"127.0.0.1:2\" }}]\nroutes:\n  - {{ {route} }}\n"
    )
}

#[track_caller]
fn said(route: &str, expected: &str) {
    let said = compiled(&file(route)).unwrap_err().to_string();
    let (errors, _) = said.rsplit_once('\n').unwrap();
    assert_eq!(errors, expected, "about\n{route}");
}

fn forward(route: &Route) -> &Forward {
    match &route.action {
        Action::Forward(forward) => forward,
        _ => panic!(),
    }
}

#[test]
fn good_splits() {
    let snapshot = compiled(&file(
        "service: { split: [{ service: v2, weight: 0 }, { service: v1, weight: 3 }], sticky: cookie Side, override: \
         { header: X-Canary } }",
    ));
    let snapshot = snapshot.unwrap_or_else(|errors| panic!("{errors}"));
    let target = &forward(&snapshot.routes[0]).service;
    assert_eq!(target.services(), [1, 0]);
    let split = target.split().unwrap();
    assert_eq!(split.sticky, Some(HashOn::Cookie("Side".into())));
    assert_eq!(split.override_header.as_deref(), Some("x-canary"));
    assert!((0..100).all(|key| split.shares.pick(key) == Some(1)));

    let snapshot = compiled(&file("service: v2")).unwrap_or_else(|errors| panic!("{errors}"));
    let target = &forward(&snapshot.routes[0]).service;
    assert!(target.services() == [1] && target.split().is_none());
}

#[test]
fn bad_splits() {
    said(
        "service: { split: [{ service: v1, weight: 1 }] }",
        "f:4:25: a split has 2 to 16 services: it has 1
    hint: `service: NAME` for a single one",
    );
    said(
        "service: { split: [{ service: v1, weight: 0 }, { service: v1, weight: 0 }] }",
        "f:4:25: no service of the split has a weight above 0
f:4:65: the service occurs twice, first at f:4:37
    hint: give it a greater `weight` instead",
    );
    for bad in ["service: [v1, v2]", "service: { split: [{ service: v1, weight: 1 }, { service: v3, weight: 1 }] }"] {
        assert!(compiled(&file(bad)).is_err(), "{bad}");
    }
}

#[test]
fn headers_for_deadlines() {
    let file = |name: &str| file("service: v1").replace("name: v1,", &format!("name: v1, deadline_header: {name},"));
    let snapshot = compiled(&file("X-Left-Ms")).unwrap_or_else(|errors| panic!("{errors}"));
    assert_eq!(snapshot.services[0].deadline_header.as_deref(), Some("x-left-ms"));
    assert!(snapshot.services[1].deadline_header.is_none());
    for name in ["Host", "Content-Length", "grpc-timeout", "X-Request-ID"] {
        let said = compiled(&file(name)).unwrap_err().to_string();
        let expected = format!("the gateway writes `{}` for another purpose", name.to_ascii_lowercase());
        assert!(said.contains(&expected), "{said}");
    }
}

#[test]
fn mirrors() {
    let snapshot = compiled(&file("service: v1, mirror: { service: v2 }")).unwrap_or_else(|errors| panic!("{errors}"));
    let mirror = forward(&snapshot.routes[0]).mirror.clone().unwrap();
    let timeout = std::time::Duration::from_secs(15);
    assert_eq!(*mirror, Mirror { service: 1, share: 100, body_bytes_max: 64 << 10, in_flight: 100, timeout });
    let full = "service: v1, mirror: { service: v2, share: 10%, body_max: 0B, in_flight: 7, timeout: 1s }";
    let snapshot = compiled(&file(full)).unwrap_or_else(|errors| panic!("{errors}"));
    let mirror = forward(&snapshot.routes[0]).mirror.clone().unwrap();
    assert_eq!((mirror.share, mirror.body_bytes_max, mirror.in_flight), (10, 0, 7));
    said(
        "service: v1, mirror: { service: v1 }",
        "f:4:39: the route forwards to this service: it would get requests twice
    hint: mirror to another one",
    );
    said(
        "respond: { text: hi }, mirror: { service: v1 }",
        "f:4:38: `mirror` has no effect in a route without a `service`",
    );
}
