//! Where a run took place.

use serde::{Deserialize, Serialize};

/// The machine and the tool, as far as figures depend on them.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Environment {
    pub(crate) cpu: String,
    pub(crate) cores: usize,
    pub(crate) memory_mib: u64,
    pub(crate) kernel: String,
    pub(crate) os: String,
    /// Version of this tool.
    pub(crate) version: String,
    pub(crate) command_line: Vec<String>,
}
