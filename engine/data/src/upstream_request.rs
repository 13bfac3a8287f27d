//! A request's head as a service of HTTP/2 gets it, made of one that is written as HTTP/1.1.

use std::io;

use h2::ext::Protocol;
use http::header::{HeaderValue, SEC_WEBSOCKET_KEY, TE};
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderMap, Method, Request, Uri, Version};
use ringway_core::http::websocket::{self, ACCEPT_CHARS};
use ringway_core::http::{Name, RequestHead};

use crate::fields::{append, broken};

/// A request whose head is written as HTTP/1.1; what belongs to one connection of HTTP/1.1 is left out (RFC 9113 section
/// 8.2.2).
pub(crate) fn request(head: &[u8], parsed: &RequestHead<'_, '_>, scheme: Scheme) -> io::Result<Request<()>> {
    let mut request = Request::new(());
    *request.version_mut() = Version::HTTP_2;
    *request.method_mut() = Method::from_bytes(parsed.method.as_bytes()).map_err(broken)?;
    let authority = Authority::try_from(parsed.authority).map_err(broken)?;
    let target = target(head, parsed.method)?;
    *request.uri_mut() =
        Uri::builder().scheme(scheme).authority(authority).path_and_query(target).build().map_err(broken)?;
    let fields = request.headers_mut();
    fields.reserve(parsed.headers.len());
    for (field, name) in parsed.headers.iter().zip(parsed.names) {
        match name {
            // The only value that may stand there, and the only one that the serve path writes.
            Name::Te => drop(fields.insert(TE, HeaderValue::from_static("trailers"))),
            Name::Host => {}
            name if name.is_hop_by_hop() => {}
            name => append(fields, field, *name)?,
        }
    }
    Ok(request)
}

/// The request for a WebSocket as an extended CONNECT (RFC 8441 section 4), and what answers its key, which stays here
/// (section 5): the stream is proof enough of who answers.
pub(crate) fn websocket(mut request: Request<()>) -> io::Result<Websocket> {
    let key = request.headers_mut().remove(SEC_WEBSOCKET_KEY).ok_or_else(|| broken("no key"))?;
    *request.method_mut() = Method::CONNECT;
    request.extensions_mut().insert(Protocol::from_static("websocket"));
    Ok(Websocket { request, accept: websocket::accept_of(key.as_bytes()) })
}

/// A WebSocket that is asked for.
pub(crate) struct Websocket {
    pub(crate) request: Request<()>,
    pub(crate) accept: [u8; ACCEPT_CHARS],
}

/// The target as it stands in the request line. What a URI must not have, and some clients send all the same, is
/// percent-encoded.
fn target(head: &[u8], method: &str) -> io::Result<PathAndQuery> {
    let line = head.split(|byte| *byte == b'\r').next().unwrap_or_default();
    let target = line.get(method.len() + 1..line.len().saturating_sub(b" HTTP/1.1".len())).unwrap_or_default();
    PathAndQuery::try_from(target).or_else(|_| {
        let mut encoded = Vec::with_capacity(target.len() + 64);
        for byte in target {
            match byte {
                b'"' | b'<' | b'>' | b'\\' | b'^' | b'`' | b'{' | b'|' | b'}' | 0x80.. => {
                    let digit = |nibble: u8| char::from_digit(nibble.into(), 16).map_or(b'0', |digit| digit as u8);
                    encoded
                        .extend_from_slice(&[b'%', digit(byte >> 4), digit(byte & 15)].map(|b| b.to_ascii_uppercase()));
                }
                byte => encoded.push(*byte),
            }
        }
        PathAndQuery::try_from(encoded.as_slice()).map_err(broken)
    })
}

/// The fields of a trailer section, without its last empty line.
pub(crate) fn fields(section: &[u8]) -> io::Result<HeaderMap> {
    let mut fields = HeaderMap::new();
    if section.is_empty() {
        return Ok(fields);
    }
    let mut ended = Vec::with_capacity(section.len() + 2);
    ended.extend_from_slice(section);
    ended.extend_from_slice(b"\r\n");
    let mut room = [httparse::EMPTY_HEADER; 64];
    let parsed = httparse::parse_headers(&ended, &mut room).map_err(broken)?;
    let httparse::Status::Complete((_, parsed)) = parsed else { return Err(broken("malformed trailers")) };
    parsed.iter().try_for_each(|field| append(&mut fields, field, Name::of(field.name)))?;
    Ok(fields)
}
