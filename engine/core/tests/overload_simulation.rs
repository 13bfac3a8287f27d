//! Shedding on a core with more to do than it can, in seeded simulation: one queue, a service time, requests of all classes.

use std::collections::VecDeque;

use ringway_core::overload::{Criticality, Load, OverloadSettings, Shedder};
use ringway_core::random::Random;

const SEEDS: u64 = 200;
const SECOND: f64 = 1e6;
const TICK: f64 = 50_000.0;

fn within(random: &mut Random, low: f64, high: f64) -> f64 {
    low + random.unit() * (high - low)
}

/// Times in microseconds.
struct Core {
    random: Random,
    settings: OverloadSettings,
    shedder: Shedder,
    now: f64,
    queue: VecDeque<(f64, Criticality)>,
    next: f64,
    tick: f64,
    worked: f64,
    /// What a request takes, and what a refusal takes of it.
    takes: f64,
    refusal: f64,
    /// How much there is of each class.
    mix: [f64; 3],
}

#[derive(Debug, Default)]
struct Seen {
    /// By class: requests, and those that were refused.
    classes: [[f64; 2]; 3],
    served: f64,
    delays: Vec<f64>,
}

impl Seen {
    fn shed(&self) -> [f64; 3] {
        self.classes.map(|[came, shed]| shed / came.max(1.0))
    }
}

impl Core {
    fn class(&mut self) -> Criticality {
        let mut at = self.random.unit() * self.mix.iter().sum::<f64>();
        for (class, size) in Criticality::ALL.into_iter().zip(self.mix) {
            at -= size;
            if at < 0.0 {
                return class;
            }
        }
        Criticality::Critical
    }

    /// `load`: of what it can do.
    fn run(&mut self, time: f64, load: f64) -> Seen {
        let (until, mut seen) = (self.now + time, Seen::default());
        while self.now < until {
            while self.next <= self.now {
                let class = self.class();
                self.queue.push_back((self.next, class));
                self.next += self.random.exponential(self.takes / load);
            }
            if self.now >= self.tick {
                let waited = self.queue.front().map_or(0.0, |(came, _)| self.now - came);
                let passed = self.now - self.tick + TICK;
                let load = Load { delay_us: waited as u64, busy: (self.worked / passed).min(1.0) };
                self.shedder.tell(Some(&self.settings), load, self.now as u64);
                (self.worked, self.tick) = (0.0, self.now + TICK);
            }
            let Some((came, class)) = self.queue.pop_front() else {
                self.now = self.next.min(self.tick);
                continue;
            };
            let is_shed = self.shedder.sheds(class).is_some();
            let takes = if is_shed { self.takes * self.refusal } else { self.random.exponential(self.takes) };
            let [all, shed] = &mut seen.classes[class as usize];
            (*all, *shed) = (*all + 1.0, *shed + f64::from(u8::from(is_shed)));
            seen.served += f64::from(u8::from(!is_shed));
            seen.delays.push(self.now - came);
            self.worked += takes;
            self.now += takes;
        }
        seen
    }
}

fn core(seed: u64, refusal: f64) -> Core {
    let mut random = Random(seed);
    let delay_us = [10_000, 20_000, 50_000][seed as usize % 3];
    let mix = [within(&mut random, 0.2, 1.0), within(&mut random, 0.2, 1.0), within(&mut random, 0.05, 0.3)];
    Core {
        settings: OverloadSettings { delay_us: Some(delay_us), busy: None, interval_us: 200_000 },
        shedder: Shedder::default(),
        now: 0.0,
        queue: VecDeque::new(),
        next: 0.0,
        tick: TICK,
        worked: 0.0,
        takes: within(&mut random, 300.0, 2_000.0),
        refusal,
        mix,
        random,
    }
}

#[test]
fn under_twice_the_load_the_core_does_what_it_can_for_those_who_matter() {
    for seed in 0..SEEDS {
        let mut core = core(seed, 0.02);
        let calm = core.run(5.0 * SECOND, 0.6);
        assert_eq!(calm.shed(), [0.0; 3], "seed {seed}: shed without need");
        core.run(2.0 * SECOND, 2.0);
        let mut seen = core.run(13.0 * SECOND, 2.0);
        let goodput = seen.served * core.takes / (13.0 * SECOND);
        seen.delays.sort_by(f64::total_cmp);
        let late = seen.delays[seen.delays.len() * 99 / 100];
        let shown = format!(
            "seed {seed}: {goodput:.2} of capacity, p99 {late:.0} us, shed {:?} of {:?}",
            seen.shed(),
            core.mix
        );
        assert!(goodput >= 0.9, "{shown}");
        assert!(late < core.settings.delay_us.unwrap() as f64 + 60_000.0, "{shown}");
        let [low, normal, critical] = seen.shed();
        assert!(critical <= 0.02 || normal >= 0.95, "{shown}");
        // Where all of the low ones are just enough the two come and go.
        assert!(normal <= 0.12 || low >= 0.88, "{shown}");
        // It is over.
        core.run(6.0 * SECOND, 0.6);
        assert!(!core.shedder.is_active(), "{shown}");
        assert_eq!(core.run(2.0 * SECOND, 0.6).shed(), [0.0; 3], "{shown}");
    }
}

#[test]
fn what_refusals_cost_is_all_that_is_lost() {
    for seed in 0..SEEDS {
        let refusal = within(&mut Random(!seed), 0.05, 0.3);
        let load = within(&mut Random(seed << 32), 1.5, 3.0).min(0.8 / refusal);
        let mut core = core(seed, refusal);
        core.run(3.0 * SECOND, load);
        let seen = core.run(15.0 * SECOND, load);
        let goodput = seen.served * core.takes / (15.0 * SECOND);
        // The share that fills it exactly.
        let best = (load * (1.0 / load - refusal) / (1.0 - refusal)).min(1.0);
        let shown = format!("seed {seed}: load {load:.2}, refusals cost {refusal:.2}, {goodput:.2} of {best:.2}");
        assert!(goodput >= 0.8 * best, "{shown}");
    }
}
