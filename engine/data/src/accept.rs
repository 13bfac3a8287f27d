//! New connections: taken from the kernel, counted, given to the right core.

use std::cell::Cell;
use std::future::Future;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::rc::Rc;

use ringway_config::hub::Phase;
use ringway_core::answer::{Format, status_line, write_error_body};
use ringway_core::failure::Failure;
use ringway_core::request_id::RequestId;
use rustix::io::Errno;
use rustix::net::{SendFlags, Shutdown, SocketFlags, acceptfrom_with};

use crate::connection::{Connection, Counted, connection};
use crate::mailbox::Handed;
use crate::respond::write_number;
use crate::slots::Slots;
use crate::sock::Sock;
use crate::worker::Worker;

/// Connections taken in one go before the loop goes round.
const ACCEPT_MAX: usize = 64;
/// A core hands new connections over when it holds this many more than the least busy one, and a quarter more.
const SKEW_MIN: u64 = 8;

/// How long handshakes that have begun may take once no new ones are let in. Who comes meanwhile is refused a second
/// later, when its SYN is sent again.
pub(crate) const HANDSHAKE_US: u64 = 50_000;

/// A listening socket at work.
pub(crate) struct Accepting {
    sock: Sock,
    stopped: Rc<Cell<bool>>,
    take_rest: Box<dyn Fn()>,
}

impl Accepting {
    /// Lets no new connection begin; those that have begun still come. To close a listening socket resets what waits in
    /// its queue, and a handshake may end there between the last accept and the close.
    pub(crate) fn refuse(&self) {
        let step = |code: u32, jt, jf, k| libc::sock_filter { code: code as u16, jt, jf, k };
        let drop_syn = [
            step(libc::BPF_LD | libc::BPF_B | libc::BPF_ABS, 0, 0, 13), // the flags of the TCP header
            step(libc::BPF_ALU | libc::BPF_AND | libc::BPF_K, 0, 0, 0b1_0010), // ACK, SYN
            step(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 1, 0b0_0010), // SYN alone
            step(libc::BPF_RET | libc::BPF_K, 0, 0, 0),
            step(libc::BPF_RET | libc::BPF_K, 0, 0, u32::MAX),
        ];
        // Without the filter a few connections may be reset, as ever.
        let _ = socket2::SockRef::from(&self.sock.fd()).attach_filter(&drop_syn);
    }

    /// Takes what is in the kernel's queue still, then no more. Dropping an accept could lose a connection; shutting
    /// the socket down ends the wait.
    pub(crate) fn stop(&self) {
        (self.take_rest)();
        self.stopped.set(true);
        self.sock.shutdown(Shutdown::Read);
    }
}

/// Something that sees a connection through.
pub(crate) trait Spawn: Clone + 'static {
    fn spawn(&self, conn: Connection);
}

/// Spawns [`connection`] with one kind of serving future.
pub(crate) struct Spawner<M, F> {
    serve: M,
    slots: Rc<Slots<F>>,
}

impl<M: Copy, F> Clone for Spawner<M, F> {
    fn clone(&self) -> Self {
        Self { serve: self.serve, slots: Rc::clone(&self.slots) }
    }
}

impl<M, F> Spawner<M, F>
where
    M: Fn(Connection) -> F + Copy + 'static,
    F: Future<Output = Option<Connection>> + 'static,
{
    pub(crate) fn new(serve: M) -> Self {
        Self { serve, slots: Slots::new() }
    }
}

impl<M, F> Spawn for Spawner<M, F>
where
    M: Fn(Connection) -> F + Copy + 'static,
    F: Future<Output = Option<Connection>> + 'static,
{
    fn spawn(&self, conn: Connection) {
        monoio::spawn(connection(conn, Rc::clone(&self.slots), self.serve));
    }
}

