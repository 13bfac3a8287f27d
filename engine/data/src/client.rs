//! The client's end of a connection: what the serve path reads requests from and writes answers to, whatever carries it.

use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::os::fd::BorrowedFd;
use std::rc::Rc;

use ringway_io::Sock;
use rustix::net::Shutdown;

use crate::stream::Stream;
use crate::tls::Tls;

/// Where a client's bytes come from and go to. Never blocks: what cannot go on at once is waited for with
/// [`Client::readable`] or [`Client::writable`].
pub(crate) struct Client {
    carrier: Carrier,
}

enum Carrier {
    Plain(Sock),
    Tls(Sock, Box<Tls>),
    /// One request of an HTTP/2 connection.
    Stream(Rc<Stream>),
    /// Taken by the HTTP/2 connection.
    Nobody,
}

impl Client {
    pub(crate) fn plain(sock: Sock) -> Self {
        Self { carrier: Carrier::Plain(sock) }
    }

    pub(crate) fn of_stream(stream: Rc<Stream>) -> Self {
        Self { carrier: Carrier::Stream(stream) }
    }

    /// Nothing to read, nobody to write to.
    pub(crate) fn nobody() -> Self {
        Self { carrier: Carrier::Nobody }
    }

    /// From now on in this session.
    pub(crate) fn secure(&mut self, session: Tls) {
        if let Carrier::Plain(sock) = std::mem::replace(&mut self.carrier, Carrier::Nobody) {
            self.carrier = Carrier::Tls(sock, Box::new(session));
        }
    }

    pub(crate) fn sock(&self) -> Option<&Sock> {
        match &self.carrier {
            Carrier::Plain(sock) | Carrier::Tls(sock, _) => Some(sock),
            Carrier::Stream(_) | Carrier::Nobody => None,
        }
    }

    /// The connection's own descriptor.
    pub(crate) fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.sock().map(Sock::fd)
    }

    /// The stream, where the client speaks HTTP/2: answers are given to it, not sent.
    #[inline]
    pub(crate) fn stream(&self) -> Option<&Stream> {
        match &self.carrier {
            Carrier::Stream(stream) => Some(stream),
            _ => None,
        }
    }

    /// Until there is something to read, an end or an error; maybe for no reason.
    #[inline]
    pub(crate) async fn readable(&self) {
        match &self.carrier {
            Carrier::Plain(sock) => sock.readable().await,
            Carrier::Tls(_, tls) if tls.has_input() => {}
            Carrier::Tls(sock, _) => sock.readable().await,
            Carrier::Stream(stream) => poll_fn(|cx| stream.poll_readable(cx)).await,
            Carrier::Nobody => {}
        }
    }

    /// Until there is room to write, or an error. Only after a [`Client::send`] that left something over.
    pub(crate) async fn writable(&self) {
        if let Some(sock) = self.sock() {
            sock.writable().await;
        }
    }

    /// What has arrived, if anything: `None` means wait, `Some(0)` the end.
    #[inline]
    pub(crate) fn recv(&self, room: &mut [u8]) -> io::Result<Option<usize>> {
        match &self.carrier {
            Carrier::Plain(sock) => sock.recv(room),
            Carrier::Tls(sock, tls) => tls.recv(sock, room),
            Carrier::Stream(stream) => stream.recv(room),
            Carrier::Nobody => Ok(Some(0)),
        }
    }

    /// As [`Client::recv`] before a handshake, but what has arrived stays.
    pub(crate) fn peek(&self, room: &mut [u8]) -> io::Result<Option<usize>> {
        match &self.carrier {
            Carrier::Plain(sock) => sock.peek(room),
            _ => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    /// Where the client has connected to.
    pub(crate) fn local_address(&self) -> Option<SocketAddr> {
        SocketAddr::try_from(rustix::net::getsockname(self.fd()?).ok()?).ok()
    }

    /// How much was taken without waiting, maybe nothing. What was not is offered again, first of all.
    #[inline]
    pub(crate) fn send(&self, bytes: &[u8]) -> io::Result<usize> {
        match &self.carrier {
            Carrier::Plain(sock) => sock.send(bytes, false),
            Carrier::Tls(sock, tls) => tls.send(sock, bytes),
            Carrier::Stream(_) | Carrier::Nobody => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    /// As [`Client::send`], of parts one behind the other.
    pub(crate) fn send_parts(&self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        match &self.carrier {
            Carrier::Plain(sock) => sock.send_parts(parts),
            Carrier::Tls(sock, tls) => tls.send_parts(sock, parts),
            Carrier::Stream(_) | Carrier::Nobody => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    /// Ends one or both directions; waits then end.
    pub(crate) fn shutdown(&self, how: Shutdown) {
        if how != Shutdown::Read {
            self.end();
        }
        match &self.carrier {
            Carrier::Plain(sock) | Carrier::Tls(sock, _) => sock.shutdown(how),
            Carrier::Stream(stream) => stream.signal.shutdown(how),
            Carrier::Nobody => {}
        }
    }

    /// Before an orderly close: tells the client that nothing follows, where its protocol has a word for that.
    pub(crate) fn end(&self) {
        if let Carrier::Tls(sock, tls) = &self.carrier {
            tls.close(sock);
        }
    }

    /// Makes the coming close a reset, so that nobody takes a truncated answer for a whole one.
    pub(crate) fn reset_on_close(&self) {
        match &self.carrier {
            Carrier::Plain(sock) => sock.reset_on_close(),
            Carrier::Tls(sock, tls) => {
                tls.break_off();
                sock.reset_on_close();
            }
            Carrier::Stream(stream) => stream.reset(h2::Reason::INTERNAL_ERROR),
            Carrier::Nobody => {}
        }
    }
}
