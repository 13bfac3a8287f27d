//! When requests are due.
//!
//! A due time is computed from the number of the request, never from the one before: nothing adds up over a long run.
//! The rate's integral says how many requests are expected up to a time; its inverse says when request `n` is due. A
//! Poisson process is the same with exponential steps in place of the whole numbers.

use std::fmt::Write;
use std::sync::Arc;
use std::time::Duration;

/// How requests are spread over time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Process {
    /// Evenly: at a constant rate all gaps are equal.
    Constant,
    /// As independent users would: gaps are exponential.
    Poisson,
}

/// A stretch of time in which the rate changes evenly, or not at all.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Segment {
    pub(crate) length: Duration,
    /// Requests per second at its start and at its end.
    pub(crate) from: f64,
    pub(crate) to: f64,
}

/// The due times of a run, in order, or a thread's share of them.
#[derive(Debug, Clone)]
pub(crate) struct Arrivals {
    profile: Arc<[Placed]>,
    process: Process,
    seed: u64,
    random: fastrand::Rng,
    /// The share: arrivals `offset`, `offset + stride`, ...
    stride: u64,
    /// Arrivals of other shares to pass over before the next.
    skip: u64,
    /// The next arrival of all shares, on the scale on which the rate is 1: its number, or a sum of exponential steps.
    position: f64,
    /// The segment of the last arrival.
    current: usize,
    /// The first segment is the warm-up.
    warm: bool,
}

/// A segment, when it starts, and the arrivals that are expected before its start and its end.
#[derive(Debug, Clone, Copy)]
struct Placed {
    segment: Segment,
    start_ns: f64,
    before: f64,
    until: f64,
}

/// Keeps a rounding error from making one arrival more than `rate * time`.
const ROUNDING: f64 = 1e-6;

impl Arrivals {
    pub(crate) fn new(segments: &[Segment], process: Process, seed: u64) -> Self {
        let (mut start_ns, mut before) = (0.0, 0.0);
        let profile = segments.iter().map(|&segment| {
            let until = before + segment.arrivals();
            let placed = Placed { segment, start_ns, before, until };
            start_ns += segment.length.as_nanos() as f64;
            before = until;
            placed
        });
        let mut random = fastrand::Rng::with_seed(seed);
        let position = match process {
            Process::Constant => 0.0,
            Process::Poisson => exponential(&mut random),
        };
        let profile = profile.collect();
        Self { profile, process, seed, random, stride: 1, skip: 0, position, current: 0, warm: false }
    }

    /// The same after a warm-up at the rate with which the first segment begins.
    pub(crate) fn with_warmup(self, length: Duration) -> Self {
        let Some(first) = self.profile.first().filter(|_| !length.is_zero()) else { return self };
        let warmup = Segment::constant(first.segment.from, length);
        let segments: Vec<_> =
            std::iter::once(warmup).chain(self.profile.iter().map(|placed| placed.segment)).collect();
        Self { warm: true, ..Self::new(&segments, self.process, self.seed) }
    }

    fn pass(&mut self, arrivals: u64) {
        match self.process {
            Process::Constant => self.position += arrivals as f64,
            Process::Poisson => (0..arrivals).for_each(|_| self.position += exponential(&mut self.random)),
        }
    }

    /// Shares for `threads` threads, which together are the whole: the same requests at the same times, whatever the
    /// number of threads.
    pub(crate) fn split(&self, threads: usize) -> Vec<Self> {
        let threads = threads as u64;
        let share =
            |thread| Self { stride: self.stride * threads, skip: self.skip + thread * self.stride, ..self.clone() };
        (0..threads).map(share).collect()
    }

    /// Arrivals in all; with Poisson arrivals the expected number.
    #[cfg(test)]
    pub(crate) fn total(&self) -> u64 {
        let total = self.profile.last().map_or(0.0, |last| last.until);
        (total - ROUNDING).ceil().max(0.0) as u64
    }

