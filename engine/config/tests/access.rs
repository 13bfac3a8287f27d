//! What a route asks of a request besides authentication and rate limits: good sections, bad sections and what is said
//! about them.

mod common;

use std::net::IpAddr;

use common::{compiled, repository, with_basics};
use ringway_config::Snapshot;
use ringway_core::access::condition::Subject;
use ringway_core::access::{Access, Preflight, security_headers::Preset};
use ringway_core::router::{Captures, RouteRequest};

/// A file with one route, whose keys begin with line 7.
fn route(keys: &str) -> String {
    let keys: String = keys.lines().map(|line| format!("    {line}\n")).collect();
    with_basics(&format!("routes:\n  - service: app\n{keys}"))
}

fn access(snapshot: &Snapshot) -> &Access {
    &snapshot.routes[0].access
}

#[track_caller]
fn good(keys: &str) -> Snapshot {
    compiled(&route(keys)).unwrap_or_else(|errors| panic!("{errors}"))
}

/// What is said of a route, without the count.
#[track_caller]
fn said(keys: &str, expected: &str) {
    let said = compiled(&route(keys)).unwrap_err().to_string();
    let (errors, _) = said.rsplit_once('\n').unwrap();
    assert_eq!(errors, expected, "about\n{keys}");
}

fn answer_headers(access: &Access, origin: Option<&str>, tls: bool) -> String {
    let mut out = Vec::new();
    access.write_answer_headers(origin.map(str::as_bytes), tls, Default::default(), &mut out);
    String::from_utf8(out).unwrap()
}

const GET: RouteRequest<'_> = RouteRequest { host: b"x", method: b"GET", path: b"/", query: None, headers: &[] };

#[test]
fn nothing_is_the_default() {
    let snapshot = good("log: true");
    let Access { ip, authorize, cors, security_headers, deprecation, validation } = access(&snapshot);
    assert!(ip.is_none() && authorize.is_none() && cors.is_none() && security_headers.is_none());
    assert!(deprecation.is_none() && validation.is_none());
}

#[test]
fn addresses() {
    let snapshot = good("ip: { allow: [10.0.0.0/8, 192.0.2.7], deny: 10.1.0.0/16 }");
    let list = access(&snapshot).ip.as_ref().unwrap();
    let check = |ip: &str| list.check(ip.parse::<IpAddr>().unwrap()).is_ok();
    assert!(check("10.0.0.1") && check("192.0.2.7") && !check("10.1.0.1") && !check("192.0.2.8"));
    said("ip: {}", "f:7:9: `ip` has neither `allow` nor `deny`\n    hint: such as `{ allow: [10.0.0.0/8] }`");
    said(
        "ip: { allow: [], deny: [10.0.0.0/33] }",
        "f:7:18: the list is empty\n    hint: leave the key out, or name at least one\nf:7:29: expected an IP network or address, found `10.0.0.0/33`\n    hint: such as `10.0.0.0/8` or `192.0.2.7`",
    );
    said("ip: none", "f:7:9: expected a section of keys, or `off`, found `none`\n    hint: did you mean `off`?");
}

#[test]
fn conditions() {
    let snapshot = good(
        "authorize:\n  roles: [user, admin]\n  claims: { tenant: [acme, 7], groups: { contains: staff }, gone: { exists: false } }\n  cel: request.method == 'GET'\n  not: { scopes: [a, b] }\n  any: [{ any_scope: c }, { roles: admin }]",
    );
    let condition = access(&snapshot).authorize.as_ref().unwrap();
    let check = |role: &str, scopes: &[&str], claims: serde_json::Value| {
        let (roles, scopes): ([Box<str>; 1], Vec<Box<str>>) =
            ([role.into()], scopes.iter().map(|scope| Box::from(*scope)).collect());
        let subject = Subject { user: None, roles: &roles, scopes: &scopes, claims: claims.as_object() };
        condition.check(&subject, &GET, "::1".parse().unwrap()).map_err(|denial| denial.as_str())
    };
    let claims = || serde_json::json!({ "tenant": 7, "groups": ["staff"] });
    assert_eq!(check("user", &["a", "c"], claims()), Ok(()));
    assert_eq!(check("admin", &[], claims()), Ok(()));
    assert_eq!(check("guest", &["c"], claims()), Err("role"));
    assert_eq!(check("user", &["a"], claims()), Err("any"));
    assert_eq!(check("admin", &["a", "b"], claims()), Err("not"));
    assert_eq!(check("admin", &[], serde_json::json!({ "tenant": "7", "groups": ["staff"] })), Err("claim"));
    assert_eq!(check("admin", &[], serde_json::json!({ "tenant": 7, "groups": ["staff"], "gone": 1 })), Err("not"));
}

