//! What an overloaded core refuses, so that the rest is served in time: the less important first.
//!
//! A core is overloaded when what is ready waits for its turn for longer than a target, or when it is busier than it should
//! be, for an interval without a pause, as CoDel has it. A controller (PI, in the logarithm of the share that is admitted)
//! then finds the share with which the wait stays at the target: the work that is left is as much as the core can do.
//! What is refused is taken from the classes in order: a class loses something only when those below have lost all.
//!
//! Each core has one of its own, since each has a queue of its own. It sees nothing but what it is told, a few times a second.

/// How much a request matters, from the least.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(usize)]
pub enum Criticality {
    Low,
    Normal,
    Critical,
}

const CLASSES: usize = 3;

/// What overload is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OverloadSettings {
    /// How long what is ready may wait, in microseconds.
    pub delay_us: Option<u64>,
    /// How busy the core may be, in percent.
    pub busy: Option<u8>,
    /// How long it must be so, in microseconds.
    pub interval_us: u64,
}

/// Why a request was shed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(usize)]
pub enum Reason {
    Delay,
    Busy,
}

/// How a core does: what it is told.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Load {
    /// How long what was ready has waited.
    pub delay_us: u64,
    /// Share of the time in which it had something to do.
    pub busy: f64,
}

/// Decides for one core.
#[derive(Debug, Default)]
pub struct Shedder {
    is_active: bool,
    /// Since when it has been overloaded, or, while it sheds, has not been.
    since_us: Option<u64>,
    told_us: u64,
    /// The natural logarithm of the share that is admitted.
    admitted: f64,
    delay_s: f64,
    reason: Option<Reason>,
    classes: [Class; CLASSES],
}

#[derive(Debug, Clone, Copy, Default)]
struct Class {
    /// Requests since it was told last; a mean of those before.
    came: u32,
    mean: f64,
    /// The share that is shed, and what is owed of it.
    shed: f64,
    owed: f64,
}

/// By how much the logarithm falls for a second of wait, and each second for one.
const PROPORTIONAL: f64 = 8.0;
const INTEGRAL: f64 = 16.0;
/// The same for the share of time that it is too busy.
const BUSY_INTEGRAL: f64 = 10.0;
/// By how much it rises each second at least while the core has time to spare, and when it has.
const RECOVERY: f64 = 1.0;
const SPARE: f64 = 0.95;
/// Longer waits count as this: a core that was stopped for a while is not overloaded by as much.
const DELAY_MAX_S: f64 = 0.25;
/// The least share that is admitted: something has to show that things are better.
const ADMITTED_MIN: f64 = 0.01;

impl Criticality {
    pub const ALL: [Self; CLASSES] = [Self::Low, Self::Normal, Self::Critical];

    pub const fn label(self) -> &'static str {
        match self {
            Self::Low => "low",
            Self::Normal => "normal",
            Self::Critical => "critical",
        }
    }

    /// By its name, in any case.
    fn of(name: &[u8]) -> Option<Self> {
        Self::ALL.into_iter().find(|known| known.label().as_bytes().eq_ignore_ascii_case(name))
    }

    /// What the request asks for itself, if it may: anybody less, who is trusted more as well.
    pub fn or_asked(self, asked: &[u8], trusted: bool) -> Self {
        match Self::of(asked) {
            Some(asked) if trusted || (asked as usize) < self as usize => asked,
            _ => self,
        }
    }
}

impl Reason {
    pub const ALL: [Self; 2] = [Self::Delay, Self::Busy];

    pub const fn label(self) -> &'static str {
        match self {
            Self::Delay => "delay",
            Self::Busy => "busy",
        }
    }
}

impl Shedder {
    /// Whether requests are to be asked about.
    pub fn is_active(&self) -> bool {
        self.is_active
    }

    /// The share of the requests that is refused now.
    pub fn refused(&self) -> f64 {
        if self.is_active { 1.0 - self.admitted.exp() } else { 0.0 }
    }

    /// How the core has done since the last time. `None`: nothing is to be shed.
    pub fn tell(&mut self, settings: Option<&OverloadSettings>, load: Load, now_us: u64) {
        let passed = now_us.saturating_sub(std::mem::replace(&mut self.told_us, now_us)) as f64 / 1e6;
        let Some(settings) = settings else {
            self.stop();
            return;
        };
        let too_late = settings.delay_us.is_some_and(|target| load.delay_us > target);
        let busy_max = settings.busy.map(|busy| f64::from(busy) / 100.0);
        let is_over = too_late || busy_max.is_some_and(|max| load.busy > max);
        if is_over == self.is_active {
            self.since_us = None;
        } else {
            let since = *self.since_us.get_or_insert(now_us);
            let is_long = now_us.saturating_sub(since) >= settings.interval_us;
            if is_long && is_over {
                self.is_active = true;
                self.since_us = None;
                self.delay_s = settings.delay_us.unwrap_or_default() as f64 / 1e6;
            } else if is_long && self.admitted >= 0.0 {
                self.stop();
            }
        }
        if self.is_active {
            self.control(settings, load, is_over, passed.min(1.0));
            self.share_out();
        }
    }

    fn stop(&mut self) {
        *self = Self { told_us: self.told_us, ..Self::default() };
    }

