//! Service level objectives: `p99<20ms,errors<0.1%`.

use std::fmt;
use std::str::FromStr;

use crate::report::units::{share, time_us};
use crate::results::{Counts, Latency};

/// What must hold, all of it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Slo {
    terms: Vec<Term>,
}

#[derive(Debug, Clone, PartialEq)]
struct Term {
    figure: Figure,
    /// `<=` rather than `<`.
    inclusive: bool,
    /// Microseconds; for errors a share, 0 to 1.
    bound: f64,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Figure {
    P50,
    P90,
    P95,
    P99,
    P999,
    P9999,
    Mean,
    Max,
    Errors,
}

const FIGURES: [(&str, Figure); 9] = [
    ("p50", Figure::P50),
    ("p90", Figure::P90),
    ("p95", Figure::P95),
    ("p99.99", Figure::P9999),
    ("p99.9", Figure::P999),
    ("p99", Figure::P99),
    ("mean", Figure::Mean),
    ("max", Figure::Max),
    ("errors", Figure::Errors),
];

/// Unit and what it is in microseconds.
const UNITS: [(&str, f64); 5] = [("us", 1.0), ("µs", 1.0), ("ms", 1e3), ("s", 1e6), ("m", 6e7)];

impl Slo {
    /// The terms that do not hold, in words; none where the SLO holds.
    ///
    /// A request without an answer is slower than any bound: it counts among the slowest, so that a target cannot
    /// better its latency by answering less. For `mean` and `max` one such request breaks the term.
    ///
    /// `slack_us` is taken off every latency: delay that is known not to be the target's.
    pub(crate) fn broken(&self, latency: &Latency, counts: &Counts, slack_us: u64) -> Vec<String> {
        self.terms.iter().filter_map(|term| term.broken(latency, counts, slack_us as f64)).collect()
    }
}

impl Term {
    fn broken(&self, latency: &Latency, counts: &Counts, slack_us: f64) -> Option<String> {
        let slack = if self.figure == Figure::Errors { 0.0 } else { slack_us };
        let seen = self.figure.seen(latency, counts) - slack;
        let holds = if self.inclusive { seen <= self.bound } else { seen < self.bound };
        (!holds).then(|| format!("{} is {}, not {}", self.figure.name(), self.figure.value(seen), self.limit()))
    }

    fn limit(&self) -> String {
        format!("{} {}", if self.inclusive { "<=" } else { "<" }, self.figure.value(self.bound))
    }
}

impl Figure {
    fn name(self) -> &'static str {
        FIGURES.iter().find(|(_, figure)| *figure == self).map_or("", |(name, _)| name)
    }

    fn seen(self, latency: &Latency, counts: &Counts) -> f64 {
        let all_answered = |value: f64| if counts.failed == 0 { value } else { f64::INFINITY };
        match self {
            Self::P50 => among_all(50.0, latency.p50, latency, counts),
            Self::P90 => among_all(90.0, latency.p90, latency, counts),
            Self::P95 => among_all(95.0, latency.p95, latency, counts),
            Self::P99 => among_all(99.0, latency.p99, latency, counts),
            Self::P999 => among_all(99.9, latency.p999, latency, counts),
            Self::P9999 => among_all(99.99, latency.p9999, latency, counts),
            Self::Mean => all_answered(latency.mean),
            Self::Max => all_answered(latency.max as f64),
            Self::Errors => counts.error_share(),
        }
    }

    fn value(self, value: f64) -> String {
        match self {
            Self::Errors => share(value),
            _ if value.is_infinite() => "without an answer".to_owned(),
            _ => time_us(value),
        }
    }
}

/// The percentile among all requests that were due, those without an answer being the slowest.
fn among_all(percentile: f64, of_answered: u64, latency: &Latency, counts: &Counts) -> f64 {
    if counts.failed == 0 {
        return of_answered as f64;
    }
    let answered = latency.count as f64;
    let rank = percentile * (answered + counts.failed as f64) / answered.max(1.0);
    if rank > 100.0 {
        return f64::INFINITY;
    }
    latency.curve.iter().find(|(at, _)| *at >= rank).map_or(latency.max, |(_, value)| *value) as f64
}

impl fmt::Display for Slo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, term) in self.terms.iter().enumerate() {
            let comma = if at > 0 { ", " } else { "" };
            write!(f, "{comma}{} {}", term.figure.name(), term.limit())?;
        }
        Ok(())
    }
}

impl FromStr for Slo {
    type Err = String;

