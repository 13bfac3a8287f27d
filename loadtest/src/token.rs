//! The clients' JWTs.
//!
//! Signing takes 2 us (HS256) to 1 ms (RS256), too long for a request's turn. Tokens are therefore signed before the run,
//! the lowest client numbers first, until all have one or a bound of memory or time is reached. What is left, and what
//! expires, is signed when a request needs it, and kept in a bounded number of places per thread.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime};

use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde_json::{Map, Value};

use crate::template::{Template, Values};

/// What a token is made from.
#[derive(Debug)]
pub(crate) struct Minter {
    pub(crate) algorithm: Algorithm,
    pub(crate) key: EncodingKey,
    pub(crate) key_id: Option<String>,
    pub(crate) issuer: Option<String>,
    pub(crate) audience: Option<String>,
    pub(crate) subject: Template,
    pub(crate) claims: Vec<(String, Claim)>,
    pub(crate) ttl: Duration,
    /// A client's random claims are the same in all its tokens.
    pub(crate) seed: u64,
}

/// A claim's value: JSON whose texts may have placeholders.
#[derive(Debug)]
pub(crate) enum Claim {
    Fixed(Value),
    Text(Template),
    List(Vec<Claim>),
    Map(Vec<(String, Claim)>),
}

/// Tokens that are ready when the run begins, and how to make more.
#[derive(Debug)]
pub(crate) struct Tokens {
    minter: Minter,
    clients: u64,
    /// Of clients 0, 1, ...
    ready: OnceLock<Vec<Token>>,
}

#[derive(Debug)]
struct Token {
    text: Box<str>,
    /// Unix time from which a new one is used.
    until_s: u64,
}

/// A thread's way to the tokens.
#[derive(Debug)]
pub(crate) struct Wallet {
    tokens: Arc<Tokens>,
    /// Signed during the run; a client's place is its number modulo their number.
    places: Vec<Option<(u64, Token)>>,
    signed: u64,
}

/// Memory for the tokens that are signed before the run.
const READY_BYTES_MAX: usize = 64 << 20;
/// What the allocator adds to each.
const ALLOCATION_BYTES: usize = 16;
/// Time for signing them.
const READY_TIME_MAX: Duration = Duration::from_secs(10);
/// Tokens that a thread keeps of those that it signs during the run.
const PLACES_MAX: u64 = 16_384;

impl Minter {
    /// Fails only where the key is unfit for the algorithm, which shows with the first token.
    pub(crate) fn mint(&self, client: u64, now_s: u64) -> Result<String, jsonwebtoken::errors::Error> {
        let mut random = fastrand::Rng::with_seed(self.seed ^ client.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let mut values = Values { client, number: client, token: b"", body_bytes: 0, random: &mut random };
        let mut claims = Map::new();
        claims.insert("sub".into(), text(&self.subject, &mut values).into());
        if let Some(issuer) = &self.issuer {
            claims.insert("iss".into(), issuer.as_str().into());
        }
        if let Some(audience) = &self.audience {
            claims.insert("aud".into(), audience.as_str().into());
        }
        claims.insert("iat".into(), now_s.into());
        claims.insert("exp".into(), (now_s + self.ttl.as_secs()).into());
        claims.extend(self.claims.iter().map(|(name, claim)| (name.clone(), claim.fill(&mut values))));
        let header = Header { kid: self.key_id.clone(), ..Header::new(self.algorithm) };
        jsonwebtoken::encode(&header, &claims, &self.key)
    }

    /// A token and until when it is used: clients change theirs at different times in the second half of its life, so
    /// that they do not all need a new one at once.
    fn token(&self, client: u64, now_s: u64) -> Token {
        // It has worked once, when the scenario was read. Should it fail all the same, the target refuses the request.
        let text = self.mint(client, now_s).unwrap_or_default().into_boxed_str();
        let half = self.ttl.as_secs() / 2;
        let spread = (half * 4 / 5).max(1);
        Token { text, until_s: now_s + half + client.wrapping_mul(0x9e37_79b9_7f4a_7c15) % spread }
    }

    /// Tokens of the first clients.
    fn sign(&self, clients: u64, threads: usize, time_max: Duration) -> Vec<Token> {
        let now_s = unix_time_s();
        let bytes_each = self.token(0, now_s).text.len() + size_of::<Token>() + ALLOCATION_BYTES;
        let wanted = clients.min((READY_BYTES_MAX / bytes_each) as u64);
        let end = Instant::now() + time_max;
        let next = AtomicU64::new(0);
        let worker = || {
            let mut signed = Vec::new();
            while Instant::now() < end {
                let client = next.fetch_add(1, Ordering::Relaxed);
                if client >= wanted {
                    break;
                }
                signed.push((client, self.token(client, now_s)));
            }
            signed
        };
        let mut signed: Vec<_> = std::thread::scope(|scope| {
            let workers: Vec<_> = (0..threads.max(1)).map(|_| scope.spawn(worker)).collect();
            workers.into_iter().flat_map(|worker| worker.join().unwrap_or_default()).collect()
        });
        signed.sort_unstable_by_key(|(client, _)| *client);
        let in_order = (0..).zip(&signed).take_while(|(number, (client, _))| number == client).count();
        signed.truncate(in_order);
        signed.into_iter().map(|(_, token)| token).collect()
    }
}

impl Claim {
    fn fill(&self, values: &mut Values<'_>) -> Value {
        match self {
            Self::Fixed(value) => value.clone(),
            Self::Text(template) => text(template, values).into(),
            Self::List(claims) => claims.iter().map(|claim| claim.fill(values)).collect(),
            Self::Map(claims) => claims.iter().map(|(name, claim)| (name.clone(), claim.fill(values))).collect(),
        }
    }
}

fn text(template: &Template, values: &mut Values<'_>) -> String {
    let mut out = Vec::new();
    template.write(values, &mut out);
    String::from_utf8_lossy(&out).into_owned()
}

impl Tokens {
    pub(crate) fn new(minter: Minter, clients: u64) -> Self {
        Self { minter, clients, ready: OnceLock::new() }
    }

    /// Signs tokens on `threads` threads, as far as memory and time allow; once.
    pub(crate) fn prepare(&self, threads: usize) {
        self.ready.get_or_init(|| self.minter.sign(self.clients, threads, READY_TIME_MAX));
    }
}

impl Wallet {
    pub(crate) fn new(tokens: Arc<Tokens>) -> Self {
        let places = (0..tokens.clients.min(PLACES_MAX)).map(|_| None).collect();
        Self { tokens, places, signed: 0 }
    }

    /// The client's token; signs one if there is none that is still good.
    pub(crate) fn token(&mut self, client: u64, now_s: u64) -> &[u8] {
        let ready = self.tokens.ready.get().and_then(|ready| ready.get(client as usize));
        if let Some(token) = ready.filter(|token| now_s < token.until_s) {
            return token.text.as_bytes();
        }
        let place = (client % self.places.len() as u64) as usize;
        let place = &mut self.places[place];
        if !matches!(place, Some((owner, token)) if *owner == client && now_s < token.until_s) {
            *place = Some((client, self.tokens.minter.token(client, now_s)));
            self.signed += 1;
        }
        place.as_ref().map_or(b"", |(_, token)| token.text.as_bytes())
    }

    /// Tokens that had to be signed during the run.
    pub(crate) fn signed(&self) -> u64 {
        self.signed
    }
}

pub(crate) fn unix_time_s() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |time| time.as_secs())
}
