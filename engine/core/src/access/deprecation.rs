//! Notices that a resource is going away: `Deprecation` (RFC 9745), `Sunset` (RFC 8594) and `Link` (RFC 8288).

use crate::timestamp::imf_fixdate;

/// What [`Deprecation::new`] is made from; times in seconds since 1970.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DeprecationSpec {
    /// Since when, or from when on, it is deprecated.
    pub since: Option<u64>,
    /// When it will stop to answer. Not before `since` (RFC 9745 section 4).
    pub sunset: Option<u64>,
    /// A page about the deprecation.
    pub link: Option<String>,
    /// A page about the end.
    pub sunset_link: Option<String>,
    /// What to use instead.
    pub successor: Option<String>,
}

/// The notices of a route as header lines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Deprecation {
    lines: Box<[u8]>,
    deprecation: bool,
    sunset: bool,
}

impl Deprecation {
    /// Links are taken as they are: URI references without `>` and without what would end a line.
    pub fn new(spec: &DeprecationSpec) -> Self {
        let mut lines = Vec::new();
        if let Some(since) = spec.since {
            // A Date of RFC 9651 section 3.3.7.
            lines.extend_from_slice(format!("Deprecation: @{since}\r\n").as_bytes());
        }
        if let Some(sunset) = spec.sunset {
            lines.extend_from_slice(b"Sunset: ");
            imf_fixdate(sunset, &mut lines);
            lines.extend_from_slice(b"\r\n");
        }
        for (target, relation) in
            [(&spec.link, "deprecation"), (&spec.sunset_link, "sunset"), (&spec.successor, "successor-version")]
        {
            if let Some(target) = target {
                lines.extend_from_slice(format!("Link: <{target}>; rel=\"{relation}\"\r\n").as_bytes());
            }
        }
        Self { lines: lines.into(), deprecation: spec.since.is_some(), sunset: spec.sunset.is_some() }
    }

    /// What every answer gets.
    pub fn lines(&self) -> &[u8] {
        &self.lines
    }

    /// Whether a header of the service's answer is dropped. Its links stay: there may be many.
    pub fn owns(&self, name: &str) -> bool {
        (self.deprecation && name.eq_ignore_ascii_case("deprecation"))
            || (self.sunset && name.eq_ignore_ascii_case("sunset"))
    }
}

/// Seconds since 1970 of a date, `2026-01-31` (its first second, UTC), or of a time, `2026-01-31T10:00:00Z` or with an
/// offset (RFC 3339 section 5.6). `None` where it is neither, or before 1970; fractions of seconds are left out.
pub fn unix_seconds(text: &str) -> Option<u64> {
    let (date, time) = match text.split_at_checked(10)? {
        (date, "") => (date, None),
        (date, rest) => (date, Some(rest.strip_prefix(['T', 't', ' '])?)),
    };
    let [year, month, day] = numbers(date, '-', [4, 2, 2])?;
    let is_leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let last = match month {
        4 | 6 | 9 | 11 => 30,
        2 => 28 + u32::from(is_leap),
        1..=12 => 31,
        _ => return None,
    };
    if !(1..=last).contains(&day) {
        return None;
    }
    let day_start = days_from_civil(i64::from(year), i64::from(month), i64::from(day)) * 86_400;
    let of_day = match time {
        None => 0,
        Some(time) => seconds_of_day(time)?,
    };
    u64::try_from(day_start + of_day).ok()
}

fn seconds_of_day(text: &str) -> Option<i64> {
    let (clock, rest) = text.split_at_checked(8)?;
    let [hour, minute, second] = numbers(clock, ':', [2, 2, 2])?;
    let rest = match rest.strip_prefix('.') {
        Some(fraction) => {
            let offset = fraction.trim_start_matches(|c: char| c.is_ascii_digit());
            (offset.len() < fraction.len()).then_some(offset)?
        }
        None => rest,
    };
    let offset = match rest.split_at_checked(1)? {
        ("Z" | "z", "") => 0,
        (sign @ ("+" | "-"), zone) => {
            let [hours, minutes] = numbers(zone, ':', [2, 2])?;
            let seconds = i64::from(hours * 60 + minutes) * 60;
            (hours < 24 && minutes < 60).then_some(if sign == "-" { -seconds } else { seconds })?
        }
        _ => return None,
    };
    // Leap seconds are the last of their minute.
    let valid = hour < 24 && minute < 60 && second <= 60;
    valid.then(|| i64::from((hour * 60 + minute) * 60 + second.min(59)) - offset)
}

