//! Fields of HTTP/2, made of those that are written as HTTP/1.1.

use std::io;

use http::HeaderMap;
use http::header::{HeaderName, HeaderValue};
use ringway_core::http::Name;

/// Appends a field. Its value is a copy of its own: `h2` may keep it in a table for as long as the connection lives, and no more
/// of the head with it.
pub(crate) fn append(fields: &mut HeaderMap, field: &httparse::Header<'_>, name: Name) -> io::Result<()> {
    let mut value = HeaderValue::from_bytes(field.value).map_err(broken)?;
    // Only what comes again is worth a place in the table of HPACK: `h2` looks through all values that it has of a name, and
    // each new one drives out others.
    value.set_sensitive(changes(name, field.name));
    fields.append(HeaderName::from_bytes(field.name.as_bytes()).map_err(broken)?, value);
    Ok(())
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
    fn values_that_change_are_not_indexed() {
        let text = b"A: one\r\nX-Request-Id: 1\r\nRateLimit: 5\r\nb:\r\n\r\n";
        let mut room = [httparse::EMPTY_HEADER; 8];
        let httparse::Status::Complete((_, parsed)) = httparse::parse_headers(text, &mut room).unwrap() else {
            panic!("it is whole")
        };
        let mut fields = HeaderMap::new();
        parsed.iter().for_each(|field| append(&mut fields, field, Name::of(field.name)).unwrap());
        let told: Vec<_> = fields.iter().map(|(name, value)| (name.as_str(), value.as_bytes())).collect();
        let expected: [(&str, &[u8]); 4] = [("a", b"one"), ("x-request-id", b"1"), ("ratelimit", b"5"), ("b", b"")];
        assert_eq!(told, expected);
        let sensitive = |name: &str| fields.get(name).unwrap().is_sensitive();
        assert_eq!(["a", "x-request-id", "ratelimit", "b"].map(sensitive), [false, true, true, false]);
    }
}
