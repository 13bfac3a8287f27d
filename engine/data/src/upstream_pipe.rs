//! The bytes of a connection of HTTP/2 to a service, between the crate `h2` and the socket.
//!
//! `h2` writes frames piece by piece: they are gathered, and leave in one send when every stream has had its turn.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::gathered::Gathered;
use crate::head_meter::HeadMeter;
use crate::upstream::Upstream;
use crate::worker::Worker;

/// What the streams of a connection may write before it has to leave.
const GATHERED_BYTES_MAX: usize = 256 * 1024;

pub(crate) struct Pipe {
    worker: Rc<Worker>,
    upstream: Upstream,
    /// What had come before `h2` asked.
    first: Bytes,
    heads: HeadMeter,
    /// The core's while there is something in it; else it holds nothing.
    gathered: Gathered,
    /// More is to be read when the service has sent more; until then nobody looks.
    pub(crate) wants_read: bool,
    /// `h2` waits for room to write.
    pub(crate) wants_room: bool,
    /// Something has come.
    pub(crate) heard: bool,
}

impl Pipe {
    /// `first`: what was read already.
    pub(crate) fn new(worker: &Rc<Worker>, upstream: Upstream, first: Vec<u8>, streams_max: usize) -> Self {
        Self {
            worker: Rc::clone(worker),
            upstream,
            first: Bytes::from(first),
            heads: HeadMeter::new(streams_max),
            gathered: Gathered::default(),
            wants_read: false,
            wants_room: false,
            heard: false,
        }
    }

    /// Sends what was gathered as far as there is room; whether all of it has left.
    pub(crate) fn flush(&mut self) -> io::Result<bool> {
        if self.gathered.is_empty() {
            return Ok(true);
        }
        let link = &self.upstream.link;
        // Copies, of which there is one part.
        let all_sent = self.gathered.send(|parts| parts.first().map_or(Ok(0), |part| link.send(part)))?;
        if all_sent {
            self.worker.give_gathered(std::mem::take(&mut self.gathered));
        }
        Ok(all_sent)
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
        if pipe.gathered.held_bytes() > GATHERED_BYTES_MAX && !pipe.flush()? {
            pipe.wants_room = true;
            return Poll::Pending;
        }
        if pipe.gathered.is_empty() {
            pipe.gathered = pipe.worker.take_gathered();
        }
        pipe.gathered.copy(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.0.borrow_mut().flush().map(drop))
    }
}
