//! One core: its thread, its loop, and everything that its connections share without a lock.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::future::poll_fn;
use std::hash::{BuildHasher, Hasher};
use std::net::{IpAddr, SocketAddr};
use std::ops::Deref;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Poll, Waker};
use std::time::Duration;

use ringway_config::Hub;
use ringway_config::hub::Phase;
use ringway_core::forwarded::write_ip;
use ringway_core::random::Random;
use ringway_core::stats::WorkerCell;

use crate::accept;
use crate::alarms::Alarms;
use crate::audit::Audit;
use crate::buffer::{Buffer, Buffers};
use crate::clock::Clock;
use crate::deadline::{Deadlines, SWEEP};
use crate::gathered::Gathered;
use crate::mailbox::{Mailbox, PerIp};
use crate::places::Place;
use crate::record::Log;
use crate::shedding::Shedding;
use crate::tls::Handshakes;
use crate::tunnel_relay::CLOSE_US;
use crate::view::View;
use ringway_io::{LoopCounts, Sock, Ticker};

/// Vectors for heads that a core keeps, and the capacity above which one is given up.
const HEADS_MAX: usize = 256;
const HEAD_CAPACITY_MAX: usize = 64 * 1024;
/// Vectors for what the streams of an HTTP/2 connection write in a turn that a core keeps: few are in use at a time, of
/// half a MiB at most.
const GATHERED_MAX: usize = 8;
/// Places that a core keeps when nobody uses them.
const PLACES_MAX: usize = 256;
/// Sweeps between two looks at the idle upstream connections: a second.
const POOL_SWEEP: u64 = 20;

/// What the workers of a process share.
pub(crate) struct Shared {
    pub(crate) hub: Arc<Hub>,
    pub(crate) mailboxes: Vec<Mailbox>,
    pub(crate) per_ip: PerIp,
    /// The drain's time is up: leave at once.
    pub(crate) abort: AtomicBool,
    /// Reads this thread's count of heap allocations, where the binary counts them.
    pub(crate) allocations: Option<fn() -> u64>,
}

/// One core's state.
pub(crate) struct Worker {
    pub(crate) id: usize,
    pub(crate) hub: Arc<Hub>,
    pub(crate) shared: Arc<Shared>,
    pub(crate) clock: Clock,
    pub(crate) deadlines: Rc<Deadlines>,
    pub(crate) alarms: Alarms,
    pub(crate) log: Log,
    pub(crate) audit: Audit,
    /// What it refuses when it is overloaded.
    pub(crate) shedding: Shedding,
    /// Room for the one path at a time that has to be rewritten.
    pub(crate) path: RefCell<Vec<u8>>,
    pub(crate) listeners: RefCell<HashMap<SocketAddr, accept::Accepting>>,
    pub(crate) handshakes: Handshakes,
    /// Room for the key of one rate limit at a time.
    pub(crate) limit_key: RefCell<Vec<u8>>,
    /// Requests that rate limits hold now.
    held: Cell<usize>,
    /// A task looks at the time for them.
    looks: Cell<bool>,
    /// Rung when another thread has published something, and with each tick.
    pub(crate) news: News,
    view: RefCell<Rc<View>>,
    /// Two lists, so that answers, which are large, use the few blocks that are warm: a request's block is held until its
    /// answer is through, an answer's for one turn only.
    inboxes: Rc<Buffers>,
    requests: Rc<Buffers>,
    answers: Rc<Buffers>,
    heads: RefCell<Vec<Vec<u8>>>,
    gathered: RefCell<Vec<Gathered>>,
    places: RefCell<Vec<Place>>,
    random: Cell<Random>,
    /// Since when, on the core's clock; `None`: not yet.
    draining: Cell<Option<u64>>,
}

/// A short text in a vector of the core's, which gets it back when this is dropped.
pub(crate) struct Text<'a> {
    worker: &'a Worker,
    bytes: Vec<u8>,
}

impl Deref for Text<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Text<'_> {
    fn drop(&mut self) {
        self.worker.give_head(std::mem::take(&mut self.bytes));
    }
}

/// Counts a request for as long as it lives.
pub(crate) struct ActiveRequest<'a>(&'a WorkerCell);

impl Drop for ActiveRequest<'_> {
    fn drop(&mut self) {
        self.0.requests.sub(1);
    }
}

impl Worker {
    pub(crate) fn new(id: usize, shared: Arc<Shared>) -> Rc<Self> {
        let hub = Arc::clone(&shared.hub);
        let view = View::build(hub.published(), id, None);
        let seed = std::collections::hash_map::RandomState::new().build_hasher().finish();
        let worker = Rc::new(Self {
            id,
            clock: Clock::new(hub.epoch),
            deadlines: Rc::default(),
            alarms: Alarms::default(),
            log: Log::new(),
            audit: Audit::new(),
            shedding: Shedding::default(),
            path: RefCell::new(Vec::with_capacity(1024)),
            listeners: RefCell::default(),
            handshakes: Handshakes::default(),
            limit_key: RefCell::new(Vec::with_capacity(256)),
            held: Cell::new(0),
            looks: Cell::new(false),
            news: News::default(),
            view: RefCell::new(Rc::new(view)),
            inboxes: Buffers::new(),
            requests: Buffers::small(),
            answers: Buffers::new(),
            heads: RefCell::new(Vec::with_capacity(HEADS_MAX)),
            gathered: RefCell::new(Vec::with_capacity(GATHERED_MAX)),
            places: RefCell::new(Vec::with_capacity(PLACES_MAX)),
            random: Cell::new(Random(seed)),
            draining: Cell::new(None),
            hub,
            shared,
        });
        worker.cell().generation.set(worker.view().published.generation);
        worker
    }

