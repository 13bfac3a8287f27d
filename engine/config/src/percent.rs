//! Shares of a whole, in percent.

use schemars::{Schema, SchemaGenerator, json_schema};

use crate::decode::{Cx, Decode};
use crate::scalar::{or_variable, parsed};
use crate::tree::Node;

/// Whole percent, bounds included.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Percent<const MIN: u8, const MAX: u8>(pub(crate) u8);

impl<const MIN: u8, const MAX: u8> Decode for Percent<MIN, MAX> {
    fn kind() -> String {
        format!("a share from {MIN}% to {MAX}%")
    }

    fn decode(node: &Node, cx: &mut Cx) -> Option<Self> {
        parsed(node, cx, |text| {
            let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
            match text.strip_suffix('%').filter(|number| is_number(number)).map(str::parse) {
                Some(Ok(percent)) if (MIN..=MAX).contains(&percent) => Ok(Self(percent)),
                Some(_) => Err(None),
                None if is_number(text) => Err(Some(format!("give it a unit: `{text}%`"))),
                None => Err(Some("shares are whole numbers of percent: `50%`".into())),
            }
        })
    }

    fn schema(generator: &mut SchemaGenerator) -> Schema {
        or_variable(json_schema!({ "type": "string", "pattern": "^[0-9]+%$" }), generator)
    }
}
