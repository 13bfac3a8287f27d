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

#[cfg(test)]
mod tests {
    use jsonwebtoken::{DecodingKey, Validation};
    use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_RSA_SHA256};

    use super::*;
    use crate::template::Place;

    fn template(text: &str) -> Template {
        Template::compile(text, Place::Body).unwrap()
    }

    fn minter(algorithm: Algorithm, key: EncodingKey) -> Minter {
        Minter {
            algorithm,
            key,
            key_id: Some("k1".into()),
            issuer: Some("me".into()),
            audience: Some("you".into()),
            subject: template("u-{client}"),
            claims: vec![
                ("level".into(), Claim::Fixed(3.into())),
                ("role".into(), Claim::Text(template("{pick:a|b|c|d}"))),
                ("deep".into(), Claim::Map(vec![("ids".into(), Claim::List(vec![Claim::Text(template("{client}"))]))])),
            ],
            ttl: Duration::from_secs(600),
            seed: 1,
        }
    }

    fn hs256() -> Minter {
        minter(Algorithm::HS256, EncodingKey::from_secret(b"secret"))
    }

    fn claims(token: &[u8], key: &DecodingKey, algorithm: Algorithm) -> Value {
        let mut validation = Validation::new(algorithm);
        validation.set_audience(&["you"]);
        validation.set_issuer(&["me"]);
        let decoded = jsonwebtoken::decode::<Value>(std::str::from_utf8(token).unwrap(), key, &validation).unwrap();
        assert_eq!(decoded.header.kid.as_deref(), Some("k1"));
        decoded.claims
    }

    #[test]
    fn tokens_of_each_algorithm_verify() {
        let rsa = KeyPair::generate_for(&PKCS_RSA_SHA256).unwrap();
        let ec = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let (rsa_private, rsa_public) = (rsa.serialize_pem(), rsa.public_key_pem());
        let (ec_private, ec_public) = (ec.serialize_pem(), ec.public_key_pem());
        for (algorithm, private, public) in [
            (Algorithm::HS256, EncodingKey::from_secret(b"secret"), DecodingKey::from_secret(b"secret")),
            (
                Algorithm::RS256,
                EncodingKey::from_rsa_pem(rsa_private.as_bytes()).unwrap(),
                DecodingKey::from_rsa_pem(rsa_public.as_bytes()).unwrap(),
            ),
            (
                Algorithm::ES256,
                EncodingKey::from_ec_pem(ec_private.as_bytes()).unwrap(),
                DecodingKey::from_ec_pem(ec_public.as_bytes()).unwrap(),
            ),
        ] {
            let now_s = unix_time_s();
            let token = minter(algorithm, private).mint(5, now_s).unwrap();
            let claims = claims(token.as_bytes(), &public, algorithm);
            assert_eq!(claims["sub"], "u-5", "{algorithm:?}");
            assert_eq!((&claims["iat"], &claims["exp"]), (&now_s.into(), &(now_s + 600).into()));
            assert_eq!(claims["level"], 3);
            assert_eq!(claims["deep"]["ids"][0], "5");
        }
    }

    #[test]
    fn random_claims_differ_between_clients_and_stay_with_a_client() {
        let role = |client, now_s| {
            let token = hs256().mint(client, now_s).unwrap();
            claims(token.as_bytes(), &DecodingKey::from_secret(b"secret"), Algorithm::HS256)["role"].to_string()
        };
        let now_s = unix_time_s();
        let roles: std::collections::BTreeSet<_> = (0..64).map(|client| role(client, now_s)).collect();
        assert_eq!(roles.len(), 4, "{roles:?}");
        assert!((0..64).all(|client| role(client, now_s) == role(client, now_s + 7)));
    }

    #[test]
    fn prepared_tokens_cost_nothing_during_the_run() {
        let tokens = Arc::new(Tokens::new(hs256(), 100));
        tokens.prepare(3);
        let mut wallet = Wallet::new(tokens.clone());
        let now_s = unix_time_s();
        for client in 0..100 {
            let token = wallet.token(client, now_s);
            let claims = claims(token, &DecodingKey::from_secret(b"secret"), Algorithm::HS256);
            assert_eq!(claims["sub"], format!("u-{client}"));
        }
        assert_eq!(wallet.signed(), 0);
    }

    #[test]
    fn tokens_are_renewed_in_the_second_half_of_their_life_not_all_at_once() {
        let tokens = Arc::new(Tokens::new(hs256(), 1_000));
        tokens.prepare(1);
        let mut wallet = Wallet::new(tokens.clone());
        let now_s = unix_time_s();
        let mut signed = Vec::new();
        for age_s in [290, 420, 480, 545] {
            (0..1_000).for_each(|client| {
                wallet.token(client, now_s + age_s);
            });
            signed.push(wallet.signed());
        }
        assert_eq!(signed[0], 0);
        assert!(signed[1] > 300 && signed[1] < 700, "{signed:?}");
        assert!(signed[2] > signed[1] && signed[3] == 1_000, "{signed:?}");
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let mut wallet = Wallet::new(Arc::new(Tokens::new(hs256(), 10_000_000)));
        assert_eq!(wallet.places.len(), PLACES_MAX as usize);
        let now_s = unix_time_s();
        let one = wallet.token(3, now_s).to_vec();
        assert_eq!(wallet.token(3, now_s), one);
        assert_eq!(wallet.signed(), 1);
        let other = wallet.token(3 + PLACES_MAX, now_s).to_vec();
        assert_ne!(one, other);
        assert_eq!(wallet.token(3, now_s), one);
        assert_eq!(wallet.signed(), 3);
        // No time: the first is signed to learn its size, and no more.
        assert_eq!(hs256().sign(1_000, 2, Duration::ZERO).len(), 0);
        let each = hs256().token(0, 0).text.len() + size_of::<Token>() + ALLOCATION_BYTES;
        assert!(READY_BYTES_MAX / each > 100_000, "a token takes {each} bytes");
    }
}
