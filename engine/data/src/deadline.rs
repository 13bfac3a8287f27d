//! Deadlines: one table a core, swept a few times a second. Nothing is ever cancelled: when a deadline has passed, the
//! socket is shut down in the right direction, the wait on it completes, and the code that waited asks why.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::task::{Context, Waker};

use ringway_core::stats::Counter;
use rustix::net::Shutdown;

use ringway_io::Sock;

/// How often a core sweeps its table: no deadline is late by more.
pub(crate) const SWEEP: std::time::Duration = std::time::Duration::from_millis(50);
/// A drain leaves a connection alone for this long after its last answer: who sends requests in a row gets to send the
/// next one, whose answer then says that the connection ends. A close would cross the request on its way.
const DRAIN_GRACE_US: u64 = 1_000_000;
/// A request that has waited this long for its service has its client checked for a reset with each sweep.
pub(crate) const CLIENT_CHECK_US: u64 = 500_000;
const NEVER: u64 = u64::MAX;
/// In the place of a time since when a connection is idle: it is a tunnel.
const TUNNEL: u64 = NEVER - 1;

/// The deadlines that one connection may have at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Slot {
    /// Reading from the client: head, body, or the next request. Ends the reading side only, so that an answer can
    /// still be written.
    ClientRead = 0,
    /// Writing to the client.
    ClientWrite = 1,
    /// The service: connecting, waiting for its answer or for more of it.
    Service = 2,
    /// The request as a whole.
    Request = 3,
    /// Writing to the service, maybe while its answer is waited for.
    ServiceWrite = 4,
    /// Not a deadline: the client has reset its connection while its request was at the service.
    ClientGone = 5,
}
const SLOTS: usize = 5;

/// What a deadline acts on: a socket, or a task that has none of its own (a stream of HTTP/2, or the connection of one).
pub(crate) enum End {
    Sock(Sock),
    Task(Rc<Signal>),
}

/// Ends that a task is told of, and its waker.
#[derive(Default)]
pub(crate) struct Signal {
    reads: Cell<bool>,
    writes: Cell<bool>,
    gone: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

impl Signal {
    pub(crate) fn listen(&self, cx: &Context<'_>) {
        let mut waker = self.waker.borrow_mut();
        if !waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            *waker = Some(cx.waker().clone());
        }
    }

    pub(crate) fn wake(&self) {
        if let Some(waker) = &*self.waker.borrow() {
            waker.wake_by_ref();
        }
    }

    pub(crate) fn reads_ended(&self) -> bool {
        self.reads.get()
    }

    pub(crate) fn writes_ended(&self) -> bool {
        self.writes.get()
    }

    /// The client has gone.
    pub(crate) fn is_gone(&self) {
        self.gone.set(true);
    }

    pub(crate) fn gone(&self) -> bool {
        self.gone.get()
    }

    pub(crate) fn shutdown(&self, how: Shutdown) {
        self.reads.set(self.reads.get() || how != Shutdown::Write);
        self.writes.set(self.writes.get() || how != Shutdown::Read);
        self.wake();
    }
}

impl End {
    fn shutdown(&self, how: Shutdown) {
        match self {
            Self::Sock(sock) => sock.shutdown(how),
            Self::Task(signal) => signal.shutdown(how),
        }
    }

    fn wake(&self) {
        if let Self::Task(signal) = self {
            signal.wake();
        }
    }

    /// Whether the client has gone, where it is time to look: a socket is asked after `waited` microseconds only.
    fn is_reset(&self, waited: u64) -> bool {
        match self {
            Self::Sock(sock) => waited > CLIENT_CHECK_US && sock.is_reset(),
            Self::Task(signal) => signal.gone(),
        }
    }
}

struct Entry {
    at: [u64; SLOTS],
    /// Bit set of slots that have fired.
    fired: u8,
    /// Since when it is between two requests, so that a drain may close it; `NEVER` during one.
    idle_since: u64,
    /// When the current request went to its service; `NEVER` while there is none. Of a tunnel: since when it waits for a side
    /// to take something.
    since: u64,
    client: Option<End>,
    service: Option<End>,
}

/// The table of one core.
#[derive(Default)]
pub(crate) struct Deadlines {
    entries: RefCell<Vec<Entry>>,
    free: RefCell<Vec<u32>>,
}

/// One connection's row. Freed when dropped.
pub(crate) struct Timers {
    table: Rc<Deadlines>,
    row: u32,
}

impl Deadlines {
    pub(crate) fn register(self: &Rc<Self>, client: End) -> Timers {
        let (client, service) = (Some(client), None);
        let entry = Entry { at: [NEVER; SLOTS], fired: 0, idle_since: NEVER, since: NEVER, client, service };
        let mut entries = self.entries.borrow_mut();
        let row = match self.free.borrow_mut().pop() {
            Some(row) => row,
            None => entries.len() as u32,
        };
        match entries.get_mut(row as usize) {
            Some(slot) => *slot = entry,
            None => entries.push(entry),
        }
        Timers { table: Rc::clone(self), row }
    }

