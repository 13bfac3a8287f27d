//! What a route asks of a request, and adds to its answer, besides authentication and rate limits. What hashes with keys of
//! its own each time (expressions, JSON bodies) is left out: it would count otherwise each time.

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr};

use ringway_core::access::condition::ClaimTest;
use ringway_core::access::cors::{CorsSpec, Names, OriginList, Origins};
use ringway_core::access::security_headers::{Preset, SecurityHeader};
use ringway_core::access::validate::{QueryRule, Shape};
use ringway_core::access::{Access, Condition, Cors, IpList, Preflight, SecurityHeaders, Subject, Validation};
use ringway_core::auth::ClaimPath;
use ringway_core::router::{Captures, RouteRequest};
use serde_json::json;

use super::{Case, leak};

const CLIENT: IpAddr = IpAddr::V4(Ipv4Addr::new(203, 0, 113, 42));
const ORIGIN: &[u8] = b"https://shop.example.com";
const REQUEST: RouteRequest<'_> = RouteRequest {
    host: b"www.example.com",
    method: b"GET",
    path: b"/api/products/123",
    query: Some(b"page=3&sort=name&lang=en"),
    headers: &[],
};

pub(super) fn cases() -> Vec<Case> {
    let mut cases: Vec<Case> = [("of_10", 10), ("of_10000", 10_000)].map(ip).into();
    cases.extend([roles_and_scopes(), claim(), simple(), preflight(), answer_headers(), query()]);
    cases
}

fn ip((name, count): (&'static str, u32)) -> Case {
    Case::new("ip", name, move || {
        let network = |n: u32| format!("{}.{}.{}.0/28", 100 + n % 100, n / 100 % 250, n / 25_000).parse();
        let networks: Vec<_> = (0..count).map(|n| network(n).expect("a network")).collect();
        let list = IpList::new(&[], &networks);
        move || list.check(black_box(CLIENT)).is_ok()
    })
}

fn words(words: &[&str]) -> Box<[Box<str>]> {
    words.iter().map(|word| Box::from(*word)).collect()
}

fn roles_and_scopes() -> Case {
    Case::new("condition", "roles_and_scopes", || {
        let (roles, scopes): (&[_], &[_]) =
            (leak(words(&["user", "editor"])), leak(words(&["openid", "products.read"])));
        let wanted = [Condition::Roles(words(&["admin", "editor"])), Condition::AllScopes(words(&["products.read"]))];
        let condition = Condition::All(wanted.into());
        let subject = Subject { roles, scopes, ..Subject::default() };
        move || condition.check(black_box(&subject), &REQUEST, CLIENT).is_ok()
    })
}

fn claim() -> Case {
    Case::new("condition", "claim", || {
        let claims = leak(json!({
            "iss": "https://id.example", "sub": "u1", "aud": "api", "exp": 1_800_000_000, "iat": 1_700_000_000,
            "realm_access": { "groups": ["staff", "ops"] },
        }));
        let path = ClaimPath::parse("realm_access.groups").expect("a path");
        let condition = Condition::Claim(path, ClaimTest::Contains(json!("ops")));
        let subject = Subject { claims: claims.as_object(), ..Subject::default() };
        move || condition.check(black_box(&subject), &REQUEST, CLIENT).is_ok()
    })
}

fn cors() -> Cors {
    let origins = ["https://example.com", "https://admin.example.com", "https://*.example.com"];
    let spec = CorsSpec {
        origins: Origins::These(OriginList::new(origins).expect("origins")),
        credentials: true,
        methods: Names::Any,
        headers: Names::Any,
        expose: Names::These(vec!["x-request-id".into()]),
        max_age_secs: 600,
        private_network: false,
    };
    Cors::new(spec).expect("a policy")
}

fn simple() -> Case {
    Case::new("cors", "simple", || {
        let (cors, mut out) = (cors(), Vec::with_capacity(512));
        move || {
            out.clear();
            cors.simple(black_box(Some(ORIGIN)), &mut out);
            out.len()
        }
    })
}

fn preflight() -> Case {
    Case::new("cors", "preflight", || {
        let (cors, mut out) = (cors(), Vec::with_capacity(512));
        move || {
            out.clear();
            let headers = Some(&b"authorization, content-type"[..]);
            let asked = Preflight { origin: ORIGIN, method: b"PUT", headers, private_network: false };
            cors.preflight(black_box(&asked), &mut out);
            out.len()
        }
    })
}

/// Of an answer with eleven fields.
fn answer_headers() -> Case {
    const FIELDS: [&str; 11] = [
        "Content-Type",
        "Content-Length",
        "Date",
        "Server",
        "ETag",
        "Cache-Control",
        "Vary",
        "X-Powered-By",
        "Connection",
        "X-Frame-Options",
        "Keep-Alive",
    ];
    Case::new("answer_headers", "strict_with_cors", || {
        let preset = |header: SecurityHeader| Some((header, Preset::Strict.value(header)?.to_owned()));
        let headers = SecurityHeaders::new(SecurityHeader::ALL.into_iter().filter_map(preset), false, false);
        let access = Access { cors: Some(cors().into()), security_headers: Some(headers.into()), ..Access::default() };
        let mut out = Vec::with_capacity(2048);
        move || {
            out.clear();
            let mut seen = Default::default();
            let kept = black_box(FIELDS).iter().filter(|name| access.keeps(name, &mut seen)).count();
            access.write_answer_headers(black_box(Some(ORIGIN)), true, seen, &mut out);
            kept + out.len()
        }
    })
}

fn query() -> Case {
    Case::new("validate", "two_query_parameters", || {
        let rule = |name: &str, shape| QueryRule { name: name.into(), shape, required: true, repeated: false };
        let rules =
            [rule("page", Shape::Integer { min: 1, max: 100 }), rule("sort", Shape::OneOf(words(&["price", "name"])))];
        let validation = Validation { query: rules.into(), ..Validation::default() };
        move || validation.check_head(black_box(&REQUEST), &Captures::default(), false).is_ok()
    })
}
