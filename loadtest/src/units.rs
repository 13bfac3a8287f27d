//! Quantities as people write them: a number, whole or decimal, and its unit, with nothing between them.
//!
//! kB, KB, MB and GB are decimal (1 KB = 1000 bytes), KiB, MiB and GiB binary (1 KiB = 1024 bytes).

use std::fmt;
use std::time::Duration;

/// Above every figure that can be meant. Nanoseconds and bytes up to it are exact in a float.
const MOST: f64 = 1e15;

/// In nanoseconds.
const TIMES: [(&str, f64); 7] =
    [("ns", 1.0), ("us", 1e3), ("ms", 1e6), ("s", 1e9), ("m", 60e9), ("min", 60e9), ("h", 3600e9)];

/// A kind of quantity: its units, and what is said about a text that is not one.
#[derive(Debug, PartialEq)]
struct Kind {
    units: &'static [(&'static str, f64)],
    /// Units to offer where there is none.
    offered: &'static [&'static str],
    like: &'static str,
}

static DURATION: Kind =
    Kind { units: &TIMES, offered: &["ms", "s"], like: "a duration like `250us`, `5ms`, `1.5s` or `2m`" };
static SIZE: Kind = Kind {
    units: &[
        ("B", 1.0),
        ("KiB", 1024.0),
        ("MiB", 1_048_576.0),
        ("GiB", 1_073_741_824.0),
        ("kB", 1e3),
        ("KB", 1e3),
        ("MB", 1e6),
        ("GB", 1e9),
    ],
    offered: &["B", "KiB"],
    like: "a size like `100B`, `16KiB`, `1MiB` or `64kB`",
};
static RATE: Kind = Kind {
    units: &[("", 1.0), ("k", 1e3), ("M", 1e6)],
    offered: &["/s"],
    like: "a rate like `5000/s`, `10k/s`, `0.5/s` or `300/m`",
};

/// Why a text is not a quantity.
#[derive(Debug, PartialEq)]
pub(crate) struct Wrong {
    text: String,
    kind: &'static Kind,
    fault: Fault,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    NoUnit,
    TooLarge,
    Unlike,
}

/// `250us`, `5ms`, `1.5s`, `2m`, `1h`; to the nanosecond.
pub(crate) fn duration(text: &str) -> Result<Duration, Wrong> {
    let nanoseconds = number(text, DURATION.units).map_err(|fault| Wrong::new(text, &DURATION, fault))?;
    Ok(Duration::from_nanos(nanoseconds.round() as u64))
}

/// Bytes: `100B`, `16KiB`, `1MiB`, or decimal `64kB`, `1MB`.
pub(crate) fn bytes(text: &str) -> Result<u64, Wrong> {
    let bytes = number(text, SIZE.units).map_err(|fault| Wrong::new(text, &SIZE, fault))?;
    Ok(bytes.round() as u64)
}

/// Per second: `5000/s`, `10k/s`, `0.5/s`, `300/m`, `30/10s`.
pub(crate) fn rate(text: &str) -> Result<f64, Wrong> {
    let wrong = |fault| Wrong::new(text, &RATE, fault);
    let (amount, per) = text.split_once('/').map_or((text, None), |(amount, per)| (amount, Some(per)));
    let amount = number(amount, RATE.units).map_err(wrong)?;
    let per = per.ok_or_else(|| wrong(Fault::NoUnit))?;
    Ok(amount / period(per).ok_or_else(|| wrong(Fault::Unlike))?.as_secs_f64())
}

/// What a rate is per: a unit of time, or a number of them; none where it is nothing.
pub(crate) fn period(text: &str) -> Option<Duration> {
    let is_unit = TIMES.iter().any(|(name, _)| *name == text);
    let period = if is_unit { duration(&format!("1{text}")) } else { duration(text) };
    period.ok().filter(|period| !period.is_zero())
}

/// Where it is clear what is meant, a number alone is one of `unit`, such as `/s` or `B`.
pub(crate) fn or_plain<T>(text: &str, unit: &str, read: impl Fn(&str) -> Result<T, Wrong>) -> Result<T, Wrong> {
    if is_decimal(text) { read(&format!("{text}{unit}")) } else { read(text) }
}

/// A share of all, from 0 to 1: `0.1%`, `100%`.
pub(crate) fn share(text: &str) -> Result<f64, String> {
    match number(text, &[("%", 1.0)]) {
        Ok(percent) if percent <= 100.0 => Ok(percent / 100.0),
        Ok(_) | Err(Fault::TooLarge) => Err(format!("`{text}` is more than 100%")),
        Err(Fault::NoUnit) => Err(format!("`{text}` is not a share in per cent: `{text}%`")),
        Err(Fault::Unlike) => Err(format!("`{text}` is not a share like `0.1%` or `5%`")),
    }
}

impl Wrong {
    fn new(text: &str, kind: &'static Kind, fault: Fault) -> Self {
        Self { text: text.into(), kind, fault }
    }

    pub(crate) fn is_too_large(&self) -> bool {
        self.fault == Fault::TooLarge
    }

    /// What to write, for messages that have said already what was expected and what was found.
    pub(crate) fn hint(&self) -> Option<String> {
        match self.fault {
            Fault::NoUnit => Some(format!("give it a unit: {}", self.offer())),
            Fault::TooLarge => None,
            Fault::Unlike => Some(format!("write {}", self.kind.like)),
        }
    }

