//! Answer heads of services: parsed and judged as strictly as those of clients (RFC 9112 sections 4 and 6).

use super::{Framing, HeadStorage, Name, Version, list, parse_length};

/// Why an answer head is refused: 502 in every case, and the connection is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ResponseError {
    #[error("malformed status line")]
    StatusLine,
    #[error("malformed header field")]
    HeaderField,
    #[error("too many header fields")]
    TooManyHeaders,
    #[error("malformed or repeated Content-Length")]
    ContentLength,
    #[error("Content-Length beside Transfer-Encoding")]
    LengthAndCoding,
    #[error("transfer coding not supported")]
    Coding,
}

/// An answer head that is safe to act on.
pub struct ResponseHead<'b, 'h> {
    pub version: Version,
    /// 100 to 999.
    pub status: u16,
    pub reason: &'b str,
    pub headers: &'h [httparse::Header<'b>],
    pub names: &'h [Name],
    pub framing: Framing,
    /// Whether the service lets the connection live after this exchange.
    pub keep_alive: bool,
    /// `Connection` names fields besides `close` and `keep-alive`.
    pub has_connection_fields: bool,
    pub has_date: bool,
}

impl<'b, 'h> ResponseHead<'b, 'h> {
    /// Parses a whole head. `to_head`: the request was HEAD, so that the answer has no body whatever it announces.
    ///
    /// Hot; watched by the benchmark `response_head`.
    pub fn parse(head: &'b [u8], to_head: bool, storage: &'h mut HeadStorage<'b>) -> Result<Self, ResponseError> {
        let mut response = httparse::Response::new(&mut []);
        let config = httparse::ParserConfig::default();
        match config.parse_response_with_uninit_headers(&mut response, head, &mut storage.headers) {
            Ok(httparse::Status::Complete(length)) if length == head.len() => {}
            Ok(_) => return Err(ResponseError::HeaderField),
            Err(error) => {
                return Err(match error {
                    httparse::Error::TooManyHeaders => ResponseError::TooManyHeaders,
                    httparse::Error::HeaderName | httparse::Error::HeaderValue => ResponseError::HeaderField,
                    _ => ResponseError::StatusLine,
                });
            }
        }
        let (Some(version), Some(status)) = (response.version, response.code) else {
            return Err(ResponseError::StatusLine);
        };
        if !(100..=999).contains(&status) {
            return Err(ResponseError::StatusLine);
        }
        let version = if version == 0 { Version::Http10 } else { Version::Http11 };
        let headers: &'h [httparse::Header<'b>] = response.headers;

        let mut length: Option<u64> = None;
        let mut chunked = false;
        let mut keep_alive = version == Version::Http11;
        let mut close = false;
        let mut has_connection_fields = false;
        let mut has_date = false;
        for (header, slot) in headers.iter().zip(storage.names.iter_mut()) {
            let name = Name::of(header.name);
            *slot = name;
            match name {
                Name::ContentLength => {
                    let value = parse_length(header.value).ok_or(ResponseError::ContentLength)?;
                    if length.replace(value).is_some() {
                        return Err(ResponseError::ContentLength);
                    }
                }
                Name::TransferEncoding => {
                    if chunked || version == Version::Http10 || !header.value.eq_ignore_ascii_case(b"chunked") {
                        return Err(ResponseError::Coding);
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
                Name::Date => has_date = true,
                _ => {}
            }
        }
        if chunked && length.is_some() {
            return Err(ResponseError::LengthAndCoding);
        }
        let framing = match (chunked, length) {
            _ if to_head || matches!(status, 100..=199 | 204 | 304) => Framing::None,
            (true, _) => Framing::Chunked,
            (false, Some(0)) => Framing::None,
            (false, Some(length)) => Framing::Length(length),
            (false, None) => Framing::Close,
        };
        Ok(Self {
            version,
            status,
            reason: response.reason.unwrap_or_default(),
            names: storage.names.get(..headers.len()).unwrap_or_default(),
            headers,
            framing,
            keep_alive: keep_alive && !close && framing != Framing::Close,
            has_connection_fields,
            has_date,
        })
    }

    /// All values of a field, in order.
    pub fn values(&self, name: Name) -> impl DoubleEndedIterator<Item = &'b [u8]> + '_ {
        self.headers.iter().zip(self.names).filter(move |(_, have)| **have == name).map(|(header, _)| header.value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn framing(head: &str, to_head: bool) -> Result<(Framing, bool), ResponseError> {
        let mut storage = HeadStorage::new();
        let head = ResponseHead::parse(head.as_bytes(), to_head, &mut storage)?;
        Ok((head.framing, head.keep_alive))
    }

    #[test]
    fn the_request_decides_how_an_answer_is_framed() {
        let long = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n";
        assert_eq!(framing(long, false), Ok((Framing::Length(5), true)));
        assert_eq!(framing(long, true), Ok((Framing::None, true)));
        assert_eq!(framing("HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n", false), Ok((Framing::None, true)));
        assert_eq!(framing("HTTP/1.1 204 No Content\r\n\r\n", false), Ok((Framing::None, true)));
        assert_eq!(framing("HTTP/1.1 103 Early Hints\r\n\r\n", false), Ok((Framing::None, true)));
        assert_eq!(framing("HTTP/1.1 200 OK\r\n\r\n", false), Ok((Framing::Close, false)));
        assert_eq!(framing("HTTP/1.1 200\r\nTransfer-Encoding: chunked\r\n\r\n", false), Ok((Framing::Chunked, true)));
        assert_eq!(framing("HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\n", false), Ok((Framing::Length(5), false)));
        let kept = "HTTP/1.0 200 OK\r\nContent-Length: 5\r\nConnection: keep-alive\r\n\r\n";
        assert_eq!(framing(kept, false), Ok((Framing::Length(5), true)));
        let closed = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
        assert_eq!(framing(closed, false), Ok((Framing::None, false)));
    }

    #[test]
    fn backends_that_lie_are_refused() {
        for (head, error) in [
            ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n", ResponseError::ContentLength),
            ("HTTP/1.1 200 OK\r\nContent-Length: 5x\r\n\r\n", ResponseError::ContentLength),
            (
                "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
                ResponseError::LengthAndCoding,
            ),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", ResponseError::Coding),
            ("HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", ResponseError::Coding),
            ("HTTP/1.1 20 OK\r\n\r\n", ResponseError::StatusLine),
            ("HTTP/1.1 099 OK\r\n\r\n", ResponseError::StatusLine),
            ("HTTP/2 200 OK\r\n\r\n", ResponseError::StatusLine),
            ("ICY 200 OK\r\n\r\n", ResponseError::StatusLine),
            ("HTTP/1.1 200 OK\r\nA : b\r\n\r\n", ResponseError::HeaderField),
            ("HTTP/1.1 200 OK\r\nA: b\r\n c\r\n\r\n", ResponseError::HeaderField),
        ] {
            assert_eq!(framing(head, false), Err(error), "{head:?}");
        }
    }
}
