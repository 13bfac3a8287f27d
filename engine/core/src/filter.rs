//! The gate in front of every service: filters look at a request, in one order, and only they can make the [`Permit`] to
//! forward it.
//!
//! client address (403) -> authentication (401) -> authorization (403) -> rate limits (429) -> concurrency limits (429)
//! -> validation (400, 415) -> body size (413)

use std::cell::RefCell;
use std::net::IpAddr;
use std::sync::Arc;

use crate::access::ip::IpDenial;
use crate::access::{Access, Invalid, Subject};
use crate::auth::credentials::CredentialsError;
use crate::auth::{Authenticator, ClientCertificate, Finding, Flaw, Identity, Live, TokenCache};
use crate::auth_service::{self, Refusal};
use crate::failure::Failure;
use crate::http::Framing;
use crate::limit::{Concurrency, Decision, Held, Limiter, Places, Rule, Scope, State, Who};
use crate::router::{Captures, RouteRequest};
use crate::stats::Authentication;

/// Who may use a route, and how often.
#[derive(Debug, Default)]
pub struct Policy {
    /// Indices of the authenticators, in the order in which they are asked. None: nobody is asked who they are.
    pub authenticate: Box<[u32]>,
    /// A request without credentials passes, as nobody. One with bad credentials does not.
    pub anonymous: bool,
    /// Indices of the rate limits, which all must admit.
    pub limits: Box<[u32]>,
    /// Indices of the concurrency limits, which all must have a place; [`PLACES_MAX`](crate::limit::PLACES_MAX) at most.
    pub concurrency: Box<[u32]>,
}

/// What the filters judge by.
pub struct Gate<'a, 'r> {
    pub policy: &'a Policy,
    pub access: &'a Access,
    /// Of the whole configuration, index for index.
    pub authenticators: &'a [Arc<Authenticator>],
    pub live: &'a [Arc<Live>],
    pub tokens: &'a RefCell<TokenCache>,
    pub rules: &'a [Arc<Rule>],
    pub limiters: &'a [Arc<Limiter>],
    pub scopes: &'a [Arc<Scope>],
    pub concurrency: &'a [Concurrency],
    /// Room for a limit's key. After a refusal by one it holds that one's.
    pub key: &'a RefCell<Vec<u8>>,
    pub route: &'a str,
    pub request: &'a RouteRequest<'r>,
    pub captures: &'a Captures,
    pub client_ip: IpAddr,
    /// What the client has shown in the TLS handshake.
    pub certificate: Option<&'a ClientCertificate>,
    pub framing: Framing,
    /// The route's limit on request bodies; `None`: no limit.
    pub body_bytes_max: Option<u64>,
    pub now_unix_s: u64,
    /// The limiters' clock.
    pub now_us: u64,
    /// There is time left to wait for what a filter has to know.
    pub may_wait: bool,
}

/// How far a request has come, and what was learned of it. Kept over a wait.
#[derive(Debug, Default)]
pub struct Progress {
    /// Who asks; `None`: nobody said, or nobody was asked.
    pub identity: Option<Arc<Identity>>,
    /// The authenticator that accepted or refused, and what it said.
    pub authentication: Option<(u32, Authentication)>,
    /// Why the request is not valid.
    pub invalid: Option<Box<Invalid>>,
    /// What an auth service said, or what is known without asking it. A route names one at most.
    pub told: Option<Told>,
    /// The answer of an auth service that the client gets.
    pub refusal: Option<Arc<Refusal>>,
    /// The limit that the answer tells of: the one that refused, or that has least left. With its rule.
    pub limit: Option<(u32, State)>,
    /// Its places among the requests under way. Whoever ends the request gives them back; dropped with it otherwise.
    pub places: Places,
    /// The concurrency limit that refused.
    pub full: Option<u32>,
    /// The request is held by its next limit for Redis' word; or what came of that.
    pub held: Option<Waiting>,
    /// A limiter has something to say to Redis: whoever reads this wakes the control plane, and unsets it.
    pub rings: bool,
    /// Authentication is over.
    is_known: bool,
    /// Limits that have admitted it.
    admitted: usize,
}

