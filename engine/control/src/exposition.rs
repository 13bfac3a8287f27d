//! The two formats that a Prometheus server reads: its text format 0.0.4 and OpenMetrics 1.0.
//!
//! Families are described once ([`Family`]); the writer knows where the formats differ: in OpenMetrics a counter's
//! family is named without `_total` and an info's without `_info`, units have a line of their own, and the end is
//! marked with `# EOF`. Sources: "Exposition formats" of the Prometheus documentation; OpenMetrics 1.0, section
//! "Text format".

use std::fmt::Write;
use std::sync::LazyLock;

use ringway_core::stats::LATENCY_BOUNDS_US;

/// Latency counts per bucket, not cumulative, the open-ended one last.
pub type Buckets = [u64; LATENCY_BOUNDS_US.len() + 1];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    Text,
    OpenMetrics,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Counter,
    Gauge,
    Histogram,
    /// A gauge that is always 1 and says what it has to say in its labels.
    Info,
}

/// The description of one metric family.
#[derive(Debug, Clone, Copy)]
pub struct Family {
    /// As in the text format: with `_total` or `_info`.
    pub name: &'static str,
    pub kind: Kind,
    /// `seconds`, `bytes` or `ratio`, a suffix of the name; empty where there is none.
    pub unit: &'static str,
    pub labels: &'static [&'static str],
    pub help: &'static str,
}

/// Writes families one after the other.
#[derive(Debug)]
pub struct Exposition {
    out: String,
    format: Format,
}

/// Writes the samples of one family.
#[derive(Debug)]
pub struct Samples<'a> {
    out: &'a mut String,
    family: &'static Family,
}

impl Format {
    /// OpenMetrics where an `Accept` value wants it at least as much as plain text (RFC 9110 section 12.5.1).
    pub fn of_accept(accept: &str) -> Self {
        let open_metrics = quality(accept, "application/openmetrics-text");
        let plain = quality(accept, "text/plain");
        if open_metrics > 0.0 && open_metrics >= plain { Self::OpenMetrics } else { Self::Text }
    }

    pub const fn content_type(self) -> &'static str {
        match self {
            Self::Text => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

impl Kind {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
            Self::Info => "info",
        }
    }
}

impl Family {
    fn title(&self, format: Format) -> &'static str {
        let suffix = match (format, self.kind) {
            (Format::OpenMetrics, Kind::Counter) => "_total",
            (Format::OpenMetrics, Kind::Info) => "_info",
            _ => "",
        };
        self.name.strip_suffix(suffix).unwrap_or(self.name)
    }
}

impl Exposition {
    pub fn new(format: Format) -> Self {
        Self { out: String::with_capacity(64 * 1024), format }
    }

    /// Begins a family. A family without samples is valid in both formats.
    pub fn family(&mut self, family: &'static Family) -> Samples<'_> {
        let (out, title) = (&mut self.out, family.title(self.format));
        let kind = match (self.format, family.kind) {
            (Format::Text, Kind::Info) => Kind::Gauge,
            (_, kind) => kind,
        };
        out.extend(["# HELP ", title, " "]);
        escape(out, family.help, self.format == Format::OpenMetrics);
        out.extend(["\n# TYPE ", title, " ", kind.name(), "\n"]);
        if self.format == Format::OpenMetrics && !family.unit.is_empty() {
            out.extend(["# UNIT ", title, " ", family.unit, "\n"]);
        }
        Samples { out, family }
    }

    pub fn finish(mut self) -> String {
        if self.format == Format::OpenMetrics {
            self.out.push_str("# EOF\n");
        }
        self.out
    }
}

impl Samples<'_> {
    /// A whole number. `labels` are the values of the family's labels, in order; an empty one is left out, which
    /// means the same.
    pub fn count(&mut self, labels: &[&str], value: u64) -> &mut Self {
        self.sample("", labels, None, format_args!("{value}"))
    }

    pub fn value(&mut self, labels: &[&str], value: f64) -> &mut Self {
        self.sample("", labels, None, format_args!("{value}"))
    }

    /// Cumulates `buckets` and turns microseconds into seconds.
    pub fn histogram(&mut self, labels: &[&str], buckets: &Buckets, sum_us: u64) -> &mut Self {
        let mut total = 0;
        for (count, bound) in buckets.iter().zip(BOUNDS.iter()) {
            total += count;
            self.sample("_bucket", labels, Some(bound), format_args!("{total}"));
        }
        self.sample("_sum", labels, None, format_args!("{}.{:06}", sum_us / 1_000_000, sum_us % 1_000_000));
        self.sample("_count", labels, None, format_args!("{total}"))
    }

    fn sample(&mut self, suffix: &str, labels: &[&str], le: Option<&str>, value: std::fmt::Arguments<'_>) -> &mut Self {
        debug_assert_eq!(labels.len(), self.family.labels.len(), "{}", self.family.name);
        self.out.extend([self.family.name, suffix]);
        let named = self.family.labels.iter().copied().zip(labels.iter().copied());
        let mut opening = '{';
        for (name, value) in named.chain(le.map(|bound| ("le", bound))).filter(|(_, value)| !value.is_empty()) {
            self.out.push(opening);
            self.out.extend([name, "=\""]);
            escape(self.out, value, true);
            self.out.push('"');
            opening = ',';
        }
        if opening == ',' {
            self.out.push('}');
        }
        // Writing to a string cannot fail.
        let _ = writeln!(self.out, " {value}");
        self
    }
}

