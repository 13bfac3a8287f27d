//! The control plane's side of a policy: which calls to send, and what to make of their replies.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::sync::{Arc, MutexGuard, PoisonError};

use super::cell::{Account, Cell};
use super::hold::{Hold, Standing, Wake};
use super::limiter::Limiter;
use super::policy::{CALL_GAP_US, HOLD_US, LEASE_SHARE, LOST_US, PERIOD_US, Policy, Shares, WAIT_US_MAX};
use super::rules::{Mode, floor};
use super::script::{Reply, Request};
use super::table::Entry;

/// Calls that one [`Limiter::poll`] asks for; the others are due at once.
pub const CALLS_MAX: usize = 1_024;
/// Demand is measured over at least this long, in microseconds.
const MEASURE_US: u64 = 1_000;

/// What the control plane has to do now. Taken and emptied by the caller, and used again.
#[derive(Debug, Default)]
pub struct Exchange {
    /// To send to Redis: at most [`CALLS_MAX`] by one `poll`.
    pub calls: Vec<Call>,
    /// Held requests that have an outcome: at most as many as are held.
    pub wakes: Vec<Wake>,
}

/// One run of the script for one key. There is one call of a key under way at a time.
#[derive(Debug)]
pub struct Call {
    /// Goes with the reply.
    pub token: Token,
    pub request: Request,
    cell: Arc<Cell>,
}

impl Call {
    /// What the policy counts by, for the name in Redis.
    pub fn key(&self) -> &[u8] {
        self.cell.key()
    }
}

/// Finds the cell of a call again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Token {
    place: u32,
    sequence: u64,
}

/// What an instance holds of a key's bucket, in tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Holding {
    /// Taken from the bucket, and not used yet.
    pub leased: u64,
    /// Used, and not known to be taken from the bucket.
    pub owed: u64,
}

/// The cells that have something to say.
#[derive(Debug, Default)]
pub(super) struct Reconciler {
    /// At most as many as the table has cells, the overflow's among them.
    desks: Vec<Option<Desk>>,
    free: Vec<u32>,
    /// When to look at a desk: those that no longer agree with the desk's own `due_us` are passed over.
    due: BinaryHeap<Reverse<(u64, u32)>>,
    sequence: u64,
    calls_total: u64,
}

/// What the sync knows of one cell.
#[derive(Debug)]
struct Desk {
    cell: Arc<Cell>,
    flight: Option<Flight>,
    /// Held requests, the oldest first.
    waiting: VecDeque<Arc<Hold>>,
    /// Those granted from a time on, to be woken then.
    granted: VecDeque<(u64, Arc<Hold>)>,
    /// The bucket held enough for all, or nothing is known of it.
    is_open: bool,
    /// When the last call was sent.
    sent_us: Option<u64>,
    /// Tokens used since.
    used_since_call: u64,
    /// When a token was last seen to be used.
    used_us: u64,
    /// The balance as it would be if nothing had been used since.
    balance: i32,
    /// Used and not yet part of `demand`.
    unmeasured: u64,
    measured_us: u64,
    /// Tokens per period, an exponential average over one period.
    demand: f64,
    due_us: u64,
}

#[derive(Debug)]
struct Flight {
    sequence: u64,
    sent_us: u64,
    debt: u64,
    must: u64,
}

impl Limiter {
    /// Looks at all that is due at `now_us`: fills in calls to send and requests to wake, and answers with the time of the
    /// next look (earlier when [`take_bell`](Self::take_bell) says so); `None`: not before the bell.
    pub fn poll(&self, now_us: u64, out: &mut Exchange) -> Option<u64> {
        let mut desks = self.desks()?;
        self.enlist(&mut desks, now_us);
        while let Some(&Reverse((due_us, place))) = desks.due.peek() {
            if due_us > now_us || out.calls.len() >= CALLS_MAX {
                return Some(due_us);
            }
            desks.due.pop();
            if desks.get(place).is_some_and(|desk| desk.due_us == due_us) {
                self.visit(&mut desks, place, now_us, out);
            }
        }
        None
    }

