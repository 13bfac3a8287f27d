//! Auth services in the configuration: defaults, and what is refused.

mod common;

use std::time::Duration;

use ringway_config::Snapshot;
use ringway_core::auth::Kind;
use ringway_core::auth_service::{AskMethod, AskPath, AuthService, Check, Mode};

use common::{compiled, with_basics};

fn service(snapshot: &Snapshot) -> &AuthService {
    match &snapshot.authenticators[0].kind {
        Kind::Service(service) => service,
        other => panic!("{other:?}"),
    }
}

fn check(service: &AuthService) -> &Check {
    match &service.mode {
        Mode::Check(check) => check,
        other => panic!("{other:?}"),
    }
}

/// One authenticator, which begins in column 24 of line 5.
fn authenticator(written: &str) -> String {
    with_basics(&format!("authenticators: [{{ name: a, {written} }}]\n"))
}

#[track_caller]
fn said(written: &str, expected: &[&str]) {
    let errors = compiled(written).unwrap_err().to_string();
    let mut lines = errors.lines().filter(|line| line.starts_with("f:"));
    for expected in expected {
        let line = lines.next().unwrap_or_else(|| panic!("{expected}: not said:\n{errors}"));
        assert!(line.contains(expected), "{line}\n{expected}");
    }
    assert_eq!(lines.next(), None, "{errors}");
}

#[test]
fn little_need_be_said() {
    let snapshot = compiled(&authenticator("auth_service: { service: app }")).unwrap();
    let service = service(&snapshot);
    assert_eq!((service.service, &*service.host, service.stale), (0, "app", None));
    assert_eq!((service.timeout, service.cache.ttl), (Duration::from_secs(1), Duration::from_secs(5)));
    assert!(service.cache.refusals.is_zero() && !service.cache.keeps_stale);
    assert_eq!((service.breaker.failures, service.breaker.open), (5, Duration::from_secs(5)));
    let check = check(service);
    assert_eq!((&check.method, &check.path), (&AskMethod::Fixed("GET".into()), &AskPath::Fixed("/".into())));
    assert!(check.tells.method && check.tells.uri && check.tells.host && check.tells.client && check.tells.scheme);
    let names: Vec<_> = check.request_headers.iter().map(|name| &**name).collect();
    assert_eq!(names, ["authorization", "cookie"]);
}

#[test]
fn all_can_be_said() {
    let written = "auth_service: { service: app, path: /auth/, append_path: true, method: client, host: \"auth.internal:80\", \
                   tell: [uri], when_down: { stale: 5m }, cache: { ttl: off, refusals: 500ms } }";
    let snapshot = compiled(&authenticator(written)).unwrap();
    let service = service(&snapshot);
    assert_eq!((&*service.host, service.stale), ("auth.internal:80", Some(Duration::from_secs(300))));
    assert!(service.cache.ttl.is_zero() && service.cache.keeps_stale);
    let check = check(service);
    assert_eq!((&check.method, &check.path), (&AskMethod::OfClient, &AskPath::Prefix("/auth".into())));
    assert!(check.tells.uri && !check.tells.method && !check.tells.client);
}

#[test]
fn an_introspection_endpoint_and_its_secret() {
    let written = "introspection: { service: app, path: /introspect, client_id: g, client_secret: \"${env:SECRET}\" }";
    let snapshot = compiled(&authenticator(written)).unwrap();
    assert!(matches!(service(&snapshot).mode, Mode::Introspection(_)));
    assert!(!format!("{snapshot:?}").contains("aHVudGVyMg"), "the secret is not shown");
    said(
        &authenticator("introspection: { service: app, path: introspect, client_id: g }"),
        &["expected a path, such as `/validate`"],
    );
    said(
        &authenticator("introspection: { service: app, path: /i, client_id: g }"),
        &["`client_id` needs `client_secret`"],
    );
}

#[test]
fn what_would_open_the_door_or_break_the_question_is_refused() {
    said(
        &authenticator("auth_service: { service: app, when_down: open }"),
        &["expected `closed` or `stale: DURATION`"],
    );
    said(&authenticator("auth_service: { service: other }"), &["`other`"]);
    let names = "auth_service: { service: app, request_headers: [Host, X-Forwarded-For], answer_headers: [Content-Length], \
                 refusal_headers: [Transfer-Encoding] }";
    said(&authenticator(names), &["`host`", "`x-forwarded-for`", "`content-length`", "`transfer-encoding`"]);
    said(&authenticator("auth_service: { service: app, cache: { refusals: 2s } }"), &["from 1ms to 1s"]);
    said(&authenticator("auth_service: { service: app, method: get }"), &["expected a method, or `client`"]);
    let both = "auth_service: { service: app }, introspection: { service: app, path: /i }";
    said(&authenticator(both), &["an authenticator has one of"]);
    let two = "authenticators:\n  - { name: a, auth_service: { service: app } }\n  - { name: b, auth_service: { service: app } }\n\
               routes:\n  - { service: app, authenticate: [a, b] }\n";
    said(&with_basics(two), &["one service is asked at most"]);
}
