//! The loop of one thread: io_uring, or epoll where that is not to be had.

use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use io_uring::IoUring;
use monoio::{LegacyDriver, RuntimeBuilder};

use crate::reactor::Reactor;
use crate::tasks::Tasks;

thread_local! {
    static TASKS: RefCell<Option<Rc<Tasks>>> = const { RefCell::new(None) };
}

/// One thread's loop. It belongs to the thread that makes it.
pub struct EventLoop(Kind);

enum Kind {
    IoUring { reactor: Rc<Reactor>, tasks: Rc<Tasks> },
    Epoll(Box<monoio::Runtime<LegacyDriver>>),
}

/// Runs a task on this thread's loop, beside the one that [`EventLoop::block_on`] was given.
pub fn spawn(task: impl Future<Output = ()> + 'static) {
    match TASKS.with_borrow(Clone::clone) {
        Some(tasks) => tasks.spawn(task),
        None => drop(monoio::spawn(task)),
    }
}

/// The others' turn: the loop goes round, events and timers included, before this goes on. For spawned
/// tasks: on epoll, the future of [`EventLoop::block_on`] is asked again at once.
pub async fn yield_now() {
    let mut given = false;
    poll_fn(|cx| {
        if std::mem::replace(&mut given, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// Wakes the future of [`EventLoop::block_on`].
struct Main(AtomicBool);

impl Wake for Main {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl EventLoop {
    /// A ring with `entries` places, whose completions come when the loop asks for them: without that, a fifth of the CPU
    /// goes to interrupting it. An error where io_uring is forbidden or missing, or the kernel is older than 6.1.
    pub fn io_uring(entries: u32) -> io::Result<Self> {
        let mut builder = IoUring::builder();
        builder.setup_single_issuer().setup_coop_taskrun().setup_defer_taskrun().setup_taskrun_flag();
        // Completions may come in bursts, more than one for a descriptor. The kernel's table of polls grows with it, in which
        // each one that ends is looked for.
        let reactor = Reactor::new(builder.setup_cqsize((4 * entries).max(8192)).build(entries)?);
        Ok(Self(Kind::IoUring { reactor: Rc::new(reactor), tasks: Rc::default() }))
    }

    pub fn epoll(entries: u32) -> io::Result<Self> {
        let runtime = RuntimeBuilder::<LegacyDriver>::new().with_entries(entries).build()?;
        Ok(Self(Kind::Epoll(Box::new(runtime))))
    }

    pub fn is_io_uring(&self) -> bool {
        matches!(self.0, Kind::IoUring { .. })
    }

    /// Looks for the next event for up to `limit` before it sleeps, where events have come that soon lately. On epoll it
    /// always sleeps.
    pub fn busy_poll(self, limit: Option<Duration>) -> Self {
        if let Kind::IoUring { reactor, .. } = &self.0 {
            reactor.set_busy_poll(limit);
        }
        self
    }

    /// Runs until `future` is done; what else was spawned ends with the loop.
    ///
    /// # Panics
    /// When the kernel refuses the ring's work for another reason than being busy, which is a bug.
    pub fn block_on<F: Future>(&mut self, future: F) -> F::Output {
        match &mut self.0 {
            Kind::Epoll(runtime) => runtime.block_on(future),
            Kind::IoUring { reactor, tasks } => {
                let _here = Here::enter(reactor, tasks);
                run(reactor, tasks, future)
            }
        }
    }
}

fn run<F: Future>(reactor: &Reactor, tasks: &Tasks, future: F) -> F::Output {
    let woken = Arc::new(Main(AtomicBool::new(true)));
    let waker = Waker::from(Arc::clone(&woken));
    let mut future = pin!(future);
    loop {
        if woken.0.swap(false, Ordering::Relaxed)
            && let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(&waker))
        {
            // Sockets that were dropped last close now. An error would be one of a loop that has ended.
            let _ = reactor.turn(false);
            return output;
        }
        let more = tasks.run() || woken.0.load(Ordering::Relaxed);
        if let Err(error) = reactor.turn(!more) {
            ring_failed(&error);
        }
    }
}

#[allow(clippy::panic)]
fn ring_failed(error: &io::Error) -> ! {
    panic!("the ring failed: {error}")
}

/// Makes a loop the thread's own for as long as it runs.
struct Here;

impl Here {
    fn enter(reactor: &Rc<Reactor>, tasks: &Rc<Tasks>) -> Self {
        Reactor::set_current(Some(Rc::clone(reactor)));
        TASKS.set(Some(Rc::clone(tasks)));
        Self
    }
}

impl Drop for Here {
    fn drop(&mut self) {
        Reactor::set_current(None);
        TASKS.set(None);
    }
}