    fn control(&mut self, settings: &OverloadSettings, load: Load, is_over: bool, passed: f64) {
        let mut step = f64::INFINITY;
        if let Some(target) = settings.delay_us {
            let (target, delay) = (target as f64 / 1e6, (load.delay_us as f64 / 1e6).min(DELAY_MAX_S));
            let risen = delay - std::mem::replace(&mut self.delay_s, delay);
            step = -PROPORTIONAL * risen - INTEGRAL * passed * (delay - target);
            self.reason = Some(Reason::Delay);
        }
        let mut spare = SPARE;
        if let Some(busy) = settings.busy {
            let max = f64::from(busy) / 100.0;
            let by_busy = -BUSY_INTEGRAL * passed * (load.busy - max);
            if by_busy < step {
                (step, self.reason) = (by_busy, Some(Reason::Busy));
            }
            spare = spare.min(max);
        }
        if !is_over && load.busy < spare {
            step = step.max(RECOVERY * passed);
        }
        self.admitted = (self.admitted + step).clamp(ADMITTED_MIN.ln(), 0.0);
    }

    /// Takes what is to be refused from the classes, the least important first.
    fn share_out(&mut self) {
        for class in &mut self.classes {
            class.mean = (class.mean + f64::from(std::mem::take(&mut class.came))) / 2.0;
        }
        let all: f64 = self.classes.iter().map(|class| class.mean).sum();
        let refused = self.refused();
        // How many there are of each is not known at first.
        let known = all > 0.0;
        let mut left = if known { refused * all } else { refused };
        for class in &mut self.classes {
            let size = if known { class.mean } else { 1.0 };
            let part = left.min(size);
            class.shed = match size > 0.0 {
                true => part / size,
                false if left > 0.0 => 1.0,
                false => 0.0,
            };
            left -= part;
        }
    }

    /// Whether a request of this class is to be refused, and why.
    pub fn sheds(&mut self, criticality: Criticality) -> Option<Reason> {
        let class = self.classes.get_mut(criticality as usize).filter(|_| self.is_active)?;
        class.came = class.came.saturating_add(1);
        class.owed += class.shed;
        // Of rounding.
        if class.owed < 1.0 - 1e-9 {
            return None;
        }
        class.owed -= 1.0;
        self.reason
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SETTINGS: OverloadSettings = OverloadSettings { delay_us: Some(20_000), busy: None, interval_us: 200_000 };
    const TICK_US: u64 = 50_000;

    /// Tells it so often how long things wait.
    fn tell(shedder: &mut Shedder, settings: &OverloadSettings, load: Load, times: usize) {
        for _ in 0..times {
            shedder.tell(Some(settings), load, shedder.told_us + TICK_US);
        }
    }

    fn late(delay_us: u64) -> Load {
        Load { delay_us, busy: 1.0 }
    }

    #[test]
    fn nothing_is_shed_before_it_has_been_so_for_an_interval() {
        let mut shedder = Shedder::default();
        tell(&mut shedder, &SETTINGS, late(100_000), 4);
        assert!(!shedder.is_active() && shedder.sheds(Criticality::Low).is_none());
        tell(&mut shedder, &SETTINGS, late(1_000), 1);
        tell(&mut shedder, &SETTINGS, late(100_000), 4);
        assert!(!shedder.is_active(), "it had paused");
        tell(&mut shedder, &SETTINGS, late(100_000), 1);
        assert!(shedder.is_active() && shedder.refused() > 0.0);
        shedder.tell(None, late(100_000), shedder.told_us + TICK_US);
        assert!(!shedder.is_active(), "switched off");
    }

    #[test]
    fn a_class_loses_something_only_when_those_below_have_lost_all() {
        let mut shedder = Shedder::default();
        tell(&mut shedder, &SETTINGS, late(100_000), 5);
        let mut counts = [[0; 2]; CLASSES];
        for _ in 0..300 {
            for (class, count) in Criticality::ALL.into_iter().zip(&mut counts) {
                for _ in 0..20 {
                    count[usize::from(shedder.sheds(class).is_some())] += 1;
                }
            }
            let [low, normal, critical] = shedder.classes.map(|class| class.shed);
            assert!((low == 1.0 || normal == 0.0) && (normal == 1.0 || critical == 0.0), "{shedder:?}");
            tell(&mut shedder, &SETTINGS, late(40_000), 1);
        }
        assert!(shedder.refused() > 0.98);
        let [low, normal, critical] = counts.map(|[_, shed]| shed);
        assert!(low >= normal && normal >= critical && critical > 0, "{counts:?}");
    }

    #[test]
    fn it_ends_when_there_is_time_to_spare() {
        let mut shedder = Shedder::default();
        tell(&mut shedder, &SETTINGS, late(200_000), 20);
        assert!(shedder.refused() > 0.9);
        tell(&mut shedder, &SETTINGS, Load { delay_us: 100, busy: 0.5 }, 110);
        assert!(!shedder.is_active(), "{shedder:?}");
    }

    #[test]
    fn a_busy_core_sheds_where_that_is_asked() {
        let settings = OverloadSettings { delay_us: None, busy: Some(80), ..SETTINGS };
        let mut shedder = Shedder::default();
        tell(&mut shedder, &settings, Load { delay_us: 500_000, busy: 0.7 }, 10);
        assert!(!shedder.is_active());
        tell(&mut shedder, &settings, Load { delay_us: 0, busy: 1.0 }, 10);
        assert!(shedder.refused() > 0.3);
        let reasons: Vec<_> = (0..10).filter_map(|_| shedder.sheds(Criticality::Low)).collect();
        assert!(!reasons.is_empty() && reasons.iter().all(|reason| *reason == Reason::Busy));
    }

    #[test]
    fn who_is_not_trusted_may_only_ask_for_less() {
        let (low, normal, critical) = (Criticality::Low, Criticality::Normal, Criticality::Critical);
        for (asked, trusted, expected) in [
            ("Critical", true, critical),
            ("critical", false, normal),
            ("low", false, low),
            ("low", true, low),
            ("high", true, normal),
            ("", true, normal),
        ] {
            assert_eq!(normal.or_asked(asked.as_bytes(), trusted), expected, "{asked} {trusted}");
        }
    }
}
