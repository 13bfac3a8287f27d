//! The storage that gateways share. Keys of one authority are in one place of a cluster or another, as it comes: no command
//! needs two of them.

use std::time::Duration;

use redis::{Cmd, FromRedisValue, Value};
use ringway_config::acme::{CHALLENGES_MAX, Challenge, ChallengeKind};
use ringway_config::snapshot::Redis as Settings;
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;
use tokio::time::sleep;

use super::store::StoreError;
use crate::redis::Conn;

/// How long a lock holds that nobody extends: what a gateway that was killed costs the others.
const LOCK_TIME: Duration = Duration::from_secs(15);
/// How often it is extended.
const EXTEND: Duration = Duration::from_secs(5);
/// How long challenges stand that nobody takes away.
const SHARED_TIME: Duration = Duration::from_secs(600);

/// Takes the lock where nobody else has it.
const LOCK: &str = "local owner = redis.call('GET', KEYS[1])
if owner and owner ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1";
const HOLD: &str = "if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
return redis.call('PEXPIRE', KEYS[1], ARGV[2])";
const RELEASE: &str = "if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
return redis.call('DEL', KEYS[1])";

pub(super) struct RedisStore {
    settings: Settings,
    prefix: String,
    /// What the lock says of who has it. The same for all tasks of the process, so that the next one need not wait for what
    /// an order that was broken off has left behind.
    instance: String,
    connection: Mutex<Option<Conn>>,
}

/// A challenge as JSON.
#[derive(Serialize, Deserialize)]
struct Shared {
    kind: SharedKind,
    name: String,
    token: String,
    key_authorization: String,
}

#[derive(Serialize, Deserialize)]
enum SharedKind {
    #[serde(rename = "http-01")]
    Http01,
    #[serde(rename = "tls-alpn-01")]
    TlsAlpn01,
}

impl From<&Challenge> for Shared {
    fn from(challenge: &Challenge) -> Self {
        let Challenge { kind, name, token, key_authorization } = challenge.clone();
        let kind = match kind {
            ChallengeKind::Http01 => SharedKind::Http01,
            ChallengeKind::TlsAlpn01 => SharedKind::TlsAlpn01,
        };
        Self { kind, name, token, key_authorization }
    }
}

impl From<Shared> for Challenge {
    fn from(Shared { kind, name, token, key_authorization }: Shared) -> Self {
        let kind = match kind {
            SharedKind::Http01 => ChallengeKind::Http01,
            SharedKind::TlsAlpn01 => ChallengeKind::TlsAlpn01,
        };
        Self { kind, name, token, key_authorization }
    }
}

impl RedisStore {
    pub(super) fn new(settings: Settings, prefix: String, instance: &str) -> Self {
        Self { settings, prefix, instance: instance.to_owned(), connection: Mutex::default() }
    }

    pub(super) async fn get(&self, key: &str) -> Result<Option<Vec<u8>>, StoreError> {
        self.ask(redis::cmd("GET").arg(self.key(key))).await
    }

    pub(super) async fn set(&self, key: &str, bytes: Vec<u8>) -> Result<(), StoreError> {
        self.ask(redis::cmd("SET").arg(self.key(key)).arg(bytes)).await
    }

    pub(super) async fn remove(&self, key: &str) -> Result<(), StoreError> {
        self.ask::<i64>(redis::cmd("DEL").arg(self.key(key))).await.map(|_| ())
    }

    pub(super) async fn lock(&self) -> Result<bool, StoreError> {
        self.of_lock(LOCK).await
    }

    /// Comes back when the lock is lost: to another gateway, or out of reach for as long as it holds.
    pub(super) async fn hold(&self) {
        let mut held = tokio::time::Instant::now();
        loop {
            sleep(EXTEND).await;
            match self.of_lock(HOLD).await {
                Ok(true) => held = tokio::time::Instant::now(),
                Err(_) if held.elapsed() + EXTEND < LOCK_TIME => {}
                Ok(false) | Err(_) => return,
            }
        }
    }

    pub(super) async fn release(&self) {
        // What cannot be released runs out.
        let _ = self.of_lock(RELEASE).await;
    }

    pub(super) async fn share(&self, challenges: &[Challenge]) -> Result<(), StoreError> {
        let key = self.key("challenges");
        if challenges.is_empty() {
            return self.ask::<i64>(redis::cmd("DEL").arg(key)).await.map(|_| ());
        }
        let shared: Vec<Shared> = challenges.iter().map(Shared::from).collect();
        let json = serde_json::to_vec(&shared).map_err(|error| StoreError::Redis(error.to_string()))?;
        self.ask(redis::cmd("SET").arg(key).arg(json).arg("PX").arg(SHARED_TIME.as_millis() as u64)).await
    }

    pub(super) async fn shared(&self) -> Result<Vec<Challenge>, StoreError> {
        let Some(json) = self.get("challenges").await? else { return Ok(Vec::new()) };
        let shared: Vec<Shared> =
            serde_json::from_slice(&json).map_err(|error| StoreError::Redis(format!("challenges: {error}")))?;
        Ok(shared.into_iter().take(CHALLENGES_MAX).map(Challenge::from).collect())
    }

    fn key(&self, key: &str) -> String {
        format!("{}:{key}", self.prefix)
    }

    async fn of_lock(&self, script: &str) -> Result<bool, StoreError> {
        let mut command = redis::cmd("EVAL");
        command.arg(script).arg(1).arg(self.key("lock")).arg(&self.instance).arg(LOCK_TIME.as_millis() as u64);
        Ok(self.ask::<i64>(&command).await? == 1)
    }

    async fn ask<T: FromRedisValue>(&self, command: &Cmd) -> Result<T, StoreError> {
        let mut connection = self.connection.lock().await;
        let open = match connection.take() {
            Some(open) => open,
            None => Conn::open(&self.settings).await.map_err(|error| self.said(&error))?,
        };
        let answer = open.call(std::slice::from_ref(command)).await.map_err(|error| self.said(&error))?.pop();
        let value = answer.unwrap_or(Ok(Value::Nil)).map_err(|error| self.said(&error))?;
        // One that was answered an error may be to a server that is not the master any more.
        *connection = Some(open);
        T::from_redis_value(value).map_err(|error| StoreError::Redis(error.to_string()))
    }

    /// Without the password, which nobody has reason to repeat.
    fn said(&self, error: &redis::RedisError) -> StoreError {
        let text = error.to_string();
        StoreError::Redis(match self.settings.password.as_deref() {
            Some(password) => text.replace(password, "[redacted]"),
            None => text,
        })
    }
}
