//! The head that a service gets: what of the client's goes on, and what the gateway adds.

use ringway_config::snapshot::{Forward, Listener, Rewrite, Route, Service, TraceStart};
use ringway_core::forwarded::{write_forwarded_element, write_ip};
use ringway_core::http::{Framing, HeadLines, Name, RequestHead};
use ringway_core::http::{claims_a_hop, is_look_alike, list, list_has_token};
use ringway_core::template::Vars;
use ringway_core::trace::{NewTrace, valid_b3, valid_b3_id, valid_traceparent};

use crate::call;
use crate::connection::Connection;
use crate::gate;
use crate::request::Exchange;
use crate::respond;
use crate::time_left;

/// Where a request goes.
pub(crate) struct Destination<'a> {
    pub(crate) listener: &'a Listener,
    pub(crate) route: &'a Route,
    pub(crate) forward: &'a Forward,
    pub(crate) service: &'a Service,
    pub(crate) host: &'a [u8],
    /// The service does not get this one.
    pub(crate) hidden_cookie: Option<&'a str>,
    /// Whether the peer's forwarding headers are believed.
    pub(crate) trusted: bool,
}

/// Writes the head for the service.
pub(crate) fn write_head(
    conn: &Connection,
    exchange: &mut Exchange,
    head: &[u8],
    request: &RequestHead<'_, '_>,
    to: &Destination<'_>,
    vars: &Vars<'_>,
    out: &mut Vec<u8>,
) {
    let Destination { listener, route, forward, service, host, hidden_cookie, trusted } = *to;
    out.extend_from_slice(request.method.as_bytes());
    out.push(b' ');
    match &forward.rewrite {
        Rewrite::Keep => out.extend_from_slice(vars.path),
        Rewrite::Strip(prefix) => {
            let rest = vars.path.get(*prefix..).unwrap_or_default();
            if rest.first() != Some(&b'/') {
                out.push(b'/');
            }
            out.extend_from_slice(rest);
        }
        Rewrite::Path(template) => template.render(vars, out),
    }
    if let Some(query) = vars.query {
        gate::write_query(conn, route, query, out);
    }
    out.extend_from_slice(b" HTTP/1.1\r\nHost: ");
    out.extend_from_slice(host);
    out.extend_from_slice(b"\r\n");

    let trace = TraceContext::of(request);
    let ops = (!route.request_headers.is_empty()).then_some(&route.request_headers);
    let holds_body = route.access.validation.as_ref().is_some_and(|validation| validation.body_bytes_max().is_some());
    let hops = if request.has(Name::MaxForwards) { max_forwards(request) } else { None };
    let tells_certificate = listener.tls.as_ref().is_some_and(|tls| tls.client_cert_header);
    let hides_fields = hidden_cookie.is_some() || gate::hides_fields(conn, route);
    let deadline = service.deadline_header.as_deref();
    let mut hides_cookies = false;
    HeadLines { head, headers: request.headers, names: request.names }.copy(out, |name, header| {
        let kept = match name {
            Name::Other => {
                !is_look_alike(header.name)
                    && (trusted || !claims_a_hop(header.name))
                    && !gate::vouches_for(conn, route, header.name)
                    && (exchange.call.is_none() || !call::is_rewritten(header.name))
                    && deadline.is_none_or(|name| !name.eq_ignore_ascii_case(header.name))
            }
            Name::Accept | Name::UserAgent => true,
            Name::Host | Name::XRequestId => false,
            // Where the body is held it comes with the head.
            Name::Expect => exchange.expects_continue && !holds_body,
            Name::ContentLength => exchange.framing != Framing::Chunked,
            Name::XForwardedFor | Name::XForwardedHost | Name::XForwardedProto => {
                trusted && !listener.forwarded.x_forwarded
            }
            Name::Forwarded => trusted,
            Name::ClientCert => trusted && !tells_certificate,
            Name::MaxForwards => hops.is_none(),
            Name::Traceparent | Name::Tracestate => trace.w3c,
            Name::B3 => trace.b3,
            Name::XB3 => trace.b3_multi,
            name => !name.is_hop_by_hop(),
        };
        let kept = kept
            && !(request.has_connection_fields && is_connection_field(request, name, header.name))
            && ops.is_none_or(|ops| !ops.drops(header.name))
            && !(hides_fields && gate::hides_field(conn, route, header));
        let is_rewritten = kept && hides_fields && gate::hides_cookies(conn, route, hidden_cookie, header);
        hides_cookies |= is_rewritten;
        kept && !is_rewritten
    });
    if hides_cookies {
        gate::write_cookies(conn, route, hidden_cookie, request.headers, out);
    }

    if exchange.framing == Framing::Chunked {
        out.extend_from_slice(b"Transfer-Encoding: chunked\r\n");
    }
    if let Some(protocol) = exchange.upgrade.get(head) {
        write_upgrade(protocol, out);
    } else if request.has(Name::Te) && list_has_token(request.values(Name::Te), b"trailers") {
        out.extend_from_slice(b"TE: trailers\r\nConnection: TE\r\n");
    }
    if exchange.call.is_some() {
        call::write_time_left(conn, exchange, out);
    }
    time_left::write(conn, exchange, service, request, out);
    out.extend_from_slice(b"X-Request-ID: ");
    out.extend_from_slice(exchange.id.as_bytes());
    out.extend_from_slice(b"\r\n");
    if let Some(identity) = &exchange.gate.identity {
        out.extend_from_slice(&identity.header_lines);
    }
    if tells_certificate && let Some(certificate) = conn.secured.certificate() {
        respond::write_field("Client-Cert", certificate.header.as_bytes(), out);
    }
    if listener.forwarded.x_forwarded {
        write_x_forwarded(conn, request, trusted, out);
    }
    if listener.forwarded.forwarded {
        out.extend_from_slice(b"Forwarded: ");
        write_forwarded_element(conn.peer.ip(), request.authority, listener.scheme(), out);
        out.extend_from_slice(b"\r\n");
    }
    out.extend_from_slice(match (exchange.is_http10, exchange.is_http2) {
        (true, _) => b"Via: 1.0 ",
        (_, true) => b"Via: 2.0 ",
        _ => b"Via: 1.1 ",
    });
    out.extend_from_slice(listener.via.as_bytes());
    out.extend_from_slice(b"\r\n");
    if !(trace.w3c || trace.b3 || trace.b3_multi) {
        start_trace(conn, listener.trace, out);
    }
    if let Some(hops) = hops {
        out.extend_from_slice(b"Max-Forwards: ");
        respond::write_number(hops.saturating_sub(1), out);
        out.extend_from_slice(b"\r\n");
    }
    if let Some(ops) = ops {
        for (name, value) in ops.set.iter().chain(&ops.add) {
            out.extend_from_slice(name.as_bytes());
            out.extend_from_slice(b": ");
            value.render(vars, out);
            out.extend_from_slice(b"\r\n");
        }
    }
    out.extend_from_slice(b"\r\n");
}

