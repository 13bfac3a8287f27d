//! What becomes of a run's results: the flags that say where they go.

use crate::failure::Failure;
use crate::report::{File, file, hgrm, html, json, table};
use crate::results::Results;

/// Flags of every command that ends with results; `#[command(flatten)]` takes them in.
#[derive(Debug, Clone, Default, clap::Args)]
#[command(next_help_heading = "Output")]
pub(crate) struct Output {
    /// Writes everything that was measured as JSON; `loadtest report FILE` reads it again
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<File>,
    /// Writes one self-contained page: percentile curve, timeline, errors, environment
    #[arg(long, value_name = "FILE")]
    pub(crate) html: Option<File>,
    /// Writes the latency percentiles in HdrHistogram's text format, in milliseconds
    #[arg(long, value_name = "FILE")]
    pub(crate) hgrm: Option<File>,
}

impl Output {
    /// To be called before a run.
    pub(crate) fn check(&self) -> Result<(), Failure> {
        file::check(&[("--json", &self.json), ("--html", &self.html), ("--hgrm", &self.hgrm)])
    }

    pub(crate) fn write(&self, results: &Results) -> Result<(), Failure> {
        file::write(
            &|| table(results),
            &[
                (&self.json, &|| Ok(json(results))),
                (&self.html, &|| Ok(html(results))),
                (&self.hgrm, &|| hgrm(results)),
            ],
        )
    }
}
