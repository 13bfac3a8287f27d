//! How slow an endpoint is of late: an average of its latencies that forgets, and that believes bad news at once (peak
//! EWMA, as in Finagle). All cores share one.

use std::sync::atomic::{AtomicU64, Ordering};

/// After this time what was seen counts for 1/e: ten seconds.
const DECAY_US: f64 = 10_000_000.0;
/// What an endpoint that nothing is known of costs for each request under way: a second. The first one goes there for
/// nothing.
const UNKNOWN_US: f64 = 1_000_000.0;

/// The average, in microseconds as an `f32`, above the time of the last look, in units of 1,024 microseconds.
#[derive(Debug, Default)]
pub struct PeakEwma(AtomicU64);

fn unpack(packed: u64) -> (f64, u32) {
    (f64::from(f32::from_bits((packed >> 32) as u32)), packed as u32)
}

fn pack(average: f64, at: u32) -> u64 {
    u64::from((average as f32).to_bits()) << 32 | u64::from(at)
}

fn ticks(now_us: u64) -> u32 {
    (now_us >> 10) as u32
}

/// What is left of a weight after this time. The clocks of two cores may differ by a little: that is no time at all.
fn left(since: u32, now: u32) -> f64 {
    let passed = now.wrapping_sub(since) as i32;
    if passed <= 0 { 1.0 } else { (-f64::from(passed) * 1024.0 / DECAY_US).exp() }
}

impl PeakEwma {
    /// One more latency. Where two cores come at the same moment, one of them may be lost.
    pub fn observe(&self, latency_us: u64, now_us: u64) {
        let known = self.0.load(Ordering::Relaxed);
        let ((average, at), now) = (unpack(known), ticks(now_us));
        let latency = (latency_us as f64).max(1.0);
        let kept = left(at, now);
        let average = if latency > average { latency } else { average * kept + latency * (1.0 - kept) };
        let _ = self.0.compare_exchange(known, pack(average, now), Ordering::Relaxed, Ordering::Relaxed);
    }

    /// A request that was given up after this time: an answer would have taken more. That is news only where less was known.
    pub fn observe_at_least(&self, waited_us: u64, now_us: u64) {
        if waited_us as f64 > self.get_us(now_us) {
            self.observe(waited_us, now_us);
        }
    }

    /// The average now, in microseconds; 0 where nothing is known. It fades, so that who was slow is asked again.
    pub fn get_us(&self, now_us: u64) -> f64 {
        let (average, at) = unpack(self.0.load(Ordering::Relaxed));
        average * left(at, ticks(now_us))
    }

    /// What one more request would cost there: the average for each request under way, this one included.
    #[inline]
    pub fn cost(&self, in_flight: u64, now_us: u64) -> u64 {
        let average = self.get_us(now_us);
        if average == 0.0 {
            return (UNKNOWN_US * in_flight as f64) as u64;
        }
        (average * (in_flight as f64 + 1.0)) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000;

    #[test]
    fn bad_news_count_at_once_and_good_news_slowly() {
        let average = PeakEwma::default();
        assert_eq!(average.get_us(0), 0.0);
        average.observe(1_000, SECOND);
        assert_eq!(average.get_us(SECOND), 1_000.0);
        average.observe(50_000, 2 * SECOND);
        assert_eq!(average.get_us(2 * SECOND), 50_000.0);
        // A tenth of the time constant later: a tenth of the way, about.
        average.observe(1_000, 3 * SECOND);
        let after = average.get_us(3 * SECOND);
        assert!((44_000.0..47_000.0).contains(&after), "{after}");
        let faded = average.get_us(23 * SECOND);
        assert!((0.12..0.15).contains(&(faded / after)), "{faded}");
    }

    #[test]
    fn unknown_endpoints_get_one_request_and_loaded_ones_cost_more() {
        let average = PeakEwma::default();
        assert_eq!((average.cost(0, 0), average.cost(3, 0)), (0, 3_000_000));
        average.observe(200, SECOND);
        assert_eq!((average.cost(0, SECOND), average.cost(4, SECOND)), (200, 1_000));
    }

    #[test]
    fn what_was_given_up_makes_no_endpoint_look_quick() {
        let average = PeakEwma::default();
        average.observe_at_least(5_000, SECOND);
        assert_eq!(average.get_us(SECOND), 5_000.0);
        average.observe(80_000, SECOND);
        average.observe_at_least(5_000, SECOND);
        assert_eq!(average.get_us(SECOND), 80_000.0);
        // It has faded meanwhile: it goes up from where it is.
        let faded = average.get_us(41 * SECOND);
        average.observe_at_least(5_000, 41 * SECOND);
        assert!(faded < 2_000.0 && average.get_us(41 * SECOND) > 4_000.0, "{faded}");
    }

    #[test]
    fn clocks_that_differ_a_little_change_nothing() {
        let average = PeakEwma::default();
        average.observe(1_000, 5 * SECOND);
        assert_eq!(average.get_us(4 * SECOND), 1_000.0);
        average.observe(100, 4 * SECOND);
        assert_eq!(average.get_us(4 * SECOND), 1_000.0);
    }

    #[test]
    fn the_time_may_wrap() {
        let average = PeakEwma::default();
        let late = (u64::from(u32::MAX) << 10) + 500;
        average.observe(1_000, late);
        let after = average.get_us(late + 10 * SECOND);
        assert!((360.0..376.0).contains(&after), "{after}");
    }
}
