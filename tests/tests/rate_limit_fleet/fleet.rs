//! Gateways that share a limit, and their clients.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use ringway_core::limit::{Fallback, HOLD_US, Policy, Spec};
use ringway_tests::{Backend, Client, Gateway, Message, PATIENCE, Setup, eventually};
use serde_json::Value;

pub(crate) const GATEWAYS: usize = 4;
pub(crate) const CLIENTS: usize = 8;
/// No request takes longer, whatever happens to Redis. It is held for 7 ms at most; the machine may be busy.
pub(crate) const LONGEST: Duration = Duration::from_secs(1);
/// From Redis' return to limits that are kept with it.
pub(crate) const RECOVERY: Duration = Duration::from_secs(2);

/// What clients are allowed, and how the configuration says it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limit {
    pub(crate) limit: u64,
    pub(crate) period_s: u64,
    /// More of its section: `strict: true`.
    pub(crate) more: &'static str,
}

pub(crate) const PER_MINUTE: Limit = Limit { limit: 100, period_s: 60, more: "" };
pub(crate) const SLOW: Limit = Limit { limit: 50, period_s: 1, more: "" };
pub(crate) const FAST: Limit = Limit { limit: 1_000, period_s: 1, more: "" };
pub(crate) const FASTEST: Limit = Limit { limit: 5_000, period_s: 1, more: "" };
pub(crate) const STRICT: Limit = Limit { limit: 100, period_s: 60, more: ", strict: true" };

impl Limit {
    pub(crate) fn rate(self) -> f64 {
        self.limit as f64 / self.period_s as f64
    }

    /// H, as it is computed for so many gateways.
    pub(crate) fn bound(self, gateways: usize) -> u64 {
        let spec = Spec {
            name: "clients".into(),
            limit: self.limit,
            period: Duration::from_secs(self.period_s),
            burst: self.limit,
            strict: self.more.contains("strict"),
            without_redis: Fallback::FairShare,
            keys_max: 1,
        };
        Policy::new(&spec).unwrap().bound(gateways as u32)
    }
}

pub(crate) struct Fleet {
    pub(crate) gateways: Vec<Gateway>,
    pub(crate) limit: Limit,
    pub(crate) epoch: Instant,
    _backend: Backend,
}

/// What became of the requests of a while.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    /// When each answer of 200 had come, in order.
    pub(crate) passed: Vec<Duration>,
    /// When each answer of 429 had come, in order.
    pub(crate) refused: Vec<Duration>,
    pub(crate) others: BTreeMap<u16, usize>,
    pub(crate) longest: Duration,
}

pub(crate) fn request(key: &str) -> String {
    format!("GET /a HTTP/1.1\r\nHost: test\r\nX-Client: {key}\r\n\r\n")
}

pub(crate) fn number(answer: &Message, name: &str) -> u64 {
    answer.get(name).and_then(|value| value.parse().ok()).unwrap_or_else(|| panic!("{name}: {}", answer.text()))
}

impl Fleet {
    /// Waits until the gateways know of each other.
    #[track_caller]
    pub(crate) fn start(redis: &str, limit: Limit) -> Self {
        Self::of(GATEWAYS, redis, limit)
    }

    /// So many gateways. `redis`: its URL.
    #[track_caller]
    pub(crate) fn of(gateways: usize, redis: &str, limit: Limit) -> Self {
        let backend = Backend::ok();
        let Limit { limit: count, period_s, more } = limit;
        let sections = format!(
            "runtime: {{ workers: 2, pin: false, driver: \"${{env:RINGWAY_TEST_DRIVER:-auto}}\" }}\n\
             redis: {{ url: \"{redis}\" }}\n\
             rate_limits: [{{ name: clients, limit: {count}/{period_s}s, key: header X-Client{more} }}]\n"
        );
        let setup = Setup { route: "rate_limit: clients", sections: &sections, ..Setup::default() };
        let gateways = (0..gateways).map(|_| setup.start(backend.endpoint())).collect();
        let fleet = Self { gateways, limit, epoch: Instant::now(), _backend: backend };
        eventually(PATIENCE, || fleet.agrees());
        fleet
    }

