//! Cross-origin requests: who may read, and what is said to them.

use ringway_core::access::cors::{CorsSpec, Names, OriginList, Origins};
use ringway_core::access::{Cors, Preflight};

pub const DICTIONARY: &[&str] = &[
    "https://",
    "http://",
    "a.example",
    ".b.example:8443",
    "https://a.example",
    "https://x.b.example:8443",
    "null",
    "*",
    "*.",
    ".",
    "..",
    "-",
    ":",
    ":443",
    ":80",
    "/",
    "@",
    "#",
    "[::1]",
    "A",
    "\n",
    "\r\n",
    "\0",
    ", ",
    "x-a",
    "authorization",
    "PUT",
];

/// An origin, a method and a list of headers, each on a line of its own.
pub fn target(bytes: &[u8]) {
    let mut lines = bytes.splitn(3, |byte| *byte == b'\n');
    let origin = lines.next().unwrap_or_default();
    let (method, headers) = (lines.next().unwrap_or_default(), lines.next());
    let list = OriginList::new(["https://a.example", "https://*.b.example:8443", "null"]).expect("good origins");
    check(&cors(Origins::These(list), true), origin, method, headers, is_allowed(origin));
    check(&cors(Origins::Any, false), origin, method, headers, true);
    if let Some(list) = std::str::from_utf8(origin).ok().and_then(|text| OriginList::new([text]).ok()) {
        // What may stand in the file: itself, as a browser sends it.
        let itself = !origin.contains(&b'*');
        assert!(!origin.iter().any(|byte| byte.is_ascii_uppercase() || *byte <= b' '), "{}", origin.escape_ascii());
        check(&cors(Origins::These(list), true), origin, method, headers, itself);
    }
}

fn cors(origins: Origins, credentials: bool) -> Cors {
    let spec = CorsSpec {
        origins,
        credentials,
        methods: Names::Any,
        headers: Names::Any,
        expose: Names::These(Vec::new()),
        max_age_secs: 5,
        private_network: true,
    };
    Cors::new(spec).expect("a good policy")
}

fn is_allowed(origin: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(origin) else { return false };
    let labels = text.strip_prefix("https://").and_then(|rest| rest.strip_suffix(".b.example:8443"));
    let is_label = |label: &str| {
        !label.is_empty() && label.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '_')
    };
    matches!(text, "https://a.example" | "null") || labels.is_some_and(|labels| labels.split('.').all(is_label))
}

fn check(cors: &Cors, origin: &[u8], method: &[u8], headers: Option<&[u8]>, allowed: bool) {
    let mut simple = Vec::new();
    cors.simple(Some(origin), &mut simple);
    check_origin(&lines(&simple), origin, allowed);

    let mut out = Vec::new();
    cors.preflight(&Preflight { origin, method, headers, private_network: false }, &mut out);
    let lines = lines(&out);
    check_origin(&lines, origin, allowed);
    let varies = value(&lines, "Vary").expect("a preflight's answer varies");
    assert!(varies.starts_with("Origin, Access-Control-Request-Method, Access-Control-Request-Headers"));
    let is_token = |text: &str| {
        !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c))
    };
    let asked: Vec<String> = headers
        .map(|headers| String::from_utf8_lossy(headers).into_owned())
        .unwrap_or_default()
        .split(',')
        .map(|name| name.trim_matches(|c: char| c.is_ascii_whitespace()).to_owned())
        .filter(|name| is_token(name))
        .collect();
    let told = value(&lines, "Access-Control-Allow-Headers").map(str::to_owned);
    assert_eq!(told, (allowed && !asked.is_empty()).then(|| asked.join(", ")));
    assert!(value(&lines, "Access-Control-Allow-Private-Network").is_none(), "nobody asked");
}

/// Each line ends as a line, and has a name that this may set.
fn lines(out: &[u8]) -> Vec<(&str, &str)> {
    let text = std::str::from_utf8(out).expect("ASCII");
    assert!(text.is_empty() || text.ends_with("\r\n"));
    let lines: Vec<_> = text.split_terminator("\r\n").map(|line| line.split_once(": ").expect("a header")).collect();
    for (name, value) in &lines {
        assert!(*name == "Vary" || name.starts_with("Access-Control-"), "{name:?}");
        assert!(!value.is_empty() && !value.chars().any(char::is_control), "{value:?}");
    }
    lines
}

fn value<'l>(lines: &[(&str, &'l str)], name: &str) -> Option<&'l str> {
    let mut values = lines.iter().filter(|(known, _)| *known == name).map(|(_, value)| *value);
    let value = values.next();
    assert!(values.next().is_none(), "{name} twice");
    value
}

/// Who is allowed is named, others never, and caches are told where the answer depends on it.
fn check_origin(lines: &[(&str, &str)], origin: &[u8], allowed: bool) {
    match value(lines, "Access-Control-Allow-Origin") {
        Some("*") => assert!(allowed && value(lines, "Access-Control-Allow-Credentials").is_none()),
        Some(named) => {
            assert!(allowed && named.as_bytes() == origin, "{}", origin.escape_ascii());
            assert_eq!(value(lines, "Access-Control-Allow-Credentials"), Some("true"));
            assert!(value(lines, "Vary").is_some_and(|vary| vary.starts_with("Origin")));
        }
        None => {
            assert!(!allowed, "{}", origin.escape_ascii());
            assert!(lines.len() == 1 && lines[0].0 == "Vary", "{lines:?}");
        }
    }
}
