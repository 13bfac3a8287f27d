//! Rate limits against a real Redis: the script's arithmetic; four instances of two workers that keep one limit together,
//! in good times and in bad ones.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use redis::{Connection, RedisResult};
use ringway_config::{Source, compile};
use ringway_control::redis::{Redis as Link, Requests};
use ringway_core::limit::script::{self, Reply, Request, Stored};
use ringway_core::limit::{Decision, Fallback, HOLD_US, Limiter, Policy, Spec, WAIT_US_MAX, Wake};
use ringway_tests::redis::{Redis, Slow};
use ringway_tests::{PATIENCE, eventually};

struct Script {
    hash: String,
    connection: Connection,
}

impl Script {
    fn new(server: &Redis, text: &str) -> Self {
        let mut connection = redis::Client::open(server.url()).unwrap().get_connection().unwrap();
        let hash = redis::cmd("SCRIPT").arg("LOAD").arg(text).query(&mut connection).unwrap();
        Self { hash, connection }
    }

    fn call(&mut self, key: &str, request: &Request, more: &[u64]) -> Reply {
        let mut command = redis::cmd("EVALSHA");
        command.arg(&self.hash).arg(1).arg(key).arg(&request.arguments());
        for more in more {
            command.arg(more);
        }
        let answer: RedisResult<Vec<i64>> = command.query(&mut self.connection);
        let numbers = answer.unwrap_or_else(|error| panic!("{error}: {request:?}"));
        Reply::from_numbers(&numbers).unwrap_or_else(|| panic!("{numbers:?}: {request:?}"))
    }

    fn time_us(&mut self) -> u64 {
        let [seconds, us]: [u64; 2] = redis::cmd("TIME").query(&mut self.connection).unwrap();
        seconds * 1_000_000 + us
    }
}

