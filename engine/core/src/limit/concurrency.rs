//! How many requests of a key may be under way at the same time.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use smallvec::SmallVec;

use super::limiter::short;
use super::table::{Entry, Table};

/// Concurrency limits that one request may count on.
pub const PLACES_MAX: usize = 4;

/// A counter that has ended.
const RETIRED: u32 = u32::MAX;

/// What a concurrency limit allows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConcurrencySpec {
    pub name: Arc<str>,
    /// Requests of a key at the same time, 1 or more.
    pub requests: u32,
    /// Keys told apart at the same time, 1 or more; those beyond share one counter.
    pub keys_max: usize,
}

/// A limit on requests of one key under way at the same time, in this process.
///
/// Memory: 21 bytes for each of `keys_max` from the start; for each key that was seen about 60 more and its length, until
/// another needs its room.
#[derive(Clone)]
pub struct Concurrency {
    spec: ConcurrencySpec,
    table: Arc<Table<Counter>>,
}

/// A request's place among those under way. Dropped: given back.
#[derive(Debug)]
#[must_use = "a place is given back when it is dropped"]
pub struct Place(Arc<Counter>);

/// The places of one request. Dropped: given back.
#[derive(Debug, Default)]
pub struct Places(SmallVec<[Place; PLACES_MAX]>);

#[derive(Debug)]
struct Counter {
    hash: u64,
    key: Box<[u8]>,
    count: AtomicU32,
}

impl Concurrency {
    pub fn new(spec: ConcurrencySpec) -> Self {
        let table = Arc::new(Table::new(spec.keys_max.max(1), (), counter(b"", 0)));
        Self { spec, table }
    }

    /// The same limit after a change: what is under way goes on counting, unless other room for keys is asked for.
    #[must_use]
    pub fn changed(&self, spec: ConcurrencySpec) -> Self {
        match spec.keys_max == self.spec.keys_max {
            true => Self { spec, table: Arc::clone(&self.table) },
            false => Self::new(spec),
        }
    }

    pub fn spec(&self) -> &ConcurrencySpec {
        &self.spec
    }

    /// Keys that have a counter of their own, those without requests included.
    pub fn keys(&self) -> usize {
        self.table.len()
    }

    /// Requests under way. Goes through the whole table.
    pub fn requests(&self) -> u64 {
        let mut requests = 0;
        self.table.for_each(|counter| {
            let count = counter.count.load(Ordering::Relaxed);
            requests += u64::from(if count == RETIRED { 0 } else { count });
        });
        requests
    }

    /// A place for one more request of `key`; `None` when all are taken.
    #[inline]
    pub fn enter(&self, key: &[u8]) -> Option<Place> {
        let key = short(key);
        let enter = |counter: &Arc<Counter>| {
            let more = |count| (count < self.spec.requests.min(RETIRED - 1)).then(|| count + 1);
            match counter.count.fetch_update(Ordering::AcqRel, Ordering::Acquire, more) {
                Ok(_) => Some(Some(Place(Arc::clone(counter)))),
                Err(RETIRED) => None,
                Err(_) => Some(None),
            }
        };
        self.table.with(&key, 0, |hash| counter(&key, hash), enter)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.count.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Places {
    pub fn taken(&self) -> usize {
        self.0.len()
    }

    /// Keeps one more; gives it back where there is no room for it.
    pub fn keep(&mut self, place: Place) {
        if self.0.len() < PLACES_MAX {
            self.0.push(place);
        }
    }

    pub fn give_back(&mut self) {
        self.0.clear();
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

impl std::fmt::Debug for Concurrency {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Concurrency").field("spec", &self.spec).finish_non_exhaustive()
    }
}

fn counter(key: &[u8], hash: u64) -> Counter {
    Counter { hash, key: key.into(), count: AtomicU32::new(0) }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    fn limit(requests: u32, keys_max: usize) -> Concurrency {
        Concurrency::new(ConcurrencySpec { name: "test".into(), requests, keys_max })
    }

    #[test]
    fn a_key_has_so_many_places_and_gets_them_back() {
        let limit = limit(2, 10);
        let first = limit.enter(b"a").unwrap();
        let second = limit.enter(b"a").unwrap();
        assert!(limit.enter(b"a").is_none());
        let other = limit.enter(b"b").unwrap();
        assert_eq!((limit.requests(), limit.keys()), (3, 2));
        drop(first);
        let third = limit.enter(b"a").unwrap();
        assert!(limit.enter(b"a").is_none());
        drop((second, third, other));
        assert_eq!(limit.requests(), 0);
    }

    #[test]
    fn keys_without_requests_make_room_and_the_others_never_fail_open() {
        let limit = limit(1, 4);
        for key in 0..100_u8 {
            let place = limit.enter(&[key]).unwrap();
            assert!(limit.enter(&[key]).is_none());
            drop(place);
        }
        let places: Vec<_> = (0..4_u8).map(|key| limit.enter(&[key]).unwrap()).collect();
        let beyond = limit.enter(b"x").unwrap();
        assert!(limit.enter(b"y").is_none(), "keys beyond the cap share one counter");
        assert_eq!((limit.keys(), limit.requests()), (4, 5));
        drop(beyond);
        drop(places);
        assert!(limit.enter(b"y").is_some());
    }

    #[test]
    fn a_change_keeps_what_is_under_way() {
        let old = limit(3, 10);
        let places: Vec<_> = (0..3).map(|_| old.enter(b"a").unwrap()).collect();
        let spec = |requests, keys_max| ConcurrencySpec { requests, keys_max, ..old.spec().clone() };
        let less = old.changed(spec(1, 10));
        let more = old.changed(spec(4, 10));
        assert!(less.enter(b"a").is_none());
        let fourth = more.enter(b"a").unwrap();
        assert!(more.enter(b"a").is_none());
        drop(places);
        assert!(less.enter(b"a").is_none());
        drop(fourth);
        assert!(less.enter(b"a").is_some());
        assert_eq!((old.requests(), old.changed(spec(3, 11)).keys()), (0, 0));
    }

    #[test]
    fn a_request_gives_all_its_places_back_at_once() {
        let limit = limit(10, 10);
        let mut places = Places::default();
        for taken in 0..PLACES_MAX {
            assert_eq!((places.taken(), limit.requests()), (taken, taken as u64));
            places.keep(limit.enter(b"a").unwrap());
        }
        places.keep(limit.enter(b"a").unwrap());
        assert_eq!(limit.requests(), PLACES_MAX as u64, "no room for it");
        places.give_back();
        assert_eq!((places.taken(), limit.requests()), (0, 0));
        places.keep(limit.enter(b"a").unwrap());
        drop(places);
        assert_eq!(limit.requests(), 0);
        let place = limit.enter(b"a").unwrap();
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let mut places = Places::default();
            places.keep(place);
            panic!("a request that ends badly");
        }));
        assert!(panicked.is_err());
        assert_eq!(limit.requests(), 0);
    }

