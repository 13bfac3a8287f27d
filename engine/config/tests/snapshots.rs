//! Good files and what they become.

mod common;

use std::sync::Arc;
use std::time::{Duration, Instant};

use common::{compiled, env, repository, with_basics};
use ringway_config::snapshot::{
    AccessLog, Action, AuditLog, Balance, EndpointAddress, HostRewrite, Rewrite, TraceStart,
};
use ringway_config::{Hub, Snapshot, Source, compile, load};
use ringway_core::router::{Found, RouteRequest};

/// The name of the route that a request to the first listener finds.
fn route<'s>(snapshot: &'s Snapshot, method: &str, path: &str) -> Option<&'s str> {
    let request =
        RouteRequest { host: b"x", method: method.as_bytes(), path: path.as_bytes(), query: None, headers: &[] };
    match snapshot.listeners[0].router.find(&request) {
        Found::Route { index, .. } => Some(&snapshot.routes[index as usize].name),
        _ => None,
    }
}

fn example(name: &str) -> Snapshot {
    beside_the_examples(std::fs::read_to_string(repository().join("configs").join(name)).unwrap())
}

/// As a file of `configs`, so that the files that it names are found.
fn beside_the_examples(text: String) -> Snapshot {
    let name = repository().join("configs/test.yaml").to_str().unwrap().into();
    compile(&[Source { name, text }], &env).unwrap_or_else(|errors| panic!("{errors}"))
}

#[test]
fn every_example_compiles() {
    let mut names: Vec<_> =
        std::fs::read_dir(repository().join("configs")).unwrap().map(|e| e.unwrap().path()).collect();
    // Beside them lie the scenarios of load tests.
    names.retain(|path| path.is_file());
    names.sort();
    let names: Vec<_> = names.iter().map(|path| path.file_name().unwrap().to_str().unwrap()).collect();
    assert_eq!(names, ["bench-resilience.yaml", "bench.yaml", "passthrough.yaml", "quickstart.yaml", "reference.yaml"]);
    for name in names {
        let snapshot = example(name);
        // What `/config` shows is the same configuration, where nothing of it came from outside.
        if !snapshot.redacted.contains("[redacted]") {
            let again = beside_the_examples(snapshot.redacted.clone());
            assert_eq!(format!("{again:?}"), format!("{snapshot:?}"), "{name}");
        }
    }
}

#[test]
fn defaults_are_safe() {
    let snapshot = compiled(&with_basics("routes:\n  - service: app\n")).unwrap();
    let listener = &snapshot.listeners[0];
    assert_eq!((listener.limits.head_bytes, listener.limits.headers, listener.limits.pipelined), (32 * 1024, 100, 16));
    assert_eq!(listener.limits.requests_per_connection, None);
    assert_eq!((listener.timeouts.head, listener.timeouts.idle), (Duration::from_secs(10), Duration::from_secs(60)));
    assert_eq!(listener.timeouts.body_rate, 1024);
    assert_eq!((listener.trace, &*listener.via), (TraceStart::W3c, "ringway"));
    assert!(listener.trusted_proxies.is_empty());
    let service = &snapshot.services[0];
    assert_eq!((&service.balance, service.pool.idle_per_endpoint), (&Balance::LeastLoaded, 512));
    assert_eq!(&*service.endpoints[0].label, "127.0.0.1:8080");
    assert_eq!(snapshot.routes[0].body_bytes, Some(1024 * 1024));
    assert!(snapshot.routes[0].log);
    assert_eq!(snapshot.admin.as_ref().unwrap().address.to_string(), "127.0.0.1:9901");
    assert_eq!(snapshot.limits.connections_per_ip, Some(1024));
    assert_eq!(snapshot.drain.notice, Duration::from_secs(1));
    assert_eq!(snapshot.access_log, AccessLog::Stdout);
    assert_eq!(snapshot.audit_log, AuditLog::Stderr);
    assert_eq!(snapshot.runtime.workers, None);
    assert_eq!(route(&snapshot, "GET", "/any/thing"), Some("/*"));
}

