//! What is known of the endpoints of a service: whether checks find them well, whether they were ejected for how they
//! answered, and what an operator says of them. All cores share it through atomics.
//!
//! A core looks at one number, the epoch of the service; only when that has changed it looks at the endpoints themselves
//! and chooses anew among whom it balances ([`choose`](crate::members::choose)).

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::ewma::PeakEwma;

/// Checks find it unwell.
const UNHEALTHY: u64 = 1;
/// Ejected, until the time that stands above the flags.
const EJECTED: u64 = 2;
/// An operator has taken it out.
const DRAINED: u64 = 4;
/// No longer in the configuration.
const REMOVED: u64 = 8;
/// Below the time at which an ejection ends, in microseconds.
const FLAG_BITS: u32 = 8;
const FLAGS: u64 = (1 << FLAG_BITS) - 1;

/// Parts of a streak: failures in a row, and failed connects in a row above them.
const FAILURES_MAX: u64 = (1 << CONNECTS_AT) - 1;
const CONNECTS_AT: u32 = 24;
/// It has just been let back in: the next failure is enough.
const PROBATION: u64 = 1 << 63;

/// An operator has not said what an endpoint weighs.
const AS_CONFIGURED: u32 = u32::MAX;

/// What the endpoints of a service share.
#[derive(Debug)]
pub struct Fleet {
    pub service: Arc<str>,
    epoch: AtomicU64,
    /// How many may be ejected at a time, and below it how many are.
    ejections: AtomicU64,
}

/// An endpoint of a service.
#[derive(Debug)]
pub struct EndpointHealth {
    pub endpoint: Arc<str>,
    fleet: Arc<Fleet>,
    state: AtomicU64,
    /// Percent of its weight that it gets, 1 to 100: less after a recovery.
    ramp: AtomicU32,
    weight: AtomicU32,
    streak: AtomicU64,
    /// How often it was ejected of late: ejections last longer with each.
    repeats: AtomicU32,
    /// Why it was ejected last: an index of [`Reason::ALL`].
    reason: AtomicU32,
    ejections: [AtomicU64; Reason::ALL.len()],
    checks: [AtomicU64; 2],
    /// What was wrong when it was last checked. Locked by the control plane only.
    complaint: Mutex<String>,
    pub latency: PeakEwma,
}

/// Why an endpoint is ejected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Reason {
    /// Connections to it failed, several in a row.
    Connect,
    /// Requests failed, several in a row.
    Failures,
    /// It fails more often than the others.
    SuccessRate,
    /// It is slower than the others.
    Latency,
}

impl Reason {
    pub const ALL: [Self; 4] = [Self::Connect, Self::Failures, Self::SuccessRate, Self::Latency];

    /// The label in `gateway_outlier_ejections_total`.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Connect => "connect_failures",
            Self::Failures => "failures",
            Self::SuccessRate => "success_rate",
            Self::Latency => "latency",
        }
    }
}

impl Fleet {
    pub fn new(service: Arc<str>) -> Arc<Self> {
        Arc::new(Self { service, epoch: AtomicU64::new(0), ejections: AtomicU64::new(0) })
    }

    /// Changes whenever something of an endpoint does that matters for the balance. Read before the endpoints are.
    #[inline]
    pub fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Acquire)
    }

    fn changed(&self) {
        self.epoch.fetch_add(1, Ordering::AcqRel);
    }

    /// How many endpoints are ejected now.
    pub fn ejected(&self) -> u32 {
        self.ejections.load(Ordering::Acquire) as u32
    }

    /// How many may be ejected at a time.
    pub fn cap(&self) -> u32 {
        (self.ejections.load(Ordering::Acquire) >> 32) as u32
    }

    /// Those above a lower cap stay ejected until somebody lets them back in ([`Fleet::surplus`]).
    pub fn set_cap(&self, cap: u32) {
        let set = |known: u64| Some(u64::from(cap) << 32 | u64::from(known as u32));
        let _ = self.ejections.fetch_update(Ordering::AcqRel, Ordering::Acquire, set);
    }

    /// How many more are ejected than may be, after the cap was lowered.
    pub fn surplus(&self) -> u32 {
        let known = self.ejections.load(Ordering::Acquire);
        (known as u32).saturating_sub((known >> 32) as u32)
    }

    /// Takes a place among those that may be ejected, if one is free.
    fn reserve(&self) -> bool {
        let taken = |known: u64| ((known as u32) < (known >> 32) as u32).then(|| known + 1);
        self.ejections.fetch_update(Ordering::AcqRel, Ordering::Acquire, taken).is_ok()
    }

    fn release(&self) {
        self.ejections.fetch_sub(1, Ordering::AcqRel);
    }
}

