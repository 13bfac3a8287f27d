//! What an authenticator knows now: keys and revocations that change while the gateway runs.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use arc_swap::{ArcSwap, ArcSwapOption};
use aws_lc_rs::digest::{Context, SHA256};
use crossbeam::queue::ArrayQueue;

use super::api_key::{ApiKeys, ApiKeysError};
use super::headers::ClaimHeader;
use super::key_set::{KeySet, KeySetError};
use super::revoked::{Revoked, RevokedError};

/// Names of keys that wait for the control plane to look for them; it looks all the same where there are more.
pub const KIDS_ASKED_MAX: usize = 64;

/// Names of keys that are known not to exist.
pub const KIDS_MISSING_MAX: usize = 256;

/// What a text that was fetched, read or polled holds.
#[derive(Debug, Clone)]
pub enum Source {
    /// A shared secret, as it is.
    Secret,
    /// Public keys in PEM.
    Pem,
    /// A JSON Web Key Set; `secrets`: whether symmetric keys count, which they must not where anyone can read the set.
    Jwks { secrets: bool },
    /// API keys in YAML or JSON, and the header fields made of each.
    ApiKeys { headers: Arc<[ClaimHeader]> },
    /// Token IDs, one a line.
    Revoked,
}

/// Why a text was not taken. What was there before stays.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LoadError {
    #[error("{0}")]
    Keys(#[from] KeySetError),
    #[error("{0}")]
    ApiKeys(#[from] ApiKeysError),
    #[error("{0}")]
    Revoked(#[from] RevokedError),
    #[error("not UTF-8")]
    Encoding,
}

/// What became of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loaded {
    Changed,
    /// The same text as before: cached tokens stay valid.
    Unchanged,
}

/// Whether an unknown key is worth waiting for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asked {
    /// The keys are being fetched, or will be at once. The control plane rings when that is over, well or not.
    Wait,
    /// What is known has changed since the token was judged. Judge it again, at once.
    Again,
    /// It was looked for lately, or there is nowhere to look. Refuse the token.
    No,
}

/// Counters for metrics.
#[derive(Debug, Default)]
pub struct Stats {
    /// Texts that were taken, changed or not.
    pub refreshes_ok: AtomicU64,
    pub refreshes_failed: AtomicU64,
    /// Unix seconds of the last text that was taken; 0 before the first.
    pub refreshed_at_s: AtomicU64,
    /// Keys, of tokens or API keys.
    pub keys: AtomicU64,
    pub revoked: AtomicU64,
    /// Entries of the newest list that could not be read and do not count.
    pub malformed: AtomicU64,
}

/// A list that somebody else keeps, in no order and with entries of any kind: those that are not good do not count, and
/// the others do.
#[derive(Debug)]
pub enum Entries {
    /// Stored hashes of API keys, and what is known of each ([`ApiKeys::of_entries`]).
    ApiKeys { headers: Arc<[ClaimHeader]>, entries: Vec<(Vec<u8>, Vec<u8>)> },
    /// Token IDs.
    Revoked(Vec<Vec<u8>>),
}

/// What became of a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Taken {
    pub loaded: Loaded,
    /// Entries that do not count, and what is wrong with one of them; none where the list is the same as before.
    pub malformed: usize,
    pub problem: Option<String>,
}

/// Keys and revocations of one authenticator. The control plane writes, workers read.
pub struct Live {
    pub name: Box<str>,
    pub stats: Stats,
    keys: ArcSwap<KeySet>,
    api_keys: ArcSwapOption<ApiKeys>,
    revoked: ArcSwapOption<Revoked>,
    /// Counts changes of any of the three.
    generation: AtomicU64,
    /// Hashes of the three texts.
    texts: Mutex<[Option<[u8; 32]>; 3]>,
    looking: AtomicU8,
    /// The first look at a list that is kept elsewhere is not over.
    awaited: AtomicBool,
    asked: ArrayQueue<Box<str>>,
    missing: ArcSwap<Vec<Box<str>>>,
    wake: ArcSwapOption<Box<dyn Fn() + Send + Sync>>,
}

/// Whether the control plane looks for keys when it is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Looking {
    /// Not now: it looked lately, or it never does.
    No = 0,
    /// At once.
    WhenAsked = 1,
    /// It does now.
    Now = 2,
}

