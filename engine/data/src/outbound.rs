//! An exchange with a service as far as it is the same for a client's request and for one of the gateway's own: a
//! connection, the request sent, the answer's head.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;

use ringway_config::snapshot::{EndpointTls, Service, ServiceHttp2};
use ringway_core::failure::Failure;
use ringway_core::grpc::Status;
use ringway_core::http::{HeadScan, HeadScanner};
use ringway_core::stats::{ServiceCell, ServiceHandshake, ServiceStats};
use rustls::AlertDescription;

use crate::buffer::Buffer;
use crate::call;
use crate::clock::us;
use crate::connection::Connection;
use crate::deadline::{End, Signal, Slot, Timers};
use crate::http2_upstream::Trunk;
use crate::io::write_service;
use crate::link::Link;
use crate::proxy_protocol::announce;
use crate::retry::status_of;
use crate::tls::shake_hands_with_service;
use crate::upstream::{EndpointPool, Upstream};
use crate::upstream_stream::ServiceStream;
use crate::watch::{self, is_watched};

/// A request on its way to an endpoint, over all tries. Counted in flight until it is dropped.
pub(crate) struct Outbound<'a> {
    /// The client on whose behalf; its row of deadlines is used, unless this has its own.
    pub(crate) conn: &'a Connection,
    own: Option<Timers>,
    pub(crate) service: &'a Service,
    pub(crate) cell: &'a ServiceCell,
    /// When the current try must have the answer's head; `u64::MAX` where nothing says so.
    pub(crate) try_until: Cell<u64>,
    /// The deadline of the request is the gateway's: who misses it is slow.
    pub(crate) own_deadline: Cell<bool>,
    /// It is a gRPC call.
    pub(crate) is_call: Cell<bool>,
    /// The current try's connection is a new one.
    is_fresh: Cell<bool>,
    /// The whole request has been passed on.
    pub(crate) is_sent: Cell<bool>,
    /// When the head of the current try, and then the last of the request, was passed on, on the core's clock; 0: not yet.
    pub(crate) sent_at: Cell<u64>,
    pool: &'a Rc<EndpointPool>,
    stats: &'a Arc<ServiceStats>,
}

/// Why no answer came.
pub(crate) enum Broken {
    /// The connection ended without a byte of an answer: a pooled one may have been closed just before it was used.
    Unanswered,
    /// The service has said that it has not looked at the request: it may be sent again, whatever it is (RFC 9113 section
    /// 8.7).
    Refused,
    /// It is an answer to try again, and that is planned.
    Again {
        /// The answer has come whole.
        reusable: bool,
    },
    Failed(Failure),
}

impl From<Failure> for Broken {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

impl From<Broken> for Failure {
    fn from(broken: Broken) -> Self {
        match broken {
            Broken::Unanswered | Broken::Refused | Broken::Again { .. } => Self::ConnectionBroken,
            Broken::Failed(failure) => failure,
        }
    }
}

impl Drop for Outbound<'_> {
    fn drop(&mut self) {
        self.pool.cell().in_flight.sub(1);
    }
}

impl<'a> Outbound<'a> {
    /// To one of a service's endpoints, both as indices of the snapshot.
    pub(crate) fn new(conn: &'a Connection, service: usize, endpoint: usize) -> Result<Self, Failure> {
        let view = conn.view.services.get(service).ok_or(Failure::Internal)?;
        let pool = view.pools.get(endpoint).ok_or(Failure::NoEndpoint)?;
        let cell = conn.view.service_cell(service, conn.worker.id).ok_or(Failure::Internal)?;
        let stats = conn.view.published.services.get(service).ok_or(Failure::Internal)?;
        pool.cell().in_flight.add(1);
        pool.cell().requests.add(1);
        Ok(Self {
            conn,
            own: None,
            service: &view.service,
            cell,
            try_until: Cell::new(u64::MAX),
            own_deadline: Cell::new(true),
            is_call: Cell::new(false),
            is_fresh: Cell::new(true),
            is_sent: Cell::new(false),
            sent_at: Cell::new(0),
            pool,
            stats,
        })
    }

    /// The same beside another try of the request, whose deadlines are in the client's row. `signal`: in the client's place.
    pub(crate) fn beside(
        conn: &'a Connection,
        service: usize,
        endpoint: usize,
        signal: &Rc<Signal>,
    ) -> Result<Self, Failure> {
        let mut outbound = Self::new(conn, service, endpoint)?;
        outbound.own = Some(conn.worker.deadlines.register(End::Task(Rc::clone(signal))));
        Ok(outbound)
    }