/// Whoever leaves the commented keys out gets what the reference says is the default.
#[test]
fn the_reference_tells_the_defaults() {
    let (reference, plain) =
        (example("reference.yaml"), compiled(&with_basics("routes:\n  - service: app\n")).unwrap());
    assert_eq!(reference.runtime, plain.runtime);
    assert_eq!(reference.admin, plain.admin);
    assert_eq!(reference.access_log, plain.access_log);
    assert_eq!(reference.audit_log, plain.audit_log);
    assert_eq!(reference.drain, plain.drain);
    assert_eq!(format!("{:?}", reference.limits), format!("{:?}", plain.limits));
    let (full, short) = (&reference.listeners[0], &plain.listeners[0]);
    assert_eq!((full.backlog, full.limits, full.timeouts), (short.backlog, short.limits, short.timeouts));
    assert_eq!(
        (full.forwarded, &full.via, full.trace, full.path),
        (short.forwarded, &short.via, short.trace, short.path)
    );
    assert_eq!((full.proxy_status, full.server_timing), (short.proxy_status, short.server_timing));
    let (full, short) = (&reference.services[0], &plain.services[0]);
    assert_eq!((&full.balance, full.pool, full.timeouts), (&short.balance, short.pool, short.timeouts));
    assert_eq!((full.retry_stale, full.endpoints[1].weight), (short.retry_stale, short.endpoints[0].weight));
    assert_eq!(full.endpoints[1].address, EndpointAddress::Unix("/run/products.sock".into()));
    let (full, short) = (&reference.routes[0], &plain.routes[0]);
    assert_eq!((full.body_bytes, full.log), (short.body_bytes, short.log));
    let (Action::Forward(full), Action::Forward(short)) = (&full.action, &short.action) else { panic!() };
    assert_eq!(full.timeouts, short.timeouts);
    assert!(matches!((&full.host, &short.host), (HostRewrite::Keep, HostRewrite::Keep)));
}

