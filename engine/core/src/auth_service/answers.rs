//! What auth services said lately, kept for a short time by one core.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use ahash::RandomState;

use super::{CacheSettings, Verdict};

/// Bytes of a key; an answer to a longer question is not kept.
pub const KEY_BYTES_MAX: usize = 8 * 1024;

/// What an entry is taken to need besides its key and its lines.
const ENTRY_BYTES: usize = 512;

/// A moment on two clocks: one that only goes forward, and the wall's, by which credentials expire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    pub since_start: Duration,
    pub unix_s: u64,
}

/// The answers of one auth service that one core keeps.
///
/// Found by a keyed hash of the question, and compared in full. Bounded in entries and bytes; what was kept first goes
/// first. What was refused replaces what had passed, also where refusals are not kept.
pub struct Answers {
    entries: HashMap<Arc<[u8]>, Entry, RandomState>,
    /// In the order in which they were first kept.
    order: VecDeque<Arc<[u8]>>,
    bytes: usize,
    settings: CacheSettings,
}

struct Entry {
    verdict: Verdict,
    /// When the question was asked: before the answer, so that the time to live does not depend on a slow service.
    asked_at: Duration,
}

impl Answers {
    /// `seed` must be random and secret, so that no client can choose what its questions hash to.
    pub fn new(settings: CacheSettings, [a, b, c, d]: [u64; 4]) -> Self {
        let hasher = RandomState::with_seeds(a, b, c, d);
        Self { entries: HashMap::with_hasher(hasher), order: VecDeque::new(), bytes: 0, settings }
    }

    /// An answer that still holds.
    #[inline]
    pub fn fresh(&self, key: &[u8], now: Now) -> Option<&Verdict> {
        let entry = self.entries.get(key)?;
        let ttl = match entry.verdict {
            Verdict::Pass(_) => self.settings.ttl,
            _ => self.settings.refusals,
        };
        (entry.is_younger_than(ttl, now) && entry.has_not_expired(now)).then_some(&entry.verdict)
    }

    /// A positive answer that is not older than `age_max`, for when the service is down.
    pub fn stale(&self, key: &[u8], age_max: Duration, now: Now) -> Option<&Verdict> {
        let entry = self.entries.get(key).filter(|entry| matches!(entry.verdict, Verdict::Pass(_)))?;
        (entry.is_younger_than(age_max, now) && entry.has_not_expired(now)).then_some(&entry.verdict)
    }

    /// Takes an answer to what was asked at `asked_at`; [`Verdict::Down`] is none.
    pub fn keep(&mut self, key: &[u8], verdict: &Verdict, asked_at: Duration) {
        let is_kept = match verdict {
            Verdict::Down(_) => return,
            Verdict::Pass(_) => !self.settings.ttl.is_zero() || self.settings.keeps_stale,
            Verdict::Refuse(_) | Verdict::Invalid(_) => !self.settings.refusals.is_zero(),
        };
        let entry = Entry { verdict: verdict.clone(), asked_at };
        let bytes = entry.bytes(key);
        if !is_kept || key.len() > KEY_BYTES_MAX || bytes > self.settings.bytes_max {
            // What holds no more must not be used when the service is down.
            return self.forget(key);
        }
        match self.entries.get_mut(key) {
            Some(old) => {
                self.bytes = self.bytes - old.bytes(key) + bytes;
                *old = entry;
            }
            None => {
                let key: Arc<[u8]> = key.into();
                self.order.push_back(Arc::clone(&key));
                self.entries.insert(key, entry);
                self.bytes += bytes;
            }
        }
        while self.entries.len() > self.settings.entries_max || self.bytes > self.settings.bytes_max {
            let Some(oldest) = self.order.pop_front() else { break };
            self.remove(&oldest);
        }
    }

    fn forget(&mut self, key: &[u8]) {
        if self.remove(key) {
            self.order.retain(|kept| **kept != *key);
        }
    }

    fn remove(&mut self, key: &[u8]) -> bool {
        let Some(entry) = self.entries.remove(key) else { return false };
        self.bytes -= entry.bytes(key);
        true
    }

