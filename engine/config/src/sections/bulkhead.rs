//! How many requests a service may have in flight.

use ringway_core::adaptive::AdaptiveSettings;
use ringway_core::bulkhead::BulkheadSettings;

use crate::decode::{Cx, Spanned};
use crate::percent::Percent;
use crate::scalar::Int;
use crate::shape::shape;
use crate::units::{HOUR_MS, Time};

/// Longest wait for a place, in milliseconds.
const WAIT_MAX_MS: u64 = 10_000;

shape! {
    /// How many requests a service may have in flight, over all workers; more are answered at once, with 503 and
    /// `Retry-After`.
    pub(crate) struct BulkheadSection {
        /// From the choice of an endpoint to the end of the answer, over all tries.
        requests: Int<1, 1_000_000>,
        /// Requests that may wait for a place besides; 503 above. They get one in order.
        pending: Int<0, 100_000> = "0",
        /// How long one waits at most; 503 after that.
        wait: Time<1, WAIT_MAX_MS> = "100ms",
    }

    /// A limit on the requests in flight that follows the service: it grows while latency stays near what it is without a
    /// queue, and shrinks when it rises. `{}`: with the defaults. Where there is a `bulkhead` too the lower limit counts.
    pub(crate) struct AdaptiveSection {
        /// The limit is never below.
        min: Int<1, 1_000_000> = "5",
        /// The limit is never above.
        max: Int<1, 1_000_000> = "1000",
        /// By how much latency may be above what it is without a queue.
        tolerance: Percent<5, 200> = "25%",
        /// How often the latency without a queue is measured anew; the limit is a third meanwhile, for as long as it takes to
        /// answer about a hundred requests.
        probe_interval: Time<1_000, HOUR_MS> = "30s",
    }
}

/// `None`: there is no limit.
pub(crate) fn compile(
    bulkhead: Option<BulkheadSection>,
    adaptive: Option<Spanned<AdaptiveSection>>,
    cx: &mut Cx,
) -> Option<BulkheadSettings> {
    let requests = bulkhead.as_ref().map(|section| section.requests.0 as u32);
    let limits = adaptive.map(|section| section.compile(requests, cx));
    let mut settings = BulkheadSettings { requests, adaptive: limits, ..BulkheadSettings::default() };
    if let Some(section) = bulkhead {
        settings.pending = section.pending.0 as u32;
        settings.wait_us = section.wait.0.as_micros() as u64;
    }
    (requests.is_some() || settings.adaptive.is_some()).then_some(settings)
}

impl Spanned<AdaptiveSection> {
    fn compile(self, requests: Option<u32>, cx: &mut Cx) -> AdaptiveSettings {
        let Self { value: section, span } = self;
        let (min, max) = (section.min.0 as u32, section.max.0 as u32);
        if min > max {
            cx.error(span, format!("`min` ({min}) is above `max` ({max})"), None);
        } else if let Some(requests) = requests.filter(|requests| *requests < min) {
            let message = format!("`min` ({min}) is above what `bulkhead.requests` ({requests}) allows");
            cx.error(span, message, "lower `min`, or leave one of them out");
        }
        AdaptiveSettings {
            min,
            max,
            tolerance: section.tolerance.0,
            probe_interval_us: section.probe_interval.0.as_micros() as u64,
        }
    }
}
