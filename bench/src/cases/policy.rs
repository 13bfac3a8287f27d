//! What is decided about a request, and what is written because of it: path, route, permit, endpoint, header values.

use std::cell::RefCell;
use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use ringway_core::access::Access;
use ringway_core::answer::{Format, negotiate, status_line, write_error_body};
use ringway_core::auth::{TlsFacts, TokenCache};
use ringway_core::balance::{Balancer, Kind};
use ringway_core::filter::{self, Gate, Progress, Verdict, admit};
use ringway_core::forwarded::{client_ip, is_trusted, write_forwarded_element, write_ip};
use ringway_core::http::{Framing, HeadStorage, RequestHead};
use ringway_core::limit::{Decision, Fallback, HeaderStyle, Limiter, Policy, Spec, State, write_headers};
use ringway_core::path::{PathPolicy, normalize};
use ringway_core::router::{Captures, Found, PathMatch, RouteRequest, RouteSpec, Router, RouterBuilder, ValueMatch};
use ringway_core::template::{HeaderOps, Template, Vars};

use super::{Case, leak, received};
use crate::messages::BROWSER_HEAD;

const CLIENT: IpAddr = IpAddr::V4(Ipv4Addr::new(203, 0, 113, 42));
const CLIENT_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 42));

pub(super) fn cases() -> Vec<Case> {
    [paths(), routers(), balancers(), filters(), limits(), addresses(), templates(), own_answers()]
        .into_iter()
        .flatten()
        .collect()
}

fn paths() -> Vec<Case> {
    let paths = [
        ("plain", "/api/products/123"),
        ("escaped", "/api/products/caf%C3%A9%20au%20lait"),
        ("rewritten", "/api//products/./x/../%7euser/caf%c3%a9"),
    ];
    let case = |(name, path): (_, &'static str)| {
        Case::new("path", name, move || {
            let path: &[u8] = received(path.as_bytes());
            let mut out = Vec::with_capacity(256);
            move || normalize(black_box(path), PathPolicy::default(), &mut out).expect("a good path").len()
        })
    };
    paths.map(case).into()
}

fn any(path: PathMatch) -> RouteSpec {
    RouteSpec { hosts: vec![], path, methods: vec![], headers: vec![], query: vec![], priority: 0 }
}

/// `/api/s0/items/{id}`, `/api/s1/items/{id}`, ...; every other one also asks for a method and a host.
fn routes(count: u32) -> Router {
    let mut builder = RouterBuilder::new();
    for index in 0..count {
        let mut spec = any(PathMatch::Pattern(format!("/api/s{index}/items/{{id}}")));
        if index % 2 == 1 {
            spec.hosts = vec!["www.example.com".into()];
            spec.methods = vec!["GET".into()];
        }
        builder.add(index, spec).expect("a good route");
    }
    builder.build()
}

/// Routes of one path that differ in what they ask for, on a wildcard host: the last one is meant.
fn routes_with_conditions() -> Router {
    let mut builder = RouterBuilder::new();
    for index in 0..4 {
        let mut spec = any(PathMatch::Prefix("/api".into()));
        spec.hosts = vec!["*.example.com".into()];
        spec.headers = vec![("x-variant".into(), ValueMatch::Exact(index.to_string().into()))];
        spec.query = vec![("view".into(), ValueMatch::Present)];
        builder.add(index, spec).expect("a good route");
    }
    builder.build()
}

fn routers() -> Vec<Case> {
    let case = |(name, count, is_found)| {
        Case::new("router", name, move || {
            let router = routes(count);
            let path = format!("/api/s{}/items/123", if is_found { count / 2 } else { count });
            move || {
                let request = RouteRequest {
                    host: b"www.example.com",
                    method: b"GET",
                    path: path.as_bytes(),
                    query: None,
                    headers: &[],
                };
                let found = router.find(black_box(&request));
                assert_eq!(matches!(found, Found::Route { .. }), is_found);
                found
            }
        })
    };
    let mut cases = Vec::from(
        [
            ("found_of_1", 1, true),
            ("found_of_100", 100, true),
            ("found_of_10000", 10_000, true),
            ("missing_of_1", 1, false),
            ("missing_of_100", 100, false),
            ("missing_of_10000", 10_000, false),
        ]
        .map(case),
    );
    cases.push(Case::new("router", "conditions", || {
        let router = routes_with_conditions();
        let head = b"GET / HTTP/1.1\r\nHost: a\r\nAccept: */*\r\nX-Variant: 3\r\n\r\n";
        let request = RequestHead::parse(received(head), 100, leak(HeadStorage::new())).expect("a good head");
        move || {
            let request = RouteRequest {
                host: b"www.example.com",
                method: b"GET",
                path: b"/api/products/123",
                query: Some(b"lang=en&view=full"),
                headers: request.headers,
            };
            let found = router.find(black_box(&request));
            assert!(matches!(found, Found::Route { index: 3, .. }));
            found
        }
    }));
    cases
}

