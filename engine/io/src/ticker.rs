//! Time as a loop sees it.

use std::io;
use std::time::Duration;

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};

use crate::Sock;

/// A timer of the kernel's that the loop waits on like on a socket. With a timer of the runtime's, each wait of the loop
/// would arm one and cancel it.
pub struct Ticker(Sock);

impl Ticker {
    /// Ticks once in each `period`.
    pub fn every(period: Duration) -> io::Result<Self> {
        let ticker = Self::idle()?;
        ticker.set(period, period)?;
        Ok(ticker)
    }

    /// Does not tick until it is set.
    pub fn idle() -> io::Result<Self> {
        let timer = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK)?;
        Sock::new(timer).map(Self)
    }

    /// Ticks once, after `delay` (at least a nanosecond); forgets what was set before.
    pub fn set_once(&self, delay: Duration) -> io::Result<()> {
        self.set(delay.max(Duration::from_nanos(1)), Duration::ZERO)
    }

    /// Sleeps for `delay`, on a ticker for nothing else. Cheaper than to set it and to wait for its tick, since nobody asks
    /// how many there were.
    pub async fn sleep(&self, delay: Duration) -> io::Result<()> {
        self.set_once(delay)?;
        self.0.readable().await;
        Ok(())
    }

    fn set(&self, first: Duration, period: Duration) -> io::Result<()> {
        let [it_value, it_interval] = [first, period].map(|duration| Timespec {
            tv_sec: duration.as_secs().min(i64::MAX as u64) as i64,
            tv_nsec: i64::from(duration.subsec_nanos()),
        });
        timerfd_settime(self.0.fd(), TimerfdTimerFlags::empty(), &Itimerspec { it_interval, it_value })?;
        Ok(())
    }

    /// Waits for the next tick. Those that nobody waited for count as one.
    pub async fn tick(&self) {
        let mut count = [0; 8];
        while rustix::io::read(self.0.fd(), &mut count).is_err() {
            self.0.readable().await;
        }
    }
}