    /// Whether all keep the limit with Redis, and know how many they are.
    pub(crate) fn agrees(&self) -> bool {
        let bound = |gateway: &Gateway| gateway.metric("gateway_rate_limit_bound{policy=\"clients\"}");
        self.gateways.iter().all(|gateway| bound(gateway) == self.bound() as f64 && !is_degraded(gateway))
    }

    /// H, as it is computed for this fleet.
    pub(crate) fn bound(&self) -> u64 {
        self.limit.bound(self.gateways.len())
    }

    pub(crate) fn total(&self, metric: &str) -> f64 {
        self.gateways.iter().map(|gateway| gateway.metric(&format!("{metric}{{policy=\"clients\"}}"))).sum()
    }

    pub(crate) fn is_degraded_anywhere(&self) -> bool {
        self.gateways.iter().any(is_degraded)
    }

    pub(crate) fn is_degraded_everywhere(&self) -> bool {
        self.gateways.iter().all(is_degraded)
    }

    /// Every client has a connection to each gateway and asks them in turn; all together `per_second` times a second (0:
    /// as fast as they can), until `end` says so, which gets the number of the request.
    pub(crate) fn load(&self, key: &str, per_second: f64, end: impl Fn(usize) -> bool + Sync) -> Outcome {
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
                        let status = connections[(turn + place) % self.gateways.len()].ask(&request).status();
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
    pub(crate) fn under_load(&self, times: f64, act: impl FnOnce()) -> Outcome {
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

    /// How long each request was in the gateways' own hands, shortest first: from its head to the end of its answer, less
    /// what its service took. From their access logs, which tell it apart from what the machine does to clients.
    pub(crate) fn waits(&self, requests: usize) -> Vec<Duration> {
        let lines = || self.gateways.iter().flat_map(Gateway::log_lines).collect::<Vec<_>>();
        eventually(PATIENCE, || lines().len() >= requests);
        let ms = |line: &Value, field: &str| line[field].as_f64().unwrap_or_default();
        let wait = |line: &Value| (ms(line, "latencyMs") - ms(line, "backendLatencyMs")).max(0.0);
        let mut waits: Vec<_> = lines().iter().map(|line| Duration::from_secs_f64(wait(line) / 1e3)).collect();
        waits.sort_unstable();
        waits
    }

    /// As many requests as one bucket holds, and as many again, at once on a fresh key and over all gateways: they keep the
    /// limit together.
    #[track_caller]
    pub(crate) fn expect_agreement(&self) {
        let (full, begin) = (self.limit.limit as usize, Instant::now());
        let outcome = self.load("fresh", 0.0, |number| number >= 2 * full);
        outcome.expect_only_answers();
        let came_back = self.limit.rate() * begin.elapsed().as_secs_f64();
        let (passed, most) = (outcome.passed.len() as f64, full as f64 + came_back + self.bound() as f64);
        println!("{:?}: {passed} of at most {most:.0} passed on a fresh key", self.limit);
        assert!(passed <= most, "{:?}: {passed} of {most}", self.limit);
        assert!(passed >= 0.9 * full as f64, "{:?}: {passed} of {full}", self.limit);
    }

    /// How many of these requests one bucket would have admitted.
    pub(crate) fn ideal(&self, outcome: &Outcome) -> usize {
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
    pub(crate) fn expect_burst(&self) {
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

    pub(crate) fn passed_between(&self, from: Duration, to: Duration) -> usize {
        self.passed.iter().filter(|at| (from..to).contains(*at)).count()
    }

    /// Requests pass or are refused; nothing fails, and nothing takes long.
    #[track_caller]
    pub(crate) fn expect_only_answers(&self) {
        assert!(self.others.is_empty(), "{:?}", self.others);
        assert!(self.longest < LONGEST, "{:?}", self.longest);
    }
}

pub(crate) fn is_degraded(gateway: &Gateway) -> bool {
    is_without_redis(gateway, "clients")
}

pub(crate) fn is_without_redis(gateway: &Gateway, policy: &str) -> bool {
    gateway.metric(&format!("gateway_rate_limit_degraded{{policy=\"{policy}\"}}")) == 1.0
}
