//! JSON Web Tokens (RFC 7519) in the compact form of RFC 7515, judged as RFC 8725 asks.
//!
//! A token is read in one way only, and no more of it is read than what was proved before: first its length, then its
//! header, the pinned algorithm, the signature, and last the claims.

mod error;
mod header;
#[cfg(test)]
mod tests;

use serde_json::{Map, Value};

use self::header::Header;
use super::algorithm::Algorithms;
use super::claim::{self, ClaimPath};
use super::encoding::{from_base64url, from_json_object};
use super::headers::{self, ClaimHeader};
use super::key_set::{KeySet, Verdict};
use super::{Identity, Method};

pub use error::JwtError;
pub use header::KID_BYTES_MAX;

/// What a token must say. Immutable.
#[derive(Debug, Clone)]
pub struct Rules {
    /// What `iss` must be, byte for byte; `None`: anything, or nothing.
    pub issuer: Option<Box<str>>,
    /// One of these must be in `aud`. None: a token that names an audience is refused (RFC 7519 section 4.1.3).
    pub audiences: Vec<Box<str>>,
    /// Whether `aud` does not count at all.
    pub any_audience: bool,
    /// Pinned: the token's `alg` chooses among these and nothing else.
    pub algorithms: Algorithms,
    /// What clocks may differ, in seconds.
    pub leeway_s: u64,
    /// Claims that must be there, `exp` unless it is taken out.
    pub required_claims: Vec<Box<str>>,
    /// `typ` that the header must have (RFC 8725 section 3.11), with or without `application/`, in any case. `None`: it
    /// may be absent, `JWT` or `at+jwt` (RFC 9068); another kind of token is refused.
    pub typ: Option<Box<str>>,
    /// Longer tokens are refused before anything of them is read.
    pub token_bytes_max: usize,
    /// Text or number for the log's `userId`.
    pub user: ClaimPath,
    /// A string or an array of strings.
    pub roles: ClaimPath,
    /// A string of words between spaces, or an array of strings.
    pub scopes: ClaimPath,
    /// Claims that the service is told.
    pub headers: Vec<ClaimHeader>,
}

/// Default of [`Rules::token_bytes_max`].
pub const TOKEN_BYTES_MAX: usize = 8 * 1024;
/// Default of [`Rules::leeway_s`].
pub const LEEWAY_S: u64 = 60;

impl Rules {
    /// The safest rules for these algorithms: `exp` required, no audience, no issuer in particular.
    pub fn new(algorithms: Algorithms) -> Self {
        Self {
            issuer: None,
            audiences: Vec::new(),
            any_audience: false,
            algorithms,
            leeway_s: LEEWAY_S,
            required_claims: vec!["exp".into()],
            typ: None,
            token_bytes_max: TOKEN_BYTES_MAX,
            user: ClaimPath::name("sub"),
            roles: ClaimPath::name("roles"),
            scopes: ClaimPath::name("scope"),
            headers: Vec::new(),
        }
    }
}

/// Judges a token at `now_unix_s`. Revocation is the caller's to ask: [`super::Revoked`] with the identity's `token_id`.
///
/// Hot where tokens are not cached; watched by the benchmarks `jwt`.
pub fn verify(rules: &Rules, keys: &KeySet, token: &str, now_unix_s: u64) -> Result<Identity, JwtError> {
    if token.len() > rules.token_bytes_max {
        return Err(JwtError::TooLong);
    }
    let [header, payload, signature] = parts(token)?;
    let header = Header::parse(header)?;
    header.check_type(rules.typ.as_deref())?;
    if !rules.algorithms.contains(header.algorithm) {
        return Err(JwtError::Algorithm);
    }
    if keys.is_empty() {
        return Err(JwtError::NoKeys);
    }
    let signed = token.as_bytes().get(..token.len() - signature.len() - 1).unwrap_or_default();
    match keys.verify(header.algorithm, header.kid.as_deref(), signed, signature) {
        Verdict::Verified => {}
        Verdict::NoKey => return Err(JwtError::UnknownKey { kid: header.kid }),
        Verdict::Forged => return Err(JwtError::Signature),
    }
    let claims = from_base64url(payload.as_bytes()).and_then(|json| from_json_object(&json));
    judge(rules, claims.ok_or(JwtError::Malformed)?, now_unix_s)
}

