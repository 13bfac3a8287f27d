//! Answers that the gateway gives itself: errors, redirects, fixed answers. Each is written whole, body and all.

use httparse::Header;
use ringway_config::snapshot::{Redirect, RedirectToHttps, Respond, Route};
use ringway_core::access::Seen;
use ringway_core::access::cors::{self, Cors, Preflight};
use ringway_core::answer::{Format, negotiate, status_line, write_error_body};
use ringway_core::auth::Flaw;
use ringway_core::failure::Failure;
use ringway_core::grpc::Status;
use ringway_core::http::{Framing, HeadStorage, Name, RequestHead, Target};
use ringway_core::https_redirect::write_location;
use ringway_core::path::normalize;
use ringway_core::router::{Captures, Found, RouteRequest};
use ringway_core::template::{HeaderOps, Vars};

use crate::call;
use crate::connection::Connection;
use crate::forward::Attempt;
use crate::gate;
use crate::request::{Exchange, Step};

/// A request body of at most this many bytes is read and dropped behind an answer that did not need it, so that the
/// connection lives; a longer one, or one of unknown length, ends the connection.
pub(crate) const DRAIN_BYTES_MAX: u64 = 64 * 1024;
/// What `OPTIONS *` tells: the methods that the gateway passes on.
const METHODS: &str = "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS, TRACE";

/// Appends a decimal number.
pub(crate) fn write_number(number: impl itoa::Integer, out: &mut Vec<u8>) {
    out.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
}

