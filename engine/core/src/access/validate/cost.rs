//! How often a schema looks at a value, by how deep the value lies.
//!
//! A schema that leads to itself through two branches looks at each level of a body twice as often as at the level above:
//! 32 brackets could keep a core busy for hours. So what a body will cost is worked out before it is looked at.

use std::collections::HashMap;

use serde_json::Value;

use super::schema::SchemaError;
use crate::strict_json::JSON_DEPTH_MAX;

/// Most parts of a schema.
const PARTS_MAX: usize = 20_000;

/// How often a value at each depth is looked at, at most.
pub(super) type Visits = [u64; JSON_DEPTH_MAX + 1];

/// What a part of a schema leads to.
#[derive(Default)]
struct Part {
    /// Parts that look at the same value, and how often.
    same: Vec<(usize, u64)>,
    /// Parts that look at every entry of an object.
    each_entry: Vec<usize>,
    /// Parts that look at the entry of one name.
    one_entry: Vec<usize>,
    each_item: Vec<usize>,
    /// Parts that look at the item at one index.
    one_item: Vec<usize>,
}

#[derive(Clone, Copy)]
enum Edge {
    Same,
    EachEntry,
    OneEntry,
    EachItem,
    OneItem,
    /// Looked at only where something refers to it.
    Kept,
}

/// The keywords that hold a schema, a list of schemas, or schemas by name.
const KEYWORDS: [(&str, Edge); 20] = [
    ("allOf", Edge::Same),
    ("anyOf", Edge::Same),
    ("oneOf", Edge::Same),
    ("not", Edge::Same),
    ("if", Edge::Same),
    ("then", Edge::Same),
    ("else", Edge::Same),
    ("dependentSchemas", Edge::Same),
    ("additionalProperties", Edge::EachEntry),
    ("patternProperties", Edge::EachEntry),
    ("unevaluatedProperties", Edge::EachEntry),
    ("propertyNames", Edge::EachEntry),
    ("properties", Edge::OneEntry),
    ("items", Edge::EachItem),
    ("contains", Edge::EachItem),
    ("unevaluatedItems", Edge::EachItem),
    ("prefixItems", Edge::OneItem),
    ("$defs", Edge::Kept),
    ("definitions", Edge::Kept),
    ("contentSchema", Edge::Kept),
];
/// Those whose value is a map from names to schemas.
const MAPS: [&str; 5] = ["dependentSchemas", "patternProperties", "properties", "$defs", "definitions"];

fn problem(pointer: &str, problem: impl Into<String>) -> SchemaError {
    SchemaError { pointer: pointer.to_owned(), problem: problem.into() }
}

/// # Errors
/// Where the schema refers to what is no part of it, in a way that is not followed here, or leads to itself without a
/// step into the value.
pub(super) fn visits(schema: &Value) -> Result<Visits, SchemaError> {
    let parts = parts(schema)?;
    let order = order(&parts)?;
    let mut visits = [0; JSON_DEPTH_MAX + 1];
    // Of each part at the depth before, and at this one.
    let (mut above, mut here) = (vec![0u64; parts.len()], vec![0u64; parts.len()]);
    for (depth, visits) in visits.iter_mut().enumerate() {
        for &at in &order {
            let Some(part) = parts.get(at) else { continue };
            let of = |list: &[u64], part: usize| list.get(part).copied().unwrap_or(0);
            let sum = |edges: &[usize]| edges.iter().fold(0u64, |sum, part| sum.saturating_add(of(&above, *part)));
            let max = |edges: &[usize]| edges.iter().map(|part| of(&above, *part)).max().unwrap_or(0);
            let own = match depth {
                0 => 1,
                _ => {
                    let entry = sum(&part.each_entry).saturating_add(max(&part.one_entry));
                    entry.max(sum(&part.each_item).saturating_add(max(&part.one_item)))
                }
            };
            let total = part
                .same
                .iter()
                .fold(own, |sum, (part, times)| sum.saturating_add(of(&here, *part).saturating_mul(*times)));
            if let Some(place) = here.get_mut(at) {
                *place = total;
            }
        }
        *visits = here.first().copied().unwrap_or(0);
        std::mem::swap(&mut above, &mut here);
    }
    Ok(visits)
}

