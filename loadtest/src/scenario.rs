//! A load test as it is written down, checked: what is sent where, how fast, by whom.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::failure::Failure;
use crate::request::{Class, Mix, Requests};
use crate::schedule::{Arrivals, Process};

/// Everything that the generator needs to know. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Scenario {
    /// The file's name without its ending, or the URL.
    pub(crate) name: String,
    pub(crate) target: Target,
    pub(crate) load: Load,
    /// At the start, sent but not measured.
    pub(crate) warmup: Duration,
    /// The measured part, after the warm-up.
    pub(crate) duration: Duration,
    pub(crate) connections: usize,
    pub(crate) threads: usize,
    /// Cores to pin the threads to, in order and again from the start; empty: not pinned.
    pub(crate) cores: Vec<usize>,
    /// Whether connections are used again. Without it requests carry `Connection: close`.
    pub(crate) keep_alive: bool,
    /// From a request's due time to the end of its answer.
    pub(crate) timeout: Duration,
    pub(crate) seed: u64,
    requests: Arc<Requests>,
}

#[derive(Debug, Clone)]
pub(crate) enum Load {
    /// By the clock: the schedule of warm-up and measured part together.
    Open(Arrivals),
    /// Each connection sends its next request when it has its answer.
    Closed,
}

/// Where requests go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Target {
    /// As it was written.
    pub(crate) url: String,
    /// A name or an address, IPv6 without brackets.
    pub(crate) host: String,
    pub(crate) port: u16,
    /// For `Host`: without the port if it is 80.
    pub(crate) authority: String,
    /// What stands before the requests' paths; begins with `/` or is empty, does not end with `/`.
    pub(crate) base: String,
}

/// What is sent, by flags.
#[derive(Debug, Clone, Default, clap::Args)]
pub(crate) struct RequestFlags {}

/// How it is sent, by flags.
#[derive(Debug, Clone, Default, clap::Args)]
pub(crate) struct LoadFlags {}

impl Scenario {
    /// A scenario file, or a URL; the flags that are given replace what the file says.
    pub(crate) fn open(file_or_url: &str, request: &RequestFlags, load: &LoadFlags) -> Result<Self, Failure> {
        let _ = (file_or_url, request, load);
        Err(Failure::usage("not built yet"))
    }

    /// A scenario file as it is.
    pub(crate) fn load(path: &Path) -> Result<Self, Failure> {
        Self::open(&path.to_string_lossy(), &RequestFlags::default(), &LoadFlags::default())
    }

    /// The same at a constant rate, for the capacity search.
    pub(crate) fn at_rate(&self, rate: f64, process: Process, warmup: Duration, duration: Duration) -> Self {
        let _ = (rate, process);
        Self { warmup, duration, ..self.clone() }
    }

    /// The kinds of requests; `Issued::class` is an index into them.
    pub(crate) fn classes(&self) -> &[Class] {
        self.requests.classes()
    }

    /// For each thread its share of the requests. Tokens are signed before, so that this may take a few seconds.
    pub(crate) fn mixes(&self) -> Result<Vec<Mix>, Failure> {
        Requests::mixes(&self.requests, self.threads, self.seed)
    }

    /// What may make the figures less than they seem, for `Generator::warnings`.
    pub(crate) fn warnings(&self) -> Vec<String> {
        Vec::new()
    }
}

impl Target {
    /// Looks the host's name up. Blocks.
    pub(crate) fn resolve(&self) -> Result<std::net::SocketAddr, Failure> {
        use std::net::ToSocketAddrs;
        let found = (self.host.as_str(), self.port).to_socket_addrs();
        let mut found = found.map_err(|error| Failure::runtime(format!("cannot resolve `{}`: {error}", self.host)))?;
        found.next().ok_or_else(|| Failure::runtime(format!("`{}` has no address", self.host)))
    }
}
