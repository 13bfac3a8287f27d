//! The comparison as one self-contained page.

use crate::compare::Comparison;
use crate::compare::table::{HEAD, cells, explanation};
use crate::report::svg::{Bar, Bars, Group, bars};
use crate::report::{Html, Section, environment, page as whole};

pub(crate) fn page(comparison: &Comparison) -> String {
    let names: Vec<_> = comparison.proxies.iter().map(|proxy| proxy.name.as_str()).collect();
    let title = match names.split_first() {
        Some((first, others)) if !others.is_empty() => format!("{first} beside {}", others.join(", ")),
        _ => format!("What a request costs {}", names.join("")),
    };
    let rows: Vec<Vec<String>> = comparison.rows.iter().map(|row| cells(row).to_vec()).collect();
    let lines: Vec<_> = explanation(comparison).lines().map(Html::paragraph).collect();
    let sections = [
        Section::new("CPU time of a request", [Html::warnings(&comparison.warnings), cpu(comparison)]),
        Section::new(
            "All figures",
            [Html::table("Medians of the repeats", &HEAD, rows.iter().map(Vec::as_slice)), Html::all(lines)],
        ),
        environment(&comparison.environment),
    ];
    let started = &comparison.started;
    let lead = format!("The same requests, the same origin, each proxy alone on one core; started {started}.");
    whole(&title, &lead, &sections)
}

fn cpu(comparison: &Comparison) -> Html {
    let mut groups: Vec<Group> = Vec::new();
    for row in &comparison.rows {
        let bar = Bar {
            name: row.proxy.clone(),
            value: row.cpu_us_per_request,
            spread: Some((row.cpu_us_per_request_lowest, row.cpu_us_per_request_highest)),
        };
        match groups.last_mut() {
            Some(group) if group.name == row.case => group.bars.push(bar),
            _ => groups.push(Group { name: row.case.clone(), bars: vec![bar] }),
        }
    }
    bars(&Bars {
        title: "CPU time of the proxy for a request, by case",
        measure: "microseconds, less is better; the thin line spans the repeats",
        show: |us| format!("{us:.1}"),
        groups,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::tests::comparison;

    #[test]
    fn the_page_has_bars_figures_and_warnings() {
        let text = page(&comparison());
        assert!(text.contains("<title>ringway beside nginx</title>"));
        assert!(text.contains("<svg"), "bars");
        assert!(text.contains("15.00 us") && text.contains("0.75"), "figures");
        assert!(text.contains("haproxy is not installed"), "warnings");
    }
}