#[test]
fn conditions_that_cannot_be() {
    said("authorize: {}", "f:7:16: the condition asks for nothing\n    hint: such as `{ roles: [admin] }`");
    said(
        "authorize: { rolls: admin, any: [], not: {}, all: [{ scopes: a b }] }",
        "f:7:18: unknown key `rolls`\n    hint: did you mean `roles`?\nf:7:37: the list is empty\n    hint: leave the key out, or name at least one\nf:7:66: expected a word, found `a b`\n    hint: several are written as a list: `[a, b]`",
    );
    said(
        "authorize: { claims: { a..b: 1, c: { one_of: 1, exists: true } } }",
        "f:7:28: expected a claim, found `a..b`\n    hint: a claim, or a step on the way to it, has no name; `tenant`, `realm_access.roles`, `https://a.example/roles` or, with dots in a name, `/my.claim`\nf:7:40: expected exactly one of `one_of`, `contains`, `exists`",
    );
    for (cel, expected) in [
        ("rols == []", "there is no variable `rols` in expressions\n    hint: did you mean `roles`?"),
        ("request.methd == 'GET'", "there is no `request.methd` in expressions\n    hint: did you mean `method`?"),
        (
            "user.startWith('a')",
            "there is no function `startWith` in expressions\n    hint: did you mean `startsWith`?",
        ),
        ("user.matches('(')", "not a pattern: unclosed group"),
        (
            "size(roles)",
            "an expression answers `true` or `false`, this one never does\n    hint: compare it with something",
        ),
        (
            "roles.exists(a, scopes.exists(b, a == b))",
            "a loop within a loop costs too much\n    hint: a list of values is asked with `in`, without a loop",
        ),
    ] {
        said(&format!("authorize: {{ cel: \"{cel}\" }}"), &format!("f:7:23: {expected}"));
    }
    let text = compiled(&route("authorize: { cel: \"user ==\" }")).unwrap_err().to_string();
    assert!(text.starts_with("f:7:23: not a CEL expression: "), "{text}");
    assert!(text.contains("hint: look at character "), "{text}");
}

#[test]
fn keys_of_the_query_have_no_effect_in_a_path() {
    said(
        "match: { path: \"/a/{id}\" }\nvalidate: { path: { id: { type: integer, required: true } } }",
        "f:8:56: `required` has no effect in a path",
    );
}

#[test]
fn cors() {
    let snapshot =
        good("cors: { origins: [\"https://shop.example\", \"null\"], credentials: true, expose: X-A, max_age: 1h }");
    let origin = "https://shop.example";
    assert_eq!(
        answer_headers(access(&snapshot), Some(origin), false),
        "Vary: Origin\r\nAccess-Control-Allow-Origin: https://shop.example\r\nAccess-Control-Allow-Credentials: true\r\nAccess-Control-Expose-Headers: x-a\r\n"
    );
    let asked = Preflight {
        origin: origin.as_bytes(),
        method: b"PUT",
        headers: Some(b"authorization"),
        private_network: false,
    };
    let mut out = Vec::new();
    access(&snapshot).cors.as_ref().unwrap().preflight(&asked, &mut out);
    let text = String::from_utf8(out).unwrap();
    assert!(
        text.contains(
            "Allow-Methods: PUT\r\nAccess-Control-Allow-Headers: authorization\r\nAccess-Control-Max-Age: 3600"
        ),
        "{text}"
    );
}

