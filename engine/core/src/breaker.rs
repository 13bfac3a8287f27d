//! A circuit breaker: a service, or an endpoint of one, that fails too often is left alone for a while. All cores share
//! one, through atomics.
//!
//! It is closed while calls pass. It opens when too many of those in a rolling window have failed or were slow, or when too
//! many have failed in a row; then none passes. After a while it is half-open: a few probes pass, and what becomes of them
//! closes it or opens it again.
//!
//! A call tells something only of the state that it began in: what was under way when the breaker tripped tells nothing
//! new. Each transition therefore begins a new epoch, and a [`Ticket`] holds only in its own.

mod window;

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

use self::window::Window;

/// Probes that may be allowed at a time.
pub const PROBES_MAX: u8 = 31;
/// What an open state lasts longer at most, by chance, in parts of its time: a fifth.
const JITTER_PARTS: u64 = 5;
/// The precision of the time at which an open state ends.
const TICK_US: u64 = 4_000;

/// When it opens, for how long, and how it closes again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BreakerSettings {
    /// Percent of the calls in the window that have failed, from which on it opens.
    pub error_share: Option<u8>,
    /// Calls in the window below which no share counts; 1 or more.
    pub min_requests: u32,
    /// In microseconds. What counts is the last nine to ten tenths of it.
    pub window_us: u64,
    /// Failures in a row that open it; 1 or more.
    pub consecutive_failures: Option<u32>,
    pub slow: Option<SlowCalls>,
    /// How long it stays open at least, in microseconds; up to a fifth more, at random.
    pub open_us: u64,
    /// Probes of a half-open state, 1 to [`PROBES_MAX`]: so many at a time at most, and so many that must go well.
    pub probes: u8,
}

/// Which calls are slow, and how many are too many.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SlowCalls {
    /// In microseconds, to the answer's head.
    pub from_us: u64,
    /// Percent of the calls in the window from which on the breaker opens.
    pub share: u8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum State {
    Closed = 0,
    HalfOpen = 1,
    Open = 2,
}

/// How a call went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    Good,
    /// Good, but slow.
    Slow,
    Bad,
    /// It was settled as good or slow, and went wrong later.
    BrokenOff,
}

/// A call that may be made. It is to be settled once, or given back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ticket {
    epoch: u16,
}

/// A change of state, told to the one call that made it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Transition {
    pub to: State,
    pub reason: Reason,
    /// How long it will be open, in microseconds; 0 where it is not.
    pub open_us: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    ErrorShare { failed: u64, total: u64 },
    SlowShare { slow: u64, total: u64 },
    Consecutive(u32),
    ProbeFailed,
    TimeIsUp,
    ProbesGood(u8),
}

/// What there is to be seen from outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    pub state: State,
    /// Of the calls in the window, while it is closed.
    pub counts: Counts,
    /// Until it lets probes pass, in microseconds; 0 where it is not open.
    pub left_us: u64,
}

/// Calls in a window.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    pub total: u64,
    pub failed: u64,
    pub slow: u64,
}

#[derive(Debug)]
pub struct Breaker {
    /// A [`Word`].
    word: AtomicU64,
    window: Window,
    /// Transitions to each state.
    transitions: [AtomicU64; 3],
}

/// The whole state but for the window, in 64 bits, so that one compare-and-swap changes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Word {
    state: State,
    /// Counts transitions; a ticket of 65,536 transitions ago would be taken for a new one.
    epoch: u16,
    /// Probes under way.
    taken: u8,
    /// Probes that went well.
    good: u8,
    /// Closed: failures in a row. Open: the tick at which probes may pass. Half-open: that at which the youngest of the probes
    /// under way counts no more, since a call may take forever.
    value: u64,
}

const VALUE_BITS: u32 = 36;
const PROBE_BITS: u32 = 5;
const VALUE_MAX: u64 = (1 << VALUE_BITS) - 1;
const _: () = assert!(PROBES_MAX as u64 == (1 << PROBE_BITS) - 1);
const _: () = assert!(VALUE_BITS + 2 * PROBE_BITS + 16 + 2 == 64);

impl Word {
    const CLOSED: Self = Self { state: State::Closed, epoch: 0, taken: 0, good: 0, value: 0 };

    fn pack(self) -> u64 {
        let probes = u64::from(self.taken) << PROBE_BITS | u64::from(self.good);
        let head = (self.state as u64) << 16 | u64::from(self.epoch);
        (head << (2 * PROBE_BITS) | probes) << VALUE_BITS | self.value.min(VALUE_MAX)
    }

    fn unpack(word: u64) -> Self {
        let probes = word >> VALUE_BITS;
        let head = probes >> (2 * PROBE_BITS);
        Self {
            state: match head >> 16 {
                0 => State::Closed,
                1 => State::HalfOpen,
                _ => State::Open,
            },
            epoch: head as u16,
            taken: (probes >> PROBE_BITS) as u8 & PROBES_MAX,
            good: probes as u8 & PROBES_MAX,
            value: word & VALUE_MAX,
        }
    }

