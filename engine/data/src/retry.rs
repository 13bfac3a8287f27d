//! Whether a failed try is followed by another one, and where that goes.

use std::cell::{Cell, RefCell};
use std::time::Duration;

use ringway_config::resilience::{Hedge, Retries, RetryOn};
use ringway_config::snapshot::{Action, HostRewrite, RouteRetries, Service};
use ringway_core::failure::Failure;
use ringway_core::grpc::Status;
use ringway_core::http::{BodyDecoder, HeadStorage, ResponseHead};
use ringway_core::retry_budget::backoff_us;
use ringway_core::stats::{Hedged, ServiceCell};
use ringway_core::sticky::Session;
use ringway_io::Ticker;

use crate::breaker::{Passage, Shut};
use crate::buffer::Buffer;
use crate::clock::us;
use crate::connection::Connection;
use crate::forward::timeouts;
use crate::outbound::Broken;
use crate::request::Exchange;

/// What is known of a request's tries.
pub(crate) struct Tries<'a> {
    /// `None`: there is one try.
    pub(crate) policy: Option<&'a Retries>,
    /// It does no harm twice (RFC 9110 section 9.2.2).
    is_idempotent: bool,
    /// When it must be answered, on the core's clock.
    pub(crate) until: u64,
    /// Tries that have failed, and were followed by another one or will be.
    failed: Cell<u8>,
    /// Those that have been so far.
    followed: Cell<u8>,
    /// Tries that were due while others were awaited.
    hedges: Cell<u8>,
    /// The endpoints that have had the request, a bit each; the last one is for all from there on.
    endpoints: Cell<u64>,
    /// Where the next one goes, and how long it waits before, in microseconds.
    next: Cell<Option<(Passage<'a>, u64)>>,
    /// Those that have failed, and of which the service's breaker has not heard: as many as there were tries.
    withheld: RefCell<Vec<Passage<'a>>>,
}

