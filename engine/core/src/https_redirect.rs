//! Where a request in the clear should have gone.

use crate::http::host_of;
use crate::template::{append_encoded, is_uri_byte};

/// The port that `https:` URLs do without (RFC 9110 section 4.2.2).
const HTTPS_PORT: u16 = 443;

/// Writes the `https:` URL of a request: the host of its authority, which was checked when the head was read, with this
/// port, and its path and query as they came. What no URI may have is encoded. False, and nothing is written, where the
/// request names no host.
pub fn write_location(authority: &[u8], port: u16, path: &[u8], query: Option<&[u8]>, out: &mut Vec<u8>) -> bool {
    let host = host_of(authority);
    if host.is_empty() {
        return false;
    }
    out.extend_from_slice(b"https://");
    append_encoded(host, |byte| is_uri_byte(byte) || matches!(byte, b'[' | b']'), out);
    if port != HTTPS_PORT {
        out.push(b':');
        out.extend_from_slice(itoa::Buffer::new().format(port).as_bytes());
    }
    append_encoded(path, is_uri_byte, out);
    if let Some(query) = query {
        out.push(b'?');
        // A query may hold question marks, and brackets are common.
        append_encoded(query, |byte| is_uri_byte(byte) || byte == b'?', out);
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn location(authority: &str, port: u16, path: &[u8], query: Option<&[u8]>) -> Option<String> {
        let mut out = Vec::new();
        let written = write_location(authority.as_bytes(), port, path, query, &mut out);
        assert!(written || out.is_empty());
        written.then(|| String::from_utf8(out).unwrap())
    }

    #[test]
    fn the_port_is_replaced_and_the_rest_stays() {
        for (authority, port, path, query, expected) in [
            ("a.example", 443, "/", None, "https://a.example/"),
            ("a.example:80", 443, "/x%2fy/../z", Some("q=1?&r=%20"), "https://a.example/x%2fy/../z?q=1?&r=%20"),
            ("a.example:8080", 8443, "//b.example/", Some(""), "https://a.example:8443//b.example/?"),
            ("[2001:db8::1]:80", 443, "/", None, "https://[2001:db8::1]/"),
            ("[::1]", 8443, "/", None, "https://[::1]:8443/"),
        ] {
            let query = query.map(str::as_bytes);
            assert_eq!(location(authority, port, path.as_bytes(), query).as_deref(), Some(expected));
        }
        assert_eq!(location("", 443, b"/", None), None);
        assert_eq!(location(":80", 443, b"/", None), None);
    }

    proptest! {
        #[test]
        fn no_byte_ends_the_host_or_the_line(path: Vec<u8>, query: Option<Vec<u8>>) {
            let path = [b"/", &path[..]].concat();
            let text = location("a.example", 443, &path, query.as_deref()).unwrap();
            let rest = text.strip_prefix("https://a.example/").unwrap();
            prop_assert!(rest.bytes().all(|byte| byte.is_ascii_graphic() && !b"\"#<>\\".contains(&byte)));
            prop_assert_eq!(rest.contains('?'), query.is_some());
        }
    }
}
