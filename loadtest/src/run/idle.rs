//! The connections of a thread that wait for a request.

use std::collections::{HashMap, VecDeque};
use std::net::Ipv4Addr;

/// Idle slots, by number. An entry says in which turn its slot became idle: a slot that has left in another way (its
/// connection was closed) leaves a stale entry behind, which is passed over.
pub(crate) struct Idle {
    all: VecDeque<Entry>,
    /// By source address, where clients have their own: exactly those that are idle, since there may be millions of
    /// addresses.
    by_address: Option<HashMap<Ipv4Addr, Vec<usize>>>,
    addresses: Vec<Option<Ipv4Addr>>,
    turns: Vec<u32>,
    idle: Vec<bool>,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    slot: usize,
    turn: u32,
}

impl Idle {
    pub(crate) fn new(slots: usize, by_address: bool) -> Self {
        Self {
            all: VecDeque::with_capacity(2 * slots + 1),
            by_address: by_address.then(HashMap::new),
            addresses: vec![None; slots],
            turns: vec![0; slots],
            idle: vec![false; slots],
        }
    }

    /// A slot becomes idle, with a connection from `address` where clients have their own.
    pub(crate) fn put(&mut self, slot: usize, address: Option<Ipv4Addr>) {
        self.turns[slot] = self.turns[slot].wrapping_add(1);
        self.idle[slot] = true;
        let entry = Entry { slot, turn: self.turns[slot] };
        self.all.push_back(entry);
        if self.all.len() > 2 * self.turns.len() {
            let (idle, turns) = (&self.idle, &self.turns);
            self.all.retain(|entry| idle[entry.slot] && turns[entry.slot] == entry.turn);
        }
        if let (Some(by_address), Some(address)) = (&mut self.by_address, address) {
            by_address.entry(address).or_default().push(slot);
            self.addresses[slot] = Some(address);
        }
    }

    /// The slot is idle no more, for a reason of its own.
    pub(crate) fn remove(&mut self, slot: usize) {
        self.idle[slot] = false;
        let Some((by_address, address)) = self.by_address.as_mut().zip(self.addresses[slot].take()) else { return };
        if let Some(slots) = by_address.get_mut(&address) {
            slots.retain(|other| *other != slot);
            if slots.is_empty() {
                by_address.remove(&address);
            }
        }
    }

    /// The one that was used last: its memory is warm, and the others show what is not needed.
    #[inline]
    pub(crate) fn take(&mut self) -> Option<usize> {
        while let Some(entry) = self.all.pop_back() {
            if self.claim(entry) {
                return Some(entry.slot);
            }
        }
        None
    }

    /// One with a connection from this address, or else the one that has been idle for the longest time.
    pub(crate) fn take_for(&mut self, address: Ipv4Addr) -> Option<usize> {
        let own = self.by_address.as_ref().and_then(|map| map.get(&address)).and_then(|slots| slots.last().copied());
        if let Some(slot) = own {
            self.remove(slot);
            return Some(slot);
        }
        while let Some(entry) = self.all.pop_front() {
            if self.claim(entry) {
                return Some(entry.slot);
            }
        }
        None
    }

    #[inline]
    fn claim(&mut self, entry: Entry) -> bool {
        let valid = self.idle[entry.slot] && self.turns[entry.slot] == entry.turn;
        if valid {
            self.remove(entry.slot);
        }
        valid
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_one_used_comes_first_and_closed_ones_never() {
        let mut idle = Idle::new(3, false);
        (0..3).for_each(|slot| idle.put(slot, None));
        idle.remove(2);
        assert_eq!((idle.take(), idle.take(), idle.take()), (Some(1), Some(0), None));
        idle.put(2, None);
        idle.remove(2);
        idle.put(2, None);
        assert_eq!((idle.take(), idle.take()), (Some(2), None));
    }

    #[test]
    fn an_address_finds_its_own_connection_or_the_one_idle_for_longest() {
        let [a, b, c] = [1, 2, 3].map(|last| Ipv4Addr::new(127, 0, 0, last));
        let mut idle = Idle::new(3, true);
        idle.put(0, Some(a));
        idle.put(1, Some(b));
        idle.put(2, Some(a));
        assert_eq!(idle.take_for(b), Some(1));
        assert_eq!(idle.take_for(a), Some(2));
        assert_eq!(idle.take_for(c), Some(0));
        assert_eq!(idle.take_for(a), None);
    }

    #[test]
    fn addresses_are_known_only_while_a_connection_has_them() {
        let mut idle = Idle::new(2, true);
        for client in 0..10_000 {
            idle.put(0, Some(Ipv4Addr::from_bits(client)));
            idle.put(1, Some(Ipv4Addr::from_bits(client)));
            idle.remove(1);
            assert_eq!(idle.take_for(Ipv4Addr::LOCALHOST), Some(0));
        }
        assert_eq!(idle.by_address.map(|map| map.len()), Some(0));
    }

    #[test]
    fn stale_entries_are_not_kept_for_ever() {
        let mut idle = Idle::new(2, false);
        for _ in 0..1_000 {
            idle.put(0, None);
            idle.remove(0);
        }
        assert!(idle.all.len() <= 5);
        assert_eq!(idle.take(), None);
    }
}
