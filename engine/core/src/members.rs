//! Among whom a service is balanced: who is usable, by priority, and of them those in the gateway's own zone as far as they
//! can carry the load.

use crate::balance::Balancer;
use crate::random::mix;

/// The lowest priority that an endpoint may have; the first one is 0.
pub const PRIORITY_MAX: u8 = 127;

/// All requests, where parts of them are counted.
pub const ALL: u32 = 1_000_000;

/// An endpoint as the choice of members sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Candidate {
    /// 0: it must not get requests.
    pub weight: u32,
    /// The same once it has recovered: what it can carry when it is well.
    pub full_weight: u32,
    pub is_usable: bool,
    /// 0 comes first; those of a later one get requests only when too few of the others can.
    pub priority: u8,
    /// It is in the gateway's own zone.
    pub is_local: bool,
}

/// Among whom a service is balanced, by the indices of the candidates, ascending.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Chosen {
    pub members: Vec<usize>,
    /// Those of other zones, where the members cannot carry all; empty where they can.
    pub others: Vec<usize>,
    /// How many of [`ALL`] requests go to the members; the rest goes to the others.
    pub share: u32,
    /// Too few are usable: all are used.
    pub is_panic: bool,
}

impl Chosen {
    /// The part of the requests that goes to the own zone, 0 to 1; `candidates`: those who were chosen from.
    pub fn local_share(&self, candidates: &[Candidate]) -> f64 {
        if !self.others.is_empty() {
            return f64::from(self.share) / f64::from(ALL);
        }
        let members = || self.members.iter().filter_map(|index| candidates.get(*index));
        let weight = |one: &Candidate| f64::from(one.weight);
        let all: f64 = members().map(weight).sum();
        if all > 0.0 { members().filter(|one| one.is_local).map(weight).sum::<f64>() / all } else { 0.0 }
    }
}

/// How a service chooses its members.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rules {
    /// Percent of the endpoints of the first priority that must be usable, see [`choose`]. 0: those that are not usable are
    /// never used.
    pub panic_threshold: u8,
    /// Percent of what the endpoints of the own zone have to carry that they can, when all are well. `None`: zones do not
    /// matter.
    pub capacity: Option<u32>,
}

/// Chooses the members of the balance. Where the usable ones of the first priority are fewer than the panic threshold says,
/// those of the next one join them, and so on. Where that helps nothing, all endpoints of the first priority are used,
/// whatever is known of them.
///
/// Of those the ones of the own zone get all requests as long as the weight of the usable, times the capacity, is no less
/// than the weight of all of them; else that part of the requests, and others get the rest.
pub fn choose(candidates: &[Candidate], rules: Rules) -> Chosen {
    let mut levels: Vec<u8> = candidates.iter().filter(|one| one.weight > 0).map(|one| one.priority).collect();
    levels.sort_unstable();
    let Some(first) = levels.first().copied() else { return Chosen { share: ALL, ..Chosen::default() } };
    let needed = levels.iter().filter(|level| **level == first).count() * usize::from(rules.panic_threshold);
    levels.dedup();
    let usable_to = |level: u8| move |one: &Candidate| one.weight > 0 && one.is_usable && one.priority <= level;
    let count_to = |level: u8| candidates.iter().filter(|one| usable_to(level)(one)).count();
    let are_enough = |level: &u8| count_to(*level) > 0 && count_to(*level) * 100 >= needed;
    let last = levels.last().copied().unwrap_or(first);
    let level = levels.iter().copied().find(are_enough).unwrap_or(last);
    let indices = |wanted: &dyn Fn(&Candidate) -> bool| -> Vec<usize> {
        candidates.iter().enumerate().filter(|(_, candidate)| wanted(candidate)).map(|(index, _)| index).collect()
    };
    if rules.panic_threshold > 0 && !are_enough(&level) && count_to(level) == count_to(first) {
        let members = indices(&|one| one.weight > 0 && one.priority == first);
        return Chosen { members, share: ALL, is_panic: true, ..Chosen::default() };
    }
    let members = indices(&usable_to(level));
    let share = rules.capacity.map_or(0, |capacity| local_share(candidates, level, capacity));
    if share == 0 {
        return Chosen { members, share: ALL, ..Chosen::default() };
    }
    let is_local = |index: &usize| candidates.get(*index).is_some_and(|one| one.is_local);
    let (members, mut others): (Vec<usize>, Vec<usize>) = members.into_iter().partition(is_local);
    if share == ALL {
        others.clear();
    }
    Chosen { share: if others.is_empty() { ALL } else { share }, members, others, is_panic: false }
}