impl<'a> Tries<'a> {
    /// Counts the request in the budget of its service.
    pub(crate) fn begin(
        conn: &'a Connection,
        exchange: &Exchange,
        (index, service): (usize, &'a Service),
        deadline: Option<Duration>,
    ) -> Self {
        let policy = policy(conn, exchange, service);
        if let (Some(_), Some(known)) = (policy, conn.view.published.resilience.get(index)) {
            known.budget.request(conn.worker.id, conn.worker.clock.lately());
        }
        Self {
            policy,
            is_idempotent: exchange.is_idempotent,
            until: deadline.map_or(u64::MAX, |deadline| exchange.started + us(deadline)),
            failed: Cell::new(0),
            followed: Cell::new(0),
            hedges: Cell::new(0),
            endpoints: Cell::new(0),
            next: Cell::new(None),
            withheld: RefCell::default(),
        }
    }

    /// Why an answer is one to try again, if it is. `said`: how a call has ended.
    #[inline]
    pub(crate) fn reason(&self, status: u16, said: Option<Status>) -> Option<RetryOn> {
        let on = match said {
            Some(said) => RetryOn::Grpc(said),
            None if status >= 400 => RetryOn::Status(status),
            None => return None,
        };
        self.policy.filter(|policy| policy.has(on)).map(|_| on)
    }

    /// Whether there is another try after this one has failed, to be taken with [`Tries::next`], of a request that is at hand. What the breakers think of
    /// this one they know already.
    pub(crate) fn plan(&self, failed: &Passage<'a>, conn: &'a Connection, on: RetryOn, cell: &ServiceCell) -> bool {
        let Some(policy) = self.policy else { return false };
        let is_safe = match on {
            RetryOn::ConnectFailure | RetryOn::RefusedStream | RetryOn::Grpc(_) => true,
            _ => self.is_idempotent,
        };
        if self.failed.get() >= policy.attempts || !policy.has(on) || !is_safe {
            return false;
        }
        let worker = &conn.worker;
        let [base, max] = [policy.backoff_base, policy.backoff_max].map(us);
        let wait = backoff_us(base, max, self.failed.get().into(), worker.random());
        let now = worker.clock.now();
        if now + wait >= self.until {
            return false;
        }
        let endpoints = self.endpoints.get() | bit(failed.endpoint);
        let passage = match Passage::open(conn, failed.service, failed.wish, endpoints) {
            Ok(passage) => passage,
            Err(Shut::Open(_)) => {
                cell.retries_denied_by_breaker.add(1);
                return false;
            }
            Err(Shut::NoEndpoint) => return false,
        };
        if !take_from_budget(conn, failed.service, now) {
            cell.retries_denied_by_budget.add(1);
            return false;
        }
        self.endpoints.set(endpoints);
        self.failed.set(self.failed.get() + 1);
        self.next.set(Some((passage, wait)));
        true
    }

    /// Whether a try that fails now may be followed by one at another endpoint. The breakers are asked when it comes to that.
    pub(crate) fn may_go_elsewhere(&self, from: &Passage<'a>, conn: &Connection) -> bool {
        let tried = self.endpoints.get() | 1 << from.endpoint.min(63);
        let endpoints = conn.view.services.get(from.service).map_or(0, |view| view.pools.len());
        let is_left = self.policy.is_some_and(|policy| self.failed.get() < policy.attempts);
        is_left && endpoints > tried.count_ones() as usize
    }

    /// A try has failed and is followed by another one.
    pub(crate) fn leave(&self, failed: Passage<'a>) {
        if failed.is_withheld() {
            self.withheld.borrow_mut().push(failed);
        }
    }

    /// The last try has ended: what was withheld of the others counts where that was not good either.
    pub(crate) fn end(&self, is_good: bool) {
        for passage in self.withheld.take().iter().filter(|_| !is_good) {
            passage.own_up();
        }
    }

    pub(crate) fn next(&self) -> Option<(Passage<'a>, u64)> {
        self.followed.set(self.failed.get());
        self.next.take()
    }

    /// Whether the current try follows one that has failed.
    pub(crate) fn is_retry(&self) -> bool {
        self.followed.get() > 0
    }

    /// How further tries of a request that is at hand go out while the current one is awaited, if any do.
    #[inline]
    pub(crate) fn hedge(&self, exchange: &Exchange, passage: &Passage<'_>) -> Option<Hedge> {
        let hedge = self.policy?.hedge?;
        let max = hedge.max.saturating_sub(self.hedges.get());
        // A session has its state at its endpoint, and a tunnel is no answer.
        let has_session = matches!(passage.wish.session, Session::With(_));
        let may =
            self.is_idempotent && max > 0 && exchange.upgrade.is_empty() && exchange.call.is_none() && !has_session;
        may.then_some(Hedge { max, ..hedge })
    }

    /// A way for a further try, beside those that are awaited: to an endpoint that has not had the request. `Err`: why there is
    /// none, unless it is too late.
    pub(crate) fn beside(&self, current: &Passage<'a>, conn: &'a Connection) -> Result<Passage<'a>, Option<Hedged>> {
        self.hedges.set(self.hedges.get() + 1);
        let now = conn.worker.clock.now();
        if now >= self.until {
            return Err(None);
        }
        let endpoints = self.endpoints.get() | bit(current.endpoint);
        let passage = match Passage::open(conn, current.service, current.wish, endpoints) {
            Ok(passage) if endpoints & bit(passage.endpoint) == 0 => passage,
            Ok(_) | Err(Shut::NoEndpoint) => return Err(Some(Hedged::NoEndpoint)),
            Err(Shut::Open(_)) => return Err(Some(Hedged::NoPassage)),
        };
        if !take_from_budget(conn, current.service, now) {
            return Err(Some(Hedged::NoBudget));
        }
        self.endpoints.set(endpoints | bit(passage.endpoint));
        Ok(passage)
    }
}

fn bit(endpoint: usize) -> u64 {
    1 << endpoint.min(63)
}

fn take_from_budget(conn: &Connection, service: usize, now: u64) -> bool {
    let known = conn.view.published.resilience.get(service);
    let settings = conn.view.services.get(service).map(|view| view.service.retry_budget);
    known.zip(settings).is_some_and(|(known, settings)| known.budget.take(&settings, now))
}

