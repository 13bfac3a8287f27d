//! A run as one page.

use super::page::{Html, Section, page};
use super::svg::{Lines, Measure, Scale, Series, lines};
use super::table::{explanation, is_open, latency_name, percentiles, time};
use super::units::{bandwidth, bytes, count, number, rate, share, time_us};
use crate::environment::Environment;
use crate::results::{Latency, Results, Second};

/// Points of a chart over time: several seconds of a long run share one.
const TIMELINE_POINTS_MAX: usize = 300;
/// Where the largest value is this many times the smallest, a linear axis would hide the small ones.
const LOG_FROM: f64 = 20.0;

pub(crate) fn html(results: &Results) -> String {
    let title = format!("Load test of {}", results.target);
    let load = &results.load;
    let lead = format!("{} loop, {}; started {}", load.model, load.description, results.started);
    let sections = [
        summary(results),
        latency(results),
        timeline(results),
        classes(results),
        errors(results),
        generator(results),
        Some(environment(&results.environment)),
    ];
    page(&title, &lead, &sections.into_iter().flatten().collect::<Vec<_>>())
}

/// Where figures come from, for every page.
pub(crate) fn environment(here: &Environment) -> Section {
    let facts = [
        ("CPU", format!("{}, {} cores", here.cpu, here.cores)),
        ("Memory", format!("{} MiB", count(here.memory_mib))),
        ("Kernel", here.kernel.clone()),
        ("System", here.os.clone()),
        ("loadtest", here.version.clone()),
        ("Command line", here.command_line.join(" ")),
    ];
    Section::new("Environment", [Html::facts(&facts)])
}

fn summary(results: &Results) -> Option<Section> {
    let (counts, latency) = (&results.counts, &results.latency);
    let per_s = counts.answered as f64 / results.seconds.max(f64::MIN_POSITIVE);
    let asked = results.load.rate.map_or("no rate asked for".to_owned(), |asked| format!("of {} asked", rate(asked)));
    let tile = |name, us: u64| (name, time(latency, us as f64), latency_name(results).to_owned());
    let of_due = |number: u64| share(number as f64 / counts.due.max(1) as f64);
    let tiles = [
        ("Answered", rate(per_s), asked),
        tile("p50", latency.p50),
        tile("p99", latency.p99),
        tile("max", latency.max),
        ("Failed", of_due(counts.failed), format!("{} without an answer", count(counts.failed))),
        ("Unexpected", of_due(counts.unexpected), format!("{} with a wrong status", count(counts.unexpected))),
    ];
    let traffic = |name, total: u64| {
        let per_s = total as f64 / results.seconds.max(f64::MIN_POSITIVE);
        (name, format!("{}, {}", bytes(total as f64), bandwidth(per_s)))
    };
    let facts = [
        ("Due", count(counts.due)),
        ("Sent", count(counts.sent)),
        ("Answered", count(counts.answered)),
        traffic("Bytes sent", counts.bytes_sent),
        traffic("Bytes received", counts.bytes_received),
        (
            "Connections",
            format!("{}, opened {}", count(results.load.connections as u64), count(counts.connections_opened)),
        ),
        ("Measured", format!("{:.1} s", results.seconds)),
    ];
    Some(Section::new(
        "Summary",
        [Html::warnings(&results.generator.warnings), Html::tiles(&tiles), Html::facts(&facts)],
    ))
}

fn latency(results: &Results) -> Option<Section> {
    let both = [(latency_name(results), &results.latency), ("service time", &results.service_time)];
    let points = |latency: &Latency| latency.curve.iter().map(|(percentile, us)| (*percentile, *us as f64)).collect();
    let series: Vec<Series> = both.map(|(name, latency)| Series { name, points: points(latency) }).into();
    let chart = Lines {
        title: "Latency by percentile",
        x: Measure { name: "Percentile", scale: Scale::Percentile, show: percentile },
        y: Measure {
            name: "Each further nine on the axis is ten times rarer.",
            scale: fitting(&series),
            show: time_us,
        },
        series,
    };
    let [all, service] = both.map(|(_, latency)| percentiles(latency).map(|(name, us)| (name, time(latency, us))));
    let rows = all.into_iter().zip(service).map(|((name, all), (_, service))| [name.to_owned(), all, service]);
    let rows: Vec<[String; 3]> = rows.collect();
    let head = both.map(|(name, _)| name);
    let table = Html::table("The same in figures", &["", head[0], head[1]], rows.iter().map(|row| &row[..]));
    let parts = [Html::paragraph(explanation(results)), Html::side_by_side([lines(&chart), table])];
    Some(Section::new("Latency", parts))
}

