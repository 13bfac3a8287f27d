//! Sessions that stay with an endpoint, by a cookie.

use std::collections::hash_map::RandomState;
use std::fmt;
use std::hash::BuildHasher;
use std::sync::{Arc, OnceLock};

/// How a service's sessions are kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sticky {
    pub cookie: Arc<str>,
    pub secret: Secret,
    /// What stands behind the value in `Set-Cookie`, but for `Secure`.
    pub attributes: Arc<str>,
    pub secure: Secure,
    /// The service does not get the cookie.
    pub is_indirect: bool,
}

/// What values are signed with.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Arc<[u8]>);

impl Secret {
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl From<Arc<[u8]>> for Secret {
    fn from(bytes: Arc<[u8]>) -> Self {
        Self(bytes)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

/// Whether browsers send a cookie over TLS only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Secure {
    /// Where it was set over TLS.
    Auto,
    Always,
    Never,
}

/// The secret of services that name none: another one for each process, and the same over its reloads.
pub(crate) fn own_secret() -> [u8; 32] {
    static OWN: OnceLock<[u8; 32]> = OnceLock::new();
    *OWN.get_or_init(|| {
        let mut secret = [0; 32];
        if aws_lc_rs::rand::fill(&mut secret).is_err() {
            // The standard library draws from the system as well.
            for part in secret.chunks_mut(8) {
                part.copy_from_slice(&RandomState::new().hash_one(0).to_le_bytes());
            }
        }
        secret
    })
}
