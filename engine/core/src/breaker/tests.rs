use std::sync::atomic::AtomicUsize;

use super::*;
use crate::random::Random;

const SECOND: u64 = 1_000_000;
const SETTINGS: BreakerSettings = BreakerSettings {
    error_share: Some(50),
    min_requests: 20,
    window_us: 10 * SECOND,
    consecutive_failures: None,
    slow: None,
    open_us: 30 * SECOND,
    probes: 3,
};

fn ticket(breaker: &Breaker, settings: &BreakerSettings, now: u64) -> Ticket {
    breaker.admit(settings, now).expect("a call may be made").0
}

/// A call that begins and ends at once.
fn call(breaker: &Breaker, settings: &BreakerSettings, outcome: Outcome, now: u64) -> Option<Transition> {
    breaker.settle(0, settings, ticket(breaker, settings, now), outcome, now, 0)
}

fn open(settings: &BreakerSettings, now: u64) -> Breaker {
    let breaker = Breaker::new(2);
    let opened = (0..settings.min_requests).filter_map(|_| call(&breaker, settings, Outcome::Bad, now)).last();
    assert_eq!(opened.map(|transition| transition.to), Some(State::Open));
    breaker
}

#[test]
fn the_share_of_failures_opens_it_from_the_minimum_on() {
    let breaker = Breaker::new(2);
    for index in 0..19 {
        let outcome = if index % 2 == 0 { Outcome::Bad } else { Outcome::Good };
        assert_eq!(call(&breaker, &SETTINGS, outcome, 0), None);
    }
    assert_eq!(breaker.seen(&SETTINGS, 0).counts, Counts { total: 19, failed: 10, slow: 0 });
    let opened = call(&breaker, &SETTINGS, Outcome::Bad, 0);
    let reason = Reason::ErrorShare { failed: 11, total: 20 };
    assert_eq!(opened, Some(Transition { to: State::Open, reason, open_us: 30 * SECOND }));
    assert_eq!(breaker.admit(&SETTINGS, SECOND), Err(29 * SECOND));
    assert_eq!((breaker.state(), breaker.transitions(State::Open)), (State::Open, 1));
}

#[test]
fn what_is_older_than_the_window_does_not_count() {
    let breaker = Breaker::new(1);
    (0..19).for_each(|_| assert_eq!(call(&breaker, &SETTINGS, Outcome::Bad, 0), None));
    assert_eq!(call(&breaker, &SETTINGS, Outcome::Bad, 10 * SECOND), None);
    assert_eq!(breaker.seen(&SETTINGS, 10 * SECOND).counts.total, 1);
}

#[test]
fn failures_in_a_row_open_it_and_a_good_call_begins_anew() {
    let settings = BreakerSettings { consecutive_failures: Some(3), error_share: None, ..SETTINGS };
    let breaker = Breaker::new(1);
    for outcome in [Outcome::Bad, Outcome::Bad, Outcome::Good, Outcome::Bad, Outcome::Bad, Outcome::Slow, Outcome::Bad]
    {
        assert_eq!(call(&breaker, &settings, outcome, 0), None);
    }
    assert_eq!(call(&breaker, &settings, Outcome::Bad, 0), None);
    assert_eq!(call(&breaker, &settings, Outcome::Bad, 0).map(|to| to.reason), Some(Reason::Consecutive(3)));
}

#[test]
fn slow_calls_open_it_where_they_are_told_apart() {
    let slow = Some(SlowCalls { from_us: 2 * SECOND, share: 50 });
    let settings = BreakerSettings { slow, min_requests: 2, ..SETTINGS };
    let breaker = Breaker::new(1);
    assert_eq!(call(&breaker, &settings, Outcome::Good, 0), None);
    let reason = Reason::SlowShare { slow: 1, total: 2 };
    assert_eq!(call(&breaker, &settings, Outcome::Slow, 0).map(|to| to.reason), Some(reason));
    let probe = ticket(&breaker, &settings, 40 * SECOND);
    let again = breaker.settle(0, &settings, probe, Outcome::Slow, 40 * SECOND, 0);
    assert_eq!(again.map(|to| to.reason), Some(Reason::ProbeFailed), "a slow probe is not a good one");
}

