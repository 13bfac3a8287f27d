//! What the tests of this crate share.
#![allow(dead_code, reason = "each test crate uses a part of it")]

use std::path::PathBuf;

use ringway_config::{Errors, Snapshot, Source, compile};

pub(crate) fn env(name: &str) -> Option<String> {
    match name {
        "LISTEN" => Some("127.0.0.1:4000".into()),
        "UPSTREAM" => Some("127.0.0.1:4001".into()),
        "SECRET" => Some("hunter2".into()),
        "JWT_SECRET" => Some("a secret of thirty-two bytes or more".into()),
        "NUMBER" => Some("7".into()),
        _ => None,
    }
}

pub(crate) fn compiled(text: &str) -> Result<Snapshot, Errors> {
    compile(&[Source { name: "f".into(), text: text.into() }], &env)
}

/// A file with one listener and one service before `more`, which begins with line 5.
pub(crate) fn with_basics(more: &str) -> String {
    format!(
        "listeners:\n  - {{ name: public, address: \"127.0.0.1:3000\" }}\nservices:\n  - {{ name: app, endpoints: \"127.0.0.1:8080\" }}\n{more}"
    )
}

pub(crate) fn repository() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..")
}
