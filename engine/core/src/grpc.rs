//! What a gateway must know of gRPC over HTTP/2 (`doc/PROTOCOL-HTTP2.md` of grpc): how a call is told from another request,
//! its deadline, and how the gateway's own failures are told to its client.

use crate::failure::Failure;

/// Digits of a timeout.
const TIMEOUT_DIGITS_MAX: usize = 8;

/// Units of a timeout, in nanoseconds, the finest first.
const UNITS: [(u8, u64); 6] = [
    (b'n', 1),
    (b'u', 1_000),
    (b'm', 1_000_000),
    (b'S', 1_000_000_000),
    (b'M', 60 * 1_000_000_000),
    (b'H', 3600 * 1_000_000_000),
];

/// How a call ended: the code of `grpc-status`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Status(u8);

impl Status {
    pub const OK: Self = Self(0);
    pub const CANCELLED: Self = Self(1);
    pub const UNKNOWN: Self = Self(2);
    pub const INVALID_ARGUMENT: Self = Self(3);
    pub const DEADLINE_EXCEEDED: Self = Self(4);
    pub const NOT_FOUND: Self = Self(5);
    pub const ALREADY_EXISTS: Self = Self(6);
    pub const PERMISSION_DENIED: Self = Self(7);
    pub const RESOURCE_EXHAUSTED: Self = Self(8);
    pub const FAILED_PRECONDITION: Self = Self(9);
    pub const ABORTED: Self = Self(10);
    pub const OUT_OF_RANGE: Self = Self(11);
    pub const UNIMPLEMENTED: Self = Self(12);
    pub const INTERNAL: Self = Self(13);
    pub const UNAVAILABLE: Self = Self(14);
    pub const DATA_LOSS: Self = Self(15);
    pub const UNAUTHENTICATED: Self = Self(16);

    /// The codes that are defined, 0 to 16; any other counts as [`Status::UNKNOWN`].
    pub const COUNT: usize = 17;

    /// The code as a service writes it.
    pub fn parse(value: &[u8]) -> Self {
        match *value {
            [digit @ b'0'..=b'9'] => Self(digit - b'0'),
            [b'1', digit @ b'0'..=b'6'] => Self(10 + digit - b'0'),
            _ => Self::UNKNOWN,
        }
    }

    pub const fn code(self) -> u8 {
        self.0
    }

    /// What a client makes of an answer without `grpc-status` (`doc/http-grpc-status-mapping.md`).
    pub const fn of_http(status: u16) -> Self {
        match status {
            400 | 431 => Self::INTERNAL,
            401 => Self::UNAUTHENTICATED,
            403 => Self::PERMISSION_DENIED,
            404 => Self::UNIMPLEMENTED,
            429 | 502 | 503 | 504 => Self::UNAVAILABLE,
            _ => Self::UNKNOWN,
        }
    }

    /// What a client is told of the gateway's own failure: what [`Status::of_http`] says, and more where the gateway knows
    /// more than a status of HTTP can say.
    pub const fn of_failure(failure: Failure) -> Self {
        match failure {
            // The time that was given to the call is over.
            Failure::RequestTimeout | Failure::AnswerTimeout => Self::DEADLINE_EXCEEDED,
            Failure::RateLimited | Failure::ConcurrencyLimited | Failure::BodyTooLarge => Self::RESOURCE_EXHAUSTED,
            Failure::WrongMethod | Failure::UnsupportedMethod | Failure::UnsupportedUpgrade => Self::UNIMPLEMENTED,
            Failure::ClientGone => Self::CANCELLED,
            Failure::BodyTimeout => Self::UNAVAILABLE,
            Failure::Internal => Self::INTERNAL,
            failure => Self::of_http(failure.status()),
        }
    }
}

/// Some of the codes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Statuses(u32);

impl Statuses {
    /// These and no others.
    pub fn of(statuses: impl IntoIterator<Item = Status>) -> Self {
        Self(statuses.into_iter().fold(0, |bits, status| bits | 1 << status.0))
    }

    #[inline]
    pub const fn has(self, status: Status) -> bool {
        self.0 & 1 << status.0 != 0
    }
}

/// Whether a request is a gRPC call, by its `content-type`: `application/grpc`, with `+proto` and the like or parameters
/// behind it. `application/grpc-web` is something else.
pub fn is_grpc(content_type: &[u8]) -> bool {
    const TYPE: &[u8] = b"application/grpc";
    match content_type.split_at_checked(TYPE.len()) {
        Some((start, rest)) => {
            start.eq_ignore_ascii_case(TYPE) && matches!(rest.first(), None | Some(b'+' | b';' | b' ' | b'\t'))
        }
        None => false,
    }
}

/// The value of `grpc-timeout` in microseconds, rounded up. `None` where it is malformed.
pub fn parse_timeout(value: &[u8]) -> Option<u64> {
    let (unit, digits) = value.split_last()?;
    let (_, nanos) = UNITS.iter().find(|(name, _)| name == unit)?;
    if digits.is_empty() || digits.len() > TIMEOUT_DIGITS_MAX {
        return None;
    }
    let number = digits
        .iter()
        .try_fold(0u64, |number, byte| byte.is_ascii_digit().then(|| number * 10 + u64::from(byte - b'0')))?;
    // At most 10^8 hours: in nanoseconds that is too much, in microseconds it is not.
    Some(match *nanos {
        nanos @ 1_000.. => number * (nanos / 1_000),
        nanos => (number * nanos).div_ceil(1_000),
    })
}

