//! Connections of HTTP/2 to services (RFC 9113): the crate `h2` over our loop, one task for each connection, shared by the
//! streams of one core and one endpoint.
//!
//! Memory of a connection: what the windows let the service send ahead ([`STREAM_WINDOW_BYTES`] a stream), two blocks of a
//! request's body for each stream, and what is gathered for one send ([`Pipe`]).

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use h2::client::{ResponseFuture, SendRequest};
use h2::{Ping, PingPong, RecvStream, SendStream};
use http::Request;
use http::uri::Scheme;
use ringway_config::snapshot::{ServiceHttp2, ServiceTimeouts};
use ringway_core::failure::Failure;
use ringway_core::keepalive::{Keepalive, Watch};
use ringway_core::stats::{ServiceHandshake, ServiceStats};

use crate::clock::us;
use crate::deadline::{End, Signal, Slot, Timers};
use crate::stream::{Piece, Shown};
use crate::tls::{HTTP2, shake_hands_with_service};
use crate::upstream::{EndpointPool, Upstream};
use crate::upstream_answer::Ended;
use crate::upstream_pipe::{Carrier, Pipe};
use crate::worker::Worker;

/// The window of a stream. That of the connection holds those of all its streams, so that slow ones leave the others theirs.
const STREAM_WINDOW_BYTES: u32 = 64 * 1024;
/// Streams that the service made the gateway reset, before the connection is ended: by breaking the protocol, or with what
/// it still sent when `h2` had forgotten that they were reset.
const BROKEN_STREAMS_MAX: usize = 10_000;
/// Streams that were reset and are remembered, since the service may not know it yet, and for how long.
const RESET_STREAMS_MAX: usize = 1_000;
const RESET_REMEMBERED: Duration = Duration::from_secs(10);

/// A connection to an endpoint, for many streams.
pub(crate) struct Trunk {
    state: RefCell<State>,
    signal: Rc<Signal>,
    is_secure: Cell<bool>,
    /// Streams that the configuration allows.
    streams_max: usize,
    streams: Cell<usize>,
    /// It has refused a stream since it last answered one.
    refuses: Cell<bool>,
    /// Its task runs: it counts as idle while it has no stream.
    lives: Cell<bool>,
    /// The service has said what it takes.
    is_settled: Cell<bool>,
    /// Streams that wait for that: they are woken when it has, or will not.
    unsettled: RefCell<Vec<Rc<Signal>>>,
    /// Answers that are whole by their length, while the service has yet to say that its streams end: a reset would cross
    /// that. As many as streams at most, and for a second or two.
    ending: RefCell<Vec<RecvStream>>,
    /// When it was begun, on the core's clock.
    pub(crate) born: u64,
    idle_since: Cell<u64>,
    /// When something last came, on the core's clock.
    heard: Cell<u64>,
    /// The block that `h2` reads from.
    pub(crate) shown: Rc<Shown>,
    pool: Rc<EndpointPool>,
}

enum State {
    /// Those that wait for it are woken when it stands, or will not.
    Connecting(Vec<Rc<Signal>>),
    Open(SendRequest<Piece>),
    /// It takes no more streams; those that it has go on.
    Closed(Failure),
}

