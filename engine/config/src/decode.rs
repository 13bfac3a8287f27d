//! From the tree to typed values: every error of a value is reported, then the next value is looked at.
//!
//! [`shape!`] declares a section once: its keys, their types, defaults and documentation become the decoder, the
//! JSON Schema and the tables of `docs/CONFIG.md`. Bounds are part of the types ([`crate::scalar`]).

use std::collections::HashMap;

use schemars::{Schema, SchemaGenerator, json_schema};
use serde_json::{Map, Value as Json, json};

use crate::error::{Sink, Span};
use crate::suggest;
use crate::tree::{Entry, Node, Value};

/// A type that the configuration can hold.
pub(crate) trait Decode: Sized {
    /// What is expected, in words that go on from "expected" and that also name the type in the documentation.
    fn kind() -> String;

    /// The value, or `None` after its errors went to the sink.
    fn decode(node: &Node, cx: &mut Cx) -> Option<Self>;

    fn schema(generator: &mut SchemaGenerator) -> Schema;

    /// What a missing key stands for; `None` where it must not be missing.
    fn missing() -> Option<Self> {
        None
    }

    /// What to go on with after an error, so that more errors are found; `None` where nothing makes sense.
    fn recovered() -> Option<Self> {
        None
    }
}

/// What decoding needs besides the node.
pub(crate) struct Cx {
    pub(crate) sink: Sink,
    pub(crate) names: Names,
    /// The word that may stand in place of the value at this place ([`crate::scalar::Or`]).
    pub(crate) word: Option<(Span, &'static str)>,
}

impl Cx {
    pub(crate) fn new(sink: Sink, names: Names) -> Self {
        Self { sink, names, word: None }
    }

    pub(crate) fn error(&mut self, span: Span, message: impl Into<String>, hint: impl Into<Option<&'static str>>) {
        self.sink.error(span, message, hint.into().map(str::to_owned));
    }

    /// Reports that `node` is not a `T`.
    pub(crate) fn mismatch<T: Decode>(&mut self, node: &Node, hint: Option<String>) {
        let (mut expected, mut hint) = (T::kind(), hint);
        if let Some((_, word)) = self.word.filter(|(span, _)| *span == node.span) {
            expected += &format!(", or `{word}`");
            let synonym = |text: &str| matches!(text, "none" | "no" | "false" | "unlimited" | "never" | "0" | "0s");
            if node.scalar().is_some_and(|scalar| scalar.is_null() || synonym(&scalar.text)) {
                hint = Some(format!("did you mean `{word}`?"));
            }
        }
        // A hint may repeat parts of the text, which may be a secret.
        if node.scalar().is_some_and(|scalar| scalar.origin.is_some()) {
            hint = Some("what it stands for has another form".into());
        }
        if !matches!(node.value, Value::Invalid) {
            self.sink.error(node.span, format!("expected {expected}, found {}", node.found()), hint);
        }
    }
}

/// The names that other parts may refer to, known before anything is decoded: a reference is checked where it
/// stands, also when what it refers to has errors of its own.
#[derive(Debug, Default)]
pub(crate) struct Names {
    pub(crate) listeners: HashMap<String, usize>,
    pub(crate) services: HashMap<String, usize>,
}

impl Names {
    /// Collects the names of the items in `root.listeners` and `root.services`, and reports names used twice.
    pub(crate) fn scan(root: &Node, sink: &mut Sink) -> Self {
        let mut table = |key: &str| {
            let mut first: HashMap<String, (usize, Span)> = HashMap::new();
            for (index, item) in root.get(key).map_or(&[][..], Node::items).iter().enumerate() {
                let Some(name) = item.get("name") else { continue };
                let Some(text) = name.scalar().map(|scalar| scalar.text.to_string()) else { continue };
                match first.get(&text) {
                    Some((_, at)) => {
                        let message =
                            format!("{} is the name of two {key}, first at {}", name.found(), sink.place(*at));
                        sink.error(name.span, message, None);
                    }
                    None => {
                        first.insert(text, (index, name.span));
                    }
                }
            }
            first.into_iter().map(|(name, (index, _))| (name, index)).collect()
        };
        Self { listeners: table("listeners"), services: table("services") }
    }
}

/// A value and its place.
#[derive(Debug)]
pub(crate) struct Spanned<T> {
    pub(crate) value: T,
    pub(crate) span: Span,
}

impl<T: Decode> Decode for Spanned<T> {
    fn kind() -> String {
        T::kind()
    }

    fn decode(node: &Node, cx: &mut Cx) -> Option<Self> {
        T::decode(node, cx).map(|value| Self { value, span: node.span })
    }

