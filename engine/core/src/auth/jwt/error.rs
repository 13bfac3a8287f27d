//! Why a token is refused.

/// What is wrong with a token. The text is fit for `error_description` (RFC 6750 section 3): it has neither quotes nor
/// anything of the token or the keys.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JwtError {
    #[error("the token is malformed")]
    Malformed,
    #[error("the token is too long")]
    TooLong,
    /// Five parts (RFC 7516), or a nested token (`cty`).
    #[error("encrypted or nested tokens are not accepted")]
    Encrypted,
    /// `crit` or `b64` in the header: extensions, of which none is known (RFC 7515 section 4.1.11).
    #[error("the token uses an extension that is not supported")]
    Critical,
    #[error("this kind of token is not accepted")]
    Type,
    #[error("the signature algorithm is not accepted")]
    Algorithm,
    /// Worth a look whether the issuer has a new key; see [`Live::ask`](crate::auth::Live::ask).
    #[error("the token was signed with an unknown key")]
    UnknownKey { kid: Option<Box<str>> },
    /// There are no keys yet: no fault of the token, which can be judged later.
    #[error("the keys of the issuer are not available")]
    NoKeys,
    #[error("the signature is not valid")]
    Signature,
    #[error("the token has expired")]
    Expired,
    #[error("the token is not yet valid")]
    NotYetValid,
    #[error("the token is from another issuer")]
    Issuer,
    #[error("the token is for another audience")]
    Audience,
    #[error("the token lacks a required claim")]
    MissingClaim { name: Box<str> },
    #[error("a claim of the token has the wrong type")]
    ClaimType { name: &'static str },
    /// Never made by `verify`: for the caller, which asks [`Revoked`](crate::auth::Revoked).
    #[error("the token was revoked")]
    Revoked,
}

impl JwtError {
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
