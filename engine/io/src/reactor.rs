//! What a thread's ring tells of its descriptors.
//!
//! Each descriptor has one poll that stays armed (multishot): the kernel adds a completion whenever something arrives, and
//! a wait costs nothing but a look at a flag. A completion says that something has *changed*, so that whoever reads must
//! remember what it left behind: see [`Source::left_behind`].

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use io_uring::{IoUring, opcode, squeue, types};
use slab::Slab;

use crate::busy_poll::BusyPoll;

thread_local! {
    static CURRENT: RefCell<Option<Rc<Reactor>>> = const { RefCell::new(None) };
    static COUNTS: Cell<LoopCounts> = const { Cell::new(LoopCounts { ring_ops: 0, turns: 0, sleeps: 0 }) };
}

/// Looks between two readings of the clock.
const LOOKS: usize = 16;
const READ: u32 = (libc::POLLIN | libc::POLLRDHUP) as u32;
const WRITE: u32 = libc::POLLOUT as u32;
const ENDED: u32 = (libc::POLLRDHUP | libc::POLLHUP | libc::POLLERR) as u32;

/// What this thread's loop has done since it started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoopCounts {
    /// Operations handed to the ring; on epoll, waits.
    pub ring_ops: u64,
    /// Times that the ring was asked for events, and those of them at which there were none and the thread slept.
    pub turns: u64,
    pub sleeps: u64,
}

impl LoopCounts {
    pub fn of_this_thread() -> Self {
        COUNTS.get()
    }
}

fn count(act: impl FnOnce(&mut LoopCounts)) {
    let mut counts = COUNTS.get();
    act(&mut counts);
    COUNTS.set(counts);
}

pub(crate) fn count_ring_op() {
    count(|counts| counts.ring_ops += 1);
}

/// The ring of this thread's loop and the descriptors on it.
pub(crate) struct Reactor {
    ring: RefCell<IoUring>,
    states: RefCell<Slab<State>>,
    generation: Cell<u32>,
    busy_poll: RefCell<BusyPoll>,
}

/// A descriptor on the ring.
pub(crate) struct Source {
    fd: OwnedFd,
    key: usize,
    reactor: Rc<Reactor>,
}

/// What is known of a descriptor.
struct State {
    /// Tells completions of an earlier descriptor in the same place apart.
    generation: u32,
    /// The poll for reading is armed.
    armed: bool,
    /// Something may be there to read.
    readable: bool,
    /// A poll for writing is armed.
    write_armed: bool,
    writable: bool,
    /// The other side has ended, or the connection has: reading and writing no longer wait.
    ended: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

impl State {
    fn user_data(&self, key: usize, write: bool) -> u64 {
        u64::from(self.generation) << 32 | (key as u64) << 1 | u64::from(write)
    }
}

impl Reactor {
    pub(crate) fn new(ring: IoUring) -> Self {
        Self {
            ring: RefCell::new(ring),
            states: RefCell::default(),
            generation: Cell::new(0),
            busy_poll: RefCell::new(BusyPoll::new(None)),
        }
    }

    pub(crate) fn set_busy_poll(&self, limit: Option<Duration>) {
        *self.busy_poll.borrow_mut() = BusyPoll::new(limit);
    }

    pub(crate) fn current() -> Option<Rc<Self>> {
        CURRENT.with_borrow(Clone::clone)
    }

    pub(crate) fn set_current(reactor: Option<Rc<Self>>) {
        CURRENT.set(reactor);
    }

    pub(crate) fn register(self: &Rc<Self>, fd: OwnedFd) -> Source {
        let generation = self.generation.get().wrapping_add(1);
        self.generation.set(generation);
        let key = self.states.borrow_mut().insert(State {
            generation,
            armed: false,
            readable: false,
            write_armed: false,
            writable: false,
            ended: false,
            reader: None,
            writer: None,
        });
        Source { fd, key, reactor: Rc::clone(self) }
    }

    fn push(&self, entry: &squeue::Entry) {
        count_ring_op();
        let mut ring = self.ring.borrow_mut();
        // SAFETY: polls and their removals own no memory; a descriptor that is closed before the kernel sees its poll
        // makes an error, or a poll of another descriptor whose completion nobody knows.
        while unsafe { ring.submission().push(entry) }.is_err() {
            // Full: the kernel takes what is there.
            if ring.submit().is_err() {
                return;
            }
        }
    }

