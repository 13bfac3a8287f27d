//! What the control plane knows of one cell that has something to say, and what it makes of Redis' replies.

use std::collections::VecDeque;
use std::sync::Arc;

use super::cell::{Account, Cell};
use super::hold::{Hold, Standing};
use super::policy::{CALL_GAP_US, HOLD_US, LEASE_SHARE, PERIOD_US, Policy, Shares, WAIT_US_MAX};
use super::rules::floor;
use super::script::{Reply, Request};
use super::sync::{Call, Exchange, Token};

/// Demand is measured over at least this long, in microseconds.
const MEASURE_US: u64 = 1_000;

/// What the sync knows of one cell.
#[derive(Debug)]
pub(super) struct Desk {
    pub(super) cell: Arc<Cell>,
    pub(super) flight: Option<Flight>,
    /// Held requests, the oldest first.
    pub(super) waiting: VecDeque<Arc<Hold>>,
    /// Those granted from a time on, to be woken then.
    pub(super) granted: VecDeque<(u64, Arc<Hold>)>,
    /// The bucket held enough for all, or nothing is known of it.
    is_open: bool,
    /// When the last call was sent.
    pub(super) sent_us: Option<u64>,
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
    pub(super) due_us: u64,
}

#[derive(Debug)]
pub(super) struct Flight {
    pub(super) sequence: u64,
    pub(super) sent_us: u64,
    pub(super) debt: u64,
    must: u64,
}

/// What a desk wants of Redis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wish {
    Now,
    At(u64),
    Nothing,
}

impl Desk {
    pub(super) fn new(cell: &Arc<Cell>, now_us: u64) -> Self {
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

    pub(super) fn use_tokens(&mut self, tokens: u64, now_us: u64) {
        self.unmeasured = self.unmeasured.saturating_add(tokens);
        self.used_since_call = self.used_since_call.saturating_add(tokens);
        self.used_us = now_us;
    }

    /// Sees what was used since the last look.
    pub(super) fn measure(&mut self, now_us: u64) {
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
    pub(super) fn has_urgent_word(&self) -> bool {
        let balance = self.cell.account().map_or(0, |account| account.balance);
        balance < 0 || self.cell.refund() > 0 || !self.waiting.is_empty()
    }

    pub(super) fn wish(&self, shares: Shares, now_us: u64) -> Wish {
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
        if balance > 0 {
            return Wish::At(idle_at_us);
        }
        // An idle desk is kept for a while: it knows the demand, and when the last call was.
        let over_us = idle_at_us.max(self.sent_us.map_or(0, |us| us.saturating_add(CALL_GAP_US)));
        if now_us < over_us { Wish::At(over_us) } else { Wish::Nothing }
    }

    /// A lease that came down to its mark and is enough all the same is looked at again when half of it is used.
    pub(super) fn lower_mark(&self, shares: Shares) {
        if self.balance > 0 && self.balance <= self.cell.low() && self.wanted(shares, self.balance) == 0 {
            self.cell.set_low(self.balance / 2);
        }
    }

    /// Makes the call: what it reports leaves the account, and stays owed until there is a reply.
    pub(super) fn call(&mut self, token: Token, policy: &Policy, shares: Shares, now_us: u64) -> Call {
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
    pub(super) fn settle(
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
    pub(super) fn lose(&mut self, shares: Shares) {
        self.take_back_debt();
        let is_open = self.is_open;
        self.cell.change(|account| Some(Account { floor: floor(is_open, shares.debt_max, 0), ..account }));
    }

    pub(super) fn take_back_debt(&mut self) {
        let Some(flight) = self.flight.take() else { return };
        let debt = i32::try_from(flight.debt).unwrap_or(i32::MAX);
        self.cell.change(|account| Some(Account { balance: account.balance.saturating_sub(debt), ..account }));
        self.balance = self.balance.saturating_sub(debt);
    }

    pub(super) fn wake_granted(&mut self, now_us: u64, out: &mut Exchange) {
        while let Some((_, hold)) = self.granted.pop_front_if(|(from_us, _)| *from_us <= now_us) {
            out.wakes.extend(hold.who());
        }
    }

    pub(super) fn next_wake_us(&self) -> u64 {
        let waiting = self.waiting.front().map_or(u64::MAX, |hold| hold.since_us.saturating_add(HOLD_US));
        self.granted.front().map_or(waiting, |(from_us, _)| waiting.min(*from_us))
    }
}
