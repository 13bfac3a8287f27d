//! The adaptive limit before a service that is a queue (M/M/c), in seeded simulation: more clients than it can serve, and a
//! capacity that changes.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use ringway_core::adaptive::AdaptiveSettings;
use ringway_core::bulkhead::{Bulkhead, BulkheadSettings, Place};
use ringway_core::random::Random;

const SEEDS: u64 = 300;
const SECOND: u64 = 1_000_000;

/// A service of `servers`, each of which takes `service_us` for a request on average.
struct World {
    random: Random,
    now: u64,
    servers: usize,
    service_us: f64,
    busy: usize,
    queue: VecDeque<(u64, Place)>,
    /// What is being served: its end, and when it began to wait.
    ends: BinaryHeap<Reverse<(u64, u64)>>,
    places: VecDeque<Place>,
    bulkhead: Arc<Bulkhead>,
    settings: BulkheadSettings,
}

/// What a stretch of time has shown.
#[derive(Debug, Default)]
struct Seen {
    arrived: u64,
    served: u64,
    latency_us: u64,
    /// Sum of the limit at each arrival.
    limit: u64,
}

impl Seen {
    fn mean_limit(&self) -> f64 {
        self.limit as f64 / self.arrived as f64
    }

    fn mean_latency(&self) -> f64 {
        self.latency_us as f64 / self.served as f64
    }
}

impl World {
    fn new(random: Random, settings: AdaptiveSettings, servers: usize, service_us: f64) -> Self {
        let settings = BulkheadSettings { adaptive: Some(settings), ..BulkheadSettings::default() };
        Self {
            random,
            now: 0,
            servers,
            service_us,
            busy: 0,
            queue: VecDeque::new(),
            ends: BinaryHeap::new(),
            places: VecDeque::new(),
            bulkhead: Arc::default(),
            settings,
        }
    }

    /// Requests a microsecond that it can serve.
    fn capacity(&self) -> f64 {
        self.servers as f64 / self.service_us
    }

    fn until_next(&mut self, load: f64) -> u64 {
        self.random.exponential(1.0 / (load * self.capacity())) as u64
    }

    fn start(&mut self) {
        while self.busy < self.servers
            && let Some((arrived, place)) = self.queue.pop_front()
        {
            let end = self.now + (self.random.exponential(self.service_us) as u64).max(1);
            self.ends.push(Reverse((end, arrived)));
            self.places.push_back(place);
            self.busy += 1;
        }
    }

    /// `load`: of the capacity. Gives what was seen after `warm_up`.
    fn run(&mut self, warm_up: u64, time: u64, load: f64) -> Seen {
        let adaptive = self.settings.adaptive.unwrap();
        let (begun, mut seen) = (self.now, Seen::default());
        let until = begun + warm_up + time;
        let mut next = self.now + self.until_next(load);
        loop {
            let end = self.ends.peek().map_or(u64::MAX, |Reverse((end, _))| *end);
            if next.min(end) >= until {
                self.now = until;
                return seen;
            }
            let counts = next.min(end) >= begun + warm_up;
            if end <= next {
                let Some(Reverse((end, arrived))) = self.ends.pop() else { continue };
                self.now = end;
                self.busy -= 1;
                self.bulkhead.adaptive.sample(&adaptive, end - arrived, end);
                drop(self.places.pop_front());
                seen.served += u64::from(counts);
                seen.latency_us += if counts { end - arrived } else { 0 };
            } else {
                self.now = next;
                next += self.until_next(load).max(1);
                if let Ok(place) = self.bulkhead.enter(&self.settings) {
                    self.queue.push_back((self.now, place));
                }
                let limit = self.bulkhead.adaptive.limit(&adaptive);
                assert!((adaptive.min..=adaptive.max).contains(&limit), "{limit}");
                if counts {
                    seen.arrived += 1;
                    seen.limit += u64::from(limit);
                }
            }
            self.start();
        }
    }

