//! Answers that the gateway makes itself.

use crate::json;

/// How an error's body is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// `{"error":"...","requestId":"..."}`
    Json,
    /// RFC 9457.
    Problem,
}

impl Format {
    pub const fn content_type(self) -> &'static str {
        match self {
            Self::Json => "application/json",
            Self::Problem => "application/problem+json",
        }
    }
}

/// The format that the values of a request's `Accept` headers ask for (RFC 9110 section 12.5.1).
///
/// [`Format::Problem`] only where `application/problem+json` itself is named, with a weight above 0 and not below that of
/// `application/json`, which may get its weight from a wildcard. Elements that are malformed count for nothing.
pub fn negotiate<'a>(accept: impl Iterator<Item = &'a [u8]>) -> Format {
    // The weights of what names `application/json`, in rising precision: `*/*`, `application/*`, itself.
    let (mut json, mut problem) = ([None; 3], None);
    for element in accept.flat_map(|value| split_outside_quotes(value, b',')) {
        let mut parts = split_outside_quotes(element, b';');
        let range = parts.next().unwrap_or_default().trim_ascii();
        let is = |name: &[u8]| range.eq_ignore_ascii_case(name);
        let weight = if is(Format::Problem.content_type().as_bytes()) {
            &mut problem
        } else {
            let [any, any_application, exact] = &mut json;
            if is(b"*/*") {
                any
            } else if is(b"application/*") {
                any_application
            } else if is(Format::Json.content_type().as_bytes()) {
                exact
            } else {
                continue;
            }
        };
        *weight = (*weight).max(quality(parts));
    }
    let [any, any_application, exact] = json;
    let json = exact.or(any_application).or(any).unwrap_or(0);
    match problem {
        Some(problem) if problem > 0 && problem >= json => Format::Problem,
        _ => Format::Json,
    }
}

/// Appends the body of an error: `message` is what is told of it, `status` the status that it goes with.
pub fn write_error_body(format: Format, status: u16, message: &str, request_id: &[u8], out: &mut Vec<u8>) {
    match format {
        Format::Json => out.extend_from_slice(b"{\"error\":\""),
        Format::Problem => {
            out.extend_from_slice(b"{\"type\":\"about:blank\",\"title\":\"");
            out.extend_from_slice(reason(status).as_bytes());
            out.extend_from_slice(b"\",\"status\":");
            out.extend_from_slice(itoa::Buffer::new().format(status).as_bytes());
            out.extend_from_slice(b",\"detail\":\"");
        }
    }
    json::escape(message.as_bytes(), usize::MAX, out);
    out.extend_from_slice(b"\",\"requestId\":\"");
    json::escape(request_id, usize::MAX, out);
    out.extend_from_slice(b"\"}");
}

/// Appends `HTTP/1.1 200 OK\r\n`. `status` has three digits; the reason of an unknown one is empty.
pub fn status_line(status: u16, out: &mut Vec<u8>) {
    out.extend_from_slice(b"HTTP/1.1 ");
    out.extend_from_slice(itoa::Buffer::new().format(status).as_bytes());
    out.push(b' ');
    out.extend_from_slice(reason(status).as_bytes());
    out.extend_from_slice(b"\r\n");
}

/// The reason phrase of a status in IANA's HTTP Status Code Registry; empty where it has none.
pub const fn reason(status: u16) -> &'static str {
    match status {
        100 => "Continue",
        101 => "Switching Protocols",
        102 => "Processing",
        103 => "Early Hints",
        200 => "OK",
        201 => "Created",
        202 => "Accepted",
        203 => "Non-Authoritative Information",
        204 => "No Content",
        205 => "Reset Content",
        206 => "Partial Content",
        207 => "Multi-Status",
        208 => "Already Reported",
        226 => "IM Used",
        300 => "Multiple Choices",
        301 => "Moved Permanently",
        302 => "Found",
        303 => "See Other",
        304 => "Not Modified",
        305 => "Use Proxy",
        307 => "Temporary Redirect",
        308 => "Permanent Redirect",
        400 => "Bad Request",
        401 => "Unauthorized",
        402 => "Payment Required",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        406 => "Not Acceptable",
        407 => "Proxy Authentication Required",
        408 => "Request Timeout",
        409 => "Conflict",
        410 => "Gone",
        411 => "Length Required",
        412 => "Precondition Failed",
        413 => "Content Too Large",
        414 => "URI Too Long",
        415 => "Unsupported Media Type",
        416 => "Range Not Satisfiable",
        417 => "Expectation Failed",
        421 => "Misdirected Request",
        422 => "Unprocessable Content",
        423 => "Locked",
        424 => "Failed Dependency",
        425 => "Too Early",
        426 => "Upgrade Required",
        428 => "Precondition Required",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        451 => "Unavailable For Legal Reasons",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        505 => "HTTP Version Not Supported",
        506 => "Variant Also Negotiates",
        507 => "Insufficient Storage",
        508 => "Loop Detected",
        510 => "Not Extended",
        511 => "Network Authentication Required",
        _ => "",
    }
}

