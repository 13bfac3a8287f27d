//! What the runner and the differential test share.
#![allow(dead_code, reason = "each test uses a part of it")]

use std::time::Duration;

/// SplitMix64: a run is its seed.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    /// From 0 to `count` - 1; 0 where `count` is 0.
    pub(crate) fn below(&mut self, count: usize) -> usize {
        (self.next() % count.max(1) as u64) as usize
    }

    pub(crate) fn one_in(&mut self, count: usize) -> bool {
        self.below(count) == 0
    }

    pub(crate) fn choose<'a, T: ?Sized>(&mut self, from: &[&'a T]) -> &'a T {
        from[self.below(from.len())]
    }
}

/// `RINGWAY_FUZZ_SEED`, or always the same.
pub(crate) fn seed() -> u64 {
    number("RINGWAY_FUZZ_SEED").unwrap_or(20_260_323)
}

/// `RINGWAY_FUZZ_SECONDS`, or 3 s.
pub(crate) fn duration() -> Duration {
    Duration::from_secs(number("RINGWAY_FUZZ_SECONDS").unwrap_or(3))
}

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} is not a number: {text}")))
}

/// No input grows longer.
const INPUT_BYTES_MAX: usize = 4096;

/// Changes `input` in one to eight places: bits and bytes, cuts, repetitions, words of the dictionary, parts of
/// another input.
pub(crate) fn mutate(input: &mut Vec<u8>, other: &[u8], dictionary: &[&str], random: &mut Random) {
    for _ in 0..1 + random.below(8) {
        let at = random.below(input.len() + 1);
        let end = at + random.below((input.len() - at).min(64) + 1);
        match random.below(10) {
            0 | 1 if at < input.len() => input[at] ^= 1 << random.below(8),
            2 if at < input.len() => input[at] = random.next() as u8,
            3 => drop(input.drain(at..end)),
            4 => input.truncate(at),
            5 => {
                let piece = input[at..end].to_vec();
                let to = random.below(input.len() + 1);
                drop(input.splice(to..to, piece));
            }
            6 => {
                let from = random.below(other.len() + 1);
                let to = from + random.below(other.len() - from + 1);
                drop(input.splice(at..end, other[from..to].iter().copied()));
            }
            7 => drop(input.splice(at..end, random.choose(dictionary).bytes())),
            _ => drop(input.splice(at..at, random.choose(dictionary).bytes())),
        }
        input.truncate(INPUT_BYTES_MAX);
    }
}