    /// This core's counters.
    #[inline]
    pub(crate) fn cell(&self) -> &WorkerCell {
        static NOBODY: std::sync::LazyLock<WorkerCell> = std::sync::LazyLock::new(WorkerCell::default);
        self.hub.workers.workers.get(self.id).map_or(&NOBODY, |cell| cell)
    }

    /// The newest snapshot that this core has seen.
    #[inline]
    pub(crate) fn view(&self) -> Rc<View> {
        Rc::clone(&self.view.borrow())
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.draining.get().is_some()
    }

    /// A buffer for what a client sends.
    #[inline]
    pub(crate) fn take_inbox(&self) -> Buffer {
        self.inboxes.take(self.cell())
    }

    /// A small one, for the head of a request that has no body.
    pub(crate) fn take_request(&self) -> Buffer {
        self.requests.take(self.cell())
    }

    /// A buffer for what a service answers.
    #[inline]
    pub(crate) fn take_answer(&self) -> Buffer {
        self.answers.take(self.cell())
    }

    /// An empty vector for a head.
    #[inline]
    pub(crate) fn take_head(&self) -> Vec<u8> {
        self.heads.borrow_mut().pop().unwrap_or_else(|| Vec::with_capacity(2048))
    }

    #[inline]
    pub(crate) fn give_head(&self, mut head: Vec<u8>) {
        let mut heads = self.heads.borrow_mut();
        if heads.len() < HEADS_MAX && head.capacity() <= HEAD_CAPACITY_MAX {
            head.clear();
            heads.push(head);
        }
    }

    pub(crate) fn take_gathered(&self) -> Gathered {
        self.gathered.borrow_mut().pop().unwrap_or_default()
    }

    /// Of which all has left.
    pub(crate) fn give_gathered(&self, gathered: Gathered) {
        let mut kept = self.gathered.borrow_mut();
        if kept.len() < GATHERED_MAX {
            kept.push(gathered);
        }
    }

    /// An address as it is written.
    pub(crate) fn text_of(&self, ip: IpAddr) -> Text<'_> {
        let mut bytes = self.take_head();
        write_ip(ip, &mut bytes);
        Text { worker: self, bytes }
    }

    /// Where a connection may be served.
    #[inline]
    pub(crate) fn take_place(&self) -> Place {
        self.places.borrow_mut().pop().unwrap_or_else(Place::new)
    }

    #[inline]
    pub(crate) fn give_place(&self, place: Place) {
        let mut places = self.places.borrow_mut();
        if places.len() < PLACES_MAX {
            places.push(place);
        }
    }

    #[inline]
    pub(crate) fn count_request(&self) -> ActiveRequest<'_> {
        self.cell().requests.add(1);
        ActiveRequest(self.cell())
    }

    /// 64 random bits, for balancing and identifiers; not for secrets.
    #[inline]
    pub(crate) fn random(&self) -> u64 {
        let mut random = self.random.get();
        let next = random.next();
        self.random.set(random);
        next
    }

    #[inline]
    pub(crate) fn random_wide(&self) -> u128 {
        u128::from(self.random()) << 64 | u128::from(self.random())
    }

    /// Counts a request that waits for Redis. While there are any, they look at the time each millisecond: they wait for
    /// some of them only.
    pub(crate) fn hold(self: &Rc<Self>) -> HeldRequest {
        self.held.set(self.held.get() + 1);
        // The one of earlier requests may still be at work.
        if !self.looks.get()
            && let Ok(ticker) = Ticker::every(HOLD_LOOK)
        {
            self.looks.set(true);
            let worker = Rc::clone(self);
            ringway_io::spawn(async move {
                while worker.held.get() > 0 {
                    ticker.tick().await;
                    worker.news.ring();
                }
                worker.looks.set(false);
            });
        }
        HeldRequest(Rc::clone(self))
    }

    /// Looks at what was published: the snapshot, the phase.
    fn look(self: &Rc<Self>) {
        let published = self.hub.published();
        let current = self.view();
        if published.generation != current.published.generation {
            let generation = published.generation;
            let renewed = View::build(published, self.id, Some(&current));
            self.listeners.borrow_mut().retain(|address, accepting| {
                let kept = renewed.published.snapshot.listeners.iter().any(|listener| listener.address == *address);
                if !kept {
                    accepting.refuse();
                    accepting.stop(self);
                }
                kept
            });
            *self.view.borrow_mut() = Rc::new(renewed);
            self.cell().generation.set(generation);
        }
        if self.hub.phase() == Phase::Draining && !self.is_draining() {
            self.draining.set(Some(self.clock.now()));
            self.listeners.borrow().values().for_each(accept::Accepting::refuse);
        }
    }

    /// Whether a drain leaves nothing to do: handshakes have ended, and no connection is open or on its way here.
    fn has_drained(self: &Rc<Self>, now: u64) -> bool {
        let Some(since) = self.draining.get() else { return false };
        if now.saturating_sub(since) < accept::HANDSHAKE_US {
            return false;
        }
        self.listeners.borrow_mut().drain().for_each(|(_, accepting)| accepting.stop(self));
        self.cell().connections.get() == 0 && self.shared.mailboxes.iter().all(Mailbox::is_empty)
    }

    /// When time is up: has tunnels close, and leaves them a moment to say so.
    fn have_tunnels_ended(&self, now: u64, since: &mut Option<u64>) -> bool {
        if since.is_none() {
            self.deadlines.close_tunnels();
        }
        let since = *since.get_or_insert(now);
        self.cell().tunnels.get() == 0 || now.saturating_sub(since) > CLOSE_US
    }

    pub(crate) fn tick(&self, round: u64) {
        self.clock.tick();
        self.news.ring();
        let now = self.clock.now();
        let cell = self.cell();
        self.deadlines.sweep(now, self.is_draining(), &cell.deadlines);
        if round.is_multiple_of(POOL_SWEEP) {
            self.view().pools().for_each(|pool| pool.sweep(now));
        }
        self.log.flush(self);
        self.audit.flush(&self.hub);
        let counts = LoopCounts::of_this_thread();
        let (load, shed) = self.shedding.tick(self.view().published.snapshot.overload.as_ref(), &counts, now);
        cell.queueing_us.set(load.delay_us);
        cell.busy.set((load.busy * 1000.0) as u64);
        cell.shed.set((shed * 1000.0) as u64);
        let LoopCounts { ring_ops, turns, sleeps, .. } = counts;
        cell.ring_ops.set(ring_ops);
        cell.loop_turns.set(turns);
        cell.loop_sleeps.set(sleeps);
        cell.buffers_in_use.set(self.inboxes.in_use() + self.requests.in_use() + self.answers.in_use());
        if let Some(count) = self.shared.allocations {
            cell.allocations.set(count());
        }
    }
}

