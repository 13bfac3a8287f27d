//! The breakers on a request's way to its service: asked before a try, told how it went.

use std::cell::Cell;

use ringway_config::resilience::{CircuitBreaker, Fallback, Resilience};
use ringway_config::snapshot::Respond;
use ringway_core::breaker::{Outcome, State, Ticket, Transition, retry_after_secs};
use ringway_core::failure::Failure;
use ringway_core::http::RequestHead;

use crate::affinity::Wish;
use crate::connection::Connection;
use crate::request::Exchange;
use crate::view::ServiceView;

/// One try's way to an endpoint, which the breakers have let it go. Dropped without a word on the service: whoever may
/// probe in its place does.
pub(crate) struct Passage<'a> {
    conn: &'a Connection,
    /// Both as indices of the snapshot.
    pub(crate) service: usize,
    pub(crate) endpoint: usize,
    /// Where the request wanted to go.
    pub(crate) wish: Wish,
    of_service: Option<Ticket>,
    of_endpoint: Option<Ticket>,
    told: Cell<Told>,
    /// Whether the service's breaker hears at once of a failure.
    telling: Cell<Telling>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Telling {
    AtOnce,
    /// What becomes of the request elsewhere decides.
    Later,
    /// It has failed, and that is not told yet.
    Withheld,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Told {
    Nothing,
    /// The answer has begun well.
    Good,
    Bad,
}

/// Why there is no way.
pub(crate) enum Shut {
    NoEndpoint,
    /// A breaker is open; with the microseconds until it lets probes pass, as far as that is known.
    Open(u64),
}

/// What becomes of a request.
pub(crate) enum Way<'a> {
    Open(Passage<'a>),
    /// A breaker is open, and this is answered meanwhile.
    Answer(&'a Respond),
}

/// That a breaker was open, for the log.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Cut {
    #[default]
    No,
    /// The request was refused.
    Refused,
    /// The fallback has answered.
    Fallback,
}

impl Cut {
    pub(crate) fn label(self) -> Option<&'static str> {
        match self {
            Self::No => None,
            Self::Refused => Some("open"),
            Self::Fallback => Some("fallback"),
        }
    }
}

/// The way of a request to its service, or some of its endpoints, or what is answered while that is left alone.
pub(crate) fn find_way<'a>(
    conn: &'a Connection,
    exchange: &mut Exchange,
    (service, subset): (usize, Option<u32>),
    request: &RequestHead<'_, '_>,
) -> Result<Way<'a>, Failure> {
    let left_us = match Passage::open(conn, service, wish_of(conn, exchange, service, request, subset), 0) {
        Ok(passage) => {
            exchange.cut = Cut::No;
            return Ok(Way::Open(passage));
        }
        Err(Shut::NoEndpoint) => return Err(Failure::NoEndpoint),
        Err(Shut::Open(left_us)) => left_us,
    };
    fall_back(conn, exchange, service, request, left_us)
}

#[inline]
fn wish_of(
    conn: &Connection,
    exchange: &Exchange,
    service: usize,
    request: &RequestHead<'_, '_>,
    subset: Option<u32>,
) -> Wish {
    conn.view.services.get(service).map(|view| Wish::of(view, exchange, request, subset)).unwrap_or_default()
}

#[cold]
fn fall_back<'a>(
    conn: &'a Connection,
    exchange: &mut Exchange,
    service: usize,
    request: &RequestHead<'_, '_>,
    mut left_us: u64,
) -> Result<Way<'a>, Failure> {
    // Prepared again after a wait for the other service: it was counted.
    let is_new = exchange.cut == Cut::No;
    exchange.cut = Cut::Fallback;
    let mut fallback = fallback_of(conn, service, is_new);
    if let Some(Fallback::Service(other)) = fallback {
        match Passage::open(conn, *other, wish_of(conn, exchange, *other, request, None), 0) {
            Ok(passage) => {
                exchange.service = Some(*other);
                return Ok(Way::Open(passage));
            }
            Err(Shut::NoEndpoint) => fallback = None,
            Err(Shut::Open(left)) => {
                left_us = left_us.min(left);
                fallback = fallback_of(conn, *other, true);
            }
        }
    }
    match fallback {
        // A call of gRPC could not read it.
        Some(Fallback::Respond(answer)) if exchange.call.is_none() => Ok(Way::Answer(answer)),
        _ => {
            exchange.cut = Cut::Refused;
            Err(Failure::CircuitOpen(retry_after_secs(left_us, conn.worker.random())))
        }
    }
}

