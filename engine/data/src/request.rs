//! From a request's head to what is to be done with it, in one go and without waiting: parse, route, filter, write the
//! head for the service (or the whole answer, where the gateway gives it).

use std::net::IpAddr;

use ringway_config::snapshot::{Action, Forward, HostRewrite, Rewrite, Route};
use ringway_core::access::{Preflight, cors};
use ringway_core::auth_service::Asking;
use ringway_core::bulkhead::Place;
use ringway_core::failure::Failure;
use ringway_core::filter::{self, Answer, Gate, Lookup, Permit, Progress, Told, Verdict};
use ringway_core::forwarded::{client_ip, is_trusted};
use ringway_core::http::websocket;
use ringway_core::http::{Framing, HeadStorage, Name, RequestError, RequestHead, Target, Version};
use ringway_core::http::{list, list_has_token};
use ringway_core::log_line::LONG_BYTES_MAX;
use ringway_core::path::normalize;
use ringway_core::request_id::RequestId;
use ringway_core::router::{Captures, Found, RouteRequest};
use ringway_core::stats::Hedged;
use ringway_core::sticky::Outcome;
use ringway_core::template::Vars;

use crate::acme;
use crate::auth_service::{Known, Question};
use crate::breaker::{Cut, Passage, Way, find_way};
use crate::bulkhead;
use crate::call::Call;
use crate::connection::Connection;
use crate::respond;
use crate::service_head::{Destination, max_forwards, write_head};
use crate::shedding::shed;
use crate::split::choose;
use crate::sticky::hidden_cookie;
use crate::tunnel::Opened;

/// What `Upgrade` calls a WebSocket (RFC 6455 section 4.1).
pub(crate) const WEBSOCKET: &[u8] = b"websocket";
/// How long a request waits in all for what the gate has to know.
const GATE_WAIT_US: u64 = 5_000_000;

/// A part of the head as received: (start, length).
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Span {
    start: u32,
    len: u32,
}

impl Span {
    fn of(part: &[u8], head: &[u8]) -> Self {
        let start = (part.as_ptr() as usize).wrapping_sub(head.as_ptr() as usize);
        match start.checked_add(part.len()).is_some_and(|end| end <= head.len()) {
            true => Self { start: start as u32, len: part.len() as u32 },
            false => Self::default(),
        }
    }

    pub(crate) fn is_empty(self) -> bool {
        self.len == 0
    }

    pub(crate) fn get(self, head: &[u8]) -> Option<&[u8]> {
        let part = head.get(self.start as usize..(self.start + self.len) as usize)?;
        (self.len > 0).then_some(part)
    }
}

/// What is known of a request from its head on, to the end of its answer.
pub(crate) struct Exchange {
    /// When its head was whole, on the core's clock.
    pub(crate) started: u64,
    pub(crate) id: RequestId,
    pub(crate) client_ip: IpAddr,
    pub(crate) method: Span,
    pub(crate) path: Span,
    pub(crate) user_agent: Span,
    /// `Origin`, where the route's answers depend on it.
    pub(crate) origin: Span,
    /// The protocol that the client may change to, and is asked of the service; empty where there is none.
    pub(crate) upgrade: Span,
    /// Of a WebSocket's handshake.
    pub(crate) websocket_key: Span,
    pub(crate) is_head: bool,
    pub(crate) is_http10: bool,
    pub(crate) is_http2: bool,
    pub(crate) is_idempotent: bool,
    /// Whether the client lets its connection live, as far as its head says.
    pub(crate) keep_alive: bool,
    /// Whether the client may be sending more: it did not say that this is its last request.
    pub(crate) sends_more: bool,
    pub(crate) expects_continue: bool,
    pub(crate) framing: Framing,
    pub(crate) body_bytes_max: Option<u64>,
    pub(crate) route: Option<u32>,
    /// What the gate learned of it.
    pub(crate) gate: Progress,
    /// What the gate has to ask an auth service.
    pub(crate) question: Option<Question>,
    /// Until when the gate may wait for what it has to know, on the core's clock.
    pub(crate) gate_until: u64,
    pub(crate) service: Option<usize>,
    /// From the request sent to the answer's head, in microseconds.
    pub(crate) service_us: Option<u64>,
    /// What the client was told; 0 while nothing was.
    pub(crate) status: u16,
    /// Tries at a service.
    pub(crate) attempts: u8,
    /// What became of the last one of those that were sent while another one was awaited.
    pub(crate) hedge: Option<Hedged>,
    /// What a split has told the client from others by, which it gets as a cookie; 0 where it gets none.
    pub(crate) given_key: u64,
    /// When somebody before the gateway gives the answer up, as far as the service's `deadline_header` says; `u64::MAX`
    /// where it does not.
    pub(crate) told_until: u64,
    /// A breaker was open.
    pub(crate) cut: Cut,
    /// Among those in flight to its service, where that has only so many.
    pub(crate) place: Option<Place>,
    /// It was not shed.
    pub(crate) is_admitted: bool,
    /// Why it was refused for want of room.
    pub(crate) shed: Option<&'static str>,
    /// What became of the client's session, where the service has them.
    pub(crate) session: Option<Outcome>,
    /// The answer broke off: the client's connection ends with a reset, so that nobody takes it for whole.
    pub(crate) broken_off: bool,
    /// It is a gRPC call.
    pub(crate) call: Option<Call>,
    /// The service has changed the protocol: no other request follows.
    pub(crate) opened: Option<Box<Opened>>,
}

