//! What a thread of the generator uses of its core.

use std::fs;

/// The difference between two readings, or the first of them.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Cost {
    pub(crate) wall_ns: u64,
    pub(crate) cpu_ns: u64,
    /// Ready to run, while something else ran on its core.
    pub(crate) waited_ns: u64,
    pub(crate) answers: u64,
}

impl Cost {
    /// Readings of the calling thread.
    pub(crate) fn begin(now: u64, answers: u64) -> Self {
        let (cpu_ns, waited_ns) = schedstat(&fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default());
        Self { wall_ns: now, cpu_ns, waited_ns, answers }
    }

    /// What was used since.
    pub(crate) fn end(self, now: u64, answers: u64) -> Self {
        let end = Self::begin(now, answers);
        Self {
            wall_ns: end.wall_ns.saturating_sub(self.wall_ns),
            cpu_ns: end.cpu_ns.saturating_sub(self.cpu_ns),
            waited_ns: end.waited_ns.saturating_sub(self.waited_ns),
            answers: end.answers - self.answers,
        }
    }

    /// Share of the time that the thread ran, 0 to 1.
    pub(crate) fn busy(&self) -> f64 {
        (self.cpu_ns as f64 / self.wall_ns.max(1) as f64).min(1.0)
    }

    /// Share of the time that the thread could have run and did not, 0 to 1.
    pub(crate) fn waited(&self) -> f64 {
        (self.waited_ns as f64 / self.wall_ns.max(1) as f64).min(1.0)
    }
}

/// On the core and waiting for it, in nanoseconds.
fn schedstat(text: &str) -> (u64, u64) {
    let mut numbers = text.split_whitespace().map(|number| number.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_shows_as_cpu_time() {
        let start = std::time::Instant::now();
        let before = Cost::begin(0, 10);
        // The kernel brings a running thread's figure up to date with its ticks.
        let mut sum = 0u64;
        while start.elapsed().as_millis() < 50 {
            sum = std::hint::black_box(sum + 1);
        }
        std::thread::yield_now();
        let cost = before.end(start.elapsed().as_nanos() as u64, 25);
        assert_eq!(cost.answers, 15);
        assert!(cost.cpu_ns + cost.waited_ns > 30_000_000, "{cost:?}");
        assert!(cost.busy() + cost.waited() > 0.6, "{cost:?}");
        assert_eq!(schedstat("12345 678 9\n"), (12_345, 678));
    }
}