/// A request that a limiter holds.
#[derive(Debug)]
pub enum Waiting {
    For(Held),
    Over(Decision),
}

/// What is known of a request by way of an auth service.
#[derive(Debug)]
pub struct Told {
    pub authenticator: u32,
    pub answer: Answer,
}

#[derive(Debug)]
pub enum Answer {
    /// The request has no credentials for it.
    NoCredentials,
    /// What it has are none.
    BadCredentials(CredentialsError),
    Said {
        verdict: auth_service::Verdict,
        /// It was remembered.
        cached: bool,
    },
}

impl Answer {
    fn finding(&self) -> Finding {
        use auth_service::Verdict;
        let flaw = |description, reason| Finding::Refused(Flaw { code: "invalid_token", description, reason });
        match self {
            Self::NoCredentials => Finding::None,
            Self::BadCredentials(error) => Finding::Refused((*error).into()),
            Self::Said { verdict: Verdict::Pass(identity), cached } => {
                Finding::Known { identity: Arc::clone(identity), cached: *cached }
            }
            Self::Said { verdict: Verdict::Refuse(_), .. } => flaw("the auth service refused", "refused"),
            Self::Said { verdict: Verdict::Invalid(description), .. } => flaw(*description, "inactive"),
            Self::Said { verdict: Verdict::Down(_), .. } => Finding::Unavailable,
        }
    }

    fn refusal(&self) -> Option<&Arc<Refusal>> {
        match self {
            Self::Said { verdict: auth_service::Verdict::Refuse(refusal), .. } => Some(refusal),
            _ => None,
        }
    }
}

/// What a filter has to know before it can judge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lookup {
    /// The keys of this authenticator, which are being fetched.
    Keys(u32),
    /// What this authenticator's service says; the answer goes into [`Progress::told`].
    Service(u32),
    /// Redis' word on [`Progress::held`], from this limiter.
    Limit(u32),
}

/// What the filters say of a request.
#[derive(Debug)]
pub enum Verdict {
    Continue(Permit),
    /// Answer with this instead of forwarding.
    Answer(Failure),
    /// Look this up, then ask again with the same [`Progress`].
    Need(Lookup),
}

/// The proof that a request went through all filters. Forwarding takes one, and nothing else makes one.
#[derive(Debug)]
pub struct Permit(());

/// What stops a request.
enum Stop {
    Answer(Failure),
    Need(Lookup),
}

impl From<Failure> for Stop {
    fn from(failure: Failure) -> Self {
        Self::Answer(failure)
    }
}

/// Asks every filter, in order.
///
/// Hot; watched by the benchmark `admit`.
#[inline]
pub fn admit(gate: &Gate<'_, '_>, progress: &mut Progress) -> Verdict {
    match gate.judge(progress) {
        Ok(()) => Verdict::Continue(Permit(())),
        Err(Stop::Answer(failure)) => Verdict::Answer(failure),
        Err(Stop::Need(lookup)) => Verdict::Need(lookup),
    }
}

impl Gate<'_, '_> {
    fn judge(&self, progress: &mut Progress) -> Result<(), Stop> {
        self.address()?;
        if !progress.is_known {
            self.authenticate(progress)?;
            progress.is_known = true;
        }
        self.authorize(progress.identity.as_deref())?;
        self.limit(progress)?;
        self.take_places(progress)?;
        let judged = self.validate(progress).and_then(|()| self.body_size());
        judged.map_err(Stop::from)
    }

    fn address(&self) -> Result<(), Failure> {
        match self.access.ip.as_ref().map(|list| list.check(self.client_ip)) {
            None | Some(Ok(())) => Ok(()),
            Some(Err(IpDenial::Denied)) => Err(Failure::Forbidden("address_denied")),
            Some(Err(IpDenial::NotAllowed)) => Err(Failure::Forbidden("address_not_allowed")),
        }
    }