/// What is to be done.
pub(crate) enum Step<'a> {
    /// The head for the service is written, for the endpoint that was chosen.
    Forward {
        passage: Passage<'a>,
        permit: Permit,
    },
    /// The gate has to know this first.
    Wait(Lookup),
    /// Its service has no place for it, and it may wait for one.
    Queue(usize),
    /// The whole answer is written, body and all.
    Answer,
    Fail(Failure),
}

impl Exchange {
    pub(crate) fn new(conn: &Connection) -> Self {
        let worker = &conn.worker;
        let started = worker.clock.now();
        Self {
            started,
            id: RequestId::generate(worker.clock.unix_ms(started), worker.random_wide()),
            client_ip: conn.peer.ip(),
            method: Span::default(),
            path: Span::default(),
            user_agent: Span::default(),
            origin: Span::default(),
            upgrade: Span::default(),
            websocket_key: Span::default(),
            is_head: false,
            is_http10: false,
            is_http2: conn.client.stream().is_some(),
            is_idempotent: false,
            keep_alive: false,
            sends_more: true,
            expects_continue: false,
            framing: Framing::None,
            body_bytes_max: None,
            route: None,
            gate: Progress::default(),
            question: None,
            gate_until: started + GATE_WAIT_US,
            service: None,
            service_us: None,
            status: 0,
            attempts: 0,
            hedge: None,
            given_key: 0,
            told_until: u64::MAX,
            cut: Cut::No,
            place: None,
            is_admitted: false,
            shed: None,
            session: None,
            broken_off: false,
            call: None,
            opened: None,
        }
    }

    /// Gives back what it counts on among those under way.
    pub(crate) fn give_back(&mut self, conn: &Connection) {
        self.gate.places.give_back();
        bulkhead::give_back(conn, self);
    }

    /// Keeps of the head what the log wants: a tunnel outlives its head by far.
    pub(crate) fn keep_for_log(&mut self, head: &[u8]) -> Box<[u8]> {
        let mut kept = Vec::new();
        for span in [&mut self.method, &mut self.path, &mut self.user_agent, &mut self.upgrade] {
            let part = span.get(head).unwrap_or_default();
            let part = part.get(..LONG_BYTES_MAX).unwrap_or(part);
            *span = Span { start: kept.len() as u32, len: part.len() as u32 };
            kept.extend_from_slice(part);
        }
        (self.origin, self.websocket_key) = Default::default();
        kept.into()
    }

