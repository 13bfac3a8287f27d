//! A request goes to its service, the answer comes back; bodies stream in both directions at once.

use std::cell::{Cell, RefCell};
use std::pin::pin;
use std::task::Poll;

use ringway_config::snapshot::{Action, Forward, Route, RouteTimeouts};
use ringway_core::failure::Failure;
use ringway_core::filter::Permit;
use ringway_core::http::{BodyDecoder, CHUNK_HEAD_MAX, Framing, TRAILERS_BYTES_MAX, write_chunk_head, write_trailers};
use ringway_core::stats::BackendError;

use crate::answer::{Relayed, relay};
use crate::breaker::Passage;
use crate::buffer::Buffer;
use crate::bulkhead;
use crate::call;
use crate::clock::us;
use crate::connection::Connection;
use crate::deadline::Slot;
use crate::gate;
use crate::io::{Blocks, write_service};
use crate::link::Link;
use crate::mirror::{self, Copied};
use crate::outbound::{Broken, Outbound};
use crate::pace::Pace;
use crate::replay::Replay;
use crate::request::Exchange;
use crate::retry::{self, Tries};
use crate::time_left;
use crate::tunnel::Opened;
use crate::upstream::Upstream;
use crate::verdict::{Verdict, is_of_service};

/// What stays the same over the tries of one request.
pub(crate) struct Attempt<'a> {
    pub(crate) outbound: Outbound<'a>,
    /// The request's head as received.
    pub(crate) request: &'a [u8],
    /// The answer's head has come, an interim one does not count.
    pub(crate) answered: Cell<bool>,
    /// What of the body has gone to the service.
    replay: Replay<'a>,
    /// Bytes of the body that have come, as the client sent it.
    received: Cell<u64>,
    /// An answer is being passed on, for which the request's head has made room.
    relaying: Cell<bool>,
    /// When the current try was begun, on the core's clock.
    begun: Cell<u64>,
    /// The current try's way to its endpoint.
    pub(crate) passage: Passage<'a>,
    pub(crate) tries: Tries<'a>,
    /// What is still to be told of how the current try goes.
    pub(crate) verdict: Cell<Verdict>,
    /// A copy for the route's mirror, of which some of the body is still to come.
    copied: RefCell<Option<Copied>>,
}

/// What follows a broken try.
enum After {
    /// The same again, on a fresh connection.
    Same,
    /// Another try, which is planned.
    Another,
    Over(Failure),
}

