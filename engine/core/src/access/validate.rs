//! What a request must look like: path and query parameters, headers, content type, JSON body.

mod cost;
mod media;
mod parameter;
mod schema;

use std::borrow::Cow;
use std::fmt;

pub use crate::strict_json::JSON_DEPTH_MAX;
pub use media::MediaRange;
pub use parameter::{PATTERN_BYTES_MAX, Pattern, Shape};
pub use schema::{Schema, SchemaError, WORK_MAX};

pub(super) use parameter::pattern_error;

use crate::router::{Captures, RouteRequest, decoded, pairs};

/// Most query parameters with rules of one route.
pub const QUERY_RULES_MAX: usize = 64;

/// Longest [`Invalid::place`] and [`Invalid::problem`].
pub const INVALID_BYTES_MAX: usize = 200;

/// What is wrong with a request. Names what the client got wrong, never the value it sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invalid {
    /// 400, or 415 (RFC 9110 section 15.5.16) for what is wrong with the content's type or coding.
    pub status: u16,
    /// Such as ``query parameter `page` ``, or a JSON pointer into the body: `/items/0/quantity`.
    pub place: Cow<'static, str>,
    pub problem: Cow<'static, str>,
}

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.problem)
    }
}

impl Invalid {
    fn new(place: impl Into<Cow<'static, str>>, problem: impl Into<Cow<'static, str>>) -> Self {
        Self { status: 400, place: bounded(place.into()), problem: bounded(problem.into()) }
    }

    fn media(problem: &'static str) -> Self {
        Self { status: 415, ..Self::new("content type", problem) }
    }
}

