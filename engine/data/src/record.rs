//! What a request leaves behind: its counters and its line in the access log.

use std::cell::RefCell;

use ringway_config::snapshot::AccessLog;
use ringway_core::forwarded::write_ip;
use ringway_core::grpc::Status;
use ringway_core::log_line::{Formatter, Line, Tunnel};
use ringway_core::log_queue::{BATCH_BYTES, BUFFER_BYTES};
use ringway_core::stats::Hedged;
use ringway_core::sticky::Outcome;

use crate::call;
use crate::connection::Connection;
use crate::gate;
use crate::request::Exchange;
use crate::tls::Secured;
use crate::worker::Worker;

/// A core's access log lines on their way to the writer.
pub(crate) struct Log(RefCell<Pending>);

struct Pending {
    formatter: Formatter,
    lines: Vec<u8>,
    ip: Vec<u8>,
}

impl Log {
    pub(crate) fn new() -> Self {
        let lines = Vec::with_capacity(BUFFER_BYTES);
        Self(RefCell::new(Pending { formatter: Formatter::new(), lines, ip: Vec::with_capacity(64) }))
    }

    /// Hands over what has gathered, be it little.
    pub(crate) fn flush(&self, worker: &Worker) {
        let mut pending = self.0.borrow_mut();
        if !pending.lines.is_empty() {
            worker.hub.log.swap(&mut pending.lines);
        }
        if worker.hub.log.has_full() {
            worker.hub.log.wake();
        }
    }
}

/// Counts an exchange that is over and logs it. `head`: the request's, as received.
pub(crate) fn record(conn: &Connection, exchange: &Exchange, head: &[u8]) {
    let latency_us = count(conn, exchange);
    if is_logged(conn, exchange) {
        let service = exchange.service.and_then(|service| conn.view.published.snapshot.services.get(service));
        let service = service.map(|service| &*service.name);
        let full = gate::concurrency_limit_of(conn, exchange);
        let rest = Rest {
            latency_us,
            service,
            full,
            secured: &conn.secured,
            grpc: call::outcome(conn, exchange),
            tunnel: None,
        };
        log(&conn.worker, exchange, head, &rest);
    }
}

/// Counts an exchange; gives its latency in microseconds.
pub(crate) fn count(conn: &Connection, exchange: &Exchange) -> u64 {
    let worker = &conn.worker;
    let now = worker.clock.now();
    let latency_us = now - exchange.started;
    let view = &conn.view;
    if let Some(cell) = view.route_stats(exchange.route).workers.get(worker.id) {
        cell.record(exchange.status, latency_us);
    }
    if let (Some(service), Some(us)) = (exchange.service, exchange.service_us)
        && let Some(cell) = view.service_cell(service, worker.id)
    {
        cell.latency.record_us(us);
    }

    let grpc_status = call::outcome(conn, exchange);
    if let (Some(service), Some(status)) = (exchange.service, grpc_status)
        && let Some(cell) = view.service_cell(service, worker.id)
    {
        cell.record_call(status);
    }

    if let Some((authenticator, outcome)) = exchange.gate.authentication
        && let Some(stats) = view.published.authenticators.get(authenticator as usize)
        && let Some(cell) = stats.workers.get(worker.id)
    {
        cell.record(outcome);
    }
    latency_us
}

pub(crate) fn is_logged(conn: &Connection, exchange: &Exchange) -> bool {
    conn.route(exchange).is_none_or(|route| route.log) && conn.view.published.snapshot.access_log != AccessLog::Off
}

/// What a line tells besides the exchange.
pub(crate) struct Rest<'a> {
    pub(crate) latency_us: u64,
    pub(crate) service: Option<&'a str>,
    /// The concurrency limit that refused.
    pub(crate) full: Option<&'a str>,
    pub(crate) secured: &'a Secured,
    pub(crate) grpc: Option<Status>,
    pub(crate) tunnel: Option<Tunnel<'a>>,
}

/// Writes the line. `head`: where the exchange's spans are.
pub(crate) fn log(worker: &Worker, exchange: &Exchange, head: &[u8], rest: &Rest<'_>) {
    let mut pending = worker.log.0.borrow_mut();
    let Pending { formatter, lines, ip } = &mut *pending;
    ip.clear();
    write_ip(exchange.client_ip, ip);
    let line = Line {
        unix_ms: worker.clock.unix_ms(exchange.started),
        request_id: exchange.id.as_bytes(),
        method: exchange.method.get(head).unwrap_or(b"-"),
        path: exchange.path.get(head).unwrap_or(b"-"),
        status: exchange.status,
        latency_us: rest.latency_us,
        client_ip: ip,
        user_agent: exchange.user_agent.get(head),
        user_id: exchange.gate.identity.as_ref().and_then(|identity| identity.user.as_deref()).map(str::as_bytes),
        rate_limit_remaining: exchange.gate.limit.map(|(_, state)| state.remaining),
        backend_service: rest.service,
        backend_latency_us: exchange.service_us,
        http_version: match (exchange.is_http2, exchange.is_http10) {
            (true, _) => Some("2.0"),
            (_, true) => Some("1.0"),
            _ => None,
        },
        concurrency_limit: rest.full,
        tls: rest.secured.facts(),
        grpc_status: rest.grpc.map(Status::code),
        attempts: exchange.attempts,
        hedge: exchange.hedge.map(Hedged::label),
        circuit_breaker: exchange.cut.label(),
        shed: exchange.shed,
        session: exchange.session.map(Outcome::label),
        tunnel: rest.tunnel,
    };
    formatter.write(&line, lines);
    if lines.len() >= BATCH_BYTES {
        worker.hub.log.swap(lines);
        // The tick wakes the writer; in between it is woken only where much has gathered, since each wake may cost a
        // busy core two switches.
        if worker.hub.log.is_filling() {
            worker.hub.log.wake();
        }
    }
}
