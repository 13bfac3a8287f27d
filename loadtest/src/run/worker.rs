//! One thread's share of the run: its connections, its requests, and what lies between them.
//!
//! Nothing here waits. Requests are handed to connections as they become due ([`Worker::pump`]) and as connections
//! become free ([`Worker::free`]); `connection.rs` does the waiting, `pacer.rs` keeps the time.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use rustix::net::Shutdown;

use crate::request::Mix;
use crate::run::connection;
use crate::run::fault::Fault;
use crate::run::idle::Idle;
use crate::run::record::{Answer, Record};
use crate::run::slot::{Exchange, Job, NEVER, Slot};
use crate::scenario::{Load, Scenario};
use crate::schedule::Arrivals;

/// Requests that may wait for a connection, on one thread.
const QUEUE_MAX: usize = 1 << 20;
/// Requests handed out at once, before answers are looked at again.
const BATCH_MAX: usize = 64;
/// A thread's receive buffer: a usual answer comes in one piece.
const INBOX_BYTES: usize = 64 * 1024;
/// A second of the timeline is closed when it is older than a request can be, and this much more.
const CLOSE_AFTER_NS: u64 = 2_000_000_000;

/// What a thread is given.
pub(crate) struct Share {
    pub(crate) scenario: Scenario,
    pub(crate) address: SocketAddr,
    pub(crate) connections: usize,
    pub(crate) mix: Mix,
    /// None in a closed loop.
    pub(crate) arrivals: Option<Arrivals>,
    /// The zero of the run's clock, in whose nanoseconds all times are.
    pub(crate) clock: Instant,
}

/// The state of one thread. Its tasks share it.
pub(crate) struct Worker {
    pub(crate) address: SocketAddr,
    scenario: Scenario,
    clock: Instant,
    pub(crate) timeout_ns: u64,
    pub(crate) keep_alive: bool,
    pub(crate) closed_loop: bool,
    /// Clients have their own addresses.
    addressed: bool,
    pub(crate) slots: Vec<Slot>,
    mix: RefCell<Mix>,
    arrivals: RefCell<Option<Arrivals>>,
    /// When the next request is due; `NEVER` before the start and after the last.
    pub(crate) next_due: Cell<u64>,
    start: Cell<u64>,
    /// Requests due before this are not measured.
    pub(crate) measure_from: Cell<u64>,
    /// A closed loop sends nothing from here on; 0 before the start.
    pub(crate) end: Cell<u64>,
    idle: RefCell<Idle>,
    queue: RefCell<VecDeque<Job>>,
    outbox: RefCell<Vec<u8>>,
    pub(crate) inbox: RefCell<Vec<u8>>,
    pub(crate) record: RefCell<Record>,
    /// Requests that are due and have neither an answer nor failed.
    pub(crate) outstanding: Cell<usize>,
    /// All answers, measured or not.
    pub(crate) answers: Cell<u64>,
    /// Connections that are made.
    open: Cell<usize>,
    /// Why the last connection could not be made, if none was made since.
    last_fault: Cell<Fault>,
    /// Slots that have tried to connect, or need not before their first request.
    pub(crate) tried: Cell<usize>,
}

impl Worker {
    pub(crate) fn new(share: Share) -> Self {
        let Share { scenario, address, connections, mix, arrivals, clock } = share;
        let addressed = mix.client_address(0).is_some();
        Self {
            address,
            clock,
            timeout_ns: scenario.timeout.as_nanos() as u64,
            keep_alive: scenario.keep_alive,
            closed_loop: matches!(scenario.load, Load::Closed),
            addressed,
            slots: (0..connections).map(|_| Slot::new()).collect(),
            mix: RefCell::new(mix),
            arrivals: RefCell::new(arrivals),
            next_due: Cell::new(NEVER),
            start: Cell::new(0),
            measure_from: Cell::new(NEVER),
            end: Cell::new(0),
            idle: RefCell::new(Idle::new(connections, addressed)),
            queue: RefCell::new(VecDeque::with_capacity(1024)),
            outbox: RefCell::new(Vec::with_capacity(4096)),
            inbox: RefCell::new(vec![0; INBOX_BYTES]),
            record: RefCell::new(Record::new(scenario.classes().len())),
            outstanding: Cell::new(0),
            answers: Cell::new(0),
            open: Cell::new(0),
            last_fault: Cell::new(Fault::NoConnection),
            tried: Cell::new(0),
            scenario,
        }
    }

    #[inline]
    pub(crate) fn now(&self) -> u64 {
        self.clock.elapsed().as_nanos() as u64
    }

