//! Asking an auth service who a request comes from: remembered answers first, one question at a time for each
//! credential, and none while the service is known to be down.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::future::poll_fn;
use std::hash::{BuildHasher, Hasher};
use std::rc::Rc;
use std::task::{Poll, Waker};
use std::time::Duration;

use ringway_core::auth::credentials::CredentialsError;
use ringway_core::auth_service::{Answers, Asking, AuthService, Breaker, Now, Verdict};
use ringway_core::failure::Failure;
use ringway_core::http::{HeadStorage, ResponseHead};

use crate::clock::us;
use crate::connection::Connection;
use crate::subrequest::{Keep, Limits, Reply, call};
use crate::worker::Worker;

/// Why nothing could be asked: the service has as many requests in flight as it may.
const FULL: &str = "bulkhead_full";

/// What one core knows of an auth service. Outlives a reload that leaves its settings alone.
pub(crate) struct AuthState {
    answers: RefCell<Answers>,
    breaker: RefCell<Breaker>,
    /// Questions under way, by what they depend on: at most one for each request that waits.
    flights: RefCell<HashMap<Rc<[u8]>, Rc<Flight>, ahash::RandomState>>,
}

/// What can be said of a request without waiting.
pub(crate) enum Known {
    /// It has no credentials for this service.
    Nothing,
    Told(Verdict),
    Ask(Question),
}

/// What the service is to be asked. Both parts in vectors of the core's.
pub(crate) struct Question {
    key: Vec<u8>,
    request: Vec<u8>,
}

/// A question under way, and who waits for its answer too.
#[derive(Default)]
struct Flight {
    verdict: RefCell<Option<Verdict>>,
    landed: Cell<bool>,
    waiting: RefCell<Vec<Waker>>,
}

/// Ends a flight, whatever becomes of the request that leads it.
struct Landing<'a> {
    state: &'a AuthState,
    key: Rc<[u8]>,
    flight: Rc<Flight>,
}

impl AuthState {
    pub(crate) fn new(settings: &AuthService) -> Rc<Self> {
        // From the system: no client can know it.
        let seed = [(); 4].map(|()| std::collections::hash_map::RandomState::new().build_hasher().finish());
        Rc::new(Self {
            answers: RefCell::new(Answers::new(settings.cache, seed)),
            breaker: RefCell::default(),
            flights: RefCell::new(HashMap::with_hasher(ahash::RandomState::new())),
        })
    }

    /// What is remembered of a request, or the question to ask. `insists`: the service is asked about requests without
    /// credentials too.
    pub(crate) fn look_up(
        &self,
        worker: &Worker,
        settings: &AuthService,
        asking: &Asking<'_>,
        insists: bool,
    ) -> Result<Known, CredentialsError> {
        let mut key = worker.take_head();
        let is_asked = settings.key(asking, &mut key)? || (insists && settings.answers_without_credentials());
        if !is_asked {
            worker.give_head(key);
            return Ok(Known::Nothing);
        }
        if let Some(verdict) = self.answers.borrow().fresh(&key, now(worker)) {
            worker.give_head(key);
            return Ok(Known::Told(verdict.clone()));
        }
        let mut request = worker.take_head();
        settings.request(asking, &key, &mut request);
        Ok(Known::Ask(Question { key, request }))
    }

    /// Asks the service, or waits with who asks the same. An error only where the client has gone.
    pub(crate) async fn ask(
        &self,
        conn: &Connection,
        settings: &AuthService,
        question: Question,
    ) -> Result<Verdict, Failure> {
        let result = self.fly(conn, settings, &question).await;
        let result = result.map(|verdict| match (verdict, settings.stale) {
            (Verdict::Down(why), Some(age_max)) => {
                let answers = self.answers.borrow();
                answers.stale(&question.key, age_max, now(&conn.worker)).cloned().unwrap_or(Verdict::Down(why))
            }
            (verdict, _) => verdict,
        });
        conn.worker.give_head(question.key);
        conn.worker.give_head(question.request);
        result
    }

