//! Further tries at other endpoints while the first one is still awaited: the first good answer is the client's, and the other
//! tries are given up, their connections closed or their streams reset.
//!
//! The first try has the client's row of deadlines, as any; each of the others has one of its own, until its answer is the
//! client's. Until the first `after` is over nothing but an alarm is more than without.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll};

use ringway_config::resilience::Hedge;
use ringway_core::failure::Failure;
use ringway_core::stats::{Hedged, ServiceCell};

use crate::alarms::{Alarm, Alarms};
use crate::breaker::Passage;
use crate::buffer::Buffer;
use crate::bulkhead;
use crate::clock::us;
use crate::deadline::{End, Signal, Slot};
use crate::forward::Attempt;
use crate::outbound::{Broken, Outbound};
use crate::request::Exchange;
use crate::retry::{self, rename_host, status_of};
use crate::time_left;
use crate::upstream::Upstream;
use crate::verdict::is_of_service;

/// An answer whose head has come.
struct Answered {
    upstream: Upstream,
    buffer: Buffer,
    /// Of the head.
    length: usize,
    /// The service took the whole request.
    taken: bool,
    /// From the request sent to the head, in microseconds.
    took_us: u64,
}

type Tried = Result<Answered, Broken>;

/// A try besides the first one.
struct Another<'a> {
    passage: Passage<'a>,
    outbound: Outbound<'a>,
    /// The request, as its endpoint gets it; no longer than the first one's, but for a name.
    request: Vec<u8>,
    tally: Tally<'a>,
}

/// Counts what has become of a try when it is over.
struct Tally<'a> {
    cell: &'a ServiceCell,
    outcome: Hedged,
}

impl Drop for Tally<'_> {
    fn drop(&mut self) {
        self.cell.hedges.record(self.outcome);
    }
}

/// One that is awaited. Dropped: given up.
type Awaited<'a> = Pin<Box<dyn Future<Output = (Another<'a>, Tried)> + 'a>>;

/// Tries that are awaited at the same time.
struct Race<'r, 'a> {
    attempt: &'r Attempt<'a>,
    hedge: Hedge,
    /// May go once more where its connection turns out to be closed.
    repeats: bool,
    /// The request, as the first endpoint gets it.
    request: &'r [u8],
    others: Vec<Awaited<'a>>,
    /// An answer to be tried again, for want of a better one. The first try's without a try.
    held: Option<(Option<Another<'a>>, Answered)>,
    /// Is told in place of a try that is over, and of a client.
    signal: Rc<Signal>,
}

/// What happens in a race.
enum Event<'a> {
    First(Tried),
    Other(Another<'a>, Tried),
    /// It is time for another try.
    Due,
    ClientGone,
}

impl<'a> Attempt<'a> {
    /// One try, and others beside it where it takes long; relays the answer. The request is whole, and `head` has all of it.
    pub(crate) async fn run_hedged(
        &mut self,
        exchange: &mut Exchange,
        hedge: Hedge,
        repeats: bool,
        head: &mut Vec<u8>,
    ) -> Result<(), Broken> {
        let Answered { mut upstream, buffer, length, taken, took_us } =
            self.first_answer(exchange, hedge, repeats, head).await?;
        exchange.service_us = Some(took_us);
        let relayed = self.pass_on(exchange, &mut upstream, (buffer, length), head).await;
        self.conclude(exchange, upstream, relayed, taken)
    }

