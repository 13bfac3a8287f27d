//! Sizes, durations and shares as people write them: a number, whole or decimal, and its unit.

use std::time::Duration;

const DURATIONS: [(&str, u64); 6] = [
    ("ns", 1),
    ("us", 1_000),
    ("ms", 1_000_000),
    ("s", 1_000_000_000),
    ("m", 60_000_000_000),
    ("h", 3_600_000_000_000),
];
const SIZES: [(&str, u64); 7] = [
    ("B", 1),
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("kB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
];

/// `250us`, `5ms`, `1.5s`, `2m`, `1h`.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    match number(text, &DURATIONS) {
        Ok(nanoseconds) => Ok(Duration::from_nanos(nanoseconds)),
        Err(Wrong::NoUnit) => Err(format!("`{text}` has no unit: `{text}ms`, `{text}s`")),
        Err(Wrong::TooLarge) => Err(format!("`{text}` is too long a time")),
        Err(Wrong::Other) => Err(format!("`{text}` is not a duration like `250us`, `5ms`, `1.5s` or `2m`")),
    }
}

/// Bytes: `100B`, `16KiB`, `1MiB`, or decimal `64kB`, `1MB`.
pub(crate) fn bytes(text: &str) -> Result<u64, String> {
    match number(text, &SIZES) {
        Ok(bytes) => Ok(bytes),
        Err(Wrong::NoUnit) => Err(format!("`{text}` has no unit: `{text}B`, `{text}KiB`")),
        Err(Wrong::TooLarge) => Err(format!("`{text}` is too large")),
        Err(Wrong::Other) => Err(format!("`{text}` is not a size like `100B`, `16KiB`, `1MiB` or `64kB`")),
    }
}

/// A share of all, from 0 to 1: `0.1%`, `100%`.
pub(crate) fn share(text: &str) -> Result<f64, String> {
    let Some(number) = text.strip_suffix('%') else {
        let hint = if is_decimal(text) { format!(": `{text}%`") } else { String::new() };
        return Err(format!("`{text}` is not a share in per cent{hint}"));
    };
    match number.parse::<f64>() {
        Ok(percent) if is_decimal(number) && percent <= 100.0 => Ok(percent / 100.0),
        Ok(_) if is_decimal(number) => Err(format!("`{text}` is more than 100%")),
        _ => Err(format!("`{text}` is not a share like `0.1%` or `5%`")),
    }
}

enum Wrong {
    NoUnit,
    TooLarge,
    Other,
}

/// A number of the smallest unit; what is smaller still is cut off.
fn number(text: &str, units: &[(&str, u64)]) -> Result<u64, Wrong> {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    if !is_decimal(number) {
        return Err(Wrong::Other);
    }
    if unit.is_empty() {
        return Err(Wrong::NoUnit);
    }
    let (_, factor) = units.iter().find(|(name, _)| *name == unit).ok_or(Wrong::Other)?;
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let whole = whole.parse::<u64>().ok().and_then(|whole| whole.checked_mul(*factor)).ok_or(Wrong::TooLarge)?;
    // Beyond eighteen places nothing is as large as the smallest unit.
    let places = fraction.get(..18).unwrap_or(fraction);
    let digits = places.bytes().fold(0u128, |digits, byte| digits * 10 + u128::from(byte - b'0'));
    let part = (digits * u128::from(*factor) / 10u128.pow(places.len() as u32)) as u64;
    whole.checked_add(part).ok_or(Wrong::TooLarge)
}

/// `12` or `1.5`: digits, and more of them after the point if there is one.
fn is_decimal(text: &str) -> bool {
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
            ("1.25s", 1_250_000_000),
            ("0.1m", 6_000_000_000),
            ("2h", 7_200_000_000_000),
        ] {
            assert_eq!(duration(text), Ok(Duration::from_nanos(nanoseconds)), "{text}");
        }
        for text in ["", "s", "-5s", "5 s", "5sec", "1m30s", ".5s", "5.s", "1.2.3s", "5S", "99999999999h"] {
            assert!(duration(text).is_err(), "{text}");
        }
        assert_eq!(duration("5").unwrap_err(), "`5` has no unit: `5ms`, `5s`");
    }

    #[test]
    fn sizes() {
        for (text, size) in
            [("0B", 0), ("100B", 100), ("16KiB", 16_384), ("1.5KiB", 1536), ("64kB", 64_000), ("2MB", 2_000_000)]
        {
            assert_eq!(bytes(text), Ok(size), "{text}");
        }
        for text in ["", "B", "16K", "16kib", "-1B", "1e3B", "99999999999GiB"] {
            assert!(bytes(text).is_err(), "{text}");
        }
        assert_eq!(bytes("100").unwrap_err(), "`100` has no unit: `100B`, `100KiB`");
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
