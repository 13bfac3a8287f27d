//! Ejection in seeded simulation: cores that report in any order, endpoints that come and go, caps that change; and the
//! same with real threads.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Barrier};

use ringway_core::ejection::{EjectionSettings, Failed};
use ringway_core::health::{EndpointHealth, Fleet, Reason};
use ringway_core::random::Random;

const SECOND: u64 = 1_000_000;
const SEEDS: u64 = 5_000;

fn settings(random: &mut Random) -> EjectionSettings {
    EjectionSettings {
        consecutive_failures: (random.below(4) > 0).then(|| 1 + random.below(6) as u32),
        consecutive_connect_failures: (random.below(4) > 0).then(|| 1 + random.below(3) as u32),
        success_rate: None,
        latency: None,
        interval_us: 10 * SECOND,
        base_us: (1 + random.below(40)) * SECOND,
        max_us: 300 * SECOND,
        max_share: 1 + random.below(100) as u8,
    }
}

/// A service as the control plane keeps it.
struct World {
    settings: EjectionSettings,
    fleet: Arc<Fleet>,
    endpoints: Vec<EndpointHealth>,
    /// Whether an endpoint fails, and how.
    failing: Vec<Option<Failed>>,
    /// Failures in a row, as a reference.
    rows: Vec<(u32, u32, bool)>,
    removed: Vec<EndpointHealth>,
    now: u64,
    ejections: u64,
}

impl World {
    fn new(random: &mut Random) -> Self {
        let settings = settings(random);
        let count = 1 + random.below(12) as usize;
        let fleet = Fleet::new("s".into());
        fleet.set_cap(settings.cap(count));
        let endpoints = (0..count).map(|index| EndpointHealth::new(&fleet, index.to_string().into())).collect();
        let (failing, rows) = (vec![None; count], vec![(0, 0, false); count]);
        Self { settings, fleet, endpoints, failing, rows, removed: vec![], now: 0, ejections: 0 }
    }

    fn ejected(&self) -> u32 {
        self.endpoints.iter().filter(|endpoint| endpoint.ejection().is_some()).count() as u32
    }

    /// A core has an answer, or none.
    fn report(&mut self, index: usize) {
        let Self { settings, endpoints, rows, .. } = self;
        let (endpoint, row) = (&endpoints[index], &mut rows[index]);
        let was_out = endpoint.ejection().is_some();
        let Some(failed) = self.failing[index] else {
            endpoint.succeeded();
            *row = (0, 0, false);
            return;
        };
        let full = self.fleet.ejected() >= self.fleet.cap();
        let ejection = settings.failed(endpoint, failed, self.now);
        *row = (row.0 + 1, if failed == Failed::Connect { row.1 + 1 } else { 0 }, row.2);
        let over = |limit: Option<u32>, count: u32| limit.is_some_and(|limit| row.2 || count >= limit);
        let is_due = over(settings.consecutive_failures, row.0)
            || failed == Failed::Connect && over(settings.consecutive_connect_failures, row.1);
        assert_eq!(ejection.is_some(), is_due && !was_out && !full, "{row:?} {settings:?}");
        if let Some(ejection) = ejection {
            self.ejections += 1;
            assert!((settings.base_us.min(settings.max_us)..=settings.max_us).contains(&ejection.time_us));
            assert!(!endpoint.is_usable());
        }
    }

    /// What the control plane does with each tick.
    fn expire(&mut self) {
        for (endpoint, row) in self.endpoints.iter().zip(&mut self.rows) {
            if endpoint.ejection().is_some_and(|(until, _)| until <= self.now) {
                assert!(endpoint.reinstate());
                *row = (0, 0, true);
            }
        }
    }

    fn reload(&mut self, random: &mut Random) {
        if random.below(2) == 0 && self.endpoints.len() > 1 {
            let gone = random.below(self.endpoints.len() as u64) as usize;
            let endpoint = self.endpoints.remove(gone);
            self.failing.remove(gone);
            self.rows.remove(gone);
            endpoint.remove();
            self.removed.push(endpoint);
        } else {
            self.endpoints.push(EndpointHealth::new(&self.fleet, "new".into()));
            self.failing.push(None);
            self.rows.push((0, 0, false));
        }
        if random.below(3) == 0 {
            self.settings.max_share = 1 + random.below(100) as u8;
        }
        self.fleet.set_cap(self.settings.cap(self.endpoints.len()));
        for (endpoint, row) in self.endpoints.iter().zip(&mut self.rows) {
            if self.fleet.surplus() > 0 && endpoint.reinstate() {
                *row = (0, 0, true);
            }
        }
    }
}

