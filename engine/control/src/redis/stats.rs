//! What is known about the Redis, for metrics and `/health`.

use std::sync::{Mutex, PoisonError};

use ringway_core::stats::{Counter, Histogram};

/// Written by the thread `redis` alone, read by whoever asks.
#[derive(Debug, Default)]
pub struct RedisStats {
    /// The Redis that the configuration names, without user and password; `None`: there is none.
    server: Mutex<Option<String>>,
    /// 1 while a connection stands.
    pub connected: Counter,
    /// Connections made after the first.
    pub reconnects: Counter,
    /// Tries to connect that failed.
    pub connect_errors: Counter,
    /// Commands sent.
    pub calls: Counter,
    /// Commands without an answer, or answered by an error.
    pub errors: Counter,
    /// From a command sent to its answer.
    pub round_trip: Histogram,
    /// Gateways that share the Redis, this one included; 0 as long as that is not known.
    pub instances: Counter,
    /// 1 while rate limits are kept without Redis, though there should be one.
    pub degraded: Counter,
}

impl RedisStats {
    pub fn server(&self) -> Option<String> {
        self.server.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn set_server(&self, label: Option<&str>) {
        *self.server.lock().unwrap_or_else(PoisonError::into_inner) = label.map(str::to_owned);
    }
}