#[test]
fn the_script_computes_exactly() {
    let server = Redis::start();
    // On a clock of the test; the server's own must not end a key's life in between.
    let mut text = script::SOURCE.to_owned();
    for (theirs, ours) in [
        ("redis.call('TIME')", "{ ARGV[12], ARGV[13] }"),
        ("'PX', string.format('%.0f', ceil(d / L / 1000) + 1)", "'KEEPTTL'"),
    ] {
        assert_eq!(text.matches(theirs).count(), 1, "{theirs}");
        text = text.replace(theirs, ours);
    }
    let mut script = Script::new(&server, &text);
    let seed =
        std::env::var("RINGWAY_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(|| fastrand::u64(..));
    println!("RINGWAY_SEED={seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    // P, L: 100/min, 50/s, 333/s, 5,000/s, 7,777/s, 700,000/s, 3,000,000/s, 1/day.
    let rates = [
        (600_000, 1),
        (20_000, 1),
        (1_000_000, 333),
        (200, 1),
        (1_000_000, 7_777),
        (10, 7),
        (1, 3),
        (86_400_000_000, 1),
    ];
    for round in 0..400 {
        let (token, per_us) = random.choice(rates).unwrap();
        let most = ((1_u64 << 51) / token).min(1 << 30);
        // Bursts of all orders of magnitude.
        let burst = random.u64(1..=most).min(1 << random.u32(0..=30)).max(1);
        let (key, mut now_us, mut stored) = (format!("{{key{round}}}"), 1_790_000_000_000_000_u64, None::<Stored>);
        let empty_us = burst * token / per_us;
        for _ in 0..25 {
            let few = |random: &mut fastrand::Rng| if random.bool() { 0 } else { random.u64(0..=burst / 4 + 2) };
            let request = Request {
                token,
                per_us,
                burst,
                divisor: if random.bool() { 0 } else { 12 * random.u64(1..=16) },
                debt: few(&mut random),
                must: few(&mut random),
                extra: few(&mut random),
                held: few(&mut random),
                back: few(&mut random),
                hint_us: if random.bool() { 0 } else { random.u64(0..=empty_us * 2 + 1) },
                wait_us_max: random.choice([0, WAIT_US_MAX]).unwrap(),
            };
            let (reply, next) = script::run(stored, &request, now_us);
            let time = [now_us / 1_000_000, now_us % 1_000_000];
            assert_eq!(script.call(&key, &request, &time), reply, "seed {seed}, stored {stored:?}, {request:?}");
            let kept: Option<String> = redis::cmd("GET").arg(&key).query(&mut script.connection).unwrap();
            let expected = next.map(|at| format!("{}:{}", at.us, at.units));
            assert_eq!(kept, expected, "seed {seed}, stored {stored:?}, {request:?}");
            stored = next;
            // Forward mostly; sometimes the clock leaps.
            now_us = match random.u32(0..10) {
                0 => now_us - 10_000_000,
                1 => now_us + 10_000_000,
                _ => now_us + random.u64(0..=empty_us / 10 + 1),
            };
        }
    }
}

#[test]
fn the_script_alone_grants_burst_and_rate_and_no_more() {
    let server = Redis::start();
    let mut script = Script::new(&server, script::SOURCE);
    for (rate, p, l, b) in
        [(333, 1_000_000, 333, 10), (7_777, 1_000_000, 7_777, 777), (700_000, 10, 7, 7_000), (3_000_000, 1, 3, 30_000)]
    {
        let key = format!("ringway:{{greedy:{rate}}}");
        let request = Request { token: p, per_us: l, burst: b, must: 1_000_000, ..Request::default() };
        let (mut granted, mut calls, mut gap_us) = (0, 0, 0);
        let first = script.time_us();
        let (mut last, start) = (first, Instant::now());
        let mut full_in_us = 0;
        while start.elapsed().as_millis() < 700 {
            let reply = script.call(&key, &request, &[]);
            (granted, full_in_us) = (granted + reply.granted, reply.full_after_us);
            calls += 1;
            let now = script.time_us();
            gap_us = gap_us.max(now - last);
            last = now;
        }
        let life_ms: i64 = redis::cmd("PTTL").arg(&key).query(&mut script.connection).unwrap();
        assert!(life_ms <= full_in_us as i64 / 1000 + 2, "{life_ms} ms, full in {full_in_us} us");
        let tokens = |us: u64| rate * us / 1_000_000;
        let most = b + tokens(last - first);
        // The bucket was asked for the last time, and for the first, within a gap of these times.
        let least = most - 2 - 3 * tokens(gap_us) - 1;
        println!("{rate}/s: {granted} of {most} in {calls} calls, at most {gap_us} us apart");
        assert!((least..=most).contains(&granted), "{rate}/s: {granted} is not within {least} and {most}");
    }
}

const INSTANCES: usize = 4;
const WORKERS: usize = 2;
/// What a busy machine may add to a wait.
const BUSY: Duration = Duration::from_millis(100);

/// One gateway, as far as limits go.
struct Instance {
    link: Link,
    limiter: Arc<Limiter>,
    requests: Requests,
    workers: Arc<Mutex<HashMap<u32, Thread>>>,
}

impl Instance {
    fn start(url: &str, spec: &Spec, epoch: Instant) -> Self {
        let text = format!("listeners: [{{ name: a, address: \"127.0.0.1:1\" }}]\nredis: {{ url: \"{url}\" }}\n");
        let source = Source { name: "f".into(), text };
        let settings = compile(&[source], &|_| None).unwrap_or_else(|errors| panic!("{errors}")).redis;
        let workers: Arc<Mutex<HashMap<u32, Thread>>> = Arc::default();
        let wake = {
            let workers = workers.clone();
            move |wake: Wake| {
                if let Some(worker) = workers.lock().unwrap().get(&wake.worker) {
                    worker.unpark();
                }
            }
        };
        let requests = Requests::new(epoch, Arc::new(wake));
        let limiter = Arc::new(Limiter::shared(Policy::new(spec).unwrap()));
        let link = Link::start(settings).unwrap();
        link.limit(vec![limiter.clone()], requests.clone());
        Self { link, limiter, requests, workers }
    }

    fn is_degraded(&self) -> bool {
        self.link.stats().degraded.get() == 1
    }

    /// One request, on a thread that stands for a worker. Whether it was admitted, and how long it was held.
    fn ask(&self, worker: u32, key: &[u8]) -> (bool, Duration) {
        let mut decision = self.limiter.check(key, 1, self.requests.now_us());
        if self.limiter.take_bell() {
            self.requests.ring();
        }
        let start = Instant::now();
        loop {
            let held = match decision {
                Decision::Admitted(_) => return (true, start.elapsed()),
                Decision::Refused(_) | Decision::Unavailable => return (false, start.elapsed()),
                Decision::Hold(held) => held,
            };
            self.workers.lock().unwrap().entry(worker).or_insert_with(thread::current);
            held.wake(Wake { worker, ticket: 0 });
            decision = loop {
                let now_us = self.requests.now_us();
                if let Some(decision) = self.limiter.outcome(&held, now_us) {
                    break decision;
                }
                assert!(start.elapsed() < PATIENCE, "held for good");
                let until_us = held.since_us() + HOLD_US;
                // At the end of the hold there may be a grant that begins a little later; then somebody wakes.
                thread::park_timeout(Duration::from_micros(until_us.saturating_sub(now_us).max(500)));
            };
        }
    }
}

/// Gateways that share a limit, and their clients.
struct Fleet {
    instances: Vec<Instance>,
    spec: Spec,
    epoch: Instant,
}

/// What became of the requests of a while.
#[derive(Debug, Default)]
struct Outcome {
    /// When each one was admitted, in order.
    admitted: Vec<Duration>,
    /// When each one was refused, in order.
    refused: Vec<Duration>,
    held_longest: Duration,
}

fn per(limit: u64, seconds: u64) -> Spec {
    Spec {
        name: format!("{limit}-in-{seconds}s").into(),
        limit,
        period: Duration::from_secs(seconds),
        burst: limit,
        strict: false,
        without_redis: Fallback::FairShare,
        keys_max: 1_000,
    }
}

impl Fleet {
    #[track_caller]
    fn start(url: &str, spec: Spec) -> Self {
        let epoch = Instant::now();
        let instances: Vec<Instance> = (0..INSTANCES).map(|_| Instance::start(url, &spec, epoch)).collect();
        let fleet = Self { instances, spec, epoch };
        eventually(PATIENCE, || {
            fleet.instances.iter().all(|instance| {
                let knows = || instance.link.stats().instances.get() == INSTANCES as u64;
                knows() && !instance.is_degraded() && instance.link.stats().connected.get() == 1
            })
        });
        // The limiters hear of it at the next turn.
        thread::sleep(Duration::from_millis(250));
        fleet
    }

    fn rate(&self) -> f64 {
        self.spec.limit as f64 / self.spec.period.as_secs_f64()
    }

    fn bound(&self) -> u64 {
        self.instances[0].limiter.policy().bound(INSTANCES as u32)
    }

    /// Every worker of every instance asks its share of `per_second` times a second (0: as fast as it can) until `end`
    /// says so, which gets the number of the request.
    fn load(&self, key: &str, per_second: f64, end: impl Fn(usize) -> bool + Sync) -> Outcome {
        let outcomes = Mutex::new(Outcome::default());
        thread::scope(|scope| {
            for place in 0..INSTANCES * WORKERS {
                let (outcomes, end) = (&outcomes, &end);
                let instance = &self.instances[place % INSTANCES];
                scope.spawn(move || {
                    let mut seen = Outcome::default();
                    let start = Instant::now();
                    for number in 0.. {
                        if end(number * INSTANCES * WORKERS + place) {
                            break;
                        }
                        if per_second > 0.0 {
                            // Workers take turns.
                            let turns = (number * INSTANCES * WORKERS + place) as f64;
                            let due = start + Duration::from_secs_f64(turns / per_second);
                            thread::sleep(due.saturating_duration_since(Instant::now()));
                        }
                        let (is_admitted, held) = instance.ask(place as u32, key.as_bytes());
                        seen.held_longest = seen.held_longest.max(held);
                        match is_admitted {
                            true => seen.admitted.push(self.epoch.elapsed()),
                            false => seen.refused.push(self.epoch.elapsed()),
                        }
                    }
                    let mut all = outcomes.lock().unwrap();
                    all.admitted.extend(seen.admitted);
                    all.refused.extend(seen.refused);
                    all.held_longest = all.held_longest.max(seen.held_longest);
                });
            }
        });
        let mut outcome = outcomes.into_inner().unwrap();
        outcome.admitted.sort_unstable();
        outcome.refused.sort_unstable();
        outcome
    }

    /// How many of these requests a single bucket admits.
    fn ideal(&self, outcome: &Outcome) -> usize {
        let mut asked = [&outcome.admitted[..], &outcome.refused[..]].concat();
        asked.sort_unstable();
        let (mut level, mut last) = (self.spec.burst as f64, Duration::ZERO);
        let admits = |at: &&Duration| {
            level = (level + self.rate() * (**at - last).as_secs_f64()).min(self.spec.burst as f64);
            last = **at;
            let admitted = level >= 1.0;
            level -= f64::from(u8::from(admitted));
            admitted
        };
        asked.iter().filter(admits).count()
    }

    /// The lowest level of a bucket that may go into debt, under these requests.
    fn lowest(&self, admitted: &[Duration]) -> f64 {
        let (mut level, mut last, mut lowest) = (self.spec.burst as f64, Duration::ZERO, f64::MAX);
        for at in admitted {
            level = (level + self.rate() * (*at - last).as_secs_f64()).min(self.spec.burst as f64) - 1.0;
            last = *at;
            lowest = lowest.min(level);
        }
        lowest
    }

    /// Load at so many times the rate, 60 a second at least, for as long as `act` takes.
    fn under_load(&self, times: f64, act: impl FnOnce()) -> Outcome {
        let is_over = AtomicBool::new(false);
        let per_second = (self.rate() * times).max(60.0);
        thread::scope(|scope| {
            let load = scope.spawn(|| self.load("steady", per_second, |_| is_over.load(Ordering::Relaxed)));
            let acted = std::panic::catch_unwind(std::panic::AssertUnwindSafe(act));
            is_over.store(true, Ordering::Relaxed);
            let outcome = load.join().unwrap();
            acted.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            outcome
        })
    }

    fn is_degraded_anywhere(&self) -> bool {
        self.instances.iter().any(Instance::is_degraded)
    }

    #[track_caller]
    fn expect_above(&self, outcome: &Outcome, level: f64) {
        // A worker may be late with noting the time of its request.
        let (lowest, slack) = (self.lowest(&outcome.admitted), (INSTANCES * WORKERS) as f64);
        assert!(lowest >= level - slack, "{}: {lowest} is below {level}", self.spec.name);
    }

    #[track_caller]
    fn expect_short_holds(&self, outcome: &Outcome) {
        let longest = Duration::from_micros(HOLD_US + WAIT_US_MAX) + BUSY;
        assert!(outcome.held_longest < longest, "{}: held for {:?}", self.spec.name, outcome.held_longest);
    }

    /// So many requests at once on a fresh key, all of which pass. Eight workers on few cores: where something did not run
    /// for as long as the hold, it is tried again with another key.
    #[track_caller]
    fn expect_burst(&self, key: &str, count: usize) {
        let passes = |attempt: usize| {
            let outcome = self.load(&format!("{key} {attempt}"), 0.0, |number| number >= count);
            self.expect_short_holds(&outcome);
            let is_late = outcome.held_longest >= Duration::from_micros(HOLD_US);
            let refused = outcome.refused.len();
            println!("{}: {refused} of a burst of {count} refused", self.spec.name);
            assert!(refused == 0 || is_late, "{}: {refused} of {count} refused", self.spec.name);
            refused == 0
        };
        assert!((0..10).any(passes), "{}: of ten bursts none passed", self.spec.name);
    }

    fn stop(self) {
        self.instances.into_iter().for_each(|instance| instance.link.stop());
    }
}

#[test]
fn a_burst_within_the_limit_passes_and_more_than_the_bound_never() {
    let server = Redis::start();
    for spec in [per(100, 60), per(50, 1), per(5_000, 1)] {
        let fleet = Fleet::start(&server.url(), spec);
        let burst = fleet.spec.burst as usize * 9 / 10;
        fleet.expect_burst("burst", burst);

        // From a full bucket at one and a half times the rate, at 60 a second at least.
        let begin = fleet.epoch.elapsed();
        let outcome = fleet.under_load(1.5, || thread::sleep(Duration::from_secs(4)));
        let time = (fleet.epoch.elapsed() - begin).as_secs_f64();
        let ideal = fleet.ideal(&outcome) as f64;
        let (tokens, bound) = (fleet.spec.burst as f64 + fleet.rate() * time, fleet.bound() as f64);
        let (admitted, lowest) = (outcome.admitted.len() as f64, fleet.lowest(&outcome.admitted));
        println!(
            "{}: admitted {admitted} of {tokens:.0} (and {bound} at most), lowest {lowest:.1}, refused {}, held {:?}",
            fleet.spec.name,
            outcome.refused.len(),
            outcome.held_longest
        );
        fleet.expect_above(&outcome, -bound);
        assert!(admitted <= tokens + bound, "{admitted} {tokens} {bound}");
        assert!(admitted >= 0.97 * ideal - 10.0, "{}: {admitted} of {ideal}", fleet.spec.name);
        fleet.expect_short_holds(&outcome);
        fleet.stop();
    }
}

/// What happens to Redis, and what the limits make of it.
struct Fault {
    /// Begins it, waits, and ends it. Gets to see the fleet.
    strike: fn(&mut Redis, &Slow, &Fleet),
    is_outage: bool,
}

/// Under 1.2 times the rate, for a slow and a fast policy.
fn survive(fault: Fault) {
    for spec in [per(50, 1), per(5_000, 1)] {
        let mut server = Redis::start();
        let slow = Slow::before(server.address());
        let fleet = Fleet::start(&format!("redis://{}", slow.address()), spec);
        // The bucket is empty from the start, so that what is too much shows.
        let mut admitted = fleet.load("steady", 0.0, |number| number >= fleet.spec.burst as usize).admitted;
        let mut outcome = fleet.under_load(1.2, || {
            thread::sleep(Duration::from_millis(700));
            (fault.strike)(&mut server, &slow, &fleet);
            let end = Instant::now();
            eventually(Duration::from_secs(2), || !fleet.is_degraded_anywhere());
            println!("{}: recovered after {:?}", fleet.spec.name, end.elapsed());
            thread::sleep(Duration::from_millis(700));
        });
        admitted.append(&mut outcome.admitted);
        outcome.admitted = admitted;
        let (burst, bound) = (fleet.spec.burst as f64, fleet.bound() as f64);
        println!(
            "{}: admitted {}, refused {}, lowest {:.1} of -{bound}, held {:?} at most",
            fleet.spec.name,
            outcome.admitted.len(),
            outcome.refused.len(),
            fleet.lowest(&outcome.admitted),
            outcome.held_longest
        );
        fleet.expect_short_holds(&outcome);
        // Without Redis each instance begins with a bucket of its own: a burst in all. When Redis forgets, what was leased
        // and what the freshest view of the bucket lacks.
        let more = if fault.is_outage { burst } else { burst / 12.0 + fleet.rate() * 0.15 };
        fleet.expect_above(&outcome, -bound - more);
        assert!(outcome.admitted.len() as f64 > burst + fleet.rate() / 2.0, "{}", outcome.admitted.len());
        fleet.stop();
    }
}

#[track_caller]
fn expect_degraded(fleet: &Fleet) {
    eventually(Duration::from_secs(2), || fleet.instances.iter().all(Instance::is_degraded));
    thread::sleep(Duration::from_millis(700));
}

#[test]
fn redis_frozen() {
    survive(Fault {
        strike: |server, _, fleet| {
            server.stop();
            expect_degraded(fleet);
            server.cont();
        },
        is_outage: true,
    });
}

#[test]
fn redis_killed_and_restarted() {
    survive(Fault {
        strike: |server, _, fleet| {
            server.kill();
            expect_degraded(fleet);
            server.restart();
        },
        is_outage: true,
    });
}

#[test]
fn redis_slow() {
    survive(Fault {
        strike: |_, slow, fleet| {
            slow.set_delay(Duration::from_millis(200));
            expect_degraded(fleet);
            slow.set_delay(Duration::ZERO);
        },
        is_outage: true,
    });
}

#[test]
fn redis_flushed() {
    survive(Fault { strike: |server, _, _| server.flush(), is_outage: false });
}

#[test]
fn a_cluster_serves_as_well() {
    let nodes = Redis::cluster();
    let fleet = Fleet::start(&format!("redis+cluster://127.0.0.1:{}", nodes[0].port()), per(50, 1));
    for key in ["a", "b", "c", "d", "e"] {
        fleet.expect_burst(key, 45);
    }
    // Each key lies on the node that its braces choose.
    let names = nodes.iter().map(|node| node.ask(&["KEYS", "ringway:{50-in-1s:*}"])).collect::<Vec<_>>().join("\n");
    assert!(names.contains("ringway:{50-in-1s:"), "{names}");
    let outcome = fleet.under_load(1.5, || thread::sleep(Duration::from_secs(2)));
    fleet.expect_above(&outcome, -(fleet.bound() as f64));
    fleet.stop();
}
