//! HdrHistogram's percentile text, as its plotter and its other tools read it.

use std::fmt::Write;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use hdrhistogram::Histogram;
use hdrhistogram::serialization::Deserializer;

use crate::failure::Failure;
use crate::results::{Latency, Results};

/// Lines for each halving of the distance to 100 %, as other tools have it.
const LINES_PER_HALF: u32 = 5;

/// The latency (from when requests were due) in milliseconds. An error where the results came from a file and its
/// histogram is not one.
pub(crate) fn hgrm(results: &Results) -> Result<String, Failure> {
    let histogram = decode(&results.latency)
        .ok_or_else(|| Failure::usage("latency.histogram is not an HdrHistogram (V2, DEFLATE, base64)"))?;
    Ok(text(&histogram))
}

fn decode(latency: &Latency) -> Option<Histogram<u64>> {
    let bytes = BASE64.decode(&latency.histogram).ok()?;
    Deserializer::new().deserialize(&mut bytes.as_slice()).ok()
}

fn text(histogram: &Histogram<u64>) -> String {
    let mut text = format!("{:>12} {:>14} {:>10} {:>14}\n\n", "Value", "Percentile", "TotalCount", "1/(1-Percentile)");
    let mut total = 0;
    for step in histogram.iter_quantiles(LINES_PER_HALF) {
        total += step.count_since_last_iteration();
        let (value, quantile) = (ms(step.value_iterated_to() as f64), step.quantile_iterated_to());
        let _ = write!(text, "{value:12.3} {quantile:.12} {total:10}");
        // The last line has no such number: it would be infinite.
        let _ = match quantile < 1.0 {
            true => writeln!(text, " {:14.2}", 1.0 / (1.0 - quantile)),
            false => writeln!(text),
        };
    }
    let sub_buckets = 2 * 10_u64.pow(histogram.sigfig().into());
    let figures = [
        (("Mean", ms(histogram.mean()), 3), ("StdDeviation", ms(histogram.stdev()), 3)),
        (("Max", ms(histogram.max() as f64), 3), ("Total count", histogram.len() as f64, 0)),
        (("Buckets", histogram.buckets().into(), 0), ("SubBuckets", sub_buckets.next_power_of_two() as f64, 0)),
    ];
    for ((left, value, digits), (right, other, other_digits)) in figures {
        let _ = writeln!(text, "#[{left:<7} = {value:12.digits$}, {right:<14} = {other:12.other_digits$}]");
    }
    text
}

fn ms(us: f64) -> f64 {
    us / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_is_that_of_hdrhistogram() {
        let mut histogram = Histogram::new_with_bounds(1, 3_600_000_000, 3).unwrap();
        (1..=1000_u64).for_each(|us| histogram.record(us * 2).unwrap());
        let text = text(&histogram);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "       Value     Percentile TotalCount 1/(1-Percentile)");
        assert_eq!(lines[1], "");
        assert_eq!(lines[2], "       0.002 0.000000000000          1           1.00");
        assert!(lines.contains(&"       1.000 0.500000000000        500           2.00"), "{text}");
        let [.., last, mean, max, buckets] = lines[..] else { panic!("{text}") };
        assert_eq!(last, "       2.000 1.000000000000       1000");
        assert_eq!(mean, "#[Mean    =        1.001, StdDeviation   =        0.577]");
        assert_eq!(max, "#[Max     =        2.000, Total count    =         1000]");
        assert_eq!(buckets, "#[Buckets =           22, SubBuckets     =         2048]");
    }

    #[test]
    fn an_empty_histogram_has_no_lines_of_its_own() {
        let text = text(&Histogram::new(3).unwrap());
        assert!(text.contains("Total count    =            0]"), "{text}");
        assert!(!text.contains("NaN") && !text.contains("inf"), "{text}");
    }
}
