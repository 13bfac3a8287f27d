//! Durations, sizes, rates and numbers as people write them: `30s`, `16KiB`, `5000/s`.

use std::time::Duration;

/// A number and its unit; `None` where it is not digits followed by one of `units`, or does not fit.
fn with_unit(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let digits = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at(digits);
    let (_, factor) = units.iter().find(|(name, _)| *name == unit)?;
    number.parse::<u64>().ok()?.checked_mul(*factor)
}

/// What is wrong with a value: a hint, where there is one.
pub(crate) type Wrong = Option<String>;

fn unit_missing(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// `250ms`, `30s`, `5m`, `1h`.
pub(crate) fn duration(text: &str) -> Result<Duration, Wrong> {
    match with_unit(text, &[("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000)]) {
        Some(ms) => Ok(Duration::from_millis(ms)),
        None if unit_missing(text) => Err(Some(format!("give it a unit: `{text}s`, `{text}ms`"))),
        None => Err(Some("durations are one whole number and a unit: `250ms`, `30s`, `5m`, `1h`".into())),
    }
}

/// `512B`, `16KiB`, `1MB`: bytes.
pub(crate) fn size(text: &str) -> Result<u64, Wrong> {
    const UNITS: [(&str, u64); 7] = [
        ("B", 1),
        ("KiB", 1 << 10),
        ("MiB", 1 << 20),
        ("GiB", 1 << 30),
        ("kB", 1_000),
        ("MB", 1_000_000),
        ("GB", 1_000_000_000),
    ];
    match with_unit(text, &UNITS) {
        Some(bytes) => Ok(bytes),
        None if unit_missing(text) => Err(Some(format!("give it a unit: `{text}B`, `{text}KiB`"))),
        None => Err(Some("sizes are one whole number and a unit: `512B`, `16KiB`, `1MiB`, or decimal `64kB`".into())),
    }
}

/// `5000/s`, `0.5/s`, `300/m`: per second.
pub(crate) fn rate(text: &str) -> Result<f64, Wrong> {
    let written = "rates are a number and `/s`, `/m` or `/h`: `5000/s`, `0.5/s`, `300/m`";
    let Some((number, unit)) = text.split_once('/') else {
        let hint = if unit_missing(text) { format!("give it a unit: `{text}/s`") } else { written.into() };
        return Err(Some(hint));
    };
    let seconds = match unit {
        "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        _ => return Err(Some(written.into())),
    };
    let plain =
        number.starts_with(|c: char| c.is_ascii_digit()) && number.bytes().all(|b| b == b'.' || b.is_ascii_digit());
    match number.parse::<f64>() {
        Ok(number) if plain => Ok(number / seconds),
        _ => Err(Some(written.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_with_units() {
        assert_eq!(duration("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(duration("2m"), Ok(Duration::from_secs(120)));
        assert_eq!(size("16KiB"), Ok(16_384));
        assert_eq!(size("64kB"), Ok(64_000));
        assert_eq!(rate("5000/s"), Ok(5_000.0));
        assert_eq!(rate("90/m"), Ok(1.5));
        assert_eq!(rate("0.25/s"), Ok(0.25));
    }

    #[test]
    fn others_are_refused_with_a_hint() {
        for text in ["", "5", "s", "5 s", "-5s", "1.5s", "1m30s", "5S", "99999999999999999h"] {
            assert!(duration(text).is_err(), "{text}");
        }
        for text in ["", "5", "5kib", "1.5MiB", "-1B"] {
            assert!(size(text).is_err(), "{text}");
        }
        for text in ["", "5", "/s", "-1/s", "1e3/s", "nan/s", "inf/s", "5/day", "1.2.3/s", "5/s/s"] {
            assert!(rate(text).is_err(), "{text}");
        }
        assert_eq!(duration("30").unwrap_err().unwrap(), "give it a unit: `30s`, `30ms`");
        assert_eq!(rate("5000").unwrap_err().unwrap(), "give it a unit: `5000/s`");
        assert_eq!(size("16").unwrap_err().unwrap(), "give it a unit: `16B`, `16KiB`");
    }
}
