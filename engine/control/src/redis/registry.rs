//! The registry of instances, over connections of its own: a list of them is long, and neither the rate limits' connection nor
//! their thread must wait for it. It is read in parts, since whatever else is asked of Redis waits for each.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex as StdMutex, PoisonError};
use std::time::Duration;

use redis::{Cmd, ErrorKind, ServerErrorKind, Value};
use ringway_config::snapshot::{Redis as Settings, RedisServers, RegistryPlace};
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::connect::{Answer, Conn, is_lost};
use super::script::{Script, is_forgotten};

static SCRIPT: Script = Script::new(include_str!("registry.lua"));

/// Entries that are asked for at once: a millisecond of Redis' time at most.
const PART: u32 = 32;
/// Entries of a service, its own fields included; gateways write no more than 1,027.
const ENTRIES_MAX: usize = 2_048;
/// After a try to connect that failed.
const RETRY_AFTER: Duration = Duration::from_millis(200);

/// Asks Redis, from tasks of the control thread. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(crate) struct Registry {
    stores: Arc<StdMutex<Vec<Arc<Store>>>>,
}

/// One Redis.
struct Store {
    settings: Settings,
    /// Made by who needs it first.
    connection: Mutex<Connection>,
}

#[derive(Default)]
struct Connection {
    /// `None`: there is none.
    is: Option<Conn>,
    /// Counts them.
    number: u64,
    failed: Option<Instant>,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum RegistryError {
    #[error("there is no connection to Redis")]
    Away,
    #[error("Redis: {0}")]
    Refused(String),
    #[error("an answer of another form")]
    Form,
    #[error("Redis has lost its data")]
    Forgotten,
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
        store_of(&self.seen)
    }
}

fn store_of(seen: &str) -> &str {
    seen.split_once('.').map_or("", |(store, _)| store)
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Registered {
    New,
    Again,
    /// The service has as many instances as it may.
    Full,
}

impl Registry {
    /// Goes on with these; connections to others end. Of the same servers the first ones count.
    pub(crate) fn set<'s>(&self, wanted: impl IntoIterator<Item = &'s Settings>) {
        let mut stores = self.stores.lock().unwrap_or_else(PoisonError::into_inner);
        let old = std::mem::take(&mut *stores);
        for settings in wanted {
            let known = old.iter().find(|store| store.settings == *settings).cloned();
            let new = || Arc::new(Store { settings: settings.clone(), connection: Mutex::default() });
            stores.push(known.unwrap_or_else(new));
        }
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
        match self.store(place)?.ask(&call).await? {
            Value::Int(1) => Ok(Registered::New),
            Value::Int(0) => Ok(Registered::Again),
            Value::Int(-1) => Ok(Registered::Full),
            _ => Err(RegistryError::Form),
        }
    }

    /// A sign of life. Whether the instance is known.
    pub(crate) async fn beat(&self, place: &RegistryPlace, name: &str) -> Result<bool, RegistryError> {
        self.store(place)?.ask(&call(place, "beat", name)).await.map(|answer| answer == Value::Int(1))
    }

    /// Whether the instance was known.
    pub(crate) async fn leave(&self, place: &RegistryPlace, name: &str) -> Result<bool, RegistryError> {
        self.store(place)?.ask(&call(place, "leave", name)).await.map(|answer| answer == Value::Int(1))
    }

    /// All that are registered, unless that is what was seen before. What changes while they are read is seen or not, and
    /// the list is another one then.
    pub(crate) async fn list(&self, place: &RegistryPlace, seen: Option<&str>) -> Result<Listing, RegistryError> {
        let store = self.store(place)?;
        let (list_seen, now_ms) = store.look(place, seen).await?;
        let Some(now_ms) = now_ms else { return Ok(Listing { seen: list_seen, entries: None }) };
        let mut fields = BTreeMap::new();
        let mut cursor = "0".to_owned();
        loop {
            let mut scan = redis::cmd("HSCAN");
            scan.arg(&*place.key).arg(&cursor).arg("COUNT").arg(PART);
            let (next, part) = part(store.ask(&scan).await?).ok_or(RegistryError::Form)?;
            fields.extend(part);
            if fields.len() > ENTRIES_MAX {
                return Err(RegistryError::Form);
            }
            if next == "0" {
                break;
            }
            cursor = next;
        }
        // Half a list of one that came in place of it would be believed.
        if store_of(&store.look(place, Some(&list_seen)).await?.0) != store_of(&list_seen) {
            return Err(RegistryError::Forgotten);
        }
        let entries = fields.into_iter().filter_map(|(field, value)| entry(&field, &value, now_ms));
        let entries = entries.collect::<Option<_>>().ok_or(RegistryError::Form)?;
        Ok(Listing { seen: list_seen, entries: Some(entries) })
    }

    fn store(&self, place: &RegistryPlace) -> Result<Arc<Store>, RegistryError> {
        let stores = self.stores.lock().unwrap_or_else(PoisonError::into_inner);
        let is_of = |servers: &RedisServers| *servers == place.servers;
        stores.iter().find(|store| is_of(&store.settings.servers)).cloned().ok_or(RegistryError::Away)
    }
}

