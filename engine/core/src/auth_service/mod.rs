//! Authentication by a service of one's own: it is asked for each request, or a token is looked up there, and its answer
//! decides.
//!
//! [`AuthService::key`] and [`AuthService::request`] write the question, [`AuthService::judge`] reads the answer,
//! [`Answers`] remembers it for a short time, [`Breaker`] leaves a service alone that is down. A service that is down or
//! slow never lets a request pass: what it said lately may stand in for it, where the configuration says so, nothing else.

mod answers;
mod breaker;
mod check;
mod introspection;

use std::sync::Arc;
use std::time::Duration;

use httparse::Header;

pub use answers::{Answers, KEY_BYTES_MAX, Now};
pub use breaker::{Breaker, BreakerSettings};
pub use check::{AskMethod, AskPath, Check, Tells, may_be_asked_with, may_be_given, may_be_passed_on};
pub use introspection::{Introspection, basic_credentials};

use crate::auth::Identity;
use crate::auth::credentials::CredentialsError;
use crate::http::ResponseHead;

/// An auth service, how it is asked and how far it is believed.
#[derive(Debug, PartialEq)]
pub struct AuthService {
    /// Index of the service that is asked.
    pub service: usize,
    /// Its `Host`.
    pub host: Box<str>,
    pub mode: Mode,
    /// From the question to the whole answer, all tries together.
    pub timeout: Duration,
    /// Bytes of an answer's body; a longer one is no answer.
    pub body_bytes_max: usize,
    pub cache: CacheSettings,
    /// How old a positive answer may be that stands in for a service that is down; `None`: none does.
    pub stale: Option<Duration>,
    pub breaker: BreakerSettings,
}

#[derive(Debug, PartialEq)]
pub enum Mode {
    /// The service is told of the request and answers with a status.
    Check(Check),
    /// The service is told the token and answers what it stands for (RFC 7662).
    Introspection(Introspection),
}

/// How long a core remembers answers, and how many.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CacheSettings {
    /// Of positive answers. Zero: each request is asked for.
    pub ttl: Duration,
    /// Of refusals; a second at most, so that who logs in is let in.
    pub refusals: Duration,
    /// Positive answers are kept beyond their time, for when the service is down.
    pub keeps_stale: bool,
    pub entries_max: usize,
    pub bytes_max: usize,
}

/// What of a client's request an auth service may be told.
#[derive(Debug, Clone, Copy)]
pub struct Asking<'a> {
    pub method: &'a [u8],
    /// Normalized, as the route was matched with it.
    pub path: &'a [u8],
    pub query: Option<&'a [u8]>,
    pub host: &'a [u8],
    pub scheme: &'a [u8],
    pub client_ip: &'a [u8],
    pub request_id: &'a [u8],
    pub headers: &'a [Header<'a>],
}

