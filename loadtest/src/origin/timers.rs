//! One thread's sleeping requests: a heap of them, and one timer of the kernel's for the first.

use std::cell::{Cell, RefCell};
use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use ringway_io::Ticker;

pub(super) struct Timers {
    ticker: Ticker,
    sleepers: RefCell<BinaryHeap<Reverse<Sleeper>>>,
    /// When the ticker is due.
    armed: Cell<Option<Instant>>,
}

struct Sleeper {
    due: Instant,
    waker: Waker,
}

/// Done when it is due. One that is dropped before stays in the heap until then, and wakes nobody who minds.
pub(super) struct Sleep<'a> {
    timers: &'a Timers,
    due: Instant,
    is_known: bool,
}

impl Timers {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self { ticker: Ticker::idle()?, sleepers: RefCell::default(), armed: Cell::new(None) })
    }

    pub(super) fn sleep(&self, delay: Duration) -> Sleep<'_> {
        Sleep { timers: self, due: Instant::now() + delay, is_known: false }
    }

    /// Wakes who is due, for ever.
    pub(super) async fn run(&self) {
        loop {
            self.ticker.tick().await;
            let now = Instant::now();
            while let Some(sleeper) = self.pop_due(now) {
                sleeper.waker.wake();
            }
            self.armed.set(None);
            let next = self.sleepers.borrow().peek().map(|Reverse(sleeper)| sleeper.due);
            if let Some(next) = next {
                self.set(next);
            }
        }
    }

    fn pop_due(&self, now: Instant) -> Option<Sleeper> {
        let mut sleepers = self.sleepers.borrow_mut();
        sleepers.peek().is_some_and(|Reverse(first)| first.due <= now).then(|| sleepers.pop())?.map(|Reverse(s)| s)
    }

    fn add(&self, due: Instant, waker: Waker) {
        self.sleepers.borrow_mut().push(Reverse(Sleeper { due, waker }));
        if self.armed.get().is_none_or(|armed| due < armed) {
            self.set(due);
        }
    }

    fn set(&self, due: Instant) {
        // Cannot fail: the descriptor is a timer, and the time is a small one.
        let _ = self.ticker.set_once(due.saturating_duration_since(Instant::now()));
        self.armed.set(Some(due));
    }
}

impl Future for Sleep<'_> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if Instant::now() >= self.due {
            return Poll::Ready(());
        }
        if !self.is_known {
            self.is_known = true;
            self.timers.add(self.due, cx.waker().clone());
        }
        Poll::Pending
    }
}

impl Ord for Sleeper {
    fn cmp(&self, other: &Self) -> Ordering {
        self.due.cmp(&other.due)
    }
}

impl PartialOrd for Sleeper {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Sleeper {
    fn eq(&self, other: &Self) -> bool {
        self.due == other.due
    }
}

impl Eq for Sleeper {}
