//! The route table: host, path, method, header and query, in one pass over the path.
//!
//! # Order
//! Among the routes that match a request, the one with the highest `priority` wins (default 0). Among equals:
//! an exact host before a wildcard host (longest suffix first) before no host; within one host, segment by segment from
//! the left, a literal segment before a `{parameter}` before a prefix's or catch-all's rest; an exact path before a
//! prefix of the same length, the prefix `/api/` (or a catch-all in its place) before `/api`; more conditions (method,
//! headers, query) before fewer; then the order in the file.
//! A route whose conditions fail does not hide a less specific one that matches.
//!
//! # Cost
//! A request costs a hash or a few comparisons for each segment, whatever the number of routes. Only routes that share
//! a path, and differ in method or conditions, are looked at one by one. Where a literal and a parameter stand beside
//! each other and the literal leads nowhere, the parameter is tried too: no part of the table twice.

mod candidate;
mod conditions;
mod host;
mod pattern;
#[cfg(test)]
mod reference;
mod trie;

use std::cmp::Reverse;
use std::collections::{BTreeSet, HashMap};
use std::ops::ControlFlow;
use std::sync::Arc;

use candidate::{Allowed, Best, Candidate};
use conditions::{Conditions, Methods};
pub(crate) use conditions::{decoded, pairs};
use host::{Host, Hosts};
use pattern::{Parsed, Pattern};
use trie::{FixedState, Trie, Visitor};

/// Most parameters one path may capture.
pub const CAPTURES_MAX: usize = 8;

/// A longer path matches nothing.
pub const PATH_BYTES_MAX: usize = u16::MAX as usize;

/// Where the parameters of a matched path lie in it: (start, length).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Captures {
    spans: [(u16, u16); CAPTURES_MAX],
    len: u8,
}

impl Captures {
    /// The bytes of capture `index` in the path that was matched.
    pub fn get<'p>(&self, index: usize, path: &'p [u8]) -> Option<&'p [u8]> {
        let &(start, len) = self.spans.get(..usize::from(self.len))?.get(index)?;
        path.get(usize::from(start)..usize::from(start) + usize::from(len))
    }

    /// Within a path of at most [`PATH_BYTES_MAX`]; a pattern has at most [`CAPTURES_MAX`] of them.
    fn push(&mut self, start: usize, len: usize) {
        if let Some(span) = self.spans.get_mut(usize::from(self.len)) {
            *span = (start as u16, len as u16);
            self.len += 1;
        }
    }

    fn pop(&mut self) {
        self.len = self.len.saturating_sub(1);
        if let Some(span) = self.spans.get_mut(usize::from(self.len)) {
            *span = (0, 0);
        }
    }
}

/// What a header or query condition asks for.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ValueMatch {
    Present,
    Absent,
    Exact(Box<str>),
    Prefix(Box<str>),
}

/// How a route's path was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PathMatch {
    /// `/health`, `/api/products/{id}` (a parameter is one whole, non-empty segment), `/files/{*rest}` (a catch-all,
    /// last, the rest of the path without its leading slash, may be empty: it matches `/files/`, not `/files`).
    Pattern(String),
    /// `prefix: /api`: matches `/api`, `/api/` and everything below, never `/apix`; may contain parameters.
    /// `prefix: /api/` matches `/api/` and below, not `/api`. `prefix: /` matches all.
    Prefix(String),
}

