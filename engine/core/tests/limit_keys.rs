//! A million keys at a limit that has room for fewer: what it costs, and that nobody gets anything out of it.

use std::ops::Range;
use std::time::{Duration, Instant};

use ringway_core::limit::{Decision, Fallback, Limiter, Policy, Spec};

const KEYS: u32 = 1_000_000;
const ROOM: usize = 200_000;
const LIMIT: u64 = 100;
const NOW_US: u64 = 1_000_000;
/// Of a key in a full table: its place, its cell and its text, as an allocator rounds them.
const KEY_BYTES: usize = 21 + 128 + 32;

fn policy(name: &str, keys_max: usize) -> Policy {
    let spec = Spec {
        name: name.into(),
        limit: LIMIT,
        period: Duration::from_secs(60),
        burst: LIMIT,
        strict: false,
        without_redis: Fallback::FairShare,
        keys_max,
    };
    Policy::new(&spec).unwrap()
}

fn key(number: u32) -> String {
    format!("2001:db8:{:x}:{:x}::", number >> 16, number & 0xffff)
}

fn passes(limiter: &Limiter, number: u32) -> bool {
    matches!(limiter.check(key(number).as_bytes(), 1, NOW_US), Decision::Admitted(_))
}

fn resident_bytes() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.split_whitespace().next().unwrap().parse::<usize>().unwrap() * 1024
}

/// One test, since it looks at the memory of the process.
#[test]
fn a_million_keys_stay_within_the_cap_and_gain_nothing() {
    let neighbour = Limiter::new(policy("neighbour", 1_000));
    for number in 0..1_000 {
        assert_eq!((0..LIMIT + 1).filter(|_| passes(&neighbour, number)).count() as u64, LIMIT);
    }
    let limits = [("alone", Limiter::new as fn(Policy) -> Limiter, LIMIT), ("shared", Limiter::shared, LIMIT / 10)];
    for (name, make, at_once) in limits {
        let before = resident_bytes();
        let limiter = make(policy(name, ROOM));
        let timed = |keys: Range<u32>| {
            let (count, start) = (keys.len() as u32, Instant::now());
            (keys.filter(|number| passes(&limiter, *number)).count(), start.elapsed() / count)
        };
        let ((with_room, time_with_room), (without, time_without)) = (timed(0..ROOM as u32), timed(ROOM as u32..KEYS));
        let (admitted, bytes) = (with_room + without, resident_bytes().saturating_sub(before));
        println!("{name}: {admitted} of {KEYS} admitted, {bytes} bytes, {} a key", bytes / ROOM);
        // Those with a bucket of their own took a token each; those beyond share one.
        assert_eq!(admitted, ROOM + at_once as usize);
        assert_eq!(limiter.keys(), ROOM);
        assert!(bytes <= ROOM * KEY_BYTES + (8 << 20), "{name}: {bytes} bytes");
        // The table is not searched for each key that it has no room for.
        assert!(time_without < 20 * time_with_room, "{name}: {time_without:?} after {time_with_room:?} a key");
        for number in (0..ROOM as u32).step_by(97) {
            let left = (0..LIMIT).filter(|_| passes(&limiter, number)).count() as u64;
            assert_eq!(left, at_once - 1, "{name}: key {number} has its own bucket still");
        }
    }
    assert!((0..1_000).all(|number| !passes(&neighbour, number)), "the buckets of another limit are as they were");
    assert_eq!(neighbour.keys(), 1_000);
}
