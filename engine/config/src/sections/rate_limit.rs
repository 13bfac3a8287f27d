//! How often requests may come.

use std::sync::Arc;
use std::time::Duration;

use ringway_core::limit::{Fallback, HeaderStyle, KeyPart, Policy, Rule, Scope, Spec, Tiers};
use schemars::{Schema, SchemaGenerator, json_schema};

use super::authenticator::ClaimName;
use crate::decode::{Cx, Decode, OneOrMore, Pairs, Spanned};
use crate::error::Span;
use crate::scalar::{Int, Name, choice, is_token, or_variable, parsed};
use crate::shape::shape;
use crate::tree::Node;

shape! {
    /// A token bucket for each key: a request takes a token, and tokens come back evenly over the period.
    pub(crate) struct RateLimit {
        /// Names it in routes, metrics, headers and in Redis. Unique.
        name: Name,
        /// Requests per time: `100/min`, `50/s`, `1000/h`, `3/10s`.
        limit: Spanned<Rate>,
        /// Requests that may come at once. Without it: those of a whole period.
        burst: Option<Int<1, 1_000_000_000>>,
        /// What requests are counted by: `client_ip`, `user`, `api_key`, `header NAME`, `route`, several of them together,
        /// or `all`: all requests as one. Where a request lacks it, its address counts.
        key: OneOrMore<Part> = "client_ip",
        /// Bits of an IPv6 address that count, since one client commonly has a whole network.
        ipv6_prefix: Int<16, 128> = "64",
        /// Tokens that a request takes.
        cost: Int<1, 1_000_000> = "1",
        /// Other limits for some, by a claim of their token or a field of their key's `metadata`.
        tiers: Option<TiersSection>,
        /// With Redis: ask it about each request, where otherwise the gateway answers at once and reports.
        strict: bool = "false",
        /// What counts while Redis is configured and away. `fair_share`: each gateway keeps its share of the limit by
        /// itself. `open`: all pass. `closed`: none passes, 503.
        without_redis: Fallback = "fair_share",
        /// Keys that are told apart at the same time; those beyond share one bucket. Each takes 21 bytes from the
        /// start, and about 110 more and its own length once it is there.
        keys: Int<1, 100_000_000> = "100000",
        /// Headers that tell clients where they stand. `draft6`: `RateLimit-Limit`, `-Remaining`, `-Reset`, `-Policy`.
        /// `structured`: `RateLimit` and `RateLimit-Policy` of the current draft. `legacy`: `X-RateLimit-*`. `none`: just
        /// `Retry-After` with a 429.
        headers: HeaderStyle = "draft6",
    }

    /// Other limits for some.
    pub(crate) struct TiersSection {
        /// The claim that says which: a name, or a JSON Pointer.
        claim: ClaimName,
        /// Values of the claim, and the limit of each.
        limits: Pairs<String, Spanned<Rate>>,
    }
}

choice! {
    Fallback {
        "fair_share" => Fallback::FairShare,
        "open" => Fallback::Open,
        "closed" => Fallback::Closed,
    }
    HeaderStyle {
        "draft6" => HeaderStyle::Draft6,
        "structured" => HeaderStyle::Structured,
        "legacy" => HeaderStyle::Legacy,
        "none" => HeaderStyle::None,
    }
}

/// Requests per time.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rate {
    limit: u64,
    period: Duration,
}

impl Decode for Rate {
    fn kind() -> String {
        "requests per time, such as `100/min`".into()
    }

    fn decode(node: &Node, cx: &mut Cx) -> Option<Self> {
        parsed(node, cx, |text| {
            let rate = text.split_once('/').and_then(|(limit, period)| {
                let split = period.find(|c: char| !c.is_ascii_digit())?;
                let (count, unit) = period.split_at(split);
                let ms = match unit {
                    "ms" => 1,
                    "s" | "sec" | "second" => 1_000,
                    "m" | "min" | "minute" => 60_000,
                    "h" | "hour" => 3_600_000,
                    "d" | "day" => 86_400_000,
                    _ => return None,
                };
                let count = if count.is_empty() { 1 } else { count.parse::<u64>().ok()? };
                let period = Duration::from_millis(count.checked_mul(ms)?);
                let limit = limit.parse::<u64>().ok().filter(|limit| *limit > 0)?;
                (!period.is_zero()).then_some(Self { limit, period })
            });
            rate.ok_or_else(|| Some("a number, `/`, and `s`, `min`, `h` or `d`, or several of them: `10s`".into()))
        })
    }

