//! Sizes and durations: a whole number and its unit, with bounds in the type.

use std::time::Duration;

use schemars::{Schema, SchemaGenerator, json_schema};

use crate::decode::{Cx, Decode};
use crate::scalar::{or_variable, parsed};
use crate::tree::Node;

/// A number and its unit. `None` where it is not digits followed by one of `units`, or does not fit.
fn with_unit(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let digits = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at(digits);
    let (_, factor) = units.iter().find(|(name, _)| *name == unit)?;
    number.parse::<u64>().ok()?.checked_mul(*factor)
}

/// With the largest unit that needs no fraction.
fn show_with_unit(value: u64, units: &[(&str, u64)]) -> String {
    let unit = units.iter().filter(|(_, factor)| value.is_multiple_of(*factor)).max_by_key(|(_, factor)| *factor);
    match unit {
        Some((name, factor)) if value > 0 => format!("{}{name}", value / factor),
        _ => format!("{value}{}", units.first().map_or("", |(name, _)| name)),
    }
}

const SIZES: [(&str, u64); 8] = [
    ("B", 1),
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
    ("kB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
];
const TIMES: [(&str, u64); 4] = [("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000)];

pub(crate) const KIB: u64 = 1 << 10;
pub(crate) const MIB: u64 = 1 << 20;
pub(crate) const TIB: u64 = 1 << 40;
pub(crate) const HOUR_MS: u64 = 3_600_000;
pub(crate) const DAY_MS: u64 = 24 * HOUR_MS;

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// Bytes, bounds included.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Size<const MIN: u64, const MAX: u64>(pub(crate) u64);

impl<const MIN: u64, const MAX: u64> Decode for Size<MIN, MAX> {
    fn kind() -> String {
        format!("a size from {} to {}", show_with_unit(MIN, &SIZES), show_with_unit(MAX, &SIZES))
    }

    fn decode(node: &Node, cx: &mut Cx) -> Option<Self> {
        parsed(node, cx, |text| match with_unit(text, &SIZES) {
            Some(bytes) if (MIN..=MAX).contains(&bytes) => Ok(Self(bytes)),
            Some(_) => Err(None),
            None if is_number(text) => Err(Some(format!("give it a unit: `{text}B`, `{text}KiB`"))),
            None => Err(Some("sizes are written `512B`, `64KiB`, `1MiB`, `1GiB`, or decimal `64kB`, `1MB`".into())),
        })
    }

    fn schema(generator: &mut SchemaGenerator) -> Schema {
        let pattern = "^[0-9]+(B|KiB|MiB|GiB|TiB|kB|MB|GB)$";
        or_variable(json_schema!({ "type": "string", "pattern": pattern }), generator)
    }
}

/// A duration, bounds in milliseconds included.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Time<const MIN_MS: u64, const MAX_MS: u64>(pub(crate) Duration);

const SHORT_TIMES: [(&str, u64); 2] = [("us", 1), ("ms", 1_000)];

/// A short duration, bounds in microseconds included.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Micros<const MIN_US: u64, const MAX_US: u64>(pub(crate) Duration);

impl<const MIN_US: u64, const MAX_US: u64> Decode for Micros<MIN_US, MAX_US> {
    fn kind() -> String {
        let [min, max] = [MIN_US, MAX_US].map(|us| show_with_unit(us, &SHORT_TIMES));
        format!("a duration from {min} to {max}")
    }

    fn decode(node: &Node, cx: &mut Cx) -> Option<Self> {
        parsed(node, cx, |text| match with_unit(text, &SHORT_TIMES) {
            Some(us) if (MIN_US..=MAX_US).contains(&us) => Ok(Self(Duration::from_micros(us))),
            Some(_) => Err(None),
            None if is_number(text) => Err(Some(format!("give it a unit: `{text}us`"))),
            None => Err(Some("short durations are one number and a unit: `30us`, `1ms`".into())),
        })
    }

    fn schema(generator: &mut SchemaGenerator) -> Schema {
        or_variable(json_schema!({ "type": "string", "pattern": "^[0-9]+(us|ms)$" }), generator)
    }
}

/// What a timeout may be.
pub(crate) type Timeout = Time<1, DAY_MS>;

impl<const MIN_MS: u64, const MAX_MS: u64> Decode for Time<MIN_MS, MAX_MS> {
    fn kind() -> String {
        let bound = |ms| match ms {
            0 => "0s".to_string(),
            ms => show_with_unit(ms, &TIMES),
        };
        format!("a duration from {} to {}", bound(MIN_MS), bound(MAX_MS))
    }

    fn decode(node: &Node, cx: &mut Cx) -> Option<Self> {
        parsed(node, cx, |text| match with_unit(text, &TIMES) {
            Some(ms) if (MIN_MS..=MAX_MS).contains(&ms) => Ok(Self(Duration::from_millis(ms))),
            Some(_) => Err(None),
            None if is_number(text) => Err(Some(format!("give it a unit: `{text}s`, `{text}ms`"))),
            None => Err(Some("durations are one number and a unit: `250ms`, `5s`, `1m`, `1h`".into())),
        })
    }

    fn schema(generator: &mut SchemaGenerator) -> Schema {
        or_variable(json_schema!({ "type": "string", "pattern": "^[0-9]+(ms|s|m|h)$" }), generator)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units() {
        for (text, bytes) in [("512B", 512), ("64KiB", 65_536), ("1MiB", MIB), ("64kB", 64_000), ("2GB", 2_000_000_000)]
        {
            assert_eq!(with_unit(text, &SIZES), Some(bytes), "{text}");
        }
        for (text, ms) in [("250ms", 250), ("5s", 5_000), ("1m", 60_000), ("1h", HOUR_MS), ("0s", 0)] {
            assert_eq!(with_unit(text, &TIMES), Some(ms), "{text}");
        }
        for text in
            ["", "5", "s", "5 s", "-5s", "1.5s", "1m30s", "5S", "99999999999999999h", "99999999999999999999999s"]
        {
            assert_eq!(with_unit(text, &TIMES), None, "{text}");
        }
    }

    #[test]
    fn bounds_are_shown_as_people_write_them() {
        assert_eq!(Size::<KIB, MIB>::kind(), "a size from 1KiB to 1MiB");
        assert_eq!(Size::<0, TIB>::kind(), "a size from 0B to 1TiB");
        assert_eq!(Timeout::kind(), "a duration from 1ms to 24h");
        assert_eq!(Time::<0, HOUR_MS>::kind(), "a duration from 0s to 1h");
    }
}