impl Live {
    /// Without keys, and with nothing revoked.
    pub fn new(name: &str) -> Self {
        Self {
            name: name.into(),
            stats: Stats::default(),
            keys: Default::default(),
            api_keys: Default::default(),
            revoked: ArcSwapOption::from_pointee(Revoked::default()),
            generation: AtomicU64::new(0),
            texts: Mutex::default(),
            looking: AtomicU8::new(Looking::No as u8),
            awaited: AtomicBool::new(false),
            asked: ArrayQueue::new(KIDS_ASKED_MAX),
            missing: Default::default(),
            wake: ArcSwapOption::empty(),
        }
    }

    /// Counts up with every change. To be read before the keys are, and given to [`TokenCache`](super::TokenCache).
    #[inline]
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// Empty before any were loaded: nothing can be judged then.
    #[inline]
    pub fn keys(&self) -> arc_swap::Guard<Arc<KeySet>> {
        self.keys.load()
    }

    /// `None` before the first were loaded: nothing can be judged then.
    #[inline]
    pub fn api_keys(&self) -> arc_swap::Guard<Option<Arc<ApiKeys>>> {
        self.api_keys.load()
    }

    /// `None` before the first list of [`Live::await_revoked`]: no token that has an ID can be judged then.
    #[inline]
    pub fn revoked(&self) -> arc_swap::Guard<Option<Arc<Revoked>>> {
        self.revoked.load()
    }

    /// Takes a text: reads it, publishes what it holds, and counts how that went.
    pub fn load(&self, source: &Source, text: &[u8], now_unix_s: u64) -> Result<Loaded, LoadError> {
        let result = self.try_load(source, text);
        match &result {
            Ok(_) => self.still_good(now_unix_s),
            Err(_) => self.failed(),
        }
        result
    }

    /// Takes a list, publishes what is good of it, and counts how that went.
    pub fn load_entries(&self, entries: Entries, now_unix_s: u64) -> Result<Taken, LoadError> {
        let result = self.try_load_entries(entries);
        match &result {
            Ok(_) => self.still_good(now_unix_s),
            Err(_) => self.failed(),
        }
        result
    }

    fn try_load_entries(&self, mut entries: Entries) -> Result<Taken, LoadError> {
        // Where nothing has changed they may still come in another order, and some of them twice.
        match &mut entries {
            Entries::ApiKeys { entries, .. } => {
                entries.sort_unstable();
                entries.dedup_by(|later, first| later.0 == first.0);
            }
            Entries::Revoked(ids) => {
                ids.sort_unstable();
                ids.dedup();
            }
        }
        let hash = entries.hash();
        let mut texts = self.texts.lock().unwrap_or_else(PoisonError::into_inner);
        let [_, api_keys, revoked] = &mut *texts;
        let slot = match entries {
            Entries::ApiKeys { .. } => api_keys,
            Entries::Revoked(_) => revoked,
        };
        if *slot == Some(hash) {
            return Ok(Taken { loaded: Loaded::Unchanged, malformed: 0, problem: None });
        }
        let (malformed, problem) = match entries {
            Entries::ApiKeys { headers, entries } => {
                let (new, malformed, problem) = ApiKeys::of_entries(&entries, &headers)?;
                self.put_api_keys(new);
                (malformed, problem.map(|problem| problem.to_string()))
            }
            Entries::Revoked(ids) => {
                let (new, malformed) = Revoked::of_entries(&ids)?;
                self.put_revoked(new);
                let problem = "a token ID is UTF-8 of 1 to 256 bytes";
                (malformed, (malformed > 0).then(|| problem.to_owned()))
            }
        };
        self.stats.malformed.store(malformed as u64, Ordering::Relaxed);
        *slot = Some(hash);
        self.generation.fetch_add(1, Ordering::Release);
        Ok(Taken { loaded: Loaded::Changed, malformed, problem })
    }

    /// Counts a look that found what is there already.
    pub fn still_good(&self, now_unix_s: u64) {
        self.stats.refreshes_ok.fetch_add(1, Ordering::Relaxed);
        self.stats.refreshed_at_s.store(now_unix_s, Ordering::Relaxed);
    }

    /// Counts a text that could not be had.
    pub fn failed(&self) {
        self.stats.refreshes_failed.fetch_add(1, Ordering::Relaxed);
    }

