//! Base64url and JSON as tokens have them, in one reading only.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Map, Value};

use crate::strict_json;

/// Decodes base64url (RFC 7515 section 2): no padding, no other character, no bits left over behind the last byte.
pub(crate) fn from_base64url(text: &[u8]) -> Option<Vec<u8>> {
    URL_SAFE_NO_PAD.decode(text).ok()
}

pub(crate) fn to_base64url(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// Reads a JSON object. A member that occurs twice, at any depth, is an error: recipients differ in which one counts.
pub(crate) fn from_json_object(json: &[u8]) -> Option<Map<String, Value>> {
    match strict_json::read(json) {
        Ok(Value::Object(members)) => Some(members),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn base64url_has_one_form() {
        assert_eq!(from_base64url(b"YQ").unwrap(), b"a");
        assert_eq!(from_base64url(b"-_-_").unwrap(), [0xfb, 0xff, 0xbf]);
        for bad in ["YQ==", "YR", "Y", "YQ\n", " YQ", "+/+/", "Y.Q", "YWJ", "YQ="] {
            assert_eq!(from_base64url(bad.as_bytes()), None, "{bad}");
        }
    }

    #[test]
    fn a_member_that_occurs_twice_is_an_error_at_any_depth() {
        let good = r#"{"a":1,"b":{"a":[1.5,-2,null,true,"x",{"c":{}}]}}"#;
        assert_eq!(Value::Object(from_json_object(good.as_bytes()).unwrap()).to_string(), good);
        for bad in [
            r#"{"a":1,"a":1}"#,
            r#"{"a":1,"\u0061":2}"#,
            r#"{"a":{"b":1,"b":2}}"#,
            r#"{"a":[{"b":1,"b":2}]}"#,
            "[]",
            "1",
            "null",
            "{} {}",
            "{",
            "",
            "\u{feff}{}",
            r#"{"a":NaN}"#,
            r#"{"a":1e999}"#,
        ] {
            assert_eq!(from_json_object(bad.as_bytes()), None, "{bad}");
        }
        let deep = [r#"{"a":"#.repeat(200), "1".into(), "}".repeat(200)].concat();
        assert_eq!(from_json_object(deep.as_bytes()), None);
    }

    proptest! {
        #[test]
        fn what_is_read_is_what_was_written(bytes: Vec<u8>) {
            let text = to_base64url(&bytes);
            prop_assert_eq!(from_base64url(text.as_bytes()), Some(bytes.clone()));
            // Any bytes are either the one form of what they decode to, or refused.
            if let Some(decoded) = from_base64url(&bytes) {
                prop_assert_eq!(to_base64url(&decoded).into_bytes(), bytes);
            }
        }
    }
}
