//! How many requests a service can take at a time, found by its latency: a gradient controller, as Envoy has one. All cores
//! share one, through atomics.
//!
//! The latency of answers is averaged over windows. As long as it stays within a tolerance of what it is without a queue (the
//! baseline), the limit grows, by its square root in each window in which it was needed; beyond, it shrinks in proportion. Now
//! and then the limit falls to a third for a moment (a probe), so that no queue is left, and the baseline is measured anew. A
//! baseline that was only remembered, as a long average or a minimum, would rise with a queue that stays, or never learn
//! that the service has become slower.
//!
//! A window is closed by the core whose sample completes it and that is first to say so, by compare-and-swap. Nobody waits.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crossbeam::utils::CachePadded;

/// The limit of a service that nothing is known of, within the bounds that are set.
const INITIAL: u32 = 20;
/// A window has so many samples at least, or as many as the limit allows requests, so that it sees a whole round of them...
const SAMPLES: u64 = 100;
/// (in a probe fewer, since it takes something away)
const SAMPLES_OF_PROBE: u64 = 50;
/// ... and is at least so long, ...
const WINDOW_US: u64 = 100_000;
/// ... or so long, with so few samples.
const WINDOW_LONG_US: u64 = 2_000_000;
const SAMPLES_FEW: u64 = 10;
/// By how much a limit shrinks in one window at most.
const GRADIENT_MIN: f64 = 0.5;
/// What a probe leaves of the limit.
const PROBE_PARTS: u32 = 3;
/// A baseline that a probe has moved by more than a quarter is measured again after this part of the interval.
const AGAIN_PARTS: u64 = 10;
/// Somebody closes the window.
const CLOSING: u64 = u64::MAX;

const LATENCY_BITS: u32 = 24;
/// A sample counts as this at most: 16.8 s.
const LATENCY_MAX_US: u64 = (1 << LATENCY_BITS) - 1;
/// A window's count stands above its sum. A million samples fit; at ten million requests a second a window has them.
const SUM_BITS: u32 = 44;
const _: () = assert!(64 - SUM_BITS + LATENCY_BITS == SUM_BITS);

/// Within what the limit is sought, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AdaptiveSettings {
    /// The limit is never below, 1 or more, ...
    pub min: u32,
    /// ... and never above.
    pub max: u32,
    /// By how many percent latency may be above the baseline.
    pub tolerance: u8,
    /// Between two probes, in microseconds.
    pub probe_interval_us: u64,
}

/// What is known of a service's concurrency.
#[derive(Debug, Default)]
pub struct Adaptive {
    /// 0: as at the start.
    limit: AtomicU32,
    /// Most requests in flight in this window.
    peak: AtomicU32,
    /// Samples of this window: their count and their sum.
    window: CachePadded<AtomicU64>,
    /// When the window may be closed, or [`CLOSING`]. Who has put that there owns what follows.
    due_us: AtomicU64,
    phase: AtomicU32,
    /// In microseconds; 0: not measured yet.
    baseline_us: AtomicU64,
    probe_at_us: AtomicU64,
    /// The limit before the last probe.
    probed: AtomicU32,
}

/// What a window is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// The baseline is measured.
    Measuring,
    Running,
    /// The limit has just been lowered: what is in flight is of the time before.
    Settling,
}

impl Phase {
    fn of(number: u32) -> Self {
        match number {
            0 => Self::Measuring,
            1 => Self::Running,
            _ => Self::Settling,
        }
    }
}

impl AdaptiveSettings {
    fn clamp(&self, limit: u32) -> u32 {
        limit.min(self.max).max(self.min)
    }
}

impl Adaptive {
    /// Requests in flight that are allowed now.
    #[inline]
    pub fn limit(&self, settings: &AdaptiveSettings) -> u32 {
        match self.limit.load(Ordering::Relaxed) {
            0 => settings.clamp(INITIAL),
            limit => settings.clamp(limit),
        }
    }

    /// What latency is without a queue, in microseconds; 0 where that is not known yet.
    pub fn baseline_us(&self) -> u64 {
        self.baseline_us.load(Ordering::Relaxed)
    }

