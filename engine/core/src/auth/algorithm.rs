//! The signature algorithms of tokens (RFC 7518 section 3.1, RFC 8037 section 3.1) and sets of them.

use std::fmt;

/// A signature algorithm. `none` is not one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Algorithm {
    HS256,
    HS384,
    HS512,
    RS256,
    RS384,
    RS512,
    PS256,
    PS384,
    PS512,
    ES256,
    ES384,
    EdDSA,
}

use Algorithm::*;

impl Algorithm {
    pub const ALL: [Self; 12] = [HS256, HS384, HS512, RS256, RS384, RS512, PS256, PS384, PS512, ES256, ES384, EdDSA];
    pub(crate) const HMAC: [Self; 3] = [HS256, HS384, HS512];
    pub(crate) const RSA: [Self; 6] = [RS256, RS384, RS512, PS256, PS384, PS512];

    /// Case-sensitive, as RFC 7515 section 4.1.1 asks.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|algorithm| algorithm.name() == name)
    }

    pub fn name(self) -> &'static str {
        match self {
            HS256 => "HS256",
            HS384 => "HS384",
            HS512 => "HS512",
            RS256 => "RS256",
            RS384 => "RS384",
            RS512 => "RS512",
            PS256 => "PS256",
            PS384 => "PS384",
            PS512 => "PS512",
            ES256 => "ES256",
            ES384 => "ES384",
            EdDSA => "EdDSA",
        }
    }

    /// Whether the key is a shared secret.
    pub fn is_hmac(self) -> bool {
        Self::HMAC.contains(&self)
    }

    /// What a secret must have at least (RFC 7518 section 3.2): as many bytes as the hash. Zero for the others.
    pub fn secret_bytes_min(self) -> usize {
        match self {
            HS256 => 32,
            HS384 => 48,
            HS512 => 64,
            _ => 0,
        }
    }

    pub(crate) fn for_library(self) -> jsonwebtoken::Algorithm {
        match self {
            HS256 => jsonwebtoken::Algorithm::HS256,
            HS384 => jsonwebtoken::Algorithm::HS384,
            HS512 => jsonwebtoken::Algorithm::HS512,
            RS256 => jsonwebtoken::Algorithm::RS256,
            RS384 => jsonwebtoken::Algorithm::RS384,
            RS512 => jsonwebtoken::Algorithm::RS512,
            PS256 => jsonwebtoken::Algorithm::PS256,
            PS384 => jsonwebtoken::Algorithm::PS384,
            PS512 => jsonwebtoken::Algorithm::PS512,
            ES256 => jsonwebtoken::Algorithm::ES256,
            ES384 => jsonwebtoken::Algorithm::ES384,
            EdDSA => jsonwebtoken::Algorithm::EdDSA,
        }
    }

    fn bit(self) -> u16 {
        1 << self as u16
    }
}

/// A set of algorithms, never empty.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Algorithms(u16);

impl Algorithms {
    /// `None` if there is none.
    pub fn new(algorithms: impl IntoIterator<Item = Algorithm>) -> Option<Self> {
        algorithms.into_iter().map(Algorithm::bit).reduce(|all, bit| all | bit).map(Self)
    }

    #[inline]
    pub fn contains(self, algorithm: Algorithm) -> bool {
        self.0 & algorithm.bit() != 0
    }

    pub fn iter(self) -> impl Iterator<Item = Algorithm> {
        Algorithm::ALL.into_iter().filter(move |algorithm| self.contains(*algorithm))
    }
}

impl fmt::Debug for Algorithms {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_exact() {
        for algorithm in Algorithm::ALL {
            assert_eq!(Algorithm::parse(algorithm.name()), Some(algorithm));
            assert_eq!(Algorithm::parse(&algorithm.name().to_lowercase()), None);
        }
        for name in ["none", "None", "", "HS256 ", "ES512", "ES256K", "Ed25519", "dir", "A128KW"] {
            assert_eq!(Algorithm::parse(name), None, "{name}");
        }
    }

    #[test]
    fn a_set_holds_what_it_was_made_of() {
        assert_eq!(Algorithms::new([]), None);
        for one in Algorithm::ALL {
            for two in Algorithm::ALL {
                let set = Algorithms::new([one, two, one]).unwrap();
                for algorithm in Algorithm::ALL {
                    assert_eq!(set.contains(algorithm), algorithm == one || algorithm == two);
                }
            }
        }
        assert_eq!(format!("{:?}", Algorithms::new(Algorithm::HMAC).unwrap()), "{HS256, HS384, HS512}");
    }
}
