//! How many gateways share a Redis: each tells every second that it lives, on Redis' clock.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::Arc;
use std::time::Duration;

use redis::{Cmd, ErrorKind, RedisResult, Value};

use super::script::Script;

/// Adds the caller, or takes it off, and gives the number of those that live. Whoever was not heard of for three seconds is
/// gone; so is one from a future that Redis' clock has gone back from, until its next heartbeat.
pub(super) static SCRIPT: Script = Script::new(
    "local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
if ARGV[2] == 'leave' then
    redis.call('ZREM', KEYS[1], ARGV[1])
else
    redis.call('ZADD', KEYS[1], string.format('%.0f', now), ARGV[1])
    redis.call('PEXPIRE', KEYS[1], 60000)
end
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', string.format('(%.0f', now - 3000))
redis.call('ZREMRANGEBYSCORE', KEYS[1], string.format('(%.0f', now + 3000), '+inf')
return redis.call('ZCARD', KEYS[1])",
);

/// This process among the others.
#[derive(Debug, Clone)]
pub(super) struct Heartbeat {
    key: Arc<str>,
    instance: Arc<str>,
}

impl Heartbeat {
    pub(super) const EVERY: Duration = Duration::from_secs(1);

    /// `instance` from [`random_instance`].
    pub(super) fn new(prefix: &str, instance: Arc<str>) -> Self {
        Self { key: format!("{prefix}:instances").into(), instance }
    }

    pub(super) fn beat(&self) -> Cmd {
        self.call("beat")
    }

    pub(super) fn leave(&self) -> Cmd {
        self.call("leave")
    }

    fn call(&self, what: &str) -> Cmd {
        let mut command = SCRIPT.call(self.key.as_bytes());
        command.arg(&*self.instance).arg(what);
        command
    }

    /// What a heartbeat was answered: at least one, the caller.
    pub(super) fn instances(answer: &Value) -> RedisResult<u64> {
        match answer {
            Value::Int(count @ 1..) => Ok(*count as u64),
            _ => Err((ErrorKind::UnexpectedReturnType, "not a number of instances").into()),
        }
    }
}

/// A name that no other process has: 128 bits that the system's random numbers key.
pub(crate) fn random_instance() -> Arc<str> {
    let [high, low] = [(); 2].map(|()| {
        let mut hasher = RandomState::new().build_hasher();
        hasher.write_u32(std::process::id());
        hasher
            .write_u128(std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |t| t.as_nanos()));
        hasher.finish()
    });
    format!("{high:016x}{low:016x}").into()
}
