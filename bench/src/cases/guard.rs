//! What watches and guards a service: breaker, retry budget, bulkhead, adaptive limit, latency of an endpoint. A request to a
//! service that has all of it goes through each of these once.

use std::hint::black_box;
use std::sync::Arc;

use ringway_core::adaptive::AdaptiveSettings;
use ringway_core::breaker::{Breaker, BreakerSettings, Outcome};
use ringway_core::bulkhead::{Bulkhead, BulkheadSettings};
use ringway_core::ewma::PeakEwma;
use ringway_core::retry_budget::RetryBudget;

use super::Case;

/// What a request takes at a busy moment, and how much later the next one comes.
const TOOK_US: u64 = 180;
const STEP_US: u64 = 15;

const BREAKER: BreakerSettings = BreakerSettings {
    error_share: Some(50),
    min_requests: 10,
    window_us: 10_000_000,
    consecutive_failures: Some(5),
    slow: None,
    open_us: 30_000_000,
    probes: 3,
};
const ADAPTIVE: AdaptiveSettings =
    AdaptiveSettings { min: 500, max: 10_000, tolerance: 25, probe_interval_us: 30_000_000 };

/// A clock that moves on with each call.
fn clock() -> impl FnMut() -> u64 {
    let mut now_us = 1_000_000;
    move || {
        now_us += STEP_US;
        now_us
    }
}

pub(super) fn cases() -> Vec<Case> {
    vec![
        Case::new("guard", "breaker", || {
            let (breaker, mut now_us) = (Breaker::new(1), clock());
            move || {
                let now_us = now_us();
                let (ticket, _) = breaker.admit(black_box(&BREAKER), now_us).expect("it is closed");
                breaker.settle(0, &BREAKER, ticket, Outcome::Good, now_us + TOOK_US, 0)
            }
        }),
        Case::new("guard", "retry_budget", || {
            let (budget, mut now_us) = (RetryBudget::new(1), clock());
            move || budget.request(0, now_us())
        }),
        Case::new("guard", "bulkhead", || {
            let bulkhead = Arc::new(Bulkhead::default());
            let settings =
                BulkheadSettings { requests: Some(10_000), adaptive: Some(ADAPTIVE), ..BulkheadSettings::default() };
            move || drop(bulkhead.enter(black_box(&settings)).expect("a place"))
        }),
        Case::new("guard", "adaptive_limit", || {
            let (bulkhead, mut now_us) = (Bulkhead::default(), clock());
            move || bulkhead.adaptive.sample(black_box(&ADAPTIVE), TOOK_US, now_us())
        }),
        Case::new("guard", "peak_ewma", || {
            let (latency, mut now_us) = (PeakEwma::default(), clock());
            move || {
                let now_us = now_us();
                let cost = latency.cost(1, now_us);
                latency.observe(TOOK_US, now_us + TOOK_US);
                cost
            }
        }),
    ]
}
