//! Results for a terminal, at most 100 columns wide.

use std::fmt::Write;

use super::columns::{Align, cell, columns, wrapped};
use super::units::{bandwidth, bytes, count, rate, share, time_us};
use crate::results::{Class, Latency, Results};

/// Longest name of a class or status that is shown whole.
const NAME_WIDTH: usize = 32;
const LINE_WIDTH: usize = 80;

pub(crate) fn table(results: &Results) -> String {
    let blocks = [head(results), requests(results), latency(results), classes(results), errors(results)];
    let mut text = blocks.into_iter().filter(|block| !block.is_empty()).collect::<Vec<_>>().join("\n");
    let _ = write!(text, "\n{}", generator(results));
    text
}

/// What a distribution's percentiles are called, and the percentiles.
pub(super) fn percentiles(latency: &Latency) -> [(&'static str, f64); 8] {
    [
        ("mean", latency.mean),
        ("p50", latency.p50 as f64),
        ("p90", latency.p90 as f64),
        ("p95", latency.p95 as f64),
        ("p99", latency.p99 as f64),
        ("p99.9", latency.p999 as f64),
        ("p99.99", latency.p9999 as f64),
        ("max", latency.max as f64),
    ]
}

/// A time, or a dash where nothing was measured.
pub(super) fn time(latency: &Latency, us: f64) -> String {
    if latency.count == 0 { "-".to_owned() } else { time_us(us) }
}

/// What the latency means, which depends on the load.
pub(super) fn explanation(results: &Results) -> &'static str {
    match is_open(results) {
        true => "Corrected latency counts from when a request was due, service time from its first byte sent.",
        false => "A closed loop sends nothing while it waits: stalls of the target are missing in its latency.",
    }
}

pub(super) fn is_open(results: &Results) -> bool {
    results.load.model != "closed"
}

/// What the latency is called.
pub(super) fn latency_name(results: &Results) -> &'static str {
    if is_open(results) { "corrected" } else { "latency" }
}

fn head(results: &Results) -> String {
    let load = &results.load;
    let rows = [
        ["Target".to_owned(), cell(&results.target, 90)],
        ["Load".to_owned(), cell(&format!("{} loop, {}", load.model, load.description), 90)],
        [
            String::new(),
            format!(
                "{} connections, {} {}, {:.1} s measured, started {}",
                count(load.connections as u64),
                load.threads,
                if load.threads == 1 { "thread" } else { "threads" },
                results.seconds,
                cell(&results.started, 40),
            ),
        ],
    ];
    columns(&rows.map(Vec::from), &[Align::Left, Align::Left])
}

fn requests(results: &Results) -> String {
    let counts = &results.counts;
    let per_s = |number: u64| rate(number as f64 / results.seconds.max(f64::MIN_POSITIVE));
    let of_due = |number: u64| share(number as f64 / counts.due.max(1) as f64);
    let row = |name: &str, number: u64| vec![name.to_owned(), count(number), per_s(number), of_due(number)];
    let rows = vec![
        vec!["Requests".to_owned(), "count".to_owned(), "rate".to_owned(), "of due".to_owned()],
        row("  due", counts.due),
        row("  sent", counts.sent),
        row("  answered", counts.answered),
        row("  failed", counts.failed),
        row("  unexpected status", counts.unexpected),
    ];
    let traffic = |total: u64| {
        let per_s = total as f64 / results.seconds.max(f64::MIN_POSITIVE);
        format!("{} ({})", bytes(total as f64), bandwidth(per_s))
    };
    let table = columns(&rows, &[Align::Left]);
    let (sent, received) = (traffic(counts.bytes_sent), traffic(counts.bytes_received));
    let opened = count(counts.connections_opened);
    format!("{table}  sent {sent}, received {received}, {opened} connections opened\n")
}

fn latency(results: &Results) -> String {
    let row = |name: &str, latency: &Latency| {
        let times = percentiles(latency).map(|(_, us)| time(latency, us));
        [vec![name.to_owned()], times.to_vec()].concat()
    };
    let names = percentiles(&results.latency).map(|(name, _)| name.to_owned());
    let rows = [
        [vec!["Latency".to_owned()], names.to_vec()].concat(),
        row(&format!("  {}", latency_name(results)), &results.latency),
        row("  service time", &results.service_time),
    ];
    format!("{}  {}\n", columns(&rows, &[Align::Left]), explanation(results))
}

fn classes(results: &Results) -> String {
    let row = |name: String, latency: &Latency| {
        let per_s = rate(latency.count as f64 / results.seconds.max(f64::MIN_POSITIVE));
        let times = [latency.p50, latency.p99, latency.p999, latency.max].map(|us| time(latency, us as f64));
        [vec![name, count(latency.count), per_s], times.to_vec()].concat()
    };
    let title = ["Class and status", "answers", "rate", "p50", "p99", "p99.9", "max"].map(str::to_owned);
    let mut rows = vec![title.to_vec()];
    for Class { name, failed, latency, statuses } in &results.classes {
        rows.push(row(format!("  {}", cell(name, NAME_WIDTH - 2)), latency));
        rows.extend(statuses.iter().map(|status| row(format!("    {}", status.name()), &status.latency)));
        if *failed > 0 {
            rows.push(vec!["    no answer".to_owned(), count(*failed)]);
        }
    }
    if rows.len() == 1 { String::new() } else { columns(&rows, &[Align::Left]) }
}

fn errors(results: &Results) -> String {
    let rows =
        results.errors.iter().map(|error| vec![format!("  {}", cell(&error.kind, NAME_WIDTH)), count(error.count)]);
    let rows = [vec!["Errors".to_owned()]].into_iter().chain(rows).collect::<Vec<_>>();
    if rows.len() == 1 { String::new() } else { columns(&rows, &[Align::Left]) }
}

fn generator(results: &Results) -> String {
    let own = &results.generator;
    let schedule = match is_open(results) {
        true => format!("{} on schedule (latest by {}), ", share(own.on_schedule), time_us(own.late_max_us as f64)),
        false => String::new(),
    };
    let cost = time_us(own.cpu_us_per_request);
    let mut text = format!("Generator: {schedule}{} busy, {cost} CPU per request\n", share(own.busy));
    for warning in &own.warnings {
        let _ = write!(text, "\n{}", wrapped(&format!("WARNING: {warning}"), LINE_WIDTH, 9));
    }
    text
}
