//! Rate limits that hold across instances: local cells that agree through Redis.
//!
//! A policy is a token bucket per key, described by GCRA (the generic cell rate algorithm of ATM, ITU-T I.371), in
//! arithmetic that never rounds. An instance keeps one [`Limiter`] per policy, and in it one atomic cell per key that
//! all its cores share. Without Redis the cell is the bucket. With Redis a core still admits from the cell alone; the
//! control plane reconciles the cells by one script ([`script`]) on Redis' own clock. What all instances together admit in
//! any window of W stays within burst + rate * W + [`Policy::bound`].
//!
//! A cell speaks of an account: positive, tokens leased from the bucket in Redis; negative, tokens admitted and not yet
//! reported. Policies of many requests hold leases sized by demand; the others admit first and report at once. A request
//! is held for Redis' word, for at most [`HOLD_US`], only where neither will do: a key at its limit, or a limit too small
//! to be shared. Nothing here waits, knows a socket or reads a clock: [`Limiter::poll`] says which calls to send,
//! [`Limiter::reply`] takes what came back.
//!
//! Apart from rates, [`Concurrency`] limits how many requests of a key are under way at the same time.

mod cell;
mod concurrency;
mod desk;
mod headers;
mod hold;
mod limiter;
mod policy;
mod rule;
mod rules;
pub mod script;
mod sync;
mod table;

pub use concurrency::{Concurrency, ConcurrencySpec, PLACES_MAX, Place, Places};
pub use headers::{HeaderStyle, write_headers};
pub use hold::{Held, Wake};
pub use limiter::{HOLDS_MAX, KEY_BYTES_MAX, Limiter};
pub use policy::{
    CALL_GAP_US, Fallback, HOLD_US, INSTANCES_MAX, LEASE_SHARE, LOST_US, PERIOD_US, Policy, PolicyError, Shares, Spec,
    WAIT_US_MAX,
};
pub use rule::{KeyPart, Rule, Scope, Tiers, Who};
pub use rules::Mode;
pub use sync::{CALLS_MAX, Call, Exchange, Holding, Token};

/// Whether a request may pass, as far as one policy goes.
#[derive(Debug)]
pub enum Decision {
    Admitted(State),
    Refused(State),
    /// The request waits for Redis' word: [`Limiter::outcome`].
    Hold(Held),
    /// Redis is away, and the policy admits nothing without it.
    Unavailable,
}

/// Where a key stands, as far as this instance knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct State {
    /// Tokens per period.
    pub limit: u64,
    /// Tokens that could be taken now.
    pub remaining: u64,
    /// Until the bucket is full, in microseconds.
    pub reset_us: u64,
    /// After a refusal, when to ask again, in microseconds; 0 otherwise.
    pub retry_after_us: u64,
}
