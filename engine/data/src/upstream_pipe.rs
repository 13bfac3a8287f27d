//! The bytes of a connection of HTTP/2 to a service, between the crate `h2` and the socket.
//!
//! `h2` writes frames piece by piece: they are gathered, and leave in one send when every stream has had its turn. Large pieces
//! of blocks are not copied meanwhile: the block is held.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::gathered::Outbox;
use crate::head_meter::HeadMeter;
use crate::stream::Shown;
use crate::upstream::Upstream;
use crate::worker::Worker;

pub(crate) struct Pipe {
    upstream: Upstream,
    /// What had come before `h2` asked.
    first: Bytes,
    heads: HeadMeter,
    outbox: Outbox,
    /// More is to be read when the service has sent more; until then nobody looks.
    pub(crate) wants_read: bool,
    /// `h2` waits for room to write.
    pub(crate) wants_room: bool,
    /// Something has come.
    pub(crate) heard: bool,
}

impl Pipe {
    /// `first`: what was read already; `shown`: where the pieces of this connection say which block they are of.
    pub(crate) fn new(
        worker: &Rc<Worker>,
        upstream: Upstream,
        first: Vec<u8>,
        streams_max: usize,
        shown: Rc<Shown>,
    ) -> Self {
        Self {
            upstream,
            first: Bytes::from(first),
            heads: HeadMeter::new(streams_max),
            outbox: Outbox::new(worker, shown),
            wants_read: false,
            wants_room: false,
            heard: false,
        }
    }

    /// Sends what was gathered as far as there is room; whether all of it has left.
    pub(crate) fn flush(&mut self) -> io::Result<bool> {
        self.outbox.flush(|parts| self.upstream.link.send_parts(parts))
    }

    /// Whether `h2` has been given the service's SETTINGS.
    pub(crate) fn has_settings(&self) -> bool {
        self.heads.has_settings()
    }
}

/// What `h2` takes for a socket. It wakes nobody: who drives the connection waits for the service, too.
pub(crate) struct Carrier(pub(crate) Rc<RefCell<Pipe>>);

impl AsyncRead for Carrier {
    fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, room: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let pipe = &mut *self.0.borrow_mut();
        if !pipe.first.is_empty() {
            let taken = pipe.first.len().min(room.remaining());
            let first = pipe.first.split_to(taken);
            pipe.heads.look(&first).map_err(io::Error::other)?;
            room.put_slice(&first);
            return Poll::Ready(Ok(()));
        }
        let unfilled = room.initialize_unfilled();
        match pipe.upstream.link.recv(unfilled)? {
            Some(received) => {
                pipe.heads.look(unfilled.get(..received).unwrap_or_default()).map_err(io::Error::other)?;
                room.advance(received);
                pipe.heard = true;
                Poll::Ready(Ok(()))
            }
            None => {
                pipe.wants_read = true;
                Poll::Pending
            }
        }
    }
}

impl AsyncWrite for Carrier {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let pipe = &mut *self.0.borrow_mut();
        if pipe.outbox.is_full() && !pipe.flush()? {
            pipe.wants_room = true;
            return Poll::Pending;
        }
        pipe.outbox.put(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.0.borrow_mut().flush().map(drop))
    }
}