/// What an auth service said.
#[derive(Debug, Clone)]
pub enum Verdict {
    Pass(Arc<Identity>),
    /// The client gets this answer.
    Refuse(Arc<Refusal>),
    /// The token counts for nothing: 401. The text is fit for `error_description`.
    Invalid(&'static str),
    /// It said nothing that can be used. A word for logs and metrics.
    Down(&'static str),
}

/// An answer of an auth service for the client.
#[derive(Debug, PartialEq, Eq)]
pub struct Refusal {
    /// 300 to 499.
    pub status: u16,
    /// Whole header lines, without those that frame the body.
    pub lines: Vec<u8>,
    pub body: Vec<u8>,
}

impl AuthService {
    /// Appends what the answer depends on: two requests with the same key get the same answer, so that one may be used
    /// for the other. False where the request has no credentials for this service to judge.
    pub fn key(&self, asking: &Asking<'_>, out: &mut Vec<u8>) -> Result<bool, CredentialsError> {
        match &self.mode {
            Mode::Check(check) => {
                check.write_key(&self.host, asking, out);
                Ok(check.has_credentials(asking))
            }
            Mode::Introspection(introspection) => introspection.write_key(asking, out),
        }
    }

    /// Appends the whole request that asks the service, to what [`AuthService::key`] has written.
    pub fn request(&self, asking: &Asking<'_>, key: &[u8], out: &mut Vec<u8>) {
        match &self.mode {
            Mode::Check(check) => check.write_request(asking, key, out),
            Mode::Introspection(introspection) => introspection.write_request(&self.host, asking, key, out),
        }
    }

    /// Whether the service has something to say of a request without credentials, such as where to log in.
    pub fn answers_without_credentials(&self) -> bool {
        matches!(self.mode, Mode::Check(_))
    }

    /// Whether the service may get this request twice, when the connection broke before an answer came.
    pub fn may_repeat(request: &[u8], mode: &Mode) -> bool {
        // To look a token up changes nothing, whatever the method.
        matches!(mode, Mode::Introspection(_)) || check::is_idempotent(request)
    }

    pub fn judge(&self, answer: &ResponseHead<'_, '_>, body: &[u8], unix_s: u64) -> Verdict {
        match (&self.mode, answer.status) {
            (_, 500..) => Verdict::Down("error_status"),
            (Mode::Check(check), _) => check.judge(answer, body),
            (Mode::Introspection(introspection), 200) => introspection.judge(body, unix_s),
            // Of the gateway's own credentials, or of the path: nothing about the token.
            (Mode::Introspection(_), _) => Verdict::Down("error_status"),
        }
    }

    /// Names of the fields that requests get from the service's answers. The client's own are to be removed.
    pub fn field_names(&self) -> impl Iterator<Item = &str> {
        let (check, introspection) = match &self.mode {
            Mode::Check(check) => (Some(check), None),
            Mode::Introspection(introspection) => (None, Some(introspection)),
        };
        let copied = check.into_iter().flat_map(|check| check.answer_headers.iter().map(|name| &**name));
        copied.chain(introspection.into_iter().flat_map(|it| it.headers.iter().map(|header| &*header.name)))
    }
}

impl Verdict {
    /// What it needs in memory, by estimate.
    fn bytes(&self) -> usize {
        match self {
            Self::Pass(identity) => {
                let words = identity.roles.iter().chain(&identity.scopes).map(|word| word.len() + 16);
                identity.header_lines.len() + words.sum::<usize>() + claims_bytes(&identity.claims)
            }
            Self::Refuse(refusal) => refusal.lines.len() + refusal.body.len(),
            Self::Invalid(_) | Self::Down(_) => 0,
        }
    }
}

fn claims_bytes(claims: &serde_json::Map<String, serde_json::Value>) -> usize {
    fn of(value: &serde_json::Value) -> usize {
        32 + match value {
            serde_json::Value::String(text) => text.len(),
            serde_json::Value::Array(items) => items.iter().map(of).sum(),
            serde_json::Value::Object(members) => claims_bytes(members),
            _ => 0,
        }
    }
    claims.iter().map(|(name, value)| 64 + name.len() + of(value)).sum()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::auth::Method;
    use crate::http::HeadStorage;

    pub(crate) fn identity(user: &str) -> Identity {
        Identity {
            method: Method::AuthService,
            user: Some(user.into()),
            roles: vec![],
            scopes: vec![],
            claims: Default::default(),
            header_lines: vec![],
            expires_at: None,
            token_id: None,
        }
    }

    /// One that is told nothing.
    pub(crate) fn example() -> AuthService {
        let tells = Tells { method: false, uri: false, host: false, client: false, scheme: false };
        service(Mode::Check(Check {
            method: AskMethod::Fixed("GET".into()),
            path: AskPath::Fixed("/".into()),
            request_headers: vec!["Authorization".into()],
            tells,
            answer_headers: vec![],
            refusal_headers: vec![],
            user: None,
            roles: None,
            scopes: None,
        }))
    }

    pub(super) fn service(mode: Mode) -> AuthService {
        AuthService {
            service: 0,
            host: "auth".into(),
            mode,
            timeout: Duration::from_secs(1),
            body_bytes_max: 1024,
            cache: CacheSettings {
                ttl: Duration::from_secs(5),
                refusals: Duration::ZERO,
                keeps_stale: false,
                entries_max: 10,
                bytes_max: 1 << 20,
            },
            stale: None,
            breaker: BreakerSettings { failures: 5, open: Duration::from_secs(5) },
        }
    }

    pub(super) fn asking<'a>(headers: &'a [Header<'a>]) -> Asking<'a> {
        Asking {
            method: b"POST",
            path: b"/api/orders",
            query: Some(b"a=1"),
            host: b"shop.example",
            scheme: b"http",
            client_ip: b"203.0.113.9",
            request_id: b"0190-id",
            headers,
        }
    }

    pub(super) fn header<'a>(name: &'a str, value: &'a str) -> Header<'a> {
        Header { name, value: value.as_bytes() }
    }

    /// The whole request, or `None` without credentials.
    pub(super) fn asked(service: &AuthService, headers: &[Header<'_>]) -> Option<String> {
        let (mut key, mut request) = (Vec::new(), Vec::new());
        let asking = asking(headers);
        let has_credentials = service.key(&asking, &mut key).unwrap();
        service.request(&asking, &key, &mut request);
        has_credentials.then(|| String::from_utf8(request).unwrap())
    }

    pub(super) fn judged(service: &AuthService, head: &str, body: &str) -> Verdict {
        let mut storage = HeadStorage::new();
        let answer = ResponseHead::parse(head.as_bytes(), false, &mut storage).unwrap();
        service.judge(&answer, body.as_bytes(), 1_000)
    }
}