    /// From the start to the end of the last segment.
    pub(crate) fn duration(&self) -> Duration {
        self.profile.iter().map(|placed| placed.segment.length).sum()
    }

    /// The rate at a time after the start, in requests per second; 0 after the end.
    #[cfg(test)]
    pub(crate) fn rate_at(&self, time: Duration) -> f64 {
        let mut left = time;
        for Placed { segment, .. } in &self.profile[..] {
            if left < segment.length {
                let part = left.as_secs_f64() / segment.length.as_secs_f64();
                return segment.from + (segment.to - segment.from) * part;
            }
            left -= segment.length;
        }
        0.0
    }

    /// Expected arrivals after the warm-up.
    pub(crate) fn measured(&self) -> f64 {
        let warmup = self.profile.first().filter(|_| self.warm).map_or(0.0, |first| first.until);
        self.profile.last().map_or(0.0, |last| last.until) - warmup
    }

    /// In words, without the warm-up: `1000/s to 5000/s in 60 s, then 5000/s for 30 s, Poisson`.
    pub(crate) fn describe(&self) -> String {
        const SHOWN_MAX: usize = 8;
        let mut text = String::new();
        let measured = &self.profile[usize::from(self.warm)..];
        for (number, Placed { segment: Segment { length, from, to }, .. }) in measured.iter().enumerate() {
            if number == SHOWN_MAX {
                let _ = write!(text, ", and {} more phases", measured.len() - SHOWN_MAX);
                break;
            }
            let seconds = length.as_secs_f64();
            text.push_str(if number > 0 { ", then " } else { "" });
            let _ = match from == to {
                true => write!(text, "{from}/s for {seconds} s"),
                false => write!(text, "{from}/s to {to}/s in {seconds} s"),
            };
        }
        text.push_str(match self.process {
            Process::Constant => ", constant",
            Process::Poisson => ", Poisson",
        });
        text
    }
}

impl Iterator for Arrivals {
    type Item = u64;

    /// The next due time, in nanoseconds after the start.
    fn next(&mut self) -> Option<u64> {
        self.pass(self.skip);
        let at = self.position;
        self.pass(1);
        self.skip = self.stride - 1;
        let segment = loop {
            let segment = self.profile.get(self.current)?;
            if at < segment.until - ROUNDING {
                break segment;
            }
            self.current += 1;
        };
        Some(segment.due_ns(at) as u64)
    }
}

impl Segment {
    pub(crate) fn constant(rate: f64, length: Duration) -> Self {
        Self { length, from: rate, to: rate }
    }

    fn arrivals(&self) -> f64 {
        (self.from + self.to) / 2.0 * self.length.as_secs_f64()
    }
}

impl Placed {
    /// When the rate's integral reaches `at`, in nanoseconds after the start.
    fn due_ns(&self, at: f64) -> f64 {
        let Segment { length, from, to } = self.segment;
        let inside = at - self.before;
        if from == to {
            return self.start_ns + inside * 1e9 / from;
        }
        // Solves from*t + slope*t*t/2 = inside, in the form that loses no digits where the slope is small.
        let slope = (to - from) / length.as_secs_f64();
        let root = (from * from + 2.0 * slope * inside).max(0.0).sqrt();
        self.start_ns + 2e9 * inside / (from + root).max(f64::MIN_POSITIVE)
    }
}

