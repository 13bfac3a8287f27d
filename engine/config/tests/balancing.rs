//! Zones, priorities, sessions and subsets: good sections, bad sections and what is said about them.

mod common;

use common::compiled;
use ringway_config::Snapshot;
use ringway_config::snapshot::{Action, Asked, ByHeader, Zones};
use ringway_config::sticky::{Secure, Sticky};

/// The lines of `text` are the fourth and later ones.
fn with(text: &str) -> String {
    format!(
        "listeners:\n- {{ name: public, address: 127.0.0.1:3000 }}\nservices: [{{ name: app, endpoints: 127.0.0.1:1 }}]\n{text}"
    )
}

#[track_caller]
fn good(text: &str) -> Snapshot {
    compiled(text).unwrap_or_else(|errors| panic!("{errors}"))
}

#[track_caller]
fn said(text: &str, expected: &str) {
    let said = compiled(text).unwrap_err().to_string();
    let (errors, _) = said.rsplit_once('\n').unwrap_or((&said, ""));
    assert_eq!(errors, expected, "about\n{text}");
}

/// One service, whose section has the second line.
fn of_service(section: &str) -> String {
    format!(
        "services:\n- {{ name: app, endpoints: 127.0.0.1:1, {section} }}\nlisteners:\n- {{ name: public, address: 127.0.0.1:3000 }}\n"
    )
}

#[test]
fn zones() {
    assert_eq!(
        good(&of_service("zones: {}, balance: random").replace("services", "zone: a\nservices")).services[0].zones,
        Some(Zones { own: "a".into(), capacity: 140 })
    );
    assert_eq!(good(&with("zone: a\n")).services[0].zones, None);
    said(
        &of_service("zones: { prefer: local }"),
        "f:2:47: the gateway does not know its own zone\n    hint: say `zone: NAME` at the top level",
    );
    said(
        &of_service("zones: { prefer: far, capacity: 99% }"),
        "f:2:57: expected one of `local`, found `far`\nf:2:72: expected a share from 100% to 250%, found `99%`",
    );
    said(
        &with("zone: a b\n"),
        "f:4:7: expected a name: letters, digits and `-._/:`, found `a b`\n    hint: from 1 to 64 of them",
    );
}

#[test]
fn priorities() {
    let priority = |section: &str| {
        let text = of_service("balance: random")
            .replace("127.0.0.1:1,", &format!("[{{ address: \"127.0.0.1:1\", {section} }}],"));
        compiled(&text).map(|snapshot| snapshot.services[0].endpoints[0].priority).map_err(|errors| errors.to_string())
    };
    for (section, expected) in
        [("weight: 1", 0), ("backup: true", 1), ("priority: 127", 127), ("priority: 3, backup: true", 3)]
    {
        assert_eq!(priority(section), Ok(expected), "{section}");
    }
    assert!(priority("priority: 0, backup: true").unwrap_err().contains("a backup does not come first"));
    assert!(priority("priority: 128").unwrap_err().contains("from 0 to 127"));
}

#[test]
fn sessions() {
    let sticky = |section: &str| -> Sticky {
        let mut snapshot = good(&of_service(&format!("sticky: {section}")));
        std::sync::Arc::into_inner(snapshot.services.remove(0)).expect("the only one").sticky.expect("sessions")
    };
    let simple = sticky("{ cookie: stay }");
    assert_eq!((&*simple.cookie, &*simple.attributes), ("stay", "; Path=/; HttpOnly; SameSite=Lax"));
    assert_eq!((simple.secure, simple.is_indirect, simple.secret.bytes().len()), (Secure::Auto, false, 32));
    assert_eq!(simple, sticky("{ cookie: stay }"), "one secret for the process");
    let full = sticky(
        "{ cookie: stay, secret: 0123456789abcdef, ttl: 1h, path: /a, same_site: none, secure: true, http_only: false, \
         indirect: true }",
    );
    assert_eq!(&*full.attributes, "; Path=/a; Max-Age=3600; SameSite=None");
    assert_eq!((full.secure, full.is_indirect, full.secret.bytes()), (Secure::Always, true, &b"0123456789abcdef"[..]));
    assert!(!format!("{full:?}").contains("0123456789"));

    for (section, expected) in [
        ("{}", "the key `cookie` is missing"),
        ("{ cookie: a b }", "a token of up to 64 characters"),
        ("{ cookie: a, secret: short }", "the secret has 5 bytes: fewer than 16"),
        ("{ cookie: a, path: shop }", "such as `/` or `/shop`"),
        ("{ cookie: a, path: /a;b }", "such as `/` or `/shop`"),
        ("{ cookie: a, same_site: none, secure: false }", "browsers drop a cookie with `same_site: none`"),
        ("{ cookie: __Host-a, path: /a }", "whose `path` is not `/`"),
        ("{ cookie: __Secure-a, secure: false }", "that is not `secure`"),
        ("{ cookie: a, ttl: 1ms }", "expected a duration from 1s"),
    ] {
        let said = compiled(&of_service(&format!("sticky: {section}"))).unwrap_err().to_string();
        assert!(said.contains(expected), "{section}: {said}");
    }
}

