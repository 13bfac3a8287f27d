//! JSON bodies and their schemas (JSON Schema, draft 2020-12).

use std::fmt;

use jsonschema::error::ValidationErrorKind as Kind;
use jsonschema::{Draft, PatternOptions, ValidationError, Validator};
use serde_json::Value;

use super::cost::{self, Visits};
use super::{Invalid, PATTERN_BYTES_MAX};
use crate::strict_json;

/// Most work for one body, in looks at a value or at [`TEXT_BYTES`] of text: some ten milliseconds. Bodies that would take
/// more are refused.
pub const WORK_MAX: u64 = 1_000_000;

/// The pointer and the problem are looked for where that takes no more than this work, or where the schema looks at no
/// value more often than this: each branch that fails makes a copy of what it looked at.
const DETAILS_WORK_MAX: u64 = 2_000;
const DETAILS_VISITS_MAX: u64 = 8;

const TEXT_BYTES: usize = 64;

/// A compiled schema. References lead to parts of itself only, `#/$defs/name` or `#anchor`: nothing is fetched.
#[derive(Clone)]
pub struct Schema {
    text: Box<str>,
    validator: Validator,
    visits: Box<Visits>,
}

impl fmt::Debug for Schema {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Schema").field(&self.text).finish()
    }
}

/// What is wrong with a schema.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a JSON Schema (draft 2020-12): {problem}{}", if pointer.is_empty() { String::new() } else { format!(" at `{pointer}`") })]
pub struct SchemaError {
    /// Where in the schema, as a JSON pointer; empty for the whole.
    pub pointer: String,
    pub problem: String,
}

impl Schema {
    /// # Errors
    /// Where the value is no schema, refers to another document or has a pattern that cannot be used.
    pub fn compile(schema: &Value) -> Result<Self, SchemaError> {
        let visits = cost::visits(schema)?;
        let patterns = PatternOptions::regex().size_limit(PATTERN_BYTES_MAX).dfa_size_limit(PATTERN_BYTES_MAX);
        let options = jsonschema::options().with_draft(Draft::Draft202012).should_validate_formats(true);
        let built = options.with_pattern_options(patterns).offline().build(schema);
        let validator = built.map_err(|error| SchemaError {
            pointer: error.instance_path().as_str().to_owned(),
            problem: error.to_string().lines().next().unwrap_or_default().to_owned(),
        })?;
        Ok(Self { text: schema.to_string().into(), validator, visits: Box::new(visits) })
    }

    /// Whether the body is JSON, read in one way only, and as the schema says.
    pub(super) fn check(&self, body: &[u8]) -> Result<(), Invalid> {
        let value = parse(body)?;
        let work = work(&value, &*self.visits);
        if work > WORK_MAX {
            return Err(Invalid::new("body", "takes too much work to be looked at"));
        }
        if self.validator.is_valid(&value) {
            return Ok(());
        }
        let details = work <= DETAILS_WORK_MAX || self.visits.iter().all(|visits| *visits <= DETAILS_VISITS_MAX);
        match details.then(|| self.validator.validate(&value)) {
            Some(Err(error)) => Err(invalid(&error)),
            _ => Err(Invalid::new("body", "is not as its schema says")),
        }
    }
}

/// `visits`: of this value and those within, by depth.
fn work(value: &Value, visits: &[u64]) -> u64 {
    let Some((visits, within)) = visits.split_first() else { return u64::MAX };
    let of_text = |text: &str| 1 + (text.len() / TEXT_BYTES) as u64;
    let (own, inner) = match value {
        Value::String(text) => (of_text(text), 0),
        Value::Array(items) => (1, items.iter().fold(0, |sum: u64, item| sum.saturating_add(work(item, within)))),
        Value::Object(map) => map.iter().fold((1, 0u64), |(own, inner), (key, value)| {
            (own + of_text(key), inner.saturating_add(work(value, within)))
        }),
        _ => (1, 0),
    };
    // What no part looks at is at least read.
    own.saturating_mul((*visits).max(1)).saturating_add(inner)
}

