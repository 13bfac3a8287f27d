//! What the search has found, for a terminal, for programs and as a page.

use crate::capacity::Capacity;
use crate::capacity::probe::Point;
use crate::capacity::search::{Stage, Verdict};
use crate::report::svg::{Lines, Measure, Scale, Series, lines};
use crate::report::units::{bytes, rate, share, time_us};
use crate::report::{Align, Html, Section, columns, environment, page as whole};

/// One line about a probe that has just ended.
pub(crate) fn progress(point: &Point) -> String {
    let verdict = match &point.verdict {
        Verdict::Holds => "holds",
        Verdict::Breaks(why) | Verdict::Generator(why) => why,
    };
    let stage = name(point.stage);
    format!("{stage:<8} {:>11}  p99 {:>8}  {verdict}", rate(point.rate), time_us(point.p99_us as f64))
}

const HEAD: [&str; 10] = ["stage", "rate", "answered", "p50", "p99", "p99.9", "max", "errors", "CPU/request", "holds"];

pub(crate) fn table(capacity: &Capacity) -> String {
    let facts: Vec<_> = facts(capacity).into_iter().map(|(name, text)| vec![name.to_owned(), text]).collect();
    let mut rows = vec![HEAD.map(str::to_owned).to_vec()];
    rows.extend(by_rate(capacity).iter().map(|point| cells(point).to_vec()));
    let facts = columns(&facts, &[Align::Left, Align::Left]);
    format!("{facts}\n{}", columns(&rows, &[Align::Left]))
}

fn facts(capacity: &Capacity) -> Vec<(&'static str, String)> {
    let measured = &capacity.measured;
    let bound = bound(capacity);
    let latency = &capacity.latency;
    let mut facts = vec![
        ("Target", format!("{}, {} connections", capacity.target, capacity.connections)),
        ("SLO", capacity.slo.clone()),
        ("Capacity", format!("{bound}{} for one instance", rate(measured.qps_per_instance))),
        ("Limit", capacity.limit.clone()),
        (
            "Latency",
            format!(
                "p50 {}, p99 {}, p99.9 {} at capacity",
                time_us(latency.p50_us),
                time_us(latency.p99_us),
                time_us(latency.p999_us)
            ),
        ),
    ];
    if let Some(cpu_us) = measured.cpu_us_per_request {
        let cores = cpu_us * measured.qps_per_instance / 1e6;
        facts.push(("CPU", format!("{cpu_us:.2} us/request, {cores:.2} cores at capacity")));
    }
    if let (Some(start), Some(at_capacity)) = (capacity.memory_bytes_at_start, capacity.memory_bytes_at_capacity) {
        let each = measured.memory_bytes_per_connection;
        let each = each.map_or("not measurable".to_owned(), bytes);
        let (start, full) = (bytes(start as f64), bytes(at_capacity as f64));
        facts.push(("Memory", format!("{start} at the start, {full} at capacity; an idle connection: {each}")));
    }
    facts
}

fn bound(capacity: &Capacity) -> &'static str {
    if capacity.is_lower_bound { "at least " } else { "" }
}

/// One for each of `HEAD`.
fn cells(point: &Point) -> [String; HEAD.len()] {
    [
        name(point.stage).to_owned(),
        rate(point.rate),
        rate(point.answered_per_s),
        time_us(point.p50_us as f64),
        time_us(point.p99_us as f64),
        time_us(point.p999_us as f64),
        time_us(point.max_us as f64),
        share(point.error_share),
        point.cpu_us_per_request.map_or("-".to_owned(), |us| format!("{us:.2} us")),
        match point.verdict {
            Verdict::Holds => "yes",
            Verdict::Breaks(_) => "no",
            Verdict::Generator(_) => "generator late",
        }
        .to_owned(),
    ]
}

fn name(stage: Stage) -> &'static str {
    match stage {
        Stage::Grow => "grow",
        Stage::Bisect => "bisect",
        Stage::Confirm => "confirm",
    }
}

fn by_rate(capacity: &Capacity) -> Vec<&Point> {
    let mut points: Vec<_> = capacity.points.iter().collect();
    points.sort_by(|a, b| a.rate.total_cmp(&b.rate));
    points
}

pub(crate) fn page(capacity: &Capacity) -> String {
    let points = by_rate(capacity);
    let rows: Vec<Vec<String>> = points.iter().map(|point| cells(point).to_vec()).collect();
    let sections = [
        Section::new("Found", [Html::facts(&facts(capacity))]),
        Section::new("Latency against rate", [curve(&points)]),
        Section::new("Every run", [Html::table("By rate", &HEAD, rows.iter().map(Vec::as_slice))]),
        environment(&capacity.environment),
    ];
    let bound = bound(capacity);
    let lead = format!(
        "Holds {} at {bound}{}; started {}.",
        capacity.slo,
        rate(capacity.measured.qps_per_instance),
        capacity.started
    );
    whole(&format!("Capacity of {}", capacity.target), &lead, &sections)
}

fn curve(points: &[&Point]) -> Html {
    let series = |name, figure: fn(&Point) -> u64| Series {
        name,
        points: points.iter().map(|point| (point.rate, figure(point).max(1) as f64)).collect(),
    };
    lines(&Lines {
        title: "Latency against rate",
        x: Measure { name: "requests per second that were due", scale: Scale::Linear, show: |x| rate(x) },
        y: Measure { name: "latency", scale: Scale::Log, show: time_us },
        series: vec![series("p50", |point| point.p50_us), series("p99", |point| point.p99_us)],
    })
}
