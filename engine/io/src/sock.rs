//! The narrow door to the kernel: wait on the ring, then transfer at once.
//!
//! A connection that waits holds no buffer: the ring polls for readiness, and the bytes move in a direct call that never
//! blocks. An abandoned wait loses nothing, since no operation ever owns a buffer.

use std::cell::Cell;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::rc::Rc;

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, Shutdown};

thread_local! {
    static RING_OPS: Cell<u64> = const { Cell::new(0) };
}

/// Waits that this thread has handed to its ring (or to epoll) since it started.
pub fn ring_ops() -> u64 {
    RING_OPS.get()
}

/// A socket (or another descriptor that can be polled) on this thread's loop. Clones share the descriptor.
#[derive(Clone)]
pub struct Sock(Rc<monoio::net::UnixStream>);

impl Sock {
    /// Takes a descriptor over. Must be called on a worker's thread.
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        // The type that holds nothing but the descriptor; which kind of socket it is does not matter to a wait.
        let stream = std::os::unix::net::UnixStream::from(fd);
        Ok(Self(Rc::new(monoio::net::UnixStream::from_std(stream)?)))
    }

    pub fn fd(&self) -> BorrowedFd<'_> {
        // SAFETY: `self` keeps the stream, and so the descriptor, open for as long as the borrow lives.
        unsafe { BorrowedFd::borrow_raw(self.0.as_raw_fd()) }
    }

    /// Until there is something to read, an end or an error.
    pub async fn readable(&self) {
        RING_OPS.set(RING_OPS.get() + 1);
        // An error of the wait itself shows again, and in full, in the transfer that follows.
        let _ = self.0.readable(false).await;
    }

    /// Until there is room to write, or an error.
    pub async fn writable(&self) {
        RING_OPS.set(RING_OPS.get() + 1);
        let _ = self.0.writable(false).await;
    }

    /// What has arrived, if anything: `None` means wait, `Some(0)` the end.
    #[inline]
    pub fn recv(&self, room: &mut [u8]) -> io::Result<Option<usize>> {
        loop {
            match rustix::net::recv(self.fd(), &mut *room, RecvFlags::DONTWAIT) {
                Ok((received, _)) => return Ok(Some(received)),
                Err(Errno::WOULDBLOCK) => return Ok(None),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    /// What the kernel takes without waiting, maybe nothing.
    #[inline]
    pub fn send(&self, bytes: &[u8], more: bool) -> io::Result<usize> {
        let mut flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        flags.set(SendFlags::MORE, more);
        loop {
            match rustix::net::send(self.fd(), bytes, flags) {
                Ok(sent) => return Ok(sent),
                Err(Errno::WOULDBLOCK) => return Ok(0),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    /// Whether the other side has reset the connection (a peer that has merely stopped sending has not).
    pub fn is_reset(&self) -> bool {
        let peeked = rustix::net::recv(self.fd(), &mut [0u8; 1], RecvFlags::DONTWAIT | RecvFlags::PEEK);
        matches!(peeked, Err(errno) if errno != Errno::WOULDBLOCK && errno != Errno::INTR)
    }

    /// Ends one or both directions; a wait on the ring then completes. The way in which deadlines act.
    pub fn shutdown(&self, how: Shutdown) {
        let _ = rustix::net::shutdown(self.fd(), how);
    }

    /// Makes the coming close a reset, so that the peer cannot take a truncated message for a whole one.
    pub fn reset_on_close(&self) {
        let _ = rustix::net::sockopt::set_socket_linger(self.fd(), Some(std::time::Duration::ZERO));
    }
}
