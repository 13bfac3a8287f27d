//! Why a request was not simply answered by its service: what happened, whose fault it was, whether it may be tried
//! again, and what the client is told. Each question has one exhaustive match.

use crate::auth::Flaw;
use crate::path::PathError;
use crate::stats::BackendError;

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    // The client's.
    /// Head or body are not HTTP, or are framed in a way that is not safe. The text is what the client is told.
    #[error("malformed request: {0}")]
    Malformed(&'static str),
    /// The head is well framed, its path is refused.
    #[error("path refused: {0}")]
    BadPath(#[from] PathError),
    #[error("HTTP version not supported")]
    UnsupportedVersion,
    #[error("transfer coding of the request not supported")]
    UnsupportedTransferCoding,
    /// CONNECT, and TRACE that must not be forwarded.
    #[error("method not supported")]
    UnsupportedMethod,
    /// The service, of HTTP/2, takes no extended CONNECT.
    #[error("upgrade not supported by the service")]
    UnsupportedUpgrade,
    #[error("request target over its limit")]
    TargetTooLong,
    #[error("request head over its limit")]
    HeadTooLarge,
    #[error("request body over its limit")]
    BodyTooLarge,
    #[error("expectation other than 100-continue")]
    ExpectationFailed,
    #[error("request head not in time")]
    HeadTimeout,
    #[error("request body not in time, or below its rate")]
    BodyTimeout,
    #[error("no route matches")]
    NoRoute,
    /// The answer needs `Allow`.
    #[error("no route matches the method")]
    WrongMethod,
    /// No credentials, or none that hold; then it says what is wrong with them. The answer needs `WWW-Authenticate`.
    #[error("not authenticated")]
    Unauthenticated(Option<Flaw>),
    /// The credentials hold, and do not suffice. The word says why, for the audit log.
    #[error("not permitted: {0}")]
    Forbidden(&'static str),
    /// The answer needs `Retry-After`.
    #[error("rate limit reached")]
    RateLimited,
    /// Too many requests like it are under way. The answer needs `Retry-After`.
    #[error("concurrency limit reached")]
    ConcurrencyLimited,
    /// Something other than its framing is wrong with the request; the exchange knows what.
    #[error("request not valid")]
    Invalid,
    #[error("content type or coding not accepted")]
    UnsupportedContent,
    /// The client closed its connection before it had its answer.
    #[error("client gone")]
    ClientGone,

    // The gateway's.
    /// The gateway refuses work that it has no room for.
    #[error("gateway overloaded")]
    Overloaded,
    /// The keys that credentials are judged by cannot be had.
    #[error("authentication not available")]
    AuthenticationUnavailable,
    /// The rate limit cannot be judged, and its policy says that then nothing passes.
    #[error("rate limiter not available")]
    LimiterUnavailable,
    /// The service is left alone because it fails; with the seconds for `Retry-After`.
    #[error("circuit breaker open")]
    CircuitOpen(u32),
    /// The service has as many requests as it may; with the seconds for `Retry-After`.
    #[error("bulkhead full")]
    BulkheadFull(u32),
    /// The gateway has more work than it can do, and this was less important; with the seconds for `Retry-After`.
    #[error("request shed")]
    Shed(u32),
    /// A panic that was caught.
    #[error("internal error")]
    Internal,

    // The service's.
    #[error("service without endpoints")]
    NoEndpoint,
    #[error("connections to the service at their limit")]
    ConnectionCap,
    #[error("connection to the service refused or unreachable")]
    ConnectFailed,
    #[error("connection to the service not in time")]
    ConnectTimeout,
    #[error("certificate of the service not valid")]
    Untrusted,
    /// The connection stands, but not in TLS.
    #[error("TLS handshake with the service failed")]
    TlsFailed,
    /// The connection broke before the answer's head was whole.
    #[error("connection to the service broken")]
    ConnectionBroken,
    #[error("answer of the service not in time")]
    AnswerTimeout,
    /// The deadline of the whole request passed, all tries together.
    #[error("request not answered in time")]
    RequestTimeout,
    /// What the service sent is not HTTP, or is framed wrongly.
    #[error("answer of the service malformed")]
    BadAnswer,
    #[error("answer head of the service over its limit")]
    AnswerHeadTooLarge,
    /// The answer's body broke off or stalled. Once its head was passed on, the connection is closed instead of answered.
    #[error("answer body of the service incomplete")]
    AnswerIncomplete,
}

/// Whose fault a failure is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    Client,
    Gateway,
    Service,
}

/// Whether a request may be sent again after a failure, to another endpoint or on another connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retry {
    Never,
    /// The service may have acted on it: only where the method is idempotent (RFC 9110 section 9.2.2) and what was sent
    /// of the body is still there.
    IfIdempotent,
    /// Nothing of it has reached a service.
    Always,
}