    /// Connections are made when a request needs them, not before.
    pub(crate) fn is_lazy(&self) -> bool {
        !self.keep_alive || self.addressed
    }

    /// Begins the run, its clock's zero at `start`.
    pub(crate) fn begin(&self, start: u64) {
        let warmed_up = start + self.scenario.warmup.as_nanos() as u64;
        self.start.set(start);
        self.measure_from.set(warmed_up);
        self.end.set(warmed_up + self.scenario.duration.as_nanos() as u64);
        self.record.borrow_mut().timeline.begin(warmed_up);
        self.schedule_next();
        if self.closed_loop {
            // Not as long as there are some: a thread that gets here after a short run's end puts them back.
            let idle: Vec<usize> = std::iter::from_fn(|| self.take_idle(None)).collect();
            idle.into_iter().for_each(|id| self.free(id, self.now()));
        }
    }

    /// Nothing becomes due any more.
    pub(crate) fn stop(&self) {
        self.next_due.set(NEVER);
        self.arrivals.borrow_mut().take();
        self.end.set(0);
    }

    /// What stays unfinished counts as never having been due.
    pub(crate) fn abandon(&self) {
        let waiting = self.queue.borrow_mut().drain(..).collect::<Vec<_>>();
        let waiting = waiting.into_iter().chain(self.slots.iter().filter_map(|slot| slot.job.take()));
        let waiting = waiting.map(|job| (job, false));
        let sent = self.slots.iter().filter_map(|slot| slot.exchange.take()).map(|exchange| (exchange.job, true));
        for (job, sent) in waiting.chain(sent).filter(|(job, _)| self.is_measured(job)) {
            self.record.borrow_mut().abandoned(job.due, sent);
        }
        self.outstanding.set(0);
    }

    /// Hands out what is due.
    #[inline]
    pub(crate) fn pump(&self, mut now: u64) {
        let mut handed = 0;
        while self.next_due.get() <= now && handed < BATCH_MAX {
            let job = Job { due: self.next_due.get(), pick: self.mix.borrow_mut().pick() };
            self.schedule_next();
            self.is_due(&job, now);
            match self.take_idle(Some(&job)) {
                Some(id) => self.start(id, job, now),
                None => self.enqueue(job),
            }
            now = self.now();
            handed += 1;
        }
    }

    fn schedule_next(&self) {
        let next = self.arrivals.borrow_mut().as_mut().and_then(Arrivals::next);
        self.next_due.set(next.map_or(NEVER, |after| self.start.get() + after));
    }

    #[inline]
    fn is_due(&self, job: &Job, now: u64) {
        self.outstanding.set(self.outstanding.get() + 1);
        if self.is_measured(job) {
            self.record.borrow_mut().due(job.due, now);
        }
    }

    #[inline]
    fn is_measured(&self, job: &Job) -> bool {
        job.due >= self.measure_from.get()
    }

    #[inline]
    fn take_idle(&self, job: Option<&Job>) -> Option<usize> {
        let address = job.and_then(|job| self.address_of(job));
        let mut idle = self.idle.borrow_mut();
        match address {
            None => idle.take(),
            Some(address) => idle.take_for(address),
        }
    }

    /// The address that a request has to come from.
    #[inline]
    pub(crate) fn address_of(&self, job: &Job) -> Option<std::net::Ipv4Addr> {
        if self.addressed { self.mix.borrow().client_address(job.pick.client) } else { None }
    }

    fn enqueue(&self, job: Job) {
        if self.queue.borrow().len() >= QUEUE_MAX {
            return self.fail(&job, Fault::NoConnection);
        }
        self.queue.borrow_mut().push_back(job);
    }

    /// The slot may carry a request: the one that waits for the longest time, in a closed loop its next; otherwise it
    /// is idle.
    #[inline]
    pub(crate) fn free(&self, id: usize, now: u64) {
        self.expire(now);
        let waiting = self.queue.borrow_mut().pop_front();
        if let Some(job) = waiting {
            return self.start(id, job, now);
        }
        if let Some(job) = self.next_of_loop(id, now) {
            return self.start(id, job, now);
        }
        let slot = &self.slots[id];
        slot.deadline.set(NEVER);
        self.idle.borrow_mut().put(id, slot.address.get());
    }

    /// In a closed loop, the slot's next request. A slot stays with its client where clients have addresses.
    #[inline]
    fn next_of_loop(&self, id: usize, now: u64) -> Option<Job> {
        if !self.closed_loop || now >= self.end.get() {
            return None;
        }
        let mut pick = self.mix.borrow_mut().pick();
        if self.addressed {
            let client = &self.slots[id].client;
            pick.client = client.get().unwrap_or(pick.client);
            client.set(Some(pick.client));
        }
        let job = Job { due: now, pick };
        self.is_due(&job, now);
        Some(job)
    }