fn invalid(error: &ValidationError<'_>) -> Invalid {
    let place = match error.instance_path().as_str() {
        "" => "body".to_owned(),
        pointer => pointer.to_owned(),
    };
    let problem = match error.kind() {
        // Their words repeat the client's keys, or large parts of the schema.
        Kind::AdditionalProperties { .. } | Kind::UnevaluatedProperties { .. } | Kind::PropertyNames { .. } => {
            "has a key that is not allowed"
        }
        Kind::AdditionalItems { .. } | Kind::UnevaluatedItems { .. } => "has more items than are allowed",
        Kind::AnyOf { .. } | Kind::OneOfNotValid { .. } => "matches none of the allowed forms",
        Kind::OneOfMultipleValid { .. } => "matches more than one of the allowed forms",
        Kind::Constant { .. } | Kind::Enum { .. } => "is none of the allowed values",
        Kind::Not { .. } | Kind::FalseSchema => "is not allowed",
        Kind::Pattern { .. } | Kind::BacktrackLimitExceeded { .. } | Kind::RegexEngineFailure { .. } => {
            "does not match its pattern"
        }
        _ => return Invalid::new(place, error.masked().to_string()),
    };
    Invalid::new(place, problem)
}

/// JSON (RFC 8259) without repeated keys: readers differ on which of them counts (section 4).
fn parse(body: &[u8]) -> Result<Value, Invalid> {
    strict_json::read(body).map_err(|error| {
        let what = match error.classify() {
            serde_json::error::Category::Data => {
                let text = error.to_string();
                return Invalid::new("body", text);
            }
            serde_json::error::Category::Eof => "is not JSON: it ends early",
            _ => "is not JSON",
        };
        Invalid::new("body", format!("{what}, line {}, column {}", error.line(), error.column()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::strict_json::JSON_DEPTH_MAX;
    use proptest::prelude::*;
    use serde_json::json;

    fn schema(value: Value) -> Schema {
        Schema::compile(&value).unwrap()
    }

    fn order() -> Schema {
        schema(json!({
            "type": "object",
            "required": ["items"],
            "additionalProperties": false,
            "properties": {
                "note": { "type": "string", "maxLength": 5, "pattern": "^[a-z]+$" },
                "email": { "format": "email" },
                "kind": { "enum": ["a", "b"] },
                "items": {
                    "type": "array",
                    "minItems": 1,
                    "items": { "$ref": "#/$defs/item" },
                },
            },
            "$defs": {
                "item": {
                    "type": "object",
                    "required": ["id", "quantity"],
                    "properties": { "id": { "type": "string" }, "quantity": { "type": "integer", "minimum": 1 } },
                },
            },
        }))
    }

    #[test]
    fn the_first_problem_is_told_with_its_pointer_and_never_the_value() {
        let order = order();
        assert_eq!(order.check(br#"{"items":[{"id":"secret","quantity":1}],"note":"abc","kind":"a"}"#), Ok(()));
        for (body, said) in [
            ("", "body: is not JSON: it ends early, line 1, column 0"),
            ("{\"items\":", "body: is not JSON: it ends early, line 1, column 9"),
            ("{\n x", "body: is not JSON, line 2, column 2"),
            ("{} x", "body: is not JSON, line 1, column 4"),
            ("[]", "body: value is not of type \"object\""),
            ("{}", "body: \"items\" is a required property"),
            (r#"{"items":[]}"#, "/items: value has less than 1 item"),
            (r#"{"items":[{"id":"secret","quantity":0}]}"#, "/items/0/quantity: value is less than the minimum of 1"),
            (r#"{"items":[{"id":7,"quantity":1}]}"#, "/items/0/id: value is not of type \"string\""),
            (r#"{"items":[{"id":"a","quantity":1}],"secret":1}"#, "body: has a key that is not allowed"),
            (r#"{"items":[{"id":"a","quantity":1}],"kind":"secret"}"#, "/kind: is none of the allowed values"),
            (r#"{"items":[{"id":"a","quantity":1}],"note":"secret"}"#, "/note: value is longer than 5 characters"),
            (r#"{"items":[{"id":"a","quantity":1}],"note":"S"}"#, "/note: does not match its pattern"),
            (r#"{"items":[{"id":"a","quantity":1}],"email":"secret"}"#, "/email: value is not a \"email\""),
        ] {
            let invalid = order.check(body.as_bytes()).unwrap_err();
            assert_eq!((invalid.to_string().as_str(), invalid.status), (said, 400), "{body}");
        }
    }

    #[test]
    fn a_body_is_read_in_one_way_only() {
        let any = schema(json!(true));
        let said = |body: &str| any.check(body.as_bytes()).map_err(|invalid| invalid.to_string());
        assert_eq!(said(r#"{"a":1,"b":{"a":1}}"#), Ok(()));
        let twice = said(r#"{"a":{"b":1,"\u0062":2}}"#).unwrap_err();
        assert!(twice.starts_with("body: has a key twice in one object"), "{twice}");
        assert!(said(&format!("{}{}", "[".repeat(JSON_DEPTH_MAX), "]".repeat(JSON_DEPTH_MAX))).is_ok());
        for depth in [JSON_DEPTH_MAX + 1, 100_000] {
            let deep = said(&format!("{}{}", "[".repeat(depth), "]".repeat(depth))).unwrap_err();
            assert!(deep.starts_with("body: has more than 64 levels within each other"), "{deep}");
        }
        for bad in ["nan", "'a'", "{a:1}", "[1,]", "\u{feff}{}", "1 2", "1e999", "\"\\ud800\"", "\"\n\""] {
            assert!(said(bad).is_err(), "{bad}");
        }
        assert!(any.check(b"\"\xff\"").is_err());
    }

    #[test]
    fn schemas_are_checked_when_they_are_compiled() {
        for (bad, pointer) in [
            (json!({ "type": "strin" }), "/type"),
            (json!({ "properties": { "a": { "minimum": "1" } } }), "/properties/a/minimum"),
            (json!({ "$ref": "https://a.example/schema" }), ""),
            (json!({ "$ref": "file:///etc/passwd" }), ""),
            (json!({ "$ref": "#/$defs/none" }), ""),
            (json!("x"), ""),
        ] {
            let error = Schema::compile(&bad).unwrap_err();
            assert_eq!(error.pointer, pointer, "{error}");
        }
        for pattern in ["(", "(?=a)", "(a{1000}){1000}"] {
            assert!(Schema::compile(&json!({ "pattern": pattern })).is_err(), "{pattern}");
        }
    }

    #[test]
    fn a_schema_that_leads_to_itself_ends() {
        for looped in [
            json!({ "$ref": "#" }),
            json!({ "allOf": [{ "$ref": "#" }] }),
            json!({ "$defs": { "a": { "$ref": "#/$defs/b" }, "b": { "$ref": "#/$defs/a" } }, "$ref": "#/$defs/a" }),
            json!({ "anyOf": [{ "$dynamicRef": "#x" }], "$dynamicAnchor": "x" }),
        ] {
            assert!(Schema::compile(&looped).is_err(), "{looped}");
        }
        let tree = schema(json!({ "type": "array", "items": { "$ref": "#" } }));
        assert_eq!(tree.check(nested(JSON_DEPTH_MAX).as_bytes()), Ok(()));
    }

    fn nested(depth: usize) -> String {
        format!("{}{}", "[".repeat(depth), "]".repeat(depth))
    }

    #[test]
    fn what_takes_too_much_work_is_refused_unseen() {
        let twice = schema(json!({ "anyOf": [
            { "type": "array", "items": { "$ref": "#" }, "maxItems": 0 },
            { "type": "array", "items": { "$ref": "#" } },
            { "type": "number" },
        ] }));
        assert_eq!(twice.check(nested(8).as_bytes()), Ok(()));
        let said = |body: &str| twice.check(body.as_bytes()).unwrap_err().to_string();
        assert_eq!(said("[\"x\"]"), "body: matches none of the allowed forms");
        assert_eq!(said(&nested(12).replace("[]", "[true]")), "body: is not as its schema says");
        for depth in [20, JSON_DEPTH_MAX] {
            assert_eq!(said(&nested(depth)), "body: takes too much work to be looked at");
        }
        let many = schema(json!({ "items": { "type": "integer" } }));
        let list = |count: usize, last: &str| format!("[{}{last}]", "1,".repeat(count));
        assert_eq!(many.check(list(100_000, "1").as_bytes()), Ok(()));
        let invalid = many.check(list(100_000, "true").as_bytes()).unwrap_err();
        assert_eq!(invalid.to_string(), "/100000: value is not of type \"integer\"");
        let invalid = many.check(list(1_100_000, "1").as_bytes()).unwrap_err();
        assert_eq!(invalid.to_string(), "body: takes too much work to be looked at");
    }

    proptest! {
        #[test]
        fn any_bytes_are_judged(body: Vec<u8>) {
            let _ = order().check(&body);
        }

        #[test]
        fn what_is_told_is_bounded(key in ".*", value in ".{0,400}") {
            let deep = schema(json!({ "additionalProperties": { "additionalProperties": { "type": "integer" } } }));
            let body = json!({ &key: { &key: value } }).to_string();
            let invalid = deep.check(body.as_bytes()).unwrap_err();
            prop_assert!(invalid.place.len() <= super::super::INVALID_BYTES_MAX);
            prop_assert!(invalid.problem == "value is not of type \"integer\"", "{}", invalid);
        }
    }
}
