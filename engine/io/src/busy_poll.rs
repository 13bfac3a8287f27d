//! Whether to look for the next event before sleeping.
//!
//! A sleep and a wake-up cost both sides some microseconds of CPU time, on a virtual machine more than ten. Where the next
//! event comes sooner than that, looking for it is cheaper than sleeping until it comes, and it is served sooner. Where it
//! does not, looking is wasted; so the gaps of the last moments decide.

use std::time::Duration;

/// The weight of the newest gap in the average: an eighth.
const SHIFT: u32 = 3;
/// A longer gap counts as so many times the limit: a pause ends the looking within two or three gaps, and a dozen short
/// gaps begin it again.
const LONG: u64 = 4;

/// Decides from the gaps between running out of work and the next event.
#[derive(Debug)]
pub(crate) struct BusyPoll {
    limit_ns: u64,
    average_ns: u64,
}

impl BusyPoll {
    /// Never looks for longer than `limit`; not at all where that is nothing.
    pub(crate) fn new(limit: Option<Duration>) -> Self {
        let limit_ns = limit.map_or(0, |limit| limit.as_nanos() as u64);
        Self { limit_ns, average_ns: LONG * limit_ns }
    }

    /// How long to look this time.
    #[inline]
    pub(crate) fn patience_ns(&self) -> u64 {
        if self.average_ns <= self.limit_ns { self.limit_ns } else { 0 }
    }

    /// There was nothing to do for so long.
    #[inline]
    pub(crate) fn learn(&mut self, gap_ns: u64) {
        self.average_ns = self.average_ns - (self.average_ns >> SHIFT) + (gap_ns.min(LONG * self.limit_ns) >> SHIFT);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: u64 = 30_000;

    fn after(gaps: &[(usize, u64)]) -> u64 {
        let mut busy = BusyPoll::new(Some(Duration::from_nanos(LIMIT)));
        for (times, gap) in gaps {
            (0..*times).for_each(|_| busy.learn(*gap));
        }
        busy.patience_ns()
    }

    #[test]
    fn looks_where_events_come_soon() {
        assert_eq!(after(&[]), 0);
        assert_eq!(after(&[(5, 10_000)]), 0);
        assert_eq!(after(&[(20, 10_000)]), LIMIT);
        assert_eq!(after(&[(1000, 10_000), (1, 10_000_000)]), LIMIT);
    }

    #[test]
    fn sleeps_where_they_do_not() {
        assert_eq!(after(&[(1000, 31_000)]), 0);
        assert_eq!(after(&[(1000, 0), (3, 1_000_000_000)]), 0);
        let off = BusyPoll::new(None);
        assert_eq!(off.patience_ns(), 0);
    }
}
