//! The requests' side of a policy: may this one pass?

use std::borrow::Cow;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use crossbeam::queue::ArrayQueue;

use super::cell::{Cell, Spent};
use super::hold::{Held, Hold, Standing};
use super::policy::{Fallback, HOLD_US, Policy};
use super::rules::{Mode, Rules};
use super::sync::Reconciler;
use super::table::Table;
use super::{Decision, State};

/// Keys that are longer are told apart by their beginning and a hash.
pub const KEY_BYTES_MAX: usize = 128;
/// Requests of a policy that wait for Redis at the same time; others are decided at once.
pub const HOLDS_MAX: usize = 16_384;
/// Cells of a policy that wait to be looked at; a cell that finds no place tries again with its next request.
const NOTES_MAX: usize = 16_384;
/// The key of the bucket that keys beyond the cap share.
const OVERFLOW_KEY: &[u8] = b"\xffoverflow";

/// The live state of one policy, shared by all cores and the control plane.
///
/// Memory: see [`Policy`]'s `keys_max`; each key costs about 110 bytes and its own length. With Redis 0.5 MiB more, and
/// about 300 bytes for each key that has something to say.
pub struct Limiter {
    pub(super) table: Table<Cell>,
    pub(super) shared: Option<Box<Shared>>,
}

/// What there is only with Redis.
pub(super) struct Shared {
    /// Cells that the sync must look at.
    pub(super) notes: ArrayQueue<Arc<Cell>>,
    pub(super) holds: ArrayQueue<Arc<Hold>>,
    pub(super) sync: Mutex<Reconciler>,
    held: Arc<AtomicUsize>,
    held_total: AtomicU64,
    bell: AtomicBool,
}

impl Limiter {
    /// A policy that this instance keeps by itself: no control plane is needed.
    pub fn new(policy: Policy) -> Self {
        Self::with_mode(policy, Mode::Alone, None)
    }

    /// A policy that instances keep together, through Redis: somebody must call [`poll`](Self::poll).
    pub fn shared(policy: Policy) -> Self {
        let shared = Shared {
            notes: ArrayQueue::new(NOTES_MAX),
            holds: ArrayQueue::new(HOLDS_MAX),
            sync: Mutex::default(),
            held: Arc::default(),
            held_total: AtomicU64::new(0),
            bell: AtomicBool::new(false),
        };
        Self::with_mode(policy, Mode::Shared, Some(Box::new(shared)))
    }

    fn with_mode(policy: Policy, mode: Mode, shared: Option<Box<Shared>>) -> Self {
        let keys_max = policy.spec().keys_max;
        let rules = Rules::new(policy, mode);
        let overflow = Cell::new(OVERFLOW_KEY, 0, rules.open_floor(), &rules.policy, 0);
        Self { table: Table::new(keys_max, rules, overflow), shared }
    }

    pub fn policy(&self) -> &Policy {
        &self.table.rules().policy
    }

    pub fn mode(&self) -> Mode {
        self.table.rules().mode()
    }

    /// [`Policy::bound`] for the instances that there are, as far as this one knows; 0 without Redis.
    pub fn bound(&self) -> u64 {
        let rules = self.table.rules();
        if rules.mode() == Mode::Alone { 0 } else { rules.policy.bound(rules.instances()) }
    }

    /// Keys that have a cell of their own now.
    pub fn keys(&self) -> usize {
        self.table.len()
    }

    /// Requests held since the start.
    pub fn held_total(&self) -> u64 {
        self.shared.as_ref().map_or(0, |shared| shared.held_total.load(Ordering::Relaxed))
    }

    /// Whether a request since the last call left something for [`poll`](Self::poll): whoever gets `true` wakes the
    /// control plane. Asked after [`check`](Self::check); costs a load.
    #[inline]
    pub fn take_bell(&self) -> bool {
        self.shared
            .as_ref()
            .is_some_and(|shared| shared.bell.load(Ordering::SeqCst) && shared.bell.swap(false, Ordering::SeqCst))
    }

    /// Admits `cost` tokens of `key` at `now_us`, a clock of the process that never goes back, in microseconds.
    ///
    /// Hot; watched by the benchmark `limit`.
    #[inline]
    pub fn check(&self, key: &[u8], cost: u32, now_us: u64) -> Decision {
        let key = short(key);
        let rules = self.table.rules();
        let make = |hash| Cell::new(&key, hash, rules.open_floor(), &rules.policy, now_us);
        self.table.with(&key, now_us, make, |cell| match rules.mode() {
            Mode::Alone => self.take(cell, cost, now_us),
            Mode::Shared => self.spend(cell, cost, now_us),
            Mode::Degraded => self.fall_back(cell, cost, now_us),
        })
    }

