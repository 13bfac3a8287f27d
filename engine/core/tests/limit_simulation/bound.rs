//! What is admitted never exceeds the bound, whatever clients do.

use ringway_core::limit::{CALL_GAP_US, HOLD_US, WAIT_US_MAX};

use super::world::World;
use super::{some_policy, with_seeds};

/// What the simulated threads are late by.
const LATE_US: u64 = 100;

/// Clients that know how the limiter works: one that primes an instance and bursts on the others, one that paces itself
/// exactly, one that wants half as much again, one that comes in waves, and mixtures.
pub(super) fn adversary(world: &mut World, duration_us: u64) {
    let end_us = world.now_us + duration_us;
    let token_us = (1.0 / world.rate()).ceil() as u64;
    let burst = world.policy.spec().burst;
    let live = |world: &mut World| loop {
        let index = world.random.below(world.instances.len() as u64) as usize;
        if !world.instances[index].is_dead {
            return index;
        }
    };
    while world.now_us < end_us {
        let target = live(world);
        match world.random.below(6) {
            0 => {
                for _ in 0..world.random.between(1, 20) {
                    world.request(target);
                    let pause_us = world.random.below(2 * token_us);
                    world.run_until(world.now_us + pause_us);
                }
            }
            1 => {
                for _ in 0..world.random.between(1, burst.min(500) + 10) {
                    let (one, other) = (live(world), live(world));
                    world.request(if one == target { other } else { one });
                    if world.random.happens(0.3) {
                        let pause_us = world.random.below(200);
                        world.run_until(world.now_us + pause_us);
                    }
                }
            }
            2 => {
                for _ in 0..50 {
                    let index = live(world);
                    world.request(index);
                    world.run_until(world.now_us + token_us);
                }
            }
            3 => {
                for _ in 0..200 {
                    let index = live(world);
                    world.request(index);
                    world.run_until(world.now_us + token_us * 2 / 3);
                }
            }
            4 => {
                let pause_us = world.random.below(burst * token_us);
                world.run_until((world.now_us + pause_us).min(end_us));
            }
            _ => {
                for _ in 0..burst * 9 / 10 {
                    let index = live(world);
                    world.request(index);
                }
            }
        }
        let pause_us = world.random.below(CALL_GAP_US);
        world.run_until(world.now_us + pause_us);
        if world.instances.iter().all(|instance| !instance.is_cut) {
            world.check_holdings();
        }
    }
    world.run_until(end_us.max(world.now_us) + 1_000_000);
}

pub(super) fn assert_bound(world: &World) {
    let instances = world.instances.len() as u32;
    let (debt, bound) = (world.deepest_debt(), world.policy.bound(instances));
    assert!(debt <= bound as f64, "{debt} over {:?} by {instances} instances; allowed: {bound}", world.policy.spec());
    let longest_us = world.waited_us.iter().max().copied().unwrap_or(0);
    assert!(longest_us <= HOLD_US + WAIT_US_MAX + LATE_US, "held for {longest_us} us");
}

fn duration_us(world: &World) -> u64 {
    let token_us = 1.0 / world.rate();
    ((token_us * 2_000.0) as u64).clamp(1_000_000, 60_000_000)
}

/// Assertions 1, 5, 9 and 10.
#[test]
fn no_client_gets_more_than_the_bound() {
    with_seeds(150, |seed| {
        let mut random = super::Random(seed ^ 0xb0);
        let policy = some_policy(&mut random);
        let instances = random.choose(&[1, 2, 4, 4, 16]);
        let mut world = World::new(seed, &policy, instances);
        let started_us = world.now_us;
        let duration_us = duration_us(&world);
        adversary(&mut world, duration_us);
        assert_bound(&world);
        let seconds = (world.now_us - started_us) as f64 / 1e6;
        let deny_floor_s = (policy.burst as f64 / world.rate() / 50e6).min(0.01);
        let n = f64::from(instances);
        let allowed = world.admitted_us.len() as f64 + seconds * (n / deny_floor_s + 10.0 * n);
        assert!(
            world.calls as f64 <= allowed,
            "{} calls, allowed: {allowed}; {} held, {policy:?} by {instances}",
            world.calls,
            world.waited_us.len()
        );
    });
}

/// The same with every request held for Redis' word.
#[test]
fn strict_policies_admit_what_redis_says() {
    with_seeds(30, |seed| {
        let mut random = super::Random(seed ^ 0x57);
        let policy = ringway_core::limit::Spec { strict: true, ..some_policy(&mut random) };
        let mut world = World::new(seed, &policy, random.choose(&[1, 4]));
        let duration_us = duration_us(&world);
        adversary(&mut world, duration_us);
        assert_bound(&world);
        assert_eq!(world.waited_us.len() as u64, world.instances.iter().map(|i| i.limiter.held_total()).sum::<u64>());
    });
}
