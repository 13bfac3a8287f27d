//! Request heads: parsed, judged and summed up (RFC 9112 sections 3, 5 and 6).

use super::{Framing, HeadStorage, Name, Version, list, parse_length};

/// Why a request head is refused. The connection is closed after the answer: its framing cannot be trusted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    #[error("malformed request line")]
    RequestLine,
    #[error("malformed header field")]
    HeaderField,
    #[error("too many header fields")]
    TooManyHeaders,
    #[error("HTTP version not supported")]
    Version,
    #[error("malformed request target")]
    Target,
    #[error("CONNECT is not supported")]
    Connect,
    #[error("missing Host header")]
    MissingHost,
    #[error("more than one Host header")]
    RepeatedHost,
    #[error("malformed Host header")]
    BadHost,
    #[error("malformed Content-Length")]
    ContentLength,
    #[error("more than one Content-Length")]
    RepeatedLength,
    #[error("Content-Length beside Transfer-Encoding")]
    LengthAndCoding,
    #[error("Transfer-Encoding in an HTTP/1.0 request")]
    CodingInHttp10,
    #[error("malformed Transfer-Encoding")]
    BadCoding,
    #[error("transfer coding not supported")]
    UnknownCoding,
    #[error("expectation not supported")]
    Expectation,
}

/// The four forms of a request target (RFC 9112 section 3.2); authority-form comes with CONNECT only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target<'b> {
    /// `/path?query`, or the same after `http://authority`.
    Path { path: &'b [u8], query: Option<&'b [u8]> },
    /// `*`, of OPTIONS.
    Asterisk,
}

/// A request head that is safe to act on.
pub struct RequestHead<'b, 'h> {
    pub method: &'b str,
    pub target: Target<'b>,
    pub version: Version,
    /// The authority that the request is for: of an absolute target, else of `Host`; with its port, if it has one.
    /// Empty for HTTP/1.0 without `Host`.
    pub authority: &'b [u8],
    pub headers: &'h [httparse::Header<'b>],
    pub names: &'h [Name],
    pub framing: Framing,
    /// Whether the client lets the connection live after this exchange.
    pub keep_alive: bool,
    /// `Expect: 100-continue` with a body to come.
    pub expects_continue: bool,
    /// `Connection` names fields besides `close` and `keep-alive`.
    pub has_connection_fields: bool,
    pub user_agent: Option<&'b [u8]>,
    /// Bit set of the names that occur.
    seen: u32,
}

impl<'b, 'h> RequestHead<'b, 'h> {
    /// Parses a whole head, as [`HeadScanner`](super::HeadScanner) delimits it, of at most `headers_max` fields.
    ///
    /// Hot; watched by the benchmark `request_head`.
    pub fn parse(head: &'b [u8], headers_max: usize, storage: &'h mut HeadStorage<'b>) -> Result<Self, RequestError> {
        let mut request = httparse::Request::new(&mut []);
        match request.parse_with_uninit_headers(head, &mut storage.headers) {
            Ok(httparse::Status::Complete(length)) if length == head.len() => {}
            Ok(_) => return Err(RequestError::HeaderField),
            Err(error) => {
                return Err(match error {
                    httparse::Error::TooManyHeaders => RequestError::TooManyHeaders,
                    httparse::Error::Version => RequestError::Version,
                    httparse::Error::HeaderName | httparse::Error::HeaderValue => RequestError::HeaderField,
                    httparse::Error::NewLine | httparse::Error::Status | httparse::Error::Token => {
                        RequestError::RequestLine
                    }
                });
            }
        }
        let (Some(method), Some(target), Some(version)) = (request.method, request.path, request.version) else {
            return Err(RequestError::RequestLine);
        };
        let headers: &'h [httparse::Header<'b>] = request.headers;
        if headers.len() > headers_max {
            return Err(RequestError::TooManyHeaders);
        }
        let version = if version == 0 { Version::Http10 } else { Version::Http11 };
        let (target, absolute) = parse_target(method, target.as_bytes())?;