/// What a route asks of a request. Empty lists ask for nothing.
#[derive(Debug, Clone)]
pub struct RouteSpec {
    /// `api.example.com` or `*.example.com` (one or more labels), any case.
    pub hosts: Vec<String>,
    pub path: PathMatch,
    /// Upper case tokens. `GET` matches `HEAD` too.
    pub methods: Vec<String>,
    /// Names lower case.
    pub headers: Vec<(String, ValueMatch)>,
    /// Names and values are compared as they stand in the query, percent-decoded.
    pub query: Vec<(String, ValueMatch)>,
    pub priority: i32,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RouteError {
    #[error("a path starts with `/`")]
    NotAbsolute,
    #[error("a path pattern is written normalized: `{0}`")]
    NotNormal(String),
    #[error("`{0}`: a parameter is a whole segment, `{{name}}`, its name letters, digits and `_`")]
    BadParameter(String),
    #[error("the parameter `{0}` occurs twice")]
    RepeatedParameter(String),
    #[error("`{{*{0}}}` must be the last segment")]
    CatchAllNotLast(String),
    #[error("more than {CAPTURES_MAX} parameters")]
    TooManyParameters,
    #[error("`{0}` is not a host name")]
    BadHost(String),
    #[error("`{0}` is not a method")]
    BadMethod(String),
    /// The index of the earlier route with the same hosts, path, methods, conditions and priority. The names of
    /// parameters make no difference, nor does it whether the rest of a path is captured.
    #[error("the same as an earlier route")]
    Duplicate(u32),
}

/// What the router looks at.
#[derive(Clone, Copy)]
pub struct RouteRequest<'a> {
    /// Without the port, as the client wrote it; empty where there is none.
    pub host: &'a [u8],
    pub method: &'a [u8],
    /// Normalized.
    pub path: &'a [u8],
    pub query: Option<&'a [u8]>,
    pub headers: &'a [httparse::Header<'a>],
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    Route {
        index: u32,
        captures: Captures,
    },
    /// The path exists, the method does not: [`Router::allow`] says which do.
    WrongMethod,
    Nothing,
}

/// An immutable route table.
#[derive(Debug, Default)]
pub struct Router {
    trie: Trie<Candidate>,
    hosts: Hosts,
    /// The root for routes without hosts.
    any_host: Option<u32>,
    priority_max: i32,
}

/// Collects routes, checks them and builds the table.
#[derive(Debug, Default)]
pub struct RouterBuilder {
    /// Hashed with fixed keys: a table is built in the same way each time.
    routes: HashMap<Checked, Added, FixedState>,
}

/// What makes a route different from others.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Checked {
    hosts: BTreeSet<Host>,
    pattern: Pattern,
    methods: Methods,
    conditions: Conditions,
    priority: i32,
}

impl Checked {
    fn conditions_len(&self) -> usize {
        usize::from(!self.methods.is_any()) + self.conditions.len()
    }
}

#[derive(Debug)]
struct Added {
    order: usize,
    index: u32,
    captures_rest: bool,
}

impl RouterBuilder {
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a route under the caller's `index` (returned by a match). Gives back the names that its path captures.
    pub fn add(&mut self, index: u32, spec: RouteSpec) -> Result<Vec<String>, RouteError> {
        let Parsed { pattern, names, captures_rest } = pattern::parse(&spec.path)?;
        let checked = Checked {
            hosts: spec.hosts.iter().map(|host| Host::parse(host)).collect::<Result<_, _>>()?,
            pattern,
            methods: Methods::parse(&spec.methods)?,
            conditions: Conditions::new(spec.headers, spec.query),
            priority: spec.priority,
        };
        if let Some(earlier) = self.routes.get(&checked) {
            return Err(RouteError::Duplicate(earlier.index));
        }
        let order = self.routes.len();
        self.routes.insert(checked, Added { order, index, captures_rest });
        Ok(names)
    }

    pub fn build(self) -> Router {
        let mut routes: Vec<_> = self.routes.into_iter().collect();
        // The trie sorts by path; this is the order of routes with the same path.
        routes.sort_unstable_by_key(|(route, added)| {
            (Reverse(route.priority), Reverse(route.conditions_len()), added.order)
        });
        let mut router = Router { priority_max: i32::MIN, ..Router::default() };
        for (route, added) in routes {
            router.insert(route, added);
        }
        router
    }
}