    /// Takes the reply to a call. One that is no longer awaited is passed over. Ask [`poll`](Self::poll) for the next
    /// look after this.
    pub fn reply(&self, token: Token, reply: &Reply, now_us: u64, out: &mut Exchange) {
        let Some(mut desks) = self.desks() else { return };
        self.enlist(&mut desks, now_us);
        let shares = self.table.rules().shares();
        let Some(desk) = desks.awaiting(token) else { return };
        let Some(flight) = desk.flight.take_if(|flight| now_us < flight.sent_us.saturating_add(LOST_US)) else {
            return self.lost_by(&mut desks, token, now_us, out);
        };
        desk.settle(&flight, reply, self.policy(), shares, now_us, out);
        self.visit(&mut desks, token.place, now_us, out);
    }

    /// A call will have no reply: the connection broke, or Redis answered with an error.
    pub fn lost(&self, token: Token, now_us: u64, out: &mut Exchange) {
        if let Some(mut desks) = self.desks() {
            self.lost_by(&mut desks, token, now_us, out);
        }
    }

    /// So many instances share the policy, this one among them.
    pub fn set_instances(&self, instances: u32) {
        let Some(desks) = self.desks() else { return };
        let rules = self.table.rules();
        if rules.instances() == instances {
            return;
        }
        let shares = rules.set_instances(instances);
        self.table.for_each(|cell| {
            let flight = cell.place().and_then(|place| desks.get(place)).and_then(|desk| desk.flight.as_ref());
            let on_the_way = flight.map_or(0, |flight| flight.debt);
            cell.change(|account| {
                let floor = floor(account.floor < 0, shares.debt_max, on_the_way);
                Some(Account { floor, ..account })
            });
        });
    }

    /// Redis is away (`true`) or back. Away, the policy's fallback decides, and calls under way count as lost.
    pub fn set_degraded(&self, is_degraded: bool, now_us: u64, out: &mut Exchange) {
        let Some(mut desks) = self.desks() else { return };
        let rules = self.table.rules();
        match (rules.mode(), is_degraded) {
            (Mode::Shared, true) => {
                self.enlist(&mut desks, now_us);
                let share = u64::from(rules.instances());
                rules.set_mode(Mode::Degraded);
                let bucket = rules.bucket();
                self.table.for_each(|cell| {
                    let tokens = self.shared_state(cell, now_us).remaining / share;
                    let empty = bucket.full.saturating_sub(tokens.saturating_mul(bucket.token));
                    if now_us < cell.full_at_us() || cell.place().is_some() {
                        cell.start_bucket(empty, &rules.policy, now_us);
                    }
                });
                desks.close(out);
            }
            (Mode::Degraded, false) => {
                rules.set_mode(Mode::Shared);
                self.table.for_each(|cell| {
                    if cell.account().is_some_and(|account| account.balance != 0) || cell.refund() > 0 {
                        self.note_directly(&mut desks, cell, now_us);
                    }
                });
            }
            _ => {}
        }
    }

    /// Calls asked for since the start.
    pub fn calls_total(&self) -> u64 {
        self.desks().map_or(0, |desks| desks.calls_total)
    }

    /// What this instance holds of the bucket of `key` in Redis; `None`: the key has no cell.
    pub fn holding(&self, key: &[u8]) -> Option<Holding> {
        let desks = self.desks()?;
        self.table.peek(key, |cell| {
            let balance = cell.account()?.balance;
            let desk = cell.place().and_then(|place| desks.get(place));
            let reported = desk.and_then(|desk| desk.flight.as_ref()).map_or(0, |flight| flight.debt);
            let owed = u64::from(balance.min(0).unsigned_abs());
            Some(Holding { leased: u64::from(balance.max(0).unsigned_abs()), owed: owed.saturating_add(reported) })
        })
    }

