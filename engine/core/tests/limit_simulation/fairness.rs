//! Clients get what they are entitled to.

use std::time::Duration;

use super::world::{World, spec};
use super::{some_policy, with_seeds};

/// Assertion 2.
#[test]
fn half_as_much_demand_again_uses_the_whole_limit() {
    with_seeds(30, |seed| {
        let mut random = super::Random(seed ^ 0xfa);
        let policy = some_policy(&mut random);
        let mut world = World::new(seed, &policy, random.choose(&[1, 2, 4, 16]));
        let gap_us = 1.0 / world.rate() / 1.5;
        let requests = if world.rate() > 0.001 { 20_000 } else { 2_000 };
        let started_us = world.now_us;
        let at_us = |number| started_us + (f64::from(number) * gap_us) as u64;
        for number in 0..requests {
            world.run_until(at_us(number));
            let index = world.random.below(world.instances.len() as u64) as usize;
            world.request(index);
        }
        let passed_us = world.now_us - started_us;
        world.run_until(world.now_us + 100_000);
        let (admitted, rate) = (world.admitted_us.len() as f64, world.rate() * passed_us as f64);
        let bound = world.policy.bound(world.instances.len() as u32) as f64;
        // Where the burst is one request even a single bucket cannot use the whole limit: what comes while it fills is
        // refused, not kept.
        let possible = rate.min(world.ideal((0..requests).map(at_us)) as f64);
        assert!(
            admitted >= 0.99 * possible,
            "{admitted} of {possible} by {} instances, {policy:?}",
            world.instances.len()
        );
        assert!(admitted <= policy.burst as f64 + rate + bound);
    });
}

/// Assertion 3, first part.
#[test]
fn a_burst_within_the_limit_is_admitted_whole() {
    with_seeds(100, |seed| {
        let mut random = super::Random(seed ^ 0xb5);
        let policy = some_policy(&mut random);
        let mut world = World::new(seed, &policy, random.choose(&[1, 2, 4, 16]));
        let spread_us = random.choose(&[0, 1_000, 20_000, 300_000]);
        let burst = policy.burst * 9 / 10;
        for round in 0..3 {
            for _ in 0..burst {
                let index = world.random.below(world.instances.len() as u64) as usize;
                world.request(index);
                let pause_us = if spread_us == 0 { 0 } else { world.random.below(2 * spread_us / burst.max(1) + 1) };
                world.run_until(world.now_us + pause_us);
            }
            world.run_until(world.now_us + 50_000);
            let refused = world.refused_us.len();
            assert_eq!(
                refused,
                0,
                "round {round}, {} instances, over {spread_us} us, {policy:?}",
                world.instances.len()
            );
            let full_us = (policy.burst as f64 / world.rate()) as u64;
            world.run_until(world.now_us + full_us + 1_000_000);
        }
    });
}

/// Assertion 3, second part.
#[test]
fn a_client_paced_exactly_at_the_limit_is_hardly_ever_refused() {
    with_seeds(20, |seed| {
        let mut random = super::Random(seed ^ 0xac);
        let limit = random.choose(&[10, 50, 200]);
        let mut world = World::new(seed, &spec(limit, Duration::from_secs(1), 1), random.choose(&[1, 2, 4]));
        for _ in 0..2_000 {
            let index = world.random.below(world.instances.len() as u64) as usize;
            world.request(index);
            world.run_until(world.now_us + 1_000_000 / limit);
        }
        world.run_until(world.now_us + 100_000);
        let refused = world.refused_us.len();
        assert!(refused <= 40, "{refused} of 2000 at {limit}/s by {} instances", world.instances.len());
    });
}

/// Nine tenths of the limit, evenly: nobody is refused, and hardly anybody held.
#[test]
fn a_client_under_its_limit_is_not_refused() {
    with_seeds(20, |seed| {
        let mut random = super::Random(seed ^ 0x90);
        let (limit, burst) = random.choose(&[(50, 50), (5_000, 5_000), (1_000, 100)]);
        let mut world = World::new(seed, &spec(limit, Duration::from_secs(1), burst), random.choose(&[1, 2, 4]));
        let gap_us = 1e7 / 9.0 / limit as f64;
        let started_us = world.now_us;
        for number in 0..10_000 {
            world.run_until(started_us + (f64::from(number) * gap_us) as u64);
            let index = world.random.below(world.instances.len() as u64) as usize;
            world.request(index);
        }
        world.run_until(world.now_us + 100_000);
        assert_eq!(world.refused_us.len(), 0, "{limit}/s, burst {burst}, {} instances", world.instances.len());
        let held = world.waited_us.len();
        assert!(held <= 100, "{held} of 10000 held, {limit}/s, burst {burst}, {} instances", world.instances.len());
    });
}