impl Router {
    fn insert(&mut self, route: Checked, added: Added) {
        let Checked { hosts, pattern, methods, conditions, priority } = route;
        let conditions = (conditions.len() > 0).then(|| Arc::new(conditions));
        let candidate =
            Candidate { index: added.index, priority, captures_rest: added.captures_rest, methods, conditions };
        for host in &hosts {
            let root = self.hosts.root_or(host, || self.trie.add_root());
            self.trie.add(root, &pattern, priority, candidate.clone());
        }
        if hosts.is_empty() {
            let root = *self.any_host.get_or_insert_with(|| self.trie.add_root());
            self.trie.add(root, &pattern, priority, candidate);
        }
        self.priority_max = self.priority_max.max(priority);
    }

    /// Finds the route of a request. Allocates nothing.
    ///
    /// Hot; watched by the benchmark `router`.
    pub fn find(&self, request: &RouteRequest<'_>) -> Found {
        let mut best = Best::new(request);
        self.walk(request, &mut best);
        best.found()
    }

    /// Appends the methods of all routes that match but for the method, as an `Allow` value, sorted: `GET, HEAD, POST`.
    pub fn allow(&self, request: &RouteRequest<'_>, out: &mut Vec<u8>) {
        let mut allowed = Allowed::new(request);
        self.walk(request, &mut allowed);
        out.extend_from_slice(&allowed.methods().join(&b", "[..]));
    }

