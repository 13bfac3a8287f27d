//! When a certificate is ordered anew. Times are Unix time in milliseconds.

use std::time::Duration;

/// By so much of its lifetime orders are spread, so that gateways and certificates of one age do not come all at once.
const SPREAD: f64 = 0.02;
/// How long before its end a certificate is renewed at the earliest: orders never follow each other at once.
const RENEW_BEFORE_MAX: f64 = 0.5;
/// How often an authority is asked for its advice at least and at most (RFC 9773 section 4.3.2).
const ASK_MIN: Duration = Duration::from_secs(60);
const ASK_MAX: Duration = Duration::from_secs(24 * 3600);
/// No Retry-After keeps orders back for longer.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(24 * 3600);

/// When a certificate is renewed that is valid between these seconds of Unix time: `before` its end, or else at two thirds of
/// its lifetime. `place`: from 0 to 1, drawn once for a certificate.
pub(super) fn renewal_ms((from_s, to_s): (i64, i64), before: Option<Duration>, place: f64) -> u64 {
    let (from, to) = (from_s as f64 * 1e3, to_s as f64 * 1e3);
    let lifetime = (to - from).max(0.0);
    let before = before.map_or(lifetime / 3.0, |before| before.as_secs_f64() * 1e3).min(lifetime * RENEW_BEFORE_MAX);
    // Earlier, never later.
    (to - before - lifetime * SPREAD * place).max(0.0) as u64
}

/// A moment of the window that an authority suggests, in seconds (RFC 9773 section 4.2).
pub(super) fn suggested_ms((start_s, end_s): (i64, i64), place: f64) -> u64 {
    let (start, end) = (start_s as f64 * 1e3, end_s as f64 * 1e3);
    (start + (end - start).max(0.0) * place).max(0.0) as u64
}

/// Until an authority is asked for its advice again, where it says `after`.
pub(super) fn ask_again(after: Duration) -> Duration {
    after.clamp(ASK_MIN, ASK_MAX)
}

/// Until the next try after so many `failures` in a row, at least 1. `random`: from 0 to 1.
pub(super) fn back_off(
    failures: u32,
    (min, max): (Duration, Duration),
    random: f64,
    retry_after: Option<Duration>,
) -> Duration {
    let doubled = min.saturating_mul(1 << failures.saturating_sub(1).min(20)).min(max);
    let jittered = doubled.mul_f64(0.8 + random * 0.2);
    jittered.max(retry_after.unwrap_or_default().min(RETRY_AFTER_MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY_S: i64 = 24 * 3600;

    #[test]
    fn renewal_is_at_two_thirds_or_as_told() {
        let validity = (1_000_000, 1_000_000 + 90 * DAY_S);
        let day = |ms: u64| (ms as i64 / 1000 - 1_000_000) as f64 / DAY_S as f64;
        assert_eq!(day(renewal_ms(validity, None, 0.0)), 60.0);
        assert_eq!(day(renewal_ms(validity, None, 1.0)), 58.2);
        assert_eq!(day(renewal_ms(validity, Some(Duration::from_secs(10 * DAY_S as u64)), 0.0)), 80.0);
        assert_eq!(day(renewal_ms(validity, Some(Duration::from_secs(89 * DAY_S as u64)), 0.0)), 45.0);
        assert_eq!(renewal_ms((10, 0), None, 0.5), 0);
    }

    #[test]
    fn an_authority_s_window_is_used_from_end_to_end() {
        assert_eq!([0.0, 0.5, 1.0].map(|place| suggested_ms((100, 200), place)), [100_000, 150_000, 200_000]);
        assert_eq!(suggested_ms((100, 50), 0.7), 100_000);
        assert_eq!(suggested_ms((-100, -50), 0.7), 0);
    }

    #[test]
    fn failures_are_tried_again_ever_later() {
        let bounds = (Duration::from_secs(60), Duration::from_secs(3600));
        let waits = |random| (1..9).map(move |failures| back_off(failures, bounds, random, None).as_secs());
        assert_eq!(waits(1.0).collect::<Vec<_>>(), [60, 120, 240, 480, 960, 1920, 3600, 3600]);
        assert_eq!(waits(0.0).next(), Some(48));
        assert_eq!(back_off(u32::MAX, bounds, 1.0, None), bounds.1);
        let told = |seconds| back_off(1, bounds, 1.0, Some(Duration::from_secs(seconds))).as_secs();
        assert_eq!((told(5), told(900), told(u64::MAX)), (60, 900, 24 * 3600));
        assert_eq!(ask_again(Duration::ZERO), ASK_MIN);
        assert_eq!(ask_again(Duration::from_secs(21_600)).as_secs(), 21_600);
    }
}