    /// Whichever try has brought it, this goes on with that one.
    async fn first_answer(&mut self, exchange: &mut Exchange, hedge: Hedge, repeats: bool, request: &[u8]) -> Tried {
        let worker = &self.outbound.conn.worker;
        let (winner, tried) = {
            let mut first = pin!(ask(&self.outbound, repeats, request));
            let mut alarm = Alarms::set(worker, worker.clock.now() + us(hedge.after));
            let alone = poll_fn(|cx| match first.as_mut().poll(cx) {
                Poll::Ready(tried) => Poll::Ready(Some(tried)),
                Poll::Pending => Pin::new(&mut alarm).poll(cx).map(|()| None),
            });
            if let Some(tried) = alone.await {
                return tried;
            }
            let race =
                Race { attempt: self, hedge, repeats, request, others: Vec::new(), held: None, signal: Rc::default() };
            Box::pin(race.run(first, exchange)).await
        };
        if let Some(Another { passage, outbound, request, .. }) = winner {
            worker.give_head(request);
            outbound.own_deadline.set(self.outbound.own_deadline.get());
            outbound.is_call.set(self.outbound.is_call.get());
            self.outbound = outbound;
            self.tries.leave(std::mem::replace(&mut self.passage, passage));
        }
        if let Ok(answered) = &tried {
            self.outbound.move_in(&answered.upstream.link);
        }
        tried
    }
}

impl<'a> Race<'_, 'a> {
    /// Until an answer is the client's, or none is to come. With the try that has brought it, where that is not the first one.
    async fn run(
        mut self,
        first: Pin<&mut impl Future<Output = Tried>>,
        exchange: &mut Exchange,
    ) -> (Option<Another<'a>>, Tried) {
        let mut first = Some(first);
        let mut left = self.hedge.max;
        let mut alarm = None;
        let mut is_due = true;
        loop {
            if std::mem::take(&mut is_due) {
                left -= 1;
                alarm = (left > 0).then(|| self.next_alarm());
                self.send(exchange);
            }
            let event = poll_fn(|cx| self.poll(&mut first, &mut alarm, cx)).await;
            let (another, tried) = match event {
                Event::Due => {
                    is_due = true;
                    continue;
                }
                Event::ClientGone => return (None, Err(Failure::ClientGone.into())),
                Event::Other(another, tried) => (Some(another), tried),
                Event::First(tried) => {
                    first = None;
                    // Whether the client goes away is still to be seen.
                    let timers = &self.attempt.outbound.conn.timers;
                    timers.service(Some(End::Task(Rc::clone(&self.signal))), exchange.started);
                    (None, tried)
                }
            };
            let is_last = first.is_none() && self.others.is_empty();
            if let Some(end) = self.judge(another, tried, is_last, exchange) {
                if first.is_some() {
                    self.attempt.outbound.note_given_up();
                }
                return end;
            }
        }
    }

