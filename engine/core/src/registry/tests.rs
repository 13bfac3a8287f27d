use std::collections::BTreeMap;

use super::*;
use crate::random::Random;

const MS: u64 = 1_000;
const SECOND: u64 = 1_000 * MS;

fn listed(names: &[&str]) -> Vec<Listed<u32>> {
    names.iter().map(|name| Listed { name: (*name).into(), ttl_us: 10 * SECOND, instance: Some(1) }).collect()
}

fn names<T: PartialEq>(roll: &Roll<T>) -> Vec<&str> {
    roll.members.keys().map(AsRef::as_ref).collect()
}

#[test]
fn the_list_is_believed_while_the_store_is_there() {
    let mut roll = Roll::default();
    assert!(roll.learn("s", listed(&["a", "b"]), 0));
    assert!(!roll.learn("s", listed(&["a", "b"]), SECOND));
    assert!(roll.learn("s", listed(&["b"]), 2 * SECOND));
    assert_eq!(names(&roll), ["b"]);
    let other = vec![Listed { name: "b".into(), ttl_us: SECOND, instance: Some(2) }];
    assert!(roll.learn("s", other, 3 * SECOND));
    assert!(roll.learn("s", vec![], 4 * SECOND));
    assert!(roll.is_empty());
}

#[test]
fn who_is_missing_after_an_outage_has_its_time_to_come_back() {
    let mut roll = Roll::default();
    roll.learn("s", listed(&["a", "b", "c"]), 0);
    roll.lost();
    assert!(!roll.learn("s", listed(&["a"]), 100 * SECOND));
    assert_eq!(names(&roll), ["a", "b", "c"]);
    // One is heard of again, one takes its leave.
    let gone = Listed { name: "c".into(), ttl_us: SECOND, instance: None };
    assert!(roll.learn("s", [listed(&["a"]), vec![gone]].concat(), 105 * SECOND));
    assert_eq!(names(&roll), ["a", "b"]);
    assert!(!roll.unchanged(109 * SECOND));
    assert!(roll.unchanged(110 * SECOND));
    assert_eq!(names(&roll), ["a"]);
}

#[test]
fn a_store_that_has_lost_its_data_is_one_that_was_away() {
    let mut roll = Roll::default();
    roll.learn("s", listed(&["a", "b"]), 0);
    assert!(!roll.learn("t", listed(&["b"]), SECOND));
    // And once more, before the time is over.
    roll.lost();
    assert!(!roll.unchanged(11 * SECOND));
    assert!(!roll.unchanged(20 * SECOND));
    assert!(roll.unchanged(21 * SECOND));
    assert_eq!(names(&roll), ["b"]);
}

const TTL: u64 = 3 * SECOND;
const BEAT: u64 = SECOND;
const POLL: u64 = 250 * MS;

/// A store as Redis is one: times end by its clock, whether or not anybody can reach it.
#[derive(Default)]
struct Store {
    generation: u64,
    is_away: bool,
    until: BTreeMap<usize, u64>,
}

struct Instance {
    is_alive: bool,
    since: u64,
    next_beat: u64,
}

/// Instances that beat every second and live three, a gateway that polls, a store that goes away now and then, sometimes
/// with all it knows. How often the store came back without somebody who was alive, so that the roll had to remember.
fn simulate(seed: u64) -> u64 {
    let mut random = Random(seed);
    let mut store = Store::default();
    let mut roll = Roll::default();
    let mut instances: Vec<Instance> =
        (0..6).map(|_| Instance { is_alive: random.below(2) == 0, since: 0, next_beat: random.below(BEAT) }).collect();
    let (mut remembered, mut back_at) = (0, 0);
    for now in (0..120 * SECOND).step_by(50 * MS as usize) {
        let at = || format!("seed {seed}, at {} ms", now / MS);
        match random.below(if store.is_away { 100 } else { 400 }) {
            0 if store.is_away => (store.is_away, back_at) = (false, now),
            0 => store.is_away = true,
            1 => {
                store.until.clear();
                store.generation += 1;
                back_at = now;
            }
            _ => {}
        }
        for (index, instance) in instances.iter_mut().enumerate() {
            if random.below(600) == 0 {
                (instance.is_alive, instance.since, instance.next_beat) = (!instance.is_alive, now, now);
            }
            if instance.is_alive && instance.next_beat <= now && !store.is_away {
                store.until.insert(index, now + TTL);
                instance.next_beat = now + BEAT;
            }
        }
        store.until.retain(|_, until| *until > now);
        if now % POLL != 0 {
            continue;
        }
        if store.is_away {
            let before = roll.members.len();
            roll.lost();
            assert_eq!(roll.members.len(), before, "{}: nobody goes while the store is away", at());
            continue;
        }
        let listed = store.until.keys().map(|index| Listed {
            name: index.to_string().into(),
            ttl_us: TTL,
            instance: Some(*index),
        });
        roll.learn(&store.generation.to_string(), listed.collect(), now);
        for (index, instance) in instances.iter().enumerate() {
            let is_known = roll.instances().any(|known| *known == index);
            let is_listed = store.until.contains_key(&index);
            assert!(is_known || !is_listed, "{}: {index} is listed", at());
            // Known before the outage, alive throughout: never gone.
            if instance.is_alive && instance.since + BEAT + POLL < back_at {
                remembered += u64::from(is_known && !is_listed);
            }
            if instance.is_alive && now > instance.since.max(back_at) + BEAT {
                assert!(is_known, "{}: {index} lives and is not known", at());
            }
            if !instance.is_alive && now > instance.since.max(back_at) + TTL + POLL {
                assert!(!is_known, "{}: {index} is dead and still known", at());
            }
        }
    }
    remembered
}

#[test]
fn nobody_who_lives_is_forgotten_and_nobody_dead_is_remembered_for_long() {
    let remembered: u64 = (0..500).map(simulate).sum();
    assert!(remembered > 500, "the store came back without somebody {remembered} times");
}

/// What was known before the store went away is known when it comes back, whatever has become of it meanwhile.
#[test]
fn an_outage_takes_nobody_away() {
    for seed in 0..2_000 {
        let mut random = Random(seed);
        let mut roll = Roll::default();
        let before: Vec<Listed<u64>> = (0..random.below(9))
            .map(|index| Listed {
                name: index.to_string().into(),
                ttl_us: SECOND + random.below(SECOND),
                instance: Some(index),
            })
            .collect();
        roll.learn("s", before.clone(), 0);
        let is_empty_again = random.below(2) == 0;
        if !is_empty_again {
            roll.lost();
        }
        let after = before.iter().filter(|_| random.below(2) == 0).cloned().collect();
        let back = random.below(100 * SECOND);
        roll.learn(if is_empty_again { "t" } else { "s" }, after, back);
        assert_eq!(roll.instances().count(), before.len(), "seed {seed}");
        // A second look does not shorten their time.
        roll.unchanged(back + SECOND - 1);
        assert_eq!(roll.instances().count(), before.len(), "seed {seed}");
    }
}
