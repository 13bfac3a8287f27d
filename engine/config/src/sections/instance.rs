//! Instances of services as they register themselves: JSON, with the keys that `endpoints` has.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use ringway_core::members::PRIORITY_MAX;
use ringway_core::strict_json;
use serde_json::{Map, Value as Json};

use super::endpoint::{Address, Endpoint};
use super::metadata::{Label, Metadata};
use crate::decode::{Cx, Decode, Names, Spanned};
use crate::error::{Errors, Sink, Span};
use crate::scalar::Int;
use crate::shape::shape;
use crate::snapshot::{self, EndpointAddress, EndpointTls};
use crate::tree::{Entry, Node, Scalar, Value};
use crate::units::{HOUR_MS, Time};

/// Bytes of an instance.
pub const INSTANCE_BYTES_MAX: usize = 16 * 1024;

shape! {
    /// An instance that registers itself.
    struct InstanceSection {
        address: Spanned<Address>,
        weight: Int<0, 65_535> = "1",
        /// As that of an endpoint.
        priority: Int<0, { PRIORITY_MAX as i64 }> = "0",
        zone: Option<Label>,
        metadata: Metadata = "{}",
        /// How long it stays without a sign of life.
        ttl: Time<1_000, { HOUR_MS }> = "30s",
    }
}

/// An endpoint that somebody has registered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Instance {
    pub endpoint: snapshot::Endpoint,
    /// How long it stays without a sign of life.
    pub ttl: Duration,
}

impl Instance {
    /// Reads an object of JSON in which no key occurs twice. Where `may_be_plain`, an address alone will do.
    ///
    /// # Errors
    /// All that is wrong with it.
    pub fn read(text: &[u8], may_be_plain: bool, tls: Option<&EndpointTls>) -> Result<Self, Errors> {
        let sink = Sink::new(vec!["the instance".into()]);
        let mut cx = Cx::new(sink, Names::default());
        match decode(text, may_be_plain, tls, &mut cx) {
            Some(instance) if cx.sink.is_clean() => Ok(instance),
            _ => Err(cx.sink.into_errors()),
        }
    }

    /// The text that [`Instance::read`] makes the same of, without what is TLS.
    pub fn to_json(&self) -> String {
        let endpoint = &self.endpoint;
        let metadata = endpoint.metadata.iter().map(|(name, value)| (name.to_string(), (&**value).into()));
        // In the order of the alphabet, whatever order the map has.
        let mut stored = Map::new();
        stored.insert("address".into(), (&*endpoint.label).into());
        stored.insert("metadata".into(), Json::Object(metadata.collect()));
        // Gateways of before there were priorities read the others.
        stored
            .extend(Some(endpoint.priority).filter(|level| *level > 0).map(|level| ("priority".into(), level.into())));
        stored.insert("ttl".into(), format!("{}ms", self.ttl.as_millis()).into());
        stored.insert("weight".into(), endpoint.weight.into());
        stored.extend(endpoint.zone.as_deref().map(|zone| ("zone".into(), zone.into())));
        Json::Object(stored).to_string()
    }
}

fn decode(text: &[u8], may_be_plain: bool, tls: Option<&EndpointTls>, cx: &mut Cx) -> Option<Instance> {
    let whole = Span::whole(0);
    if text.len() > INSTANCE_BYTES_MAX {
        cx.error(whole, format!("more than {INSTANCE_BYTES_MAX} bytes"), None);
        return None;
    }
    let text = text.trim_ascii();
    let (written, ttl) = match std::str::from_utf8(text) {
        Ok(plain) if may_be_plain && !plain.starts_with('{') => {
            let scalar = Scalar { text: Cow::Owned(plain.to_owned()), plain: false, origin: None };
            let node = Node { span: whole, value: Value::Scalar(scalar) };
            (Endpoint::plain(Spanned::decode(&node, cx)?), Duration::ZERO)
        }
        _ => {
            let json = strict_json::read(text).map_err(|error| cx.error(whole, format!("no JSON: {error}"), None));
            let section = InstanceSection::decode(&node(json.ok()?), cx)?;
            let InstanceSection { address, weight, priority, zone, metadata, ttl } = section;
            let (weight, priority) = (weight.0 as u32, priority.0 as u8);
            let (zone, metadata) = (zone.map(|zone| zone.0), metadata.0);
            (Endpoint { address, weight, priority, zone, metadata }, ttl.0)
        }
    };
    let address = match &written.address.value {
        Address::Ip(ip) => EndpointAddress::Tcp(*ip),
        Address::Unix(path) => EndpointAddress::Unix(path.clone()),
        Address::Name { .. } => {
            let message = format!("`{}`: an instance has an IP address", written.address.value);
            cx.error(whole, message, "such as `10.0.0.1:8080`");
            return None;
        }
    };
    let label: Arc<str> = written.address.value.to_string().into();
    Some(Instance { endpoint: written.at(label, address, tls.cloned()), ttl })
}