/// Counts the refusal, too, where that is new.
fn fallback_of(conn: &Connection, service: usize, is_new: bool) -> Option<&Fallback> {
    if is_new && let Some(cell) = conn.view.service_cell(service, conn.worker.id) {
        cell.breaker_rejected.add(1);
    }
    conn.view.services.get(service)?.service.circuit_breaker.as_ref()?.fallback.as_ref()
}

impl<'a> Passage<'a> {
    /// Asks for one more try. `tried`: a bit for each endpoint that has failed it, and is taken only where there is no
    /// other.
    pub(crate) fn open(conn: &'a Connection, service: usize, wish: Wish, tried: u64) -> Result<Self, Shut> {
        let view = conn.view.services.get(service).ok_or(Shut::NoEndpoint)?;
        let mut passage = Self {
            conn,
            service,
            endpoint: 0,
            wish,
            of_service: None,
            of_endpoint: None,
            told: Cell::new(Told::Nothing),
            telling: Cell::new(Telling::AtOnce),
        };
        let Some(settings) = &view.service.circuit_breaker else {
            passage.endpoint = view.pick_where(&conn.worker, wish, tried, |_| true).ok_or(Shut::NoEndpoint)?;
            return Ok(passage);
        };
        passage.ask(view, settings, tried)?;
        Ok(passage)
    }

    fn ask(&mut self, view: &ServiceView, settings: &CircuitBreaker, tried: u64) -> Result<(), Shut> {
        let conn = self.conn;
        let known = self.known().ok_or(Shut::NoEndpoint)?;
        let now = conn.worker.clock.lately();
        if let Some(breaker) = &known.breaker {
            let (ticket, transition) = breaker.admit(&settings.settings, now).map_err(Shut::Open)?;
            self.of_service = Some(ticket);
            self.report(transition, None);
        }
        let (mut found, mut left_us) = (None, u64::MAX);
        let lets_pass = |endpoint: usize| {
            let Some(breaker) = known.endpoint_breakers.get(endpoint) else { return true };
            match breaker.admit(&settings.settings, now) {
                Ok(admitted) => {
                    found = Some(admitted);
                    true
                }
                Err(left) => {
                    left_us = left_us.min(left);
                    false
                }
            }
        };
        match view.pick_where(&conn.worker, self.wish, tried, lets_pass) {
            Some(endpoint) => self.endpoint = endpoint,
            None if left_us == u64::MAX => return Err(Shut::NoEndpoint),
            None => return Err(Shut::Open(left_us)),
        }
        if let Some((ticket, transition)) = found {
            self.of_endpoint = Some(ticket);
            self.report(transition, Some(self.endpoint));
        }
        Ok(())
    }