    fn desks(&self) -> Option<MutexGuard<'_, Reconciler>> {
        Some(self.shared.as_ref()?.sync.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Takes in what requests left behind.
    fn enlist(&self, desks: &mut Reconciler, now_us: u64) {
        let Some(shared) = &self.shared else { return };
        // As many as may be there: requests that come meanwhile ring again.
        for _ in 0..shared.notes.capacity() {
            let Some(cell) = shared.notes.pop() else { break };
            self.note_directly(desks, &cell, now_us);
        }
        for _ in 0..shared.holds.capacity() {
            let Some(hold) = shared.holds.pop() else { break };
            let place = self.note_directly(desks, &hold.cell, now_us);
            if let Some(desk) = desks.get_mut(place) {
                desk.use_tokens(u64::from(hold.cost), now_us);
                desk.waiting.push_back(hold);
            }
        }
    }

    fn note_directly(&self, desks: &mut Reconciler, cell: &Arc<Cell>, now_us: u64) -> u32 {
        cell.note();
        let place = match cell.place() {
            Some(place) => place,
            None => desks.open(cell, now_us),
        };
        desks.look_at(place, now_us);
        place
    }

    fn lost_by(&self, desks: &mut Reconciler, token: Token, now_us: u64, out: &mut Exchange) {
        let shares = self.table.rules().shares();
        if let Some(desk) = desks.awaiting(token) {
            desk.lose(shares);
            self.visit(desks, token.place, now_us, out);
        }
    }

    /// Does what is due at a desk, and decides when to look again.
    fn visit(&self, desks: &mut Reconciler, place: u32, now_us: u64, out: &mut Exchange) {
        let shares = self.table.rules().shares();
        let sequence = desks.sequence + 1;
        let Some(desk) = desks.get_mut(place) else { return };
        desk.measure(now_us);
        if desk.flight.as_ref().is_some_and(|flight| now_us >= flight.sent_us.saturating_add(LOST_US)) {
            desk.lose(shares);
        }
        desk.wake_granted(now_us, out);
        self.give_up_waiting(desk, now_us, out);
        let mut next_us = desk.next_wake_us();
        if let Some(flight) = &desk.flight {
            next_us = next_us.min(flight.sent_us.saturating_add(LOST_US));
        } else {
            let wish = desk.wish(shares, now_us);
            let earliest_us = desk.sent_us.map_or(0, |us| us.saturating_add(CALL_GAP_US));
            match wish {
                Wish::Now if now_us >= earliest_us => {
                    let call = desk.call(Token { place, sequence }, self.policy(), shares, now_us);
                    out.calls.push(call);
                    next_us = next_us.min(now_us.saturating_add(LOST_US));
                    desks.sequence = sequence;
                    desks.calls_total += 1;
                }
                Wish::Now => next_us = next_us.min(earliest_us),
                Wish::At(us) => {
                    next_us = next_us.min(us);
                    desk.lower_mark(shares);
                    // From here on requests ring again; one may have come before.
                    desk.cell.forget_note();
                    if desk.has_urgent_word() && desk.cell.note() {
                        next_us = next_us.min(earliest_us.max(now_us));
                    }
                }
                Wish::Nothing => {
                    desk.cell.set_low(-1);
                    desk.cell.set_place(None);
                    desk.cell.forget_note();
                    if desk.has_urgent_word() && desk.cell.note() {
                        desk.cell.set_place(Some(place));
                        next_us = earliest_us.max(now_us);
                    } else if next_us == u64::MAX {
                        desks.close_one(place);
                        return;
                    }
                }
            }
        }
        desks.look_at(place, next_us.max(now_us));
    }

    /// Held requests that have waited long enough are decided without Redis.
    fn give_up_waiting(&self, desk: &mut Desk, now_us: u64, out: &mut Exchange) {
        while let Some(hold) = desk.waiting.front() {
            let is_late = now_us >= hold.since_us.saturating_add(HOLD_US);
            if hold.standing() == Standing::Waiting && !is_late {
                break;
            }
            if let Some(hold) = desk.waiting.pop_front()
                && hold.standing() == Standing::Waiting
            {
                // Decided by who waits: at this time it gets an outcome whatever happens.
                out.wakes.extend(hold.who());
            }
        }
    }
}

/// What a desk wants of Redis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wish {
    Now,
    At(u64),
    Nothing,
}

