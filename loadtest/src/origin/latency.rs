//! How long an answer is held back.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fastrand::Rng;

use super::LATENCY_MAX;
use crate::units;

/// Times as long as usual at the beginning of a slow start.
const SLOW_START_FACTOR: f64 = 10.0;
const SIGMA_MAX: f64 = 10.0;

/// A distribution of latencies.
#[derive(Debug, Clone)]
pub(super) enum Latency {
    Fixed(Duration),
    Exponential { mean: Duration },
    LogNormal { median: Duration, sigma: f64 },
    Values(Arc<[Duration]>),
    Percentiles(Arc<[Percentile]>),
}

/// A point of a measured distribution: this share of all, from 0 to 1, took no longer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Percentile {
    share: f64,
    value: Duration,
}

/// A latency that is ten times the usual at first and falls to it steadily.
#[derive(Debug, Clone, Copy)]
pub(super) struct SlowStart {
    began: Instant,
    time: Duration,
}

impl Latency {
    /// As the command line has it; reads the file that is named.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            None => Ok(Self::Fixed(bounded(text)?)),
            Some(("exp", mean)) => Ok(Self::Exponential { mean: bounded(mean)? }),
            Some(("lognormal", of)) => {
                let (median, sigma) = of.split_once(',').ok_or("say `lognormal:MEDIAN,SIGMA`")?;
                let parsed = sigma.parse().ok().filter(|sigma| (0.0..=SIGMA_MAX).contains(sigma));
                let sigma = parsed.ok_or_else(|| format!("sigma `{sigma}` is not a number from 0 to {SIGMA_MAX}"))?;
                Ok(Self::LogNormal { median: bounded(median)?, sigma })
            }
            Some(("file", path)) => Self::read(Path::new(path)).map_err(|error| format!("{path}: {error}")),
            Some((name, _)) => Err(format!("`{name}` is not one of exp, lognormal, file")),
        }
    }

    pub(super) fn draw(&self, rng: &mut Rng) -> Duration {
        match self {
            Self::Fixed(latency) => *latency,
            // 1 - f64() is never 0.
            Self::Exponential { mean } => scaled(*mean, -(1.0 - rng.f64()).ln()),
            Self::LogNormal { median, sigma } => scaled(*median, (sigma * normal(rng)).exp()),
            Self::Values(values) => values[rng.usize(..values.len())],
            Self::Percentiles(points) => at(points, rng.f64()),
        }
    }

    fn read(path: &Path) -> Result<Self, String> {
        let text = fs::read_to_string(path).map_err(|error| error.to_string())?;
        let lines = text.lines().enumerate().map(|(index, line)| (index + 1, line.trim()));
        let mut lines = lines.filter(|(_, line)| !line.is_empty() && !line.starts_with('#')).peekable();
        let in_line = |number: usize| move |error: String| format!("line {number}: {error}");
        match lines.peek() {
            None => Err("there are no values in it".into()),
            Some((_, first)) if first.starts_with("Value") => {
                let points = lines.skip(1).map(|(number, line)| percentile(line).map_err(in_line(number)));
                let points = points.collect::<Result<Vec<_>, _>>()?;
                let rises = points.is_sorted_by(|a, b| a.share <= b.share && a.value <= b.value);
                match points.last() {
                    Some(last) if rises && last.share == 1.0 => Ok(Self::Percentiles(points.into())),
                    Some(_) if rises => Err("the percentiles do not end with 1.0".into()),
                    Some(_) => Err("the percentiles do not rise".into()),
                    None => Err("there are no values in it".into()),
                }
            }
            Some(_) => {
                let values = lines.map(|(number, line)| value(line).map_err(in_line(number)));
                Ok(Self::Values(values.collect::<Result<_, _>>()?))
            }
        }
    }
}

impl SlowStart {
    pub(super) fn new(began: Instant, time: Duration) -> Self {
        Self { began, time }
    }

    /// A latency as it is at this moment.
    pub(super) fn apply(&self, latency: Duration, now: Instant) -> Duration {
        let passed = now.saturating_duration_since(self.began).as_secs_f64() / self.time.as_secs_f64();
        if passed >= 1.0 { latency } else { scaled(latency, SLOW_START_FACTOR + (1.0 - SLOW_START_FACTOR) * passed) }
    }
}

/// A duration that a request may be held back for.
pub(super) fn bounded(text: &str) -> Result<Duration, String> {
    let latency = units::duration(text)?;
    if latency <= LATENCY_MAX { Ok(latency) } else { Err(format!("`{text}` is more than {}s", LATENCY_MAX.as_secs())) }
}

fn scaled(latency: Duration, by: f64) -> Duration {
    Duration::from_secs_f64((latency.as_secs_f64() * by).min(LATENCY_MAX.as_secs_f64()))
}

/// A line of a list of values: with a unit, or microseconds.
fn value(line: &str) -> Result<Duration, String> {
    if units::is_decimal(line) { bounded(&format!("{line}us")) } else { bounded(line) }
}

/// A line of an .hgrm file: `Value Percentile TotalCount 1/(1-Percentile)`.
fn percentile(line: &str) -> Result<Percentile, String> {
    let mut columns = line.split_ascii_whitespace();
    let (milliseconds, share) = (columns.next(), columns.next());
    let share = share.and_then(|share| share.parse().ok()).filter(|share| (0.0..=1.0).contains(share));
    match (milliseconds, share) {
        (Some(milliseconds), Some(share)) => Ok(Percentile { share, value: bounded(&format!("{milliseconds}ms"))? }),
        _ => Err(format!("`{line}` does not begin with a value and a percentile from 0 to 1")),
    }
}

