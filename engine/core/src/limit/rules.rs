//! What all cells of a policy go by: its arithmetic, how many instances share it, whether Redis is there.

use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};

use super::policy::{Policy, Shares};

/// How a policy is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Mode {
    /// No Redis is configured: this instance is the whole world.
    Alone,
    /// Cells agree through Redis.
    Shared,
    /// Redis is configured and away.
    Degraded,
}

#[derive(Debug)]
pub(super) struct Rules {
    pub(super) policy: Policy,
    mode: AtomicU8,
    instances: AtomicU32,
    debt_max: AtomicU64,
}

/// A bucket: what a token costs and what it holds, in units.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Bucket {
    pub(super) token: u64,
    pub(super) full: u64,
}

impl Rules {
    pub(super) fn new(policy: Policy, mode: Mode) -> Self {
        let rules =
            Self { policy, mode: AtomicU8::new(mode as u8), instances: AtomicU32::new(1), debt_max: AtomicU64::new(0) };
        rules.set_instances(1);
        rules
    }

    #[inline]
    pub(super) fn mode(&self) -> Mode {
        match self.mode.load(Ordering::Relaxed) {
            0 => Mode::Alone,
            1 => Mode::Shared,
            _ => Mode::Degraded,
        }
    }

    pub(super) fn set_mode(&self, mode: Mode) {
        self.mode.store(mode as u8, Ordering::SeqCst);
    }

    pub(super) fn instances(&self) -> u32 {
        self.instances.load(Ordering::Relaxed)
    }

    pub(super) fn set_instances(&self, instances: u32) -> Shares {
        let shares = self.policy.shares(instances);
        self.instances.store(shares.instances, Ordering::Relaxed);
        self.debt_max.store(shares.debt_max, Ordering::Relaxed);
        shares
    }

    pub(super) fn shares(&self) -> Shares {
        self.policy.shares(self.instances())
    }

    /// The floor of a cell of which nothing is known.
    pub(super) fn open_floor(&self) -> i32 {
        floor(true, self.debt_max.load(Ordering::Relaxed), 0)
    }

    /// The bucket that the instance keeps by itself: the whole one, or its share of at least one token.
    #[inline]
    pub(super) fn bucket(&self) -> Bucket {
        let policy = &self.policy;
        if self.mode() == Mode::Alone {
            return Bucket { token: policy.token, full: policy.full };
        }
        let instances = u64::from(self.instances());
        let token = policy.token.saturating_mul(instances);
        Bucket { token, full: token.saturating_mul(self.debt_after_absence_max()) }
    }

    /// What an instance may report of what it admitted while Redis was away, in tokens; the size of its own bucket too.
    pub(super) fn debt_after_absence_max(&self) -> u64 {
        (self.policy.spec().burst / u64::from(self.instances())).max(1)
    }
}

/// How far down a balance may go. `is_open`: the bucket in Redis holds enough for all instances, or nothing is known of
/// it. `on_the_way`: what the instance owes and has reported, without a reply as yet.
pub(super) fn floor(is_open: bool, debt_max: u64, on_the_way: u64) -> i32 {
    if !is_open {
        return 0;
    }
    i32::try_from(debt_max.saturating_sub(on_the_way)).map_or(i32::MIN, |debt| -debt)
}
