//! What requests must look like.

use std::collections::HashSet;
use std::io::Read;
use std::path::Path;

use ringway_core::access::Validation;
use ringway_core::access::validate::{BodyRule, MediaRange, Pattern, QUERY_RULES_MAX, QueryRule, Schema, Shape};
use schemars::{Schema as JsonSchema, SchemaGenerator, json_schema};

use super::action::JsonBody;
use super::headers::HeaderName;
use crate::decode::{Cx, Decode, OneOrMore, Pairs, Spanned};
use crate::scalar::{Int, choice, parsed};
use crate::shape::shape;
use crate::suggest;
use crate::tree::{Node, Value};
use crate::units::{MIB, Size};

/// Most bytes of a file with a schema.
const SCHEMA_BYTES_MAX: u64 = MIB;
const CHARS_MAX: i64 = 1 << 20;

shape! {
    /// What requests must look like; 400 for others, 415 where the content's type is to blame. The answer names the
    /// place and the problem, never what was sent.
    pub(crate) struct ValidateSection {
        /// By parameter of the route's path: a type, or a section.
        path: Pairs<String, PathRule> = "{}",
        /// By query parameter, percent-decoded: a type, or a section.
        query: Pairs<String, QuerySection> = "{}",
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

    /// What a parameter must look like.
    struct ParameterSection {
        /// `text`, `integer`, `number`, `boolean` or `uuid`.
        r#type: ParameterType = "text",
        /// Of an integer or a number.
        min: Option<Spanned<String>>,
        /// Of an integer or a number.
        max: Option<Spanned<String>>,
        /// Of a text, in characters.
        min_length: Option<Spanned<Int<0, CHARS_MAX>>>,
        /// Of a text, in characters.
        max_length: Option<Spanned<Int<0, CHARS_MAX>>>,
        /// A regular expression that the whole text matches.
        pattern: Option<Spanned<String>>,
        /// The only values that it may have.
        one_of: Option<Spanned<OneOrMore<String>>>,
    }

    /// What a query parameter must look like.
    struct QueryParameterSection {
        /// `text`, `integer`, `number`, `boolean` or `uuid`.
        r#type: ParameterType = "text",
        /// Of an integer or a number.
        min: Option<Spanned<String>>,
        /// Of an integer or a number.
        max: Option<Spanned<String>>,
        /// Of a text, in characters.
        min_length: Option<Spanned<Int<0, CHARS_MAX>>>,
        /// Of a text, in characters.
        max_length: Option<Spanned<Int<0, CHARS_MAX>>>,
        /// A regular expression that the whole text matches.
        pattern: Option<Spanned<String>>,
        /// The only values that it may have.
        one_of: Option<Spanned<OneOrMore<String>>>,
        /// It must be there.
        required: bool = "false",
        /// It may occur more than once.
        repeated: bool = "false",
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
enum ParameterType {
    Text,
    Integer,
    Number,
    Boolean,
    Uuid,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unknown {
    Allow,
    Refuse,
}

choice! {
    ParameterType {
        "text" => ParameterType::Text,
        "integer" => ParameterType::Integer,
        "number" => ParameterType::Number,
        "boolean" => ParameterType::Boolean,
        "uuid" => ParameterType::Uuid,
    }
    Unknown { "allow" => Unknown::Allow, "refuse" => Unknown::Refuse }
}

/// A rule for a path parameter.
#[derive(Debug)]
pub(crate) struct PathRule(Shape);

/// A rule for a query parameter.
#[derive(Debug)]
pub(crate) struct QuerySection {
    shape: Shape,
    required: bool,
    repeated: bool,
}

impl Decode for PathRule {
    fn kind() -> String {
        "a type, or a section of keys".into()
    }

    fn decode(node: &Node, cx: &mut Cx) -> Option<Self> {
        match &node.value {
            Value::Map(_) => ParameterSection::decode(node, cx)?.compile(cx).map(Self),
            _ => ParameterType::decode(node, cx).map(|kind| Self(kind.shape())),
        }
    }

    fn schema(generator: &mut SchemaGenerator) -> JsonSchema {
        json_schema!({ "anyOf": [ParameterType::schema(generator), ParameterSection::schema(generator)] })
    }
}

impl Decode for QuerySection {
    fn kind() -> String {
        PathRule::kind()
    }

    fn decode(node: &Node, cx: &mut Cx) -> Option<Self> {
        if !matches!(node.value, Value::Map(_)) {
            let shape = ParameterType::decode(node, cx)?.shape();
            return Some(Self { shape, required: false, repeated: false });
        }
        let QueryParameterSection { r#type, min, max, min_length, max_length, pattern, one_of, required, repeated } =
            QueryParameterSection::decode(node, cx)?;
        let parameter = ParameterSection { r#type, min, max, min_length, max_length, pattern, one_of };
        parameter.compile(cx).map(|shape| Self { shape, required, repeated })
    }

    fn schema(generator: &mut SchemaGenerator) -> JsonSchema {
        json_schema!({ "anyOf": [ParameterType::schema(generator), QueryParameterSection::schema(generator)] })
    }
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

impl ParameterType {
    /// Without any bounds.
    fn shape(self) -> Shape {
        match self {
            Self::Text => Shape::Text { chars_min: 0, chars_max: usize::MAX, pattern: None },
            Self::Integer => Shape::Integer { min: i64::MIN, max: i64::MAX },
            Self::Number => Shape::Number { min: f64::NEG_INFINITY, max: f64::INFINITY },
            Self::Boolean => Shape::Boolean,
            Self::Uuid => Shape::Uuid,
        }
    }
}

impl ParameterSection {
    fn compile(self, cx: &mut Cx) -> Option<Shape> {
        self.check_keys(cx)?;
        if let Some(words) = self.one_of {
            return Some(Shape::OneOf(words.value.0.into_iter().map(Box::from).collect()));
        }
        let last = self.max.as_ref().map(|max| max.span).or(self.max_length.as_ref().map(|max| max.span));
        let (shape, ordered) = match self.r#type {
            ParameterType::Integer => {
                let min = bound(self.min, i64::MIN, "a whole number", cx);
                let max = bound(self.max, i64::MAX, "a whole number", cx);
                (Shape::Integer { min: min?, max: max? }, min <= max)
            }
            ParameterType::Number => {
                let min = bound(self.min, f64::NEG_INFINITY, "a number", cx);
                let max = bound(self.max, f64::INFINITY, "a number", cx);
                (Shape::Number { min: min?, max: max? }, min <= max)
            }
            ParameterType::Text => {
                let length = |length: Option<Spanned<Int<0, CHARS_MAX>>>| length.map(|length| length.value.0 as usize);
                let chars_min = length(self.min_length).unwrap_or(0);
                let chars_max = length(self.max_length).unwrap_or(usize::MAX);
                let pattern = self.pattern.map(|text| {
                    Pattern::compile(&text.value)
                        .map_err(|problem| cx.error(text.span, format!("not a regular expression: {problem}"), None))
                });
                let pattern = pattern.transpose().ok()?;
                (Shape::Text { chars_min, chars_max, pattern }, chars_min <= chars_max)
            }
            other => (other.shape(), true),
        };
        if let (false, Some(span)) = (ordered, last) {
            cx.error(span, "the lower bound is above the upper one", None);
        }
        Some(shape)
    }

    /// Every key must have an effect.
    fn check_keys(&self, cx: &mut Cx) -> Option<()> {
        let bounds = [("min", self.min.as_ref().map(|min| min.span)), ("max", self.max.as_ref().map(|max| max.span))];
        let text = [
            ("min_length", self.min_length.as_ref().map(|min| min.span)),
            ("max_length", self.max_length.as_ref().map(|max| max.span)),
            ("pattern", self.pattern.as_ref().map(|pattern| pattern.span)),
        ];
        let listed = [("one_of", self.one_of.as_ref().map(|words| words.span))];
        let is_text = self.r#type == ParameterType::Text;
        let is_number = matches!(self.r#type, ParameterType::Integer | ParameterType::Number);
        let mut good = Some(());
        let mut refuse = |keys: &[(&str, Option<crate::error::Span>)], why: &str| {
            for (key, span) in keys {
                if let Some(span) = span {
                    cx.error(*span, format!("`{key}` has no effect {why}"), None);
                    good = None;
                }
            }
        };
        if !is_number {
            refuse(&bounds, "here: it belongs to `type: integer` and `type: number`");
        }
        if !is_text {
            refuse(&text, "here: it belongs to `type: text`");
            refuse(&listed, "here: it belongs to `type: text`");
        } else if self.one_of.is_some() {
            refuse(&text, "beside `one_of`");
        }
        good
    }
}

fn bound<T: std::str::FromStr>(text: Option<Spanned<String>>, none: T, what: &str, cx: &mut Cx) -> Option<T> {
    let Some(text) = text else { return Some(none) };
    let number = text.value.bytes().all(|byte| byte.is_ascii_digit() || b"-.eE".contains(&byte));
    match number.then(|| text.value.parse().ok()).flatten() {
        Some(value) => Some(value),
        None => {
            cx.error(text.span, format!("a bound of this type is {what}"), None);
            None
        }
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
