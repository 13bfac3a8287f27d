//! What follows an upgrade (RFC 9110 section 7.8): bytes both ways, whatever they mean, until both sides have ended.
//!
//! An idle tunnel holds no block: each direction waits for bytes, takes a block from the core's for them, and gives it back
//! when they have left. The next bytes are read then, so that a slow reader slows the other side down.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;

use ringway_config::snapshot::{Action, Service};
use ringway_core::http::websocket::{CLOSE_FRAME, Frames, masked_close_frame};
use ringway_core::log_line;
use ringway_core::stats::RouteStats;
use rustix::net::Shutdown;

use crate::buffer::Buffer;
use crate::client::Client;
use crate::clock::us;
use crate::connection::{Connection, Counted};
use crate::deadline::{End, Signal, Slot, Timers};
use crate::io::{Blocks, Gone};
use crate::link::Link;
use crate::record;
use crate::request::{Exchange, WEBSOCKET};
use crate::tls::Secured;
use crate::upstream::{EndpointPool, Upstream};
use crate::worker::Worker;

/// How long the ends of a tunnel that the gateway closes have to close theirs.
pub(crate) const CLOSE_US: u64 = 500_000;

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
    /// What came before there was a tunnel, by direction.
    from_client: Option<Buffer>,
    from_service: Option<Buffer>,
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
            from_client: rest,
            from_service: (!first.is_empty()).then_some(first),
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

/// How a tunnel ended.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ended {
    /// Both sides have.
    Whole,
    /// One of them is gone.
    Broken,
    /// It was idle for too long, or the process ends.
    ByGateway,
}

/// One direction.
#[derive(Default)]
struct Direction {
    bytes: Cell<u64>,
    frames: RefCell<Frames>,
    /// Bytes are on their way that have not all left.
    is_sending: Cell<bool>,
    has_ended: Cell<bool>,
}

impl Direction {
    fn may_close(&self) -> bool {
        !self.is_sending.get() && !self.has_ended.get() && self.frames.borrow().may_close()
    }
}

/// A running tunnel.
struct Running {
    worker: Rc<Worker>,
    client: Client,
    service: Link,
    is_websocket: bool,
    timers: Timers,
    idle: u64,
    /// The same once one side has ended.
    idle_half_closed: u64,
    to_service: Direction,
    to_client: Direction,
    /// The connection goes on counting as one.
    _counted: Option<Counted>,
}

/// Carries bytes both ways until the tunnel ends. A panic ends this tunnel, and nothing else.
pub(crate) async fn tunnel(mut conn: Box<Connection>, mut tunnel: Box<Tunnel>) {
    let worker = Rc::clone(&conn.worker);
    let signal = Rc::new(Signal::default());
    let running = Running {
        client: conn.take_client(),
        service: tunnel.upstream.link.clone(),
        is_websocket: tunnel.is_websocket,
        timers: worker.deadlines.register(End::Task(Rc::clone(&signal))),
        idle: tunnel.idle,
        idle_half_closed: tunnel.idle.min(us(tunnel.service.timeouts.idle)),
        to_service: Direction::default(),
        to_client: Direction::default(),
        worker: Rc::clone(&worker),
        _counted: conn.take_counted(),
    };
    // With its snapshot.
    drop(conn);
    worker.cell().tunnels.add(1);
    let first = (tunnel.from_client.take(), tunnel.from_service.take());
    let mut serving = Box::pin(running.serve(&signal, first));
    let ended = poll_fn(|cx| match catch_unwind(AssertUnwindSafe(|| serving.as_mut().poll(cx))) {
        Ok(poll) => poll.map(Some),
        Err(_) => Poll::Ready(None),
    });
    if ended.await.is_none() {
        worker.cell().panics.add(1);
        tracing::error!(worker = worker.id, "a tunnel's task panicked; the tunnel was closed");
    }
    drop(serving);
    worker.cell().tunnels.sub(1);
    tunnel.record(&worker, running.to_service.bytes.get(), running.to_client.bytes.get());
}

