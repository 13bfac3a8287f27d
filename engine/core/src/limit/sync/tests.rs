use std::time::Duration;

use super::super::script::{self, Stored};
use super::super::{Decision, Fallback, Held, PERIOD_US, Policy, Spec};
use super::*;

const NOW_US: u64 = 1_000_000_000;

fn limiter(limit: u64, burst: u64, instances: u32) -> Limiter {
    limiter_of_keys(limit, burst, instances, 10)
}

fn limiter_of_keys(limit: u64, burst: u64, instances: u32, keys_max: usize) -> Limiter {
    let spec = Spec {
        name: "test".into(),
        limit,
        period: Duration::from_secs(1),
        burst,
        strict: false,
        without_redis: Fallback::FairShare,
        keys_max,
    };
    let limiter = Limiter::shared(Policy::new(&spec).unwrap());
    limiter.set_instances(instances);
    limiter
}

fn poll(limiter: &Limiter, now_us: u64) -> Vec<Call> {
    let mut out = Exchange::default();
    limiter.poll(now_us, &mut out);
    out.calls
}

fn reply(limiter: &Limiter, call: &Call, reply: &Reply, now_us: u64) -> Exchange {
    let mut out = Exchange::default();
    limiter.reply(call.token, reply, now_us, &mut out);
    out
}

fn hold(limiter: &Limiter, now_us: u64) -> Held {
    match limiter.check(b"a", 1, now_us) {
        Decision::Hold(held) => held,
        other => panic!("{other:?}"),
    }
}

fn admit(limiter: &Limiter, count: usize, now_us: u64) {
    for _ in 0..count {
        assert!(matches!(limiter.check(b"a", 1, now_us), Decision::Admitted(_)));
    }
}

#[test]
fn a_slow_policy_admits_first_and_reports_at_once() {
    // q = 100 / 40 = 2.
    let limiter = limiter(100, 100, 4);
    admit(&limiter, 2, NOW_US);
    assert!(limiter.take_bell());
    assert!(!limiter.take_bell());
    let held = hold(&limiter, NOW_US);
    let calls = poll(&limiter, NOW_US);
    let call = &calls[0];
    assert_eq!((call.key(), call.request.debt, call.request.must, call.request.divisor), (&b"a"[..], 2, 1, 0));
    // What is on the way is owed still.
    assert_eq!(limiter.holding(b"a"), Some(Holding { leased: 0, owed: 2 }));
    let (answer, _) = script::run(None, &call.request, 5_000_000);
    reply(&limiter, call, &answer, NOW_US + 400);
    assert!(matches!(limiter.outcome(&held, NOW_US + 400), Some(Decision::Admitted(state)) if state.remaining == 97));
    assert_eq!(limiter.holding(b"a"), Some(Holding { leased: 0, owed: 0 }));
    // The same reply again is nobody's.
    reply(&limiter, call, &Reply { granted: 9, leased: 9, ..answer }, NOW_US + 500);
    assert_eq!(limiter.holding(b"a"), Some(Holding { leased: 0, owed: 0 }));
    // The next call keeps its distance.
    admit(&limiter, 1, NOW_US + 600);
    assert!(poll(&limiter, NOW_US + 700).is_empty());
    assert_eq!(poll(&limiter, NOW_US + CALL_GAP_US).len(), 1);
}

#[test]
fn a_fast_policy_leases_by_demand_and_returns_what_it_does_not_use() {
    let limiter = limiter(5_000, 5_000, 1);
    let (mut stored, mut now_us, mut leased) = (None, NOW_US, 0);
    for _ in 0..100 {
        admit(&limiter, 5, now_us);
        for call in poll(&limiter, now_us) {
            let (answer, after) = script::run(stored, &call.request, now_us);
            (stored, leased) = (after, leased + answer.leased);
            reply(&limiter, &call, &answer, now_us + 300);
        }
        now_us += 1_000;
    }
    let holding = limiter.holding(b"a").unwrap();
    assert!((100..=416).contains(&holding.leased), "{holding:?}");
    let back: u64 = (0..200).flat_map(|step| poll(&limiter, now_us + step * 1_000)).map(|call| call.request.back).sum();
    assert_eq!(back, holding.leased);
    assert_eq!(limiter.holding(b"a").unwrap().leased, 0);
    assert!(leased >= 500);
}

#[test]
fn a_call_without_a_reply_leaves_its_debt_owed() {
    let limiter = limiter(100, 100, 4);
    admit(&limiter, 2, NOW_US);
    let first = poll(&limiter, NOW_US);
    assert_eq!(first.len(), 1);
    assert!(poll(&limiter, NOW_US + LOST_US - 1).is_empty());
    let second = poll(&limiter, NOW_US + LOST_US);
    assert_eq!(second[0].request.debt, 2);
    // The reply to the first comes after all.
    reply(&limiter, &first[0], &Reply { level: 90, leased: 5, ..Reply::default() }, NOW_US + LOST_US + 1);
    assert_eq!(limiter.holding(b"a"), Some(Holding { leased: 0, owed: 2 }));
    let mut out = Exchange::default();
    limiter.lost(second[0].token, NOW_US + LOST_US + CALL_GAP_US, &mut out);
    assert_eq!(out.calls[0].request.debt, 2);
}

