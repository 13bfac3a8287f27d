//! New connections: taken from the kernel, counted, given to the right core.

use std::cell::Cell;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::rc::Rc;

use ringway_config::hub::Phase;
use ringway_core::answer::{Format, status_line, write_error_body};
use ringway_core::failure::Failure;
use ringway_core::forwarded::is_trusted;
use ringway_core::request_id::RequestId;
use rustix::net::{SendFlags, Shutdown};

use crate::connection::{Connection, Counted, connection};
use crate::deadline::SWEEP;
use crate::mailbox::Handed;
use crate::respond::write_number;
use crate::worker::Worker;
use ringway_io::{Sock, Ticker, yield_now};

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
    address: SocketAddr,
    stopped: Rc<Cell<bool>>,
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
    pub(crate) fn stop(&self, worker: &Rc<Worker>) {
        while take_waiting(worker, &self.sock, self.address) == Waiting::More {}
        self.stopped.set(true);
        self.sock.shutdown(Shutdown::Read);
    }
}

/// Accepts on a socket until it is stopped.
pub(crate) fn listen(worker: &Rc<Worker>, address: SocketAddr, socket: TcpListener) {
    let Ok(sock) = Sock::new(OwnedFd::from(socket)) else { return };
    // Made now: when it is needed there are no descriptors.
    let Ok(pause) = Ticker::idle() else { return };
    let stopped = Rc::new(Cell::new(false));
    let accepting = Accepting { sock: sock.clone(), address, stopped: Rc::clone(&stopped) };
    worker.listeners.borrow_mut().insert(address, accepting);
    let worker = Rc::clone(worker);
    ringway_io::spawn(async move {
        loop {
            sock.readable().await;
            let more = take_waiting(&worker, &sock, address);
            if stopped.get() {
                return;
            }
            match more {
                Waiting::None => {}
                Waiting::More => yield_now().await,
                Waiting::NoDescriptors => {
                    // It stays readable: the loop would spin until a descriptor is free.
                    let _ = pause.set_once(SWEEP);
                    pause.tick().await;
                }
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

fn take_waiting(worker: &Rc<Worker>, sock: &Sock, address: SocketAddr) -> Waiting {
    for _ in 0..ACCEPT_MAX {
        match sock.accept() {
            Ok(Some((fd, peer))) => {
                let Some(peer) = peer else { continue };
                worker.cell().accepted.add(1);
                place(worker, Handed { fd, peer, listener: address });
            }
            Ok(None) => return Waiting::None,
            Err(_) => {
                worker.cell().accept_errors.add(1);
                return Waiting::NoDescriptors;
            }
        }
    }
    Waiting::More
}

/// Keeps a new connection, or hands it over to a core that is clearly less busy; not in a drain, in which that core may
/// have ended.
fn place(worker: &Rc<Worker>, handed: Handed) {
    if worker.hub.phase() == Phase::Draining {
        return adopt(worker, handed);
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
    adopt(worker, handed);
}

/// Serves a connection on this core, if the limits allow it.
pub(crate) fn adopt(worker: &Rc<Worker>, handed: Handed) {
    let Handed { fd, peer, listener } = handed;
    let view = worker.view();
    let snapshot = &view.published.snapshot;
    let open: u64 = worker.hub.workers.workers.iter().map(|cell| cell.connections.get()).sum();
    if open >= snapshot.limits.connections as u64 {
        worker.cell().refused_total.add(1);
        return refuse(worker, fd);
    }
    let Some(listener) = snapshot.listeners.iter().find(|known| known.address == listener) else { return };
    // Behind a proxy the client is counted when the proxy has said who it is.
    let is_proxy = listener.proxy_protocol.as_ref().is_some_and(|of| is_trusted(&of.trusted, peer.ip()));
    let limit = snapshot.limits.connections_per_ip.filter(|_| !is_proxy);
    let ip = limit.map(|max| (peer.ip().to_canonical(), max));
    if let Some((ip, max)) = ip
        && !worker.shared.per_ip.enter(ip, max)
    {
        worker.cell().refused_per_ip.add(1);
        return refuse(worker, fd);
    }
    let counted = Counted::new(worker, ip.map(|(ip, _)| ip));
    let Ok(sock) = Sock::new(fd) else { return };
    // Boxed, since a future would hold room for it more than once.
    let conn = Box::new(Connection::new(worker, sock, peer, std::sync::Arc::clone(listener), counted));
    ringway_io::spawn(connection(conn));
}

/// Tells a client that there is no room for its connection, without reading a byte of it, and closes.
fn refuse(worker: &Worker, fd: OwnedFd) {
    let mut out = worker.take_head();
    refusal(worker, Failure::Overloaded, &mut out);
    let _ = rustix::net::send(&fd, &out, SendFlags::DONTWAIT | SendFlags::NOSIGNAL);
    let _ = rustix::net::shutdown(&fd, Shutdown::Write);
    worker.give_head(out);
}

/// Writes the answer of a connection that serves no request.
pub(crate) fn refusal(worker: &Worker, failure: Failure, out: &mut Vec<u8>) {
    let id = RequestId::generate(worker.clock.unix_ms(worker.clock.now()), worker.random_wide());
    let mut body = worker.take_head();
    write_error_body(Format::Json, failure.status(), failure.message(), id.as_bytes(), &mut body);
    status_line(failure.status(), out);
    out.extend_from_slice(b"Content-Type: application/json\r\n");
    if let Some(seconds) = failure.retry_after_secs() {
        out.extend_from_slice(b"Retry-After: ");
        write_number(seconds, out);
        out.extend_from_slice(b"\r\n");
    }
    out.extend_from_slice(b"Connection: close\r\nX-Request-ID: ");
    out.extend_from_slice(id.as_bytes());
    out.extend_from_slice(b"\r\nContent-Length: ");
    write_number(body.len(), out);
    out.extend_from_slice(b"\r\n\r\n");
    out.extend_from_slice(&body);
    worker.give_head(body);
}