    fn walk<'r>(&'r self, request: &RouteRequest<'_>, visitor: &mut impl Visitor<'r, Candidate>) {
        if request.path.first() != Some(&b'/') || request.path.len() > PATH_BYTES_MAX {
            return;
        }
        let mut visit = |root| {
            self.trie.walk(root, request.path, visitor);
            if visitor.skips(self.priority_max) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        if !self.hosts.is_empty() && self.hosts.each(request.host, &mut visit).is_break() {
            return;
        }
        if let Some(root) = self.any_host {
            let _ = visit(root);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(path: &str) -> RouteSpec {
        RouteSpec {
            hosts: Vec::new(),
            path: PathMatch::Pattern(path.to_owned()),
            methods: Vec::new(),
            headers: Vec::new(),
            query: Vec::new(),
            priority: 0,
        }
    }

    fn prefix(path: &str) -> RouteSpec {
        RouteSpec { path: PathMatch::Prefix(path.to_owned()), ..spec("/") }
    }

    fn only(methods: &[&str], spec: RouteSpec) -> RouteSpec {
        RouteSpec { methods: methods.iter().map(|method| (*method).to_owned()).collect(), ..spec }
    }

    fn router(specs: impl IntoIterator<Item = RouteSpec>) -> Router {
        let mut builder = RouterBuilder::new();
        for (index, spec) in (0..).zip(specs) {
            builder.add(index, spec).unwrap();
        }
        builder.build()
    }

    fn get(path: &str) -> RouteRequest<'_> {
        RouteRequest { host: b"", method: b"GET", path: path.as_bytes(), query: None, headers: &[] }
    }

    fn index(router: &Router, request: &RouteRequest<'_>) -> Option<u32> {
        match router.find(request) {
            Found::Route { index, .. } => Some(index),
            _ => None,
        }
    }

    #[test]
    fn captures_are_spans_of_the_path() {
        let mut builder = RouterBuilder::new();
        assert_eq!(builder.add(7, spec("/api/{kind}/{id}/{*rest}")).unwrap(), ["kind", "id", "rest"]);
        let router = builder.build();
        for (path, rest) in [("/api/p%20q/12/x/y", "x/y"), ("/api/p%20q/12/", "")] {
            let Found::Route { index: 7, captures } = router.find(&get(path)) else { panic!("{path}") };
            let capture = |at| captures.get(at, path.as_bytes()).map(|text| std::str::from_utf8(text).unwrap());
            assert_eq!([capture(0), capture(1), capture(2), capture(3)], [Some("p%20q"), Some("12"), Some(rest), None]);
        }
        assert_eq!(router.find(&get("/api/p/12")), Found::Nothing);
    }

    #[test]
    fn prefixes_end_at_segments() {
        let router = router([prefix("/api"), prefix("/files/")]);
        for path in ["/api", "/api/", "/api/x/y"] {
            assert_eq!(index(&router, &get(path)), Some(0), "{path}");
        }
        assert_eq!(index(&router, &get("/files/")), Some(1));
        for path in ["/apix", "/", "/files", "/filesx", "/ap"] {
            assert_eq!(index(&router, &get(path)), None, "{path}");
        }
    }

    #[test]
    fn a_more_specific_route_that_fails_hides_nothing() {
        let mut tier = spec("/a/b");
        tier.headers.push(("x-tier".to_owned(), ValueMatch::Present));
        tier.hosts.push("example.com".to_owned());
        let router = router([tier, only(&["POST"], spec("/a/{x}")), prefix("/")]);
        let headers = [httparse::Header { name: "X-Tier", value: b"1" }];
        let at_host = RouteRequest { host: b"Example.com", ..get("/a/b") };
        assert_eq!(index(&router, &RouteRequest { headers: &headers, ..at_host }), Some(0));
        assert_eq!(index(&router, &RouteRequest { method: b"POST", ..at_host }), Some(1));
        assert_eq!(index(&router, &at_host), Some(2));
    }

    #[test]
    fn a_priority_beats_everything() {
        let high = RouteSpec { priority: 1, ..prefix("/") };
        let low = RouteSpec { priority: -1, hosts: vec!["a.b".to_owned()], ..spec("/a") };
        let router = router([low, spec("/a"), only(&["GET"], high)]);
        assert_eq!(index(&router, &RouteRequest { host: b"a.b", ..get("/a") }), Some(2));
        assert_eq!(index(&router, &RouteRequest { host: b"a.b", method: b"PUT", ..get("/a") }), Some(1));
    }

    #[test]
    fn the_wrong_method_is_told_apart() {
        let mut hidden = only(&["PATCH"], spec("/a"));
        hidden.query.push(("q".to_owned(), ValueMatch::Present));
        let router = router([
            only(&["POST", "PURGE"], spec("/a")),
            only(&["GET"], prefix("/")),
            only(&["DELETE"], spec("/{x}")),
            hidden,
        ]);
        let put = RouteRequest { method: b"PUT", ..get("/a") };
        assert_eq!(router.find(&put), Found::WrongMethod);
        let mut out = b"Allow: ".to_vec();
        router.allow(&put, &mut out);
        assert_eq!(out, b"Allow: DELETE, GET, HEAD, POST, PURGE");
        assert_eq!(index(&router, &RouteRequest { method: b"HEAD", ..put }), Some(1));
    }

    #[test]
    fn duplicates_are_found_however_they_are_written() {
        let mut builder = RouterBuilder::new();
        let mut first = only(&["GET", "POST"], spec("/a/{x}"));
        first.hosts = vec!["a.b".to_owned(), "*.c".to_owned()];
        first.headers = vec![("x".to_owned(), ValueMatch::Present), ("y".to_owned(), ValueMatch::Absent)];
        let mut second = only(&["POST", "HEAD", "GET"], spec("/a/{y}"));
        second.hosts = vec!["*.C".to_owned(), "A.b".to_owned(), "a.b".to_owned()];
        second.headers = first.headers.iter().rev().cloned().collect();
        builder.add(3, first).unwrap();
        assert_eq!(builder.add(4, second.clone()), Err(RouteError::Duplicate(3)));
        builder.add(5, RouteSpec { priority: 1, ..second }).unwrap();
        builder.add(6, prefix("/f/")).unwrap();
        assert_eq!(builder.add(7, spec("/f/{*rest}")), Err(RouteError::Duplicate(6)));
    }

    #[test]
    fn what_is_no_path_matches_nothing() {
        let router = router([prefix("/")]);
        let long = "/".repeat(PATH_BYTES_MAX);
        assert_eq!(index(&router, &get(&long)), Some(0));
        for path in ["", "*", "a", &format!("{long}/")] {
            assert_eq!(router.find(&get(path)), Found::Nothing);
        }
        assert_eq!(Router::default().find(&get("/")), Found::Nothing);
    }
}
