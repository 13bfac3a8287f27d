//! Moments that requests wait for, should they last so long. A core has one timer of the kernel's for all of them: most requests are
//! over before their moment comes, and cost it nothing.

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use ringway_io::Ticker;

use crate::worker::Worker;

/// Those of one core.
#[derive(Default)]
pub(crate) struct Alarms {
    /// In the order of their times; one for each request at most.
    set: RefCell<VecDeque<Entry>>,
    numbers: Cell<u64>,
    /// Made for the first one; `None`: there is none to be had.
    ticker: OnceCell<Option<Rc<Ticker>>>,
    /// When it goes off, on the core's clock. A time that nobody waits for any more does no harm.
    next: Cell<Option<u64>>,
}

struct Entry {
    at: u64,
    number: u64,
    waker: Option<Waker>,
}

/// A moment that is waited for. Dropped: no longer.
pub(crate) struct Alarm<'a> {
    worker: &'a Worker,
    at: u64,
    number: u64,
}

impl Alarms {
    /// Comes to pass at this time on the core's clock, to the millisecond or better; never where the kernel has no timer for it.
    pub(crate) fn set(worker: &Rc<Worker>, at: u64) -> Alarm<'_> {
        let own = &worker.alarms;
        let number = own.numbers.replace(own.numbers.get() + 1);
        let mut set = own.set.borrow_mut();
        // Most come behind all others.
        let place = set.partition_point(|entry| entry.at <= at);
        set.insert(place, Entry { at, number, waker: None });
        drop(set);
        if own.next.get().is_none_or(|next| at < next) {
            own.wind(worker, at);
        }
        Alarm { worker, at, number }
    }

    /// Has the timer go off then.
    fn wind(&self, worker: &Rc<Worker>, at: u64) {
        let ticker = self.ticker.get_or_init(|| {
            let ticker = Rc::new(Ticker::idle().ok()?);
            let (rung, worker) = (Rc::clone(&ticker), Rc::clone(worker));
            ringway_io::spawn(async move {
                loop {
                    rung.tick().await;
                    worker.alarms.ring(&worker);
                }
            });
            Some(ticker)
        });
        let left_us = at.saturating_sub(worker.clock.now());
        let is_set = ticker.as_ref().is_some_and(|ticker| ticker.set_once(Duration::from_micros(left_us)).is_ok());
        self.next.set(is_set.then_some(at));
    }

    /// Wakes those whose time has come.
    fn ring(&self, worker: &Rc<Worker>) {
        self.next.set(None);
        let now = worker.clock.now();
        let mut set = self.set.borrow_mut();
        while let Some(entry) = set.pop_front_if(|entry| entry.at <= now) {
            entry.waker.into_iter().for_each(Waker::wake);
        }
        let next = set.front().map(|entry| entry.at);
        drop(set);
        if let Some(next) = next {
            self.wind(worker, next);
        }
    }

    fn place_of(set: &VecDeque<Entry>, at: u64, number: u64) -> Option<usize> {
        set.binary_search_by_key(&(at, number), |entry| (entry.at, entry.number)).ok()
    }
}

impl Future for Alarm<'_> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let mut set = self.worker.alarms.set.borrow_mut();
        // It is taken out when it rings.
        let Some(place) = Alarms::place_of(&set, self.at, self.number) else { return Poll::Ready(()) };
        if let Some(entry) = set.get_mut(place)
            && !entry.waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker()))
        {
            entry.waker = Some(cx.waker().clone());
        }
        Poll::Pending
    }
}

impl Drop for Alarm<'_> {
    fn drop(&mut self) {
        let mut set = self.worker.alarms.set.borrow_mut();
        if let Some(place) = Alarms::place_of(&set, self.at, self.number) {
            set.remove(place);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use super::*;
    use crate::connection::Connection;
    use crate::testing::{Service, on_core};

    /// Whether it has come to pass.
    async fn is_over(alarm: &mut Pin<&mut Alarm<'_>>) -> bool {
        std::future::poll_fn(|cx| Poll::Ready(alarm.as_mut().poll(cx).is_ready())).await
    }

    #[test]
    fn each_comes_at_its_time_and_those_that_are_dropped_do_not() {
        on_core(&Service::nobody(), async |conn: &Connection, _| {
            let worker = &conn.worker;
            let alarms = &worker.alarms;
            let now = worker.clock.now();
            let mut late = pin!(Alarms::set(worker, now + 60_000_000));
            let dropped = Alarms::set(worker, now + 1);
            let mut second = pin!(Alarms::set(worker, now + 40_000));
            let mut first = pin!(Alarms::set(worker, now + 20_000));
            let mut twin = pin!(Alarms::set(worker, now + 20_000));
            drop(dropped);
            assert_eq!(alarms.set.borrow().len(), 4);
            assert!(!is_over(&mut first).await && !is_over(&mut second).await);
            first.as_mut().await;
            assert!(worker.clock.now() >= now + 20_000 && is_over(&mut twin).await);
            second.as_mut().await;
            assert!(worker.clock.now() >= now + 40_000 && !is_over(&mut late).await);
            // The timer waits for the one that is left.
            assert_eq!((alarms.set.borrow().len(), alarms.next.get()), (1, Some(now + 60_000_000)));
            // One that has passed comes at once.
            Alarms::set(worker, 0).await;
            for _ in 0..100 {
                Alarms::set(worker, worker.clock.now() + 300).await;
            }
        });
    }

    #[test]
    fn a_thousand_in_any_order() {
        on_core(&Service::nobody(), async |conn: &Connection, _| {
            let worker = &conn.worker;
            let now = worker.clock.now();
            let alarms: Vec<_> = (0..1000).map(|number| Alarms::set(worker, now + number * 7919 % 1000 * 10)).collect();
            for (index, alarm) in alarms.into_iter().enumerate() {
                let at = alarm.at;
                // Every third one is given up.
                if index % 3 > 0 {
                    alarm.await;
                    assert!(worker.clock.now() >= at);
                }
            }
            assert!(worker.alarms.set.borrow().is_empty());
        });
    }
}