/// Accepts on a socket until it is stopped.
pub(crate) fn listen<S: Spawn>(worker: &Rc<Worker>, address: SocketAddr, socket: TcpListener, spawner: S) {
    let Ok(sock) = Sock::new(OwnedFd::from(socket)) else { return };
    let stopped = Rc::new(Cell::new(false));
    let take_rest = {
        let (worker, sock, spawner) = (Rc::clone(worker), sock.clone(), spawner.clone());
        Box::new(move || while take_waiting(&worker, &sock, address, &spawner) == Waiting::More {})
    };
    let accepting = Accepting { sock: sock.clone(), stopped: Rc::clone(&stopped), take_rest };
    worker.listeners.borrow_mut().insert(address, accepting);
    let worker = Rc::clone(worker);
    monoio::spawn(async move {
        loop {
            sock.readable().await;
            let more = take_waiting(&worker, &sock, address, &spawner);
            if stopped.get() {
                return;
            }
            if more == Waiting::NoDescriptors {
                // Level-triggered readiness would spin until a descriptor is free.
                monoio::time::sleep(crate::deadline::SWEEP).await;
            }
        }
    });
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Waiting {
    None,
    More,
    NoDescriptors,
}

fn take_waiting<S: Spawn>(worker: &Rc<Worker>, sock: &Sock, address: SocketAddr, spawner: &S) -> Waiting {
    for _ in 0..ACCEPT_MAX {
        match acceptfrom_with(sock.fd(), SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
            Ok((fd, peer)) => {
                let peer = peer.and_then(|peer| SocketAddr::try_from(peer).ok());
                let Some(peer) = peer else { continue };
                worker.cell().accepted.add(1);
                place(worker, Handed { fd, peer, listener: address }, spawner);
            }
            Err(Errno::INTR | Errno::CONNABORTED) => {}
            Err(Errno::AGAIN | Errno::INVAL) => return Waiting::None,
            Err(errno) => {
                worker.cell().accept_errors.add(1);
                let no_descriptors = matches!(errno, Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM);
                return if no_descriptors { Waiting::NoDescriptors } else { Waiting::None };
            }
        }
    }
    Waiting::More
}

/// Keeps a new connection, or hands it over to a core that is clearly less busy; not in a drain, in which that core may
/// have ended.
fn place<S: Spawn>(worker: &Rc<Worker>, handed: Handed, spawner: &S) {
    if worker.hub.phase() == Phase::Draining {
        return adopt(worker, handed, spawner);
    }
    let cells = &worker.hub.workers.workers;
    let mine = worker.cell().connections.get();
    let least = cells.iter().enumerate().map(|(id, cell)| (cell.connections.get(), id)).min();
    let handed = match least {
        Some((least, id)) if mine >= least + SKEW_MIN && mine * 4 > least * 5 => {
            match worker.shared.mailboxes.get(id).map(|mailbox| mailbox.hand_over(handed)) {
                Some(Err(handed)) => handed,
                Some(Ok(())) => return worker.cell().handed_over.add(1),
                None => return,
            }
        }
        _ => handed,
    };
    adopt(worker, handed, spawner);
}

/// Serves a connection on this core, if the limits allow it.
pub(crate) fn adopt<S: Spawn>(worker: &Rc<Worker>, handed: Handed, spawner: &S) {
    let Handed { fd, peer, listener } = handed;
    let view = worker.view();
    let snapshot = &view.published.snapshot;
    let open: u64 = worker.hub.workers.workers.iter().map(|cell| cell.connections.get()).sum();
    if open >= snapshot.limits.connections as u64 {
        worker.cell().refused_total.add(1);
        return refuse(worker, fd);
    }
    let Some(listener) = snapshot.listeners.iter().find(|known| known.address == listener) else { return };
    let ip = snapshot.limits.connections_per_ip.map(|max| (peer.ip().to_canonical(), max));
    if let Some((ip, max)) = ip
        && !worker.shared.per_ip.enter(ip, max)
    {
        worker.cell().refused_per_ip.add(1);
        return refuse(worker, fd);
    }
    let counted = Counted::new(worker, ip.map(|(ip, _)| ip));
    let Ok(sock) = Sock::new(fd) else { return };
    spawner.spawn(Connection::new(worker, sock, peer, std::sync::Arc::clone(listener), counted));
}

/// Tells a client that there is no room for its connection, without reading a byte of it, and closes.
fn refuse(worker: &Worker, fd: OwnedFd) {
    let failure = Failure::Overloaded;
    let id = RequestId::generate(worker.clock.unix_ms(worker.clock.now()), worker.random_wide());
    let (mut out, mut body) = (worker.take_head(), worker.take_head());
    write_error_body(Format::Json, failure.status(), failure.message(), id.as_bytes(), &mut body);
    status_line(failure.status(), &mut out);
    out.extend_from_slice(b"Content-Type: application/json\r\nRetry-After: ");
    write_number(failure.retry_after_secs().unwrap_or(1), &mut out);
    out.extend_from_slice(b"\r\nConnection: close\r\nX-Request-ID: ");
    out.extend_from_slice(id.as_bytes());
    out.extend_from_slice(b"\r\nContent-Length: ");
    write_number(body.len(), &mut out);
    out.extend_from_slice(b"\r\n\r\n");
    out.extend_from_slice(&body);
    let _ = rustix::net::send(&fd, &out, SendFlags::DONTWAIT | SendFlags::NOSIGNAL);
    let _ = rustix::net::shutdown(&fd, Shutdown::Write);
    worker.give_head(out);
    worker.give_head(body);
}
