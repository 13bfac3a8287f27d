//! Points in time as text, UTC. Not for every request: a core keeps what it formatted until the second changes.

/// The last second that has a four-digit year; later times are written as this one.
const SECS_MAX: u64 = 253_402_300_799;
const DAY_SECS: u64 = 86_400;

/// Appends `2026-03-23T10:15:30.123Z` (RFC 3339), always 24 bytes, from milliseconds since 1970.
pub fn rfc3339_millis(unix_ms: u64, out: &mut Vec<u8>) {
    out.extend_from_slice(&rfc3339_second(unix_ms / 1000));
    let [_, digits @ ..] = four((unix_ms % 1000) as u32);
    out.push(b'.');
    out.extend_from_slice(&digits);
    out.push(b'Z');
}

/// Appends `Sun, 06 Nov 1994 08:49:37 GMT` (IMF-fixdate, RFC 9110 section 5.6.7), always 29 bytes, from seconds since
/// 1970.
pub fn imf_fixdate(unix_secs: u64, out: &mut Vec<u8>) {
    const WEEKDAYS: [&[u8; 5]; 7] = [b"Thu, ", b"Fri, ", b"Sat, ", b"Sun, ", b"Mon, ", b"Tue, ", b"Wed, "];
    const MONTHS: [&[u8; 5]; 12] = [
        b" Jan ", b" Feb ", b" Mar ", b" Apr ", b" May ", b" Jun ", b" Jul ", b" Aug ", b" Sep ", b" Oct ", b" Nov ",
        b" Dec ",
    ];
    let secs = unix_secs.min(SECS_MAX);
    let days = (secs / DAY_SECS) as u32;
    let (year, month, day) = civil(days);
    let weekday = WEEKDAYS.get(days as usize % WEEKDAYS.len()).copied().unwrap_or(b"Thu, ");
    let month = MONTHS.get(month as usize - 1).copied().unwrap_or(b" Jan ");
    out.extend_from_slice(weekday);
    out.extend_from_slice(&two(day));
    out.extend_from_slice(month);
    out.extend_from_slice(&four(year));
    out.push(b' ');
    out.extend_from_slice(&clock(secs));
    out.extend_from_slice(b" GMT");
}

/// `2026-03-23T10:15:30`.
pub(crate) fn rfc3339_second(unix_secs: u64) -> [u8; 19] {
    let secs = unix_secs.min(SECS_MAX);
    let (year, month, day) = civil((secs / DAY_SECS) as u32);
    let mut text = *b"YYYY-MM-DDThh:mm:ss";
    text[0..4].copy_from_slice(&four(year));
    text[5..7].copy_from_slice(&two(month));
    text[8..10].copy_from_slice(&two(day));
    text[11..19].copy_from_slice(&clock(secs));
    text
}

/// `hh:mm:ss`.
fn clock(secs: u64) -> [u8; 8] {
    let of_day = (secs % DAY_SECS) as u32;
    let mut text = *b"hh:mm:ss";
    text[0..2].copy_from_slice(&two(of_day / 3600));
    text[3..5].copy_from_slice(&two(of_day / 60 % 60));
    text[6..8].copy_from_slice(&two(of_day % 60));
    text
}

/// Year, month (1-12) and day (1-31) of a number of days since 1970-01-01, in the Gregorian calendar (Howard
/// Hinnant, "chrono-Compatible Low-Level Date Algorithms", `civil_from_days`). Years start in March there, so that
/// the leap day is the last.
fn civil(days: u32) -> (u32, u32, u32) {
    let days = days + 719_468; // Since 0000-03-01.
    let era = days / 146_097; // 400 years.
    let of_era = days % 146_097;
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let march_month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * march_month + 2) / 5 + 1;
    let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
    (era * 400 + year_of_era + u32::from(month <= 2), month, day)
}

fn two(n: u32) -> [u8; 2] {
    [b'0' + (n / 10 % 10) as u8, b'0' + (n % 10) as u8]
}

fn four(n: u32) -> [u8; 4] {
    let ([a, b], [c, d]) = (two(n / 100), two(n % 100));
    [a, b, c, d]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rfc3339(unix_ms: u64) -> String {
        let mut out = Vec::new();
        rfc3339_millis(unix_ms, &mut out);
        String::from_utf8(out).unwrap()
    }

    fn imf(unix_secs: u64) -> String {
        let mut out = Vec::new();
        imf_fixdate(unix_secs, &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn known_times_have_their_known_text() {
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(rfc3339(1_774_260_930_123), "2026-03-23T10:15:30.123Z");
        assert_eq!(rfc3339(951_782_400_007), "2000-02-29T00:00:00.007Z");
        assert_eq!(rfc3339(1_709_251_199_999), "2024-02-29T23:59:59.999Z");
        assert_eq!(rfc3339(1_709_251_200_000), "2024-03-01T00:00:00.000Z");
        assert_eq!(rfc3339(4_107_542_399_000), "2100-02-28T23:59:59.000Z");
        assert_eq!(rfc3339(4_107_542_400_000), "2100-03-01T00:00:00.000Z");
        assert_eq!(imf(784_111_777), "Sun, 06 Nov 1994 08:49:37 GMT");
        assert_eq!(imf(0), "Thu, 01 Jan 1970 00:00:00 GMT");
        assert_eq!(imf(1_709_164_800), "Thu, 29 Feb 2024 00:00:00 GMT");
        assert_eq!(imf(1_774_260_930), "Mon, 23 Mar 2026 10:15:30 GMT");
    }

    #[test]
    fn the_last_second_of_the_four_digit_years_is_the_last() {
        assert_eq!(rfc3339(SECS_MAX * 1000), "9999-12-31T23:59:59.000Z");
        assert_eq!(rfc3339(u64::MAX).len(), 24);
        assert_eq!(imf(u64::MAX), "Fri, 31 Dec 9999 23:59:59 GMT");
    }

    #[test]
    fn days_follow_each_other_over_four_centuries() {
        let is_leap = |year: u32| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
        let mut expected = (1970, 1, 1);
        for days in 0..146_097 {
            assert_eq!(civil(days), expected);
            let (year, month, day) = expected;
            let last = match month {
                2 => 28 + u32::from(is_leap(year)),
                4 | 6 | 9 | 11 => 30,
                _ => 31,
            };
            expected = match (month, day) {
                (12, 31) => (year + 1, 1, 1),
                _ if day == last => (year, month + 1, 1),
                _ => (year, month, day + 1),
            };
        }
    }
}
