//! The access log: one JSON object a line, one line a request.

use crate::auth::TlsFacts;
use crate::{json, timestamp};

/// No line is longer, whatever a client sends.
pub const LINE_BYTES_MAX: usize = FIXED_BYTES_MAX + 2 * LONG_BYTES_MAX + 8 * SHORT_BYTES_MAX;

/// `path` and `userAgent` are cut to this length, as written, escapes included.
pub const LONG_BYTES_MAX: usize = 2048;

/// The other strings are cut to this length, as written.
pub const SHORT_BYTES_MAX: usize = 256;

/// Names, punctuation, the timestamp, the numbers, and what TLS has fixed lengths for.
const FIXED_BYTES_MAX: usize = 768;

// What a buffer of the log queue has room for beyond its batch.
const _: () = assert!(LINE_BYTES_MAX < 16 * 1024);

/// What is known of a request when it is over. Missing values are written as `null`.
#[derive(Debug, Clone, Copy)]
pub struct Line<'a> {
    /// When the request came.
    pub unix_ms: u64,
    pub request_id: &'a [u8],
    pub method: &'a [u8],
    /// Without the query, which may hold secrets.
    pub path: &'a [u8],
    pub status: u16,
    pub latency_us: u64,
    pub client_ip: &'a [u8],
    pub user_agent: Option<&'a [u8]>,
    pub user_id: Option<&'a [u8]>,
    pub rate_limit_remaining: Option<u64>,
    pub backend_service: Option<&'a str>,
    pub backend_latency_us: Option<u64>,
    /// What the client spoke, where it was not HTTP/1.1: `1.0`, `2.0`; not written else.
    pub http_version: Option<&'static str>,
    /// The concurrency limit that refused; not written where there is none.
    pub concurrency_limit: Option<&'a str>,
    /// Not written of a connection in the clear.
    pub tls: TlsFacts<'a>,
    /// How a gRPC call ended; not written for other requests.
    pub grpc_status: Option<u8>,
    /// Tries at the service; not written where there was one at most.
    pub attempts: u8,
    /// What became of the last of the tries that were sent while another one was awaited: `won`, `lost` or `failed`; not written
    /// where there was none.
    pub hedge: Option<&'static str>,
    /// What was answered while a circuit breaker was open: `open` (a refusal) or `fallback`; not written else.
    pub circuit_breaker: Option<&'static str>,
    /// Why the request was refused for want of room: by a bulkhead or an overloaded worker; not written else.
    pub shed: Option<&'static str>,
    /// What became of the client's session with an endpoint: `new`, `kept`, `moved` or `unknown`; not written where services
    /// have none.
    pub session: Option<&'static str>,
    /// What became of the connection after an upgrade; not written where there was none.
    pub tunnel: Option<Tunnel<'a>>,
}

/// A tunnel that is over.
#[derive(Debug, Clone, Copy)]
pub struct Tunnel<'a> {
    /// What was spoken in it.
    pub protocol: &'a [u8],
    /// From the answer that opened it to its end.
    pub open_us: u64,
    /// From and to the client.
    pub bytes_in: u64,
    pub bytes_out: u64,
}

/// Writes lines; one a core, since it keeps the second that it formatted last.
#[derive(Debug)]
pub struct Formatter {
    second: u64,
    /// `{"timestamp":"2026-03-23T10:15:30.`
    start: [u8; START.len()],
}

const START: &[u8; 34] = b"{\"timestamp\":\"1970-01-01T00:00:00.";

impl Default for Formatter {
    fn default() -> Self {
        Self { second: 0, start: *START }
    }
}