fn timeline(results: &Results) -> Option<Section> {
    let per_point = results.timeline.len().div_ceil(TIMELINE_POINTS_MAX).max(1);
    let points: Vec<Second> =
        results.timeline.chunks(per_point).filter_map(|seconds| merged(seconds, results.seconds)).collect();
    if points.is_empty() {
        return None;
    }
    let line = |name, figure: fn(&Second) -> f64| {
        let points = points.iter().map(|point| (point.at, figure(point))).collect();
        Series { name, points }
    };
    let x = || Measure { name: "Seconds since the start", scale: Scale::Linear, show: number };
    let chart = |title, name, scale, show, series| Lines { title, x: x(), y: Measure { name, scale, show }, series };
    let times = vec![line("p50", |at| at.p50 as f64), line("p99", |at| at.p99 as f64), line("max", |at| at.max as f64)];
    let rates = vec![line("due", |at| at.due as f64), line("answered", |at| at.answered as f64)];
    let mut charts = vec![
        lines(&chart(
            "Latency over time",
            "By the second in which requests were due.",
            fitting(&times),
            time_us,
            times,
        )),
        lines(&chart("Rate over time", "Requests per second.", Scale::Linear, rate, rates)),
    ];
    if results.counts.failed > 0 {
        let failed = vec![line("failed", |at| at.failed as f64)];
        charts.push(lines(&chart(
            "Failures over time",
            "Requests without an answer, per second.",
            Scale::Linear,
            rate,
            failed,
        )));
    }
    let note = match per_point {
        1 => Html::default(),
        _ => Html::paragraph(&format!(
            "Each point stands for {per_point} seconds: the mean of their rates, the worst of their latencies."
        )),
    };
    Some(Section::new("Over time", [note, Html::side_by_side(charts)]))
}

fn classes(results: &Results) -> Option<Section> {
    let row = |name: String, latency: &Latency| {
        let per_s = rate(latency.count as f64 / results.seconds.max(f64::MIN_POSITIVE));
        let times = percentiles(latency).map(|(_, us)| time(latency, us));
        [vec![name, count(latency.count), per_s], times.to_vec()].concat()
    };
    let mut rows = Vec::new();
    for class in &results.classes {
        rows.push(row(class.name.clone(), &class.latency));
        rows.extend(class.statuses.iter().map(|status| row(format!("    {}", status.name()), &status.latency)));
        if class.failed > 0 {
            rows.push(vec!["    no answer".to_owned(), count(class.failed)]);
        }
    }
    let names = percentiles(&results.latency).map(|(name, _)| name);
    let head: Vec<&str> = ["Class", "answers", "rate"].into_iter().chain(names).collect();
    let caption = format!("Latency ({})", latency_name(results));
    let table = Html::table(&caption, &head, rows.iter().map(Vec::as_slice));
    (!rows.is_empty()).then(|| Section::new("By class and status", [table]))
}

fn errors(results: &Results) -> Option<Section> {
    let rows: Vec<[String; 2]> = results.errors.iter().map(|error| [error.kind.clone(), count(error.count)]).collect();
    let table =
        Html::table("Requests without an answer, by cause", &["Kind", "count"], rows.iter().map(|row| &row[..]));
    (!rows.is_empty()).then(|| Section::new("Errors", [table]))
}

fn generator(results: &Results) -> Option<Section> {
    let own = &results.generator;
    let mut facts = vec![
        ("CPU per request", time_us(own.cpu_us_per_request)),
        ("Busiest thread", format!("{} of its time", share(own.busy))),
    ];
    if is_open(results) {
        facts.push(("On schedule", format!("{} within 1 ms", share(own.on_schedule))));
        facts.push(("Latest", time_us(own.late_max_us as f64)));
    }
    facts.push(("Threads", results.load.threads.to_string()));
    let verdict = match own.warnings.is_empty() {
        true => "Nothing of the generator's own stands against these figures.",
        false => "The figures above are not to be trusted as they stand; see the warnings.",
    };
    Some(Section::new("The generator itself", [Html::paragraph(verdict), Html::facts(&facts)]))
}

/// Some seconds as one: the mean of their rates, the worst of their latencies. Of the last one only what lies before the
/// end of the run counts, a tenth of a second at least.
fn merged(seconds: &[Second], end: f64) -> Option<Second> {
    let at = seconds.first()?.at;
    let length = if end > at { (end - at).clamp(0.1, seconds.len() as f64) } else { seconds.len() as f64 };
    let mean = |figure: fn(&Second) -> u64| {
        let sum: f64 = seconds.iter().map(|second| figure(second) as f64).sum();
        (sum / length).round() as u64
    };
    let worst = |figure: fn(&Second) -> u64| seconds.iter().map(figure).max().unwrap_or(0);
    Some(Second {
        at,
        due: mean(|at| at.due),
        answered: mean(|at| at.answered),
        failed: mean(|at| at.failed),
        p50: worst(|at| at.p50),
        p99: worst(|at| at.p99),
        max: worst(|at| at.max),
    })
}

fn fitting(series: &[Series]) -> Scale {
    let values = || series.iter().flat_map(|series| &series.points).map(|point| point.1).filter(|value| *value > 0.0);
    let (least, most) = (values().fold(f64::INFINITY, f64::min), values().fold(0.0, f64::max));
    if most > least * LOG_FROM { Scale::Log } else { Scale::Linear }
}

/// `99.9`, with as many nines as there are.
fn percentile(percentile: f64) -> String {
    let text = format!("{percentile:.6}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_does_not_fall_where_the_run_ends_within_a_second() {
        let second = |at: f64, due| Second { at, due, answered: due, failed: 0, p50: 1, p99: 2, max: due };
        let seconds = [second(0.0, 1000), second(1.0, 1200), second(2.0, 500)];
        let rate = |seconds: &[Second]| merged(seconds, 2.5).map(|point| (point.at, point.due, point.max));
        assert_eq!(rate(&seconds[..2]), Some((0.0, 1100, 1200)));
        assert_eq!(rate(&seconds[2..]), Some((2.0, 1000, 500)));
        assert_eq!(rate(&seconds), Some((0.0, 1080, 1200)));
        assert_eq!(rate(&[]), None);
    }
}