/// The buckets' upper bounds in seconds. OpenMetrics wants `1.0`, not `1`; one spelling for both formats keeps the
/// series the same.
static BOUNDS: LazyLock<[String; LATENCY_BOUNDS_US.len() + 1]> = LazyLock::new(|| {
    std::array::from_fn(|index| match LATENCY_BOUNDS_US.get(index) {
        Some(bound) => format!("{:?}", *bound as f64 / 1e6),
        None => "+Inf".into(),
    })
});

fn escape(out: &mut String, text: &str, quotes: bool) {
    if !text.contains(['\\', '\n', '"']) {
        out.push_str(text);
        return;
    }
    for character in text.chars() {
        match character {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '"' if quotes => out.push_str("\\\""),
            other => out.push(other),
        }
    }
}

/// The weight that an `Accept` value gives to exactly this media type; 0 where it does not name it.
fn quality(accept: &str, media_type: &str) -> f32 {
    accept
        .split(',')
        .filter_map(|range| {
            let mut parts = range.split(';').map(str::trim);
            let named = parts.next().is_some_and(|name| name.eq_ignore_ascii_case(media_type));
            let weight = parts.find_map(|part| part.strip_prefix("q=").or(part.strip_prefix("Q=")));
            named.then(|| weight.map_or(1.0, |weight| weight.parse().unwrap_or(0.0)))
        })
        .fold(0.0, f32::max)
}

#[cfg(test)]
mod tests {
    use super::*;

    const COUNTER: Family = Family {
        name: "demo_bytes_total",
        kind: Kind::Counter,
        unit: "bytes",
        labels: &["route", "status"],
        help: "A \"back\\slash\"\nand a line.",
    };
    const HISTOGRAM: Family =
        Family { name: "demo_seconds", kind: Kind::Histogram, unit: "seconds", labels: &["route"], help: "Time." };
    const INFO: Family =
        Family { name: "demo_info", kind: Kind::Info, unit: "", labels: &["version", "commit"], help: "Build." };

    fn written(format: Format, write: impl FnOnce(&mut Exposition)) -> String {
        let mut exposition = Exposition::new(format);
        write(&mut exposition);
        exposition.finish()
    }

    #[test]
    fn names_units_and_escapes_differ_by_format() {
        let write = |out: &mut Exposition| {
            out.family(&COUNTER).count(&["a\"b\\c\nd", "200"], 7);
            out.family(&INFO).count(&["1.0", ""], 1);
        };
        assert_eq!(
            written(Format::Text, write),
            "# HELP demo_bytes_total A \"back\\\\slash\"\\nand a line.\n# TYPE demo_bytes_total counter\n\
             demo_bytes_total{route=\"a\\\"b\\\\c\\nd\",status=\"200\"} 7\n\
             # HELP demo_info Build.\n# TYPE demo_info gauge\ndemo_info{version=\"1.0\"} 1\n"
        );
        assert_eq!(
            written(Format::OpenMetrics, write),
            "# HELP demo_bytes A \\\"back\\\\slash\\\"\\nand a line.\n# TYPE demo_bytes counter\n\
             # UNIT demo_bytes bytes\ndemo_bytes_total{route=\"a\\\"b\\\\c\\nd\",status=\"200\"} 7\n\
             # HELP demo Build.\n# TYPE demo info\ndemo_info{version=\"1.0\"} 1\n# EOF\n"
        );
    }

    #[test]
    fn a_histogram_is_cumulative_and_an_empty_one_whole() {
        let mut buckets = Buckets::default();
        let empty = written(Format::Text, |out| {
            out.family(&HISTOGRAM).histogram(&["r"], &buckets, 0);
        });
        assert_eq!(empty.lines().filter(|line| line.ends_with(" 0")).count(), buckets.len() + 1);
        assert!(empty.ends_with("demo_seconds_sum{route=\"r\"} 0.000000\ndemo_seconds_count{route=\"r\"} 0\n"));

        (buckets[0], buckets[16]) = (2, 1);
        let full = written(Format::OpenMetrics, |out| {
            out.family(&HISTOGRAM).histogram(&["r"], &buckets, 31_000_250);
        });
        assert!(full.contains("demo_seconds_bucket{route=\"r\",le=\"0.00025\"} 2\n"), "{full}");
        assert!(full.contains("demo_seconds_bucket{route=\"r\",le=\"1.0\"} 2\n"), "{full}");
        assert!(full.contains("demo_seconds_bucket{route=\"r\",le=\"+Inf\"} 3\n"), "{full}");
        assert!(full.ends_with("demo_seconds_sum{route=\"r\"} 31.000250\ndemo_seconds_count{route=\"r\"} 3\n# EOF\n"));
    }

    #[test]
    fn accept_chooses_the_format() {
        for (accept, format) in [
            ("", Format::Text),
            ("*/*", Format::Text),
            ("text/plain;version=0.0.4", Format::Text),
            ("application/openmetrics-text; version=1.0.0; charset=utf-8", Format::OpenMetrics),
            ("application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3", Format::OpenMetrics),
            ("application/openmetrics-text;q=0", Format::Text),
            ("application/openmetrics-text;q=0.2,text/plain", Format::Text),
        ] {
            assert_eq!(Format::of_accept(accept), format, "{accept}");
        }
    }
}