/// The weight among the parameters of a media range, in thousandths: 1000 where there is none, `None` where it is
/// malformed (RFC 9110 section 12.4.2).
fn quality<'a>(mut parameters: impl Iterator<Item = &'a [u8]>) -> Option<u16> {
    let weight = parameters.find_map(|parameter| match parameter.trim_ascii() {
        [b'q' | b'Q', b'=', weight @ ..] => Some(weight),
        _ => None,
    });
    let (one, decimals) = match weight {
        None => return Some(1000),
        Some([digit @ (b'0' | b'1')]) => (*digit == b'1', &[][..]),
        Some([digit @ (b'0' | b'1'), b'.', decimals @ ..]) => (*digit == b'1', decimals),
        Some(_) => return None,
    };
    if decimals.len() > 3 || !decimals.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let thousandths = decimals.iter().zip([100, 10, 1]).map(|(digit, worth)| u16::from(digit - b'0') * worth).sum();
    match (one, thousandths) {
        (true, 0) => Some(1000),
        (true, _) => None,
        (false, thousandths) => Some(thousandths),
    }
}

/// The pieces of `text` between `separator`s that do not stand in a quoted string.
fn split_outside_quotes(text: &[u8], separator: u8) -> impl Iterator<Item = &[u8]> {
    let (mut quoted, mut escaped) = (false, false);
    text.split(move |byte| {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            _ => return *byte == separator && !quoted,
        }
        false
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    fn format_of(accept: &[&str]) -> Format {
        negotiate(accept.iter().map(|value| value.as_bytes()))
    }

    #[test]
    fn problem_where_it_is_named_and_not_second_to_json() {
        for accept in [
            &["application/problem+json"][..],
            &["Application/Problem+JSON"],
            &["application/json, application/problem+json"],
            &["application/json", "text/html, application/problem+json"],
            &["application/problem+json;q=0.5, application/json; q=0.5"],
            &["application/problem+json;q=0.5, application/json;q=0.4, */*"],
            &["application/problem+json;q=0.2, */*;q=0.1"],
            &["application/problem+json;q=0.001"],
            &["application/problem+json;charset=utf-8 ; Q=1.000"],
            &["text/plain;x=\"a,b;\\\",c\", application/problem+json"],
            &["application/json;q=2, application/problem+json;q=0.1"],
        ] {
            assert_eq!(format_of(accept), Format::Problem, "{accept:?}");
        }
    }

    #[test]
    fn json_in_all_other_cases() {
        for accept in [
            &[][..],
            &[""],
            &["*/*"],
            &["application/*"],
            &["text/html"],
            &["application/json"],
            &["application/problem+xml"],
            &["application/problem+json;q=0"],
            &["application/problem+json;q=0.000"],
            &["application/problem+json;q=0.4, application/json;q=0.5"],
            &["application/problem+json;q=0.5, */*"],
            &["application/problem+json;q=0.5, application/*;q=0.9, */*;q=0.1"],
            &["application/problem+json;q=1.5"],
            &["application/problem+json;q="],
            &["application/problem+json;q=0.1234"],
            &["application/problem+json;q=0.x"],
            &["text/plain;x=\"application/problem+json, application/problem+json"],
        ] {
            assert_eq!(format_of(accept), Format::Json, "{accept:?}");
        }
    }

    fn body(format: Format, status: u16, message: &str, request_id: &[u8]) -> String {
        let mut out = Vec::new();
        write_error_body(format, status, message, request_id, &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn bodies_have_their_documented_shape() {
        assert_eq!(
            body(Format::Json, 504, "Gateway timeout", b"a-1"),
            r#"{"error":"Gateway timeout","requestId":"a-1"}"#
        );
        assert_eq!(
            body(Format::Problem, 413, "Request body too large", b"a-1"),
            concat!(
                r#"{"type":"about:blank","title":"Content Too Large","status":413,"#,
                r#""detail":"Request body too large","requestId":"a-1"}"#
            )
        );
    }

    #[test]
    fn status_lines_have_a_space_even_without_a_reason() {
        for (status, line) in
            [(200, "HTTP/1.1 200 OK\r\n"), (502, "HTTP/1.1 502 Bad Gateway\r\n"), (299, "HTTP/1.1 299 \r\n")]
        {
            let mut out = Vec::new();
            status_line(status, &mut out);
            assert_eq!(String::from_utf8(out).unwrap(), line);
        }
    }

    proptest! {
        #[test]
        fn bodies_parse_whatever_they_say(status in 100..600u16, message: String, request_id: Vec<u8>) {
            let id = String::from_utf8_lossy(&request_id);
            let parsed: Value = serde_json::from_str(&body(Format::Json, status, &message, &request_id)).unwrap();
            prop_assert_eq!(parsed, json!({"error": message, "requestId": id}));
            let parsed: Value = serde_json::from_str(&body(Format::Problem, status, &message, &request_id)).unwrap();
            let title = reason(status);
            let expected = json!({
                "type": "about:blank", "title": title, "status": status, "detail": message, "requestId": id
            });
            prop_assert_eq!(parsed, expected);
        }

        #[test]
        fn any_accept_is_read_without_a_panic(values: Vec<Vec<u8>>) {
            negotiate(values.iter().map(Vec::as_slice));
        }

        #[test]
        fn weights_are_read_as_thousandths(weight in 0..=1000u16) {
            let text = format!("q={}.{:03}", weight / 1000, weight % 1000);
            prop_assert_eq!(quality([text.as_bytes()].into_iter()), Some(weight));
        }
    }
}
