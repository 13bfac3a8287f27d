//! The control plane: everything slow, on threads of its own, never on a request's path.
//!
//! The thread `control` serves the admin listener and takes the signals; the thread `redis` talks to Redis; the threads
//! `access-log` and `audit-log` write lines; reloads run on the thread that owns the workers. They meet the data plane in
//! [`ringway_config::Hub`] only.
#![forbid(unsafe_code)]

mod acme;
pub mod admin;
pub mod control;
mod discovery;
pub mod exposition;
pub mod families;
mod health;
pub mod keys;
pub mod log_writer;
pub mod metrics;
pub mod process;
pub mod redis;
mod registry;
pub mod reload;
mod services;
pub mod watch;

#[cfg(test)]
mod testing;

pub use control::{Control, Event};
