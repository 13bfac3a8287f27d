//! The subsets of a service's endpoints that requests go to, as one core sees them: what a header has chosen, and who that is.

use std::cell::RefCell;
use std::sync::Arc;

use ringway_config::health::Health;
use ringway_config::hub::Published;
use ringway_config::snapshot::{Asked, Service, Subset};
use ringway_core::auth::credentials::fields;
use ringway_core::http::RequestHead;
use ringway_core::members::Members;

use crate::view::members;

/// All of a subset, as its requests have it that choose nothing.
const ANY: u16 = 0;
/// What no endpoint has.
const UNKNOWN: u16 = u16::MAX;

/// A part of a subset.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Part {
    /// Its index in the snapshot.
    pub(crate) subset: u32,
    /// [`ANY`], [`UNKNOWN`], or the place of a value, from 1.
    choice: u16,
}

/// By the subset's index. There are those that somebody has asked for.
#[derive(Default)]
pub(crate) struct Subsets(RefCell<Vec<Option<Choices>>>);

/// What requests may choose, and whom that leads to.
struct Choices {
    /// Sorted. The same as long as the endpoints are.
    values: Box<[Arc<str>]>,
    /// Chosen with their first request: all of it, by value, and for what is unknown.
    any: Option<Narrowed>,
    of_values: Box<[Option<Narrowed>]>,
    unknown: Option<Narrowed>,
}

/// Whom a part consists of now.
struct Narrowed {
    /// `None`: none of it can be used, and all endpoints are.
    members: Option<Members>,
    /// Those that belong to it.
    has: Box<[bool]>,
}

impl Choices {
    fn choice_of(&self, asked: &[u8]) -> u16 {
        let place = self.values.binary_search_by(|value| value.as_bytes().cmp(asked));
        place.map_or(UNKNOWN, |place| place as u16 + 1)
    }

    fn of(&self, choice: u16) -> Option<&Narrowed> {
        match choice {
            ANY => self.any.as_ref(),
            UNKNOWN => self.unknown.as_ref(),
            value => self.of_values.get(usize::from(value) - 1)?.as_ref(),
        }
    }

    fn of_mut(&mut self, choice: u16) -> Option<&mut Option<Narrowed>> {
        match choice {
            ANY => Some(&mut self.any),
            UNKNOWN => Some(&mut self.unknown),
            value => self.of_values.get_mut(usize::from(value) - 1),
        }
    }

    fn asked(&self, choice: u16) -> Asked<'_> {
        match choice {
            ANY => Asked::Any,
            value => self.values.get(usize::from(value) - 1).map_or(Asked::Unknown, |value| Asked::Value(value)),
        }
    }
}

impl Subsets {
    /// What a request asks of a subset of the service with this index.
    #[inline]
    pub(crate) fn part_of(
        &self,
        subset: u32,
        published: &Published,
        service: usize,
        request: &RequestHead<'_, '_>,
    ) -> Part {
        let any = Part { subset, choice: ANY };
        let Some(of_subset) = published.snapshot.subsets.get(subset as usize) else { return any };
        let Some(by) = &of_subset.by_header else { return any };
        let default = by.default.as_ref().map(|value| value.as_bytes());
        let Some(asked) = fields(request.headers, &by.header).next().or(default) else { return any };
        let known = self.0.borrow().get(subset as usize).and_then(|known| Some(known.as_ref()?.choice_of(asked)));
        let first = || {
            let health = published.health.get(service)?;
            Some(prepare(&mut self.0.borrow_mut(), subset, of_subset, health)?.choice_of(asked))
        };
        Part { subset, choice: known.or_else(first).unwrap_or(UNKNOWN) }
    }

    /// Whether this endpoint belongs to a part, or stands in for it.
    pub(crate) fn has(&self, part: Part, endpoint: usize) -> bool {
        let subsets = self.0.borrow();
        let Some(Some(choices)) = subsets.get(part.subset as usize) else { return false };
        let narrowed = choices.of(part.choice);
        narrowed.is_some_and(|narrowed| narrowed.members.is_none() || narrowed.has.get(endpoint) == Some(&true))
    }

    /// Asks the members of a part, or `all` where it has none.
    #[inline]
    pub(crate) fn among<T>(&self, part: Part, all: &RefCell<Members>, ask: impl FnOnce(&mut Members) -> T) -> T {
        if let Some(Some(choices)) = self.0.borrow_mut().get_mut(part.subset as usize)
            && let Some(Some(narrowed)) = choices.of_mut(part.choice)
            && let Some(members) = &mut narrowed.members
        {
            return ask(members);
        }
        ask(&mut all.borrow_mut())
    }

    /// Whether a part has nobody, so that all endpoints are used. `of` tells whose it is, where that is not known yet.
    #[inline]
    pub(crate) fn falls_back<'p>(
        &self,
        part: Part,
        of: impl FnOnce() -> Option<(&'p Health, &'p Service, &'p Subset)>,
    ) -> bool {
        if let Some(Some(choices)) = self.0.borrow().get(part.subset as usize)
            && let Some(narrowed) = choices.of(part.choice)
        {
            return narrowed.members.is_none();
        }
        of().is_some_and(|(health, service, subset)| self.narrow(part, health, service, subset))
    }

    #[cold]
    fn narrow(&self, part: Part, health: &Health, service: &Service, subset: &Subset) -> bool {
        let mut choices = self.0.borrow_mut();
        let Some(choices) = prepare(&mut choices, part.subset, subset, health) else { return false };
        let asked = choices.asked(part.choice);
        let has: Box<[bool]> = health.targets.iter().map(|endpoint| subset.has(endpoint, asked)).collect();
        let count = has.iter().filter(|has| **has).count();
        let chosen = health.choose_of(service, subset, asked);
        let members = chosen.map(|chosen| members(health, service, chosen, count));
        let falls_back = members.is_none();
        if let Some(place) = choices.of_mut(part.choice) {
            *place = Some(Narrowed { members, has });
        }
        falls_back
    }

    /// Something of an endpoint has changed.
    pub(crate) fn choose_anew(&self) {
        for choices in self.0.borrow_mut().iter_mut().flatten() {
            (choices.any, choices.unknown) = (None, None);
            choices.of_values.fill_with(|| None);
        }
    }
}

/// A subset's place, which is made where nobody has asked for it yet.
#[cold]
fn prepare<'c>(
    all: &'c mut Vec<Option<Choices>>,
    subset: u32,
    of_subset: &Subset,
    health: &Health,
) -> Option<&'c mut Choices> {
    let subset = subset as usize;
    if all.len() <= subset {
        all.resize_with(subset + 1, || None);
    }
    let choices = all.get_mut(subset)?.get_or_insert_with(|| {
        let values: Box<[Arc<str>]> = of_subset.values(&health.targets).into();
        let of_values = values.iter().map(|_| None).collect();
        Choices { values, any: None, of_values, unknown: None }
    });
    Some(choices)
}
