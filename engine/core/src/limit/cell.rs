//! What an instance keeps of one key: atomics that its cores change and the control plane reconciles with Redis.

use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, AtomicU64, Ordering};

use super::policy::Policy;
use super::rules::{Bucket, Mode, Rules};
use super::table::Entry;

/// A cell that has ended, as its `floor`.
const RETIRED: i32 = i32::MAX;
/// A cell that has ended, as its `bucket`.
const BUCKET_RETIRED: u64 = u64::MAX;
/// No place in the sync's list.
const NOWHERE: u32 = u32::MAX;

/// Memory: 96 bytes and the key, beside the 21 bytes of its place in the table.
#[derive(Debug)]
pub(super) struct Cell {
    hash: u64,
    key: Box<[u8]>,
    /// `Account` in one number.
    account: AtomicU64,
    /// Until when all is refused, in microseconds.
    deny_us: AtomicU64,
    /// When the bucket in Redis is full again, as far as known, in microseconds.
    full_at_us: AtomicU64,
    /// The bucket that this instance keeps by itself (without Redis): the time at which it is full again, in units of
    /// the policy, modulo 2^64.
    bucket: AtomicU64,
    /// When the bucket was last used, in seconds: what tells an old time in `bucket` from one that has come round.
    used_s: AtomicU32,
    /// The sync wants to know when the lease has come down to this.
    low: AtomicI32,
    /// Tokens to give back to Redis.
    refund: AtomicU32,
    /// Where the sync keeps what it knows of the cell.
    place: AtomicU32,
    /// The sync has the cell in its list, or will find it in its queue.
    is_noted: AtomicBool,
}

/// What a cell may still admit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Account {
    /// Positive: tokens leased; negative: tokens admitted and not yet reported.
    pub(super) balance: i32,
    /// The balance does not fall below this.
    pub(super) floor: i32,
}

impl Account {
    fn pack(self) -> u64 {
        (u64::from(self.balance.cast_unsigned()) << 32) | u64::from(self.floor.cast_unsigned())
    }

    fn unpack(word: u64) -> Self {
        Self { balance: ((word >> 32) as u32).cast_signed(), floor: (word as u32).cast_signed() }
    }
}

/// What came of spending from an account.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Spent {
    /// `calls`: the sync wants to hear of it.
    Yes {
        calls: bool,
    },
    No,
}

impl Cell {
    pub(super) fn new(key: &[u8], hash: u64, floor: i32, policy: &Policy, now_us: u64) -> Self {
        Self {
            hash,
            key: key.into(),
            account: AtomicU64::new(Account { balance: 0, floor }.pack()),
            deny_us: AtomicU64::new(0),
            full_at_us: AtomicU64::new(0),
            bucket: AtomicU64::new(bucket_time(now_us, policy)),
            used_s: AtomicU32::new(seconds(now_us)),
            low: AtomicI32::new(-1),
            refund: AtomicU32::new(0),
            place: AtomicU32::new(NOWHERE),
            is_noted: AtomicBool::new(false),
        }
    }

    /// `None`: the cell has ended.
    #[inline]
    pub(super) fn account(&self) -> Option<Account> {
        let account = Account::unpack(self.account.load(Ordering::SeqCst));
        (account.floor != RETIRED).then_some(account)
    }

    /// Changes the account, unless the cell has ended or `change` answers `None`; answers with the account before.
    #[inline]
    pub(super) fn change(&self, mut change: impl FnMut(Account) -> Option<Account>) -> Option<Account> {
        let mut word = self.account.load(Ordering::SeqCst);
        loop {
            let before = Account::unpack(word);
            if before.floor == RETIRED {
                return None;
            }
            let after = change(before)?.pack();
            match self.account.compare_exchange_weak(word, after, Ordering::SeqCst, Ordering::SeqCst) {
                Ok(_) => return Some(before),
                Err(changed) => word = changed,
            }
        }
    }