    /// Sends a request on a slot that is not idle any more, or leaves it there until the slot has its connection.
    #[inline]
    fn start(&self, id: usize, job: Job, now: u64) {
        let slot = &self.slots[id];
        let sock = slot.sock.borrow();
        match &*sock {
            Some(sock) if !self.addressed || slot.address.get() == self.address_of(&job) => {
                self.send(slot, sock, job, now);
            }
            // Another client's: it is closed, its task sees that and connects again.
            Some(sock) => {
                slot.job.set(Some(job));
                sock.shutdown(Shutdown::Both);
            }
            None => {
                slot.job.set(Some(job));
                slot.wake();
            }
        }
    }

    fn send(&self, slot: &Slot, sock: &ringway_io::Sock, job: Job, now: u64) {
        let mut out = self.outbox.borrow_mut();
        out.clear();
        let issued = self.mix.borrow_mut().write_picked(job.pick, &mut out);
        slot.carried.set(true);
        slot.reader.borrow_mut().reset();
        slot.exchange.set(Some(Exchange { job, sent: now, to_head: issued.method_is_head }));
        slot.deadline.set(job.due.saturating_add(self.timeout_ns));
        if self.is_measured(&job) {
            let mut record = self.record.borrow_mut();
            record.counts.sent += 1;
            record.counts.bytes_sent += out.len() as u64;
        }
        match sock.send(&out, false) {
            Ok(sent) if sent == out.len() => {}
            // The kernel's buffer is full; the rest follows by itself.
            Ok(sent) => {
                slot.sending.set(true);
                connection::send_rest(sock.clone(), out[sent..].to_vec(), Rc::clone(&slot.sending));
            }
            Err(error) => {
                slot.exchange.take();
                self.fail(&job, Fault::of_transfer(&error));
                sock.shutdown(Shutdown::Both);
            }
        }
    }

    /// The answer on a slot is whole. Whether the connection goes on.
    #[inline]
    pub(crate) fn answered(&self, id: usize, status: u16, reusable: bool) -> bool {
        let slot = &self.slots[id];
        let Some(exchange) = slot.exchange.take() else { return false };
        let now = self.now();
        let Exchange { job, sent, .. } = exchange;
        self.outstanding.set(self.outstanding.get() - 1);
        self.answers.set(self.answers.get() + 1);
        if self.is_measured(&job) {
            let class = job.pick.class;
            let expected = self.scenario.classes()[class].expects.contains(status);
            self.record.borrow_mut().answered(Answer { class, status, expected, due: job.due, sent, done: now });
        }
        let goes_on = reusable && self.keep_alive && !slot.sending.get();
        if goes_on {
            self.free(id, now);
        }
        self.pump(now);
        goes_on
    }

    #[inline]
    pub(crate) fn received(&self, exchange: &Exchange, bytes: usize) {
        if self.is_measured(&exchange.job) {
            self.record.borrow_mut().counts.bytes_received += bytes as u64;
        }
    }

    pub(crate) fn fail(&self, job: &Job, fault: Fault) {
        self.outstanding.set(self.outstanding.get() - 1);
        if self.is_measured(job) {
            self.record.borrow_mut().failed(job.pick.class, job.due, fault);
        }
    }

    /// A slot has its connection.
    pub(crate) fn opened(&self, id: usize) {
        let slot = &self.slots[id];
        self.open.set(self.open.get() + 1);
        self.record.borrow_mut().counts.connections_opened += 1;
        self.last_fault.set(Fault::NoConnection);
        slot.carried.set(false);
        slot.deadline.set(NEVER);
        match slot.job.take() {
            Some(job) => self.start(id, job, self.now()),
            None => self.free(id, self.now()),
        }
    }

    /// A slot's connection has ended.
    pub(crate) fn closed(&self, id: usize) {
        let slot = &self.slots[id];
        self.idle.borrow_mut().remove(id);
        self.open.set(self.open.get() - 1);
        slot.deadline.set(NEVER);
        slot.expired.set(false);
        slot.address.set(None);
        if let Some(sock) = slot.sock.take()
            && slot.sending.replace(false)
        {
            // Ends the task that still sends, so that it says nothing about the next connection.
            sock.shutdown(Shutdown::Both);
        }
    }