    /// Has every tunnel end as if it had been idle for too long.
    pub(crate) fn close_tunnels(&self) {
        for entry in self.entries.borrow_mut().iter_mut().filter(|entry| entry.idle_since == TUNNEL) {
            entry.fired |= 1 << Slot::ClientRead as u8;
            entry.client.iter().for_each(|client| client.shutdown(Shutdown::Read));
        }
    }

    /// Acts on what has passed. `drain`: also ends connections that are between two requests.
    pub(crate) fn sweep(&self, now: u64, drain: bool, passed: &Counter) {
        for entry in self.entries.borrow_mut().iter_mut() {
            let Some(client) = &entry.client else { continue };
            if drain && entry.idle_since.saturating_add(DRAIN_GRACE_US) <= now {
                client.shutdown(Shutdown::Read);
            }
            if entry.idle_since == TUNNEL {
                if entry.since != NEVER && now.saturating_sub(entry.since) > CLIENT_CHECK_US {
                    entry.since = now;
                    client.wake();
                }
            } else if entry.since != NEVER && client.is_reset(now.saturating_sub(entry.since)) {
                entry.since = NEVER;
                entry.fired |= 1 << Slot::ClientGone as u8;
                if let Some(service) = &entry.service {
                    service.shutdown(Shutdown::Both);
                }
            }
            if entry.at.iter().all(|at| *at > now) {
                continue;
            }
            for (slot, at) in entry.at.iter_mut().enumerate().filter(|(_, at)| **at <= now) {
                *at = NEVER;
                entry.fired |= 1 << slot;
                passed.add(1);
                match (slot, &entry.service) {
                    (0, _) | (3, None) => client.shutdown(Shutdown::Read),
                    (1, _) => client.shutdown(Shutdown::Both),
                    (_, Some(service)) => service.shutdown(Shutdown::Both),
                    _ => {}
                }
            }
        }
    }
}

impl Timers {
    fn with<R>(&self, act: impl FnOnce(&mut Entry) -> R) -> Option<R> {
        self.table.entries.borrow_mut().get_mut(self.row as usize).map(act)
    }

    /// Sets or moves a deadline, in the core's microseconds.
    #[inline]
    pub(crate) fn set(&self, slot: Slot, at: u64) {
        self.with(|entry| {
            if let Some(current) = entry.at.get_mut(slot as usize) {
                *current = at;
            }
        });
    }

    #[inline]
    pub(crate) fn clear(&self, slot: Slot) {
        self.set(slot, NEVER);
    }

    /// Clears a deadline, and that it has fired.
    pub(crate) fn forget(&self, slot: Slot) {
        self.clear(slot);
        self.with(|entry| entry.fired &= !(1 << slot as u8));
    }

    #[inline]
    pub(crate) fn has_fired(&self, slot: Slot) -> bool {
        self.with(|entry| entry.fired & (1 << slot as u8) != 0).unwrap_or(false)
    }

    /// Between two requests, the next of which must begin within `limit`.
    #[inline]
    pub(crate) fn idle(&self, now: u64, limit: u64) {
        self.with(|entry| {
            entry.idle_since = now;
            entry.at = [now + limit, NEVER, NEVER, NEVER, NEVER];
            entry.fired = 0;
        });
    }

    /// A tunnel from here on.
    pub(crate) fn tunnel(&self) {
        self.with(|entry| entry.idle_since = TUNNEL);
    }

    /// A tunnel waits for a side to take something, since then, or no longer. While it does it is woken now and then, so that it
    /// sees whether the other side, which it does not read from meanwhile, is gone.
    pub(crate) fn watch(&self, since: Option<u64>) {
        self.with(|entry| entry.since = since.unwrap_or(NEVER));
    }

    /// A request begins: what was set or fired before counts no more.
    #[inline]
    pub(crate) fn begin(&self) {
        self.with(|entry| {
            entry.idle_since = NEVER;
            entry.at = [NEVER; SLOTS];
            entry.fired = 0;
        });
    }

    /// Names the connection that the service's deadlines act on, or none.
    #[inline]
    pub(crate) fn service(&self, end: Option<End>, now: u64) {
        self.with(|entry| {
            entry.since = if end.is_some() { now } else { NEVER };
            entry.service = end;
            entry.at = [entry.at[0], entry.at[1], NEVER, entry.at[3], NEVER];
            entry.fired &= !(1 << Slot::Service as u8 | 1 << Slot::ServiceWrite as u8);
        });
    }
}

impl Drop for Timers {
    fn drop(&mut self) {
        self.with(|entry| {
            entry.client = None;
            entry.service = None;
            entry.at = [NEVER; SLOTS];
        });
        self.table.free.borrow_mut().push(self.row);
    }
}