    /// Gives back `cost` tokens of `key` that were admitted to a request which then was refused for another reason.
    pub fn give_back(&self, key: &[u8], cost: u32) {
        let rules = self.table.rules();
        let cell = self.table.peek(&short(key), |cell| Some(Arc::clone(cell)));
        let cell = cell.as_ref().unwrap_or(self.table.overflow());
        if rules.mode() != Mode::Shared {
            cell.put_back(u64::from(cost).saturating_mul(rules.bucket().token));
        }
        if rules.mode() != Mode::Alone {
            let lease_max = rules.policy.lease_max(rules.shares());
            let kept = cell.credit(cost, i32::try_from(lease_max).unwrap_or(i32::MAX));
            if cost > kept {
                cell.add_refund(cost - kept);
                self.note(cell);
            }
        }
    }

    /// What came of a held request: `None` while it must go on waiting. Whoever waits asks again when woken, and no later
    /// than at [`HOLD_US`] after [`Held::since_us`]; once there is an outcome, `held` is of no more use.
    pub fn outcome(&self, held: &Held, now_us: u64) -> Option<Decision> {
        let hold = held.hold();
        let (cell, cost) = (&hold.cell, hold.cost);
        if hold.standing() == Standing::Waiting {
            let is_late = now_us >= hold.since_us.saturating_add(HOLD_US);
            let is_degraded = self.mode() == Mode::Degraded;
            if !is_late && !is_degraded {
                return None;
            }
            if hold.leave() {
                let decision =
                    if is_degraded { self.fall_back(cell, cost, now_us) } else { self.decide_now(cell, cost, now_us) };
                return Some(decision.unwrap_or_else(|| Decision::Refused(self.refusal(cell, cost, now_us))));
            }
        }
        match hold.standing() {
            Standing::GrantedFrom(us) => (now_us >= us).then(|| Decision::Admitted(self.shared_state(cell, now_us))),
            _ => Some(Decision::Refused(self.refusal(cell, cost, now_us))),
        }
    }

    /// GCRA on the bucket that this instance keeps. `None`: the cell has ended.
    #[inline]
    fn take(&self, cell: &Cell, cost: u32, now_us: u64) -> Option<Decision> {
        let rules = self.table.rules();
        let policy = &rules.policy;
        let bucket = rules.bucket();
        let units = u64::from(cost).saturating_mul(bucket.token);
        let taken = cell.take(units, bucket, policy, now_us)?;
        let (Ok(empty) | Err(empty)) = taken;
        let mut state = State {
            limit: policy.spec().limit,
            remaining: bucket.full.saturating_sub(empty) / bucket.token,
            reset_us: policy.us(empty),
            retry_after_us: 0,
        };
        if taken.is_ok() {
            return Some(Decision::Admitted(state));
        }
        // More than a bucket holds never comes: ask again when it is full.
        state.retry_after_us =
            policy.us(empty.saturating_add(units.min(bucket.full)).saturating_sub(bucket.full)).max(1);
        Some(Decision::Refused(state))
    }

    /// Spends from the account, or holds the request. `None`: the cell has ended.
    #[inline]
    fn spend(&self, cell: &Arc<Cell>, cost: u32, now_us: u64) -> Option<Decision> {
        if now_us < cell.deny_us() {
            cell.account()?;
            return Some(Decision::Refused(self.refusal(cell, cost, now_us)));
        }
        match cell.spend(i32::try_from(cost).unwrap_or(i32::MAX))? {
            Spent::Yes { calls } => {
                if calls {
                    self.note(cell);
                }
                Some(Decision::Admitted(self.shared_state(cell, now_us)))
            }
            Spent::No => self.hold(cell, cost, now_us),
        }
    }

    #[cold]
    fn hold(&self, cell: &Arc<Cell>, cost: u32, now_us: u64) -> Option<Decision> {
        if u64::from(cost) > self.policy().spec().burst {
            return Some(Decision::Refused(self.refusal(cell, cost, now_us)));
        }
        // A bucket that is full by now is one of which nothing is known.
        let open = self.table.rules().open_floor();
        if open < 0 && cell.place().is_none() && now_us >= cell.full_at_us() && cell.open(open) {
            return self.spend(cell, cost, now_us);
        }
        let shared = self.shared.as_ref()?;
        let Some(hold) = Hold::new(cell, cost, now_us, &shared.held, HOLDS_MAX) else {
            return self.decide_now(cell, cost, now_us);
        };
        let held = Held::new(Arc::clone(&hold));
        if shared.holds.push(hold).is_err() {
            drop(held);
            return self.decide_now(cell, cost, now_us);
        }
        shared.held_total.fetch_add(1, Ordering::Relaxed);
        self.note(cell);
        shared.bell.store(true, Ordering::SeqCst);
        Some(Decision::Hold(held))
    }

