//! The shape of a scenario file. Values stay texts with their places; `compile` makes sense of them.

use std::fmt;

use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use serde_saphyr::Spanned;

use super::text::Text;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct File {
    pub(crate) target: Text,
    pub(crate) load: Spanned<Load>,
    pub(crate) warmup: Option<Text>,
    pub(crate) duration: Option<Text>,
    pub(crate) connections: Option<Text>,
    pub(crate) threads: Option<Text>,
    #[serde(default)]
    pub(crate) cores: Vec<Text>,
    pub(crate) keep_alive: Option<Text>,
    pub(crate) timeout: Option<Text>,
    pub(crate) seed: Option<Text>,
    #[serde(default)]
    pub(crate) headers: Headers,
    pub(crate) requests: Spanned<Vec<Spanned<Request>>>,
    #[serde(default)]
    pub(crate) clients: Clients,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Load {
    Open(Open),
    Closed,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Open {
    pub(crate) rate: Option<Text>,
    pub(crate) arrivals: Option<Text>,
    pub(crate) phases: Option<Vec<Phase>>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Phase {
    #[serde(rename = "for")]
    pub(crate) length: Text,
    pub(crate) rate: Option<Text>,
    pub(crate) ramp: Option<Text>,
    pub(crate) steps: Option<Vec<Text>>,
    pub(crate) spike: Option<Spike>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Spike {
    pub(crate) rate: Text,
    pub(crate) after: Text,
    #[serde(rename = "for")]
    pub(crate) length: Text,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Request {
    pub(crate) name: Option<Text>,
    pub(crate) weight: Option<Text>,
    pub(crate) method: Option<Text>,
    pub(crate) path: Text,
    #[serde(default)]
    pub(crate) headers: Headers,
    pub(crate) body: Option<Text>,
    pub(crate) body_file: Option<Text>,
    pub(crate) body_size: Option<Text>,
    pub(crate) expect: Option<Vec<Text>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Clients {
    pub(crate) count: Option<Text>,
    pub(crate) distribution: Option<Distribution>,
    pub(crate) addresses: Option<Text>,
    pub(crate) api_key: Option<ApiKey>,
    pub(crate) jwt: Option<Jwt>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Distribution {
    Uniform,
    Zipf(Text),
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ApiKey {
    pub(crate) header: Option<Text>,
    pub(crate) value: Text,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Jwt {
    pub(crate) algorithm: Text,
    pub(crate) secret: Option<Text>,
    pub(crate) key: Option<Text>,
    pub(crate) key_id: Option<Text>,
    pub(crate) issuer: Option<Text>,
    pub(crate) audience: Option<Text>,
    pub(crate) subject: Option<Text>,
    pub(crate) claims: Option<Spanned<serde_json::Map<String, Value>>>,
    pub(crate) ttl: Option<Text>,
    pub(crate) header: Option<Text>,
}

/// Names and values in the order of the file.
#[derive(Debug, Default)]
pub(crate) struct Headers(pub(crate) Vec<(Text, Text)>);

impl<'de> Deserialize<'de> for Headers {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Pairs;

        impl<'de> Visitor<'de> for Pairs {
            type Value = Headers;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map from header names to values")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Headers, A::Error> {
                let mut pairs = Vec::new();
                while let Some(pair) = map.next_entry()? {
                    pairs.push(pair);
                }
                Ok(Headers(pairs))
            }
        }

        deserializer.deserialize_map(Pairs)
    }
}
