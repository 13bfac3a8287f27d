//! The narrow door to the kernel: wait on the ring, then transfer at once.
//!
//! A connection that waits holds no buffer: the ring polls for readiness, and the bytes move in a direct call that never
//! blocks. An abandoned wait loses nothing, since no operation ever owns a buffer.

use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::rc::Rc;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendFlags, Shutdown, SocketFlags};

use crate::reactor::{Reactor, Source, count_ring_op};

/// A socket (or another descriptor that can be polled) on this thread's loop. Clones share the descriptor.
#[derive(Clone)]
pub struct Sock(Rc<Kind>);

enum Kind {
    IoUring(Source),
    /// The type that holds nothing but the descriptor; which kind of socket it is does not matter to a wait.
    Epoll(monoio::net::UnixStream),
}

impl Sock {
    /// Takes a descriptor over. Must be called on a loop's thread.
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        let kind = match Reactor::current() {
            Some(reactor) => Kind::IoUring(reactor.register(fd)),
            None => Kind::Epoll(monoio::net::UnixStream::from_std(std::os::unix::net::UnixStream::from(fd))?),
        };
        Ok(Self(Rc::new(kind)))
    }

    pub fn fd(&self) -> BorrowedFd<'_> {
        match &*self.0 {
            Kind::IoUring(source) => source.fd().as_fd(),
            // SAFETY: `self` keeps the stream, and so the descriptor, open for as long as the borrow lives.
            Kind::Epoll(stream) => unsafe { BorrowedFd::borrow_raw(stream.as_raw_fd()) },
        }
    }

    /// Until there is something to read, an end or an error; maybe for no reason, and maybe for no time ([`crate::yield_now`]
    /// gives way).
    pub async fn readable(&self) {
        match &*self.0 {
            Kind::IoUring(source) => source.readable().await,
            Kind::Epoll(stream) => {
                count_ring_op();
                // An error of the wait itself shows again, and in full, in the transfer that follows.
                let _ = stream.readable(false).await;
            }
        }
    }

    /// Until there is room to write, or an error. Only after a [`Sock::send`] that left something over, or for a connection
    /// that is being made: the kernel tells of room when there was none.
    pub async fn writable(&self) {
        match &*self.0 {
            Kind::IoUring(source) => source.writable().await,
            Kind::Epoll(stream) => {
                count_ring_op();
                let _ = stream.writable(false).await;
            }
        }
    }

    /// Says that the last look at this descriptor may have left something: the next wait ends at once.
    fn left_behind(&self, something: bool) {
        if let Kind::IoUring(source) = &*self.0 {
            source.left_behind(something);
        }
    }

    /// What has arrived, if anything: `None` means wait, `Some(0)` the end.
    #[inline]
    pub fn recv(&self, room: &mut [u8]) -> io::Result<Option<usize>> {
        loop {
            match rustix::net::recv(self.fd(), &mut *room, RecvFlags::DONTWAIT) {
                Ok((received, _)) => {
                    self.left_behind(received == room.len());
                    return Ok(Some(received));
                }
                Err(Errno::WOULDBLOCK) => {
                    self.left_behind(false);
                    return Ok(None);
                }
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    /// As [`Sock::recv`], but what has arrived stays.
    pub fn peek(&self, room: &mut [u8]) -> io::Result<Option<usize>> {
        loop {
            match rustix::net::recv(self.fd(), &mut *room, RecvFlags::DONTWAIT | RecvFlags::PEEK) {
                Ok((seen, _)) => {
                    self.left_behind(true);
                    return Ok(Some(seen));
                }
                Err(Errno::WOULDBLOCK) => {
                    self.left_behind(false);
                    return Ok(None);
                }
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    /// A connection that waits at a listening socket, if one does, and where it comes from (not told for unix sockets). `None`
    /// means wait, maybe for no time.
    ///
    /// # Errors
    /// When there are no descriptors or no memory for it; the connection goes on waiting, and `readable` ends at once.
    pub fn accept(&self) -> io::Result<Option<(OwnedFd, Option<SocketAddr>)>> {
        loop {
            match rustix::net::acceptfrom_with(self.fd(), SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
                Ok((fd, peer)) => {
                    self.left_behind(true);
                    return Ok(Some((fd, peer.and_then(|peer| SocketAddr::try_from(peer).ok()))));
                }
                // None waits, or the socket has been shut down.
                Err(Errno::WOULDBLOCK | Errno::INVAL) => {
                    self.left_behind(false);
                    return Ok(None);
                }
                Err(Errno::INTR) => {}
                // That one is gone, or its network is (accept(2)); behind it others may wait.
                Err(
                    Errno::CONNABORTED
                    | Errno::PROTO
                    | Errno::NETDOWN
                    | Errno::NETUNREACH
                    | Errno::HOSTDOWN
                    | Errno::HOSTUNREACH,
                ) => {
                    self.left_behind(true);
                    return Ok(None);
                }
                Err(errno) => {
                    self.left_behind(true);
                    return Err(errno.into());
                }
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
                Ok(sent) => {
                    if sent < bytes.len() {
                        self.is_full();
                    }
                    return Ok(sent);
                }
                Err(Errno::WOULDBLOCK) => {
                    self.is_full();
                    return Ok(0);
                }
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    /// As [`Sock::send`], of several parts one behind the other.
    pub fn send_parts(&self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        loop {
            match rustix::net::sendmsg(self.fd(), parts, &mut SendAncillaryBuffer::default(), flags) {
                Ok(sent) => {
                    if sent < parts.iter().map(|part| part.len()).sum() {
                        self.is_full();
                    }
                    return Ok(sent);
                }
                Err(Errno::WOULDBLOCK) => {
                    self.is_full();
                    return Ok(0);
                }
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    fn is_full(&self) {
        if let Kind::IoUring(source) = &*self.0 {
            source.is_full();
        }
    }

    /// Whether nothing has arrived, no end either. Where a wait has ended, this tells whether there was a reason: an event
    /// may still be told when its bytes have been read already.
    pub fn is_quiet(&self) -> bool {
        let peeked = rustix::net::recv(self.fd(), &mut [0u8; 1], RecvFlags::DONTWAIT | RecvFlags::PEEK);
        let quiet = matches!(peeked, Err(Errno::WOULDBLOCK));
        self.left_behind(!quiet);
        quiet
    }

    /// Whether the other side has reset the connection (a peer that has merely stopped sending has not), be there bytes of it
    /// that nobody has read yet.
    pub fn is_reset(&self) -> bool {
        let fd = self.fd();
        // An error is told unasked.
        let mut polled = [PollFd::new(&fd, PollFlags::empty())];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        poll(&mut polled, Some(&now)).is_ok() && polled.iter().any(|fd| fd.revents().contains(PollFlags::ERR))
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
