//! The audit log.

use std::path::PathBuf;

use schemars::{Schema, SchemaGenerator, json_schema};

use super::process::LogFile;
use crate::decode::{Cx, Decode};
use crate::snapshot;
use crate::tree::{Node, Value};

#[derive(Debug, Clone)]
pub(crate) struct AuditLog(pub(crate) snapshot::AuditLog);

impl Decode for AuditLog {
    fn kind() -> String {
        "`stderr`, `stdout`, `off` or `file: PATH`".into()
    }

    fn decode(node: &Node, cx: &mut Cx) -> Option<Self> {
        if let Value::Map(_) = &node.value {
            let file = LogFile::decode(node, cx)?.file;
            return Some(Self(snapshot::AuditLog::File(PathBuf::from(file))));
        }
        match node.scalar().map(|scalar| &*scalar.text) {
            Some("stderr") => Some(Self(snapshot::AuditLog::Stderr)),
            Some("stdout") => Some(Self(snapshot::AuditLog::Stdout)),
            Some("off") => Some(Self(snapshot::AuditLog::Off)),
            _ => {
                cx.mismatch::<Self>(node, Some("a file is written `audit_log: { file: PATH }`".into()));
                None
            }
        }
    }

    fn schema(generator: &mut SchemaGenerator) -> Schema {
        json_schema!({ "anyOf": [{ "enum": ["stderr", "stdout", "off"] }, LogFile::schema(generator)] })
    }
}