    /// Judges the head. `out` gets what [`Step`] says.
    pub(crate) fn prepare<'a>(&mut self, conn: &'a Connection, head: &[u8], out: &mut Vec<u8>) -> Step<'a> {
        match self.try_prepare(conn, head, out) {
            Ok(step) => step,
            Err(failure) => Step::Fail(failure),
        }
    }

    fn try_prepare<'a>(&mut self, conn: &'a Connection, head: &[u8], out: &mut Vec<u8>) -> Result<Step<'a>, Failure> {
        let listener = &*conn.listener;
        let mut storage = HeadStorage::new();
        let request = RequestHead::parse(head, listener.limits.headers, &mut storage).map_err(failure_of)?;
        self.method = Span::of(request.method.as_bytes(), head);
        self.user_agent = Span::of(request.user_agent.unwrap_or_default(), head);
        self.is_head = request.method == "HEAD";
        self.is_http10 = request.version == Version::Http10;
        self.is_idempotent = request.is_idempotent();
        self.keep_alive = request.keep_alive;
        self.sends_more = request.keep_alive;
        self.expects_continue = request.expects_continue;
        self.framing = request.framing;
        if self.is_http2 {
            self.call = Call::of(&request);
            self.call.as_mut().map_or(Ok(()), |call| call.read_timeout(&request))?;
        }
        let trusted = !listener.trusted_proxies.is_empty() && is_trusted(&listener.trusted_proxies, conn.peer.ip());
        if trusted {
            let hops = request.values(Name::XForwardedFor);
            self.client_ip = client_ip(conn.peer.ip(), &listener.trusted_proxies, hops);
            if let Some(id) = request.value(Name::XRequestId).and_then(RequestId::accept) {
                self.id = id;
            }
        }

        let Target::Path { path: raw_path, query } = request.target else {
            self.path = Span::of(b"*", head);
            respond::options(conn, self, out);
            return Ok(Step::Answer);
        };
        self.path = Span::of(raw_path, head);
        if let Some(acme) = &conn.view.published.snapshot.acme
            && acme::answered(conn, self, acme, &request, raw_path, out)
        {
            return Ok(Step::Answer);
        }
        if request.has(Name::MaxForwards) && max_forwards(&request) == Some(0) {
            match request.method {
                "OPTIONS" => {
                    respond::options(conn, self, out);
                    return Ok(Step::Answer);
                }
                "TRACE" => return Err(Failure::UnsupportedMethod),
                _ => {}
            }
        }
        let mut normalized = conn.worker.path.borrow_mut();
        let path = normalize(raw_path, listener.path, &mut normalized)?;
        let wanted = RouteRequest {
            host: request.host(),
            method: request.method.as_bytes(),
            path,
            query,
            headers: request.headers,
        };
        // Behind what is answered on listeners in the clear in any case: challenges of ACME.
        if let Some(redirect) = &listener.redirect_to_https
            && !redirect.except.iter().any(|prefix| path.starts_with(prefix.as_bytes()))
        {
            return respond::to_https(conn, self, redirect, request.authority, (raw_path, query), out);
        }
        if self.answer_preflight(conn, &request, &wanted, out) {
            return Ok(Step::Answer);
        }
        let (index, captures) = match listener.router.find(&wanted) {
            Found::Route { index, captures } => (index, captures),
            Found::WrongMethod => {
                respond::wrong_method(conn, self, &request, |allow| listener.router.allow(&wanted, allow), out);
                return Ok(Step::Answer);
            }
            Found::Nothing => return Err(Failure::NoRoute),
        };
        let route = conn.view.published.snapshot.routes.get(index as usize).ok_or(Failure::Internal)?;
        self.route = Some(index);
        if conn.worker.shedding.is_active() {
            shed(conn, self, route, &request, trusted)?;
        }
        // A body that is looked at is no longer than what is held of it.
        let held = route.access.validation.as_ref().and_then(|validation| validation.body_bytes_max());
        self.body_bytes_max = held.map_or(route.body_bytes, |held| Some(held as u64));
        if route.access.cors.is_some() {
            self.origin = Span::of(cors::origin(request.headers).unwrap_or_default(), head);
        }
        let permit = match self.ask_gate(conn, route, &request, &wanted, &captures) {
            Verdict::Continue(permit) => permit,
            Verdict::Answer(failure) => return Err(failure),
            Verdict::Need(lookup) => return Ok(Step::Wait(lookup)),
        };
        let has_variables = !route.request_headers.is_empty()
            || !route.response_headers.is_empty()
            || !matches!(route.action, Action::Forward(Forward { rewrite: Rewrite::Keep | Rewrite::Strip(_), .. }));
        let ip = has_variables.then(|| conn.worker.text_of(self.client_ip));
        let id = self.id;
        let vars = Vars {
            request_id: id.as_bytes(),
            client_ip: ip.as_deref().unwrap_or_default(),
            host: request.authority,
            method: request.method.as_bytes(),
            path,
            query,
            scheme: conn.listener.scheme(),
            route: &route.name,
            service: "",
            captures: &captures,
            headers: request.headers,
            tls: conn.secured.facts(),
        };
        match &route.action {
            // An answer of 200 would tell the client of HTTP/2 that it has its tunnel (RFC 8441 section 5).
            Action::Respond(_) | Action::Redirect(_) if self.is_http2 && request.has(Name::Upgrade) => {
                Err(Failure::UnsupportedMethod)
            }
            Action::Respond(answer) => {
                respond::fixed(conn, self, route, answer, &vars, out);
                Ok(Step::Answer)
            }
            Action::Redirect(redirect) => {
                respond::redirect(conn, self, route, redirect, &vars, out);
                Ok(Step::Answer)
            }
            Action::Forward(forward) => {
                let target = choose(conn, self, &forward.service, &request).ok_or(Failure::Internal)?;
                self.service = Some(target);
                let passage = match find_way(conn, self, (target, forward.subset), &request)? {
                    Way::Open(passage) => passage,
                    // See above.
                    Way::Answer(_) if self.is_http2 && request.has(Name::Upgrade) => {
                        self.cut = Cut::Refused;
                        return Err(Failure::CircuitOpen(1));
                    }
                    Way::Answer(answer) => {
                        respond::fixed(conn, self, route, answer, &vars, out);
                        return Ok(Step::Answer);
                    }
                };
                if !bulkhead::has_place(conn, self, passage.service)? {
                    return Ok(Step::Queue(passage.service));
                }
                let service = conn.view.services.get(passage.service).ok_or(Failure::Internal)?;
                if request.has(Name::Upgrade) {
                    // Over HTTP/2 there are names for what is carried, and this is the one in use (RFC 8441 section 5).
                    let over_http2 = service.service.pool.http2.is_some();
                    let may_carry = |protocol: &[u8]| !over_http2 || protocol.eq_ignore_ascii_case(WEBSOCKET);
                    self.find_upgrade(&request, head, |name| may_carry(name) && forward.upgrades.allows(name))?;
                }
                let host = match &forward.host {
                    HostRewrite::Keep if !request.authority.is_empty() => request.authority,
                    HostRewrite::Fixed(host) => host.as_bytes(),
                    _ => service.endpoint_host(passage.endpoint),
                };
                let vars = Vars { service: &service.service.name, ..vars };
                let service = &*service.service;
                let hidden_cookie = hidden_cookie(service);
                let to = Destination { listener, route, forward, service, host, hidden_cookie, trusted };
                write_head(conn, self, head, &request, &to, &vars, out);
                Ok(Step::Forward { passage, permit })
            }
        }
    }
}

