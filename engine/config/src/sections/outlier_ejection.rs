//! When an endpoint is left out for how it answers.

use std::time::Duration;

use ringway_core::ejection::{EjectionSettings, Slowness, SuccessRate};

use crate::decode::{Cx, Spanned};
use crate::percent::Percent;
use crate::scalar::{Int, OrOff};
use crate::shape::shape;
use crate::units::{DAY_MS, HOUR_MS, Time};

shape! {
    /// Leaves endpoints out for a while that answer badly, or not at all. `{}`: with the defaults.
    pub(crate) struct OutlierEjectionSection {
        /// Failed requests in a row after which an endpoint is left out: answers of 5xx, none in time, broken connections,
        /// and none at all.
        consecutive_failures: OrOff<Int<1, 1_000_000>> = "5",
        /// Connections in a row that could not be made, after which it is left out.
        consecutive_connect_failures: OrOff<Int<1, 1_000_000>> = "2",
        /// Compares its success rate with that of the others.
        success_rate: Option<SuccessRateSection>,
        /// Compares its latency with that of the others.
        latency: Option<SlownessSection>,
        /// Between two comparisons. One without an ejection makes up for an earlier one.
        interval: Time<100, HOUR_MS> = "10s",
        /// How long it is left out the first time; twice as long the second time, three times the third.
        base_time: Time<100, HOUR_MS> = "30s",
        /// How long at most.
        max_time: Spanned<Time<100, DAY_MS>> = "300s",
        /// Share of the endpoints that may be left out at a time; one may in any case, where there is another.
        max_share: Percent<1, 100> = "50%",
    }

    /// How much more often an endpoint may fail than the others.
    pub(crate) struct SuccessRateSection {
        /// Percentage points that its success rate may be below that of the others together.
        margin: Percent<1, 100> = "20%",
        /// Requests in `interval` below which an endpoint is neither judged nor compared with.
        min_requests: Int<1, 1_000_000> = "50",
    }

    /// How much slower an endpoint may be than the others.
    pub(crate) struct SlownessSection {
        /// How many times the mean latency of the others together its own may be.
        factor: Int<2, 1000> = "3",
        /// How much longer it must be besides: where answers take a millisecond, three times as long is nothing.
        margin: Time<0, HOUR_MS> = "10ms",
        /// Requests in `interval` below which an endpoint is neither judged nor compared with.
        min_requests: Int<1, 1_000_000> = "50",
    }
}

impl Spanned<OutlierEjectionSection> {
    pub(crate) fn compile(self, cx: &mut Cx) -> EjectionSettings {
        let Self { value: section, span } = self;
        let us = |duration: Duration| duration.as_micros() as u64;
        let settings = EjectionSettings {
            consecutive_failures: section.consecutive_failures.0.map(|count| count.0 as u32),
            consecutive_connect_failures: section.consecutive_connect_failures.0.map(|count| count.0 as u32),
            success_rate: section
                .success_rate
                .map(|rule| SuccessRate { margin: rule.margin.0, min_requests: rule.min_requests.0 as u64 }),
            latency: section.latency.map(|rule| Slowness {
                factor: rule.factor.0 as u32 * 100,
                margin_us: us(rule.margin.0),
                min_requests: rule.min_requests.0 as u64,
            }),
            interval_us: us(section.interval.0),
            base_us: us(section.base_time.0),
            max_us: us(section.max_time.value.0),
            max_share: section.max_share.0,
        };
        if settings.max_us < settings.base_us {
            cx.error(section.max_time.span, "`max_time` is shorter than `base_time`", "the same, or longer");
        }
        let EjectionSettings { consecutive_failures, consecutive_connect_failures, success_rate, latency, .. } =
            settings;
        let is_idle = consecutive_failures.is_none() && consecutive_connect_failures.is_none();
        if is_idle && success_rate.is_none() && latency.is_none() {
            let hint = "leave `outlier_ejection` out, or say one of `consecutive_failures`, \
                        `consecutive_connect_failures`, `success_rate` and `latency`";
            cx.error(span, "nothing ejects an endpoint here", hint);
        }
        settings
    }
}