    pub(crate) fn timers(&self) -> &Timers {
        self.own.as_ref().unwrap_or(&self.conn.timers)
    }

    /// The answer that has begun on this connection is the client's: its deadlines are in the client's row from here on.
    pub(crate) fn move_in(&mut self, link: &Link) {
        self.own = None;
        let sent_at = self.sent_at.get();
        self.timers().service(Some(link.end()), sent_at);
        self.timers().set(Slot::Service, self.try_until.get().min(sent_at + us(self.service.timeouts.answer)));
    }

    /// A connection to the endpoint, and whether it has been used before.
    pub(crate) async fn acquire(&self, fresh: bool) -> Result<(Upstream, bool), Failure> {
        let conn = self.conn;
        self.is_sent.set(false);
        self.sent_at.set(0);
        if let Some(http2) = self.pool.settings.http2 {
            return self.begin_stream(http2).await;
        }
        self.is_fresh.set(true);
        if !fresh {
            let now = conn.worker.clock.lately();
            if let Some(upstream) = std::future::poll_fn(|cx| Poll::Ready(self.pool.take(now, cx))).await {
                self.is_fresh.set(false);
                return Ok((upstream, true));
            }
        }
        if !self.pool.may_connect() {
            return Err(Failure::ConnectionCap);
        }
        let now = conn.worker.clock.lately();
        let connected = self.pool.connect(now, |link| {
            self.timers().service(Some(link.end()), now);
            self.timers().set(Slot::Service, self.try_until.get().min(now + us(self.service.timeouts.connect)));
        });
        let secured = match (connected.await, &self.pool.endpoint.tls) {
            (Ok(upstream), tls) => {
                if let (Some(version), Some(sock)) = (self.service.proxy_protocol, upstream.link.sock()) {
                    announce(conn, version, sock).inspect_err(|_| self.timers().service(None, 0))?;
                }
                match tls {
                    None => return Ok((upstream, false)),
                    Some(tls) => Box::pin(self.secure(upstream, tls, now)).await,
                }
            }
            (Err(_), _) => Err(self.late(Failure::ConnectTimeout).unwrap_or(Failure::ConnectFailed)),
        };
        match secured {
            Ok(upstream) => Ok((upstream, false)),
            Err(failure) => {
                self.timers().service(None, 0);
                self.note_failure(failure);
                Err(failure)
            }
        }
    }

    /// Secures a connection that was begun at `begun`: the time to connect is for both.
    async fn secure(&self, mut upstream: Upstream, tls: &EndpointTls, begun: u64) -> Result<Upstream, Failure> {
        let conn = self.conn;
        let Some(sock) = upstream.link.sock().cloned() else { return Err(Failure::Internal) };
        self.timers().service(Some(upstream.link.end()), begun);
        self.timers().set(Slot::Service, self.try_until.get().min(begun + us(self.service.timeouts.connect)));
        match shake_hands_with_service(&conn.worker, &sock, tls, b"http/1.1").await {
            Ok(secured) => {
                self.cell.record_handshake(secured.handshake);
                upstream.secure(secured.session);
                Ok(upstream)
            }
            Err(error) => {
                let late = self.late(Failure::ConnectTimeout);
                let (failure, ended) = match late {
                    Some(failure) => (failure, ServiceHandshake::Timeout),
                    None => error.outcome(),
                };
                if late != Some(Failure::ClientGone) {
                    self.cell.record_handshake(ended);
                }
                if late.is_none() {
                    self.pool.complain(conn.worker.clock.lately(), &error);
                }
                Err(failure)
            }
        }
    }

    /// A stream of one of the endpoint's connections of HTTP/2, and whether the connection stood already.
    async fn begin_stream(&self, http2: ServiceHttp2) -> Result<(Upstream, bool), Failure> {
        let conn = self.conn;
        let now = conn.worker.clock.lately();
        let (trunk, stands) = Trunk::of(self.pool, &conn.worker, http2, &self.service.timeouts, self.stats)?;
        let stream = ServiceStream::new(trunk, &conn.worker);
        self.is_fresh.set(!stands);
        if !stands {
            self.timers().service(Some(End::Task(Rc::clone(&stream.signal))), now);
            self.timers().set(Slot::Service, self.try_until.get().min(now + us(self.service.timeouts.connect)));
            if let Err(failure) = stream.connected().await {
                let failure = self.late(Failure::ConnectTimeout).unwrap_or(failure);
                self.timers().service(None, 0);
                self.note_failure(failure);
                return Err(failure);
            }
        }
        Ok((Upstream::of_stream(stream, now, Rc::clone(self.pool)), stands))
    }

