//! One thread: its loop, its listening socket, and what its connections share.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io;
use std::net::TcpListener;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::Sender;
use std::thread;
use std::time::Duration;

use ringway_io::{EventLoop, Sock};
use rustix::net::Shutdown;
use signal_hook::iterator::Handle;

use super::answer::{Answer, Answers, Look, Shape};
use super::connection;
use super::fate::{Fate, Fates, Faults};
use super::inbox::Inbox;
use super::latency::{Latency, SlowStart};
use super::timers::Timers;

/// Places of a thread's ring: waits that begin between two rounds of the loop.
const RING_ENTRIES: u32 = 4096;
/// Connections taken in one go before the loop goes round.
const ACCEPT_MAX: usize = 64;
/// Pause when there are no descriptors left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Blocks that a thread keeps when nobody uses them.
const BLOCKS_MAX: usize = 64;

/// What was asked for, checked.
pub(super) struct Settings {
    pub(super) look: Look,
    pub(super) body_bytes: usize,
    pub(super) status: u16,
    pub(super) fail_status: u16,
    pub(super) latency: Option<Latency>,
    pub(super) slow_start: Option<SlowStart>,
    pub(super) faults: Faults,
    /// Whether latency and faults hold now.
    pub(super) is_faulty: AtomicBool,
    pub(super) seed: u64,
}

/// What a thread has done; only it writes.
#[derive(Debug, Default)]
pub(super) struct Counts {
    pub(super) requests: Count,
    pub(super) connections: Count,
    pub(super) failed: Count,
    pub(super) stalled: Count,
    pub(super) reset: Count,
    pub(super) refused: Count,
    has_ended: AtomicBool,
}

#[derive(Debug, Default)]
pub(super) struct Count(AtomicU64);

/// Room for what a connection receives, and for answers that are sent together.
#[derive(Default)]
pub(super) struct Block {
    pub(super) inbox: Inbox,
    pub(super) out: Vec<u8>,
}

/// One thread's state.
pub(super) struct Worker {
    pub(super) settings: Arc<Settings>,
    pub(super) counts: Arc<Counts>,
    pub(super) timers: Timers,
    fates: RefCell<Fates>,
    answers: RefCell<Answers>,
    blocks: RefCell<Vec<Block>>,
    open: RefCell<HashMap<RawFd, Rc<Open>>>,
    is_ending: Cell<bool>,
}

/// An open connection.
pub(super) struct Open {
    pub(super) sock: Sock,
    /// It waits for a request.
    pub(super) is_idle: Cell<bool>,
}

/// Ends the wait for signals when it is dropped.
pub(super) struct EndsWith(pub(super) Handle);