fn balancers() -> Vec<Case> {
    let case = |(name, kind, weights): (_, _, &'static [u32])| {
        Case::new("balance", name, move || {
            let mut balancer = Balancer::new(kind, weights);
            let mut random = 1u64;
            move || {
                random = random.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
                balancer.pick(random, None, |index| black_box(index as u64))
            }
        })
    };
    [
        ("round_robin_of_1", Kind::RoundRobin, &[1][..]),
        ("round_robin_of_8", Kind::RoundRobin, &[1; 8]),
        ("round_robin_of_8_weighted", Kind::RoundRobin, &[1, 2, 3, 4, 5, 6, 7, 8]),
        ("least_loaded_of_1", Kind::LeastLoaded, &[1]),
        ("least_loaded_of_8", Kind::LeastLoaded, &[1; 8]),
        ("least_loaded_of_8_weighted", Kind::LeastLoaded, &[1, 2, 3, 4, 5, 6, 7, 8]),
    ]
    .map(case)
    .into()
}

fn filters() -> Vec<Case> {
    vec![Case::new("admit", "body_of_2KiB", || {
        let (policy, access) = (filter::Policy::default(), Access::default());
        let tokens = RefCell::new(TokenCache::new(8, 1 << 20, 60, [1, 2, 3, 4]));
        let key = RefCell::default();
        move || {
            let gate = Gate {
                policy: &policy,
                access: &access,
                authenticators: &[],
                live: &[],
                tokens: &tokens,
                rules: &[],
                limiters: &[],
                scopes: &[],
                concurrency: &[],
                key: &key,
                route: "products",
                request: &RouteRequest { host: b"a", method: b"POST", path: b"/a", query: None, headers: &[] },
                captures: &Captures::default(),
                client_ip: CLIENT,
                certificate: None,
                framing: Framing::Length(2048),
                body_bytes_max: Some(1 << 20),
                now_unix_s: 1,
                now_us: 1,
                may_wait: true,
            };
            matches!(admit(black_box(&gate), &mut Progress::default()), Verdict::Continue(_))
        }
    })]
}

fn limits() -> Vec<Case> {
    fn policy() -> Policy {
        Policy::new(&Spec {
            name: "per-client".into(),
            limit: 100_000,
            period: Duration::from_secs(1),
            burst: 100_000,
            strict: false,
            without_redis: Fallback::FairShare,
            keys_max: 10_000,
        })
        .expect("a policy")
    }
    let check = |name| {
        Case::new("limit", name, move || {
            let limiter = Limiter::new(policy());
            // One key: with more, where they meet in the table is a matter of chance.
            let mut now_us = 0;
            // The burst is never used up: a request a second.
            move || {
                now_us += 1_000_000;
                let decision = limiter.check(black_box(b"203.0.17.42"), 1, now_us);
                assert!(matches!(decision, Decision::Admitted(_)));
                decision
            }
        })
    };
    let headers = |name, style| {
        let policy: &Policy = leak(policy());
        let state = State { limit: 100_000, remaining: 99_987, reset_us: 11_000_001, retry_after_us: 0 };
        Case::writes("limit", name, move |out| {
            write_headers(style, policy, black_box(&state), 1_700_000_000, out);
        })
    };
    vec![
        check("of_a_warm_key"),
        headers("headers_draft6", HeaderStyle::Draft6),
        headers("headers_structured", HeaderStyle::Structured),
    ]
}

