//! What a thread's ring tells of its descriptors.
//!
//! Each direction of a descriptor has one poll that stays armed (multishot), once somebody has waited for it: the kernel adds
//! a completion whenever something arrives, and a wait costs nothing but a look at a flag. A completion says that something has *changed*, so that whoever reads must
//! remember what it left behind, and whoever writes that it found no room: [`Source::left_behind`], [`Source::is_full`].

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
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
    static COUNTS: Cell<LoopCounts> = const {
        Cell::new(LoopCounts { ring_ops: 0, turns: 0, sleeps: 0, idle_ns: 0, waited_us2: 0 })
    };
}

/// Looks between two readings of the clock.
const LOOKS: usize = 16;
const READ: u32 = (libc::POLLIN | libc::POLLRDHUP) as u32;
const WRITE: u32 = libc::POLLOUT as u32;
/// Every poll hears of these, whatever it asks for. A peer that has stopped sending (RDHUP) may still read.
const READ_ENDED: u32 = (libc::POLLRDHUP | libc::POLLHUP | libc::POLLERR) as u32;
const WRITE_ENDED: u32 = (libc::POLLHUP | libc::POLLERR) as u32;

/// What this thread's loop has done since it started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LoopCounts {
    /// Operations handed to the ring; on epoll, waits.
    pub ring_ops: u64,
    /// Times that the ring was asked for events, and those of them at which there were none and the thread slept.
    pub turns: u64,
    pub sleeps: u64,
    /// Time without anything to do.
    pub idle_ns: u64,
    /// Sum of the squares of the rounds between two turns, in microseconds: over the time that has passed, how long an event
    /// waits for its turn on average.
    pub waited_us2: u64,
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
    /// When the last turn ended.
    resumed: Cell<Instant>,
    /// What the kernel would not take when the ring was full, in order; two for each descriptor at most. A poll that is
    /// lost would never end its wait, a cancellation that is lost would leave its socket open.
    deferred: RefCell<VecDeque<squeue::Entry>>,
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
    read: Side,
    write: Side,
}

/// What is known of one direction.
#[derive(Default)]
struct Side {
    /// The poll is armed.
    armed: bool,
    /// Something may have come, or gone, since the last transfer.
    ready: bool,
    /// Nothing more will come of waiting.
    ended: bool,
    waker: Option<Waker>,
}

impl State {
    fn user_data(&self, key: usize, write: bool) -> u64 {
        u64::from(self.generation) << 32 | (key as u64) << 1 | u64::from(write)
    }

    /// Takes in what the kernel says of the poll for reading or for writing.
    fn tell(&mut self, write: bool, result: i32, more: bool) {
        // A poll that the kernel refused says nothing of the socket: who waits looks, and arms it again.
        let (events, refused) = u32::try_from(result).map_or((0, true), |events| (events, false));
        self.read.ended |= events & READ_ENDED != 0;
        self.write.ended |= events & WRITE_ENDED != 0;
        let side = if write { &mut self.write } else { &mut self.read };
        side.armed = more;
        // That the peer has stopped sending makes no room for writing.
        side.ready |= !write || refused || !more || events & WRITE != 0;
        for side in [&mut self.read, &mut self.write] {
            if side.ready || side.ended {
                side.waker.take().into_iter().for_each(Waker::wake);
            }
        }
    }
}

