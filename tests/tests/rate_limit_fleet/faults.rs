//! What happens to Redis under load, and what the limits make of it.

use std::thread;
use std::time::{Duration, Instant};

use ringway_core::limit::{HOLD_US, WAIT_US_MAX};
use ringway_tests::redis::{Redis, Slow};
use ringway_tests::{Backend, Gateway, PATIENCE, eventually};

use crate::fleet::{FAST, Fleet, Limit, RECOVERY, SLOW, is_without_redis, number};

/// What happens to Redis under load; a fault that is an outage degrades the gateways.
fn survive(is_outage: bool, strike: fn(&mut Redis), end: fn(&mut Redis)) {
    for limit in [SLOW, FAST] {
        let mut redis = Redis::start();
        let fleet = Fleet::start(&redis.url(), limit);
        let begin = fleet.epoch.elapsed();
        let mut outage = (Duration::ZERO, Duration::ZERO);
        let outcome = fleet.under_load(1.5, || {
            thread::sleep(Duration::from_millis(1_500));
            let struck = Instant::now();
            strike(&mut redis);
            if is_outage {
                eventually(RECOVERY, || fleet.is_degraded_everywhere());
                println!("{limit:?}: all without redis after {:?}", struck.elapsed());
                outage.0 = fleet.epoch.elapsed();
                thread::sleep(Duration::from_millis(1_500));
            }
            end(&mut redis);
            let (ended, now) = (Instant::now(), fleet.epoch.elapsed());
            outage.1 = now;
            eventually(RECOVERY, || !fleet.is_degraded_anywhere());
            println!("{limit:?}: all with redis again after {:?}", ended.elapsed());
            thread::sleep(Duration::from_millis(1_000));
        });
        let time = (fleet.epoch.elapsed() - begin).as_secs_f64();
        let (passed, full) = (outcome.passed.len() as f64, limit.limit as f64);
        // Without Redis every gateway begins with a share of its own, a whole bucket in all. Redis that forgets gives back
        // what was leased, and what the freshest view of the bucket lacks.
        let more = if is_outage { full } else { full / 12.0 + limit.rate() * 0.15 };
        let allowed = full + limit.rate() * time + fleet.bound() as f64 + more;
        println!(
            "{limit:?}: {passed} of at most {allowed:.0} passed, {} refused, longest {:?}",
            outcome.refused.len(),
            outcome.longest
        );
        outcome.expect_only_answers();
        assert!(passed <= allowed, "{limit:?}: {passed} of {allowed}");
        assert!(passed >= 0.6 * (full + limit.rate() * time).min((outcome.refused.len() as f64) + passed), "{passed}");
        if is_outage {
            let during = outcome.passed_between(outage.0, outage.1) as f64;
            let due = limit.rate() * (outage.1 - outage.0).as_secs_f64();
            println!("{limit:?}: {during} passed without redis, where {due:.0} came back");
            assert!(during >= 0.5 * due && during <= 1.1 * due + full, "{during} of {due}");
        }
    }
}

#[test]
fn redis_frozen() {
    survive(true, |redis| redis.stop(), |redis| redis.cont());
}

#[test]
fn redis_killed_and_restarted() {
    survive(true, Redis::kill, Redis::restart);
}

#[test]
fn redis_restarted_at_once() {
    survive(false, Redis::restart, |_| {});
}

#[test]
fn redis_flushed() {
    survive(false, |redis| redis.flush(), |_| {});
}

/// What a held request waits for at most: its hold, and a token that is about to come.
const WAIT_MAX: Duration = Duration::from_micros(HOLD_US + WAIT_US_MAX);
/// What a busy machine may add to the slowest: gateways, clients and Redis share its cores. It is far below what a request
/// would wait that waited for an answer of a slow Redis (200 ms), or for another one to take over (more than 500 ms).
const BUSY: Duration = Duration::from_millis(100);
/// The share of the requests that a busy machine may delay at all.
const BUSY_SHARE: f64 = 0.05;
const TWO: usize = 2;

/// Two gateways under 1.5 times the limit without a break. `strike` takes Redis away or makes it slow, and comes back
/// when there is one again that is as it was.
#[track_caller]
fn pass_over(limit: Limit, redis: &str, strike: impl FnOnce(&Fleet)) {
    let fleet = Fleet::of(TWO, redis, limit);
    let begin = fleet.epoch.elapsed();
    let outcome = fleet.under_load(1.5, || {
        thread::sleep(Duration::from_millis(1_000));
        strike(&fleet);
        let ended = Instant::now();
        eventually(RECOVERY, || fleet.agrees());
        println!("{limit:?}: agreed again after {:?}", ended.elapsed());
        thread::sleep(Duration::from_millis(1_000));
    });
    let time = (fleet.epoch.elapsed() - begin).as_secs_f64();
    outcome.expect_only_answers();
    let (passed, full) = (outcome.passed.len() as f64, limit.limit as f64);
    // Without Redis each begins with its share of the bucket, a whole one in all. One that takes over may lack what was
    // written last, as one that has forgotten.
    let more = full + full / 12.0 + limit.rate() * 0.15;
    let allowed = full + limit.rate() * time + fleet.bound() as f64 + more;
    let asked = outcome.passed.len() + outcome.refused.len();
    let waits = fleet.waits(asked);
    let share = |share: f64| waits[(share * (waits.len() - 1) as f64) as usize];
    println!(
        "{limit:?}: {passed} of at most {allowed:.0} passed, {} refused; in the gateways' hands: median {:?}, 99 % {:?}, \
         longest {:?}; longest for a client {:?}; {} held",
        outcome.refused.len(),
        share(0.5),
        share(0.99),
        share(1.0),
        outcome.longest,
        fleet.total("gateway_rate_limit_held_total")
    );
    assert!(passed <= allowed, "{limit:?}: {passed} of {allowed}");
    assert!(passed >= 0.6 * (full + limit.rate() * time).min(asked as f64), "{limit:?}: {passed} of {asked}");
    assert!(share(1.0) <= WAIT_MAX + BUSY, "{limit:?}: {:?} in a gateway's hands", share(1.0));
    assert!(share(1.0 - BUSY_SHARE) <= WAIT_MAX, "{limit:?}: {:?} in a gateway's hands", share(1.0 - BUSY_SHARE));
    fleet.expect_agreement();
}