impl Reconciler {
    fn get(&self, place: u32) -> Option<&Desk> {
        self.desks.get(place as usize)?.as_ref()
    }

    fn get_mut(&mut self, place: u32) -> Option<&mut Desk> {
        self.desks.get_mut(place as usize)?.as_mut()
    }

    fn awaiting(&mut self, token: Token) -> Option<&mut Desk> {
        let desk = self.get_mut(token.place)?;
        desk.flight.as_ref().is_some_and(|flight| flight.sequence == token.sequence).then_some(desk)
    }

    fn open(&mut self, cell: &Arc<Cell>, now_us: u64) -> u32 {
        let desk = Desk::new(cell, now_us);
        let place = match self.free.pop() {
            Some(place) => place,
            None => {
                self.desks.push(None);
                u32::try_from(self.desks.len() - 1).unwrap_or(u32::MAX)
            }
        };
        if let Some(free) = self.desks.get_mut(place as usize) {
            *free = Some(desk);
            cell.set_place(Some(place));
        }
        place
    }

    fn look_at(&mut self, place: u32, us: u64) {
        let Some(desk) = self.get_mut(place) else { return };
        if desk.due_us != us {
            desk.due_us = us;
            self.due.push(Reverse((us, place)));
        }
    }

    fn close_one(&mut self, place: u32) {
        if let Some(desk) = self.desks.get_mut(place as usize)
            && desk.take().is_some()
        {
            self.free.push(place);
        }
    }

    /// Redis is away: what was owed is owed, nothing is on the way, and those who wait ask the fallback.
    fn close(&mut self, out: &mut Exchange) {
        for mut desk in self.desks.drain(..).flatten() {
            desk.take_back_debt();
            for hold in desk.waiting.iter().chain(desk.granted.iter().map(|(_, hold)| hold)) {
                out.wakes.extend(hold.who());
            }
            desk.cell.set_low(-1);
            desk.cell.set_place(None);
            desk.cell.forget_note();
        }
        self.free.clear();
        self.due.clear();
    }
}

impl Desk {
    fn new(cell: &Arc<Cell>, now_us: u64) -> Self {
        let floor = cell.account().map_or(0, |account| account.floor);
        Self {
            cell: Arc::clone(cell),
            flight: None,
            waiting: VecDeque::new(),
            granted: VecDeque::new(),
            is_open: floor < 0 || now_us >= cell.full_at_us(),
            sent_us: None,
            used_since_call: 0,
            used_us: now_us,
            balance: 0,
            unmeasured: 0,
            measured_us: now_us.saturating_sub(PERIOD_US),
            demand: 0.0,
            due_us: u64::MAX,
        }
    }

    fn use_tokens(&mut self, tokens: u64, now_us: u64) {
        self.unmeasured = self.unmeasured.saturating_add(tokens);
        self.used_since_call = self.used_since_call.saturating_add(tokens);
        self.used_us = now_us;
    }

    /// Sees what was used since the last look.
    fn measure(&mut self, now_us: u64) {
        let balance = self.cell.account().map_or(0, |account| account.balance);
        if balance < self.balance {
            self.use_tokens(u64::from(self.balance.abs_diff(balance)), now_us);
        }
        self.balance = balance;
        let elapsed_us = now_us.saturating_sub(self.measured_us);
        if elapsed_us >= MEASURE_US {
            let periods = elapsed_us as f64 / PERIOD_US as f64;
            let decay = (-periods).exp();
            self.demand = self.demand * decay + self.unmeasured as f64 / periods * (1.0 - decay);
            (self.unmeasured, self.measured_us) = (0, now_us);
        }
    }