#[test]
fn an_answer_that_breaks_off_later_counts_once_as_failed() {
    let settings = BreakerSettings { min_requests: 4, ..SETTINGS };
    let breaker = Breaker::new(1);
    for _ in 0..3 {
        let ticket = ticket(&breaker, &settings, 0);
        assert_eq!(breaker.settle(0, &settings, ticket, Outcome::Good, 0, 0), None);
        assert_eq!(breaker.settle(0, &settings, ticket, Outcome::BrokenOff, 0, 0), None);
    }
    assert_eq!(breaker.seen(&settings, 0).counts, Counts { total: 3, failed: 3, slow: 0 });
    assert!(call(&breaker, &settings, Outcome::Bad, 0).is_some());
}

#[test]
fn good_probes_close_it_and_what_was_before_is_forgotten() {
    let breaker = open(&SETTINGS, 0);
    let now = 36 * SECOND;
    let (first, transition) = breaker.admit(&SETTINGS, now).unwrap();
    assert_eq!(transition.map(|transition| transition.to), Some(State::HalfOpen));
    let probes = [first, ticket(&breaker, &SETTINGS, now), ticket(&breaker, &SETTINGS, now)];
    assert_eq!(breaker.admit(&SETTINGS, now), Err(0), "three at a time");
    let told = probes.map(|probe| breaker.settle(1, &SETTINGS, probe, Outcome::Good, now, 0));
    let closed = Transition { to: State::Closed, reason: Reason::ProbesGood(3), open_us: 0 };
    assert_eq!(told, [None, None, Some(closed)]);
    assert_eq!(breaker.seen(&SETTINGS, now).counts, Counts::default());
    assert_eq!(State::ALL.map(|to| breaker.transitions(to)), [1, 1, 1]);
}

#[test]
fn a_failed_probe_opens_it_again() {
    let breaker = open(&SETTINGS, 0);
    let now = 40 * SECOND;
    let [a, b] = [(); 2].map(|()| ticket(&breaker, &SETTINGS, now));
    let opened = breaker.settle(0, &SETTINGS, a, Outcome::Bad, now, u64::MAX).unwrap();
    assert_eq!((opened.to, opened.reason), (State::Open, Reason::ProbeFailed));
    assert!((30 * SECOND..=36 * SECOND).contains(&opened.open_us));
    assert_eq!(breaker.settle(0, &SETTINGS, b, Outcome::Good, now, 0), None, "it began before");
    assert_eq!(breaker.state(), State::Open);
}

#[test]
fn a_probe_that_says_nothing_gives_its_place_back_and_one_that_takes_forever_loses_it() {
    let breaker = open(&SETTINGS, 0);
    let now = 40 * SECOND;
    let probes = [(); 3].map(|()| ticket(&breaker, &SETTINGS, now));
    breaker.give_back(probes[0]);
    ticket(&breaker, &SETTINGS, now);
    assert!(breaker.admit(&SETTINGS, now).is_err());
    assert!(breaker.admit(&SETTINGS, now + 29 * SECOND).is_err());
    let later = now + 31 * SECOND;
    ticket(&breaker, &SETTINGS, later);
    for probe in probes {
        assert_eq!(breaker.settle(0, &SETTINGS, probe, Outcome::Bad, later, 0), None);
    }
    assert_eq!(breaker.state(), State::HalfOpen);
}

#[test]
fn other_settings_act_on_the_state_that_there_is() {
    let breaker = open(&SETTINGS, 0);
    let fewer = BreakerSettings { probes: 1, ..SETTINGS };
    let now = 40 * SECOND;
    let [a, _b] = [(); 2].map(|()| ticket(&breaker, &SETTINGS, now));
    assert!(breaker.admit(&fewer, now).is_err());
    assert_eq!(breaker.settle(0, &fewer, a, Outcome::Good, now, 0).map(|to| to.to), Some(State::Closed));
}

#[test]
fn retry_after_is_rounded_up_and_spread() {
    assert_eq!(retry_after_secs(0, 0), 1);
    assert_eq!(retry_after_secs(1_000_001, 0), 2);
    let spread: std::collections::BTreeSet<u32> =
        (0..100).map(|random| retry_after_secs(30 * SECOND, random)).collect();
    assert_eq!((spread.first(), spread.last()), (Some(&30), Some(&34)));
}

