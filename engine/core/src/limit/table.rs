//! A bounded table from keys to live state that is read without a lock.
//!
//! Every key has two buckets of eight slots, by two parts of its hash, and takes whichever has room. A slot is an
//! `ArcSwap`; a tag beside it tells almost always whether the slot is worth reading. Locks are taken to add a key, and
//! for nothing else.

use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ahash::RandomState;
use arc_swap::ArcSwapOption;

const SLOTS: usize = 8;
const LOCKS: usize = 64;
/// How many buckets are searched for something that may go, when the table is full.
const SEARCH_BUCKETS_MAX: usize = 8;

/// What a table holds.
pub(super) trait Entry {
    /// What decides whether an entry may go.
    type Rules;
    fn hash(&self) -> u64;
    fn key(&self) -> &[u8];
    /// Ends the entry if it equals an absent one. From then on nobody may change it: who tries sees that it has ended
    /// and looks the key up again.
    fn retire(&self, rules: &Self::Rules, now_us: u64) -> bool;
}

/// Memory: 21 bytes for each of `keys_max` keys from the start, and what the entries take.
pub(super) struct Table<E: Entry> {
    rules: E::Rules,
    hasher: RandomState,
    buckets: Box<[Bucket<E>]>,
    locks: [Mutex<()>; LOCKS],
    entries: AtomicUsize,
    entries_max: usize,
    /// Where the next search for something that may go begins.
    hand: AtomicUsize,
    /// Shared by the keys that find no place.
    overflow: Arc<E>,
}

#[derive(Debug)]
struct Bucket<E> {
    /// A part of the hash, never 0; 0 stands for an empty slot.
    tags: [AtomicU32; SLOTS],
    slots: [ArcSwapOption<E>; SLOTS],
}

impl<E> Default for Bucket<E> {
    fn default() -> Self {
        Self { tags: [const { AtomicU32::new(0) }; SLOTS], slots: [const { ArcSwapOption::const_empty() }; SLOTS] }
    }
}

impl<E> Bucket<E> {
    #[inline]
    fn slots(&self) -> impl Iterator<Item = (&AtomicU32, &ArcSwapOption<E>)> {
        self.tags.iter().zip(&self.slots)
    }
}

impl<E: Entry> Table<E> {
    /// `overflow` is never retired.
    pub(super) fn new(keys_max: usize, rules: E::Rules, overflow: E) -> Self {
        // Three quarters more places than keys: with two buckets to choose from, every key finds one.
        let buckets = keys_max.saturating_mul(7).div_ceil(4 * SLOTS).max(2);
        Self {
            rules,
            hasher: RandomState::new(),
            buckets: (0..buckets).map(|_| Bucket::default()).collect(),
            locks: [const { Mutex::new(()) }; LOCKS],
            entries: AtomicUsize::new(0),
            entries_max: keys_max,
            hand: AtomicUsize::new(0),
            overflow: Arc::new(overflow),
        }
    }

    #[inline]
    pub(super) fn rules(&self) -> &E::Rules {
        &self.rules
    }

    pub(super) fn overflow(&self) -> &Arc<E> {
        &self.overflow
    }

    /// Keys that have an entry of their own.
    pub(super) fn len(&self) -> usize {
        self.entries.load(Ordering::Relaxed)
    }

    /// Calls `visit` with the entry of `key`, made by `make` (from the key's hash) if there is none. `visit` answers
    /// `None` when it finds that the entry has ended.
    #[inline]
    pub(super) fn with<R>(
        &self,
        key: &[u8],
        now_us: u64,
        make: impl Fn(u64) -> E,
        mut visit: impl FnMut(&Arc<E>) -> Option<R>,
    ) -> R {
        let hash = self.hasher.hash_one(key);
        loop {
            if let Some(result) = self.find(key, hash, &mut visit) {
                return result;
            }
            let entry = self.find_or_add(key, hash, now_us, &make);
            if let Some(result) = visit(&entry) {
                return result;
            }
        }
    }