fn addresses() -> Vec<Case> {
    const TRUSTED: [&str; 4] = ["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fd00::/8"];
    let trusted = || TRUSTED.map(|net| net.parse().expect("a network"));
    vec![
        Case::new("forwarded", "is_trusted", move || {
            let trusted = trusted();
            move || is_trusted(black_box(&trusted), black_box(CLIENT))
        }),
        Case::new("forwarded", "client_behind_two_proxies", move || {
            let trusted = trusted();
            let hops: &[u8] = received(b"198.51.100.7, 203.0.113.42, 10.1.2.3");
            move || {
                let peer = IpAddr::V4(Ipv4Addr::new(192, 168, 0, 1));
                client_ip(black_box(peer), &trusted, black_box([hops]).into_iter())
            }
        }),
        Case::writes("forwarded", "ipv4", |out| write_ip(black_box(CLIENT), out)),
        Case::writes("forwarded", "ipv6", |out| write_ip(black_box(CLIENT_V6), out)),
        Case::writes("forwarded", "element", |out| {
            write_forwarded_element(black_box(CLIENT), black_box(b"www.example.com:8080"), b"http", out);
        }),
    ]
}

fn templates() -> Vec<Case> {
    let case = |(name, text, is_path): (_, &'static str, bool)| {
        Case::new("template", name, move || {
            let parameters = ["id".to_owned()];
            let template = Template::compile(text, &parameters, is_path).expect("a good template");
            let request =
                RequestHead::parse(received(BROWSER_HEAD), 100, leak(HeadStorage::new())).expect("a good head");
            let captures: &Captures = leak(captures());
            let mut out = Vec::with_capacity(512);
            let vars = Vars {
                request_id: b"019d1a2e-7c4b-7d3e-8f10-2b6c5a493e71",
                client_ip: b"203.0.113.42",
                host: request.authority,
                method: b"GET",
                path: b"/api/products/123",
                query: Some(b"view=full&lang=en"),
                scheme: b"http",
                route: "products",
                service: "product-service",
                captures,
                headers: request.headers,
                tls: TlsFacts::NONE,
            };
            move || {
                out.clear();
                template.render(black_box(&vars), &mut out);
                out.len()
            }
        })
    };
    let mut cases = Vec::from(
        [
            ("literal", "max-age=60", false),
            ("variables", "${request.id} ${client.ip} ${header.referer}", false),
            ("path", "/v2/products/{id}/${header.sec-fetch-site}", true),
        ]
        .map(case),
    );
    cases.push(Case::new("header_ops", "drops", || {
        let names = |names: [&str; 3]| names.map(|name| (Box::<str>::from(name), Template::default()));
        let remove = ["server".into(), "x-powered-by".into(), "via".into()];
        let ops = HeaderOps {
            remove: remove.into(),
            set: names(["cache-control", "x-frame-options", "vary"]).into(),
            add: [].into(),
        };
        move || ops.drops(black_box("Content-Type"))
    }));
    cases
}

/// Where the product's ID lies in `/api/products/123`.
fn captures() -> Captures {
    let mut builder = RouterBuilder::new();
    builder.add(0, any(PathMatch::Pattern("/api/products/{id}".into()))).expect("a good route");
    let request = RouteRequest { host: b"", method: b"GET", path: b"/api/products/123", query: None, headers: &[] };
    match builder.build().find(&request) {
        Found::Route { captures, .. } => captures,
        other => panic!("{other:?}"),
    }
}

/// What the gateway answers itself.
fn own_answers() -> Vec<Case> {
    const ID: &[u8] = b"019d1a2e-7c4b-7d3e-8f10-2b6c5a493e71";
    vec![
        Case::new("own_answer", "negotiate", || {
            let accept: &[u8] = received(b"text/html,application/problem+json;q=0.9,application/json;q=0.8,*/*;q=0.1");
            move || negotiate(black_box([accept]).into_iter())
        }),
        Case::writes("own_answer", "status_line", |out| status_line(black_box(404), out)),
        Case::writes("own_answer", "error_json", |out| {
            write_error_body(Format::Json, black_box(404), black_box("Not found"), black_box(ID), out);
        }),
        Case::writes("own_answer", "error_problem", |out| {
            write_error_body(Format::Problem, black_box(404), black_box("Not found"), black_box(ID), out);
        }),
    ]
}