pub(crate) fn write_field(name: &str, value: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

/// `Connection`, where the client could not know by its version.
pub(crate) fn write_connection(keep_alive: bool, is_http10: bool, out: &mut Vec<u8>) {
    match (keep_alive, is_http10) {
        (false, _) => out.extend_from_slice(b"Connection: close\r\n"),
        (true, true) => out.extend_from_slice(b"Connection: keep-alive\r\n"),
        (true, false) => {}
    }
}

/// What [`begin_bare`] writes, and what the route adds to its answers.
fn begin(conn: &Connection, exchange: &mut Exchange, status: u16, headers: &[Header<'_>], out: &mut Vec<u8>) {
    begin_bare(conn, exchange, status, out);
    gate::write_limit(conn, exchange, out);
    if let Some(route) = conn.route(exchange)
        && route.access.changes_answers()
    {
        route.access.write_answer_headers(cors::origin(headers), conn.listener.tls.is_some(), Seen::default(), out);
    }
}

/// The status line and what every own answer says; settles whether the connection lives.
fn begin_bare(conn: &Connection, exchange: &mut Exchange, status: u16, out: &mut Vec<u8>) {
    let unread = match exchange.framing {
        Framing::None => true,
        Framing::Length(length) => length <= DRAIN_BYTES_MAX && !exchange.expects_continue,
        Framing::Chunked | Framing::Close => false,
    };
    exchange.keep_alive = exchange.keep_alive && unread && conn.may_keep_alive();
    exchange.status = status;
    out.clear();
    status_line(status, out);
    out.extend_from_slice(b"Date: ");
    conn.worker.clock.write_date(out);
    out.extend_from_slice(b"\r\nX-Request-ID: ");
    out.extend_from_slice(exchange.id.as_bytes());
    out.extend_from_slice(b"\r\n");
    write_connection(exchange.keep_alive, exchange.is_http10, out);
}

fn write_ops(ops: &HeaderOps, vars: &Vars<'_>, out: &mut Vec<u8>) {
    for (name, value) in ops.set.iter().chain(&ops.add) {
        out.extend_from_slice(name.as_bytes());
        out.extend_from_slice(b": ");
        value.render(vars, out);
        out.extend_from_slice(b"\r\n");
    }
}

/// The same for the answer of a service. Values with variables look at the request again: its head is read and routed
/// a second time, since nothing of it was kept.
pub(crate) fn write_answer_ops(
    attempt: &Attempt<'_>,
    exchange: &Exchange,
    ops: &HeaderOps,
    route: &Route,
    out: &mut Vec<u8>,
) {
    let conn = attempt.outbound.conn;
    let is_literal = ops.set.iter().chain(&ops.add).all(|(_, value)| value.as_literal().is_some());
    let mut storage = HeadStorage::new();
    let head = if is_literal { b"" } else { attempt.request };
    let request = RequestHead::parse(head, conn.listener.limits.headers, &mut storage).ok();
    let mut normalized = conn.worker.path.borrow_mut();
    let (path, query) = match request.as_ref().map(|request| request.target) {
        Some(Target::Path { path, query }) => {
            (normalize(path, conn.listener.path, &mut normalized).unwrap_or_default(), query)
        }
        _ => (&b""[..], None),
    };
    let mut captures = Captures::default();
    let (mut host, mut method, mut headers) = (&b""[..], &b""[..], &[][..]);
    if let Some(request) = &request {
        (host, method, headers) = (request.authority, request.method.as_bytes(), request.headers);
        let wanted = RouteRequest { host: request.host(), method, path, query, headers };
        if let Found::Route { captures: found, .. } = conn.listener.router.find(&wanted) {
            captures = found;
        }
    }
    let client_ip = (!is_literal).then(|| conn.worker.text_of(exchange.client_ip));
    let vars = Vars {
        request_id: exchange.id.as_bytes(),
        client_ip: client_ip.as_deref().unwrap_or_default(),
        host,
        method,
        path,
        query,
        scheme: conn.listener.scheme(),
        route: &route.name,
        service: &attempt.outbound.service.name,
        captures: &captures,
        headers,
        tls: conn.secured.facts(),
    };
    write_ops(ops, &vars, out);
}

/// `Content-Length` and the end of the head; the body too, but to HEAD and where the status has none.
fn finish(exchange: &Exchange, body: &[u8], out: &mut Vec<u8>) {
    if matches!(exchange.status, 204 | 304) {
        out.extend_from_slice(b"\r\n");
        return;
    }
    out.extend_from_slice(b"Content-Length: ");
    write_number(body.len(), out);
    out.extend_from_slice(b"\r\n\r\n");
    if !exchange.is_head {
        out.extend_from_slice(body);
    }
}

/// A fixed answer of a route.
pub(crate) fn fixed(
    conn: &Connection,
    exchange: &mut Exchange,
    route: &Route,
    answer: &Respond,
    vars: &Vars<'_>,
    out: &mut Vec<u8>,
) {
    begin(conn, exchange, answer.status, vars.headers, out);
    if !answer.content_type.is_empty() && !route.response_headers.drops("content-type") {
        write_field("Content-Type", answer.content_type.as_bytes(), out);
    }
    write_ops(&route.response_headers, vars, out);
    finish(exchange, &answer.body, out);
}

/// A redirect of a route.
pub(crate) fn redirect(
    conn: &Connection,
    exchange: &mut Exchange,
    route: &Route,
    redirect: &Redirect,
    vars: &Vars<'_>,
    out: &mut Vec<u8>,
) {
    begin(conn, exchange, redirect.status, vars.headers, out);
    out.extend_from_slice(b"Location: ");
    redirect.location.render(vars, out);
    out.extend_from_slice(b"\r\n");
    write_ops(&route.response_headers, vars, out);
    finish(exchange, b"", out);
}

/// The redirect of a listener that sends everybody to https.
pub(crate) fn to_https(
    conn: &Connection,
    exchange: &mut Exchange,
    redirect: &RedirectToHttps,
    authority: &[u8],
    (path, query): (&[u8], Option<&[u8]>),
    out: &mut Vec<u8>,
) -> Result<Step<'static>, Failure> {
    begin_bare(conn, exchange, redirect.status, out);
    out.extend_from_slice(b"Location: ");
    if !write_location(authority, redirect.port, path, query, out) {
        return Err(Failure::Malformed("Missing Host header"));
    }
    out.extend_from_slice(b"\r\n");
    finish(exchange, b"", out);
    Ok(Step::Answer)
}

/// `OPTIONS *` (RFC 9110 section 9.3.7), and OPTIONS whose `Max-Forwards` is used up.
pub(crate) fn options(conn: &Connection, exchange: &mut Exchange, out: &mut Vec<u8>) {
    begin_bare(conn, exchange, 200, out);
    write_field("Allow", METHODS.as_bytes(), out);
    finish(exchange, b"", out);
}

/// What an authority hears about its challenge (RFC 8555 section 8.3).
pub(crate) fn challenge_answer(conn: &Connection, exchange: &mut Exchange, answer: &[u8], out: &mut Vec<u8>) {
    begin_bare(conn, exchange, 200, out);
    write_field("Content-Type", b"application/octet-stream", out);
    finish(exchange, answer, out);
}

/// 405, with the methods that the path does have.
pub(crate) fn wrong_method(
    conn: &Connection,
    exchange: &mut Exchange,
    request: &RequestHead<'_, '_>,
    allow: impl FnOnce(&mut Vec<u8>),
    out: &mut Vec<u8>,
) {
    if exchange.call.is_some() {
        return end_call(conn, exchange, Failure::WrongMethod, request.headers, out);
    }
    begin_bare(conn, exchange, Failure::WrongMethod.status(), out);
    out.extend_from_slice(b"Allow: ");
    allow(out);
    out.extend_from_slice(b"\r\n");
    error_body(conn, exchange, Failure::WrongMethod, negotiate(request.values(Name::Accept)), out);
}

/// Any failure; `head` is the request's, as far as it came.
pub(crate) fn failure(conn: &Connection, exchange: &mut Exchange, failure: Failure, head: &[u8], out: &mut Vec<u8>) {
    exchange.keep_alive &= !failure.closes_connection();
    let mut storage = HeadStorage::new();
    let (format, headers) = match RequestHead::parse(head, conn.listener.limits.headers, &mut storage) {
        Ok(request) => (negotiate(request.values(Name::Accept)), request.headers),
        Err(_) => (Format::Json, &[][..]),
    };
    if exchange.call.is_some() {
        return end_call(conn, exchange, failure, headers, out);
    }
    if let Some(refusal) = exchange.gate.refusal.clone() {
        // An auth service said it.
        begin(conn, exchange, refusal.status, headers, out);
        out.extend_from_slice(&refusal.lines);
        return finish(exchange, &refusal.body, out);
    }
    begin(conn, exchange, failure.status(), headers, out);
    match failure {
        Failure::Unauthenticated(flaw) => challenge(conn, exchange, flaw, out),
        // RFC 6750 section 3.1.
        Failure::Forbidden("scope") => {
            out.extend_from_slice(b"WWW-Authenticate: Bearer error=\"insufficient_scope\"\r\n")
        }
        // RFC 9110 section 15.5.16.
        Failure::UnsupportedContent => {
            if let Some(validation) = conn.route(exchange).and_then(|route| route.access.validation.as_ref()) {
                write_field("Accept", validation.accept().as_bytes(), out);
            }
        }
        _ => {}
    }
    error_body(conn, exchange, failure, format, out);
}

/// Any failure of a gRPC call, which its client reads in the form of gRPC. The log and the counters of the route have the
/// status that it would have been otherwise.
fn end_call(conn: &Connection, exchange: &mut Exchange, failure: Failure, headers: &[Header<'_>], out: &mut Vec<u8>) {
    begin(conn, exchange, 200, headers, out);
    if let Failure::Unauthenticated(flaw) = failure {
        challenge(conn, exchange, flaw, out);
    }
    if let Some(seconds) = failure.retry_after_secs() {
        write_field("Retry-After", itoa::Buffer::new().format(seconds).as_bytes(), out);
    }
    let refusal = exchange.gate.refusal.as_ref().map(|refusal| refusal.status);
    exchange.status = refusal.unwrap_or(failure.status());
    let status = refusal.map_or(Status::of_failure(failure), Status::of_http);
    if let Some(call) = &mut exchange.call {
        call.status = Some(status);
    }
    let detail = exchange.gate.invalid.as_ref().map(ToString::to_string);
    call::write_end(status, detail.as_deref().unwrap_or(failure.message()), out);
}

/// One challenge for each scheme that the route knows (RFC 9110 section 11.6.1); the one that judged says what was wrong
/// (RFC 6750 section 3).
fn challenge(conn: &Connection, exchange: &Exchange, flaw: Option<Flaw>, out: &mut Vec<u8>) {
    let Some(route) = conn.route(exchange) else { return };
    let authenticators = &conn.view.published.snapshot.authenticators;
    let judged = exchange.gate.authentication.map(|(index, _)| index);
    for (at, index) in route.policy.authenticate.iter().enumerate() {
        let Some(authenticator) = authenticators.get(*index as usize) else { continue };
        let flaw = flaw.filter(|_| judged == Some(*index));
        let mut earlier =
            route.policy.authenticate.iter().take(at).filter_map(|index| authenticators.get(*index as usize));
        if flaw.is_none() && earlier.any(|other| other.scheme() == authenticator.scheme()) {
            continue;
        }
        out.extend_from_slice(b"WWW-Authenticate: ");
        out.extend_from_slice(authenticator.scheme().as_bytes());
        out.extend_from_slice(b" realm=\"");
        out.extend_from_slice(authenticator.name.as_bytes());
        out.push(b'"');
        if let Some(flaw) = flaw {
            out.extend_from_slice(b", error=\"");
            out.extend_from_slice(flaw.code.as_bytes());
            out.extend_from_slice(b"\", error_description=\"");
            out.extend_from_slice(flaw.description.as_bytes());
            out.push(b'"');
        }
        out.extend_from_slice(b"\r\n");
    }
}

/// What a preflight is told (CORS).
pub(crate) fn preflight(
    conn: &Connection,
    exchange: &mut Exchange,
    cors: &Cors,
    asked: &Preflight<'_>,
    out: &mut Vec<u8>,
) {
    begin_bare(conn, exchange, 204, out);
    cors.preflight(asked, out);
    finish(exchange, b"", out);
}

fn error_body(conn: &Connection, exchange: &Exchange, failure: Failure, format: Format, out: &mut Vec<u8>) {
    out.extend_from_slice(match format {
        Format::Json => b"Content-Type: application/json\r\n",
        Format::Problem => b"Content-Type: application/problem+json\r\n".as_slice(),
    });
    if let Some(seconds) = failure.retry_after_secs() {
        out.extend_from_slice(b"Retry-After: ");
        write_number(seconds, out);
        out.extend_from_slice(b"\r\n");
    }
    if let (true, Some(error)) = (conn.listener.proxy_status, failure.proxy_status_error()) {
        out.extend_from_slice(b"Proxy-Status: ");
        out.extend_from_slice(conn.listener.via.as_bytes());
        out.extend_from_slice(b"; error=");
        out.extend_from_slice(error.as_bytes());
        out.extend_from_slice(b"\r\n");
    }
    let mut body = conn.worker.take_head();
    let detail = exchange.gate.invalid.as_ref().map(ToString::to_string);
    let message = detail.as_deref().unwrap_or(failure.message());
    write_error_body(format, failure.status(), message, exchange.id.as_bytes(), &mut body);
    finish(exchange, &body, out);
    conn.worker.give_head(body);
}