/// The fields that change the protocol, or ask for it (RFC 9110 section 7.8).
pub(crate) fn write_upgrade(protocol: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(b"Connection: upgrade\r\nUpgrade: ");
    out.extend_from_slice(protocol);
    out.extend_from_slice(b"\r\n");
}

/// Whether `Connection` names the field (RFC 9110 section 7.6.1). What frames the message is not the client's to drop.
fn is_connection_field(request: &RequestHead<'_, '_>, name: Name, field: &str) -> bool {
    !matches!(name, Name::ContentLength | Name::Host | Name::Expect)
        && list_has_token(request.values(Name::Connection), field.as_bytes())
}

/// `X-Forwarded-For`, `-Proto`, `-Host`: what a trusted proxy said goes on, extended by itself; else they begin here.
fn write_x_forwarded(conn: &Connection, request: &RequestHead<'_, '_>, trusted: bool, out: &mut Vec<u8>) {
    out.extend_from_slice(b"X-Forwarded-For: ");
    if trusted {
        for hop in request.values(Name::XForwardedFor).flat_map(list) {
            out.extend_from_slice(hop);
            out.extend_from_slice(b", ");
        }
    }
    write_ip(conn.peer.ip().to_canonical(), out);
    out.extend_from_slice(b"\r\nX-Forwarded-Proto: ");
    out.extend_from_slice(request.value(Name::XForwardedProto).filter(|_| trusted).unwrap_or(conn.listener.scheme()));
    let host = request.value(Name::XForwardedHost).filter(|_| trusted).unwrap_or(request.authority);
    if !host.is_empty() {
        out.extend_from_slice(b"\r\nX-Forwarded-Host: ");
        out.extend_from_slice(host);
    }
    out.extend_from_slice(b"\r\n");
}

/// Which trace contexts of the client are whole, and are passed on as they are.
struct TraceContext {
    w3c: bool,
    b3: bool,
    b3_multi: bool,
}

impl TraceContext {
    fn of(request: &RequestHead<'_, '_>) -> Self {
        let one = |name: Name, valid: fn(&[u8]) -> bool| {
            request.has(name) && {
                let mut values = request.values(name);
                values.next().is_some_and(valid) && values.next().is_none()
            }
        };
        let id_is_valid = |header: &httparse::Header<'_>| {
            !header.name.eq_ignore_ascii_case("x-b3-traceid") || valid_b3_id(header.value)
        };
        Self {
            w3c: one(Name::Traceparent, valid_traceparent),
            b3: one(Name::B3, valid_b3),
            b3_multi: request.has(Name::XB3) && request.headers.iter().all(id_is_valid),
        }
    }
}

fn start_trace(conn: &Connection, start: TraceStart, out: &mut Vec<u8>) {
    if start == TraceStart::Off {
        return;
    }
    let trace = NewTrace::from_random(conn.worker.random_wide(), conn.worker.random());
    match start {
        TraceStart::Off => {}
        TraceStart::W3c => {
            out.extend_from_slice(b"traceparent: ");
            trace.write_traceparent(out);
            out.extend_from_slice(b"\r\n");
        }
        TraceStart::B3 => {
            out.extend_from_slice(b"b3: ");
            trace.write_b3(out);
            out.extend_from_slice(b"\r\n");
        }
        TraceStart::B3Multi => {
            out.extend_from_slice(b"X-B3-TraceId: ");
            trace.write_trace_id(out);
            out.extend_from_slice(b"\r\nX-B3-SpanId: ");
            trace.write_span_id(out);
            out.extend_from_slice(b"\r\n");
        }
    }
}

/// `Max-Forwards` of OPTIONS and TRACE (RFC 9110 section 7.6.2).
pub(crate) fn max_forwards(request: &RequestHead<'_, '_>) -> Option<u32> {
    let value = request.value(Name::MaxForwards)?;
    std::str::from_utf8(value).ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()))?.parse().ok()
}
