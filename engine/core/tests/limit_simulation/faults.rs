//! What goes wrong on the way to Redis, and in it.

use ringway_core::limit::{HOLD_US, LEASE_SHARE};

use super::bound::{adversary, assert_bound};
use super::world::{Network, Outcome, World};
use super::{some_policy, with_seeds};

const SECOND_US: u64 = 1_000_000;

/// Asks `times` the limit, for so long.
fn demand(world: &mut World, times: f64, duration_us: u64) {
    let started_us = world.now_us;
    let gap_us = 1.0 / world.rate() / times;
    let mut number = 0.0;
    while number * gap_us < duration_us as f64 {
        world.run_until(started_us + (number * gap_us) as u64);
        let index = world.random.below(world.instances.len() as u64) as usize;
        if !world.instances[index].is_dead {
            world.request(index);
        }
        number += 1.0;
    }
    world.run_until(started_us + duration_us);
}

/// Assertion 6.
#[test]
fn messages_that_are_lost_late_or_repeated_admit_no_more() {
    with_seeds(100, |seed| {
        let mut random = super::Random(seed ^ 0x1f);
        let policy = some_policy(&mut random);
        let mut world = World::new(seed, &policy, random.choose(&[1, 2, 4]));
        world.network = Network {
            delay_us: (50, random.choose(&[300, 3_000, 8_000])),
            slow: random.choose(&[0.0, 0.1, 0.5]),
            slow_us: 120_000,
            loss: random.choose(&[0.0, 0.05, 0.3]),
            repeat: random.choose(&[0.0, 0.1, 0.5]),
        };
        adversary(&mut world, 5 * SECOND_US);
        assert_bound(&world);
    });
}

/// Assertion 7: Redis restarts empty.
#[test]
fn an_emptied_redis_gives_little_away() {
    with_seeds(40, |seed| {
        let mut random = super::Random(seed ^ 0xe7);
        let policy = some_policy(&mut random);
        let mut world = World::new(seed, &policy, random.choose(&[1, 2, 4]));
        let full_us = (policy.burst as f64 / world.rate()) as u64;
        demand(&mut world, 1.5, (3 * full_us).min(90 * SECOND_US));
        world.redis.flush();
        demand(&mut world, 1.5, full_us.min(60 * SECOND_US));
        assert_forgotten(&world);
    });
}

/// H + B/K + rate * age of the freshest view, beyond the bound that always holds.
fn assert_forgotten(world: &World) {
    let bound = world.policy.bound(world.instances.len() as u32) as f64;
    let policy = world.policy.spec();
    // While the key is asked for, the freshest view is as old as the period of the sync, or as the time between two
    // tokens if that is more.
    let age_us = (1.0 / world.rate()).max(100_000.0) + 60_000.0;
    let allowed = bound + policy.burst as f64 / 12.0 + world.rate() * age_us;
    let debt = world.deepest_debt();
    assert!(debt <= allowed, "{debt} over {policy:?} by {} instances; allowed: {allowed}", world.instances.len());
}

/// Assertion 8: Redis' clock jumps.
#[test]
fn a_leap_of_the_clock_shuts_nobody_out_and_gives_little_away() {
    with_seeds(40, |seed| {
        let mut random = super::Random(seed ^ 0xc1);
        let policy = some_policy(&mut random);
        let mut world = World::new(seed, &policy, random.choose(&[1, 2, 4]));
        let full_us = (policy.burst as f64 / world.rate()) as u64;
        demand(&mut world, 1.5, (3 * full_us).min(90 * SECOND_US));
        let is_back = random.happens(0.5);
        world.redis.clock_us += if is_back { -10_000_000 } else { 10_000_000 };
        let leapt_us = world.now_us;
        demand(&mut world, 1.5, (2 * full_us + SECOND_US).min(180 * SECOND_US));
        assert_forgotten(&world);
        let first = world.admitted_us.iter().filter(|us| **us > leapt_us).min();
        let shut_out_us = first.map_or(u64::MAX, |us| us - leapt_us);
        let allowed_us = full_us + (1.0 / world.rate()) as u64 + 100_000;
        assert!(shut_out_us <= allowed_us, "back: {is_back}, {shut_out_us} us, allowed: {allowed_us}, {policy:?}");
    });
}

