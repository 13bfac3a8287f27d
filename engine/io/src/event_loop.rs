//! The loop of one thread: io_uring, or epoll where that is not to be had.

use std::future::Future;
use std::io;

use monoio::{IoUringDriver, LegacyDriver, RuntimeBuilder};

/// One thread's loop. It belongs to the thread that makes it.
pub struct EventLoop(Runtime);

enum Runtime {
    IoUring(monoio::Runtime<IoUringDriver>),
    Epoll(monoio::Runtime<LegacyDriver>),
}

/// Runs a task on this thread's loop, beside the one that [`EventLoop::block_on`] was given.
pub fn spawn(task: impl Future<Output = ()> + 'static) {
    drop(monoio::spawn(task));
}

impl EventLoop {
    /// A ring with `entries` places, with the flags that save a fifth of the CPU (Linux 6.1 on), without them on older
    /// kernels. An error where io_uring is forbidden or missing.
    pub fn io_uring(entries: u32) -> io::Result<Self> {
        let build = |builder: io_uring::Builder| {
            RuntimeBuilder::<IoUringDriver>::new().with_entries(entries).uring_builder(builder).build()
        };
        let mut flagged = io_uring::IoUring::builder();
        flagged.setup_single_issuer().setup_coop_taskrun().setup_defer_taskrun();
        let runtime = build(flagged).or_else(|_| build(io_uring::IoUring::builder()))?;
        Ok(Self(Runtime::IoUring(runtime)))
    }

    pub fn epoll(entries: u32) -> io::Result<Self> {
        RuntimeBuilder::<LegacyDriver>::new().with_entries(entries).build().map(|runtime| Self(Runtime::Epoll(runtime)))
    }

    pub fn is_io_uring(&self) -> bool {
        matches!(self.0, Runtime::IoUring(_))
    }

    /// Runs until `future` is done.
    pub fn block_on<F: Future>(&mut self, future: F) -> F::Output {
        match &mut self.0 {
            Runtime::IoUring(runtime) => runtime.block_on(future),
            Runtime::Epoll(runtime) => runtime.block_on(future),
        }
    }
}
