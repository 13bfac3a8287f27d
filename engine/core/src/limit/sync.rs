//! The control plane's side of a policy: which calls to send, and what to make of their replies.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::{Arc, MutexGuard, PoisonError};

use super::cell::{Account, Cell};
use super::desk::{Desk, Wish};
use super::hold::{Standing, Wake};
use super::limiter::{Limiter, short};
use super::policy::{CALL_GAP_US, HOLD_US, LOST_US};
use super::rules::{Mode, floor};
use super::script::{Reply, Request};
use super::table::Entry;

/// Calls that one [`Limiter::poll`] asks for; the others are due at once.
pub const CALLS_MAX: usize = 1_024;

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
    pub(super) cell: Arc<Cell>,
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
    pub(super) sequence: u64,
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
        let before = rules.shares();
        let shares = rules.set_instances(instances);
        if shares == before {
            return;
        }
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
        self.table.peek(&short(key), |cell| {
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

#[cfg(test)]
mod tests;