#[test]
fn words_are_packed_whole() {
    let mut random = Random(1);
    for _ in 0..10_000 {
        let word = Word {
            state: State::ALL[random.below(3) as usize],
            epoch: random.next() as u16,
            taken: random.below(32) as u8,
            good: random.below(32) as u8,
            value: random.below(VALUE_MAX + 1),
        };
        assert_eq!(Word::unpack(word.pack()), word);
    }
}

/// A call that some core has under way.
struct Pending {
    core: usize,
    ticket: Ticket,
    /// It began in this many transitions, and at this time.
    round: u64,
    begun: u64,
    probe: bool,
}

/// Cores that share a breaker, with calls that begin and end in any order.
///
/// Laws, checked after each step: no call is admitted before the time that was told; at most so many probes as allowed are
/// under way at a time, over all cores (those that have lapsed aside); it closes with that many good ones, and not with
/// fewer; calls that began before a transition tell nothing.
fn simulate(seed: u64) -> [u64; 3] {
    let mut random = Random(seed);
    let cores = 1 + random.below(4) as usize;
    let settings = BreakerSettings {
        error_share: Some(1 + random.below(100) as u8),
        min_requests: 1 + random.below(10) as u32,
        window_us: 10 * (1 + random.below(SECOND)),
        consecutive_failures: (random.below(2) == 0).then(|| 1 + random.below(6) as u32),
        slow: (random.below(2) == 0).then(|| SlowCalls { from_us: SECOND, share: 1 + random.below(100) as u8 }),
        open_us: 1 + random.below(5 * SECOND),
        probes: 1 + random.below(5) as u8,
    };
    let breaker = Breaker::new(cores);
    let (mut now, mut round, mut open_until) = (random.below(100 * SECOND), 0, 0);
    let (mut good_probes, mut in_a_row, mut last_probe) = (0, 0, 0);
    let mut pending: Vec<Pending> = Vec::new();
    let health = random.below(100);
    for step in 0..400 {
        let pause_max = if random.below(20) == 0 { settings.open_us * 2 } else { 20_000 };
        now += random.below(pause_max);
        let before = breaker.state();
        let core = random.below(cores as u64) as usize;
        let at = format!("seed {seed}, step {step}");
        if pending.is_empty() || random.below(2) == 0 {
            // A core may have read its clock a little earlier than another one.
            let probes = |pending: &[Pending], round, now: u64| {
                let counts = |call: &&Pending| call.probe && call.round == round && call.begun + settings.open_us > now;
                pending.iter().filter(counts).count()
            };
            match breaker.admit(&settings, now) {
                Ok((ticket, transition)) => {
                    assert!(before != State::Open || now >= open_until, "{at}: open, and a call passed");
                    if let Some(transition) = transition {
                        assert_eq!((before, transition.to), (State::Open, State::HalfOpen), "{at}");
                        (round, good_probes) = (round + 1, 0);
                    }
                    let probe = breaker.state() == State::HalfOpen;
                    pending.push(Pending { core, ticket, round, begun: now, probe });
                    if probe {
                        last_probe = now;
                        let under_way = probes(&pending, round, now);
                        assert!(under_way <= settings.probes.into(), "{at}: {under_way} probes at a time");
                    }
                }
                Err(left) => {
                    assert_ne!(before, State::Closed, "{at}: closed, and a call did not pass");
                    assert_eq!(breaker.state(), before, "{at}");
                    if before == State::Open {
                        assert!(
                            now < open_until && (1..=TICK_US).contains(&(now + left - open_until + 1)),
                            "{at}: {left}"
                        );
                    } else {
                        assert_eq!(left, 0, "{at}");
                        let epoch = breaker.load().epoch;
                        let holding = pending.iter().filter(|call| call.ticket.epoch == epoch).count() as u64;
                        let is_full = holding + good_probes >= u64::from(settings.probes);
                        let is_held = holding > 0 && last_probe + settings.open_us + TICK_US > now;
                        assert!(is_full && is_held, "{at}: a place is lost");
                    }
                }
            }
            continue;
        }
        let call = pending.swap_remove(random.below(pending.len() as u64) as usize);
        let lapsed = call.probe && call.ticket.epoch != breaker.load().epoch;
        let is_stale = call.round != round || lapsed;
        if random.below(8) == 0 {
            breaker.give_back(call.ticket);
            assert_eq!(breaker.state(), before, "{at}");
            continue;
        }
        let outcome = match random.below(100) {
            roll if roll < health => Outcome::Good,
            roll if roll % 3 == 0 => Outcome::Slow,
            _ => Outcome::Bad,
        };
        let told = breaker.settle(call.core, &settings, call.ticket, outcome, now, random.next());
        assert!(!(is_stale && told.is_some()), "{at}: a call of an earlier state changed this one: {told:?}");
        if is_stale {
            assert_eq!(breaker.state(), before, "{at}");
            continue;
        }
        in_a_row = if outcome == Outcome::Bad && !call.probe { in_a_row + 1 } else { 0 };
        good_probes += u64::from(call.probe && outcome == Outcome::Good);
        let expected = match (call.probe, outcome) {
            (true, Outcome::Good) if good_probes == u64::from(settings.probes) => Some(State::Closed),
            (true, Outcome::Good) => None,
            (true, _) => Some(State::Open),
            (false, _) => {
                let by_row = settings.consecutive_failures.is_some_and(|max| in_a_row >= max);
                assert!(!by_row || told.is_some(), "{at}: {in_a_row} failures in a row");
                assert!(outcome != Outcome::Good || told.is_none(), "{at}: a good call opened it");
                told.map(|_| State::Open)
            }
        };
        assert_eq!(told.map(|told| told.to), expected, "{at}");
        if let Some(told) = told {
            assert_eq!(breaker.state(), told.to, "{at}");
            (round, in_a_row, good_probes) = (round + 1, 0, 0);
            let bounds = settings.open_us..=settings.open_us + settings.open_us / 5;
            assert!(told.to != State::Open || bounds.contains(&told.open_us), "{at}: {told:?}");
            open_until = (now + told.open_us).div_ceil(TICK_US) * TICK_US;
        }
    }
    State::ALL.map(|state| breaker.transitions(state))
}

