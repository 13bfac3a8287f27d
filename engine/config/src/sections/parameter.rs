//! What a parameter of the path or the query must look like.

use ringway_core::access::validate::{Pattern, Shape};
use schemars::{Schema, SchemaGenerator, json_schema};

use crate::decode::{Cx, Decode, OneOrMore, Spanned};
use crate::error::Span;
use crate::scalar::{Int, choice};
use crate::shape::shape;
use crate::tree::{Node, Value};

const CHARS_MAX: i64 = 1 << 20;

shape! {
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
        /// It must be there. Of the query only: a path has all of its parameters.
        required: Spanned<bool> = "false",
        /// It may occur more than once. Of the query only.
        repeated: Spanned<bool> = "false",
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

choice! {
    ParameterType {
        "text" => ParameterType::Text,
        "integer" => ParameterType::Integer,
        "number" => ParameterType::Number,
        "boolean" => ParameterType::Boolean,
        "uuid" => ParameterType::Uuid,
    }
}

/// A rule for a path parameter.
#[derive(Debug)]
pub(crate) struct PathRule(pub(super) Shape);

/// A rule for a query parameter.
#[derive(Debug)]
pub(crate) struct QueryRuleSection {
    pub(super) shape: Shape,
    pub(super) required: bool,
    pub(super) repeated: bool,
}

impl Decode for PathRule {
    fn kind() -> String {
        "a type, or a section of keys".into()
    }

    fn decode(node: &Node, cx: &mut Cx) -> Option<Self> {
        match &node.value {
            Value::Map(_) => {
                let section = ParameterSection::decode(node, cx)?;
                for (key, given) in [("required", &section.required), ("repeated", &section.repeated)] {
                    if given.value {
                        cx.error(given.span, format!("`{key}` has no effect in a path"), None);
                    }
                }
                section.compile(cx).map(Self)
            }
            _ => ParameterType::decode(node, cx).map(|kind| Self(kind.shape())),
        }
    }

    fn schema(generator: &mut SchemaGenerator) -> Schema {
        json_schema!({ "anyOf": [ParameterType::schema(generator), ParameterSection::schema(generator)] })
    }
}

impl Decode for QueryRuleSection {
    fn kind() -> String {
        PathRule::kind()
    }

    fn decode(node: &Node, cx: &mut Cx) -> Option<Self> {
        if !matches!(node.value, Value::Map(_)) {
            let shape = ParameterType::decode(node, cx)?.shape();
            return Some(Self { shape, required: false, repeated: false });
        }
        let section = ParameterSection::decode(node, cx)?;
        let (required, repeated) = (section.required.value, section.repeated.value);
        section.compile(cx).map(|shape| Self { shape, required, repeated })
    }

    fn schema(generator: &mut SchemaGenerator) -> Schema {
        PathRule::schema(generator)
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
        let mut refuse = |keys: &[(&str, Option<Span>)], why: &str| {
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
