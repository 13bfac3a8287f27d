//! Who is registered, as one gateway believes: what the store says, and what it has lost.
//!
//! A store that was away could not hear of anybody, and one that comes back empty has forgotten everybody. Instances that
//! were known and are missing from its first list afterwards stay for as long as their time is, within which they are heard of
//! again, or are gone indeed.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;

/// One entry of the store's list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed<T> {
    pub name: Arc<str>,
    /// How long it stays without a sign of life.
    pub ttl_us: u64,
    /// `None`: it has taken its leave.
    pub instance: Option<T>,
}

/// The instances of a service by name. Bounded by what the store lists, and what it has listed before.
#[derive(Debug)]
pub struct Roll<T> {
    members: BTreeMap<Arc<str>, Member<T>>,
    /// Which store the last list was of.
    store: String,
    was_away: bool,
}

#[derive(Debug)]
struct Member<T> {
    instance: T,
    ttl_us: u64,
    /// The store does not list it; until when it stays all the same.
    until_us: Option<u64>,
}

impl<T> Default for Roll<T> {
    fn default() -> Self {
        Self { members: BTreeMap::new(), store: String::new(), was_away: false }
    }
}

impl<T: PartialEq> Roll<T> {
    /// The store cannot be asked: everybody stays, for as long as that is so.
    pub fn lost(&mut self) {
        self.was_away = true;
    }

    /// This is the list now, of the store of this name: one that has lost its data has another one. Whether anything is
    /// different.
    pub fn learn(&mut self, store: &str, listed: Vec<Listed<T>>, now_us: u64) -> bool {
        let is_forgiving = self.was_away || self.store != store;
        self.was_away = false;
        store.clone_into(&mut self.store);
        let mut old = std::mem::take(&mut self.members);
        let mut is_changed = false;
        for Listed { name, ttl_us, instance } in listed {
            let known = old.remove(&name);
            is_changed |= known.as_ref().map(|known| &known.instance) != instance.as_ref();
            if let Some(instance) = instance {
                self.members.insert(name, Member { instance, ttl_us, until_us: None });
            }
        }
        for (name, mut missing) in old {
            if is_forgiving {
                missing.until_us = Some(now_us.saturating_add(missing.ttl_us));
            }
            match missing.until_us {
                Some(until_us) if until_us > now_us => {
                    self.members.insert(name, missing);
                }
                _ => is_changed = true,
            }
        }
        is_changed
    }

    /// The list is what it was. Whether anything is different: somebody's time may have ended.
    pub fn unchanged(&mut self, now_us: u64) -> bool {
        let was_away = std::mem::take(&mut self.was_away);
        let count = self.members.len();
        self.members.retain(|_, member| {
            if was_away && let Some(until_us) = &mut member.until_us {
                *until_us = now_us.saturating_add(member.ttl_us);
            }
            member.until_us.is_none_or(|until_us| until_us > now_us)
        });
        self.members.len() != count
    }

    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// In the order of their names.
    pub fn instances(&self) -> impl Iterator<Item = &T> {
        self.members.values().map(|member| &member.instance)
    }
}
