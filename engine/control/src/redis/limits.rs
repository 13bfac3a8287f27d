//! The rate limits' word with Redis: what the limiters have to say goes out in one pipeline, what Redis answers goes back
//! to them, and held requests are woken.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::{FutureExt, LocalBoxFuture};
use futures_util::stream::{FuturesUnordered, StreamExt};
use redis::{Cmd, Value};
use ringway_core::limit::script::{self, Reply};
use ringway_core::limit::{Call, Exchange, HOLD_US, LOST_US, Limiter, Token, Wake};
use tokio::sync::{Notify, watch};
use tokio::time::sleep;

use super::connect::Answer;
use super::health::Health;
use super::link::{Link, Lost, State};
use super::script::Script;
use super::stats::RedisStats;

pub(super) static SCRIPT: Script = Script::new(script::SOURCE);

/// Pipelines on the way at the same time. While so many are unanswered nothing more is sent.
const PIPELINES_MAX: usize = 32;
/// How often Redis is tried while limits do without it.
const PROBE_EVERY_US: u64 = 100_000;
/// How often to look at the time while something may run out.
const LOOK_EVERY: Duration = Duration::from_millis(10);
/// How often to look when nothing is on the way: at how many instances there are, for one.
const IDLE: Duration = Duration::from_millis(100);

/// How the thread `redis` and the requests that limiters decide about hear of each other. Cheap to clone.
#[derive(Clone)]
pub struct Requests {
    wake: Arc<dyn Fn(Wake) + Send + Sync>,
    epoch: Instant,
    bell: Arc<Notify>,
}

impl Requests {
    /// `epoch`: time zero of the clock that requests are checked by. `wake` wakes a held request; it is called on the thread
    /// `redis` and must not wait.
    pub fn new(epoch: Instant, wake: Arc<dyn Fn(Wake) + Send + Sync>) -> Self {
        Self { wake, epoch, bell: Arc::new(Notify::new()) }
    }

    /// Tells the thread `redis` that a limiter has something to say: when [`Limiter::take_bell`] says so. Allocates nothing; at most one system call.
    pub fn ring(&self) {
        self.bell.notify_one();
    }

    /// The clock of limiters, in microseconds.
    pub fn now_us(&self) -> u64 {
        self.epoch.elapsed().as_micros() as u64
    }
}

impl fmt::Debug for Requests {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Requests").field("epoch", &self.epoch).finish_non_exhaustive()
    }
}

/// The limiters at work.
#[derive(Debug, Clone)]
pub(super) struct Limited {
    pub(super) limiters: Vec<Arc<Limiter>>,
    pub(super) requests: Requests,
}

/// Calls that were sent together; none: a probe.
struct Batch {
    number: u64,
    sent_us: u64,
    calls: Vec<(Arc<Limiter>, Token)>,
}

/// The number of a batch, and its answers.
type Done = (u64, Result<Vec<Answer>, Lost>);

/// The sync on one link.
struct Limits<'l> {
    link: &'l Link,
    limited: Limited,
    stats: &'l RedisStats,
    health: Health,
    state: State,
    is_degraded: bool,
    /// As the limiters know it; 0: they do not.
    instances: u64,
    /// To be sent at the end of the turn.
    calls: Vec<(Arc<Limiter>, Call)>,
    out: Exchange,
    /// In the order of sending.
    batches: VecDeque<Batch>,
    on_the_way: FuturesUnordered<LocalBoxFuture<'l, Done>>,
    next_number: u64,
    next_probe_us: u64,
}

/// Works for good, always for the newest limiters.
pub(super) async fn run(link: &Link, stats: &RedisStats, mut limited: watch::Receiver<Option<Limited>>) {
    let Ok(Some(first)) = limited.wait_for(Option::is_some).await.map(|first| first.clone()) else { return };
    let mut health = Health::new(HOLD_US);
    health.missing(first.requests.now_us());
    let limits = Limits {
        link,
        limited: first,
        stats,
        health,
        state: State::Missing,
        is_degraded: false,
        instances: 0,
        calls: Vec::new(),
        out: Exchange::default(),
        batches: VecDeque::new(),
        on_the_way: FuturesUnordered::new(),
        next_number: 0,
        next_probe_us: 0,
    };
    limits.work(limited).await;
}

