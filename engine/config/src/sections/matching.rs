//! What a route asks of a request.

use ringway_core::router::{PathMatch, RouteError, RouteSpec, ValueMatch};
use schemars::{Schema, SchemaGenerator, json_schema};

use super::headers::HeaderName;
use crate::decode::{Cx, Decode, OneOrMore, Pairs, Spanned};
use crate::error::Span;
use crate::scalar::{is_token, text_schema};
use crate::shape::shape;
use crate::tree::{Node, Value};

shape! {
    /// What a route asks of a request; what is left out is not asked. Neither `path` nor `prefix`: every path.
    pub(crate) struct MatchSection {
        /// Host names, exact or `*.example.com` (one or more labels); any case, without the port.
        host: Option<OneOrMore<Spanned<String>>>,
        /// The whole path. `/products/{id}`: a parameter is one segment. `/files/{*rest}`: a catch-all, last, may be
        /// empty.
        path: Option<Spanned<String>>,
        /// The front of the path, whole segments: `/api` matches `/api` and `/api/x`, never `/apix`.
        prefix: Option<Spanned<String>>,
        /// Methods. `GET` matches `HEAD` too.
        methods: Option<OneOrMore<Spanned<Method>>>,
        /// By header name: its value, or a section of one condition.
        headers: Pairs<HeaderName, Condition> = "{}",
        /// By query parameter, percent-decoded: its value, or a section of one condition.
        query: Pairs<String, Condition> = "{}",
    }

    /// A condition on a header or a query parameter: exactly one of these.
    struct ConditionSection {
        /// The whole value.
        exact: Option<String>,
        /// How the value begins.
        prefix: Option<String>,
        /// `true`: it is there, with any value.
        present: Option<bool>,
        /// `true`: it is not there.
        absent: Option<bool>,
    }
}

/// A method: an upper-case token.
#[derive(Debug, Clone)]
pub(crate) struct Method(pub(crate) String);

impl Decode for Method {
    fn kind() -> String {
        "a method".into()
    }

    fn decode(node: &Node, cx: &mut Cx) -> Option<Self> {
        let text = node.scalar().map_or("", |scalar| &scalar.text);
        if is_token(text) && text.len() <= 64 && !text.bytes().any(|byte| byte.is_ascii_lowercase()) {
            return Some(Self(text.to_owned()));
        }
        let upper = is_token(text).then(|| format!("did you mean `{}`?", text.to_ascii_uppercase()));
        cx.mismatch::<Self>(node, upper);
        None
    }

    fn schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "pattern": "^[^a-z]+$" })
    }
}

#[derive(Debug, Clone)]
pub(crate) struct Condition(ValueMatch);

impl Decode for Condition {
    fn kind() -> String {
        "text, or one of `exact`, `prefix`, `present`, `absent`".into()
    }

    fn decode(node: &Node, cx: &mut Cx) -> Option<Self> {
        if !matches!(node.value, Value::Map(_)) {
            if node.scalar().is_none_or(|scalar| scalar.is_null()) {
                cx.mismatch::<Self>(node, None);
                return None;
            }
            return String::decode(node, cx).map(|text| Self(ValueMatch::Exact(text.into())));
        }
        let section = ConditionSection::decode(node, cx)?;
        let presence = |there: bool| if there { ValueMatch::Present } else { ValueMatch::Absent };
        let given: Vec<ValueMatch> = [
            section.exact.map(|text| ValueMatch::Exact(text.into())),
            section.prefix.map(|text| ValueMatch::Prefix(text.into())),
            section.present.map(presence),
            section.absent.map(|absent| presence(!absent)),
        ]
        .into_iter()
        .flatten()
        .collect();
        match <[ValueMatch; 1]>::try_from(given) {
            Ok([one]) => Some(Self(one)),
            Err(_) => {
                cx.error(node.span, "expected exactly one of `exact`, `prefix`, `present`, `absent`", None);
                None
            }
        }
    }

    fn schema(generator: &mut SchemaGenerator) -> Schema {
        json_schema!({ "anyOf": [text_schema(), ConditionSection::schema(generator)] })
    }
}

impl MatchSection {
    pub(crate) fn spec(&self, priority: i32, cx: &mut Cx) -> Option<RouteSpec> {
        let path = match (&self.path, &self.prefix) {
            (Some(_), Some(prefix)) => {
                cx.error(prefix.span, "a route has a `path` or a `prefix`, not both", None);
                return None;
            }
            (Some(path), None) => PathMatch::Pattern(path.value.clone()),
            (None, Some(prefix)) => PathMatch::Prefix(prefix.value.clone()),
            (None, None) => PathMatch::Prefix("/".into()),
        };
        Some(RouteSpec {
            hosts: self.hosts().iter().map(|host| host.value.clone()).collect(),
            path,
            methods: self.methods().iter().map(|method| method.value.0.clone()).collect(),
            headers: self.headers.0.iter().map(|(name, value)| (name.value.0.clone(), value.0.clone())).collect(),
            query: self.query.0.iter().map(|(name, value)| (name.value.clone(), value.0.clone())).collect(),
            priority,
        })
    }

    fn hosts(&self) -> &[Spanned<String>] {
        self.host.as_ref().map_or(&[], |hosts| &hosts.0)
    }

    fn methods(&self) -> &[Spanned<Method>] {
        self.methods.as_ref().map_or(&[], |methods| &methods.0)
    }

    /// The path as it is written, and where.
    pub(crate) fn written(&self) -> Option<&Spanned<String>> {
        self.path.as_ref().or(self.prefix.as_ref())
    }

    /// `GET api.example.com/orders/{id}`: what an unnamed route is called by.
    pub(crate) fn summary(&self) -> String {
        let methods: Vec<&str> = self.methods().iter().map(|method| method.value.0.as_str()).collect();
        let host = self.hosts().first().map_or("", |host| &host.value);
        let path = match (&self.path, &self.prefix) {
            (Some(path), _) => path.value.clone(),
            (None, prefix) => {
                let front = prefix.as_ref().map_or("", |prefix| prefix.value.trim_end_matches('/'));
                format!("{front}/*")
            }
        };
        let space = if methods.is_empty() { "" } else { " " };
        format!("{}{space}{host}{path}", methods.join(","))
    }

    /// Where an error of the router belongs, and what to do about it.
    pub(crate) fn explain(&self, error: &RouteError, route: Span) -> (Span, Option<String>) {
        let path = self.written().map_or(route, |path| path.span);
        match error {
            RouteError::BadHost(text) => {
                let host = self.hosts().iter().find(|host| host.value.eq_ignore_ascii_case(text));
                let hint = "`api.example.com` or `*.example.com`, without scheme and port";
                (host.map_or(route, |host| host.span), Some(hint.into()))
            }
            RouteError::BadMethod(text) => {
                let method = self.methods().iter().find(|method| method.value.0 == *text);
                (method.map_or(route, |method| method.span), None)
            }
            RouteError::Duplicate(_) => {
                (route, Some("change its `match`, or give one of them a higher `priority`".into()))
            }
            RouteError::BadParameter(_) => (path, Some("such as `/products/{id}` or `/files/{*rest}`".into())),
            RouteError::NotAbsolute
            | RouteError::NotNormal(_)
            | RouteError::RepeatedParameter(_)
            | RouteError::CatchAllNotLast(_)
            | RouteError::TooManyParameters => (path, None),
        }
    }
}