/// How often held requests look at the time.
const HOLD_LOOK: Duration = Duration::from_millis(1);

/// A request that a rate limit holds.
pub(crate) struct HeldRequest(Rc<Worker>);

impl Drop for HeldRequest {
    fn drop(&mut self) {
        self.0.held.set(self.0.held.get() - 1);
    }
}

/// Tasks that wait for something from another thread. Each looks for itself whether it was meant.
#[derive(Default)]
pub(crate) struct News {
    count: Cell<u64>,
    waiting: RefCell<Vec<Waker>>,
}

impl News {
    pub(crate) fn ring(&self) {
        self.count.set(self.count.get() + 1);
        self.waiting.borrow_mut().drain(..).for_each(Waker::wake);
    }

    /// Until the next ring.
    pub(crate) async fn wait(&self) {
        let seen = self.count.get();
        poll_fn(|cx| {
            if self.count.get() != seen {
                return Poll::Ready(());
            }
            self.waiting.borrow_mut().push(cx.waker().clone());
            Poll::Pending
        })
        .await;
    }
}

/// The whole life of a worker, on its thread. Gives back how many connections were cut off.
pub(crate) async fn run(id: usize, shared: Arc<Shared>, up: impl FnOnce()) -> usize {
    let worker = Worker::new(id, shared);
    let Some(mailbox) = worker.shared.mailboxes.get(id) else { return 0 };
    let Ok(bell) = mailbox.bell().and_then(Sock::new) else { return 0 };
    let waiting = Rc::clone(&worker);
    collect_mail(&waiting);
    ringway_io::spawn(async move {
        loop {
            bell.readable().await;
            let Some(mailbox) = waiting.shared.mailboxes.get(waiting.id) else { return };
            mailbox.silence();
            collect_mail(&waiting);
        }
    });
    let Ok(ticker) = Ticker::every(SWEEP) else { return 0 };
    up();
    let mut round = 0;
    let mut closing_since = None;
    loop {
        ticker.tick().await;
        round += 1;
        worker.tick(round);
        let now = worker.clock.now();
        let is_over = worker.has_drained(now) || {
            worker.shared.abort.load(Ordering::Acquire) && worker.have_tunnels_ended(now, &mut closing_since)
        };
        if is_over {
            worker.log.flush(&worker);
            worker.audit.end(&worker.hub);
            // In TLS their services are told.
            worker.view().pools().for_each(|pool| pool.close());
            return worker.cell().connections.get() as usize;
        }
    }
}

fn collect_mail(worker: &Rc<Worker>) {
    let Some(mailbox) = worker.shared.mailboxes.get(worker.id) else { return };
    worker.look();
    worker.news.ring();
    for (address, socket) in mailbox.take_listeners() {
        accept::listen(worker, address, socket);
    }
    while let Some(handed) = mailbox.take_connection() {
        accept::adopt(worker, handed);
    }
}
