//! Fields of HTTP/2, made of those that are written as HTTP/1.1.

use std::io;

use bytes::Bytes;
use http::HeaderMap;
use http::header::{HeaderName, HeaderValue};
use ringway_core::http::Name;

/// A head or a trailer section whose fields go on. They share one copy of it.
pub(crate) struct Written<'h> {
    text: &'h [u8],
    copy: Bytes,
}

impl<'h> Written<'h> {
    pub(crate) fn new(text: &'h [u8]) -> Self {
        Self { text, copy: Bytes::copy_from_slice(text) }
    }

    /// Appends one of its fields.
    pub(crate) fn append(&self, fields: &mut HeaderMap, field: &httparse::Header<'_>, name: Name) -> io::Result<()> {
        let start = (field.value.as_ptr() as usize).wrapping_sub(self.text.as_ptr() as usize);
        let end = start.saturating_add(field.value.len());
        let value = match end <= self.copy.len() {
            true => self.copy.slice(start..end),
            false => Bytes::copy_from_slice(field.value),
        };
        let mut value = HeaderValue::from_maybe_shared(value).map_err(broken)?;
        // Only what comes again is worth a place in the table of HPACK: `h2` looks through all values that it has of a name, and
        // each new one drives out others.
        value.set_sensitive(changes(name, field.name));
        fields.append(HeaderName::from_bytes(field.name.as_bytes()).map_err(broken)?, value);
        Ok(())
    }
}

/// Whether the field's value is another one in each message, as a rule.
fn changes(name: Name, text: &str) -> bool {
    let starts = |with: &str| text.get(..with.len()).is_some_and(|start| start.eq_ignore_ascii_case(with));
    match name {
        Name::B3 | Name::Traceparent | Name::Tracestate | Name::XB3 | Name::XForwardedFor | Name::XRequestId => true,
        Name::Other => starts("ratelimit") || starts("x-ratelimit-"),
        _ => false,
    }
}

pub(crate) fn broken(error: impl std::fmt::Display) -> io::Error {
    io::Error::other(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_share_the_head_and_those_that_change_are_not_indexed() {
        let text = b"A: one\r\nX-Request-Id: 1\r\nRateLimit: 5\r\nb:\r\n\r\n";
        let mut room = [httparse::EMPTY_HEADER; 8];
        let httparse::Status::Complete((_, parsed)) = httparse::parse_headers(text, &mut room).unwrap() else {
            panic!("it is whole")
        };
        let (written, mut fields) = (Written::new(text), HeaderMap::new());
        for field in parsed {
            written.append(&mut fields, field, Name::of(field.name)).unwrap();
        }
        let foreign = httparse::Header { name: "c", value: b"elsewhere" };
        written.append(&mut fields, &foreign, Name::Other).unwrap();
        let told: Vec<_> = fields.iter().map(|(name, value)| (name.as_str(), value.as_bytes())).collect();
        let expected: [(&str, &[u8]); 5] =
            [("a", b"one"), ("x-request-id", b"1"), ("ratelimit", b"5"), ("b", b""), ("c", b"elsewhere")];
        assert_eq!(told, expected);
        let sensitive = |name: &str| fields.get(name).unwrap().is_sensitive();
        assert_eq!(["a", "x-request-id", "ratelimit", "b"].map(sensitive), [false, true, true, false]);
    }
}