impl Trunk {
    /// A place for a new stream on a connection to the endpoint: on one that stands, else on one that is made now. Tells
    /// whether it stood already.
    ///
    /// # Errors
    /// All connections that there may be have as many streams as they may.
    pub(crate) fn of(
        pool: &Rc<EndpointPool>,
        worker: &Rc<Worker>,
        http2: ServiceHttp2,
        timeouts: &ServiceTimeouts,
        stats: &Arc<ServiceStats>,
    ) -> Result<(Rc<Self>, bool), Failure> {
        let mut trunks = pool.trunks.borrow_mut();
        let found = trunks.iter().find(|trunk| trunk.has_room() && !trunk.refuses.get()).cloned();
        if let Some(trunk) = found {
            let stands = trunk.is_open();
            if stands {
                pool.cell().reuses.add(1);
            }
            return Ok((trunk, stands));
        }
        let open = trunks.iter().filter(|trunk| trunk.streams_allowed().is_some()).count();
        if open >= http2.connections || !pool.may_connect() {
            let refusing = trunks.iter().find(|trunk| trunk.has_room()).cloned();
            return refusing.map(|trunk| (trunk, true)).ok_or(Failure::ConnectionCap);
        }
        let now = worker.clock.lately();
        let trunk = Rc::new(Self {
            state: RefCell::new(State::Connecting(Vec::new())),
            signal: Rc::default(),
            is_secure: Cell::new(false),
            streams_max: http2.max_concurrent_streams,
            streams: Cell::new(0),
            refuses: Cell::new(false),
            lives: Cell::new(true),
            is_settled: Cell::new(false),
            unsettled: RefCell::default(),
            ending: RefCell::default(),
            born: now,
            idle_since: Cell::new(now),
            heard: Cell::new(now),
            shown: Rc::default(),
            pool: Rc::clone(pool),
        });
        trunks.push(Rc::clone(&trunk));
        pool.cell().idle.add(1);
        ringway_io::spawn(run(Rc::clone(&trunk), Rc::clone(worker), http2, *timeouts, Arc::clone(stats)));
        Ok((trunk, false))
    }

    fn is_open(&self) -> bool {
        matches!(*self.state.borrow(), State::Open(_))
    }

    /// How many streams the service allows; `None` where it takes no more at all, after a GOAWAY.
    fn streams_allowed(&self) -> Option<usize> {
        match &mut *self.state.borrow_mut() {
            State::Connecting(_) => Some(usize::MAX),
            State::Open(send) => match send.poll_ready(&mut Context::from_waker(Waker::noop())) {
                Poll::Ready(Err(_)) => None,
                _ => Some(send.current_max_send_streams()),
            },
            State::Closed(_) => None,
        }
    }

    /// Whether it takes one more stream.
    fn has_room(&self) -> bool {
        self.streams_allowed().is_some_and(|allowed| self.streams.get() < self.streams_max.min(allowed))
    }

    pub(crate) fn scheme(&self) -> Scheme {
        if self.is_secure.get() { Scheme::HTTPS } else { Scheme::HTTP }
    }

    pub(crate) fn enter(&self, stream: &Rc<Signal>) {
        if self.streams.replace(self.streams.get() + 1) == 0 && self.lives.get() {
            self.pool.cell().idle.sub(1);
        }
        if let State::Connecting(waiting) = &mut *self.state.borrow_mut() {
            waiting.push(Rc::clone(stream));
        }
    }

    pub(crate) fn leave(&self, now: u64) {
        let left = self.streams.get().saturating_sub(1);
        self.streams.set(left);
        if left == 0 {
            self.idle_since.set(now);
            self.refuses.set(false);
            if self.lives.get() {
                self.pool.cell().idle.add(1);
            }
            // Nobody sweeps it any more.
            if self.pool.is_closed() {
                self.close(Failure::ConnectionBroken);
            }
        }
    }

    /// Waits in a stream's place for its end.
    pub(crate) fn await_end(&self, body: RecvStream) {
        let mut ending = self.ending.borrow_mut();
        if ending.len() < self.streams_max {
            ending.push(body);
            self.signal.wake();
        }
    }

    fn poll_ends(&self, cx: &mut Context<'_>) {
        self.ending.borrow_mut().retain_mut(|body| body.poll_data(cx).is_pending());
    }

    /// Whether it stands, or why it does not.
    pub(crate) fn connected(&self) -> Poll<Result<(), Failure>> {
        match &*self.state.borrow() {
            State::Connecting(_) => Poll::Pending,
            State::Open(_) => Poll::Ready(Ok(())),
            State::Closed(failure) => Poll::Ready(Err(*failure)),
        }
    }

