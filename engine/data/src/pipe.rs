//! The bytes of an HTTP/2 connection between the crate `h2` and the socket.
//!
//! `h2` writes frames piece by piece: they are gathered, and leave in one send when every stream has had its turn. Large pieces
//! of blocks are not copied meanwhile: the block is held.

use std::cell::RefCell;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use ringway_core::http2_meter::{Excess, Meter};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::buffer::Buffer;
use crate::client::Client;
use crate::gathered::Outbox;
use crate::stream::Shown;
use crate::worker::Worker;

/// What a connection reads first; what comes behind it needs another read.
const READ_BYTES: usize = 2 * 1024;
/// What a connection may read before others have their turn.
const TURN_BYTES_MAX: usize = 256 * 1024;

pub(crate) struct Pipe {
    worker: Rc<Worker>,
    client: Rc<Client>,
    meter: Meter,
    /// What the client did too much of: nothing more is read.
    pub(crate) excess: Option<Excess>,
    /// What came before the version was known.
    first: Option<Buffer>,
    outbox: Outbox,
    /// The last read has filled its room.
    reads_on: bool,
    /// More is to be read when the client is readable again; until then nobody looks.
    pub(crate) wants_read: bool,
    /// `h2` waits for room to write.
    pub(crate) wants_room: bool,
    /// What it may still read in this turn.
    turn: usize,
}

impl Pipe {
    /// `first`: what was read already; `resets`: how many streams the client may give up at once.
    pub(crate) fn new(worker: &Rc<Worker>, client: Rc<Client>, first: Buffer, resets: u32) -> Self {
        Self {
            worker: Rc::clone(worker),
            client,
            meter: Meter::new(resets, worker.clock.lately()),
            excess: None,
            first: Some(first),
            outbox: Outbox::new(worker, Rc::default()),
            reads_on: false,
            wants_read: true,
            wants_room: false,
            turn: TURN_BYTES_MAX,
        }
    }

    /// A turn ends; whether it had more to read than it may.
    pub(crate) fn end_turn(&mut self) -> bool {
        std::mem::replace(&mut self.turn, TURN_BYTES_MAX) == 0
    }

    /// Sends what was gathered as far as there is room; whether all of it has left.
    pub(crate) fn flush(&mut self) -> io::Result<bool> {
        self.outbox.flush(|parts| self.client.send_parts(parts))
    }

    /// Where the pieces of this connection say which block they are of.
    pub(crate) fn shown(&self) -> Rc<Shown> {
        self.outbox.shown()
    }

    fn receive(&mut self, room: &mut ReadBuf<'_>) -> io::Result<bool> {
        if let Some(first) = &mut self.first {
            let part = first.data().get(..first.len().min(room.remaining())).unwrap_or_default();
            room.put_slice(part);
            let taken = part.len();
            first.consume(taken);
            if first.is_empty() {
                self.first = None;
            }
            return Ok(true);
        }
        let length = if self.reads_on { room.remaining() } else { READ_BYTES.min(room.remaining()) };
        let Some(received) = self.client.recv(room.initialize_unfilled_to(length))? else { return Ok(false) };
        self.reads_on = received == length;
        room.advance(received);
        self.worker.cell().client_bytes_in.add(received as u64);
        Ok(true)
    }
}

/// What `h2` takes for a socket. It wakes nobody: who drives the connection waits for the client, too.
pub(crate) struct Carrier(pub(crate) Rc<RefCell<Pipe>>);

impl AsyncRead for Carrier {
    fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, room: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let pipe = &mut *self.0.borrow_mut();
        if pipe.excess.is_some() || pipe.turn == 0 || (pipe.wants_read && pipe.first.is_none()) {
            return Poll::Pending;
        }
        let before = room.filled().len();
        pipe.wants_read = true;
        if !pipe.receive(room)? {
            return Poll::Pending;
        }
        let received = room.filled().get(before..).unwrap_or_default();
        pipe.turn = pipe.turn.saturating_sub(received.len());
        if let Err(excess) = pipe.meter.receive(received, pipe.worker.clock.lately()) {
            // `h2` does not see them, which has bounds of its own for some.
            pipe.excess = Some(excess);
            room.set_filled(before);
            return Poll::Pending;
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Carrier {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(bytes)])
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let pipe = &mut *self.0.borrow_mut();
        if pipe.outbox.is_full() && !pipe.flush()? {
            pipe.wants_room = true;
            return Poll::Pending;
        }
        let mut length = 0;
        for part in parts {
            length += part.len();
            if let Err(excess) = pipe.meter.send(part, pipe.worker.clock.lately()) {
                pipe.excess = Some(excess);
            }
            pipe.outbox.put(part);
        }
        Poll::Ready(Ok(length))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.0.borrow_mut().flush().map(drop))
    }
}
