//! From the tree to typed values: every error of a value is reported, then the next value is looked at.
//!
//! Bounds are part of the types ([`crate::scalar`], [`crate::units`]); sections are declared with [`crate::shape`].

use std::collections::HashMap;

use schemars::{Schema, SchemaGenerator, json_schema};

use crate::error::{Sink, Span};
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
    pub(crate) authenticators: HashMap<String, usize>,
    pub(crate) rate_limits: HashMap<String, usize>,
    pub(crate) concurrency_limits: HashMap<String, usize>,
}

impl Names {
    /// Collects the names of the items of the top-level lists, and reports names used twice.
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
        Self {
            listeners: table("listeners"),
            services: table("services"),
            authenticators: table("authenticators"),
            rate_limits: table("rate_limits"),
            concurrency_limits: table("concurrency_limits"),
        }
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

impl<T: Decode> Decode for Box<T> {
    fn kind() -> String {
        T::kind()
    }

    fn decode(node: &Node, cx: &mut Cx) -> Option<Self> {
        T::decode(node, cx).map(Self::new)
    }

    fn schema(generator: &mut SchemaGenerator) -> Schema {
        T::schema(generator)
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
