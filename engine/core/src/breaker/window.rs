//! Calls of the last while, counted by cores that do not wait for each other.

use std::sync::atomic::{AtomicU64, Ordering};

use crossbeam::utils::CachePadded;

use super::{Counts, Outcome};

/// A window moves on by a tenth of itself.
const SLICES: u64 = 10;
const COUNT_BITS: u32 = 14;
const COUNT_MAX: u64 = (1 << COUNT_BITS) - 1;
const STAMP_BITS: u32 = 14;
const STAMP_MASK: u64 = (1 << STAMP_BITS) - 1;
const _: () = assert!(3 * COUNT_BITS + STAMP_BITS + 8 == 64);

/// Each core has counters of its own, which it alone writes.
#[derive(Debug)]
pub(super) struct Window {
    cells: Box<[CachePadded<[AtomicU64; SLICES as usize]>]>,
}

/// What one core counts in one slice, with what says of which slice it is: in one word, so that it is never seen torn.
///
/// The stamp comes again after 16,384 windows, the epoch after 256 transitions: only a slice that was not written since
/// would be taken for a new one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Slice {
    epoch: u8,
    stamp: u16,
    total: u64,
    failed: u64,
    slow: u64,
}

impl Slice {
    fn pack(self) -> u64 {
        let tag = u64::from(self.epoch) << STAMP_BITS | u64::from(self.stamp);
        ((tag << COUNT_BITS | self.total) << COUNT_BITS | self.failed) << COUNT_BITS | self.slow
    }

    fn unpack(word: u64) -> Self {
        let tag = word >> (3 * COUNT_BITS);
        Self {
            epoch: (tag >> STAMP_BITS) as u8,
            stamp: (tag & STAMP_MASK) as u16,
            total: word >> (2 * COUNT_BITS) & COUNT_MAX,
            failed: word >> COUNT_BITS & COUNT_MAX,
            slow: word & COUNT_MAX,
        }
    }

    /// Keeps the shares when there is no room for more.
    fn make_room(&mut self) {
        if self.total == COUNT_MAX || self.failed == COUNT_MAX {
            (self.total, self.failed, self.slow) = (self.total / 2, self.failed / 2, self.slow / 2);
        }
    }
}

/// (place, stamp) of a slice.
fn place(slice: u64) -> (usize, u16) {
    ((slice % SLICES) as usize, ((slice / SLICES) & STAMP_MASK) as u16)
}

fn slice_at(window_us: u64, now_us: u64) -> u64 {
    now_us / (window_us / SLICES).max(1)
}

impl Window {
    pub(super) fn new(workers: usize) -> Self {
        Self { cells: (0..workers).map(|_| CachePadded::default()).collect() }
    }

    #[inline]
    pub(super) fn record(&self, worker: usize, window_us: u64, epoch: u16, outcome: Outcome, now_us: u64) {
        let (index, stamp) = place(slice_at(window_us, now_us));
        let Some(word) = self.cells.get(worker).and_then(|cell| cell.get(index)) else { return };
        let mut slice = Slice::unpack(word.load(Ordering::Relaxed));
        if (slice.epoch, slice.stamp) != (epoch as u8, stamp) {
            slice = Slice { epoch: epoch as u8, stamp, total: 0, failed: 0, slow: 0 };
        }
        slice.make_room();
        match outcome {
            Outcome::Good => slice.total += 1,
            Outcome::Slow => (slice.total, slice.slow) = (slice.total + 1, slice.slow + 1),
            Outcome::Bad => (slice.total, slice.failed) = (slice.total + 1, slice.failed + 1),
            Outcome::BrokenOff => slice.failed += 1,
        }
        word.store(slice.pack(), Ordering::Relaxed);
    }

    /// Over all cores.
    pub(super) fn sum(&self, window_us: u64, epoch: u16, now_us: u64) -> Counts {
        let last = slice_at(window_us, now_us);
        let mut counts = Counts::default();
        for cell in &self.cells {
            for slice in last.saturating_sub(SLICES - 1)..=last {
                let (index, stamp) = place(slice);
                let Some(word) = cell.get(index) else { continue };
                let slice = Slice::unpack(word.load(Ordering::Relaxed));
                if (slice.epoch, slice.stamp) == (epoch as u8, stamp) {
                    counts.total += slice.total;
                    counts.failed += slice.failed;
                    counts.slow += slice.slow;
                }
            }
        }
        counts
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const WINDOW_US: u64 = 10_000_000;

    proptest! {
        #[test]
        fn a_slice_is_a_word(epoch: u8, stamp in 0..=STAMP_MASK as u16, counts in [0..=COUNT_MAX, 0..=COUNT_MAX, 0..=COUNT_MAX]) {
            let [total, failed, slow] = counts;
            let slice = Slice { epoch, stamp, total, failed, slow };
            prop_assert_eq!(Slice::unpack(slice.pack()), slice);
        }

        #[test]
        fn what_counts_is_what_came_within_the_window(calls in prop::collection::vec((0..3usize, 0..4u64, 0..400_000u64), 1..200)) {
            let window = Window::new(3);
            let (mut now, mut seen) = (0, Vec::new());
            for (worker, outcome, pause) in calls {
                now += pause;
                let outcome = [Outcome::Good, Outcome::Slow, Outcome::Bad, Outcome::BrokenOff][outcome as usize];
                window.record(worker, WINDOW_US, 7, outcome, now);
                seen.push((now / 1_000_000, outcome));
                let within = |wanted: &[Outcome]| {
                    let fits = |(slice, outcome): &&(u64, Outcome)| slice + SLICES > now / 1_000_000 && wanted.contains(outcome);
                    seen.iter().filter(fits).count() as u64
                };
                let expected = Counts {
                    total: within(&[Outcome::Good, Outcome::Slow, Outcome::Bad]),
                    failed: within(&[Outcome::Bad, Outcome::BrokenOff]),
                    slow: within(&[Outcome::Slow]),
                };
                prop_assert_eq!(window.sum(WINDOW_US, 7, now), expected);
                prop_assert_eq!(window.sum(WINDOW_US, 8, now), Counts::default());
            }
        }
    }

    #[test]
    fn many_calls_keep_their_shares() {
        let window = Window::new(1);
        for call in 0..1_000_000u64 {
            window.record(0, WINDOW_US, 0, if call % 4 == 0 { Outcome::Bad } else { Outcome::Good }, 0);
        }
        let counts = window.sum(WINDOW_US, 0, 0);
        let share = counts.failed as f64 / counts.total as f64;
        assert!(counts.total >= COUNT_MAX / 2 && (0.24..0.26).contains(&share), "{counts:?}");
    }

    #[test]
    fn an_unknown_core_counts_nothing() {
        let window = Window::new(1);
        window.record(1, WINDOW_US, 0, Outcome::Bad, 0);
        assert_eq!(window.sum(WINDOW_US, 0, 0), Counts::default());
    }
}