    fn schema(generator: &mut SchemaGenerator) -> Schema {
        T::schema(generator)
    }
}

impl<T: Decode> Decode for Option<T> {
    fn kind() -> String {
        T::kind()
    }

    fn decode(node: &Node, cx: &mut Cx) -> Option<Self> {
        T::decode(node, cx).map(Some)
    }

    fn schema(generator: &mut SchemaGenerator) -> Schema {
        T::schema(generator)
    }

    fn missing() -> Option<Self> {
        Some(None)
    }
}

impl<T: Decode> Decode for Vec<T> {
    fn kind() -> String {
        format!("a list, each {}", T::kind())
    }

    fn decode(node: &Node, cx: &mut Cx) -> Option<Self> {
        let Value::List(items) = &node.value else {
            cx.mismatch::<Self>(node, None);
            return None;
        };
        // All of them, before the first failure counts.
        let decoded: Vec<Option<T>> = items.iter().map(|item| T::decode(item, cx)).collect();
        decoded.into_iter().collect()
    }

    fn schema(generator: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "array", "items": T::schema(generator) })
    }
}

/// One value, or a list of one or more.
#[derive(Debug)]
pub(crate) struct OneOrMore<T>(pub(crate) Vec<T>);

impl<T: Decode> Decode for OneOrMore<T> {
    fn kind() -> String {
        format!("one or a list, each {}", T::kind())
    }

    fn decode(node: &Node, cx: &mut Cx) -> Option<Self> {
        match &node.value {
            Value::List(items) if items.is_empty() => {
                cx.error(node.span, "the list is empty", "leave the key out, or name at least one");
                None
            }
            Value::List(_) => Vec::decode(node, cx).map(Self),
            _ => T::decode(node, cx).map(|one| Self(vec![one])),
        }
    }

    fn schema(generator: &mut SchemaGenerator) -> Schema {
        let one = T::schema(generator);
        json_schema!({ "anyOf": [one, { "type": "array", "items": one, "minItems": 1 }] })
    }
}

/// The items of a top-level list; those with errors are left out, so that the others are still checked.
#[derive(Debug)]
pub(crate) struct Items<T>(pub(crate) Vec<T>);

impl<T: Decode> Decode for Items<T> {
    fn kind() -> String {
        Vec::<T>::kind()
    }

    fn decode(node: &Node, cx: &mut Cx) -> Option<Self> {
        match &node.value {
            Value::List(items) => Some(Self(items.iter().filter_map(|item| T::decode(item, cx)).collect())),
            _ => {
                cx.mismatch::<Self>(node, None);
                None
            }
        }
    }

    fn schema(generator: &mut SchemaGenerator) -> Schema {
        Vec::<T>::schema(generator)
    }

    fn recovered() -> Option<Self> {
        Some(Self(Vec::new()))
    }
}

/// A section whose errors do not keep the others from being checked.
#[derive(Debug)]
pub(crate) struct Lenient<T>(pub(crate) Option<T>);

impl<T: Decode> Decode for Lenient<T> {
    fn kind() -> String {
        T::kind()
    }

    fn decode(node: &Node, cx: &mut Cx) -> Option<Self> {
        Some(Self(T::decode(node, cx)))
    }

    fn schema(generator: &mut SchemaGenerator) -> Schema {
        T::schema(generator)
    }
}

/// Keys that people choose, with their values, in the order of the file.
#[derive(Debug)]
pub(crate) struct Pairs<K, V>(pub(crate) Vec<(Spanned<K>, V)>);

impl<K: Decode, V: Decode> Decode for Pairs<K, V> {
    fn kind() -> String {
        format!("a map from {} to {}", K::kind(), V::kind())
    }

    fn decode(node: &Node, cx: &mut Cx) -> Option<Self> {
        let Value::Map(entries) = &node.value else {
            cx.mismatch::<Self>(node, None);
            return None;
        };
        let mut pairs = Vec::with_capacity(entries.len());
        for Entry { key, value } in entries {
            let (key, value) = (Spanned::decode(key, cx), V::decode(value, cx));
            pairs.push(key.zip(value));
        }
        pairs.into_iter().collect::<Option<_>>().map(Self)
    }

    fn schema(generator: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "object", "additionalProperties": V::schema(generator) })
    }
}

/// The keys of a section while it is decoded.
pub(crate) struct Fields<'n> {
    node: &'n Node,
}

