//! How an endpoint is chosen.

use schemars::{Schema, SchemaGenerator, json_schema};

use crate::decode::{Cx, Decode};
use crate::scalar::{choice, or_variable, parsed};
use crate::shape::shape;
use crate::snapshot::{Balance, HashOn};
use crate::tree::{Node, Value};

shape! {
    /// A way that has settings of its own.
    struct BalanceSection {
        /// By a property of the request: the same goes to the same endpoint for as long as that is there. Requests without
        /// it go anywhere.
        consistent_hash: ConsistentHashSection,
    }

    /// What requests are told apart by.
    struct ConsistentHashSection {
        /// `client_ip`, `user`, `header NAME` or `cookie NAME`.
        on: HashOn,
    }
}

#[derive(Debug)]
struct Word(Balance);

choice! {
    Word {
        "round_robin" => Word(Balance::RoundRobin),
        "least_loaded" => Word(Balance::LeastLoaded),
        "peak_ewma" => Word(Balance::PeakEwma),
        "random" => Word(Balance::Random),
    }
}

impl Decode for Balance {
    fn kind() -> String {
        format!("{}, or a section of `consistent_hash`", Word::kind())
    }

    fn decode(node: &Node, cx: &mut Cx) -> Option<Self> {
        match &node.value {
            Value::Map(_) => {
                let section = BalanceSection::decode(node, cx)?;
                Some(Self::ConsistentHash(section.consistent_hash.on))
            }
            _ => Word::decode(node, cx).map(|Word(balance)| balance),
        }
    }

    fn schema(generator: &mut SchemaGenerator) -> Schema {
        json_schema!({ "anyOf": [Word::schema(generator), BalanceSection::schema(generator)] })
    }
}

impl Decode for HashOn {
    fn kind() -> String {
        "`client_ip`, `user`, `header NAME` or `cookie NAME`".into()
    }

    fn decode(node: &Node, cx: &mut Cx) -> Option<Self> {
        let is_token = |text: &str| {
            let is_mark = |byte: u8| b"!#$%&'*+-.^_`|~".contains(&byte);
            !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || is_mark(byte))
        };
        parsed(node, cx, |text| match text.split_once(' ') {
            None if text == "client_ip" => Ok(Self::ClientIp),
            None if text == "user" => Ok(Self::User),
            Some(("header", name)) if is_token(name) => Ok(Self::Header(name.to_ascii_lowercase().into())),
            Some(("cookie", name)) if is_token(name) => Ok(Self::Cookie(name.into())),
            None if matches!(text, "ip" | "address") => Err(Some("did you mean `client_ip`?".into())),
            None if matches!(text, "header" | "cookie") => Err(Some(format!("`{text} NAME`"))),
            _ => Err(None),
        })
    }

    fn schema(generator: &mut SchemaGenerator) -> Schema {
        let pattern = "^(client_ip|user|(header|cookie) [^ ]+)$";
        or_variable(json_schema!({ "type": "string", "pattern": pattern }), generator)
    }
}