/// How many of [`ALL`] requests the own zone can carry, by the endpoints up to this priority.
fn local_share(candidates: &[Candidate], level: u8, capacity: u32) -> u32 {
    let local = || candidates.iter().filter(|one| one.weight > 0 && one.is_local && one.priority <= level);
    let well: u128 = local().filter(|one| one.is_usable).map(|one| u128::from(one.weight)).sum();
    let all: u128 = local().map(|one| u128::from(one.full_weight.max(one.weight))).sum();
    let share = well * u128::from(capacity) * u128::from(ALL) / (all.max(1) * 100);
    share.min(ALL.into()) as u32
}

/// The members of a service, each group with its balance.
#[derive(Debug)]
pub struct Members {
    near: Group,
    /// `None`: the near ones get all requests.
    far: Option<Group>,
    /// How many of [`ALL`] the near ones get.
    share: u32,
    pub is_panic: bool,
}

#[derive(Debug)]
struct Group {
    balancer: Balancer,
    /// Of the service's endpoints, by the balancer's indices.
    endpoints: Box<[usize]>,
}

impl Group {
    #[inline]
    fn pick(&mut self, random: u64, load: impl Fn(usize) -> u64) -> Option<usize> {
        let Self { balancer, endpoints } = self;
        if let [only] = **endpoints {
            return Some(only);
        }
        let member =
            balancer.pick(random, None, |member| endpoints.get(member).map_or(0, |endpoint| load(*endpoint)))?;
        endpoints.get(member).copied()
    }

    /// All of them, from a place by chance on.
    fn around(&self, random: u64) -> impl Iterator<Item = usize> + '_ {
        let start = random as usize % self.endpoints.len().max(1);
        let (before, after) = self.endpoints.split_at(start);
        after.iter().chain(before).copied()
    }
}

impl Members {
    /// `balancer`: makes one for these endpoints.
    pub fn new(chosen: Chosen, balancer: impl Fn(&[usize]) -> Balancer) -> Self {
        let group = |endpoints: Vec<usize>| Group { balancer: balancer(&endpoints), endpoints: endpoints.into() };
        Self {
            far: (!chosen.others.is_empty()).then(|| group(chosen.others)),
            near: group(chosen.members),
            share: chosen.share,
            is_panic: chosen.is_panic,
        }
    }

    /// The endpoint for the next request; `random` is its key where the balance goes by keys, and `load` is asked for
    /// endpoints, see [`Balancer::pick`].
    ///
    /// Hot.
    #[inline]
    pub fn pick(&mut self, random: u64, load: impl Fn(usize) -> u64) -> Option<usize> {
        match &mut self.far {
            Some(far) if !is_near(random, self.share) => far.pick(random, load),
            _ => self.near.pick(random, load),
        }
    }

    /// Whether there are any, and this endpoint is none of them.
    pub fn are_others_than(&self, endpoint: usize) -> bool {
        let mut all = self.near.endpoints.iter().chain(self.far.iter().flat_map(|far| &far.endpoints)).peekable();
        all.peek().is_some() && all.all(|member| *member != endpoint)
    }

    /// All endpoints, the near ones first, each group from a place by chance on.
    pub fn around(&self, random: u64) -> impl Iterator<Item = usize> + '_ {
        self.near.around(random).chain(self.far.iter().flat_map(move |far| far.around(random)))
    }
}

/// The same key stays on its side as long as the share is the same. Other bits than those that the balancer looks at decide.
fn is_near(random: u64, share: u32) -> bool {
    (u128::from(mix(random)) * u128::from(ALL)) >> 64 < u128::from(share)
}

#[cfg(test)]
mod tests;
