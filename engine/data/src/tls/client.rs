//! From a connection to a service to a secured one.

use std::io;
use std::rc::Rc;
use std::sync::Arc;

use ringway_config::snapshot::EndpointTls;
use ringway_core::failure::Failure;
use ringway_core::stats::ServiceHandshake;
use ringway_io::Sock;
use rustls::client::UnbufferedClientConnection;
use rustls::{Error, HandshakeKind};

use super::handshake::{FLIGHT_BYTES_MAX, Next, Side, proceed};
use super::session::Tls;
use crate::buffer::Buffer;
use crate::worker::Worker;

/// HTTP/2 in ALPN (RFC 9113 section 3.2).
pub(crate) const HTTP2: &[u8] = b"h2";

/// A secured connection, and how it came to be.
pub(crate) struct Secured {
    pub(crate) session: Tls,
    pub(crate) handshake: ServiceHandshake,
    /// What has come already: in HTTP/2 the service may speak first.
    pub(crate) first: Vec<u8>,
}

/// Why a connection could not be secured.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unsecured {
    /// It ended, or a deadline has ended it.
    #[error("the connection ended within the handshake: {0}")]
    Ended(#[from] io::Error),
    #[error("{0}")]
    Tls(#[from] Error),
}

impl Unsecured {
    /// What it was, where no deadline has passed.
    pub(crate) fn outcome(&self) -> (Failure, ServiceHandshake) {
        match self {
            Self::Tls(Error::InvalidCertificate(_) | Error::NoCertificatesPresented) => {
                (Failure::Untrusted, ServiceHandshake::Untrusted)
            }
            Self::Tls(_) | Self::Ended(_) => (Failure::TlsFailed, ServiceHandshake::Failed),
        }
    }
}

/// Secures a connection to a service, which is asked for this protocol (ALPN). A deadline acts on the socket.
///
/// # Errors
/// The connection is to be closed. The service has been told why, where it was it that did wrong.
pub(crate) async fn shake_hands(
    worker: &Rc<Worker>,
    sock: &Sock,
    settings: &EndpointTls,
    protocol: &[u8],
) -> Result<Secured, Unsecured> {
    let (config, name) = (Arc::clone(&settings.client), settings.name.clone());
    let mut tls = UnbufferedClientConnection::new_with_alpn(config, name, vec![protocol.to_vec()])?;
    let mut plain = Vec::new();
    // Who waits for a service holds no block.
    let (mut incoming, mut outgoing): (Option<Buffer>, Option<Buffer>) = (None, None);
    loop {
        let received = incoming.get_or_insert_with(|| worker.take_inbox());
        let queued = outgoing.get_or_insert_with(|| worker.take_answer());
        match proceed(&mut tls, received, queued, &mut plain) {
            Ok(Next::Go) => {}
            Ok(Next::Flush) => {
                while !queued.is_empty() {
                    match sock.send(queued.data(), false)? {
                        0 => sock.writable().await,
                        sent => queued.consume(sent),
                    }
                }
            }
            Ok(Next::Read) => {
                if received.room().is_empty() {
                    if received.len() >= FLIGHT_BYTES_MAX {
                        return Err(Error::General("the service's messages are too long".into()).into());
                    }
                    received.make_room(FLIGHT_BYTES_MAX);
                }
                match sock.recv(received.room())? {
                    Some(0) => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
                    Some(bytes) => received.received(bytes),
                    None => {
                        if received.is_empty() {
                            incoming = None;
                        }
                        outgoing = None;
                        sock.readable().await;
                    }
                }
            }
            Ok(Next::Done) => break,
            Err(error) => {
                // What is queued now is the alert.
                while tls.has_queued() && proceed(&mut tls, received, queued, &mut plain).is_ok() {}
                let _ = sock.send(queued.data(), false);
                return Err(error.into());
            }
        }
    }
    let is_http2 = protocol == HTTP2;
    if is_http2 && tls.alpn_protocol() != Some(HTTP2) {
        return Err(Error::General("the service does not speak HTTP/2".into()).into());
    }
    if !is_http2 && !plain.is_empty() {
        return Err(Error::General("the service has sent what nobody asked for".into()).into());
    }
    let handshake = match tls.handshake_kind() {
        Some(HandshakeKind::Resumed) => ServiceHandshake::Resumed,
        _ => ServiceHandshake::Full,
    };
    let rest = incoming.as_ref().map(Buffer::data).unwrap_or_default();
    let session = Tls::of_service(worker, tls, rest).ok_or_else(|| Error::General("a suite is not known".into()))?;
    Ok(Secured { session, handshake, first: plain })
}
