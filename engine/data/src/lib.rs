//! The data plane: pinned workers, each with a loop, its shard of the connections, its upstream connections and its
//! counters.
//!
//! A request's life is in [`serve`](crate) from top to bottom.
#![deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

mod accept;
mod acme;
mod affinity;
mod alarms;
mod answer;
mod audit;
mod auth_service;
mod breaker;
mod buffer;
mod bulkhead;
mod call;
mod client;
mod clock;
mod connection;
mod deadline;
mod fields;
mod forward;
mod gate;
mod gathered;
mod head_meter;
mod hedge;
mod hold;
mod http2;
mod http2_upstream;
mod io;
mod link;
mod mailbox;
mod mirror;
mod outbound;
mod pace;
mod pipe;
mod places;
mod proxy_protocol;
mod record;
mod replay;
mod request;
mod respond;
mod retry;
mod runtime;
mod serve;
mod service_head;
mod shedding;
mod split;
mod sticky;
mod stream;
mod subrequest;
mod subset;
#[cfg(test)]
mod testing;
mod time_left;
mod tls;
mod tunnel;
mod tunnel_relay;
mod upstream;
mod upstream_answer;
mod upstream_pipe;
mod upstream_request;
mod upstream_stream;
mod verdict;
mod view;
mod watch;
mod worker;

use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ringway_config::Hub;
use ringway_config::snapshot::Runtime;

use crate::mailbox::{Mailbox, PerIp};
use crate::worker::Shared;

pub use crate::runtime::StartError;
/// For the fuzz targets alone.
#[doc(hidden)]
pub use crate::tls::record as tls_record;
pub use ringway_io::bind;

/// How long a worker may take to come up.
const START: Duration = Duration::from_secs(10);

static ALLOCATIONS: OnceLock<fn() -> u64> = OnceLock::new();

/// Lets the workers report their heap allocations: `count` reads the calling thread's. Before [`Workers::start`].
pub fn set_allocation_counter(count: fn() -> u64) {
    let _ = ALLOCATIONS.set(count);
}

/// How many workers a configuration asks for: one for each core that the process may run on, unless it says a number.
pub fn workers_of(runtime: &Runtime) -> usize {
    runtime.workers.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from)).max(1)
}

/// The running workers.
pub struct Workers {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<usize>>,
}

impl Workers {
    /// Starts the workers that the hub has counters for and waits until each is up. `listeners`: for each address one
    /// socket per worker, as [`bind`] makes them.
    pub fn start(hub: Arc<Hub>, listeners: Vec<(SocketAddr, Vec<TcpListener>)>) -> Result<Self, StartError> {
        let count = hub.workers.workers.len();
        let settings = hub.published().snapshot.runtime.clone();
        let mailboxes: Result<_, _> = (0..count).map(|_| Mailbox::new()).collect();
        let shared = Arc::new(Shared {
            hub,
            mailboxes: mailboxes.map_err(StartError::Mailbox)?,
            per_ip: PerIp::new(),
            abort: AtomicBool::new(false),
            allocations: ALLOCATIONS.get().copied(),
        });
        let reached = Arc::downgrade(&shared);
        shared.hub.worker_bell.tie(Box::new(move |worker| {
            if let Some(mailbox) = reached.upgrade().as_ref().and_then(|shared| shared.mailboxes.get(worker as usize)) {
                mailbox.ring();
            }
        }));
        let (up, ups) = mpsc::channel();
        let mut workers = Self { shared, threads: Vec::with_capacity(count) };
        workers.give_listeners(listeners);
        for id in 0..count {
            let thread = runtime::spawn(id, &settings, Arc::clone(&workers.shared), up.clone());
            workers.threads.push(thread.map_err(StartError::Thread)?);
        }
        drop(up);
        for _ in 0..count {
            ups.recv_timeout(START).unwrap_or(Err(StartError::NotUp))?;
        }
        Ok(workers)
    }

    fn give_listeners(&self, listeners: Vec<(SocketAddr, Vec<TcpListener>)>) {
        for (address, sockets) in listeners {
            for (mailbox, socket) in self.shared.mailboxes.iter().zip(sockets) {
                mailbox.add_listener(address, socket);
            }
        }
    }

    /// After [`Hub::publish`]: the workers take the new snapshot, begin to accept on `added` and stop where the
    /// snapshot has no listener any more.
    pub fn reload(&self, added: Vec<(SocketAddr, Vec<TcpListener>)>) {
        self.give_listeners(added);
        self.wake();
    }

    /// After [`Hub::set_phase`]: the workers look at it at once.
    pub fn wake(&self) {
        self.shared.mailboxes.iter().for_each(Mailbox::ring);
    }

    /// Waits until every connection has ended, at most until the deadline, then ends the rest. Gives back how many
    /// were cut off. The phase is `Draining`.
    pub fn join(self, deadline: Duration) -> usize {
        let end = Instant::now() + deadline;
        while Instant::now() < end && !self.threads.iter().all(JoinHandle::is_finished) {
            std::thread::sleep(Duration::from_millis(10));
        }
        self.shared.abort.store(true, Ordering::Release);
        self.threads.into_iter().map(|thread| thread.join().unwrap_or(0)).sum()
    }
}
