//! Lists that others keep in Redis: API keys, and the IDs of tokens that do not hold any more.

use std::time::Duration;

use ringway_core::auth::Source;
use schemars::{Schema, SchemaGenerator, json_schema};

use super::authenticator::read;
use crate::decode::{Cx, Decode, Spanned};
use crate::error::Span;
use crate::scalar::{or_variable, parsed};
use crate::shape::shape;
use crate::snapshot::{self, RedisList, RevokedSource};
use crate::tree::{Node, Value};
use crate::units::{HOUR_MS, Time};

shape! {
    /// Where token IDs stand that do not hold any more. Exactly one of its keys.
    pub(crate) struct RevokedSection {
        /// A file of token IDs, one a line. Read again when it changes.
        file: Option<Spanned<String>>,
        /// A set of token IDs in the Redis of the section `redis`.
        redis: Option<Spanned<RevokedListSection>>,
    }

    /// A set in Redis.
    pub(crate) struct RevokedListSection {
        /// Its key, behind the `prefix` of the section `redis` and a colon.
        key: RedisKey = "revoked",
        /// Between two looks at it: a revocation holds after this time at most.
        every: Time<100, { HOUR_MS }> = "5s",
    }

    /// A hash in Redis.
    pub(crate) struct ApiKeyListSection {
        /// Its key, behind the `prefix` of the section `redis` and a colon.
        key: RedisKey = "api-keys",
        /// Between two looks at it: a change acts after this time at most.
        every: Time<100, { HOUR_MS }> = "5s",
    }
}

/// Where token IDs stand that do not hold any more: the path of a file alone, or a section.
#[derive(Debug)]
pub(crate) struct RevokedPlace(pub(crate) Spanned<RevokedSection>);

impl Decode for RevokedPlace {
    fn kind() -> String {
        "the path of a file, `file: PATH` or `redis: {}`".into()
    }

    fn decode(node: &Node, cx: &mut Cx) -> Option<Self> {
        if let Value::Map(_) = &node.value {
            return Spanned::decode(node, cx).map(Self);
        }
        let Some(_) = node.scalar().filter(|scalar| !scalar.is_null()) else {
            cx.mismatch::<Self>(node, None);
            return None;
        };
        let file = Spanned::decode(node, cx)?;
        Some(Self(Spanned { value: RevokedSection { file: Some(file), redis: None }, span: node.span }))
    }

    fn schema(generator: &mut SchemaGenerator) -> Schema {
        json_schema!({ "anyOf": [String::schema(generator), RevokedSection::schema(generator)] })
    }
}

/// A key in Redis, without the prefix.
#[derive(Debug, Clone)]
pub(crate) struct RedisKey(pub(crate) String);

const REDIS_KEY_LENGTH_MAX: usize = 128;

/// Whether a text can be (part of) a key: letters, digits and `-._:`, from 1 to 128 of them.
pub fn is_redis_key(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-._:".contains(&byte);
    (1..=REDIS_KEY_LENGTH_MAX).contains(&text.len()) && text.bytes().all(allowed)
}

impl Decode for RedisKey {
    fn kind() -> String {
        "a key in Redis: letters, digits and `-._:`".into()
    }

    fn decode(node: &Node, cx: &mut Cx) -> Option<Self> {
        parsed(node, cx, |text| {
            if is_redis_key(text) {
                Ok(Self(text.to_owned()))
            } else {
                Err(Some(format!("from 1 to {REDIS_KEY_LENGTH_MAX} of them")))
            }
        })
    }

    fn schema(generator: &mut SchemaGenerator) -> Schema {
        or_variable(json_schema!({ "type": "string", "pattern": "^[A-Za-z0-9._:-]{1,128}$" }), generator)
    }
}

/// The Redis of the configuration; an error where it has none.
pub(crate) fn needed<'r>(redis: Redis<'r>, (what, span): (&str, Span), cx: &mut Cx) -> Option<&'r snapshot::Redis> {
    // What is wrong with the section is told there.
    if redis.is_off {
        let message = format!("{what} in Redis need the section `redis`, which is missing");
        cx.error(span, message, "at the top level: `redis: { url: \"redis://127.0.0.1:6379\" }`");
    }
    redis.section
}

/// A list in the Redis of the configuration; an error where it has none.
pub(crate) fn list(
    redis: Redis<'_>,
    what: (&str, Span),
    key: &RedisKey,
    every: Duration,
    cx: &mut Cx,
) -> Option<RedisList> {
    let redis = needed(redis, what, cx)?;
    let key = format!("{}:{}", redis.prefix, key.0);
    Some(RedisList { servers: redis.servers.clone(), key: key.into(), every })
}

/// The section `redis`, as far as it could be read.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Redis<'a> {
    pub(crate) section: Option<&'a snapshot::Redis>,
    /// There is none.
    pub(crate) is_off: bool,
}

impl RevokedSection {
    pub(crate) fn compile(self, span: Span, redis: Redis<'_>, cx: &mut Cx) -> Option<RevokedSource> {
        match (self.file, self.redis) {
            (Some(file), None) => {
                let (path, text) = read(&file, &Source::Revoked, cx)?;
                Some(RevokedSource::File(path, text))
            }
            (None, Some(Spanned { value: RevokedListSection { key, every }, span })) => {
                list(redis, ("revoked tokens", span), &key, every.0, cx).map(RevokedSource::Redis)
            }
            (file, _) => {
                let message = "revoked tokens are in one place: `file` or `redis`";
                cx.error(span, message, file.is_some().then_some("leave one of them out"));
                None
            }
        }
    }
}