/// JSON as a tree of the configuration. How deep it is the reader has checked.
fn node(json: Json) -> Node {
    let scalar = |text: String, plain| Value::Scalar(Scalar { text: text.into(), plain, origin: None });
    let value = match json {
        Json::Null => scalar("null".into(), true),
        Json::String(text) => scalar(text, false),
        Json::Array(items) => Value::List(items.into_iter().map(node).collect()),
        Json::Object(entries) => {
            let entry = |(key, value)| Entry { key: node(Json::String(key)), value: node(value) };
            Value::Map(entries.into_iter().map(entry).collect())
        }
        Json::Bool(_) | Json::Number(_) => scalar(json.to_string(), true),
    };
    Node { span: Span::whole(0), value }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn read(text: &str, may_be_plain: bool) -> Result<Instance, String> {
        Instance::read(text.as_bytes(), may_be_plain, None).map_err(|errors| errors.to_string())
    }

    #[test]
    fn what_is_written_is_read_again() {
        let text = r#"{"address":"127.0.0.1:80","metadata":{"a":"x y","b":"2"},"priority":2,"ttl":"1500ms","weight":3,"zone":"eu-1"}"#;
        let instance = read(text, false).unwrap();
        assert_eq!((instance.endpoint.weight, instance.endpoint.zone.as_deref()), (3, Some("eu-1")));
        assert_eq!((instance.endpoint.metadata.len(), instance.ttl), (2, Duration::from_millis(1500)));
        assert_eq!(instance.endpoint.priority, 2);
        assert_eq!(instance.to_json(), text);
        let small = read(r#" { "metadata": { "b": 2, "a": true }, "address": "[::1]:80" } "#, false).unwrap();
        let stored = r#"{"address":"[::1]:80","metadata":{"a":"true","b":"2"},"ttl":"30000ms","weight":1}"#;
        assert_eq!(small.to_json(), stored);
        assert_eq!(read(stored, true).unwrap(), small);
    }

    #[test]
    fn an_address_alone_is_an_instance_where_it_may_be() {
        assert_eq!(&*read("127.0.0.1:80\n", true).unwrap().endpoint.label, "127.0.0.1:80");
        assert!(read("127.0.0.1:80", false).is_err());
    }

    #[test]
    fn what_is_wrong_is_said() {
        let long = format!(r#"{{"address":"127.0.0.1:80","metadata":{{"a":"{}"}}}}"#, "x".repeat(INSTANCE_BYTES_MAX));
        for (text, said) in [
            ("", "no JSON"),
            ("[]", "expected a section of keys"),
            ("{}", "the key `address` is missing"),
            (r#"{"address":"127.0.0.1:80","adress":1}"#, "did you mean `address`?"),
            (r#"{"address":"127.0.0.1:80","address":"127.0.0.1:81"}"#, "a key twice"),
            (r#"{"address":"127.0.0.1:80","weight":65536}"#, "a whole number from 0 to 65535"),
            (r#"{"address":"127.0.0.1:80","weight":-1}"#, "a whole number from 0 to 65535"),
            (r#"{"address":"127.0.0.1:80","priority":128}"#, "a whole number from 0 to 127"),
            (r#"{"address":"127.0.0.1:80","priority":"first"}"#, "a whole number from 0 to 127"),
            (r#"{"address":"127.0.0.1:80","backup":true}"#, "unknown key `backup`"),
            (r#"{"address":"127.0.0.1:80","ttl":"999ms"}"#, "a duration from 1s to 1h"),
            (r#"{"address":"127.0.0.1:80","ttl":10}"#, "give it a unit"),
            (r#"{"address":"127.0.0.1:80","zone":""}"#, "from 1 to 64"),
            (r#"{"address":"127.0.0.1:80","zone":{}}"#, "found a section of keys"),
            (r#"{"address":"127.0.0.1:80","metadata":{"a":"\u0000"}}"#, "without control characters"),
            (r#"{"address":"127.0.0.1:80"} x"#, "no JSON"),
            (r#"{"address":"host:80"}"#, "an instance has an IP address"),
            ("host:80", "no JSON"),
            (&long, "more than 16384 bytes"),
        ] {
            let errors = read(text, false).unwrap_err();
            assert!(errors.contains(said), "{text}: {errors}");
        }
        let many: Vec<_> = (0..33).map(|n| format!("\"n{n}\":1")).collect();
        let many = format!(r#"{{"address":"127.0.0.1:80","metadata":{{{}}}}}"#, many.join(","));
        assert!(read(&many, false).unwrap_err().contains("at most 32 names"));
        let large: Vec<_> = (0..17).map(|n| format!("\"n{n}\":\"{}\"", "x".repeat(256))).collect();
        let large = format!(r#"{{"address":"127.0.0.1:80","metadata":{{{}}}}}"#, large.join(","));
        assert!(read(&large, false).unwrap_err().contains("of 4096 bytes together"));
    }
}