    /// Which deadline has passed, if one has.
    pub(crate) fn late(&self, service: Failure) -> Option<Failure> {
        if self.timers().has_fired(Slot::ClientGone) {
            return Some(Failure::ClientGone);
        }
        if self.timers().has_fired(Slot::Request) {
            return Some(Failure::RequestTimeout);
        }
        let fired = [Slot::Service, Slot::ServiceWrite].map(|slot| self.timers().has_fired(slot));
        fired.contains(&true).then_some(service)
    }

    /// Sends the start of a request, or all of it; whether the service took it. It may answer early and close: a write
    /// that fails is no verdict, what can be read is.
    pub(crate) async fn send(&self, upstream: &Upstream, bytes: &[u8]) -> Result<bool, Failure> {
        let conn = self.conn;
        self.timers().service(Some(upstream.link.end()), conn.worker.clock.lately());
        if let Some(stream) = upstream.link.stream().filter(|stream| stream.must_settle(bytes)) {
            self.settle(stream).await?;
        }
        self.timers().set(Slot::Service, self.try_until.get());
        self.sent_at.set(conn.worker.clock.lately());
        let taken = write_service(&conn.worker, self.timers(), &upstream.link, bytes, us(self.service.timeouts.idle))
            .await
            .is_ok();
        match self.late(Failure::AnswerTimeout) {
            Some(failure) if !taken => {
                self.note_failure(failure);
                Err(failure)
            }
            _ => Ok(taken),
        }
    }

    /// The whole request has been passed on.
    pub(crate) fn sent(&self) {
        self.is_sent.set(true);
        self.sent_at.set(self.conn.worker.clock.lately());
    }

    /// How long the service took to begin its answer, once it had the whole request.
    pub(crate) fn took_us(&self, now_us: u64) -> Option<u64> {
        self.is_sent.get().then(|| now_us.saturating_sub(self.sent_at.get()))
    }

    /// A service of HTTP/2 has to say that it takes tunnels before one is asked for: the time to connect is for that too.
    async fn settle(&self, stream: &ServiceStream) -> Result<(), Failure> {
        let until = stream.connection_born() + us(self.service.timeouts.connect);
        self.timers().set(Slot::Service, self.try_until.get().min(until));
        if stream.settled().await {
            return Ok(());
        }
        let late = self.late(Failure::ConnectTimeout).unwrap_or(Failure::ConnectFailed);
        if late == Failure::ConnectTimeout {
            stream.suspect();
        }
        self.note_failure(late);
        Err(late)
    }

    /// The time for the answer's head starts when the request has been sent.
    pub(crate) fn arm_answer(&self) {
        let answer = self.conn.worker.clock.lately() + us(self.service.timeouts.answer);
        self.timers().set(Slot::Service, answer.min(self.try_until.get()));
    }

    /// Reads until the buffer holds a whole answer head; gives back its length too.
    pub(crate) async fn read_answer(
        &self,
        upstream: &mut Upstream,
        buffer: Option<Buffer>,
    ) -> Result<(Buffer, usize), Broken> {
        let read = self.read_head(upstream, buffer).await;
        if is_watched(self.service) {
            self.note(&read);
        }
        read
    }

    /// Tells what has become of the try.
    #[inline(never)]
    fn note(&self, read: &Result<(Buffer, usize), Broken>) {
        match read {
            Ok((buffer, length)) => {
                let head = buffer.data().get(..*length).unwrap_or_default();
                let status = status_of(head);
                if status >= 200 || status == 101 {
                    let now = self.conn.worker.clock.now();
                    let is_good = match self.is_call.get() && status == 200 {
                        true => call::status_in(head).map(|said| !self.fails(said)),
                        false => Some(status < 500),
                    };
                    watch::answered(self.service, self.pool, is_good, self.took_us(now), now);
                }
            }
            Err(Broken::Failed(failure)) => self.note_failure(*failure),
            // The service may have closed a connection that was kept just before it was used.
            Err(Broken::Unanswered) if self.is_fresh.get() => self.note_failure(Failure::ConnectionBroken),
            Err(Broken::Unanswered | Broken::Refused | Broken::Again { .. }) => {}
        }
    }