impl Exchange {
    /// Which of the protocols that the client offers may be asked of the service. Others are left out: the request then is
    /// one like any other, as RFC 9110 section 7.8 has it. So is one with a body, behind whose end the change would have to
    /// wait.
    fn find_upgrade(
        &mut self,
        request: &RequestHead<'_, '_>,
        head: &[u8],
        is_allowed: impl Fn(&[u8]) -> bool,
    ) -> Result<(), Failure> {
        let may_change = request.version == Version::Http11
            && request.framing == Framing::None
            && list_has_token(request.values(Name::Connection), b"upgrade");
        let mut offered = request.values(Name::Upgrade).flat_map(list).filter(|_| may_change);
        let Some(protocol) = offered.find(|protocol| is_allowed(protocol)) else {
            // A stream has this field from an extended CONNECT only, which is nothing else (RFC 8441 section 4).
            return if self.is_http2 { Err(Failure::UnsupportedMethod) } else { Ok(()) };
        };
        if protocol.eq_ignore_ascii_case(WEBSOCKET) {
            let is_key = |header: &&httparse::Header<'_>| header.name.eq_ignore_ascii_case("sec-websocket-key");
            let mut keys = request.headers.iter().filter(is_key);
            match (keys.next(), keys.next()) {
                (Some(key), None) if request.method == "GET" && websocket::is_key(key.value) => {
                    self.websocket_key = Span::of(key.value, head);
                }
                _ => return Err(Failure::Malformed("Malformed WebSocket handshake")),
            }
        }
        self.upgrade = Span::of(protocol, head);
        Ok(())
    }