    /// Under three times its load it is used, and its queue stays short.
    fn expect_near_capacity(&mut self, what: &str) -> f64 {
        let seen = self.run(12 * SECOND, 20 * SECOND, 3.0);
        let servers = self.servers as f64;
        let served = seen.served as f64 / (20 * SECOND) as f64 / self.capacity();
        let slower = seen.mean_latency() / self.service_us;
        let limit = seen.mean_limit();
        let shown = format!("{what}: {served:.2} of capacity, {slower:.2} times slower, limit {limit:.1} of {servers}");
        assert!(served >= 0.65, "{shown}");
        assert!(slower <= 2.2 + 4.0 / servers, "{shown}");
        assert!(limit >= 0.8 * servers && limit <= 2.0 * servers + 6.0, "{shown}");
        served
    }
}

#[test]
fn the_limit_finds_the_capacity_and_follows_it() {
    let mut served = 0.0;
    for seed in 0..SEEDS {
        let mut random = Random(seed);
        let settings = AdaptiveSettings {
            min: random.between(1, 3) as u32,
            max: random.between(200, 1_000) as u32,
            tolerance: 25,
            probe_interval_us: 10 * SECOND,
        };
        let (servers, service_us) = (random.between(4, 24) as usize, random.between(20_000, 60_000) as f64);
        let mut world = World::new(random, settings, servers, service_us);
        let what =
            |when: &str, world: &World| format!("seed {seed}, {} servers of {service_us} us, {when}", world.servers);
        let at_first = what("at first", &world);
        served += world.expect_near_capacity(&at_first);
        // It loses most of its servers, and gets them back.
        world.servers = (servers / 3).max(2);
        let less = what("with less", &world);
        served += world.expect_near_capacity(&less);
        world.servers = servers;
        let again = what("again", &world);
        served += world.expect_near_capacity(&again);
        // It becomes slower as a whole.
        world.service_us = service_us * 2.0;
        let slow = what("slower", &world);
        served += world.expect_near_capacity(&slow);
    }
    let served = served / (4 * SEEDS) as f64;
    assert!(served > 0.9, "{served:.2} of capacity on average");
}

#[test]
fn under_a_light_load_hardly_anybody_is_refused() {
    let mut served = 0.0;
    for seed in 0..SEEDS {
        let mut random = Random(seed);
        let settings = AdaptiveSettings { min: 5, max: 1_000, tolerance: 25, probe_interval_us: 3 * SECOND };
        let (servers, service_us) = (random.between(8, 24) as usize, random.between(20_000, 60_000) as f64);
        let mut world = World::new(random, settings, servers, service_us);
        let seen = world.run(5 * SECOND, 20 * SECOND, 0.3);
        let share = seen.served as f64 / seen.arrived as f64;
        // What is refused, probes refuse: they come often here.
        assert!(share > 0.94, "seed {seed}: {share:.3} of the requests were served by {servers} servers");
        served += share;
    }
    let served = served / SEEDS as f64;
    assert!(served > 0.985, "{served:.3} of the requests were served on average");
}

#[test]
fn cores_share_it() {
    const CORES: u64 = 4;
    let bulkhead = Arc::new(Bulkhead::default());
    let adaptive = AdaptiveSettings { min: 2, max: 50, tolerance: 25, probe_interval_us: SECOND };
    let settings = BulkheadSettings { adaptive: Some(adaptive), ..BulkheadSettings::default() };
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for core in 0..CORES {
            let (bulkhead, is_over) = (&bulkhead, &is_over);
            scope.spawn(move || {
                let mut random = Random(core);
                for step in 0..50_000 {
                    let place = bulkhead.enter(&settings);
                    let in_flight = u64::from(bulkhead.in_flight());
                    assert!((2..=50).contains(&bulkhead.adaptive.limit(&adaptive)));
                    // The more there are, the slower it is.
                    bulkhead.adaptive.sample(
                        &adaptive,
                        random.exponential(1_000.0 * in_flight as f64) as u64,
                        step * 100,
                    );
                    drop(place);
                }
                is_over.store(true, Ordering::Relaxed);
            });
        }
    });
    assert!(is_over.load(Ordering::Relaxed) && bulkhead.in_flight() == 0 && bulkhead.adaptive.baseline_us() > 0);
}