impl Store {
    /// What tells the list now, and Redis' time where it is another one than was seen.
    async fn look(&self, place: &RegistryPlace, seen: Option<&str>) -> Result<(String, Option<u64>), RegistryError> {
        let answer = self.ask(&call(place, "list", seen.unwrap_or("-"))).await?;
        looked(answer).ok_or(RegistryError::Form)
    }

    async fn ask(&self, call: &Cmd) -> Result<Value, RegistryError> {
        let (number, connection) = self.connection().await?;
        let mut answer = one(&connection, call).await;
        if is_forgotten(&answer) {
            // A script that was not there did nothing: to call it again is safe.
            answer = match one(&connection, &SCRIPT.load()).await {
                Ok(_) => one(&connection, call).await,
                Err(error) => Err(error),
            };
        }
        let Err(error) = answer else { return answer.map_err(|_| RegistryError::Away) };
        let is_lost = is_lost(&error);
        // Another server is the master now.
        if is_lost || error.kind() == ErrorKind::Server(ServerErrorKind::ReadOnly) {
            let mut connection = self.connection.lock().await;
            if connection.number == number {
                connection.is = None;
            }
        }
        Err(if is_lost { RegistryError::Away } else { RegistryError::Refused(error.to_string()) })
    }

    async fn connection(&self) -> Result<(u64, Conn), RegistryError> {
        let mut connection = self.connection.lock().await;
        if let Some(conn) = &connection.is {
            return Ok((connection.number, conn.clone()));
        }
        // Who has waited while another one tried need not try again.
        if connection.failed.is_some_and(|failed| failed.elapsed() < RETRY_AFTER) {
            return Err(RegistryError::Away);
        }
        match Conn::open(&self.settings).await {
            Ok(conn) => {
                (connection.is, connection.failed) = (Some(conn.clone()), None);
                connection.number += 1;
                Ok((connection.number, conn))
            }
            Err(_) => {
                connection.failed = Some(Instant::now());
                Err(RegistryError::Away)
            }
        }
    }
}

/// Without what is secret.
impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").field("settings", &self.settings).finish_non_exhaustive()
    }
}

async fn one(connection: &Conn, call: &Cmd) -> Answer {
    let answers = connection.call(std::slice::from_ref(call)).await?;
    answers.into_iter().next().unwrap_or(Ok(Value::Nil))
}

fn call(place: &RegistryPlace, what: &str, name: &str) -> Cmd {
    let mut call = SCRIPT.call(place.key.as_bytes());
    call.arg(what).arg(name);
    call
}

fn text(value: Value) -> Option<String> {
    match value {
        Value::BulkString(bytes) => String::from_utf8(bytes).ok(),
        _ => None,
    }
}

