use proptest::prelude::*;

use super::*;
use crate::balance::Kind;
use crate::maglev::{Maglev, hash};

/// What a service does by default.
const PLAIN: Rules = Rules { panic_threshold: 50, capacity: None };
const BY_ZONE: Rules = Rules { panic_threshold: 50, capacity: Some(140) };

/// u: usable, x: not, d: drained; U and X: of the next priority; digits: usable, of this priority.
fn candidates(text: &str) -> Vec<Candidate> {
    let of = |letter: char| Candidate {
        weight: u32::from(letter != 'd'),
        full_weight: u32::from(letter != 'd'),
        is_usable: !matches!(letter, 'x' | 'X'),
        priority: letter.to_digit(10).unwrap_or(letter.is_ascii_uppercase().into()) as u8,
        is_local: false,
    };
    text.chars().map(of).collect()
}

/// u and x in the own zone, U and X in another one.
fn zones(text: &str) -> Vec<Candidate> {
    let of = |(one, letter): (Candidate, char)| Candidate { priority: 0, is_local: letter.is_ascii_lowercase(), ..one };
    candidates(text).into_iter().zip(text.chars()).map(of).collect()
}

#[test]
fn the_usable_are_chosen_then_the_next_priority_and_all_in_a_panic() {
    let cases: [(&str, u8, &[usize], bool); 24] = [
        ("", 50, &[], false),
        ("u", 50, &[0], false),
        ("x", 50, &[0], true),
        ("x", 0, &[], false),
        ("uux", 50, &[0, 1], false),
        ("uxx", 50, &[0, 1, 2], true),
        ("uxx", 33, &[0], false),
        ("uxx", 0, &[0], false),
        ("ux", 50, &[0], false),
        ("d", 50, &[], false),
        ("du", 50, &[1], false),
        ("dxu", 100, &[1, 2], true),
        ("uuU", 50, &[0, 1], false),
        ("uxxU", 50, &[0, 3], false),
        ("xxU", 50, &[2], false),
        ("xxX", 50, &[0, 1], true),
        ("X", 50, &[0], true),
        ("dU", 50, &[1], false),
        ("uu23", 50, &[0, 1], false),
        ("xx23", 50, &[2], false),
        ("xxxxxU23", 50, &[5, 6, 7], false),
        ("xxxU234", 50, &[3, 4], false),
        ("xX34", 50, &[2], false),
        ("xX3", 0, &[2], false),
    ];
    for (text, panic_threshold, members, is_panic) in cases {
        let chosen = choose(&candidates(text), Rules { panic_threshold, capacity: None });
        let expected = Chosen { members: members.to_vec(), share: ALL, is_panic, ..Chosen::default() };
        assert_eq!(chosen, expected, "{text} {panic_threshold}");
    }
}

