//! A world on a virtual clock: instances of the real limiter, a Redis that runs the real script, and a network between
//! them that delays, loses, repeats and reorders.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::time::Duration;

use ringway_core::limit::script::{self, Reply, Request, Stored};
use ringway_core::limit::{
    CALL_GAP_US, Decision, Exchange, Fallback, HOLD_US, Held, Limiter, Policy, Spec, Token, Wake,
};
use ringway_core::random::Random;

/// The way to Redis and back, each of them on its own.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Network {
    pub(crate) delay_us: (u64, u64),
    /// How many messages take up to `slow_us` instead.
    pub(crate) slow: f64,
    pub(crate) slow_us: u64,
    pub(crate) loss: f64,
    pub(crate) repeat: f64,
}

impl Network {
    pub(crate) const GOOD: Self = Self { delay_us: (50, 300), slow: 0.0, slow_us: 0, loss: 0.0, repeat: 0.0 };
}

#[derive(Debug, Default)]
pub(crate) struct Redis {
    stored: HashMap<Vec<u8>, (Stored, u64)>,
    /// Added to the world's time: what Redis' clock says.
    pub(crate) clock_us: i64,
    pub(crate) is_down: bool,
}

impl Redis {
    pub(crate) fn flush(&mut self) {
        self.stored.clear();
    }

    fn run(&mut self, key: &[u8], request: &Request, now_us: u64) -> Reply {
        let now_us = now_us.checked_add_signed(self.clock_us).expect("a time after 1970");
        let stored = self.stored.get(key).filter(|(_, until_us)| now_us < *until_us).map(|(stored, _)| *stored);
        let (reply, stored) = script::run(stored, request, now_us);
        match stored {
            // `PX`: whole milliseconds, rounded up, and one more.
            Some(stored) => {
                let until_us = now_us + reply.full_after_us.div_ceil(1_000) * 1_000 + 1_000;
                self.stored.insert(key.to_vec(), (stored, until_us));
            }
            None => drop(self.stored.remove(key)),
        }
        reply
    }
}

pub(crate) struct Instance {
    pub(crate) limiter: Limiter,
    /// Its own clock began at another time.
    epoch_us: u64,
    held: HashMap<u32, Held>,
    poll_at_us: u64,
    /// When a key's last call was sent.
    called_us: HashMap<Vec<u8>, u64>,
    /// Neither requests nor polls reach it any more.
    pub(crate) is_dead: bool,
    /// Its messages are lost.
    pub(crate) is_cut: bool,
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Event {
    at_us: u64,
    number: u64,
    kind: usize,
}

enum What {
    Poll(usize),
    Arrive(usize, Token, Vec<u8>, Request),
    Reply(usize, Token, Reply),
    Ask(usize, u32),
}

/// What a request came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    Admitted,
    Refused,
    Unavailable,
    Waits,
}

pub(crate) struct World {
    pub(crate) now_us: u64,
    pub(crate) random: Random,
    pub(crate) policy: Policy,
    pub(crate) instances: Vec<Instance>,
    pub(crate) redis: Redis,
    pub(crate) network: Network,
    events: BinaryHeap<Reverse<Event>>,
    whats: Vec<Option<What>>,
    free: Vec<usize>,
    number: u64,
    next_ticket: u32,
    /// When requests were admitted.
    pub(crate) admitted_us: Vec<u64>,
    pub(crate) refused_us: Vec<u64>,
    pub(crate) unavailable: u64,
    /// How long held requests waited.
    pub(crate) waited_us: Vec<u64>,
    pub(crate) calls: u64,
}

pub(crate) fn spec(limit: u64, period: Duration, burst: u64) -> Spec {
    Spec {
        name: "simulated".into(),
        limit,
        period,
        burst,
        strict: false,
        without_redis: Fallback::FairShare,
        keys_max: 100,
    }
}

pub(crate) const KEY: &[u8] = b"203.0.113.42";

impl World {
    pub(crate) fn new(seed: u64, spec: &Spec, instances: u32) -> Self {
        let mut world = Self {
            now_us: 1_000_000_000_000,
            random: Random(seed),
            policy: Policy::new(spec).expect("a policy"),
            instances: Vec::new(),
            redis: Redis::default(),
            network: Network::GOOD,
            events: BinaryHeap::new(),
            whats: Vec::new(),
            free: Vec::new(),
            number: 0,
            next_ticket: 0,
            admitted_us: Vec::new(),
            refused_us: Vec::new(),
            unavailable: 0,
            waited_us: Vec::new(),
            calls: 0,
        };
        for _ in 0..instances {
            world.join();
        }
        world.count();
        world
    }