    /// What a request gets that cannot wait for Redis, or has waited long enough.
    pub(super) fn decide_now(&self, cell: &Arc<Cell>, cost: u32, now_us: u64) -> Option<Decision> {
        Some(match cell.spend(i32::try_from(cost).unwrap_or(i32::MAX))? {
            Spent::Yes { .. } => {
                self.note(cell);
                Decision::Admitted(self.shared_state(cell, now_us))
            }
            Spent::No => Decision::Refused(self.refusal(cell, cost, now_us)),
        })
    }

    /// Redis is away. `None`: the cell has ended.
    #[cold]
    fn fall_back(&self, cell: &Arc<Cell>, cost: u32, now_us: u64) -> Option<Decision> {
        let rules = self.table.rules();
        let decision = match rules.policy.spec().without_redis {
            Fallback::FairShare => self.take(cell, cost, now_us)?,
            Fallback::Open => Decision::Admitted(self.shared_state(cell, now_us)),
            Fallback::Closed => return Some(Decision::Unavailable),
        };
        if let Decision::Admitted(_) = decision {
            // What Redis will be told on its return, and no more than that.
            cell.owe(cost, rules.debt_after_absence_max())?;
        }
        Some(decision)
    }

    /// Tells the sync to look at the cell.
    #[inline]
    pub(super) fn note(&self, cell: &Arc<Cell>) {
        if let Some(shared) = &self.shared
            && cell.note()
        {
            if shared.notes.push(Arc::clone(cell)).is_err() {
                cell.forget_note();
            }
            shared.bell.store(true, Ordering::SeqCst);
        }
    }

    /// What is known of the bucket in Redis, less what this instance took since.
    #[inline]
    pub(super) fn shared_state(&self, cell: &Cell, now_us: u64) -> State {
        let policy = self.policy();
        let ahead_us = cell.full_at_us().saturating_sub(now_us);
        let balance = cell.account().map_or(0, |account| i64::from(account.balance));
        let empty = ahead_us.saturating_mul(policy.per_us).min(policy.full);
        let taken = i64::try_from(policy.token).unwrap_or(i64::MAX).saturating_mul(-balance);
        let empty = empty.saturating_add_signed(taken).min(policy.full);
        State {
            limit: policy.spec().limit,
            remaining: (policy.full - empty) / policy.token,
            reset_us: policy.us(empty),
            retry_after_us: 0,
        }
    }

    #[cold]
    fn refusal(&self, cell: &Cell, cost: u32, now_us: u64) -> State {
        let policy = self.policy();
        let state = self.shared_state(cell, now_us);
        let cost = u64::from(cost).min(policy.spec().burst);
        let missing = cost.saturating_sub(state.remaining);
        let retry_us = cell.deny_us().saturating_sub(now_us).max(policy.deny_floor_us());
        let retry_us = if cost > 1 { retry_us.max(policy.us(missing.saturating_mul(policy.token))) } else { retry_us };
        State { remaining: if cost > 1 { state.remaining } else { 0 }, retry_after_us: retry_us.max(1), ..state }
    }
}

impl std::fmt::Debug for Limiter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Limiter").field("policy", self.policy()).field("mode", &self.mode()).finish_non_exhaustive()
    }
}

/// The key as cells and Redis know it: the same on every instance.
#[inline]
pub(super) fn short(key: &[u8]) -> Cow<'_, [u8]> {
    if key.len() <= KEY_BYTES_MAX {
        return Cow::Borrowed(key);
    }
    Cow::Owned(shorten(key))
}

