//! Charts as inline SVG, each with its legend and the same figures as a table.

use std::fmt::Write;

use super::axis::Axis;
pub(crate) use super::axis::Scale;
use super::page::{Html, escape, table, table_row};

/// A chart of lines over one axis.
pub(crate) struct Lines<'a> {
    pub(crate) title: &'a str,
    pub(crate) x: Measure<'a>,
    pub(crate) y: Measure<'a>,
    pub(crate) series: Vec<Series<'a>>,
}

/// What an axis shows.
pub(crate) struct Measure<'a> {
    pub(crate) name: &'a str,
    pub(crate) scale: Scale,
    pub(crate) show: fn(f64) -> String,
}

/// Points in ascending order of x.
pub(crate) struct Series<'a> {
    pub(crate) name: &'a str,
    pub(crate) points: Vec<(f64, f64)>,
}

/// A chart of horizontal bars in groups.
pub(crate) struct Bars<'a> {
    pub(crate) title: &'a str,
    /// What a bar's length means, with its unit.
    pub(crate) measure: &'a str,
    pub(crate) show: fn(f64) -> String,
    pub(crate) groups: Vec<Group>,
}

pub(crate) struct Group {
    pub(crate) name: String,
    pub(crate) bars: Vec<Bar>,
}

pub(crate) struct Bar {
    pub(crate) name: String,
    pub(crate) value: f64,
    /// Lowest and highest of the repeats, where there were several.
    pub(crate) spread: Option<(f64, f64)>,
}

/// Colours and dashes that the style has; further series use them again.
const SERIES_STYLES: usize = 6;
const WIDTH: f64 = 560.0;
const HEIGHT: f64 = 320.0;
/// The plot itself: left, top, right, bottom. Room is left for labels that are larger on narrow screens.
const PLOT: (f64, f64, f64, f64) = (80.0, 14.0, WIDTH - 18.0, HEIGHT - 52.0);

pub(crate) fn lines(chart: &Lines) -> Html {
    let (left, top, right, bottom) = PLOT;
    let points = || chart.series.iter().flat_map(|series| &series.points);
    let x_axis = Axis::over(chart.x.scale, points().map(|point| point.0));
    let y_axis = Axis::over(chart.y.scale, points().map(|point| point.1));
    let x_at = |x: f64| left + (right - left) * x_axis.place(x);
    let y_at = |y: f64| bottom - (bottom - top) * y_axis.place(y);

    let mut svg = open_svg(chart.title, HEIGHT, "lines");
    for tick in y_axis.ticks() {
        let (y, label) = (y_at(tick), escape(&(chart.y.show)(tick)));
        let _ = write!(svg, "<path class=\"grid\" d=\"M{left} {y:.1}H{right}\"/>");
        let _ = writeln!(svg, "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{label}</text>", left - 7.0, y + 4.0);
    }
    for tick in x_axis.ticks() {
        let (x, label) = (x_at(tick), escape(&(chart.x.show)(tick)));
        let _ = write!(svg, "<path class=\"grid\" d=\"M{x:.1} {top}V{bottom}\"/>");
        let _ = writeln!(svg, "<text x=\"{x:.1}\" y=\"{}\" text-anchor=\"middle\">{label}</text>", bottom + 18.0);
    }
    let (middle, name) = ((left + right) / 2.0, escape(chart.x.name));
    let _ = writeln!(svg, "<text x=\"{middle}\" y=\"{}\" text-anchor=\"middle\">{name}</text>", HEIGHT - 10.0);
    for (at, series) in chart.series.iter().enumerate() {
        let points: Vec<_> = series.points.iter().map(|(x, y)| format!("{:.1},{:.1}", x_at(*x), y_at(*y))).collect();
        let style = at % SERIES_STYLES;
        // A single point is no line: it becomes a dot.
        let _ = match &points[..] {
            [point] => writeln!(svg, "<path class=\"series s{style} dot\" d=\"M{point}h0\"/>"),
            _ => writeln!(svg, "<polyline class=\"series s{style}\" points=\"{}\"/>", points.join(" ")),
        };
    }
    let _ = writeln!(svg, "<path class=\"cursor\" d=\"M0 {top}V{bottom}\" visibility=\"hidden\"/>\n</svg>");

    let names: Vec<&str> = chart.series.iter().map(|series| series.name).collect();
    let head: Vec<&str> = [chart.x.name].into_iter().chain(names.iter().copied()).collect();
    let rows: String = all_x(chart)
        .into_iter()
        .map(|x| {
            let figures = chart.series.iter().map(|series| at_or_after(series, x).map_or("-".to_owned(), chart.y.show));
            let cells: Vec<String> = [(chart.x.show)(x)].into_iter().chain(figures).collect();
            table_row(&format!(" data-x=\"{:.1}\"", x_at(x)), &cells)
        })
        .collect();
    figure(chart.title, chart.y.name, &legend(&names), &svg, &table(chart.title, &head, &rows))
}

