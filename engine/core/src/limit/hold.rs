//! A request that waits for Redis' word.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use super::cell::Cell;

const WAITING: u64 = 0;
const REFUSED: u64 = 1;
/// The request no longer waits: it has its outcome, or its client has gone.
const GONE: u64 = 2;
/// Granted from a time on, which is added to this.
const GRANTED: u64 = 3;
const NOBODY: u64 = u64::MAX;

/// A request held for Redis' word, for at most [`HOLD_US`](super::policy::HOLD_US) and
/// [`WAIT_US_MAX`](super::policy::WAIT_US_MAX). Who drops it takes no part any more; what it was granted is spent.
#[derive(Debug)]
pub struct Held(Arc<Hold>);

/// Whom to wake: the numbers are those given to [`Held::wake`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Wake {
    pub worker: u32,
    pub ticket: u32,
}

#[derive(Debug)]
pub(super) struct Hold {
    pub(super) cell: Arc<Cell>,
    pub(super) cost: u32,
    pub(super) since_us: u64,
    state: AtomicU64,
    wake: AtomicU64,
    /// How many there are, of all cells.
    count: Arc<AtomicUsize>,
}

/// Where a held request stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    Waiting,
    GrantedFrom(u64),
    Refused,
    Gone,
}

impl Held {
    pub(super) fn new(hold: Arc<Hold>) -> Self {
        Self(hold)
    }

    pub(super) fn hold(&self) -> &Hold {
        &self.0
    }

    /// Says whom to wake once there is an outcome. It may have come before: ask for it after this, before waiting.
    pub fn wake(&self, wake: Wake) {
        self.0.wake.store((u64::from(wake.worker) << 32) | u64::from(wake.ticket), Ordering::SeqCst);
    }

    /// Since when the request is held, on the clock of `check`, in microseconds.
    pub fn since_us(&self) -> u64 {
        self.0.since_us
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.0.settle(GONE);
    }
}

impl Hold {
    /// `None` where `count_max` are held already.
    pub(super) fn new(
        cell: &Arc<Cell>,
        cost: u32,
        since_us: u64,
        count: &Arc<AtomicUsize>,
        count_max: usize,
    ) -> Option<Arc<Self>> {
        count.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| (n < count_max).then(|| n + 1)).ok()?;
        Some(Arc::new(Self {
            cell: Arc::clone(cell),
            cost,
            since_us,
            state: AtomicU64::new(WAITING),
            wake: AtomicU64::new(NOBODY),
            count: Arc::clone(count),
        }))
    }

    pub(super) fn standing(&self) -> Standing {
        match self.state.load(Ordering::SeqCst) {
            WAITING => Standing::Waiting,
            REFUSED => Standing::Refused,
            GONE => Standing::Gone,
            granted => Standing::GrantedFrom(granted - GRANTED),
        }
    }

    pub(super) fn grant(&self, from_us: u64) -> bool {
        self.settle(GRANTED.saturating_add(from_us))
    }

    pub(super) fn refuse(&self) -> bool {
        self.settle(REFUSED)
    }

    /// The request decides for itself.
    pub(super) fn leave(&self) -> bool {
        self.settle(GONE)
    }

    fn settle(&self, state: u64) -> bool {
        self.state.compare_exchange(WAITING, state, Ordering::SeqCst, Ordering::SeqCst).is_ok()
    }

    /// Whom to wake, if anybody said so yet.
    pub(super) fn who(&self) -> Option<Wake> {
        let word = self.wake.load(Ordering::SeqCst);
        (word != NOBODY).then_some(Wake { worker: (word >> 32) as u32, ticket: word as u32 })
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.count.fetch_sub(1, Ordering::Relaxed);
    }
}