/// Sends the request whose head is in `head` and relays the answer.
///
/// `used` and `body` tell afterwards how much of the inbox, and of the body, was used. `Ok`: the client has its answer,
/// or as much of it as came (then `exchange.keep_alive` is off); with the buffer that holds what followed a streamed
/// body. `Err`: nothing was sent to the client yet.
#[allow(clippy::too_many_arguments)]
pub(crate) async fn forward(
    conn: &Connection,
    exchange: &mut Exchange,
    inbox: &mut Buffer,
    used: &mut usize,
    body: &mut BodyDecoder,
    head: &mut Vec<u8>,
    passage: Passage<'_>,
    _permit: Permit,
) -> Result<Option<Buffer>, Failure> {
    let outbound = Outbound::new(conn, passage.service, passage.endpoint)?;
    let head_length = *used;
    if conn.client.stream().is_some() && !body.is_done() {
        // A short body often comes in one go with its head. What is left of the room holds a trailer section.
        while inbox.room().len() > TRAILERS_BYTES_MAX
            && let Ok(Some(arrived @ 1..)) = conn.client.recv(inbox.room())
        {
            conn.worker.cell().client_bytes_in.add(arrived as u64);
            inbox.received(arrived);
        }
    }

    // What of the body has come already leaves with the head.
    let arrived = inbox.data_mut().get_mut(*used..).unwrap_or_default();
    let decoded = body.decode(arrived).map_err(|_| Failure::Malformed("Malformed chunked body"))?;
    let data = arrived.get(decoded.data.clone()).unwrap_or_default();
    check_size(decoded.data.len() as u64, exchange)?;
    let route = conn.route(exchange);
    write_body(conn, route, exchange.framing, data, body, head)?;
    *used += decoded.consumed;
    let timeouts = timeouts(conn, exchange);
    let is_whole = body.is_done();
    let copied = mirror::copy(conn, exchange, head, is_whole);
    let tries = Tries::begin(conn, exchange, (passage.service, outbound.service), timeouts.request);
    let received = decoded.data.len();
    let kept_max = tries.policy.map_or(0, |policy| policy.body_bytes_max);
    let mut attempt = Attempt {
        outbound,
        request: inbox.data().get(..head_length).unwrap_or_default(),
        answered: Cell::new(false),
        replay: Replay::new(&conn.worker, exchange.framing, kept_max, received),
        received: Cell::new(received as u64),
        relaying: Cell::new(false),
        begun: Cell::new(0),
        passage,
        tries,
        verdict: Cell::default(),
        copied: RefCell::new(copied),
    };
    exchange.attempts = 1;
    if let Some(request) = timeouts.request {
        conn.timers.set(Slot::Request, exchange.started + us(request));
    }

    // A client of gRPC may give its call as little time as it likes.
    let of_call = exchange.call.and_then(|call| call.timeout);
    let of_route = route_timeouts(conn, exchange).request;
    attempt.outbound.own_deadline.set(of_call.is_none_or(|call| of_route.is_some_and(|route| route <= call)));
    attempt.outbound.is_call.set(exchange.call.is_some());
    let stale = attempt.outbound.service.retry_stale && exchange.is_idempotent;
    let per_try = retry::per_try(conn, exchange, attempt.outbound.service);
    let (mut is_first, mut fresh, mut was_refused) = (true, false, false);
    loop {
        if let Some(per_try) = per_try {
            attempt.outbound.try_until.set(conn.worker.clock.lately() + us(per_try));
        }
        if !is_first {
            attempt.replay.join(head);
            time_left::renew(conn, exchange, attempt.outbound.service, attempt.outbound.try_until.get(), head);
        }
        is_first = false;
        let hedge = if body.is_done() { attempt.tries.hedge(exchange, &attempt.passage) } else { None };
        let (tried, reused) = match hedge {
            Some(hedge) => {
                // It sees to connections that turn out to be closed, and to refusals, itself.
                was_refused = true;
                (attempt.run_hedged(exchange, hedge, stale, head).await.map(|()| None), false)
            }
            None => match attempt.outbound.acquire(fresh).await {
                Ok((upstream, reused)) => (attempt.run(exchange, upstream, body, head).await, reused),
                Err(failure) => (Err(Broken::Failed(failure)), false),
            },
        };
        let broken = match tried {
            Ok(rest) => {
                conn.timers.clear(Slot::Request);
                attempt.count_last(exchange);
                return Ok(rest);
            }
            Err(broken) => broken,
        };
        conn.timers.service(None, 0);
        match attempt.after(broken, reused && stale, &mut was_refused) {
            After::Same => {
                attempt.outbound.cell.stale_retries.add(1);
                fresh = true;
            }
            After::Another if let Some((passage, wait)) = attempt.tries.next() => {
                if wait > 0 {
                    Box::pin(retry::pause(wait)).await;
                }
                retry::rename_host(conn, exchange, &passage, head);
                attempt.go_on(exchange, passage)?;
                fresh = false;
            }
            After::Another => return Err(Failure::Internal),
            After::Over(failure) => {
                conn.timers.clear(Slot::Request);
                return Err(failure);
            }
        }
    }
}

pub(crate) fn timeouts(conn: &Connection, exchange: &Exchange) -> RouteTimeouts {
    let of_route = route_timeouts(conn, exchange);
    let of_call = exchange.call.and_then(|call| call.timeout);
    RouteTimeouts { request: of_route.request.into_iter().chain(of_call).min(), ..of_route }
}

fn route_timeouts(conn: &Connection, exchange: &Exchange) -> RouteTimeouts {
    match conn.route(exchange).map(|route| &route.action) {
        Some(Action::Forward(Forward { timeouts, .. })) => *timeouts,
        _ => RouteTimeouts { request: None, per_try: None },
    }
}

pub(crate) fn check_size(received: u64, exchange: &Exchange) -> Result<(), Failure> {
    match exchange.body_bytes_max {
        Some(max) if received > max => Err(Failure::BodyTooLarge),
        _ => Ok(()),
    }
}

