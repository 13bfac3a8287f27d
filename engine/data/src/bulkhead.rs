//! A request's place among those in flight to its service, where the service has only so many; and the wait for one.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Poll, Waker};

use ringway_core::breaker::retry_after_secs;
use ringway_core::bulkhead::{Bulkhead, BulkheadSettings, Full, Place};
use ringway_core::failure::Failure;

use crate::connection::Connection;
use crate::outbound::Outbound;
use crate::request::Exchange;

/// This core's requests that wait for a place at one service, in order. Only the first one looks for it: the others have
/// nothing to do until then, and no less time. As long as the bulkhead's `pending` allows.
#[derive(Default)]
pub(crate) struct Line {
    next: Cell<u64>,
    /// By number, which go up.
    waiting: RefCell<VecDeque<(u64, Option<Waker>)>>,
}

/// A place in a line. Dropped: left.
struct Standing<'a> {
    line: &'a Line,
    number: u64,
}

impl Line {
    fn join(&self) -> Standing<'_> {
        let number = self.next.replace(self.next.get() + 1);
        self.waiting.borrow_mut().push_back((number, None));
        Standing { line: self, number }
    }
}

impl Standing<'_> {
    /// Waits until nobody is in front.
    async fn first(&self) {
        poll_fn(|cx| {
            let mut waiting = self.line.waiting.borrow_mut();
            match waiting.binary_search_by_key(&self.number, |(number, _)| *number) {
                Ok(at @ 1..) => {
                    if let Some((_, waker)) = waiting.get_mut(at) {
                        *waker = Some(cx.waker().clone());
                    }
                    Poll::Pending
                }
                _ => Poll::Ready(()),
            }
        })
        .await;
    }
}

impl Drop for Standing<'_> {
    fn drop(&mut self) {
        let mut waiting = self.line.waiting.borrow_mut();
        if let Ok(at) = waiting.binary_search_by_key(&self.number, |(number, _)| *number) {
            waiting.remove(at);
        }
        if let Some((_, waker)) = waiting.front_mut() {
            waker.take().into_iter().for_each(Waker::wake);
        }
    }
}

/// Whether the request has a place at its service, or needs none; else it is to [`wait`].
///
/// # Errors
/// There is none, and nobody may wait.
#[inline]
pub(crate) fn has_place(conn: &Connection, exchange: &mut Exchange, service: usize) -> Result<bool, Failure> {
    match conn.view.services.get(service).map(|view| &view.service.bulkhead) {
        Some(Some(settings)) => enter(conn, exchange, service, settings),
        _ => Ok(true),
    }
}

fn enter(
    conn: &Connection,
    exchange: &mut Exchange,
    service: usize,
    settings: &BulkheadSettings,
) -> Result<bool, Failure> {
    let bulkhead = &conn.view.published.resilience.get(service).ok_or(Failure::Internal)?.bulkhead;
    if exchange.place.as_ref().is_some_and(|place| place.is_of(bulkhead)) {
        return Ok(true);
    }
    exchange.place = None;
    // Those that wait are not overtaken.
    if settings.pending > 0 && bulkhead.has_pending() {
        return Ok(false);
    }
    match bulkhead.enter(settings) {
        Ok(place) => {
            exchange.place = Some(place);
            Ok(true)
        }
        Err(full) if settings.pending == 0 => Err(refuse(conn, exchange, service, full)),
        Err(_) => Ok(false),
    }
}

/// Waits for a place at a service, behind those that wait already.
///
/// A place that comes back on this core is seen at once, one of another core's within a millisecond.
///
/// # Errors
/// There is none in time, or too many wait.
pub(crate) async fn wait(conn: &Connection, exchange: &mut Exchange, service: usize) -> Result<(), Failure> {
    match queue(conn, service, u64::MAX).await? {
        Ok(place) => {
            exchange.place = Some(place);
            Ok(())
        }
        Err(full) => Err(refuse(conn, exchange, service, full)),
    }
}

/// Until there is a place, for as long as the bulkhead has one wait, and not beyond `until`.
async fn queue(conn: &Connection, service: usize, until: u64) -> Result<Result<Place, Full>, Failure> {
    let (settings, bulkhead) = of_service(conn, service).ok_or(Failure::Internal)?;
    let line = &conn.view.services.get(service).ok_or(Failure::Internal)?.line;
    let Some(_pending) = bulkhead.queue(settings) else { return Ok(Err(Full::Pending)) };
    let until = until.min(conn.worker.clock.now() + settings.wait_us);
    // Looks at the time each millisecond.
    let _held = conn.worker.hold();
    let standing = line.join();
    standing.first().await;
    loop {
        if let Ok(place) = bulkhead.enter(settings) {
            return Ok(Ok(place));
        }
        if conn.worker.clock.now() >= until {
            return Ok(Err(Full::Timeout));
        }
        conn.worker.news.wait().await;
    }
}

