//! The keys that tokens of one issuer are verified with (RFC 7517).

use std::fmt;

use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED, ECDSA_P384_SHA384_FIXED, ED25519, ParsedPublicKey};
use aws_lc_rs::signature::{RSA_PKCS1_2048_8192_SHA256, RsaPublicKeyComponents};
use jsonwebtoken::DecodingKey;
use serde_json::{Map, Value};

use super::algorithm::{Algorithm, Algorithms};
use super::encoding::{from_base64url, from_json_object};

/// Keys of a set; more are an error.
pub const KEYS_MAX: usize = 128;

/// Keys that one token is tried with: bounds the work that a token without `kid` makes.
const TRIES_MAX: usize = 16;

/// Why there is no set of keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeySetError {
    #[error("an HMAC secret has at least 32 bytes (RFC 7518 section 3.2)")]
    ShortSecret,
    #[error("not a PEM file of public keys (`PUBLIC KEY` or `RSA PUBLIC KEY`)")]
    Pem,
    #[error("a private key or a certificate where a public key is expected")]
    NotPublic,
    #[error(
        "a public key of a kind or size that no algorithm takes: RSA from 2048 to 8192 bits, P-256, P-384, Ed25519"
    )]
    Unfit,
    #[error("not a JSON Web Key Set: an object with an array `keys`, no member twice (RFC 7517 section 5)")]
    Jwks,
    #[error("more than 128 keys")]
    TooMany,
    #[error("no key that a token could be verified with")]
    NoKey,
}

/// Keys, each with what it may be used for.
#[derive(Default)]
pub struct KeySet {
    keys: Vec<Key>,
    ignored: usize,
}

struct Key {
    kid: Option<Box<str>>,
    /// What `kty`, curve, `alg`, `use`, `key_ops` and length allow, decided once: no other algorithm ever sees the key.
    algorithms: Algorithms,
    key: DecodingKey,
}

/// What [`KeySet::verify`] found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    Verified,
    /// No key of that name for that algorithm.
    NoKey,
    Forged,
}

impl KeySet {
    /// A shared secret for those of HS256, HS384 and HS512 that it is long enough for.
    pub fn from_secret(secret: &[u8]) -> Result<Self, KeySetError> {
        let key = Key::hmac(secret).ok_or(KeySetError::ShortSecret)?;
        Ok(Self { keys: vec![key], ignored: 0 })
    }

    /// Public keys, one or several in a file.
    pub fn from_pem(text: &str) -> Result<Self, KeySetError> {
        let mut keys = Vec::new();
        for section in text.split("-----BEGIN ").skip(1) {
            if keys.len() == KEYS_MAX {
                return Err(KeySetError::TooMany);
            }
            keys.push(Key::from_pem(section)?);
        }
        if keys.is_empty() { Err(KeySetError::Pem) } else { Ok(Self { keys, ignored: 0 }) }
    }

    /// A JSON Web Key Set. Keys that are not understood, or are not for signatures, are left out and counted (RFC 7517
    /// section 5).
    ///
    /// `secrets`: whether symmetric keys (`oct`) count. They must not where anyone can read the set.
    pub fn from_jwks(json: &[u8], secrets: bool) -> Result<Self, KeySetError> {
        let object = from_json_object(json).ok_or(KeySetError::Jwks)?;
        let values = object.get("keys").and_then(Value::as_array).ok_or(KeySetError::Jwks)?;
        if values.len() > KEYS_MAX {
            return Err(KeySetError::TooMany);
        }
        let keys: Vec<Key> = values.iter().filter_map(|value| Key::from_jwk(value.as_object()?, secrets)).collect();
        let ignored = values.len() - keys.len();
        if keys.is_empty() { Err(KeySetError::NoKey) } else { Ok(Self { keys, ignored }) }
    }

    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// True only before keys were loaded: no constructor makes an empty set.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// Keys of a JWKS that were left out.
    pub fn ignored(&self) -> usize {
        self.ignored
    }

    /// Whether a key of that name is there.
    pub fn has_kid(&self, kid: &str) -> bool {
        self.keys.iter().any(|key| key.kid.as_deref() == Some(kid))
    }

    /// Tries the keys that fit. A key without `kid` fits any token, a token without `kid` any key.
    pub(crate) fn verify(&self, algorithm: Algorithm, kid: Option<&str>, message: &[u8], signature: &str) -> Verdict {
        let is_named = |key: &&Key| match (key.kid.as_deref(), kid) {
            (Some(own), Some(wanted)) => own == wanted,
            _ => true,
        };
        let mut fitting = self.keys.iter().filter(|key| key.algorithms.contains(algorithm)).filter(is_named).peekable();
        if fitting.peek().is_none() {
            return Verdict::NoKey;
        }
        let library = algorithm.for_library();
        let verifies =
            |key: &Key| matches!(jsonwebtoken::crypto::verify(signature, message, &key.key, library), Ok(true));
        if fitting.take(TRIES_MAX).any(verifies) { Verdict::Verified } else { Verdict::Forged }
    }
}

/// Shows no key.
impl fmt::Debug for KeySet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let keys = self.keys.iter().map(|key| (&key.kid, key.algorithms));
        f.debug_struct("KeySet").field("keys", &keys.collect::<Vec<_>>()).field("ignored", &self.ignored).finish()
    }
}

impl Key {
    fn hmac(secret: &[u8]) -> Option<Self> {
        let long_enough = Algorithm::HMAC.into_iter().filter(|hmac| secret.len() >= hmac.secret_bytes_min());
        Some(Self { kid: None, algorithms: Algorithms::new(long_enough)?, key: DecodingKey::from_secret(secret) })
    }

