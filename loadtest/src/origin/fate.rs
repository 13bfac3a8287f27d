//! What chance has in store for a request.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use fastrand::Rng;

use super::worker::Settings;

/// Shares of all requests, from 0 to 1.
#[derive(Debug, Clone, Copy)]
pub(super) struct Faults {
    pub(super) fail: f64,
    pub(super) stall: f64,
    pub(super) reset: f64,
    /// Of the answers that are sent whole.
    pub(super) close: f64,
    /// Of the answers that are sent whole and keep their connection.
    pub(super) hang_up: f64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    /// An answer that says that it failed.
    Fail,
    /// Half an answer.
    Stall,
    /// No answer.
    Reset,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Fate {
    pub(super) delay: Duration,
    pub(super) fault: Option<Fault>,
    pub(super) close: bool,
    pub(super) hang_up: bool,
}

/// One thread's fates: the n-th request that it takes has the same one each time, with the same seed.
pub(super) struct Fates {
    settings: Arc<Settings>,
    rng: Rng,
}

impl Faults {
    /// Whether there are requests enough.
    pub(super) fn fit(&self) -> bool {
        // 0.7 + 0.2 + 0.1 is more than 1 in floating point.
        self.fail + self.stall + self.reset <= 1.0 + 1e-9
    }

    fn draw(&self, rng: &mut Rng) -> Option<Fault> {
        if self.fail + self.stall + self.reset == 0.0 {
            return None;
        }
        // One draw for all three, so that each has its share, whatever the others have.
        match rng.f64() {
            drawn if drawn < self.reset => Some(Fault::Reset),
            drawn if drawn < self.reset + self.stall => Some(Fault::Stall),
            drawn if drawn < self.reset + self.stall + self.fail => Some(Fault::Fail),
            _ => None,
        }
    }
}

impl Fates {
    pub(super) fn new(settings: Arc<Settings>, thread: usize) -> Self {
        // Neighbouring seeds must not be neighbouring threads of one another.
        let mut rng = Rng::with_seed(settings.seed);
        for _ in 0..thread {
            rng = rng.fork();
        }
        Self { settings, rng }
    }

    pub(super) fn draw(&mut self) -> Fate {
        let Settings { latency, slow_start, faults, is_faulty, .. } = &*self.settings;
        if !is_faulty.load(Ordering::Relaxed) {
            return Fate { delay: Duration::ZERO, fault: None, close: false, hang_up: false };
        }
        let fault = faults.draw(&mut self.rng);
        let close = faults.close > 0.0 && self.rng.f64() < faults.close;
        let hang_up = faults.hang_up > 0.0 && self.rng.f64() < faults.hang_up;
        let drawn = latency.as_ref().map_or(Duration::ZERO, |latency| latency.draw(&mut self.rng));
        let delay = match slow_start {
            Some(slow_start) => slow_start.apply(drawn, Instant::now()),
            None => drawn,
        };
        Fate { delay, fault, close, hang_up }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_fault_has_its_share() {
        let faults = Faults { fail: 0.2, stall: 0.1, reset: 0.05, close: 0.0, hang_up: 0.0 };
        let mut rng = Rng::with_seed(3);
        let drawn: Vec<_> = (0..100_000).map(|_| faults.draw(&mut rng)).collect();
        let share = |fault| drawn.iter().filter(|drawn| **drawn == fault).count() as f64 / drawn.len() as f64;
        for (fault, expected) in
            [(Some(Fault::Fail), 0.2), (Some(Fault::Stall), 0.1), (Some(Fault::Reset), 0.05), (None, 0.65)]
        {
            assert!((share(fault) - expected).abs() < 0.01, "{fault:?}: {}", share(fault));
        }
    }

    #[test]
    fn shares_up_to_all_fit() {
        let faults = |fail, stall, reset| Faults { fail, stall, reset, close: 1.0, hang_up: 1.0 };
        assert!(faults(0.7, 0.2, 0.1).fit());
        assert!(!faults(0.7, 0.2, 0.101).fit());
    }
}