impl Formatter {
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends `line` and a newline, [`LINE_BYTES_MAX`] at most.
    ///
    /// Hot; watched by the benchmark `log_line`.
    pub fn write(&mut self, line: &Line<'_>, out: &mut Vec<u8>) {
        self.write_start(line.unix_ms, out);
        json::escape(line.request_id, SHORT_BYTES_MAX, out);
        out.extend_from_slice(b"\",\"method\":\"");
        json::escape(line.method, SHORT_BYTES_MAX, out);
        out.extend_from_slice(b"\",\"path\":\"");
        json::escape(line.path, LONG_BYTES_MAX, out);
        out.extend_from_slice(b"\",\"statusCode\":");
        write_integer(line.status.into(), out);
        out.extend_from_slice(b",\"latencyMs\":");
        write_millis(line.latency_us, out);
        out.extend_from_slice(b",\"clientIp\":\"");
        json::escape(line.client_ip, SHORT_BYTES_MAX, out);
        out.extend_from_slice(b"\",\"userAgent\":");
        write_string_or_null(line.user_agent, LONG_BYTES_MAX, out);
        out.extend_from_slice(b",\"userId\":");
        write_string_or_null(line.user_id, SHORT_BYTES_MAX, out);
        out.extend_from_slice(b",\"rateLimitRemaining\":");
        write_or_null(line.rate_limit_remaining, write_integer, out);
        out.extend_from_slice(b",\"backendService\":");
        write_string_or_null(line.backend_service.map(str::as_bytes), SHORT_BYTES_MAX, out);
        out.extend_from_slice(b",\"backendLatencyMs\":");
        write_or_null(line.backend_latency_us, write_millis, out);
        if let Some(version) = line.http_version {
            out.extend_from_slice(b",\"httpVersion\":\"");
            out.extend_from_slice(version.as_bytes());
            out.push(b'"');
        }
        if let Some(limit) = line.concurrency_limit {
            out.extend_from_slice(b",\"concurrencyLimit\":\"");
            json::escape(limit.as_bytes(), SHORT_BYTES_MAX, out);
            out.push(b'"');
        }
        if !line.tls.version.is_empty() {
            write_tls(&line.tls, out);
        }
        if let Some(status) = line.grpc_status {
            out.extend_from_slice(b",\"grpcStatus\":");
            write_integer(status.into(), out);
        }
        if line.attempts > 1 {
            out.extend_from_slice(b",\"attempts\":");
            write_integer(line.attempts.into(), out);
        }
        if let Some(hedge) = line.hedge {
            out.extend_from_slice(b",\"hedge\":\"");
            out.extend_from_slice(hedge.as_bytes());
            out.push(b'"');
        }
        if let Some(breaker) = line.circuit_breaker {
            out.extend_from_slice(b",\"circuitBreaker\":\"");
            out.extend_from_slice(breaker.as_bytes());
            out.push(b'"');
        }
        if let Some(reason) = line.shed {
            out.extend_from_slice(b",\"shed\":\"");
            out.extend_from_slice(reason.as_bytes());
            out.push(b'"');
        }
        if let Some(session) = line.session {
            out.extend_from_slice(b",\"session\":\"");
            out.extend_from_slice(session.as_bytes());
            out.push(b'"');
        }
        if let Some(tunnel) = &line.tunnel {
            out.extend_from_slice(b",\"upgrade\":\"");
            json::escape(tunnel.protocol, SHORT_BYTES_MAX, out);
            out.extend_from_slice(b"\",\"tunnelMs\":");
            write_millis(tunnel.open_us, out);
            out.extend_from_slice(b",\"tunnelBytesIn\":");
            write_integer(tunnel.bytes_in, out);
            out.extend_from_slice(b",\"tunnelBytesOut\":");
            write_integer(tunnel.bytes_out, out);
        }
        out.extend_from_slice(b"}\n");
    }

    /// Up to the opening quote of the request's ID.
    #[inline]
    pub(crate) fn write_start(&mut self, unix_ms: u64, out: &mut Vec<u8>) {
        let (second, ms) = (unix_ms / 1000, (unix_ms % 1000) as u16);
        if second != self.second {
            self.second = second;
            self.start[14..33].copy_from_slice(&timestamp::rfc3339_second(second));
        }
        let mut text = *b"{\"timestamp\":\"YYYY-MM-DDThh:mm:ss.mmmZ\",\"requestId\":\"";
        text[0..34].copy_from_slice(&self.start);
        text[34..37].copy_from_slice(&three(ms));
        out.extend_from_slice(&text);
    }
}