/// Appends a piece of a request body as the service gets it, and the end where it is reached.
fn write_body(
    conn: &Connection,
    route: Option<&Route>,
    framing: Framing,
    data: &[u8],
    body: &BodyDecoder,
    out: &mut Vec<u8>,
) -> Result<(), Failure> {
    if framing != Framing::Chunked {
        out.extend_from_slice(data);
        return Ok(());
    }
    if !data.is_empty() {
        let mut room = [0; CHUNK_HEAD_MAX];
        let length = write_chunk_head(data.len(), &mut room);
        out.extend_from_slice(room.get(CHUNK_HEAD_MAX - length..).unwrap_or_default());
        out.extend_from_slice(data);
        out.extend_from_slice(b"\r\n");
    }
    if body.is_done() {
        out.extend_from_slice(b"0\r\n");
        // What the route drops or the gate vouches for does not come in by the back door.
        let is_kept = |name: &str| {
            route.is_none_or(|route| !route.request_headers.drops(name) && !gate::vouches_for(conn, route, name))
        };
        write_trailers(body.trailers(), is_kept, out).ok_or(Failure::Malformed("Malformed trailer section"))?;
    }
    Ok(())
}

impl<'a> Attempt<'a> {
    /// One try on one connection.
    async fn run(
        &self,
        exchange: &mut Exchange,
        mut upstream: Upstream,
        body: &mut BodyDecoder,
        head: &mut Vec<u8>,
    ) -> Result<Option<Buffer>, Broken> {
        let conn = self.outbound.conn;
        self.begun.set(conn.worker.clock.lately());
        let written = self.outbound.send(&upstream, head).await?;

        if body.is_done() || !written {
            if body.is_done() {
                self.outbound.sent();
                // It has become whole within an earlier try.
                self.copied.take().into_iter().for_each(Copied::send);
            }
            self.outbound.arm_answer();
            let relayed = self.answer(exchange, &mut upstream, head).await;
            self.conclude(exchange, upstream, relayed, body.is_done() && written)?;
            return Ok(None);
        }

        // Both directions at once: the answer may begin, and end, while the body still comes.
        let link = upstream.link.clone();
        let (framing, max, is_call) = (exchange.framing, exchange.body_bytes_max, exchange.call.is_some());
        let facts = Upload { framing, max, route: conn.route(exchange), is_call };
        let (mut rest, mut uploading) = (None, true);
        let relayed = {
            let mut upload = pin!(self.upload(&facts, body, &link));
            let mut relay = pin!(self.answer(exchange, &mut upstream, head));
            std::future::poll_fn(|cx| {
                if uploading && let Poll::Ready(uploaded) = upload.as_mut().poll(cx) {
                    uploading = false;
                    match uploaded {
                        Ok(buffer) => rest = buffer,
                        Err(failure) => return Poll::Ready(Err(Broken::Failed(failure))),
                    }
                }
                relay.as_mut().poll(cx)
            })
            .await
        };
        conn.timers.clear(Slot::ClientRead);
        match relayed {
            Ok(relayed) => {
                self.settle(exchange, upstream, relayed, self.outbound.is_sent.get());
                Ok(rest)
            }
            // The answer has begun, so that it can only break off.
            Err(Broken::Failed(failure)) if exchange.status != 0 => {
                if failure == Failure::ClientGone {
                    self.left();
                }
                self.break_off(exchange);
                conn.timers.service(None, 0);
                Ok(None)
            }
            Err(broken) => {
                // What the last read took of the next request goes with it.
                exchange.keep_alive &= rest.is_none() && !(uploading && body.is_done());
                Err(broken)
            }
        }
    }

    /// After the answer, or one to try again. `sent`: the service took the whole request.
    pub(crate) fn conclude(
        &self,
        exchange: &mut Exchange,
        upstream: Upstream,
        relayed: Result<Relayed, Broken>,
        sent: bool,
    ) -> Result<(), Broken> {
        match relayed {
            Ok(relayed) => self.settle(exchange, upstream, relayed, sent),
            Err(broken) => {
                if let (Broken::Again { reusable: true }, true) = (&broken, sent) {
                    let conn = self.outbound.conn;
                    conn.timers.service(None, 0);
                    upstream.give_back(conn.worker.clock.lately());
                }
                return Err(broken);
            }
        }
        Ok(())
    }