        let mut host: Option<&'b [u8]> = None;
        let mut length: Option<u64> = None;
        let mut chunked = false;
        let mut keep_alive = version == Version::Http11;
        let mut close = false;
        let mut expects_continue = false;
        let mut has_connection_fields = false;
        let mut user_agent = None;
        let mut seen = 0;
        for (header, slot) in headers.iter().zip(storage.names.iter_mut()) {
            let name = Name::of(header.name);
            *slot = name;
            seen |= 1 << name as u32;
            match name {
                Name::Host => {
                    if host.is_some() {
                        return Err(RequestError::RepeatedHost);
                    }
                    host = Some(header.value);
                }
                Name::ContentLength => {
                    if length.is_some() {
                        return Err(RequestError::RepeatedLength);
                    }
                    length = Some(parse_length(header.value).ok_or(RequestError::ContentLength)?);
                }
                Name::TransferEncoding => {
                    if version == Version::Http10 {
                        return Err(RequestError::CodingInHttp10);
                    }
                    // One coding, once: `chunked`. Twice is a smuggling attempt, another one is not for us to undo.
                    if chunked || header.value.trim_ascii().is_empty() {
                        return Err(RequestError::BadCoding);
                    }
                    if !header.value.eq_ignore_ascii_case(b"chunked") {
                        let last = list(header.value).last();
                        return Err(match last {
                            Some(last) if last.eq_ignore_ascii_case(b"chunked") && is_one_chunked(header.value) => {
                                RequestError::UnknownCoding
                            }
                            _ => RequestError::BadCoding,
                        });
                    }
                    chunked = true;
                }
                Name::Connection => {
                    for token in list(header.value) {
                        if token.eq_ignore_ascii_case(b"close") {
                            close = true;
                        } else if token.eq_ignore_ascii_case(b"keep-alive") {
                            keep_alive = true;
                        } else {
                            has_connection_fields = true;
                        }
                    }
                }
                Name::Expect => {
                    if !header.value.eq_ignore_ascii_case(b"100-continue") {
                        return Err(RequestError::Expectation);
                    }
                    // An HTTP/1.0 client's expectation is ignored (RFC 9110 section 10.1.1).
                    expects_continue = version == Version::Http11;
                }
                Name::UserAgent => user_agent = Some(header.value),
                _ => {}
            }
        }

        if chunked && length.is_some() {
            return Err(RequestError::LengthAndCoding);
        }
        let framing = match (chunked, length) {
            (true, _) => Framing::Chunked,
            (false, Some(length)) if length > 0 => Framing::Length(length),
            _ => Framing::None,
        };
        if host.is_none() && version == Version::Http11 {
            return Err(RequestError::MissingHost);
        }
        if host.is_some_and(|host| !is_authority(host) && !host.is_empty()) {
            return Err(RequestError::BadHost);
        }
        Ok(Self {
            method,
            target,
            version,
            authority: absolute.or(host).unwrap_or_default(),
            names: storage.names.get(..headers.len()).unwrap_or_default(),
            headers,
            framing,
            keep_alive: keep_alive && !close,
            expects_continue: expects_continue && framing != Framing::None,
            has_connection_fields,
            user_agent,
            seen,
        })
    }

    /// Whether a field occurs.
    #[inline]
    pub const fn has(&self, name: Name) -> bool {
        self.seen & (1 << name as u32) != 0
    }

    /// All values of a field, in order.
    pub fn values(&self, name: Name) -> impl DoubleEndedIterator<Item = &'b [u8]> + '_ {
        self.headers.iter().zip(self.names).filter(move |(_, have)| **have == name).map(|(header, _)| header.value)
    }

    /// The first value of a field.
    pub fn value(&self, name: Name) -> Option<&'b [u8]> {
        self.values(name).next()
    }

    /// Whether the method may be repeated without doing a thing twice (RFC 9110 section 9.2.2).
    pub fn is_idempotent(&self) -> bool {
        matches!(self.method, "GET" | "HEAD" | "OPTIONS" | "TRACE" | "PUT" | "DELETE")
    }

    /// The authority without its port.
    pub fn host(&self) -> &'b [u8] {
        host_of(self.authority)
    }
}

