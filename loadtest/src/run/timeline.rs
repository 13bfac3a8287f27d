//! The run second by second, by the time at which requests were due.

use hdrhistogram::Histogram;

use crate::results::Second;

const SECOND_NS: u64 = 1_000_000_000;
const TIME_US_MAX: u64 = 3_600_000_000;

/// One thread's seconds, or those of several once they are merged.
#[derive(Default)]
pub(crate) struct Timeline {
    from: u64,
    seconds: Vec<Bucket>,
    /// All seconds before this one are closed.
    open: usize,
}

/// One second.
#[derive(Default)]
pub(crate) struct Bucket {
    pub(crate) due: u64,
    pub(crate) failed: u64,
    answered: u64,
    latency: Latencies,
}

/// Two digits are enough for a graph.
#[derive(Default)]
enum Latencies {
    #[default]
    None,
    Open(Histogram<u32>),
    /// Values and how often: a tenth of the room, for seconds to which nothing is added any more.
    Closed(Vec<(u32, u32)>),
}

impl Timeline {
    /// The first second begins at `from`.
    pub(crate) fn begin(&mut self, from: u64) {
        self.from = from;
    }

    /// The second of a due time.
    #[inline]
    pub(crate) fn at(&mut self, due: u64) -> &mut Bucket {
        let second = (due.saturating_sub(self.from) / SECOND_NS) as usize;
        if second >= self.seconds.len() {
            self.seconds.resize_with(second + 1, Bucket::default);
        }
        &mut self.seconds[second]
    }

    /// Nothing that was due before `time` will be recorded any more.
    pub(crate) fn close_before(&mut self, time: u64) {
        let end = ((time.saturating_sub(self.from) / SECOND_NS) as usize).min(self.seconds.len());
        for bucket in &mut self.seconds[self.open.min(end)..end] {
            bucket.latency.close();
        }
        self.open = self.open.max(end);
    }

    pub(crate) fn merge(&mut self, other: &Self) {
        if other.seconds.len() > self.seconds.len() {
            self.seconds.resize_with(other.seconds.len(), Bucket::default);
        }
        for (to, from) in self.seconds.iter_mut().zip(&other.seconds) {
            to.due += from.due;
            to.failed += from.failed;
            to.answered += from.answered;
            from.latency.add_to(to.latency.open());
            // Open, the seconds of a day would take a gigabyte.
            to.latency.close();
        }
    }

    /// Adds the answers of the seconds from `time` on to a histogram.
    pub(crate) fn add_since(&self, time: u64, to: &mut Histogram<u32>) {
        let first = (time.saturating_sub(self.from) / SECOND_NS) as usize;
        self.seconds.iter().skip(first).for_each(|bucket| bucket.latency.add_to(to));
    }

    /// As results have it; no second is left out, also where nothing was due. `length`: of the whole, in seconds.
    pub(crate) fn seconds(&self, length: f64) -> Vec<Second> {
        let count = self.seconds.len().max(length.ceil() as usize);
        let nothing = Bucket::default();
        let second = |at: usize| {
            let bucket = self.seconds.get(at).unwrap_or(&nothing);
            let mut latency = histogram();
            bucket.latency.add_to(&mut latency);
            Second {
                at: at as f64,
                due: bucket.due,
                answered: bucket.answered,
                failed: bucket.failed,
                p50: latency.value_at_quantile(0.5),
                p99: latency.value_at_quantile(0.99),
                max: latency.max(),
            }
        };
        (0..count).map(second).collect()
    }
}

impl Bucket {
    #[inline]
    pub(crate) fn answered(&mut self, latency_us: u64) {
        self.answered += 1;
        self.latency.open().saturating_record(latency_us);
    }
}

impl Latencies {
    #[inline]
    fn open(&mut self) -> &mut Histogram<u32> {
        if !matches!(self, Self::Open(_)) {
            let mut opened = histogram();
            self.add_to(&mut opened);
            *self = Self::Open(opened);
        }
        let Self::Open(histogram) = self else { unreachable!("it was just opened") };
        histogram
    }

    fn close(&mut self) {
        if let Self::Open(histogram) = self {
            let cells = histogram.iter_recorded();
            let cells = cells.map(|cell| (cell.value_iterated_to().min(TIME_US_MAX) as u32, cell.count_at_value()));
            *self = Self::Closed(cells.collect());
        }
    }

    fn add_to(&self, to: &mut Histogram<u32>) {
        match self {
            Self::None => {}
            Self::Open(histogram) => to.add(histogram).expect("all have the same bounds"),
            Self::Closed(cells) => cells.iter().for_each(|(value, n)| to.saturating_record_n(u64::from(*value), *n)),
        }
    }
}

/// The histogram of a second: up to an hour, two digits.
pub(crate) fn histogram() -> Histogram<u32> {
    Histogram::new_with_bounds(1, TIME_US_MAX, 2).expect("the bounds are fixed and right")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_count_in_the_second_in_which_they_were_due() {
        let mut timeline = Timeline::default();
        timeline.begin(5 * SECOND_NS);
        for (due, latency_us) in [(5 * SECOND_NS, 100), (6 * SECOND_NS - 1, 4_000_000), (7 * SECOND_NS, 50)] {
            timeline.at(due).due += 1;
            timeline.at(due).answered(latency_us);
        }
        let seconds = timeline.seconds(4.0);
        assert_eq!(seconds.iter().map(|second| second.due).collect::<Vec<_>>(), [2, 0, 1, 0]);
        assert_eq!(seconds.iter().map(|second| second.answered).collect::<Vec<_>>(), [2, 0, 1, 0]);
        assert!(seconds[0].max >= 4_000_000 && seconds[2].max == 50);
    }

    #[test]
    fn merged_seconds_take_little_room() {
        let (mut one, mut other) = (Timeline::default(), Timeline::default());
        one.at(0).answered(100);
        (0..3).for_each(|second| other.at(second * SECOND_NS).answered(300));
        one.merge(&other);
        assert!(one.seconds.iter().all(|second| matches!(second.latency, Latencies::Closed(_))));
        assert_eq!(
            one.seconds(3.0).iter().map(|at| (at.answered, at.max)).collect::<Vec<_>>(),
            [(2, 301), (1, 301), (1, 301)]
        );
    }

    #[test]
    fn a_closed_second_keeps_its_figures_and_opens_again() {
        let mut timeline = Timeline::default();
        (1..=1_000u64).for_each(|us| timeline.at(0).answered(us * 10));
        let before = timeline.seconds(1.0);
        timeline.close_before(2 * SECOND_NS);
        assert!(matches!(timeline.seconds[0].latency, Latencies::Closed(_)));
        let after = timeline.seconds(1.0);
        assert_eq!((before[0].p50, before[0].p99, before[0].max), (after[0].p50, after[0].p99, after[0].max));
        timeline.at(0).answered(1_000_000);
        assert!(timeline.seconds(1.0)[0].max >= 1_000_000);
        assert_eq!(timeline.seconds(1.0)[0].answered, 1_001);
    }
}