    /// `visit`'s answer for the entry of `key`, where there is one.
    pub(super) fn peek<R>(&self, key: &[u8], mut visit: impl FnMut(&Arc<E>) -> Option<R>) -> Option<R> {
        self.find(key, self.hasher.hash_one(key), &mut visit)
    }

    /// Every entry that is there throughout, the one for the overflow too.
    pub(super) fn for_each(&self, mut visit: impl FnMut(&Arc<E>)) {
        for bucket in &self.buckets {
            for (tag, slot) in bucket.slots() {
                if tag.load(Ordering::Relaxed) != 0
                    && let Some(entry) = slot.load().as_ref()
                {
                    visit(entry);
                }
            }
        }
        visit(&self.overflow);
    }

    #[inline]
    fn find<R>(&self, key: &[u8], hash: u64, visit: &mut impl FnMut(&Arc<E>) -> Option<R>) -> Option<R> {
        let tag = tag(hash);
        for index in self.places(hash) {
            let bucket = self.buckets.get(index)?;
            for (its, slot) in bucket.slots() {
                if its.load(Ordering::Acquire) != tag {
                    continue;
                }
                let guard = slot.load();
                if let Some(entry) = guard.as_ref()
                    && entry.hash() == hash
                    && entry.key() == key
                {
                    return visit(entry);
                }
            }
        }
        None
    }

    #[cold]
    fn find_or_add(&self, key: &[u8], hash: u64, now_us: u64, make: &impl Fn(u64) -> E) -> Arc<E> {
        if self.len() >= self.entries_max {
            self.make_room(now_us);
        }
        let places = self.places(hash);
        let _locks = self.lock(places);
        if let Some(entry) = self.find(key, hash, &mut |entry| Some(Arc::clone(entry))) {
            return entry;
        }
        match self.free_slot(places, now_us) {
            Some((its, slot)) => {
                let entry = Arc::new(make(hash));
                slot.store(Some(Arc::clone(&entry)));
                its.store(tag(hash), Ordering::Release);
                entry
            }
            None => Arc::clone(&self.overflow),
        }
    }

    /// An empty slot in one of the two buckets, the emptier one first, counted as taken; else one whose entry may go.
    /// Both buckets are locked.
    fn free_slot(&self, places: [usize; 2], now_us: u64) -> Option<(&AtomicU32, &ArcSwapOption<E>)> {
        let buckets = || places.iter().filter_map(|index| self.buckets.get(*index));
        let is_empty = |tag: &AtomicU32| tag.load(Ordering::Relaxed) == 0;
        let emptier = buckets().max_by_key(|bucket| bucket.tags.iter().filter(|tag| is_empty(tag)).count())?;
        let one_more = |entries| (entries < self.entries_max).then(|| entries + 1);
        if let Some(free) = emptier.slots().find(|(tag, _)| is_empty(tag))
            && self.entries.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more).is_ok()
        {
            return Some(free);
        }
        buckets().flat_map(Bucket::slots).find(|slot| self.retire(*slot, now_us))
    }

    fn retire(&self, (tag, slot): (&AtomicU32, &ArcSwapOption<E>), now_us: u64) -> bool {
        tag.load(Ordering::Relaxed) != 0 && slot.load().as_ref().is_some_and(|entry| entry.retire(&self.rules, now_us))
    }

    /// Searches on where the last search ended, for entries that may go.
    fn make_room(&self, now_us: u64) {
        for _ in 0..SEARCH_BUCKETS_MAX.min(self.buckets.len()) {
            let index = self.hand.fetch_add(1, Ordering::Relaxed) % self.buckets.len();
            let _lock = self.lock([index, index]);
            let Some(bucket) = self.buckets.get(index) else { return };
            let mut gone = 0;
            for (tag, slot) in bucket.slots().filter(|slot| self.retire(*slot, now_us)) {
                tag.store(0, Ordering::Release);
                slot.store(None);
                gone += 1;
            }
            if gone > 0 {
                self.entries.fetch_sub(gone, Ordering::Relaxed);
                return;
            }
        }
    }

    /// The two buckets of a hash, which may be one.
    #[inline]
    fn places(&self, hash: u64) -> [usize; 2] {
        let spread = |half: u64| ((half * self.buckets.len() as u64) >> 32) as usize;
        [spread(hash >> 32), spread(u64::from(hash as u32))]
    }

    /// In the order of the locks, so that two that add keys never wait for each other.
    fn lock(&self, places: [usize; 2]) -> [Option<MutexGuard<'_, ()>>; 2] {
        let mut indices = places.map(|index| index % LOCKS);
        indices.sort_unstable();
        let [first, second] = indices;
        let lock = |index: usize| self.locks.get(index).map(|lock| lock.lock().unwrap_or_else(PoisonError::into_inner));
        let first_lock = lock(first);
        [first_lock, if first == second { None } else { lock(second) }]
    }
}

