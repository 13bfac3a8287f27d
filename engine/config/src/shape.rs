//! Sections of keys. [`shape!`] declares one once: its keys, their types, defaults and documentation become the
//! decoder, the JSON Schema and the tables of `docs/CONFIG.md`.

use schemars::{Schema, SchemaGenerator, json_schema};
use serde_json::{Map, Value as Json, json};

use crate::decode::{Cx, Decode};
use crate::suggest;
use crate::tree::{Node, Value};

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
        _ if text.starts_with('[') => {
            let words = text.trim_matches(['[', ']']).split(',').map(str::trim).filter(|word| !word.is_empty());
            words.map(json_of).collect()
        }
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
                let known: Vec<&'static str> = KEYS.iter().map(|key| $crate::shape::key(key)).collect();
                let fields = $crate::shape::Fields::of::<Self>(node, &known, cx)?;
                // All of them, before the first failure counts.
                $( let $field = fields.take::<$type>(
                    $crate::shape::key(stringify!($field)),
                    $crate::shape::shape!(@default $($default)?),
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
                let mut section = $crate::shape::SectionSchema::new();
                $( section.field::<$type>(
                    generator,
                    $crate::shape::key(stringify!($field)),
                    &[$($doc),*],
                    $crate::shape::shape!(@default $($default)?),
                ); )*
                section.finish(&[$($docs),*])
            }
        }
    )*};
    (@default) => { None };
    (@default $default:literal) => { Some($default) };
}
pub(crate) use shape;