#[cold]
fn shorten(key: &[u8]) -> Vec<u8> {
    const HASHES: usize = 2;
    let mut short = key.get(..KEY_BYTES_MAX - HASHES * 16).unwrap_or(key).to_vec();
    for number in 0..HASHES as u64 {
        let mut hasher = DefaultHasher::new();
        (number, key).hash(&mut hasher);
        short.extend_from_slice(format!("{:016x}", hasher.finish()).as_bytes());
    }
    short
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::Spec;
    use super::*;

    fn spec(limit: u64, period: Duration, burst: u64, keys_max: usize) -> Spec {
        let without_redis = Fallback::FairShare;
        Spec { name: "test".into(), limit, period, burst, strict: false, without_redis, keys_max }
    }

    fn alone(limit: u64, period: Duration, burst: u64, keys_max: usize) -> Limiter {
        Limiter::new(Policy::new(&spec(limit, period, burst, keys_max)).unwrap())
    }

    fn admitted(limiter: &Limiter, key: &[u8], cost: u32, now_us: u64) -> Result<State, State> {
        match limiter.check(key, cost, now_us) {
            Decision::Admitted(state) => Ok(state),
            Decision::Refused(state) => Err(state),
            other => panic!("{other:?}"),
        }
    }

    const MINUTE: Duration = Duration::from_secs(60);

    #[test]
    fn without_redis_a_cell_is_the_bucket() {
        let limiter = alone(100, MINUTE, 100, 10);
        for left in (0..100).rev() {
            let reset_us = (100 - left) * 600_000;
            let state = State { limit: 100, remaining: left, reset_us, retry_after_us: 0 };
            assert_eq!(admitted(&limiter, b"a", 1, 5), Ok(state));
        }
        let refused = |retry_after_us, reset_us| Err(State { limit: 100, remaining: 0, reset_us, retry_after_us });
        assert_eq!(admitted(&limiter, b"a", 1, 5), refused(600_000, 60_000_000));
        assert_eq!(admitted(&limiter, b"a", 1, 600_004), refused(1, 59_400_001));
        assert!(admitted(&limiter, b"a", 1, 600_005).is_ok());
        assert!(admitted(&limiter, b"b", 1, 600_005).is_ok());
        assert!(!limiter.take_bell());
    }

    #[test]
    fn a_request_may_cost_more_and_what_it_took_can_be_given_back() {
        let limiter = alone(10, Duration::from_secs(1), 10, 10);
        assert_eq!(admitted(&limiter, b"a", 7, 0).unwrap().remaining, 3);
        assert_eq!(admitted(&limiter, b"a", 4, 0).unwrap_err().retry_after_us, 100_000);
        assert_eq!(admitted(&limiter, b"a", 11, 0).unwrap_err().retry_after_us, 700_000);
        limiter.give_back(b"a", 7);
        assert_eq!(admitted(&limiter, b"a", 10, 0).unwrap().remaining, 0);
        limiter.give_back(b"a", 10);
        limiter.give_back(b"a", 10);
        assert_eq!(admitted(&limiter, b"a", 1, 0).unwrap().remaining, 9);
    }

    #[test]
    fn a_bucket_left_alone_for_years_is_full() {
        let limiter = alone(1_000_003, Duration::from_secs(3600), 600_000, 10);
        let mut now_us = 0;
        for _ in 0..400 {
            assert_eq!(admitted(&limiter, b"a", 600_000, now_us).unwrap().remaining, 0);
            assert!(admitted(&limiter, b"a", 1, now_us).is_err());
            now_us += 23 * 86_400 * 1_000_000 + 7;
        }
    }

    #[test]
    fn keys_beyond_the_cap_share_a_bucket_and_full_ones_make_room() {
        let limiter = alone(10, Duration::from_secs(1), 10, 100);
        for key in 0..100_u32 {
            assert!(admitted(&limiter, &key.to_le_bytes(), 1, 0).is_ok());
        }
        let beyond =
            |now_us| (100..200_u32).filter(|key| admitted(&limiter, &key.to_le_bytes(), 1, now_us).is_ok()).count();
        assert_eq!(beyond(0), 10);
        assert_eq!(limiter.keys(), 100);
        assert_eq!(beyond(200_000), 100);
        assert_eq!(limiter.keys(), 100);
    }

    #[test]
    fn long_keys_are_told_apart() {
        let limiter = alone(1, MINUTE, 1, 100);
        let key = |last: u8| [vec![b'k'; 5_000], vec![last]].concat();
        assert!(admitted(&limiter, &key(1), 1, 0).is_ok());
        assert!(admitted(&limiter, &key(2), 1, 0).is_ok());
        assert!(admitted(&limiter, &key(1), 1, 0).is_err());
        assert_eq!(short(&key(1)).len(), KEY_BYTES_MAX);
    }

    #[test]
    fn cores_that_share_a_cell_admit_the_burst_and_no_more() {
        let limiter = alone(1, MINUTE, 1_000, 10);
        let total: usize = std::thread::scope(|scope| {
            let core = || (0..1_000).filter(|_| admitted(&limiter, b"a", 1, 0).is_ok()).count();
            let cores: Vec<_> = (0..4).map(|_| scope.spawn(core)).collect();
            cores.into_iter().map(|core| core.join().unwrap()).sum()
        });
        assert_eq!(total, 1_000);
    }

    #[test]
    fn an_evicted_cell_takes_nothing_with_it() {
        // Two cores on one place: each request of one evicts the other's cell, which is full again by then.
        let limiter = alone(1_000_000, Duration::from_secs(1), 1, 1);
        std::thread::scope(|scope| {
            for key in [b"a", b"b"] {
                let limiter = &limiter;
                scope.spawn(move || {
                    for turn in 0..20_000 {
                        assert!(!matches!(limiter.check(key, 1, turn), Decision::Hold(_) | Decision::Unavailable));
                    }
                });
            }
        });
        assert_eq!(limiter.keys(), 1);
    }
}
