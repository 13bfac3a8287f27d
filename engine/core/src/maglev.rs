//! Consistent hashing: the same key goes to the same endpoint for as long as that is there, on all cores and all gateways,
//! and few keys move when an endpoint comes or goes (Eisenbud et al., "Maglev", NSDI 2016, section 3.4).

use crate::random::{Random, mix};

/// Sizes of the table. Of the smallest that has [`PLACES_PER_ENDPOINT`] for each endpoint, the shares of
/// endpoints differ by a few percent at most. The largest takes some milliseconds to fill: beyond 655 endpoints shares
/// are less exact.
const SIZES: [u32; 4] = [2_039, 8_191, 32_749, 131_071];
const PLACES_PER_ENDPOINT: usize = 200;

/// Where keys go.
#[derive(Debug)]
pub struct Maglev {
    /// An index of the members for each place.
    table: Box<[u32]>,
}

/// FNV-1a, with the bits mixed at the end (as SplitMix64 does): the same everywhere and always.
pub fn hash(bytes: &[u8]) -> u64 {
    let hash = bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3));
    mix(hash)
}

/// A member's way through the table. It jumps: of two that went by steps, as in the paper, and had the same step, each would
/// take the places that the other has left, and others whenever a third member comes or goes.
struct Walk {
    member: u32,
    way: Random,
    /// Its weight in parts of the heaviest, and what it has saved up.
    share: f64,
    saved: f64,
}

impl Maglev {
    /// A table of the members, by name and weight; a weight of 0 counts as 1. `endpoints`: how many there are, chosen or
    /// not: the size of the table does not follow who is away.
    pub fn new<'n>(members: impl Iterator<Item = (&'n str, u32)>, endpoints: usize) -> Self {
        let wanted = endpoints.saturating_mul(PLACES_PER_ENDPOINT);
        let [.., largest] = SIZES;
        let size = SIZES.into_iter().find(|size| *size as usize >= wanted).unwrap_or(largest);
        let mut members: Vec<(u32, &str, u32)> =
            (0..).zip(members).map(|(at, (name, weight))| (at, name, weight)).collect();
        // In whatever order they are listed.
        members.sort_unstable_by_key(|(_, name, _)| *name);
        let heaviest = members.iter().map(|(.., weight)| (*weight).max(1)).max().unwrap_or(1);
        let mut walks: Vec<Walk> = members
            .iter()
            .map(|(member, name, weight)| Walk {
                member: *member,
                way: Random(hash(name.as_bytes())),
                share: f64::from((*weight).max(1)) / f64::from(heaviest),
                saved: 0.0,
            })
            .collect();
        Self { table: fill(&mut walks, size) }
    }

    /// Which member gets this key; `None` if there is none.
    #[inline]
    pub fn pick(&self, key: u64) -> Option<usize> {
        self.table.get(place(key, self.table.len())).map(|member| *member as usize)
    }
}

/// Where 64 bits are in so many places: the high half of the product, without a division.
#[inline]
fn place(bits: u64, size: usize) -> usize {
    ((u128::from(bits) * size as u128) >> 64) as usize
}

/// In turn, each member takes the next free place on its way, as often as its weight says.
fn fill(walks: &mut [Walk], size: u32) -> Box<[u32]> {
    const FREE: u32 = u32::MAX;
    if walks.is_empty() {
        return Box::default();
    }
    let mut table = vec![FREE; size as usize].into_boxed_slice();
    let mut free = size;
    loop {
        for walk in walks.iter_mut() {
            walk.saved += walk.share;
            if walk.saved < 1.0 {
                continue;
            }
            walk.saved -= 1.0;
            // Even the last free place is met after `size` jumps on average: all take `size * ln(size)`.
            while let Some(place) = table.get_mut(place(walk.way.next(), size as usize)) {
                if *place == FREE {
                    *place = walk.member;
                    free -= 1;
                    break;
                }
            }
            if free == 0 {
                return table;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn names(count: usize, seed: u64) -> Vec<String> {
        (0..count).map(|index| format!("10.{}.{}.{index}:8080", seed >> 8 & 255, seed & 255)).collect()
    }

    fn table(names: &[String], weights: &[u32]) -> Maglev {
        Maglev::new(names.iter().map(String::as_str).zip(weights.iter().copied()), names.len())
    }

    #[test]
    fn none_among_none_and_always_the_only_one() {
        assert_eq!(Maglev::new([].into_iter(), 3).pick(5), None);
        let only = Maglev::new([("a", 0)].into_iter(), 1);
        assert!([0, 1, u64::MAX].into_iter().all(|key| only.pick(key) == Some(0)));
    }

    #[test]
    fn the_same_on_every_machine() {
        assert_eq!(hash(b""), 0xc3817c016ba4ff30);
        let names = names(3, 0);
        let picks: Vec<_> =
            (0..12).map(|key: u64| table(&names, &[1; 3]).pick(hash(&key.to_be_bytes())).unwrap()).collect();
        assert_eq!(picks, [2, 2, 1, 1, 1, 0, 1, 2, 1, 1, 2, 0]);
    }

    #[test]
    fn the_order_of_the_list_does_not_matter() {
        let names = names(7, 1);
        let (forth, back) =
            (names.iter().map(|name| (name.as_str(), 1)), names.iter().rev().map(|name| (name.as_str(), 1)));
        let (forth, back) = (Maglev::new(forth, 7), Maglev::new(back, 7));
        for key in 0..1_000u64 {
            let key = hash(&key.to_be_bytes());
            assert_eq!(forth.pick(key), back.pick(key).map(|member| 6 - member));
        }
    }

    /// The share of the places that move though they need not when one of `count` goes.
    fn moved(count: usize, gone: usize, seed: u64) -> f64 {
        let names = names(count, seed);
        let before = table(&names, &vec![1; count]);
        let rest = names.iter().enumerate().filter(|(index, _)| *index != gone).map(|(_, name)| (name.as_str(), 1));
        let after = Maglev::new(rest, count);
        let places = before.table.iter().zip(&after.table).map(|(old, new)| (*old as usize, *new as usize));
        let needless = places.filter(|(old, new)| *old != gone && *old != new + usize::from(*new >= gone));
        needless.count() as f64 / before.table.len() as f64
    }

    /// Two of these had the same step when the ways through the table had steps: a sixth of the keys moved.
    #[test]
    fn no_two_go_in_step() {
        let share = moved(6, 0, 22_556);
        assert!(share < 0.04, "{share}");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn shares_follow_the_weights(weights in prop::collection::vec(1..6u32, 1..30), seed: u16) {
            let names = names(weights.len(), seed.into());
            let table = table(&names, &weights);
            let mut counts = vec![0u32; names.len()];
            table.table.iter().for_each(|member| counts[*member as usize] += 1);
            let total: u32 = weights.iter().sum();
            for (count, weight) in counts.iter().zip(&weights) {
                let expected = table.table.len() as f64 * f64::from(*weight) / f64::from(total);
                prop_assert!((f64::from(*count) - expected).abs() <= 0.05 * expected, "{:?} {:?}", counts, weights);
            }
        }

        #[test]
        fn few_keys_move_when_one_goes_or_comes(count in 2..30usize, gone: prop::sample::Index, seed: u16) {
            let share = moved(count, gone.index(count), seed.into());
            prop_assert!(share < 0.04, "{}", share);
        }
    }
}