#[test]
fn simulated_cores_keep_the_laws() {
    let seeds = 0..5_000;
    let sums = seeds.map(simulate).fold([0; 3], |sums, seen| [0, 1, 2].map(|index| sums[index] + seen[index]));
    // A simulation that never leaves a state would prove nothing.
    assert!(sums.iter().all(|transitions| *transitions > 2_000), "{sums:?}");
}

/// Threads at once: the same law where the steps really interleave.
#[test]
fn threads_never_have_more_probes_than_allowed() {
    let settings = BreakerSettings { min_requests: 1, open_us: 10 * TICK_US, probes: 3, ..SETTINGS };
    let (breaker, clock) = (Breaker::new(4), AtomicU64::new(0));
    let [calls, probes, most] = [(); 3].map(|()| AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for core in 0..4 {
            let (breaker, clock, calls, probes, most) = (&breaker, &clock, &calls, &probes, &most);
            scope.spawn(move || {
                let mut random = Random(core as u64);
                for _ in 0..100_000 {
                    // The time stands still while there are calls, so that no probe lapses.
                    let now = match calls.load(Ordering::SeqCst) {
                        0 => clock.fetch_add(TICK_US, Ordering::SeqCst),
                        _ => clock.load(Ordering::SeqCst),
                    };
                    calls.fetch_add(1, Ordering::SeqCst);
                    if let Ok((ticket, _)) = breaker.admit(&settings, now) {
                        let word = breaker.load();
                        let is_probe = (word.state, word.epoch) == (State::HalfOpen, ticket.epoch);
                        if is_probe {
                            most.fetch_max(1 + probes.fetch_add(1, Ordering::SeqCst), Ordering::SeqCst);
                            std::thread::yield_now();
                            probes.fetch_sub(1, Ordering::SeqCst);
                        }
                        let is_good = is_probe && random.below(4) > 0;
                        let outcome = if is_good { Outcome::Good } else { Outcome::Bad };
                        breaker.settle(core, &settings, ticket, outcome, now, random.next());
                    }
                    calls.fetch_sub(1, Ordering::SeqCst);
                }
            });
        }
    });
    assert!((1..=3).contains(&most.load(Ordering::SeqCst)), "{most:?}");
    assert!(State::ALL.iter().all(|to| breaker.transitions(*to) > 10), "{breaker:?}");
}