/// Taken from bits that choose buckets as well: what is in the same bucket still differs in most of them.
#[inline]
fn tag(hash: u64) -> u32 {
    ((hash ^ (hash >> 32)) as u32) | 1
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use super::*;

    #[derive(Debug)]
    struct Counter {
        hash: u64,
        key: Box<[u8]>,
        count: AtomicU32,
        may_go: AtomicBool,
    }

    impl Entry for Counter {
        type Rules = ();

        fn hash(&self) -> u64 {
            self.hash
        }

        fn key(&self) -> &[u8] {
            &self.key
        }

        fn retire(&self, _rules: &(), _now_us: u64) -> bool {
            self.may_go.load(Ordering::Relaxed)
        }
    }

    fn counter(key: &[u8], hash: u64) -> Counter {
        Counter { hash, key: key.into(), count: AtomicU32::new(0), may_go: AtomicBool::new(false) }
    }

    fn count(table: &Table<Counter>, key: &[u8]) -> u32 {
        table.with(key, 0, |hash| counter(key, hash), |entry| Some(entry.count.fetch_add(1, Ordering::Relaxed)))
    }

    #[test]
    fn every_key_up_to_the_cap_has_an_entry_of_its_own() {
        for keys_max in [1, 5, 100, 20_000_usize] {
            let table = Table::new(keys_max, (), counter(b"", 0));
            for round in 0..2 {
                for key in 0..keys_max {
                    assert_eq!(count(&table, &key.to_le_bytes()), round, "key {key} of {keys_max}");
                }
            }
            assert_eq!(table.len(), keys_max);
            assert_eq!(table.overflow().count.load(Ordering::Relaxed), 0);
        }
    }

    #[test]
    fn keys_beyond_the_cap_share_the_overflow_until_an_entry_may_go() {
        let table = Table::new(100, (), counter(b"", 0));
        for key in 0..300_usize {
            count(&table, &key.to_le_bytes());
        }
        assert_eq!(table.len(), 100);
        assert_eq!(table.overflow().count.load(Ordering::Relaxed), 200);
        table.peek(&7_usize.to_le_bytes(), |entry| {
            entry.may_go.store(true, Ordering::Relaxed);
            Some(())
        });
        // A search goes through a part of the table.
        assert!((0..=table.buckets.len()).any(|_| count(&table, b"new") == 0));
        assert_eq!(count(&table, b"new"), 1);
        assert_eq!(table.len(), 100);
        assert!(table.peek(&7_usize.to_le_bytes(), |_| Some(())).is_none());
        let mut seen = 0;
        table.for_each(|_| seen += 1);
        assert_eq!(seen, 101);
    }

    #[test]
    fn threads_that_add_the_same_keys_count_in_the_same_entries() {
        let table = Table::new(1_000, (), counter(b"", 0));
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..1_000_usize).map(|key| count(&table, &key.to_le_bytes())).sum::<u32>());
            }
        });
        for key in 0..1_000_usize {
            assert_eq!(count(&table, &key.to_le_bytes()), 4);
        }
    }
}