/// The value that this share of all do not exceed, on a straight line between the points beside it.
fn at(points: &[Percentile], share: f64) -> Duration {
    let next = points.partition_point(|point| point.share < share);
    match (next.checked_sub(1).and_then(|before| points.get(before)), points.get(next)) {
        (Some(before), Some(after)) => {
            let part = (share - before.share) / (after.share - before.share);
            before.value + (after.value - before.value).mul_f64(part)
        }
        (None, Some(only)) | (Some(only), None) => only.value,
        (None, None) => Duration::ZERO,
    }
}

/// A value of the standard normal distribution (Box and Muller).
fn normal(rng: &mut Rng) -> f64 {
    let (radius, angle) = ((-2.0 * (1.0 - rng.f64()).ln()).sqrt(), std::f64::consts::TAU * rng.f64());
    radius * angle.cos()
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn file(text: &str) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        file
    }

    fn parse_file(text: &str) -> Result<Latency, String> {
        let file = file(text);
        Latency::parse(&format!("file:{}", file.path().display()))
    }

    /// Percentiles 10, 50 and 90 of many draws, in milliseconds.
    fn drawn(latency: &Latency) -> [f64; 3] {
        let mut rng = Rng::with_seed(1);
        let mut values: Vec<_> = (0..20_000).map(|_| latency.draw(&mut rng).as_secs_f64() * 1e3).collect();
        values.sort_by(f64::total_cmp);
        [2_000, 10_000, 18_000].map(|index| values[index])
    }

    #[track_caller]
    fn assert_near(drawn: [f64; 3], expected: [f64; 3]) {
        for (drawn, expected) in drawn.iter().zip(expected) {
            assert!((drawn / expected - 1.0).abs() < 0.05, "{drawn} instead of {expected}");
        }
    }

    #[test]
    fn draws_have_the_quantiles_of_their_distributions() {
        let of = |text| drawn(&Latency::parse(text).unwrap());
        assert_eq!(of("5ms"), [5.0; 3]);
        // -ln(1 - p) times the mean.
        assert_near(of("exp:10ms"), [1.0536, 6.9315, 23.026]);
        // exp(sigma z) times the median, with z = -1.2816, 0 and 1.2816.
        assert_near(of("lognormal:10ms,0.5"), [5.2687, 10.0, 18.980]);
        assert_near(of("lognormal:10ms,0"), [10.0; 3]);
    }

    #[test]
    fn values_of_a_file_are_drawn_alike() {
        let latency = parse_file("# measured\n2ms\n\n4000\n  6ms  \n").unwrap();
        let mut rng = Rng::with_seed(1);
        let mut counts = std::collections::BTreeMap::new();
        for _ in 0..3000 {
            *counts.entry(latency.draw(&mut rng).as_millis()).or_insert(0) += 1;
        }
        assert_eq!(counts.keys().copied().collect::<Vec<_>>(), [2, 4, 6]);
        assert!(counts.values().all(|count| (900..1100).contains(count)), "{counts:?}");
    }

    #[test]
    fn percentile_lists_are_drawn_between_their_points() {
        let latency = parse_file(
            "       Value     Percentile TotalCount 1/(1-Percentile)\n\n\
             1.000 0.000000000000 1 1.00\n\
             3.000 0.500000000000 50 2.00\n\
             13.000 1.000000000000 100\n\
             #[Mean    =        5.000, StdDeviation   =        1.000]\n",
        );
        assert_near(drawn(&latency.unwrap()), [1.4, 3.0, 11.0]);
    }

    #[test]
    fn what_cannot_be_read_is_said_with_its_line() {
        for (text, error) in [
            ("", "there are no values in it"),
            ("5ms\n5 ms\n", "line 2: `5 ms` is not a duration like"),
            ("11m\n", "line 1: `11m` is more than 600s"),
            ("Value Percentile\nx 0.5\n", "line 2: `xms` is not a duration"),
            ("Value Percentile\n5\n", "line 2: `5` does not begin with a value and a percentile"),
            ("Value Percentile\n5 0.5\n4 1.0\n", "the percentiles do not rise"),
            ("Value Percentile\n5 0.5\n", "the percentiles do not end with 1.0"),
            ("Value Percentile\n", "there are no values in it"),
        ] {
            let found = parse_file(text).unwrap_err();
            assert!(found.contains(error), "{text:?}: {found}");
        }
        for text in
            ["5", "exp:5", "lognormal:5ms", "lognormal:5ms,-1", "lognormal:5ms,x", "gauss:5ms", "file:/none", ""]
        {
            assert!(Latency::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_slow_start_falls_steadily() {
        let began = Instant::now();
        let slow = SlowStart::new(began, Duration::from_secs(10));
        for (seconds, expected) in [(0, 50.0), (5, 27.5), (9, 9.5), (10, 5.0), (60, 5.0)] {
            let latency = slow.apply(Duration::from_millis(5), began + Duration::from_secs(seconds));
            assert!((latency.as_secs_f64() * 1e3 - expected).abs() < 1e-6, "{latency:?} after {seconds} s");
        }
    }
}
