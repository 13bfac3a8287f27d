//! Rate limits of a fleet: four gateway processes of two workers that share a Redis, and clients that spray all of them.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use ringway_core::limit::{Fallback, HOLD_US, Policy, Spec};
use ringway_tests::redis::Redis;
use ringway_tests::{Backend, Client, Gateway, Message, PATIENCE, Setup, eventually};

const GATEWAYS: usize = 4;
const CLIENTS: usize = 8;
/// No request takes longer, whatever happens to Redis. It is held for 7 ms at most; the machine may be busy.
const LONGEST: Duration = Duration::from_secs(1);
/// From Redis' return to limits that are kept with it.
const RECOVERY: Duration = Duration::from_secs(2);

/// What clients are allowed, and how the configuration says it.
#[derive(Debug, Clone, Copy)]
struct Limit {
    limit: u64,
    period_s: u64,
    /// More of its section: `strict: true`.
    more: &'static str,
}

const PER_MINUTE: Limit = Limit { limit: 100, period_s: 60, more: "" };
const SLOW: Limit = Limit { limit: 50, period_s: 1, more: "" };
const FAST: Limit = Limit { limit: 1_000, period_s: 1, more: "" };
const FASTEST: Limit = Limit { limit: 5_000, period_s: 1, more: "" };
const STRICT: Limit = Limit { limit: 100, period_s: 60, more: ", strict: true" };

impl Limit {
    fn rate(self) -> f64 {
        self.limit as f64 / self.period_s as f64
    }

    /// H, as it is computed for a fleet of all.
    fn bound(self) -> u64 {
        let spec = Spec {
            name: "clients".into(),
            limit: self.limit,
            period: Duration::from_secs(self.period_s),
            burst: self.limit,
            strict: self.more.contains("strict"),
            without_redis: Fallback::FairShare,
            keys_max: 1,
        };
        Policy::new(&spec).unwrap().bound(GATEWAYS as u32)
    }
}

struct Fleet {
    gateways: Vec<Gateway>,
    limit: Limit,
    epoch: Instant,
    _backend: Backend,
}

/// What became of the requests of a while.
#[derive(Debug, Default)]
struct Outcome {
    /// When each answer of 200 had come, in order.
    passed: Vec<Duration>,
    /// When each answer of 429 had come, in order.
    refused: Vec<Duration>,
    others: BTreeMap<u16, usize>,
    longest: Duration,
}

fn request(key: &str) -> String {
    format!("GET /a HTTP/1.1\r\nHost: test\r\nX-Client: {key}\r\n\r\n")
}

fn number(answer: &Message, name: &str) -> u64 {
    answer.get(name).and_then(|value| value.parse().ok()).unwrap_or_else(|| panic!("{name}: {}", answer.text()))
}

impl Fleet {
    /// Waits until the gateways know of each other.
    #[track_caller]
    fn start(redis: &Redis, limit: Limit) -> Self {
        let backend = Backend::ok();
        let Limit { limit: count, period_s, more } = limit;
        let sections = format!(
            "runtime: {{ workers: 2, pin: false, driver: \"${{env:RINGWAY_TEST_DRIVER:-auto}}\" }}\n\
             redis: {{ url: \"{}\" }}\n\
             rate_limits: [{{ name: clients, limit: {count}/{period_s}s, key: header X-Client{more} }}]\n",
            redis.url()
        );
        let setup = Setup { route: "rate_limit: clients", sections: &sections, ..Setup::default() };
        let gateways = (0..GATEWAYS).map(|_| setup.start(backend.endpoint())).collect();
        let fleet = Self { gateways, limit, epoch: Instant::now(), _backend: backend };
        eventually(PATIENCE, || {
            let knows = |gateway: &Gateway| gateway.metric("gateway_rate_limit_bound{policy=\"clients\"}");
            fleet.gateways.iter().all(|gateway| knows(gateway) == limit.bound() as f64 && !is_degraded(gateway))
        });
        fleet
    }

    fn total(&self, metric: &str) -> f64 {
        self.gateways.iter().map(|gateway| gateway.metric(&format!("{metric}{{policy=\"clients\"}}"))).sum()
    }

    fn is_degraded_anywhere(&self) -> bool {
        self.gateways.iter().any(is_degraded)
    }

    fn is_degraded_everywhere(&self) -> bool {
        self.gateways.iter().all(is_degraded)
    }

    /// Every client has a connection to each gateway and asks them in turn; all together `per_second` times a second (0:
    /// as fast as they can), until `end` says so, which gets the number of the request.
    fn load(&self, key: &str, per_second: f64, end: impl Fn(usize) -> bool + Sync) -> Outcome {
        let all = Mutex::new(Outcome::default());
        thread::scope(|scope| {
            for place in 0..CLIENTS {
                let (all, end) = (&all, &end);
                scope.spawn(move || {
                    let mut connections: Vec<Client> = self.gateways.iter().map(Gateway::connect).collect();
                    let (request, mut seen, start) = (request(key), Outcome::default(), Instant::now());
                    for (turn, number) in (place..).step_by(CLIENTS).enumerate() {
                        if end(number) {
                            break;
                        }
                        if per_second > 0.0 {
                            let due = start + Duration::from_secs_f64(number as f64 / per_second);
                            thread::sleep(due.saturating_duration_since(Instant::now()));
                        }
                        let sent = Instant::now();
                        let status = connections[(turn + place) % GATEWAYS].ask(&request).status();
                        seen.longest = seen.longest.max(sent.elapsed());
                        match status {
                            200 => seen.passed.push(self.epoch.elapsed()),
                            429 => seen.refused.push(self.epoch.elapsed()),
                            other => *seen.others.entry(other).or_default() += 1,
                        }
                    }
                    all.lock().unwrap().add(seen);
                });
            }
        });
        all.into_inner().unwrap()
    }

