//! The route table: host, path, method, header and query, in one pass over the path.
//!
//! # Order
//! Among the routes that match a request, the one with the highest `priority` wins (default 0). Among equals:
//! an exact host before a wildcard host (longest suffix first) before no host; within one host, segment by segment from
//! the left, a literal segment before a `{parameter}` before a prefix's or catch-all's rest; an exact path before a
//! prefix of the same length; more conditions (method, headers, query) before fewer; then the order in the file.
//! A route whose conditions fail does not hide a less specific one that matches.

/// Most parameters one path may capture.
pub const CAPTURES_MAX: usize = 8;

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
}

/// What a header or query condition asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
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
    /// last, the rest of the path without its leading slash, may be empty).
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
    /// The index of the earlier route with the same hosts, path, methods, conditions and priority.
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
pub struct Router {}

/// Collects routes, checks them and builds the table.
#[derive(Debug, Default)]
pub struct RouterBuilder {}

impl RouterBuilder {
    pub fn new() -> Self {
        Self {}
    }

    /// Adds a route under the caller's `index` (returned by a match). Gives back the names that its path captures.
    pub fn add(&mut self, index: u32, spec: RouteSpec) -> Result<Vec<String>, RouteError> {
        let _ = (index, spec);
        Ok(Vec::new())
    }

    pub fn build(self) -> Router {
        Router {}
    }
}

impl Router {
    /// Finds the route of a request. Allocates nothing.
    pub fn find(&self, request: &RouteRequest<'_>) -> Found {
        let _ = request;
        Found::Nothing
    }

    /// The methods of all routes that match but for the method, as an `Allow` value, sorted: `GET, HEAD, POST`.
    pub fn allow(&self, request: &RouteRequest<'_>, out: &mut Vec<u8>) {
        let _ = (request, out);
    }
}
