//! Concurrency limits, and the room that all limits share: good sections, bad sections and what is said about them.

mod common;

use common::{compiled, with_basics};
use ringway_config::Snapshot;
use ringway_core::limit::KeyPart;

#[track_caller]
fn good(more: &str) -> Snapshot {
    compiled(&with_basics(more)).unwrap_or_else(|errors| panic!("{errors}"))
}

/// What is said, without the count.
#[track_caller]
fn said(more: &str, expected: &str) {
    let said = compiled(&with_basics(more)).unwrap_err().to_string();
    let (errors, _) = said.rsplit_once('\n').unwrap();
    assert_eq!(errors, expected, "about\n{more}");
}

#[test]
fn concurrency_limits_of_a_route() {
    let snapshot = good(
        "concurrency_limits:
- { name: per-client, requests: 10 }
- { name: per-user, requests: 2, key: [user, route], keys: 50, ipv6_prefix: 48, tiers: { claim: plan, requests: { gold: 20 } } }
routes:
- { service: app, concurrency_limit: [per-user, per-client] }
- { service: app, match: { path: /free } }
",
    );
    let [client, user] = &snapshot.concurrency_limits[..] else { panic!("{:?}", snapshot.concurrency_limits) };
    assert_eq!((client.counter, &client.key[..], client.ipv6_prefix_bits), (0, &[KeyPart::ClientIp][..], 64));
    assert_eq!((user.counter, &user.key[..], user.ipv6_prefix_bits), (1, &[KeyPart::User, KeyPart::Route][..], 48));
    assert_eq!(&user.tiers.as_ref().unwrap().counters[..], [("gold".into(), 2)]);
    let specs = snapshot.concurrency.iter().map(|spec| (&*spec.name, spec.requests, spec.keys_max));
    let expected = [("per-client", 10, 100_000), ("per-user", 2, 50), ("per-user:gold", 20, 50)];
    assert_eq!(specs.collect::<Vec<_>>(), expected);
    assert_eq!(&snapshot.routes[0].policy.concurrency[..], [1, 0]);
    assert!(snapshot.routes[1].policy.concurrency.is_empty());
}

#[test]
fn bad_concurrency_limits() {
    said(
        "concurrency_limits:
- { name: a, requests: 0 }
- { name: b }
- { name: c, requests: 1, tiers: { claim: plan, requests: { gold: many } } }
- { name: d, limit: 3, requests: 1 }
routes:
- { service: app, concurrency_limit: e }
",
        "f:6:24: expected a whole number from 1 to 1000000, found `0`
f:7:3: the key `requests` is missing: a whole number from 1 to 1000000
f:8:67: expected a whole number from 1 to 1000000, found `many`
f:9:14: unknown key `limit`
    hint: the keys here: `name`, `requests`, `key`, `ipv6_prefix`, `tiers`, `keys`
f:11:38: no concurrency limit is named `e`
    hint: the concurrency_limits: `a`, `b`, `c`, `d`",
    );
    said(
        "concurrency_limits:
- { name: a, requests: 1 }
- { name: a, requests: 2 }
- { name: \"b:x\", requests: 2 }
- { name: b, requests: 2, tiers: { claim: plan, requests: { x: 3 } } }
routes:
- { service: app, concurrency_limit: [b, b] }
",
        "f:7:11: `a` is the name of two concurrency_limits, first at f:6:11
f:7:11: another concurrency limit, or a tier of one, is called `a` too
f:9:61: another concurrency limit, or a tier of one, is called `b:x` too
f:11:42: the concurrency limit is named twice",
    );
    let names = ["a", "b", "c", "d", "e"];
    let limits: String = names.iter().map(|name| format!("- {{ name: {name}, requests: 1 }}\n")).collect();
    said(
        &format!("concurrency_limits:\n{limits}routes:\n- {{ service: app, concurrency_limit: [a, b, c, d, e] }}\n"),
        "f:12:51: a route has 4 concurrency limits at most",
    );
}

#[test]
fn all_limits_together_have_room_for_so_many_keys() {
    let limits = |limit_keys: u32| {
        format!(
            "limits: {{ limit_keys: {limit_keys} }}
rate_limits:
- {{ name: a, limit: 1/s, keys: 300 }}
- {{ name: b, limit: 1/s, keys: 100, tiers: {{ claim: plan, limits: {{ gold: 5/s, silver: 3/s }} }} }}
concurrency_limits:
- {{ name: a, requests: 1, keys: 150 }}
- {{ name: b, requests: 1, keys: 50, tiers: {{ claim: plan, requests: {{ gold: 5 }} }} }}
- {{ name: c, requests: 1, keys: 1000 }}
"
        )
    };
    good(&limits(1_850));
    let hint = "\n    hint: lower `keys`, of which each tier has as many, or raise `limits.limit_keys`";
    for (limit_keys, line, asked) in [(1_849, 12, 1_850), (849, 11, 850), (749, 10, 750), (599, 8, 600), (299, 7, 300)]
    {
        let message =
            format!("with this one all limits together have {asked} keys, `limits.limit_keys` allows {limit_keys}");
        said(&limits(limit_keys), &format!("f:{line}:3: {message}{hint}"));
    }
    // By default ten limits of the default size fit.
    let many = |count: usize| {
        let limits = (0..count).map(|name| format!("- {{ name: n{name}, limit: 1/s }}\n"));
        format!("rate_limits:\n{}", limits.collect::<String>())
    };
    assert_eq!(good(&many(10)).limiters.len(), 10);
    let message = "with this one all limits together have 1100000 keys, `limits.limit_keys` allows 1000000";
    said(&many(11), &format!("f:16:3: {message}{hint}"));
}