    /// Asks the authenticators in order, up to the first that knows the credential. What is no credential of one may be
    /// one of the next: a bad one refuses only when all were asked.
    fn authenticate(&self, progress: &mut Progress) -> Result<(), Stop> {
        let mut flaw: Option<(u32, Flaw)> = None;
        let mut unavailable = None;
        for &index in &self.policy.authenticate {
            let at = index as usize;
            let (Some(authenticator), Some(live)) = (self.authenticators.get(at), self.live.get(at)) else {
                return Err(Failure::Internal.into());
            };
            let carried = (self.request.headers, self.request.query, self.certificate);
            let mut tokens = self.tokens.borrow_mut();
            let told = progress.told.as_ref().filter(|told| told.authenticator == index);
            let finding = match told {
                Some(told) => told.answer.finding(),
                None => authenticator.judge(index, live, carried, &mut tokens, self.now_unix_s, self.may_wait),
            };
            match finding {
                Finding::None => {}
                Finding::Known { identity, cached } => {
                    let how = if cached { Authentication::Cached } else { Authentication::Verified };
                    progress.identity = Some(identity);
                    progress.authentication = Some((index, how));
                    return Ok(());
                }
                // The token of another issuer is no news where several are asked.
                Finding::Refused(found) if flaw.is_none_or(|(_, flaw)| flaw.reason == "issuer") => {
                    flaw = Some((index, found));
                }
                Finding::Refused(_) => {}
                Finding::Unavailable => unavailable = Some(index),
                Finding::Wait => return Err(Stop::Need(Lookup::Keys(index))),
                Finding::Ask => return Err(Stop::Need(Lookup::Service(index))),
            }
        }
        let (first, missing) = (self.policy.authenticate.first().copied(), Authentication::Missing);
        match (unavailable, flaw, first) {
            (Some(index), ..) => {
                progress.authentication = Some((index, Authentication::Unavailable));
                Err(Failure::AuthenticationUnavailable.into())
            }
            (None, Some((index, flaw)), _) => {
                progress.authentication = Some((index, Authentication::Refused));
                let told = progress.told.as_ref().filter(|told| told.authenticator == index);
                progress.refusal = told.and_then(|told| told.answer.refusal()).cloned();
                Err(Failure::Unauthenticated(Some(flaw)).into())
            }
            (None, None, Some(first)) => {
                progress.authentication = Some((first, missing));
                if self.policy.anonymous { Ok(()) } else { Err(Failure::Unauthenticated(None).into()) }
            }
            (None, None, None) => Ok(()),
        }
    }

    fn authorize(&self, identity: Option<&Identity>) -> Result<(), Failure> {
        let Some(condition) = &self.access.authorize else { return Ok(()) };
        let subject = Subject {
            user: identity.and_then(|identity| identity.user.as_deref()),
            roles: identity.map(|identity| identity.roles.as_slice()).unwrap_or_default(),
            scopes: identity.map(|identity| identity.scopes.as_slice()).unwrap_or_default(),
            claims: identity.map(|identity| &identity.claims),
        };
        condition.check(&subject, self.request, self.client_ip).map_err(|denial| Failure::Forbidden(denial.as_str()))
    }

    /// All limits admit, or none has taken anything.
    fn limit(&self, progress: &mut Progress) -> Result<(), Stop> {
        while let Some(index) = self.policy.limits.get(progress.admitted) {
            let (rule, at, limiter) = self.rule(*index, progress)?;
            let decision = match progress.held.take() {
                Some(Waiting::Over(decision)) => decision,
                Some(Waiting::For(held)) => Decision::Hold(held),
                None => {
                    let mut key = self.key.borrow_mut();
                    rule.scope.write_key(&self.who(progress), &mut key);
                    let decision = limiter.check(&key, rule.cost, self.now_us);
                    progress.rings |= limiter.take_bell();
                    decision
                }
            };
            match decision {
                Decision::Admitted(state) => {
                    progress.admitted += 1;
                    if progress.limit.is_none_or(|(_, least)| state.remaining < least.remaining) {
                        progress.limit = Some((*index, state));
                    }
                }
                Decision::Refused(state) => {
                    self.give_back(progress)?;
                    // For who counts the refusals.
                    rule.scope.write_key(&self.who(progress), &mut self.key.borrow_mut());
                    progress.limit = Some((*index, state));
                    return Err(Failure::RateLimited.into());
                }
                Decision::Unavailable => {
                    self.give_back(progress)?;
                    progress.limit = None;
                    return Err(Failure::LimiterUnavailable.into());
                }
                Decision::Hold(held) => {
                    progress.held = Some(Waiting::For(held));
                    return Err(Stop::Need(Lookup::Limit(at)));
                }
            }
        }
        Ok(())
    }

