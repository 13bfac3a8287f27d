//! Listening sockets.

use std::io;
use std::net::{SocketAddr, TcpListener};

use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};

/// Binds one socket for each of a process' workers to an address (`SO_REUSEPORT`). A port that anyone else holds, this
/// program included, is an error: the kernel would silently share it. Port 0 is a free port, the same for all.
pub fn bind(mut address: SocketAddr, backlog: u32, workers: usize) -> io::Result<Vec<TcpListener>> {
    // Without SO_REUSEPORT the kernel says whether anyone holds the port.
    drop(bind_one(address, false)?);
    let sockets = (0..workers).map(|_| {
        let socket = bind_one(address, true)?;
        rustix::net::listen(&socket, backlog.min(i32::MAX as u32) as i32)?;
        address = socket.local_addr()?;
        Ok(socket)
    });
    sockets.collect()
}

fn bind_one(address: SocketAddr, shared: bool) -> io::Result<TcpListener> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, None)?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    sockopt::set_socket_reuseport(&socket, shared)?;
    // Accepted connections inherit it.
    sockopt::set_tcp_nodelay(&socket, true)?;
    rustix::net::bind(&socket, &address)?;
    Ok(TcpListener::from(socket))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::*;

    #[test]
    fn a_port_in_use_is_an_error_even_though_ports_are_shared() {
        let first = bind(SocketAddr::from(([127, 0, 0, 1], 0)), 16, 1).unwrap();
        let address = first[0].local_addr().unwrap();
        assert_eq!(bind(address, 16, 1).unwrap_err().kind(), io::ErrorKind::AddrInUse);
    }

    #[test]
    fn a_free_port_is_the_same_for_all_workers() {
        let sockets = bind(SocketAddr::from(([127, 0, 0, 1], 0)), 16, 3).unwrap();
        let address = sockets[0].local_addr().unwrap();
        assert!(address.port() != 0 && sockets.iter().all(|socket| socket.local_addr().unwrap() == address));
    }
}
