//! Claims as header fields for the service.

use serde_json::{Map, Value};

use super::claim::ClaimPath;
use super::encoding::to_base64url;

/// What the lines of one identity may have together. Lines that would go beyond are an error, never cut off.
pub const HEADER_LINES_BYTES_MAX: usize = 16 * 1024;

/// A header field that tells the service a claim. The client's own fields of that name are to be removed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClaimHeader {
    /// A field name as it is to be written.
    pub name: Box<str>,
    pub claim: ClaimPath,
}

/// The lines of all `headers` whose claim is there, is not null and not empty; `None` if they are too long.
pub(crate) fn lines(headers: &[ClaimHeader], claims: &Map<String, Value>) -> Option<Vec<u8>> {
    let mut lines = Vec::new();
    for header in headers {
        let Some(value) = header.claim.find(claims) else { continue };
        let start = lines.len();
        lines.extend_from_slice(header.name.as_bytes());
        lines.extend_from_slice(b": ");
        let value_start = lines.len();
        write_value(value, &mut lines);
        if lines.len() == value_start {
            lines.truncate(start);
            continue;
        }
        lines.extend_from_slice(b"\r\n");
        if lines.len() > HEADER_LINES_BYTES_MAX {
            return None;
        }
    }
    (lines.len() <= HEADER_LINES_BYTES_MAX).then_some(lines)
}

/// Appends a claim as the value of a field: text, numbers and booleans as they are, arrays of these joined by commas,
/// objects and other arrays as base64url of their JSON, null as nothing.
///
/// `%`, every byte but visible ASCII and inner spaces, and within an array the comma are percent-encoded: no value ends
/// a line, and no two values read the same. A service that trims, splits or strips would otherwise take ` admin`, or the
/// one role `a,admin`, for what they are not.
pub fn write_value(value: &Value, out: &mut Vec<u8>) {
    match value {
        Value::Null => {}
        Value::Bool(bool) => out.extend_from_slice(if *bool { b"true" } else { b"false" }),
        Value::Number(number) => out.extend_from_slice(number.to_string().as_bytes()),
        Value::String(text) => write_text(text, false, out),
        Value::Array(items) if items.iter().all(|item| !item.is_array() && !item.is_object()) => {
            for (index, item) in items.iter().enumerate() {
                if index > 0 {
                    out.push(b',');
                }
                match item {
                    Value::String(text) => write_text(text, true, out),
                    other => write_value(other, out),
                }
            }
        }
        Value::Array(_) | Value::Object(_) => {
            out.extend_from_slice(to_base64url(value.to_string().as_bytes()).as_bytes());
        }
    }
}

fn write_text(text: &str, in_list: bool, out: &mut Vec<u8>) {
    let last = text.len().saturating_sub(1);
    for (at, byte) in text.bytes().enumerate() {
        let plain = match byte {
            b'%' => false,
            b',' => !in_list,
            b' ' => at != 0 && at != last,
            byte => byte.is_ascii_graphic(),
        };
        if plain {
            out.push(byte);
        } else {
            let [.., high, low] = crate::hex::digits(u64::from(byte));
            out.extend_from_slice(&[b'%', high.to_ascii_uppercase(), low.to_ascii_uppercase()]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn written(json: &str) -> String {
        let mut out = Vec::new();
        write_value(&serde_json::from_str(json).unwrap(), &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn values_are_written_in_one_line_and_one_reading() {
        for (json, expected) in [
            (r#""42""#, "42"),
            ("42", "42"),
            ("-1.5", "-1.5"),
            ("true", "true"),
            ("null", ""),
            (r#""Ada Lovelace, Countess""#, "Ada Lovelace, Countess"),
            (r#""a\r\nX-Role: admin""#, "a%0D%0AX-Role: admin"),
            (r#"" admin ""#, "%20admin%20"),
            (r#"" ""#, "%20"),
            (r#""a\u0000\t""#, "a%00%09"),
            (r#""Jürgen 50%""#, "J%C3%BCrgen 50%25"),
            (r#"["a","b,admin",3,true]"#, "a,b%2Cadmin,3,true"),
            ("[]", ""),
            (r#"{"a":1}"#, "eyJhIjoxfQ"),
            ("[[1]]", "W1sxXV0"),
        ] {
            assert_eq!(written(json), expected, "{json}");
        }
    }

    #[test]
    fn lines_are_whole_and_bounded() {
        let claims = serde_json::json!({ "sub": "42", "none": null, "long": "x".repeat(HEADER_LINES_BYTES_MAX) });
        let claims = claims.as_object().unwrap();
        let header = |name: &str, claim| ClaimHeader { name: name.into(), claim: ClaimPath::parse(claim).unwrap() };
        let headers = [header("X-None", "none"), header("X-User-Id", "sub"), header("X-Other", "other")];
        assert_eq!(lines(&headers, claims).unwrap(), b"X-User-Id: 42\r\n");
        assert_eq!(lines(&[header("X-Long", "long")], claims), None);
    }

    proptest! {
        #[test]
        fn text_comes_back_when_it_is_decoded(items: Vec<String>) {
            let mut out = Vec::new();
            write_value(&Value::from(items.clone()), &mut out);
            prop_assert!(out.iter().all(|byte| matches!(byte, b' '..=b'~')));
            let decode = |text: &[u8]| {
                let mut bytes = Vec::new();
                let mut rest = text.iter();
                while let Some(byte) = rest.next() {
                    if *byte == b'%' {
                        let digits = [*rest.next().unwrap(), *rest.next().unwrap()];
                        bytes.push(u8::from_str_radix(std::str::from_utf8(&digits).unwrap(), 16).unwrap());
                    } else {
                        bytes.push(*byte);
                    }
                }
                String::from_utf8(bytes).unwrap()
            };
            let back: Vec<_> = out.split(|byte| *byte == b',').map(decode).collect();
            prop_assert_eq!(back, if items.is_empty() { vec![String::new()] } else { items });
        }
    }
}