    /// Hands the kernel what is queued and wakes who waits for the events that are there. `idle`: there is nothing else to
    /// do, so that it waits for at least one event.
    pub(crate) fn turn(&self, idle: bool) -> io::Result<()> {
        let mut ring = self.ring.borrow_mut();
        if idle {
            let since = Instant::now();
            let mut busy_poll = self.busy_poll.borrow_mut();
            let found = look(&mut ring, since, busy_poll.patience_ns());
            count(|counts| (counts.turns, counts.sleeps) = (counts.turns + 1, counts.sleeps + u64::from(!found)));
            enter(&mut ring, 1)?;
            busy_poll.learn(since.elapsed().as_nanos() as u64);
        } else {
            count(|counts| counts.turns += 1);
            enter(&mut ring, 0)?;
        }
        let mut states = self.states.borrow_mut();
        for completion in ring.completion() {
            let data = completion.user_data();
            let key = (data as u32 >> 1) as usize;
            // What is told of a descriptor that has gone is of no use.
            let Some(state) = states.get_mut(key).filter(|state| u64::from(state.generation) == data >> 32) else {
                continue;
            };
            let events = u32::try_from(completion.result()).unwrap_or(ENDED);
            state.ended |= events & ENDED != 0;
            let write = data & 1 == 1;
            if write {
                state.write_armed = false;
                state.writable = true;
            } else {
                state.armed = io_uring::cqueue::more(completion.flags());
                state.readable = true;
            }
            if !write || state.ended {
                state.reader.take().into_iter().for_each(Waker::wake);
            }
            if write || state.ended {
                state.writer.take().into_iter().for_each(Waker::wake);
            }
        }
        Ok(())
    }
}

/// Submits what is queued, runs what the kernel has put off, waits for `wanted` events.
fn enter(ring: &mut IoUring, wanted: u32) -> io::Result<()> {
    const GETEVENTS: u32 = 1;
    let to_submit = ring.submission().len() as u32;
    // SAFETY: without an argument behind it the call reads and writes nothing but the ring.
    let entered = unsafe { ring.submitter().enter::<libc::sigset_t>(to_submit, wanted, GETEVENTS, None) };
    match entered {
        // A signal, or a completion queue that is full and is emptied next.
        Err(error) if !matches!(error.raw_os_error(), Some(libc::EINTR | libc::EBUSY | libc::EAGAIN)) => Err(error),
        _ => Ok(()),
    }
}

/// Looks for an event for a while, without sleeping; whether there is one.
fn look(ring: &mut IoUring, since: Instant, patience_ns: u64) -> bool {
    let is_there = |ring: &mut IoUring| ring.submission().taskrun() || !ring.completion().is_empty();
    if patience_ns == 0 {
        return is_there(ring);
    }
    if !ring.submission().is_empty() && ring.submit().is_err() {
        return false;
    }
    while since.elapsed().as_nanos() < u128::from(patience_ns) {
        for _ in 0..LOOKS {
            if is_there(ring) {
                return true;
            }
            std::hint::spin_loop();
        }
    }
    false
}

impl Source {
    pub(crate) fn fd(&self) -> &OwnedFd {
        &self.fd
    }

    fn with<R>(&self, act: impl FnOnce(&mut State) -> R) -> Option<R> {
        self.reactor.states.borrow_mut().get_mut(self.key).map(act)
    }

    pub(crate) fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<()> {
        let arm = self.with(|state| {
            if std::mem::take(&mut state.readable) || state.ended {
                return Poll::Ready(());
            }
            if !state.reader.as_ref().is_some_and(|reader| reader.will_wake(cx.waker())) {
                state.reader = Some(cx.waker().clone());
            }
            Poll::Pending
        });
        if arm != Some(Poll::Pending) {
            return Poll::Ready(());
        }
        let arm =
            self.with(|state| (!std::mem::replace(&mut state.armed, true)).then(|| state.user_data(self.key, false)));
        if let Some(Some(data)) = arm {
            let poll = opcode::PollAdd::new(types::Fd(self.fd.as_raw_fd()), READ).multi(true);
            self.reactor.push(&poll.build().user_data(data));
        }
        Poll::Pending
    }

    pub(crate) async fn readable(&self) {
        poll_fn(|cx| self.poll_readable(cx)).await;
    }

    pub(crate) async fn writable(&self) {
        let mut asked = false;
        poll_fn(|cx| {
            let arm = self.with(|state| {
                if (asked && std::mem::take(&mut state.writable)) || state.ended {
                    return None;
                }
                asked = true;
                state.writable = false;
                state.writer = Some(cx.waker().clone());
                let arm = !std::mem::replace(&mut state.write_armed, true);
                Some(arm.then(|| state.user_data(self.key, true)))
            });
            match arm {
                Some(Some(Some(data))) => {
                    let poll = opcode::PollAdd::new(types::Fd(self.fd.as_raw_fd()), WRITE);
                    self.reactor.push(&poll.build().user_data(data));
                    Poll::Pending
                }
                Some(Some(None)) => Poll::Pending,
                _ => Poll::Ready(()),
            }
        })
        .await;
    }

    /// Says after a read whether it may have left something behind: the kernel will not say it again.
    #[inline]
    pub(crate) fn left_behind(&self, something: bool) {
        self.with(|state| state.readable = something);
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        let Some(state) = self.reactor.states.borrow_mut().try_remove(self.key) else { return };
        // The poll holds the socket open. (A `PollRemove` would fail where an event is on its way at this moment.)
        for (armed, write) in [(state.armed, false), (state.write_armed, true)] {
            if armed {
                let cancel = opcode::AsyncCancel::new(state.user_data(self.key, write)).build();
                self.reactor.push(&cancel.flags(squeue::Flags::SKIP_SUCCESS).user_data(0));
            }
        }
    }
}
