//! The tasks of a loop and the queue of those that are to run.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Wake, Waker};
use std::thread::ThreadId;

use slab::Slab;

thread_local! {
    /// Tasks of this thread's loop that were woken.
    static READY: RefCell<VecDeque<Arc<Handle>>> = const { RefCell::new(VecDeque::new()) };
}

type Body = Pin<Box<dyn Future<Output = ()>>>;

/// What a waker knows of its task.
struct Handle {
    key: usize,
    queued: AtomicBool,
    thread: ThreadId,
}

impl Wake for Handle {
    fn wake(self: Arc<Self>) {
        // What waits here are the loop's own events; others come through a descriptor (an eventfd).
        debug_assert_eq!(self.thread, std::thread::current().id(), "a task was woken from another thread");
        if !self.queued.swap(true, Ordering::Relaxed) {
            READY.with_borrow_mut(|ready| ready.push_back(self));
        }
    }
}

/// The tasks of one loop.
#[derive(Default)]
pub(crate) struct Tasks {
    /// `None` while a task runs.
    bodies: RefCell<Slab<Option<(Body, Waker)>>>,
}

impl Tasks {
    pub(crate) fn spawn(&self, body: impl Future<Output = ()> + 'static) {
        let mut bodies = self.bodies.borrow_mut();
        let entry = bodies.vacant_entry();
        let handle =
            Arc::new(Handle { key: entry.key(), queued: AtomicBool::new(false), thread: std::thread::current().id() });
        entry.insert(Some((Box::pin(body), Waker::from(Arc::clone(&handle)))));
        handle.wake();
    }

    /// Runs those that are to run now; those that they wake are left for another call. Whether any are.
    pub(crate) fn run(&self) -> bool {
        let due = READY.with_borrow(VecDeque::len);
        for _ in 0..due {
            let Some(handle) = READY.with_borrow_mut(VecDeque::pop_front) else { break };
            handle.queued.store(false, Ordering::Relaxed);
            let Some((mut body, waker)) = self.bodies.borrow_mut().get_mut(handle.key).and_then(Option::take) else {
                continue;
            };
            // A panic leaves the place empty, as an ended task does.
            let done = body.as_mut().poll(&mut Context::from_waker(&waker)).is_ready();
            let mut bodies = self.bodies.borrow_mut();
            if done {
                bodies.try_remove(handle.key);
            } else if let Some(place) = bodies.get_mut(handle.key) {
                *place = Some((body, waker));
            }
        }
        READY.with_borrow(|ready| !ready.is_empty())
    }
}

impl Drop for Tasks {
    fn drop(&mut self) {
        READY.with_borrow_mut(VecDeque::clear);
    }
}