/// Appends a timeout in the finest unit that it fits in, rounded down: the service must not think that it has longer than
/// there is.
pub fn write_timeout(us: u64, out: &mut Vec<u8>) {
    // As much as fits: 11,000 years.
    let (mut number, mut unit) = (99_999_999, b'H');
    for (name, nanos) in UNITS.iter().filter(|(_, nanos)| *nanos >= 1_000) {
        let whole = us / (nanos / 1_000);
        if whole < 10u64.pow(TIMEOUT_DIGITS_MAX as u32) {
            (number, unit) = (whole, *name);
            break;
        }
    }
    out.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
    out.push(unit);
}

/// Appends a text as `grpc-message` has it: UTF-8, percent-encoded but for printable ASCII without `%`.
pub fn write_message(text: &str, out: &mut Vec<u8>) {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    for byte in text.bytes() {
        match byte {
            b'%' | ..b' ' | 0x7f.. => {
                let digit = |nibble: u8| HEX.get(usize::from(nibble)).copied().unwrap_or(b'0');
                out.extend_from_slice(&[b'%', digit(byte >> 4), digit(byte & 15)]);
            }
            byte => out.push(byte),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn calls_are_told_by_their_content_type() {
        for yes in
            ["application/grpc", "application/grpc+proto", "Application/gRPC; charset=x", "application/grpc+json"]
        {
            assert!(is_grpc(yes.as_bytes()), "{yes}");
        }
        for no in ["", "application/json", "application/grpc-web", "application/grpc-web+proto", "application/grpcx"] {
            assert!(!is_grpc(no.as_bytes()), "{no}");
        }
    }

    #[test]
    fn timeouts_are_read_in_every_unit() {
        for (text, us) in [
            ("1H", 3_600_000_000),
            ("2M", 120_000_000),
            ("3S", 3_000_000),
            ("250m", 250_000),
            ("7u", 7),
            ("1n", 1),
            ("1001n", 2),
            ("0n", 0),
            ("0S", 0),
            ("99999999H", 99_999_999 * 3_600_000_000),
            ("00000010S", 10_000_000),
        ] {
            assert_eq!(parse_timeout(text.as_bytes()), Some(us), "{text}");
        }
        for bad in ["", "S", "1", "1s", "1h", "-1S", "+1S", "1.5S", " 1S", "1S ", "1 S", "100000000S", "0x1S", "1SS"] {
            assert_eq!(parse_timeout(bad.as_bytes()), None, "{bad:?}");
        }
    }

    fn written(us: u64) -> String {
        let mut out = Vec::new();
        write_timeout(us, &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn timeouts_are_written_in_the_finest_unit_that_fits() {
        assert_eq!(written(0), "0u");
        assert_eq!(written(1), "1u");
        assert_eq!(written(99_999_999), "99999999u");
        assert_eq!(written(100_000_999), "100000m");
        assert_eq!(written(3_600_000_000 * 24 * 30), "2592000S");
        assert_eq!(written(u64::MAX), "99999999H");
    }

    #[test]
    fn messages_are_percent_encoded() {
        let mut out = Vec::new();
        write_message("100 % of ~é\n", &mut out);
        assert_eq!(String::from_utf8(out).unwrap(), "100 %25 of ~%C3%A9%0A");
    }

    #[test]
    fn some_of_the_statuses() {
        let some = Statuses::of([Status::UNAVAILABLE, Status::UNAUTHENTICATED, Status::OK]);
        let codes: Vec<u8> = (0..Status::COUNT as u8).filter(|code| some.has(Status(*code))).collect();
        assert_eq!(codes, [0, 14, 16]);
        assert!(!Statuses::default().has(Status::OK));
    }

    #[test]
    fn statuses() {
        assert_eq!(Status::parse(b"0"), Status::OK);
        assert_eq!(Status::parse(b"16"), Status::UNAUTHENTICATED);
        for unknown in ["", "17", "01", "-1", "200", "x"] {
            assert_eq!(Status::parse(unknown.as_bytes()), Status::UNKNOWN, "{unknown:?}");
        }
        assert_eq!(Status::of_failure(Failure::Malformed("x")), Status::INTERNAL);
        assert_eq!(Status::of_failure(Failure::Unauthenticated(None)), Status::UNAUTHENTICATED);
        assert_eq!(Status::of_failure(Failure::Forbidden("x")), Status::PERMISSION_DENIED);
        assert_eq!(Status::of_failure(Failure::NoRoute), Status::UNIMPLEMENTED);
        assert_eq!(Status::of_failure(Failure::RateLimited), Status::RESOURCE_EXHAUSTED);
        assert_eq!(Status::of_failure(Failure::ConnectFailed), Status::UNAVAILABLE);
        assert_eq!(Status::of_failure(Failure::Overloaded), Status::UNAVAILABLE);
        assert_eq!(Status::of_failure(Failure::ConnectTimeout), Status::UNAVAILABLE);
        assert_eq!(Status::of_failure(Failure::RequestTimeout), Status::DEADLINE_EXCEEDED);
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_again_and_never_longer(us in any::<u64>()) {
            let read = parse_timeout(written(us).as_bytes()).unwrap();
            prop_assert!(read <= us);
            prop_assert!(us < 100_000_000 || read > us - us / 1000 || us > 99_999_999 * 3_600_000_000);
        }

        #[test]
        fn any_bytes_are_read_without_a_panic(bytes: Vec<u8>) {
            parse_timeout(&bytes);
            is_grpc(&bytes);
            prop_assert!(usize::from(Status::parse(&bytes).code()) < Status::COUNT);
        }

        #[test]
        fn messages_are_printable_ascii(text: String) {
            let mut out = Vec::new();
            write_message(&text, &mut out);
            prop_assert!(out.iter().all(|byte| (b' '..=b'~').contains(byte)));
        }
    }
}
