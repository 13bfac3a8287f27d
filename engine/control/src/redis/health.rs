//! Whether Redis answers soon enough for a request to wait for it.

/// Without a sign of life for so long while something is unanswered, Redis is away. A packet that was lost and sent again
/// takes 200 ms and more: one alone must not count as an outage.
const SILENCE_US_MAX: u64 = 300_000;
/// Round trips are averaged over about this time. With the clamp below, one stall is forgiven up to 300 ms, and an average
/// that was bad is good again within a second.
const AVERAGE_OVER_US: f64 = 900_000.0;
/// A round trip counts for at most so many times what is allowed.
const CLAMP: f64 = 3.0;

/// Whether rate limits have to do without Redis. Times are microseconds of one clock that only goes forward.
#[derive(Debug)]
pub(super) struct Health {
    /// The average round trip must not exceed it.
    allowed_us: u64,
    in_flight: usize,
    /// Since when there was no sign of life, while there should have been one.
    silent_since_us: Option<u64>,
    is_refused: bool,
    average_us: f64,
    last_answer_us: Option<u64>,
}

impl Health {
    pub(super) fn new(allowed_us: u64) -> Self {
        Self {
            allowed_us,
            in_flight: 0,
            silent_since_us: None,
            is_refused: false,
            average_us: 0.0,
            last_answer_us: None,
        }
    }

    /// Something was sent; either [`Health::answered`] or [`Health::unanswered`] follows.
    pub(super) fn sent(&mut self, now_us: u64) {
        self.in_flight += 1;
        self.silent_since_us.get_or_insert(now_us);
    }

    pub(super) fn answered(&mut self, sent_us: u64, now_us: u64) {
        self.in_flight = self.in_flight.saturating_sub(1);
        self.silent_since_us = (self.in_flight > 0).then_some(now_us);
        let clamp = self.allowed_us as f64 * CLAMP;
        let sample = (now_us.saturating_sub(sent_us) as f64).min(clamp);
        // What is answered at once after a long pause says nothing about the pause.
        let since = now_us.saturating_sub(self.last_answer_us.unwrap_or(sent_us)).min(SILENCE_US_MAX);
        let weight = 1.0 - (-(since as f64) / AVERAGE_OVER_US).exp();
        self.average_us += (sample - self.average_us) * weight;
        self.last_answer_us = Some(now_us);
    }

    pub(super) fn unanswered(&mut self) {
        self.in_flight = self.in_flight.saturating_sub(1);
    }

    /// The connection is gone, or not there yet.
    pub(super) fn missing(&mut self, now_us: u64) {
        self.silent_since_us.get_or_insert(now_us);
    }

    /// A try to connect was refused.
    pub(super) fn refused(&mut self) {
        self.is_refused = true;
    }

    pub(super) fn connected(&mut self, now_us: u64) {
        self.is_refused = false;
        self.silent_since_us = (self.in_flight > 0).then_some(now_us);
    }

    /// How long there has been no sign of life while something is unanswered.
    pub(super) fn silent_us(&self, now_us: u64) -> u64 {
        self.silent_since_us.map_or(0, |since| now_us.saturating_sub(since))
    }

    pub(super) fn is_degraded(&self, now_us: u64) -> bool {
        self.silent_us(now_us) >= SILENCE_US_MAX || self.is_refused || self.average_us > self.allowed_us as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000;

    /// A call every 10 ms from `from` to `to`, each answered after `round_trip`. When the health changed, if it did.
    fn calls(health: &mut Health, from: u64, to: u64, round_trip: u64) -> Option<u64> {
        let before = health.is_degraded(from);
        (from..to).step_by(10 * MS as usize).find(|at| {
            health.sent(*at);
            health.answered(*at, at + round_trip);
            health.is_degraded(at + round_trip) != before
        })
    }

    #[test]
    fn quick_answers_and_pauses_are_fine() {
        let mut health = Health::new(5 * MS);
        assert_eq!(calls(&mut health, 0, 10_000 * MS, 400), None);
        assert!(!health.is_degraded(100_000 * MS));
    }

    #[test]
    fn one_stall_is_forgiven_and_silence_is_not() {
        let mut health = Health::new(5 * MS);
        calls(&mut health, 0, 1_000 * MS, 400);
        // All that was sent during the stall comes at once.
        (0..29).for_each(|n| health.sent(1_000 * MS + n * 10 * MS));
        (0..29).for_each(|n| health.answered(1_000 * MS + n * 10 * MS, 1_290 * MS));
        assert!(!health.is_degraded(1_290 * MS), "{health:?}");
        calls(&mut health, 1_300 * MS, 3_000 * MS, 400);
        health.sent(3_000 * MS);
        assert!(!health.is_degraded(3_299 * MS));
        assert!(health.is_degraded(3_300 * MS));
        health.answered(3_000 * MS, 3_400 * MS);
        let back = (3_400 * MS..).step_by(10 * MS as usize).find(|at| {
            health.sent(*at);
            health.answered(*at, at + 400);
            !health.is_degraded(at + 400)
        });
        assert!(back.unwrap() < 4_000 * MS, "{back:?}");
    }

    #[test]
    fn slow_answers_end_it_and_quick_ones_bring_it_back_within_two_seconds() {
        let mut health = Health::new(5 * MS);
        calls(&mut health, 0, 1_000 * MS, 400);
        let slow = calls(&mut health, 1_000 * MS, 3_000 * MS, 200 * MS).expect("degraded");
        assert!(slow < 1_500 * MS, "{slow}");
        calls(&mut health, slow, 5_000 * MS, 200 * MS);
        let back = calls(&mut health, 5_300 * MS, 9_000 * MS, 400).expect("recovered");
        assert!(back < 7_000 * MS, "{back}");
    }

    #[test]
    fn refused_is_at_once_and_missing_takes_its_time() {
        let mut health = Health::new(5 * MS);
        health.missing(0);
        assert!(!health.is_degraded(299 * MS));
        assert!(health.is_degraded(300 * MS));
        health.connected(400 * MS);
        assert!(!health.is_degraded(5_000 * MS));
        health.missing(6_000 * MS);
        health.refused();
        assert!(health.is_degraded(6_000 * MS));
        health.connected(6_001 * MS);
        assert!(!health.is_degraded(6_001 * MS));
    }
}
