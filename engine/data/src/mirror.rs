//! Copies of a route's requests for another service, whose answers nobody gets. The original neither waits for its copy nor
//! knows what becomes of it.

use std::cell::Cell;
use std::sync::Arc;

use memchr::memmem;
use ringway_config::snapshot::{Action, Forward, HostRewrite, Mirror};
use ringway_core::failure::{Failure, Fault};
use ringway_core::http::Framing;
use ringway_core::stats::{MirrorOutcome, MirrorStats};

use crate::affinity::Wish;
use crate::breaker::{Passage, Shut};
use crate::clock::us;
use crate::connection::Connection;
use crate::request::Exchange;
use crate::retry::status_of;
use crate::subrequest::{Keep, Limits, call_at};

/// Tells the service that the request is a copy.
const MARK: &[u8] = b"X-Mirrored: true\r\n";
/// Fields of the original that its copy does not have: the body does not wait for a word, and the mark is the gateway's.
const LEFT_OUT: [&[u8]; 2] = [b"expect:", b"x-mirrored:"];

/// A copy that is gathered, or under way. It has one of the route's places until it is dropped.
pub(crate) struct Copied {
    /// A client's connection, but for the client.
    conn: Box<Connection>,
    stats: Arc<MirrorStats>,
    mirror: Plan,
    /// Head and body as the original's service gets them.
    bytes: Vec<u8>,
    /// Where the body begins.
    head: usize,
    may_repeat: bool,
    outcome: Cell<MirrorOutcome>,
}

/// What of the route's settings outlives the request.
#[derive(Debug, Clone, Copy)]
struct Plan {
    service: usize,
    body_bytes_max: usize,
    timeout_us: u64,
    names_endpoint: bool,
}

/// Copies a request, where its route wants that and the lot falls on it. `request`: the head as its service gets it, and
/// what of the body has come; where that `is_whole` the copy is on its way already, else the rest is still to be added.
#[inline]
pub(crate) fn copy(conn: &Connection, exchange: &Exchange, request: &[u8], is_whole: bool) -> Option<Copied> {
    let Some(Action::Forward(forward)) = conn.route(exchange).map(|route| &route.action) else { return None };
    let mirror = forward.mirror.as_ref()?;
    let copied = begin(conn, exchange, forward, mirror, request)?;
    if is_whole {
        copied.send();
        return None;
    }
    Some(copied)
}

#[inline(never)]
fn begin(conn: &Connection, exchange: &Exchange, forward: &Forward, mirror: &Mirror, request: &[u8]) -> Option<Copied> {
    if conn.worker.random() % 100 >= u64::from(mirror.share) {
        return None;
    }
    let stats = conn.view.published.mirrors.get(exchange.route? as usize)?.as_ref()?;
    let count = |outcome| stats.record(conn.worker.id, outcome);
    if !exchange.upgrade.is_empty() {
        count(MirrorOutcome::Upgrade);
        return None;
    }
    let head = memmem::find(request, b"\r\n\r\n")? + 4;
    let announced = match exchange.framing {
        Framing::Length(length) => length,
        _ => 0,
    };
    if announced > mirror.body_bytes_max as u64 || request.len() - head > mirror.body_bytes_max {
        count(MirrorOutcome::BodyTooLarge);
        return None;
    }
    if !stats.enter(mirror.in_flight) {
        count(MirrorOutcome::NoPlace);
        return None;
    }
    let plan = Plan {
        service: mirror.service,
        body_bytes_max: mirror.body_bytes_max,
        timeout_us: us(mirror.timeout),
        names_endpoint: matches!(forward.host, HostRewrite::Endpoint),
    };
    Some(Copied {
        conn: conn.for_nobody(),
        stats: Arc::clone(stats),
        mirror: plan,
        bytes: request.to_vec(),
        head,
        may_repeat: exchange.is_idempotent,
        outcome: Cell::new(MirrorOutcome::Aborted),
    })
}

