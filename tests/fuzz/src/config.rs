//! Configuration files.

use std::net::SocketAddr;

use ringway_config::snapshot::{Action, Snapshot};
use ringway_config::{ERRORS_MAX, Errors, Source, compile_with};

pub const DICTIONARY: &[&str] = &[
    "\n",
    "\n  ",
    "\n  - ",
    ": ",
    "- ",
    "{",
    "}",
    "[",
    "]",
    ",",
    "\"",
    "'",
    "#",
    "&a ",
    "*a",
    "!!str ",
    "<<: ",
    "|\n",
    "---\n",
    "\t",
    "~",
    "null",
    "true",
    "off",
    "auto",
    "1",
    "0",
    "-1",
    "99999999999999999999",
    "64KiB",
    "1s",
    "1h",
    "${env:A}",
    "${env:A:-b}",
    "${file:x}",
    "${request.id}",
    "$$",
    "{id}",
    "{*rest}",
    "/api",
    "/a/{id}",
    "127.0.0.1:1",
    "unix:/a",
    "listeners",
    "services",
    "routes",
    "name",
    "address",
    "endpoints",
    "match",
    "path",
    "prefix",
    "respond",
    "redirect",
    "service",
    "limits",
    "timeouts",
    "admin",
    "runtime",
    "\u{e9}",
    "\u{feff}",
];

/// Any bytes, as the text of a file. Nothing is looked up: no environment, no names.
pub fn target(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    match compiled(&text) {
        Ok(snapshot) => check_snapshot(&snapshot, &text),
        Err(errors) => check_errors(&errors, &text),
    }
}

fn compiled(text: &str) -> Result<Snapshot, Errors> {
    let lookup = |_: &str, port| Ok(vec![SocketAddr::from(([192, 0, 2, 1], port))]);
    compile_with(&[Source { name: "fuzz.yaml".into(), text: text.into() }], &|_| None, &lookup)
}

/// There are some, in order, and each has a place that is in the file.
fn check_errors(errors: &Errors, text: &str) {
    let list = errors.list();
    assert!((1..=ERRORS_MAX).contains(&list.len()) && errors.count() >= list.len());
    assert!(list.is_sorted_by_key(|error| (error.line, error.column)));
    // What YAML takes for line breaks.
    let text = text.strip_prefix('\u{feff}').unwrap_or(text).replace("\r\n", "\n");
    let lines: Vec<_> = text.split(['\n', '\r']).collect();
    for error in list {
        assert_eq!(error.file, "fuzz.yaml");
        assert!(!error.message.is_empty() && error.hint.as_ref().is_none_or(|hint| !hint.is_empty()));
        assert!(!error.message.contains('\n'), "one line: {error}");
        if (error.line, error.column) == (0, 0) {
            continue;
        }
        let line = error.line as usize;
        assert!((1..=lines.len()).contains(&line), "{error}");
        let length = lines[line - 1].chars().count();
        assert!((1..=length + 1).contains(&(error.column as usize)), "{error} in a line of {length}");
    }
    let shown = errors.to_string();
    assert!(shown.starts_with("fuzz.yaml") && shown.lines().count() > list.len());
}

/// References lead somewhere, and what `/config` shows is the same configuration.
fn check_snapshot(snapshot: &Snapshot, text: &str) {
    assert!(!snapshot.listeners.is_empty());
    for route in &snapshot.routes {
        assert!(!route.name.is_empty());
        match &route.action {
            Action::Forward(forward) => {
                let mut services =
                    forward.service.services().iter().chain(forward.mirror.iter().map(|mirror| &mirror.service));
                assert!(services.all(|service| *service < snapshot.services.len()));
            }
            Action::Redirect(redirect) => assert!((300..400).contains(&redirect.status)),
            Action::Respond(respond) => assert!((200..600).contains(&respond.status)),
        }
    }
    for service in &snapshot.services {
        assert!(service.endpoints.iter().all(|endpoint| endpoint.weight >= 1 && !endpoint.label.is_empty()));
    }
    // A file's text is not shown.
    if text.contains("${file:") {
        return;
    }
    match compiled(&snapshot.redacted) {
        Ok(again) => assert_eq!(again.redacted, snapshot.redacted),
        Err(errors) => panic!("{errors}\n{}", snapshot.redacted),
    }
}
