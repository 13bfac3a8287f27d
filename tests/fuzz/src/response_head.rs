//! Heads of answers.

use ringway_core::http::{Framing, HEADERS_MAX, HeadLines, HeadScan, HeadStorage, Name, ResponseHead, Version};

use crate::lines;

pub const DICTIONARY: &[&str] = &[
    "\r\n",
    "\r\n\r\n",
    "\n",
    "\r",
    " ",
    "\t",
    "\0",
    ": ",
    ",",
    "HTTP/1.1 ",
    "HTTP/1.0 ",
    "HTTP/1.1 200 OK\r\n",
    "100",
    "101",
    "103",
    "204",
    "304",
    "099",
    "999",
    "1000",
    "Content-Length: ",
    "Content-Length: 5\r\n",
    "Transfer-Encoding: chunked\r\n",
    "chunked",
    "gzip",
    "Connection: close\r\n",
    "keep-alive",
    "Date: ",
    "\u{e9}",
];

/// Any bytes, as they come from a service.
pub fn target(bytes: &[u8]) {
    if let HeadScan::Complete(length) = lines::scan(bytes) {
        let head = &bytes[..length];
        let accepted = [false, true].map(|to_head| check(head, to_head));
        assert_eq!(accepted[0], accepted[1], "HEAD changes the framing, not what is accepted");
    }
}

fn check(head: &[u8], to_head: bool) -> bool {
    let mut storage = HeadStorage::new();
    let Ok(answer) = ResponseHead::parse(head, to_head, &mut storage) else { return false };
    let (first, fields) = lines::read_lossy(head);

    // The status line (RFC 9112 section 4): the reason may be missing, and so may the blank before it.
    let version = if answer.version == Version::Http11 { "HTTP/1.1 " } else { "HTTP/1.0 " };
    let rest = first.strip_prefix(version.as_bytes()).expect("a version begins the line");
    let (status, reason) = rest.split_at(3);
    assert_eq!(status, answer.status.to_string().as_bytes());
    assert!((100..=999).contains(&answer.status));
    assert!(reason.is_empty() || reason[0] == b' ');
    // It is written into the client's head.
    assert!(answer.reason.bytes().all(|byte| byte == b'\t' || (byte >= b' ' && byte != 0x7f)));

    lines::check_fields(HeadLines { head, headers: answer.headers, names: answer.names }, &fields);
    let framed = lines::framing(&fields, answer.version);
    let bodiless = to_head || matches!(answer.status, 100..=199 | 204 | 304);
    assert_eq!(answer.framing, if bodiless { Framing::None } else { framed.unwrap_or(Framing::Close) });
    let (alive, has_connection_fields) = lines::persistence(&fields, answer.version);
    assert_eq!(answer.keep_alive, alive && answer.framing != Framing::Close);
    assert_eq!(answer.has_connection_fields, has_connection_fields);
    assert_eq!(answer.has_date, answer.values(Name::Date).next().is_some());
    check_written(head, &answer, to_head);
    true
}

/// Written as the data plane writes it, without what concerns one connection, a head is read as what it was.
fn check_written(head: &[u8], answer: &ResponseHead<'_, '_>, to_head: bool) {
    if answer.headers.len() == HEADERS_MAX {
        return;
    }
    let mut out = format!("HTTP/1.1 {} {}\r\n", answer.status, answer.reason).into_bytes();
    let lines = HeadLines { head, headers: answer.headers, names: answer.names };
    lines.copy(&mut out, |name, _| !name.is_hop_by_hop());
    if answer.framing == Framing::Chunked {
        out.extend_from_slice(b"Transfer-Encoding: chunked\r\n");
    }
    out.extend_from_slice(b"\r\n");
    assert_eq!(lines::scan(&out), HeadScan::Complete(out.len()));
    let mut storage = HeadStorage::new();
    let again = ResponseHead::parse(&out, to_head, &mut storage).expect("what is written is accepted");
    assert_eq!((again.status, again.reason, again.framing), (answer.status, answer.reason, answer.framing));
    assert!(!again.has_connection_fields);
}
