//! One connection that is always wanted: made in the background, made anew whenever it is lost.

use std::cell::{Cell, RefCell};
use std::sync::Arc;
use std::time::Duration;

use redis::{Cmd, ErrorKind, RedisError, ServerErrorKind, Value};
use ringway_config::snapshot::Redis as Settings;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep, timeout};

use super::connect::{Answer, Conn};
use super::heartbeat::{self, Heartbeat};
use super::script::{Script, is_forgotten};
use super::stats::RedisStats;

/// Between two tries to connect, at first and at most; each time a random part of the upper half. With the time that a
/// connection takes, a Redis that returns is found within two seconds.
const BACK_OFF_MIN: Duration = Duration::from_millis(50);
const BACK_OFF_MAX: Duration = Duration::from_millis(1_500);
/// A connection that ends sooner counts as another failed try.
const STABLE: Duration = Duration::from_secs(1);
/// How long saying goodbye may take.
const LEAVE_TIME_MAX: Duration = Duration::from_millis(250);

/// How the connection is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// Not there, and nobody has said why.
    Missing,
    /// Not there: the last try failed, other than by silence.
    Refused,
    Up,
}

/// There is no answer, and it is not known whether the commands were carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Lost;

/// The connection to the Redis of one configuration. Lives on the thread `redis`.
pub(super) struct Link {
    settings: Settings,
    stats: Arc<RedisStats>,
    heartbeat: Heartbeat,
    scripts: &'static [&'static Script],
    /// With the number of the connection.
    connection: RefCell<Option<(u64, Conn)>>,
    made: Cell<u64>,
    broken: Notify,
    state: watch::Sender<State>,
}