/// What the script says of the list.
fn looked(answer: Value) -> Option<(String, Option<u64>)> {
    let Value::Array(parts) = answer else { return None };
    let mut parts = parts.into_iter().map(text);
    let seen = parts.next()??;
    match parts.next() {
        None => Some((seen, None)),
        Some(now) => Some((seen, Some(now?.parse().ok()?))),
    }
}

/// Where the rest begins, and fields with their values.
fn part(answer: Value) -> Option<(String, Vec<(String, String)>)> {
    let Value::Array(parts) = answer else { return None };
    let [cursor, fields] = <[Value; 2]>::try_from(parts).ok()?;
    let mut fields = match fields {
        Value::Array(fields) => fields,
        Value::Map(pairs) => pairs.into_iter().flat_map(|(field, value)| [field, value]).collect(),
        _ => return None,
    }
    .into_iter()
    .map(text);
    let mut found = Vec::new();
    while let Some(field) = fields.next() {
        found.push((field?, fields.next()??));
    }
    Some((text(cursor)?, found))
}

/// `None`: a field of another kind; `Some(None)`: a malformed one.
fn entry(field: &str, value: &str, now_ms: u64) -> Option<Option<Entry>> {
    let name = field.strip_prefix("i:")?;
    let read = || {
        let mut value = value.splitn(3, ' ');
        let (until_ms, ttl_ms): (u64, u64) = (value.next()?.parse().ok()?, value.next()?.parse().ok()?);
        Some(Entry {
            name: name.to_owned(),
            left: Duration::from_millis(until_ms.saturating_sub(now_ms)),
            ttl: Duration::from_millis(ttl_ms),
            body: value.next()?.to_owned(),
        })
    };
    Some(read())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(parts: &[&str]) -> Value {
        Value::Array(parts.iter().map(|part| Value::BulkString(part.as_bytes().to_vec())).collect())
    }

    #[test]
    fn what_is_said_of_a_list_is_read_and_what_is_malformed_refused() {
        assert_eq!(looked(texts(&["1-2.3"])), Some(("1-2.3".into(), None)));
        assert_eq!(looked(texts(&["", "1000"])), Some((String::new(), Some(1000))));
        assert_eq!((store_of("1-2.3"), store_of("")), ("1-2", ""));
        for bad in [texts(&[]), texts(&["", "x"]), texts(&["", "-1"]), Value::Nil, Value::Array(vec![Value::Int(1)])] {
            assert_eq!(looked(bad.clone()), None, "{bad:?}");
        }
    }

    #[test]
    fn parts_of_a_list_are_read_and_malformed_ones_refused() {
        let cursor = || Value::BulkString(b"17".to_vec());
        let read = |fields: &[&str]| part(Value::Array(vec![cursor(), texts(fields)]));
        assert_eq!(read(&["store", "1-2"]), Some(("17".into(), vec![("store".into(), "1-2".into())])));
        let pair = [b"a", b"b"].map(|text| Value::BulkString(text.to_vec()));
        let [field, value] = pair;
        let map = Value::Array(vec![cursor(), Value::Map(vec![(field, value)])]);
        assert_eq!(part(map), Some(("17".into(), vec![("a".into(), "b".into())])));
        assert_eq!(read(&["i:a"]), None);
        for bad in [Value::Nil, texts(&["0"]), Value::Array(vec![cursor(), Value::Nil]), texts(&["0", "1"])] {
            assert_eq!(part(bad.clone()), None, "{bad:?}");
        }
        let expected = Entry {
            name: "a".into(),
            left: Duration::from_millis(500),
            ttl: Duration::from_secs(2),
            body: "{\"a\": 1}".into(),
        };
        assert_eq!(entry("i:a", "1500 2000 {\"a\": 1}", 1000), Some(Some(expected)));
        assert_eq!(entry("due", "1500", 1000), None);
        for bad in ["", "1 2", "-1 2 b", "1 x b"] {
            assert_eq!(entry("i:a", bad, 1000), Some(None), "{bad:?}");
        }
    }
}