    async fn fly(&self, conn: &Connection, settings: &AuthService, question: &Question) -> Result<Verdict, Failure> {
        let clock = &conn.worker.clock;
        let until = clock.now() + us(settings.timeout);
        loop {
            let under_way = self.flights.borrow().get(&*question.key).cloned();
            let Some(flight) = under_way else { break };
            flight.landing().await;
            if let Some(verdict) = &*flight.verdict.borrow() {
                return Ok(verdict.clone());
            }
            // Its client went away: another one asks.
            if clock.now() >= until {
                return Ok(Verdict::Down("timeout"));
            }
        }
        let asked_at = now(&conn.worker);
        if !self.breaker.borrow_mut().admit(asked_at.since_start) {
            return Ok(Verdict::Down("breaker_open"));
        }
        let landing = Landing::take_off(self, &question.key);
        let may_repeat = AuthService::may_repeat(&question.request, &settings.mode);
        let limits = Limits { until, body: Keep::UpTo(settings.body_bytes_max), may_repeat, may_wait: true };
        let verdict = match call(conn, settings.service, &question.request, limits).await {
            Err(Failure::ClientGone) => return Err(Failure::ClientGone),
            // No failure of the service: its breaker does not hear of it.
            Err(Failure::BulkheadFull(_)) => {
                let verdict = Verdict::Down(FULL);
                self.breaker.borrow_mut().abandoned();
                *landing.flight.verdict.borrow_mut() = Some(verdict.clone());
                return Ok(verdict);
            }
            Err(failure) => Verdict::Down(failure.backend_error().map_or("internal", |error| error.label())),
            Ok(reply) => judge(settings, &reply, now(&conn.worker)),
        };
        self.count(conn, settings, &verdict);
        self.answers.borrow_mut().keep(&question.key, &verdict, asked_at.since_start);
        *landing.flight.verdict.borrow_mut() = Some(verdict.clone());
        Ok(verdict)
    }

    /// Whether the service is left alone for a while.
    pub(crate) fn is_broken(&self) -> bool {
        self.breaker.borrow().is_open()
    }

    fn count(&self, conn: &Connection, settings: &AuthService, verdict: &Verdict) {
        let worker = &conn.worker;
        let mut breaker = self.breaker.borrow_mut();
        let Verdict::Down(why) = verdict else { return breaker.succeeded() };
        if breaker.failed(settings.breaker, now(worker).since_start, worker.random()) {
            let service = conn.view.services.get(settings.service).map_or("", |view| &view.service.name);
            tracing::warn!(worker = worker.id, "the auth service `{service}` is down ({why}): not asked for a while");
        }
    }
}

fn judge(settings: &AuthService, reply: &Reply, now: Now) -> Verdict {
    let mut storage = HeadStorage::new();
    match ResponseHead::parse(reply.head(), false, &mut storage) {
        Ok(answer) => settings.judge(&answer, reply.body(), now.unix_s),
        Err(_) => Verdict::Down("bad_answer"),
    }
}

fn now(worker: &Worker) -> Now {
    let now = worker.clock.lately();
    Now { since_start: Duration::from_micros(now), unix_s: worker.clock.unix_ms(now) / 1000 }
}

impl Flight {
    /// Until it is over.
    async fn landing(&self) {
        poll_fn(|cx| {
            if self.landed.get() {
                return Poll::Ready(());
            }
            let mut waiting = self.waiting.borrow_mut();
            if !waiting.iter().any(|waker| waker.will_wake(cx.waker())) {
                waiting.push(cx.waker().clone());
            }
            Poll::Pending
        })
        .await;
    }
}

impl<'a> Landing<'a> {
    fn take_off(state: &'a AuthState, key: &[u8]) -> Self {
        let (key, flight) = (Rc::<[u8]>::from(key), Rc::new(Flight::default()));
        state.flights.borrow_mut().insert(Rc::clone(&key), Rc::clone(&flight));
        Self { state, key, flight }
    }
}