    /// Begins a stream with this head.
    pub(crate) fn send(&self, request: Request<()>, end: bool) -> Result<(ResponseFuture, SendStream<Piece>), Ended> {
        let state = self.state.borrow();
        // Nothing of the request has been sent.
        let State::Open(send) = &*state else { return Err(Ended::Refused) };
        let mut send = send.clone();
        if let Poll::Ready(Err(_)) = send.poll_ready(&mut Context::from_waker(Waker::noop())) {
            return Err(Ended::Refused);
        }
        send.send_request(request, end).map_err(|_| Ended::Malformed)
    }

    /// Whether the service takes an extended CONNECT (RFC 8441 section 3), which it has to say first.
    pub(crate) fn takes_tunnels(&self, stream: &Rc<Signal>) -> Poll<bool> {
        match &*self.state.borrow() {
            State::Open(send) if self.is_settled.get() => Poll::Ready(send.is_extended_connect_protocol_enabled()),
            // [`Trunk::send`] tells more.
            State::Closed(_) => Poll::Ready(true),
            State::Connecting(_) | State::Open(_) => {
                let mut unsettled = self.unsettled.borrow_mut();
                if !unsettled.iter().any(|known| Rc::ptr_eq(known, stream)) {
                    unsettled.push(Rc::clone(stream));
                }
                Poll::Pending
            }
        }
    }

    fn settle(&self) {
        self.is_settled.set(true);
        self.unsettled.borrow_mut().drain(..).for_each(|stream| stream.wake());
    }

    /// It has refused a stream: others are preferred until it answers one.
    pub(crate) fn refuses(&self) {
        self.refuses.set(true);
    }

    pub(crate) fn answers(&self) {
        self.refuses.set(false);
    }

    /// A stream since `since` has had no answer in time.
    pub(crate) fn suspect(&self, since: u64) {
        if self.heard.get() < since {
            self.close(Failure::ConnectionBroken);
        }
    }

    /// Takes no more streams. It ends when those that it has have ended.
    fn close(&self, failure: Failure) {
        let before = std::mem::replace(&mut *self.state.borrow_mut(), State::Closed(failure));
        if let State::Connecting(waiting) = &before {
            waiting.iter().for_each(|stream| stream.wake());
        }
        // `h2` ends a connection that has no stream and no handle.
        drop(before);
        self.unsettled.borrow_mut().drain(..).for_each(|stream| stream.wake());
        self.signal.wake();
    }

    fn open(&self, send: SendRequest<Piece>) {
        let mut state = self.state.borrow_mut();
        if let State::Connecting(waiting) = &mut *state {
            let waiting = std::mem::take(waiting);
            *state = State::Open(send);
            waiting.iter().for_each(|stream| stream.wake());
        }
    }
}

impl EndpointPool {
    /// Ends the connections of HTTP/2 that have been without a stream for too long, and those that are too old, once their
    /// streams have ended.
    pub(crate) fn sweep_trunks(&self, now: u64) {
        let (idle, max_age) = (us(self.settings.idle), self.settings.max_age.map(us));
        self.trunks.borrow_mut().retain(|trunk| {
            trunk.ending.borrow_mut().clear();
            let is_idle = trunk.streams.get() == 0 && now.saturating_sub(trunk.idle_since.get()) > idle;
            let is_old = max_age.is_some_and(|age| now.saturating_sub(trunk.born) > age);
            if is_idle || is_old {
                trunk.close(Failure::ConnectionBroken);
            }
            !(is_idle || is_old)
        });
    }

    pub(crate) fn close_trunks(&self) {
        self.trunks.borrow_mut().drain(..).for_each(|trunk| trunk.close(Failure::ConnectionBroken));
    }
}