/// Whether `chunked` stands in a list of codings once only.
fn is_one_chunked(value: &[u8]) -> bool {
    list(value).filter(|coding| coding.eq_ignore_ascii_case(b"chunked")).count() == 1
}

/// An authority without its port: `example.com:80` and `[::1]:80`.
pub(crate) fn host_of(authority: &[u8]) -> &[u8] {
    let after_brackets = memchr::memrchr(b']', authority).map_or(0, |bracket| bracket + 1);
    let colon = authority.get(after_brackets..).and_then(|rest| memchr::memchr(b':', rest));
    match colon {
        Some(colon) => authority.get(..after_brackets + colon).unwrap_or(authority),
        None => authority,
    }
}

/// `host [":" port]` with the characters that RFC 3986 section 3.2.2 allows, and no user information. Percent-encoding,
/// which the section allows too, is refused: an encoded name is another one for the routes than for who decodes it.
fn is_authority(authority: &[u8]) -> bool {
    let host = host_of(authority);
    let port = authority.get(host.len()..).unwrap_or_default();
    let port_ok = match port.split_first() {
        None => true,
        Some((b':', digits)) => digits.len() <= 5 && digits.iter().all(u8::is_ascii_digit),
        Some(_) => false,
    };
    let host_ok = match host.strip_prefix(b"[").and_then(|rest| rest.strip_suffix(b"]")) {
        Some(literal) => {
            !literal.is_empty() && literal.iter().all(|byte| byte.is_ascii_hexdigit() || matches!(byte, b':' | b'.'))
        }
        None => {
            !host.is_empty()
                && host.iter().all(|byte| {
                    byte.is_ascii_alphanumeric()
                        || matches!(
                            byte,
                            b'-' | b'.'
                                | b'_'
                                | b'~'
                                | b'!'
                                | b'$'
                                | b'&'
                                | b'\''
                                | b'('
                                | b')'
                                | b'*'
                                | b'+'
                                | b','
                                | b';'
                                | b'='
                        )
                })
        }
    };
    port_ok && host_ok
}

/// The target's parts, and the authority of an absolute target.
#[allow(clippy::type_complexity)]
fn parse_target<'b>(method: &str, target: &'b [u8]) -> Result<(Target<'b>, Option<&'b [u8]>), RequestError> {
    if method == "CONNECT" {
        return Err(RequestError::Connect);
    }
    if target == b"*" {
        return if method == "OPTIONS" { Ok((Target::Asterisk, None)) } else { Err(RequestError::Target) };
    }
    if target.first() == Some(&b'/') {
        return Ok((split_query(target)?, None));
    }
    let scheme_end = memchr::memmem::find(target, b"://").ok_or(RequestError::Target)?;
    let (scheme, rest) = target.split_at_checked(scheme_end).ok_or(RequestError::Target)?;
    if !scheme.eq_ignore_ascii_case(b"http") && !scheme.eq_ignore_ascii_case(b"https") {
        return Err(RequestError::Target);
    }
    let rest = rest.strip_prefix(b"://").ok_or(RequestError::Target)?;
    let path_start = memchr::memchr2(b'/', b'?', rest).unwrap_or(rest.len());
    let (authority, path) = rest.split_at_checked(path_start).ok_or(RequestError::Target)?;
    if !is_authority(authority) {
        return Err(RequestError::Target);
    }
    // An absolute target without a path means the root; of OPTIONS, the server as a whole (section 3.2.4).
    let target = match path.first() {
        Some(b'/') => split_query(path)?,
        None if method == "OPTIONS" => Target::Asterisk,
        _ => {
            let query = path.get(1..).filter(|_| !path.is_empty());
            check_query(query.unwrap_or_default())?;
            Target::Path { path: b"/", query }
        }
    };
    Ok((target, Some(authority)))
}

