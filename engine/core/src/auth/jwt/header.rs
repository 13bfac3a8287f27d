//! The header of a token (RFC 7515 section 4).

use std::borrow::Cow;
use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, IgnoredAny, MapAccess, Visitor};

use super::JwtError;
use crate::auth::algorithm::Algorithm;
use crate::auth::encoding::from_base64url;

/// Bytes of a `kid`; a longer one makes a token malformed.
pub const KID_BYTES_MAX: usize = 256;

/// Members of a header; more make a token malformed. Each is compared with those before it.
const MEMBERS_MAX: usize = 32;

/// What counts of a header. Keys that a token brings itself (`jwk`, `jku`, `x5c`, `x5u`) are never looked at, let alone
/// fetched (RFC 8725 sections 2.9 and 3.10).
#[derive(Debug)]
pub(super) struct Header {
    pub(super) algorithm: Algorithm,
    pub(super) kid: Option<Box<str>>,
    typ: Option<Box<str>>,
}

impl Header {
    pub(super) fn parse(text: &str) -> Result<Self, JwtError> {
        let json = from_base64url(text.as_bytes()).ok_or(JwtError::Malformed)?;
        let members: Members<'_> = serde_json::from_slice(&json).map_err(|_| JwtError::Malformed)?;
        if members.is_extended {
            return Err(JwtError::Critical);
        }
        if members.is_encrypted || members.cty.as_deref().is_some_and(|cty| is_type(cty, "JWT")) {
            return Err(JwtError::Encrypted);
        }
        let algorithm = members.alg.as_deref().ok_or(JwtError::Malformed)?;
        if members.kid.as_ref().is_some_and(|kid| kid.len() > KID_BYTES_MAX) {
            return Err(JwtError::Malformed);
        }
        Ok(Self {
            algorithm: Algorithm::parse(algorithm).ok_or(JwtError::Algorithm)?,
            kid: members.kid.map(Into::into),
            typ: members.typ.map(Into::into),
        })
    }

    /// RFC 8725 sections 2.8 and 3.11: a token that was made for another purpose is not taken for an access token.
    pub(super) fn check_type(&self, expected: Option<&str>) -> Result<(), JwtError> {
        let is_right = match (self.typ.as_deref(), expected) {
            (Some(typ), Some(expected)) => is_type(typ, expected),
            (Some(typ), None) => is_type(typ, "JWT") || is_type(typ, "at+jwt"),
            (None, expected) => expected.is_none(),
        };
        if is_right { Ok(()) } else { Err(JwtError::Type) }
    }
}

/// Media types compare without case, and `application/` may be left out (RFC 7515 section 4.1.9).
fn is_type(typ: &str, expected: &str) -> bool {
    fn short(name: &str) -> &str {
        match name.split_at_checked("application/".len()) {
            Some((prefix, rest)) if prefix.eq_ignore_ascii_case("application/") => rest,
            _ => name,
        }
    }
    short(typ).eq_ignore_ascii_case(short(expected))
}

#[derive(Default)]
struct Members<'j> {
    alg: Option<Cow<'j, str>>,
    kid: Option<Cow<'j, str>>,
    typ: Option<Cow<'j, str>>,
    cty: Option<Cow<'j, str>>,
    /// `crit` or `b64` (RFC 7797).
    is_extended: bool,
    /// `enc` or `zip` (RFC 7516).
    is_encrypted: bool,
}

/// A string, borrowed where it has no escape.
struct Text<'j>(Cow<'j, str>);

impl<'de> Deserialize<'de> for Text<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Str;
        impl<'de> Visitor<'de> for Str {
            type Value = Text<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }

            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
                Ok(Text(Cow::Borrowed(text)))
            }

            fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
                Ok(Text(Cow::Owned(text.into())))
            }
        }
        deserializer.deserialize_str(Str)
    }
}

impl<'de> Deserialize<'de> for Members<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Object;
        impl<'de> Visitor<'de> for Object {
            type Value = Members<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut members = Members::default();
                let mut seen: Vec<Text<'de>> = Vec::with_capacity(4);
                while let Some(name) = map.next_key::<Text<'de>>()? {
                    if seen.len() == MEMBERS_MAX || seen.iter().any(|other| other.0 == name.0) {
                        return Err(A::Error::custom("too many members, or one twice"));
                    }
                    match &*name.0 {
                        "alg" => members.alg = Some(map.next_value::<Text<'de>>()?.0),
                        "kid" => members.kid = Some(map.next_value::<Text<'de>>()?.0),
                        "typ" => members.typ = Some(map.next_value::<Text<'de>>()?.0),
                        "cty" => members.cty = Some(map.next_value::<Text<'de>>()?.0),
                        other => {
                            members.is_extended |= matches!(other, "crit" | "b64");
                            members.is_encrypted |= matches!(other, "enc" | "zip");
                            map.next_value::<IgnoredAny>()?;
                        }
                    }
                    seen.push(name);
                }
                Ok(members)
            }
        }
        deserializer.deserialize_map(Object)
    }
}