impl EndpointHealth {
    /// Healthy, as long as nothing else is known.
    pub fn new(fleet: &Arc<Fleet>, endpoint: Arc<str>) -> Self {
        Self {
            endpoint,
            fleet: Arc::clone(fleet),
            state: AtomicU64::new(0),
            ramp: AtomicU32::new(100),
            weight: AtomicU32::new(AS_CONFIGURED),
            streak: AtomicU64::new(0),
            repeats: AtomicU32::new(0),
            reason: AtomicU32::new(0),
            ejections: Default::default(),
            checks: Default::default(),
            complaint: Mutex::default(),
            latency: PeakEwma::default(),
        }
    }

    pub fn fleet(&self) -> &Arc<Fleet> {
        &self.fleet
    }

    /// Neither unwell nor ejected; what an operator says is another matter.
    pub fn is_usable(&self) -> bool {
        self.state.load(Ordering::Relaxed) & (UNHEALTHY | EJECTED) == 0
    }

    /// What checks say.
    pub fn is_healthy(&self) -> bool {
        self.state.load(Ordering::Relaxed) & UNHEALTHY == 0
    }

    pub fn is_drained(&self) -> bool {
        self.state.load(Ordering::Relaxed) & DRAINED != 0
    }

    /// Until when it is ejected, in microseconds, and why.
    pub fn ejection(&self) -> Option<(u64, Reason)> {
        let state = self.state.load(Ordering::Acquire);
        let reason = Reason::ALL.get(self.reason.load(Ordering::Relaxed) as usize).copied();
        (state & EJECTED != 0).then_some((state >> FLAG_BITS, reason.unwrap_or(Reason::Failures)))
    }

    /// What it weighs in hundredths, 0 where it must not get requests at all.
    pub fn weight(&self, configured: u32) -> u32 {
        if self.is_drained() {
            return 0;
        }
        let weight = self.own_weight().unwrap_or(configured);
        weight.saturating_mul(self.ramp.load(Ordering::Relaxed))
    }

    /// The same once it has recovered.
    pub fn full_weight(&self, configured: u32) -> u32 {
        if self.is_drained() { 0 } else { self.own_weight().unwrap_or(configured).saturating_mul(100) }
    }

    /// What an operator has said that it weighs.
    pub fn own_weight(&self) -> Option<u32> {
        Some(self.weight.load(Ordering::Relaxed)).filter(|weight| *weight != AS_CONFIGURED)
    }

    /// `None`: as configured.
    pub fn set_weight(&self, weight: Option<u32>) {
        self.weight.store(weight.unwrap_or(AS_CONFIGURED), Ordering::Relaxed);
        self.fleet.changed();
    }

    /// Whether that is new.
    pub fn set_drained(&self, drained: bool) -> bool {
        self.set_flag(DRAINED, drained)
    }

    /// What checks say from now on; whether that is new.
    pub fn set_healthy(&self, healthy: bool) -> bool {
        self.set_flag(UNHEALTHY, !healthy)
    }

    fn set_flag(&self, flag: u64, on: bool) -> bool {
        let before = match on {
            true => self.state.fetch_or(flag, Ordering::AcqRel),
            false => self.state.fetch_and(!flag, Ordering::AcqRel),
        };
        let is_new = (before & flag != 0) != on;
        if is_new {
            self.fleet.changed();
        }
        is_new
    }

    /// Percent of its weight that it gets from now on, 1 to 100.
    pub fn set_ramp(&self, percent: u32) {
        let percent = percent.clamp(1, 100);
        if self.ramp.swap(percent, Ordering::Relaxed) != percent {
            self.fleet.changed();
        }
    }

    pub fn ramp(&self) -> u32 {
        self.ramp.load(Ordering::Relaxed)
    }

    /// Counts a check. Its complaint is kept for those who ask.
    pub fn count_check(&self, result: Result<(), String>) {
        let [passed, failed] = &self.checks;
        let counter = if result.is_ok() { passed } else { failed };
        counter.fetch_add(1, Ordering::Relaxed);
        *self.complaint.lock().unwrap_or_else(PoisonError::into_inner) = result.err().unwrap_or_default();
    }

    /// Checks that it passed, and that it failed.
    pub fn checks(&self) -> [u64; 2] {
        self.checks.each_ref().map(|counter| counter.load(Ordering::Relaxed))
    }

