//! Routes at their places in the trie, and what is looked for among them.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::conditions::{Conditions, Method, Methods};
use super::trie::Visitor;
use super::{Captures, Found, RouteRequest};

/// A route at its place in the trie.
#[derive(Debug, Clone)]
pub(super) struct Candidate {
    pub(super) index: u32,
    pub(super) priority: i32,
    pub(super) captures_rest: bool,
    pub(super) methods: Methods,
    pub(super) conditions: Option<Arc<Conditions>>,
}

impl Candidate {
    fn conditions_hold(&self, request: &RouteRequest<'_>) -> bool {
        self.conditions.as_ref().is_none_or(|conditions| conditions.hold(request))
    }
}

/// Keeps the first match of the highest priority.
pub(super) struct Best<'a> {
    request: &'a RouteRequest<'a>,
    method: Method<'a>,
    found: Option<(i32, u32, Captures)>,
    wrong_method: bool,
}

impl<'a> Best<'a> {
    pub(super) fn new(request: &'a RouteRequest<'a>) -> Self {
        Self { request, method: Method::new(request.method), found: None, wrong_method: false }
    }

    pub(super) fn found(self) -> Found {
        match self.found {
            Some((_, index, captures)) => Found::Route { index, captures },
            None if self.wrong_method => Found::WrongMethod,
            None => Found::Nothing,
        }
    }
}

impl Visitor<'_, Candidate> for Best<'_> {
    #[inline]
    fn skips(&self, priority_max: i32) -> bool {
        self.found.is_some_and(|(priority, ..)| priority >= priority_max)
    }

    #[inline]
    fn visit(&mut self, candidates: &[Candidate], captures: &Captures, rest: usize) {
        for candidate in candidates {
            if self.skips(candidate.priority) {
                return;
            }
            if !candidate.methods.accept(self.method) {
                self.wrong_method = self.wrong_method || candidate.conditions_hold(self.request);
            } else if candidate.conditions_hold(self.request) {
                let mut captures = *captures;
                if candidate.captures_rest {
                    captures.push(rest, self.request.path.len().saturating_sub(rest));
                }
                self.found = Some((candidate.priority, candidate.index, captures));
                return;
            }
        }
    }
}

/// Collects the methods of all matches.
pub(super) struct Allowed<'a, 'r> {
    request: &'a RouteRequest<'a>,
    methods: BTreeSet<&'r [u8]>,
}

impl<'a, 'r> Allowed<'a, 'r> {
    pub(super) fn new(request: &'a RouteRequest<'a>) -> Self {
        Self { request, methods: BTreeSet::new() }
    }

    /// Sorted.
    pub(super) fn methods(self) -> Vec<&'r [u8]> {
        self.methods.into_iter().collect()
    }
}

impl<'r> Visitor<'r, Candidate> for Allowed<'_, 'r> {
    fn skips(&self, _: i32) -> bool {
        false
    }

    fn visit(&mut self, candidates: &'r [Candidate], _: &Captures, _: usize) {
        for candidate in candidates.iter().filter(|candidate| candidate.conditions_hold(self.request)) {
            self.methods.extend(candidate.methods.names());
        }
    }
}