    fn known(&self) -> Option<&'a Resilience> {
        self.conn.view.published.resilience.get(self.service)
    }

    fn settings(&self) -> Option<&'a CircuitBreaker> {
        self.conn.view.services.get(self.service)?.service.circuit_breaker.as_ref()
    }

    /// The answer's head has come, `took_us` after the request was sent.
    #[inline]
    pub(crate) fn answered(&self, status: u16, head: &[u8], took_us: u64) {
        if self.told.get() != Told::Nothing {
            return;
        }
        let Some(settings) = self.settings() else { return };
        let spared = status == 503 && settings.failing.spares_retry_after && has_retry_after(head);
        let outcome = match settings.settings.slow {
            _ if settings.failing.has(status) && !spared => Outcome::Bad,
            Some(slow) if took_us >= slow.from_us => Outcome::Slow,
            _ => Outcome::Good,
        };
        self.tell(outcome);
    }

    /// There was no answer, or none that can be used.
    pub(crate) fn failed(&self) {
        if self.told.get() == Told::Nothing {
            self.tell(Outcome::Bad);
        }
    }

    /// The answer had begun, and broke off.
    pub(crate) fn broke_off(&self) {
        if self.told.get() == Told::Good {
            self.tell(Outcome::BrokenOff);
        }
    }

    /// The request may go to another endpoint: a failure here says something of the service only if it fails there as well.
    pub(crate) fn withhold(&self) {
        if self.told.get() == Told::Nothing {
            self.telling.set(Telling::Later);
        }
    }

    /// The service's breaker has not heard of the failure.
    pub(crate) fn is_withheld(&self) -> bool {
        self.telling.get() == Telling::Withheld
    }

    pub(crate) fn is_bad(&self) -> bool {
        self.told.get() == Told::Bad
    }

    /// It hears of it now: the request did not go well elsewhere.
    pub(crate) fn own_up(&self) {
        if self.telling.replace(Telling::AtOnce) == Telling::Withheld {
            self.tell_service(Outcome::Bad);
        }
    }

    fn tell_service(&self, outcome: Outcome) {
        let (Some(settings), Some(ticket)) = (self.settings(), self.of_service) else { return };
        let Some(breaker) = self.known().and_then(|known| known.breaker.as_ref()) else { return };
        let worker = &self.conn.worker;
        // One endpoint may break many requests at once. From the moment when it is left out for that, it says nothing of
        // the others.
        let is_good = matches!(outcome, Outcome::Good | Outcome::Slow);
        let view = self.conn.view.services.get(self.service);
        if !is_good && view.is_some_and(|view| view.has_left_out(self.endpoint)) {
            return breaker.give_back(ticket);
        }
        let now = worker.clock.lately();
        self.report(breaker.settle(worker.id, &settings.settings, ticket, outcome, now, worker.random()), None);
    }

    fn tell(&self, outcome: Outcome) {
        let is_good = matches!(outcome, Outcome::Good | Outcome::Slow);
        self.told.set(if is_good { Told::Good } else { Told::Bad });
        match self.telling.get() {
            Telling::Later if outcome == Outcome::Bad => self.telling.set(Telling::Withheld),
            _ => self.tell_service(outcome),
        }
        let (Some(settings), Some(known)) = (self.settings(), self.known()) else { return };
        if let (Some(breaker), Some(ticket)) = (known.endpoint_breakers.get(self.endpoint), self.of_endpoint) {
            let (worker, now) = (&self.conn.worker, self.conn.worker.clock.lately());
            let settled = breaker.settle(worker.id, &settings.settings, ticket, outcome, now, worker.random());
            self.report(settled, Some(self.endpoint));
        }
    }

    /// Tells the log of a transition that this try has made.
    #[inline]
    fn report(&self, transition: Option<Transition>, endpoint: Option<usize>) {
        if let Some(transition) = transition {
            self.log(transition, endpoint);
        }
    }

    #[cold]
    fn log(&self, transition: Transition, endpoint: Option<usize>) {
        let Some(view) = self.conn.view.services.get(self.service) else { return };
        let service = &view.service;
        let endpoint = endpoint.and_then(|endpoint| view.pools.get(endpoint));
        let endpoint = endpoint.map(|pool| format!(", endpoint `{}`", pool.endpoint.label)).unwrap_or_default();
        let (name, reason) = (&service.name, transition.reason);
        match transition.to {
            State::Open => {
                let seconds = transition.open_us as f64 / 1e6;
                tracing::warn!("service `{name}`{endpoint}: circuit breaker open for {seconds:.1} s: {reason}");
            }
            State::HalfOpen => tracing::info!("service `{name}`{endpoint}: circuit breaker half-open: {reason}"),
            State::Closed => tracing::info!("service `{name}`{endpoint}: circuit breaker closed: {reason}"),
        }
    }
}

impl Drop for Passage<'_> {
    fn drop(&mut self) {
        let is_told = self.told.get() != Told::Nothing;
        if (is_told && !self.is_withheld()) || (self.of_service.is_none() && self.of_endpoint.is_none()) {
            return;
        }
        let Some(known) = self.known() else { return };
        if let (Some(breaker), Some(ticket)) = (&known.breaker, self.of_service) {
            breaker.give_back(ticket);
        }
        if is_told {
            return;
        }
        if let (Some(breaker), Some(ticket)) = (known.endpoint_breakers.get(self.endpoint), self.of_endpoint) {
            breaker.give_back(ticket);
        }
    }
}

/// Whether an answer's head has the field; what follows it is of no interest.
fn has_retry_after(head: &[u8]) -> bool {
    const NAME: &[u8] = b"retry-after:";
    let mut lines = head.split(|byte| *byte == b'\n');
    lines.any(|line| line.get(..NAME.len()).is_some_and(|name| name.eq_ignore_ascii_case(NAME)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_field_is_found_by_its_name() {
        assert!(has_retry_after(b"HTTP/1.1 503 X\r\nA: b\r\nRETRY-After: 1\r\n\r\n"));
        assert!(!has_retry_after(b"HTTP/1.1 503 retry-after:\r\nX-Retry-After: 1\r\n\r\n"));
    }
}
