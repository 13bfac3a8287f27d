//! A policy, compiled: exact arithmetic in whole units, and the parameters that follow from the number of instances.

use std::sync::Arc;
use std::time::Duration;

/// Leases out at any time are at most the burst's `1 / LEASE_SHARE`.
pub const LEASE_SHARE: u64 = 12;
/// A request is held at most this long for Redis' word, and a reply older than this grants nothing, in microseconds.
pub const HOLD_US: u64 = 5_000;
/// A held request that is granted may wait this much longer for its token, in microseconds.
pub const WAIT_US_MAX: u64 = 2_000;
/// How often a cell that has something to say says it, and how long it is idle before it returns its lease.
pub const PERIOD_US: u64 = 100_000;
/// Calls for one key are at least this far apart, in microseconds.
pub const CALL_GAP_US: u64 = 2_000;
/// A call without a reply counts as lost after this long, in microseconds.
pub const LOST_US: u64 = 50_000;
/// More instances than this are counted as this many.
pub const INSTANCES_MAX: u32 = 1_024;

/// Redis computes in doubles: three times a bucket, and a bucket and a wait, must stay below 2^53.
const BUCKET_UNITS_MAX: u128 = 1 << 51;
/// What an instance may owe or lease of one key: a cell counts both in 32 bits.
const SHARE_MAX: u64 = 1 << 29;

/// What a policy asks, as written in the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spec {
    /// What the policy is called, in headers and metrics.
    pub name: Arc<str>,
    /// Tokens per `period`.
    pub limit: u64,
    pub period: Duration,
    /// Tokens that a key may take at once.
    pub burst: u64,
    /// Every request waits for Redis' word.
    pub strict: bool,
    pub without_redis: Fallback,
    /// How many keys are told apart at the same time; those beyond share one bucket.
    pub keys_max: usize,
}

/// What is decided by while Redis is configured and away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fallback {
    /// Each instance keeps its share of the limit by itself.
    FairShare,
    /// Everything is admitted.
    Open,
    /// Nothing is admitted: [`Decision::Unavailable`](super::Decision::Unavailable).
    Closed,
}

/// What makes a policy impossible.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    #[error("the limit must be at least 1")]
    NoLimit,
    #[error("the period must be at least a microsecond")]
    NoPeriod,
    #[error("the burst must be at least 1")]
    NoBurst,
    #[error("at least one key must be told apart")]
    NoKeys,
    #[error("the burst takes too long to come back; allow a smaller burst or a higher limit")]
    BurstTooLarge,
    #[error("the limit is too high for its period")]
    LimitTooHigh,
}

/// A policy, compiled. Time is counted in units of 1/L microsecond, in which one token costs exactly P units, where L
/// and P are the limit and the period in microseconds without their common divisor: nothing is ever rounded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    spec: Spec,
    /// L: units in a microsecond.
    pub(super) per_us: u64,
    /// P: units that a token costs.
    pub(super) token: u64,
    /// B * P: the units of an empty bucket.
    pub(super) full: u64,
}

/// What follows from the number of instances.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shares {
    /// N: live instances, this one among them.
    pub instances: u32,
    /// Cells hold leases; otherwise they admit first and report at once.
    pub leases: bool,
    /// q: what one instance may admit of a key before it has told Redis, in tokens.
    pub debt_max: u64,
}

impl Policy {
    /// Compiles a policy.
    ///
    /// # Errors
    /// Where something is zero, or where Redis' doubles could not count it: a burst of more than 2^51 units, a limit of
    /// more than 2^40 tokens per microsecond of the period once both are reduced.
    pub fn new(spec: &Spec) -> Result<Self, PolicyError> {
        if spec.limit == 0 {
            return Err(PolicyError::NoLimit);
        }
        if spec.burst == 0 {
            return Err(PolicyError::NoBurst);
        }
        if spec.keys_max == 0 {
            return Err(PolicyError::NoKeys);
        }
        let period_us = u64::try_from(spec.period.as_micros()).map_err(|_| PolicyError::BurstTooLarge)?;
        if period_us == 0 {
            return Err(PolicyError::NoPeriod);
        }
        let divisor = greatest_common_divisor(spec.limit, period_us);
        let (per_us, token) = (spec.limit / divisor, period_us / divisor);
        if per_us > 1 << 40 {
            return Err(PolicyError::LimitTooHigh);
        }
        let full = u128::from(spec.burst) * u128::from(token);
        if full > BUCKET_UNITS_MAX {
            return Err(PolicyError::BurstTooLarge);
        }
        Ok(Self { spec: spec.clone(), per_us, token, full: u64::try_from(full).unwrap_or(u64::MAX) })
    }

    pub fn spec(&self) -> &Spec {
        &self.spec
    }