    /// A slot's connection was not made. What waits for it has failed, and if no connection is left, everything that
    /// waits has; but where each request makes its own, the others are still to try.
    pub(crate) fn not_connected(&self, id: usize, fault: Fault) {
        let slot = &self.slots[id];
        slot.sock.take();
        slot.deadline.set(NEVER);
        slot.expired.set(false);
        slot.address.set(None);
        self.record.borrow_mut().connects_failed += 1;
        self.last_fault.set(fault);
        // In a closed loop each slot wants to send, always.
        let own = slot.job.take().or_else(|| self.next_of_loop(id, self.now()));
        if let Some(job) = own {
            self.fail(&job, fault);
        }
        while self.open.get() == 0 && !self.is_lazy() {
            let Some(job) = self.queue.borrow_mut().pop_front() else { break };
            self.fail(&job, fault);
        }
    }

    /// Since the thread began.
    pub(crate) fn tokens_signed(&self) -> u64 {
        self.mix.borrow().tokens_signed()
    }

    /// Acts on what has passed its time.
    pub(crate) fn sweep(&self, now: u64) {
        for slot in self.slots.iter().filter(|slot| slot.deadline.get() <= now) {
            slot.deadline.set(NEVER);
            match &*slot.sock.borrow() {
                Some(sock) => {
                    slot.expired.set(true);
                    sock.shutdown(Shutdown::Both);
                }
                None => slot.wake(),
            }
        }
        self.expire(now);
        let closed = now.saturating_sub(self.timeout_ns).saturating_sub(CLOSE_AFTER_NS);
        self.record.borrow_mut().timeline.close_before(closed);
    }

    /// Requests that have waited for a connection for half of their time. They wait in the order in which they were
    /// due.
    ///
    /// With all of it, a target that is asked for too much would be sent only requests that have no time left: each
    /// would cost its connection, and the target would seem to do less than it can.
    #[inline]
    fn expire(&self, now: u64) {
        let has_expired = |job: &Job| job.due.saturating_add(self.timeout_ns / 2) <= now;
        while self.queue.borrow().front().is_some_and(has_expired) {
            let Some(job) = self.queue.borrow_mut().pop_front() else { break };
            // Where no connection is left, the reason is why none can be made.
            let fault = if self.open.get() == 0 { self.last_fault.get() } else { Fault::NoConnection };
            self.fail(&job, fault);
        }
    }

    /// Whether nothing more will become due.
    pub(crate) fn is_over(&self, now: u64) -> bool {
        now >= self.end.get() && self.next_due.get() == NEVER
    }

    /// How often deadlines are looked at.
    pub(crate) fn sweep_period(&self) -> Duration {
        Duration::from_nanos(self.timeout_ns / 10).clamp(Duration::from_millis(1), Duration::from_millis(50))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenario::{LoadFlags, RequestFlags};

    /// A thread's share of a run that nobody answers, without its tasks.
    fn worker(request: RequestFlags, load: LoadFlags) -> Worker {
        let scenario = Scenario::open("http://127.0.0.1:1/", &request, &load).unwrap();
        let mix = scenario.mixes().remove(0);
        let arrivals = match &scenario.load {
            Load::Open(arrivals) => Some(arrivals.clone()),
            Load::Closed => None,
        };
        let address = "127.0.0.1:1".parse().unwrap();
        Worker::new(Share { address, connections: 4, mix, arrivals, clock: Instant::now(), scenario })
    }

    #[test]
    fn a_closed_loop_that_begins_after_its_end_sends_nothing() {
        let load = LoadFlags { closed: true, duration: Some("1ms".into()), ..LoadFlags::default() };
        let worker = worker(RequestFlags::default(), load);
        (0..4).for_each(|id| worker.free(id, 0));
        while worker.now() < 2_000_000 {
            std::hint::spin_loop();
        }
        worker.begin(0);
        assert!(worker.is_over(worker.now()));
        assert_eq!((worker.outstanding.get(), worker.record.borrow().counts.due), (0, 0));
    }

    #[test]
    fn a_connection_that_fails_takes_down_only_requests_that_depend_on_it() {
        for no_keep_alive in [true, false] {
            let request = RequestFlags { no_keep_alive, ..RequestFlags::default() };
            let worker = worker(request, LoadFlags { rate: Some("1000".into()), ..LoadFlags::default() });
            worker.begin(0);
            while worker.outstanding.get() < 3 {
                worker.pump(worker.now());
            }
            let waiting = worker.outstanding.get() as u64;
            // No slot was idle; the first takes what has waited for the longest time, and cannot connect.
            worker.slots[0].job.set(worker.queue.borrow_mut().pop_front());
            worker.not_connected(0, Fault::Refused);
            let failed = if no_keep_alive { 1 } else { waiting };
            assert_eq!(worker.record.borrow().counts.failed, failed, "{no_keep_alive}");
        }
    }
}
