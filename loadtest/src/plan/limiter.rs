//! What the rate limiter asks of Redis, from the parameters that its design fixes.
//!
//! An instance keeps a cell per key and reconciles it with Redis, with one call in flight per key. A policy is fast if
//! its rate over 100 ms comes to at least four requests per instance; then instances hold leases and call every 100 ms
//! while there is something to say. Any other policy is slow: what was admitted is reported at once. A slow policy whose
//! burst is too small to share is strict: every request waits for Redis' word.

use serde::Serialize;

use super::quantity::Limit;

/// Between two calls of an instance for one key of a fast policy.
const SYNC_S: f64 = 0.1;
/// A policy is fast from this many requests per instance and interval.
const FAST_FROM: f64 = 4.0;
/// Share of the burst that the instances of a slow policy may admit before they report.
const SLOW_DEBT: f64 = 0.1;
/// Longest time for which an instance refuses a key before it asks again.
const DENY_FLOOR_S_MAX: f64 = 0.01;
/// CPU time of Redis for one call.
const CALL_US: f64 = 10.0;

/// Who is limited, and to what.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct Demand {
    /// That are active at the same time.
    pub(crate) keys: u64,
    pub(crate) limit_requests: u64,
    pub(crate) limit_period_s: f64,
    pub(crate) burst: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Kind {
    Fast,
    Slow,
    Strict,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct RedisLoad {
    pub(crate) kind: Kind,
    /// Requests per second that the limits let through in the long run.
    pub(crate) admitted_per_s: f64,
    pub(crate) calls_per_s: f64,
    /// However the requests arrive, keys above their limit included.
    pub(crate) calls_per_s_max: f64,
    /// Of Redis, for `calls_per_s`. Redis runs commands on one core, so that more than 1 needs more than one Redis.
    pub(crate) cores: f64,
}

impl Demand {
    pub(crate) fn new(keys: u64, limit: Limit, burst: Option<u64>) -> Self {
        let burst = burst.unwrap_or(limit.requests);
        Self { keys, limit_requests: limit.requests, limit_period_s: limit.period_s, burst }
    }

    pub(crate) fn redis_load(&self, requests_per_s: f64, instances: u64) -> RedisLoad {
        let (keys, instances) = (self.keys as f64, instances as f64);
        let admitted_per_s = requests_per_s.min(keys * self.rate());
        let synced_per_s = keys * instances / SYNC_S;
        let denied_per_s = keys * instances / DENY_FLOOR_S_MAX.min(self.burst as f64 / (50.0 * self.rate()));
        let kind = self.kind(instances);
        // What the limiter states for each key, and what must hold because a call needs at least one request to cause
        // it; a lease that comes back is one call more.
        let stated_per_s = admitted_per_s + denied_per_s + synced_per_s;
        let (calls_per_s, caused_per_s) = match kind {
            Kind::Fast => (admitted_per_s.min(synced_per_s), 2.0 * requests_per_s),
            Kind::Slow | Kind::Strict => (admitted_per_s, requests_per_s),
        };
        RedisLoad {
            kind,
            admitted_per_s,
            calls_per_s,
            calls_per_s_max: stated_per_s.min(caused_per_s),
            cores: calls_per_s * CALL_US / 1e6,
        }
    }

    /// Requests per second that one key may make in the long run.
    pub(crate) fn rate(&self) -> f64 {
        self.limit_requests as f64 / self.limit_period_s
    }

    fn kind(&self, instances: f64) -> Kind {
        if self.rate() * SYNC_S >= FAST_FROM * instances {
            Kind::Fast
        } else if (SLOW_DEBT * self.burst as f64 / instances).floor() >= 1.0 {
            Kind::Slow
        } else {
            Kind::Strict
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn demand(keys: u64, limit: &str, burst: Option<u64>) -> Demand {
        Demand::new(keys, limit.parse().unwrap(), burst)
    }

    #[test]
    fn slow_policies_call_once_per_admitted_request() {
        // 100/min for each of 3,000 keys: 5,000/s of the 10,000/s are admitted.
        let load = demand(3_000, "100/min", None).redis_load(10_000.0, 10);
        assert_eq!((load.kind, load.admitted_per_s, load.calls_per_s), (Kind::Slow, 5_000.0, 5_000.0));
        assert_eq!((load.calls_per_s_max, load.cores), (10_000.0, 0.05));
        // 10 % of a burst of 100 over 11 instances is less than one request.
        assert_eq!(demand(3_000, "100/min", None).redis_load(10_000.0, 11).kind, Kind::Strict);
    }

    #[test]
    fn fast_policies_call_ten_times_a_second() {
        // 400/s x 0.1 s = 40 = 4 x 10.
        let load = demand(50, "400/s", None).redis_load(10_000.0, 10);
        assert_eq!((load.kind, load.calls_per_s, load.cores), (Kind::Fast, 5_000.0, 0.05));
        assert_eq!(demand(50, "399/s", None).redis_load(10_000.0, 10).kind, Kind::Slow);
        // With few requests per key there is not always something to say.
        assert_eq!(demand(5_000, "400/s", None).redis_load(10_000.0, 10).calls_per_s, 10_000.0);
    }

    #[test]
    fn the_stated_bound_holds_where_it_is_the_smaller() {
        // One key: 400 admitted, 10 instances ask again every 10 ms, and sync every 100 ms.
        let load = demand(1, "400/s", None).redis_load(10_000.0, 10);
        assert_eq!(load.calls_per_s_max, 400.0 + 1_000.0 + 100.0);
        // A small burst shortens the time of refusal: 1 / (50 x 400/s) = 50 us.
        let load = demand(1, "400/s", Some(1)).redis_load(1e9, 1);
        assert!((load.calls_per_s_max - (400.0 + 20_000.0 + 10.0)).abs() < 1e-6, "{load:?}");
    }

    proptest! {
        #[test]
        fn calls_lie_within_their_bounds(
            keys in 1..1_000_000u64, requests in 1..1_000_000u64, period_s in 1.0..3_600.0f64, burst in 1..100_000u64,
            requests_per_s in 1.0..1e6f64, instances in 1..50u64,
        ) {
            let limit = Limit { requests, period_s };
            let load = Demand::new(keys, limit, Some(burst)).redis_load(requests_per_s, instances);
            prop_assert!(load.admitted_per_s <= requests_per_s);
            prop_assert!(load.calls_per_s <= load.admitted_per_s);
            prop_assert!(load.calls_per_s <= load.calls_per_s_max, "{load:?}");
            prop_assert!(load.calls_per_s_max <= 2.0 * requests_per_s);
        }
    }
}
