//! Leaves a service alone that fails every time: it answers at once, for a while, that the service is down.

use std::time::Duration;

/// When it trips, and for how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BreakerSettings {
    /// Failures in a row that trip it; at least 1.
    pub failures: u32,
    /// How long it stays open at least; up to a half more, at random, so that the cores do not probe together.
    pub open: Duration,
}

/// The breaker of one core. Time is any clock's that only goes forward.
#[derive(Debug, Default)]
pub struct Breaker {
    failures: u32,
    state: State,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum State {
    #[default]
    Closed,
    Open {
        until: Duration,
    },
    /// One call is let through, and what comes of it decides.
    Probing,
}

impl Breaker {
    /// Whether a call may be made now. Each call that is made is followed by one of the other three.
    pub fn admit(&mut self, now: Duration) -> bool {
        match self.state {
            State::Closed => true,
            State::Open { until } if now >= until => {
                self.state = State::Probing;
                true
            }
            State::Open { .. } | State::Probing => false,
        }
    }

    pub fn succeeded(&mut self) {
        *self = Self::default();
    }

    /// Whether it has tripped now. `random`: any bits.
    pub fn failed(&mut self, settings: BreakerSettings, now: Duration, random: u64) -> bool {
        self.failures = self.failures.saturating_add(1);
        // What was under way when it tripped tells nothing new.
        let trips = match self.state {
            State::Closed => self.failures >= settings.failures,
            State::Probing => true,
            State::Open { .. } => false,
        };
        if trips {
            let half = settings.open.as_micros() as u64 / 2;
            let jitter = Duration::from_micros(random.checked_rem(half + 1).unwrap_or_default());
            self.state = State::Open { until: now + settings.open + jitter };
        }
        trips
    }

    /// The call ended without a word on the service: its client went away.
    pub fn abandoned(&mut self) {
        if self.state == State::Probing {
            self.state = State::Open { until: Duration::ZERO };
        }
    }

    pub fn is_open(&self) -> bool {
        self.state != State::Closed
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SETTINGS: BreakerSettings = BreakerSettings { failures: 3, open: Duration::from_secs(4) };

    fn at(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    #[test]
    fn failures_in_a_row_trip_it_and_a_probe_that_succeeds_closes_it() {
        let mut breaker = Breaker::default();
        assert!(!breaker.failed(SETTINGS, at(0), 0) && !breaker.failed(SETTINGS, at(0), 0));
        breaker.succeeded();
        assert!(!breaker.failed(SETTINGS, at(1), 0) && !breaker.failed(SETTINGS, at(1), 0));
        assert!(breaker.admit(at(1)) && !breaker.is_open());
        assert!(breaker.failed(SETTINGS, at(1), 0) && breaker.is_open());
        assert!(!breaker.admit(at(4)));
        assert!(breaker.admit(at(5)) && !breaker.admit(at(5)), "one probe at a time");
        breaker.succeeded();
        assert!(breaker.admit(at(5)) && breaker.admit(at(5)));
    }

    #[test]
    fn a_probe_that_fails_or_is_abandoned_is_followed_by_another() {
        let mut breaker = Breaker::default();
        (0..3).for_each(|_| _ = breaker.failed(SETTINGS, at(0), 0));
        assert!(breaker.admit(at(4)) && breaker.failed(SETTINGS, at(4), 0));
        assert!(!breaker.admit(at(7)) && breaker.admit(at(8)));
        breaker.abandoned();
        assert!(breaker.admit(at(8)));
    }

    #[test]
    fn late_failures_do_not_keep_it_open() {
        let mut breaker = Breaker::default();
        (0..3).for_each(|_| _ = breaker.failed(SETTINGS, at(0), 0));
        assert!(!breaker.failed(SETTINGS, at(3), 0));
        assert!(breaker.admit(at(4)));
    }

    proptest! {
        #[test]
        fn the_time_is_between_once_and_one_and_a_half_of_the_setting(random: u64) {
            let mut breaker = Breaker::default();
            (0..3).for_each(|_| _ = breaker.failed(SETTINGS, at(10), random));
            prop_assert!(!breaker.admit(at(14) - Duration::from_micros(1)));
            prop_assert!(breaker.admit(at(16)));
        }
    }
}
