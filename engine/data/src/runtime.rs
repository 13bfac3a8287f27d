//! Threads, rings and listening sockets.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::thread::JoinHandle;

use monoio::time::TimeDriver;
use monoio::{IoUringDriver, LegacyDriver, RuntimeBuilder};
use ringway_config::snapshot::{DriverChoice, Runtime};
use ringway_core::stats::Driver;
use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};

use crate::worker::{self, Shared};

/// Why the workers did not start, in one line.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("cannot make a worker's eventfd: {0}")]
    Mailbox(#[source] io::Error),
    #[error("cannot start a worker's thread: {0}")]
    Thread(#[source] io::Error),
    #[error("io_uring is not available ({0}); `driver: auto` falls back to epoll")]
    IoUring(#[source] io::Error),
    #[error("cannot make a worker's epoll loop: {0}")]
    Epoll(#[source] io::Error),
    #[error("a worker did not come up in time")]
    NotUp,
}

/// One worker's event loop.
enum Loop {
    IoUring(monoio::Runtime<TimeDriver<IoUringDriver>>),
    Epoll(monoio::Runtime<TimeDriver<LegacyDriver>>),
}

/// Starts a worker's thread; `up` hears when it accepts connections, or why not.
pub(crate) fn spawn(
    id: usize,
    settings: &Runtime,
    shared: Arc<Shared>,
    up: Sender<Result<(), StartError>>,
) -> io::Result<JoinHandle<usize>> {
    let core = settings.pin.then(|| core_of(id, settings)).flatten();
    let (driver, entries) = (settings.driver, settings.ring_entries);
    std::thread::Builder::new().name(format!("worker-{id}")).spawn(move || {
        if let Some(core) = core
            && !core_affinity::set_for_current(core)
        {
            tracing::warn!(worker = id, core = core.id, "cannot pin the worker to its core");
        }
        // The ring belongs to the thread that makes it (SINGLE_ISSUER).
        match make_loop(id, driver, entries) {
            Ok(looped) => run(id, looped, shared, up),
            Err(error) => {
                let _ = up.send(Err(error));
                0
            }
        }
    })
}

fn run(id: usize, looped: Loop, shared: Arc<Shared>, up: Sender<Result<(), StartError>>) -> usize {
    let kind = if matches!(looped, Loop::IoUring(_)) { Driver::IoUring } else { Driver::Epoll };
    if let Some(cell) = shared.hub.workers.workers.get(id) {
        cell.driver.set(kind as u64);
    }
    let is_up = move || drop(up.send(Ok(())));
    match looped {
        Loop::IoUring(mut runtime) => runtime.block_on(worker::run(id, shared, is_up)),
        Loop::Epoll(mut runtime) => runtime.block_on(worker::run(id, shared, is_up)),
    }
}

fn core_of(id: usize, settings: &Runtime) -> Option<core_affinity::CoreId> {
    let allowed = core_affinity::get_core_ids()?;
    match settings.cores.as_slice() {
        [] => allowed.get(id % allowed.len().max(1)).copied(),
        named => named.get(id % named.len()).map(|core| core_affinity::CoreId { id: *core }),
    }
}

fn make_loop(id: usize, driver: DriverChoice, entries: u32) -> Result<Loop, StartError> {
    if driver != DriverChoice::Epoll {
        match make_ring(entries) {
            Ok(runtime) => return Ok(Loop::IoUring(runtime)),
            Err(error) if driver == DriverChoice::IoUring => return Err(StartError::IoUring(error)),
            Err(error) => tracing::warn!(worker = id, %error, "io_uring is not available: falling back to epoll"),
        }
    }
    let builder = RuntimeBuilder::<LegacyDriver>::new().with_entries(entries).enable_timer();
    builder.build().map(Loop::Epoll).map_err(StartError::Epoll)
}

/// A ring with the flags that save a fifth of the CPU (Linux 6.1 on), without them on older kernels.
fn make_ring(entries: u32) -> io::Result<monoio::Runtime<TimeDriver<IoUringDriver>>> {
    let build = |builder: io_uring::Builder| {
        RuntimeBuilder::<IoUringDriver>::new().with_entries(entries).uring_builder(builder).enable_timer().build()
    };
    let mut flagged = io_uring::IoUring::builder();
    flagged.setup_single_issuer().setup_coop_taskrun().setup_defer_taskrun();
    build(flagged).or_else(|_| build(io_uring::IoUring::builder()))
}

pub(crate) fn bind(address: SocketAddr, backlog: u32, workers: usize) -> io::Result<Vec<TcpListener>> {
    // Without SO_REUSEPORT the kernel says whether anyone holds the port.
    drop(bind_one(address, false)?);
    let sockets = (0..workers).map(|_| {
        let socket = bind_one(address, true)?;
        rustix::net::listen(&socket, backlog.min(i32::MAX as u32) as i32)?;
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
mod tests {
    use super::*;

    #[test]
    fn a_port_in_use_is_an_error_even_though_ports_are_shared() {
        let first = bind(SocketAddr::from(([127, 0, 0, 1], 0)), 16, 1).unwrap();
        let address = first[0].local_addr().unwrap();
        assert_eq!(bind(address, 16, 1).unwrap_err().kind(), io::ErrorKind::AddrInUse);
    }
}
