//! Threads and their loops.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::thread::JoinHandle;
use std::time::Duration;

use ringway_config::snapshot::{DriverChoice, Runtime};
use ringway_core::stats::Driver;
use ringway_io::EventLoop;

use crate::worker::{self, Shared};

/// Why the workers did not start, in one line.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("cannot make a worker's eventfd: {0}")]
    Mailbox(#[source] io::Error),
    #[error("cannot start a worker's thread: {0}")]
    Thread(#[source] io::Error),
    #[error("io_uring is not available ({0}); `driver: auto` falls back to epoll")]
    IoUring(#[source] io::Error),
    #[error("cannot make a worker's epoll loop: {0}")]
    Epoll(#[source] io::Error),
    #[error("a worker did not come up in time")]
    NotUp,
}

/// Starts a worker's thread; `up` hears when it accepts connections, or why not.
pub(crate) fn spawn(
    id: usize,
    settings: &Runtime,
    shared: Arc<Shared>,
    up: Sender<Result<(), StartError>>,
) -> io::Result<JoinHandle<usize>> {
    let core = settings.pin.then(|| core_of(id, settings)).flatten();
    let (driver, entries, busy_poll) = (settings.driver, settings.ring_entries, settings.busy_poll);
    std::thread::Builder::new().name(format!("worker-{id}")).spawn(move || {
        if let Some(core) = core
            && !core_affinity::set_for_current(core)
        {
            tracing::warn!(worker = id, core = core.id, "cannot pin the worker to its core");
        }
        // The ring belongs to the thread that makes it (SINGLE_ISSUER).
        match make_loop(id, driver, entries, busy_poll) {
            Ok(looped) => run(id, looped, shared, up),
            Err(error) => {
                let _ = up.send(Err(error));
                0
            }
        }
    })
}

fn run(id: usize, mut looped: EventLoop, shared: Arc<Shared>, up: Sender<Result<(), StartError>>) -> usize {
    let kind = if looped.is_io_uring() { Driver::IoUring } else { Driver::Epoll };
    if let Some(cell) = shared.hub.workers.workers.get(id) {
        cell.driver.set(kind as u64);
    }
    looped.block_on(worker::run(id, shared, move || drop(up.send(Ok(())))))
}

fn core_of(id: usize, settings: &Runtime) -> Option<core_affinity::CoreId> {
    let allowed = core_affinity::get_core_ids()?;
    match settings.cores.as_slice() {
        [] => allowed.get(id % allowed.len().max(1)).copied(),
        named => named.get(id % named.len()).map(|core| core_affinity::CoreId { id: *core }),
    }
}

fn make_loop(
    id: usize,
    driver: DriverChoice,
    entries: u32,
    busy_poll: Option<Duration>,
) -> Result<EventLoop, StartError> {
    if driver != DriverChoice::Epoll {
        match EventLoop::io_uring(entries) {
            Ok(looped) => return Ok(looped.busy_poll(busy_poll)),
            Err(error) if driver == DriverChoice::IoUring => return Err(StartError::IoUring(error)),
            Err(error) => tracing::warn!(worker = id, %error, "io_uring is not available: falling back to epoll"),
        }
    }
    EventLoop::epoll(entries).map_err(StartError::Epoll)
}
