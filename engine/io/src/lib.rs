//! A thread's event loop and the sockets on it, for everything here that serves connections from pinned cores: the
//! gateway's workers, the load generator, its test backend. The only crate that knows monoio.
//!
//! A wait goes through the loop ([`Sock::readable`], [`Sock::writable`], [`Ticker::tick`]); bytes move in direct calls
//! that never block ([`Sock::recv`], [`Sock::send`]). An abandoned wait loses nothing, since no operation owns a buffer.
#![deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

mod busy_poll;
mod connect;
mod event_loop;
mod listen;
mod reactor;
mod sock;
mod tasks;
mod ticker;

pub use connect::{connect, connected};
pub use event_loop::{EventLoop, spawn, yield_now};
pub use listen::bind;
pub use reactor::LoopCounts;
pub use sock::Sock;
pub use ticker::Ticker;