    /// The beginning of the next epoch.
    fn next(self, state: State, value: u64) -> Self {
        Self { state, epoch: self.epoch.wrapping_add(1), taken: 0, good: 0, value }
    }
}

impl Breaker {
    /// Closed. `workers`: how many cores settle calls.
    pub fn new(workers: usize) -> Self {
        let word = AtomicU64::new(Word::CLOSED.pack());
        Self { word, window: Window::new(workers), transitions: Default::default() }
    }

    /// Whether a call may be made at `now_us`.
    ///
    /// # Errors
    /// It may not; with the microseconds until one may, 0 where that is not known.
    #[inline]
    pub fn admit(&self, settings: &BreakerSettings, now_us: u64) -> Result<(Ticket, Option<Transition>), u64> {
        let word = self.load();
        match word.state {
            State::Closed => Ok((Ticket { epoch: word.epoch }, None)),
            State::HalfOpen | State::Open => self.admit_probe(word, settings, now_us),
        }
    }

    fn admit_probe(
        &self,
        mut word: Word,
        settings: &BreakerSettings,
        now_us: u64,
    ) -> Result<(Ticket, Option<Transition>), u64> {
        let tick = now_us / TICK_US;
        // Rounded up: the probes have all of it.
        let lapses = (now_us + settings.open_us).div_ceil(TICK_US);
        loop {
            let mut transition = None;
            let next = match word.state {
                State::Closed => return Ok((Ticket { epoch: word.epoch }, None)),
                State::Open if tick < word.value => return Err(word.value * TICK_US - now_us),
                State::Open => {
                    transition = Some(Transition { to: State::HalfOpen, reason: Reason::TimeIsUp, open_us: 0 });
                    Word { taken: 1, ..word.next(State::HalfOpen, lapses) }
                }
                State::HalfOpen if word.taken + word.good < settings.probes.min(PROBES_MAX) => {
                    Word { taken: word.taken + 1, value: lapses.max(word.value), ..word }
                }
                State::HalfOpen if word.taken > 0 && tick < word.value => return Err(0),
                // Whatever became of the probes, the service is not left alone because of them.
                State::HalfOpen => {
                    let good = word.good.min(settings.probes.saturating_sub(1));
                    Word { taken: 1, good, ..word.next(State::HalfOpen, lapses) }
                }
            };
            match self.swap(word, next) {
                Ok(()) => {
                    self.count(transition);
                    return Ok((Ticket { epoch: next.epoch }, transition));
                }
                Err(now) => word = now,
            }
        }
    }

    /// Says how a call went. `worker`: the core that says so, each with its own counters. `random`: any bits.
    #[inline]
    pub fn settle(
        &self,
        worker: usize,
        settings: &BreakerSettings,
        ticket: Ticket,
        outcome: Outcome,
        now_us: u64,
        random: u64,
    ) -> Option<Transition> {
        let word = self.load();
        if word.epoch != ticket.epoch {
            return None;
        }
        let mut counts = None;
        if word.state == State::Closed {
            self.window.record(worker, settings.window_us, word.epoch, outcome, now_us);
            if outcome == Outcome::Good && word.value == 0 {
                return None;
            }
            if outcome != Outcome::Good {
                counts = Some(self.window.sum(settings.window_us, word.epoch, now_us));
            }
        }
        self.turn(word, settings, ticket, outcome, counts.unwrap_or_default(), now_us, random)
    }

    #[allow(clippy::too_many_arguments)]
    fn turn(
        &self,
        mut word: Word,
        settings: &BreakerSettings,
        ticket: Ticket,
        outcome: Outcome,
        counts: Counts,
        now_us: u64,
        random: u64,
    ) -> Option<Transition> {
        let jitter = random.checked_rem(settings.open_us / JITTER_PARTS + 1).unwrap_or_default();
        let open_us = settings.open_us + jitter;
        let until = (now_us + open_us).div_ceil(TICK_US);
        loop {
            if word.epoch != ticket.epoch {
                return None;
            }
            let opens = |reason| {
                let transition = Transition { to: State::Open, reason, open_us };
                (word.next(State::Open, until), Some(transition))
            };
            let (next, transition) = match (word.state, outcome) {
                (State::Open, _) => return None,
                (State::Closed, _) => {
                    let in_a_row = match outcome {
                        Outcome::Good | Outcome::Slow => 0,
                        Outcome::Bad => (word.value + 1).min(u64::from(u32::MAX)),
                        Outcome::BrokenOff => word.value,
                    };
                    match tripped(settings, outcome, in_a_row as u32, counts) {
                        Some(reason) => opens(reason),
                        None if in_a_row == word.value => return None,
                        None => (Word { value: in_a_row, ..word }, None),
                    }
                }
                (State::HalfOpen, Outcome::Good) => {
                    let good = word.good.saturating_add(1);
                    if good >= settings.probes.min(PROBES_MAX) {
                        let reason = Reason::ProbesGood(good);
                        let transition = Transition { to: State::Closed, reason, open_us: 0 };
                        (word.next(State::Closed, 0), Some(transition))
                    } else {
                        (Word { good, taken: word.taken.saturating_sub(1), ..word }, None)
                    }
                }
                (State::HalfOpen, Outcome::Slow | Outcome::Bad | Outcome::BrokenOff) => opens(Reason::ProbeFailed),
            };
            match self.swap(word, next) {
                Ok(()) => {
                    self.count(transition);
                    return transition;
                }
                Err(now) => word = now,
            }
        }
    }

