//! A gateway's worker in this process, for targets that need more of it than a function.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use ringway_config::{Hub, Source, compile};
use ringway_core::stats::WorkerCell;
use ringway_data::{Workers, bind};

/// For what happens at once.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);
/// Runs between two looks at the buffers, whose count is told 20 times a second only.
const RUNS_BETWEEN_LOOKS: u64 = 64;

pub(crate) struct Gateway {
    pub(crate) address: SocketAddr,
    pub(crate) hub: Arc<Hub>,
    runs: AtomicU64,
    _workers: Workers,
}

impl Gateway {
    /// One worker. `more` follows the listener's section, which begins with its name and address.
    pub(crate) fn start(listener: &str, more: &str) -> Self {
        let sockets = bind(SocketAddr::from(([127, 0, 0, 1], 0)), 128, 1).expect("a port");
        let address = sockets[0].local_addr().expect("an address");
        let text = format!(
            "access_log: off\nruntime: {{ workers: 1, pin: false }}\n\
             listeners: [{{ name: web, address: \"{address}\", {listener} }}]\n{more}"
        );
        let source = Source { name: "fuzz.yaml".into(), text };
        let snapshot = compile(&[source], &|_| None).unwrap_or_else(|errors| panic!("{errors}"));
        let hub = Hub::new(snapshot, 1);
        let workers = Workers::start(Arc::clone(&hub), vec![(address, sockets)]).expect("a worker");
        Self { address, hub, runs: AtomicU64::new(0), _workers: workers }
    }

    pub(crate) fn cell(&self) -> &WorkerCell {
        &self.hub.workers.workers[0]
    }

    /// When its peers have gone nothing of them stays.
    pub(crate) fn expect_idle(&self) {
        let cell = self.cell();
        let published = self.hub.published();
        let held = || {
            let endpoints = published.endpoints.iter().flatten();
            let of_endpoints: u64 = endpoints.map(|endpoint| endpoint.open() + endpoint.in_flight()).sum();
            [&cell.connections, &cell.requests, &cell.http2_connections, &cell.tunnels].map(|count| count.get())
                == [0; 4]
                && of_endpoints == 0
        };
        eventually("connections, requests or streams stay", held);
        if self.runs.fetch_add(1, Ordering::AcqRel).is_multiple_of(RUNS_BETWEEN_LOOKS) {
            eventually("buffers stay", || cell.buffers_in_use.get() == 0);
        }
        assert_eq!(cell.panics.get(), 0, "a task has panicked");
    }
}

#[track_caller]
pub(crate) fn eventually(what: &str, holds: impl Fn() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < end, "{what}");
        thread::sleep(Duration::from_micros(50));
    }
}
