//! Why a token is refused.

use std::fmt;

/// What is wrong with a token. The text is fit for `error_description` (RFC 6750 section 3): it has neither quotes nor
/// anything of the token or the keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum JwtError {
    Malformed,
    TooLong,
    /// Five parts (RFC 7516), or a nested token (`cty`).
    Encrypted,
    /// `crit` or `b64` in the header: extensions, of which none is known (RFC 7515 section 4.1.11).
    Critical,
    Type,
    Algorithm,
    /// Worth a look whether the issuer has a new key; see [`Live::ask`](crate::auth::Live::ask).
    UnknownKey {
        kid: Option<Box<str>>,
    },
    /// There are no keys yet: no fault of the token, which can be judged later.
    NoKeys,
    Signature,
    Expired,
    NotYetValid,
    Issuer,
    Audience,
    MissingClaim {
        name: Box<str>,
    },
    ClaimType {
        name: &'static str,
    },
    /// Never made by `verify`: for the caller, which asks [`Revoked`](crate::auth::Revoked).
    Revoked,
}

impl std::error::Error for JwtError {}

impl fmt::Display for JwtError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.description())
    }
}

impl JwtError {
    /// What the client is told.
    pub const fn description(&self) -> &'static str {
        match self {
            Self::Malformed => "the token is malformed",
            Self::TooLong => "the token is too long",
            Self::Encrypted => "encrypted or nested tokens are not accepted",
            Self::Critical => "the token uses an extension that is not supported",
            Self::Type => "this kind of token is not accepted",
            Self::Algorithm => "the signature algorithm is not accepted",
            Self::UnknownKey { .. } => "the token was signed with an unknown key",
            Self::NoKeys => "the keys of the issuer are not available",
            Self::Signature => "the signature is not valid",
            Self::Expired => "the token has expired",
            Self::NotYetValid => "the token is not yet valid",
            Self::Issuer => "the token is from another issuer",
            Self::Audience => "the token is for another audience",
            Self::MissingClaim { .. } => "the token lacks a required claim",
            Self::ClaimType { .. } => "a claim of the token has the wrong type",
            Self::Revoked => "the token was revoked",
        }
    }

    /// A word for metrics and audit records.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::TooLong => "too_long",
            Self::Encrypted => "encrypted",
            Self::Critical => "critical",
            Self::Type => "type",
            Self::Algorithm => "algorithm",
            Self::UnknownKey { .. } => "unknown_key",
            Self::NoKeys => "no_keys",
            Self::Signature => "signature",
            Self::Expired => "expired",
            Self::NotYetValid => "not_yet_valid",
            Self::Issuer => "issuer",
            Self::Audience => "audience",
            Self::MissingClaim { .. } => "missing_claim",
            Self::ClaimType { .. } => "claim_type",
            Self::Revoked => "revoked",
        }
    }
}
