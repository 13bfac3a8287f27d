//! Which of the services of a route's split a request goes to.

use ringway_config::snapshot::{Action, HashOn, Split, Target};
use ringway_core::auth::credentials::fields;
use ringway_core::http::RequestHead;
use ringway_core::maglev::hash;

use crate::affinity::key_of;
use crate::connection::Connection;
use crate::request::Exchange;

/// Length of the keys that clients get in a cookie.
const KEY_LENGTH: usize = 16;

/// The service for a request, as an index of the snapshot. Chosen once, when the gate has let the request pass.
#[inline]
pub(crate) fn choose(
    conn: &Connection,
    exchange: &mut Exchange,
    target: &Target,
    request: &RequestHead<'_, '_>,
) -> Option<usize> {
    match target {
        Target::Service(service) => Some(*service),
        Target::Split(split) => choose_of(conn, exchange, split, request),
    }
}

fn choose_of(
    conn: &Connection,
    exchange: &mut Exchange,
    split: &Split,
    request: &RequestHead<'_, '_>,
) -> Option<usize> {
    // Prepared again after a wait: it keeps its side.
    if let Some(chosen) = exchange.service.filter(|chosen| split.services.contains(chosen)) {
        return Some(chosen);
    }
    let side = match overridden(conn, split, request) {
        Some(side) => side,
        None => split.shares.pick(key(conn, exchange, split, request))?,
    };
    let route = exchange.route? as usize;
    let stats = conn.view.published.splits.get(route).and_then(|sides| sides.get(side));
    if let Some(cell) = stats.and_then(|stats| stats.workers.get(conn.worker.id)) {
        cell.add(1);
    }
    split.services.get(side).copied()
}

/// The side that the client has named.
fn overridden(conn: &Connection, split: &Split, request: &RequestHead<'_, '_>) -> Option<usize> {
    let named = fields(request.headers, split.override_header.as_deref()?).next()?;
    let is_named =
        |service: &usize| conn.view.services.get(*service).is_some_and(|view| view.service.name.as_bytes() == named);
    split.services.iter().position(is_named)
}

/// What the request goes by: the same for those that belong together, else any.
fn key(conn: &Connection, exchange: &mut Exchange, split: &Split, request: &RequestHead<'_, '_>) -> u64 {
    if let Some(on) = &split.sticky {
        if let Some(key) = key_of(on, exchange, request) {
            return key;
        }
        if let HashOn::Cookie(_) = on {
            // Not 0, which stands for none.
            exchange.given_key = conn.worker.random().max(1);
            return hash(&text_of(exchange.given_key));
        }
    }
    conn.worker.random()
}

/// Gives the client the key that its request went by, for the next one.
#[cold]
pub(crate) fn write_cookie(conn: &Connection, exchange: &Exchange, out: &mut Vec<u8>) {
    let Some(Action::Forward(forward)) = conn.route(exchange).map(|route| &route.action) else { return };
    let Some(HashOn::Cookie(name)) = forward.service.split().and_then(|split| split.sticky.as_ref()) else { return };
    out.extend_from_slice(b"Set-Cookie: ");
    out.extend_from_slice(name.as_bytes());
    out.push(b'=');
    out.extend_from_slice(&text_of(exchange.given_key));
    out.extend_from_slice(b"; Path=/; HttpOnly; SameSite=Lax");
    if conn.listener.tls.is_some() {
        out.extend_from_slice(b"; Secure");
    }
    out.extend_from_slice(b"\r\n");
}

/// A key as the cookie's value: hexadecimal.
fn text_of(key: u64) -> [u8; KEY_LENGTH] {
    let mut text = [0; KEY_LENGTH];
    for (digit, at) in text.iter_mut().zip((0..KEY_LENGTH).rev()) {
        let nibble = (key >> (4 * at) & 0xf) as u8;
        *digit = if nibble < 10 { b'0' + nibble } else { b'a' + nibble - 10 };
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_written_in_full() {
        assert_eq!(&text_of(0x1f), b"000000000000001f");
        assert_eq!(&text_of(u64::MAX), b"ffffffffffffffff");
    }
}