impl Running {
    async fn serve(&self, signal: &Signal, (from_client, from_service): (Option<Buffer>, Option<Buffer>)) {
        self.timers.tunnel();
        self.touch();
        let ended = {
            let mut to_service = pin!(self.upload(from_client));
            let mut to_client = pin!(self.download(from_service));
            poll_fn(|cx| {
                signal.listen(cx);
                if self.timers.has_fired(Slot::ClientRead) {
                    return Poll::Ready(Ended::ByGateway);
                }
                let mut is_broken = false;
                if !self.to_service.has_ended.get() {
                    is_broken |= matches!(to_service.as_mut().poll(cx), Poll::Ready(Err(Gone)));
                }
                if !is_broken && !self.to_client.has_ended.get() {
                    is_broken |= matches!(to_client.as_mut().poll(cx), Poll::Ready(Err(Gone)));
                }
                match self.to_service.has_ended.get() && self.to_client.has_ended.get() {
                    _ if is_broken => Poll::Ready(Ended::Broken),
                    true => Poll::Ready(Ended::Whole),
                    false => Poll::Pending,
                }
            })
            .await
        };
        match ended {
            Ended::Whole => {}
            Ended::Broken => self.reset(),
            Ended::ByGateway => self.close(signal).await,
        }
    }

    /// Something has moved.
    fn touch(&self) {
        let is_half_closed = self.to_service.has_ended.get() || self.to_client.has_ended.get();
        let idle = if is_half_closed { self.idle_half_closed } else { self.idle };
        self.timers.set(Slot::ClientRead, self.worker.clock.lately() + idle);
    }

    /// From the client to the service.
    async fn upload(&self, mut first: Option<Buffer>) -> Result<(), Gone> {
        let mut blocks = Blocks::default();
        loop {
            let buffer = match first.take() {
                Some(first) => first,
                None => {
                    self.client.readable().await;
                    let mut buffer = self.worker.take_inbox();
                    match self.client.recv(buffer.room()) {
                        Ok(None) => continue,
                        Ok(Some(received)) if received > 0 => {
                            self.worker.cell().client_bytes_in.add(received as u64);
                            buffer.received(received);
                            buffer
                        }
                        Ok(Some(_)) => break,
                        Err(error) if self.is_end(&error) => break,
                        Err(_) => return Err(Gone),
                    }
                }
            };
            self.begin(&self.to_service, &buffer);
            let mut sent = 0;
            while let Some(left) = buffer.data().get(sent..).filter(|left| !left.is_empty()) {
                match self.service.send(left) {
                    Ok(taken) if taken == left.len() => sent += taken,
                    Ok(taken) => {
                        sent += taken;
                        self.service.writable().await;
                        self.touch();
                    }
                    Err(_) => return Err(Gone),
                }
            }
            self.to_service.is_sending.set(false);
            drop(buffer);
            blocks.next().await;
        }
        self.service.shutdown(Shutdown::Write);
        self.to_service.has_ended.set(true);
        self.touch();
        Ok(())
    }

    /// From the service to the client.
    async fn download(&self, mut first: Option<Buffer>) -> Result<(), Gone> {
        let mut blocks = Blocks::default();
        loop {
            let buffer = match first.take() {
                Some(first) => first,
                None => {
                    self.service.readable().await;
                    let mut buffer = self.worker.take_answer();
                    match self.service.recv(buffer.room()) {
                        Ok(None) => continue,
                        Ok(Some(received)) if received > 0 => {
                            buffer.received(received);
                            buffer
                        }
                        Ok(Some(_)) => break,
                        Err(error) if self.is_end(&error) => break,
                        Err(_) => return Err(Gone),
                    }
                }
            };
            self.worker.cell().client_bytes_out.add(buffer.len() as u64);
            self.begin(&self.to_client, &buffer);
            self.give(buffer).await?;
            self.to_client.is_sending.set(false);
            blocks.next().await;
        }
        self.end_client();
        self.to_client.has_ended.set(true);
        self.touch();
        Ok(())
    }

