//! Rate limits of a fleet: gateway processes of two workers that share a Redis, and clients that spray all of them.

mod faults;
mod fleet;

use std::thread;
use std::time::{Duration, Instant};

use fleet::{
    CLIENTS, FASTEST, Fleet, GATEWAYS, Limit, PER_MINUTE, RECOVERY, SLOW, STRICT, is_degraded, number, request,
};
use ringway_core::limit::HOLD_US;
use ringway_tests::redis::Redis;
use ringway_tests::{Client, Gateway, PATIENCE, eventually};

#[test]
fn four_gateways_keep_one_limit() {
    for limit in [PER_MINUTE, SLOW, FASTEST] {
        let redis = Redis::start();
        let fleet = Fleet::start(&redis.url(), limit);
        fleet.expect_burst();
        let begin = fleet.epoch.elapsed();
        let outcome = fleet.under_load(1.5, || thread::sleep(Duration::from_secs(4)));
        let time = fleet.epoch.elapsed() - begin;
        let allowed = limit.limit as f64 + limit.rate() * time.as_secs_f64() + fleet.bound() as f64;
        let (passed, refused, ideal) = (outcome.passed.len(), outcome.refused.len(), fleet.ideal(&outcome));
        println!(
            "{limit:?}: {passed} passed in {time:?}, at most {allowed:.0} may (H is {}), one bucket {ideal}; {refused} \
             refused; longest {:?}; {} held, {} calls",
            fleet.bound(),
            outcome.longest,
            fleet.total("gateway_rate_limit_held_total"),
            fleet.total("gateway_rate_limit_redis_calls_total"),
        );
        outcome.expect_only_answers();
        assert!(passed as f64 <= allowed, "{limit:?}: {passed} of {allowed}");
        assert!(passed as f64 >= 0.95 * ideal as f64 - 10.0, "{limit:?}: {passed} of {ideal}");
    }
}

#[test]
fn headers_and_log_tell_what_all_gateways_know() {
    let redis = Redis::start();
    let fleet = Fleet::start(&redis.url(), PER_MINUTE);
    let began = Instant::now();
    let [mut one, mut other] = [0, 1].map(|place| fleet.gateways[place].connect());
    for asked in 1..=10 {
        let answer = one.ask(request("a"));
        assert_eq!((answer.status(), number(&answer, "ratelimit-limit")), (200, 100));
        assert_eq!(answer.get("ratelimit-policy"), Some("100;w=60"));
        let (remaining, reset) = (number(&answer, "ratelimit-remaining"), number(&answer, "ratelimit-reset"));
        assert!((100 - asked..100).contains(&remaining), "{remaining} after {asked}");
        assert!((1..=6).contains(&reset), "{reset} s until {remaining} are 100");
        assert!(!answer.has("retry-after"));
    }
    // What one gateway admitted, another tells of.
    let mut asked = 10;
    eventually(PATIENCE, || {
        asked += 1;
        let answer = other.ask(request("a"));
        let came_back = (PER_MINUTE.rate() * began.elapsed().as_secs_f64()).ceil() as u64;
        let remaining = number(&answer, "ratelimit-remaining");
        assert!(remaining + asked >= 100, "{remaining} after {asked}");
        remaining + asked <= 100 + came_back
    });
    let outcome = fleet.load("a", 0.0, |number| number >= 200);
    outcome.expect_only_answers();
    assert!(outcome.refused.len() > 80, "{outcome:?}");
    for gateway in &fleet.gateways {
        let refused = gateway.connect().ask(request("a"));
        assert_eq!(refused.json()["error"].as_str(), Some("Too many requests"), "{}", refused.text());
        assert_eq!((refused.status(), number(&refused, "ratelimit-remaining")), (429, 0));
        // A token comes each 0.6 s, when what was admitted beyond the bucket has come back.
        let most = ((fleet.bound() + 1) as f64 / PER_MINUTE.rate()).ceil() as u64;
        assert!((1..=most).contains(&number(&refused, "retry-after")), "{}", refused.text());
    }
    for gateway in &fleet.gateways {
        eventually(PATIENCE, || gateway.log_lines().iter().any(|line| line["statusCode"] == 429));
        for line in gateway.log_lines() {
            let remaining = line["rateLimitRemaining"].as_u64().unwrap_or_else(|| panic!("{line}"));
            let most = if line["statusCode"] == 429 { 0 } else { 99 };
            assert!(remaining <= most, "{line}");
        }
    }
}

#[test]
fn a_strict_limit_asks_redis_about_each_request() {
    let redis = Redis::start();
    let fleet = Fleet::start(&redis.url(), STRICT);
    let began = Instant::now();
    let mut connections: Vec<Client> = fleet.gateways.iter().map(Gateway::connect).collect();
    let mut late = 0;
    for asked in 1..=40 {
        let sent = Instant::now();
        let answer = connections[asked as usize % GATEWAYS].ask(request("a"));
        if sent.elapsed() >= Duration::from_micros(HOLD_US) {
            // Refused where Redis had not spoken in time.
            late += 1;
            continue;
        }
        let came_back = (STRICT.rate() * began.elapsed().as_secs_f64()).ceil() as u64;
        let remaining = number(&answer, "ratelimit-remaining");
        assert_eq!(answer.status(), 200);
        // Exact over all gateways: no token is taken before Redis has given it.
        assert!((100 - asked..=100 - asked + came_back + late).contains(&remaining), "{remaining} after {asked}");
    }
    assert!(late <= 20, "{late} of 40 were held for too long");
    assert_eq!(fleet.total("gateway_rate_limit_held_total"), 40.0);
    let begin = Instant::now();
    let outcome = fleet.load("b", 0.0, |number| number >= 400);
    outcome.expect_only_answers();
    let most = 100.0 + STRICT.rate() * begin.elapsed().as_secs_f64() + fleet.bound() as f64;
    println!("{} of {most:.0}, longest {:?}", outcome.passed.len(), outcome.longest);
    assert!(outcome.passed.len() as f64 <= most, "{} of {most}", outcome.passed.len());
    assert!(outcome.passed.len() >= 90 || outcome.longest >= Duration::from_micros(HOLD_US), "{outcome:?}");
}

#[test]
fn clients_that_leave_while_their_requests_are_held_leave_nothing_behind() {
    let redis = Redis::start();
    let fleet = Fleet::start(&redis.url(), Limit { limit: 1_000_000, ..STRICT });
    let gateway = &fleet.gateways[0];
    gateway.connect().ask(request("first"));
    gateway.expect_idle();
    let before = gateway.open_fds();
    redis.stop();
    for turn in 0..200 {
        let mut client = gateway.connect();
        client.send(request(&format!("key {turn}")));
        client.reset();
    }
    redis.cont();
    eventually(RECOVERY, || !is_degraded(gateway));
    gateway.expect_idle();
    // Requests that are held one after the other need one timer among them.
    let most = thread::scope(|scope| {
        let load = scope.spawn(|| fleet.load("busy", 0.0, |number| number >= 20_000));
        let mut most = 0;
        while !load.is_finished() {
            most = most.max(gateway.open_fds());
            thread::sleep(Duration::from_millis(5));
        }
        load.join().unwrap().expect_only_answers();
        most
    });
    println!("{before} descriptors, at most {most} while {CLIENTS} clients were held");
    // A connection of each client and one to the service for it, a timer per worker, a connection of the admin listener.
    assert!(most <= before + 2 * CLIENTS + 4, "{most}, {before} before");
    gateway.expect_idle();
    eventually(PATIENCE, || gateway.open_fds() <= before + CLIENTS + 2);
}
