//! How long an answer may be used (RFC 9111 section 4.2).

use std::time::{Duration, SystemTime};

use hyper::HeaderMap;
use hyper::header::{AGE, CACHE_CONTROL, DATE, EXPIRES};

use super::Fetching;

/// When to fetch the next time, counted from now: after four fifths of what the answer allows, so that the new keys are
/// there before the old ones are stale.
pub(super) fn refresh_after(headers: &HeaderMap, now: SystemTime, fetching: &Fetching) -> Duration {
    let after = match lifetime(headers, now) {
        Some(lifetime) => lifetime / 5 * 4,
        None => fetching.refresh_default,
    };
    after.max(fetching.refresh_min).min(fetching.refresh_max.max(fetching.refresh_min))
}

/// `max-age` before `Expires`, less `Age`; none with `no-store` or `no-cache`.
fn lifetime(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let mut max_age = None;
    let directives = headers.get_all(CACHE_CONTROL).iter().filter_map(|value| value.to_str().ok());
    for directive in directives.flat_map(|value| value.split(',')).map(str::trim) {
        if directive.eq_ignore_ascii_case("no-store") || directive.eq_ignore_ascii_case("no-cache") {
            return Some(Duration::ZERO);
        }
        if let Some((name, value)) = directive.split_once('=')
            && name.eq_ignore_ascii_case("max-age")
        {
            // What is no number is stale; of two, the shorter one counts.
            let seconds = value.trim_matches('"').parse().unwrap_or(0);
            max_age = Some(max_age.map_or(seconds, |other: u64| other.min(seconds)));
        }
    }
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let lifetime = match max_age {
        Some(seconds) => Duration::from_secs(seconds),
        None => {
            let expires = httpdate::parse_http_date(text(EXPIRES)?).unwrap_or(SystemTime::UNIX_EPOCH);
            // Both by the clock of the issuer, where it tells it.
            let date = text(DATE).and_then(|date| httpdate::parse_http_date(date).ok()).unwrap_or(now);
            expires.duration_since(date).unwrap_or_default()
        }
    };
    let age = text(AGE).and_then(|age| age.parse().ok()).unwrap_or(0);
    Some(lifetime.saturating_sub(Duration::from_secs(age)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(lines: &[(&'static str, &str)]) -> u64 {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(*name, value.parse().unwrap());
        }
        let now = httpdate::parse_http_date("Tue, 24 Nov 2026 12:00:00 GMT").unwrap();
        refresh_after(&headers, now, &Fetching::default()).as_secs()
    }

    #[test]
    fn answers_say_how_long_they_are_fresh() {
        let (date, expires) = ("Tue, 24 Nov 2026 11:00:00 GMT", "Tue, 24 Nov 2026 11:10:00 GMT");
        for (lines, expected) in [
            (&[][..], 300),
            (&[("cache-control", "public, max-age=600, must-revalidate")], 480),
            (&[("cache-control", "Max-Age=\"600\"")], 480),
            (&[("cache-control", "max-age=600"), ("age", "100")], 400),
            (&[("cache-control", "max-age=600"), ("age", "9999")], 30),
            (&[("cache-control", "max-age=600, max-age=100")], 80),
            (&[("cache-control", "max-age=600"), ("cache-control", "no-store")], 30),
            (&[("cache-control", "max-age=x")], 30),
            (&[("cache-control", "max-age=0")], 30),
            (&[("cache-control", "max-age=18446744073709551615")], 3600),
            (&[("cache-control", "public")], 300),
            (&[("expires", expires), ("date", date)], 480),
            (&[("expires", "Tue, 24 Nov 2026 12:10:00 GMT")], 480),
            (&[("expires", expires)], 30),
            (&[("expires", "0")], 30),
            (&[("expires", expires), ("date", date), ("cache-control", "max-age=100")], 80),
        ] {
            assert_eq!(after(lines), expected, "{lines:?}");
        }
    }

    #[test]
    fn bounds_that_cross_give_the_lower_one() {
        let hour = Duration::from_secs(3600);
        let fetching = Fetching { refresh_min: hour, refresh_max: Duration::from_secs(60), ..Fetching::default() };
        assert_eq!(refresh_after(&HeaderMap::new(), SystemTime::UNIX_EPOCH, &fetching), hour);
    }
}