pub(crate) fn bars(chart: &Bars) -> Html {
    const BAR: f64 = 20.0;
    const GROUP: f64 = 30.0;
    // The rest of the width is for names on the left and figures on the right.
    let (left, right) = (130.0, WIDTH - 90.0);
    let all = || chart.groups.iter().flat_map(|group| &group.bars);
    let most = |bar: &Bar| bar.spread.map_or(bar.value, |(_, high)| high.max(bar.value));
    let axis = Axis::over(Scale::Linear, all().map(most));
    let x_at = |value: f64| left + (right - left) * axis.place(value);
    let mut names: Vec<&str> = Vec::new();
    for bar in all() {
        if !names.contains(&bar.name.as_str()) {
            names.push(&bar.name);
        }
    }

    let height = chart.groups.iter().map(|group| GROUP + 8.0 + BAR * group.bars.len() as f64).sum::<f64>().max(BAR);
    let mut svg = open_svg(chart.title, height, "bars");
    let mut y = 0.0;
    for group in &chart.groups {
        let _ = writeln!(svg, "<text class=\"group\" x=\"0\" y=\"{:.1}\">{}</text>", y + 20.0, escape(&group.name));
        y += GROUP;
        for bar in &group.bars {
            let style = names.iter().position(|name| *name == bar.name).unwrap_or(0) % SERIES_STYLES;
            let (end, middle) = (x_at(bar.value), y + BAR / 2.0);
            let (name, value) = (escape(&bar.name), escape(&(chart.show)(bar.value)));
            let label = x_at(most(bar)) + 8.0;
            let _ = write!(
                svg,
                "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{name}</text>\
                 <rect class=\"b{style}\" x=\"{left}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{:.1}\" rx=\"2\"/>",
                left - 8.0,
                middle + 4.0,
                y + 2.0,
                (end - left).max(1.0),
                BAR - 4.0,
            );
            if let Some((low, high)) = bar.spread {
                let (low, high, tip) = (x_at(low), x_at(high), 4.0);
                let _ = write!(svg, "<path class=\"spread\" d=\"M{low:.1} {middle}H{high:.1}");
                let _ = write!(svg, "M{low:.1} {:.1}v8M{high:.1} {:.1}v8\"/>", middle - tip, middle - tip);
            }
            let _ = writeln!(svg, "<text x=\"{label:.1}\" y=\"{:.1}\">{value}</text>", middle + 4.0);
            y += BAR;
        }
        y += 8.0;
    }
    svg.push_str("</svg>\n");

    let head: Vec<&str> = [""].into_iter().chain(names.iter().copied()).collect();
    let cell = |group: &Group, name: &str| {
        let bar = group.bars.iter().find(|bar| bar.name == name);
        bar.map_or("-".to_owned(), |bar| match bar.spread {
            Some((low, high)) => {
                format!("{} ({} to {})", (chart.show)(bar.value), (chart.show)(low), (chart.show)(high))
            }
            None => (chart.show)(bar.value),
        })
    };
    let row = |group: &Group| {
        let cells = names.iter().map(|name| cell(group, name));
        table_row("", &[group.name.clone()].into_iter().chain(cells).collect::<Vec<_>>())
    };
    let rows: String = chart.groups.iter().map(row).collect();
    figure(chart.title, chart.measure, "", &svg, &table(chart.title, &head, &rows))
}

/// The figure at x, or at the next x that has one: what a percentile's value is between two points of its curve.
fn at_or_after(series: &Series, x: f64) -> Option<f64> {
    let at = series.points.partition_point(|point| point.0 < x);
    series.points.get(at).map(|point| point.1)
}

fn all_x(chart: &Lines) -> Vec<f64> {
    let mut all: Vec<f64> = chart.series.iter().flat_map(|series| &series.points).map(|point| point.0).collect();
    all.sort_by(f64::total_cmp);
    all.dedup();
    all
}

fn open_svg(title: &str, height: f64, class: &str) -> String {
    let title = escape(title);
    format!("<svg class=\"{class}\" viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" aria-label=\"{title}\">\n")
}

fn legend(names: &[&str]) -> String {
    let item = |(at, name): (usize, &&str)| {
        let style = at % SERIES_STYLES;
        let line = "<path d=\"M0 6H28\"/>";
        format!(
            "<li><svg class=\"key series s{style}\" viewBox=\"0 0 28 12\" aria-hidden=\"true\">{line}</svg> {}</li>\n",
            escape(name)
        )
    };
    format!("<ul class=\"legend\">\n{}</ul>\n", names.iter().enumerate().map(item).collect::<String>())
}

/// All but `title` and `measure` is markup.
fn figure(title: &str, measure: &str, legend: &str, svg: &str, table: &str) -> Html {
    let (title, measure) = (escape(title), escape(measure));
    Html::from_markup(format!(
        "<figure>\n<figcaption><h3>{title}</h3><p>{measure}</p></figcaption>\n{legend}{svg}<output></output>\n\
         <details><summary>As a table</summary>\n<div class=\"scroll\">\n{table}</div>\n</details>\n</figure>\n"
    ))
}