    /// The call ended without a word on the service, its client gone for instance: another may probe in its place.
    pub fn give_back(&self, ticket: Ticket) {
        let mut word = self.load();
        while word.epoch == ticket.epoch && word.state == State::HalfOpen {
            match self.swap(word, Word { taken: word.taken.saturating_sub(1), ..word }) {
                Ok(()) => return,
                Err(now) => word = now,
            }
        }
    }

    pub fn state(&self) -> State {
        self.load().state
    }

    pub fn seen(&self, settings: &BreakerSettings, now_us: u64) -> Seen {
        let word = self.load();
        let mut seen = Seen { state: word.state, counts: Counts::default(), left_us: 0 };
        match word.state {
            State::Closed => seen.counts = self.window.sum(settings.window_us, word.epoch, now_us),
            State::Open => seen.left_us = (word.value * TICK_US).saturating_sub(now_us),
            State::HalfOpen => {}
        }
        seen
    }

    /// Transitions to a state so far.
    pub fn transitions(&self, to: State) -> u64 {
        self.transitions.get(to as usize).map_or(0, |counter| counter.load(Ordering::Relaxed))
    }

    #[inline]
    fn load(&self) -> Word {
        Word::unpack(self.word.load(Ordering::Acquire))
    }

    fn swap(&self, old: Word, new: Word) -> Result<(), Word> {
        let swapped = self.word.compare_exchange(old.pack(), new.pack(), Ordering::AcqRel, Ordering::Acquire);
        swapped.map(|_| ()).map_err(Word::unpack)
    }

    fn count(&self, transition: Option<Transition>) {
        if let Some(counter) = transition.and_then(|transition| self.transitions.get(transition.to as usize)) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Why it opens now, if it does. Only a call that was not good has it open.
fn tripped(settings: &BreakerSettings, outcome: Outcome, in_a_row: u32, counts: Counts) -> Option<Reason> {
    let Counts { total, failed, slow } = counts;
    let reaches = |part: u64, share: u8| part * 100 >= total * u64::from(share);
    let is_enough = total >= u64::from(settings.min_requests.max(1));
    match outcome {
        Outcome::Good => None,
        Outcome::Slow => {
            let limit = settings.slow.filter(|limit| is_enough && reaches(slow, limit.share));
            limit.map(|_| Reason::SlowShare { slow, total })
        }
        Outcome::Bad if settings.consecutive_failures.is_some_and(|max| in_a_row >= max.max(1)) => {
            Some(Reason::Consecutive(in_a_row))
        }
        Outcome::Bad | Outcome::BrokenOff => {
            let share = settings.error_share.filter(|share| is_enough && reaches(failed, *share));
            share.map(|_| Reason::ErrorShare { failed, total })
        }
    }
}

/// Whole seconds for `Retry-After`: rounded up, at least 1, and up to a tenth and a second more, at random, so that
/// clients do not come back together.
pub fn retry_after_secs(left_us: u64, random: u64) -> u32 {
    let secs = left_us.div_ceil(1_000_000).clamp(1, u64::from(u32::MAX / 2));
    (secs + random % (secs / 10 + 2)) as u32
}

impl State {
    pub const ALL: [Self; 3] = [Self::Closed, Self::HalfOpen, Self::Open];

    pub const fn label(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::HalfOpen => "half_open",
            Self::Open => "open",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ErrorShare { failed, total } => write!(f, "{failed} of {total} requests failed"),
            Self::SlowShare { slow, total } => write!(f, "{slow} of {total} requests were slow"),
            Self::Consecutive(in_a_row) => write!(f, "{in_a_row} requests failed in a row"),
            Self::ProbeFailed => f.write_str("a probe failed"),
            Self::TimeIsUp => f.write_str("its time is up"),
            Self::ProbesGood(1) => f.write_str("a probe went well"),
            Self::ProbesGood(probes) => write!(f, "{probes} probes went well"),
        }
    }
}

#[cfg(test)]
mod tests;