/// At most [`INVALID_BYTES_MAX`], without control characters.
fn bounded(text: Cow<'static, str>) -> Cow<'static, str> {
    if text.len() <= INVALID_BYTES_MAX && !text.contains(char::is_control) {
        return text;
    }
    const CUT: &str = "…";
    let mut out = String::new();
    for c in text.chars() {
        if out.len() + c.len_utf8() > INVALID_BYTES_MAX - CUT.len() {
            out.push_str(CUT);
            break;
        }
        out.push(if c.is_control() { '?' } else { c });
    }
    Cow::Owned(out)
}

/// What is asked of a query parameter.
#[derive(Debug, Clone)]
pub struct QueryRule {
    pub name: Box<str>,
    pub shape: Shape,
    pub required: bool,
    /// Whether it may occur more than once. Who reads one of several may read another than the service does.
    pub repeated: bool,
}

/// What is asked of a body.
#[derive(Debug, Clone)]
pub struct BodyRule {
    pub schema: Schema,
    /// Longer bodies are refused (413): the whole body is held to be looked at.
    pub bytes_max: usize,
    /// Whether POST, PUT and PATCH need a body.
    pub required: bool,
}

/// What is asked of the requests of a route. The default asks for nothing.
#[derive(Debug, Clone, Default)]
pub struct Validation {
    /// Index of the path's parameter, its name, what it must look like.
    pub path: Box<[(usize, Box<str>, Shape)]>,
    /// At most [`QUERY_RULES_MAX`].
    pub query: Box<[QueryRule]>,
    /// Refuse query parameters without a rule.
    pub refuse_unknown_query: bool,
    /// Headers that must be there, names in lower case.
    pub headers: Box<[Box<str>]>,
    /// What a body may be; empty: anything.
    pub content_types: Box<[MediaRange]>,
    pub body: Option<BodyRule>,
}

impl Validation {
    /// How much of a body is held for [`Validation::check_body`]; 413 above. `None`: no need to hold it.
    pub fn body_bytes_max(&self) -> Option<usize> {
        self.body.as_ref().map(|rule| rule.bytes_max)
    }

    /// The value of `Accept` for an answer 415 (RFC 9110 section 15.5.16).
    pub fn accept(&self) -> String {
        self.content_types.iter().map(MediaRange::to_string).collect::<Vec<_>>().join(", ")
    }

    /// Looks at all but the body. `has_body`: whether there is one; a chunked body counts as one.
    ///
    /// Hot; watched by the benchmark `validate`.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn check_head(&self, request: &RouteRequest<'_>, captures: &Captures, has_body: bool) -> Result<(), Invalid> {
        for (index, name, shape) in &self.path {
            let raw = captures.get(*index, request.path).unwrap_or_default();
            let value = path_decoded(raw);
            shape.check(&value).map_err(|problem| Invalid::new(format!("path parameter `{name}`"), problem))?;
        }
        if !self.query.is_empty() || self.refuse_unknown_query {
            self.check_query(request.query.unwrap_or_default())?;
        }
        for name in &self.headers {
            if !request.headers.iter().any(|header| header.name.eq_ignore_ascii_case(name)) {
                return Err(Invalid::new(format!("header `{name}`"), "is missing"));
            }
        }
        if has_body {
            self.check_content(request.headers)?;
        } else if self.body.as_ref().is_some_and(|rule| rule.required)
            && matches!(request.method, b"POST" | b"PUT" | b"PATCH")
        {
            return Err(Invalid::new("body", "is missing"));
        }
        Ok(())
    }

    fn check_query(&self, query: &[u8]) -> Result<(), Invalid> {
        let parameter = |name: &str| format!("query parameter `{name}`");
        let mut seen = 0u64;
        for (name, value) in query_pairs(query) {
            let Some(at) = self.query.iter().position(|rule| rule.name.as_bytes() == &*name) else {
                if self.refuse_unknown_query {
                    return Err(Invalid::new(parameter(&String::from_utf8_lossy(&name)), "is not known"));
                }
                continue;
            };
            let Some(rule) = self.query.get(at) else { continue };
            let bit = 1u64.checked_shl(at as u32).unwrap_or(0);
            if seen & bit != 0 && !rule.repeated {
                return Err(Invalid::new(parameter(&rule.name), "occurs more than once"));
            }
            seen |= bit;
            rule.shape.check(&value).map_err(|problem| Invalid::new(parameter(&rule.name), problem))?;
        }
        let missing = self
            .query
            .iter()
            .enumerate()
            .find(|(at, rule)| rule.required && seen & 1u64.checked_shl(*at as u32).unwrap_or(0) == 0);
        missing.map_or(Ok(()), |(_, rule)| Err(Invalid::new(parameter(&rule.name), "is missing")))
    }

    fn check_content(&self, headers: &[httparse::Header<'_>]) -> Result<(), Invalid> {
        let values = |name: &'static str| {
            headers.iter().filter(move |header| header.name.eq_ignore_ascii_case(name)).map(|header| header.value)
        };
        if !self.content_types.is_empty() {
            let mut types = values("content-type");
            match (types.next(), types.next()) {
                (Some(value), None) if self.content_types.iter().any(|range| range.matches(value)) => {}
                (Some(_), None) => return Err(Invalid::media("is not accepted here")),
                (Some(_), Some(_)) => return Err(Invalid::media("is given more than once")),
                (None, _) => return Err(Invalid::media("is missing")),
            }
        }
        if self.body.is_some()
            && values("content-encoding").any(|value| !value.trim_ascii().eq_ignore_ascii_case(b"identity"))
        {
            return Err(Invalid::media("is accepted here without a content coding only"));
        }
        Ok(())
    }

    /// Looks at the whole body, where there is one.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn check_body(&self, body: &[u8]) -> Result<(), Invalid> {
        match &self.body {
            Some(rule) => rule.schema.check(body),
            None => Ok(()),
        }
    }
}

/// The (name, value) pairs of a query, decoded: `application/x-www-form-urlencoded` (WHATWG URL section 5.1).
pub(super) fn query_pairs(query: &[u8]) -> impl Iterator<Item = (Cow<'_, [u8]>, Cow<'_, [u8]>)> {
    let decode = |text| match memchr::memchr2(b'%', b'+', text) {
        None => Cow::Borrowed(text),
        Some(_) => Cow::Owned(decoded(text).collect()),
    };
    pairs(query).map(move |(name, value)| (decode(name), decode(value)))
}

/// RFC 3986 section 2.1. The path is normal, so that its escapes are valid.
fn path_decoded(text: &[u8]) -> Cow<'_, [u8]> {
    if memchr::memchr(b'%', text).is_none() {
        return Cow::Borrowed(text);
    }
    let (mut out, mut rest) = (Vec::with_capacity(text.len()), text);
    while let [byte, tail @ ..] = rest {
        rest = tail;
        match (byte, tail) {
            (b'%', [high, low, tail @ ..]) if let Some(byte) = crate::path::unhex(*high, *low) => {
                out.push(byte);
                rest = tail;
            }
            _ => out.push(*byte),
        }
    }
    Cow::Owned(out)
}

#[cfg(test)]
mod tests;