    /// Waits for the answer and relays it, unless it is one to try again.
    async fn answer(
        &self,
        exchange: &mut Exchange,
        upstream: &mut Upstream,
        head: &mut Vec<u8>,
    ) -> Result<Relayed, Broken> {
        let (buffer, length) = self.outbound.read_answer(upstream, None).await?;
        let took = self.outbound.conn.worker.clock.now().saturating_sub(self.begun.get());
        exchange.service_us = Some(took);
        self.pass_on(exchange, upstream, (buffer, length), head).await
    }

    /// Relays an answer whose head has come, unless it is one to try again.
    pub(crate) async fn pass_on(
        &self,
        exchange: &mut Exchange,
        upstream: &mut Upstream,
        (mut buffer, length): (Buffer, usize),
        head: &mut Vec<u8>,
    ) -> Result<Relayed, Broken> {
        if self.tries.policy.is_some() {
            self.consider(exchange, &mut buffer, length)?;
        }
        self.relaying.set(true);
        Ok(relay(self, exchange, upstream, buffer, length, head).await?)
    }

    /// How long the service took to begin its answer, once it had the whole request.
    pub(crate) fn took_us(&self) -> u64 {
        self.outbound.took_us(self.outbound.conn.worker.clock.lately()).unwrap_or(0)
    }

    /// Ends with [`Broken::Again`] where the answer is one to try again, and there is another try.
    fn consider(&self, exchange: &Exchange, buffer: &mut Buffer, length: usize) -> Result<(), Broken> {
        let head = buffer.data().get(..length).unwrap_or_default();
        let (status, said) = (retry::status_of(head), exchange.call.and_then(|_| call::status_in(head)));
        let Some(on) = self.tries.reason(status, said) else { return Ok(()) };
        self.withhold();
        self.judge(status, said, head);
        let is_planned =
            self.is_at_hand() && self.tries.plan(&self.passage, self.outbound.conn, on, self.outbound.cell);
        match is_planned {
            true => Err(Broken::Again { reusable: retry::is_whole(buffer, length, exchange.is_head) }),
            false => {
                self.passage.own_up();
                Ok(())
            }
        }
    }

    /// What fails here may go well at another endpoint.
    fn withhold(&self) {
        if self.is_at_hand() && self.tries.may_go_elsewhere(&self.passage, self.outbound.conn) {
            self.passage.withhold();
        }
    }

    /// Tells the breakers of a try that is broken, and says what follows it. `stale`: its connection may just have been
    /// closed, which says nothing.
    fn after(&self, broken: Broken, stale: bool, was_refused: &mut bool) -> After {
        let is_same = match broken {
            Broken::Refused => !std::mem::replace(was_refused, true) && self.is_at_hand(),
            Broken::Unanswered => stale && self.is_at_hand(),
            _ => false,
        };
        if is_same {
            return After::Same;
        }
        if self.tries.is_retry() {
            self.outbound.cell.retries_failed.add(1);
        }
        if let Broken::Again { .. } = broken {
            return After::Another;
        }
        let on = retry::reason_of(&broken);
        let failure = Failure::from(broken);
        if is_of_service(&self.outbound, failure) {
            self.withhold();
            self.passage.failed();
        }
        if failure == Failure::AnswerTimeout {
            bulkhead::answered(&self.outbound, self.passage.service, 0, self.took_us());
        }
        let is_at_hand = self.is_at_hand();
        let plans = |on| self.tries.plan(&self.passage, self.outbound.conn, on, self.outbound.cell);
        match on.filter(|_| is_at_hand) {
            Some(on) if plans(on) => {
                failure.backend_error().inspect(|error| self.outbound.cell.record_error(*error));
                After::Another
            }
            _ => {
                self.passage.own_up();
                self.tries.end(!is_of_service(&self.outbound, failure));
                After::Over(failure)
            }
        }
    }

    /// Whether the request can be sent again as it has been.
    fn is_at_hand(&self) -> bool {
        !self.relaying.get() && self.replay.is_whole()
    }

    /// From here on to another endpoint.
    fn go_on(&mut self, exchange: &mut Exchange, passage: Passage<'a>) -> Result<(), Failure> {
        let outbound = Outbound::new(self.outbound.conn, passage.service, passage.endpoint)?;
        outbound.own_deadline.set(self.outbound.own_deadline.get());
        outbound.is_call.set(self.outbound.is_call.get());
        self.outbound = outbound;
        self.tries.leave(std::mem::replace(&mut self.passage, passage));
        exchange.attempts += 1;
        exchange.service_us = None;
        Ok(())
    }

