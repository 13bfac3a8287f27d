//! Trace context: which headers of a client are sane, and the context that the gateway starts where there is none.
//!
//! W3C Trace Context level 1 and 2 (`traceparent`), and B3 as Zipkin defines it (`b3`, `X-B3-*`).

use crate::hex;

/// Whether `value` is a `traceparent` (W3C Trace Context section 3.2): version `ff` is none, version `00` is exactly 55
/// bytes, a later version may go on after a `-`; hex digits are lower case; IDs of zeros alone are not valid.
///
/// Hot; watched by the benchmark `trace`.
pub fn valid_traceparent(value: &[u8]) -> bool {
    let Some((&fields, more)) = value.split_first_chunk::<55>() else { return false };
    let [v0, v1, ..] = fields;
    let version = [v0, v1];
    fields[2] == b'-'
        && fields[35] == b'-'
        && fields[52] == b'-'
        && hex::is_hex(&version)
        && version != *b"ff"
        && is_id(&fields[3..35])
        && is_id(&fields[36..52])
        && hex::is_hex(&fields[53..55])
        && match more.first() {
            None => true,
            Some(byte) => *byte == b'-' && version != *b"00",
        }
}

/// Whether `value` is a B3 single header: a sampling state alone (`0`, `1`, `d`), or
/// `{trace ID}-{span ID}[-{sampling state}[-{parent span ID}]]`.
pub fn valid_b3(value: &[u8]) -> bool {
    let is_state = |part: &[u8]| matches!(part, b"0" | b"1" | b"d");
    let mut parts = value.split(|byte| *byte == b'-');
    match [parts.next(), parts.next(), parts.next(), parts.next(), parts.next()] {
        [Some(state), None, ..] => is_state(state),
        [Some(trace), Some(span), state, parent, None] => {
            valid_b3_id(trace)
                && is_span_id(span)
                && state.is_none_or(is_state)
                && parent.is_none_or(|id| id.len() == 16 && hex::is_hex(id))
        }
        _ => false,
    }
}

/// Whether `value` is an ID of the B3 headers: 16 or 32 lower-case hex digits, not all zero. A span's ID has 16, a
/// trace's either.
pub fn valid_b3_id(value: &[u8]) -> bool {
    matches!(value.len(), 16 | 32) && is_id(value)
}

/// The context of a trace that starts at the gateway.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NewTrace {
    trace_id: u128,
    span_id: u64,
}

impl NewTrace {
    /// IDs from random numbers; a zero, which no format allows, becomes 1.
    #[inline]
    pub fn from_random(trace: u128, span: u64) -> Self {
        Self { trace_id: trace.max(1), span_id: span.max(1) }
    }

    /// Appends the value of `traceparent`, 55 bytes. The flags are `00`: the gateway records nothing, so it must not
    /// say "sampled"; the service decides for itself.
    #[inline]
    pub fn write_traceparent(&self, out: &mut Vec<u8>) {
        let mut text = *b"00-tttttttttttttttttttttttttttttttt-ssssssssssssssss-00";
        text[3..35].copy_from_slice(&self.trace_digits());
        text[36..52].copy_from_slice(&hex::digits(self.span_id));
        out.extend_from_slice(&text);
    }

    /// Appends the value of `b3`, 49 bytes. It has no sampling state, which leaves the decision to the service.
    #[inline]
    pub fn write_b3(&self, out: &mut Vec<u8>) {
        let mut text = *b"tttttttttttttttttttttttttttttttt-ssssssssssssssss";
        text[0..32].copy_from_slice(&self.trace_digits());
        text[33..49].copy_from_slice(&hex::digits(self.span_id));
        out.extend_from_slice(&text);
    }

    /// Appends the value of `X-B3-TraceId`, 32 bytes. No `X-B3-Sampled` belongs to it: the decision is the service's.
    #[inline]
    pub fn write_trace_id(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.trace_digits());
    }

    /// Appends the value of `X-B3-SpanId`, 16 bytes.
    #[inline]
    pub fn write_span_id(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&hex::digits(self.span_id));
    }

    #[inline]
    fn trace_digits(&self) -> [u8; 32] {
        let mut digits = [0; 32];
        digits[0..16].copy_from_slice(&hex::digits((self.trace_id >> 64) as u64));
        digits[16..32].copy_from_slice(&hex::digits(self.trace_id as u64));
        digits
    }
}

/// Lower-case hex digits, not all zero.
#[inline]
fn is_id(digits: &[u8]) -> bool {
    hex::is_hex(digits) && digits.iter().any(|digit| *digit != b'0')
}