impl<'l> Limits<'l> {
    async fn work(mut self, mut limited: watch::Receiver<Option<Limited>>) {
        let mut state = self.link.state();
        self.set_degraded();
        loop {
            self.note(*state.borrow_and_update());
            self.judge();
            let due_us = self.poll();
            self.send();
            let pause = self.pause(due_us);
            tokio::select! {
                Some(done) = self.on_the_way.next() => self.done(done),
                () = self.limited.requests.bell.notified() => {}
                _ = state.changed() => {}
                changed = limited.changed() => {
                    if changed.is_err() {
                        // The process ends.
                        return;
                    }
                    if let Some(limited) = limited.borrow_and_update().clone() {
                        (self.limited, self.instances) = (limited, 0);
                        self.set_degraded();
                    }
                }
                () = sleep(pause) => {}
            }
            // Whatever else has come by now is one turn's work.
            while let Some(Some(done)) = self.on_the_way.next().now_or_never() {
                self.done(done);
            }
        }
    }

    fn now_us(&self) -> u64 {
        self.limited.requests.now_us()
    }

    /// Takes what a limiter has put out: wakes requests now, keeps calls for the end of the turn.
    fn take(&mut self, limiter: &Arc<Limiter>) {
        self.out.wakes.drain(..).for_each(|wake| (self.limited.requests.wake)(wake));
        self.calls.extend(self.out.calls.drain(..).map(|call| (limiter.clone(), call)));
    }

    fn note(&mut self, state: State) {
        if state == self.state {
            return;
        }
        self.state = state;
        let now_us = self.now_us();
        match state {
            State::Up => self.health.connected(now_us),
            State::Missing => self.health.missing(now_us),
            State::Refused => self.health.refused(),
        }
    }

    /// Lets the limiters know whether Redis is there, and how many share it.
    fn judge(&mut self) {
        let is_degraded = self.health.is_degraded(self.now_us());
        if is_degraded != self.is_degraded {
            self.is_degraded = is_degraded;
            match is_degraded {
                true => tracing::warn!("redis does not answer in time: rate limits are kept without it"),
                false => tracing::info!("redis answers again: rate limits are kept with it"),
            }
            self.set_degraded();
        }
        // Without a connection the last number stays.
        let instances = self.stats.instances.get();
        if instances != self.instances && instances > 0 {
            self.instances = instances;
            let instances = u32::try_from(instances).unwrap_or(u32::MAX);
            self.limited.limiters.iter().for_each(|limiter| limiter.set_instances(instances));
        }
    }

    fn set_degraded(&mut self) {
        self.stats.degraded.set(self.is_degraded.into());
        let now_us = self.now_us();
        for limiter in self.limited.limiters.clone() {
            limiter.set_degraded(self.is_degraded, now_us, &mut self.out);
            self.take(&limiter);
        }
    }

    /// Asks the limiters what is due, and when to ask again.
    fn poll(&mut self) -> Option<u64> {
        let mut next = None;
        for index in 0..self.limited.limiters.len() {
            let Some(limiter) = self.limited.limiters.get(index).cloned() else { break };
            let due = limiter.poll(self.now_us(), &mut self.out);
            self.take(&limiter);
            next = match (next, due) {
                (Some(next), Some(due)) => Some(u64::min(next, due)),
                (next, due) => next.or(due),
            };
        }
        next
    }

