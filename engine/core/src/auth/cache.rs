//! Verified tokens of one core.

use std::sync::Arc;

use ahash::RandomState;

use super::Identity;

/// Places that one hash may take: a set's tags fill one cache line.
const WAYS: usize = 8;

/// What an entry is taken to need besides token and lines, in bytes; its claims are taken to need three times the token.
const ENTRY_BYTES: usize = 512;

/// Remembers which tokens were good, so that a token is verified once in a while and not with every request.
///
/// Sets of eight places; within a set the CLOCK rule decides who goes. Bounded in entries and in bytes. An entry is
/// never given out for other bytes than its own, nor after its token's `exp`, its time to live, or a change of
/// generation.
pub struct TokenCache {
    sets: Box<[Set]>,
    hasher: RandomState,
    ttl_s: u64,
    bytes: usize,
    bytes_max: usize,
    /// The set that gives up an entry next when the bytes run out.
    hand: usize,
}

#[derive(Default)]
struct Set {
    /// Hashes of the entries.
    tags: [u64; WAYS],
    entries: [Option<Box<Entry>>; WAYS],
    /// A bit for each entry that was asked for since the hand came by.
    used: u8,
    hand: u8,
}

struct Entry {
    authenticator: u32,
    generation: u64,
    until_s: u64,
    token: Box<[u8]>,
    identity: Arc<Identity>,
}

impl TokenCache {
    /// `entries_max` is rounded up to a power of two, at least 8. `bytes_max` bounds what the entries need, by estimate.
    /// `seed` must be random and secret, so that no client can fill a set of its choice.
    pub fn new(entries_max: usize, bytes_max: usize, ttl_s: u64, seed: [u64; 4]) -> Self {
        let sets = entries_max.div_ceil(WAYS).max(1).next_power_of_two();
        let [a, b, c, d] = seed;
        Self {
            sets: (0..sets).map(|_| Set::default()).collect(),
            hasher: RandomState::with_seeds(a, b, c, d),
            ttl_s,
            bytes: 0,
            bytes_max,
            hand: 0,
        }
    }

    /// Who a token stands for, if it was verified before and still holds. `generation` is that of the authenticator's
    /// keys now.
    ///
    /// The bytes are compared with an early end: only a token whose keyed hash of 64 bits is the same gets that far, so
    /// that a guess tells nothing about how much of it was right.
    ///
    /// Hot; watched by the benchmark `token_cache`.
    #[inline]
    pub fn get(&mut self, authenticator: u32, token: &[u8], now_s: u64, generation: u64) -> Option<Arc<Identity>> {
        let tag = self.tag(authenticator, token);
        let set = self.set(tag)?;
        for (way, (own, entry)) in set.tags.iter().zip(&set.entries).enumerate() {
            if *own == tag
                && let Some(entry) = entry
                && entry.is_of(authenticator, token)
            {
                if entry.generation != generation || now_s >= entry.until_s {
                    return None;
                }
                set.used |= 1 << way;
                return Some(entry.identity.clone());
            }
        }
        None
    }

    /// Remembers a token that was verified at `now_s` with the keys of `generation`, which must have been read before
    /// the keys were.
    pub fn insert(&mut self, authenticator: u32, token: &[u8], now_s: u64, generation: u64, identity: &Arc<Identity>) {
        let until_s = now_s.saturating_add(self.ttl_s).min(identity.expires_at.unwrap_or(u64::MAX));
        let entry = Entry { authenticator, generation, until_s, token: token.into(), identity: identity.clone() };
        let bytes = entry.bytes();
        if until_s <= now_s || bytes > self.bytes_max {
            return;
        }
        let tag = self.tag(authenticator, token);
        let Some(set) = self.set(tag) else { return };
        let freed = set.put(tag, Box::new(entry));
        self.bytes = self.bytes.saturating_sub(freed) + bytes;
        while self.bytes > self.bytes_max {
            self.give_up_one(tag);
        }
    }

    pub fn len(&self) -> usize {
        self.sets.iter().map(|set| set.entries.iter().flatten().count()).sum()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What the entries need, by estimate.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    #[inline]
    fn tag(&self, authenticator: u32, token: &[u8]) -> u64 {
        self.hasher.hash_one((authenticator, token))
    }

    #[inline]
    fn set(&mut self, tag: u64) -> Option<&mut Set> {
        let index = tag as usize & (self.sets.len() - 1);
        self.sets.get_mut(index)
    }

    /// Takes an entry, any but that of `keep`, out of the next set that has one.
    fn give_up_one(&mut self, keep: u64) {
        for _ in 0..self.sets.len() {
            self.hand = (self.hand + 1) & (self.sets.len() - 1);
            let Some(set) = self.sets.get_mut(self.hand) else { continue };
            let others = set.tags.iter().zip(&mut set.entries).filter(|(tag, entry)| **tag != keep && entry.is_some());
            if let Some(entry) = others.map(|(_, entry)| entry).next().and_then(Option::take) {
                self.bytes = self.bytes.saturating_sub(entry.bytes());
                return;
            }
        }
        // Not reached while `bytes` is right: one entry alone fits.
        self.bytes = 0;
    }
}

impl Set {
    /// Puts an entry in place of the same token's, into a free place, or where the hand finds one that nobody asked
    /// for. Gives back the bytes that became free.
    fn put(&mut self, tag: u64, entry: Box<Entry>) -> usize {
        let is_same = |(own, old): (&u64, &Option<Box<Entry>>)| {
            *own == tag && old.as_ref().is_some_and(|old| old.is_of(entry.authenticator, &entry.token))
        };
        let way = self
            .tags
            .iter()
            .zip(&self.entries)
            .position(is_same)
            .or_else(|| self.entries.iter().position(Option::is_none))
            .unwrap_or_else(|| self.victim());
        self.used &= !(1 << way);
        if let Some(own) = self.tags.get_mut(way) {
            *own = tag;
        }
        let old = self.entries.get_mut(way).and_then(|place| place.replace(entry));
        old.map_or(0, |old| old.bytes())
    }

