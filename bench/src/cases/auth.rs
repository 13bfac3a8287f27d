//! Who a request comes from.

use std::hint::black_box;
use std::sync::Arc;

use ringway_core::auth::api_key::{ApiKeys, generate};
use ringway_core::auth::credentials::{Place, find};
use ringway_core::auth::jwt::{Rules, verify};
use ringway_core::auth::{Algorithm, Algorithms, KeySet, TokenCache};
use ringway_core::http::{HeadStorage, RequestHead};

use super::{Case, leak, received};
use crate::messages::{BROWSER_HEAD, TOKEN_KEYS, TOKENS};

const NOW: u64 = 1_300_000_000;

pub(super) fn cases() -> Vec<Case> {
    let credentials = Case::new("credentials", "bearer", || {
        let text = String::from_utf8_lossy(BROWSER_HEAD);
        let head = received(text.replace("Cookie: ", "Authorization: Bearer ").replace("; ", ".").as_bytes());
        let head: &'static [u8] = head;
        let storage: &'static mut HeadStorage<'static> = leak(HeadStorage::new());
        let headers = RequestHead::parse(head, 64, storage).expect("a good head").headers;
        let places = [Place::bearer()];
        move || find(&places, black_box(headers), None).expect("one credential").map(|found| found.len())
    });
    let cached = Case::new("token_cache", "hit", || {
        let (rules, keys) = verifier();
        let mut cache = TokenCache::new(1024, 1 << 20, 60, [1, 2, 3, 4]);
        let token: &[u8] = received(TOKENS[0].1.as_bytes());
        let identity = verify(&rules, &keys, TOKENS[0].1, NOW).expect("a good token");
        cache.insert(0, token, NOW, 1, &Arc::new(identity));
        move || cache.get(0, black_box(token), NOW, 1).expect("a hit")
    });
    let api_key = Case::new("api_key", "verify", || {
        let (plain, hash) = generate([7; 32]);
        let file = format!("clients: [{{ name: shop, keys: [{{ hash: \"{hash}\" }}] }}]");
        let keys = ApiKeys::parse(&file, &[]).expect("a good file");
        move || keys.verify(black_box(plain.as_bytes()), NOW).expect("a good key")
    });
    [credentials].into_iter().chain(TOKENS.map(verified)).chain([cached, api_key]).collect()
}

fn verified((algorithm, token): (&'static str, &'static str)) -> Case {
    Case::new("jwt", algorithm, move || {
        let (rules, keys) = verifier();
        move || verify(&rules, &keys, black_box(token), NOW).expect("a good token")
    })
}

fn verifier() -> (Rules, KeySet) {
    let keys = KeySet::from_jwks(TOKEN_KEYS.as_bytes(), true).expect("good keys");
    (Rules::new(Algorithms::new(Algorithm::ALL).expect("algorithms")), keys)
}
