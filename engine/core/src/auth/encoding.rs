//! Base64url and JSON as tokens have them, in one reading only.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::de::{self, Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

/// Decodes base64url (RFC 7515 section 2): no padding, no other character, no bits left over behind the last byte.
pub(crate) fn from_base64url(text: &[u8]) -> Option<Vec<u8>> {
    URL_SAFE_NO_PAD.decode(text).ok()
}

pub(crate) fn to_base64url(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// Reads a JSON object. A member that occurs twice, at any depth, is an error: recipients differ in which one counts.
pub(crate) fn from_json_object(json: &[u8]) -> Option<Map<String, Value>> {
    serde_json::from_slice::<UniqueObject>(json).ok().map(|object| object.0)
}

struct UniqueObject(Map<String, Value>);

impl<'de> Deserialize<'de> for UniqueObject {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Object;
        impl<'de> Visitor<'de> for Object {
            type Value = UniqueObject;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, members: A) -> Result<UniqueObject, A::Error> {
                unique_members(members).map(UniqueObject)
            }
        }
        deserializer.deserialize_map(Object)
    }
}

fn unique_members<'de, A: MapAccess<'de>>(mut members: A) -> Result<Map<String, Value>, A::Error> {
    let mut map = Map::new();
    while let Some((name, value)) = members.next_entry::<String, UniqueValue>()? {
        if map.insert(name, value.0).is_some() {
            return Err(de::Error::custom("a member occurs twice"));
        }
    }
    Ok(map)
}

/// Any JSON value whose objects have no member twice. serde_json bounds the depth, at 128.
struct UniqueValue(Value);

impl<'de> Deserialize<'de> for UniqueValue {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(AnyValue).map(Self)
    }
}

struct AnyValue;

impl<'de> Visitor<'de> for AnyValue {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<Value, E> {
        Number::from_f64(value).map(Value::Number).ok_or_else(|| E::custom("not a number"))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.into()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut array = Vec::new();
        while let Some(item) = items.next_element::<UniqueValue>()? {
            array.push(item.0);
        }
        Ok(Value::Array(array))
    }

    fn visit_map<A: MapAccess<'de>>(self, members: A) -> Result<Value, A::Error> {
        unique_members(members).map(Value::Object)
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