    /// Errors name the column, counted from 1.
    fn from_str(text: &str) -> Result<Self, String> {
        let mut cursor = Cursor { text, at: 0 };
        let mut terms = vec![cursor.term()?];
        while !cursor.at_end() {
            cursor.take(",").then_some(()).ok_or_else(|| cursor.error("',' or the end was expected"))?;
            terms.push(cursor.term()?);
        }
        Ok(Self { terms })
    }
}

struct Cursor<'a> {
    text: &'a str,
    /// In bytes.
    at: usize,
}

impl<'a> Cursor<'a> {
    fn rest(&self) -> &'a str {
        self.text.get(self.at..).unwrap_or("")
    }

    fn skip_spaces(&mut self) {
        self.at = self.text.len() - self.rest().trim_start().len();
    }

    fn at_end(&mut self) -> bool {
        self.skip_spaces();
        self.rest().is_empty()
    }

    fn take(&mut self, token: &str) -> bool {
        self.skip_spaces();
        let found = self.rest().starts_with(token);
        self.at += if found { token.len() } else { 0 };
        found
    }

    /// The longest run of characters that `belongs` accepts.
    fn run(&mut self, belongs: impl Fn(char) -> bool) -> &'a str {
        self.skip_spaces();
        let rest = self.rest();
        let end = rest.find(|c| !belongs(c)).unwrap_or(rest.len());
        self.at += end;
        &rest[..end]
    }

    fn error(&mut self, expected: &str) -> String {
        self.skip_spaces();
        let column = self.text[..self.at].chars().count() + 1;
        let found = match self.rest().split([',', ' ', '<']).next() {
            Some("") | None if self.rest().is_empty() => "the end".to_owned(),
            Some("") | None => format!("'{}'", self.rest().chars().take(1).collect::<String>()),
            Some(word) => format!("'{word}'"),
        };
        format!("column {column}: {expected}, found {found}")
    }

    fn term(&mut self) -> Result<Term, String> {
        let figure = self.figure()?;
        if !self.take("<") {
            return Err(self.error("'<' or '<=' was expected"));
        }
        let inclusive = self.take("=");
        let bound = if figure == Figure::Errors { self.share()? } else { self.duration_us()? };
        Ok(Term { figure, inclusive, bound })
    }

    fn figure(&mut self) -> Result<Figure, String> {
        self.skip_spaces();
        let start = self.at;
        let word = self.run(|c| c.is_ascii_alphanumeric() || c == '.');
        match FIGURES.iter().find(|(name, _)| *name == word) {
            Some((_, figure)) => Ok(*figure),
            None => {
                self.at = start;
                let names: Vec<_> = FIGURES.iter().map(|(name, _)| *name).collect();
                Err(self.error(&format!("one of {} was expected", names.join(", "))))
            }
        }
    }

    fn number(&mut self) -> Result<f64, String> {
        self.skip_spaces();
        let start = self.at;
        let digits = self.run(|c| c.is_ascii_digit() || c == '.');
        digits.parse().map_err(|_| {
            self.at = start;
            self.error("a number was expected")
        })
    }

    fn duration_us(&mut self) -> Result<f64, String> {
        let number = self.number()?;
        self.skip_spaces();
        let start = self.at;
        let unit = self.run(char::is_alphabetic);
        match UNITS.iter().find(|(name, _)| *name == unit) {
            Some((_, us)) if number > 0.0 => Ok(number * us),
            Some(_) => {
                self.at = start;
                Err(self.error("a time above 0 was expected"))
            }
            None => {
                self.at = start;
                Err(self.error("a unit was expected (us, ms, s, m)"))
            }
        }
    }

    fn share(&mut self) -> Result<f64, String> {
        self.skip_spaces();
        let start = self.at;
        let number = self.number()?;
        let share = if self.take("%") { number / 100.0 } else { number };
        if share <= 1.0 {
            return Ok(share);
        }
        self.at = start;
        Err(self.error("a share from 0 to 1, or from 0 % to 100 %, was expected"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> String {
        text.parse::<Slo>().expect_err(text)
    }

    fn latency() -> Latency {
        let curve = vec![(50.0, 2_000), (99.0, 15_000), (99.5, 30_000), (100.0, 40_000)];
        Latency {
            count: 1000,
            mean: 3e3,
            p50: 2_000,
            p99: 15_000,
            p999: 39_000,
            max: 40_000,
            curve,
            ..Default::default()
        }
    }

    fn counts(failed: u64, unexpected: u64) -> Counts {
        Counts { due: 1000 + failed, answered: 1000, failed, unexpected, ..Default::default() }
    }

    #[test]
    fn every_figure_and_unit_is_read_and_shown() {
        for (text, shown) in [
            ("p99<20ms,errors<0.1%", "p99 < 20 ms, errors < 0.1 %"),
            (" p50 <= 1.5ms , mean<900us", "p50 <= 1.5 ms, mean < 900 us"),
            ("p90<1s,p95<2m", "p90 < 1 s, p95 < 120 s"),
            ("p99.9<250µs,p99.99<=1ms,max<1s", "p99.9 < 250 us, p99.99 <= 1 ms, max < 1 s"),
            ("errors<=0.001", "errors <= 0.1 %"),
            ("errors<=0%", "errors <= 0 %"),
        ] {
            let slo: Slo = text.parse().expect(text);
            assert_eq!(slo.to_string(), shown);
            assert_eq!(shown.parse::<Slo>().as_ref(), Ok(&slo), "what is shown can be read again");
        }
    }

    #[test]
    fn errors_name_the_column() {
        assert!(error("").starts_with("column 1: one of p50, "));
        assert!(error("p98<20ms").starts_with("column 1: one of p50, "));
        assert!(error("p98<20ms").ends_with("found 'p98'"));
        assert_eq!(error("p99>20ms"), "column 4: '<' or '<=' was expected, found '>20ms'");
        assert_eq!(error("p99<"), "column 5: a number was expected, found the end");
        assert_eq!(error("p99<20"), "column 7: a unit was expected (us, ms, s, m), found the end");
        assert_eq!(error("p99<20q,errors<1%"), "column 7: a unit was expected (us, ms, s, m), found 'q'");
        assert_eq!(error("p99<1.2.3ms"), "column 5: a number was expected, found '1.2.3ms'");
        assert!(error("p99<20ms,").starts_with("column 10: one of p50, "));
        assert_eq!(error("p99<20ms errors<1%"), "column 10: ',' or the end was expected, found 'errors'");
        assert!(error("p99<1ms,errors<101%").starts_with("column 16: a share from 0 to 1"));
        assert!(error("p99<1µs,p99<3").starts_with("column 14:"), "columns are characters: {}", error("p99<1µs,p99<3"));
        assert!(error("p99<0ms").starts_with("column 6: a time above 0"));
    }

    #[test]
    fn strict_and_inclusive_bounds_differ_at_the_bound() {
        let broken = |text: &str| text.parse::<Slo>().unwrap().broken(&latency(), &counts(0, 1), 0);
        assert!(broken("p99<=15ms,errors<=0.1%,mean<4ms,max<=40ms").is_empty());
        assert_eq!(broken("p99<15ms"), ["p99 is 15 ms, not < 15 ms"]);
        assert_eq!(broken("p99<15ms,p50<1ms,errors<0.1%").len(), 3);
        assert_eq!(broken("errors<0.1%"), ["errors is 0.1 %, not < 0.1 %"]);
    }

    #[test]
    fn slack_is_taken_off_times_and_not_off_errors() {
        let slo: Slo = "p99<10ms,errors<0.1%".parse().unwrap();
        assert_eq!(slo.broken(&latency(), &counts(0, 1), 5_000).len(), 2);
        assert_eq!(slo.broken(&latency(), &counts(0, 1), 5_001).len(), 1);
        let lost: Slo = "p50<1s".parse().unwrap();
        assert_eq!(lost.broken(&latency(), &counts(2_000, 0), 9_000_000).len(), 1, "unanswered stays unanswered");
    }

    #[test]
    fn requests_without_an_answer_are_the_slowest() {
        let slo: Slo = "p99<20ms".parse().unwrap();
        assert!(slo.broken(&latency(), &counts(0, 0), 0).is_empty());
        // 0.4 % unanswered: the 99th percentile of all is the 99.4th of those answered.
        assert_eq!(slo.broken(&latency(), &counts(4, 0), 0), ["p99 is 30 ms, not < 20 ms"]);
        assert_eq!(slo.broken(&latency(), &counts(20, 0), 0), ["p99 is without an answer, not < 20 ms"]);
        let max: Slo = "max<1s".parse().unwrap();
        assert_eq!(max.broken(&latency(), &counts(1, 0), 0), ["max is without an answer, not < 1 s"]);
        let nothing = Counts { due: 5, failed: 5, ..Default::default() };
        assert_eq!(slo.broken(&Latency::default(), &nothing, 0).len(), 1, "a dead target holds no SLO");
    }
}
