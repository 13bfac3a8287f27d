//! Tokens that are not accepted any more, by `jti` (RFC 7519 section 4.1.7).

use std::collections::HashSet;

use ahash::RandomState;

/// Tokens of one list; more are an error.
pub const REVOKED_MAX: usize = 1_000_000;

/// Bytes of one `jti`.
pub const TOKEN_ID_BYTES_MAX: usize = 256;

/// Why a list is refused. A list is taken whole or not at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RevokedError {
    #[error("line {line}: a token ID has at most 256 bytes")]
    TooLong { line: usize },
    #[error("more than 1,000,000 token IDs")]
    TooMany,
}

/// A set of token IDs.
#[derive(Debug)]
pub struct Revoked(HashSet<Box<str>, RandomState>);

impl Default for Revoked {
    fn default() -> Self {
        // The IDs come from the issuer, not from clients: they need no secret seed.
        Self(HashSet::with_hasher(RandomState::with_seeds(1, 2, 3, 4)))
    }
}

impl Revoked {
    /// One ID a line. Blanks around it, empty lines and lines that begin with `#` do not count.
    pub fn parse(text: &str) -> Result<Self, RevokedError> {
        let mut revoked = Self::default();
        for (index, line) in text.lines().enumerate() {
            let id = line.trim();
            if id.is_empty() || id.starts_with('#') {
                continue;
            }
            if id.len() > TOKEN_ID_BYTES_MAX {
                return Err(RevokedError::TooLong { line: index + 1 });
            }
            if revoked.0.len() == REVOKED_MAX && !revoked.0.contains(id) {
                return Err(RevokedError::TooMany);
            }
            revoked.0.insert(id.into());
        }
        Ok(revoked)
    }

    /// The same of a list that others keep: what is no token ID does not count, and is told.
    pub(crate) fn of_entries(ids: &[Vec<u8>]) -> Result<(Self, usize), RevokedError> {
        let mut revoked = Self::default();
        let mut malformed = 0;
        for id in ids {
            let text = str::from_utf8(id).ok().filter(|id| (1..=TOKEN_ID_BYTES_MAX).contains(&id.len()));
            let Some(id) = text else {
                malformed += 1;
                continue;
            };
            if revoked.0.len() == REVOKED_MAX {
                return Err(RevokedError::TooMany);
            }
            revoked.0.insert(id.into());
        }
        Ok((revoked, malformed))
    }

    #[inline]
    pub fn contains(&self, token_id: &str) -> bool {
        !self.0.is_empty() && self.0.contains(token_id)
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_has_one_id_a_line() {
        let revoked = Revoked::parse("# stolen\r\n a1 \r\n\nb2\na1\nc d").unwrap();
        assert_eq!(revoked.len(), 3);
        for id in ["a1", "b2", "c d"] {
            assert!(revoked.contains(id), "{id}");
        }
        for id in ["", "# stolen", "a", " a1 ", "A1"] {
            assert!(!revoked.contains(id), "{id}");
        }
        assert!(Revoked::parse("").unwrap().is_empty());
    }

    #[test]
    fn a_list_is_bounded() {
        let long = "x".repeat(TOKEN_ID_BYTES_MAX + 1);
        assert_eq!(Revoked::parse(&format!("a\n{long}\n")).unwrap_err(), RevokedError::TooLong { line: 2 });
        let many: String = (0..=REVOKED_MAX).map(|id| format!("{id}\n")).collect();
        assert_eq!(Revoked::parse(&many).unwrap_err(), RevokedError::TooMany);
    }
}