    /// The shares of each of `instances` instances, at least 1 and at most [`INSTANCES_MAX`].
    pub fn shares(&self, instances: u32) -> Shares {
        let instances = instances.clamp(1, INSTANCES_MAX);
        let n = u64::from(instances);
        // L/P * T >= 4N: a lease per instance and period is worth its calls.
        let is_fast = u128::from(self.per_us) * u128::from(PERIOD_US) >= 4 * u128::from(n) * u128::from(self.token);
        let debt_max = match (self.spec.strict, is_fast) {
            (true, _) => 0,
            (false, true) => self.spec.burst / (60 * n),
            (false, false) => self.spec.burst / (10 * n),
        };
        Shares { instances, leases: is_fast && !self.spec.strict, debt_max: debt_max.min(SHARE_MAX) }
    }

    /// H: by how many tokens at most `instances` instances together exceed burst and rate in any window:
    /// admitted <= B + rate * W + H, as long as every live instance is counted, Redis keeps its state and no instance
    /// has to do without it. 0 for one instance without Redis.
    pub fn bound(&self, instances: u32) -> u64 {
        let shares = self.shares(instances);
        let leases = if shares.leases { self.spec.burst / LEASE_SHARE } else { 0 };
        u64::from(shares.instances) * shares.debt_max + leases + self.tokens_in(HOLD_US)
    }

    /// Tokens that come back in so many microseconds, rounded up.
    pub(super) fn tokens_in(&self, us: u64) -> u64 {
        let units = u128::from(us) * u128::from(self.per_us);
        u64::try_from(units.div_ceil(u128::from(self.token))).unwrap_or(u64::MAX)
    }

    /// The microseconds in which `units` pass, rounded up.
    #[inline]
    pub(super) fn us(&self, units: u64) -> u64 {
        units.div_ceil(self.per_us)
    }

    /// The time after a refusal in which nobody asks Redis, in microseconds: 10 ms, or the time in which a fiftieth of
    /// the burst comes back if that is less.
    pub(super) fn deny_floor_us(&self) -> u64 {
        (self.full / self.per_us / 50).min(10_000)
    }

    /// The most that one of `instances` instances may hold as a lease.
    pub(super) fn lease_max(&self, shares: Shares) -> u64 {
        if !shares.leases {
            return 0;
        }
        (self.spec.burst / LEASE_SHARE / u64::from(shares.instances)).min(SHARE_MAX)
    }
}

fn greatest_common_divisor(mut a: u64, mut b: u64) -> u64 {
    while b > 0 {
        (a, b) = (b, a % b);
    }
    a
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(limit: u64, period: Duration, burst: u64) -> Spec {
        let without_redis = Fallback::FairShare;
        Spec { name: "test".into(), limit, period, burst, strict: false, without_redis, keys_max: 1000 }
    }

    #[test]
    fn a_token_is_a_whole_number_of_units() {
        let units = |limit, period, burst| {
            let policy = Policy::new(&spec(limit, period, burst)).unwrap();
            (policy.per_us, policy.token, policy.full)
        };
        assert_eq!(units(100, Duration::from_secs(60), 100), (1, 600_000, 60_000_000));
        assert_eq!(units(700_000, Duration::from_secs(1), 10), (7, 10, 100));
        assert_eq!(units(3_000_000, Duration::from_secs(1), 1), (3, 1, 1));
        assert_eq!(units(7_777, Duration::from_secs(1), 1), (7_777, 1_000_000, 1_000_000));
    }

    #[test]
    fn impossible_policies_are_refused() {
        let second = Duration::from_secs(1);
        let error = |spec: Spec| Policy::new(&spec).err();
        assert_eq!(error(spec(0, second, 1)), Some(PolicyError::NoLimit));
        assert_eq!(error(spec(1, Duration::from_nanos(999), 1)), Some(PolicyError::NoPeriod));
        assert_eq!(error(spec(1, second, 0)), Some(PolicyError::NoBurst));
        assert_eq!(error(Spec { keys_max: 0, ..spec(1, second, 1) }), Some(PolicyError::NoKeys));
        assert_eq!(error(spec(1, Duration::MAX, 1)), Some(PolicyError::BurstTooLarge));
        assert_eq!(error(spec(1 << 41, Duration::from_micros(1), 1)), Some(PolicyError::LimitTooHigh));
        let month = Duration::from_secs(30 * 86_400);
        assert_eq!(error(spec(1, month, 868)), None);
        assert_eq!(error(spec(1, month, 869)), Some(PolicyError::BurstTooLarge));
    }

    #[test]
    fn shares_and_bound_are_those_of_the_formula() {
        let of = |limit, seconds, n| {
            let policy = Policy::new(&spec(limit, Duration::from_secs(seconds), limit)).unwrap();
            let shares = policy.shares(n);
            (shares.leases, shares.debt_max, policy.bound(n))
        };
        assert_eq!(of(100, 60, 4), (false, 2, 4 * 2 + 1));
        assert_eq!(of(100, 60, 16), (false, 0, 1));
        assert_eq!(of(50, 1, 4), (false, 1, 4 + 1));
        assert_eq!(of(5_000, 1, 4), (true, 20, 4 * 20 + 416 + 25));
        assert_eq!(of(5_000, 1, 0), of(5_000, 1, 1));
        let strict = Policy::new(&Spec { strict: true, ..spec(5_000, Duration::from_secs(1), 5_000) }).unwrap();
        assert_eq!(strict.bound(4), 25);
    }
}
