//! A load test as it is written down, checked: what is sent where, how fast, by whom.

mod clients;
mod file;
mod flags;
mod load;
mod read;
mod requests;
mod target;
mod text;
mod variables;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::failure::Failure;
use crate::request::{Class, Mix, Requests};
use crate::results;
use crate::schedule::{Arrivals, Process, Segment};

use target::Target;

pub(crate) use flags::{LoadFlags, RequestFlags};

/// Everything that the generator needs to know. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Scenario {
    pub(crate) target: Target,
    pub(crate) load: Load,
    /// At the start, sent but not measured.
    pub(crate) warmup: Duration,
    /// The measured part, after the warm-up.
    pub(crate) duration: Duration,
    /// Of all threads together; at least one for each.
    pub(crate) connections: usize,
    pub(crate) threads: usize,
    /// Cores to pin the threads to, in order and again from the start; empty: not pinned.
    pub(crate) cores: Vec<usize>,
    /// Whether connections are used again. Without it requests carry `Connection: close`.
    pub(crate) keep_alive: bool,
    /// From a request's due time (in a closed loop, its sending) to the end of its answer.
    pub(crate) timeout: Duration,
    pub(crate) seed: u64,
    requests: Arc<Requests>,
}

#[derive(Debug, Clone)]
pub(crate) enum Load {
    /// By the clock: the due times of warm-up and measured part together.
    Open(Arrivals),
    /// Each connection sends its next request when it has its answer.
    Closed,
}

impl Scenario {
    /// A scenario file, or a URL. Flags that are given replace what the file says.
    pub(crate) fn open(file_or_url: &str, request: &RequestFlags, load: &LoadFlags) -> Result<Self, Failure> {
        if file_or_url.contains("://") {
            return flags::from_url(file_or_url, request, load);
        }
        Self::from_file(Path::new(file_or_url), None, request, load)
    }

    /// A scenario file. Its requests go to `target`, where that is given, as if the file said so.
    pub(crate) fn from_file(
        path: &Path,
        target: Option<&str>,
        request: &RequestFlags,
        load: &LoadFlags,
    ) -> Result<Self, Failure> {
        let directory = path.parent().unwrap_or(Path::new(""));
        let mut reader = text::Reader::new(path.display().to_string(), directory.into());
        let mut file = read::file(path, &mut reader)?;
        if let Some(target) = target {
            file.target = text::Text::flag("TARGET", target);
        }
        flags::replace(&mut file, request, load, &mut reader);
        read::compile(&file, reader)
    }

    /// The same at a constant mean rate, whatever the load was: for a search, which may open its scenario as a closed
    /// loop.
    pub(crate) fn at_rate(&self, rate: f64, process: Process, warmup: Duration, duration: Duration) -> Self {
        let arrivals = Arrivals::new(&[Segment::constant(rate, duration)], process, self.seed).with_warmup(warmup);
        Self { load: Load::Open(arrivals), warmup, duration, ..self.clone() }
    }

    /// The kinds of requests; `Issued::class` is an index into them.
    pub(crate) fn classes(&self) -> &[Class] {
        &self.requests.classes
    }

    /// For each thread its share of the requests. Signs the clients' tokens, which may take some seconds the first
    /// time.
    pub(crate) fn mixes(&self) -> Vec<Mix> {
        if let Some(tokens) = &self.requests.tokens {
            tokens.prepare(std::thread::available_parallelism().map_or(1, usize::from));
        }
        (0..self.threads).map(|thread| Mix::new(&self.requests, thread, self.threads, self.seed)).collect()
    }

    /// The load, as results tell it.
    pub(crate) fn describe(&self) -> results::Load {
        let seconds = self.duration.as_secs_f64();
        let (model, description, rate) = match &self.load {
            Load::Open(arrivals) => ("open", arrivals.describe(), Some(arrivals.measured() / seconds)),
            Load::Closed => ("closed", format!("as fast as the answers come for {seconds} s"), None),
        };
        let (connections, threads) = (self.connections, self.threads);
        results::Load { model: model.into(), description, rate, connections, threads }
    }
}

#[cfg(test)]
mod tests;
