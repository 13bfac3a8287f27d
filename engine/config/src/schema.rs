//! The JSON Schema of the file, for editors and for the tables of `docs/CONFIG.md`.

use schemars::SchemaGenerator;
use serde_json::Value;

use crate::sections::File;

/// The JSON Schema (draft 2020-12) of a configuration file. In each key's `title`: what its value looks like, with
/// its bounds; in `description`: what it means; in `default`: what it is when left out.
pub fn schema() -> Value {
    let mut schema = SchemaGenerator::default().into_root_schema_for::<File>();
    schema.insert("title".into(), "Ringway".into());
    schema.to_value()
}
