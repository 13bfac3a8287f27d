//! Templates of header values, redirects and paths.

use ringway_core::auth::TlsFacts;
use ringway_core::path::{PathPolicy, normalize};
use ringway_core::router::{Captures, Found, PathMatch, RouteRequest, RouteSpec, Router, RouterBuilder};
use ringway_core::template::{Template, Vars};

pub const DICTIONARY: &[&str] = &[
    "$",
    "$$",
    "${",
    "}",
    "{",
    "{id}",
    "{rest}",
    "${path.id}",
    "${path.rest}",
    "${request.id}",
    "${client.ip}",
    "${request.host}",
    "${request.method}",
    "${request.path}",
    "${request.query}",
    "${request.scheme}",
    "${route}",
    "${service}",
    "${header.x-a}",
    "${header.X-A}",
    "${header.}",
    "\0",
    "\r\n",
    "?",
    "#",
    "%",
    "/",
    "..",
    "\u{e9}",
];

/// The text of a template; behind a NUL, if there is one, what a client sent.
pub fn target(bytes: &[u8]) {
    let (text, sent) = match bytes.iter().position(|byte| *byte == 0) {
        Some(at) => (&bytes[..at], &bytes[at + 1..]),
        None => (bytes, &b"\r\n\0 ?#%\xff"[..]),
    };
    let text = String::from_utf8_lossy(text);
    let (router, names) = router();
    let raw = [b"/a/", sent].concat();
    let mut room = Vec::new();
    let path = normalize(&raw, PathPolicy::default(), &mut room).unwrap_or(b"/a/p%20q/x/y");
    let request = RouteRequest { host: b"", method: b"GET", path, query: None, headers: &[] };
    let captures = match router.find(&request) {
        Found::Route { captures, .. } => captures,
        _ => Captures::default(),
    };
    for braces in [false, true] {
        if let Ok(template) = Template::compile(&text, &names, braces) {
            assert!(!text.bytes().any(|byte| byte.is_ascii_control() && byte != b'\t'), "{text:?}");
            check(&template, &text, braces, sent, path, &captures);
        }
    }
}

fn router() -> (Router, Vec<String>) {
    let mut builder = RouterBuilder::new();
    let spec = RouteSpec {
        hosts: Vec::new(),
        path: PathMatch::Pattern("/a/{id}/{*rest}".into()),
        methods: Vec::new(),
        headers: Vec::new(),
        query: Vec::new(),
        priority: 0,
    };
    let names = builder.add(0, spec).expect("a good route");
    (builder.build(), names)
}

fn check(template: &Template, text: &str, braces: bool, sent: &[u8], path: &[u8], captures: &Captures) {
    let headers = [httparse::Header { name: "X-A", value: sent }];
    let vars = Vars {
        request_id: b"0190-id",
        client_ip: b"192.0.2.1",
        host: sent,
        method: b"GET",
        path,
        query: Some(sent),
        scheme: b"http",
        route: "a route",
        service: "app",
        captures,
        headers: &headers,
        tls: TlsFacts::NONE,
    };
    let mut out = b"before".to_vec();
    template.render(&vars, &mut out);
    let value = out.strip_prefix(b"before").expect("rendering appends");
    assert!(!value.iter().any(|byte| matches!(byte, b'\r' | b'\n' | 0)), "ends a line: {}", value.escape_ascii());
    if let Some(literal) = template.as_literal() {
        assert_eq!(literal, value);
        assert!(literal.len() <= text.len());
    }
    if braces {
        // Only the operator may end a path or begin a query; a client's bytes stay within it.
        for special in *b"?# \"<>\\^`|" {
            let count = |bytes: &[u8]| bytes.iter().filter(|byte| **byte == special).count();
            assert!(count(value) <= count(text.as_bytes()), "{}", value.escape_ascii());
        }
        assert!(value.is_ascii() || !text.is_ascii());
    }
}
