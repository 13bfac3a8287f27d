//! How many tries a service gets besides first ones, over all cores: a share of its requests, and so many a second in any
//! case. Without such a bound retries multiply the load of a service that fails because of its load.
//!
//! In any second, and so in any whole number of them: `retries <= share * requests + min_per_second`. Requests count when
//! they begin.

use std::sync::atomic::{AtomicU64, Ordering};

use crossbeam::utils::CachePadded;

/// The second moves on by a tenth.
const SLICE_US: u64 = 100_000;
const SLICES: u64 = 10;
/// A second that begins anywhere touches one slice more.
const RING: u64 = SLICES + 1;

/// What is allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BudgetSettings {
    /// Percent of the requests.
    pub share: u8,
    /// Retries a second, however few requests there are.
    pub min_per_second: u32,
}

/// Shared by all cores, through atomics.
#[derive(Debug)]
pub struct RetryBudget {
    /// Requests, by core; each core writes its own.
    requests: Box<[CachePadded<Ring>]>,
    /// Retries.
    retries: Ring,
}

/// Counts by slice: in each word the slice's number and its count.
#[derive(Debug, Default)]
struct Ring([AtomicU64; RING as usize]);

impl Ring {
    fn at(&self, slice: u64) -> Option<&AtomicU64> {
        self.0.get((slice % RING) as usize)
    }

    /// Over the slices from `first` to `last`.
    fn sum(&self, first: u64, last: u64) -> u64 {
        let count = |slice: u64| {
            let (of, count) = unpack(self.at(slice).map_or(0, |word| word.load(Ordering::Acquire)));
            if of == slice as u32 { u64::from(count) } else { 0 }
        };
        (first..=last).map(count).sum()
    }
}

fn pack(slice: u32, count: u32) -> u64 {
    u64::from(slice) << 32 | u64::from(count)
}

/// (slice, count); a number of a slice comes again after 13 years.
fn unpack(word: u64) -> (u32, u32) {
    ((word >> 32) as u32, word as u32)
}

impl RetryBudget {
    /// `workers`: how many cores count requests.
    pub fn new(workers: usize) -> Self {
        Self { requests: (0..workers).map(|_| CachePadded::default()).collect(), retries: Ring::default() }
    }

    /// Counts a request that `worker` begins.
    #[inline]
    pub fn request(&self, worker: usize, now_us: u64) {
        // Slice 0 is never counted: a word that was never written says that it is of slice 0.
        let slice = now_us / SLICE_US + RING;
        let Some(word) = self.requests.get(worker).and_then(|ring| ring.at(slice)) else { return };
        let (of, count) = unpack(word.load(Ordering::Relaxed));
        let count = if of == slice as u32 { count.saturating_add(1) } else { 1 };
        word.store(pack(slice as u32, count), Ordering::Relaxed);
    }

    /// Takes one retry, if there is one.
    pub fn take(&self, settings: &BudgetSettings, now_us: u64) -> bool {
        let last = now_us / SLICE_US + RING;
        let first = last - (SLICES - 1);
        let requests: u64 = self.requests.iter().map(|ring| ring.sum(first, last)).sum();
        let allowed = requests * u64::from(settings.share) / 100 + u64::from(settings.min_per_second);
        let used = || self.retries.sum(first - 1, last);
        if used() >= allowed {
            return false;
        }
        let Some(word) = self.retries.at(last) else { return false };
        let slice = last as u32;
        let add = |word: u64| match unpack(word) {
            // A core whose clock is ahead was here.
            (of, count) if of >= slice => Some(pack(of, count.saturating_add(1))),
            _ => Some(pack(slice, 1)),
        };
        let taken =
            word.fetch_update(Ordering::AcqRel, Ordering::Acquire, add).map_or(slice, |old| unpack(old).0.max(slice));
        if used() <= allowed {
            return true;
        }
        // Others were faster.
        let sub = |word: u64| match unpack(word) {
            (of, count) if of == taken && count > 0 => Some(pack(of, count - 1)),
            _ => None,
        };
        let _ = word.fetch_update(Ordering::AcqRel, Ordering::Acquire, sub);
        false
    }
}

/// How long to wait before a retry, in microseconds: full jitter, so that what failed together does not come again
/// together. `retry`: which one it is, from 0. `random`: any bits.
pub fn backoff_us(base_us: u64, max_us: u64, retry: u32, random: u64) -> u64 {
    let longest = base_us.saturating_mul(1 << retry.min(32)).min(max_us);
    random % (longest + 1)
}

#[cfg(test)]
mod tests;
