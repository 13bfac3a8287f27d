//! Heads of requests.

use ringway_core::http::{
    Framing, HEADERS_MAX, HeadLines, HeadScan, HeadStorage, Name, RequestError, RequestHead, Target, Version,
    leading_empty_lines,
};

use crate::lines;

pub const DICTIONARY: &[&str] = &[
    "\r\n",
    "\r\n\r\n",
    "\n",
    "\r",
    " ",
    "\t",
    "\0",
    ":",
    ": ",
    ",",
    "Host: ",
    "Host: a\r\n",
    "\r\nHost: b\r\n",
    "Content-Length: ",
    "Content-Length: 5\r\n",
    "Transfer-Encoding: ",
    "Transfer-Encoding: chunked\r\n",
    "chunked",
    "identity",
    "gzip, chunked",
    "Connection: ",
    "close",
    "keep-alive",
    "Upgrade",
    "Expect: 100-continue\r\n",
    "TE: ",
    "trailers",
    "GET ",
    "POST ",
    "OPTIONS ",
    "CONNECT ",
    "HEAD ",
    "/",
    "*",
    "?",
    "#",
    "%2e",
    "http://",
    "https://a:1/",
    "[::1]",
    "@",
    ":80",
    " HTTP/1.1\r\n",
    " HTTP/1.0\r\n",
    "HTTP/2.0",
    "X-Forwarded-For: ",
    "\u{e9}",
    "\u{ff}",
];

/// Any bytes, as they come from a connection.
pub fn target(bytes: &[u8]) {
    let empty = leading_empty_lines(bytes);
    assert!(bytes[..empty].chunks(2).all(|line| line == b"\r\n") && !bytes[empty..].starts_with(b"\r\n"));
    let bytes = &bytes[empty..];
    if let HeadScan::Complete(length) = lines::scan(bytes) {
        check(&bytes[..length]);
    }
}

fn check(head: &[u8]) {
    let mut storage = HeadStorage::new();
    let Ok(request) = RequestHead::parse(head, HEADERS_MAX, &mut storage) else { return };
    let (first, fields) = lines::read(head);

    // The request line: three words, a blank between them (RFC 9112 section 3).
    let words: Vec<_> = first.split(' ').collect();
    let [method, target, version] = words.as_slice() else { panic!("a request line of {} words", words.len()) };
    assert!(lines::is_token(method.as_bytes()) && *method != "CONNECT");
    assert_eq!(request.method, *method);
    assert_eq!(*version, if request.version == Version::Http11 { "HTTP/1.1" } else { "HTTP/1.0" });
    check_target(&request, target);

    lines::check_fields(HeadLines { head, headers: request.headers, names: request.names }, &fields);
    for (header, name) in request.headers.iter().zip(request.names) {
        assert!(request.has(*name) && request.value(*name).is_some(), "{}", header.name);
    }
    assert_eq!(request.framing, lines::framing(&fields, request.version).unwrap_or(Framing::None));
    assert_eq!((request.keep_alive, request.has_connection_fields), lines::persistence(&fields, request.version));
    let expects = lines::values(&fields, "expect");
    assert!(expects.iter().all(|value| value.eq_ignore_ascii_case(b"100-continue")));
    let may_expect = request.version == Version::Http11 && request.framing != Framing::None;
    assert_eq!(request.expects_continue, may_expect && !expects.is_empty());
    assert_eq!(request.user_agent, lines::values(&fields, "user-agent").last().copied());
    check_limit(head, request.headers.len());
    check_written(head, &request);
}

/// Of `Host` and the target's authority (RFC 9112 section 3.2).
fn check_target(request: &RequestHead<'_, '_>, written: &str) {
    let hosts: Vec<_> = request.values(Name::Host).collect();
    assert!(hosts.len() == 1 || (hosts.is_empty() && request.version == Version::Http10));
    match request.target {
        Target::Asterisk => assert!(request.method == "OPTIONS" && (written == "*" || written.contains("://"))),
        Target::Path { path, query } => {
            assert_eq!(path.first(), Some(&b'/'));
            assert!(!path.contains(&b'?') && !query.is_some_and(|query| query.contains(&b'#')));
            let mut whole = String::from_utf8(path.to_vec()).expect("a target is text");
            if let Some(query) = query {
                whole.push('?');
                whole.push_str(std::str::from_utf8(query).expect("a query is ASCII"));
            }
            match written.split_once("://").filter(|_| !written.starts_with('/')) {
                None => assert_eq!(written, whole),
                Some((scheme, rest)) => {
                    assert!(scheme.eq_ignore_ascii_case("http") || scheme.eq_ignore_ascii_case("https"));
                    let rest = rest.strip_prefix(std::str::from_utf8(request.authority).expect("an authority is text"));
                    assert!(rest == Some(&whole) || rest == whole.strip_prefix('/'), "{rest:?} {whole}");
                }
            }
        }
    }
    if written.starts_with('/') || written == "*" {
        assert_eq!(request.authority, hosts.first().copied().unwrap_or_default());
    }
    // What it is compared with, and written into header lines, must not end or divide them.
    let is_safe = |byte: &u8| byte.is_ascii_graphic() && !b"/?#@\\\"<>".contains(byte);
    assert!(request.authority.iter().all(is_safe), "{}", request.authority.escape_ascii());
    let port = request.authority.strip_prefix(request.host()).expect("a host begins its authority");
    assert!(port.is_empty() || (port[0] == b':' && port[1..].iter().all(u8::is_ascii_digit)));
}

/// One field fewer than there are is too few.
fn check_limit(head: &[u8], count: usize) {
    let mut storage = HeadStorage::new();
    assert!(RequestHead::parse(head, count, &mut storage).is_ok());
    if let Some(fewer) = count.checked_sub(1) {
        let mut storage = HeadStorage::new();
        assert_eq!(RequestHead::parse(head, fewer, &mut storage).err(), Some(RequestError::TooManyHeaders));
    }
}

/// Written as the data plane writes it, a head is read as what it was.
fn check_written(head: &[u8], request: &RequestHead<'_, '_>) {
    if request.headers.len() == HEADERS_MAX {
        return;
    }
    let mut out = format!("{} ", request.method).into_bytes();
    match request.target {
        Target::Asterisk => out.push(b'*'),
        Target::Path { path, query } => {
            out.extend_from_slice(path);
            if let Some(query) = query {
                out.push(b'?');
                out.extend_from_slice(query);
            }
        }
    }
    out.extend_from_slice(b" HTTP/1.1\r\nHost: ");
    out.extend_from_slice(request.authority);
    out.extend_from_slice(b"\r\n");
    let lines = HeadLines { head, headers: request.headers, names: request.names };
    lines.copy(&mut out, |name, _| name != Name::Host);
    out.extend_from_slice(b"\r\n");

    assert_eq!(lines::scan(&out), HeadScan::Complete(out.len()));
    let mut storage = HeadStorage::new();
    let again = RequestHead::parse(&out, HEADERS_MAX, &mut storage).expect("what is written is accepted");
    assert_eq!((again.method, again.target, again.framing), (request.method, request.target, request.framing));
    assert_eq!((again.authority, again.host()), (request.authority, request.host()));
    assert_eq!(again.user_agent, request.user_agent);
    let others = |request: &RequestHead<'_, '_>| {
        let fields = request.headers.iter().filter(|header| Name::of(header.name) != Name::Host);
        fields.map(|header| (header.name.to_owned(), header.value.to_vec())).collect::<Vec<_>>()
    };
    assert_eq!(others(&again), others(request));
}