fn split_query(target: &[u8]) -> Result<Target<'_>, RequestError> {
    let Some(mark) = memchr::memchr(b'?', target) else {
        return Ok(Target::Path { path: target, query: None });
    };
    let (path, rest) = target.split_at_checked(mark).ok_or(RequestError::Target)?;
    let query = rest.get(1..).unwrap_or_default();
    check_query(query)?;
    Ok(Target::Path { path, query: Some(query) })
}

/// Queries in the wild hold more than RFC 3986 allows (`[]`, `|`, `"`), so that only what could be read as something
/// else is refused: controls, blanks, fragments, bytes beyond ASCII. The path is checked when it is normalized.
fn check_query(query: &[u8]) -> Result<(), RequestError> {
    match query.iter().all(|byte| byte.is_ascii_graphic() && *byte != b'#') {
        true => Ok(()),
        false => Err(RequestError::Target),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with<R>(head: &str, check: impl FnOnce(Result<RequestHead<'_, '_>, RequestError>) -> R) -> R {
        let mut storage = HeadStorage::new();
        check(RequestHead::parse(head.as_bytes(), 100, &mut storage))
    }

    fn refused(head: &str) -> RequestError {
        with(head, |result| match result {
            Ok(_) => panic!("accepted: {head:?}"),
            Err(error) => error,
        })
    }

    fn post(headers: &str) -> String {
        format!("POST /a HTTP/1.1\r\nHost: a\r\n{headers}\r\n")
    }

    #[test]
    fn sums_up_a_usual_request() {
        with("GET /a/b?c=d HTTP/1.1\r\nHost: example.com:80\r\nUser-Agent: x\r\n\r\n", |head| {
            let head = head.unwrap();
            assert_eq!(head.method, "GET");
            assert_eq!(head.target, Target::Path { path: b"/a/b", query: Some(b"c=d") });
            assert_eq!((head.authority, head.host()), (&b"example.com:80"[..], &b"example.com"[..]));
            assert_eq!(head.framing, Framing::None);
            assert!(head.keep_alive && head.is_idempotent() && !head.expects_continue);
            assert_eq!(head.user_agent, Some(&b"x"[..]));
        });
    }

    #[test]
    fn framing_has_one_reading() {
        with(&post("Content-Length: 5\r\n"), |head| assert_eq!(head.unwrap().framing, Framing::Length(5)));
        with(&post("Transfer-Encoding: Chunked\r\n"), |head| assert_eq!(head.unwrap().framing, Framing::Chunked));
        for (headers, error) in [
            ("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", RequestError::LengthAndCoding),
            ("Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", RequestError::LengthAndCoding),
            ("Content-Length: 5\r\nContent-Length: 6\r\n", RequestError::RepeatedLength),
            ("Content-Length: 5\r\nContent-Length: 5\r\n", RequestError::RepeatedLength),
            ("Content-Length: 5, 5\r\n", RequestError::ContentLength),
            ("Content-Length: +5\r\n", RequestError::ContentLength),
            ("Content-Length: -1\r\n", RequestError::ContentLength),
            ("Content-Length: 0x5\r\n", RequestError::ContentLength),
            ("Content-Length: \r\n", RequestError::ContentLength),
            ("Content-Length: 9999999999999999999\r\n", RequestError::ContentLength),
            ("Transfer-Encoding: gzip, chunked\r\n", RequestError::UnknownCoding),
            ("Transfer-Encoding: chunked, chunked\r\n", RequestError::BadCoding),
            ("Transfer-Encoding: chunked, identity\r\n", RequestError::BadCoding),
            ("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", RequestError::BadCoding),
            ("Transfer-Encoding: xchunked\r\n", RequestError::BadCoding),
            ("Transfer-Encoding: \r\n", RequestError::BadCoding),
            ("Transfer-Encoding: identity\r\n", RequestError::BadCoding),
        ] {
            assert_eq!(refused(&post(headers)), error, "{headers:?}");
        }
        assert_eq!(
            refused("POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"),
            RequestError::CodingInHttp10
        );
    }

    #[test]
    fn header_lines_are_strict() {
        for headers in ["A : b\r\n", "A: b\r\n c\r\n", "A: b\0\r\n", "A\r\n", "A: b\rc\r\n", " A: b\r\n", ": b\r\n"] {
            assert_eq!(refused(&post(headers)), RequestError::HeaderField, "{headers:?}");
        }
        for line in ["GET  / HTTP/1.1", "GET / HTTP/1.1 ", "GET /\tHTTP/1.1", "G(T / HTTP/1.1", "GET /"] {
            let error = refused(&format!("{line}\r\nHost: a\r\n\r\n"));
            assert!(matches!(error, RequestError::RequestLine | RequestError::Version), "{line:?}: {error:?}");
        }
        assert_eq!(refused("GET / HTTP/2.0\r\nHost: a\r\n\r\n"), RequestError::Version);
    }

    #[test]
    fn one_host_and_a_sound_one() {
        assert_eq!(refused("GET / HTTP/1.1\r\n\r\n"), RequestError::MissingHost);
        assert_eq!(refused("GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n"), RequestError::RepeatedHost);
        for host in ["a b", "a@b", "a/b", "a%62", "a:b", "a:123456", "[::1", "[]", "a:1:2"] {
            assert_eq!(refused(&format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n")), RequestError::BadHost, "{host}");
        }
        with("GET / HTTP/1.0\r\n\r\n", |head| assert!(head.unwrap().authority.is_empty()));
        with("GET / HTTP/1.1\r\nHost: [::1]:80\r\n\r\n", |head| assert_eq!(head.unwrap().host(), b"[::1]"));
    }

    #[test]
    fn targets_have_four_forms() {
        with("GET http://b:81/x?y HTTP/1.1\r\nHost: a\r\n\r\n", |head| {
            let head = head.unwrap();
            assert_eq!(head.authority, b"b:81", "the target's authority wins over Host");
            assert_eq!(head.target, Target::Path { path: b"/x", query: Some(b"y") });
        });
        with("GET http://b HTTP/1.1\r\nHost: a\r\n\r\n", |head| {
            assert_eq!(head.unwrap().target, Target::Path { path: b"/", query: None });
        });
        with("GET http://b?q HTTP/1.1\r\nHost: a\r\n\r\n", |head| {
            assert_eq!(head.unwrap().target, Target::Path { path: b"/", query: Some(b"q") });
        });
        with("OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", |head| assert_eq!(head.unwrap().target, Target::Asterisk));
        for target in ["*", "a", "ftp://a/", "http:///", "http://u@h/", "/?a#b"] {
            assert_eq!(refused(&format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n")), RequestError::Target, "{target}");
        }
        assert_eq!(refused("CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n"), RequestError::Connect);
    }

    #[test]
    fn persistence_follows_version_and_connection() {
        for (head, keep) in [
            ("GET / HTTP/1.1\r\nHost: a\r\n\r\n", true),
            ("GET / HTTP/1.1\r\nHost: a\r\nConnection: x, Close\r\n\r\n", false),
            ("GET / HTTP/1.0\r\n\r\n", false),
            ("GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n", true),
            ("GET / HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, close\r\n\r\n", false),
        ] {
            with(head, |parsed| assert_eq!(parsed.unwrap().keep_alive, keep, "{head:?}"));
        }
    }

    #[test]
    fn expectations() {
        with(&post("Content-Length: 1\r\nExpect: 100-Continue\r\n"), |head| assert!(head.unwrap().expects_continue));
        with(&post("Expect: 100-continue\r\n"), |head| assert!(!head.unwrap().expects_continue, "no body to come"));
        assert_eq!(refused(&post("Expect: magic\r\n")), RequestError::Expectation);
    }
}