impl Copied {
    /// Adds a piece of the body as it is sent; false, and the copy is of no use, where it is longer than it may be.
    pub(crate) fn add(&mut self, piece: &[u8]) -> bool {
        if (self.bytes.len() - self.head).saturating_add(piece.len()) > self.mirror.body_bytes_max {
            self.outcome.set(MirrorOutcome::BodyTooLarge);
            return false;
        }
        self.bytes.extend_from_slice(piece);
        true
    }

    /// It is whole.
    pub(crate) fn send(self) {
        ringway_io::spawn(async move {
            let outcome = self.ask().await;
            self.outcome.set(outcome);
        });
    }

    async fn ask(&self) -> MirrorOutcome {
        let (conn, service) = (&*self.conn, self.mirror.service);
        let passage = match Passage::open(conn, service, Wish::default(), 0) {
            Ok(passage) => passage,
            Err(Shut::Open(_)) => return MirrorOutcome::BreakerOpen,
            Err(Shut::NoEndpoint) => return MirrorOutcome::Failed,
        };
        let host = conn.view.services.get(service).filter(|_| self.mirror.names_endpoint);
        let host = host.map(|view| view.endpoint_host(passage.endpoint));
        let request = marked(&self.bytes, self.head, host);
        let until = conn.worker.clock.now() + self.mirror.timeout_us;
        let limits = Limits { until, body: Keep::Nothing, may_repeat: self.may_repeat, may_wait: false };
        match call_at(conn, service, passage.endpoint, &request, limits).await {
            Ok(reply) => {
                let status = status_of(reply.head());
                passage.answered(status, reply.head(), reply.head_us);
                if status >= 500 { MirrorOutcome::ServerError } else { MirrorOutcome::Answered }
            }
            Err(Failure::BulkheadFull(_)) => MirrorOutcome::BulkheadFull,
            Err(failure) => {
                if failure == Failure::RequestTimeout || failure.fault() == Fault::Service {
                    passage.failed();
                }
                MirrorOutcome::Failed
            }
        }
    }
}

impl Drop for Copied {
    fn drop(&mut self) {
        self.stats.leave();
        self.stats.record(self.conn.worker.id, self.outcome.get());
    }
}

/// The request that the service gets: `bytes` with a head of so many bytes. `host`: where it is another one.
fn marked(bytes: &[u8], head: usize, host: Option<&[u8]>) -> Vec<u8> {
    let (head, body) = bytes.split_at_checked(head).unwrap_or((bytes, b""));
    let mut out = Vec::with_capacity(bytes.len() + MARK.len() + host.map_or(0, <[u8]>::len));
    let has_name = |line: &[u8], name: &[u8]| line.get(..name.len()).is_some_and(|own| own.eq_ignore_ascii_case(name));
    for line in head.split_inclusive(|byte| *byte == b'\n') {
        match host {
            _ if line == b"\r\n" => out.extend_from_slice(MARK),
            Some(host) if has_name(line, b"host:") => {
                out.extend_from_slice(b"Host: ");
                out.extend_from_slice(host);
                out.extend_from_slice(b"\r\n");
                continue;
            }
            _ => {}
        }
        if !LEFT_OUT.iter().any(|name| has_name(line, name)) {
            out.extend_from_slice(line);
        }
    }
    out.extend_from_slice(body);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_is_marked_and_does_not_wait_for_a_word() {
        let head = b"PUT /a HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nX-MIRRORED: no\r\nA: host: b\r\n\r\n";
        let bytes = [&head[..], b"expect: body\r\n\r\n"].concat();
        let text = |host: Option<&[u8]>| String::from_utf8(marked(&bytes, head.len(), host)).unwrap();
        assert_eq!(
            text(None),
            "PUT /a HTTP/1.1\r\nHost: a\r\nA: host: b\r\nX-Mirrored: true\r\n\r\nexpect: body\r\n\r\n"
        );
        assert_eq!(
            text(Some(b"b:1")),
            "PUT /a HTTP/1.1\r\nHost: b:1\r\nA: host: b\r\nX-Mirrored: true\r\n\r\nexpect: body\r\n\r\n"
        );
    }
}
