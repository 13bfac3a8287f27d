//! The promises of the rate limiter, asserted in a simulated world: thousands of seeds of the real code.
//!
//! A failure prints its seed; `RINGWAY_SEED=N` replays it alone, `RINGWAY_SEEDS=N` runs more than the usual number.

mod bound;
mod fairness;
mod faults;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::time::Duration;

use ringway_core::limit::Spec;
use ringway_core::random::Random;
use world::spec;

/// Runs `scenario` with `count` seeds, or as many as asked for.
fn with_seeds(count: u64, scenario: impl Fn(u64)) {
    let number = |name| std::env::var(name).ok().map(|value: String| value.parse::<u64>().expect("a number"));
    let seeds = match (number("RINGWAY_SEED"), number("RINGWAY_SEEDS")) {
        (Some(seed), _) => seed..seed + 1,
        (None, count_asked) => 0..count_asked.unwrap_or(count),
    };
    for seed in seeds {
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| scenario(seed))) {
            eprintln!("failed with RINGWAY_SEED={seed}");
            resume_unwind(panic);
        }
    }
}

/// 100 per minute, 50 and 5,000 per second, and others.
fn some_policy(random: &mut Random) -> Spec {
    let second = Duration::from_secs(1);
    let (limit, period, burst) = random.choose(&[
        (100, Duration::from_secs(60), 100),
        (50, second, 50),
        (5_000, second, 5_000),
        (10, second, 3),
        (1_000, Duration::from_secs(60), 200),
        (333, second, 100),
        (2_000, second, 200),
        (1, second, 1),
    ]);
    spec(limit, period, burst)
}

#[test]
fn a_seed_tells_everything() {
    let run = |seed| {
        let mut world = world::World::new(seed, &some_policy(&mut Random(seed)), 4);
        bound::adversary(&mut world, 500_000);
        (world.admitted_us, world.refused_us, world.waited_us, world.calls)
    };
    for seed in 0..10 {
        assert_eq!(run(seed), run(seed), "seed {seed}");
    }
}