    /// What is wanted as a lease beyond `balance`.
    fn wanted(&self, shares: Shares, balance: i32) -> u64 {
        if !shares.leases {
            return 0;
        }
        (self.demand.ceil() as u64).saturating_sub(u64::from(balance.max(0).unsigned_abs()))
    }

    /// Something that cannot wait for the period to end.
    fn has_urgent_word(&self) -> bool {
        let balance = self.cell.account().map_or(0, |account| account.balance);
        balance < 0 || self.cell.refund() > 0 || !self.waiting.is_empty()
    }

    fn wish(&self, shares: Shares, now_us: u64) -> Wish {
        if self.has_urgent_word() {
            return Wish::Now;
        }
        let balance = self.cell.account().map_or(0, |account| account.balance);
        let idle_at_us = self.used_us.saturating_add(PERIOD_US);
        if balance > 0 && (now_us >= idle_at_us || !shares.leases) {
            return Wish::Now;
        }
        let is_denied = now_us < self.cell.deny_us();
        if self.used_since_call > 0 && !is_denied && self.wanted(shares, balance) > 0 {
            let period_us = self.sent_us.map_or(now_us, |us| us.saturating_add(PERIOD_US));
            let is_low = balance <= self.cell.low();
            return if is_low || now_us >= period_us { Wish::Now } else { Wish::At(period_us.min(idle_at_us)) };
        }
        // An idle desk is kept for a while: it knows the demand, and when the last call was.
        if balance > 0 || now_us < idle_at_us { Wish::At(idle_at_us) } else { Wish::Nothing }
    }

    /// A lease that came down to its mark and is enough all the same is looked at again when half of it is used.
    fn lower_mark(&self, shares: Shares) {
        if self.balance > 0 && self.balance <= self.cell.low() && self.wanted(shares, self.balance) == 0 {
            self.cell.set_low(self.balance / 2);
        }
    }

    /// Makes the call: what it reports leaves the account, and stays owed until there is a reply.
    fn call(&mut self, token: Token, policy: &Policy, shares: Shares, now_us: u64) -> Call {
        let returns_lease = !shares.leases || now_us >= self.used_us.saturating_add(PERIOD_US);
        self.waiting.retain(|hold| hold.standing() == Standing::Waiting);
        let must = self.waiting.iter().map(|hold| u64::from(hold.cost)).sum();
        let (mut debt, mut back, mut held) = (0, 0, 0);
        self.cell.change(|account| {
            debt = u64::from(account.balance.min(0).unsigned_abs());
            let lease = account.balance.max(0);
            (held, back) = if returns_lease && must == 0 { (0, lease) } else { (lease, 0) };
            Some(Account { balance: held, floor: floor(self.is_open, shares.debt_max, debt) })
        });
        let is_denied = now_us < self.cell.deny_us();
        let extra = if is_denied || back > 0 { 0 } else { self.wanted(shares, held) };
        let leases = if shares.leases { policy.spec().burst / LEASE_SHARE } else { 0 };
        // The view dates from one call's arrival in Redis, the hint meets the arrival of another: without a margin for the
        // difference every slower call would take a little away from the client.
        let margin_us = policy.us(leases.saturating_mul(policy.token)).saturating_add(HOLD_US);
        let request = Request {
            token: policy.token,
            per_us: policy.per_us,
            burst: policy.spec().burst,
            divisor: if shares.leases { LEASE_SHARE * u64::from(shares.instances) } else { 0 },
            debt,
            must,
            extra,
            held: u64::from(held.unsigned_abs()),
            back: u64::from(back.unsigned_abs()) + u64::from(self.cell.take_refund()),
            hint_us: self.cell.full_at_us().saturating_sub(now_us).saturating_sub(margin_us),
            wait_us_max: WAIT_US_MAX,
        };
        self.balance = held;
        (self.sent_us, self.used_since_call) = (Some(now_us), 0);
        self.flight = Some(Flight { sequence: token.sequence, sent_us: now_us, debt, must });
        Call { token, request, cell: Arc::clone(&self.cell) }
    }