#[test]
fn redis_failed_over() {
    for limit in [SLOW, FAST] {
        let mut primary = Redis::start();
        let replica = Redis::replica_of(primary.port());
        let sentinel = Redis::sentinel_of(primary.port());
        eventually(PATIENCE, || sentinel.ask(&["SENTINEL", "MASTER", "main"]).contains("num-slaves\n1"));
        eventually(PATIENCE, || replica.ask(&["INFO", "replication"]).contains("master_link_status:up"));
        let url = format!("redis+sentinel://127.0.0.1:{}/main", sentinel.port());
        pass_over(limit, &url, |fleet| {
            let killed = Instant::now();
            primary.kill();
            eventually(RECOVERY, || fleet.is_degraded_everywhere());
            println!("{limit:?}: all without redis after {:?}", killed.elapsed());
            let (master, new) = (["SENTINEL", "GET-MASTER-ADDR-BY-NAME", "main"], replica.port().to_string());
            eventually(PATIENCE, || sentinel.ask(&master).lines().any(|line| line == new));
            println!("{limit:?}: promoted after {:?}", killed.elapsed());
        });
    }
}

#[test]
fn redis_slow() {
    for limit in [SLOW, FAST] {
        let redis = Redis::start();
        let slow = Slow::before(redis.address());
        pass_over(limit, &format!("redis://{}", slow.address()), |fleet| {
            let struck = Instant::now();
            slow.set_delay_each_way(Duration::from_millis(100));
            eventually(RECOVERY, || fleet.is_degraded_everywhere());
            println!("{limit:?}: all without redis after {:?}", struck.elapsed());
            // Long enough for answers to come, late ones, and for the limits to stay as they are all the same.
            let end = Instant::now() + Duration::from_millis(1_500);
            while Instant::now() < end {
                assert!(fleet.is_degraded_everywhere(), "a slow redis was taken for a good one");
                thread::sleep(Duration::from_millis(50));
            }
            let connected = |gateway: &Gateway| gateway.metric("gateway_redis_connected") == 1.0;
            assert!(fleet.gateways.iter().all(connected), "slow is not gone");
            slow.set_delay_each_way(Duration::ZERO);
        });
    }
}

#[test]
fn what_counts_without_redis_is_the_policys_choice() {
    let (backend, mut redis) = (Backend::ok(), Redis::start());
    let yaml = format!(
        "runtime: {{ workers: 2, pin: false, driver: \"${{env:RINGWAY_TEST_DRIVER:-auto}}\" }}\n\
         redis: {{ url: \"{}\" }}\n\
         services: [{{ name: app, endpoints: [\"{}\"] }}]\n\
         rate_limits:\n\
         - {{ name: share, limit: 10/h }}\n\
         - {{ name: open, limit: 10/h, without_redis: open }}\n\
         - {{ name: closed, limit: 10/h, without_redis: closed }}\n\
         routes:\n\
         - {{ name: share, service: app, match: {{ path: /share }}, rate_limit: share }}\n\
         - {{ name: open, service: app, match: {{ path: /open }}, rate_limit: open }}\n\
         - {{ name: closed, service: app, match: {{ path: /closed }}, rate_limit: closed }}\n",
        redis.url(),
        backend.endpoint()
    );
    let gateway = Gateway::start(&yaml);
    let all = |degraded| ["share", "open", "closed"].iter().all(|of| is_without_redis(&gateway, of) == degraded);
    let mut client = gateway.connect();
    eventually(PATIENCE, || gateway.metric("gateway_redis_instances") == 1.0 && all(false));
    for path in ["/share", "/open", "/closed"] {
        assert_eq!(client.get(path).status(), 200);
    }
    for round in 0..2 {
        // Once frozen, once gone.
        if round == 0 {
            redis.stop()
        } else {
            redis.kill()
        }
        eventually(RECOVERY, || all(true));
        let refused = client.get("/closed");
        assert_eq!((refused.status(), number(&refused, "retry-after")), (503, 1), "{}", refused.text());
        for _ in 0..30 {
            assert_eq!(client.get("/open").status(), 200);
        }
        let passed = (0..30).filter(|_| client.get("/share").status() == 200).count();
        assert!(passed <= 10, "{passed}");
        if round == 0 {
            redis.cont()
        } else {
            redis.restart()
        }
        eventually(RECOVERY, || all(false));
        assert_eq!(client.get("/closed").status(), 200);
    }
    let unavailable = gateway.log_lines().iter().filter(|line| line["statusCode"] == 503).count();
    assert!(unavailable <= 2, "{unavailable}");
}
