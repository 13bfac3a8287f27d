//! What becomes of a run's results: the flags that say where they go.

use crate::failure::Failure;
use crate::report::{File, hgrm, html, json, table};
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
    /// To be called before a run: a file that cannot be written is known before the load, not after it.
    pub(crate) fn check(&self) -> Result<(), Failure> {
        let files = [&self.json, &self.html, &self.hgrm];
        if files.iter().filter(|file| matches!(file, Some(File::Stdout))).count() > 1 {
            return Err(Failure::usage("only one of --json, --html and --hgrm can go to standard output"));
        }
        files.into_iter().flatten().try_for_each(File::check)
    }

    /// The table goes to standard output, unless one of the files does. If a file cannot be written, the table and the
    /// other files are there all the same.
    pub(crate) fn write(&self, results: &Results) -> Result<(), Failure> {
        let mut done = Ok(());
        let mut put = |file: &File, text: Result<String, Failure>| {
            let written = text.and_then(|text| file.write(&text));
            if done.is_ok() {
                done = written;
            }
        };
        let files = [&self.json, &self.html, &self.hgrm];
        if !files.iter().any(|file| matches!(file, Some(File::Stdout))) {
            put(&File::Stdout, Ok(table(results)));
        }
        if let Some(file) = &self.json {
            put(file, Ok(json(results)));
        }
        if let Some(file) = &self.html {
            put(file, Ok(html(results)));
        }
        if let Some(file) = &self.hgrm {
            put(file, hgrm(results));
        }
        done
    }
}