    /// Load on the key `steady` at so many times the rate, 60 a second at least, for as long as `act` takes.
    fn under_load(&self, times: f64, act: impl FnOnce()) -> Outcome {
        let is_over = AtomicBool::new(false);
        let per_second = (self.limit.rate() * times).max(60.0);
        thread::scope(|scope| {
            let load = scope.spawn(|| self.load("steady", per_second, |_| is_over.load(Ordering::Relaxed)));
            let acted = std::panic::catch_unwind(std::panic::AssertUnwindSafe(act));
            is_over.store(true, Ordering::Relaxed);
            let outcome = load.join().unwrap();
            acted.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            outcome
        })
    }

    /// How many of these requests one bucket would have admitted.
    fn ideal(&self, outcome: &Outcome) -> usize {
        let mut asked = [&outcome.passed[..], &outcome.refused[..]].concat();
        asked.sort_unstable();
        let full = self.limit.limit as f64;
        let (mut level, mut last) = (full, Duration::ZERO);
        let admits = |at: &&Duration| {
            level = (level + self.limit.rate() * (**at - last).as_secs_f64()).min(full);
            last = **at;
            let admitted = level >= 1.0;
            level -= f64::from(u8::from(admitted));
            admitted
        };
        asked.iter().filter(admits).count()
    }

    /// Nine tenths of a bucket at once, on a fresh key, from all clients and over all gateways: none is refused. Where
    /// something did not run for as long as a request is held, it is tried again with another key.
    #[track_caller]
    fn expect_burst(&self) {
        let count = self.limit.limit as usize * 9 / 10;
        let passes = |attempt: usize| {
            let outcome = self.load(&format!("burst {attempt}"), 0.0, |number| number >= count);
            outcome.expect_only_answers();
            let refused = outcome.refused.len();
            println!("{:?}: {refused} of a burst of {count} refused, longest {:?}", self.limit, outcome.longest);
            let is_late = outcome.longest >= Duration::from_micros(HOLD_US);
            assert!(refused == 0 || is_late, "{:?}: {refused} of {count} refused", self.limit);
            refused == 0
        };
        assert!((0..10).any(passes), "{:?}: of ten bursts none passed", self.limit);
    }
}

impl Outcome {
    fn add(&mut self, other: Self) {
        self.passed.extend(other.passed);
        self.refused.extend(other.refused);
        self.passed.sort_unstable();
        self.refused.sort_unstable();
        other.others.into_iter().for_each(|(status, count)| *self.others.entry(status).or_default() += count);
        self.longest = self.longest.max(other.longest);
    }

    fn passed_between(&self, from: Duration, to: Duration) -> usize {
        self.passed.iter().filter(|at| (from..to).contains(*at)).count()
    }

    /// Requests pass or are refused; nothing fails, and nothing takes long.
    #[track_caller]
    fn expect_only_answers(&self) {
        assert!(self.others.is_empty(), "{:?}", self.others);
        assert!(self.longest < LONGEST, "{:?}", self.longest);
    }
}

fn is_degraded(gateway: &Gateway) -> bool {
    is_without_redis(gateway, "clients")
}

fn is_without_redis(gateway: &Gateway, policy: &str) -> bool {
    gateway.metric(&format!("gateway_rate_limit_degraded{{policy=\"{policy}\"}}")) == 1.0
}

#[test]
fn four_gateways_keep_one_limit() {
    for limit in [PER_MINUTE, SLOW, FASTEST] {
        let redis = Redis::start();
        let fleet = Fleet::start(&redis, limit);
        fleet.expect_burst();
        let begin = fleet.epoch.elapsed();
        let outcome = fleet.under_load(1.5, || thread::sleep(Duration::from_secs(4)));
        let time = fleet.epoch.elapsed() - begin;
        let allowed = limit.limit as f64 + limit.rate() * time.as_secs_f64() + limit.bound() as f64;
        let (passed, refused, ideal) = (outcome.passed.len(), outcome.refused.len(), fleet.ideal(&outcome));
        println!(
            "{limit:?}: {passed} passed in {time:?}, at most {allowed:.0} may (H is {}), one bucket {ideal}; {refused} \
             refused; longest {:?}; {} held, {} calls",
            limit.bound(),
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
    let fleet = Fleet::start(&redis, PER_MINUTE);
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
        let most = ((PER_MINUTE.bound() + 1) as f64 / PER_MINUTE.rate()).ceil() as u64;
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
    let fleet = Fleet::start(&redis, STRICT);
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
    let most = 100.0 + STRICT.rate() * begin.elapsed().as_secs_f64() + STRICT.bound() as f64;
    println!("{} of {most:.0}, longest {:?}", outcome.passed.len(), outcome.longest);
    assert!(outcome.passed.len() as f64 <= most, "{} of {most}", outcome.passed.len());
    assert!(outcome.passed.len() >= 90 || outcome.longest >= Duration::from_micros(HOLD_US), "{outcome:?}");
}

/// What happens to Redis under load; a fault that is an outage degrades the gateways.
fn survive(is_outage: bool, strike: fn(&mut Redis), end: fn(&mut Redis)) {
    for limit in [SLOW, FAST] {
        let mut redis = Redis::start();
        let fleet = Fleet::start(&redis, limit);
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
        let allowed = full + limit.rate() * time + limit.bound() as f64 + more;
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

#[test]
fn clients_that_leave_while_their_requests_are_held_leave_nothing_behind() {
    let redis = Redis::start();
    let fleet = Fleet::start(&redis, Limit { limit: 1_000_000, ..STRICT });
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
