//! The comparison for a terminal.

use crate::compare::Comparison;
use crate::compare::measure::Run;
use crate::compare::summary::{Bottleneck, Row};
use crate::report::units::{bytes, rate, time_us};
use crate::report::{Align, columns};

pub(crate) const HEAD: [&str; 11] =
    ["case", "proxy", "CPU/request", "ratio", "rate", "spread", "p50", "p99", "proxy's core", "load's core", "full"];

/// One line about a run that has just ended.
pub(crate) fn progress(run: &Run) -> String {
    let bad = if run.bad > 0 { format!("  {} BAD REQUESTS", run.bad) } else { String::new() };
    let again = if run.taken_again { "  (taken again)" } else { "" };
    format!("{:>7.2} us/request  {:>10}{bad}{again}", run.cpu_us_per_request, rate(run.requests_per_s))
}

pub(crate) fn table(comparison: &Comparison) -> String {
    let mut rows = vec![HEAD.map(str::to_owned).to_vec()];
    rows.extend(comparison.rows.iter().map(|row| cells(row).to_vec()));
    let mut text = columns(&rows, &[Align::Left, Align::Left]);
    text.push('\n');
    text.push_str(&explanation(comparison));
    for warning in &comparison.warnings {
        text.push_str(&format!("note: {warning}\n"));
    }
    text
}

/// One for each of `HEAD`.
pub(crate) fn cells(row: &Row) -> [String; HEAD.len()] {
    // Where the load's core was full, they are the load's.
    let is_loads = matches!(row.bottleneck, Bottleneck::Load | Bottleneck::Both);
    let mark = |text: String| if is_loads { format!("~{text}") } else { text };
    [
        row.case.clone(),
        row.proxy.clone(),
        format!("{:.2} us", row.cpu_us_per_request),
        row.cpu_ratio.map_or("-".to_owned(), |ratio| format!("{ratio:.2}")),
        mark(rate(row.requests_per_s)),
        percent(row.spread),
        mark(time_us(row.p50_us)),
        mark(time_us(row.p99_us)),
        percent(row.proxy_core_busy),
        percent(row.load_core_busy),
        row.bottleneck.describe().to_owned(),
    ]
}

/// Whole per cents: the clock ticks do not tell more.
fn percent(share: f64) -> String {
    format!("{:.0} %", share * 100.0)
}

pub(crate) fn explanation(comparison: &Comparison) -> String {
    let versions: Vec<_> = comparison.proxies.iter().map(|proxy| format!("{} {}", proxy.name, proxy.version)).collect();
    let first = comparison.proxies.first().map_or("", |proxy| &proxy.name);
    let memory: Vec<_> = comparison.proxies.iter().map(|proxy| memory(comparison, &proxy.name)).collect();
    format!(
        "{}. Medians of {} of {} s; proxies alone on core {}, load and origin ({}) on core {}.\n\
         ratio: CPU time of a request, {first} over this proxy; below 1, {first} is cheaper.\n\
         ~: the load's core was full, so that rate and latency are the load's and not the proxy's.\n\
         Resident memory, most of all cases: {}.\n",
        versions.join(", "),
        if comparison.repeats == 1 { "1 run".to_owned() } else { format!("{} runs", comparison.repeats) },
        comparison.seconds,
        comparison.proxy_core,
        comparison.origin,
        comparison.load_core,
        memory.join(", "),
    )
}

fn memory(comparison: &Comparison, proxy: &str) -> String {
    let of_proxy = comparison.rows.iter().filter(|row| row.proxy == proxy);
    format!("{proxy} {}", bytes(of_proxy.map(|row| row.proxy_rss_bytes).fold(0.0, f64::max)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::tests::comparison;

    #[test]
    fn every_row_has_its_ratio_and_the_load_is_marked() {
        let text = table(&comparison());
        let line = |start: &str| text.lines().find(|line| line.starts_with(start)).unwrap().to_owned();
        assert!(line("get-100@64  ringway").contains(" 15.00 us      -  1,000/s"), "{text}");
        assert!(line("get-100@64  nginx").contains(" 20.00 us   0.75   ~900/s"), "{text}");
        assert!(line("get-100@64  nginx").ends_with("both cores"), "{text}");
        assert!(text.contains("\nringway 0.1.0, nginx 1.22.1. Medians of 1 run of 3 s;"), "{text}");
        assert!(text.ends_with("note: haproxy is not installed: left out\n"), "{text}");
    }

    #[test]
    fn a_run_with_bad_requests_is_loud() {
        let bad = Run { bad: 3, ..crate::compare::summary::tests::run(15.0, 1000.0) };
        assert!(progress(&bad).ends_with("3 BAD REQUESTS"), "{}", progress(&bad));
    }
}