/// Share, members, others, and the part of the own zone.
type Zoned = (&'static str, u32, &'static [usize], &'static [usize], f64);

#[test]
fn what_the_own_zone_cannot_carry_goes_to_others() {
    let cases: [Zoned; 10] = [
        ("uuuuUU", ALL, &[0, 1, 2, 3], &[], 1.0),
        // Three of four, times 1.4, are more than one.
        ("uuuxUU", ALL, &[0, 1, 2], &[], 1.0),
        ("uuxxUU", 700_000, &[0, 1], &[4, 5], 0.7),
        ("uxxxUUUU", 350_000, &[0], &[4, 5, 6, 7], 0.35),
        ("xxxxUUUU", ALL, &[4, 5, 6, 7], &[], 0.0),
        ("UUUU", ALL, &[0, 1, 2, 3], &[], 0.0),
        ("uuxX", ALL, &[0, 1], &[], 1.0),
        ("dduU", ALL, &[2], &[], 1.0),
        // Nobody else is usable, and too few are.
        ("uuxxxXXX", ALL, &[0, 1, 2, 3, 4, 5, 6, 7], &[], 0.625),
        ("dd", ALL, &[], &[], 0.0),
    ];
    for (text, share, members, others, local) in cases {
        let chosen = choose(&zones(text), BY_ZONE);
        assert_eq!(chosen.local_share(&zones(text)), local, "{text}");
        assert_eq!((chosen.share, &*chosen.members, &*chosen.others), (share, members, others), "{text}");
        let plain = choose(&zones(text), PLAIN);
        assert!(plain.others.is_empty() && plain.share == ALL);
    }
}

#[test]
fn weights_count_and_who_recovers_carries_less() {
    let mut all = zones("uuU");
    (all[0].weight, all[0].full_weight) = (300, 300);
    (all[1].weight, all[1].full_weight) = (100, 100);
    all[0].is_usable = false;
    assert_eq!(choose(&all, BY_ZONE).share, 350_000);
    (all[0].is_usable, all[0].weight) = (true, 15);
    assert_eq!(choose(&all, BY_ZONE).share, 402_500);
    all[0].weight = 300;
    assert_eq!(choose(&all, BY_ZONE).share, ALL);
    // A later priority does not count as long as it is not needed.
    all[2] = Candidate { priority: 1, ..all[2] };
    all[0].weight = 15;
    let chosen = choose(&all, BY_ZONE);
    assert_eq!((chosen.share, &*chosen.members), (ALL, &[0, 1][..]));
}

fn members(candidates: &[Candidate], rules: Rules, balance: Option<Kind>) -> Members {
    let weights = |of: &[usize]| of.iter().map(|index| candidates[*index].weight).collect::<Vec<u32>>();
    let names: Vec<String> = (0..candidates.len()).map(|index| format!("10.0.0.{index}:8080")).collect();
    Members::new(choose(candidates, rules), |of| match balance {
        Some(kind) => Balancer::new(kind, &weights(of)),
        None => {
            let named = of.iter().map(|index| names[*index].as_str()).zip(weights(of));
            Balancer::ConsistentHash(Maglev::new(named, candidates.len()))
        }
    })
}

/// Every simulation has its seed.
fn randoms(seed: u64) -> impl Iterator<Item = u64> {
    (1..).map(move |step: u64| mix(seed.wrapping_mul(0xd134_2543_de82_ef95).wrapping_add(step << 32)))
}

const BALANCES: [Option<Kind>; 4] = [Some(Kind::RoundRobin), Some(Kind::LeastLoaded), Some(Kind::Random), None];

/// Shares of zones and of endpoints, weights and all, for every balance.
#[test]
fn shares_are_exact_within_five_percent() {
    for seed in 0..12u64 {
        let mut draw = randoms(seed);
        let mut next = |bound: u64| draw.next().unwrap() % bound;
        let mut all = zones("uuuuuuUUUU");
        for one in &mut all {
            one.weight = next(4) as u32 + 1;
            one.full_weight = one.weight;
        }
        for _ in 0..next(6) {
            all[next(6) as usize].is_usable = false;
        }
        let chosen = choose(&all, BY_ZONE);
        let share_of = |index: usize| {
            let (group, part) = match chosen.members.contains(&index) {
                true => (&chosen.members, chosen.share),
                false => (&chosen.others, ALL - chosen.share),
            };
            let sum: u32 = group.iter().map(|member| all[*member].weight).sum();
            let own = if group.contains(&index) { all[index].weight } else { 0 };
            f64::from(part) / f64::from(ALL) * f64::from(own) / f64::from(sum.max(1))
        };
        for balance in BALANCES {
            let mut members = members(&all, BY_ZONE, balance);
            let (mut counts, requests) = ([0u32; 10], 400_000);
            for random in randoms(seed ^ 0x5eed).take(requests) {
                counts[members.pick(random, |_| 0).unwrap()] += 1;
            }
            let local: u32 = counts[..6].iter().sum();
            let expected: f64 = (0..6).map(share_of).sum::<f64>() * requests as f64;
            // Or what chance does to a small one.
            let near = |count: u32, expected: f64, part: f64| {
                (f64::from(count) - expected).abs() <= (part * expected).max(4.5 * expected.sqrt())
            };
            assert!(near(local, expected, 0.05), "seed {seed}, {balance:?}: {local} of {expected}");
            for (index, count) in counts.into_iter().enumerate() {
                // Of a hash the table adds its own.
                let bound = if balance.is_none() { 0.08 } else { 0.05 };
                let expected = share_of(index) * requests as f64;
                assert!(near(count, expected, bound), "seed {seed}, {balance:?}, {index}: {count} of {expected}");
            }
        }
    }
}

/// Endpoints come and go at random: nobody who is not usable gets a request while a usable one is there, outside a panic.
#[test]
fn nobody_unusable_while_somebody_is_usable() {
    for seed in 0..2_000u64 {
        let mut draw = randoms(seed);
        let mut next = |bound: u64| draw.next().unwrap() % bound;
        let all: Vec<Candidate> = (0..next(9))
            .map(|_| {
                let weight = next(4) as u32 * 100;
                let (is_usable, priority, is_local) = (next(3) > 0, next(3) as u8, next(2) > 0);
                Candidate { weight, full_weight: weight, is_usable, priority, is_local }
            })
            .collect();
        let rules = Rules { panic_threshold: next(101) as u8, capacity: (next(2) > 0).then_some(140) };
        let balance = BALANCES[next(4) as usize];
        let mut members = members(&all, rules, balance);
        let is_anybody = |wanted: &dyn Fn(&Candidate) -> bool| all.iter().any(|one| one.weight > 0 && wanted(one));
        let is_somebody_usable = is_anybody(&|one| one.is_usable);
        let needs_nobody = !is_anybody(&|_| true) || (!is_somebody_usable && rules.panic_threshold == 0);
        for random in randoms(!seed).take(200) {
            let picked = members.pick(random, |index| index as u64);
            assert_eq!(picked.is_none(), needs_nobody, "seed {seed}");
            let Some(picked) = picked else { break };
            assert!(all[picked].weight > 0, "seed {seed}");
            assert!(all[picked].is_usable || members.is_panic, "seed {seed}");
            assert!(!members.is_panic || rules.panic_threshold > 0, "seed {seed}");
        }
        // A retry sees each of them once, the near ones first.
        let mut seen: Vec<usize> = members.around(seed).collect();
        let chosen = choose(&all, rules);
        assert!(seen.iter().take(chosen.members.len()).all(|index| chosen.members.contains(index)), "seed {seed}");
        seen.sort_unstable();
        let mut both = [chosen.members, chosen.others].concat();
        both.sort_unstable();
        assert_eq!(seen, both, "seed {seed}");
    }
}

/// Of the keys, those of an endpoint that goes have to move, and those that the own zone can no longer carry; few others do.
#[test]
fn few_keys_move_when_the_own_zone_fails_in_part() {
    for seed in 0..12u64 {
        let mut all = zones("uuuuuUUUUU");
        let keys: Vec<u64> = (0..20_000u64).map(|key| hash(&(key ^ seed << 32).to_be_bytes()) >> 32 << 32).collect();
        let places = |all: &[Candidate]| {
            let mut members = members(all, BY_ZONE, None);
            keys.iter().map(|key| members.pick(*key, |_| 0).unwrap()).collect::<Vec<usize>>()
        };
        let gone = seed as usize % 5;
        all[(gone + 1) % 5].is_usable = false;
        let before = places(&all);
        all[gone].is_usable = false;
        let after = places(&all);
        assert_eq!((choose(&all, BY_ZONE).share, before.contains(&gone)), (840_000, true));
        let moved = before.iter().zip(&after).filter(|(old, new)| **old != gone && old != new).count();
        let share = moved as f64 / keys.len() as f64;
        assert!(share < 0.16 + 0.06, "seed {seed}: {share}");
        all[gone].is_usable = true;
        assert_eq!(places(&all), before, "seed {seed}: they come back");
    }
}

proptest! {
    #[test]
    fn the_drained_are_never_chosen_and_somebody_is_where_there_is_somebody(text in "[uxUXd]{0,12}", panic_threshold in 0..=100u8) {
        let candidates = candidates(&text);
        let chosen = choose(&candidates, Rules { panic_threshold, capacity: None });
        prop_assert!(chosen.members.iter().all(|index| candidates[*index].weight > 0));
        prop_assert!(chosen.members.windows(2).all(|pair| pair[0] < pair[1]));
        let any = |wanted: &str| text.contains(|letter| wanted.contains(letter));
        prop_assert_eq!(chosen.members.is_empty(), !any(if panic_threshold == 0 { "uU" } else { "uxUX" }));
        let has_unusable = chosen.members.iter().any(|index| !candidates[*index].is_usable);
        prop_assert!(chosen.is_panic || !has_unusable);
        // No backup without need.
        let usable = text.matches('u').count();
        let enough = usable * 100 >= text.matches(['u', 'x']).count() * usize::from(panic_threshold);
        if usable > 0 && enough {
            prop_assert!(chosen.members.iter().all(|index| candidates[*index].priority == 0));
        }
    }

    #[test]
    fn zones_never_change_who_is_usable(text in "[uxUXd]{0,12}", capacity in 100..=1000u32) {
        let candidates = zones(&text);
        let plain = choose(&candidates, PLAIN);
        let chosen = choose(&candidates, Rules { capacity: Some(capacity), ..PLAIN });
        prop_assert!(chosen.members.iter().chain(&chosen.others).all(|index| plain.members.contains(index)));
        prop_assert_eq!((chosen.is_panic, chosen.members.is_empty()), (plain.is_panic, plain.members.is_empty()));
        prop_assert_eq!(chosen.share == ALL, chosen.others.is_empty());
        // Nobody else gets a request while all are well.
        if !text.contains('x') && text.contains('u') && !chosen.is_panic {
            prop_assert!(chosen.members.iter().all(|index| candidates[*index].is_local) && chosen.share == ALL);
        }
    }
}