/// The numbers of a text, with as many digits as it says.
fn numbers<const N: usize>(text: &str, separator: char, digits: [usize; N]) -> Option<[u32; N]> {
    let (mut out, mut parts) = ([0; N], text.split(separator));
    for (number, digits) in out.iter_mut().zip(digits) {
        let part =
            parts.next().filter(|part| part.len() == digits && part.bytes().all(|byte| byte.is_ascii_digit()))?;
        *number = part.parse().ok()?;
    }
    parts.next().is_none().then_some(out)
}

/// Days from 1970-01-01 to a date of the Gregorian calendar (Howard Hinnant, "chrono-Compatible Low-Level Date
/// Algorithms", `days_from_civil`).
fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + of_year;
    era * 146_097 + of_era - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::timestamp::rfc3339_millis;
    use proptest::prelude::*;

    #[test]
    fn notices_are_those_of_their_rfcs() {
        // The example of RFC 9745 section 2.1.
        let spec = DeprecationSpec { since: unix_seconds("2023-06-30T23:59:59Z"), ..DeprecationSpec::default() };
        assert_eq!(Deprecation::new(&spec).lines(), b"Deprecation: @1688169599\r\n");
        let spec = DeprecationSpec {
            since: Some(0),
            // The example of RFC 8594 section 3.
            sunset: unix_seconds("2018-12-31T23:59:59Z"),
            link: Some("https://a.example/why".into()),
            sunset_link: Some("/end".into()),
            successor: Some("/v2".into()),
        };
        let all = Deprecation::new(&spec);
        assert_eq!(
            std::str::from_utf8(all.lines()).unwrap(),
            "Deprecation: @0\r\nSunset: Mon, 31 Dec 2018 23:59:59 GMT\r\nLink: <https://a.example/why>; rel=\"deprecation\"\r\n\
             Link: </end>; rel=\"sunset\"\r\nLink: </v2>; rel=\"successor-version\"\r\n"
        );
        assert!(all.owns("Deprecation") && all.owns("SUNSET") && !all.owns("link"));
        let link = Deprecation::new(&DeprecationSpec { link: Some("/x".into()), ..DeprecationSpec::default() });
        assert!(!link.owns("deprecation") && !link.owns("sunset"));
    }

    #[test]
    fn dates_and_times_are_read() {
        for (text, seconds) in [
            ("1970-01-01", 0),
            ("2000-02-29", 951_782_400),
            ("1994-11-06T08:49:37Z", 784_111_777),
            ("1994-11-06 08:49:37.5z", 784_111_777),
            ("1994-11-06t10:49:37+02:00", 784_111_777),
            ("1994-11-05T23:49:37-09:00", 784_111_777),
            ("2016-12-31T23:59:60Z", 1_483_228_799),
        ] {
            assert_eq!(unix_seconds(text), Some(seconds), "{text}");
        }
        for bad in [
            "",
            "2026",
            "2026-1-31",
            "2026-13-01",
            "2026-00-01",
            "2026-02-29",
            "2026-04-31",
            "2026-01-00",
            "1969-12-31",
            "2026-01-31T",
            "2026-01-31T10:00Z",
            "2026-01-31T10:00:00",
            "2026-01-31T24:00:00Z",
            "2026-01-31T10:60:00Z",
            "2026-01-31T10:00:00+25:00",
            "2026-01-31T10:00:00.Z",
            "2026-01-31T10:00:00Zx",
            "2026-01-31X10:00:00Z",
            "2026-01-3é",
            "+026-01-31",
            "2026-01-31T10:00:00é",
        ] {
            assert_eq!(unix_seconds(bad), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(seconds in 0..253_402_300_799u64) {
            let mut text = Vec::new();
            rfc3339_millis(seconds * 1000, &mut text);
            prop_assert_eq!(unix_seconds(std::str::from_utf8(&text).unwrap()), Some(seconds));
        }

        #[test]
        fn any_text_is_handled(text: String) {
            let _ = unix_seconds(&text);
        }
    }
}
