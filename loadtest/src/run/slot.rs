//! One connection's place: what it is doing, and the request that it carries.

use std::cell::{Cell, RefCell};
use std::net::Ipv4Addr;
use std::rc::Rc;
use std::task::{Poll, Waker};

use ringway_io::Sock;

use crate::request::Pick;
use crate::run::reader::Reader;

/// No deadline.
pub(crate) const NEVER: u64 = u64::MAX;

/// A request that is due.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Job {
    /// Nanoseconds on the run's clock.
    pub(crate) due: u64,
    pub(crate) pick: Pick,
}

/// A request on its way, and its answer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Exchange {
    pub(crate) job: Job,
    pub(crate) sent: u64,
    pub(crate) to_head: bool,
}

/// A place for a connection: at most one at a time, and at most one request on it.
pub(crate) struct Slot {
    /// The connection, made or being made.
    pub(crate) sock: RefCell<Option<Sock>>,
    /// The address that the connection comes from, where clients have their own.
    pub(crate) address: Cell<Option<Ipv4Addr>>,
    /// The client that the slot belongs to, where it belongs to one.
    pub(crate) client: Cell<Option<usize>>,
    /// What waits for the connection to be made.
    pub(crate) job: Cell<Option<Job>>,
    pub(crate) exchange: Cell<Option<Exchange>>,
    /// The connection has carried a request.
    pub(crate) carried: Cell<bool>,
    pub(crate) reader: RefCell<Reader>,
    /// The kernel has not taken the whole request yet.
    pub(crate) sending: Rc<Cell<bool>>,
    /// When the sweep shuts the connection down; without a connection, when it wakes the slot.
    pub(crate) deadline: Cell<u64>,
    /// The sweep has shut the connection down.
    pub(crate) expired: Cell<bool>,
    woken: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

impl Slot {
    pub(crate) fn new() -> Self {
        Self {
            sock: RefCell::new(None),
            address: Cell::new(None),
            client: Cell::new(None),
            job: Cell::new(None),
            exchange: Cell::new(None),
            carried: Cell::new(false),
            reader: RefCell::new(Reader::default()),
            sending: Rc::default(),
            deadline: Cell::new(NEVER),
            expired: Cell::new(false),
            woken: Cell::new(false),
            waker: RefCell::new(None),
        }
    }

    /// Lets the slot's task go on from [`Slot::sleep`].
    pub(crate) fn wake(&self) {
        self.woken.set(true);
        if let Some(waker) = self.waker.borrow_mut().take() {
            waker.wake();
        }
    }

    /// Until a time, when the sweep wakes the slot. Without a connection only.
    pub(crate) async fn pause(&self, until: u64) {
        self.woken.set(false);
        self.deadline.set(until);
        self.sleep().await;
    }

    /// Until [`Slot::wake`], also if that was called already.
    pub(crate) async fn sleep(&self) {
        std::future::poll_fn(|cx| {
            if self.woken.replace(false) {
                return Poll::Ready(());
            }
            *self.waker.borrow_mut() = Some(cx.waker().clone());
            Poll::Pending
        })
        .await;
    }
}
