//! How a run goes, while it goes.

use std::io::{IsTerminal, Write};
use std::time::Duration;

use hdrhistogram::Histogram;

use crate::run::record::Record;
use crate::run::timeline;

/// Latencies are shown of the requests that were due in about this time.
const RECENT_NS: u64 = 1_000_000_000;

/// What a thread lets others see, about four times a second.
#[derive(Clone)]
pub(crate) struct Published {
    answered: u64,
    failed: u64,
    unexpected: u64,
    recent: Histogram<u32>,
}

/// The run at one moment.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Live {
    /// Since the start, the warm-up included.
    pub(crate) elapsed: Duration,
    pub(crate) left: Duration,
    pub(crate) is_warming_up: bool,
    /// Answers per second of late.
    pub(crate) rate: f64,
    pub(crate) answered: u64,
    pub(crate) failed: u64,
    pub(crate) unexpected: u64,
    /// Of the requests that were due of late, in microseconds.
    pub(crate) p50: u64,
    pub(crate) p99: u64,
}

impl Default for Published {
    fn default() -> Self {
        Self { answered: 0, failed: 0, unexpected: 0, recent: timeline::histogram() }
    }
}

impl Published {
    pub(crate) fn set(&mut self, record: &Record, now: u64) {
        self.answered = record.counts.answered;
        self.failed = record.counts.failed;
        self.unexpected = record.counts.unexpected;
        self.recent.reset();
        record.timeline.add_since(now.saturating_sub(RECENT_NS), &mut self.recent);
    }

    pub(crate) fn add(&mut self, other: &Self) {
        self.answered += other.answered;
        self.failed += other.failed;
        self.unexpected += other.unexpected;
        self.recent.add(&other.recent).expect("all have the same bounds");
    }
}

impl Live {
    /// `before`: the answers at the moment `since` ago.
    pub(crate) fn new(now: &Published, before: u64, since: Duration) -> Self {
        Self {
            elapsed: Duration::ZERO,
            left: Duration::ZERO,
            is_warming_up: false,
            rate: now.answered.saturating_sub(before) as f64 / since.as_secs_f64().max(0.001),
            answered: now.answered,
            failed: now.failed,
            unexpected: now.unexpected,
            p50: now.recent.value_at_quantile(0.5),
            p99: now.recent.value_at_quantile(0.99),
        }
    }

    /// One line, without its end.
    fn line(&self) -> String {
        let left = self.left.as_secs_f64().ceil();
        if self.is_warming_up {
            return format!("warming up, {left} s left");
        }
        let errors = self.failed + self.unexpected;
        format!("{:.0}/s  p50 {}  p99 {}  errors {errors}  {left} s left", self.rate, time(self.p50), time(self.p99))
    }
}

/// A line on standard error that is drawn over itself; nothing where that is no terminal.
pub(crate) struct LiveLine {
    is_terminal: bool,
}

impl LiveLine {
    pub(crate) fn new() -> Self {
        Self { is_terminal: std::io::stderr().is_terminal() }
    }

    pub(crate) fn draw(&mut self, live: &Live) {
        if self.is_terminal {
            // To the start of the line, the text, and nothing after it. A terminal that is gone is no reason to stop.
            let _ = write!(std::io::stderr(), "\r{}\x1b[K", live.line());
        }
    }
}

impl Drop for LiveLine {
    fn drop(&mut self) {
        if self.is_terminal {
            let _ = write!(std::io::stderr(), "\r\x1b[K");
        }
    }
}

/// Microseconds in a unit that is easy to read.
fn time(us: u64) -> String {
    match us {
        0..1_000 => format!("{us} us"),
        1_000..10_000 => format!("{:.2} ms", us as f64 / 1e3),
        10_000..1_000_000 => format!("{:.1} ms", us as f64 / 1e3),
        _ => format!("{:.2} s", us as f64 / 1e6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_says_rate_latency_errors_and_time_left() {
        let mut record = Record::new(1);
        for n in 0..100u64 {
            let (due, done) = (n * 1_000_000, n * 1_000_000 + 700_000);
            record.due(due, due);
            let class = 0;
            let answer = crate::run::record::Answer { class, status: 200, expected: n != 7, due, sent: due, done };
            record.answered(answer);
        }
        let mut published = Published::default();
        published.set(&record, 100_000_000);
        let mut both = published.clone();
        both.add(&published);
        let live = Live { left: Duration::from_millis(11_500), ..Live::new(&both, 100, Duration::from_millis(250)) };
        assert_eq!((live.answered, live.unexpected), (200, 2));
        assert_eq!(live.line(), "400/s  p50 703 us  p99 703 us  errors 2  12 s left");
        assert_eq!(Live { is_warming_up: true, ..live }.line(), "warming up, 12 s left");
    }

    #[test]
    fn times_have_three_digits() {
        let shown = [999, 1_500, 15_000, 2_500_000].map(time);
        assert_eq!(shown, ["999 us", "1.50 ms", "15.0 ms", "2.50 s"]);
    }
}