/// A step of a process of rate 1.
fn exponential(random: &mut fastrand::Rng) -> f64 {
    // `f64()` is below 1 and may be 0.
    -(1.0 - random.f64()).ln()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn constant(rate: f64, seconds: u64) -> Segment {
        Segment::constant(rate, Duration::from_secs(seconds))
    }

    fn ramp(from: f64, to: f64, seconds: u64) -> Segment {
        Segment { length: Duration::from_secs(seconds), from, to }
    }

    /// The integral of the rate up to a time, by its definition.
    fn expected_until(segments: &[Segment], time_s: f64) -> f64 {
        let mut start = 0.0;
        segments.iter().fold(0.0, |sum, segment| {
            let length = segment.length.as_secs_f64();
            let inside = (time_s - start).clamp(0.0, length);
            start += length;
            sum + segment.from * inside + (segment.to - segment.from) / length * inside * inside / 2.0
        })
    }

    fn profiles() -> impl Strategy<Value = Vec<Segment>> {
        let rate = prop_oneof![1 => Just(0.0), 4 => 0.1..2_000.0_f64];
        let segment = (1..5_000_u64, rate.clone(), rate, any::<bool>()).prop_map(|(ms, from, to, level)| Segment {
            length: Duration::from_millis(ms),
            from,
            to: if level { from } else { to },
        });
        prop::collection::vec(segment, 1..6)
    }

    #[test]
    fn a_constant_rate_does_not_drift() {
        // A day at 7777/s: the due time of each request is its number divided by the rate, to the nanosecond.
        let arrivals = Arrivals::new(&[constant(7_777.0, 86_400)], Process::Constant, 1);
        let mut count = 0_u64;
        for (number, due) in (0_u64..).zip(arrivals.split(100_003).remove(0)) {
            let exact = u128::from(number * 100_003) * u128::from(SECOND) / 7_777;
            assert!(u128::from(due).abs_diff(exact) <= 1, "request {}: {due}, not {exact}", number * 100_003);
            count = number;
        }
        assert_eq!(arrivals.total(), 7_777 * 86_400);
        assert_eq!(count, (arrivals.total() - 1) / 100_003);
    }

    #[test]
    fn the_number_is_rate_times_time() {
        for (rate, seconds, total) in [(333.3, 30, 9_999), (0.1, 30, 3), (0.05, 30, 2), (1e6, 2, 2_000_000)] {
            let arrivals = Arrivals::new(&[constant(rate, seconds)], Process::Constant, 1);
            assert_eq!(arrivals.total(), total, "{rate}/s for {seconds} s");
            assert_eq!(arrivals.count() as u64, total, "{rate}/s for {seconds} s");
        }
    }

    #[test]
    fn a_ramp_follows_its_line() {
        // 0 to 100/s in 10 s: request n is due when 5*t*t = n.
        let due: Vec<_> = Arrivals::new(&[ramp(0.0, 100.0, 10)], Process::Constant, 1).collect();
        assert_eq!(due.len(), 500);
        assert_eq!((due[0], due[5], due[125]), (0, SECOND, 5 * SECOND));
        // And down to nothing: the last ones are far apart, the very last before the end.
        let due: Vec<_> = Arrivals::new(&[ramp(100.0, 0.0, 10)], Process::Constant, 1).collect();
        assert_eq!((due.len(), due[375]), (500, 5 * SECOND));
        assert!(due[499] < 10 * SECOND && due[499] > 9 * SECOND, "{}", due[499]);
    }

    #[test]
    fn a_pause_has_no_requests() {
        let profile = [constant(10.0, 1), constant(0.0, 5), constant(10.0, 1)];
        let due: Vec<_> = Arrivals::new(&profile, Process::Constant, 1).collect();
        assert_eq!((due.len(), due[9], due[10]), (20, SECOND * 9 / 10, 6 * SECOND));
    }

    #[test]
    fn a_warm_up_comes_first_and_is_not_counted() {
        let arrivals = Arrivals::new(&[ramp(10.0, 30.0, 10)], Process::Constant, 1).with_warmup(Duration::from_secs(2));
        assert_eq!((arrivals.total(), arrivals.measured()), (220, 200.0));
        assert_eq!(arrivals.duration(), Duration::from_secs(12));
        assert_eq!(arrivals.describe(), "10/s to 30/s in 10 s, constant");
        assert_eq!(arrivals.clone().nth(20), Some(2 * SECOND));
    }

    #[test]
    fn poisson_counts_have_the_mean_and_variance_of_their_name() {
        // 4000 intervals of a second with 50 expected arrivals.
        for seed in 0..20 {
            let arrivals = Arrivals::new(&[constant(50.0, 4_000)], Process::Poisson, seed);
            let mut counts = vec![0_f64; 4_000];
            arrivals.for_each(|due| counts[(due / SECOND) as usize] += 1.0);
            let mean = counts.iter().sum::<f64>() / 4_000.0;
            let variance = counts.iter().map(|count| (count - mean).powi(2)).sum::<f64>() / 3_999.0;
            // Standard errors: sqrt(50/4000) = 0.11 and 50*sqrt(2/4000) = 1.12; five of each.
            assert!((mean - 50.0).abs() < 0.56, "seed {seed}: mean {mean}");
            assert!((variance - 50.0).abs() < 5.7, "seed {seed}: variance {variance}");
        }
    }

    #[test]
    fn poisson_gaps_are_exponential() {
        for seed in 0..10 {
            let due: Vec<_> = Arrivals::new(&[constant(1_000.0, 100)], Process::Poisson, seed).collect();
            let long = due.windows(2).filter(|pair| pair[1] - pair[0] > 1_000_000).count() as f64 / due.len() as f64;
            // More than the mean: 1/e of the gaps.
            assert!((long - (-1.0_f64).exp()).abs() < 0.01, "seed {seed}: {long}");
        }
    }

    proptest! {
        #[test]
        fn constant_arrivals_follow_the_integral(profile in profiles()) {
            let arrivals = Arrivals::new(&profile, Process::Constant, 1);
            let end = arrivals.duration().as_nanos() as u64;
            let (mut count, mut last) = (0_u64, 0);
            for due in arrivals.clone() {
                prop_assert!(due >= last && due < end, "request {count} is due at {due}, after {last}, end {end}");
                // Due to the nanosecond: before it less is expected, after it no less.
                let time = due as f64 / 1e9;
                let (before, after) = (expected_until(&profile, time - 2e-9), expected_until(&profile, time + 3e-9));
                let within = before <= count as f64 + 1e-5 && count as f64 <= after + 1e-5;
                prop_assert!(within, "request {count} at {due}: {before} to {after}");
                (count, last) = (count + 1, due);
            }
            prop_assert_eq!(count, arrivals.total());
            let expected = expected_until(&profile, end as f64 / 1e9);
            prop_assert!((count as f64 - expected).abs() < 1.0 + 1e-5, "{} for {}", count, expected);
        }

        #[test]
        fn shares_together_are_the_whole(
            profile in profiles(), poisson in any::<bool>(), threads in 1..9_usize, seed in any::<u64>()
        ) {
            let process = if poisson { Process::Poisson } else { Process::Constant };
            let whole = Arrivals::new(&profile, process, seed);
            let shares: Vec<Vec<u64>> = whole.split(threads).into_iter().map(Iterator::collect).collect();
            let mut together = shares.concat();
            together.sort_unstable();
            let lengths = shares.iter().map(Vec::len);
            prop_assert!(lengths.clone().max().unwrap() - lengths.min().unwrap() <= 1);
            prop_assert_eq!(together, whole.collect::<Vec<_>>());
        }

        #[test]
        fn poisson_arrivals_follow_the_integral(profile in profiles(), seed in any::<u64>()) {
            let arrivals = Arrivals::new(&profile, Process::Poisson, seed);
            let due: Vec<_> = arrivals.clone().collect();
            prop_assert!(due.is_sorted());
            prop_assert!(due.iter().all(|&due| u128::from(due) < arrivals.duration().as_nanos()));
            let expected = expected_until(&profile, arrivals.duration().as_secs_f64());
            // Six standard deviations, for the few hundred profiles of a run.
            let off = (due.len() as f64 - expected).abs();
            prop_assert!(off <= 6.0 * expected.sqrt() + 3.0, "{} for {}", due.len(), expected);
            let again: Vec<_> = Arrivals::new(&profile, Process::Poisson, seed).collect();
            prop_assert_eq!(due, again);
        }
    }
}