impl<'n> Fields<'n> {
    /// Reports the keys of `node` that are not in `known`.
    pub(crate) fn of<T: Decode>(node: &'n Node, known: &[&'static str], cx: &mut Cx) -> Option<Self> {
        let Value::Map(entries) = &node.value else {
            cx.mismatch::<T>(node, Some(format!("its keys: {}", suggest::quoted(known.iter().copied()))));
            return None;
        };
        for entry in entries {
            if !known.contains(&entry.key()) {
                let hint = suggest::hint(entry.key(), known, "the keys here");
                cx.sink.error(entry.key.span, format!("unknown key {}", entry.key.found()), hint);
            }
        }
        Some(Self { node })
    }

    /// The value of `key`; without it, what `default` stands for.
    pub(crate) fn take<T: Decode>(&self, key: &str, default: Option<&'static str>, cx: &mut Cx) -> Option<T> {
        let value = match (self.node.get(key), default) {
            (Some(value), _) => T::decode(value, cx),
            (None, Some(text)) => T::decode(&Node::literal(text, self.node.span), cx),
            (None, None) => T::missing().or_else(|| {
                let message = format!("the key `{key}` is missing: {}", T::kind());
                cx.sink.error(self.node.span, message, None);
                None
            }),
        };
        value.or_else(T::recovered)
    }
}

/// A raw identifier is written without its mark in the file.
pub(crate) fn key(identifier: &'static str) -> &'static str {
    identifier.strip_prefix("r#").unwrap_or(identifier)
}

/// Builds the schema of a section.
pub(crate) struct SectionSchema {
    properties: Map<String, Json>,
    required: Vec<Json>,
}

impl SectionSchema {
    pub(crate) fn new() -> Self {
        Self { properties: Map::new(), required: Vec::new() }
    }

    pub(crate) fn field<T: Decode>(
        &mut self,
        generator: &mut SchemaGenerator,
        key: &str,
        docs: &[&str],
        default: Option<&str>,
    ) {
        let mut schema = T::schema(generator);
        schema.insert("title".into(), T::kind().into());
        schema.insert("description".into(), paragraph(docs).into());
        match default {
            Some(text) => {
                schema.insert("default".into(), json_of(text));
            }
            None if T::missing().is_none() => self.required.push(key.into()),
            None => {}
        }
        self.properties.insert(key.into(), schema.to_value());
    }

    pub(crate) fn finish(self, docs: &[&str]) -> Schema {
        let mut schema = json_schema!({
            "type": "object",
            "description": paragraph(docs),
            "properties": self.properties,
            "additionalProperties": false,
        });
        if !self.required.is_empty() {
            schema.insert("required".into(), self.required.into());
        }
        schema
    }
}

/// The lines of a doc comment in one.
fn paragraph(docs: &[&str]) -> String {
    docs.iter().map(|line| line.trim()).collect::<Vec<_>>().join(" ")
}

/// A default, written as YAML, as JSON.
fn json_of(text: &str) -> Json {
    match text {
        "{}" => json!({}),
        "[]" => json!([]),
        "true" => json!(true),
        "false" => json!(false),
        _ => text.parse::<i64>().map_or_else(|_| json!(text), |n| json!(n)),
    }
}

/// Declares a section: `key: Type = "default as YAML"`, or without a default where the key is needed
/// (or is an `Option`).
macro_rules! shape {
    ($(
        $(#[doc = $docs:literal])*
        $vis:vis struct $name:ident {
            $( $(#[doc = $doc:literal])* $field:ident : $type:ty $(= $default:literal)? ),* $(,)?
        }
    )*) => {$(
        $(#[doc = $docs])*
        #[derive(Debug)]
        $vis struct $name { $( $(#[doc = $doc])* $vis $field: $type, )* }

        impl $crate::decode::Decode for $name {
            fn kind() -> String {
                "a section of keys".into()
            }

            fn decode(node: &$crate::tree::Node, cx: &mut $crate::decode::Cx) -> Option<Self> {
                const KEYS: &[&str] = &[$( stringify!($field) ),*];
                let known: Vec<&'static str> = KEYS.iter().map(|key| $crate::decode::key(key)).collect();
                let fields = $crate::decode::Fields::of::<Self>(node, &known, cx)?;
                // All of them, before the first failure counts.
                $( let $field = fields.take::<$type>(
                    $crate::decode::key(stringify!($field)),
                    $crate::decode::shape!(@default $($default)?),
                    cx,
                ); )*
                Some(Self { $( $field: $field?, )* })
            }

            fn schema(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
                generator.subschema_for::<Self>()
            }
        }

        impl schemars::JsonSchema for $name {
            fn schema_name() -> std::borrow::Cow<'static, str> {
                stringify!($name).into()
            }

            fn json_schema(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
                let mut section = $crate::decode::SectionSchema::new();
                $( section.field::<$type>(
                    generator,
                    $crate::decode::key(stringify!($field)),
                    &[$($doc),*],
                    $crate::decode::shape!(@default $($default)?),
                ); )*
                section.finish(&[$($docs),*])
            }
        }
    )*};
    (@default) => { None };
    (@default $default:literal) => { Some($default) };
}
pub(crate) use shape;