    fn poll(
        &mut self,
        first: &mut Option<Pin<&mut impl Future<Output = Tried>>>,
        alarm: &mut Option<Alarm<'_>>,
        cx: &mut Context<'_>,
    ) -> Poll<Event<'a>> {
        self.signal.listen(cx);
        match first {
            Some(first) => {
                if let Poll::Ready(tried) = first.as_mut().poll(cx) {
                    return Poll::Ready(Event::First(tried));
                }
            }
            None if self.attempt.outbound.conn.timers.has_fired(Slot::ClientGone) => {
                return Poll::Ready(Event::ClientGone);
            }
            None => {}
        }
        for index in 0..self.others.len() {
            if let Some(other) = self.others.get_mut(index)
                && let Poll::Ready((another, tried)) = other.as_mut().poll(cx)
            {
                drop(self.others.swap_remove(index));
                return Poll::Ready(Event::Other(another, tried));
            }
        }
        match alarm {
            Some(due) => Pin::new(due).poll(cx).map(|()| {
                *alarm = None;
                Event::Due
            }),
            None => Poll::Pending,
        }
    }

    fn next_alarm(&self) -> Alarm<'a> {
        let worker = &self.attempt.outbound.conn.worker;
        Alarms::set(worker, worker.clock.now() + us(self.hedge.after))
    }

    /// Sends a further try, if there may be one.
    fn send(&mut self, exchange: &mut Exchange) {
        let (current, conn) = (&self.attempt.passage, self.attempt.outbound.conn);
        let cell = self.attempt.outbound.cell;
        let passage = match self.attempt.tries.beside(current, conn) {
            Ok(passage) => passage,
            Err(denied) => return denied.into_iter().for_each(|denied| cell.hedges.record(denied)),
        };
        let Ok(outbound) = Outbound::beside(conn, passage.service, passage.endpoint, &self.signal) else { return };
        // Its time is what the others have left of it: who misses the deadline of the request is not slow.
        outbound.own_deadline.set(false);
        outbound.timers().set(Slot::Request, self.attempt.tries.until);
        if let Some(per_try) = retry::per_try(conn, exchange, outbound.service) {
            outbound.try_until.set(conn.worker.clock.lately() + us(per_try));
        }
        let mut request = conn.worker.take_head();
        request.extend_from_slice(self.request);
        rename_host(conn, exchange, &passage, &mut request);
        time_left::renew(conn, exchange, outbound.service, outbound.try_until.get(), &mut request);
        exchange.attempts += 1;
        exchange.hedge = Some(Hedged::Lost);
        let tally = Tally { cell, outcome: Hedged::Lost };
        let (another, repeats) = (Another { passage, outbound, request, tally }, self.repeats);
        self.others.push(Box::pin(async move {
            let tried = ask(&another.outbound, repeats, &another.request).await;
            (another, tried)
        }));
    }

    /// What follows a try that is over; nothing while a better one may come.
    fn judge(
        &mut self,
        mut another: Option<Another<'a>>,
        tried: Tried,
        is_last: bool,
        exchange: &mut Exchange,
    ) -> Option<(Option<Another<'a>>, Tried)> {
        let is_good = matches!(&tried, Ok(answered) if self.attempt.tries.reason(status_of(answered.buffer.data()), None).is_none());
        if let Some(another) = &mut another {
            another.tally.outcome = if is_good { Hedged::Won } else { Hedged::Failed };
            exchange.hedge = Some(another.tally.outcome);
        }
        let (outbound, passage) = match &another {
            Some(another) => (&another.outbound, &another.passage),
            None => (&self.attempt.outbound, &self.attempt.passage),
        };
        match tried {
            Ok(_) if is_good => {
                self.let_go(exchange);
                Some((another, tried))
            }
            Ok(answered) => {
                // The last one is considered as any.
                if !is_last {
                    let head = answered.buffer.data().get(..answered.length).unwrap_or_default();
                    let took_us = outbound.took_us(outbound.conn.worker.clock.lately()).unwrap_or(0);
                    passage.withhold();
                    passage.answered(status_of(head), head, took_us);
                }
                outbound.timers().clear(Slot::Service);
                self.let_go(exchange);
                if is_last {
                    return Some((another, Ok(answered)));
                }
                self.held = Some((another, answered));
                None
            }
            Err(broken) => {
                let is_over = matches!(broken, Broken::Failed(Failure::ClientGone | Failure::RequestTimeout));
                // The client has gone, or a deadline is over that is the same for all; the last one tells of that itself.
                if is_last && (is_over || self.held.is_none()) {
                    let another = another.filter(|_| !is_over);
                    return Some((another, Err(broken)));
                }
                if matches!(broken, Broken::Failed(Failure::ClientGone)) {
                    return Some((None, Err(broken)));
                }
                let failure = Failure::from(broken);
                if is_of_service(outbound, failure) {
                    // Another one decides.
                    passage.withhold();
                    passage.failed();
                }
                if failure == Failure::AnswerTimeout {
                    let took_us = outbound.took_us(outbound.conn.worker.clock.lately()).unwrap_or(0);
                    bulkhead::answered(outbound, passage.service, 0, took_us);
                }
                failure.backend_error().inspect(|error| outbound.cell.record_error(*error));
                another.into_iter().for_each(|another| self.attempt.tries.leave(another.passage));
                let (another, answered) = self.held.take_if(|_| is_last)?;
                Some((another, Ok(answered)))
            }
        }
    }

    /// Drops an answer that is not wanted; its connection is kept, where all of it has come.
    fn let_go(&mut self, exchange: &Exchange) {
        let Some((another, Answered { upstream, mut buffer, length, taken, .. })) = self.held.take() else { return };
        another.into_iter().for_each(|another| self.attempt.tries.leave(another.passage));
        if taken && retry::is_whole(&mut buffer, length, exchange.is_head) {
            upstream.give_back(self.attempt.outbound.conn.worker.clock.lately());
        }
    }
}

/// One try up to its answer's head; once more where the service has not looked at it, or where its connection may have been
/// closed just before it was used.
async fn ask(outbound: &Outbound<'_>, repeats: bool, request: &[u8]) -> Tried {
    let clock = &outbound.conn.worker.clock;
    let mut is_again = false;
    loop {
        let (mut upstream, reused) = outbound.acquire(is_again).await?;
        let begun = clock.lately();
        let taken = outbound.send(&upstream, request).await?;
        outbound.sent();
        outbound.arm_answer();
        match outbound.read_answer(&mut upstream, None).await {
            Ok((buffer, length)) => {
                let took_us = clock.now().saturating_sub(begun);
                return Ok(Answered { upstream, buffer, length, taken, took_us });
            }
            Err(Broken::Refused) if !is_again => {}
            Err(Broken::Unanswered) if !is_again && reused && repeats => {}
            Err(broken) => return Err(broken),
        }
        is_again = true;
        outbound.timers().service(None, 0);
        outbound.cell.stale_retries.add(1);
    }
}
