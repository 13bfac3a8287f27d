//! What a worker with more to do than it can refuses.

use std::collections::HashMap;
use std::sync::Arc;

use ringway_core::overload::{Criticality, OverloadSettings};
use ringway_core::priorities::Priorities;

use super::authenticator::ClaimName;
use super::headers::HeaderName;
use crate::decode::{Cx, OneOrMore, Spanned};
use crate::percent::Percent;
use crate::scalar::{OrOff, choice};
use crate::shape::shape;
use crate::snapshot::Overload;
use crate::units::Time;

/// Bounds of the longest wait and of the interval, in milliseconds.
const DELAY_MAX_MS: u64 = 10_000;

shape! {
    /// A worker is overloaded when it has been too slow or too busy for an interval; it then refuses as many requests as it must,
    /// those of the least critical routes first, with 503 and `Retry-After`. `{}`: with the defaults.
    pub(crate) struct OverloadSection {
        /// How long what is ready may wait for its turn. `off`: it does not count.
        delay: OrOff<Time<1, DELAY_MAX_MS>> = "20ms",
        /// How busy a worker may be. `off`: it does not count. On io_uring only.
        busy: OrOff<Percent<50, 99>> = "off",
        /// How long it must be so before anything is refused, and be over before nothing is.
        interval: Time<100, DELAY_MAX_MS> = "200ms",
        /// A header of requests that says `critical`, `normal` or `low` in place of their route. Trusted proxies may say what
        /// they like, others no more than the route does.
        header: Option<HeaderName>,
        /// A claim that says how much its requests matter, in place of their route. It counts where it is known at once: of a
        /// token that the worker has verified before, of an API key, of a client's certificate. One that is not verified does not.
        claim: Option<Spanned<PrioritiesSection>>,
    }

    /// Which values of a claim put a request before others, or behind them. Of a list the value counts that matters most; others leave it
    /// to the route.
    pub(crate) struct PrioritiesSection {
        /// Of a token, of an API key's `metadata`, of a certificate. A name, or a JSON Pointer.
        name: ClaimName,
        /// Values that are refused last.
        critical: Option<OneOrMore<Spanned<String>>>,
        /// Values in between.
        normal: Option<OneOrMore<Spanned<String>>>,
        /// Values that are refused first.
        low: Option<OneOrMore<Spanned<String>>>,
    }
}

choice! {
    Criticality {
        "critical" => Criticality::Critical,
        "normal" => Criticality::Normal,
        "low" => Criticality::Low,
    }
}

impl Spanned<OverloadSection> {
    pub(crate) fn compile(self, cx: &mut Cx) -> Overload {
        let Self { value: section, span } = self;
        let settings = OverloadSettings {
            delay_us: section.delay.0.map(|delay| delay.0.as_micros() as u64),
            busy: section.busy.0.map(|busy| busy.0),
            interval_us: section.interval.0.as_micros() as u64,
        };
        if settings.delay_us.is_none() && settings.busy.is_none() {
            cx.error(span, "nothing is overload here", "`overload: off`, or say one of `delay` and `busy`");
        }
        let claim = section.claim.map(|claim| claim.compile(cx));
        Overload { settings, header: section.header.map(|name| Arc::from(name.0)), claim }
    }
}

impl Spanned<PrioritiesSection> {
    fn compile(self, cx: &mut Cx) -> Priorities {
        let Self { value: section, span } = self;
        let mut values: HashMap<Box<str>, Criticality> = HashMap::new();
        let classes = [
            (Criticality::Critical, section.critical),
            (Criticality::Normal, section.normal),
            (Criticality::Low, section.low),
        ];
        for (criticality, listed) in classes {
            for value in listed.into_iter().flat_map(|listed| listed.0) {
                if values.insert(value.value.as_str().into(), criticality).is_some() {
                    cx.error(value.span, format!("`{}` stands here twice", value.value), "a value has one place");
                }
            }
        }
        if values.is_empty() {
            cx.error(span, "no value matters here", "name some: `critical: [gold]`, `low: [free]`");
        }
        Priorities::new(section.name.0, values)
    }
}