impl Failure {
    pub const fn fault(self) -> Fault {
        match self {
            Self::Malformed(_)
            | Self::BadPath(_)
            | Self::UnsupportedVersion
            | Self::UnsupportedTransferCoding
            | Self::UnsupportedMethod
            | Self::UnsupportedUpgrade
            | Self::TargetTooLong
            | Self::HeadTooLarge
            | Self::BodyTooLarge
            | Self::ExpectationFailed
            | Self::HeadTimeout
            | Self::BodyTimeout
            | Self::NoRoute
            | Self::WrongMethod
            | Self::Unauthenticated(_)
            | Self::Forbidden(_)
            | Self::RateLimited
            | Self::ConcurrencyLimited
            | Self::Invalid
            | Self::UnsupportedContent
            | Self::ClientGone => Fault::Client,
            Self::Overloaded
            | Self::AuthenticationUnavailable
            | Self::LimiterUnavailable
            | Self::CircuitOpen(_)
            | Self::BulkheadFull(_)
            | Self::Shed(_)
            | Self::Internal => Fault::Gateway,
            Self::NoEndpoint
            | Self::ConnectionCap
            | Self::ConnectFailed
            | Self::ConnectTimeout
            | Self::Untrusted
            | Self::TlsFailed
            | Self::ConnectionBroken
            | Self::AnswerTimeout
            | Self::RequestTimeout
            | Self::BadAnswer
            | Self::AnswerHeadTooLarge
            | Self::AnswerIncomplete => Fault::Service,
        }
    }

    pub const fn retry(self) -> Retry {
        match self {
            Self::ConnectFailed | Self::ConnectTimeout | Self::Untrusted | Self::TlsFailed | Self::ConnectionCap => {
                Retry::Always
            }
            Self::ConnectionBroken | Self::AnswerTimeout | Self::BadAnswer => Retry::IfIdempotent,
            Self::Malformed(_)
            | Self::BadPath(_)
            | Self::UnsupportedVersion
            | Self::UnsupportedTransferCoding
            | Self::UnsupportedMethod
            | Self::UnsupportedUpgrade
            | Self::TargetTooLong
            | Self::HeadTooLarge
            | Self::BodyTooLarge
            | Self::ExpectationFailed
            | Self::HeadTimeout
            | Self::BodyTimeout
            | Self::NoRoute
            | Self::WrongMethod
            | Self::Unauthenticated(_)
            | Self::Forbidden(_)
            | Self::RateLimited
            | Self::ConcurrencyLimited
            | Self::Invalid
            | Self::UnsupportedContent
            | Self::AuthenticationUnavailable
            | Self::LimiterUnavailable
            | Self::ClientGone
            | Self::Overloaded
            | Self::Internal
            | Self::CircuitOpen(_)
            | Self::BulkheadFull(_)
            | Self::Shed(_)
            | Self::NoEndpoint
            | Self::RequestTimeout
            | Self::AnswerHeadTooLarge
            | Self::AnswerIncomplete => Retry::Never,
        }
    }

    /// The answer's status. 499 stands in the log and the metrics only: nobody is left to be answered.
    pub const fn status(self) -> u16 {
        match self {
            Self::Malformed(_) | Self::BadPath(_) => 400,
            Self::Invalid => 400,
            Self::Unauthenticated(_) => 401,
            Self::Forbidden(_) => 403,
            Self::NoRoute => 404,
            Self::WrongMethod => 405,
            Self::HeadTimeout | Self::BodyTimeout => 408,
            Self::BodyTooLarge => 413,
            Self::TargetTooLong => 414,
            Self::UnsupportedContent => 415,
            Self::ExpectationFailed => 417,
            Self::RateLimited | Self::ConcurrencyLimited => 429,
            Self::HeadTooLarge => 431,
            Self::ClientGone => 499,
            Self::Internal => 500,
            Self::UnsupportedTransferCoding | Self::UnsupportedMethod | Self::UnsupportedUpgrade => 501,
            Self::NoEndpoint
            | Self::ConnectFailed
            | Self::Untrusted
            | Self::TlsFailed
            | Self::ConnectionBroken
            | Self::BadAnswer
            | Self::AnswerHeadTooLarge
            | Self::AnswerIncomplete => 502,
            Self::Overloaded
            | Self::CircuitOpen(_)
            | Self::BulkheadFull(_)
            | Self::Shed(_)
            | Self::ConnectionCap
            | Self::AuthenticationUnavailable
            | Self::LimiterUnavailable => 503,
            Self::ConnectTimeout | Self::AnswerTimeout | Self::RequestTimeout => 504,
            Self::UnsupportedVersion => 505,
        }
    }