    /// Takes tokens as far down as the floor. `None`: the cell has ended.
    #[inline]
    pub(super) fn spend(&self, cost: i32) -> Option<Spent> {
        let mut left = None;
        self.account()?;
        let before = self.change(|account| {
            left = account.balance.checked_sub(cost).filter(|balance| *balance >= account.floor);
            left.map(|balance| Account { balance, ..account })
        });
        Some(match (before, left) {
            (Some(_), Some(balance)) => {
                Spent::Yes { calls: balance < 0 || balance <= self.low.load(Ordering::Relaxed) }
            }
            // It had a floor that refused, or has ended since.
            (None, None) => Spent::No,
            _ => return None,
        })
    }

    /// Lets the balance fall to `floor` where it could not fall below 0; whether it did.
    pub(super) fn open(&self, floor: i32) -> bool {
        self.change(|account| (account.floor == 0).then_some(Account { floor, ..account })).is_some()
    }

    /// Takes tokens down to a debt of `debt_max`, whatever the floor; what goes beyond is forgotten. `None`: the cell
    /// has ended.
    pub(super) fn owe(&self, cost: u32, debt_max: u64) -> Option<()> {
        let lowest = i32::try_from(debt_max).map_or(i32::MIN, |debt| -debt);
        let change = |account: Account| {
            let balance = account.balance.saturating_sub_unsigned(cost).max(lowest.min(account.balance));
            Some(Account { balance, ..account })
        };
        self.change(change).map(|_| ())
    }

    /// Adds tokens up to a lease of `lease_max`; how many found room.
    pub(super) fn credit(&self, tokens: u32, lease_max: i32) -> u32 {
        let mut kept = 0;
        let before = self.change(|account| {
            let balance = account.balance.saturating_add_unsigned(tokens).min(lease_max.max(account.balance));
            kept = account.balance.abs_diff(balance);
            Some(Account { balance, ..account })
        });
        before.map_or(0, |_| kept)
    }

    #[inline]
    pub(super) fn deny_us(&self) -> u64 {
        self.deny_us.load(Ordering::Relaxed)
    }

    pub(super) fn deny_until(&self, us: u64) {
        self.deny_us.store(us, Ordering::Relaxed);
    }

    #[inline]
    pub(super) fn full_at_us(&self) -> u64 {
        self.full_at_us.load(Ordering::Relaxed)
    }

    pub(super) fn set_full_at(&self, us: u64) {
        self.full_at_us.store(us, Ordering::Relaxed);
    }

    pub(super) fn set_low(&self, balance: i32) {
        self.low.store(balance, Ordering::Relaxed);
    }

    pub(super) fn low(&self) -> i32 {
        self.low.load(Ordering::Relaxed)
    }

    pub(super) fn add_refund(&self, tokens: u32) {
        let _ =
            self.refund.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |refund| Some(refund.saturating_add(tokens)));
    }

    pub(super) fn refund(&self) -> u32 {
        self.refund.load(Ordering::SeqCst)
    }

    pub(super) fn take_refund(&self) -> u32 {
        self.refund.swap(0, Ordering::SeqCst)
    }

    /// Notes that the sync must look at the cell; whether that is news.
    #[inline]
    pub(super) fn note(&self) -> bool {
        !self.is_noted.load(Ordering::SeqCst) && !self.is_noted.swap(true, Ordering::SeqCst)
    }

    pub(super) fn forget_note(&self) {
        self.is_noted.store(false, Ordering::SeqCst);
    }

    pub(super) fn place(&self) -> Option<u32> {
        let place = self.place.load(Ordering::SeqCst);
        (place != NOWHERE).then_some(place)
    }

    pub(super) fn set_place(&self, place: Option<u32>) {
        self.place.store(place.unwrap_or(NOWHERE), Ordering::SeqCst);
    }

    /// Takes `cost` units if the bucket holds them: GCRA. `Ok` and `Err` carry the empty part of the bucket, in units,
    /// after and before; `None`: the cell has ended.
    #[inline]
    pub(super) fn take(&self, cost: u64, bucket: Bucket, policy: &Policy, now_us: u64) -> Option<Result<u64, u64>> {
        let now = bucket_time(now_us, policy);
        let mut full_at = self.bucket.load(Ordering::Acquire);
        loop {
            if full_at == BUCKET_RETIRED {
                return None;
            }
            let empty = self.empty_part(full_at, now, bucket.full, policy, now_us);
            let after = empty.saturating_add(cost);
            if after > bucket.full {
                return Some(Err(empty));
            }
            // Before the bucket is: who sees the new time in it sees that it is not old.
            let second = seconds(now_us);
            if self.used_s.load(Ordering::Relaxed) != second {
                self.used_s.store(second, Ordering::Release);
            }
            let new = not_retired(now.wrapping_add(after));
            match self.bucket.compare_exchange(full_at, new, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return Some(Ok(after)),
                Err(changed) => full_at = changed,
            }
        }
    }

    /// Puts units back into the bucket.
    pub(super) fn put_back(&self, units: u64) {
        let _ = self.bucket.fetch_update(Ordering::AcqRel, Ordering::Acquire, |full_at| {
            (full_at != BUCKET_RETIRED).then(|| not_retired(full_at.wrapping_sub(units)))
        });
    }

    /// Starts the bucket anew, with so many units missing.
    pub(super) fn start_bucket(&self, empty: u64, policy: &Policy, now_us: u64) {
        self.used_s.store(seconds(now_us), Ordering::Release);
        let full_at = not_retired(bucket_time(now_us, policy).wrapping_add(empty));
        let _ = self
            .bucket
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |old| (old != BUCKET_RETIRED).then_some(full_at));
    }

    #[inline]
    fn empty_part(&self, full_at: u64, now: u64, full: u64, policy: &Policy, now_us: u64) -> u64 {
        // The time comes round after 2^64 units, 36 days at the least; a bucket is full again long before.
        let idle_s = u64::from(seconds(now_us).saturating_sub(self.used_s.load(Ordering::Acquire)));
        if idle_s > 2 + policy.us(full) / 1_000_000 {
            return 0;
        }
        u64::try_from(full_at.wrapping_sub(now).cast_signed()).unwrap_or(0)
    }
}

