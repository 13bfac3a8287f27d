//! What one instance carries, as `capacity --json` writes it and `plan --from` reads it.

use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::failure::Failure;

/// The figures that a plan needs. In the file they stand under the key `measured`; other keys are the capacity
/// search's own and are not looked at.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Measured {
    /// Highest rate at which one instance held the SLO, in requests per second.
    pub(crate) qps_per_instance: f64,
    /// CPU time of the target's process; none where the process could not be watched.
    pub(crate) cpu_us_per_request: Option<f64>,
    /// Resident memory under load, less what its connections hold.
    pub(crate) memory_bytes_base: Option<u64>,
    /// Of an idle connection.
    pub(crate) memory_bytes_per_connection: Option<f64>,
    /// Mean size on the wire, head and body.
    pub(crate) request_bytes: f64,
    pub(crate) response_bytes: f64,
    /// What held, in words: `p99 < 20 ms, errors < 0.1 %`.
    pub(crate) slo: String,
}

impl Measured {
    /// Errors say what is wrong with the file, in one line.
    pub(crate) fn load(path: &Path) -> Result<Self, Failure> {
        let wrong = |why: String| Failure::usage(format!("{}: {why}", path.display()));
        let text = fs::read_to_string(path).map_err(|error| wrong(format!("cannot be read: {error}")))?;
        let file: Value = serde_json::from_str(&text).map_err(|error| wrong(format!("not JSON: {error}")))?;
        let Some(measured) = file.get("measured") else {
            return Err(wrong("no key 'measured': not a file of 'loadtest capacity --json'".to_owned()));
        };
        let measured = Self::deserialize(measured).map_err(|error| wrong(format!("measured: {error}")))?;
        measured.check().map_err(|what| wrong(format!("measured: {what}")))?;
        Ok(measured)
    }

    fn check(&self) -> Result<(), String> {
        let figures = [
            ("qps_per_instance", Some(self.qps_per_instance), false),
            ("cpu_us_per_request", self.cpu_us_per_request, true),
            ("memory_bytes_per_connection", self.memory_bytes_per_connection, true),
            ("request_bytes", Some(self.request_bytes), false),
            ("response_bytes", Some(self.response_bytes), false),
        ];
        for (name, value, zero_allowed) in figures {
            let Some(value) = value else { continue };
            if value < 0.0 || (value == 0.0 && !zero_allowed) {
                return Err(format!("{name} is {value}; a number above 0 was expected"));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"{ "format": 1, "search": [], "measured": {
        "qps_per_instance": 21500.5, "cpu_us_per_request": 12.5, "memory_bytes_base": 20000000,
        "memory_bytes_per_connection": 886, "request_bytes": 2100, "response_bytes": 16500,
        "slo": "p99 < 20 ms" } }"#;

    fn load(text: &str) -> Result<Measured, String> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("capacity.json");
        fs::write(&path, text).unwrap();
        Measured::load(&path).map_err(|failure| failure.to_string().replace(&path.display().to_string(), "FILE"))
    }

    #[test]
    fn what_is_written_is_read() {
        let measured = load(GOOD).unwrap();
        assert_eq!((measured.qps_per_instance, measured.response_bytes), (21_500.5, 16_500.0));
        let again = serde_json::json!({ "measured": measured }).to_string();
        assert_eq!(load(&again), Ok(measured));
    }

    #[test]
    fn what_was_not_watched_may_be_missing() {
        let text = GOOD.replace("12.5", "null").replace("\"memory_bytes_base\": 20000000,", "");
        let measured = load(&text).unwrap();
        assert_eq!((measured.cpu_us_per_request, measured.memory_bytes_base), (None, None));
    }

    #[test]
    fn foreign_files_are_named() {
        for (text, expected) in [
            ("", "FILE: not JSON: "),
            ("{\"latency\": 3}", "FILE: no key 'measured': not a file of 'loadtest capacity --json'"),
            ("[1]", "FILE: no key 'measured'"),
            ("{\"measured\": {}}", "FILE: measured: missing field `qps_per_instance`"),
            (&GOOD.replace("21500.5", "\"many\""), "FILE: measured: invalid type: string \"many\""),
            (&GOOD.replace("21500.5", "0"), "FILE: measured: qps_per_instance is 0; a number above 0"),
            (&GOOD.replace("16500", "-1"), "FILE: measured: response_bytes is -1; a number above 0"),
        ] {
            let error = load(text).expect_err(text);
            assert!(error.starts_with(expected), "{error}");
            assert_eq!(error.lines().count(), 1);
        }
    }
}