    /// Counts what became of the last retry, if there was one.
    fn count_last(&self, exchange: &Exchange) {
        let (cell, said) = (self.outbound.cell, exchange.call.and_then(|call| call.status));
        match self.tries.is_retry() {
            false => {}
            true if self.tries.reason(exchange.status, said).is_some() => cell.retries_failed.add(1),
            true => cell.retries_succeeded.add(1),
        }
    }

    /// After the answer: the connection is kept, where both sides of the exchange are whole.
    fn settle(&self, exchange: &mut Exchange, upstream: Upstream, relayed: Relayed, sent: bool) {
        let conn = self.outbound.conn;
        conn.timers.service(None, 0);
        match relayed {
            Relayed::Whole { reusable } => {
                if reusable && sent {
                    upstream.give_back(conn.worker.clock.lately());
                }
            }
            Relayed::ClientGone => {
                self.left();
                exchange.keep_alive = false;
            }
            Relayed::Upgraded(first) => exchange.opened = Some(Box::new(Opened::new(upstream, first))),
            Relayed::BrokenOff => {
                self.outbound.cell.record_error(BackendError::Body);
                self.broke_off();
                self.break_off(exchange);
            }
        }
    }

    /// Has the client's connection end with a reset.
    fn break_off(&self, exchange: &mut Exchange) {
        exchange.keep_alive = false;
        exchange.broken_off = true;
        self.outbound.conn.client.reset_on_close();
    }

    /// A piece of the body as it is sent.
    fn keep(&self, piece: &[u8]) {
        self.replay.keep(piece);
        let mut copied = self.copied.borrow_mut();
        if copied.as_mut().is_some_and(|copied| !copied.add(piece)) {
            *copied = None;
        }
    }

    /// Passes the rest of the request's body on. Gives back what followed it, if it did not end with a read.
    async fn upload(&self, facts: &Upload<'_>, body: &mut BodyDecoder, link: &Link) -> Result<Option<Buffer>, Failure> {
        let conn = self.outbound.conn;
        let clock = &conn.worker.clock;
        let idle = us(self.outbound.service.timeouts.idle);
        let mut buffer = conn.worker.take_inbox();
        let mut out = conn.worker.take_head();
        let before = self.received.get();
        let mut pace = Pace::start(conn);
        if facts.is_call {
            pace.of_call(idle);
        }
        let mut blocks = Blocks::default();
        while !body.is_done() {
            blocks.next().await;
            buffer.clear();
            if facts.is_call && self.answered.get() {
                pace.of_call(u64::MAX);
            }
            pace.receive(conn, &mut buffer, self.received.get() - before).await?;
            let decoded = body.decode(buffer.data_mut()).map_err(|_| Failure::Malformed("Malformed chunked body"))?;
            let received = self.received.get() + decoded.data.len() as u64;
            self.received.set(received);
            if facts.max.is_some_and(|max| received > max) {
                return Err(Failure::BodyTooLarge);
            }
            let writing = clock.now();
            let written = if facts.framing == Framing::Chunked {
                out.clear();
                let data = buffer.data().get(decoded.data.clone()).unwrap_or_default();
                write_body(conn, facts.route, facts.framing, data, body, &mut out)?;
                self.keep(&out);
                write_service(&conn.worker, &conn.timers, link, &out, idle).await
            } else {
                let data = buffer.data().get(decoded.data.clone()).unwrap_or_default();
                self.keep(data);
                write_service(&conn.worker, &conn.timers, link, data, idle).await
            };
            pace.started += clock.now() - writing;
            buffer.consume(decoded.consumed);
            if written.is_err() {
                // The service does not take more of it: what it answers, if anything, decides.
                return std::future::pending().await;
            }
        }
        conn.worker.give_head(out);
        if let Some(copied) = self.copied.take() {
            copied.send();
        }
        self.outbound.sent();
        if !self.answered.get() {
            self.outbound.arm_answer();
        }
        Ok((!buffer.is_empty()).then_some(buffer))
    }
}

/// What an upload knows of its request.
struct Upload<'a> {
    framing: Framing,
    max: Option<u64>,
    route: Option<&'a Route>,
    is_call: bool,
}
