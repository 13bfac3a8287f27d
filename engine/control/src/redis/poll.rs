//! What others write into Redis and the gateway reads now and then: API keys, revoked tokens. Read again only when the
//! version beside it has changed.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use redis::{Cmd, Value};
use tokio::sync::watch;
use tokio::time::sleep;

use super::link::{Link, State};

/// More members than this are not read.
const ITEMS_MAX: i64 = 100_000;

/// What to read. Whoever writes it changes `PREFIX:KEY:version` afterwards (`INCR`); without a version it is read each time.
#[derive(Clone)]
pub struct Poll {
    pub kind: Kind,
    /// Behind the prefix: `api-keys`, `revoked`.
    pub key: &'static str,
    pub every: Duration,
    /// Gets the whole of it, at first and after each change. Runs on the thread `redis` and must not wait.
    pub deliver: Arc<dyn Fn(Content) + Send + Sync>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Hash,
    Set,
}

/// In no order. Empty where the key does not exist.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    Hash(Vec<(Vec<u8>, Vec<u8>)>),
    Set(Vec<Vec<u8>>),
}

impl fmt::Debug for Poll {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, key, every, deliver: _ } = self;
        f.debug_struct("Poll").field("kind", kind).field("key", key).field("every", every).finish_non_exhaustive()
    }
}

/// Polls for good, always the newest list.
pub(super) async fn run(link: &Link, mut polls: watch::Receiver<Vec<Poll>>) {
    loop {
        let current = polls.borrow_and_update().clone();
        let polling = join_all(current.iter().map(|poll| poll.run(link)));
        tokio::select! {
            changed = polls.changed() => if changed.is_err() {
                // The process ends.
                return;
            },
            _ = polling, if !current.is_empty() => {}
        }
    }
}

impl Poll {
    async fn run(&self, link: &Link) {
        let mut state = link.state();
        // `Some(None)`: read, without a version.
        let mut seen: Option<Option<Vec<u8>>> = None;
        loop {
            // The link lives as long as this.
            let _ = state.wait_for(|state| *state == State::Up).await;
            self.look(link, &mut seen).await;
            sleep(self.every).await;
        }
    }

    async fn look(&self, link: &Link, seen: &mut Option<Option<Vec<u8>>>) {
        let key = format!("{}:{}", link.settings().prefix, self.key);
        let Some(version) = ask(link, command("GET", &format!("{key}:version"))).await else { return };
        let version = match version {
            Value::BulkString(version) => Some(version),
            _ => None,
        };
        if version.is_some() && seen.as_ref() == Some(&version) {
            return;
        }
        let (size, read) = match self.kind {
            Kind::Hash => ("HLEN", "HGETALL"),
            Kind::Set => ("SCARD", "SMEMBERS"),
        };
        match ask(link, command(size, &key)).await {
            Some(Value::Int(0..=ITEMS_MAX)) => {}
            Some(Value::Int(size)) => {
                tracing::error!("redis: {key} has {size} members, more than {ITEMS_MAX}: not read");
                return;
            }
            _ => return,
        }
        // Changed while it is read, it has another version next time.
        if let Some(content) = ask(link, command(read, &key)).await.and_then(|value| content(self.kind, value)) {
            (self.deliver)(content);
            *seen = Some(version);
        }
    }
}

fn command(name: &str, key: &str) -> Cmd {
    let mut command = redis::cmd(name);
    command.arg(key);
    command
}

/// `None` where there is no good answer; it is asked again next time.
async fn ask(link: &Link, command: Cmd) -> Option<Value> {
    match link.call(&[command]).await.ok()?.pop()? {
        Ok(value) => Some(value),
        Err(error) => {
            tracing::warn!("redis: {error}");
            None
        }
    }
}

fn content(kind: Kind, value: Value) -> Option<Content> {
    let bytes = |value: Value| match value {
        Value::BulkString(bytes) => Some(bytes),
        _ => None,
    };
    let items = match value {
        Value::Array(items) | Value::Set(items) => items,
        Value::Map(pairs) => pairs.into_iter().flat_map(|(key, value)| [key, value]).collect(),
        _ => return None,
    };
    let items: Vec<Vec<u8>> = items.into_iter().map(bytes).collect::<Option<_>>()?;
    match kind {
        Kind::Set => Some(Content::Set(items)),
        Kind::Hash => {
            let mut items = items.into_iter();
            let pair = || Some((items.next()?, items.next()?));
            Some(Content::Hash(std::iter::from_fn(pair).collect()))
        }
    }
}