#[test]
fn never_more_than_the_cap_and_exactly_when_it_is_due() {
    let mut ejections = 0;
    for seed in 0..SEEDS {
        let result = std::panic::catch_unwind(|| {
            let random = &mut Random(seed);
            let mut world = World::new(random);
            for _ in 0..400 {
                world.now += random.below(SECOND);
                match random.below(40) {
                    0 => {
                        let index = random.below(world.endpoints.len() as u64) as usize;
                        let kinds = [None, Some(Failed::Connect), Some(Failed::Request)];
                        world.failing[index] = kinds[random.below(3) as usize];
                    }
                    1 => world.reload(random),
                    2 => world.expire(),
                    // What cores with an older configuration still report of who is gone takes no place.
                    3 if !world.removed.is_empty() => {
                        let gone = &world.removed[random.below(world.removed.len() as u64) as usize];
                        assert_eq!(world.settings.failed(gone, Failed::Connect, world.now), None);
                    }
                    _ => {
                        let index = random.below(world.endpoints.len() as u64) as usize;
                        world.report(index);
                    }
                }
                let ejected = world.ejected();
                assert_eq!(ejected, world.fleet.ejected());
                assert!(ejected <= world.settings.cap(world.endpoints.len()), "{ejected} of {}", world.endpoints.len());
                assert!(world.endpoints.len() as u32 > ejected, "nobody is left");
            }
            world.ejections
        });
        ejections += result.unwrap_or_else(|panic| {
            eprintln!("seed {seed}");
            std::panic::resume_unwind(panic)
        });
    }
    assert!(ejections > SEEDS, "the simulation has hardly ejected anything: {ejections}");
}

/// A dead endpoint costs its failures in a row once, and then one for each return.
#[test]
fn a_dead_endpoint_costs_one_failure_for_each_return() {
    for seed in 0..200 {
        let random = &mut Random(seed);
        let settings =
            EjectionSettings { consecutive_connect_failures: Some(2), base_us: 30 * SECOND, ..settings(random) };
        let fleet = Fleet::new("s".into());
        fleet.set_cap(settings.cap(3));
        let dead = EndpointHealth::new(&fleet, "dead".into());
        let (mut now, mut failures, mut returns) = (0, 0, 0);
        while now < 3_600 * SECOND {
            now += random.below(SECOND);
            match dead.ejection() {
                Some((until, _)) if until <= now => returns += u32::from(dead.reinstate()),
                Some(_) => {}
                None => {
                    failures += 1;
                    settings.failed(&dead, Failed::Connect, now);
                }
            }
        }
        assert!(failures <= returns + 2, "seed {seed}: {failures} failures, {returns} returns");
        assert!((3..25).contains(&returns), "seed {seed}: {returns} returns in an hour");
    }
}

/// Cores that eject, and a control plane that lets back in and reloads, all at once.
#[test]
fn threads_never_exceed_the_cap() {
    const CORES: u64 = 4;
    for seed in 0..20 {
        let fleet = Fleet::new("s".into());
        fleet.set_cap(3);
        let endpoints: Arc<Vec<_>> =
            Arc::new((0..8).map(|index| EndpointHealth::new(&fleet, index.to_string().into())).collect());
        let settings = EjectionSettings { consecutive_failures: Some(1), max_share: 40, ..settings(&mut Random(seed)) };
        assert_eq!(settings.cap(8), 3);
        let (stop, worst, barrier) = (AtomicBool::new(false), AtomicU32::new(0), Barrier::new(CORES as usize + 1));
        std::thread::scope(|scope| {
            for core in 0..CORES {
                let (endpoints, stop, barrier) = (&endpoints, &stop, &barrier);
                scope.spawn(move || {
                    let mut random = Random(seed << 8 | core);
                    barrier.wait();
                    while !stop.load(Ordering::Relaxed) {
                        let endpoint = &endpoints[random.below(8) as usize];
                        if random.below(4) == 0 {
                            endpoint.succeeded();
                        } else {
                            settings.failed(endpoint, Failed::Request, 0);
                        }
                    }
                });
            }
            barrier.wait();
            let mut random = Random(seed);
            for _ in 0..20_000 {
                endpoints[random.below(8) as usize].reinstate();
                let flagged = endpoints.iter().filter(|endpoint| endpoint.ejection().is_some()).count() as u32;
                // Looked at one after the other: what counts is the number that is kept.
                worst.fetch_max(fleet.ejected(), Ordering::Relaxed);
                assert!(flagged <= 8);
            }
            stop.store(true, Ordering::Relaxed);
        });
        assert!(worst.into_inner() <= 3, "seed {seed}");
        let flagged = endpoints.iter().filter(|endpoint| endpoint.ejection().is_some()).count() as u32;
        assert_eq!(flagged, fleet.ejected(), "seed {seed}");
        for endpoint in endpoints.iter() {
            endpoint.reinstate();
        }
        assert_eq!(fleet.ejected(), 0, "seed {seed}");
        assert!(settings.eject(&endpoints[0], Reason::Latency, 0).is_some());
    }
}