    /// What was wrong when it was last checked; empty where nothing was.
    pub fn complaint(&self) -> String {
        self.complaint.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// By reason.
    pub fn ejections(&self) -> impl Iterator<Item = (&'static str, u64)> {
        Reason::ALL.iter().zip(&self.ejections).map(|(reason, count)| (reason.label(), count.load(Ordering::Relaxed)))
    }

    /// An answer that is no failure.
    #[inline]
    pub fn succeeded(&self) {
        if self.streak.load(Ordering::Relaxed) != 0 {
            self.streak.store(0, Ordering::Relaxed);
        }
    }

    /// One more failure. Gives back how many there are in a row, how many of them are failed connects, and whether it had
    /// just been let back in.
    pub(crate) fn failed(&self, is_connect: bool) -> (u32, u32, bool) {
        let next = |streak: u64| {
            let (failures, connects) = (streak & FAILURES_MAX, streak >> CONNECTS_AT & FAILURES_MAX);
            let connects = if is_connect { (connects + 1).min(FAILURES_MAX) } else { 0 };
            streak & PROBATION | connects << CONNECTS_AT | (failures + 1).min(FAILURES_MAX)
        };
        let before = self.streak.fetch_update(Ordering::AcqRel, Ordering::Acquire, |streak| Some(next(streak)));
        let after = next(before.unwrap_or_else(|streak| streak));
        let count = |shift| (after >> shift & FAILURES_MAX) as u32;
        (count(0), count(CONNECTS_AT), after & PROBATION != 0)
    }

    /// Takes it out until a time on the cores' clock, unless as many as may be are out already. `time_us`: how long, by how
    /// often that has happened of late, this time included. `None`: nothing has changed.
    pub(crate) fn eject(&self, reason: Reason, now_us: u64, time_us: impl Fn(u32) -> u64) -> Option<u64> {
        if self.state.load(Ordering::Acquire) & (EJECTED | REMOVED) != 0 || !self.fleet.reserve() {
            return None;
        }
        let repeats = self.repeats.load(Ordering::Relaxed).saturating_add(1);
        let time_us = time_us(repeats);
        let until = (now_us.saturating_add(time_us) << FLAG_BITS) & !FLAGS;
        let eject = |state: u64| (state & (EJECTED | REMOVED) == 0).then_some(state & FLAGS | EJECTED | until);
        if self.state.fetch_update(Ordering::AcqRel, Ordering::Acquire, eject).is_err() {
            self.fleet.release();
            return None;
        }
        self.repeats.store(repeats, Ordering::Relaxed);
        self.reason.store(reason as u32, Ordering::Relaxed);
        if let Some(count) = self.ejections.get(reason as usize) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        self.fleet.changed();
        Some(time_us)
    }

    /// Lets it back in, on probation. Whether it was out.
    pub fn reinstate(&self) -> bool {
        if self.state.load(Ordering::Acquire) & EJECTED == 0 {
            return false;
        }
        self.streak.store(PROBATION, Ordering::Relaxed);
        let was_out = self.take_ejection(0);
        if was_out {
            self.fleet.changed();
        }
        was_out
    }

    /// Forgets one of its ejections, since it has been well for a while.
    pub fn forgive(&self) {
        let less = |repeats: u32| repeats.checked_sub(1);
        let _ = self.repeats.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
    }

    /// It is no longer in the configuration: it takes no place among the ejected.
    pub fn remove(&self) {
        self.take_ejection(REMOVED);
    }

    fn take_ejection(&self, flags: u64) -> bool {
        let without = |state: u64| Some(state & (FLAGS & !EJECTED) | flags);
        let before = self.state.fetch_update(Ordering::AcqRel, Ordering::Acquire, without);
        let was_out = before.is_ok_and(|state| state & EJECTED != 0);
        if was_out {
            self.fleet.release();
        }
        was_out
    }
}

/// What the results of active checks make of an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Checked {
    is_healthy: bool,
    /// Results in a row that say the contrary.
    contrary: u32,
}

impl Checked {
    pub fn new(is_healthy: bool) -> Self {
        Self { is_healthy, contrary: 0 }
    }

    /// Takes one more result; `Some` where it has made a difference. It takes `unhealthy` failures in a row to become
    /// unwell, and `healthy` good checks in a row to become well again; each 1 or more.
    pub fn judge(&mut self, passed: bool, unhealthy: u32, healthy: u32) -> Option<bool> {
        if passed == self.is_healthy {
            self.contrary = 0;
            return None;
        }
        self.contrary += 1;
        let needed = if passed { healthy } else { unhealthy };
        if self.contrary < needed {
            return None;
        }
        *self = Self::new(passed);
        Some(passed)
    }
}

#[cfg(test)]
mod tests;
