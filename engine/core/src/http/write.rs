//! Writing heads again: what is passed on is copied in as few pieces as it stands in.

use super::{Name, list};

/// The header lines of a parsed head, as they stand in its bytes.
#[derive(Clone, Copy)]
pub struct HeadLines<'a> {
    pub head: &'a [u8],
    pub headers: &'a [httparse::Header<'a>],
    pub names: &'a [Name],
}

impl HeadLines<'_> {
    /// Appends the lines that `keep` says yes to, in order. Lines that stand side by side are copied in one go.
    ///
    /// Hot; watched by the benchmark `head_lines`.
    #[inline]
    pub fn copy(&self, out: &mut Vec<u8>, mut keep: impl FnMut(Name, &httparse::Header<'_>) -> bool) {
        let base = self.head.as_ptr() as usize;
        let mut run: Option<usize> = None;
        for (header, name) in self.headers.iter().zip(self.names) {
            let start = (header.name.as_ptr() as usize).wrapping_sub(base);
            match (keep(*name, header), run) {
                (true, None) => run = Some(start),
                (false, Some(from)) => {
                    out.extend_from_slice(self.head.get(from..start).unwrap_or_default());
                    run = None;
                }
                _ => {}
            }
        }
        if let Some(from) = run {
            // Up to the empty line that ends the head.
            let end = self.head.len().saturating_sub(2);
            out.extend_from_slice(self.head.get(from..end).unwrap_or_default());
        }
    }
}

/// Whether one of a field's comma-separated values is this token, in any case.
pub fn list_has_token<'v>(values: impl Iterator<Item = &'v [u8]>, token: &[u8]) -> bool {
    values.flat_map(list).any(|element| element.eq_ignore_ascii_case(token))
}

/// Fields besides those of [`Name::is_forbidden_in_trailers`] that ask or tell something that must be known before the
/// content (RFC 9110 section 6.5.1): who asks, under which condition, what the content is, what to do with the answer.
/// A recipient that merges trailers into the header section would act on them unchecked.
const KNOWN_BEFORE_CONTENT: [&str; 24] = [
    "age",
    "authorization",
    "cache-control",
    "content-encoding",
    "content-location",
    "content-range",
    "content-type",
    "cookie",
    "expires",
    "if-match",
    "if-modified-since",
    "if-none-match",
    "if-range",
    "if-unmodified-since",
    "location",
    "pragma",
    "range",
    "retry-after",
    "set-cookie",
    "vary",
    "warning",
    "www-authenticate",
    "x-forwarded-port",
    "x-real-ip",
];

fn may_stand_in_trailers(name: &str) -> bool {
    !Name::of(name).is_forbidden_in_trailers()
        && !KNOWN_BEFORE_CONTENT.iter().any(|known| known.eq_ignore_ascii_case(name))
}

/// Appends the fields of a trailer section that may be passed on (RFC 9110 section 6.5.1), and the empty line that
/// ends it. `None` where the section is malformed.
pub fn write_trailers(raw: &[u8], keep: impl Fn(&str) -> bool, out: &mut Vec<u8>) -> Option<()> {
    if !raw.is_empty() {
        let mut headers = [httparse::EMPTY_HEADER; 64];
        let mut section = Vec::with_capacity(raw.len() + 2);
        section.extend_from_slice(raw);
        section.extend_from_slice(b"\r\n");
        let Ok(httparse::Status::Complete((_, headers))) = httparse::parse_headers(&section, &mut headers) else {
            return None;
        };
        for header in headers.iter().filter(|header| may_stand_in_trailers(header.name) && keep(header.name)) {
            out.extend_from_slice(header.name.as_bytes());
            out.extend_from_slice(b": ");
            out.extend_from_slice(header.value);
            out.extend_from_slice(b"\r\n");
        }
    }
    out.extend_from_slice(b"\r\n");
    Some(())
}

#[cfg(test)]
mod tests {
    use super::super::{HeadStorage, RequestHead};
    use super::*;

    #[test]
    fn keeps_lines_as_they_were() {
        let bytes = b"GET / HTTP/1.1\r\nHost: a\r\nA:  1 \r\nConnection: x\r\nb: 2\r\nC: 3\r\n\r\n";
        let mut storage = HeadStorage::new();
        let head = RequestHead::parse(bytes, 100, &mut storage).unwrap_or_else(|error| panic!("{error}"));
        let lines = HeadLines { head: bytes, headers: head.headers, names: head.names };
        let mut out = Vec::new();
        lines.copy(&mut out, |name, _| !matches!(name, Name::Host | Name::Connection));
        assert_eq!(String::from_utf8_lossy(&out), "A:  1 \r\nb: 2\r\nC: 3\r\n");
        out.clear();
        lines.copy(&mut out, |_, header| header.name != "C");
        assert!(out.ends_with(b"b: 2\r\n") && out.starts_with(b"Host"));
    }

    #[test]
    fn trailers_lose_what_must_not_stand_there() {
        let mut out = Vec::new();
        let raw = b"X-Sum: 1\r\nContent-Length: 3\r\nHost: evil\r\nAuthorization: x\r\nset-cookie: y\r\n";
        write_trailers(raw, |_| true, &mut out).unwrap();
        assert_eq!(out, b"X-Sum: 1\r\n\r\n");
        assert_eq!(write_trailers(b"no colon\r\n", |_| true, &mut Vec::new()), None);
        out.clear();
        write_trailers(b"X-User: admin\r\nX-Sum: 1\r\n", |name| name != "X-User", &mut out).unwrap();
        assert_eq!(out, b"X-Sum: 1\r\n\r\n");
    }
}
