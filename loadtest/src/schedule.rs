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
    /// Number of the next arrival of all shares.
    index: u64,
    /// Poisson: where it is on the scale on which the rate is 1.
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
    start_s: f64,
    before: f64,
    until: f64,
}

/// Keeps a rounding error from making one arrival more than `rate * time`.
const ROUNDING: f64 = 1e-6;

impl Arrivals {
    pub(crate) fn new(segments: &[Segment], process: Process, seed: u64) -> Self {
        let (mut start_s, mut before) = (0.0, 0.0);
        let profile = segments.iter().map(|&segment| {
            let until = before + segment.arrivals();
            let placed = Placed { segment, start_s, before, until };
            start_s += segment.length.as_secs_f64();
            before = until;
            placed
        });
        let mut random = fastrand::Rng::with_seed(seed);
        let position = exponential(&mut random);
        let profile = profile.collect();
        Self { profile, process, seed, random, stride: 1, skip: 0, index: 0, position, current: 0, warm: false }
    }

    /// The same after a warm-up at the rate with which the first segment begins.
    pub(crate) fn with_warmup(self, length: Duration) -> Self {
        let Some(first) = self.profile.first().filter(|_| !length.is_zero()) else { return self };
        let warmup = Segment::constant(first.segment.from, length);
        let segments: Vec<_> =
            std::iter::once(warmup).chain(self.profile.iter().map(|placed| placed.segment)).collect();
        Self { warm: true, ..Self::new(&segments, self.process, self.seed) }
    }

    fn step(&mut self) {
        match self.process {
            Process::Constant => self.index += 1,
            Process::Poisson => self.position += exponential(&mut self.random),
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
    pub(crate) fn total(&self) -> u64 {
        let total = self.profile.last().map_or(0.0, |last| last.until);
        (total - ROUNDING).ceil().max(0.0) as u64
    }

    /// From the start to the end of the last segment.
    pub(crate) fn duration(&self) -> Duration {
        self.profile.iter().map(|placed| placed.segment.length).sum()
    }

    /// The rate at a time after the start, in requests per second; 0 after the end.
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
        for _ in 0..self.skip {
            self.step();
        }
        self.skip = self.stride - 1;
        let at = match self.process {
            Process::Constant => self.index as f64,
            Process::Poisson => self.position,
        };
        self.step();
        let segment = loop {
            let segment = self.profile.get(self.current)?;
            if at < segment.until - ROUNDING {
                break segment;
            }
            self.current += 1;
        };
        Some((segment.due_s(at) * 1e9) as u64)
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
    /// When the rate's integral reaches `at`, in seconds after the start.
    fn due_s(&self, at: f64) -> f64 {
        let Segment { length, from, to } = self.segment;
        let inside = at - self.before;
        if from == to {
            return self.start_s + inside / from;
        }
        // Solves from*t + slope*t*t/2 = inside, in the form that loses no digits where the slope is small.
        let slope = (to - from) / length.as_secs_f64();
        let root = (from * from + 2.0 * slope * inside).max(0.0).sqrt();
        self.start_s + 2.0 * inside / (from + root).max(f64::MIN_POSITIVE)
    }
}

/// A step of a process of rate 1.
fn exponential(random: &mut fastrand::Rng) -> f64 {
    // `f64()` is below 1 and may be 0.
    -(1.0 - random.f64()).ln()
}
