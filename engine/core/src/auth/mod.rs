//! Who a request comes from: JSON Web Tokens, API keys and clients' certificates, judged without I/O.
//!
//! [`credentials`] finds what a request presents, [`jwt`] and [`api_key`] judge it, [`TokenCache`] remembers verified
//! tokens, [`Live`] holds the keys that change while the gateway runs. Keys are brought by the control plane; times and
//! random numbers are arguments.

mod algorithm;
pub mod api_key;
mod authenticator;
mod cache;
mod certificate;
pub(crate) mod claim;
pub mod credentials;
pub(crate) mod encoding;
pub(crate) mod headers;
pub mod jwt;
mod key_set;
mod live;
mod revoked;
mod url;

use std::fmt;

use serde_json::{Map, Value};

pub use algorithm::{Algorithm, Algorithms};
pub use authenticator::{Authenticator, Finding, Flaw, Kind};
pub use cache::TokenCache;
pub use certificate::{CertificateField, CertificateRules, ClientCertificate, TlsFacts};
pub use claim::{BadClaimPath, ClaimPath};
pub use headers::{ClaimHeader, HEADER_LINES_BYTES_MAX, write_value};
pub use key_set::{KEYS_MAX, KeySet, KeySetError};
pub use live::{
    Asked, Entries, KIDS_ASKED_MAX, KIDS_MISSING_MAX, Live, LoadError, Loaded, Looking, Source, Stats, Taken,
};
pub use revoked::{REVOKED_MAX, Revoked, RevokedError, TOKEN_ID_BYTES_MAX};
pub use url::{BadUrl, HttpUrl};

/// How a request proved who it comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Method {
    Jwt,
    ApiKey,
    AuthService,
    ClientCertificate,
}

/// Who a request comes from. Immutable, and shared.
#[derive(Clone, PartialEq)]
pub struct Identity {
    pub method: Method,
    /// What the log shows as `userId`: of a token the configured claim, of an API key its client's name, of a
    /// certificate the configured name.
    pub user: Option<Box<str>>,
    pub roles: Vec<Box<str>>,
    pub scopes: Vec<Box<str>>,
    /// A token's claims; an API key's `metadata` and `sub`, its client's name; what a certificate says, and `sub`, its
    /// owner's name.
    pub claims: Map<String, Value>,
    /// Whole lines for the service, `X-User-Id: 42\r\n`, made once. At most [`HEADER_LINES_BYTES_MAX`].
    pub header_lines: Vec<u8>,
    /// Unix seconds from which on this is not valid any more.
    pub expires_at: Option<u64>,
    /// A token's `jti`, an API key's `id`.
    pub token_id: Option<Box<str>>,
}

impl Identity {
    pub fn has_role(&self, role: &str) -> bool {
        self.roles.iter().any(|own| &**own == role)
    }

    pub fn has_scope(&self, scope: &str) -> bool {
        self.scopes.iter().any(|own| &**own == scope)
    }
}

/// Leaves out the claims, which may be personal.
impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity")
            .field("method", &self.method)
            .field("user", &self.user)
            .field("roles", &self.roles)
            .field("scopes", &self.scopes)
            .field("expires_at", &self.expires_at)
            .field("token_id", &self.token_id)
            .finish_non_exhaustive()
    }
}