#[test]
fn a_late_reply_grants_nothing() {
    let limiter = limiter(10, 10, 4);
    let held = hold(&limiter, NOW_US);
    let calls = poll(&limiter, NOW_US);
    let newer = hold(&limiter, NOW_US + HOLD_US);
    let answer = Reply { granted: 1, level: 9, ..Reply::default() };
    reply(&limiter, &calls[0], &answer, NOW_US + HOLD_US + 1);
    assert!(limiter.outcome(&newer, NOW_US + HOLD_US + 1).is_none());
    assert!(matches!(limiter.outcome(&held, NOW_US + HOLD_US + 1), Some(Decision::Refused(_))));
}

#[test]
fn a_request_is_held_no_longer_than_the_hold_and_whoever_waits_is_woken() {
    let limiter = limiter(10, 10, 4);
    let held = hold(&limiter, NOW_US);
    held.wake(Wake { worker: 3, ticket: 7 });
    poll(&limiter, NOW_US);
    assert!(limiter.outcome(&held, NOW_US + HOLD_US - 1).is_none());
    let mut out = Exchange::default();
    limiter.poll(NOW_US + HOLD_US, &mut out);
    assert_eq!(out.wakes, [Wake { worker: 3, ticket: 7 }]);
    assert!(matches!(limiter.outcome(&held, NOW_US + HOLD_US), Some(Decision::Refused(_))));
}

#[test]
fn a_key_at_its_limit_is_refused_without_a_call_until_its_time() {
    let limiter = limiter(10, 10, 4);
    let held = hold(&limiter, NOW_US);
    let calls = poll(&limiter, NOW_US);
    let answer = Reply { retry_us: 90_000, full_after_us: 1_000_000, ..Reply::default() };
    reply(&limiter, &calls[0], &answer, NOW_US + 300);
    assert!(matches!(limiter.outcome(&held, NOW_US + 300), Some(Decision::Refused(_))));
    for us in (300..88_000).step_by(100) {
        let Decision::Refused(state) = limiter.check(b"a", 1, NOW_US + us) else { panic!("at {us}") };
        assert_eq!((state.remaining, state.limit), (0, 10));
        assert!(state.retry_after_us > 0);
        assert!(!limiter.take_bell() || us == 300);
        assert!(poll(&limiter, NOW_US + us).is_empty());
    }
    hold(&limiter, NOW_US + 88_000);
}

#[test]
fn a_held_request_that_has_gone_asks_for_nothing_and_leaves_nothing() {
    let limiter = limiter(10, 10, 4);
    let held = hold(&limiter, NOW_US);
    let (first, second) = (hold(&limiter, NOW_US), hold(&limiter, NOW_US));
    drop(first);
    let calls = poll(&limiter, NOW_US);
    assert_eq!(calls[0].request.must, 2);
    drop(second);
    let out = reply(&limiter, &calls[0], &Reply { granted: 2, level: 8, ..Reply::default() }, NOW_US + 300);
    assert!(matches!(limiter.outcome(&held, NOW_US + 300), Some(Decision::Admitted(_))));
    assert!(out.calls.is_empty());
    // The token that nobody took goes back.
    assert_eq!(poll(&limiter, NOW_US + CALL_GAP_US)[0].request.back, 1);
}

#[test]
fn a_token_that_comes_in_a_moment_is_waited_for() {
    let limiter = limiter(1_000, 1, 1);
    let held = hold(&limiter, NOW_US);
    held.wake(Wake { worker: 0, ticket: 1 });
    let calls = poll(&limiter, NOW_US);
    let answer = Reply { late: 1, late_after_us: 800, level: -1, ..Reply::default() };
    let out = reply(&limiter, &calls[0], &answer, NOW_US + 200);
    assert!(out.wakes.is_empty());
    assert!(limiter.outcome(&held, NOW_US + 999).is_none());
    let mut out = Exchange::default();
    limiter.poll(NOW_US + 1_000, &mut out);
    assert_eq!(out.wakes.len(), 1);
    assert!(matches!(limiter.outcome(&held, NOW_US + 1_000), Some(Decision::Admitted(_))));
}