/// Version, suite, serial and fingerprint are the gateway's own words and need no escapes.
fn write_tls(tls: &TlsFacts<'_>, out: &mut Vec<u8>) {
    out.extend_from_slice(b",\"tlsVersion\":\"");
    out.extend_from_slice(tls.version.as_bytes());
    out.extend_from_slice(b"\",\"tlsCipher\":\"");
    out.extend_from_slice(tls.cipher.as_bytes());
    if let Some(certificate) = tls.certificate {
        out.extend_from_slice(b"\",\"clientCertificate\":\"");
        json::escape(certificate.subject.as_bytes(), SHORT_BYTES_MAX, out);
        out.extend_from_slice(b"\",\"clientCertificateSha256\":\"");
        out.extend_from_slice(certificate.fingerprint.as_bytes());
    }
    out.push(b'"');
}

#[inline]
pub(crate) fn write_string_or_null(value: Option<&[u8]>, bytes_max: usize, out: &mut Vec<u8>) {
    match value {
        None => out.extend_from_slice(b"null"),
        Some(value) => {
            out.push(b'"');
            json::escape(value, bytes_max, out);
            out.push(b'"');
        }
    }
}

#[inline]
fn write_or_null(value: Option<u64>, write: impl Fn(u64, &mut Vec<u8>), out: &mut Vec<u8>) {
    match value {
        None => out.extend_from_slice(b"null"),
        Some(value) => write(value, out),
    }
}

#[inline]
pub(crate) fn write_integer(value: u64, out: &mut Vec<u8>) {
    out.extend_from_slice(itoa::Buffer::new().format(value).as_bytes());
}

/// Microseconds as milliseconds, without trailing zeros: `12`, `0.25`, `8.417`.
#[inline]
fn write_millis(us: u64, out: &mut Vec<u8>) {
    write_integer(us / 1000, out);
    let [a, b, c] = three((us % 1000) as u16);
    match (a, b, c) {
        (b'0', b'0', b'0') => {}
        (_, b'0', b'0') => out.extend_from_slice(&[b'.', a]),
        (_, _, b'0') => out.extend_from_slice(&[b'.', a, b]),
        _ => out.extend_from_slice(&[b'.', a, b, c]),
    }
}