#[test]
fn the_quickstart_is_the_gateway_of_the_article() {
    let snapshot = example("quickstart.yaml");
    for (method, path, name) in [
        ("GET", "/api/products/7", Some("product")),
        ("HEAD", "/api/products/7", Some("product")),
        ("POST", "/api/orders", Some("create-order")),
        ("POST", "/api/auth/token", Some("token")),
        ("GET", "/health", Some("health")),
        ("POST", "/api/products/7", None),
        ("GET", "/api/products", None),
        ("GET", "/", None),
    ] {
        assert_eq!(route(&snapshot, method, path), name, "{method} {path}");
    }
    let Action::Respond(health) = &snapshot.routes[3].action else { panic!() };
    assert_eq!(
        (health.status, &*health.content_type, &*health.body),
        (200, "application/json", &br#"{"status":"healthy"}"#[..])
    );
    let labels: Vec<_> = snapshot.services.iter().map(|service| &*service.endpoints[0].label).collect();
    assert_eq!(labels, ["127.0.0.1:8081", "127.0.0.1:8082", "127.0.0.1:8080"]);
    assert!(snapshot.services.iter().all(|service| service.timeouts.answer == Duration::from_secs(5)));
}

#[test]
fn keys_from_another_place_are_not_those_that_were_learned() {
    let with = |keys: &str| {
        let authenticator = format!("{{ name: main, jwt: {{ algorithms: RS256, keys: {{ {keys} }} }} }}");
        compiled(&with_basics(&format!("authenticators: [{authenticator}]\n")))
            .unwrap_or_else(|errors| panic!("{errors}"))
    };
    let hub = Hub::new(with("jwks_url: \"https://a.example/jwks\""), 1);
    let live = |hub: &Hub| hub.published().live[0].clone();
    let first = live(&hub);
    hub.publish(with("jwks_url: \"https://a.example/jwks\""));
    assert!(Arc::ptr_eq(&first, &live(&hub)), "the same place");
    for other in ["jwks_url: \"https://b.example/jwks\"", "oidc: \"https://b.example\""] {
        let before = live(&hub);
        hub.publish(with(other));
        assert!(!Arc::ptr_eq(&before, &live(&hub)), "{other}");
    }
}

#[test]
fn lists_in_redis_are_those_of_one_place() {
    let with = |authenticator: &str, redis: &str| {
        let text = format!("authenticators: [{{ name: main, {authenticator} }}]\nredis: {{ {redis} }}\n");
        compiled(&with_basics(&text)).unwrap_or_else(|errors| panic!("{errors}"))
    };
    let keys = "api_keys: { redis: {} }";
    let jwt =
        |revoked: &str| format!("jwt: {{ algorithms: RS256, keys: {{ jwks_url: \"https://a.example\" }}, {revoked} }}");
    let (none, file) = (jwt(""), jwt("revoked: { file: Cargo.toml }"));
    let (list, other) = (jwt("revoked: { redis: {} }"), jwt("revoked: { redis: { key: b } }"));
    let url = "url: \"redis://a\"";
    let snapshot = with(keys, url);
    let found = snapshot.keys[0].list().unwrap();
    assert_eq!((&*found.key, found.every), ("ringway:api-keys", Duration::from_secs(5)));
    assert_eq!(&*with(&list, "url: \"redis://a\", prefix: x").keys[0].list().unwrap().key, "x:revoked");
    assert!(with(&file, url).keys[0].list().is_none());

    let hub = Hub::new(with(keys, url), 1);
    let live = |hub: &Hub| hub.published().live[0].clone();
    assert!(live(&hub).is_awaited() && live(&hub).api_keys().is_none());
    for (authenticator, redis, is_same) in [
        (keys, "url: \"redis://:secret@a\", response_timeout: 1s", true),
        ("api_keys: { redis: { every: 1m } }", url, true),
        ("api_keys: { redis: {}, headers: { x-client: sub } }", url, false),
        ("api_keys: { redis: { key: b } }", url, false),
        (keys, url, false),
        (keys, "url: \"redis://b\"", false),
        (keys, "url: \"redis://b\", prefix: b", false),
        (keys, "url: \"redis://b/1\", prefix: b", false),
        (&none, url, false),
        (&file, url, true),
        (&none, url, true),
        (&list, url, false),
        (&list, url, true),
        (&other, url, false),
        (&none, url, false),
    ] {
        let before = live(&hub);
        before.set_awaited(false);
        hub.publish(with(authenticator, redis));
        let now = live(&hub);
        assert_eq!(Arc::ptr_eq(&before, &now), is_same, "{authenticator} {redis}");
        let has_list = authenticator.contains("redis:");
        assert_eq!(
            (now.is_awaited(), now.revoked().is_none()),
            (has_list && !is_same, authenticator.contains("revoked: { redis"))
        );
    }
}

#[test]
fn keys_that_are_to_be_fetched_are_looked_for_from_the_start() {
    use ringway_core::auth::Asked;
    let with = |keys: &str| {
        let text = format!("authenticators: [{{ name: main, jwt: {{ algorithms: RS256, keys: {{ {keys} }} }} }}]\n");
        compiled(&with_basics(&text)).unwrap_or_else(|errors| panic!("{errors}"))
    };
    let hub = Hub::new(compiled(&with_basics("")).unwrap(), 1);
    for keys in ["jwks_url: \"https://a.example/jwks\"", "oidc: \"https://a.example\""] {
        hub.publish(with(keys));
        assert_eq!(hub.published().live[0].ask(None, 0), Asked::Wait, "{keys}");
    }
}

#[test]
fn routes_become_actions() {
    let more = "\
routes:
  - match: { prefix: /api/, headers: { X-A: 1 }, methods: [GET, PUT] }
    service: app
    rewrite: { strip_prefix: /api/ }
    host: endpoint
    timeouts: { request: 2s }
    limits: { body: off }
    log: false
  - match: { host: a.example, path: /x }
    redirect: { to: \"https://b.example${request.path}\" }
  - match: { host: a.example, path: /y }
    respond: { status: 503, text: closed }
  - match: { path: /z }
    respond: { status: 204 }
  - match: { prefix: /api/, headers: { X-A: 2 }, methods: [GET, PUT] }
    service: app
    host: b.example
";
    let snapshot = compiled(&with_basics(more)).unwrap_or_else(|errors| panic!("{errors}"));
    let names: Vec<_> = snapshot.routes.iter().map(|route| &*route.name).collect();
    assert_eq!(names, ["GET,PUT /api/*", "a.example/x", "a.example/y", "/z", "GET,PUT /api/* #2"]);
    let first = &snapshot.routes[0];
    assert_eq!((first.body_bytes, first.log), (None, false));
    let Action::Forward(forward) = &first.action else { panic!() };
    assert!(matches!((&forward.rewrite, &forward.host), (Rewrite::Strip(4), HostRewrite::Endpoint)));
    assert_eq!(forward.timeouts.request, Some(Duration::from_secs(2)));
    let Action::Redirect(redirect) = &snapshot.routes[1].action else { panic!() };
    assert_eq!(redirect.status, 308);
    let Action::Respond(respond) = &snapshot.routes[2].action else { panic!() };
    assert_eq!(
        (respond.status, &*respond.content_type, &*respond.body),
        (503, "text/plain; charset=utf-8", &b"closed"[..])
    );
    let Action::Respond(respond) = &snapshot.routes[3].action else { panic!() };
    assert_eq!((respond.status, &*respond.content_type, respond.body.len()), (204, "", 0));
}

#[test]
fn variables_are_typed_after_they_are_put_in_and_redacted() {
    let more = "\
runtime: { workers: \"${env:NUMBER}\", ring_entries: \"${env:NO:-512}\" }
routes:
  - service: app
    request_headers: { set: { authorization: \"Bearer ${env:SECRET}\" } }
";
    let snapshot = compiled(&with_basics(more)).unwrap_or_else(|errors| panic!("{errors}"));
    assert_eq!((snapshot.runtime.workers, snapshot.runtime.ring_entries), (Some(7), 512));
    assert!(snapshot.redacted.contains("authorization: \"Bearer [redacted]\""), "{}", snapshot.redacted);
    assert!(snapshot.redacted.contains("workers: \"[redacted]\""));
    assert!(snapshot.redacted.contains("ring_entries: \"512\""));
    assert!(!snapshot.redacted.contains("hunter2"));
}

#[test]
fn a_secret_is_not_a_template() {
    let env = |_: &str| Some("a$b${request.id}$".to_string());
    let text = with_basics(
        "routes:\n  - service: app\n    request_headers: { set: { x-a: \"${env:A}\", x-b: \"${env:A}${request.id}\" } }\n",
    );
    let snapshot = compile(&[Source { name: "f".into(), text }], &env).unwrap_or_else(|errors| panic!("{errors}"));
    let set = &snapshot.routes[0].request_headers.set;
    assert_eq!(set[0].1.as_literal(), Some(&b"a$b${request.id}$"[..]));
    assert_eq!(set[1].1.as_literal(), None);
}

#[test]
fn redis_and_its_password() {
    assert!(compiled(&with_basics("")).unwrap().redis.is_none());
    let snapshot = compiled(&with_basics(
        "redis: { url: \"redis+sentinel://:${env:SECRET}@a,b:7/main/2\", response_timeout: 250ms }\n",
    ))
    .unwrap();
    let redis = snapshot.redis.as_ref().unwrap();
    assert_eq!((&*redis.label, &*redis.prefix), ("redis+sentinel://a:26379,b:7/main/2", "ringway"));
    assert_eq!((redis.user.as_deref(), redis.password.as_deref()), (None, Some("hunter2")));
    assert_eq!((redis.connect_timeout, redis.response_timeout), (Duration::from_secs(1), Duration::from_millis(250)));
    assert!(!format!("{snapshot:?}").contains("hunter2"));

    // Written out, it is hidden too.
    let snapshot = compiled(&with_basics("redis:\n  url: redis://me:hunter2@cache\n")).unwrap();
    assert_eq!(snapshot.redis.as_ref().unwrap().password.as_deref(), Some("hunter2"));
    assert!(snapshot.redacted.contains("url: \"redis://me:[redacted]@cache\""), "{}", snapshot.redacted);
    assert!(!format!("{snapshot:?}").contains("hunter2"));
}

#[test]
fn a_directory_is_one_configuration() {
    let directory = std::env::temp_dir().join(format!("ringway-config-directory-{}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    let write = |name: &str, text: &str| std::fs::write(directory.join(name), text).unwrap();
    write("10-base.yaml", "listeners:\n  - { name: public, address: \"127.0.0.1:3000\" }\ndrain: { timeout: 5s }\n");
    write(
        "20-a.yml",
        "services:\n  - { name: a, endpoints: \"127.0.0.1:1\" }\nroutes:\n  - { match: { path: /a }, service: b }\n",
    );
    write(
        "30-b.yaml",
        "services:\n  - { name: b, endpoints: \"127.0.0.1:2\" }\nroutes:\n  - service: a\n    request_headers: { set: { x: \"${file:secret}\" } }\n",
    );
    write("secret", "s3cret\n");
    write(".hidden.yaml", "nonsense");
    write("notes.txt", "nonsense");
    let snapshot = load(&directory).unwrap_or_else(|errors| panic!("{errors}"));
    assert_eq!(snapshot.routes.len(), 2);
    let services: Vec<_> = snapshot
        .routes
        .iter()
        .map(|route| match &route.action {
            Action::Forward(forward) => &*snapshot.services[forward.service.services()[0]].name,
            _ => "",
        })
        .collect();
    assert_eq!(services, ["b", "a"]);
    assert_eq!(snapshot.routes[1].request_headers.set[0].1.as_literal(), Some(&b"s3cret"[..]));
    assert!(!snapshot.redacted.contains("s3cret"));

    write("40-c.yaml", "drain: { timeout: 6s }\nservices: 5\n");
    let said = load(&directory).unwrap_err().to_string().replace(&*directory.to_string_lossy(), "D");
    let expected = "\
D/40-c.yaml:1:1: `drain` is defined in two files, first at D/10-base.yaml:3:1
    hint: only lists are joined
D/40-c.yaml:2:1: `services` is defined in two files, first at D/20-a.yml:1:1
    hint: only lists are joined
2 errors";
    assert_eq!(said, expected);
    std::fs::remove_dir_all(&directory).unwrap();
}

#[test]
fn ten_thousand_routes_are_compiled_quickly() {
    let mut text = with_basics("routes:\n");
    for index in 0..10_000 {
        text += &format!(
            "  - name: r{index}\n    match: {{ host: h{}.example, path: \"/a{index}/{{id}}\", methods: [GET] }}\n    service: app\n    rewrite: {{ path: \"/b/{{id}}\" }}\n    request_headers: {{ set: {{ x-a: \"${{path.id}}\" }} }}\n",
            index % 100
        );
    }
    let start = Instant::now();
    let snapshot = compiled(&text).unwrap_or_else(|errors| panic!("{errors}"));
    let took = start.elapsed();
    println!("10,000 routes ({} KiB): {took:?}", text.len() / 1024);
    assert_eq!(snapshot.routes.len(), 10_000);
    // An optimized build takes 0.3 s, half of it for the YAML. The bound is for debug builds on busy machines.
    assert!(took < Duration::from_secs(20), "{took:?}");
}

#[test]
fn the_audit_log_goes_where_it_is_told() {
    for (written, expected) in [
        ("off", AuditLog::Off),
        ("stdout", AuditLog::Stdout),
        ("stderr", AuditLog::Stderr),
        ("{ file: /var/log/audit.log }", AuditLog::File("/var/log/audit.log".into())),
    ] {
        let snapshot = compiled(&with_basics(&format!("audit_log: {written}\n"))).unwrap();
        assert_eq!(snapshot.audit_log, expected);
    }
}
