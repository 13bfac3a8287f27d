//! Time on a core: microseconds since the start of the process, and the wall clock for logs and headers.

use std::cell::{Cell, RefCell};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use ringway_core::timestamp::imf_fixdate;

pub(crate) struct Clock {
    base: Instant,
    /// The wall clock at `base`, in Unix microseconds; set again with each tick, so that its steps are followed.
    unix_base_us: Cell<u64>,
    /// What was read last.
    last: Cell<u64>,
    date: RefCell<Vec<u8>>,
    date_secs: Cell<u64>,
}

impl Clock {
    /// `epoch`: time zero, the same on all cores.
    pub(crate) fn new(epoch: Instant) -> Self {
        let clock = Self {
            base: epoch,
            unix_base_us: Cell::new(0),
            last: Cell::new(0),
            date: RefCell::new(Vec::with_capacity(32)),
            date_secs: Cell::new(0),
        };
        clock.tick();
        clock
    }

    /// Microseconds since the start of the process.
    #[inline]
    pub(crate) fn now(&self) -> u64 {
        let now = self.base.elapsed().as_micros() as u64;
        self.last.set(now);
        now
    }

    /// The time as it was last read on this core: for deadlines, which are swept with a precision of milliseconds, and
    /// within one turn of a task.
    #[inline]
    pub(crate) fn lately(&self) -> u64 {
        self.last.get()
    }

    #[inline]
    pub(crate) fn unix_ms(&self, at: u64) -> u64 {
        (self.unix_base_us.get() + at) / 1000
    }

    /// Reads the wall clock, and renews the `Date` when the second has changed.
    pub(crate) fn tick(&self) {
        let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        self.unix_base_us.set((unix.as_micros() as u64).saturating_sub(self.now()));
        if self.date_secs.replace(unix.as_secs()) != unix.as_secs() {
            let mut date = self.date.borrow_mut();
            date.clear();
            imf_fixdate(unix.as_secs(), &mut date);
        }
    }

    /// Appends the value of `Date`.
    #[inline]
    pub(crate) fn write_date(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.date.borrow());
    }
}

/// A duration in the unit of [`Clock::now`].
#[inline]
pub(crate) fn us(duration: Duration) -> u64 {
    duration.as_micros().min(u128::from(u64::MAX / 4)) as u64
}