impl Link {
    /// `scripts` are those that [`Link::eval`] will be called with.
    pub(super) fn new(
        settings: Settings,
        heartbeat: Heartbeat,
        scripts: &'static [&'static Script],
        stats: Arc<RedisStats>,
    ) -> Self {
        Self {
            settings,
            stats,
            heartbeat,
            scripts,
            connection: RefCell::new(None),
            made: Cell::new(0),
            broken: Notify::new(),
            state: watch::Sender::new(State::Missing),
        }
    }

    pub(super) fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Tells of every change.
    pub(super) fn state(&self) -> watch::Receiver<State> {
        self.state.subscribe()
    }

    /// Keeps the connection up; never ends.
    pub(super) async fn maintain(&self) {
        let mut back_off = BACK_OFF_MIN;
        loop {
            match self.connect().await {
                Ok(()) => {
                    let since = Instant::now();
                    self.broken.notified().await;
                    if since.elapsed() >= STABLE {
                        back_off = BACK_OFF_MIN;
                        // The server is not to blame for what ended a connection that had worked: try at once.
                        continue;
                    }
                }
                Err(error) => self.refused(&error, back_off == BACK_OFF_MIN),
            }
            sleep(back_off.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
            back_off = (back_off * 2).min(BACK_OFF_MAX);
        }
    }

    /// A connection counts once the scripts are loaded and a first heartbeat, which writes, was answered.
    async fn connect(&self) -> redis::RedisResult<()> {
        let connection = Conn::open(&self.settings).await?;
        let commands: Vec<Cmd> = self.scripts.iter().map(|script| script.load()).collect();
        for answer in connection.call(&commands).await? {
            answer?;
        }
        let answer = connection.call(&[self.heartbeat.beat()]).await?.pop();
        let instances = Heartbeat::instances(&answer.unwrap_or(Ok(Value::Nil))?)?;
        self.stats.instances.set(instances);
        let number = self.made.get() + 1;
        self.made.set(number);
        if number > 1 {
            self.stats.reconnects.add(1);
        }
        self.stats.connected.set(1);
        *self.connection.borrow_mut() = Some((number, connection));
        tracing::info!("redis: connected to {}, instances: {instances}", self.settings.label);
        self.state.send_replace(State::Up);
        Ok(())
    }

    fn refused(&self, error: &RedisError, first: bool) {
        self.stats.connect_errors.add(1);
        if first {
            tracing::warn!("redis: cannot connect to {}: {}; trying on", self.settings.label, self.harmless(error));
        } else {
            tracing::debug!("redis: cannot connect to {}: {}", self.settings.label, self.harmless(error));
        }
        if !error.is_timeout() {
            self.state.send_replace(State::Refused);
        }
    }

    /// The text of an error. Servers and libraries have no reason to repeat a password; this makes sure.
    fn harmless(&self, error: &RedisError) -> String {
        let text = error.to_string();
        match self.settings.password.as_deref() {
            Some(password) => text.replace(password, "[redacted]"),
            None => text,
        }
    }

    /// Gives the connection of this number up.
    fn give_up(&self, number: u64, reason: &RedisError) {
        let mut connection = self.connection.borrow_mut();
        if connection.as_ref().is_some_and(|(current, _)| *current == number) {
            *connection = None;
            self.stats.connected.set(0);
            tracing::warn!("redis: connection to {} lost: {}", self.settings.label, self.harmless(reason));
            self.state.send_replace(State::Missing);
            self.broken.notify_one();
        }
    }

    /// Sends commands in one go and waits for their answers, one for each.
    ///
    /// # Errors
    /// When there is no connection, it breaks, or it stays silent for `response_timeout`; it is then made anew.
    pub(super) async fn call(&self, commands: &[Cmd]) -> Result<Vec<Answer>, Lost> {
        let Some((number, connection)) = self.connection.borrow().clone() else { return Err(Lost) };
        self.stats.calls.add(commands.len() as u64);
        let sent = Instant::now();
        match connection.call(commands).await {
            Ok(answers) => {
                self.stats.round_trip.record_us(sent.elapsed().as_micros() as u64);
                let mut errors = answers.iter().filter_map(|answer| answer.as_ref().err());
                self.stats.errors.add(errors.clone().count() as u64);
                if let Some(error) = errors.find(|error| is_demoted(error)) {
                    self.give_up(number, error);
                }
                Ok(answers)
            }
            Err(error) => {
                self.stats.errors.add(commands.len() as u64);
                self.give_up(number, &error);
                Err(Lost)
            }
        }
    }

    /// The same with calls of one script; loads it where the server has forgotten it.
    pub(super) async fn eval(&self, script: &Script, calls: &[Cmd]) -> Result<Vec<Answer>, Lost> {
        let mut answers = self.call(calls).await?;
        let places: Vec<usize> = (0..answers.len()).filter(|at| answers.get(*at).is_some_and(is_forgotten)).collect();
        if places.is_empty() {
            return Ok(answers);
        }
        self.call(&[script.load()]).await?;
        // A script that was not there did nothing: to call it again is safe.
        let again: Vec<Cmd> = places.iter().filter_map(|at| calls.get(*at).cloned()).collect();
        for (at, answer) in places.into_iter().zip(self.call(&again).await?) {
            if let Some(place) = answers.get_mut(at) {
                *place = answer;
            }
        }
        Ok(answers)
    }

    /// Tries whether the server takes writes.
    pub(super) async fn probe(&self) -> Result<Vec<Answer>, Lost> {
        self.eval(&heartbeat::SCRIPT, &[self.heartbeat.beat()]).await
    }

    /// Tells the others every second that this instance lives, and learns how many there are; never ends.
    pub(super) async fn beat(&self) {
        loop {
            sleep(Heartbeat::EVERY).await;
            let answers = self.eval(&heartbeat::SCRIPT, &[self.heartbeat.beat()]).await;
            let answer = answers.ok().and_then(|mut answers| answers.pop());
            match answer.map(|answer| answer.and_then(|value| Heartbeat::instances(&value))) {
                Some(Ok(instances)) => self.stats.instances.set(instances),
                Some(Err(error)) => tracing::warn!("redis: no heartbeat: {}", self.harmless(&error)),
                // Without a connection the last number stays.
                None => {}
            }
        }
    }

    /// Takes this instance off the list, where that is quickly done.
    pub(super) async fn leave(&self) {
        let _ = timeout(LEAVE_TIME_MAX, self.call(&[self.heartbeat.leave()])).await;
        self.stats.connected.set(0);
        self.stats.instances.set(0);
    }
}

/// The server is not the master any more: another one is.
fn is_demoted(error: &RedisError) -> bool {
    matches!(error.kind(), ErrorKind::Server(ServerErrorKind::ReadOnly))
}