/// The one that holds for a request to this service.
fn policy<'a>(conn: &'a Connection, exchange: &Exchange, service: &'a Service) -> Option<&'a Retries> {
    match conn.route(exchange).map(|route| &route.action) {
        Some(Action::Forward(forward)) => match &forward.retries {
            RouteRetries::OfService => service.retries.as_ref(),
            RouteRetries::Off => None,
            RouteRetries::Own(own) => Some(own),
        },
        _ => None,
    }
}

/// How long one try may take to its answer's head.
pub(crate) fn per_try(conn: &Connection, exchange: &Exchange, service: &Service) -> Option<Duration> {
    let of_policy = policy(conn, exchange, service).and_then(|policy| policy.per_try);
    timeouts(conn, exchange).per_try.into_iter().chain(of_policy).min()
}

/// What a broken try means for another one.
pub(crate) fn reason_of(broken: &Broken) -> Option<RetryOn> {
    match broken {
        Broken::Unanswered => Some(RetryOn::Reset),
        Broken::Refused => Some(RetryOn::RefusedStream),
        Broken::Again { .. } => None,
        Broken::Failed(failure) => match failure {
            Failure::ConnectFailed | Failure::ConnectTimeout | Failure::Untrusted | Failure::TlsFailed => {
                Some(RetryOn::ConnectFailure)
            }
            Failure::ConnectionBroken => Some(RetryOn::Reset),
            Failure::AnswerTimeout => Some(RetryOn::Timeout),
            _ => None,
        },
    }
}

/// The status in an answer's head, as it is.
#[inline]
pub(crate) fn status_of(head: &[u8]) -> u16 {
    let digits = head.get(9..12).unwrap_or_default();
    let status = std::str::from_utf8(digits).ok().and_then(|digits| digits.parse().ok());
    status.unwrap_or_default()
}

/// Whether an answer that nobody wants has come whole, so that its connection may be used again.
pub(crate) fn is_whole(buffer: &mut Buffer, head_length: usize, to_head: bool) -> bool {
    let head = buffer.data().get(..head_length).unwrap_or_default();
    let mut storage = HeadStorage::new();
    let Ok(answer) = ResponseHead::parse(head, to_head, &mut storage) else { return false };
    let (mut body, lives) = (BodyDecoder::new(answer.framing), answer.keep_alive);
    buffer.consume(head_length);
    let length = buffer.len();
    lives && body.decode(buffer.data_mut()).is_ok_and(|decoded| decoded.done && decoded.consumed == length)
}

/// Waits before a retry.
pub(crate) async fn pause(wait_us: u64) {
    if let Ok(ticker) = Ticker::idle() {
        // Without a timer there is no wait.
        let _ = ticker.sleep(Duration::from_micros(wait_us)).await;
    }
}

/// Names another endpoint in the `Host` of a head that the gateway has written, where the route wants that.
pub(crate) fn rename_host(conn: &Connection, exchange: &Exchange, to: &Passage<'_>, head: &mut Vec<u8>) {
    const FIELD: &[u8] = b"\r\nHost: ";
    let Some(Action::Forward(forward)) = conn.route(exchange).map(|route| &route.action) else { return };
    let Some(view) = conn.view.services.get(to.service) else { return };
    if !matches!(forward.host, HostRewrite::Endpoint) {
        return;
    }
    // It is the first field, and no target has a line feed.
    let Some(begin) = memchr::memmem::find(head, FIELD).map(|at| at + FIELD.len()) else { return };
    let Some(length) = head.get(begin..).and_then(|rest| memchr::memchr(b'\r', rest)) else { return };
    head.splice(begin..begin + length, view.endpoint_host(to.endpoint).iter().copied());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_status_of_a_head() {
        assert_eq!(status_of(b"HTTP/1.1 503 Service Unavailable\r\n\r\n"), 503);
        assert_eq!(status_of(b"HTTP/1.0 99"), 0);
        assert_eq!(status_of(b"HTTP/1.1 5\xff3 \r\n"), 0);
    }
}
