//! When a service that fails is left alone, and what clients hear meanwhile.

use ringway_core::breaker::{BreakerSettings, PROBES_MAX, SlowCalls};

use super::action::RespondSection;
use super::route::ServiceRef;
use crate::decode::{Cx, OneOrMore, Spanned};
use crate::percent::Percent;
use crate::resilience::{CircuitBreaker, Failing, Fallback, Scope};
use crate::scalar::{Int, OrOff, choice};
use crate::shape::shape;
use crate::units::{HOUR_MS, Time, Timeout};

const _: () = assert!(PROBES_MAX == 31);

shape! {
    /// Leaves a service alone that fails too often: requests are answered at once, with 503 and `Retry-After` or with the
    /// fallback, until it has had its time and a few probes have gone well. `{}`: with the defaults.
    pub(crate) struct CircuitBreakerSection {
        /// What has a breaker. `service`: the service as a whole. `endpoint`: each of its endpoints; requests go to those
        /// whose breaker lets them, and are answered at once where none does. `both`: the service and each endpoint.
        per: Scope = "service",
        /// Share of the requests in `window` that fail, from which on it opens.
        error_share: OrOff<Percent<1, 100>> = "50%",
        /// Requests in `window` below which no share counts.
        min_requests: Int<1, 100_000> = "20",
        /// What the shares are of: the requests of the last while.
        window: Time<1_000, HOUR_MS> = "10s",
        /// Failed requests in a row that open it, however few there are.
        consecutive_failures: OrOff<Int<1, 1_000_000>> = "10",
        /// A request whose answer begins later than this is slow. `off`: none is.
        slow_call: OrOff<Timeout> = "off",
        /// Share of the requests in `window` that are slow, from which on it opens.
        slow_share: Percent<1, 100> = "50%",
        /// How long it stays open; up to a fifth more, at random.
        open: Time<100, HOUR_MS> = "30s",
        /// Requests that are let through then, at a time and over all workers. It closes when so many have gone well, and
        /// opens again when one has not.
        half_open_probes: Int<1, 31> = "3",
        /// The statuses of the service that count as failures. Without it: 500 to 599, but not 501, and not a 503 with
        /// `Retry-After`. What the gateway answers for the service (502, 504) always counts.
        count: Option<OneOrMore<Int<400, 599>>>,
        /// What clients get while it is open. Without it: 503 with `Retry-After`.
        fallback: Option<Spanned<FallbackSection>>,
    }

    /// What clients get while a breaker is open. Exactly one of these.
    pub(crate) struct FallbackSection {
        /// This answer.
        respond: Option<Spanned<RespondSection>>,
        /// The answer of another service, which may have a breaker, but no fallback to a third one.
        service: Option<Spanned<ServiceRef>>,
    }
}

choice! {
    Scope {
        "service" => Scope::Service,
        "endpoint" => Scope::Endpoint,
        "both" => Scope::Both,
    }
}

impl Spanned<CircuitBreakerSection> {
    pub(crate) fn compile(self, cx: &mut Cx) -> CircuitBreaker {
        let Self { value: section, span } = self;
        let us = |duration: std::time::Duration| duration.as_micros() as u64;
        let slow_share = section.slow_share.0;
        let settings = BreakerSettings {
            error_share: section.error_share.0.map(|share| share.0),
            min_requests: section.min_requests.0 as u32,
            window_us: us(section.window.0),
            consecutive_failures: section.consecutive_failures.0.map(|failures| failures.0 as u32),
            slow: section.slow_call.0.map(|from| SlowCalls { from_us: us(from.0), share: slow_share }),
            open_us: us(section.open.0),
            probes: section.half_open_probes.0 as u8,
        };
        if settings.error_share.is_none() && settings.consecutive_failures.is_none() && settings.slow.is_none() {
            let hint =
                "leave `circuit_breaker` out, or say one of `error_share`, `consecutive_failures` and `slow_call`";
            cx.error(span, "nothing opens this breaker", hint);
        }
        let failing = match section.count {
            None => Failing::default(),
            Some(statuses) => Failing::of(statuses.0.iter().map(|status| status.0 as u16)),
        };
        let fallback = section.fallback.and_then(|fallback| fallback.compile(cx));
        CircuitBreaker { scope: section.per, settings, failing, fallback }
    }
}

impl Spanned<FallbackSection> {
    fn compile(self, cx: &mut Cx) -> Option<Fallback> {
        match (self.value.respond, self.value.service) {
            (Some(respond), None) => respond.compile(cx).map(Fallback::Respond),
            (None, Some(service)) => Some(Fallback::Service(service.value.0)),
            _ => {
                cx.error(self.span, "expected exactly one of `respond` and `service`", None);
                None
            }
        }
    }
}