#[inline]
fn three(n: u16) -> [u8; 3] {
    [b'0' + (n / 100 % 10) as u8, b'0' + (n / 10 % 10) as u8, b'0' + (n % 10) as u8]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::ClientCertificate;
    use proptest::prelude::*;
    use serde_json::Value;

    const ARTICLE: Line<'static> = Line {
        unix_ms: 1_774_260_930_123,
        request_id: b"550e8400-e29b-41d4-a716-446655440000",
        method: b"GET",
        path: b"/api/products/123",
        status: 200,
        latency_us: 12_000,
        client_ip: b"203.0.113.42",
        user_agent: Some(b"MobileApp/2.1"),
        user_id: Some(b"usr_abc123"),
        rate_limit_remaining: Some(87),
        backend_service: Some("product-service"),
        backend_latency_us: Some(8_000),
        http_version: None,
        concurrency_limit: None,
        tls: TlsFacts::NONE,
        grpc_status: None,
        attempts: 1,
        hedge: None,
        circuit_breaker: None,
        shed: None,
        session: None,
        tunnel: None,
    };

    fn written(line: &Line<'_>) -> String {
        let mut out = Vec::new();
        Formatter::new().write(line, &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn the_line_of_the_article() {
        let expected = concat!(
            r#"{"timestamp":"2026-03-23T10:15:30.123Z","requestId":"550e8400-e29b-41d4-a716-446655440000","#,
            r#""method":"GET","path":"/api/products/123","statusCode":200,"latencyMs":12,"clientIp":"203.0.113.42","#,
            r#""userAgent":"MobileApp/2.1","userId":"usr_abc123","rateLimitRemaining":87,"#,
            r#""backendService":"product-service","backendLatencyMs":8}"#,
            "\n"
        );
        assert_eq!(written(&ARTICLE), expected);
    }

    #[test]
    fn what_is_missing_is_null() {
        let line = Line {
            user_agent: None,
            user_id: None,
            rate_limit_remaining: None,
            backend_service: None,
            backend_latency_us: None,
            ..ARTICLE
        };
        let end = r#""userAgent":null,"userId":null,"rateLimitRemaining":null,"backendService":null,"backendLatencyMs":null}"#;
        assert!(written(&line).ends_with(&format!("{end}\n")));
        let refused = Line { concurrency_limit: Some("per-\"user"), http_version: Some("2.0"), ..line };
        let end = r#""backendLatencyMs":null,"httpVersion":"2.0","concurrencyLimit":"per-\"user"}"#;
        assert!(written(&refused).ends_with(&format!("{end}\n")));
        let call = Line { grpc_status: Some(14), ..line };
        assert!(written(&call).ends_with("\"backendLatencyMs\":null,\"grpcStatus\":14}\n"));
        let tried = Line { attempts: 3, circuit_breaker: Some("fallback"), ..line };
        assert!(written(&tried).ends_with("null,\"attempts\":3,\"circuitBreaker\":\"fallback\"}\n"));
        let hedged = Line { attempts: 2, hedge: Some("won"), ..line };
        assert!(written(&hedged).ends_with("null,\"attempts\":2,\"hedge\":\"won\"}\n"));
        let shed = Line { shed: Some("adaptive"), ..line };
        assert!(written(&shed).ends_with("null,\"shed\":\"adaptive\"}\n"));
        let tunnel = Tunnel { protocol: b"websocket", open_us: 60_000_500, bytes_in: 7, bytes_out: 9 };
        let end = r#""upgrade":"websocket","tunnelMs":60000.5,"tunnelBytesIn":7,"tunnelBytesOut":9}"#;
        assert!(written(&Line { tunnel: Some(tunnel), ..line }).ends_with(&format!(",{end}\n")));
    }

    #[test]
    fn what_tls_knows_stands_at_the_end() {
        let certificate =
            ClientCertificate { subject: "CN=a\\,b".into(), fingerprint: "ab".into(), ..ClientCertificate::default() };
        let tls = TlsFacts { version: "TLSv1.2", cipher: "SUITE", certificate: None };
        let end = r#""tlsVersion":"TLSv1.2","tlsCipher":"SUITE"}"#;
        assert!(written(&Line { tls, ..ARTICLE }).ends_with(&format!("8,{end}\n")));
        let tls = TlsFacts { certificate: Some(&certificate), ..tls };
        let text = written(&Line { tls, ..ARTICLE });
        assert!(text.ends_with("\"clientCertificate\":\"CN=a\\\\,b\",\"clientCertificateSha256\":\"ab\"}\n"), "{text}");
        serde_json::from_str::<Value>(&text).unwrap();
    }

    #[test]
    fn the_cached_second_follows_the_clock() {
        let mut formatter = Formatter::new();
        for (unix_ms, expected) in [
            (7, "1970-01-01T00:00:00.007Z"),
            (1_774_260_930_999, "2026-03-23T10:15:30.999Z"),
            (1_774_260_931_000, "2026-03-23T10:15:31.000Z"),
            (1_774_260_930_010, "2026-03-23T10:15:30.010Z"),
        ] {
            let mut out = Vec::new();
            formatter.write(&Line { unix_ms, ..ARTICLE }, &mut out);
            assert!(out.starts_with(format!("{{\"timestamp\":\"{expected}\",").as_bytes()));
        }
    }

    #[test]
    fn milliseconds_have_no_trailing_zeros() {
        for (us, expected) in [
            (0, "0"),
            (1, "0.001"),
            (10, "0.01"),
            (250, "0.25"),
            (500, "0.5"),
            (8_417, "8.417"),
            (12_000, "12"),
            (60_000_100, "60000.1"),
        ] {
            let mut out = Vec::new();
            write_millis(us, &mut out);
            assert_eq!(String::from_utf8(out).unwrap(), expected);
        }
    }

    #[test]
    fn the_longest_line_stays_within_the_bound() {
        for byte in [b'x', b'"', 1, 0xff] {
            let long = vec![byte; 70_000];
            let service = "\u{1}".repeat(10_000);
            let (subject, fingerprint) = (service.as_str().into(), "f".repeat(64).into());
            let certificate = ClientCertificate { subject, fingerprint, ..ClientCertificate::default() };
            let line = Line {
                unix_ms: u64::MAX,
                request_id: &long,
                method: &long,
                path: &long,
                status: u16::MAX,
                latency_us: u64::MAX,
                client_ip: &long,
                user_agent: Some(&long),
                user_id: Some(&long),
                rate_limit_remaining: Some(u64::MAX),
                backend_service: Some(&service),
                backend_latency_us: Some(u64::MAX),
                http_version: Some("2.0"),
                concurrency_limit: Some(&service),
                tls: TlsFacts {
                    version: "TLSv1.3",
                    cipher: "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256",
                    certificate: Some(&certificate),
                },
                grpc_status: Some(u8::MAX),
                attempts: u8::MAX,
                hedge: Some("failed"),
                circuit_breaker: Some("fallback"),
                shed: Some("requests"),
                session: Some("unknown"),
                tunnel: Some(Tunnel { protocol: &long, open_us: u64::MAX, bytes_in: u64::MAX, bytes_out: u64::MAX }),
            };
            let text = written(&line);
            assert!(text.len() <= LINE_BYTES_MAX && text.len() > LINE_BYTES_MAX - 200, "{}", text.len());
            let parsed: Value = serde_json::from_str(&text).unwrap();
            let read = parsed["path"].as_str().unwrap();
            assert!(byte != b'x' || read.len() == LONG_BYTES_MAX);
        }
    }

    proptest! {
        #[test]
        fn any_bytes_make_one_line_that_parses(
            request_id: Vec<u8>, method: Vec<u8>, path in prop::collection::vec(any::<u8>(), 0..3000), status: u16,
            latency_us: u64, client_ip: Vec<u8>, user_agent: Option<Vec<u8>>, user_id: Option<Vec<u8>>,
            rate_limit_remaining: Option<u64>, backend_service: Option<String>, backend_latency_us in 0..1u64 << 40,
            unix_ms: u64,
        ) {
            let text = written(&Line {
                unix_ms, request_id: &request_id, method: &method, path: &path, status, latency_us,
                client_ip: &client_ip, user_agent: user_agent.as_deref(), user_id: user_id.as_deref(),
                rate_limit_remaining, backend_service: backend_service.as_deref(),
                backend_latency_us: Some(backend_latency_us), http_version: None, concurrency_limit: None,
                tls: TlsFacts::NONE, grpc_status: None, attempts: 1, hedge: None, circuit_breaker: None, shed: None,
                session: None, tunnel: None,
            });
            prop_assert!(text.len() <= LINE_BYTES_MAX);
            prop_assert_eq!(text.find('\n'), Some(text.len() - 1));
            let parsed: Value = serde_json::from_str(&text).unwrap();
            prop_assert_eq!(parsed.as_object().unwrap().len(), 12);
            prop_assert_eq!(&parsed["statusCode"], &Value::from(status));
            prop_assert_eq!(&parsed["rateLimitRemaining"], &Value::from(rate_limit_remaining));
            let ms = parsed["backendLatencyMs"].as_f64().unwrap();
            prop_assert_eq!((ms * 1000.0).round() as u64, backend_latency_us);
            let agent = user_agent.as_deref().map(String::from_utf8_lossy);
            prop_assert_eq!(parsed["userAgent"].as_str(), agent.as_deref());
        }
    }
}
