//! What is counted of those who let requests in: authenticators and rate limits.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use crossbeam::utils::CachePadded;

use super::Counter;

/// What became of a credential: the `outcome` label of `gateway_authentications_total`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Authentication {
    /// Verified anew.
    Verified,
    /// Remembered.
    Cached,
    /// There was none.
    Missing,
    Refused,
    /// There was nothing to judge it with.
    Unavailable,
}

impl Authentication {
    pub const ALL: [Self; 5] = [Self::Verified, Self::Cached, Self::Missing, Self::Refused, Self::Unavailable];

    pub const fn label(self) -> &'static str {
        match self {
            Self::Verified => "verified",
            Self::Cached => "cached",
            Self::Missing => "missing",
            Self::Refused => "refused",
            Self::Unavailable => "unavailable",
        }
    }
}

/// What one worker counts for one authenticator.
#[derive(Debug, Default)]
pub struct AuthenticatorCell {
    outcomes: [Counter; Authentication::ALL.len()],
    /// 1 while the worker's breaker of the auth service is open, as of the last request that asked it.
    pub breaker_open: Counter,
}

impl AuthenticatorCell {
    #[inline]
    pub fn record(&self, outcome: Authentication) {
        if let Some(counter) = self.outcomes.get(outcome as usize) {
            counter.add(1);
        }
    }

    pub fn outcomes(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        Authentication::ALL.iter().zip(&self.outcomes).map(|(outcome, counter)| (outcome.label(), counter.get()))
    }
}

/// An authenticator's counters, one cell a worker.
#[derive(Debug)]
pub struct AuthenticatorStats {
    pub authenticator: Arc<str>,
    pub workers: Box<[CachePadded<AuthenticatorCell>]>,
}

impl AuthenticatorStats {
    pub fn new(authenticator: Arc<str>, workers: usize) -> Self {
        let workers = (0..workers).map(|_| CachePadded::new(AuthenticatorCell::default())).collect();
        Self { authenticator, workers }
    }
}

/// Clients of a limit that have a count of their own, by worker; those beyond are counted together.
pub const REFUSED_CLIENTS_MAX: usize = 100;

/// What one worker counts for one rate limit: refusals, by client.
#[derive(Debug, Default)]
pub struct LimitCell {
    /// Locked by its worker with a refusal, and when somebody asks for the metrics.
    refused: Mutex<HashMap<Box<[u8]>, u64>>,
    others: Counter,
}

impl LimitCell {
    /// Counts a refusal of this key.
    pub fn refuse(&self, key: &[u8]) {
        let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = refused.get_mut(key) {
            *count += 1;
        } else if refused.len() < REFUSED_CLIENTS_MAX {
            refused.insert(key.into(), 1);
        } else {
            self.others.add(1);
        }
    }

    /// Refusals by key, and those of keys without a count of their own.
    pub fn refused(&self) -> (HashMap<Box<[u8]>, u64>, u64) {
        let refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        (refused.clone(), self.others.get())
    }
}

/// A rate limit's counters, one cell a worker.
#[derive(Debug)]
pub struct LimitStats {
    pub policy: Arc<str>,
    pub workers: Box<[CachePadded<LimitCell>]>,
}

impl LimitStats {
    pub fn new(policy: Arc<str>, workers: usize) -> Self {
        Self { policy, workers: (0..workers).map(|_| CachePadded::new(LimitCell::default())).collect() }
    }
}
