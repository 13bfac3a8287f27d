//! A core's audit records on their way to the writer. None is dropped while the process lives.
//!
//! Where the writer is behind, records gather here up to a bound. Beyond it a refused request waits, its answer unsent,
//! until there is room: refusals are slower then, and requests that pass are not.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::poll_fn;
use std::task::{Poll, Waker};

use ringway_config::Hub;
use ringway_config::snapshot::AuditLog;
use ringway_core::audit_line::{Kind, Record};
use ringway_core::log_line::Formatter;
use ringway_core::log_queue::{BATCH_BYTES, BUFFER_BYTES};

use crate::connection::Connection;
use crate::request::Exchange;

/// What a core keeps when the writer is behind: 1 MiB.
const BACKLOG_BYTES_MAX: usize = 1024 * 1024;
const BACKLOG_BUFFERS_MAX: usize = BACKLOG_BYTES_MAX / BUFFER_BYTES;

pub(crate) struct Audit(RefCell<Pending>);

struct Pending {
    formatter: Formatter,
    lines: Vec<u8>,
    /// Full, and not taken by the queue yet.
    backlog: VecDeque<Vec<u8>>,
    /// Requests whose record has no room yet.
    waiting: Vec<Waker>,
}

/// Why a request was refused, besides what the exchange tells.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Refused<'a> {
    pub(crate) kind: Kind,
    /// The authenticator or the policy, by name.
    pub(crate) policy: Option<&'a str>,
    pub(crate) reason: &'a str,
    pub(crate) user: Option<&'a str>,
}

impl Audit {
    pub(crate) fn new() -> Self {
        Self(RefCell::new(Pending {
            formatter: Formatter::new(),
            lines: Vec::with_capacity(BUFFER_BYTES),
            backlog: VecDeque::with_capacity(BACKLOG_BUFFERS_MAX),
            waiting: Vec::new(),
        }))
    }

    /// Hands over what has gathered, be it little.
    pub(crate) fn flush(&self, hub: &Hub) {
        let mut pending = self.0.borrow_mut();
        if !pending.lines.is_empty() && pending.backlog.len() < BACKLOG_BUFFERS_MAX {
            pending.put_aside(hub);
        }
        pending.hand_over(hub);
        if hub.audit.has_full() {
            hub.audit.wake();
        }
    }

    /// The core ends: what the writer does not take now is lost, and said to be.
    pub(crate) fn end(&self, hub: &Hub) {
        self.flush(hub);
        let pending = self.0.borrow();
        let buffers = pending.backlog.iter().chain([&pending.lines]);
        let lost: usize = buffers.map(|lines| lines.iter().filter(|byte| **byte == b'\n').count()).sum();
        if lost > 0 {
            hub.audit.count_dropped(lost as u64);
            tracing::error!("audit log: the process ends and {lost} records could not be written");
        }
    }

    /// Takes a record, as soon as there is room for it.
    pub(crate) async fn write(&self, hub: &Hub, record: &Record<'_>) {
        poll_fn(|cx| {
            let mut pending = self.0.borrow_mut();
            if pending.backlog.len() >= BACKLOG_BUFFERS_MAX {
                pending.waiting.push(cx.waker().clone());
                return Poll::Pending;
            }
            let Pending { formatter, lines, .. } = &mut *pending;
            record.write(formatter, lines);
            if lines.len() >= BATCH_BYTES {
                pending.put_aside(hub);
                pending.hand_over(hub);
                if hub.audit.is_filling() {
                    hub.audit.wake();
                }
            }
            Poll::Ready(())
        })
        .await;
    }
}

impl Pending {
    fn put_aside(&mut self, hub: &Hub) {
        let lines = std::mem::replace(&mut self.lines, hub.audit.take_empty());
        self.backlog.push_back(lines);
    }

    /// Gives the queue what it takes, in order.
    fn hand_over(&mut self, hub: &Hub) {
        while let Some(lines) = self.backlog.pop_front() {
            if let Err(lines) = hub.audit.offer(lines) {
                self.backlog.push_front(lines);
                break;
            }
        }
        if self.backlog.len() < BACKLOG_BUFFERS_MAX {
            self.waiting.drain(..).for_each(Waker::wake);
        }
    }
}