#[test]
fn what_was_admitted_without_redis_is_reported_up_to_a_share() {
    let limiter = limiter(100, 100, 4);
    let mut out = Exchange::default();
    limiter.set_degraded(true, NOW_US, &mut out);
    admit(&limiter, 25, NOW_US);
    assert!(matches!(limiter.check(b"a", 1, NOW_US), Decision::Refused(_)));
    // 25 per second and instance.
    admit(&limiter, 25, NOW_US + 1_000_000);
    assert!(poll(&limiter, NOW_US + 1_000_000).is_empty());
    limiter.set_degraded(false, NOW_US + 1_000_000, &mut out);
    let calls = poll(&limiter, NOW_US + 1_000_000);
    assert_eq!((calls[0].request.debt, calls[0].request.back), (25, 0));
}

#[test]
fn without_redis_a_key_starts_from_its_share_of_what_was_left() {
    let limiter = limiter(100, 100, 4);
    admit(&limiter, 2, NOW_US);
    let calls = poll(&limiter, NOW_US);
    let stored = Stored { us: NOW_US + 600_000, units: 0 };
    let (answer, _) = script::run(Some(stored), &calls[0].request, NOW_US);
    assert_eq!(answer.level, 38);
    reply(&limiter, &calls[0], &answer, NOW_US + 300);
    let mut out = Exchange::default();
    limiter.set_degraded(true, NOW_US + 300, &mut out);
    admit(&limiter, 9, NOW_US + 300);
    assert!(matches!(limiter.check(b"a", 1, NOW_US + 300), Decision::Refused(_)));
}

#[test]
fn requests_held_when_redis_goes_away_get_the_fallbacks_word() {
    let limiter = limiter(10, 10, 4);
    let held = hold(&limiter, NOW_US);
    held.wake(Wake { worker: 1, ticket: 2 });
    poll(&limiter, NOW_US);
    let mut out = Exchange::default();
    limiter.set_degraded(true, NOW_US + 100, &mut out);
    assert_eq!(out.wakes, [Wake { worker: 1, ticket: 2 }]);
    assert!(matches!(limiter.outcome(&held, NOW_US + 100), Some(Decision::Admitted(_))));
}

#[test]
fn tokens_given_back_pay_a_debt_or_go_back_to_redis() {
    let limiter = limiter(100, 100, 4);
    admit(&limiter, 2, NOW_US);
    limiter.give_back(b"a", 1);
    assert_eq!(limiter.holding(b"a"), Some(Holding { leased: 0, owed: 1 }));
    assert_eq!(poll(&limiter, NOW_US)[0].request.debt, 1);
    limiter.give_back(b"a", 1);
    assert_eq!(poll(&limiter, NOW_US + LOST_US)[0].request.back, 1);
}

#[test]
fn a_quiet_cell_leaves_no_desk_behind() {
    let limiter = limiter(100, 100, 4);
    admit(&limiter, 1, NOW_US);
    let calls = poll(&limiter, NOW_US);
    let (answer, _) = script::run(None, &calls[0].request, NOW_US);
    reply(&limiter, &calls[0], &answer, NOW_US + 300);
    let mut out = Exchange::default();
    assert_eq!(limiter.poll(NOW_US + 2 * PERIOD_US, &mut out), None);
    assert!(limiter.desks().unwrap().desks.iter().all(Option::is_none));
}

#[test]
fn a_cell_goes_only_when_it_equals_none() {
    let limiter = limiter_of_keys(100, 100, 4, 1);
    let others = |now_us| {
        (0..50_u8).for_each(|key| drop(limiter.check(&[key], 1, now_us)));
        limiter.holding(b"a").is_some()
    };
    // A debt that is not reported, then one on its way, then a bucket that is not full, then one that is.
    admit(&limiter, 2, NOW_US);
    assert!(others(NOW_US));
    let calls = poll(&limiter, NOW_US);
    let call = calls.iter().find(|call| call.key() == b"a").unwrap();
    assert!(others(NOW_US + 100));
    let answer = Reply { level: 98, full_after_us: 500_000, ..Reply::default() };
    reply(&limiter, call, &answer, NOW_US + 300);
    poll(&limiter, NOW_US + 2 * PERIOD_US);
    assert!(others(NOW_US + 2 * PERIOD_US));
    assert!(!others(NOW_US + 500_000));
}

#[test]
fn a_refused_key_is_not_forgotten() {
    let limiter = limiter_of_keys(10, 10, 4, 1);
    let held = hold(&limiter, NOW_US);
    let calls = poll(&limiter, NOW_US);
    reply(&limiter, &calls[0], &Reply { retry_us: 900_000, ..Reply::default() }, NOW_US + 300);
    drop(held);
    // Longer than the sync keeps it in mind.
    poll(&limiter, NOW_US + 2 * PERIOD_US);
    (0..50_u8).for_each(|key| drop(limiter.check(&[key], 1, NOW_US + 2 * PERIOD_US)));
    assert!(matches!(limiter.check(b"a", 1, NOW_US + 890_000), Decision::Refused(_)));
    (0..50_u8).for_each(|key| drop(limiter.check(&[key], 1, NOW_US + 900_000)));
    assert!(limiter.holding(b"a").is_none());
}
