//! What others write into Redis and the gateway reads now and then: API keys, revoked tokens. Read again only when the
//! version beside it has changed, where it has one.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use redis::{Cmd, Value};
use ringway_config::snapshot::RedisList;
use ringway_core::auth::{REVOKED_MAX, api_key};
use tokio::sync::{Mutex, watch};
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep, timeout};

use super::link::{Link, State};

/// Bytes of a list; more are not read.
pub const LIST_BYTES_MAX: usize = 64 * 1024 * 1024;

/// How many members are asked for at once, so that a long list holds up neither Redis nor the other calls.
const MEMBERS_AT_ONCE: u32 = 1_000;

/// A list whose version stays the same is read again after this time nevertheless: somebody may have forgotten to change it.
const REREAD: Duration = Duration::from_secs(60);

/// After a failure another look comes no later than this.
const RETRY_MAX: Duration = Duration::from_secs(5);

/// Between the time that a connection may take and the first verdict that there is none.
const MARGIN: Duration = Duration::from_millis(100);

/// What to read. Whoever writes it may keep `KEY:version` beside it and change it afterwards (`INCR`); without a version
/// it is read each time.
#[derive(Clone)]
pub struct Poll {
    pub kind: Kind,
    /// Read only from these servers: while a configuration is changed, the connection may be to others.
    pub list: RedisList,
    /// Gets the result of every look. Runs on a thread that may be kept busy, one call at a time, in order.
    pub deliver: Deliver,
}

pub type Deliver = Arc<dyn Fn(Result<Found, PollError>) + Send + Sync>;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Hash,
    Set,
}

/// What a look found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// The whole list, in no order; one that has changed meanwhile may have a member twice. Empty where there is no such key.
    Hash(Vec<(Vec<u8>, Vec<u8>)>),
    Set(Vec<Vec<u8>>),
    /// The version is the same as before.
    Unchanged,
}

/// Why a list could not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PollError {
    #[error("there is no connection to Redis")]
    Down,
    #[error("{0}")]
    Refused(String),
    #[error("more than {0} members")]
    TooMany(usize),
    #[error("more than 64 MiB")]
    TooLarge,
    #[error("an answer of another form")]
    Form,
}

impl fmt::Debug for Poll {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, list, deliver: _ } = self;
        f.debug_struct("Poll").field("kind", kind).field("list", list).finish_non_exhaustive()
    }
}

/// Held while something is delivered.
pub(super) type Order = Arc<Mutex<()>>;

/// Polls for good, always the newest list of polls.
pub(super) async fn run(link: &Link, mut polls: watch::Receiver<Vec<Poll>>, order: &Order) {
    loop {
        let mut current = polls.borrow_and_update().clone();
        current.retain(|poll| poll.list.servers == link.settings().servers);
        let polling = join_all(current.iter().map(|poll| poll.run(link, order)));
        tokio::select! {
            changed = polls.changed() => if changed.is_err() {
                // The process ends.
                return;
            },
            _ = polling, if !current.is_empty() => {}
        }
    }
}

/// What was read last.
struct Seen {
    version: Vec<u8>,
    at: Instant,
}

impl Poll {
    async fn run(&self, link: &Link, order: &Order) {
        let mut state = link.state();
        // A connection that is just being made is worth waiting for.
        let known = state.wait_for(|state| *state != State::Missing);
        let _ = timeout(link.settings().connect_timeout + MARGIN, known).await;
        let mut seen: Option<Seen> = None;
        loop {
            let is_up = *state.borrow() == State::Up;
            let found = if is_up { self.look(link, &mut seen).await } else { Err(PollError::Down) };
            let every = if found.is_ok() { self.list.every } else { self.list.every.min(RETRY_MAX) };
            self.deliver(found, order).await;
            let is_up = *state.borrow() == State::Up;
            match is_up {
                true => sleep(every).await,
                // The link lives as long as this.
                false => drop(timeout(every, state.wait_for(|state| *state == State::Up)).await),
            }
        }
    }

    /// On another thread, since long lists take their time and rate limits wait for this one. The order is kept also
    /// where this future is dropped meanwhile.
    async fn deliver(&self, found: Result<Found, PollError>, order: &Order) {
        let (deliver, turn) = (Arc::clone(&self.deliver), Arc::clone(order).lock_owned().await);
        let delivery = spawn_blocking(move || {
            deliver(found);
            drop(turn);
        });
        // Fails where the runtime ends.
        let _ = delivery.await;
    }

    async fn look(&self, link: &Link, seen: &mut Option<Seen>) -> Result<Found, PollError> {
        let key = &*self.list.key;
        let version = match ask(link, redis::cmd("GET").arg(format!("{key}:version"))).await? {
            Value::BulkString(version) => Some(version),
            _ => None,
        };
        let is_known = |seen: &Seen| version.as_ref() == Some(&seen.version) && seen.at.elapsed() < REREAD;
        if seen.as_ref().is_some_and(is_known) {
            return Ok(Found::Unchanged);
        }
        let at = Instant::now();
        // Changed while it is read, it has another version next time.
        let found = self.read(link).await?;
        *seen = version.map(|version| Seen { version, at });
        Ok(found)
    }

    async fn read(&self, link: &Link) -> Result<Found, PollError> {
        let (command, parts, members_max) = match self.kind {
            Kind::Hash => ("HSCAN", 2, api_key::KEYS_MAX),
            Kind::Set => ("SSCAN", 1, REVOKED_MAX),
        };
        let (mut all, mut bytes) = (Vec::new(), 0);
        let mut cursor = b"0".to_vec();
        loop {
            let mut scan = redis::cmd(command);
            scan.arg(&*self.list.key).arg(&cursor).arg("COUNT").arg(MEMBERS_AT_ONCE);
            let (next, items) = chunk(ask(link, &scan).await?).ok_or(PollError::Form)?;
            bytes += items.iter().map(Vec::len).sum::<usize>();
            all.extend(items);
            if all.len() > members_max.saturating_mul(parts) {
                return Err(PollError::TooMany(members_max));
            }
            if bytes > LIST_BYTES_MAX {
                return Err(PollError::TooLarge);
            }
            if next == b"0" {
                break;
            }
            cursor = next;
        }
        Ok(match self.kind {
            Kind::Set => Found::Set(all),
            Kind::Hash => {
                let mut all = all.into_iter();
                Found::Hash(std::iter::from_fn(|| Some((all.next()?, all.next()?))).collect())
            }
        })
    }
}

async fn ask(link: &Link, command: &Cmd) -> Result<Value, PollError> {
    let answer = link.call(std::slice::from_ref(command)).await.map_err(|_| PollError::Down)?.pop();
    answer.ok_or(PollError::Down)?.map_err(|error| PollError::Refused(error.to_string()))
}

/// The next cursor and the members of an answer to a scan.
fn chunk(answer: Value) -> Option<(Vec<u8>, Vec<Vec<u8>>)> {
    let bytes = |value: Value| match value {
        Value::BulkString(bytes) => Some(bytes),
        _ => None,
    };
    let list = |value: Value| match value {
        Value::Array(items) | Value::Set(items) => Some(items),
        Value::Map(pairs) => Some(pairs.into_iter().flat_map(|(key, value)| [key, value]).collect()),
        _ => None,
    };
    let [cursor, items] = <[Value; 2]>::try_from(list(answer)?).ok()?;
    Some((bytes(cursor)?, list(items)?.into_iter().map(bytes).collect::<Option<_>>()?))
}
