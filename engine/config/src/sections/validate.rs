//! What requests must look like.

use std::collections::HashSet;
use std::io::Read;
use std::path::Path;

use ringway_core::access::Validation;
use ringway_core::access::validate::{BodyRule, MediaRange, QUERY_RULES_MAX, QueryRule, Schema};
use schemars::{Schema as JsonSchema, SchemaGenerator, json_schema};

use super::action::JsonBody;
use super::headers::HeaderName;
use super::parameter::{PathRule, QueryRuleSection};
use crate::decode::{Cx, Decode, OneOrMore, Pairs, Spanned};
use crate::scalar::{choice, parsed};
use crate::shape::shape;
use crate::suggest;
use crate::tree::Node;
use crate::units::{MIB, Size};

/// Most bytes of a file with a schema.
const SCHEMA_BYTES_MAX: u64 = MIB;

shape! {
    /// What requests must look like; 400 for others, 415 where the content's type is to blame. The answer names the
    /// place and the problem, never what was sent.
    pub(crate) struct ValidateSection {
        /// By parameter of the route's path: a type, or a section.
        path: Pairs<String, PathRule> = "{}",
        /// By query parameter, percent-decoded: a type, or a section.
        query: Pairs<String, QueryRuleSection> = "{}",
        /// Query parameters without a rule: `allow`, `refuse`.
        unknown_query: Unknown = "allow",
        /// Headers that must be there.
        headers: Vec<HeaderName> = "[]",
        /// What a body may be: `application/json`, `image/*`, `application/*+json`. Without it: with a schema
        /// `application/json` and `application/*+json`, else anything.
        content_types: Option<OneOrMore<MediaText>>,
        /// The body, as JSON.
        body: Option<Spanned<BodySection>>,
    }

    /// The body, as JSON. Exactly one of `schema` and `schema_file`.
    pub(crate) struct BodySection {
        /// A JSON Schema (draft 2020-12), written as YAML. It refers to nothing but itself.
        schema: Option<Spanned<JsonBody>>,
        /// A file with one, as JSON; a relative path starts at the directory of the configuration file.
        schema_file: Option<Spanned<String>>,
        /// Longer bodies are refused with 413: the body is held in memory while it is looked at. The route's
        /// `limits.body` holds too.
        max: Size<1, { 16 * MIB }> = "1MiB",
        /// POST, PUT and PATCH need a body.
        required: bool = "true",
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unknown {
    Allow,
    Refuse,
}

choice! {
    Unknown { "allow" => Unknown::Allow, "refuse" => Unknown::Refuse }
}

/// A media type, or a range of them.
#[derive(Debug, Clone)]
pub(crate) struct MediaText(MediaRange);

impl Decode for MediaText {
    fn kind() -> String {
        "a media type".into()
    }

    fn decode(node: &Node, cx: &mut Cx) -> Option<Self> {
        let hint = "such as `application/json`, `image/*` or `application/*+json`, without parameters";
        parsed(node, cx, |text| MediaRange::parse(text).map(Self).ok_or(Some(hint.into())))
    }

    fn schema(_: &mut SchemaGenerator) -> JsonSchema {
        json_schema!({ "type": "string", "pattern": "/" })
    }
}

impl Spanned<ValidateSection> {
    /// `parameters`: what the route's path captures. `body_bytes_max`: the route's limit. `forwards`: the route has a
    /// service.
    pub(crate) fn compile(
        self,
        parameters: &[String],
        body_bytes_max: Option<u64>,
        forwards: bool,
        cx: &mut Cx,
    ) -> Option<Validation> {
        let Spanned { value: section, span } = self;
        let mut path = Vec::new();
        for (name, PathRule(shape)) in section.path.0 {
            match parameters.iter().position(|parameter| *parameter == name.value) {
                Some(index) => path.push((index, Box::from(name.value), shape)),
                None => {
                    let known: Vec<&str> = parameters.iter().map(String::as_str).collect();
                    let hint = suggest::hint(&name.value, &known, "its parameters");
                    let message =
                        format!("the route's path has no parameter `{}`", crate::tree::shortened(&name.value));
                    cx.sink.error(name.span, message, hint);
                }
            }
        }
        if section.query.0.len() > QUERY_RULES_MAX {
            cx.error(span, format!("more than {QUERY_RULES_MAX} query parameters"), None);
        }
        let query = section.query.0.into_iter().map(|(name, rule)| QueryRule {
            name: name.value.into(),
            shape: rule.shape,
            required: rule.required,
            repeated: rule.repeated,
        });
        let mut seen = HashSet::new();
        let headers = section.headers.into_iter().map(|name| name.0).filter(|name| seen.insert(name.clone()));
        if let Some(body) = section.body.as_ref().filter(|_| !forwards) {
            cx.error(body.span, "`body` has no effect in a route without a `service`", None);
        }
        let json = |text| MediaRange::parse(text);
        let content_types: Box<[MediaRange]> = match section.content_types {
            Some(types) => types.0.into_iter().map(|range| range.0).collect(),
            None if section.body.is_some() => {
                ["application/json", "application/*+json"].into_iter().filter_map(json).collect()
            }
            None => Box::default(),
        };
        Some(Validation {
            path: path.into(),
            query: query.collect(),
            refuse_unknown_query: section.unknown_query == Unknown::Refuse,
            headers: headers.map(Box::from).collect(),
            content_types,
            body: match section.body {
                Some(body) => Some(body.compile(body_bytes_max, cx)?),
                None => None,
            },
        })
    }
}

impl Spanned<BodySection> {
    fn compile(self, body_bytes_max: Option<u64>, cx: &mut Cx) -> Option<BodyRule> {
        let section = self.value;
        let (schema, span) = match (section.schema, section.schema_file) {
            (Some(schema), None) => (schema.value.0, schema.span),
            (None, Some(file)) => (read(&file, cx)?, file.span),
            _ => {
                cx.error(self.span, "expected exactly one of `schema` and `schema_file`", None);
                return None;
            }
        };
        let schema = Schema::compile(&schema).map_err(|error| cx.error(span, error.to_string(), None)).ok()?;
        let bytes_max = section.max.0.min(body_bytes_max.unwrap_or(u64::MAX));
        Some(BodyRule {
            schema,
            bytes_max: usize::try_from(bytes_max).unwrap_or(usize::MAX),
            required: section.required,
        })
    }
}

fn read(file: &Spanned<String>, cx: &mut Cx) -> Option<serde_json::Value> {
    let directory = Path::new(cx.sink.source(file.span.source)).parent().unwrap_or(Path::new("")).to_path_buf();
    let text = || -> Result<Vec<u8>, String> {
        let path = directory.join(&file.value);
        // Looked at before it is opened: opening a pipe would wait for a writer.
        if !std::fs::metadata(&path).map_err(|error| error.to_string())?.is_file() {
            return Err("not a file".into());
        }
        let opened = std::fs::File::open(&path).map_err(|error| error.to_string())?;
        let mut bytes = Vec::new();
        opened.take(SCHEMA_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(|error| error.to_string())?;
        if bytes.len() as u64 > SCHEMA_BYTES_MAX {
            return Err(format!("larger than {} KiB", SCHEMA_BYTES_MAX / 1024));
        }
        Ok(bytes)
    };
    let value = text().and_then(|bytes| serde_json::from_slice(&bytes).map_err(|error| format!("not JSON: {error}")));
    value
        .map_err(|error| {
            let hint = "a relative path starts at the directory of the configuration file";
            cx.error(file.span, format!("the schema cannot be used: {error}"), hint);
        })
        .ok()
}
