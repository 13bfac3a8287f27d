//! The registry of instances: asked from other threads, one call of a script each, many of them in one go.

use std::sync::Arc;
use std::time::Duration;

use redis::{Cmd, Value};
use ringway_config::snapshot::RegistryPlace;
use tokio::sync::{Mutex, mpsc, oneshot};
use tokio::time::timeout;

use super::link::{Link, State};
use super::poll::MARGIN;
use super::script::Script;

pub(super) static SCRIPT: Script = Script::new(include_str!("registry.lua"));

/// Questions that wait; who asks more waits too.
const ASKS_MAX: usize = 256;

/// Asks Redis from any thread. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Registry {
    asks: mpsc::Sender<Ask>,
}

#[derive(Debug)]
pub(super) struct Ask {
    place: RegistryPlace,
    call: Cmd,
    /// Dropped without an answer: Redis is away.
    answer: oneshot::Sender<Result<Value, RegistryError>>,
}

/// The end of the thread `redis`, which serves one connection after the other.
pub(super) type Asked = Arc<Mutex<mpsc::Receiver<Ask>>>;

#[derive(Debug, thiserror::Error)]
pub(crate) enum RegistryError {
    #[error("there is no connection to Redis")]
    Away,
    #[error("Redis: {0}")]
    Refused(String),
    #[error("an answer of another form")]
    Form,
}

/// The instances of a service.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Listing {
    /// What tells it from others.
    pub(crate) seen: String,
    /// `None`: it is the one that was seen before.
    pub(crate) entries: Option<Vec<Entry>>,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) name: String,
    pub(crate) left: Duration,
    pub(crate) ttl: Duration,
    /// Empty: it has taken its leave.
    pub(crate) body: String,
}

impl Listing {
    /// The store that it is of.
    pub(crate) fn store(&self) -> &str {
        self.seen.split_once('.').map_or("", |(store, _)| store)
    }
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Registered {
    New,
    Again,
    /// The service has as many instances as it may.
    Full,
}

impl Registry {
    pub(super) fn new() -> (Self, Asked) {
        let (asks, asked) = mpsc::channel(ASKS_MAX);
        (Self { asks }, Arc::new(Mutex::new(asked)))
    }

    /// One that nobody answers.
    #[cfg(test)]
    pub(crate) fn away() -> Self {
        Self { asks: mpsc::channel(1).0 }
    }

    /// Also a sign of life.
    pub(crate) async fn register(
        &self,
        place: &RegistryPlace,
        name: &str,
        ttl: Duration,
        body: &str,
    ) -> Result<Registered, RegistryError> {
        let mut call = call(place, "register", name);
        call.arg(ttl.as_millis() as u64).arg(body);
        match self.ask(place, call).await? {
            Value::Int(1) => Ok(Registered::New),
            Value::Int(0) => Ok(Registered::Again),
            Value::Int(-1) => Ok(Registered::Full),
            _ => Err(RegistryError::Form),
        }
    }

    /// A sign of life. Whether the instance is known.
    pub(crate) async fn beat(&self, place: &RegistryPlace, name: &str) -> Result<bool, RegistryError> {
        self.ask(place, call(place, "beat", name)).await.map(|answer| answer == Value::Int(1))
    }

    /// Whether the instance was known.
    pub(crate) async fn leave(&self, place: &RegistryPlace, name: &str) -> Result<bool, RegistryError> {
        self.ask(place, call(place, "leave", name)).await.map(|answer| answer == Value::Int(1))
    }

    /// All that are registered, unless that is what was seen before.
    pub(crate) async fn list(&self, place: &RegistryPlace, seen: Option<&str>) -> Result<Listing, RegistryError> {
        let answer = self.ask(place, call(place, "list", seen.unwrap_or("-"))).await?;
        listing(answer).ok_or(RegistryError::Form)
    }