    /// From 2048 to 8192 bits (RFC 7518 section 3.3); an exponent below 2^16 + 1 is tolerated, an even one is not.
    fn rsa(n: &[u8], e: &[u8]) -> Option<Self> {
        let n = without_zeros(n);
        let e = without_zeros(e);
        let bits = n.len() * 8 - n.first()?.leading_zeros() as usize;
        let is_sound = (2048..=8192).contains(&bits) && e.last()? & 1 == 1 && e != [1];
        let parses = RsaPublicKeyComponents { n, e }.to_parsed_public_key(&RSA_PKCS1_2048_8192_SHA256).is_ok();
        let key = DecodingKey::from_rsa_raw_components(n, e);
        (is_sound && parses).then_some(Self { kid: None, algorithms: Algorithms::new(Algorithm::RSA)?, key })
    }

    /// An uncompressed point (SEC 1 section 2.3.3) that lies on its curve.
    fn ec(point: &[u8]) -> Option<Self> {
        let (algorithm, parsed) = match point.len() {
            65 => (Algorithm::ES256, ParsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point)),
            97 => (Algorithm::ES384, ParsedPublicKey::new(&ECDSA_P384_SHA384_FIXED, point)),
            _ => return None,
        };
        parsed.ok()?;
        Some(Self { kid: None, algorithms: Algorithms::new([algorithm])?, key: DecodingKey::from_ec_der(point) })
    }

    fn ed25519(point: &[u8]) -> Option<Self> {
        ParsedPublicKey::new(&ED25519, point).ok().filter(|_| point.len() == 32)?;
        Some(Self { kid: None, algorithms: Algorithms::new([Algorithm::EdDSA])?, key: DecodingKey::from_ed_der(point) })
    }

    /// `section`: the file from behind `-----BEGIN ` to the next one.
    fn from_pem(section: &str) -> Result<Self, KeySetError> {
        match section.split_once("-----") {
            Some(("PUBLIC KEY" | "RSA PUBLIC KEY", _)) => {}
            Some((label, _)) if label.ends_with("PRIVATE KEY") || label == "CERTIFICATE" => {
                return Err(KeySetError::NotPublic);
            }
            _ => return Err(KeySetError::Pem),
        }
        let pem = ["-----BEGIN ", section].concat();
        let pem = pem.as_bytes();
        let raw = |key: DecodingKey| key.try_get_as_bytes().map(<[u8]>::to_vec).ok();
        let key = if let Ok(key) = DecodingKey::from_ec_pem(pem) {
            raw(key).and_then(|point| Self::ec(&point))
        } else if let Ok(key) = DecodingKey::from_ed_pem(pem) {
            raw(key).and_then(|point| Self::ed25519(&point))
        } else if let Ok(key) = DecodingKey::from_rsa_pem(pem) {
            let public = raw(key).and_then(|der| aws_lc_rs::rsa::PublicKey::from_der(&der).ok());
            let components = public.map(|public| RsaPublicKeyComponents::<Vec<u8>>::from(&public));
            components.and_then(|components| Self::rsa(&components.n, &components.e))
        } else {
            return Err(KeySetError::Pem);
        };
        key.ok_or(KeySetError::Unfit)
    }

    /// `None` for a key that is not understood, is malformed, or is not meant for verifying signatures.
    fn from_jwk(jwk: &Map<String, Value>, secrets: bool) -> Option<Self> {
        let text = |name: &str| jwk.get(name).and_then(Value::as_str);
        let bytes = |name: &str| text(name).and_then(|text| from_base64url(text.as_bytes()));
        let mut key = match (text("kty")?, text("crv")) {
            ("oct", _) if secrets => Self::hmac(&bytes("k")?)?,
            ("RSA", _) => Self::rsa(&bytes("n")?, &bytes("e")?)?,
            // Coordinates have the full length of the field (RFC 7518 section 6.2.1.2).
            ("EC", Some("P-256")) => Self::ec(&point(&bytes("x")?, &bytes("y")?, 32)?)?,
            ("EC", Some("P-384")) => Self::ec(&point(&bytes("x")?, &bytes("y")?, 48)?)?,
            ("OKP", Some("Ed25519")) => Self::ed25519(&bytes("x")?)?,
            _ => return None,
        };
        if let Some(usage) = jwk.get("use") {
            (usage.as_str()? == "sig").then_some(())?;
        }
        if let Some(operations) = jwk.get("key_ops") {
            operations.as_array()?.iter().any(|operation| operation == "verify").then_some(())?;
        }
        if let Some(algorithm) = jwk.get("alg") {
            let algorithm = Algorithm::parse(algorithm.as_str()?).filter(|own| key.algorithms.contains(*own))?;
            key.algorithms = Algorithms::new([algorithm])?;
        }
        if let Some(kid) = jwk.get("kid") {
            key.kid = Some(kid.as_str()?.into());
        }
        Some(key)
    }
}

fn point(x: &[u8], y: &[u8], field_bytes: usize) -> Option<Vec<u8>> {
    (x.len() == field_bytes && y.len() == field_bytes).then(|| [&[4], x, y].concat())
}

/// Leading zeros are no part of a number; some issuers write one where the top bit is set (RFC 7518 section 6.3.1.1).
fn without_zeros(mut number: &[u8]) -> &[u8] {
    while let [0, rest @ ..] = number {
        number = rest;
    }
    number
}