fn settings(streams: usize, head_bytes: usize) -> h2::client::Builder {
    let mut builder = h2::client::Builder::new();
    builder
        .enable_push(false)
        .initial_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(STREAM_WINDOW_BYTES.saturating_mul(streams as u32))
        // Until the service says its own.
        .initial_max_send_streams(streams)
        .max_header_list_size(head_bytes as u32)
        .max_local_error_reset_streams(Some(BROKEN_STREAMS_MAX))
        .max_concurrent_reset_streams(RESET_STREAMS_MAX)
        .reset_stream_duration(RESET_REMEMBERED);
    builder
}

/// The whole life of a connection.
async fn run(
    trunk: Rc<Trunk>,
    worker: Rc<Worker>,
    http2: ServiceHttp2,
    timeouts: ServiceTimeouts,
    stats: Arc<ServiceStats>,
) {
    let timers = worker.deadlines.register(End::Task(Rc::clone(&trunk.signal)));
    let mut life = pin!(live(&trunk, &worker, &timers, http2, &timeouts, &stats));
    let ended = poll_fn(|cx| match catch_unwind(AssertUnwindSafe(|| life.as_mut().poll(cx))) {
        Ok(poll) => poll.map(Ok),
        Err(_) => Poll::Ready(Err(())),
    });
    let failure = match ended.await {
        Ok(Err(failure)) => failure,
        Ok(Ok(())) => Failure::ConnectionBroken,
        Err(()) => {
            worker.cell().panics.add(1);
            tracing::error!(worker = worker.id, "a service's HTTP/2 connection panicked; it was closed");
            Failure::Internal
        }
    };
    trunk.close(failure);
    trunk.pool.trunks.borrow_mut().retain(|known| !Rc::ptr_eq(known, &trunk));
    trunk.ending.borrow_mut().clear();
    trunk.shown.take();
    trunk.lives.set(false);
    if trunk.streams.get() == 0 {
        trunk.pool.cell().idle.sub(1);
    }
}

/// Makes the connection, within the time for that, and secures it where it is to be secure. Gives back what has come
/// already, too.
async fn connect(
    trunk: &Trunk,
    worker: &Rc<Worker>,
    timers: &Timers,
    timeouts: &ServiceTimeouts,
    stats: &ServiceStats,
) -> Result<(Upstream, Vec<u8>), Failure> {
    let clock = &worker.clock;
    let begun = clock.lately();
    let until = begun + us(timeouts.connect);
    let connected = trunk.pool.connect(clock.lately(), |link| {
        timers.service(Some(link.end()), begun);
        timers.set(Slot::Service, until);
    });
    let late = || timers.has_fired(Slot::Service);
    let connected = connected.await;
    let mut upstream = connected.map_err(|_| if late() { Failure::ConnectTimeout } else { Failure::ConnectFailed })?;
    let Some(tls) = &trunk.pool.endpoint.tls else { return Ok((upstream, Vec::new())) };
    let Some(sock) = upstream.link.sock().cloned() else { return Err(Failure::Internal) };
    timers.service(Some(upstream.link.end()), begun);
    timers.set(Slot::Service, until);
    let shaken = shake_hands_with_service(worker, &sock, tls, HTTP2).await;
    let (result, ended) = match shaken {
        Ok(secured) => {
            upstream.secure(secured.session);
            trunk.is_secure.set(true);
            (Ok((upstream, secured.first)), secured.handshake)
        }
        Err(_) if late() => (Err(Failure::ConnectTimeout), ServiceHandshake::Timeout),
        Err(error) => {
            trunk.pool.complain(clock.lately(), &error);
            let (failure, ended) = error.outcome();
            (Err(failure), ended)
        }
    };
    if let Some(cell) = stats.workers.get(worker.id) {
        cell.record_handshake(ended);
    }
    result
}

