//! The client's end of a connection: what the serve path reads requests from and writes answers to, whatever carries it.

use std::io;
use std::os::fd::BorrowedFd;

use ringway_io::Sock;
use rustix::net::Shutdown;

use crate::tls::Tls;

/// Where a client's bytes come from and go to. Never blocks: what cannot go on at once is waited for with
/// [`Client::readable`] or [`Client::writable`].
pub(crate) struct Client {
    sock: Sock,
    /// `None`: in the clear.
    tls: Option<Box<Tls>>,
}

impl Client {
    pub(crate) fn plain(sock: Sock) -> Self {
        Self { sock, tls: None }
    }

    /// From now on in this session.
    pub(crate) fn secure(&mut self, session: Tls) {
        self.tls = Some(Box::new(session));
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.sock.fd()
    }

    /// Until there is something to read, an end or an error; maybe for no reason.
    #[inline]
    pub(crate) async fn readable(&self) {
        if self.tls.as_ref().is_some_and(|tls| tls.has_input()) {
            return;
        }
        self.sock.readable().await;
    }

    /// Until there is room to write, or an error. Only after a [`Client::send`] that left something over.
    pub(crate) async fn writable(&self) {
        self.sock.writable().await;
    }

    /// What has arrived, if anything: `None` means wait, `Some(0)` the end.
    #[inline]
    pub(crate) fn recv(&self, room: &mut [u8]) -> io::Result<Option<usize>> {
        match &self.tls {
            None => self.sock.recv(room),
            Some(tls) => tls.recv(&self.sock, room),
        }
    }

    /// How much was taken without waiting, maybe nothing. What was not is offered again, first of all.
    #[inline]
    pub(crate) fn send(&self, bytes: &[u8]) -> io::Result<usize> {
        match &self.tls {
            None => self.sock.send(bytes, false),
            Some(tls) => tls.send(&self.sock, bytes),
        }
    }

    /// Ends one or both directions; waits then end.
    pub(crate) fn shutdown(&self, how: Shutdown) {
        if how != Shutdown::Read {
            self.end();
        }
        self.sock.shutdown(how);
    }

    /// Before an orderly close: tells the client that nothing follows, where its protocol has a word for that.
    pub(crate) fn end(&self) {
        if let Some(tls) = &self.tls {
            tls.close(&self.sock);
        }
    }

    /// Makes the coming close a reset, so that nobody takes a truncated answer for a whole one.
    pub(crate) fn reset_on_close(&self) {
        if let Some(tls) = &self.tls {
            tls.break_off();
        }
        self.sock.reset_on_close();
    }
}
