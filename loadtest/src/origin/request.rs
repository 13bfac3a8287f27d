//! What a request asks for.

use std::time::Duration;

use ringway_core::http::{Framing, HEADERS_MAX, HeadStorage, RequestError, RequestHead, Target, Version};

use super::latency::bounded;
use super::{body_bytes, parse_status};
use crate::units;

/// What of a head matters here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Request {
    pub(super) is_head: bool,
    pub(super) is_http10: bool,
    pub(super) keep_alive: bool,
    pub(super) expects_continue: bool,
    pub(super) framing: Framing,
    pub(super) wish: Wish,
}

/// The behaviour that a query asks for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Wish {
    pub(super) size: Option<usize>,
    pub(super) delay: Option<Duration>,
    pub(super) status: Option<u16>,
}

impl Request {
    /// Reads a whole head. The error is for the client.
    pub(super) fn read(head: &[u8]) -> Result<Self, String> {
        let mut storage = HeadStorage::new();
        let head =
            RequestHead::parse(head, HEADERS_MAX, &mut storage).map_err(|error: RequestError| error.to_string())?;
        let wish = match head.target {
            Target::Path { query: Some(query), .. } => Wish::read(query)?,
            _ => Wish::default(),
        };
        Ok(Self {
            is_head: head.method == "HEAD",
            is_http10: head.version == Version::Http10,
            keep_alive: head.keep_alive,
            expects_continue: head.expects_continue,
            framing: head.framing,
            wish,
        })
    }
}

impl Wish {
    /// Reads a query. Parameters of other names belong to whoever sent them.
    fn read(query: &[u8]) -> Result<Self, String> {
        let mut wish = Self::default();
        for parameter in query.split(|byte| *byte == b'&') {
            let Ok(parameter) = std::str::from_utf8(parameter) else { continue };
            let Some((name, value)) = parameter.split_once('=') else { continue };
            let named = |error: String| format!("{name}: {error}");
            match name {
                "size" => wish.size = Some(body_bytes(units::or_plain(value, "B", units::bytes)).map_err(named)?),
                "delay" => wish.delay = Some(bounded(value).map_err(named)?),
                "status" => wish.status = Some(parse_status(value).map_err(named)?),
                _ => {}
            }
        }
        Ok(wish)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(head: &str) -> Result<Request, String> {
        Request::read(head.as_bytes())
    }

    #[test]
    fn wishes() {
        let wish = |query: &str| read(&format!("GET /a/b?{query} HTTP/1.1\r\nHost: a\r\n\r\n")).map(|r| r.wish);
        let all = Wish { size: Some(100), delay: Some(Duration::from_millis(5)), status: Some(503) };
        assert_eq!(wish("size=100&delay=5ms&status=503"), Ok(all));
        assert_eq!(wish("size=2KiB").unwrap().size, Some(2048));
        assert_eq!(wish("page=7&size&=&x=%20"), Ok(Wish::default()));
        for query in ["size=a", "size=-1", "size=65MiB", "delay=5", "delay=1h", "status=100", "status=600"] {
            let error = wish(query).unwrap_err();
            assert!(error.starts_with(query.split('=').next().unwrap()), "{error}");
        }
    }

    #[test]
    fn heads() {
        let head = read("HEAD / HTTP/1.0\r\n\r\n").unwrap();
        assert!(head.is_head && head.is_http10 && !head.keep_alive && head.wish == Wish::default());
        let post = "POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nTransfer-Encoding: chunked\r\n\r\n";
        let post = read(post).unwrap();
        assert!(post.expects_continue && post.keep_alive && post.framing == Framing::Chunked);
        assert_eq!(read("GET / HTTP/1.1\r\n\r\n"), Err("missing Host header".into()));
    }
}