impl Drop for Landing<'_> {
    fn drop(&mut self) {
        self.state.flights.borrow_mut().remove(&self.key);
        if self.flight.verdict.borrow().is_none() {
            // Its client went away, or it panicked: that says nothing of the service.
            self.state.breaker.borrow_mut().abandoned();
        }
        self.flight.landed.set(true);
        self.flight.waiting.borrow_mut().drain(..).for_each(Waker::wake);
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::io::Write;
    use std::net::TcpStream;
    use std::pin::pin;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use httparse::Header;
    use ringway_core::auth_service::{AskMethod, AskPath, BreakerSettings, CacheSettings, Check, Mode, Tells};

    use super::*;
    use crate::testing::{Service, connect, on_core};

    fn settings(ttl: Duration, stale: Option<Duration>) -> AuthService {
        AuthService {
            service: 0,
            host: "auth".into(),
            mode: Mode::Check(Check {
                method: AskMethod::Fixed("GET".into()),
                path: AskPath::Fixed("/validate".into()),
                request_headers: vec!["Authorization".into()],
                tells: Tells { method: false, uri: false, host: false, client: false, scheme: false },
                answer_headers: vec!["X-User-Id".into()],
                refusal_headers: vec![],
                user: Some("X-User-Id".into()),
                roles: None,
                scopes: None,
            }),
            timeout: Duration::from_millis(300),
            body_bytes_max: 1024,
            cache: CacheSettings {
                ttl,
                refusals: Duration::ZERO,
                keeps_stale: stale.is_some(),
                entries_max: 100,
                bytes_max: 1 << 20,
            },
            stale,
            breaker: BreakerSettings { failures: 3, open: Duration::from_secs(60) },
        }
    }

    /// What becomes of a request with this token, asked or remembered.
    async fn ask(conn: &Connection, state: &AuthState, settings: &AuthService, token: &str) -> String {
        let headers = [Header { name: "Authorization", value: token.as_bytes() }];
        let asking = Asking {
            method: b"GET",
            path: b"/",
            query: None,
            host: b"shop",
            scheme: b"http",
            client_ip: b"127.0.0.1",
            request_id: b"id",
            headers: &headers,
        };
        let verdict = match state.look_up(&conn.worker, settings, &asking, true).unwrap() {
            Known::Nothing => return "nothing".into(),
            Known::Told(verdict) => Ok(verdict),
            Known::Ask(question) => state.ask(conn, settings, question).await,
        };
        match verdict {
            Ok(Verdict::Pass(identity)) => format!("pass {}", identity.user.as_deref().unwrap_or("-")),
            Ok(Verdict::Refuse(refusal)) => format!("refuse {}", refusal.status),
            Ok(Verdict::Invalid(why)) => format!("invalid {why}"),
            Ok(Verdict::Down(why)) => format!("down {why}"),
            Err(failure) => failure.to_string(),
        }
    }

    fn state(settings: &AuthService) -> Rc<AuthState> {
        AuthState::new(settings)
    }

    async fn both<A, B>(one: impl Future<Output = A>, other: impl Future<Output = B>) -> (A, B) {
        let (mut one, mut other) = (pin!(one), pin!(other));
        let (mut first, mut second) = (None, None);
        poll_fn(|cx| {
            if first.is_none()
                && let Poll::Ready(value) = one.as_mut().poll(cx)
            {
                first = Some(value);
            }
            if second.is_none()
                && let Poll::Ready(value) = other.as_mut().poll(cx)
            {
                second = Some(value);
            }
            if first.is_some() && second.is_some() { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
        (first.unwrap(), second.unwrap())
    }

    const PASS: &[u8] = b"HTTP/1.1 200 OK\r\nX-User-Id: u1\r\nContent-Length: 0\r\n\r\n";

    fn answering(answer: impl Fn() -> Option<&'static [u8]> + Send + Sync + 'static) -> Service {
        Service::start(move |_, stream, read_request| {
            while read_request(stream) {
                match answer() {
                    Some(bytes) => stream.write_all(bytes).unwrap(),
                    None => _ = read_request(stream),
                }
            }
        })
    }

    #[test]
    fn answers_are_remembered_and_refusals_asked_again() {
        let passes = Arc::new(AtomicBool::new(true));
        let now = Arc::clone(&passes);
        let refusal: &[u8] = b"HTTP/1.1 401 No\r\nContent-Length: 0\r\n\r\n";
        let service = answering(move || Some(if now.load(Ordering::Acquire) { PASS } else { refusal }));
        on_core(&service, async |conn: &Connection, _| {
            let settings = settings(Duration::from_secs(60), None);
            let state = state(&settings);
            for _ in 0..3 {
                assert_eq!(ask(conn, &state, &settings, "Bearer a").await, "pass u1");
            }
            assert_eq!(service.requests(), 1);
            passes.store(false, Ordering::Release);
            for asked in 2..4 {
                assert_eq!(ask(conn, &state, &settings, "Bearer b").await, "refuse 401");
                assert_eq!(service.requests(), asked);
            }
            assert_eq!(ask(conn, &state, &settings, "Bearer a").await, "pass u1");
            assert!(state.flights.borrow().is_empty());
        });
    }

    #[test]
    fn the_same_question_is_asked_once_at_a_time() {
        let service = Service::start(|_, stream, read_request| {
            while read_request(stream) {
                std::thread::sleep(Duration::from_millis(20));
                stream.write_all(PASS).unwrap();
            }
        });
        on_core(&service, async |conn: &Connection, _| {
            let settings = settings(Duration::ZERO, None);
            let state = state(&settings);
            let (other, _client) = connect(&conn.worker);
            let (one, two) = (ask(conn, &state, &settings, "a"), ask(&other, &state, &settings, "a"));
            assert_eq!(both(one, two).await, ("pass u1".into(), "pass u1".into()));
            assert_eq!(service.requests(), 1);
            let (one, two) = (ask(conn, &state, &settings, "a"), ask(&other, &state, &settings, "b"));
            assert_eq!(both(one, two).await, ("pass u1".into(), "pass u1".into()));
            assert_eq!(service.requests(), 3, "nothing is remembered, and other credentials are another question");
        });
    }

    #[test]
    fn who_waits_asks_when_the_first_one_goes_away() {
        let service = Service::start(|index, stream, read_request| {
            while read_request(stream) {
                if index == 0 {
                    read_request(stream);
                    return;
                }
                stream.write_all(PASS).unwrap();
            }
        });
        on_core(&service, async |conn: &Connection, client| {
            let settings = AuthService { timeout: Duration::from_secs(20), ..settings(Duration::ZERO, None) };
            let state = state(&settings);
            let (other, _client) = connect(&conn.worker);
            let stream: TcpStream = client.into();
            rustix::net::sockopt::set_socket_linger(&stream, Some(Duration::ZERO)).unwrap();
            drop(stream);
            let (one, two) = (ask(conn, &state, &settings, "a"), ask(&other, &state, &settings, "a"));
            assert_eq!(both(one, two).await, ("client gone".into(), "pass u1".into()));
            assert!(state.flights.borrow().is_empty());
        });
    }

    #[test]
    fn a_service_that_is_down_lets_nobody_pass_that_it_has_not_let_pass_lately() {
        let up = Arc::new(AtomicBool::new(true));
        let is_up = Arc::clone(&up);
        let error: &[u8] = b"HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n";
        let service = answering(move || Some(if is_up.load(Ordering::Acquire) { PASS } else { error }));
        on_core(&service, async |conn: &Connection, _| {
            let closed = settings(Duration::ZERO, None);
            let stale = settings(Duration::ZERO, Some(Duration::from_secs(60)));
            let (closed_state, stale_state) = (state(&closed), state(&stale));
            for (settings, state) in [(&closed, &closed_state), (&stale, &stale_state)] {
                assert_eq!(ask(conn, state, settings, "a").await, "pass u1");
            }
            up.store(false, Ordering::Release);
            assert_eq!(ask(conn, &closed_state, &closed, "a").await, "down error_status");
            assert_eq!(ask(conn, &stale_state, &stale, "a").await, "pass u1");
            assert_eq!(ask(conn, &stale_state, &stale, "b").await, "down error_status");
            // Three failures in a row: it is left alone, and what it said lately still counts.
            assert_eq!(ask(conn, &stale_state, &stale, "b").await, "down error_status");
            let asked = service.requests();
            assert_eq!(ask(conn, &stale_state, &stale, "b").await, "down breaker_open");
            assert_eq!(ask(conn, &stale_state, &stale, "a").await, "pass u1");
            assert_eq!(service.requests(), asked);
        });
    }

    #[test]
    fn a_slow_service_is_down() {
        let service = answering(|| None);
        on_core(&service, async |conn: &Connection, _| {
            let settings = settings(Duration::from_secs(60), None);
            let state = state(&settings);
            assert_eq!(ask(conn, &state, &settings, "a").await, "down answer_timeout");
            assert!(!state.breaker.borrow().is_open());
        });
    }
}