#[test]
fn subsets() {
    let text = "routes:\n\
        - { service: app }\n\
        - { match: { path: /a }, service: app, subset: { metadata: { b: 2, a: 1 } } }\n\
        - { match: { path: /b }, service: app, subset: { metadata: { a: 1, b: 2 }, fallback: none } }\n\
        - { match: { path: /c }, service: app, subset: { metadata: { a: 1, b: 2 }, fallback: any } }\n";
    let snapshot = good(&with(text));
    let of = |route: &std::sync::Arc<ringway_config::snapshot::Route>| match &route.action {
        Action::Forward(forward) => forward.subset,
        _ => None,
    };
    assert_eq!(snapshot.routes.iter().map(of).collect::<Vec<_>>(), [None, Some(0), Some(0), Some(1)]);
    assert_eq!(snapshot.subsets.iter().map(|subset| subset.falls_back).collect::<Vec<_>>(), [false, true]);
    let endpoint = |metadata: &str| {
        let text = of_service("balance: random")
            .replace("127.0.0.1:1,", &format!("[{{ address: \"127.0.0.1:1\", metadata: {metadata} }}],"));
        good(&text).services[0].endpoints[0].clone()
    };
    for (metadata, expected) in
        [("{ a: 1, b: 2 }", true), ("{ a: 1, b: 2, c: 3 }", true), ("{ a: 1 }", false), ("{ a: 1, b: 3 }", false)]
    {
        assert_eq!(snapshot.subsets[0].has(&endpoint(metadata), Asked::Any), expected, "{metadata}");
    }
    for (route, expected) in [
        ("{ service: app, subset: { metadata: {} } }", "nothing is asked of the endpoints"),
        ("{ service: app, subset: {} }", "nothing is asked of the endpoints"),
        ("{ service: app, subset: { by_header: { name: x-version } } }", "the key `metadata` is missing"),
        ("{ service: app, subset: { by_header: { metadata: version } } }", "the key `name` is missing"),
        ("{ service: app, subset: { by_header: { name: \"x version\", metadata: a } } }", "expected a header name"),
        ("{ service: app, subset: { by_header: { name: x, metadata: a b } } }", "letters, digits and `-._/:`"),
        (
            "{ service: app, subset: { metadata: { a: 1 }, by_header: { name: x, metadata: a } } }",
            "`a` is chosen by a header already",
        ),
        ("{ service: app, subset: { metadata: { a: 1 }, fallback: all } }", "expected one of `none`, `any`"),
        ("{ respond: {}, subset: { metadata: { a: 1 } } }", "`subset` has no effect in a route without a `service`"),
    ] {
        let said = compiled(&with(&format!("routes: [{route}]\n"))).unwrap_err().to_string();
        assert!(said.contains(expected), "{route}: {said}");
    }
    let by_header =
        "routes: [{ service: app, subset: { by_header: { name: X-Version, metadata: version, default: v1 } } }]\n";
    let expected = ByHeader { header: "x-version".into(), entry: "version".into(), default: Some("v1".into()) };
    assert_eq!(good(&with(by_header)).subsets[0].by_header, Some(expected));
    let many = |subset: usize| {
        format!("- {{ match: {{ path: /p{subset} }}, service: app, subset: {{ metadata: {{ a: {subset} }} }} }}\n")
    };
    let many = |count| format!("routes:\n{}", (0..count).map(many).collect::<String>());
    assert_eq!(good(&with(&many(256))).subsets.len(), 256);
    assert!(compiled(&with(&many(257))).unwrap_err().to_string().contains("256 different subsets at most"));
}