    fn begin(&self, direction: &Direction, buffer: &Buffer) {
        direction.bytes.set(direction.bytes.get() + buffer.len() as u64);
        direction.is_sending.set(true);
        if self.is_websocket {
            direction.frames.borrow_mut().pass(buffer.data());
        }
        self.touch();
    }

    /// Writes a block to the client.
    async fn give(&self, buffer: Buffer) -> Result<(), Gone> {
        if let Some(stream) = self.client.stream() {
            stream.send_block(buffer, false).map_err(|_| Gone)?;
            return poll_fn(|cx| stream.poll_sent(cx)).await.map_err(|_| Gone);
        }
        let mut sent = 0;
        while let Some(left) = buffer.data().get(sent..).filter(|left| !left.is_empty()) {
            let taken = self.client.send(left).map_err(|_| Gone)?;
            sent += taken;
            if taken < left.len() {
                self.client.writable().await;
                self.touch();
            }
        }
        Ok(())
    }

    /// TLS is closed without its word for that by many. A WebSocket says by itself whether it is whole.
    fn is_end(&self, error: &io::Error) -> bool {
        error.kind() == io::ErrorKind::UnexpectedEof && self.is_websocket
    }

    /// Nothing more goes to the client.
    fn end_client(&self) {
        match self.client.stream() {
            Some(stream) => drop(stream.send_bytes(b"", true)),
            None => self.client.shutdown(Shutdown::Write),
        }
    }

    /// What did not come whole must not look as if it had.
    fn reset(&self) {
        match self.client.stream() {
            // RFC 8441 section 5.
            Some(stream) => stream.reset(h2::Reason::CANCEL),
            None => self.client.reset_on_close(),
        }
        self.service.reset_on_close();
    }

    /// Tells both sides that the gateway ends it, and gives them a moment to end it too. Between two frames of a WebSocket
    /// that is a close frame.
    async fn close(&self, signal: &Signal) {
        if self.is_websocket && self.to_client.may_close() {
            let _ = match self.client.stream() {
                Some(stream) => stream.send_bytes(&CLOSE_FRAME, false),
                None => self.client.send(&CLOSE_FRAME).map(drop),
            };
        }
        if self.is_websocket && self.to_service.may_close() {
            let mask = (self.worker.random() as u32).to_ne_bytes();
            let _ = self.service.send(&masked_close_frame(mask));
        }
        self.end_client();
        self.service.shutdown(Shutdown::Write);
        self.timers.forget(Slot::ClientRead);
        self.timers.set(Slot::ClientRead, self.worker.clock.now() + CLOSE_US);
        let mut client = pin!(self.drop_rest(&self.to_service, false));
        let mut service = pin!(self.drop_rest(&self.to_client, true));
        let (mut client_is_over, mut service_is_over) = (false, false);
        poll_fn(|cx| {
            signal.listen(cx);
            client_is_over = client_is_over || client.as_mut().poll(cx).is_ready();
            service_is_over = service_is_over || service.as_mut().poll(cx).is_ready();
            let is_over = client_is_over && service_is_over;
            if is_over || self.timers.has_fired(Slot::ClientRead) { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }

    /// Reads up to the end of what is sent into a direction.
    async fn drop_rest(&self, direction: &Direction, of_service: bool) {
        let mut blocks = Blocks::default();
        while !direction.has_ended.get() {
            if of_service {
                self.service.readable().await
            } else {
                self.client.readable().await
            }
            let mut buffer = self.worker.take_inbox();
            let room = buffer.room();
            let received = if of_service { self.service.recv(room) } else { self.client.recv(room) };
            match received {
                Ok(Some(0)) | Err(_) => return,
                Ok(_) => blocks.next().await,
            }
        }
    }
}
