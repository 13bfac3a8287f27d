//! `loadtest report`: a run that was saved with `--json`, shown again.

use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;

use crate::failure::Failure;
use crate::report::Output;
use crate::results::{FORMAT, Results};

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  loadtest report run.json                                the table
  loadtest report run.json --html run.html                the page, from a run without --html
  loadtest report run.json --hgrm - | less                percentiles for HdrHistogram's plotter")]
pub(crate) struct Args {
    /// A file that a run wrote with `--json`
    #[arg(value_name = "RESULTS")]
    results: PathBuf,
    #[command(flatten)]
    output: Output,
}

pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    args.output.check()?;
    args.output.write(&load(&args.results)?)
}

/// Errors say what is wrong with the file, in one line.
fn load(path: &Path) -> Result<Results, Failure> {
    let wrong = |why: String| Failure::usage(format!("{}: {why}", path.display()));
    let text = fs::read_to_string(path).map_err(|error| wrong(format!("cannot be read: {error}")))?;
    let value: Value = serde_json::from_str(&text).map_err(|error| wrong(format!("not JSON: {error}")))?;
    match value.get("format").and_then(Value::as_u64) {
        Some(format) if format == u64::from(FORMAT) => {}
        Some(format) => return Err(wrong(format!("results of format {format}; this version reads {FORMAT}"))),
        None => return Err(wrong("no key 'format': not a file that a run wrote with --json".to_owned())),
    }
    Results::deserialize(value).map_err(|error| wrong(format!("not the results of a run: {error}")))
}
