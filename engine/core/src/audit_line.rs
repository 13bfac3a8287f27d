//! The audit log: one JSON object a line, one line for each request that is refused for who sent it or how often.

use crate::json;
use crate::log_line::{Formatter, LONG_BYTES_MAX, SHORT_BYTES_MAX, write_integer, write_string_or_null};

/// No record is longer, whatever a client sends.
pub const RECORD_BYTES_MAX: usize = FIXED_BYTES_MAX + LONG_BYTES_MAX + 7 * SHORT_BYTES_MAX;

/// Names, punctuation, the timestamp and the status.
const FIXED_BYTES_MAX: usize = 256;

// What a buffer of the log queue has room for beyond its batch.
const _: () = assert!(RECORD_BYTES_MAX < 16 * 1024);

/// What refused a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Nobody knows who it comes from: 401, or an auth service's own answer, or 503 where that is down.
    Authentication,
    /// Who it comes from may not: 403.
    Authorization,
    /// It is one too many: 429.
    RateLimit,
    /// Too many like it are under way: 429.
    ConcurrencyLimit,
    /// Its address is not let in: 403.
    Ip,
}

impl Kind {
    pub const fn label(self) -> &'static str {
        match self {
            Self::Authentication => "authentication",
            Self::Authorization => "authorization",
            Self::RateLimit => "rate_limit",
            Self::ConcurrencyLimit => "concurrency_limit",
            Self::Ip => "ip",
        }
    }
}

/// A refusal. It never holds what the client presented: no token, no key, no query.
#[derive(Debug, Clone, Copy)]
pub struct Record<'a> {
    /// When the request came.
    pub unix_ms: u64,
    pub request_id: &'a [u8],
    pub client_ip: &'a [u8],
    pub method: &'a [u8],
    /// Without the query, which may hold secrets.
    pub path: &'a [u8],
    pub route: &'a str,
    /// The user, or the client of an API key, where known.
    pub user: Option<&'a str>,
    pub kind: Kind,
    /// The authenticator or policy by name, where it has one.
    pub policy: Option<&'a str>,
    /// A word or a few: `expired`, `missing role`.
    pub reason: &'a str,
    /// What the client was told.
    pub status: u16,
}

impl Record<'_> {
    /// Appends the record and a newline, [`RECORD_BYTES_MAX`] at most. `formatter`: one a core.
    pub fn write(&self, formatter: &mut Formatter, out: &mut Vec<u8>) {
        formatter.write_start(self.unix_ms, out);
        json::escape(self.request_id, SHORT_BYTES_MAX, out);
        out.extend_from_slice(b"\",\"clientIp\":\"");
        json::escape(self.client_ip, SHORT_BYTES_MAX, out);
        out.extend_from_slice(b"\",\"method\":\"");
        json::escape(self.method, SHORT_BYTES_MAX, out);
        out.extend_from_slice(b"\",\"path\":\"");
        json::escape(self.path, LONG_BYTES_MAX, out);
        out.extend_from_slice(b"\",\"route\":\"");
        json::escape(self.route.as_bytes(), SHORT_BYTES_MAX, out);
        out.extend_from_slice(b"\",\"user\":");
        write_string_or_null(self.user.map(str::as_bytes), SHORT_BYTES_MAX, out);
        out.extend_from_slice(b",\"kind\":\"");
        out.extend_from_slice(self.kind.label().as_bytes());
        out.extend_from_slice(b"\",\"policy\":");
        write_string_or_null(self.policy.map(str::as_bytes), SHORT_BYTES_MAX, out);
        out.extend_from_slice(b",\"reason\":\"");
        json::escape(self.reason.as_bytes(), SHORT_BYTES_MAX, out);
        out.extend_from_slice(b"\",\"status\":");
        write_integer(self.status.into(), out);
        out.extend_from_slice(b"}\n");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::Value;

    const EXAMPLE: Record<'static> = Record {
        unix_ms: 1_774_260_930_123,
        request_id: b"550e8400-e29b-41d4-a716-446655440000",
        client_ip: b"203.0.113.42",
        method: b"POST",
        path: b"/api/orders",
        route: "orders",
        user: Some("usr_abc123"),
        kind: Kind::Authorization,
        policy: None,
        reason: "missing role",
        status: 403,
    };

    fn written(record: &Record<'_>) -> String {
        let mut out = Vec::new();
        record.write(&mut Formatter::new(), &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_record() {
        let expected = concat!(
            r#"{"timestamp":"2026-03-23T10:15:30.123Z","requestId":"550e8400-e29b-41d4-a716-446655440000","#,
            r#""clientIp":"203.0.113.42","method":"POST","path":"/api/orders","route":"orders","user":"usr_abc123","#,
            r#""kind":"authorization","policy":null,"reason":"missing role","status":403}"#,
            "\n"
        );
        assert_eq!(written(&EXAMPLE), expected);
    }

    #[test]
    fn the_longest_record_stays_within_the_bound() {
        for byte in [b'x', b'"', 1, 0xff] {
            let long = vec![byte; 70_000];
            let text = "\u{1}".repeat(10_000);
            let record = Record {
                unix_ms: u64::MAX,
                request_id: &long,
                client_ip: &long,
                method: &long,
                path: &long,
                route: &text,
                user: Some(&text),
                kind: Kind::Authentication,
                policy: Some(&text),
                reason: &text,
                status: u16::MAX,
            };
            let written = written(&record);
            assert!(written.len() <= RECORD_BYTES_MAX && written.len() > RECORD_BYTES_MAX - 150, "{}", written.len());
            assert!(serde_json::from_str::<Value>(&written).is_ok());
        }
    }

    proptest! {
        #[test]
        fn any_bytes_make_one_line_that_parses(
            request_id: Vec<u8>, client_ip: Vec<u8>, method: Vec<u8>, path in prop::collection::vec(any::<u8>(), 0..3000),
            route: String, user: Option<String>, policy: Option<String>, reason: String, status: u16, unix_ms: u64,
        ) {
            let text = written(&Record {
                unix_ms, request_id: &request_id, client_ip: &client_ip, method: &method, path: &path, route: &route,
                user: user.as_deref(), kind: Kind::RateLimit, policy: policy.as_deref(), reason: &reason, status,
            });
            prop_assert!(text.len() <= RECORD_BYTES_MAX);
            prop_assert_eq!(text.find('\n'), Some(text.len() - 1));
            let parsed: Value = serde_json::from_str(&text).unwrap();
            prop_assert_eq!(parsed.as_object().unwrap().len(), 11);
            prop_assert_eq!(&parsed["status"], &Value::from(status));
            prop_assert_eq!(&parsed["kind"], &Value::from("rate_limit"));
        }
    }
}
