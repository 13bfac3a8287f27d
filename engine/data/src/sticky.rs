//! Sessions that stay with an endpoint: what the request's cookie says, and what the client is told.

use ringway_config::snapshot::{Listener, Service};
use ringway_config::sticky::Secure;
use ringway_core::auth::credentials::{cookies, fields};
use ringway_core::http::RequestHead;
use ringway_core::sticky::{Outcome, Session};

use crate::breaker::Passage;
use crate::connection::Connection;
use crate::request::Exchange;
use crate::view::ServiceView;

/// The session that a request says it has. Of several cookies of the name the first one that is good counts: an older one may
/// still be there for another path.
#[inline]
pub(crate) fn session_of(view: &ServiceView, request: &RequestHead<'_, '_>) -> Session {
    match &view.service.sticky {
        None => Session::None,
        Some(sticky) => find(view, &sticky.cookie, request),
    }
}

fn find(view: &ServiceView, cookie: &str, request: &RequestHead<'_, '_>) -> Session {
    let Some(sessions) = view.sessions() else { return Session::None };
    let values = fields(request.headers, "cookie").flat_map(|field| cookies(field, cookie.as_bytes()));
    let mut known = Session::None;
    for value in values {
        known = sessions.find(value);
        if let Session::With(_) = known {
            break;
        }
    }
    known
}

/// The cookie that the service does not get.
pub(crate) fn hidden_cookie(service: &Service) -> Option<&str> {
    service.sticky.as_ref().filter(|sticky| sticky.is_indirect).map(|sticky| &*sticky.cookie)
}

/// Tells the client which endpoint it keeps from now on, where that is news; as a header line.
#[inline]
pub(crate) fn write_cookie(conn: &Connection, exchange: &mut Exchange, passage: &Passage<'_>, out: &mut Vec<u8>) {
    if let Some(view) = conn.view.services.get(passage.service)
        && view.service.sticky.is_some()
    {
        let outcome = passage.wish.session.outcome(passage.endpoint);
        exchange.session = Some(outcome);
        if let Some(cell) = conn.view.service_cell(passage.service, conn.worker.id) {
            cell.record_session(outcome);
        }
        if outcome != Outcome::Kept {
            write_line(view, &conn.listener, passage.endpoint, out);
        }
    }
}

fn write_line(view: &ServiceView, listener: &Listener, endpoint: usize, out: &mut Vec<u8>) {
    let Some(sticky) = &view.service.sticky else { return };
    let Some(value) = view.sessions().and_then(|sessions| sessions.value(endpoint)) else { return };
    let is_secure = match sticky.secure {
        Secure::Auto => listener.tls.is_some(),
        Secure::Always => true,
        Secure::Never => false,
    };
    let secure: &[u8] = if is_secure { b"; Secure" } else { b"" };
    for part in [b"Set-Cookie: ", sticky.cookie.as_bytes(), b"=", value, sticky.attributes.as_bytes(), secure, b"\r\n"]
    {
        out.extend_from_slice(part);
    }
}
