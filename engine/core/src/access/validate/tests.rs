use super::*;
use crate::router::{Found, PathMatch, RouteSpec, RouterBuilder};
use proptest::prelude::*;
use serde_json::json;

fn rule(name: &str, shape: Shape) -> QueryRule {
    QueryRule { name: name.into(), shape, required: false, repeated: false }
}

fn whole(min: i64, max: i64) -> Shape {
    Shape::Integer { min, max }
}

/// What is said of a request to `/a/{id}`.
fn said(validation: &Validation, method: &str, path: &str, headers: &[(&str, &str)], has_body: bool) -> String {
    let mut builder = RouterBuilder::new();
    let spec = RouteSpec {
        hosts: Vec::new(),
        path: PathMatch::Pattern("/a/{id}".into()),
        methods: Vec::new(),
        headers: Vec::new(),
        query: Vec::new(),
        priority: 0,
    };
    builder.add(0, spec).unwrap();
    let headers: Vec<_> =
        headers.iter().map(|(name, value)| httparse::Header { name, value: value.as_bytes() }).collect();
    let (path, query) = path.split_once('?').map_or((path, None), |(path, query)| (path, Some(query.as_bytes())));
    let request =
        RouteRequest { host: b"", method: method.as_bytes(), path: path.as_bytes(), query, headers: &headers };
    let Found::Route { captures, .. } = builder.build().find(&request) else { panic!("{path}") };
    match validation.check_head(&request, &captures, has_body) {
        Ok(()) => String::new(),
        Err(invalid) => format!("{} {invalid}", invalid.status),
    }
}

#[test]
fn path_parameters_are_decoded_and_checked() {
    let of = |shape| Validation { path: [(0, "id".into(), shape)].into(), ..Validation::default() };
    let number = of(whole(1, i64::MAX));
    assert_eq!(said(&number, "GET", "/a/12", &[], false), "");
    assert_eq!(said(&number, "GET", "/a/x", &[], false), "400 path parameter `id`: must be a whole number, 1 or more");
    let words = of(Shape::OneOf(["a b+".into()].into()));
    assert_eq!(said(&words, "GET", "/a/a%20b+", &[], false), "");
    assert_eq!(said(&words, "GET", "/a/a+b+", &[], false), "400 path parameter `id`: must be one of a b+");
    let text = of(Shape::Text { chars_min: 0, chars_max: 2, pattern: None });
    assert_eq!(said(&text, "GET", "/a/%C3%A4%C3%B6", &[], false), "");
    assert_eq!(said(&text, "GET", "/a/%FF", &[], false), "400 path parameter `id`: must be UTF-8");
}

#[test]
fn query_parameters_are_known_typed_and_counted() {
    let mut page = rule("page", whole(1, 100));
    page.required = true;
    let mut tag = rule("tag", Shape::Text { chars_min: 1, chars_max: 9, pattern: None });
    tag.repeated = true;
    let mut validation = Validation { query: [page, tag, rule("a b", Shape::Boolean)].into(), ..Validation::default() };
    for (query, expected) in [
        ("page=1", ""),
        ("tag=a&%70age=%31&tag=b&a+b=true&other=1&other=2", ""),
        ("", "400 query parameter `page`: is missing"),
        ("Page=1", "400 query parameter `page`: is missing"),
        ("page", "400 query parameter `page`: must be a whole number from 1 to 100"),
        ("page=101", "400 query parameter `page`: must be a whole number from 1 to 100"),
        ("page=1&page=2", "400 query parameter `page`: occurs more than once"),
        ("page=1&tag=", "400 query parameter `tag`: must have a length of 1 or more"),
        ("page=1&a%20b=1", "400 query parameter `a b`: must be `true` or `false`"),
    ] {
        assert_eq!(said(&validation, "GET", &format!("/a/1?{query}"), &[], false), expected, "{query}");
    }
    validation.refuse_unknown_query = true;
    assert_eq!(
        said(&validation, "GET", "/a/1?page=1&o%0Aher=1", &[], false),
        "400 query parameter `o?her`: is not known"
    );
    let long = format!("/a/1?{}=1", "x".repeat(10_000));
    assert!(said(&validation, "GET", &long, &[], false).len() < 300);
}

#[test]
fn the_last_rule_counts_too() {
    let mut rules: Vec<_> = (0..QUERY_RULES_MAX).map(|n| rule(&format!("p{n}"), whole(0, 9))).collect();
    rules.last_mut().unwrap().required = true;
    let validation = Validation { query: rules.into(), ..Validation::default() };
    assert_eq!(said(&validation, "GET", "/a/1?p63=1", &[], false), "");
    assert_eq!(
        said(&validation, "GET", "/a/1?p63=1&p63=1", &[], false),
        "400 query parameter `p63`: occurs more than once"
    );
    assert_eq!(said(&validation, "GET", "/a/1?p62=1", &[], false), "400 query parameter `p63`: is missing");
}

#[test]
fn headers_and_content() {
    let validation = Validation {
        headers: ["x-tenant".into()].into(),
        content_types: ["application/json", "text/*"].map(|text| MediaRange::parse(text).unwrap()).into(),
        body: Some(BodyRule { schema: Schema::compile(&json!(true)).unwrap(), bytes_max: 9, required: true }),
        ..Validation::default()
    };
    let (tenant, json) = (("X-Tenant", "a"), ("Content-Type", "application/json; charset=utf-8"));
    for (method, headers, has_body, expected) in [
        ("POST", &[tenant, json][..], true, ""),
        ("POST", &[tenant, ("content-type", "text/plain"), ("Content-Encoding", "Identity")], true, ""),
        ("GET", &[tenant], false, ""),
        ("GET", &[], false, "400 header `x-tenant`: is missing"),
        ("POST", &[tenant], false, "400 body: is missing"),
        ("POST", &[tenant], true, "415 content type: is missing"),
        ("POST", &[tenant, ("content-type", "image/png")], true, "415 content type: is not accepted here"),
        ("POST", &[tenant, json, json], true, "415 content type: is given more than once"),
        (
            "POST",
            &[tenant, json, ("content-encoding", "gzip")],
            true,
            "415 content type: is accepted here without a content coding only",
        ),
    ] {
        assert_eq!(said(&validation, method, "/a/1", headers, has_body), expected, "{method} {headers:?}");
    }
    assert_eq!((validation.accept().as_str(), validation.body_bytes_max()), ("application/json, text/*", Some(9)));
    assert!(validation.check_body(b"{}").is_ok() && validation.check_body(b"{").is_err());
    assert!(Validation::default().check_body(b"\xff").is_ok());
}

proptest! {
    #[test]
    fn any_query_is_judged(query: Vec<u8>, refuse_unknown_query: bool) {
        let query_rules = [rule("a", whole(0, 9)), rule("", Shape::Boolean)];
        let validation = Validation { query: query_rules.into(), refuse_unknown_query, ..Validation::default() };
        let request = RouteRequest { host: b"", method: b"GET", path: b"/", query: Some(&query), headers: &[] };
        if let Err(invalid) = validation.check_head(&request, &Captures::default(), false) {
            prop_assert!(invalid.place.len() <= INVALID_BYTES_MAX);
        }
    }
}
