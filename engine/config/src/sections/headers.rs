//! Templates and header changes.

use std::collections::HashSet;

use ringway_core::template::{HeaderOps, Template, TemplateError};
use schemars::{Schema, SchemaGenerator, json_schema};

use crate::decode::{Cx, Decode, OneOrMore, Pairs, Spanned};
use crate::scalar::{is_token, text_schema};
use crate::shape::shape;
use crate::suggest;
use crate::tree::Node;

shape! {
    /// Changes of headers, made in the order remove, set, add. Values may have variables (`${request.id}`).
    pub(crate) struct HeaderSection {
        /// Names of headers to drop.
        remove: Vec<Spanned<HeaderName>> = "[]",
        /// Replaces the header, or adds it.
        set: Pairs<HeaderName, Spanned<TemplateText>> = "{}",
        /// Adds a header, or several of one name, beside what is there.
        add: Pairs<HeaderName, OneOrMore<Spanned<TemplateText>>> = "{}",
    }
}

/// The hop-by-hop headers (RFC 9110 section 7.6.1) and those that frame a message: the gateway's own business.
const OWN: [&str; 8] =
    ["connection", "content-length", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade"];

/// A header's name, in lower case.
#[derive(Debug, Clone)]
pub(crate) struct HeaderName(pub(crate) String);

impl HeaderName {
    fn boxed(&self) -> Box<str> {
        Box::from(self.0.as_str())
    }
}

impl Decode for HeaderName {
    fn kind() -> String {
        "a header name".into()
    }

    fn decode(node: &Node, cx: &mut Cx) -> Option<Self> {
        match node.scalar() {
            Some(scalar) if is_token(&scalar.text) && !scalar.is_null() && scalar.text.len() <= 256 => {
                Some(Self(scalar.text.to_ascii_lowercase()))
            }
            _ => {
                cx.mismatch::<Self>(node, None);
                None
            }
        }
    }

    fn schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string" })
    }
}

/// Text with variables. What came from outside of the file stands for itself, also a `$` in it.
#[derive(Debug, Clone)]
pub(crate) struct TemplateText(pub(crate) String);

impl Decode for TemplateText {
    fn kind() -> String {
        "text with variables".into()
    }

    fn decode(node: &Node, cx: &mut Cx) -> Option<Self> {
        let text = String::decode(node, cx)?;
        let Some(origin) = node.scalar().and_then(|scalar| scalar.origin.as_ref()) else { return Some(Self(text)) };
        let (mut escaped, mut end) = (String::with_capacity(text.len()), 0);
        for range in &origin.inserted {
            escaped.push_str(text.get(end..range.start).unwrap_or(""));
            escaped.push_str(&text.get(range.clone()).unwrap_or("").replace('$', "$$"));
            end = range.end;
        }
        escaped.push_str(text.get(end..).unwrap_or(""));
        Some(Self(escaped))
    }

    fn schema(_: &mut SchemaGenerator) -> Schema {
        text_schema()
    }
}

impl Spanned<TemplateText> {
    /// Compiles the text. `braces`: `{NAME}` stands for a parameter of the path.
    pub(crate) fn compile(&self, parameters: &[String], braces: bool, cx: &mut Cx) -> Option<Template> {
        let error = match Template::compile(&self.value.0, parameters, braces) {
            Ok(template) => return Some(template),
            Err(error) => error,
        };
        let hint = match &error {
            TemplateError::UnknownVariable(name) => variable_hint(name, parameters),
            TemplateError::UnknownParameter(name) if parameters.is_empty() => {
                Some(format!("the route's path has no parameters: `match: {{ path: /…/{{{name}}} }}`"))
            }
            TemplateError::UnknownParameter(name) => {
                let known: Vec<&str> = parameters.iter().map(String::as_str).collect();
                suggest::hint(name, &known, "its parameters")
            }
            TemplateError::Unclosed => Some("a dollar sign is written `$$`".into()),
            TemplateError::ControlCharacter => None,
        };
        cx.sink.error(self.span, error.to_string(), hint);
        None
    }
}

fn variable_hint(name: &str, parameters: &[String]) -> Option<String> {
    let mut known: Vec<String> = [
        "request.id",
        "client.ip",
        "request.host",
        "request.method",
        "request.path",
        "request.query",
        "request.scheme",
        "route",
        "service",
    ]
    .map(String::from)
    .to_vec();
    known.extend(parameters.iter().map(|parameter| format!("path.{parameter}")));
    known.push("header.NAME".into());
    let known: Vec<&str> = known.iter().map(String::as_str).collect();
    suggest::hint(name, &known, "the variables here")
}

impl HeaderSection {
    /// `request`: these are changes of the request, whose `Host` has its own key.
    pub(crate) fn compile(&self, request: bool, parameters: &[String], cx: &mut Cx) -> HeaderOps {
        let mut remove = Vec::with_capacity(self.remove.len());
        for name in &self.remove {
            check(name, request, cx);
            remove.push(name.value.boxed());
        }
        let (mut set, mut names) = (Vec::new(), HashSet::new());
        for (name, text) in &self.set.0 {
            check(name, request, cx);
            if !names.insert(&name.value.0) {
                cx.error(name.span, format!("the header `{}` is set twice", name.value.0), "names have no case");
            }
            let template = text.compile(parameters, false, cx);
            set.extend(template.map(|template| (name.value.boxed(), template)));
        }
        let mut add = Vec::new();
        for (name, texts) in &self.add.0 {
            check(name, request, cx);
            for text in &texts.0 {
                let template = text.compile(parameters, false, cx);
                add.extend(template.map(|template| (name.value.boxed(), template)));
            }
        }
        HeaderOps { remove: remove.into(), set: set.into(), add: add.into() }
    }
}

fn check(name: &Spanned<HeaderName>, request: bool, cx: &mut Cx) {
    let text = name.value.0.as_str();
    if OWN.contains(&text) {
        cx.error(name.span, format!("`{text}` is the gateway's own: it belongs to one connection"), None);
    }
    if request && text == "host" {
        cx.error(name.span, "`host` is not changed here", "the route's key `host`: `keep`, `endpoint` or a name");
    }
}
