//! What the flags of a plan take: quantities above zero, whose unit may be missing where the flag implies it.

use std::str::FromStr;

use crate::units::{self, Wrong};

/// So many requests per period.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Limit {
    pub(crate) requests: u64,
    pub(crate) period_s: f64,
}

/// Per second.
pub(crate) fn rate(text: &str) -> Result<f64, String> {
    match text.split_once('/') {
        Some((_, per)) if units::period(per).is_none() => Err(format!("'{per}' is not a period (s, min, h)")),
        _ => above_zero(units::or_plain(text, "/s", units::rate), "10000/s or 10k/s"),
    }
}

pub(crate) fn bytes(text: &str) -> Result<f64, String> {
    let bytes = units::or_plain(text, "B", units::bytes);
    above_zero(bytes.map(|bytes| bytes as f64), "2KB (2000 bytes) or 2KiB (2048)")
}

pub(crate) fn seconds(text: &str) -> Result<f64, String> {
    above_zero(units::duration(text).map(|time| time.as_secs_f64()), "50ms or 1.5s")
}

/// At least 1.
pub(crate) fn factor(text: &str) -> Result<f64, String> {
    let factor = plain(text.strip_suffix('x').unwrap_or(text)).filter(|factor| *factor >= 1.0);
    factor.ok_or_else(|| "a factor of at least 1 was expected, such as 2 or 1.5".to_owned())
}

/// 0 to less than 1.
pub(crate) fn share(text: &str) -> Result<f64, String> {
    let share = units::share(text).ok().or_else(|| plain(text)).filter(|share| *share < 1.0);
    share.ok_or_else(|| "0 % to less than 100 % was expected, such as 30% or 0.3".to_owned())
}

impl FromStr for Limit {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let limit = text.split_once('/').map(|(requests, per)| (requests.parse(), units::period(per)));
        match limit {
            Some((Ok(requests @ 1..=1_000_000_000_000), Some(period))) => {
                Ok(Self { requests, period_s: period.as_secs_f64() })
            }
            _ => Err("requests per period were expected, such as 100/min or 50/10s".to_owned()),
        }
    }
}

fn plain(text: &str) -> Option<f64> {
    text.parse().ok().filter(|value: &f64| units::is_decimal(text) && value.is_finite())
}

fn above_zero(read: Result<f64, Wrong>, example: &str) -> Result<f64, String> {
    match read {
        Ok(value) if value > 0.0 => Ok(value),
        Err(wrong) if wrong.is_too_large() => Err("larger than 1e15".to_owned()),
        _ => Err(format!("a number above 0 was expected, such as {example}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flag_implies_its_unit() {
        assert_eq!((rate("10000"), rate("600/min")), (Ok(10_000.0), Ok(10.0)));
        assert_eq!((bytes("886"), bytes("2KB")), (Ok(886.0), Ok(2_000.0)));
        assert_eq!(seconds("50ms"), Ok(0.05));
        assert!(seconds("50").is_err(), "a time without its unit");
    }

    #[test]
    fn nothing_is_zero_or_less() {
        for text in ["", "fast", "10/", "10/day", "-5/s", "0/s", "inf/s", "1e30/s", "5/0s"] {
            assert!(rate(text).is_err(), "{text}");
        }
        assert!(bytes("0KB").is_err() && bytes("-1KB").is_err() && seconds("0s").is_err());
    }

    #[test]
    fn factors_and_shares() {
        assert_eq!((factor("2"), factor("1.5x")), (Ok(2.0), Ok(1.5)));
        assert!(factor("0.5").is_err() && factor("-2").is_err() && factor("x").is_err() && factor("NaN").is_err());
        assert_eq!((share("30%"), share("0.3"), share("0")), (Ok(0.3), Ok(0.3), Ok(0.0)));
        assert!(share("100%").is_err() && share("30").is_err() && share("-1%").is_err() && share("NaN").is_err());
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