#[test]
fn cors_that_cannot_be() {
    said("cors: {}", "f:7:11: the key `origins` is missing: one or a list, each an origin, or `*`");
    said(
        "cors: { origins: \"*\", credentials: true }",
        "f:7:40: credentials are never shared with all origins\n    hint: name the origins, or leave `credentials` out",
    );
    said(
        "cors: { origins: \"https://a.example\", credentials: true, expose: \"*\" }",
        "f:7:56: with credentials the headers that scripts may read are named one by one\n    hint: name the headers of `expose`, or leave `credentials` out",
    );
    said(
        "cors: { origins: [\"*\", a.example, \"https://A.example\", \"https://a.example/\", \"https://a.example:443\"], methods: [\"*\"] }",
        "f:7:23: expected an origin, found `*`\n    hint: all origins are `origins: \"*\"`, not one of a list\nf:7:28: expected an origin, found `a.example`\n    hint: an origin is a scheme and a host, `https://shop.example`\nf:7:39: expected an origin, found `https://A.example`\n    hint: a browser writes an origin in lower case\nf:7:60: expected an origin, found `https://a.example/`\n    hint: an origin has no path and no final `/`\nf:7:82: expected an origin, found `https://a.example:443`\n    hint: a browser leaves the default port of the scheme out",
    );
    said("cors: { origins: \"*\", methods: [\"*\"], headers: [a b] }", "f:7:53: expected a header name, found `a b`");
    said(
        "cors: { origins: \"*\", methods: [\"*\"] }",
        "f:7:37: a `*` stands alone, not in a list\n    hint: write `\"*\"` in place of the list",
    );
}

#[test]
fn security_headers() {
    let snapshot =
        good("security_headers: { preset: api, x_frame_options: off, referrer_policy: \"no-referrer, origin\" }");
    assert_eq!(
        answer_headers(access(&snapshot), None, true),
        "Strict-Transport-Security: max-age=63072000; includeSubDomains\r\nContent-Security-Policy: default-src 'none'; frame-ancestors 'none'\r\nX-Content-Type-Options: nosniff\r\nReferrer-Policy: no-referrer, origin\r\nCross-Origin-Resource-Policy: same-origin\r\n"
    );
    assert!(access(&good("security_headers: off")).security_headers.is_none());
    let names = ["basic", "strict", "api"];
    for (name, preset) in names.into_iter().zip([Preset::Basic, Preset::Strict, Preset::Api]) {
        let snapshot = good(&format!("security_headers: {name}"));
        let csp = preset.value(ringway_core::access::security_headers::SecurityHeader::ContentSecurityPolicy);
        let lines = answer_headers(access(&snapshot), None, false);
        assert_eq!(lines.contains("Content-Security-Policy: "), csp.is_some(), "{name}");
        assert!(lines.contains("X-Content-Type-Options: nosniff\r\n") && !lines.contains("Strict-Transport"), "{name}");
    }
    said(
        "security_headers: stict",
        "f:7:23: expected one of `basic`, `strict`, `api`, `off`, or a section of keys, found `stict`\n    hint: did you mean `strict`?",
    );
    said(
        "security_headers: { x_frame_options: SAME-ORIGIN, referrer_policy: none, cross_origin_opener_policy: same-site }",
        "f:7:42: `X-Frame-Options` is one of `DENY`, `SAMEORIGIN`\n    hint: did you mean `SAMEORIGIN`?\nf:7:72: `Referrer-Policy` is one of `no-referrer`, `no-referrer-when-downgrade`, `origin`, `origin-when-cross-origin`, `same-origin`, `strict-origin`, `strict-origin-when-cross-origin`, `unsafe-url`\nf:7:106: `Cross-Origin-Opener-Policy` is one of `same-origin`, `same-origin-allow-popups`, `noopener-allow-popups`, `unsafe-none`",
    );
    for (hsts, expected) in [
        ("includeSubDomains", "`Strict-Transport-Security` needs a `max-age` in seconds\n    hint: `max-age=31536000`"),
        ("max-age=1y", "`Strict-Transport-Security` needs a `max-age` in seconds\n    hint: `max-age=31536000`"),
        (
            "max-age=1; sub",
            "`Strict-Transport-Security` has no such directive\n    hint: such as `max-age=31536000; includeSubDomains`",
        ),
        ("max-age=31536000; preload", "`preload` asks for a `max-age` of 31536000 or more and `includeSubDomains`"),
    ] {
        said(&format!("security_headers: {{ strict_transport_security: {hsts} }}"), &format!("f:7:52: {expected}"));
    }
    said(
        "security_headers: { content_security_policy: \"a\\nb\" }",
        "f:7:50: expected a header's value, or `off`, found `a…`\n    hint: up to 4096 printable ASCII characters, in one line",
    );
}

