//! What the runner and the differential test share.
#![allow(dead_code, reason = "each test uses a part of it")]

use std::time::Duration;

use ringway_core::random::Random;

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
    for _ in 0..1 + random.index(8) {
        let at = random.index(input.len() + 1);
        let end = at + random.index((input.len() - at).min(64) + 1);
        match random.index(10) {
            0 | 1 if at < input.len() => input[at] ^= 1 << random.index(8),
            2 if at < input.len() => input[at] = random.next() as u8,
            3 => drop(input.drain(at..end)),
            4 => input.truncate(at),
            5 => {
                let piece = input[at..end].to_vec();
                let to = random.index(input.len() + 1);
                drop(input.splice(to..to, piece));
            }
            6 => {
                let from = random.index(other.len() + 1);
                let to = from + random.index(other.len() - from + 1);
                drop(input.splice(at..end, other[from..to].iter().copied()));
            }
            7 => drop(input.splice(at..end, random.choose(dictionary).bytes())),
            _ => drop(input.splice(at..at, random.choose(dictionary).bytes())),
        }
        input.truncate(INPUT_BYTES_MAX);
    }
}