    /// What a reply brings.
    fn settle(
        &mut self,
        flight: &Flight,
        reply: &Reply,
        policy: &Policy,
        shares: Shares,
        now_us: u64,
        out: &mut Exchange,
    ) {
        self.measure(now_us);
        let enough = 2 * i64::from(shares.instances);
        self.is_open = reply.level >= enough;
        let leased = i32::try_from(reply.leased).unwrap_or(i32::MAX);
        self.cell.change(|account| {
            let balance = account.balance.saturating_add(leased);
            Some(Account { balance, floor: floor(self.is_open, shares.debt_max, 0) })
        });
        self.balance = self.balance.saturating_add(leased);
        self.cell.set_low(if self.balance > 0 { self.balance / 2 } else { -1 });
        self.cell.set_full_at(flight.sent_us.saturating_add(reply.full_after_us));

        // A reply that comes too late grants nothing: its tokens were for a time that is over.
        let is_fresh = now_us <= flight.sent_us.saturating_add(HOLD_US);
        let (mut now, mut late) = if is_fresh { (reply.granted, reply.late) } else { (0, 0) };
        let is_short = reply.granted.saturating_add(reply.late) < flight.must;
        if is_short {
            let asked_us = flight.sent_us.saturating_add(reply.retry_us).saturating_sub(WAIT_US_MAX);
            self.cell.deny_until(asked_us.max(now_us.saturating_add(policy.deny_floor_us())));
        }
        while let Some(hold) = self.waiting.front() {
            let cost = u64::from(hold.cost);
            if hold.standing() != Standing::Waiting {
                self.waiting.pop_front();
                continue;
            }
            let from_us = if cost <= now {
                now -= cost;
                now_us
            } else if cost <= now.saturating_add(late) {
                late -= cost - now;
                now = 0;
                let tokens_before = reply.late - late - 1;
                now_us + reply.late_after_us + policy.us(tokens_before.saturating_mul(policy.token))
            } else {
                break;
            };
            let Some(hold) = self.waiting.pop_front() else { break };
            if hold.grant(from_us) {
                if from_us <= now_us {
                    out.wakes.extend(hold.who());
                } else {
                    self.granted.push_back((from_us, hold));
                }
            }
        }
        if is_short {
            for hold in self.waiting.drain(..) {
                if hold.refuse() {
                    out.wakes.extend(hold.who());
                }
            }
        }
        // Granted and of no use to anybody: a request that costs more, or one whose client has gone.
        self.cell.add_refund(u32::try_from(now + late).unwrap_or(u32::MAX));
    }

    /// The call had no reply: what it reported is owed still, and nothing was granted. What it gave back is gone.
    fn lose(&mut self, shares: Shares) {
        self.take_back_debt();
        let is_open = self.is_open;
        self.cell.change(|account| Some(Account { floor: floor(is_open, shares.debt_max, 0), ..account }));
    }

    fn take_back_debt(&mut self) {
        let Some(flight) = self.flight.take() else { return };
        let debt = i32::try_from(flight.debt).unwrap_or(i32::MAX);
        self.cell.change(|account| Some(Account { balance: account.balance.saturating_sub(debt), ..account }));
        self.balance = self.balance.saturating_sub(debt);
    }

    fn wake_granted(&mut self, now_us: u64, out: &mut Exchange) {
        while let Some((_, hold)) = self.granted.pop_front_if(|(from_us, _)| *from_us <= now_us) {
            out.wakes.extend(hold.who());
        }
    }

    fn next_wake_us(&self) -> u64 {
        let waiting = self.waiting.front().map_or(u64::MAX, |hold| hold.since_us.saturating_add(HOLD_US));
        self.granted.front().map_or(waiting, |(from_us, _)| waiting.min(*from_us))
    }
}
