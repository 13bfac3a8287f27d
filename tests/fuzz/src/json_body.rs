//! JSON bodies against schemas, and schemas.

use std::sync::LazyLock;

use ringway_core::access::Validation;
use ringway_core::access::validate::{BodyRule, INVALID_BYTES_MAX, Schema};
use serde_json::{Value, json};

pub const DICTIONARY: &[&str] = &[
    "{",
    "}",
    "[",
    "]",
    ":",
    ",",
    "\"items\"",
    "\"id\"",
    "\"quantity\"",
    "\"note\"",
    "\"kind\"",
    "\"a\"",
    "\"\\u0061\"",
    "\\ud800",
    "1",
    "0",
    "-1",
    "1.5",
    "1e2",
    "1e999",
    "18446744073709551616",
    "true",
    "null",
    "{\"id\":\"a\",\"quantity\":1}",
    "\"$ref\":\"#\"",
    "\"type\":\"object\"",
    "\"anyOf\":[",
    "\"pattern\":\"",
    "\"format\":\"",
    "\"uniqueItems\":true",
    "\"additionalProperties\":false",
    "\0",
    " ",
];

/// A body for the schema of an order; behind a NUL, if there is one, a body for the schema in front of it.
pub fn target(bytes: &[u8]) {
    order(bytes);
    let Some(at) = bytes.iter().position(|byte| *byte == 0) else { return };
    let Ok(schema) = serde_json::from_slice::<Value>(&bytes[..at]) else { return };
    if let Ok(schema) = Schema::compile(&schema) {
        judged(&validation(schema), &bytes[at + 1..]);
    }
}

fn validation(schema: Schema) -> Validation {
    let body = BodyRule { schema, bytes_max: 4096, required: true };
    Validation { body: Some(body), ..Validation::default() }
}

/// What is told fits in an answer.
fn judged(validation: &Validation, body: &[u8]) -> bool {
    let Err(invalid) = validation.check_body(body) else { return true };
    assert_eq!(invalid.status, 400);
    for text in [&invalid.place, &invalid.problem] {
        assert!(!text.is_empty() && text.len() <= INVALID_BYTES_MAX && !text.contains(char::is_control), "{text:?}");
    }
    false
}

static ORDER: LazyLock<Validation> = LazyLock::new(|| {
    let schema = json!({
        "type": "object",
        "required": ["items"],
        "additionalProperties": false,
        "properties": {
            "note": { "type": "string", "maxLength": 5, "pattern": "^[a-z]+$" },
            "kind": { "enum": ["a", "b"] },
            "items": { "type": "array", "minItems": 1, "items": { "$ref": "#/$defs/item" } },
        },
        "$defs": {
            "item": {
                "type": "object",
                "required": ["id", "quantity"],
                "properties": { "id": { "type": "string" }, "quantity": { "type": "integer", "minimum": 1 } },
            },
        },
    });
    validation(Schema::compile(&schema).expect("a good schema"))
});

/// Agrees with a naive reading of the schema.
fn order(body: &[u8]) {
    let value = serde_json::from_slice::<Value>(body).ok();
    let naive = value.as_ref().is_some_and(is_order);
    if judged(&ORDER, body) {
        assert!(naive, "{}", body.escape_ascii());
    }
    // Written anew it has no key twice; what is no order may lie too deep for its problem to be told.
    if let Some(value) = value.filter(|_| naive) {
        let depth_ok = depth(&value) <= 64;
        assert_eq!(judged(&ORDER, value.to_string().as_bytes()), depth_ok, "{}", body.escape_ascii());
    }
}

fn depth(value: &Value) -> usize {
    match value {
        Value::Array(items) => 1 + items.iter().map(depth).max().unwrap_or(0),
        Value::Object(map) => 1 + map.values().map(depth).max().unwrap_or(0),
        _ => 0,
    }
}

fn is_order(value: &Value) -> bool {
    let Some(map) = value.as_object() else { return false };
    let is_note = |note: &Value| {
        note.as_str()
            .is_some_and(|text| (1..=5).contains(&text.chars().count()) && text.chars().all(|c| c.is_ascii_lowercase()))
    };
    map.keys().all(|key| matches!(key.as_str(), "note" | "kind" | "items"))
        && map.get("note").is_none_or(is_note)
        && map.get("kind").is_none_or(|kind| matches!(kind.as_str(), Some("a" | "b")))
        && map
            .get("items")
            .and_then(Value::as_array)
            .is_some_and(|items| !items.is_empty() && items.iter().all(is_item))
}

fn is_item(value: &Value) -> bool {
    let whole = |number: &Value| number.as_f64().is_some_and(|number| number.fract() == 0.0 && number >= 1.0);
    value.is_object() && value["id"].is_string() && whole(&value["quantity"])
}