/// The parts of a schema, the whole first.
fn parts(schema: &Value) -> Result<Vec<Part>, SchemaError> {
    let mut parts = vec![Part::default()];
    let mut places: HashMap<String, usize> = HashMap::from([(String::new(), 0)]);
    // The target of a reference may come later.
    let mut references: Vec<(usize, String, &str, u64)> = Vec::new();
    let mut open: Vec<(usize, String, &Value)> = vec![(0, String::new(), schema)];
    while let Some((at, pointer, value)) = open.pop() {
        let Value::Object(map) = value else { continue };
        for keyword in ["$dynamicRef", "$dynamicAnchor", "$recursiveRef"] {
            if map.contains_key(keyword) {
                return Err(problem(&pointer, format!("`{keyword}` is not supported, use `$ref`")));
            }
        }
        if map.contains_key("$id") && !pointer.is_empty() {
            return Err(problem(&pointer, "`$id` within a schema is not supported"));
        }
        if let Some(Value::String(anchor)) = map.get("$anchor") {
            places.insert(format!("#{anchor}"), at);
        }
        // To know what is left over, the branches are looked at once more.
        let again = map.contains_key("unevaluatedProperties") || map.contains_key("unevaluatedItems");
        let times = if again { 2 } else { 1 };
        if let Some(Value::String(target)) = map.get("$ref") {
            references.push((at, pointer.clone(), target, times));
        }
        for (keyword, edge) in KEYWORDS {
            let Some(value) = map.get(keyword) else { continue };
            let front = format!("{pointer}/{keyword}");
            let inner: Vec<(String, &Value)> = match value {
                Value::Array(list) => {
                    list.iter().enumerate().map(|(index, item)| (format!("{front}/{index}"), item)).collect()
                }
                Value::Object(map) if MAPS.contains(&keyword) => {
                    map.iter().map(|(name, item)| (format!("{front}/{}", escaped(name)), item)).collect()
                }
                value => vec![(front, value)],
            };
            for (pointer, value) in inner {
                let index = parts.len();
                if index == PARTS_MAX {
                    return Err(problem("", format!("more than {PARTS_MAX} parts")));
                }
                parts.push(Part::default());
                if let Some(part) = parts.get_mut(at) {
                    match edge {
                        Edge::Same => part.same.push((index, times)),
                        Edge::EachEntry => part.each_entry.push(index),
                        Edge::OneEntry => part.one_entry.push(index),
                        Edge::EachItem => part.each_item.push(index),
                        Edge::OneItem => part.one_item.push(index),
                        Edge::Kept => {}
                    }
                }
                places.insert(pointer.clone(), index);
                open.push((index, pointer, value));
            }
        }
    }
    for (at, pointer, target, times) in references {
        let unknown = || problem(&pointer, format!("`$ref: {target}` leads to no part of this schema"));
        let fragment = target.strip_prefix('#').ok_or_else(unknown)?;
        let place = if fragment.is_empty() || fragment.starts_with('/') {
            places.get(&decoded(fragment))
        } else {
            places.get(target)
        };
        let index = *place.ok_or_else(unknown)?;
        if let Some(part) = parts.get_mut(at) {
            part.same.push((index, times));
        }
    }
    Ok(parts)
}

/// Of a name within a JSON pointer (RFC 6901 section 3).
fn escaped(name: &str) -> String {
    name.replace('~', "~0").replace('/', "~1")
}

/// RFC 6901 section 6: a pointer in a URI is percent-encoded.
fn decoded(pointer: &str) -> String {
    String::from_utf8_lossy(&super::path_decoded(pointer.as_bytes())).into_owned()
}