    #[test]
    fn long_keys_are_told_apart() {
        let limit = limit(1, 10);
        let key = |last: u8| [vec![b'k'; 5_000], vec![last]].concat();
        let _one = limit.enter(&key(1)).unwrap();
        let _two = limit.enter(&key(2)).unwrap();
        assert!(limit.enter(&key(1)).is_none());
    }

    #[test]
    fn cores_never_have_more_under_way_than_allowed() {
        // Keys take each other's room all the time, and each has a witness of its own.
        let limit = limit(3, 2);
        let witnesses: [AtomicU32; 4] = Default::default();
        let entered = std::thread::scope(|scope| {
            let core = |core: usize| {
                let (limit, witnesses) = (&limit, &witnesses);
                move || {
                    let mut entered = 0;
                    for turn in 0..20_000 {
                        let key = (turn + core) % witnesses.len();
                        let Some(place) = limit.enter(&[key as u8]) else { continue };
                        // Its own counter, and a part of the shared one.
                        assert!(witnesses[key].fetch_add(1, Ordering::SeqCst) < 6);
                        entered += 1;
                        witnesses[key].fetch_sub(1, Ordering::SeqCst);
                        drop(place);
                    }
                    entered
                }
            };
            let cores: Vec<_> = (0..4).map(|number| scope.spawn(core(number))).collect();
            cores.into_iter().map(|core| core.join().unwrap()).sum::<u32>()
        });
        assert!(entered > 1_000, "{entered}");
        assert_eq!(limit.requests(), 0);
        assert!(limit.keys() <= 2);
    }

    proptest! {
        #[test]
        fn it_counts_as_a_map_does(
            requests in 1..5_u32,
            steps in prop::collection::vec((0..6_u8, any::<bool>(), 0..16_usize), 1..200),
        ) {
            let limit = limit(requests, 6);
            let mut model: HashMap<u8, Vec<Place>> = HashMap::new();
            for (key, enters, which) in steps {
                let places = model.entry(key).or_default();
                if enters {
                    let place = limit.enter(&[key]);
                    prop_assert_eq!(place.is_some(), places.len() < requests as usize);
                    places.extend(place);
                } else if !places.is_empty() {
                    drop(places.swap_remove(which % places.len()));
                }
                prop_assert_eq!(limit.requests(), model.values().map(Vec::len).sum::<usize>() as u64);
            }
        }

        /// Whatever keys come: the counters that there are bound what is under way, and in the end all is given back.
        #[test]
        fn past_the_cap_it_never_fails_open(
            requests in 1..4_u32,
            keys_max in 1..5_usize,
            steps in prop::collection::vec((0..40_u8, 0..3_u8, 0..64_usize), 1..300),
        ) {
            let limit = limit(requests, keys_max);
            let mut places: Vec<(u8, Place)> = Vec::new();
            for (key, action, which) in steps {
                if action == 0 && !places.is_empty() {
                    drop(places.swap_remove(which % places.len()));
                } else if let Some(place) = limit.enter(&[key]) {
                    places.push((key, place));
                }
                prop_assert!(limit.keys() <= keys_max);
                prop_assert_eq!(limit.requests(), places.len() as u64);
                prop_assert!(places.len() <= (keys_max + 1) * requests as usize);
                let of_key = places.iter().filter(|(other, _)| *other == key).count();
                prop_assert!(of_key <= 2 * requests as usize, "its own counter and the shared one");
            }
            drop(places);
            prop_assert_eq!(limit.requests(), 0);
        }
    }
}