/// Records that a request is refused. To be awaited when the answer is written, and before it is sent: no refusal leaves
/// without its record. `head`: the request's.
pub(crate) async fn audit(conn: &Connection, exchange: &Exchange, head: &[u8], refused: &Refused<'_>) {
    let worker = &conn.worker;
    if conn.view.published.snapshot.audit_log == AuditLog::Off {
        return;
    }
    let ip = worker.text_of(exchange.client_ip);
    let record = Record {
        unix_ms: worker.clock.unix_ms(exchange.started),
        request_id: exchange.id.as_bytes(),
        client_ip: &ip,
        method: exchange.method.get(head).unwrap_or(b"-"),
        path: exchange.path.get(head).unwrap_or(b"-"),
        route: conn.route(exchange).map_or("-", |route| &route.name),
        user: refused.user,
        kind: refused.kind,
        policy: refused.policy,
        reason: refused.reason,
        status: exchange.status,
    };
    worker.audit.write(&worker.hub, &record).await;
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::pin::pin;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::task::{Context, Wake};

    use super::*;
    use crate::testing::hub;

    struct Flag(AtomicBool);

    impl Wake for Flag {
        fn wake(self: Arc<Self>) {
            self.0.store(true, Ordering::Relaxed);
        }
    }

    fn record(path: &str) -> Record<'_> {
        Record {
            unix_ms: 0,
            request_id: b"id",
            client_ip: b"127.0.0.1",
            method: b"GET",
            path: path.as_bytes(),
            route: "r",
            user: None,
            kind: Kind::Authentication,
            policy: Some("main"),
            reason: "expired",
            status: 401,
        }
    }

    /// Writes a record, or says that it has to wait.
    fn try_write(audit: &Audit, hub: &Hub, number: usize) -> bool {
        let path = format!("/{number}");
        let record = record(&path);
        let waits = pin!(audit.write(hub, &record)).as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending();
        !waits
    }

    fn take(hub: &Hub, numbers: &mut Vec<usize>) {
        while let Some(lines) = hub.audit.pop() {
            for line in std::str::from_utf8(&lines).unwrap().lines() {
                let (_, rest) = line.split_once("\"path\":\"/").unwrap();
                numbers.push(rest.split('"').next().unwrap().parse().unwrap());
            }
            hub.audit.give_back(lines);
        }
    }

    #[test]
    fn beyond_the_backlog_a_record_waits_and_none_is_lost() {
        let (audit, hub) = (Audit::new(), hub());
        let mut numbers = Vec::new();
        let mut next = 0;
        for _ in 0..3 {
            let before = next;
            while try_write(&audit, &hub, next) {
                next += 1;
                audit.flush(&hub);
                assert!(next < 1_000_000, "the backlog has no bound");
            }
            assert!(next > before);
            let flag = Arc::new(Flag(AtomicBool::new(false)));
            let waker = Waker::from(Arc::clone(&flag));
            let path = format!("/{next}");
            let record = record(&path);
            let mut writing = pin!(audit.write(&hub, &record));
            assert!(writing.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
            audit.flush(&hub);
            assert!(!flag.0.load(Ordering::Relaxed), "there is no room yet");
            take(&hub, &mut numbers);
            audit.flush(&hub);
            assert!(flag.0.load(Ordering::Relaxed));
            assert!(writing.as_mut().poll(&mut Context::from_waker(&waker)).is_ready());
            next += 1;
        }
        loop {
            audit.flush(&hub);
            let before = numbers.len();
            take(&hub, &mut numbers);
            if numbers.len() == before {
                break;
            }
        }
        assert_eq!(numbers, (0..next).collect::<Vec<_>>());
        audit.end(&hub);
        assert_eq!(hub.audit.dropped_lines(), 0);
    }

    #[test]
    fn what_is_lost_at_the_end_is_counted() {
        let (audit, hub) = (Audit::new(), hub());
        let mut written = 0;
        while try_write(&audit, &hub, written) {
            written += 1;
        }
        audit.end(&hub);
        let mut numbers = Vec::new();
        take(&hub, &mut numbers);
        assert_eq!(numbers.len() as u64 + hub.audit.dropped_lines(), written as u64);
        assert!(hub.audit.dropped_lines() > 0);
    }
}
