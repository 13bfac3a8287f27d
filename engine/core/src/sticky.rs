//! Sticky sessions: a cookie says which endpoint a client keeps. Its value is a keyed hash of the endpoint's name: it tells
//! nobody where that is, and nobody makes one up.

use std::fmt;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::hmac;
use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;

/// Bytes of the hash that a value has, and its length in base64url.
const HASH_BYTES: usize = 18;
const VALUE_LENGTH: usize = 24;
/// The characters that a value is looked for by; those behind them, 96 bits, are compared in constant time.
const INDEX_LENGTH: usize = 8;

type Value = [u8; VALUE_LENGTH];

/// The values of a service's endpoints.
pub struct Sessions {
    /// By endpoint.
    values: Box<[Value]>,
    /// The endpoints, in the order of their values.
    order: Box<[u32]>,
}

/// No values: whoever has one has a session.
impl fmt::Debug for Sessions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sessions").field("endpoints", &self.values.len()).finish_non_exhaustive()
    }
}

/// What a request says of its session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Session {
    /// It has no cookie.
    #[default]
    None,
    /// Its cookie is forged, or that of an endpoint that is gone.
    Unknown,
    /// It is with this endpoint.
    With(u32),
}

/// What became of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(usize)]
pub enum Outcome {
    New,
    Kept,
    /// Another endpoint has it from now on.
    Moved,
    /// A new one, in place of one that nobody knows.
    Unknown,
}

impl Outcome {
    pub const ALL: [Self; 4] = [Self::New, Self::Kept, Self::Moved, Self::Unknown];

    /// The label in `gateway_sticky_requests_total`, and the word in the log.
    pub const fn label(self) -> &'static str {
        match self {
            Self::New => "new",
            Self::Kept => "kept",
            Self::Moved => "moved",
            Self::Unknown => "unknown",
        }
    }
}

impl Session {
    /// `endpoint`: the one that has answered.
    #[inline]
    pub fn outcome(self, endpoint: usize) -> Outcome {
        match self {
            Self::None => Outcome::New,
            Self::Unknown => Outcome::Unknown,
            Self::With(kept) if kept as usize == endpoint => Outcome::Kept,
            Self::With(_) => Outcome::Moved,
        }
    }
}

impl Sessions {
    /// `endpoints`: their names, which are the same after a reload and on other gateways.
    pub fn new<'n>(secret: &[u8], service: &str, endpoints: impl Iterator<Item = &'n str>) -> Self {
        let key = hmac::Key::new(hmac::HMAC_SHA256, secret);
        let value = |endpoint: &str| {
            let mut context = hmac::Context::with_key(&key);
            // Names have no NUL.
            [service.as_bytes(), b"\0", endpoint.as_bytes()].into_iter().for_each(|part| context.update(part));
            let tag = context.sign();
            let mut value = [0; VALUE_LENGTH];
            let hash = tag.as_ref().get(..HASH_BYTES).unwrap_or_default();
            // It has just the room that it needs.
            let _ = BASE64_URL_SAFE_NO_PAD.encode_slice(hash, &mut value);
            value
        };
        let values: Box<[Value]> = endpoints.map(value).collect();
        let mut sorted: Vec<(Value, u32)> = values.iter().copied().zip(0..).collect();
        sorted.sort_unstable();
        Self { values, order: sorted.into_iter().map(|(_, endpoint)| endpoint).collect() }
    }

    /// What a cookie of this value stands for.
    pub fn find(&self, value: &[u8]) -> Session {
        let value_of = |endpoint: &u32| self.values.get(*endpoint as usize).map_or(&[][..], |value| value);
        let index_of = |value| <[u8]>::get(value, ..INDEX_LENGTH);
        let Some(index) = index_of(value) else { return Session::Unknown };
        let start = self.order.partition_point(|endpoint| index_of(value_of(endpoint)).is_some_and(|at| at < index));
        let alike = self.order.iter().skip(start).take_while(|endpoint| index_of(value_of(endpoint)) == Some(index));
        let mut found = alike.filter(|endpoint| verify_slices_are_equal(value_of(endpoint), value).is_ok());
        found.next().map_or(Session::Unknown, |endpoint| Session::With(*endpoint))
    }

    /// The value for sessions with this endpoint.
    pub fn value(&self, endpoint: usize) -> Option<&[u8]> {
        self.values.get(endpoint).map(|value| &value[..])
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn names(count: usize, from: usize) -> Vec<String> {
        (from..from + count).map(|index| format!("10.0.{}.{}:8080", index / 250, index % 250)).collect()
    }

    fn sessions(secret: &[u8], service: &str, names: &[String]) -> Sessions {
        Sessions::new(secret, service, names.iter().map(String::as_str))
    }

    #[test]
    fn values_are_the_same_on_all_gateways_and_tell_nothing() {
        let names = names(3, 1);
        let known = sessions(b"a secret of sixteen bytes or more", "app", &names);
        assert_eq!(known.value(0), Some(&b"9u65SwXvCQrRLiFnleHTPGfQ"[..]));
        for other in [
            sessions(b"another secret of sixteen bytes", "app", &names),
            sessions(b"a secret of sixteen bytes or more", "shop", &names),
        ] {
            for endpoint in 0..3 {
                assert_eq!(other.find(known.value(endpoint).unwrap()), Session::Unknown);
            }
        }
        assert_eq!(known.value(3), None);
        assert!(!format!("{known:?}").contains(std::str::from_utf8(known.value(0).unwrap()).unwrap()));
    }

    #[test]
    fn outcomes() {
        assert_eq!(Session::None.outcome(3), Outcome::New);
        assert_eq!(Session::Unknown.outcome(3), Outcome::Unknown);
        assert_eq!(Session::With(3).outcome(3), Outcome::Kept);
        assert_eq!(Session::With(2).outcome(3), Outcome::Moved);
    }

    proptest! {
        #[test]
        fn the_same_cookie_is_the_same_endpoint_whoever_comes_and_goes(
            count in 1..1_100usize, gone in 0..50usize, new in 0..50usize, secret: [u8; 16],
        ) {
            let before = names(count, 0);
            let known = sessions(&secret, "app", &before);
            let gone = gone.min(count);
            let after = [names(new, 5_000), before[gone..].to_vec()].concat();
            let later = sessions(&secret, "app", &after);
            for (endpoint, name) in before.iter().enumerate() {
                let value = known.value(endpoint).unwrap();
                prop_assert_eq!(known.find(value), Session::With(endpoint as u32));
                let expected = after.iter().position(|other| other == name);
                let expected = expected.map_or(Session::Unknown, |at| Session::With(at as u32));
                prop_assert_eq!(later.find(value), expected);
            }
        }

        #[test]
        fn nothing_but_the_value_is_believed(value: Vec<u8>, at in 0..24usize, flip in 1..=255u8) {
            let known = sessions(b"a secret of sixteen bytes or more", "app", &names(5, 0));
            prop_assert_eq!(known.find(&value), Session::Unknown);
            let mut forged = known.value(2).unwrap().to_vec();
            forged[at] ^= flip;
            prop_assert_eq!(known.find(&forged), Session::Unknown);
            prop_assert_eq!(known.find(&known.value(2).unwrap()[..23]), Session::Unknown);
        }
    }
}
