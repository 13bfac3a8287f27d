//! One thread from its start to its end: connects, keeps the schedule, waits for the last answers.

use std::io;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ringway_io::{EventLoop, Ticker};

use crate::run::connection;
use crate::run::cost::Cost;
use crate::run::live::Published;
use crate::run::record::Record;
use crate::run::worker::{Share, Worker};

/// Connections that are being made at the same time before the start: listen queues are short.
const CONNECTS_AT_ONCE: usize = 64;
/// Requests that are due within so short a time leave together: it is a fraction of what a wake-up costs to save.
const WAKE_GAP_NS: u64 = 20_000;
const PUBLISH_NS: u64 = 250_000_000;
/// How long answers are waited for after the run was ended early.
const INTERRUPTED_NS: u64 = 500_000_000;
/// Between looks at what is outstanding, before the start and after the end.
const LOOK: Duration = Duration::from_millis(1);

/// What a thread and the main thread tell each other.
pub(crate) struct Link {
    /// Once the connections are made, or why the thread cannot start.
    pub(crate) ready: Sender<io::Result<()>>,
    /// When to start, on the run's clock. Nothing comes if the run does not take place.
    pub(crate) start: Receiver<u64>,
    pub(crate) published: Arc<Mutex<Published>>,
    /// The run ends early.
    pub(crate) interrupted: Arc<AtomicBool>,
}

/// What a thread has measured.
pub(crate) struct Outcome {
    pub(crate) record: Record,
    pub(crate) cost: Cost,
    pub(crate) is_io_uring: bool,
    /// Tokens that were not at hand when they were needed.
    pub(crate) tokens_signed: u64,
    /// When nothing more was sent, on the run's clock.
    pub(crate) ended: u64,
}

/// The whole life of a thread. None if the run did not take place.
pub(crate) fn run(share: Share, link: &Link) -> Option<Outcome> {
    let entries = (share.connections as u32 + 64).next_power_of_two().clamp(256, 4096);
    let mut event_loop = match EventLoop::io_uring(entries).or_else(|_| EventLoop::epoll(entries)) {
        Ok(event_loop) => event_loop,
        Err(error) => {
            let _ = link.ready.send(Err(error));
            return None;
        }
    };
    let is_io_uring = event_loop.is_io_uring();
    event_loop.block_on(async {
        let worker = Rc::new(Worker::new(share));
        let ticker = match Ticker::idle() {
            Ok(ticker) => ticker,
            Err(error) => {
                let _ = link.ready.send(Err(error));
                return None;
            }
        };
        let pacer = Pacer { worker: &worker, ticker, link };
        pacer.connect().await;
        let _ = link.ready.send(Ok(()));
        let start = link.start.recv().ok()?;
        let (cost, ended) = pacer.pace(start).await;
        pacer.drain(ended).await;
        let record = worker.record.replace(Record::new(0));
        let tokens_signed = worker.tokens_signed();
        Some(Outcome { record, cost, is_io_uring, tokens_signed, ended })
    })
}

struct Pacer<'a> {
    worker: &'a Rc<Worker>,
    ticker: Ticker,
    link: &'a Link,
}

impl Pacer<'_> {
    /// Starts the connections; until each has tried, or has nothing to do before its first request.
    async fn connect(&self) {
        let worker = self.worker;
        let all = worker.slots.len();
        let mut started = 0;
        while worker.tried.get() < all && !self.is_interrupted() {
            let wanted = if worker.is_lazy() { all } else { all.min(worker.tried.get() + CONNECTS_AT_ONCE) };
            for id in started..wanted {
                ringway_io::spawn(connection::run(Rc::clone(worker), id));
            }
            started = wanted;
            if worker.is_lazy() {
                break;
            }
            self.sleep(LOOK).await;
            worker.sweep(worker.now());
        }
        // Lets the tasks get to their first wait.
        self.sleep(LOOK).await;
    }

    /// Keeps the schedule until its end. What the measured part has cost, and when it was over.
    async fn pace(&self, start: u64) -> (Cost, u64) {
        let worker = self.worker;
        let sweep_ns = worker.sweep_period().as_nanos() as u64;
        worker.begin(start);
        let (mut next_sweep, mut next_publish) = (start, start);
        let mut cost = None;
        loop {
            let now = worker.now();
            worker.pump(now);
            if now >= worker.measure_from.get() && cost.is_none() {
                cost = Some(Cost::begin(now, worker.answers.get()));
            }
            if now >= next_sweep {
                worker.sweep(now);
                next_sweep = now + sweep_ns;
                if now >= next_publish {
                    self.publish(now);
                    next_publish = now + PUBLISH_NS;
                }
            }
            if now >= worker.end.get() || self.is_interrupted() {
                worker.stop();
                let cost = cost.unwrap_or_else(|| Cost::begin(now, worker.answers.get()));
                return (cost.end(now, worker.answers.get()), now);
            }
            let wake = next_sweep.min(worker.next_due.get()).min(worker.end.get());
            self.sleep(Duration::from_nanos(wake.saturating_sub(worker.now()).max(WAKE_GAP_NS))).await;
        }
    }

    /// Until every request that was due has its answer or has failed; its time-out sees to that.
    async fn drain(&self, ended: u64) {
        let worker = self.worker;
        let mut next_publish = ended;
        while worker.outstanding.get() > 0 {
            let now = worker.now();
            worker.sweep(now);
            if now >= next_publish {
                self.publish(now);
                next_publish = now + PUBLISH_NS;
            }
            if self.is_interrupted() && now > ended + INTERRUPTED_NS {
                worker.abandon();
            }
            self.sleep(LOOK).await;
        }
        self.publish(worker.now());
    }

    async fn sleep(&self, time: Duration) {
        // Fails only for times that the kernel cannot represent; a sleep that is not one would be a busy wait.
        if self.ticker.set_once(time).is_ok() {
            self.ticker.tick().await;
        }
    }

    fn publish(&self, now: u64) {
        let record = self.worker.record.borrow();
        if let Ok(mut published) = self.link.published.lock() {
            published.set(&record, now);
        }
    }

    fn is_interrupted(&self) -> bool {
        self.link.interrupted.load(Ordering::Relaxed)
    }
}