    fn victim(&mut self) -> usize {
        loop {
            let way = usize::from(self.hand) % WAYS;
            self.hand = self.hand.wrapping_add(1);
            if self.used & 1 << way == 0 {
                return way;
            }
            self.used &= !(1 << way);
        }
    }
}

impl Entry {
    #[inline]
    fn is_of(&self, authenticator: u32, token: &[u8]) -> bool {
        self.authenticator == authenticator && *self.token == *token
    }

    fn bytes(&self) -> usize {
        ENTRY_BYTES + 4 * self.token.len() + self.identity.header_lines.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::Method;
    use proptest::prelude::*;

    const SEED: [u64; 4] = [1, 2, 3, 4];

    fn identity(user: &str, expires_at: Option<u64>) -> Arc<Identity> {
        Arc::new(Identity {
            method: Method::Jwt,
            user: Some(user.into()),
            roles: vec![],
            scopes: vec![],
            claims: Default::default(),
            header_lines: vec![],
            expires_at,
            token_id: None,
        })
    }

    fn cache(entries_max: usize) -> TokenCache {
        TokenCache::new(entries_max, 1 << 20, 30, SEED)
    }

    #[test]
    fn an_entry_ends_with_its_token_its_time_and_its_keys() {
        let mut cache = cache(64);
        cache.insert(0, b"short", 100, 7, &identity("a", Some(110)));
        cache.insert(0, b"long", 100, 7, &identity("b", Some(1000)));
        cache.insert(0, b"endless", 100, 7, &identity("c", None));
        cache.insert(0, b"over", 100, 7, &identity("d", Some(100)));
        let is_hit =
            |cache: &mut TokenCache, token: &[u8], now, generation| cache.get(0, token, now, generation).is_some();
        assert!(is_hit(&mut cache, b"short", 109, 7) && !is_hit(&mut cache, b"short", 110, 7));
        assert!(is_hit(&mut cache, b"long", 129, 7) && !is_hit(&mut cache, b"long", 130, 7));
        assert!(is_hit(&mut cache, b"endless", 129, 7) && !is_hit(&mut cache, b"endless", 130, 7));
        assert!(!is_hit(&mut cache, b"over", 100, 7));
        assert!(!is_hit(&mut cache, b"long", 101, 8) && !is_hit(&mut cache, b"long", 101, 6));
        assert_eq!(cache.len(), 3);
        cache.insert(0, b"long", 101, 8, &identity("b", Some(1000)));
        assert!(is_hit(&mut cache, b"long", 101, 8));
        assert_eq!(cache.len(), 3);
    }

    #[test]
    fn what_is_asked_for_stays() {
        let mut cache = cache(8);
        assert_eq!(cache.sets.len(), 1);
        cache.insert(0, b"hot", 0, 0, &identity("hot", None));
        for number in 0u32..1000 {
            assert!(cache.get(0, b"hot", 0, 0).is_some(), "gone after {number}");
            cache.insert(0, &number.to_ne_bytes(), 0, 0, &identity("cold", None));
            assert!(cache.get(0, &number.to_ne_bytes(), 1, 1).is_none());
        }
        assert_eq!(cache.len(), 8);
    }

    #[test]
    fn bytes_are_bounded() {
        let mut cache = TokenCache::new(1024, 64 * 1024, 30, SEED);
        for number in 0u32..2000 {
            let token = number.to_ne_bytes().repeat(1 + number as usize % 500);
            cache.insert(0, &token, 0, 0, &identity("a", None));
            assert!(cache.bytes() <= 64 * 1024);
            assert!(cache.get(0, &token, 0, 0).is_some());
            let counted: usize =
                cache.sets.iter().flat_map(|set| set.entries.iter().flatten()).map(|e| e.bytes()).sum();
            assert_eq!(counted, cache.bytes());
        }
        cache.insert(0, &[0; 20_000], 0, 0, &identity("a", None));
        assert!(cache.get(0, &[0; 20_000], 0, 0).is_none(), "larger than all of the cache");
        assert!(cache.len() > 5);
    }

    proptest! {
        /// Tokens that differ in little, few places, and every hash of some tokens the same set.
        #[test]
        fn an_identity_is_never_given_for_another_token(
            steps in proptest::collection::vec((0u32..3, 0u8..40, 0usize..3, any::<bool>()), 0..400),
            entries_max in 1usize..40,
        ) {
            let mut cache = cache(entries_max);
            let mut newest = std::collections::HashMap::new();
            for (authenticator, number, length, is_insert) in steps {
                let token = [&b"header.payload."[..], &vec![number; length]].concat();
                if is_insert {
                    let user = format!("{authenticator} {}", token.escape_ascii());
                    cache.insert(authenticator, &token, 0, 0, &identity(&user, None));
                    newest.insert((authenticator, token), user);
                } else if let Some(found) = cache.get(authenticator, &token, 0, 0) {
                    prop_assert_eq!(found.user.as_deref(), newest.get(&(authenticator, token)).map(String::as_str));
                }
                prop_assert!(cache.len() <= cache.sets.len() * WAYS);
            }
        }
    }
}