#[test]
fn deprecation() {
    let snapshot = good("deprecation: { since: 2023-06-30T23:59:59Z, sunset: 2027-01-31, successor: /v2 }");
    assert_eq!(
        answer_headers(access(&snapshot), None, false),
        "Deprecation: @1688169599\r\nSunset: Sun, 31 Jan 2027 00:00:00 GMT\r\nLink: </v2>; rel=\"successor-version\"\r\n"
    );
    said(
        "deprecation: {}",
        "f:7:18: `deprecation` says nothing\n    hint: such as `{ since: 2026-01-31, successor: /v2 }`",
    );
    said(
        "deprecation: { since: 31.1.2026, sunset: 2026-02-30, link: \"https://a/>\" }",
        "f:7:27: expected a date, found `31.1.2026`\n    hint: as of RFC 3339: `2026-01-31` or `2026-01-31T10:00:00Z`\nf:7:46: expected a date, found `2026-02-30`\n    hint: as of RFC 3339: `2026-01-31` or `2026-01-31T10:00:00Z`\nf:7:64: expected a URL or a path, found `https://a/>`\n    hint: such as `https://docs.example/v1` or `/v2`, percent-encoded",
    );
    said(
        "deprecation: { since: 2026-02-01, sunset: 2026-01-31 }",
        "f:7:47: `sunset` is before `since`\n    hint: a route ends after it is deprecated (RFC 9745 section 4)",
    );
}