/// What a service allows, where it has a limit, and what it has.
fn of_service(conn: &Connection, service: usize) -> Option<(&BulkheadSettings, &Arc<Bulkhead>)> {
    let settings = conn.view.services.get(service)?.service.bulkhead.as_ref()?;
    Some((settings, &conn.view.published.resilience.get(service)?.bulkhead))
}

#[cold]
fn refuse(conn: &Connection, exchange: &mut Exchange, service: usize, full: Full) -> Failure {
    exchange.shed = Some(full.label());
    count(conn, service, full)
}

fn count(conn: &Connection, service: usize, full: Full) -> Failure {
    if let Some(cell) = conn.view.service_cell(service, conn.worker.id) {
        cell.record_full(full);
    }
    Failure::BulkheadFull(retry_after_secs(0, conn.worker.random()))
}

/// The place of something that the gateway asks a service by itself. Dropped: given back, and those who wait for it told.
pub(crate) struct OwnPlace<'a> {
    conn: &'a Connection,
    service: usize,
    place: Option<Place>,
}

/// A place for what the gateway asks by itself, where the service has only so many. `until`: how long that may be waited for, on
/// the core's clock; `None`: not at all.
///
/// # Errors
/// There is none in time, or too many wait.
pub(crate) async fn own_place(conn: &Connection, service: usize, until: Option<u64>) -> Result<OwnPlace<'_>, Failure> {
    let Some((settings, bulkhead)) = of_service(conn, service) else {
        return Ok(OwnPlace { conn, service, place: None });
    };
    let entered = match bulkhead.has_pending() {
        true if settings.pending > 0 => Err(Full::Pending),
        _ => bulkhead.enter(settings),
    };
    let entered = match (entered, until) {
        (Err(_), Some(until)) if settings.pending > 0 => Box::pin(queue(conn, service, until)).await?,
        (entered, _) => entered,
    };
    match entered {
        Ok(place) => Ok(OwnPlace { conn, service, place: Some(place) }),
        Err(full) => Err(count(conn, service, full)),
    }
}

impl OwnPlace<'_> {
    /// The answer has begun, or was waited for in vain.
    pub(crate) fn answered(&self, status: u16, took_us: u64) {
        if let Some((settings, bulkhead)) = of_service(self.conn, self.service)
            && let Some(adaptive) = &settings.adaptive
            && status < 500
        {
            bulkhead.adaptive.sample(adaptive, took_us, self.conn.worker.clock.lately());
        }
    }
}

impl Drop for OwnPlace<'_> {
    fn drop(&mut self) {
        if self.place.take().is_some() {
            ring(self.conn, self.service);
        }
    }
}

/// A place has come back.
fn ring(conn: &Connection, service: usize) {
    if conn.view.services.get(service).is_some_and(|view| !view.line.waiting.borrow().is_empty()) {
        conn.worker.news.ring();
    }
}

/// Gives a request's place back, and tells who waits for it.
#[inline]
pub(crate) fn give_back(conn: &Connection, exchange: &mut Exchange) {
    if exchange.place.take().is_some()
        && let Some(service) = exchange.service
    {
        ring(conn, service);
    }
}

/// What has become a tunnel tells nothing of how the service copes: it does not take of a limit that goes by that.
pub(crate) fn opened(conn: &Connection, exchange: &mut Exchange) {
    let view = exchange.service.and_then(|service| conn.view.services.get(service));
    let settings = view.and_then(|view| view.service.bulkhead.as_ref());
    if settings.is_some_and(|settings| settings.adaptive.is_some()) {
        give_back(conn, exchange);
    }
}

/// The answer has begun, or was waited for in vain: the limit that goes by latency hears of it. Failures of the service may
/// be quick, and say nothing.
#[inline]
pub(crate) fn answered(outbound: &Outbound<'_>, service: usize, status: u16, took_us: u64) {
    let Some(settings) = &outbound.service.bulkhead else { return };
    if let Some(adaptive) = &settings.adaptive
        && status < 500
        && let Some(known) = outbound.conn.view.published.resilience.get(service)
    {
        known.bulkhead.adaptive.sample(adaptive, took_us, outbound.conn.worker.clock.lately());
    }
}