    /// What the limits have taken so far.
    fn give_back(&self, progress: &Progress) -> Result<(), Failure> {
        for index in self.policy.limits.iter().take(progress.admitted) {
            let (rule, _, limiter) = self.rule(*index, progress)?;
            let mut key = self.key.borrow_mut();
            rule.scope.write_key(&self.who(progress), &mut key);
            limiter.give_back(&key, rule.cost);
        }
        Ok(())
    }

    /// All concurrency limits have a place for the request, or it takes none, and no token either.
    fn take_places(&self, progress: &mut Progress) -> Result<(), Failure> {
        while let Some(index) = self.policy.concurrency.get(progress.places.taken()) {
            let scope = self.scopes.get(*index as usize).ok_or(Failure::Internal)?;
            let at = scope.counter(progress.identity.as_deref());
            let limit = self.concurrency.get(at as usize).ok_or(Failure::Internal)?;
            scope.write_key(&self.who(progress), &mut self.key.borrow_mut());
            let Some(place) = limit.enter(&self.key.borrow()) else {
                progress.places.give_back();
                self.give_back(progress)?;
                // What it told of has its tokens back.
                progress.limit = None;
                progress.full = Some(*index);
                // For who counts the refusals.
                scope.write_key(&self.who(progress), &mut self.key.borrow_mut());
                return Err(Failure::ConcurrencyLimited);
            };
            progress.places.keep(place);
        }
        Ok(())
    }

    /// A rate limit, and the limiter that this request draws from.
    fn rule(&self, index: u32, progress: &Progress) -> Result<(&Rule, u32, &Limiter), Failure> {
        let rule = self.rules.get(index as usize).ok_or(Failure::Internal)?;
        let at = rule.scope.counter(progress.identity.as_deref());
        let limiter = self.limiters.get(at as usize).ok_or(Failure::Internal)?;
        Ok((rule, at, limiter))
    }

    fn who<'w>(&'w self, progress: &'w Progress) -> Who<'w> {
        Who {
            client_ip: self.client_ip,
            identity: progress.identity.as_deref(),
            headers: self.request.headers,
            route: self.route,
        }
    }

    fn validate(&self, progress: &mut Progress) -> Result<(), Failure> {
        let Some(validation) = &self.access.validation else { return Ok(()) };
        validation.check_head(self.request, self.captures, self.framing != Framing::None).map_err(|invalid| {
            let failure = if invalid.status == 415 { Failure::UnsupportedContent } else { Failure::Invalid };
            progress.invalid = Some(Box::new(invalid));
            failure
        })
    }