    /// A new instance, which others have not heard of yet.
    pub(crate) fn join(&mut self) -> usize {
        self.instances.push(Instance {
            limiter: Limiter::shared(self.policy.clone()),
            epoch_us: self.random.below(self.now_us),
            held: HashMap::new(),
            poll_at_us: u64::MAX,
            called_us: HashMap::new(),
            is_dead: false,
            is_cut: false,
        });
        self.instances.len() - 1
    }

    /// Heartbeats: every live instance hears how many there are.
    pub(crate) fn count(&mut self) {
        let live = self.instances.iter().filter(|instance| !instance.is_dead).count() as u32;
        self.instances.iter().for_each(|instance| instance.limiter.set_instances(live));
    }

    pub(crate) fn set_degraded(&mut self, index: usize, is_degraded: bool) {
        let mut out = Exchange::default();
        let instance = &self.instances[index];
        instance.limiter.set_degraded(is_degraded, self.now_us - instance.epoch_us, &mut out);
        self.take(index, &mut out);
        self.poll_at(index, self.now_us);
    }

    /// One request of the key, now.
    pub(crate) fn request(&mut self, index: usize) -> Outcome {
        self.request_of(index, KEY)
    }

    pub(crate) fn request_of(&mut self, index: usize, key: &[u8]) -> Outcome {
        let instance = &self.instances[index];
        let decision = instance.limiter.check(key, 1, self.now_us - instance.epoch_us);
        let rings = instance.limiter.take_bell();
        let outcome = self.decided(index, decision);
        if rings {
            let at_us = self.now_us + self.random.between(5, 60);
            self.poll_at(index, at_us);
        }
        outcome
    }

    fn decided(&mut self, index: usize, decision: Decision) -> Outcome {
        match decision {
            Decision::Admitted(_) => {
                self.admitted_us.push(self.now_us);
                Outcome::Admitted
            }
            Decision::Refused(state) => {
                assert!(state.retry_after_us > 0);
                self.refused_us.push(self.now_us);
                Outcome::Refused
            }
            Decision::Unavailable => {
                self.unavailable += 1;
                Outcome::Unavailable
            }
            Decision::Hold(held) => {
                let ticket = self.next_ticket;
                self.next_ticket += 1;
                held.wake(Wake { worker: index as u32, ticket });
                self.instances[index].held.insert(ticket, held);
                self.at(self.now_us + HOLD_US, What::Ask(index, ticket));
                Outcome::Waits
            }
        }
    }

    /// Lets time pass until `until_us`.
    pub(crate) fn run_until(&mut self, until_us: u64) {
        while let Some(Reverse(event)) = self.events.peek() {
            if event.at_us > until_us {
                break;
            }
            let Some(Reverse(event)) = self.events.pop() else { break };
            self.now_us = self.now_us.max(event.at_us);
            self.free.push(event.kind);
            if let Some(what) = self.whats[event.kind].take() {
                self.happen(what);
            }
        }
        self.now_us = until_us;
    }

    fn happen(&mut self, what: What) {
        let mut out = Exchange::default();
        let now_us = self.now_us;
        match what {
            What::Poll(index) => {
                let instance = &mut self.instances[index];
                if instance.is_dead || instance.poll_at_us > now_us {
                    return;
                }
                instance.poll_at_us = u64::MAX;
                self.poll(index);
            }
            What::Arrive(index, token, key, request) => {
                if self.redis.is_down {
                    return;
                }
                let reply = self.redis.run(&key, &request, now_us);
                self.send(index, |index| What::Reply(index, token, reply));
            }
            What::Reply(index, token, reply) => {
                let instance = &self.instances[index];
                if !instance.is_dead {
                    instance.limiter.reply(token, &reply, now_us - instance.epoch_us, &mut out);
                    self.take(index, &mut out);
                    self.poll(index);
                }
            }
            What::Ask(index, ticket) => self.ask(index, ticket),
        }
    }

    fn ask(&mut self, index: usize, ticket: u32) {
        let instance = &mut self.instances[index];
        let now_us = self.now_us - instance.epoch_us;
        let Some(held) = instance.held.get(&ticket) else { return };
        match instance.limiter.outcome(held, now_us) {
            Some(decision) => {
                self.waited_us.push(now_us - held.since_us());
                instance.held.remove(&ticket);
                if instance.limiter.take_bell() {
                    self.poll_at(index, self.now_us);
                }
                self.decided(index, decision);
            }
            // Granted from a time on: it is woken then.
            None => assert!(now_us <= held.since_us() + HOLD_US, "still held"),
        }
    }

