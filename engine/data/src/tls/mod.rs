//! TLS towards clients. rustls shakes hands and keeps the key schedule; the records of an established connection are
//! sealed and opened here, in the core's own blocks, so that a request allocates nothing.

mod handshake;
mod identity;
pub mod record;
mod session;
#[cfg(test)]
mod testing;

pub(crate) use handshake::{Handshakes, shake_hands};
pub(crate) use identity::Secured;
pub(crate) use session::Tls;
