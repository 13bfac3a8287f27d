//! The service's end: what requests are sent to and answers are read from, whatever carries it.

use std::io;
use std::rc::Rc;

use ringway_io::Sock;
use rustix::net::Shutdown;

use crate::deadline::End;
use crate::tls::Tls;

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
}

impl Link {
    pub(crate) fn plain(sock: Sock) -> Self {
        Self { carrier: Carrier::Plain(sock) }
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
        }
    }

    /// What deadlines act on.
    #[inline]
    pub(crate) fn end(&self) -> End {
        match &self.carrier {
            Carrier::Plain(sock) | Carrier::Tls(sock, _) => End::Sock(sock.clone()),
        }
    }

    /// Until there is something to read, an end or an error; maybe for no reason.
    #[inline]
    pub(crate) async fn readable(&self) {
        match &self.carrier {
            Carrier::Plain(sock) => sock.readable().await,
            Carrier::Tls(_, tls) if tls.has_input() => {}
            Carrier::Tls(sock, _) => sock.readable().await,
        }
    }

    /// Until there is room to write, or an error. Only after a [`Link::send`] that left something over, or for a
    /// connection that is being made.
    pub(crate) async fn writable(&self) {
        match &self.carrier {
            Carrier::Plain(sock) | Carrier::Tls(sock, _) => sock.writable().await,
        }
    }

    /// What has arrived, if anything: `None` means wait, `Some(0)` the end.
    #[inline]
    pub(crate) fn recv(&self, room: &mut [u8]) -> io::Result<Option<usize>> {
        match &self.carrier {
            Carrier::Plain(sock) => sock.recv(room),
            Carrier::Tls(sock, tls) => tls.recv(sock, room),
        }
    }

    /// How much was taken without waiting, maybe nothing. What was not is offered again, first of all.
    #[inline]
    pub(crate) fn send(&self, bytes: &[u8]) -> io::Result<usize> {
        match &self.carrier {
            Carrier::Plain(sock) => sock.send(bytes, false),
            Carrier::Tls(sock, tls) => tls.send(sock, bytes),
        }
    }

    /// Whether nothing has arrived, no end either, so that a kept connection may be used again.
    pub(crate) fn is_quiet(&self) -> bool {
        match &self.carrier {
            Carrier::Plain(sock) => sock.is_quiet(),
            // Tickets and new keys are taken in passing.
            Carrier::Tls(sock, tls) => matches!(tls.recv(sock, &mut []), Ok(None)),
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
        }
    }

    /// The alert with which the service has ended the connection in place of its first answer.
    pub(crate) fn refusal(&self) -> Option<u8> {
        match &self.carrier {
            Carrier::Plain(_) => None,
            Carrier::Tls(_, tls) => tls.refusal(),
        }
    }
}
