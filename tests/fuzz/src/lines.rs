//! A head as the grammar of RFC 9112 has it, read the naive way: what the codec makes of it must agree.

use ringway_core::http::{Framing, HeadLines, HeadScan, HeadScanner, Name, Version};

use crate::pieces::{digest, splits};

/// Looks for the end of a head, in one go and in pieces: the result must be the same.
pub(crate) fn scan(bytes: &[u8]) -> HeadScan {
    let whole = HeadScanner::default().scan(bytes);
    for split in splits(bytes) {
        let (mut scanner, mut end, mut found) = (HeadScanner::default(), 0, HeadScan::Partial);
        for size in &split {
            end += size;
            found = scanner.scan(&bytes[..end]);
            if found != HeadScan::Partial {
                break;
            }
        }
        assert_eq!(found, whole, "scanned in pieces of {split:?}");
        if let HeadScan::Complete(length) = found {
            assert!(length <= end, "the end was found before it came");
        }
    }
    whole
}

/// The first line and the fields of a whole head. Panics where a line is not one of RFC 9112 section 5: the codec must
/// have refused such a head.
pub(crate) fn read(head: &[u8]) -> (&str, Vec<(&str, &[u8])>) {
    let (first, fields) = read_lossy(head);
    (std::str::from_utf8(first).expect("a first line is text"), fields)
}

/// The same where the first line may be in any encoding, as a reason phrase is.
pub(crate) fn read_lossy(head: &[u8]) -> (&[u8], Vec<(&str, &[u8])>) {
    let text = head.strip_suffix(b"\r\n\r\n").expect("a head ends with an empty line");
    assert!(!text.contains(&0), "NUL in a head");
    let mut lines = split_lines(text).into_iter();
    let first = lines.next().unwrap_or_default();
    let fields = lines.map(|line| {
        let colon = line.iter().position(|byte| *byte == b':').expect("a field line has a colon");
        let (name, value) = line.split_at(colon);
        assert!(is_token(name), "a field name is a token: {}", name.escape_ascii());
        let value = trim(&value[1..]);
        let is_text = |byte: &u8| *byte == b'\t' || (*byte >= b' ' && *byte != 0x7f);
        assert!(value.iter().all(is_text), "a field value has controls: {}", value.escape_ascii());
        (std::str::from_utf8(name).expect("a token is ASCII"), value)
    });
    (first, fields.collect())
}

/// At CR LF; neither may stand alone.
pub(crate) fn split_lines(text: &[u8]) -> Vec<&[u8]> {
    let mut lines = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.iter().position(|byte| matches!(byte, b'\r' | b'\n')) {
        assert_eq!(rest.get(at..at + 2), Some(&b"\r\n"[..]), "a bare CR or LF");
        lines.push(&rest[..at]);
        rest = &rest[at + 2..];
    }
    lines.push(rest);
    lines
}

/// RFC 9110 section 5.6.2.
pub(crate) fn is_token(text: &[u8]) -> bool {
    !text.is_empty() && text.iter().all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte))
}

/// Optional whitespace (RFC 9110 section 5.6.3) off both ends.
pub(crate) fn trim(mut value: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] | [rest @ .., b' ' | b'\t'] = value {
        value = rest;
    }
    value
}

/// All values of a field.
pub(crate) fn values<'a>(fields: &[(&str, &'a [u8])], name: &str) -> Vec<&'a [u8]> {
    fields.iter().filter(|(have, _)| have.eq_ignore_ascii_case(name)).map(|(_, value)| *value).collect()
}

/// How the fields frame a body (RFC 9112 section 6.3), were there any doubt, the head must not have been accepted.
pub(crate) fn framing(fields: &[(&str, &[u8])], version: Version) -> Option<Framing> {
    let (lengths, codings) = (values(fields, "content-length"), values(fields, "transfer-encoding"));
    match (lengths.as_slice(), codings.as_slice()) {
        ([], []) => None,
        ([length], []) => {
            assert!(length.iter().all(u8::is_ascii_digit), "a length is digits");
            let text = std::str::from_utf8(length).expect("digits");
            let length = text.parse().expect("a length that fits");
            Some(if length == 0 { Framing::None } else { Framing::Length(length) })
        }
        ([], [coding]) => {
            assert!(coding.eq_ignore_ascii_case(b"chunked"), "a coding other than chunked");
            assert_eq!(version, Version::Http11, "a coding in HTTP/1.0");
            Some(Framing::Chunked)
        }
        _ => panic!("more than one way to frame the body: {lengths:?} {codings:?}"),
    }
}

/// Whether the connection lives on (RFC 9112 section 9.3), and whether `Connection` names other fields.
pub(crate) fn persistence(fields: &[(&str, &[u8])], version: Version) -> (bool, bool) {
    let lists = values(fields, "connection");
    let tokens = || lists.iter().flat_map(|value| value.split(|byte| *byte == b',')).map(<[u8]>::trim_ascii);
    let has = |wanted: &str| tokens().any(|token| token.eq_ignore_ascii_case(wanted.as_bytes()));
    let is_own = |token: &[u8]| token.eq_ignore_ascii_case(b"close") || token.eq_ignore_ascii_case(b"keep-alive");
    let alive = (version == Version::Http11 || has("keep-alive")) && !has("close");
    (alive, tokens().any(|token| !token.is_empty() && !is_own(token)))
}

/// The parsed fields are those of the naive reading, under their right names, and any choice of them that is written
/// again reads as just that choice.
pub(crate) fn check_fields(lines: HeadLines<'_>, fields: &[(&str, &[u8])]) {
    let parsed: Vec<_> = lines.headers.iter().map(|header| (header.name, header.value)).collect();
    assert_eq!(parsed, fields);
    assert_eq!(lines.names, fields.iter().map(|(name, _)| Name::of(name)).collect::<Vec<_>>());
    let choice = digest(lines.head);
    for choice in [u64::MAX, choice, !choice, 0] {
        let is_chosen = |index: usize| choice >> (index % 64) & 1 == 1;
        let (mut out, mut index) = (b"before".to_vec(), 0);
        lines.copy(&mut out, |_, _| {
            index += 1;
            is_chosen(index - 1)
        });
        assert_eq!(index, fields.len(), "each field is asked for once");
        let mut head = out.strip_prefix(b"before").expect("copying appends").to_vec();
        head.extend_from_slice(b"\r\n");
        let mut room = vec![httparse::EMPTY_HEADER; fields.len()];
        let (length, again) = httparse::parse_headers(&head, &mut room).expect("fields").unwrap();
        assert_eq!(length, head.len());
        let chosen = fields.iter().enumerate().filter(|(index, _)| is_chosen(*index)).map(|(_, field)| *field);
        assert!(
            again.iter().map(|header| (header.name, header.value)).eq(chosen),
            "what is written is what was chosen"
        );
    }
}