impl Entry for Cell {
    type Rules = Rules;

    fn hash(&self) -> u64 {
        self.hash
    }

    fn key(&self) -> &[u8] {
        &self.key
    }

    /// A cell whose buckets are full, here and in Redis, and that nobody has anything to say about, equals none.
    fn retire(&self, rules: &Rules, now_us: u64) -> bool {
        if self.is_noted.load(Ordering::SeqCst)
            || self.place().is_some()
            || self.refund() > 0
            || self.deny_us() > now_us
            || self.full_at_us() > now_us
        {
            return false;
        }
        let full_at = self.bucket.load(Ordering::Acquire);
        let bucket = rules.bucket();
        if full_at == BUCKET_RETIRED
            || self.empty_part(full_at, bucket_time(now_us, &rules.policy), bucket.full, &rules.policy, now_us) > 0
        {
            return false;
        }
        // A debt from the time without Redis is as old as the bucket: full again, it is worth nothing.
        let has_moot_debt = |balance| balance < 0 && rules.mode() == Mode::Degraded;
        let retired = Account { balance: 0, floor: RETIRED };
        let ends = |account: Account| (account.balance == 0 || has_moot_debt(account.balance)).then_some(retired);
        if self.bucket.compare_exchange(full_at, BUCKET_RETIRED, Ordering::AcqRel, Ordering::Acquire).is_err() {
            return false;
        }
        let has_ended = self.change(ends).is_some();
        if !has_ended {
            self.bucket.store(full_at, Ordering::Release);
        }
        has_ended
    }
}

/// The clock that buckets run by.
#[inline]
fn bucket_time(now_us: u64, policy: &Policy) -> u64 {
    now_us.wrapping_mul(policy.per_us)
}

#[inline]
fn seconds(now_us: u64) -> u32 {
    (now_us / 1_000_000) as u32
}

/// One unit later rather than a time that stands for the end of the cell.
#[inline]
fn not_retired(full_at: u64) -> u64 {
    if full_at == BUCKET_RETIRED { 0 } else { full_at }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cell_takes_what_its_description_says() {
        // The `Arc` around it counts with two words.
        assert_eq!(size_of::<Cell>() + 2 * size_of::<usize>(), 96);
    }

    #[test]
    fn an_account_fits_in_one_number() {
        for (balance, floor) in [(0, 0), (-1, -5), (i32::MIN, i32::MAX), (7, i32::MIN)] {
            let account = Account { balance, floor };
            assert_eq!(Account::unpack(account.pack()), account);
        }
    }
}
