//! Medians over the repeats, spreads and ratios.

use serde::Serialize;

use crate::compare::measure::{FULL, Run};

/// All the runs of one case against one proxy, in one line.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Row {
    pub(crate) case: String,
    pub(crate) connections: usize,
    pub(crate) proxy: String,
    /// Medians, as all figures of this struct.
    pub(crate) cpu_us_per_request: f64,
    pub(crate) cpu_us_per_request_lowest: f64,
    pub(crate) cpu_us_per_request_highest: f64,
    pub(crate) requests_per_s: f64,
    /// Highest less lowest rate of the repeats, as a share of the median.
    pub(crate) spread: f64,
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
    pub(crate) proxy_core_busy: f64,
    pub(crate) load_core_busy: f64,
    pub(crate) foreign_cores: Option<f64>,
    pub(crate) load_cpu_us_per_request: f64,
    pub(crate) origin_cpu_us_per_request: Option<f64>,
    pub(crate) proxy_rss_bytes: f64,
    /// The most of any run.
    pub(crate) bad: u64,
    pub(crate) bottleneck: Bottleneck,
    /// CPU of the first proxy over that of this one: below 1 the first is cheaper. None for the first itself, and where
    /// requests were bad.
    pub(crate) cpu_ratio: Option<f64>,
    pub(crate) runs: Vec<Run>,
}

/// Which core was full.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Bottleneck {
    Proxy,
    /// The core of the generator and the origin: rates and latencies describe these, not the proxy.
    Load,
    Both,
    /// None was: the time of the way there and back was.
    Neither,
}

impl Row {
    pub(crate) fn new(case: String, connections: usize, proxy: String, runs: Vec<Run>) -> Self {
        let of = |figure: fn(&Run) -> f64| sorted(runs.iter().map(figure));
        let optional = |figure: fn(&Run) -> Option<f64>| {
            let values = sorted(runs.iter().filter_map(figure));
            (!values.is_empty()).then(|| median(&values))
        };
        let cpu = of(|run| run.cpu_us_per_request);
        let rates = of(|run| run.requests_per_s);
        let (proxy_busy, load_busy) = (median(&of(|run| run.proxy_core_busy)), median(&of(|run| run.load_core_busy)));
        Self {
            case,
            connections,
            proxy,
            cpu_us_per_request: median(&cpu),
            cpu_us_per_request_lowest: cpu.first().copied().unwrap_or(0.0),
            cpu_us_per_request_highest: cpu.last().copied().unwrap_or(0.0),
            requests_per_s: median(&rates),
            spread: spread(&rates),
            p50_us: median(&of(|run| run.p50_us as f64)),
            p99_us: median(&of(|run| run.p99_us as f64)),
            proxy_core_busy: proxy_busy,
            load_core_busy: load_busy,
            foreign_cores: optional(|run| run.foreign_cores),
            load_cpu_us_per_request: median(&of(|run| run.load_cpu_us_per_request)),
            origin_cpu_us_per_request: optional(|run| run.origin_cpu_us_per_request),
            proxy_rss_bytes: median(&of(|run| run.proxy_rss_bytes as f64)),
            bad: runs.iter().map(|run| run.bad).max().unwrap_or(0),
            bottleneck: Bottleneck::of(proxy_busy, load_busy),
            cpu_ratio: None,
            runs,
        }
    }
}

impl Bottleneck {
    fn of(proxy_busy: f64, load_busy: f64) -> Self {
        match (proxy_busy >= FULL, load_busy >= FULL) {
            (true, true) => Self::Both,
            (true, false) => Self::Proxy,
            (false, true) => Self::Load,
            (false, false) => Self::Neither,
        }
    }

    pub(crate) fn describe(self) -> &'static str {
        match self {
            Self::Proxy => "proxy's core",
            Self::Load => "load's core",
            Self::Both => "both cores",
            Self::Neither => "no core",
        }
    }
}

/// Fills in the ratios to the proxy `first`.
pub(crate) fn relate(rows: &mut [Row], first: &str) {
    let of_first: Vec<(String, f64)> = rows
        .iter()
        .filter(|row| row.proxy == first && row.bad == 0)
        .map(|row| (row.case.clone(), row.cpu_us_per_request))
        .collect();
    for row in rows.iter_mut().filter(|row| row.proxy != first && row.bad == 0) {
        let mine = of_first.iter().find(|(case, _)| *case == row.case);
        row.cpu_ratio = mine.map(|(_, cpu)| cpu / row.cpu_us_per_request);
    }
}

fn sorted(values: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut values: Vec<_> = values.collect();
    values.sort_by(f64::total_cmp);
    values
}

fn median(sorted: &[f64]) -> f64 {
    let middle = sorted.len() / 2;
    match sorted.get(middle) {
        None => 0.0,
        Some(upper) if sorted.len() % 2 == 1 => *upper,
        Some(upper) => (sorted.get(middle.wrapping_sub(1)).unwrap_or(upper) + upper) / 2.0,
    }
}

fn spread(sorted: &[f64]) -> f64 {
    match (sorted.first(), sorted.last(), median(sorted)) {
        (Some(low), Some(high), median) if median > 0.0 => (high - low) / median,
        _ => 0.0,
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn run(cpu: f64, rate: f64) -> Run {
        Run {
            requests: 1000,
            bad: 0,
            seconds: 3.0,
            requests_per_s: rate,
            cpu_us_per_request: cpu,
            load_cpu_us_per_request: 10.0,
            origin_cpu_us_per_request: Some(8.0),
            p50_us: 100,
            p99_us: 200,
            proxy_rss_bytes: 1 << 20,
            proxy_cores: 0.9,
            proxy_core_busy: 0.98,
            load_core_busy: 0.5,
            foreign_cores: Some(0.01),
            taken_again: false,
        }
    }

    pub(crate) fn row(proxy: &str, runs: Vec<Run>) -> Row {
        Row::new("get-100@64".into(), 64, proxy.into(), runs)
    }

    #[test]
    fn a_row_has_medians_and_spread() {
        let row = row("nginx", vec![run(20.0, 900.0), run(10.0, 1000.0), run(12.0, 1100.0)]);
        assert_eq!((row.cpu_us_per_request, row.requests_per_s), (12.0, 1000.0));
        assert_eq!((row.cpu_us_per_request_lowest, row.cpu_us_per_request_highest), (10.0, 20.0));
        assert!((row.spread - 0.2).abs() < 1e-9);
        assert_eq!(row.bottleneck, Bottleneck::Proxy);
        let even = [1.0, 2.0, 4.0, 8.0];
        assert_eq!(median(&even), 3.0);
        assert_eq!((median(&[]), spread(&[])), (0.0, 0.0));
    }

    #[test]
    fn the_bottleneck_is_the_full_core() {
        assert_eq!(Bottleneck::of(0.99, 0.99), Bottleneck::Both);
        assert_eq!(Bottleneck::of(0.9, 0.97), Bottleneck::Load);
        assert_eq!(Bottleneck::of(0.9, 0.9), Bottleneck::Neither);
    }

    #[test]
    fn ratios_are_to_the_first_and_not_where_requests_were_bad() {
        let broken = Run { bad: 1, ..run(5.0, 1.0) };
        let mut rows = vec![
            row("ringway", vec![run(15.0, 1000.0)]),
            row("nginx", vec![run(20.0, 900.0)]),
            row("envoy", vec![broken]),
        ];
        relate(&mut rows, "ringway");
        let ratios: Vec<_> = rows.iter().map(|row| row.cpu_ratio).collect();
        assert_eq!(ratios, [None, Some(0.75), None]);
    }
}
