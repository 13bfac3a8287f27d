//! The harness of the end-to-end tests: a real gateway process, scripted backends behind it, raw clients before it.
//!
//! Every test has its own gateway and its own ports. Nothing sleeps to wait: [`eventually`] polls, reads have
//! deadlines, and a failure shows what the gateway wrote to stderr.

mod backend;
mod client;
pub mod confine;
pub mod dns;
pub mod etcd;
pub mod failing;
mod gateway;
pub mod http2;
mod load;
mod message;
pub mod pebble;
mod process;
mod random;
pub mod redis;
mod server;
pub mod steady;
mod strace;
pub mod tls;
pub mod websocket;
mod wire;

pub use backend::{Backend, Conn};
pub use client::Client;
pub use gateway::{Gateway, Nobody, Setup, binary, built, free_port, rss_bytes};
pub use load::Load;
pub use message::{Head, Message};
pub use process::{Output, Process};
pub use random::ten_thousand;
pub use strace::Strace;
pub use wire::{End, Wire};

use std::time::{Duration, Instant};

/// How long anything that should happen may take before a test gives up. Generous: the machines that run the tests
/// are small and busy.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Polls until `condition` holds; panics after `deadline`.
#[track_caller]
pub fn eventually(deadline: Duration, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + deadline;
    while !condition() {
        assert!(Instant::now() < end, "not so within {deadline:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Polls until two values are equal; panics with both after [`PATIENCE`].
#[track_caller]
pub fn settles_at<T: PartialEq + std::fmt::Debug>(expected: T, mut value: impl FnMut() -> T) {
    let end = Instant::now() + PATIENCE;
    loop {
        let seen = value();
        if seen == expected {
            return;
        }
        assert!(Instant::now() < end, "still {seen:?} instead of {expected:?} after {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