/// Assertion 11: every instance by itself.
#[test]
fn without_redis_each_instance_keeps_its_share() {
    with_seeds(60, |seed| {
        let mut random = super::Random(seed ^ 0xde);
        let policy = some_policy(&mut random);
        let instances = random.choose(&[1, 2, 4, 16]);
        let mut world = World::new(seed, &policy, instances);
        demand(&mut world, random.choose(&[0.0, 0.5, 1.5]), 2 * SECOND_US);
        world.redis.is_down = true;
        // Nothing is heard of Redis for a while before that counts.
        world.run_until(world.now_us + 300_000);
        (0..world.instances.len()).for_each(|index| world.set_degraded(index, true));
        world.run_until(world.now_us + 1_000);
        let (before, from_us) = (world.admitted_us.len(), world.now_us);
        demand(&mut world, random.choose(&[0.5, 1.5, 20.0]), 5 * SECOND_US);
        let admitted = (world.admitted_us.len() - before) as f64;
        let n = f64::from(instances);
        let share = (policy.burst / u64::from(instances)).max(1) as f64;
        let allowed = n * share + world.rate() * (world.now_us - from_us) as f64;
        assert!(admitted <= allowed, "{admitted} by {instances} instances; allowed: {allowed}, {policy:?}");

        // Redis is back: what was admitted is reported, and the bound holds from then on.
        world.redis.is_down = false;
        (0..world.instances.len()).for_each(|index| world.set_degraded(index, false));
        world.run_until(world.now_us + 200_000);
        world.admitted_us.clear();
        adversary(&mut world, SECOND_US);
        assert_bound(&world);
    });
}

/// Half the instances lose Redis for a while: the others go on, and nobody waits.
#[test]
fn instances_that_are_cut_off_come_back() {
    with_seeds(40, |seed| {
        let mut random = super::Random(seed ^ 0x2c);
        let policy = some_policy(&mut random);
        let mut world = World::new(seed, &policy, 4);
        demand(&mut world, 1.5, 2 * SECOND_US);
        for index in 0..2 {
            world.instances[index].is_cut = true;
        }
        world.run_until(world.now_us + 300_000);
        (0..2).for_each(|index| world.set_degraded(index, true));
        let before = world.admitted_us.len();
        let cut_us = 3 * SECOND_US;
        demand(&mut world, 1.5, cut_us);
        let during = (world.admitted_us.len() - before) as f64;
        let bound = world.policy.bound(4) as f64;
        let share = (policy.burst / 4).max(1) as f64;
        let allowed = policy.burst as f64 + bound + 2.0 * share + 1.5 * world.rate() * cut_us as f64;
        assert!(during <= allowed, "{during} during the cut; allowed: {allowed}, {policy:?}");
        for index in 0..2 {
            world.instances[index].is_cut = false;
            world.set_degraded(index, false);
        }
        world.run_until(world.now_us + 200_000);
        world.admitted_us.clear();
        adversary(&mut world, 2 * SECOND_US);
        assert_bound(&world);
    });
}

/// Instances join and die. One that others have not heard of adds its share; one that died takes its lease with it.
#[test]
fn instances_that_join_and_die_add_no_more_than_their_share() {
    with_seeds(60, |seed| {
        let mut random = super::Random(seed ^ 0x10);
        let policy = some_policy(&mut random);
        let mut world = World::new(seed, &policy, random.choose(&[1, 2, 4]));
        let mut fewest = world.instances.len();
        for _ in 0..6 {
            let live: Vec<usize> = (0..world.instances.len()).filter(|i| !world.instances[*i].is_dead).collect();
            fewest = fewest.min(live.len());
            if live.len() > 1 && random.happens(0.4) {
                world.instances[random.choose(&live)].is_dead = true;
            } else {
                world.join();
            }
            if random.happens(0.5) {
                demand(&mut world, 2.0, 200_000);
            }
            world.count();
            demand(&mut world, random.choose(&[0.5, 1.5, 5.0]), SECOND_US / 2);
        }
        // While an instance is not counted, the others' shares are those of fewer; what the dead had not reported is lost.
        let shares = world.policy.shares(fewest as u32);
        let leases = if shares.leases { 2 * policy.burst / LEASE_SHARE } else { 0 };
        let instances = world.instances.len() as u64;
        let allowed = (instances * shares.debt_max + leases) as f64 + (world.rate() * HOLD_US as f64).ceil();
        let debt = world.deepest_debt();
        assert!(debt <= allowed, "{debt} over {policy:?} by {instances}; allowed: {allowed}");
    });
}

/// A policy may also do without Redis in simpler ways.
#[test]
fn open_and_closed_policies_do_as_they_say() {
    use ringway_core::limit::{Fallback, Spec};
    for (fallback, outcome) in [(Fallback::Open, Outcome::Admitted), (Fallback::Closed, Outcome::Unavailable)] {
        let policy = Spec { without_redis: fallback, ..some_policy(&mut super::Random(1)) };
        let mut world = World::new(1, &policy, 2);
        world.set_degraded(0, true);
        for _ in 0..10_000 {
            assert_eq!(world.request(0), outcome);
        }
    }
}