    fn poll(&mut self, index: usize) {
        let mut out = Exchange::default();
        let instance = &self.instances[index];
        let due_us = instance.limiter.poll(self.now_us - instance.epoch_us, &mut out);
        let due_us = due_us.map(|us| us + instance.epoch_us);
        self.take(index, &mut out);
        if let Some(due_us) = due_us {
            let late_us = self.random.below(50);
            self.poll_at(index, due_us.max(self.now_us) + late_us);
        }
    }

    fn take(&mut self, index: usize, out: &mut Exchange) {
        for wake in out.wakes.drain(..) {
            assert_eq!(wake.worker as usize, index);
            self.at(self.now_us, What::Ask(index, wake.ticket));
        }
        for call in out.calls.drain(..) {
            self.calls += 1;
            if let Some(before_us) = self.instances[index].called_us.insert(call.key().to_vec(), self.now_us) {
                assert!(self.now_us >= before_us + CALL_GAP_US);
            }
            let (key, token, request) = (call.key().to_vec(), call.token, call.request);
            self.send(index, |index| What::Arrive(index, token, key.clone(), request));
        }
    }

    fn send(&mut self, index: usize, what: impl Fn(usize) -> What) {
        let network = self.network;
        let copies = 1 + usize::from(self.random.happens(network.repeat));
        for _ in 0..copies {
            if self.instances[index].is_cut || self.random.happens(network.loss) {
                continue;
            }
            let delay_us = if self.random.happens(network.slow) {
                self.random.below(network.slow_us)
            } else {
                self.random.between(network.delay_us.0, network.delay_us.1)
            };
            self.at(self.now_us + delay_us, what(index));
        }
    }

    fn poll_at(&mut self, index: usize, at_us: u64) {
        if at_us < self.instances[index].poll_at_us {
            self.instances[index].poll_at_us = at_us;
            self.at(at_us, What::Poll(index));
        }
    }

    fn at(&mut self, at_us: u64, what: What) {
        let kind = self.free.pop().unwrap_or_else(|| {
            self.whats.push(None);
            self.whats.len() - 1
        });
        self.whats[kind] = Some(what);
        self.number += 1;
        self.events.push(Reverse(Event { at_us, number: self.number, kind }));
    }

    /// Tokens per microsecond.
    pub(crate) fn rate(&self) -> f64 {
        let spec = self.policy.spec();
        spec.limit as f64 / spec.period.as_micros() as f64
    }

    /// Admissions replayed through a bucket that may go into debt: how deep the debt was at its deepest, in tokens.
    pub(crate) fn deepest_debt(&self) -> f64 {
        let spec = self.policy.spec();
        let (token, per_us) = (spec.period.as_micros() as i128, i128::from(spec.limit));
        let full = i128::from(spec.burst) * token;
        let mut times = self.admitted_us.clone();
        times.sort_unstable();
        let (mut level, mut before_us, mut lowest) = (full, times.first().copied().unwrap_or(0), full);
        for us in times {
            level = full.min(level + i128::from(us - before_us) * per_us) - token;
            before_us = us;
            lowest = lowest.min(level);
        }
        (-lowest).max(0) as f64 / token as f64
    }

    /// How many of the requests, at these times, a single bucket would admit.
    pub(crate) fn ideal(&self, times_us: impl Iterator<Item = u64>) -> u64 {
        let spec = self.policy.spec();
        let (token, per_us) = (spec.period.as_micros() as i128, i128::from(spec.limit));
        let full = i128::from(spec.burst) * token;
        let (mut level, mut before_us, mut admitted) = (full, 0, 0);
        for us in times_us {
            level = full.min(level + i128::from(us - before_us) * per_us);
            before_us = us;
            if level >= token {
                level -= token;
                admitted += 1;
            }
        }
        admitted
    }

    pub(crate) fn is_anybody_held(&self) -> bool {
        self.instances.iter().any(|instance| !instance.is_dead && !instance.held.is_empty())
    }

    pub(crate) fn check_holdings(&self) {
        let shares = self.policy.shares(self.instances.len() as u32);
        let holdings = self.instances.iter().filter_map(|instance| instance.limiter.holding(KEY));
        let mut leased = 0;
        for holding in holdings {
            assert!(holding.owed <= shares.debt_max, "{holding:?} of {shares:?}");
            leased += holding.leased;
        }
        assert!(leased <= self.policy.spec().burst / 12, "{leased} leased");
    }
}
