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
