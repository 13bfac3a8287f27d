//! Single values: numbers, words, names and addresses, each with its bounds in its type.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};

use crate::decode::{Cx, Decode};
use crate::suggest;
use crate::tree::{Node, Scalar};

/// A value read from outside: allowed wherever a single value is.
struct Variable;

impl JsonSchema for Variable {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Variable".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "description": "A value from the environment or from a file.",
            "pattern": r"\$\{(env|file):",
        })
    }
}

/// `schema`, or a variable.
pub(crate) fn or_variable(schema: Schema, generator: &mut SchemaGenerator) -> Schema {
    json_schema!({ "anyOf": [schema, generator.subschema_for::<Variable>()] })
}

/// The text of a scalar that is not null; anything else is reported.
fn text_of<'n, T: Decode>(node: &'n Node, cx: &mut Cx) -> Option<&'n Scalar> {
    match node.scalar() {
        Some(scalar) if !scalar.is_null() => Some(scalar),
        _ => {
            cx.mismatch::<T>(node, None);
            None
        }
    }
}

/// Decodes what `parse` understands; else reports, with the hint that it gives.
pub(crate) fn parsed<T: Decode>(
    node: &Node,
    cx: &mut Cx,
    parse: impl FnOnce(&str) -> Result<T, Option<String>>,
) -> Option<T> {
    match parse(&text_of::<T>(node, cx)?.text) {
        Ok(value) => Some(value),
        Err(hint) => {
            cx.mismatch::<T>(node, hint);
            None
        }
    }
}

impl Decode for bool {
    fn kind() -> String {
        "`true` or `false`".into()
    }

    fn decode(node: &Node, cx: &mut Cx) -> Option<Self> {
        parsed(node, cx, |text| match text {
            "true" => Ok(true),
            "false" => Ok(false),
            "yes" | "on" | "Yes" | "On" | "True" => Err(Some("write `true`".into())),
            "no" | "off" | "No" | "Off" | "False" => Err(Some("write `false`".into())),
            _ => Err(None),
        })
    }

    fn schema(generator: &mut SchemaGenerator) -> Schema {
        or_variable(json_schema!({ "type": "boolean" }), generator)
    }
}

/// Any text.
impl Decode for String {
    fn kind() -> String {
        "text".into()
    }

    fn decode(node: &Node, cx: &mut Cx) -> Option<Self> {
        text_of::<Self>(node, cx).map(|scalar| scalar.text.to_string())
    }

    fn schema(_: &mut SchemaGenerator) -> Schema {
        text_schema()
    }
}

/// Text that may look like something else: `1`, `true`.
pub(crate) fn text_schema() -> Schema {
    json_schema!({ "type": ["string", "number", "boolean"] })
}

/// A whole number, bounds included.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Int<const MIN: i64, const MAX: i64>(pub(crate) i64);

impl<const MIN: i64, const MAX: i64> Decode for Int<MIN, MAX> {
    fn kind() -> String {
        format!("a whole number from {MIN} to {MAX}")
    }

    fn decode(node: &Node, cx: &mut Cx) -> Option<Self> {
        parsed(node, cx, |text| match text.parse::<i64>() {
            Ok(value) if (MIN..=MAX).contains(&value) && !text.starts_with('+') => Ok(Self(value)),
            _ => Err(None),
        })
    }

    fn schema(generator: &mut SchemaGenerator) -> Schema {
        or_variable(json_schema!({ "type": "integer", "minimum": MIN, "maximum": MAX }), generator)
    }
}

/// A power of two, bounds included.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PowerOfTwo<const MIN: u32, const MAX: u32>(pub(crate) u32);

impl<const MIN: u32, const MAX: u32> Decode for PowerOfTwo<MIN, MAX> {
    fn kind() -> String {
        format!("a power of two from {MIN} to {MAX}")
    }

    fn decode(node: &Node, cx: &mut Cx) -> Option<Self> {
        parsed(node, cx, |text| match text.parse::<u32>() {
            Ok(value) if (MIN..=MAX).contains(&value) && value.is_power_of_two() => Ok(Self(value)),
            Ok(value) if (MIN..=MAX).contains(&value) => {
                Err(Some(format!("the next one is `{}`", value.next_power_of_two())))
            }
            _ => Err(None),
        })
    }

    fn schema(generator: &mut SchemaGenerator) -> Schema {
        or_variable(json_schema!({ "type": "integer", "minimum": MIN, "maximum": MAX }), generator)
    }
}

