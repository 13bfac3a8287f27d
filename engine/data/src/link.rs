//! The service's end: what requests are sent to and answers are read from, whatever carries it.

use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::rc::Rc;

use ringway_io::Sock;
use rustix::net::Shutdown;

use crate::deadline::End;
use crate::tls::Tls;
use crate::upstream_stream::ServiceStream;

/// Where a service's bytes come from and go to, as [`Client`](crate::client::Client) is for the client's end. Never blocks:
/// what cannot go on at once is waited for with [`Link::readable`] or [`Link::writable`]. Clones share the connection.
#[derive(Clone)]
pub(crate) struct Link {
    carrier: Carrier,
}

#[derive(Clone)]
enum Carrier {
    Plain(Sock),
    Tls(Sock, Rc<Tls>),
    /// One request of a connection of HTTP/2.
    Stream(Rc<ServiceStream>),
}

impl Link {
    pub(crate) fn plain(sock: Sock) -> Self {
        Self { carrier: Carrier::Plain(sock) }
    }

    pub(crate) fn of_stream(stream: Rc<ServiceStream>) -> Self {
        Self { carrier: Carrier::Stream(stream) }
    }

    /// The stream, where the service speaks HTTP/2.
    #[inline]
    pub(crate) fn stream(&self) -> Option<&ServiceStream> {
        match &self.carrier {
            Carrier::Stream(stream) => Some(stream),
            Carrier::Plain(_) | Carrier::Tls(..) => None,
        }
    }

    /// From now on in this session.
    pub(crate) fn secure(&mut self, session: Tls) {
        if let Carrier::Plain(sock) = &self.carrier {
            self.carrier = Carrier::Tls(sock.clone(), Rc::new(session));
        }
    }

    /// The connection's own socket.
    pub(crate) fn sock(&self) -> Option<&Sock> {
        match &self.carrier {
            Carrier::Plain(sock) | Carrier::Tls(sock, _) => Some(sock),
            Carrier::Stream(_) => None,
        }
    }

    /// What deadlines act on.
    #[inline]
    pub(crate) fn end(&self) -> End {
        match &self.carrier {
            Carrier::Plain(sock) | Carrier::Tls(sock, _) => End::Sock(sock.clone()),
            Carrier::Stream(stream) => End::Task(Rc::clone(&stream.signal)),
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
        }
    }

    /// Until there is room to write, or an error. Only after a [`Link::send`] that left something over, or for a
    /// connection that is being made.
    pub(crate) async fn writable(&self) {
        match &self.carrier {
            Carrier::Plain(sock) | Carrier::Tls(sock, _) => sock.writable().await,
            Carrier::Stream(stream) => poll_fn(|cx| stream.poll_writable(cx)).await,
        }
    }

    /// What has arrived, if anything: `None` means wait, `Some(0)` the end.
    #[inline]
    pub(crate) fn recv(&self, room: &mut [u8]) -> io::Result<Option<usize>> {
        match &self.carrier {
            Carrier::Plain(sock) => sock.recv(room),
            Carrier::Tls(sock, tls) => tls.recv(sock, room),
            Carrier::Stream(stream) => stream.recv(room),
        }
    }

    /// How much was taken without waiting, maybe nothing. What was not is offered again, first of all.
    #[inline]
    pub(crate) fn send(&self, bytes: &[u8]) -> io::Result<usize> {
        match &self.carrier {
            Carrier::Plain(sock) => sock.send(bytes, false),
            Carrier::Tls(sock, tls) => tls.send(sock, bytes),
            Carrier::Stream(stream) => stream.send(bytes),
        }
    }

    /// As [`Link::send`], of parts one behind the other.
    pub(crate) fn send_parts(&self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        match &self.carrier {
            Carrier::Plain(sock) => sock.send_parts(parts),
            Carrier::Tls(sock, tls) => tls.send_parts(sock, parts),
            Carrier::Stream(_) => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    /// Whether nothing has arrived, no end either, so that a kept connection may be used again.
    pub(crate) fn is_quiet(&self) -> bool {
        match &self.carrier {
            Carrier::Plain(sock) => sock.is_quiet(),
            // Tickets and new keys are taken in passing.
            Carrier::Tls(sock, tls) => matches!(tls.recv(sock, &mut []), Ok(None)),
            // It carries one request.
            Carrier::Stream(_) => false,
        }
    }

    /// Before an orderly close: tells the service that nothing follows, where the protocol has a word for that.
    pub(crate) fn close(&self) {
        if let Carrier::Tls(sock, tls) = &self.carrier {
            tls.close(sock);
        }
    }

    /// Ends one or both directions, in an orderly way; waits then end.
    pub(crate) fn shutdown(&self, how: Shutdown) {
        if how != Shutdown::Read {
            self.close();
        }
        match &self.carrier {
            Carrier::Plain(sock) | Carrier::Tls(sock, _) => sock.shutdown(how),
            Carrier::Stream(stream) if how == Shutdown::Write => stream.end_tunnel(),
            Carrier::Stream(stream) => stream.signal.shutdown(how),
        }
    }

    /// Makes the coming close a reset, so that nobody takes what was sent for whole.
    pub(crate) fn reset_on_close(&self) {
        match &self.carrier {
            Carrier::Plain(sock) => sock.reset_on_close(),
            Carrier::Tls(sock, tls) => {
                tls.break_off();
                sock.reset_on_close();
            }
            // Let go of before its end it is reset in any case.
            Carrier::Stream(_) => {}
        }
    }

    /// The alert with which the service has ended the connection in place of its first answer.
    pub(crate) fn refusal(&self) -> Option<u8> {
        match &self.carrier {
            Carrier::Plain(_) | Carrier::Stream(_) => None,
            Carrier::Tls(_, tls) => tls.refusal(),
        }
    }
}
