//! Quantities as people type them: `10k/s`, `2KB`, `50ms`, `30%`, `100/min`.
//!
//! KB, MB and GB are decimal (1 KB = 1000 bytes), KiB, MiB and GiB binary (1 KiB = 1024 bytes).

use std::str::FromStr;

/// Above every figure that can be meant; keeps the arithmetic far from the limits of its numbers.
const MOST: f64 = 1e15;

const TIMES: [(&str, f64); 6] = [("us", 1e-6), ("ms", 1e-3), ("s", 1.0), ("min", 60.0), ("m", 60.0), ("h", 3600.0)];

/// Per second.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Rate(pub(crate) f64);

/// Bytes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Size(pub(crate) f64);

/// Seconds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Time(pub(crate) f64);

/// At least 1.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Factor(pub(crate) f64);

/// 0 to less than 1.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Share(pub(crate) f64);

/// So many requests per period.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Limit {
    pub(crate) requests: u64,
    pub(crate) period_s: f64,
}

impl FromStr for Rate {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (amount, per) = text.split_once('/').unwrap_or((text, "s"));
        let amount = above_zero(amount, &[("", 1.0), ("k", 1e3), ("M", 1e6)], "10000/s or 10k/s")?;
        let seconds = period(per).ok_or_else(|| format!("'{per}' is not a period (s, min, h)"))?;
        Ok(Self(amount / seconds))
    }
}

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let decimal = [("", 1.0), ("B", 1.0), ("KB", 1e3), ("kB", 1e3), ("MB", 1e6), ("GB", 1e9)];
        let binary = [("KiB", 1024.0), ("MiB", 1_048_576.0), ("GiB", 1_073_741_824.0)];
        above_zero(text, &[&decimal[..], &binary].concat(), "2KB (2000 bytes) or 2KiB (2048)").map(Self)
    }
}

impl FromStr for Time {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        above_zero(text, &TIMES, "50ms or 1.5s").map(Self)
    }
}

impl FromStr for Factor {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match above_zero(text, &[("", 1.0), ("x", 1.0)], "2 or 1.5")? {
            factor if factor < 1.0 => Err("a factor of at least 1 was expected".to_owned()),
            factor => Ok(Self(factor)),
        }
    }
}

impl FromStr for Share {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let share = number(text, &[("", 1.0), ("%", 0.01)], "30% or 0.3")?;
        if (0.0..1.0).contains(&share) {
            Ok(Self(share))
        } else {
            Err("0 % to less than 100 % was expected".to_owned())
        }
    }
}

impl FromStr for Limit {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || "requests per period were expected, such as 100/min or 50/10s".to_owned();
        let (requests, per) = text.split_once('/').ok_or_else(wrong)?;
        match (requests.trim().parse(), period(per)) {
            (Ok(requests @ 1..=1_000_000_000_000), Some(period_s)) => Ok(Self { requests, period_s }),
            _ => Err(wrong()),
        }
    }
}

/// A unit of time, or a number of them.
fn period(text: &str) -> Option<f64> {
    let unit = TIMES.iter().find(|(name, _)| *name == text.trim());
    unit.map(|(_, seconds)| *seconds).or_else(|| above_zero(text, &TIMES, "").ok())
}

fn above_zero(text: &str, units: &[(&str, f64)], example: &str) -> Result<f64, String> {
    match number(text, units, example)? {
        value if value > 0.0 => Ok(value),
        _ => Err("a number above 0 was expected".to_owned()),
    }
}

fn number(text: &str, units: &[(&str, f64)], example: &str) -> Result<f64, String> {
    let text = text.trim();
    let unit_at = text.find(|c: char| c.is_alphabetic() || c == '%').unwrap_or(text.len());
    let (digits, unit) = text.split_at(unit_at);
    let unit = units.iter().find(|(name, _)| *name == unit);
    match (digits.trim().parse::<f64>(), unit) {
        (Ok(number), Some((_, size))) if number.abs() * size <= MOST => Ok(number * size),
        (Ok(number), Some(_)) if number.is_finite() => Err(format!("larger than {MOST:e}")),
        _ => Err(format!("a number with its unit was expected, such as {example}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates() {
        for (text, per_s) in [("10000/s", 10_000.0), ("10000", 10_000.0), ("10k/s", 10_000.0), ("1.5M/s", 1.5e6)] {
            assert_eq!(text.parse(), Ok(Rate(per_s)), "{text}");
        }
        assert_eq!("600/min".parse(), Ok(Rate(10.0)));
        assert_eq!("7200 / h".parse(), Ok(Rate(2.0)));
        assert_eq!("30/10s".parse(), Ok(Rate(3.0)));
        for text in ["", "fast", "10/", "10/day", "-5/s", "0/s", "NaN/s", "inf/s", "1e30/s", "10k5/s", "5/0s"] {
            assert!(text.parse::<Rate>().is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_are_decimal_or_binary_as_they_say() {
        for (text, bytes) in [
            ("2KB", 2_000.0),
            ("2KiB", 2_048.0),
            ("16 KB", 16_000.0),
            ("886", 886.0),
            ("1.5MB", 1.5e6),
            ("1GiB", 1_073_741_824.0),
        ] {
            assert_eq!(text.parse(), Ok(Size(bytes)), "{text}");
        }
        for text in ["", "KB", "2Kb", "2K", "0KB", "-1KB"] {
            assert!(text.parse::<Size>().is_err(), "{text}");
        }
    }

    #[test]
    fn times_factors_and_shares() {
        assert_eq!("50ms".parse(), Ok(Time(0.05)));
        assert_eq!("2".parse(), Ok(Factor(2.0)));
        assert_eq!("1.5x".parse(), Ok(Factor(1.5)));
        assert_eq!("30%".parse(), Ok(Share(0.3)));
        assert_eq!("0".parse(), Ok(Share(0.0)));
        assert!("50".parse::<Time>().is_err(), "a time without its unit");
        assert!("0.5".parse::<Factor>().is_err() && "-2".parse::<Factor>().is_err());
        assert!("100%".parse::<Share>().is_err() && "30".parse::<Share>().is_err() && "-1%".parse::<Share>().is_err());
    }

    #[test]
    fn limits() {
        assert_eq!("100/min".parse(), Ok(Limit { requests: 100, period_s: 60.0 }));
        assert_eq!("50/10s".parse(), Ok(Limit { requests: 50, period_s: 10.0 }));
        for text in ["100", "0/min", "1.5/min", "-1/min", "100/", "100/0s", "x/min"] {
            assert!(text.parse::<Limit>().is_err(), "{text}");
        }
    }
}
