//! The client's end of a connection: what the serve path reads requests from and writes answers to, whatever carries it.

use std::io;

use ringway_io::Sock;
use rustix::net::Shutdown;

/// Where a client's bytes come from and go to. Never blocks: what cannot go on at once is waited for with
/// [`Client::readable`] or [`Client::writable`].
pub(crate) struct Client {
    sock: Sock,
}

impl Client {
    pub(crate) fn plain(sock: Sock) -> Self {
        Self { sock }
    }

    /// Until there is something to read, an end or an error; maybe for no reason.
    #[inline]
    pub(crate) async fn readable(&self) {
        self.sock.readable().await;
    }

    /// Until there is room to write, or an error. Only after a [`Client::send`] that left something over.
    pub(crate) async fn writable(&self) {
        self.sock.writable().await;
    }

    /// What has arrived, if anything: `None` means wait, `Some(0)` the end.
    #[inline]
    pub(crate) fn recv(&self, room: &mut [u8]) -> io::Result<Option<usize>> {
        self.sock.recv(room)
    }

    /// How much was taken without waiting, maybe nothing.
    #[inline]
    pub(crate) fn send(&self, bytes: &[u8]) -> io::Result<usize> {
        self.sock.send(bytes, false)
    }

    /// Ends one or both directions; waits then end.
    pub(crate) fn shutdown(&self, how: Shutdown) {
        self.sock.shutdown(how);
    }

    /// Makes the coming close a reset, so that nobody takes a truncated answer for a whole one.
    pub(crate) fn reset_on_close(&self) {
        self.sock.reset_on_close();
    }
}
