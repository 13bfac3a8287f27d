//! The gate in front of every service: filters look at a request and only they can make the [`Permit`] to forward it.

use crate::failure::Failure;
use crate::http::Framing;

/// What the filters know of a request once its route is known.
#[derive(Debug, Clone, Copy)]
pub struct Facts {
    pub framing: Framing,
    /// The route's limit on request bodies, in bytes; `None`: no limit.
    pub body_bytes_max: Option<u64>,
}

/// What one filter says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing against it.
    Continue,
    /// Answer with this instead of forwarding.
    Answer(Failure),
}

/// The proof that a request went through all filters. Forwarding takes one, and nothing else makes one.
#[derive(Debug)]
pub struct Permit(());

/// Asks every filter, in order.
///
/// Hot; watched by the benchmark `admit`.
#[inline]
pub fn admit(facts: &Facts) -> Result<Permit, Failure> {
    match body_size(facts) {
        Verdict::Continue => Ok(Permit(())),
        Verdict::Answer(failure) => Err(failure),
    }
}

/// 413 before a byte of the body is read, where `Content-Length` tells; a chunked body is counted as it comes.
fn body_size(facts: &Facts) -> Verdict {
    match (facts.framing, facts.body_bytes_max) {
        (Framing::Length(length), Some(max)) if length > max => Verdict::Answer(Failure::BodyTooLarge),
        _ => Verdict::Continue,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn announced_bodies_over_the_limit_are_refused() {
        let facts = |length, body_bytes_max| Facts { framing: Framing::Length(length), body_bytes_max };
        assert!(admit(&facts(10, Some(10))).is_ok());
        assert!(admit(&facts(u64::MAX, None)).is_ok());
        assert_eq!(admit(&facts(11, Some(10))).err(), Some(Failure::BodyTooLarge));
    }
}