    fn ask_gate(
        &mut self,
        conn: &Connection,
        route: &Route,
        head: &RequestHead<'_, '_>,
        request: &RouteRequest<'_>,
        captures: &Captures,
    ) -> Verdict {
        let (worker, published) = (&conn.worker, &conn.view.published);
        let gate = Gate {
            policy: &route.policy,
            access: &route.access,
            authenticators: &published.snapshot.authenticators,
            live: &published.live,
            tokens: &conn.view.tokens,
            rules: &published.snapshot.rate_limits,
            limiters: &published.limiters,
            scopes: &published.snapshot.concurrency_limits,
            concurrency: &published.concurrency,
            key: &worker.limit_key,
            route: &route.name,
            request,
            captures,
            client_ip: self.client_ip,
            certificate: conn.secured.certificate(),
            framing: self.framing,
            body_bytes_max: self.body_bytes_max,
            now_unix_s: worker.clock.unix_ms(self.started) / 1000,
            now_us: worker.clock.lately(),
            may_wait: worker.clock.lately() < self.gate_until,
        };
        loop {
            let verdict = filter::admit(&gate, &mut self.gate);
            if std::mem::take(&mut self.gate.rings) {
                worker.hub.limits_bell.ring(0);
            }
            match verdict {
                Verdict::Need(Lookup::Service(index)) if self.recall(conn, route, head, request, index) => {}
                verdict => return verdict,
            }
        }
    }

    /// Whether an auth service need not be asked; else what it is asked stands in `question`.
    fn recall(
        &mut self,
        conn: &Connection,
        route: &Route,
        head: &RequestHead<'_, '_>,
        request: &RouteRequest<'_>,
        authenticator: u32,
    ) -> bool {
        let (worker, view) = (&conn.worker, &conn.view);
        let Some((settings, state)) = view.auth_service(authenticator) else { return false };
        let client_ip = worker.text_of(self.client_ip);
        let asking = Asking {
            method: request.method,
            path: request.path,
            query: request.query,
            host: head.authority,
            scheme: conn.listener.scheme(),
            client_ip: &client_ip,
            request_id: self.id.as_bytes(),
            headers: request.headers,
        };
        // It may have something to say of a request without credentials, where nobody else does.
        let insists = route.policy.authenticate.len() == 1 && !route.policy.anonymous;
        let answer = match state.look_up(worker, settings, &asking, insists) {
            Ok(Known::Nothing) => Answer::NoCredentials,
            Ok(Known::Told(verdict)) => Answer::Said { verdict, cached: true },
            Ok(Known::Ask(question)) => {
                self.question = Some(question);
                return false;
            }
            Err(error) => Answer::BadCredentials(error),
        };
        self.gate.told = Some(Told { authenticator, answer });
        true
    }

    /// Whether the request asks what another one may do (CORS), of a route that says so. A preflight carries no
    /// credentials: nothing else is asked of it.
    fn answer_preflight(
        &mut self,
        conn: &Connection,
        request: &RequestHead<'_, '_>,
        wanted: &RouteRequest<'_>,
        out: &mut Vec<u8>,
    ) -> bool {
        let Some(preflight) = Preflight::of(request.method, request.headers) else { return false };
        let announced = RouteRequest { method: preflight.method, ..*wanted };
        let Found::Route { index, .. } = conn.listener.router.find(&announced) else { return false };
        let Some(route) = conn.view.published.snapshot.routes.get(index as usize) else { return false };
        let Some(cors) = &route.access.cors else { return false };
        self.route = Some(index);
        respond::preflight(conn, self, cors, &preflight, out);
        true
    }
}

fn failure_of(error: RequestError) -> Failure {
    match error {
        RequestError::TooManyHeaders => Failure::HeadTooLarge,
        RequestError::Version => Failure::UnsupportedVersion,
        RequestError::UnknownCoding => Failure::UnsupportedTransferCoding,
        RequestError::Expectation => Failure::ExpectationFailed,
        RequestError::Connect => Failure::UnsupportedMethod,
        RequestError::RequestLine => Failure::Malformed("Malformed request line"),
        RequestError::HeaderField => Failure::Malformed("Malformed header field"),
        RequestError::Target => Failure::Malformed("Malformed request target"),
        RequestError::MissingHost => Failure::Malformed("Missing Host header"),
        RequestError::RepeatedHost => Failure::Malformed("More than one Host header"),
        RequestError::BadHost => Failure::Malformed("Malformed Host header"),
        RequestError::ContentLength => Failure::Malformed("Malformed Content-Length"),
        RequestError::RepeatedLength => Failure::Malformed("More than one Content-Length"),
        RequestError::LengthAndCoding => Failure::Malformed("Content-Length beside Transfer-Encoding"),
        RequestError::CodingInHttp10 => Failure::Malformed("Transfer-Encoding in an HTTP/1.0 request"),
        RequestError::BadCoding => Failure::Malformed("Malformed Transfer-Encoding"),
    }
}