async fn live(
    trunk: &Trunk,
    worker: &Rc<Worker>,
    timers: &Timers,
    http2: ServiceHttp2,
    timeouts: &ServiceTimeouts,
    stats: &ServiceStats,
) -> Result<(), Failure> {
    let clock = &worker.clock;
    // A handshake is large: in a box of its own, which is gone when the connection stands.
    let (upstream, first) = Box::pin(connect(trunk, worker, timers, timeouts, stats)).await?;
    timers.service(None, 0);
    let link = upstream.link.clone();
    let pipe = Rc::new(RefCell::new(Pipe::new(worker, upstream, first, trunk.streams_max, Rc::clone(&trunk.shown))));
    let shaken = settings(trunk.streams_max, timeouts.head_bytes).handshake(Carrier(Rc::clone(&pipe))).await;
    let (send, mut h2) = shaken.map_err(|_| Failure::ConnectFailed)?;
    let pings = http2.keepalive.and_then(|settings| Some((Keepalive::new(settings), h2.ping_pong()?)));
    let mut pulse = pings.map(|(watch, pings)| Pulse { watch, pings });
    trunk.heard.set(clock.lately());
    if let Some(pulse) = &mut pulse {
        pulse.beats(trunk, timers, clock.lately());
    }
    trunk.open(send);
    let mut h2 = pin!(h2);
    let mut reading = pin!(link.readable());
    let mut writing = pin!(link.writable());
    let (mut is_blocked, mut is_over) = (false, false);
    poll_fn(|cx| {
        trunk.signal.listen(cx);
        loop {
            if timers.has_fired(Slot::ClientWrite) {
                return Poll::Ready(());
            }
            if timers.has_fired(Slot::ClientRead)
                && !pulse.as_mut().is_none_or(|pulse| pulse.beats(trunk, timers, clock.lately()))
            {
                trunk.pool.cell().keepalive_timeouts.add(1);
                return Poll::Ready(());
            }
            is_over = is_over || h2.as_mut().poll(cx).is_ready();
            trunk.poll_ends(cx);
            if !trunk.is_settled.get() && pipe.borrow().has_settings() {
                trunk.settle();
            }
            if std::mem::take(&mut pipe.borrow_mut().heard) {
                trunk.heard.set(clock.lately());
            }
            let Ok(all_sent) = pipe.borrow_mut().flush() else { return Poll::Ready(()) };
            if all_sent {
                if is_over {
                    return Poll::Ready(());
                }
                let wants_room = std::mem::take(&mut pipe.borrow_mut().wants_room);
                if std::mem::take(&mut is_blocked) {
                    timers.clear(Slot::ClientWrite);
                    continue;
                }
                if wants_room {
                    continue;
                }
            } else {
                if !std::mem::replace(&mut is_blocked, true) {
                    timers.set(Slot::ClientWrite, clock.lately() + us(timeouts.idle));
                }
                if writing.as_mut().poll(cx).is_ready() {
                    writing.set(link.writable());
                    timers.set(Slot::ClientWrite, clock.lately() + us(timeouts.idle));
                    continue;
                }
            }
            if pipe.borrow().wants_read && reading.as_mut().poll(cx).is_ready() {
                reading.set(link.readable());
                pipe.borrow_mut().wants_read = false;
                continue;
            }
            return Poll::Pending;
        }
    })
    .await;
    Ok(())
}

/// Whether a service is still there.
struct Pulse {
    watch: Keepalive,
    pings: PingPong,
}

impl Pulse {
    /// Looks, asks where it is time, and sets when to look again; `false` where the service is gone.
    fn beats(&mut self, trunk: &Trunk, timers: &Timers, now: u64) -> bool {
        // That something has come is enough.
        while let Poll::Ready(Ok(_)) = self.pings.poll_pong(&mut Context::from_waker(Waker::noop())) {}
        timers.forget(Slot::ClientRead);
        match self.watch.look(now, trunk.heard.get(), trunk.streams.get() > 0) {
            Watch::Until(at) => timers.set(Slot::ClientRead, at),
            Watch::Ask(at) => {
                // It fails where the last one was not answered yet, which is still a question.
                let _ = self.pings.send_ping(Ping::opaque());
                timers.set(Slot::ClientRead, at);
            }
            Watch::Gone => return false,
        }
        true
    }
}