    async fn ask(&self, place: &RegistryPlace, call: Cmd) -> Result<Value, RegistryError> {
        let (sender, answer) = oneshot::channel();
        let ask = Ask { place: place.clone(), call, answer: sender };
        self.asks.send(ask).await.map_err(|_| RegistryError::Away)?;
        answer.await.unwrap_or(Err(RegistryError::Away))
    }
}

fn call(place: &RegistryPlace, what: &str, name: &str) -> Cmd {
    let mut call = SCRIPT.call(place.key.as_bytes());
    call.arg(what).arg(name);
    call
}

/// Answers for good. What is asked of another Redis than the link's, in the moment when that changes, goes without an answer.
pub(super) async fn run(link: &Link, asked: &Asked) {
    let mut asked = asked.lock().await;
    let mut state = link.state();
    // A connection that is just being made is worth waiting for.
    let known = state.wait_for(|state| *state != State::Missing);
    let _ = timeout(link.settings().connect_timeout + MARGIN, known).await;
    let mut asks = Vec::new();
    while asked.recv_many(&mut asks, ASKS_MAX).await > 0 {
        asks.retain(|ask| ask.place.servers == link.settings().servers && !ask.answer.is_closed());
        let calls: Vec<Cmd> = asks.iter().map(|ask| ask.call.clone()).collect();
        let answers = link.eval(&SCRIPT, &calls).await.unwrap_or_default();
        // Without answers the asks are dropped.
        for (ask, answer) in asks.drain(..).zip(answers) {
            let answer = answer.map_err(|error| match super::connect::is_lost(&error) {
                true => RegistryError::Away,
                false => RegistryError::Refused(error.to_string()),
            });
            let _ = ask.answer.send(answer);
        }
        asks.clear();
    }
}

/// Where there is no Redis: nobody is answered.
pub(super) async fn refuse(asked: &Asked) {
    let mut asked = asked.lock().await;
    while asked.recv().await.is_some() {}
}

fn listing(answer: Value) -> Option<Listing> {
    let Value::Array(parts) = answer else { return None };
    let mut parts = parts.into_iter().map(|part| match part {
        Value::BulkString(bytes) => String::from_utf8(bytes).ok(),
        _ => None,
    });
    let seen = parts.next()??;
    let Some(now) = parts.next() else { return Some(Listing { seen, entries: None }) };
    let now_ms: u64 = now?.parse().ok()?;
    let mut entries = Vec::new();
    while let Some(field) = parts.next() {
        let (field, value) = (field?, parts.next()??);
        let Some(name) = field.strip_prefix("i:") else { continue };
        let mut value = value.splitn(3, ' ');
        let (until_ms, ttl_ms): (u64, u64) = (value.next()?.parse().ok()?, value.next()?.parse().ok()?);
        entries.push(Entry {
            name: name.to_owned(),
            left: Duration::from_millis(until_ms.saturating_sub(now_ms)),
            ttl: Duration::from_millis(ttl_ms),
            body: value.next()?.to_owned(),
        });
    }
    Some(Listing { seen, entries: Some(entries) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(parts: &[&str]) -> Option<Listing> {
        listing(Value::Array(parts.iter().map(|part| Value::BulkString(part.as_bytes().to_vec())).collect()))
    }

    #[test]
    fn listings_are_read_and_malformed_ones_refused() {
        assert_eq!(answer(&["1-2.3"]), Some(Listing { seen: "1-2.3".into(), entries: None }));
        let found = answer(&["1-2.3", "1000", "store", "1-2", "i:a", "1500 2000 {\"a\": 1}", "due", "1500"]).unwrap();
        assert_eq!((found.store(), found.seen.as_str()), ("1-2", "1-2.3"));
        let entry = Entry {
            name: "a".into(),
            left: Duration::from_millis(500),
            ttl: Duration::from_secs(2),
            body: "{\"a\": 1}".into(),
        };
        assert_eq!(found.entries, Some(vec![entry]));
        assert_eq!(answer(&["", "1000"]), Some(Listing { seen: String::new(), entries: Some(vec![]) }));
        for bad in [&[][..], &["", "x"], &["", "1", "i:a"], &["", "1", "i:a", "1 2"], &["", "1", "i:a", "-1 2 b"]] {
            assert_eq!(answer(bad), None, "{bad:?}");
        }
        assert_eq!(listing(Value::Nil), None);
    }
}