impl Reactor {
    pub(crate) fn new(ring: IoUring) -> Self {
        Self {
            ring: RefCell::new(ring),
            states: RefCell::default(),
            generation: Cell::new(0),
            busy_poll: RefCell::new(BusyPoll::new(None)),
            resumed: Cell::new(Instant::now()),
            deferred: RefCell::default(),
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
        let (read, write) = (Side::default(), Side::default());
        let key = self.states.borrow_mut().insert(State { generation, read, write });
        Source { fd, key, reactor: Rc::clone(self) }
    }

    fn push(&self, entry: squeue::Entry) {
        count_ring_op();
        let mut deferred = self.deferred.borrow_mut();
        deferred.push_back(entry);
        self.hand_over(&mut self.ring.borrow_mut(), &mut deferred);
    }

    /// Queues what waits to be queued, as far as the ring has room.
    fn hand_over(&self, ring: &mut IoUring, deferred: &mut VecDeque<squeue::Entry>) {
        while let Some(entry) = deferred.front() {
            // SAFETY: polls and their cancellations own no memory; a descriptor that is closed before the kernel sees its
            // poll makes an error, or a poll of another descriptor whose completion nobody knows and which is cancelled next.
            if unsafe { ring.submission().push(entry) }.is_ok() {
                deferred.pop_front();
            } else if ring.submit().is_err() {
                return;
            }
        }
    }

    /// Hands the kernel what is queued and wakes who waits for the events that are there. `idle`: there is nothing else to
    /// do, so that it waits for at least one event.
    pub(crate) fn turn(&self, idle: bool) -> io::Result<()> {
        let mut ring = self.ring.borrow_mut();
        let mut deferred = self.deferred.borrow_mut();
        self.hand_over(&mut ring, &mut deferred);
        let since = Instant::now();
        let round_us = since.duration_since(self.resumed.get()).as_micros() as u64;
        if idle && deferred.is_empty() {
            let mut busy_poll = self.busy_poll.borrow_mut();
            let looked_ns = look(&mut ring, since, busy_poll.patience_ns());
            enter(&mut ring, 1)?;
            let gap = since.elapsed();
            busy_poll.learn(gap.as_nanos() as u64);
            self.resumed.set(since + gap);
            count(|counts| {
                counts.sleeps += u64::from(looked_ns.is_none());
                counts.idle_ns += looked_ns.unwrap_or(gap.as_nanos() as u64);
            });
        } else {
            enter(&mut ring, 0)?;
            self.resumed.set(since);
        }
        count(|counts| {
            counts.turns += 1;
            counts.waited_us2 = counts.waited_us2.wrapping_add(round_us.saturating_mul(round_us));
        });
        let mut states = self.states.borrow_mut();
        for completion in ring.completion() {
            let data = completion.user_data();
            let key = (data as u32 >> 1) as usize;
            // What is told of a descriptor that has gone is of no use.
            if let Some(state) = states.get_mut(key).filter(|state| u64::from(state.generation) == data >> 32) {
                state.tell(data & 1 == 1, completion.result(), io_uring::cqueue::more(completion.flags()));
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

/// Looks for an event for a while, without sleeping; for how long, where there is one.
fn look(ring: &mut IoUring, since: Instant, patience_ns: u64) -> Option<u64> {
    let is_there = |ring: &mut IoUring| ring.submission().taskrun() || !ring.completion().is_empty();
    if patience_ns == 0 {
        return is_there(ring).then_some(0);
    }
    if !ring.submission().is_empty() && ring.submit().is_err() {
        return None;
    }
    loop {
        let looked_ns = since.elapsed().as_nanos() as u64;
        if looked_ns >= patience_ns {
            return None;
        }
        for _ in 0..LOOKS {
            if is_there(ring) {
                return Some(looked_ns);
            }
            std::hint::spin_loop();
        }
    }
}

impl Source {
    pub(crate) fn fd(&self) -> &OwnedFd {
        &self.fd
    }

    /// Waits for reading. One at a time: a second one takes the place of the first.
    pub(crate) async fn readable(&self) {
        poll_fn(|cx| self.poll(cx, false)).await;
    }

    /// Waits for room to write, one at a time, after a transfer that left something over.
    pub(crate) async fn writable(&self) {
        poll_fn(|cx| self.poll(cx, true)).await;
    }

    fn poll(&self, cx: &mut Context<'_>, write: bool) -> Poll<()> {
        let mut states = self.reactor.states.borrow_mut();
        let Some(state) = states.get_mut(self.key) else { return Poll::Ready(()) };
        let user_data = state.user_data(self.key, write);
        let side = if write { &mut state.write } else { &mut state.read };
        if std::mem::take(&mut side.ready) || side.ended {
            return Poll::Ready(());
        }
        if !side.waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            side.waker = Some(cx.waker().clone());
        }
        if !std::mem::replace(&mut side.armed, true) {
            let events = if write { WRITE } else { READ };
            let poll = opcode::PollAdd::new(types::Fd(self.fd.as_raw_fd()), events).multi(true);
            self.reactor.push(poll.build().user_data(user_data));
        }
        Poll::Pending
    }

    /// Says after a read whether it may have left something behind: the kernel will not say it again.
    #[inline]
    pub(crate) fn left_behind(&self, something: bool) {
        if let Some(state) = self.reactor.states.borrow_mut().get_mut(self.key) {
            state.read.ready = something;
        }
    }

    /// Says that a write found no room: the kernel will tell when there is some.
    pub(crate) fn is_full(&self) {
        if let Some(state) = self.reactor.states.borrow_mut().get_mut(self.key) {
            state.write.ready = false;
        }
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        let Some(state) = self.reactor.states.borrow_mut().try_remove(self.key) else { return };
        // The poll holds the socket open. (A `PollRemove` would fail where an event is on its way at this moment.)
        for (side, write) in [(&state.read, false), (&state.write, true)] {
            if side.armed {
                let cancel = opcode::AsyncCancel::new(state.user_data(self.key, write)).build();
                self.reactor.push(cancel.flags(squeue::Flags::SKIP_SUCCESS).user_data(0));
            }
        }
    }
}
