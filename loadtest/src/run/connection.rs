//! The life of a connection: made, used, ended, made again. One task for each slot.

use std::cell::Cell;
use std::io;
use std::net::IpAddr;
use std::ops::ControlFlow;
use std::rc::Rc;

use ringway_io::Sock;

use crate::run::fault::Fault;
use crate::run::reader::Step;
use crate::run::slot::Slot;
use crate::run::worker::Worker;

/// Waits between attempts to connect: doubled from the first to the last.
const BACKOFF_FIRST_NS: u64 = 50_000_000;
const BACKOFF_LAST_NS: u64 = 1_600_000_000;
/// How long a target may take to close a connection after its last answer, before it is closed from here.
const LINGER_NS: u64 = 1_000_000_000;

/// Keeps a slot connected, or has it connected when a request needs it.
pub(crate) async fn run(worker: Rc<Worker>, id: usize) {
    let slot = &worker.slots[id];
    let (mut failures, mut tried) = (0, false);
    loop {
        if worker.is_lazy() && slot.job.get().is_none() {
            worker.free(id, worker.now());
            while slot.job.get().is_none() {
                slot.sleep().await;
            }
        }
        let made = connect(&worker, slot).await;
        if !std::mem::replace(&mut tried, true) {
            worker.tried.set(worker.tried.get() + 1);
        }
        match made {
            Ok(sock) => {
                let made = worker.now();
                worker.opened(id);
                converse(&worker, id, &sock).await;
                worker.closed(id);
                // A target that takes a connection only to end it would be kept busy with more of them.
                if slot.carried.get() || worker.now() - made >= BACKOFF_LAST_NS {
                    failures = 0;
                    continue;
                }
            }
            Err(fault) => worker.not_connected(id, fault),
        }
        failures += 1;
        // In an open loop each request that needs a connection tries for itself.
        if !worker.is_lazy() || worker.closed_loop {
            slot.pause(worker.now() + backoff_ns(failures)).await;
        }
    }
}

/// Sends the rest of a request as the kernel takes it, beside the wait for the answer.
pub(crate) fn send_rest(sock: Sock, rest: Vec<u8>, sending: Rc<Cell<bool>>) {
    ringway_io::spawn(async move {
        let mut rest = rest.as_slice();
        while !rest.is_empty() {
            sock.writable().await;
            match sock.send(rest, false) {
                Ok(sent) => rest = &rest[sent..],
                // The receiving side sees why.
                Err(_) => return,
            }
        }
        sending.set(false);
    });
}

async fn connect(worker: &Worker, slot: &Slot) -> Result<Sock, Fault> {
    let of = |error: io::Error| Fault::of_connect(&error);
    let job = slot.job.get();
    let address = job.and_then(|job| worker.address_of(&job));
    let since = job.map_or_else(|| worker.now(), |job| job.due);
    let (sock, pending) = ringway_io::connect(worker.address, address.map(IpAddr::V4)).map_err(of)?;
    *slot.sock.borrow_mut() = Some(sock.clone());
    slot.address.set(address);
    slot.deadline.set(since.saturating_add(worker.timeout_ns));
    if pending {
        sock.writable().await;
        if slot.expired.get() {
            return Err(Fault::ConnectTimeout);
        }
        ringway_io::connected(&sock).map_err(of)?;
    }
    Ok(sock)
}

/// Until the connection has ended.
async fn converse(worker: &Worker, id: usize, sock: &Sock) {
    // An idle connection waits as well: its end is noticed, and the same wait goes on as the wait for the next answer.
    loop {
        sock.readable().await;
        if receive(worker, id, sock).is_break() {
            return;
        }
    }
}

/// Takes what has arrived.
fn receive(worker: &Worker, id: usize, sock: &Sock) -> ControlFlow<()> {
    let slot = &worker.slots[id];
    let mut inbox = worker.inbox.borrow_mut();
    loop {
        if slot.expired.get() {
            return end(worker, slot, Fault::Timeout);
        }
        let received = match sock.recv(&mut inbox) {
            Ok(None) => return ControlFlow::Continue(()),
            Ok(Some(0)) => {
                let whole = slot.reader.borrow().end();
                return match whole {
                    Some(status) if slot.exchange.get().is_some() => {
                        worker.answered(id, status, false);
                        ControlFlow::Break(())
                    }
                    _ => end(worker, slot, Fault::Closed),
                };
            }
            Ok(Some(received)) => received,
            Err(error) => return end(worker, slot, Fault::of_transfer(&error)),
        };
        // Nobody asked for it.
        let Some(exchange) = slot.exchange.get() else { return ControlFlow::Break(()) };
        worker.received(&exchange, received);
        let step = slot.reader.borrow_mut().feed(&mut inbox[..received], exchange.to_head);
        match step {
            Step::More if received < inbox.len() => return ControlFlow::Continue(()),
            Step::More => {}
            Step::Done { status, reusable } if worker.answered(id, status, reusable) => {
                return ControlFlow::Continue(());
            }
            // The target closes the connection, as a rule right away: its ports are then not left in TIME_WAIT here.
            Step::Done { .. } => slot.deadline.set(worker.now() + LINGER_NS),
            Step::Malformed => return end(worker, slot, Fault::Malformed),
        }
    }
}

/// The connection is of no use any more; a request that was on it has failed.
fn end(worker: &Worker, slot: &Slot, fault: Fault) -> ControlFlow<()> {
    if let Some(exchange) = slot.exchange.take() {
        worker.fail(&exchange.job, fault);
    }
    ControlFlow::Break(())
}

fn backoff_ns(failures: u32) -> u64 {
    BACKOFF_FIRST_NS.saturating_mul(1 << (failures - 1).min(16)).min(BACKOFF_LAST_NS)
}
