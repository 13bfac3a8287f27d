//! How much time a request has left, told to its service: in the service's `deadline_header`, and to gRPC calls in
//! `grpc-timeout`. What the route does with a field of that name itself is left as it is.

use memchr::memmem;
use ringway_config::snapshot::{Route, Service};
use ringway_core::auth::credentials::fields;
use ringway_core::grpc::write_timeout;
use ringway_core::http::RequestHead;

use crate::call;
use crate::clock::us;
use crate::connection::Connection;
use crate::forward::timeouts;
use crate::request::Exchange;
use crate::respond::write_number;
use crate::retry::per_try;

/// Writes the field for the service's first try. What somebody before the gateway has said counts where it is less.
#[inline]
pub(crate) fn write(
    conn: &Connection,
    exchange: &mut Exchange,
    service: &Service,
    request: &RequestHead<'_, '_>,
    out: &mut Vec<u8>,
) {
    if let Some(name) = &service.deadline_header {
        write_field(conn, exchange, service, name, request, out);
    }
}

fn write_field(
    conn: &Connection,
    exchange: &mut Exchange,
    service: &Service,
    name: &str,
    request: &RequestHead<'_, '_>,
    out: &mut Vec<u8>,
) {
    let told = fields(request.headers, name).next().and_then(|value| std::str::from_utf8(value).ok()?.parse().ok());
    exchange.told_until = told.map_or(u64::MAX, |ms: u64| exchange.started.saturating_add(ms.saturating_mul(1_000)));
    let now = conn.worker.clock.now();
    let try_until = per_try(conn, exchange, service).map_or(u64::MAX, |limit| now + us(limit));
    if conn.route(exchange).is_some_and(|route| route.request_headers.drops(name)) {
        return;
    }
    if let Some(left) = left_us(conn, exchange, try_until, now) {
        out.extend_from_slice(name.as_bytes());
        out.extend_from_slice(b": ");
        write_ms(left, out);
        out.extend_from_slice(b"\r\n");
    }
}

/// Tells a try that begins later than the head was written how much is left now. `try_until`: when it must be answered, on
/// the core's clock, or `u64::MAX`. `out`: the head, which may be followed by a body.
pub(crate) fn renew(conn: &Connection, exchange: &Exchange, service: &Service, try_until: u64, out: &mut Vec<u8>) {
    let now = conn.worker.clock.now();
    let is_left = |name: &str| !conn.route(exchange).is_some_and(|route: &Route| route.request_headers.drops(name));
    if let Some(name) = service.deadline_header.as_deref().filter(|name| is_left(name))
        && let Some(left) = left_us(conn, exchange, try_until, now)
    {
        rewrite(out, name, |value| write_ms(left, value));
    }
    if exchange.call.is_some()
        && is_left(call::TIMEOUT)
        && let Some(limit) = timeouts(conn, exchange).request
    {
        let spent = now.saturating_sub(exchange.started);
        rewrite(out, call::TIMEOUT, |value| write_timeout(us(limit).saturating_sub(spent), value));
    }
}

/// Microseconds until nobody waits any longer; `None` where nobody says.
fn left_us(conn: &Connection, exchange: &Exchange, try_until: u64, now: u64) -> Option<u64> {
    let request = timeouts(conn, exchange).request.map_or(u64::MAX, |limit| exchange.started + us(limit));
    let until = request.min(try_until).min(exchange.told_until);
    (until != u64::MAX).then(|| until.saturating_sub(now))
}

/// Whole milliseconds; not 0, which some take for no limit.
fn write_ms(left_us: u64, out: &mut Vec<u8>) {
    write_number((left_us / 1_000).max(1), out);
}

/// Puts another value in the place of a field's, where the head has it.
fn rewrite(out: &mut Vec<u8>, name: &str, write: impl FnOnce(&mut Vec<u8>)) {
    let head = memmem::find(out, b"\r\n\r\n").and_then(|end| out.get(..end + 2)).unwrap_or_default();
    let is_field = |at: &usize| {
        let field = head.get(at + 2..).and_then(|rest| rest.split_at_checked(name.len()));
        field.is_some_and(|(found, rest)| found.eq_ignore_ascii_case(name.as_bytes()) && rest.starts_with(b": "))
    };
    let Some(begin) = memmem::find_iter(head, b"\r\n").find(is_field).map(|at| at + name.len() + 4) else { return };
    let Some(length) = head.get(begin..).and_then(|rest| memchr::memchr(b'\r', rest)) else { return };
    let mut value = Vec::with_capacity(16);
    write(&mut value);
    out.splice(begin..begin + length, value);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_replaced_in_the_head_alone() {
        let rewritten = |text: &str| {
            let mut out = text.as_bytes().to_vec();
            rewrite(&mut out, "x-left", |value| write_ms(9_999, value));
            String::from_utf8(out).unwrap()
        };
        assert_eq!(
            rewritten("GET /x-left: 1 HTTP/1.1\r\nA: x-left: 2\r\nX-Left: 1500\r\nB: c\r\n\r\n"),
            "GET /x-left: 1 HTTP/1.1\r\nA: x-left: 2\r\nX-Left: 9\r\nB: c\r\n\r\n"
        );
        for text in ["PUT / HTTP/1.1\r\nA: b\r\n\r\n\r\nx-left: 1\r\n\r\n", "PUT / HTTP/1.1\r\nx-left2: 1\r\n\r\n", ""]
        {
            assert_eq!(rewritten(text), text);
        }
        assert_eq!(rewritten("GET / HTTP/1.1\r\nx-left: 7\r\n\r\n"), "GET / HTTP/1.1\r\nx-left: 9\r\n\r\n");
        let mut out = Vec::new();
        write_ms(0, &mut out);
        assert_eq!(out, b"1");
    }
}
