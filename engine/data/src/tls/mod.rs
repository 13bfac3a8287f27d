//! TLS, towards clients and services. rustls shakes hands and keeps the key schedule; the records of an established connection are
//! sealed and opened here, in the core's own blocks, so that a request allocates nothing.

mod client;
mod handshake;
mod identity;
mod outgoing;
pub mod record;
mod session;
#[cfg(test)]
mod testing;

pub(crate) use client::{HTTP2, shake_hands as shake_hands_with_service};
pub(crate) use handshake::{Handshakes, shake_hands};
pub(crate) use identity::Secured;
pub(crate) use session::Tls;
