//! A scenario from the command line, or changes to one.

use clap::Args;
use serde_saphyr::{Location, Spanned};

use super::file::{Clients, File, Headers, Load, Open, Request};
use super::text::{Place, Reader, Text};
use super::{Scenario, Target, read};
use crate::failure::Failure;

/// What is sent.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Requests")]
pub(crate) struct RequestFlags {
    /// A header, as `Name: value`; may be given several times
    #[arg(short = 'H', long = "header", value_name = "HEADER")]
    pub(crate) headers: Vec<String>,
    /// GET, or POST with a body
    #[arg(short = 'X', long)]
    pub(crate) method: Option<String>,
    /// The body, with placeholders, or @FILE for a file as it is
    #[arg(long, value_name = "TEXT|@FILE")]
    pub(crate) body: Option<String>,
    /// Connections, of all threads together [default: 64]
    #[arg(short, long, value_name = "N")]
    pub(crate) connections: Option<String>,
    /// Threads of the generator [default: 1]
    #[arg(short, long, value_name = "N")]
    pub(crate) threads: Option<String>,
    /// Cores to pin the threads to: 2 or 2,3
    #[arg(long, value_name = "CORES", value_delimiter = ',')]
    pub(crate) cores: Vec<String>,
    /// A new connection for each request
    #[arg(long)]
    pub(crate) no_keep_alive: bool,
    /// How long a request may take, from when it was due [default: 10s]
    #[arg(long, value_name = "TIME")]
    pub(crate) timeout: Option<String>,
    /// Of everything random: the same seed makes the same requests [default: 1]
    #[arg(long, value_name = "N")]
    pub(crate) seed: Option<String>,
}

/// How fast and how long.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Load")]
pub(crate) struct LoadFlags {
    /// Requests per second, by the clock (open loop): 5000, 0.5/s, 300/m
    #[arg(short, long)]
    pub(crate) rate: Option<String>,
    /// Random gaps between the requests, as independent users make them
    #[arg(long, conflicts_with = "closed")]
    pub(crate) poisson: bool,
    /// Each connection sends its next request when it has its answer (closed loop)
    #[arg(long, conflicts_with = "rate")]
    pub(crate) closed: bool,
    /// The measured part [default: 30s]
    #[arg(short, long, value_name = "TIME")]
    pub(crate) duration: Option<String>,
    /// At the start, sent but not measured [default: 0s]
    #[arg(long, value_name = "TIME")]
    pub(crate) warmup: Option<String>,
}

/// One kind of request to a URL.
pub(crate) fn from_url(url: &str, request: &RequestFlags, load: &LoadFlags) -> Result<Scenario, Failure> {
    let mut reader = Reader::new(String::new(), "".into());
    let (target, path) = match Target::split(url) {
        Ok(parts) => parts,
        Err((message, hint)) => {
            reader.problem(Place::Flag("URL"), message, hint);
            return Err(reader.failure().unwrap_or_else(|| Failure::usage("not a URL")));
        }
    };
    if load.rate.is_none() && !load.closed {
        return Err(Failure::usage("how fast?\n    hint: `--rate 1000` for requests by the clock, or `--closed`"));
    }
    let (body_file, body) = match request.body.as_deref().map(|body| (body.strip_prefix('@'), body)) {
        None => (None, None),
        Some((Some(file), _)) => (Some(Text::flag("--body", file)), None),
        Some((None, text)) => (None, Some(Text::flag("--body", text))),
    };
    let one = Request {
        name: None,
        weight: None,
        method: request.method.as_ref().map(|method| Text::flag("--method", method)),
        path: Text::flag("URL", path),
        headers: Headers::default(),
        body,
        body_file,
        body_size: None,
        expect: None,
    };
    let mut file = File {
        target: Text::flag("URL", format!("http://{}", target.authority)),
        load: spanned(if load.closed { Load::Closed } else { Load::Open(Open::default()) }),
        warmup: None,
        duration: None,
        connections: None,
        threads: None,
        cores: Vec::new(),
        keep_alive: None,
        timeout: None,
        seed: None,
        headers: Headers::default(),
        requests: spanned(vec![spanned(one)]),
        clients: Clients::default(),
    };
    // What describes the one request has been used.
    let rest = RequestFlags { method: None, body: None, ..request.clone() };
    replace(&mut file, &rest, load, &mut reader);
    let mut scenario = read::compile(&file, reader)?;
    scenario.target.url = url.into();
    Ok(scenario)
}

/// Puts flags in the place of what a file says.
pub(crate) fn replace(file: &mut File, request: &RequestFlags, load: &LoadFlags, reader: &mut Reader) {
    let flags = [
        (&mut file.warmup, "--warmup", &load.warmup),
        (&mut file.duration, "--duration", &load.duration),
        (&mut file.connections, "--connections", &request.connections),
        (&mut file.threads, "--threads", &request.threads),
        (&mut file.timeout, "--timeout", &request.timeout),
        (&mut file.seed, "--seed", &request.seed),
    ];
    for (key, name, value) in flags {
        if let Some(value) = value {
            *key = Some(Text::flag(name, value));
        }
    }
    if !request.cores.is_empty() {
        file.cores = request.cores.iter().map(|core| Text::flag("--cores", core)).collect();
    }
    if request.no_keep_alive {
        file.keep_alive = Some(Text::flag("--no-keep-alive", "false"));
    }
    for header in &request.headers {
        match header.split_once(':') {
            Some((name, value)) => {
                let (name, value) = (Text::flag("--header", name.trim_end()), Text::flag("--header", value.trim()));
                file.headers.0.retain(|(other, _)| {
                    other.place == name.place || !other.written.eq_ignore_ascii_case(&name.written)
                });
                file.headers.0.push((name, value));
            }
            None => reader.problem(Place::Flag("--header"), format!("expected `Name: value`, found `{header}`"), None),
        }
    }
    for (flag, given) in [("--method", request.method.is_some()), ("--body", request.body.is_some())] {
        if given {
            reader.problem(Place::Flag(flag), "a scenario file has its own requests", Some("it goes with a URL"));
        }
    }
    if load.closed {
        file.load = spanned(Load::Closed);
    }
    if let Some(rate) = &load.rate {
        let arrivals = match &file.load.value {
            Load::Open(open) => open.arrivals.clone(),
            Load::Closed => None,
        };
        file.load = spanned(Load::Open(Open { rate: Some(Text::flag("--rate", rate)), arrivals, phases: None }));
    }
    match &mut file.load.value {
        Load::Open(open) if load.poisson => open.arrivals = Some(Text::flag("--poisson", "poisson")),
        Load::Closed if load.poisson => {
            reader.problem(Place::Flag("--poisson"), "a closed loop has no schedule", Some("give a `--rate`"));
        }
        _ => {}
    }
}

fn spanned<T>(value: T) -> Spanned<T> {
    Spanned::new(value, Location::UNKNOWN, Location::UNKNOWN)
}
