//! What is known of an endpoint besides its address: where it is, and whatever names its operators give it.

use std::sync::Arc;

use schemars::{Schema, SchemaGenerator, json_schema};

use crate::decode::{Cx, Decode, Pairs};
use crate::scalar::{parsed, text_schema};
use crate::snapshot;
use crate::tree::Node;

/// Entries of one endpoint's metadata.
const ENTRIES_MAX: usize = 32;
/// Bytes of a name, a zone's included.
const NAME_LENGTH_MAX: usize = 64;
/// Bytes of a value.
const VALUE_LENGTH_MAX: usize = 256;
/// Bytes of all names and values together.
const BYTES_MAX: usize = 4096;

/// The name of a zone, or of an entry of metadata.
#[derive(Debug, Clone)]
pub(crate) struct Label(pub(crate) Arc<str>);

impl Decode for Label {
    fn kind() -> String {
        "a name: letters, digits and `-._/:`".into()
    }

    fn decode(node: &Node, cx: &mut Cx) -> Option<Self> {
        parsed(node, cx, |text| {
            let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-._/:".contains(&byte);
            match (1..=NAME_LENGTH_MAX).contains(&text.len()) && text.bytes().all(allowed) {
                true => Ok(Self(text.into())),
                false => Err(Some(format!("from 1 to {NAME_LENGTH_MAX} of them"))),
            }
        })
    }

    fn schema(_: &mut SchemaGenerator) -> Schema {
        text_schema()
    }
}

/// The value of an entry.
#[derive(Debug, Clone)]
pub(crate) struct Text(pub(crate) Arc<str>);

impl Decode for Text {
    fn kind() -> String {
        "text".into()
    }

    fn decode(node: &Node, cx: &mut Cx) -> Option<Self> {
        parsed(node, cx, |text| match text.len() <= VALUE_LENGTH_MAX && !text.contains(char::is_control) {
            true => Ok(Self(text.into())),
            false => Err(Some(format!("at most {VALUE_LENGTH_MAX} bytes, without control characters"))),
        })
    }

    fn schema(_: &mut SchemaGenerator) -> Schema {
        text_schema()
    }
}

/// Names with their values, sorted.
#[derive(Debug, Clone)]
pub(crate) struct Metadata(pub(crate) snapshot::Metadata);

impl Decode for Metadata {
    fn kind() -> String {
        format!("at most {ENTRIES_MAX} names with values, of {BYTES_MAX} bytes together")
    }

    fn decode(node: &Node, cx: &mut Cx) -> Option<Self> {
        let Pairs(entries) = Pairs::<Label, Text>::decode(node, cx)?;
        let bytes: usize = entries.iter().map(|(name, value)| name.value.0.len() + value.0.len()).sum();
        if entries.len() > ENTRIES_MAX || bytes > BYTES_MAX {
            let message = format!("expected {}, found {} of {bytes} bytes", Self::kind(), entries.len());
            cx.error(node.span, message, None);
            return None;
        }
        let mut entries: Vec<_> = entries.into_iter().map(|(name, Text(value))| (name.value.0, value)).collect();
        entries.sort();
        Some(Self(entries.into()))
    }

    fn schema(generator: &mut SchemaGenerator) -> Schema {
        // No section of keys: those that stand in it are anybody's.
        json_schema!({ "type": "object", "additionalProperties": Text::schema(generator) })
    }
}