impl Count {
    #[inline]
    pub(super) fn add(&self) {
        self.0.store(self.0.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
    }

    pub(super) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Counts {
    /// The thread has been told to end, and has no connections left.
    pub(super) fn has_ended(&self) -> bool {
        self.has_ended.load(Ordering::Acquire)
    }
}

impl Block {
    fn with_room() -> Self {
        Self { inbox: Inbox::new(), out: Vec::new() }
    }
}

impl Drop for EndsWith {
    fn drop(&mut self) {
        self.0.close();
    }
}

impl Worker {
    pub(super) fn fate(&self) -> Fate {
        self.fates.borrow_mut().draw()
    }

    pub(super) fn answer(&self, shape: Shape) -> Rc<Answer> {
        self.answers.borrow_mut().get(shape)
    }

    /// Whether answers are the last on their connections.
    pub(super) fn is_ending(&self) -> bool {
        self.is_ending.get()
    }

    fn open(&self, sock: Sock) -> Rc<Open> {
        let open = Rc::new(Open { sock, is_idle: Cell::new(true) });
        self.open.borrow_mut().insert(open.sock.fd().as_raw_fd(), Rc::clone(&open));
        open
    }

    fn close(&self, open: &Open) {
        self.open.borrow_mut().remove(&open.sock.fd().as_raw_fd());
        self.end_with_the_last();
    }

    /// Connections that wait for a request close; the others do when they have answered.
    fn end(&self) {
        self.is_ending.set(true);
        for open in self.open.borrow().values().filter(|open| open.is_idle.get()) {
            // What has arrived can still be read, and is answered.
            open.sock.shutdown(Shutdown::Read);
        }
        self.end_with_the_last();
    }

    fn end_with_the_last(&self) {
        if self.is_ending.get() && self.open.borrow().is_empty() {
            self.counts.has_ended.store(true, Ordering::Release);
        }
    }

    pub(super) fn take_block(&self) -> Block {
        self.blocks.borrow_mut().pop().unwrap_or_else(Block::with_room)
    }

    pub(super) fn give_block(&self, mut block: Block) {
        let mut blocks = self.blocks.borrow_mut();
        if blocks.len() < BLOCKS_MAX {
            block.inbox.clear();
            block.out.clear();
            blocks.push(block);
        }
    }
}

/// Starts a thread that serves for as long as the process lives, and ends its connections when the other end of `rings`
/// is closed. `up` hears whether it does, and over io_uring, or why
/// not.
pub(super) fn start(
    id: usize,
    core: Option<core_affinity::CoreId>,
    (listener, rings): (TcpListener, UnixStream),
    settings: Arc<Settings>,
    counts: Arc<Counts>,
    up: Sender<Result<bool, String>>,
    alive: EndsWith,
) -> io::Result<()> {
    thread::Builder::new().name(format!("origin-{id}")).spawn(move || {
        let _alive = alive;
        if let Some(core) = core
            && !core_affinity::set_for_current(core)
        {
            let _ = up.send(Err(format!("cannot pin a thread to core {}", core.id)));
            return;
        }
        // The ring belongs to the thread that makes it.
        match EventLoop::io_uring(RING_ENTRIES).or_else(|_| EventLoop::epoll(RING_ENTRIES)) {
            Ok(mut looped) => {
                let is_io_uring = looped.is_io_uring();
                let is_up = || drop(up.send(Ok(is_io_uring)));
                let ended = looped.block_on(run(id, (listener, rings), settings, counts, is_up));
                if let Err(error) = ended {
                    let _ = up.send(Err(format!("cannot serve: {error}")));
                }
            }
            Err(error) => drop(up.send(Err(format!("cannot make a loop: {error}")))),
        }
    })?;
    Ok(())
}

async fn run(
    id: usize,
    (listener, rings): (TcpListener, UnixStream),
    settings: Arc<Settings>,
    counts: Arc<Counts>,
    up: impl FnOnce(),
) -> io::Result<()> {
    let worker = Rc::new(Worker {
        counts,
        timers: Timers::new()?,
        fates: RefCell::new(Fates::new(Arc::clone(&settings), id)),
        answers: RefCell::new(Answers::new(Arc::clone(&settings))),
        blocks: RefCell::default(),
        open: RefCell::default(),
        is_ending: Cell::new(false),
        settings,
    });
    let sock = Sock::new(OwnedFd::from(listener))?;
    let waking = Rc::clone(&worker);
    ringway_io::spawn(async move { waking.timers.run().await });
    let (ending, rings) = (Rc::clone(&worker), Sock::new(OwnedFd::from(rings))?);
    ringway_io::spawn(async move {
        while rings.is_quiet() {
            rings.readable().await;
        }
        ending.end();
    });
    up();
    loop {
        sock.readable().await;
        if accept(&worker, &sock) {
            ringway_io::yield_now().await;
        } else {
            // It stays readable: the loop would spin until a descriptor is free.
            worker.timers.sleep(ACCEPT_PAUSE).await;
        }
    }
}

/// Takes new connections; whether there are descriptors for more.
fn accept(worker: &Rc<Worker>, listener: &Sock) -> bool {
    for _ in 0..ACCEPT_MAX {
        match listener.accept() {
            Ok(Some((fd, _))) => {
                worker.counts.connections.add();
                let Ok(sock) = Sock::new(fd) else { continue };
                let (worker, open) = (Rc::clone(worker), worker.open(sock));
                ringway_io::spawn(async move {
                    connection::serve(&worker, &open).await;
                    worker.close(&open);
                });
            }
            Ok(None) => return true,
            Err(_) => return false,
        }
    }
    true
}
