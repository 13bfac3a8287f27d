//! Trace headers, and what the gateway starts in their place.

use ringway_core::request_id::RequestId;
use ringway_core::trace::{NewTrace, valid_b3, valid_b3_id, valid_traceparent};

pub const DICTIONARY: &[&str] = &[
    "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
    "4bf92f3577b34da6a3ce929d0e0e4736",
    "00f067aa0ba902b7",
    "00-",
    "-01",
    "-00",
    "ff-",
    "cc-",
    "-",
    "0",
    "1",
    "d",
    "0000000000000000",
    "A",
    "g",
    " ",
    "\0",
];

/// Any bytes, as the value of a header.
pub fn target(bytes: &[u8]) {
    assert_eq!(valid_traceparent(bytes), naive_traceparent(bytes).is_some());
    assert_eq!(valid_b3(bytes), naive_b3(bytes).is_some());
    assert_eq!(valid_b3_id(bytes), std::str::from_utf8(bytes).is_ok_and(|text| id(text, 16) || id(text, 32)));
    if let Some(id) = RequestId::accept(bytes) {
        assert_eq!(id.as_bytes(), bytes);
        assert!(bytes.iter().all(|byte| byte.is_ascii_graphic() && !b"\"\\,;<>".contains(byte)));
    }
    let mut seed = [0; 24];
    seed.iter_mut().zip(bytes).for_each(|(seed, byte)| *seed = *byte);
    let (trace, span) = seed.split_at(16);
    let number = |bytes: &[u8]| bytes.iter().fold(0, |number: u128, byte| number << 8 | u128::from(*byte));
    check_started(number(trace), number(span) as u64);
}

/// What is started is valid, and every form of it says the same.
fn check_started(trace: u128, span: u64) {
    let started = NewTrace::from_random(trace, span);
    let write = |write: fn(&NewTrace, &mut Vec<u8>)| {
        let mut out = Vec::new();
        write(&started, &mut out);
        String::from_utf8(out).expect("text")
    };
    let (trace, span) = (format!("{:032x}", trace.max(1)), format!("{:016x}", span.max(1)));
    assert_eq!(write(NewTrace::write_traceparent), format!("00-{trace}-{span}-00"));
    assert_eq!(write(NewTrace::write_b3), format!("{trace}-{span}"));
    assert_eq!((write(NewTrace::write_trace_id), write(NewTrace::write_span_id)), (trace.clone(), span.clone()));
    assert!(valid_traceparent(format!("00-{trace}-{span}-00").as_bytes()));
    assert!(valid_b3(format!("{trace}-{span}").as_bytes()) && valid_b3_id(trace.as_bytes()));
}

fn hex(text: &str, length: usize) -> bool {
    text.len() == length && text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
}

fn id(text: &str, length: usize) -> bool {
    hex(text, length) && text.bytes().any(|byte| byte != b'0')
}

/// W3C Trace Context section 3.2.2.
fn naive_traceparent(bytes: &[u8]) -> Option<()> {
    // A later version may go on with anything.
    let (fields, more) = bytes.split_at_checked(55)?;
    let mut parts = std::str::from_utf8(fields).ok()?.split('-');
    let (version, trace, span, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let goes_on = more.is_empty() || (more[0] == b'-' && version != "00");
    let valid = hex(version, 2) && version != "ff" && id(trace, 32) && id(span, 16) && hex(flags, 2) && goes_on;
    (valid && parts.next().is_none()).then_some(())
}

/// <https://github.com/openzipkin/b3-propagation>
fn naive_b3(bytes: &[u8]) -> Option<()> {
    let text = std::str::from_utf8(bytes).ok()?;
    let is_state = |text: &str| matches!(text, "0" | "1" | "d");
    let valid = match text.split('-').collect::<Vec<_>>().as_slice() {
        [state] => is_state(state),
        [trace, span, rest @ ..] => {
            (id(trace, 16) || id(trace, 32))
                && id(span, 16)
                && match rest {
                    [] => true,
                    [state] => is_state(state),
                    [state, parent] => is_state(state) && hex(parent, 16),
                    _ => false,
                }
        }
        [] => false,
    };
    valid.then_some(())
}