    fn schema(generator: &mut SchemaGenerator) -> Schema {
        let pattern = "^[0-9]+/[0-9]*(ms|s|sec|second|m|min|minute|h|hour|d|day)$";
        or_variable(json_schema!({ "type": "string", "pattern": pattern }), generator)
    }
}

/// What requests are counted by; `None`: all as one.
#[derive(Debug, Clone)]
pub(crate) struct Part(Option<KeyPart>);

impl Decode for Part {
    fn kind() -> String {
        "`client_ip`, `user`, `api_key`, `header NAME`, `route` or `all`".into()
    }

    fn decode(node: &Node, cx: &mut Cx) -> Option<Self> {
        parsed(node, cx, |text| {
            Ok(Self(match text.split_once(' ') {
                None if text == "all" => None,
                None if text == "client_ip" => Some(KeyPart::ClientIp),
                None if text == "user" => Some(KeyPart::User),
                None if text == "api_key" => Some(KeyPart::ApiKey),
                None if text == "route" => Some(KeyPart::Route),
                Some(("header", name)) if is_token(name) => Some(KeyPart::Header(name.to_ascii_lowercase().into())),
                None if matches!(text, "ip" | "address") => return Err(Some("did you mean `client_ip`?".into())),
                _ => return Err(None),
            }))
        })
    }

    fn schema(generator: &mut SchemaGenerator) -> Schema {
        let pattern = "^(client_ip|user|api_key|route|all|header [^ ]+)$";
        or_variable(json_schema!({ "type": "string", "pattern": pattern }), generator)
    }
}

/// What stays of them: `all` is no part of a key.
pub(super) fn parts(key: OneOrMore<Part>) -> Box<[KeyPart]> {
    key.0.into_iter().filter_map(|part| part.0).collect()
}

impl RateLimit {
    /// Adds its limiters to `limiters`. `None` after an error, which is reported.
    pub(crate) fn compile(self, limiters: &mut Vec<Policy>, cx: &mut Cx) -> Option<Rule> {
        let spec = |name: &str, rate: Rate, burst: Option<u64>| Spec {
            name: Arc::from(name),
            limit: rate.limit,
            period: rate.period,
            burst: burst.unwrap_or(rate.limit),
            strict: self.strict,
            without_redis: self.without_redis,
            keys_max: self.keys.0 as usize,
        };
        let mut add = |spec: &Spec, span: Span, cx: &mut Cx| match Policy::new(spec) {
            Ok(_) if limiters.iter().any(|other| other.spec().name == spec.name) => {
                cx.error(span, format!("another rate limit, or a tier of one, is called `{}` too", spec.name), None);
                None
            }
            Ok(policy) => {
                limiters.push(policy);
                Some(limiters.len() as u32 - 1)
            }
            Err(error) => {
                cx.sink.error(span, error.to_string(), None);
                None
            }
        };
        let burst = self.burst.map(|burst| burst.0 as u64);
        let limiter = add(&spec(&self.name.0, self.limit.value, burst), self.limit.span, cx)?;
        let mut tiers = None;
        if let Some(section) = &self.tiers {
            let mut of = Vec::with_capacity(section.limits.0.len());
            for (value, rate) in &section.limits.0 {
                let name = format!("{}:{}", self.name.0, value.value);
                of.push((value.value.as_str().into(), add(&spec(&name, rate.value, None), rate.span, cx)?));
            }
            tiers = Some(Tiers { claim: section.claim.0.clone(), counters: of.into() });
        }
        let ipv6_prefix_bits = self.ipv6_prefix.0 as u8;
        let scope = Scope { counter: limiter, tiers, key: parts(self.key), ipv6_prefix_bits };
        Some(Rule { scope, cost: self.cost.0 as u32, headers: self.headers })
    }
}