fn is_span_id(value: &[u8]) -> bool {
    value.len() == 16 && is_id(value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
    const SPAN: &str = "00f067aa0ba902b7";

    #[test]
    fn traceparents_are_told_apart() {
        for good in [
            format!("00-{TRACE}-{SPAN}-01"),
            format!("00-{TRACE}-{SPAN}-ff"),
            format!("cc-{TRACE}-{SPAN}-01"),
            format!("cc-{TRACE}-{SPAN}-01-what-the-future-brings"),
            format!("01-{TRACE}-{SPAN}-01-"),
        ] {
            assert!(valid_traceparent(good.as_bytes()), "{good}");
        }
        for bad in [
            String::new(),
            format!("ff-{TRACE}-{SPAN}-01"),
            format!("00-{TRACE}-{SPAN}-01-more"),
            format!("00-{TRACE}-{SPAN}-01."),
            format!("cc-{TRACE}-{SPAN}-01.more"),
            format!("00-{TRACE}-{SPAN}-0"),
            format!("00-{TRACE}-{SPAN}"),
            format!("00-{TRACE}-{SPAN}-0x"),
            format!("00-{TRACE}-{SPAN}-0A"),
            format!("0A-{TRACE}-{SPAN}-01"),
            format!("00-{}-{SPAN}-01", TRACE.to_uppercase()),
            format!("00-{TRACE}-{}-01", SPAN.to_uppercase()),
            format!("00-{}-{SPAN}-01", "0".repeat(32)),
            format!("00-{TRACE}-{}-01", "0".repeat(16)),
            format!("00_{TRACE}-{SPAN}-01"),
            format!("00-{TRACE}_{SPAN}-01"),
            format!("00-{TRACE}-{SPAN}_01"),
            format!(" 00-{TRACE}-{SPAN}-01"),
        ] {
            assert!(!valid_traceparent(bad.as_bytes()), "{bad}");
        }
    }

    #[test]
    fn b3_headers_are_told_apart() {
        let short = &TRACE[16..];
        for good in [
            "0".to_string(),
            "1".to_string(),
            "d".to_string(),
            format!("{TRACE}-{SPAN}"),
            format!("{short}-{SPAN}-0"),
            format!("{TRACE}-{SPAN}-1"),
            format!("{TRACE}-{SPAN}-d-05e3ac9a4f6e3b90"),
        ] {
            assert!(valid_b3(good.as_bytes()), "{good}");
        }
        for bad in [
            String::new(),
            "2".to_string(),
            "-".to_string(),
            TRACE.to_string(),
            format!("{TRACE}-"),
            format!("{TRACE}-{TRACE}"),
            format!("{TRACE}-{SPAN}-"),
            format!("{TRACE}-{SPAN}-2"),
            format!("{TRACE}-{SPAN}-1-"),
            format!("{TRACE}-{SPAN}-1-{TRACE}"),
            format!("{TRACE}-{SPAN}-1-{SPAN}-1"),
            format!("{}-{SPAN}-1", "0".repeat(32)),
            format!("{TRACE}-{}-1", "0".repeat(16)),
            format!("{}-{SPAN}-1", TRACE.to_uppercase()),
        ] {
            assert!(!valid_b3(bad.as_bytes()), "{bad}");
        }
        assert!(valid_b3_id(TRACE.as_bytes()) && valid_b3_id(SPAN.as_bytes()));
        assert!(!valid_b3_id(&TRACE.as_bytes()[1..]) && !valid_b3_id(&[b'0'; 16]) && !valid_b3_id(b""));
    }

    proptest! {
        #[test]
        fn what_is_started_is_valid(trace: u128, span: u64) {
            let new = NewTrace::from_random(trace, span);
            let written = |write: fn(&NewTrace, &mut Vec<u8>)| {
                let mut out = Vec::new();
                write(&new, &mut out);
                String::from_utf8(out).unwrap()
            };
            let (trace, span) = (trace.max(1), span.max(1));
            let parent = written(NewTrace::write_traceparent);
            prop_assert_eq!(&parent, &format!("00-{trace:032x}-{span:016x}-00"));
            prop_assert!(valid_traceparent(parent.as_bytes()));
            let b3 = written(NewTrace::write_b3);
            prop_assert_eq!(&b3, &format!("{trace:032x}-{span:016x}"));
            prop_assert!(valid_b3(b3.as_bytes()));
            prop_assert!(valid_b3_id(written(NewTrace::write_trace_id).as_bytes()));
            prop_assert!(valid_b3_id(written(NewTrace::write_span_id).as_bytes()));
        }

        #[test]
        fn any_bytes_are_judged_without_a_panic(bytes: Vec<u8>) {
            valid_traceparent(&bytes);
            valid_b3(&bytes);
            valid_b3_id(&bytes);
        }
    }

    #[test]
    fn zeros_are_never_sent() {
        let mut out = Vec::new();
        NewTrace::from_random(0, 0).write_traceparent(&mut out);
        assert!(valid_traceparent(&out));
    }
}
