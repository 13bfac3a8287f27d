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

use crate::gathered::Gathered;
use crate::head_meter::HeadMeter;
use crate::stream::Shown;
use crate::upstream::Upstream;
use crate::worker::Worker;

/// What the streams of a connection may write before it has to leave.
const GATHERED_BYTES_MAX: usize = 256 * 1024;
/// A shorter piece is copied: it is not worth a block.
const HELD_BYTES_MIN: usize = 4 * 1024;

pub(crate) struct Pipe {
    worker: Rc<Worker>,
    upstream: Upstream,
    /// What had come before `h2` asked.
    first: Bytes,
    heads: HeadMeter,
    /// The core's while there is something in it; else it holds nothing.
    gathered: Gathered,
    /// The block that `h2` reads from.
    shown: Rc<Shown>,
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
            worker: Rc::clone(worker),
            upstream,
            first: Bytes::from(first),
            heads: HeadMeter::new(streams_max),
            gathered: Gathered::default(),
            shown,
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
        self.shown.take();
        if !self.gathered.send(|parts| self.upstream.link.send_parts(parts))? {
            return Ok(false);
        }
        self.worker.give_gathered(std::mem::take(&mut self.gathered));
        Ok(true)
    }

    fn gather(&mut self, part: &[u8]) {
        if self.gathered.is_empty() {
            self.gathered = self.worker.take_gathered();
        }
        if part.len() >= HELD_BYTES_MIN
            && let Some(block) = self.shown.take()
            && let Some(range) = block.range_of(part)
        {
            return self.gathered.hold(block, range);
        }
        self.gathered.copy(part);
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
        pipe.gather(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.0.borrow_mut().flush().map(drop))
    }
}