/// Header, payload and signature, none of them empty. Five parts would be an encrypted token (RFC 7516).
fn parts(token: &str) -> Result<[&str; 3], JwtError> {
    let mut parts = token.split('.');
    match [parts.next(), parts.next(), parts.next(), parts.next()] {
        [Some(header), Some(payload), Some(signature), None] if ![header, payload, signature].contains(&"") => {
            Ok([header, payload, signature])
        }
        [Some(_), Some(_), Some(_), Some(_)] if parts.next().is_some() && parts.next().is_none() => {
            Err(JwtError::Encrypted)
        }
        _ => Err(JwtError::Malformed),
    }
}

/// RFC 7519 section 4.1, once the signature is good.
fn judge(rules: &Rules, claims: Map<String, Value>, now: u64) -> Result<Identity, JwtError> {
    if let Some(missing) = rules.required_claims.iter().find(|name| !claims.contains_key(&***name)) {
        return Err(JwtError::MissingClaim { name: missing.clone() });
    }
    let expires_at = date(&claims, "exp")?.map(|exp| exp.floor() as u64);
    if expires_at.is_some_and(|exp| now >= exp.saturating_add(rules.leeway_s)) {
        return Err(JwtError::Expired);
    }
    let latest = now.saturating_add(rules.leeway_s);
    if date(&claims, "nbf")?.is_some_and(|nbf| nbf.ceil() as u64 > latest) {
        return Err(JwtError::NotYetValid);
    }
    if date(&claims, "iat")?.is_some_and(|iat| iat.floor() as u64 > latest) {
        return Err(JwtError::NotYetValid);
    }
    let issuer = optional_text(&claims, "iss")?;
    if rules.issuer.as_deref().is_some_and(|wanted| issuer != Some(wanted)) {
        return Err(JwtError::Issuer);
    }
    check_audience(rules, claims.get("aud"))?;
    let of = |path: &ClaimPath| path.find(&claims);
    Ok(Identity {
        method: Method::Jwt,
        user: of(&rules.user).and_then(claim::text),
        roles: of(&rules.roles).map(claim::items).unwrap_or_default(),
        scopes: of(&rules.scopes).map(claim::spaced_items).unwrap_or_default(),
        header_lines: headers::lines(&rules.headers, &claims).ok_or(JwtError::TooLong)?,
        expires_at,
        token_id: optional_text(&claims, "jti")?.map(Into::into),
        claims,
    })
}

/// A NumericDate (RFC 7519 section 2), which may have a fraction. What lies before 1970 or beyond any clock is clamped
/// when it becomes a whole number.
fn date(claims: &Map<String, Value>, name: &'static str) -> Result<Option<f64>, JwtError> {
    match claims.get(name) {
        None => Ok(None),
        Some(value) => value.as_f64().map(Some).ok_or(JwtError::ClaimType { name }),
    }
}

fn optional_text<'c>(claims: &'c Map<String, Value>, name: &'static str) -> Result<Option<&'c str>, JwtError> {
    match claims.get(name) {
        None => Ok(None),
        Some(value) => value.as_str().map(Some).ok_or(JwtError::ClaimType { name }),
    }
}

/// `aud` is a string or an array of strings (RFC 7519 section 4.1.3).
fn check_audience(rules: &Rules, claim: Option<&Value>) -> Result<(), JwtError> {
    let is_ours = |value: &Value| {
        let text = value.as_str().ok_or(JwtError::ClaimType { name: "aud" })?;
        Ok(rules.audiences.iter().any(|own| &**own == text))
    };
    let found = match claim {
        None => rules.audiences.is_empty(),
        Some(Value::Array(values)) => values.iter().try_fold(false, |found, value| Ok(found | is_ours(value)?))?,
        Some(value) => is_ours(value)?,
    };
    if found || rules.any_audience { Ok(()) } else { Err(JwtError::Audience) }
}