#[test]
fn validation() {
    let snapshot = good(
        "match: { path: \"/a/{x}/{id}\" }\nlimits: { body: 10KiB }\nvalidate:\n  path: { id: { type: integer, min: 1 } }\n  query: { page: { type: integer, max: 9, required: true }, sort: { one_of: [a, b] }, tag: { max_length: 2, repeated: true } }\n  unknown_query: refuse\n  headers: [X-Tenant, x-tenant]\n  body: { schema: { type: object, required: [a], properties: { a: { maximum: 3 } } } }",
    );
    let validation = access(&snapshot).validation.as_ref().unwrap();
    assert_eq!(validation.body_bytes_max(), Some(10 * 1024));
    assert_eq!(validation.accept(), "application/json, application/*+json");
    let headers = [httparse::Header { name: "x-tenant", value: b"1" }];
    let head = |query: &'static str| {
        let request = RouteRequest { query: Some(query.as_bytes()), path: b"/a/b/7", headers: &headers, ..GET };
        let found = snapshot.listeners[0].router.find(&request);
        let ringway_core::router::Found::Route { captures, .. } = found else { panic!() };
        validation.check_head(&request, &captures, false).map_err(|invalid| invalid.to_string())
    };
    assert_eq!(head("page=9&sort=a&tag=x&tag=y"), Ok(()));
    assert_eq!(head("page=10"), Err("query parameter `page`: must be a whole number, 9 or less".into()));
    assert_eq!(head("page=1&sort=c"), Err("query parameter `sort`: must be one of a, b".into()));
    assert_eq!(head("page=1&tag=xyz"), Err("query parameter `tag`: must have a length of 2 or less".into()));
    assert_eq!(head("page=1&z"), Err("query parameter `z`: is not known".into()));
    assert_eq!(
        validation.check_head(&GET, &Captures::default(), false).unwrap_err().to_string(),
        "path parameter `id`: must be a whole number, 1 or more"
    );
    assert!(validation.check_body(br#"{"a":3}"#).is_ok());
    let invalid = validation.check_body(br#"{"a":4}"#).unwrap_err();
    assert_eq!(invalid.to_string(), "/a: value is greater than the maximum of 3");
}

#[test]
fn validation_that_cannot_be() {
    said(
        "match: { path: \"/a/{id}\" }\nvalidate: { path: { ix: integer }, query: { a: int, b: { type: uuid, min: 1 }, c: { min: 1, one_of: [x], pattern: y } } }",
        "f:8:52: expected one of `text`, `integer`, `number`, `boolean`, `uuid`, found `int`\nf:8:79: `min` has no effect here: it belongs to `type: integer` and `type: number`\nf:8:94: `min` has no effect here: it belongs to `type: integer` and `type: number`\nf:8:119: `pattern` has no effect beside `one_of`",
    );
    said(
        "match: { path: \"/a/{id}\" }\nvalidate: { path: { ix: integer } }",
        "f:8:25: the route's path has no parameter `ix`\n    hint: did you mean `id`?",
    );
    said(
        "validate: { query: { a: { type: integer, min: 2.5 }, b: { type: number, min: 2, max: 1 }, c: { pattern: \"(\" }, d: { min_length: 3, max_length: 2 } } }",
        "f:7:51: a bound of this type is a whole number\nf:7:90: the lower bound is above the upper one\nf:7:109: not a regular expression: unclosed group\nf:7:148: the lower bound is above the upper one",
    );
    said(
        "validate: { content_types: [json, a/b;c=d], body: {} }",
        "f:7:33: expected a media type, found `json`\n    hint: such as `application/json`, `image/*` or `application/*+json`, without parameters\nf:7:39: expected a media type, found `a/b;c=d`\n    hint: such as `application/json`, `image/*` or `application/*+json`, without parameters",
    );
    said("validate: { body: {} }", "f:7:23: expected exactly one of `schema` and `schema_file`");
    let text = compiled(&route("validate: { body: { schema: { type: objekt } } }")).unwrap_err().to_string();
    assert!(
        text.starts_with("f:7:33: not a JSON Schema (draft 2020-12): ") && text.contains(" at `/type`\n"),
        "{text}"
    );
    let text =
        compiled(&route("validate: { body: { schema: { $ref: \"https://a.example/s\" } } }")).unwrap_err().to_string();
    assert!(text.starts_with("f:7:33: not a JSON Schema (draft 2020-12): "), "{text}");
    said(
        "validate: { body: { schema_file: no.json } }",
        "f:7:38: the schema cannot be used: No such file or directory (os error 2)\n    hint: a relative path starts at the directory of the configuration file",
    );
    let respond = with_basics("routes:\n  - respond: { text: x }\n    validate: { body: { schema: true } }\n");
    let text = compiled(&respond).unwrap_err().to_string();
    assert_eq!(text, "f:7:23: `body` has no effect in a route without a `service`\n1 error");
}

#[test]
fn a_schema_may_stand_in_a_file() {
    let directory = std::env::temp_dir().join(format!("ringway-config-schema-{}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    std::fs::write(directory.join("a.json"), r#"{"type":"array"}"#).unwrap();
    std::fs::write(directory.join("b.json"), "{").unwrap();
    std::fs::write(directory.join("f.yaml"), route("validate: { body: { schema_file: a.json } }")).unwrap();
    let snapshot = ringway_config::load(&directory.join("f.yaml")).unwrap_or_else(|errors| panic!("{errors}"));
    let validation = access(&snapshot).validation.as_ref().unwrap();
    assert!(validation.check_body(b"[]").is_ok() && validation.check_body(b"{}").is_err());
    std::fs::write(directory.join("f.yaml"), route("validate: { body: { schema_file: b.json } }")).unwrap();
    let text = ringway_config::load(&directory.join("f.yaml")).unwrap_err().to_string();
    assert!(text.contains("the schema cannot be used: not JSON: EOF"), "{text}");
    std::fs::remove_dir_all(&directory).unwrap();
}

#[test]
fn defaults_are_for_routes_without_a_word_of_their_own() {
    let text = with_basics(
        "defaults:\n  ip: { deny: 10.0.0.0/8 }\n  cors: { origins: \"*\" }\n  security_headers: basic\nroutes:\n  - { service: app, match: { path: /a } }\n  - { service: app, match: { path: /b }, ip: off, cors: off, security_headers: off }\n  - { service: app, match: { path: /c }, ip: { deny: 11.0.0.0/8 } }\n",
    );
    let snapshot = compiled(&text).unwrap_or_else(|errors| panic!("{errors}"));
    let [a, b, c] = [0, 1, 2].map(|index| &snapshot.routes[index].access);
    assert!(a.cors.is_some() && a.security_headers.is_some());
    assert!(b.ip.is_none() && b.cors.is_none() && b.security_headers.is_none());
    let ip = "10.0.0.1".parse().unwrap();
    assert!(a.ip.as_ref().unwrap().check(ip).is_err() && c.ip.as_ref().unwrap().check(ip).is_ok());
    let bad = compiled(&with_basics("defaults: { cors: { origins: x }, ip: {} }\n")).unwrap_err();
    assert_eq!(bad.count(), 1, "{bad}");
}

/// The blocks of YAML in a page.
fn blocks_of(page: &str) -> Vec<String> {
    let page = std::fs::read_to_string(repository().join("docs").join(page)).unwrap();
    page.split("```yaml\n").skip(1).map(|rest| rest.split("```").next().unwrap().to_owned()).collect()
}

/// Every block of YAML in these pages is a good configuration beside a listener and a service.
#[test]
fn the_examples_of_the_pages_compile() {
    for (page, blocks_min) in [("ACCESS.md", 6), ("rate-limits.md", 4)] {
        let blocks = blocks_of(page);
        assert!(blocks.len() >= blocks_min, "{page}: {}", blocks.len());
        for block in blocks {
            let text = with_basics(&block);
            if let Err(errors) = compiled(&text) {
                panic!("{page}: {errors}\n{text}");
            }
        }
    }
}

/// The page about authentication has a configuration, one with clients' certificates, the file with API keys that the first
/// names, and one with lists in Redis.
#[test]
fn the_examples_of_authentication_compile() {
    let blocks: [String; 4] = blocks_of("AUTHENTICATION.md").try_into().expect("four blocks");
    let [configuration, certificates, keys, lists] = blocks;
    let directory = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("authentication");
    std::fs::create_dir_all(&directory).unwrap();
    std::fs::write(directory.join("keys.yaml"), keys).unwrap();
    std::fs::write(directory.join("revoked.txt"), "# token IDs\n").unwrap();
    let at = |name: &str| format!("{:?}", directory.join(name));
    let text = configuration.replace("keys.yaml", &at("keys.yaml")).replace("revoked.txt", &at("revoked.txt"));
    let snapshot = compiled(&with_basics(&text)).unwrap_or_else(|errors| panic!("{errors}\n{text}"));
    assert_eq!((snapshot.authenticators.len(), snapshot.routes.len()), (2, 3));
    assert!(snapshot.routes[0].policy.anonymous && snapshot.routes[2].policy.authenticate.is_empty());
    let pair = concat!(env!("CARGO_MANIFEST_DIR"), "/../../configs/keys/test-only");
    let certificates = ["server", "clients"]
        .iter()
        .fold(certificates, |text, name| text.replace(&format!("{name}."), &format!("{pair}.")));
    let certificates = format!(
        "{certificates}services: [{{ name: app, endpoints: \"127.0.0.1:1\" }}]\nroutes: [{{ service: app }}]\n"
    );
    let devices = compiled(&certificates).unwrap_or_else(|errors| panic!("{errors}\n{certificates}"));
    assert_eq!(devices.authenticators.len(), 1);
    let lists = compiled(&with_basics(&lists)).unwrap_or_else(|errors| panic!("{errors}\n{lists}"));
    assert!(lists.keys.iter().all(|sources| sources.list().is_some()));
}
