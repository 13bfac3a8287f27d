//! How many requests may be under way at the same time.

use std::sync::Arc;

use ringway_core::limit::{ConcurrencySpec, Scope, Tiers};

use super::authenticator::ClaimName;
use super::rate_limit::{Part, parts};
use crate::decode::{Cx, OneOrMore, Pairs, Spanned};
use crate::error::Span;
use crate::scalar::{Int, Name};
use crate::shape::shape;

type Requests = Int<1, 1_000_000>;

shape! {
    /// So many requests of each key at the same time, in each gateway.
    pub(crate) struct ConcurrencyLimit {
        /// Names it in routes, metrics and logs. Unique.
        name: Spanned<Name>,
        /// Requests of a key that may be under way at the same time: from their head to the end of their answer.
        requests: Requests,
        /// What requests are counted by, as in `rate_limits`: `client_ip`, `user`, `api_key`, `header NAME`, `route`, several
        /// of them together, or `all`: all requests as one. Where a request lacks it, its address counts.
        key: OneOrMore<Part> = "client_ip",
        /// Bits of an IPv6 address that count, since one client commonly has a whole network.
        ipv6_prefix: Int<16, 128> = "64",
        /// Other limits for some, by a claim of their token or a field of their key's `metadata`.
        tiers: Option<ConcurrencyTiers>,
        /// Keys that are told apart at the same time; those beyond share one limit. Each takes 21 bytes from the start,
        /// and about 60 more and its own length once it was seen.
        keys: Int<1, 100_000_000> = "100000",
    }

    /// Other limits for some.
    pub(crate) struct ConcurrencyTiers {
        /// The claim that says which: a name, or a JSON Pointer.
        claim: ClaimName,
        /// Values of the claim, and how many requests at the same time each allows.
        requests: Pairs<String, Requests>,
    }
}

impl ConcurrencyLimit {
    /// Adds what counts to `counters`. `None` after an error, which is reported.
    pub(crate) fn compile(self, counters: &mut Vec<ConcurrencySpec>, cx: &mut Cx) -> Option<Scope> {
        let keys_max = self.keys.0 as usize;
        let mut add = |name: &str, requests: Requests, span: Span, cx: &mut Cx| {
            if counters.iter().any(|other| *other.name == *name) {
                cx.error(span, format!("another concurrency limit, or a tier of one, is called `{name}` too"), None);
                return None;
            }
            counters.push(ConcurrencySpec { name: Arc::from(name), requests: requests.0 as u32, keys_max });
            Some(counters.len() as u32 - 1)
        };
        let name = &self.name.value.0;
        let counter = add(name, self.requests, self.name.span, cx)?;
        let mut tiers = None;
        if let Some(section) = self.tiers {
            let mut of = Vec::with_capacity(section.requests.0.len());
            for (value, requests) in section.requests.0 {
                let counter = add(&format!("{name}:{}", value.value), requests, value.span, cx)?;
                of.push((value.value.into(), counter));
            }
            tiers = Some(Tiers { claim: section.claim.0, counters: of.into() });
        }
        let ipv6_prefix_bits = self.ipv6_prefix.0 as u8;
        Some(Scope { counter, tiers, key: parts(self.key), ipv6_prefix_bits })
    }
}