/// A word that may stand in place of a value.
pub(crate) trait Word {
    const WORD: &'static str;
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Off;
#[derive(Debug, Clone, Copy)]
pub(crate) struct Auto;

impl Word for Off {
    const WORD: &'static str = "off";
}

impl Word for Auto {
    const WORD: &'static str = "auto";
}

/// A value, or (`None`) the word `W`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Or<W, T>(pub(crate) Option<T>, std::marker::PhantomData<W>);

/// A limit that can be switched off.
pub(crate) type OrOff<T> = Or<Off, T>;

impl<W: Word, T: Decode> Decode for Or<W, T> {
    fn kind() -> String {
        format!("{}, or `{}`", T::kind(), W::WORD)
    }

    fn decode(node: &Node, cx: &mut Cx) -> Option<Self> {
        match node.scalar() {
            Some(scalar) if scalar.text == W::WORD => Some(Self(None, std::marker::PhantomData)),
            _ => {
                cx.word = Some((node.span, W::WORD));
                let value = T::decode(node, cx);
                cx.word = None;
                value.map(|value| Self(Some(value), std::marker::PhantomData))
            }
        }
    }

    fn schema(generator: &mut SchemaGenerator) -> Schema {
        json_schema!({ "anyOf": [{ "const": W::WORD }, T::schema(generator)] })
    }
}

/// One of a few words. `choice! { Type { "word" => value } }`
macro_rules! choice {
    ($($type:ty { $($word:literal => $value:expr),* $(,)? })*) => {$(
        impl $crate::decode::Decode for $type {
            fn kind() -> String {
                $crate::scalar::one_of(&[$($word),*])
            }

            fn decode(node: &$crate::tree::Node, cx: &mut $crate::decode::Cx) -> Option<Self> {
                match node.scalar().map(|scalar| &*scalar.text) {
                    $( Some($word) => Some($value), )*
                    word => {
                        let hint = word.and_then(|word| $crate::suggest::closest(word, [$($word),*]));
                        cx.mismatch::<Self>(node, hint.map(|word| format!("did you mean `{word}`?")));
                        None
                    }
                }
            }

            fn schema(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
                $crate::scalar::words_schema(&[$($word),*], generator)
            }
        }
    )*};
}
pub(crate) use choice;

/// "one of `a`, `b`"
pub(crate) fn one_of(words: &[&str]) -> String {
    format!("one of {}", suggest::quoted(words.iter().copied()))
}

pub(crate) fn words_schema(words: &[&str], generator: &mut SchemaGenerator) -> Schema {
    or_variable(json_schema!({ "enum": words }), generator)
}

/// The name of a part of the configuration. It stands in logs, metrics and messages.
#[derive(Debug, Clone)]
pub(crate) struct Name(pub(crate) String);

impl Decode for Name {
    fn kind() -> String {
        "a name".into()
    }

    fn decode(node: &Node, cx: &mut Cx) -> Option<Self> {
        const LENGTH_MAX: usize = 128;
        parsed(node, cx, |text| {
            let allowed = |byte: u8| matches!(byte, 0x20..=0x7e) && !matches!(byte, b'"' | b'\\' | b'`');
            if (1..=LENGTH_MAX).contains(&text.len()) && text.bytes().all(allowed) && text.trim() == text {
                Ok(Self(text.to_owned()))
            } else {
                Err(Some(format!("up to {LENGTH_MAX} printable ASCII characters other than quotes and backslashes")))
            }
        })
    }

    fn schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "minLength": 1, "maxLength": 128 })
    }
}

/// A token (RFC 9110 section 5.6.2), such as a header's name.
pub(crate) fn is_token(text: &str) -> bool {
    let symbol = |byte: u8| b"!#$%&'*+-.^_`|~".contains(&byte);
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || symbol(byte))
}

impl Decode for SocketAddr {
    fn kind() -> String {
        "an IP address and port".into()
    }

    fn decode(node: &Node, cx: &mut Cx) -> Option<Self> {
        parsed(node, cx, |text| {
            text.parse().map_err(|_| {
                Some(match text.rsplit_once(':') {
                    Some(("", port)) => format!("write `0.0.0.0:{port}` for all IPv4 addresses of this machine"),
                    Some(("localhost", port)) => format!("write `127.0.0.1:{port}`"),
                    _ => "such as `127.0.0.1:3000`, `0.0.0.0:3000` or `[::1]:3000`".into(),
                })
            })
        })
    }

    fn schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string" })
    }
}

impl Decode for IpNet {
    fn kind() -> String {
        "an IP network or address".into()
    }

    fn decode(node: &Node, cx: &mut Cx) -> Option<Self> {
        parsed(node, cx, |text| {
            let network = text.parse::<IpNet>().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
            network.map(|network| network.trunc()).map_err(|_| Some("such as `10.0.0.0/8` or `192.0.2.7`".into()))
        })
    }

    fn schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string" })
    }
}