    fn note_failure(&self, failure: Failure) {
        let (now, begun, whole) = (self.conn.worker.clock.now(), self.sent_at.get() > 0, self.is_sent.get());
        // The client may have been slow with its body, or give its call as little time as it likes.
        let is_own = self.own_deadline.get() && (whole || !begun);
        if is_watched(self.service) && (failure != Failure::RequestTimeout || is_own) {
            watch::failed(self.service, self.pool, failure, begun.then(|| self.took_us(now)), now);
        }
    }

    /// Another try was quicker. That is neither a failure nor an answer; but it would have taken longer than this.
    pub(crate) fn note_given_up(&self) {
        let now = self.conn.worker.clock.now();
        if is_watched(self.service)
            && let Some(waited_us) = self.took_us(now)
        {
            self.pool.health.latency.observe_at_least(waited_us, now);
        }
    }

    /// What of a call's answer has come says how it went.
    pub(crate) fn note_went(&self, is_good: bool) {
        if is_watched(self.service) {
            watch::went(self.service, self.pool, is_good, self.conn.worker.clock.now());
        }
    }

    /// Whether a call that ends so has failed. Its client may give it as little time as it likes.
    pub(crate) fn fails(&self, status: Status) -> bool {
        self.service.grpc_failures.has(status) && (status != Status::DEADLINE_EXCEEDED || self.own_deadline.get())
    }

    /// The answer had begun, and broke off.
    pub(crate) fn note_broken_off(&self) {
        if is_watched(self.service) {
            self.pool.cell().failures.add(1);
        }
    }

    async fn read_head(&self, upstream: &mut Upstream, buffer: Option<Buffer>) -> Result<(Buffer, usize), Broken> {
        let limit = self.service.timeouts.head_bytes;
        let mut scanner = HeadScanner::default();
        let mut buffer = match buffer {
            Some(buffer) => buffer,
            None => {
                upstream.ready().await;
                self.conn.worker.take_answer()
            }
        };
        loop {
            if !buffer.is_empty() {
                match scanner.scan(buffer.data()) {
                    HeadScan::Complete(length) if length <= limit => return Ok((buffer, length)),
                    HeadScan::Partial if buffer.len() < limit => {}
                    HeadScan::Partial | HeadScan::Complete(_) => return Err(Failure::AnswerHeadTooLarge.into()),
                    HeadScan::BareLineFeed | HeadScan::NotHttp => return Err(Failure::BadAnswer.into()),
                }
            }
            if buffer.room().is_empty() {
                buffer.make_room(limit.min(buffer.len() * 2).max(1));
            }
            match upstream.link.recv(buffer.room()) {
                Ok(Some(received)) if received > 0 => buffer.received(received),
                Ok(None) => upstream.ready().await,
                Ok(Some(_)) | Err(_) => {
                    return Err(match self.late(Failure::AnswerTimeout) {
                        Some(failure) => {
                            if let (Failure::AnswerTimeout, Some(stream)) = (failure, upstream.link.stream()) {
                                stream.suspect();
                            }
                            failure.into()
                        }
                        None if buffer.is_empty() => self.unanswered(upstream),
                        None => Failure::ConnectionBroken.into(),
                    });
                }
            }
        }
    }

    /// The connection ended without a byte of an answer.
    fn unanswered(&self, upstream: &Upstream) -> Broken {
        if let Some(stream) = upstream.link.stream() {
            return stream.broken();
        }
        let Some(alert) = upstream.link.refusal() else { return Broken::Unanswered };
        let reason = format!("the service has refused it: {:?}", AlertDescription::from(alert));
        self.pool.complain(self.conn.worker.clock.lately(), &reason);
        Failure::TlsFailed.into()
    }

    /// The head that follows an interim answer.
    pub(crate) async fn next_answer(
        &self,
        upstream: &mut Upstream,
        buffer: Buffer,
    ) -> Result<(Buffer, usize), Failure> {
        Ok(self.read_answer(upstream, Some(buffer)).await?)
    }
}
