//! How many requests of a key are under way at the same time.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use super::table::{Entry, Table};

/// A counter that has ended.
const RETIRED: u32 = u32::MAX;

/// A limit on requests of one key under way at the same time, per instance. Keys beyond the cap share one counter.
///
/// Memory: about 60 bytes for each key with a request under way, and its length.
pub struct Concurrency {
    table: Table<Counter>,
    limit: u32,
}

/// One request's place: to be given back by [`Concurrency::leave`].
#[derive(Debug)]
#[must_use = "a place that is not given back stays taken"]
pub struct Slot(Arc<Counter>);

#[derive(Debug)]
struct Counter {
    hash: u64,
    key: Box<[u8]>,
    count: AtomicU32,
}

impl Concurrency {
    /// `limit`: requests of a key at the same time; `keys_max`: keys told apart at the same time. Both at least 1.
    pub fn new(limit: u32, keys_max: usize) -> Self {
        Self { table: Table::new(keys_max.max(1), (), counter(b"", 0)), limit: limit.clamp(1, RETIRED - 1) }
    }

    pub fn limit(&self) -> u32 {
        self.limit
    }

    /// A place for one more request of `key`; `None` when all are taken.
    pub fn enter(&self, key: &[u8]) -> Option<Slot> {
        let enter = |counter: &Arc<Counter>| {
            let more = |count| (count < self.limit).then(|| count + 1);
            match counter.count.fetch_update(Ordering::AcqRel, Ordering::Acquire, more) {
                Ok(_) => Some(Some(Slot(Arc::clone(counter)))),
                Err(RETIRED) => None,
                Err(_) => Some(None),
            }
        };
        self.table.with(key, 0, |hash| counter(key, hash), enter)
    }

    /// The request is over.
    pub fn leave(&self, slot: Slot) {
        slot.0.count.fetch_sub(1, Ordering::AcqRel);
    }
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
        self.count.compare_exchange(0, RETIRED, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }
}

fn counter(key: &[u8], hash: u64) -> Counter {
    Counter { hash, key: key.into(), count: AtomicU32::new(0) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_has_so_many_places_and_gets_them_back() {
        let limit = Concurrency::new(2, 10);
        let first = limit.enter(b"a").unwrap();
        let second = limit.enter(b"a").unwrap();
        assert!(limit.enter(b"a").is_none());
        let other = limit.enter(b"b").unwrap();
        limit.leave(first);
        let third = limit.enter(b"a").unwrap();
        assert!(limit.enter(b"a").is_none());
        for slot in [second, third, other] {
            limit.leave(slot);
        }
    }

    #[test]
    fn keys_without_requests_make_room_and_the_others_never_fail_open() {
        let limit = Concurrency::new(1, 4);
        for key in 0..100_u8 {
            let slot = limit.enter(&[key]).unwrap();
            assert!(limit.enter(&[key]).is_none());
            limit.leave(slot);
        }
        let slots: Vec<_> = (0..4_u8).map(|key| limit.enter(&[key]).unwrap()).collect();
        let beyond = limit.enter(b"x").unwrap();
        assert!(limit.enter(b"y").is_none());
        limit.leave(beyond);
        slots.into_iter().for_each(|slot| limit.leave(slot));
        assert!(limit.enter(b"y").is_some());
    }
}