    /// Sends the turn's calls. Those that cannot be sent are not heard of again: to their limiters they are lost, in time.
    fn send(&mut self) {
        let calls = std::mem::take(&mut self.calls);
        if self.state != State::Up || self.batches.len() >= PIPELINES_MAX {
            return;
        }
        if self.is_degraded {
            return self.probe();
        }
        // What a stalled server is sent it carries out later, leases included, when it has been given up as lost here.
        if calls.is_empty() || self.health.silent_us(self.now_us()) >= LOST_US {
            return;
        }
        let commands: Vec<Cmd> = calls.iter().map(|(limiter, call)| self.command(limiter, call)).collect();
        let calls = calls.into_iter().map(|(limiter, call)| (limiter, call.token)).collect();
        let link = self.link;
        self.start(calls, async move { link.eval(&SCRIPT, &commands).await }.boxed_local());
    }

    /// Tries Redis now and then, with a write, since that is what it is needed for.
    fn probe(&mut self) {
        let now_us = self.now_us();
        if now_us < self.next_probe_us {
            return;
        }
        self.next_probe_us = now_us + PROBE_EVERY_US;
        self.start(Vec::new(), self.link.probe().boxed_local());
    }

    fn start(&mut self, calls: Vec<(Arc<Limiter>, Token)>, answers: LocalBoxFuture<'l, Result<Vec<Answer>, Lost>>) {
        let (number, sent_us) = (self.next_number, self.now_us());
        self.next_number += 1;
        self.health.sent(sent_us);
        self.batches.push_back(Batch { number, sent_us, calls });
        self.on_the_way.push(answers.map(move |answers| (number, answers)).boxed_local());
    }

    /// `PREFIX:{POLICY:KEY}`: the braces choose the node of a cluster.
    fn command(&self, limiter: &Limiter, call: &Call) -> Cmd {
        let (prefix, policy) = (&self.link.settings().prefix, &limiter.policy().spec().name);
        let key = [prefix.as_bytes(), b":{", policy.as_bytes(), b":", call.key(), b"}"].concat();
        let mut command = SCRIPT.call(&key);
        command.arg(&call.request.arguments());
        command
    }

    fn done(&mut self, (number, answers): Done) {
        let now_us = self.now_us();
        let Some(place) = self.batches.iter().position(|batch| batch.number == number) else { return };
        let Some(batch) = self.batches.remove(place) else { return };
        let answers = answers.unwrap_or_default();
        // Errors are no sign that the next call will be answered.
        match answers.iter().any(Result::is_ok) {
            true => self.health.answered(batch.sent_us, now_us),
            false => self.health.unanswered(),
        }
        let mut answers = answers.into_iter();
        for (limiter, token) in batch.calls {
            match answers.next().and_then(Result::ok).and_then(|value| reply(&value)) {
                Some(reply) => limiter.reply(token, &reply, now_us, &mut self.out),
                None => limiter.lost(token, now_us, &mut self.out),
            }
            self.take(&limiter);
        }
    }

    /// How long there is nothing to do unless something comes.
    fn pause(&self, due_us: Option<u64>) -> Duration {
        let is_waiting = self.state != State::Up || self.is_degraded || !self.batches.is_empty();
        let look = if is_waiting { LOOK_EVERY } else { IDLE };
        due_us.map_or(look, |due_us| Duration::from_micros(due_us.saturating_sub(self.now_us())).min(look))
    }
}

impl Drop for Limits<'_> {
    /// What is on the way will not be heard of any more.
    fn drop(&mut self) {
        let now_us = self.now_us();
        for (limiter, token) in std::mem::take(&mut self.batches).into_iter().flat_map(|batch| batch.calls) {
            limiter.lost(token, now_us, &mut self.out);
        }
        self.out.wakes.drain(..).for_each(|wake| (self.limited.requests.wake)(wake));
    }
}

/// Of the script's answer; `None`: not one.
fn reply(value: &Value) -> Option<Reply> {
    let Value::Array(items) = value else { return None };
    let number = |item: &Value| match item {
        Value::Int(number) => Some(*number),
        _ => None,
    };
    Reply::from_numbers(&items.iter().map(number).collect::<Option<Vec<i64>>>()?)
}
