//! The headers that tell a client where it stands.

use super::State;
use super::policy::Policy;

/// Which headers a policy sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum HeaderStyle {
    /// `RateLimit-Limit`, `RateLimit-Remaining`, `RateLimit-Reset` and `RateLimit-Policy`
    /// (draft-ietf-httpapi-ratelimit-headers-06, sections 3 and 5).
    #[default]
    Draft6,
    /// `RateLimit-Policy` and `RateLimit` as structured fields (the same draft since -08).
    Structured,
    /// `X-RateLimit-Limit`, `X-RateLimit-Remaining` and `X-RateLimit-Reset`, the last one in Unix seconds, as
    /// express-rate-limit has it.
    Legacy,
    /// None but `Retry-After`.
    None,
}

impl HeaderStyle {
    /// Whether a field of this name is one of those that it sends: the service's own would contradict it.
    pub fn has(self, name: &str) -> bool {
        let after = |prefix: &str| {
            let (start, rest) = name.split_at_checked(prefix.len())?;
            start.eq_ignore_ascii_case(prefix).then_some(rest)
        };
        let is_one_of = |rest: &str, names: &[&str]| names.iter().any(|name| rest.eq_ignore_ascii_case(name));
        match self {
            Self::Draft6 => {
                after("RateLimit-").is_some_and(|rest| is_one_of(rest, &["Limit", "Remaining", "Reset", "Policy"]))
            }
            Self::Structured => after("RateLimit").is_some_and(|rest| is_one_of(rest, &["", "-Policy"])),
            Self::Legacy => after("X-RateLimit-").is_some_and(|rest| is_one_of(rest, &["Limit", "Remaining", "Reset"])),
            Self::None => false,
        }
    }
}

/// Appends the header lines for `state`, each with its CRLF, and `Retry-After` (RFC 9110, section 10.2.3) where the
/// request was refused. `unix_s`: now, in seconds since 1970, for [`HeaderStyle::Legacy`].
///
/// Hot; watched by the benchmark `limit`.
pub fn write_headers(style: HeaderStyle, policy: &Policy, state: &State, unix_s: u64, out: &mut Vec<u8>) {
    let reset_s = state.reset_us.div_ceil(1_000_000);
    match style {
        HeaderStyle::Draft6 => {
            line(b"RateLimit-Limit: ", state.limit, out);
            line(b"RateLimit-Remaining: ", state.remaining, out);
            line(b"RateLimit-Reset: ", reset_s, out);
            out.extend_from_slice(b"RateLimit-Policy: ");
            number(state.limit, out);
            line(b";w=", window_s(policy), out);
        }
        HeaderStyle::Structured => {
            out.extend_from_slice(b"RateLimit-Policy: ");
            string(&policy.spec().name, out);
            out.extend_from_slice(b";q=");
            number(state.limit, out);
            line(b";w=", window_s(policy), out);
            out.extend_from_slice(b"RateLimit: ");
            string(&policy.spec().name, out);
            out.extend_from_slice(b";r=");
            number(state.remaining, out);
            line(b";t=", reset_s, out);
        }
        HeaderStyle::Legacy => {
            line(b"X-RateLimit-Limit: ", state.limit, out);
            line(b"X-RateLimit-Remaining: ", state.remaining, out);
            line(b"X-RateLimit-Reset: ", unix_s.saturating_add(reset_s), out);
        }
        HeaderStyle::None => {}
    }
    if state.retry_after_us > 0 {
        line(b"Retry-After: ", state.retry_after_us.div_ceil(1_000_000), out);
    }
}

/// The period in whole seconds, at least one: the fields know no less.
fn window_s(policy: &Policy) -> u64 {
    let period = policy.spec().period;
    (period.as_secs() + u64::from(period.subsec_nanos() > 0)).max(1)
}

fn line(before: &[u8], value: u64, out: &mut Vec<u8>) {
    out.extend_from_slice(before);
    number(value, out);
    out.extend_from_slice(b"\r\n");
}

fn number(value: u64, out: &mut Vec<u8>) {
    out.extend_from_slice(itoa::Buffer::new().format(value).as_bytes());
}

/// RFC 9651, section 3.3.3: what a string may not hold is left out.
fn string(value: &str, out: &mut Vec<u8>) {
    out.push(b'"');
    for byte in value.bytes().filter(|byte| (b' '..=b'~').contains(byte)) {
        if matches!(byte, b'"' | b'\\') {
            out.push(b'\\');
        }
        out.push(byte);
    }
    out.push(b'"');
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::{Fallback, Spec};
    use super::*;

    fn written(style: HeaderStyle, name: &str, state: State) -> String {
        let spec = Spec {
            name: name.into(),
            limit: 100,
            period: Duration::from_secs(60),
            burst: 100,
            strict: false,
            without_redis: Fallback::FairShare,
            keys_max: 10,
        };
        let mut out = Vec::new();
        write_headers(style, &Policy::new(&spec).unwrap(), &state, 1_700_000_000, &mut out);
        String::from_utf8(out).unwrap()
    }

    const ADMITTED: State = State { limit: 100, remaining: 87, reset_us: 11_000_001, retry_after_us: 0 };
    const REFUSED: State = State { limit: 100, remaining: 0, reset_us: 60_000_000, retry_after_us: 1 };

    #[test]
    fn every_style_says_the_same_in_its_own_words() {
        assert_eq!(
            written(HeaderStyle::Draft6, "p", ADMITTED),
            "RateLimit-Limit: 100\r\nRateLimit-Remaining: 87\r\nRateLimit-Reset: 12\r\nRateLimit-Policy: 100;w=60\r\n"
        );
        assert_eq!(
            written(HeaderStyle::Structured, "per-client", ADMITTED),
            "RateLimit-Policy: \"per-client\";q=100;w=60\r\nRateLimit: \"per-client\";r=87;t=12\r\n"
        );
        assert_eq!(
            written(HeaderStyle::Legacy, "p", ADMITTED),
            "X-RateLimit-Limit: 100\r\nX-RateLimit-Remaining: 87\r\nX-RateLimit-Reset: 1700000012\r\n"
        );
        assert_eq!(written(HeaderStyle::None, "p", ADMITTED), "");
    }

    #[test]
    fn a_style_knows_its_own_fields() {
        use HeaderStyle::*;
        for style in [Draft6, Structured, Legacy, None] {
            for line in written(style, "p", ADMITTED).lines() {
                let name = line.split(':').next().unwrap();
                assert!(style.has(name) && style.has(&name.to_lowercase()), "{name}");
            }
        }
        assert!(!None.has("RateLimit") && !Draft6.has("RateLimit") && !Draft6.has("X-RateLimit-Limit"));
        assert!(!Structured.has("RateLimit-Limit") && !Legacy.has("X-RateLimit-Bucket") && !Legacy.has("Retry-After"));
    }

    #[test]
    fn a_refusal_says_when_to_come_back_in_at_least_a_second() {
        assert_eq!(written(HeaderStyle::None, "p", REFUSED), "Retry-After: 1\r\n");
        let later = State { retry_after_us: 1_000_001, ..REFUSED };
        assert!(written(HeaderStyle::Legacy, "p", later).ends_with("\r\nRetry-After: 2\r\n"));
    }

    #[test]
    fn a_name_cannot_break_out_of_its_string() {
        assert!(written(HeaderStyle::Structured, "a\"b\\\r\né", ADMITTED).contains(r#"RateLimit: "a\"b\\";r"#));
    }
}
