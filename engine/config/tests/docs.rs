//! `docs/CONFIG.md` has a table of every key, made from the schema. `UPDATE_DOCS=1 cargo test -p ringway-config`
//! writes it anew.

mod common;

use std::fmt::Write as _;

use common::repository;
use ringway_config::schema;
use serde_json::Value;

const BEGIN: &str = "<!-- The tables are made from the schema: UPDATE_DOCS=1 cargo test -p ringway-config -->\n";
const END: &str = "<!-- end of the tables -->\n";

/// The section that a schema stands for: itself, what it refers to, its items', or that of one of its forms.
fn section<'s>(schema: &'s Value, root: &'s Value, path: &mut String) -> Option<&'s Value> {
    if let Some(reference) = schema["$ref"].as_str() {
        return section(root.pointer(reference.trim_start_matches('#')).unwrap(), root, path);
    }
    if schema["properties"].is_object() {
        return Some(schema);
    }
    if schema["items"].is_object() {
        let mut inner = format!("{path}[]");
        let found = section(&schema["items"], root, &mut inner);
        if found.is_some() {
            *path = inner;
        }
        return found;
    }
    if schema["additionalProperties"].is_object() {
        let mut inner = format!("{path}.*");
        let found = section(&schema["additionalProperties"], root, &mut inner);
        if found.is_some() {
            *path = inner;
        }
        return found;
    }
    // A list, where one or more may be written, shows that there may be more.
    let forms = schema["anyOf"].as_array()?;
    let (lists, others): (Vec<_>, Vec<_>) = forms.iter().partition(|form| form["type"] == "array");
    lists.into_iter().chain(others).find_map(|form| section(form, root, path))
}

fn default_of(schema: &Value, required: bool) -> String {
    match schema.get("default") {
        None if required => "needed".into(),
        None => "".into(),
        Some(Value::Object(_)) => "".into(),
        Some(Value::String(text)) => format!("`{text}`"),
        Some(value) => format!("`{value}`"),
    }
}

/// A key, then the keys of its section, unless it is one of those `above`: a section may have itself within.
fn rows<'s>(path: &str, schema: &'s Value, required: bool, above: &[&'s Value], out: &mut String) {
    let Some(root) = above.first() else { return };
    let cell = |text: &str| text.replace('|', "\\|");
    let (title, text) = (schema["title"].as_str().unwrap(), schema["description"].as_str().unwrap());
    let default = default_of(schema, required);
    writeln!(out, "| `{path}` | {} | {} | {} |", cell(title), cell(&default), cell(text)).unwrap();
    let mut path = path.to_owned();
    let Some(inner) = section(schema, root, &mut path).filter(|inner| !is_in(above, inner)) else { return };
    for (key, schema) in inner["properties"].as_object().unwrap() {
        rows(&format!("{path}.{key}"), schema, needs(inner, key), &[above, &[inner]].concat(), out);
    }
}

fn is_in(above: &[&Value], section: &Value) -> bool {
    above.iter().any(|above| std::ptr::eq(*above, section))
}

fn needs(section: &Value, key: &str) -> bool {
    section["required"].as_array().is_some_and(|keys| keys.iter().any(|needed| needed == key))
}

/// One table for each key of the top level.
fn tables() -> String {
    let (root, mut out) = (schema(), String::new());
    for (key, schema) in root["properties"].as_object().unwrap() {
        writeln!(out, "\n### `{key}`\n\n| key | value | default | meaning |\n|---|---|---|---|").unwrap();
        rows(key, schema, needs(&root, key), &[&root], &mut out);
    }
    out.push('\n');
    out
}

#[test]
fn the_tables_of_the_documentation_are_those_of_the_schema() {
    let path = repository().join("docs/CONFIG.md");
    let text = std::fs::read_to_string(&path).unwrap();
    let (before, rest) = text.split_once(BEGIN).expect("docs/CONFIG.md lost the line where the tables begin");
    let (found, after) = rest.split_once(END).expect("docs/CONFIG.md lost the line where the tables end");
    let wanted = tables();
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(&path, format!("{before}{BEGIN}{wanted}{END}{after}")).unwrap();
    } else {
        assert!(found == wanted, "docs/CONFIG.md is out of date: UPDATE_DOCS=1 cargo test -p ringway-config");
    }
}

/// Every key of the schema, with its path.
fn keys<'s>(path: &str, schema: &'s Value, above: &[&'s Value], out: &mut Vec<String>) {
    let Some(root) = above.first() else { return };
    let mut here = path.to_owned();
    let Some(inner) = section(schema, root, &mut here).filter(|inner| !is_in(&above[1..], inner)) else { return };
    for (key, schema) in inner["properties"].as_object().unwrap() {
        let path = format!("{here}.{key}");
        out.push(key.clone());
        keys(&path, schema, &[above, &[inner]].concat(), out);
    }
}

#[test]
fn the_reference_shows_every_key() {
    let root = schema();
    let mut all = Vec::new();
    keys("", &root, &[&root], &mut all);
    assert!(all.len() > 90, "{}", all.len());
    let text = std::fs::read_to_string(repository().join("configs/reference.yaml")).unwrap();
    for key in all {
        assert!(text.contains(&format!("{key}:")) || text.contains(&format!("`{key}`")), "{key} is missing");
    }
}

/// Two sections of one name would be one to the schema, with the keys of either.
#[test]
fn sections_have_names_of_their_own() {
    let text = std::fs::read_to_string(repository().join("docs/CONFIG.md")).unwrap();
    for key in ["listeners[].tls.certificates", "listeners[].tls.client_certificates.ca", "redis.tls.ca"] {
        assert!(text.contains(&format!("| `{key}` |")), "{key}");
    }
    assert!(!text.contains("`listeners[].tls.ca`"));
}

#[test]
fn the_schema_is_one() {
    let root = schema();
    assert_eq!(root["$schema"], "https://json-schema.org/draft/2020-12/schema");
    assert_eq!(root["required"], serde_json::json!(["listeners"]));
    assert_eq!(root["additionalProperties"], false);
    assert_eq!(root["properties"]["access_log"]["default"], "stdout");
}
