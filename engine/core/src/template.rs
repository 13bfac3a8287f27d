//! Values with variables, compiled once: header values, redirect targets and path rewrites.

use crate::router::Captures;

/// What a variable may name. Written `${request.id}`, `${client.ip}`, `${request.host}`, `${request.method}`,
/// `${request.path}` (normalized, without query), `${request.query}` (without `?`), `${request.scheme}`,
/// `${route}`, `${service}`, `${path.NAME}` (a captured parameter), `${header.NAME}`; `$$` is a dollar sign.
/// In path templates a captured parameter may also be written `{NAME}`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Var {
    RequestId,
    ClientIp,
    Host,
    Method,
    Path,
    Query,
    Scheme,
    Route,
    Service,
    /// Index into [`Captures`].
    Capture(usize),
    /// A request header, lower case; its first value, empty where there is none.
    Header(Box<str>),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    Literal(Box<[u8]>),
    Var(Var),
}

/// A compiled template.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Template {
    pieces: Box<[Piece]>,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    #[error("unknown variable `${{{0}}}`")]
    UnknownVariable(String),
    #[error("`{{{0}}}` is not a parameter of the route's path")]
    UnknownParameter(String),
    #[error("`${{` without a closing `}}`")]
    Unclosed,
    #[error("a header value must not contain control characters")]
    ControlCharacter,
}

/// What the variables stand for in one request.
#[derive(Clone, Copy)]
pub struct Vars<'a> {
    pub request_id: &'a [u8],
    pub client_ip: &'a [u8],
    pub host: &'a [u8],
    pub method: &'a [u8],
    pub path: &'a [u8],
    pub query: Option<&'a [u8]>,
    pub scheme: &'a [u8],
    pub route: &'a str,
    pub service: &'a str,
    pub captures: &'a Captures,
    pub headers: &'a [httparse::Header<'a>],
}

impl Template {
    /// Compiles `text`; `parameters` are the names that the route's path captures, in order.
    /// `braces`: whether `{NAME}` stands for a parameter too (path templates).
    pub fn compile(text: &str, parameters: &[String], braces: bool) -> Result<Self, TemplateError> {
        let _ = (text, parameters, braces);
        Err(TemplateError::Unclosed)
    }

    /// Appends the value to `out`. A variable's bytes that could end a header line (CR, LF, NUL) are left out.
    pub fn render(&self, vars: &Vars<'_>, out: &mut Vec<u8>) {
        let _ = (vars, out);
    }

    /// The whole value, where it has no variables.
    pub fn as_literal(&self) -> Option<&[u8]> {
        None
    }
}

/// Header changes, applied in the order remove, set, add. Names are lower case. Hop-by-hop and framing headers
/// (`connection`, `content-length`, `transfer-encoding`, `te`, `trailer`, `upgrade`, `keep-alive`,
/// `proxy-connection`) and `host` in `request_headers` are refused by the configuration.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HeaderOps {
    pub remove: Box<[Box<str>]>,
    pub set: Box<[(Box<str>, Template)]>,
    pub add: Box<[(Box<str>, Template)]>,
}

impl HeaderOps {
    pub fn is_empty(&self) -> bool {
        self.remove.is_empty() && self.set.is_empty() && self.add.is_empty()
    }

    /// Whether a header of this name (any case) is dropped: removed, or replaced by `set`.
    pub fn drops(&self, name: &str) -> bool {
        let _ = name;
        false
    }
}