    /// Tells how many requests are in flight, with each that begins.
    #[inline]
    pub fn saw(&self, in_flight: u32) {
        if in_flight > self.peak.load(Ordering::Relaxed) {
            self.peak.fetch_max(in_flight, Ordering::Relaxed);
        }
    }

    /// An answer has come, so long after its request was sent.
    #[inline]
    pub fn sample(&self, settings: &AdaptiveSettings, latency_us: u64, now_us: u64) {
        let sample = 1 << SUM_BITS | latency_us.min(LATENCY_MAX_US);
        let count = (self.window.fetch_add(sample, Ordering::AcqRel) >> SUM_BITS) + 1;
        if count >= SAMPLES_FEW {
            let due_us = self.due_us.load(Ordering::Acquire);
            let is_long = now_us >= due_us.saturating_add(WINDOW_LONG_US - WINDOW_US);
            let wanted = if is_long { SAMPLES_FEW } else { self.wanted(settings) };
            if now_us >= due_us && count >= wanted {
                self.close(settings, due_us, now_us);
            }
        }
    }

    /// Samples of a window.
    fn wanted(&self, settings: &AdaptiveSettings) -> u64 {
        match Phase::of(self.phase.load(Ordering::Relaxed)) {
            Phase::Running => SAMPLES.max(self.limit(settings).into()),
            // What was in flight before.
            Phase::Settling => SAMPLES_FEW.max(self.probed.load(Ordering::Relaxed).into()),
            Phase::Measuring => SAMPLES_OF_PROBE,
        }
    }

    #[cold]
    fn close(&self, settings: &AdaptiveSettings, due_us: u64, now_us: u64) {
        if self.due_us.compare_exchange(due_us, CLOSING, Ordering::AcqRel, Ordering::Relaxed).is_err() {
            return;
        }
        let window = self.window.swap(0, Ordering::AcqRel);
        let peak = self.peak.swap(0, Ordering::Relaxed);
        let (count, sum_us) = (window >> SUM_BITS, window & ((1 << SUM_BITS) - 1));
        if count > 0 {
            self.turn(settings, sum_us.max(1) as f64 / count as f64, peak, now_us);
        }
        self.due_us.store(now_us + WINDOW_US, Ordering::Release);
    }

    /// A window is over.
    fn turn(&self, settings: &AdaptiveSettings, mean_us: f64, peak: u32, now_us: u64) {
        let limit = self.limit(settings);
        let (limit, phase) = match Phase::of(self.phase.load(Ordering::Relaxed)) {
            Phase::Running => self.follow(settings, limit, mean_us, peak, now_us),
            Phase::Settling => (limit, Phase::Measuring),
            Phase::Measuring => {
                let probed = self.learn(settings, limit, mean_us, now_us);
                (probed, Phase::Running)
            }
        };
        self.limit.store(limit, Ordering::Relaxed);
        self.phase.store(phase as u32, Ordering::Relaxed);
    }

    fn follow(&self, settings: &AdaptiveSettings, limit: u32, mean_us: f64, peak: u32, now_us: u64) -> (u32, Phase) {
        let allowed_us = self.baseline_us() as f64 * (100.0 + f64::from(settings.tolerance)) / 100.0;
        let gradient = (allowed_us / mean_us).clamp(GRADIENT_MIN, 1.0);
        let size = f64::from(limit);
        // A limit that is not reached has nothing to grow for.
        let room = if peak >= limit.div_ceil(2) { size.sqrt() } else { 0.0 };
        let next = settings.clamp((size * gradient + room).round() as u32);
        // A limit that has fallen so far is a probe already: either the queue is gone, or it was none.
        let probed = self.probed.load(Ordering::Relaxed);
        if now_us >= self.probe_at_us.load(Ordering::Relaxed) || next <= probed / 2 {
            self.probed.store(next, Ordering::Relaxed);
            return (settings.clamp(next / PROBE_PARTS), Phase::Settling);
        }
        (next, Phase::Running)
    }