/// The parts in an order in which what looks at the same value comes first.
fn order(parts: &[Part]) -> Result<Vec<usize>, SchemaError> {
    let mut waits: Vec<usize> = parts.iter().map(|part| part.same.len()).collect();
    let mut users: Vec<Vec<usize>> = vec![Vec::new(); parts.len()];
    for (at, part) in parts.iter().enumerate() {
        for (target, _) in &part.same {
            if let Some(users) = users.get_mut(*target) {
                users.push(at);
            }
        }
    }
    let mut order: Vec<usize> = (0..parts.len()).filter(|at| waits.get(*at) == Some(&0)).collect();
    let mut next = 0;
    while let Some(&at) = order.get(next) {
        next += 1;
        for &user in users.get(at).map(Vec::as_slice).unwrap_or_default() {
            if let Some(left) = waits.get_mut(user) {
                *left -= 1;
                if *left == 0 {
                    order.push(user);
                }
            }
        }
    }
    match order.len() == parts.len() {
        true => Ok(order),
        false => Err(problem("", "it leads to itself without a step into the value")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn first(schema: Value, count: usize) -> Vec<u64> {
        visits(&schema).unwrap()[..count].to_vec()
    }

    #[test]
    fn visits_follow_the_branches() {
        assert_eq!(first(json!(true), 3), [1, 0, 0]);
        assert_eq!(first(json!({ "items": { "properties": { "a": {}, "b": {} } } }), 4), [1, 1, 1, 0]);
        assert_eq!(first(json!({ "items": {}, "contains": {}, "prefixItems": [{}, {}] }), 3), [1, 3, 0]);
        assert_eq!(
            first(json!({ "properties": { "a": {} }, "additionalProperties": {}, "propertyNames": {} }), 3),
            [1, 3, 0]
        );
        // A tree of two children, each of which is looked at once.
        let tree = json!({ "properties": { "left": { "$ref": "#" }, "right": { "$ref": "#" } } });
        assert_eq!(first(tree, 3), [1, 2, 2]);
        let doubled = json!({ "anyOf": [{ "items": { "$ref": "#" } }, { "items": { "$ref": "#" } }] });
        assert_eq!(first(doubled, 4), [3, 8, 16, 32]);
        let named = json!({ "items": { "$ref": "#x" }, "$defs": { "a/b": { "$anchor": "x", "not": { "$ref": "#/$defs/c%20d" } }, "c d": {} } });
        assert_eq!(first(named, 3), [1, 4, 0]);
        let all = visits(
            &json!({ "allOf": [{ "items": { "$ref": "#" } }, { "items": { "$ref": "#" } }, { "items": { "$ref": "#" } }] }),
        );
        assert!(all.unwrap()[JSON_DEPTH_MAX] > 1 << 60);
    }

    #[test]
    fn what_is_not_followed_is_refused() {
        for (schema, said) in [
            (json!({ "$ref": "#" }), "it leads to itself without a step into the value"),
            (
                json!({ "anyOf": [{ "not": { "$ref": "#/anyOf/0" } }] }),
                "it leads to itself without a step into the value",
            ),
            (json!({ "$ref": "https://a.example/s" }), "`$ref: https://a.example/s` leads to no part of this schema"),
            (json!({ "$ref": "#/const", "const": {} }), "`$ref: #/const` leads to no part of this schema"),
            (json!({ "items": { "$dynamicRef": "#x" } }), "`$dynamicRef` is not supported, use `$ref`"),
            (json!({ "items": { "$id": "x" } }), "`$id` within a schema is not supported"),
        ] {
            assert_eq!(visits(&schema).unwrap_err().problem, said);
        }
        let long: serde_json::Map<String, Value> =
            (0..10_000).map(|n| (format!("d{n}"), json!({ "$ref": format!("#/$defs/d{}", n + 1) }))).collect();
        let mut chain = json!({ "$defs": long, "$ref": "#/$defs/d0" });
        chain["$defs"]["d10000"] = json!({});
        assert_eq!(first(chain, 2), [10_002, 0]);
    }
}
