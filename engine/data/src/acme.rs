//! Answers to the HTTP-01 challenges of an authority (RFC 8555 section 8.3). Those of TLS-ALPN-01 are in the handshake.

use ringway_config::acme::{Acme, TOKEN_BYTES_MAX};
use ringway_core::http::RequestHead;

use crate::connection::Connection;
use crate::request::Exchange;
use crate::respond;

const PREFIX: &[u8] = b"/.well-known/acme-challenge/";

/// Whether the request asks for the token of a challenge that is under way; its answer is in `out` then. All others go on
/// to their route, since a service may order certificates by itself.
pub(crate) fn answered(
    conn: &Connection,
    exchange: &mut Exchange,
    acme: &Acme,
    request: &RequestHead<'_, '_>,
    path: &[u8],
    out: &mut Vec<u8>,
) -> bool {
    let Some(token) = path.strip_prefix(PREFIX).filter(|token| token.len() <= TOKEN_BYTES_MAX) else { return false };
    if !matches!(request.method, "GET" | "HEAD") {
        return false;
    }
    let Some(answer) = std::str::from_utf8(token).ok().and_then(|token| acme.challenges.answer(token)) else {
        return false;
    };
    respond::challenge_answer(conn, exchange, answer.as_bytes(), out);
    true
}