    /// Takes what was measured as the baseline; gives the limit to go on with.
    fn learn(&self, settings: &AdaptiveSettings, limit: u32, mean_us: f64, now_us: u64) -> u32 {
        let known_us = self.baseline_us() as f64;
        let has_moved = (mean_us - known_us).abs() > known_us / 4.0;
        // What was lower had less of a queue in it.
        let baseline_us = if has_moved || mean_us < known_us { mean_us } else { (known_us + mean_us) / 2.0 };
        self.baseline_us.store((baseline_us as u64).max(1), Ordering::Relaxed);
        let interval_us = settings.probe_interval_us / if has_moved { AGAIN_PARTS } else { 1 };
        self.probe_at_us.store(now_us + interval_us, Ordering::Relaxed);
        match self.probed.load(Ordering::Relaxed) {
            0 => {
                self.probed.store(limit, Ordering::Relaxed);
                limit
            }
            probed => settings.clamp(probed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SETTINGS: AdaptiveSettings =
        AdaptiveSettings { min: 5, max: 200, tolerance: 25, probe_interval_us: 30_000_000 };

    /// Closes a window of so many equal samples; the limit after it.
    fn window(adaptive: &Adaptive, latency_us: u64, in_flight: u32, now_us: &mut u64) -> u32 {
        adaptive.saw(in_flight);
        *now_us += WINDOW_US;
        for _ in 0..200 {
            adaptive.sample(&SETTINGS, latency_us, *now_us);
        }
        // What came behind the close is of the next window, which is not of interest.
        adaptive.window.store(0, Ordering::Relaxed);
        adaptive.limit(&SETTINGS)
    }

    #[test]
    fn it_grows_while_it_is_needed_and_latency_stays_and_shrinks_when_it_rises() {
        let (adaptive, mut now) = (Adaptive::default(), 0);
        assert_eq!(adaptive.limit(&SETTINGS), INITIAL);
        assert_eq!(window(&adaptive, 1_000, 20, &mut now), 20, "the baseline");
        assert_eq!(adaptive.baseline_us(), 1_000);
        assert_eq!(window(&adaptive, 1_200, 20, &mut now), 24);
        assert_eq!(window(&adaptive, 1_200, 11, &mut now), 24, "not needed");
        assert_eq!(window(&adaptive, 1_200, 12, &mut now), 29);
        assert_eq!(window(&adaptive, 2_500, 29, &mut now), 20, "half, and the square root");
        assert_eq!(window(&adaptive, 2_500, 9, &mut now), 5, "half, which begins a probe");
    }

    #[test]
    fn a_probe_lowers_the_limit_settles_measures_and_gives_it_back() {
        let (adaptive, mut now) = (Adaptive::default(), 0);
        window(&adaptive, 1_000, 20, &mut now);
        now = SETTINGS.probe_interval_us;
        assert_eq!(window(&adaptive, 1_000, 1, &mut now), 6);
        assert_eq!(window(&adaptive, 9_000, 6, &mut now), 6, "what was under way does not count");
        assert_eq!(adaptive.baseline_us(), 1_000);
        assert_eq!(window(&adaptive, 1_100, 6, &mut now), 20);
        assert_eq!(adaptive.baseline_us(), 1_050, "a little is averaged");
    }

    #[test]
    fn a_service_that_has_become_slower_is_believed_after_a_probe() {
        let (adaptive, mut now) = (Adaptive::default(), 0);
        window(&adaptive, 1_000, 20, &mut now);
        for _ in 0..10 {
            window(&adaptive, 3_000, 20, &mut now);
        }
        assert_eq!(adaptive.baseline_us(), 3_000);
        let before = adaptive.limit(&SETTINGS);
        window(&adaptive, 3_000, 200, &mut now);
        assert!(adaptive.limit(&SETTINGS) >= before);
    }

    #[test]
    fn bounds_hold_and_few_samples_suffice_after_a_while() {
        let (adaptive, mut now) = (Adaptive::default(), 0);
        for _ in 0..100 {
            assert!(window(&adaptive, 1_000, 200, &mut now) <= 200);
        }
        assert_eq!(adaptive.limit(&SETTINGS), 200);
        for round in 0..100 {
            now += 3_000_000;
            (0..SAMPLES_FEW).for_each(|_| adaptive.sample(&SETTINGS, 1_000 << (round % 20), now));
            assert!((5..=200).contains(&adaptive.limit(&SETTINGS)));
        }
        adaptive.sample(&SETTINGS, u64::MAX, now);
        assert_eq!(adaptive.window.load(Ordering::Relaxed) & LATENCY_MAX_US, LATENCY_MAX_US);
    }
}