    fn offer(&self) -> String {
        let offers: Vec<_> = self.kind.offered.iter().map(|unit| format!("`{}{unit}`", self.text)).collect();
        offers.join(", ")
    }
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { text, kind, fault } = self;
        match fault {
            Fault::NoUnit => write!(f, "`{text}` has no unit: {}", self.offer()),
            Fault::TooLarge => write!(f, "`{text}` is too large"),
            Fault::Unlike => write!(f, "`{text}` is not {}", kind.like),
        }
    }
}

impl std::error::Error for Wrong {}

/// For parsers whose errors are texts.
impl From<Wrong> for String {
    fn from(wrong: Wrong) -> Self {
        wrong.to_string()
    }
}

/// For readers of scenarios, whose errors are hints.
impl From<Wrong> for Option<String> {
    fn from(wrong: Wrong) -> Self {
        wrong.hint()
    }
}

/// A number of the smallest unit.
fn number(text: &str, units: &[(&str, f64)]) -> Result<f64, Fault> {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let number = number.parse::<f64>().ok().filter(|_| is_decimal(number)).ok_or(Fault::Unlike)?;
    match units.iter().find(|(name, _)| *name == unit) {
        Some((_, size)) if number * size <= MOST => Ok(number * size),
        Some(_) => Err(Fault::TooLarge),
        None if unit.is_empty() => Err(Fault::NoUnit),
        None => Err(Fault::Unlike),
    }
}

/// `12` or `1.5`: digits, and more of them after the point if there is one.
pub(crate) fn is_decimal(text: &str) -> bool {
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    text.split_once('.').map_or_else(|| digits(text), |(whole, fraction)| digits(whole) && digits(fraction))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        for (text, nanoseconds) in [
            ("0s", 0),
            ("7ns", 7),
            ("250us", 250_000),
            ("5ms", 5_000_000),
            ("0.5ms", 500_000),
            ("1.005ms", 1_005_000),
            ("1.25s", 1_250_000_000),
            ("0.1m", 6_000_000_000),
            ("2min", 120_000_000_000),
            ("2h", 7_200_000_000_000),
        ] {
            assert_eq!(duration(text), Ok(Duration::from_nanos(nanoseconds)), "{text}");
        }
        for text in ["", "s", "-5s", "5 s", "5sec", "1m30s", ".5s", "5.s", "1.2.3s", "5S", "1e3s", "99999999999h"] {
            assert!(duration(text).is_err(), "{text}");
        }
        assert_eq!(duration("5").unwrap_err().to_string(), "`5` has no unit: `5ms`, `5s`");
    }

    #[test]
    fn sizes_are_decimal_or_binary_as_they_say() {
        for (text, size) in [
            ("0B", 0),
            ("100B", 100),
            ("16KiB", 16_384),
            ("1.5KiB", 1536),
            ("64kB", 64_000),
            ("2KB", 2_000),
            ("1.5MB", 1_500_000),
            ("1GiB", 1 << 30),
        ] {
            assert_eq!(bytes(text), Ok(size), "{text}");
        }
        for text in ["", "B", "16K", "16kib", "2Kb", "-1B", "1e3B", "99999999999GiB"] {
            assert!(bytes(text).is_err(), "{text}");
        }
        assert_eq!(bytes("100").unwrap_err().to_string(), "`100` has no unit: `100B`, `100KiB`");
        assert_eq!((or_plain("100", "B", bytes), or_plain("2KiB", "B", bytes)), (Ok(100), Ok(2048)));
    }

    #[test]
    fn rates_are_per_second() {
        for (text, per_s) in [
            ("5000/s", 5_000.0),
            ("0/s", 0.0),
            ("0.25/s", 0.25),
            ("10k/s", 10_000.0),
            ("1.5M/s", 1.5e6),
            ("90/m", 1.5),
            ("600/min", 10.0),
            ("7200/h", 2.0),
            ("30/10s", 3.0),
        ] {
            assert_eq!(rate(text), Ok(per_s), "{text}");
        }
        for text in [
            "",
            "/s",
            "-1/s",
            "1e3/s",
            "nan/s",
            "inf/s",
            "5/day",
            "5/",
            "1.2.3/s",
            "5/s/s",
            "5/0s",
            "10k5/s",
            "1 /s",
            "9999999999999999/s",
        ] {
            assert!(rate(text).is_err(), "{text}");
        }
        assert_eq!((or_plain("500", "/s", rate), or_plain("300/m", "/s", rate)), (Ok(500.0), Ok(5.0)));
    }

    #[test]
    fn hints_say_what_to_write() {
        assert_eq!(duration("30").unwrap_err().hint().unwrap(), "give it a unit: `30ms`, `30s`");
        assert_eq!(rate("5000").unwrap_err().hint().unwrap(), "give it a unit: `5000/s`");
        assert_eq!(bytes("x").unwrap_err().hint().unwrap(), "write a size like `100B`, `16KiB`, `1MiB` or `64kB`");
        assert_eq!(duration("99999999999h").unwrap_err().hint(), None);
    }

    #[test]
    fn shares() {
        for (text, part) in [("0%", 0.0), ("0.1%", 0.001), ("5%", 0.05), ("100%", 1.0)] {
            assert_eq!(share(text), Ok(part), "{text}");
        }
        for text in ["", "%", "0.5", "-1%", "1 %", "100.1%", "inf%", "NaN%", "1e1%"] {
            assert!(share(text).is_err(), "{text}");
        }
        assert_eq!(share("101%").unwrap_err(), "`101%` is more than 100%");
        assert_eq!(share("5").unwrap_err(), "`5` is not a share in per cent: `5%`");
    }
}