    fn try_load(&self, source: &Source, text: &[u8]) -> Result<Loaded, LoadError> {
        let hash = hash(source, text);
        let utf8 = || std::str::from_utf8(text).map_err(|_| LoadError::Encoding);
        let mut texts = self.texts.lock().unwrap_or_else(PoisonError::into_inner);
        let [keys, api_keys, revoked] = &mut *texts;
        let slot = match source {
            Source::Secret | Source::Pem | Source::Jwks { .. } => keys,
            Source::ApiKeys { .. } => api_keys,
            Source::Revoked => revoked,
        };
        if *slot == Some(hash) {
            return Ok(Loaded::Unchanged);
        }
        match source {
            Source::Secret => self.put_keys(KeySet::from_secret(text)?),
            Source::Pem => self.put_keys(KeySet::from_pem(utf8()?)?),
            Source::Jwks { secrets } => self.put_keys(KeySet::from_jwks(text, *secrets)?),
            Source::ApiKeys { headers } => {
                let new = ApiKeys::parse(utf8()?, headers)?;
                self.put_api_keys(new);
            }
            Source::Revoked => self.put_revoked(Revoked::parse(utf8()?)?),
        }
        *slot = Some(hash);
        // After the change, so that nobody reads the new number and then the old keys.
        self.generation.fetch_add(1, Ordering::Release);
        Ok(Loaded::Changed)
    }

    fn put_keys(&self, new: KeySet) {
        self.stats.keys.store(new.len() as u64, Ordering::Relaxed);
        self.keys.store(Arc::new(new));
    }

    fn put_api_keys(&self, new: ApiKeys) {
        self.stats.keys.store(new.len() as u64, Ordering::Relaxed);
        self.api_keys.store(Some(Arc::new(new)));
    }

    fn put_revoked(&self, new: Revoked) {
        self.stats.revoked.store(new.len() as u64, Ordering::Relaxed);
        self.revoked.store(Some(Arc::new(new)));
    }

    /// What is revoked is kept elsewhere, and not known before the first list has come.
    pub fn await_revoked(&self) {
        self.revoked.store(None);
    }

    /// Whether the first look at a list that is kept elsewhere is still to come, or under way. The control plane rings
    /// when it is over, well or not, and publishes what it found before.
    pub fn set_awaited(&self, awaited: bool) {
        self.awaited.store(awaited, Ordering::Release);
    }

    #[inline]
    pub fn is_awaited(&self) -> bool {
        self.awaited.load(Ordering::Acquire)
    }

    /// A worker lacks a list to judge by, which was not there at `generation`.
    #[inline]
    pub fn ask_for_list(&self, generation: u64) -> Asked {
        if self.is_awaited() {
            return Asked::Wait;
        }
        // Read last, for the reason that `ask` has.
        if self.generation() == generation { Asked::No } else { Asked::Again }
    }

    /// A worker met a token of an unknown key, judged at `generation`. Cheap, also in a storm: the control plane looks once
    /// in a while only, and until then the answer is no.
    pub fn ask(&self, kid: Option<&str>, generation: u64) -> Asked {
        let kid = kid.unwrap_or_default();
        if self.looking() == Looking::No || self.missing.load().iter().any(|missing| **missing == *kid) {
            // Read last: the control plane publishes keys before it says that it has looked, so that a key which came
            // between the judgement and this question is never taken for one that does not come.
            return if self.generation() == generation { Asked::No } else { Asked::Again };
        }
        // If there is no room, the control plane has been woken and has not come yet: it rings all the same.
        let _ = self.asked.push(kid.into());
        if let Some(wake) = &*self.wake.load() {
            wake();
        }
        Asked::Wait
    }

    /// For the control plane: what [`Live::ask`] calls.
    pub fn on_ask(&self, wake: Box<dyn Fn() + Send + Sync>) {
        self.wake.store(Some(Arc::new(wake)));
    }

    /// For the control plane: what [`Live::ask`] answers from now on.
    pub fn set_looking(&self, looking: Looking) {
        self.looking.store(looking as u8, Ordering::Release);
    }

    pub fn looking(&self) -> Looking {
        match self.looking.load(Ordering::Acquire) {
            0 => Looking::No,
            1 => Looking::WhenAsked,
            _ => Looking::Now,
        }
    }

    /// For the control plane: the next name that was asked for; empty for a token without `kid`.
    pub fn next_asked(&self) -> Option<Box<str>> {
        self.asked.pop()
    }