    /// 413 before a byte of the body is read, where `Content-Length` tells; a chunked body is counted as it comes.
    fn body_size(&self) -> Result<(), Failure> {
        match (self.framing, self.body_bytes_max) {
            (Framing::Length(length), Some(max)) if length > max => Err(Failure::BodyTooLarge),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::access::{Condition, IpList};
    use crate::auth::credentials::{ForwardCredentials, Place};
    use crate::auth::jwt::Rules;
    use crate::auth::{Algorithm, Algorithms, Kind, Source};
    use crate::limit::{self, ConcurrencySpec, Fallback, HeaderStyle, KeyPart, Spec};
    use httparse::Header;

    const SECRET: &[u8] = b"0123456789abcdef0123456789abcdef";
    const NOW: u64 = 1_800_000_000;

    struct World {
        policy: Policy,
        access: Access,
        authenticators: Vec<Arc<Authenticator>>,
        live: Vec<Arc<Live>>,
        tokens: RefCell<TokenCache>,
        rules: Vec<Arc<Rule>>,
        limiters: Vec<Arc<Limiter>>,
        scopes: Vec<Arc<Scope>>,
        concurrency: Vec<Concurrency>,
        framing: Framing,
        body_bytes_max: Option<u64>,
    }

    impl World {
        fn new() -> Self {
            let live = Live::new("main");
            live.load(&Source::Secret, SECRET, NOW).unwrap();
            let rules = Rules::new(Algorithms::new([Algorithm::HS256]).unwrap());
            Self {
                policy: Policy { authenticate: [0].into(), ..Policy::default() },
                access: Access::default(),
                authenticators: vec![Arc::new(Authenticator {
                    name: "main".into(),
                    places: [Place::bearer()].into(),
                    forward: ForwardCredentials::default(),
                    kind: Kind::Jwt { rules: Box::new(rules), cached: true },
                })],
                live: vec![Arc::new(live)],
                tokens: RefCell::new(TokenCache::new(8, 1 << 20, 60, [1, 2, 3, 4])),
                rules: vec![],
                limiters: vec![],
                scopes: vec![],
                concurrency: vec![],
                framing: Framing::None,
                body_bytes_max: None,
            }
        }

        fn ask(&self, authorization: Option<&str>, progress: &mut Progress) -> Verdict {
            let value = authorization.unwrap_or_default();
            let header = [Header { name: "Authorization", value: value.as_bytes() }];
            let headers = if authorization.is_some() { &header[..] } else { &[] };
            let request = RouteRequest { host: b"a", method: b"GET", path: b"/", query: None, headers };
            let gate = Gate {
                policy: &self.policy,
                access: &self.access,
                authenticators: &self.authenticators,
                live: &self.live,
                tokens: &self.tokens,
                rules: &self.rules,
                limiters: &self.limiters,
                scopes: &self.scopes,
                concurrency: &self.concurrency,
                key: &RefCell::default(),
                route: "products",
                request: &request,
                captures: &Captures::default(),
                client_ip: IpAddr::from([192, 0, 2, 7]),
                certificate: None,
                framing: self.framing,
                body_bytes_max: self.body_bytes_max,
                now_unix_s: NOW,
                now_us: 1_000_000,
                may_wait: true,
            };
            admit(&gate, progress)
        }

        fn failure(&self, authorization: Option<&str>) -> Option<Failure> {
            match self.ask(authorization, &mut Progress::default()) {
                Verdict::Answer(failure) => Some(failure),
                Verdict::Continue(_) => None,
                Verdict::Need(lookup) => panic!("{lookup:?}"),
            }
        }
    }

    fn token(role: &str) -> String {
        let claims = serde_json::json!({ "sub": "u1", "exp": NOW + 60, "roles": [role] });
        let key = jsonwebtoken::EncodingKey::from_secret(SECRET);
        let text = jsonwebtoken::encode(&jsonwebtoken::Header::default(), &claims, &key).unwrap();
        format!("Bearer {text}")
    }

    #[test]
    fn credentials_are_asked_for_and_judged() {
        let mut world = World::new();
        assert_eq!(world.failure(None), Some(Failure::Unauthenticated(None)));
        let bad = world.failure(Some("Bearer a.b.c"));
        assert!(matches!(bad, Some(Failure::Unauthenticated(Some(flaw))) if flaw.reason == "malformed"), "{bad:?}");
        assert_eq!(world.failure(Some(&token("user"))), None);
        let mut progress = Progress::default();
        world.ask(Some(&token("user")), &mut progress);
        assert_eq!(progress.identity.unwrap().user.as_deref(), Some("u1"));
        assert_eq!(progress.authentication, Some((0, Authentication::Cached)));
        world.policy.anonymous = true;
        assert_eq!(world.failure(None), None);
        assert!(world.failure(Some("Bearer a.b.c")).is_some(), "bad credentials are nobody's");
        world.policy.authenticate = [].into();
        assert_eq!(world.failure(Some("Bearer a.b.c")), None, "nobody asks");
    }

    #[test]
    fn an_auth_service_is_asked_and_what_it_says_decides() {
        use crate::auth_service::Verdict as Said;
        let mut world = World::new();
        let service = crate::auth_service::tests::example();
        let kind = Kind::Service(Arc::new(service));
        let (name, forward) = ("sessions".into(), ForwardCredentials::default());
        world.authenticators.push(Arc::new(Authenticator { name, places: [].into(), forward, kind }));
        world.live.push(Arc::new(Live::new("sessions")));
        world.policy.authenticate = [0, 1].into();
        let told = |answer| Progress { told: Some(Told { authenticator: 1, answer }), ..Progress::default() };
        let said = |verdict| told(Answer::Said { verdict, cached: false });
        let refusal = Arc::new(Refusal { status: 302, lines: vec![], body: vec![] });

        let mut progress = Progress::default();
        assert!(matches!(world.ask(None, &mut progress), Verdict::Need(Lookup::Service(1))));
        assert!(matches!(world.ask(Some(&token("user")), &mut progress), Verdict::Continue(_)), "it need not be asked");

        let identity = Arc::new(crate::auth_service::tests::identity("u2"));
        let mut progress = said(Said::Pass(identity));
        assert!(matches!(world.ask(None, &mut progress), Verdict::Continue(_)));
        assert_eq!(progress.identity.unwrap().user.as_deref(), Some("u2"));
        assert_eq!(progress.authentication, Some((1, Authentication::Verified)));

        let mut progress = said(Said::Refuse(refusal.clone()));
        let refused = world.ask(None, &mut progress);
        assert!(matches!(refused, Verdict::Answer(Failure::Unauthenticated(Some(flaw))) if flaw.reason == "refused"));
        assert_eq!(progress.refusal.as_ref(), Some(&refusal));

        // A bad token is what the client hears of where both say no.
        let mut progress = said(Said::Refuse(refusal));
        let refused = world.ask(Some("Bearer a.b.c"), &mut progress);
        assert!(matches!(refused, Verdict::Answer(Failure::Unauthenticated(Some(flaw))) if flaw.reason == "malformed"));
        assert_eq!(progress.refusal, None);

        let mut progress = said(Said::Invalid("the token is not active"));
        let refused = world.ask(None, &mut progress);
        assert!(matches!(refused, Verdict::Answer(Failure::Unauthenticated(Some(flaw))) if flaw.reason == "inactive"));

        for anonymous in [false, true] {
            world.policy.anonymous = anonymous;
            let down = world.ask(None, &mut said(Said::Down("timeout")));
            assert!(matches!(down, Verdict::Answer(Failure::AuthenticationUnavailable)), "{anonymous}");
            let none = world.ask(None, &mut told(Answer::NoCredentials));
            assert_eq!(matches!(none, Verdict::Continue(_)), anonymous);
            let bad = world.ask(None, &mut told(Answer::BadCredentials(CredentialsError::Several)));
            assert!(matches!(bad, Verdict::Answer(Failure::Unauthenticated(Some(_)))), "{anonymous}");
        }
    }

    #[test]
    fn without_keys_nothing_passes() {
        let mut world = World::new();
        world.live = vec![Arc::new(Live::new("main"))];
        world.policy.anonymous = true;
        assert_eq!(world.failure(Some(&token("user"))), Some(Failure::AuthenticationUnavailable));
        assert_eq!(world.failure(None), None);
    }

    #[test]
    fn the_order_is_address_identity_permission() {
        let mut world = World::new();
        world.access.authorize = Some(Condition::Roles([Box::from("admin")].into()));
        assert_eq!(world.failure(None), Some(Failure::Unauthenticated(None)));
        assert_eq!(world.failure(Some(&token("user"))), Some(Failure::Forbidden("role")));
        assert_eq!(world.failure(Some(&token("admin"))), None);
        world.access.ip = Some(Arc::new(IpList::new(&[], &["192.0.2.0/24".parse().unwrap()])));
        assert_eq!(world.failure(None), Some(Failure::Forbidden("address_denied")));
    }

    fn by_address(counter: u32) -> Scope {
        Scope { counter, tiers: None, key: [KeyPart::ClientIp].into(), ipv6_prefix_bits: 64 }
    }

    /// Rate limits of so many a minute, and concurrency limits of so many.
    fn limited(rates: &[u64], concurrency: &[u32]) -> World {
        let numbers = |count: usize| (0..count as u32).collect();
        let (limits, places) = (numbers(rates.len()), numbers(concurrency.len()));
        let policy = Policy { limits, concurrency: places, ..Policy::default() };
        let mut world = World { policy, ..World::new() };
        for (counter, limit) in (0..).zip(rates.iter().copied()) {
            let spec = Spec {
                name: "l".into(),
                limit,
                period: std::time::Duration::from_secs(60),
                burst: limit,
                strict: false,
                without_redis: Fallback::FairShare,
                keys_max: 10,
            };
            world.limiters.push(Arc::new(Limiter::new(limit::Policy::new(&spec).unwrap())));
            let headers = HeaderStyle::None;
            world.rules.push(Arc::new(Rule { scope: by_address(counter), cost: 1, headers }));
        }
        for (counter, requests) in (0..).zip(concurrency.iter().copied()) {
            world.concurrency.push(Concurrency::new(ConcurrencySpec { name: "c".into(), requests, keys_max: 10 }));
            world.scopes.push(Arc::new(by_address(counter)));
        }
        world
    }

    #[test]
    fn all_limits_admit_or_none_takes_anything() {
        let world = limited(&[3, 2], &[]);
        let mut progress = Progress::default();
        assert!(matches!(world.ask(None, &mut progress), Verdict::Continue(_)));
        assert_eq!(progress.limit.map(|(index, state)| (index, state.remaining)), Some((1, 1)));
        assert_eq!(world.failure(None), None);
        for _ in 0..3 {
            let mut progress = Progress::default();
            assert!(matches!(world.ask(None, &mut progress), Verdict::Answer(Failure::RateLimited)));
            let (index, state) = progress.limit.unwrap();
            assert_eq!((index, state.remaining, state.retry_after_us > 29_000_000), (1, 0, true));
        }
        let Decision::Admitted(state) = world.limiters[0].check(b"192.0.2.7", 1, 1_000_000) else { panic!() };
        assert_eq!(state.remaining, 0, "the first limit has lost no token to what the second refused");
    }

    #[test]
    fn a_request_has_its_places_until_it_ends_and_refused_ones_take_nothing() {
        let world = limited(&[9], &[3, 2]);
        let pass = || {
            let mut progress = Progress::default();
            assert!(matches!(world.ask(None, &mut progress), Verdict::Continue(_)));
            progress
        };
        let under_way = || [0, 1].map(|index: usize| world.concurrency[index].requests());
        let mut first = pass();
        let second = pass();
        for _ in 0..20 {
            let mut progress = Progress::default();
            assert!(matches!(world.ask(None, &mut progress), Verdict::Answer(Failure::ConcurrencyLimited)));
            assert_eq!((progress.full, progress.limit, progress.places.taken()), (Some(1), None, 0));
        }
        assert_eq!(under_way(), [2, 2], "the first has lost no place to what the second refused");
        assert!(matches!(world.ask(None, &mut first), Verdict::Continue(_)));
        assert_eq!(under_way(), [2, 2], "asked again it takes no more");
        first.places.give_back();
        let third = pass();
        assert_eq!(third.limit.map(|(_, state)| state.remaining), Some(6), "nor any token");
        drop((first, second, third));
        assert_eq!(under_way(), [0, 0]);
        let world = limited(&[1], &[1]);
        let _ended = world.failure(None);
        assert_eq!(world.failure(None), Some(Failure::RateLimited));
        assert_eq!(world.concurrency[0].requests(), 0, "what the rate refuses takes no place");
    }

    #[test]
    fn announced_bodies_over_the_limit_are_refused() {
        let mut world = World { policy: Policy::default(), ..World::new() };
        for (length, max, refused) in [(10, Some(10), false), (u64::MAX, None, false), (11, Some(10), true)] {
            (world.framing, world.body_bytes_max) = (Framing::Length(length), max);
            assert_eq!(world.failure(None), refused.then_some(Failure::BodyTooLarge));
        }
    }
}
