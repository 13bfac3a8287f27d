//! Connections to others.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd};

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};

use crate::Sock;

/// Begins a connection to `to`, from the address `from` where one is given, and says whether it still is being made: the
/// socket is writable once it is made or has failed, and [`connected`] tells which.
pub fn connect(to: SocketAddr, from: Option<IpAddr>) -> io::Result<(Sock, bool)> {
    let family = if to.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket =
        rustix::net::socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)?;
    sockopt::set_tcp_nodelay(&socket, true)?;
    if let Some(from) = from {
        set_bind_address_no_port(&socket)?;
        rustix::net::bind(&socket, &SocketAddr::new(from, 0))?;
    }
    let pending = match rustix::net::connect(&socket, &to) {
        Ok(()) => false,
        Err(Errno::INPROGRESS) => true,
        Err(errno) => return Err(errno.into()),
    };
    Ok((Sock::new(socket)?, pending))
}

/// How a connection that was pending has ended.
pub fn connected(sock: &Sock) -> io::Result<()> {
    sockopt::socket_error(sock.fd())??;
    // A deadline that shut the socket down leaves no error behind, but no peer either.
    rustix::net::getpeername(sock.fd())?;
    Ok(())
}

/// Leaves the choice of the port to `connect`, which needs it to differ from others only for the same peer: without it, an
/// address could have no more connections than there are ports, to all peers together.
fn set_bind_address_no_port(socket: &impl AsFd) -> io::Result<()> {
    let on: libc::c_int = 1;
    // SAFETY: the descriptor is open for as long as it is borrowed, and the option's value is an int that outlives the call.
    let set = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            libc::IPPROTO_IP,
            libc::IP_BIND_ADDRESS_NO_PORT,
            (&raw const on).cast(),
            size_of_val(&on) as libc::socklen_t,
        )
    };
    if set == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::net::{Ipv4Addr, TcpListener};

    use super::*;
    use crate::EventLoop;

    #[test]
    fn connects_from_the_address_that_is_asked_for() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let from = IpAddr::V4(Ipv4Addr::new(127, 3, 2, 1));
        EventLoop::epoll(8).unwrap().block_on(async {
            let (sock, pending) = connect(listener.local_addr().unwrap(), Some(from)).unwrap();
            if pending {
                sock.writable().await;
            }
            connected(&sock).unwrap();
            assert_eq!(listener.accept().unwrap().1.ip(), from);
        });
    }

    #[test]
    fn a_refusal_is_told() {
        let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        EventLoop::epoll(8).unwrap().block_on(async {
            let refused = match connect(nobody, None) {
                Ok((sock, _)) => {
                    sock.writable().await;
                    connected(&sock)
                }
                Err(error) => Err(error),
            };
            assert_eq!(refused.unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
        });
    }
}