    /// For the control plane: names that are not worth looking for; those beyond [`KIDS_MISSING_MAX`] are left out.
    pub fn set_missing(&self, mut kids: Vec<Box<str>>) {
        kids.truncate(KIDS_MISSING_MAX);
        self.missing.store(Arc::new(kids));
    }
}

impl fmt::Debug for Live {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Live")
            .field("name", &self.name)
            .field("generation", &self.generation())
            .field("stats", &self.stats)
            .finish_non_exhaustive()
    }
}

fn hash(source: &Source, text: &[u8]) -> [u8; 32] {
    let mut context = Context::new(&SHA256);
    context.update(format!("{source:?}\0").as_bytes());
    context.update(text);
    digest_of(context)
}

fn digest_of(context: Context) -> [u8; 32] {
    let mut hash = [0; 32];
    hash.iter_mut().zip(context.finish().as_ref()).for_each(|(to, from)| *to = *from);
    hash
}

impl Entries {
    fn hash(&self) -> [u8; 32] {
        let mut context = Context::new(&SHA256);
        let mut add = |part: &[u8]| {
            context.update(&part.len().to_le_bytes());
            context.update(part);
        };
        match self {
            Self::ApiKeys { headers, entries } => {
                add(format!("{headers:?}").as_bytes());
                entries.iter().flat_map(|(hash, entry)| [hash, entry]).for_each(|part| add(part));
            }
            Self::Revoked(ids) => ids.iter().for_each(|id| add(id)),
        }
        digest_of(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::api_key::{ApiKeyError, stored};

    const SECRET: &[u8] = &[7; 32];

    #[test]
    fn a_change_counts_and_what_is_bad_changes_nothing() {
        let live = Live::new("main");
        assert!(live.keys().is_empty());
        assert_eq!(live.load(&Source::Secret, SECRET, 5), Ok(Loaded::Changed));
        assert_eq!(live.load(&Source::Secret, SECRET, 6), Ok(Loaded::Unchanged));
        assert_eq!(live.generation(), 1);
        assert_eq!(live.load(&Source::Secret, b"short", 7), Err(LoadError::Keys(KeySetError::ShortSecret)));
        assert_eq!(live.load(&Source::Jwks { secrets: false }, b"{}", 7), Err(LoadError::Keys(KeySetError::Jwks)));
        assert_eq!(live.load(&Source::Pem, b"\xff", 7), Err(LoadError::Encoding));
        assert_eq!((live.generation(), live.keys().len()), (1, 1));
        assert_eq!(live.load(&Source::Revoked, b"a\nb\n", 8), Ok(Loaded::Changed));
        assert_eq!((live.generation(), live.revoked().as_ref().unwrap().contains("b")), (2, true));
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let Stats { refreshes_ok, refreshes_failed, refreshed_at_s, keys, revoked, malformed: _ } = &live.stats;
        assert_eq!([refreshes_ok, refreshes_failed, refreshed_at_s, keys, revoked].map(count), [3, 3, 8, 1, 2]);
    }

    #[test]
    fn other_headers_are_a_change_of_api_keys() {
        let live = Live::new("partners");
        let text =
            format!("clients: [{{ name: a, keys: [{{ hash: \"{}\" }}] }}]", crate::auth::api_key::stored(b"key"));
        let source = |name: &str| Source::ApiKeys {
            headers: [ClaimHeader { name: name.into(), claim: crate::auth::ClaimPath::name("sub") }].into(),
        };
        assert_eq!(live.load(&source("X-A"), text.as_bytes(), 0), Ok(Loaded::Changed));
        assert_eq!(live.load(&source("X-A"), text.as_bytes(), 0), Ok(Loaded::Unchanged));
        assert_eq!(live.load(&source("X-B"), text.as_bytes(), 0), Ok(Loaded::Changed));
        assert_eq!(live.api_keys().as_ref().unwrap().verify(b"key", 0).unwrap().header_lines, b"X-B: a\r\n");
    }

    #[test]
    fn of_a_list_the_good_entries_count() {
        let live = Live::new("partners");
        let entry = |key: &str, json: &str| (stored(key.as_bytes()).into_bytes(), json.as_bytes().to_vec());
        let good =
            [entry("a", r#"{"client":"shop","id":"1"}"#), entry("b", r#"{"client":"shop","expires":"1970-01-02"}"#)];
        let bad = [
            entry("c", "{}"),
            entry("d", r#"{"client":""}"#),
            entry("e", r#"{"client":"x","expires":"soon"}"#),
            entry("f", r#"{"client":"x","secret":1}"#),
            entry("g", "\u{0}"),
            (b"sha256:00".to_vec(), br#"{"client":"x"}"#.to_vec()),
            (b"\xff".to_vec(), br#"{"client":"x"}"#.to_vec()),
        ];
        let load = |entries: Vec<_>| live.load_entries(Entries::ApiKeys { headers: [].into(), entries }, 5).unwrap();
        assert!(live.api_keys().is_none());
        let taken = load([&good[..], &bad[..]].concat());
        assert_eq!((taken.loaded, taken.malformed), (Loaded::Changed, bad.len()));
        assert!(taken.problem.is_some());
        let verify = |key: &str| live.api_keys().as_ref().unwrap().verify(key.as_bytes(), 86_399);
        assert_eq!(verify("a").unwrap().user.as_deref(), Some("shop"));
        assert!(verify("b").is_ok() && verify("c").is_err());
        // In another order, and one of them twice: nothing has changed.
        let again = [&bad[..], &good[..], &good[..1]].concat();
        assert_eq!(load(again).loaded, Loaded::Unchanged);
        assert_eq!((live.generation(), live.stats.malformed.load(Ordering::Relaxed)), (1, bad.len() as u64));
        assert_eq!(load(good[..1].to_vec()), Taken { loaded: Loaded::Changed, malformed: 0, problem: None });
        assert_eq!((verify("b").unwrap_err(), live.stats.keys.load(Ordering::Relaxed)), (ApiKeyError::Unknown, 1));

        live.await_revoked();
        assert!(live.revoked().is_none());
        let ids = vec![b"a".to_vec(), vec![], b"\xff".to_vec(), vec![b'x'; 257], b"b".to_vec(), b"a".to_vec()];
        let taken = live.load_entries(Entries::Revoked(ids), 5).unwrap();
        assert_eq!((taken.malformed, live.stats.revoked.load(Ordering::Relaxed)), (3, 2));
        assert!(live.revoked().as_ref().unwrap().contains("b"));
    }

    #[test]
    fn a_list_is_waited_for_until_the_first_look_is_over() {
        let live = Live::new("partners");
        assert_eq!(live.ask_for_list(live.generation()), Asked::No);
        live.set_awaited(true);
        assert_eq!(live.ask_for_list(0), Asked::Wait);
        live.load_entries(Entries::ApiKeys { headers: [].into(), entries: vec![] }, 0).unwrap();
        live.set_awaited(false);
        assert_eq!((live.ask_for_list(0), live.ask_for_list(1)), (Asked::Again, Asked::No));
        assert!(live.api_keys().as_ref().unwrap().is_empty());
    }

    #[test]
    fn asking_wakes_only_when_it_can_help() {
        let live = Live::new("main");
        let woken = Arc::new(AtomicU64::new(0));
        let counter = woken.clone();
        live.on_ask(Box::new(move || {
            counter.fetch_add(1, Ordering::Relaxed);
        }));
        assert_eq!(live.ask(Some("a"), 0), Asked::No);
        live.set_looking(Looking::WhenAsked);
        assert_eq!((live.ask(Some("a"), 0), live.ask(None, 0)), (Asked::Wait, Asked::Wait));
        assert_eq!((live.next_asked().as_deref(), live.next_asked().as_deref()), (Some("a"), Some("")));
        live.set_missing(vec!["a".into()]);
        assert_eq!((live.ask(Some("a"), 0), live.ask(Some("b"), 0)), (Asked::No, Asked::Wait));
        live.set_looking(Looking::Now);
        for _ in 0..2 * KIDS_ASKED_MAX {
            assert_eq!(live.ask(Some("c"), 0), Asked::Wait);
        }
        assert_eq!(std::iter::from_fn(|| live.next_asked()).count(), KIDS_ASKED_MAX);
        assert_eq!(woken.load(Ordering::Relaxed), 3 + 2 * KIDS_ASKED_MAX as u64);
        // The key comes after the token was judged, and before the question.
        live.load(&Source::Secret, SECRET, 0).unwrap();
        live.set_looking(Looking::No);
        assert_eq!((live.ask(Some("b"), 0), live.ask(Some("b"), 1)), (Asked::Again, Asked::No));
        assert_eq!((live.ask(Some("a"), 0), live.ask(Some("a"), 1)), (Asked::Again, Asked::No));
    }
}