    pub fn len(&self) -> usize {
        self.entries.len()
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// What the entries need, by estimate.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Entry {
    fn is_younger_than(&self, age: Duration, now: Now) -> bool {
        now.since_start.saturating_sub(self.asked_at) < age
    }

    fn has_not_expired(&self, now: Now) -> bool {
        match &self.verdict {
            Verdict::Pass(identity) => identity.expires_at.is_none_or(|expires| now.unix_s < expires),
            _ => true,
        }
    }

    fn bytes(&self, key: &[u8]) -> usize {
        ENTRY_BYTES + key.len() + self.verdict.bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::super::Refusal;
    use super::super::tests::identity;
    use super::*;
    use proptest::prelude::*;

    const SETTINGS: CacheSettings = CacheSettings {
        ttl: Duration::from_secs(5),
        refusals: Duration::from_secs(1),
        keeps_stale: true,
        entries_max: 4,
        bytes_max: 1 << 20,
    };

    fn now(secs: u64) -> Now {
        Now { since_start: Duration::from_secs(secs), unix_s: 1_000 + secs }
    }

    fn pass(user: &str, expires_at: Option<u64>) -> Verdict {
        Verdict::Pass(Arc::new(crate::auth::Identity { expires_at, ..identity(user) }))
    }

    fn refusal() -> Verdict {
        Verdict::Refuse(Arc::new(Refusal { status: 401, lines: vec![], body: vec![] }))
    }

    fn asked(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    #[test]
    fn answers_hold_for_their_time_and_never_past_their_expiry() {
        let mut answers = Answers::new(SETTINGS, [1, 2, 3, 4]);
        answers.keep(b"a", &pass("a", None), asked(10));
        answers.keep(b"b", &pass("b", Some(1_012)), asked(10));
        answers.keep(b"c", &refusal(), asked(10));
        let is_fresh = |key: &[u8], secs| answers.fresh(key, now(secs)).is_some();
        assert!(is_fresh(b"a", 14) && !is_fresh(b"a", 15));
        assert!(is_fresh(b"b", 11) && !is_fresh(b"b", 12));
        assert!(is_fresh(b"c", 10) && !is_fresh(b"c", 11));
        assert!(answers.fresh(b"d", now(10)).is_none());

        let is_stale = |key: &[u8], secs| answers.stale(key, Duration::from_secs(60), now(secs)).is_some();
        assert!(is_stale(b"a", 69) && !is_stale(b"a", 70));
        assert!(is_stale(b"b", 11) && !is_stale(b"b", 12), "what has expired is not used either");
        assert!(!is_stale(b"c", 10), "a refusal is no pass");
    }

    #[test]
    fn a_refusal_ends_what_passed_also_where_refusals_are_not_kept() {
        for refusals in [Duration::ZERO, Duration::from_secs(1)] {
            let mut answers = Answers::new(CacheSettings { refusals, ..SETTINGS }, [1, 2, 3, 4]);
            answers.keep(b"a", &pass("a", None), asked(10));
            answers.keep(b"a", &Verdict::Down("connect"), asked(11));
            assert!(answers.fresh(b"a", now(11)).is_some(), "no answer changes nothing");
            answers.keep(b"a", &refusal(), asked(11));
            assert!(answers.stale(b"a", Duration::from_secs(60), now(12)).is_none());
            assert!(!matches!(answers.fresh(b"a", now(11)), Some(Verdict::Pass(_))));
            answers.keep(b"a", &pass("a", None), asked(12));
            assert!(answers.fresh(b"a", now(13)).is_some());
            assert_eq!((answers.len(), answers.order.len()), (1, 1));
        }
    }

    #[test]
    fn what_is_too_long_is_not_kept() {
        let mut answers = Answers::new(SETTINGS, [1, 2, 3, 4]);
        answers.keep(&[b'x'; KEY_BYTES_MAX + 1], &pass("a", None), asked(0));
        assert!(answers.is_empty());
        answers.keep(&[b'x'; KEY_BYTES_MAX], &pass("a", None), asked(0));
        assert_eq!(answers.len(), 1);
        let nothing = CacheSettings { ttl: Duration::ZERO, keeps_stale: false, ..SETTINGS };
        let mut answers = Answers::new(nothing, [1, 2, 3, 4]);
        answers.keep(b"a", &pass("a", None), asked(0));
        assert!(answers.is_empty());
    }

    proptest! {
        #[test]
        fn no_answer_is_given_to_another_question_and_all_bounds_hold(
            steps in prop::collection::vec((0u8..12, 0usize..600, 0u8..3), 0..200),
            bytes_max in 600usize..8000,
        ) {
            let mut answers = Answers::new(CacheSettings { bytes_max, ..SETTINGS }, [5, 6, 7, 8]);
            for (number, length, kind) in steps {
                let key = [vec![number], vec![b'k'; length]].concat();
                match kind {
                    0 => answers.keep(&key, &refusal(), asked(0)),
                    1 => answers.keep(&key, &pass(&format!("{number}.{length}"), None), asked(0)),
                    _ => {
                        if let Some(Verdict::Pass(identity)) = answers.fresh(&key, now(0)) {
                            prop_assert_eq!(identity.user.as_deref(), Some(&*format!("{number}.{length}")));
                        }
                    }
                }
                prop_assert!(answers.len() <= SETTINGS.entries_max && answers.bytes() <= bytes_max);
                prop_assert_eq!(answers.order.len(), answers.len());
                let counted: usize = answers.entries.iter().map(|(key, entry)| entry.bytes(key)).sum();
                prop_assert_eq!(counted, answers.bytes());
            }
        }
    }
}