    /// The `error` that the client reads. It tells the client what it can do something about, and nothing of what
    /// stands behind the gateway.
    pub const fn message(self) -> &'static str {
        match self {
            Self::Malformed(reason) => reason,
            Self::BadPath(PathError::NotAbsolute) => "The path does not start with a slash",
            Self::BadPath(PathError::BadCharacter) => "The path has a character that must be percent-encoded",
            Self::BadPath(PathError::BadEscape) => "The path has an invalid percent-encoding",
            Self::BadPath(PathError::ControlCharacter) => "The path has an encoded control character",
            Self::BadPath(PathError::AboveRoot) => "The path leads above the root",
            Self::BadPath(PathError::DotSegment) => "The path has dot segments",
            Self::BadPath(PathError::EncodedSlash) => "The path has an encoded slash",
            Self::BadPath(PathError::EmptySegment) => "The path has an empty segment",
            Self::UnsupportedVersion => "HTTP version not supported",
            Self::UnsupportedTransferCoding => "Transfer coding not supported",
            Self::UnsupportedMethod => "Method not supported",
            Self::UnsupportedUpgrade => "Upgrade not supported",
            Self::TargetTooLong => "Request target too long",
            Self::HeadTooLarge => "Request header fields too large",
            Self::BodyTooLarge => "Request body too large",
            Self::ExpectationFailed => "Expectation failed",
            Self::HeadTimeout | Self::BodyTimeout => "Request timeout",
            Self::Unauthenticated(None) => "Missing authorization token",
            Self::Unauthenticated(Some(_)) => "Invalid token",
            Self::Forbidden(_) => "Insufficient permissions",
            Self::RateLimited => "Too many requests",
            Self::ConcurrencyLimited => "Too many requests at the same time",
            Self::Invalid => "Request not valid",
            Self::UnsupportedContent => "Unsupported media type",
            Self::NoRoute => "Not found",
            Self::WrongMethod => "Method not allowed",
            Self::ClientGone => "Client closed request",
            Self::Internal => "Internal server error",
            Self::Overloaded
            | Self::CircuitOpen(_)
            | Self::BulkheadFull(_)
            | Self::Shed(_)
            | Self::ConnectionCap
            | Self::AuthenticationUnavailable
            | Self::LimiterUnavailable => "Service temporarily unavailable",
            Self::NoEndpoint
            | Self::ConnectFailed
            | Self::Untrusted
            | Self::TlsFailed
            | Self::ConnectionBroken
            | Self::BadAnswer
            | Self::AnswerHeadTooLarge
            | Self::AnswerIncomplete => "Bad gateway",
            Self::ConnectTimeout | Self::AnswerTimeout | Self::RequestTimeout => "Gateway timeout",
        }
    }

    /// The value of `Retry-After`, which every 503 has, and a 429 where only the end of another request can tell.
    pub const fn retry_after_secs(self) -> Option<u32> {
        match (self, self.status()) {
            (Self::CircuitOpen(seconds) | Self::BulkheadFull(seconds) | Self::Shed(seconds), _) => Some(seconds),
            (Self::ConcurrencyLimited, _) | (_, 503) => Some(1),
            _ => None,
        }
    }

    /// Whether the client's connection must be closed after the answer, since it is not certain where the next request
    /// would begin, or since the connection is not worth keeping.
    pub const fn closes_connection(self) -> bool {
        match self {
            Self::Malformed(_)
            | Self::UnsupportedVersion
            | Self::UnsupportedTransferCoding
            | Self::UnsupportedMethod
            | Self::TargetTooLong
            | Self::HeadTooLarge
            | Self::BodyTooLarge
            // The client may send its body, or not (RFC 9110 section 10.1.1).
            | Self::ExpectationFailed
            | Self::HeadTimeout
            | Self::BodyTimeout
            | Self::ClientGone
            | Self::Overloaded
            | Self::Internal
            | Self::AnswerIncomplete => true,
            Self::BadPath(_)
            | Self::UnsupportedUpgrade
            | Self::Unauthenticated(_)
            | Self::Forbidden(_)
            | Self::RateLimited
            | Self::ConcurrencyLimited
            | Self::Invalid
            | Self::UnsupportedContent
            | Self::AuthenticationUnavailable
            | Self::LimiterUnavailable
            | Self::NoRoute
            | Self::WrongMethod
            | Self::CircuitOpen(_)
            | Self::BulkheadFull(_)
            | Self::Shed(_)
            | Self::NoEndpoint
            | Self::ConnectionCap
            | Self::ConnectFailed
            | Self::ConnectTimeout
            | Self::Untrusted
            | Self::TlsFailed
            | Self::ConnectionBroken
            | Self::AnswerTimeout
            | Self::RequestTimeout
            | Self::BadAnswer
            | Self::AnswerHeadTooLarge => false,
        }
    }

    /// The `error` parameter of `Proxy-Status` (RFC 9209 section 2.3).
    pub const fn proxy_status_error(self) -> Option<&'static str> {
        match self {
            Self::Malformed(_)
            | Self::BadPath(_)
            | Self::TargetTooLong
            | Self::HeadTooLarge
            | Self::BodyTooLarge
            | Self::ExpectationFailed
            | Self::HeadTimeout
            | Self::BodyTimeout
            | Self::NoRoute
            | Self::WrongMethod => Some("http_request_error"),
            Self::UnsupportedVersion
            | Self::UnsupportedTransferCoding
            | Self::UnsupportedMethod
            | Self::UnsupportedUpgrade
            | Self::Overloaded
            | Self::Shed(_)
            | Self::AuthenticationUnavailable
            | Self::LimiterUnavailable => Some("proxy_internal_response"),
            Self::Unauthenticated(_)
            | Self::Forbidden(_)
            | Self::RateLimited
            | Self::ConcurrencyLimited
            | Self::Invalid
            | Self::UnsupportedContent => Some("http_request_denied"),
            Self::Internal => Some("proxy_internal_error"),
            Self::CircuitOpen(_) | Self::BulkheadFull(_) | Self::NoEndpoint => Some("destination_unavailable"),
            Self::ConnectionCap => Some("connection_limit_reached"),
            Self::ConnectFailed => Some("connection_refused"),
            Self::ConnectTimeout => Some("connection_timeout"),
            Self::Untrusted => Some("tls_certificate_error"),
            Self::TlsFailed => Some("tls_protocol_error"),
            Self::ConnectionBroken => Some("connection_terminated"),
            Self::AnswerTimeout | Self::RequestTimeout => Some("http_response_timeout"),
            Self::BadAnswer => Some("http_protocol_error"),
            Self::AnswerHeadTooLarge => Some("http_response_header_section_size"),
            Self::AnswerIncomplete => Some("http_response_incomplete"),
            Self::ClientGone => None,
        }
    }

    /// What is counted against the service.
    pub const fn backend_error(self) -> Option<BackendError> {
        match self {
            Self::NoEndpoint | Self::ConnectionCap => Some(BackendError::NoEndpoint),
            Self::ConnectFailed => Some(BackendError::Connect),
            Self::ConnectTimeout => Some(BackendError::ConnectTimeout),
            Self::Untrusted | Self::TlsFailed => Some(BackendError::Tls),
            Self::ConnectionBroken => Some(BackendError::Reset),
            Self::AnswerTimeout | Self::RequestTimeout => Some(BackendError::AnswerTimeout),
            Self::BadAnswer | Self::AnswerHeadTooLarge => Some(BackendError::BadAnswer),
            Self::AnswerIncomplete => Some(BackendError::Body),
            Self::Malformed(_)
            | Self::BadPath(_)
            | Self::UnsupportedVersion
            | Self::UnsupportedTransferCoding
            | Self::UnsupportedMethod
            | Self::UnsupportedUpgrade
            | Self::TargetTooLong
            | Self::HeadTooLarge
            | Self::BodyTooLarge
            | Self::ExpectationFailed
            | Self::HeadTimeout
            | Self::BodyTimeout
            | Self::NoRoute
            | Self::WrongMethod
            | Self::Unauthenticated(_)
            | Self::Forbidden(_)
            | Self::RateLimited
            | Self::ConcurrencyLimited
            | Self::Invalid
            | Self::UnsupportedContent
            | Self::AuthenticationUnavailable
            | Self::LimiterUnavailable
            | Self::ClientGone
            | Self::Overloaded
            | Self::CircuitOpen(_)
            | Self::BulkheadFull(_)
            | Self::Shed(_)
            | Self::Internal => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::answer;
    use crate::stats::STATUSES;

    const ALL: [Failure; 41] = [
        Failure::Malformed("Missing Host header"),
        Failure::BadPath(PathError::AboveRoot),
        Failure::UnsupportedVersion,
        Failure::UnsupportedTransferCoding,
        Failure::UnsupportedMethod,
        Failure::UnsupportedUpgrade,
        Failure::TargetTooLong,
        Failure::HeadTooLarge,
        Failure::BodyTooLarge,
        Failure::ExpectationFailed,
        Failure::HeadTimeout,
        Failure::BodyTimeout,
        Failure::NoRoute,
        Failure::WrongMethod,
        Failure::Unauthenticated(None),
        Failure::Unauthenticated(Some(Flaw { code: "invalid_token", description: "", reason: "" })),
        Failure::Forbidden("role"),
        Failure::RateLimited,
        Failure::ConcurrencyLimited,
        Failure::Invalid,
        Failure::UnsupportedContent,
        Failure::ClientGone,
        Failure::Overloaded,
        Failure::AuthenticationUnavailable,
        Failure::LimiterUnavailable,
        Failure::Internal,
        Failure::NoEndpoint,
        Failure::ConnectionCap,
        Failure::ConnectFailed,
        Failure::ConnectTimeout,
        Failure::Untrusted,
        Failure::TlsFailed,
        Failure::ConnectionBroken,
        Failure::AnswerTimeout,
        Failure::RequestTimeout,
        Failure::BadAnswer,
        Failure::AnswerHeadTooLarge,
        Failure::AnswerIncomplete,
        Failure::CircuitOpen(7),
        Failure::BulkheadFull(1),
        Failure::Shed(2),
    ];

    #[test]
    fn the_table_of_the_design() {
        let statuses: Vec<_> = ALL.iter().map(|failure| failure.status()).collect();
        let expected = [
            400, 400, 505, 501, 501, 501, 414, 431, 413, 417, 408, 408, 404, 405, 401, 401, 403, 429, 429, 400, 415,
            499, 503, 503, 503, 500, 502, 503, 502, 504, 502, 502, 502, 504, 504, 502, 502, 502, 503, 503, 503,
        ];
        assert_eq!(statuses, expected);
    }

    #[test]
    fn answers_agree_with_each_other() {
        for failure in ALL {
            let status = failure.status();
            assert!(STATUSES.contains(&status), "{failure}");
            let says_when = status == 503 || failure == Failure::ConcurrencyLimited;
            assert_eq!(failure.retry_after_secs().is_some(), says_when, "{failure}");
            assert_eq!(failure.proxy_status_error().is_none(), status == 499, "{failure}");
            assert_eq!(answer::reason(status).is_empty(), status == 499, "{failure}");
            assert_eq!(failure.backend_error().is_some(), failure.fault() == Fault::Service, "{failure}");
            assert_eq!(failure.fault() == Fault::Client, status < 500 || matches!(status, 501 | 505), "{failure}");
            assert!(failure.fault() == Fault::Service || failure.retry() == Retry::Never, "{failure}");
            assert!(failure.message().starts_with(|first: char| first.is_ascii_uppercase()), "{failure}");
        }
    }

    #[test]
    fn every_kind_of_backend_error_has_a_failure() {
        for error in BackendError::ALL {
            assert!(ALL.iter().any(|failure| failure.backend_error() == Some(error)), "{error:?}");
        }
    }

    #[test]
    fn a_refused_path_keeps_the_connection_and_broken_framing_does_not() {
        let failure = Failure::from(PathError::EncodedSlash);
        assert_eq!((failure.status(), failure.message()), (400, "The path has an encoded slash"));
        assert!(!failure.closes_connection() && Failure::Malformed("").closes_connection());
    }
}
