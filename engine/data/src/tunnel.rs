//! What an upgrade makes of an exchange (RFC 9110 section 7.8): what is kept of it, counted, and logged at its end. What goes
//! through it is in `tunnel_relay.rs`.

use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;

use ringway_config::snapshot::{Action, Service};
use ringway_core::log_line;
use ringway_core::stats::RouteStats;

use crate::buffer::Buffer;
use crate::clock::us;
use crate::connection::Connection;
use crate::deadline::{End, Signal};
use crate::record;
use crate::request::{Exchange, WEBSOCKET};
use crate::tls::Secured;
use crate::tunnel_relay::{First, Relay, Sides};
use crate::upstream::{EndpointPool, Upstream};
use crate::worker::Worker;

/// The service's end, right after it has changed the protocol.
pub(crate) struct Opened {
    upstream: Upstream,
    /// What came behind the answer's head.
    first: Buffer,
    in_flight: InFlight,
}

/// A request in flight to an endpoint, for as long as this lives.
struct InFlight(Rc<EndpointPool>);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.cell().in_flight.sub(1);
    }
}

impl Opened {
    pub(crate) fn new(upstream: Upstream, first: Buffer) -> Self {
        upstream.link.stream().inspect(|stream| stream.become_tunnel());
        let pool = Rc::clone(&upstream.pool);
        pool.cell().in_flight.add(1);
        Self { upstream, first, in_flight: InFlight(pool) }
    }
}

/// What a tunnel keeps of the exchange that opened it: no snapshot, so that those of earlier configurations go when their
/// requests have.
pub(crate) struct Tunnel {
    /// Holds the request's places among those under way.
    exchange: Exchange,
    /// What the log wants of the head.
    head: Box<[u8]>,
    latency_us: u64,
    opened_at: u64,
    is_logged: bool,
    is_websocket: bool,
    /// In microseconds.
    idle: u64,
    route: Option<Arc<RouteStats>>,
    service: Arc<Service>,
    secured: Secured,
    upstream: Upstream,
    _in_flight: InFlight,
    first: First,
}

impl Tunnel {
    /// Counts the exchange, and takes over what of the inbox is behind its `used` bytes.
    pub(crate) fn new(conn: &Connection, mut exchange: Exchange, inbox: &mut Buffer, used: usize) -> Option<Box<Self>> {
        let Opened { upstream, first, in_flight } = *exchange.opened.take()?;
        let latency_us = record::count(conn, &exchange);
        let Action::Forward(forward) = &conn.route(&exchange)?.action else { return None };
        let protocol = exchange.upgrade.get(inbox.data()).unwrap_or_default();
        let is_websocket = protocol.eq_ignore_ascii_case(WEBSOCKET);
        let route = conn.view.published.routes.get(exchange.route? as usize).map(Arc::clone);
        if let Some(cell) = route.as_ref().and_then(|stats| stats.workers.get(conn.worker.id)) {
            if is_websocket { &cell.tunnels.websocket } else { &cell.tunnels.other }.add(1);
        }
        let head = exchange.keep_for_log(inbox.data());
        inbox.consume(used);
        let rest = (!inbox.is_empty()).then(|| std::mem::replace(inbox, conn.worker.take_inbox()));
        Some(Box::new(Self {
            head,
            latency_us,
            opened_at: conn.worker.clock.lately(),
            is_logged: record::is_logged(conn, &exchange),
            is_websocket,
            idle: us(forward.upgrades.idle),
            route,
            service: Arc::clone(&conn.view.services.get(exchange.service?)?.service),
            secured: conn.secured.clone(),
            upstream,
            _in_flight: in_flight,
            first: First { of_client: rest, of_service: (!first.is_empty()).then_some(first) },
            exchange,
        }))
    }

    fn record(&self, worker: &Worker, bytes_in: u64, bytes_out: u64) {
        if let Some(cell) = self.route.as_ref().and_then(|stats| stats.workers.get(worker.id)) {
            cell.tunnels.bytes_in.add(bytes_in);
            cell.tunnels.bytes_out.add(bytes_out);
        }
        if self.is_logged {
            let open_us = worker.clock.now().saturating_sub(self.opened_at);
            let protocol = self.exchange.upgrade.get(&self.head).unwrap_or_default();
            let tunnel = log_line::Tunnel { protocol, open_us, bytes_in, bytes_out };
            let rest = record::Rest {
                latency_us: self.latency_us,
                service: Some(&self.service.name),
                full: None,
                secured: &self.secured,
                grpc: None,
                tunnel: Some(tunnel),
            };
            record::log(worker, &self.exchange, &self.head, &rest);
        }
    }
}

/// Carries bytes both ways until the tunnel ends. A panic ends this tunnel, and nothing else.
pub(crate) async fn tunnel(mut conn: Box<Connection>, mut tunnel: Box<Tunnel>) {
    let worker = Rc::clone(&conn.worker);
    let signal = Rc::new(Signal::default());
    let relay = Relay::new(
        &worker,
        Sides { client: conn.take_client(), service: tunnel.upstream.link.clone(), counted: conn.take_counted() },
        tunnel.is_websocket,
        worker.deadlines.register(End::Task(Rc::clone(&signal))),
        (tunnel.idle, tunnel.idle.min(us(tunnel.service.timeouts.idle))),
    );
    // With its snapshot.
    drop(conn);
    worker.cell().tunnels.add(1);
    let first = std::mem::take(&mut tunnel.first);
    let mut running = Box::pin(relay.run(&signal, first));
    let ended = poll_fn(|cx| match catch_unwind(AssertUnwindSafe(|| running.as_mut().poll(cx))) {
        Ok(poll) => poll.map(Some),
        Err(_) => Poll::Ready(None),
    });
    if ended.await.is_none() {
        worker.cell().panics.add(1);
        tracing::error!(worker = worker.id, "a tunnel's task panicked; the tunnel was closed");
    }
    drop(running);
    worker.cell().tunnels.sub(1);
    let (bytes_in, bytes_out) = relay.carried();
    tunnel.record(&worker, bytes_in, bytes_out);
}
