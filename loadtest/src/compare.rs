//! `loadtest compare`: what a request costs Ringway, and what it costs other proxies on the same machine.
//!
//! Each proxy has a core for itself; the generator and the origin share a second one. The repeats are interleaved,
//! every proxy once and then every proxy again, so that a slow quarter of an hour of the machine meets all alike.

mod case;
mod child;
mod measure;
mod page;
mod proxy;
mod summary;
mod table;

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;

use crate::capacity::observe::Observed;
use crate::environment::Environment;
use crate::failure::Failure;
use crate::report::{File, file};
use case::Case;
use child::{Program, Running};
use measure::{Run, Stage};
use proxy::{Kind, Proxy};
use summary::Row;

/// Version of the JSON form.
const FORMAT: u32 = 1;
const REPEATS_MAX: u64 = 99;
const SECONDS_MAX: u64 = 600;

const EXAMPLES: &str = "\
Examples:
  loadtest compare                                     all proxies that are installed, all cases
  loadtest compare --only ringway,nginx --cases get-16k@64,post-2k@64
  loadtest compare --ringway target/release/ringway --html compare.html --json compare.json
  loadtest compare --only nginx --repeat 1 --secs 1    a first look at one proxy

Cases are NAME@CONNECTIONS, kept busy all the time (closed loop):
  get-100          GET, 100 bytes in the answer
  get-16k          GET, 16 KiB in the answer
  post-2k          POST of 2 KiB, 100 bytes in the answer
  new-connection   GET, 100 bytes in the answer, a new connection for each request

The figure to compare by is the CPU time of a request, of all threads of the proxy. Rates and latencies describe the
proxy only where its own core was full; the table says which core was.";

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// Which proxies; the first is what the others are compared with [default: all that are installed]
    #[arg(long, value_name = "NAMES", value_enum, value_delimiter = ',')]
    only: Vec<Kind>,
    /// Which cases [default: get-100 and get-16k at 64, 256 and 1, post-2k@64, new-connection@64]
    #[arg(long, value_name = "CASES", value_delimiter = ',')]
    cases: Vec<Case>,
    /// Measured seconds of a run, after a second of warm-up
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=SECONDS_MAX))]
    secs: u64,
    /// Runs of each case with each proxy; medians are shown
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=REPEATS_MAX))]
    repeat: u64,
    /// Ringway's program [default: beside this one, or on the path]
    #[arg(long, value_name = "PATH")]
    ringway: Option<PathBuf>,
    /// Another origin than `loadtest origin`, HOST:PORT; it must obey `?size=` as that does
    #[arg(long, value_name = "ADDRESS")]
    origin: Option<SocketAddr>,
    /// Writes everything that was measured, each run of it
    #[arg(long, value_name = "FILE")]
    json: Option<File>,
    /// Writes one self-contained page with bars
    #[arg(long, value_name = "FILE")]
    html: Option<File>,
    /// Prepares a child process; see `child`
    #[arg(long, hide = true, requires = "program")]
    exec_on: Option<usize>,
    /// The process whose child it must still be
    #[arg(long, hide = true, requires = "exec_on")]
    child_of: Option<i32>,
    #[arg(hide = true, last = true)]
    program: Vec<OsString>,
}

/// All of it, as `--json` writes it.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Comparison {
    format: u32,
    /// RFC 3339, UTC.
    started: String,
    environment: Environment,
    proxies: Vec<Version>,
    seconds: u64,
    repeats: u64,
    proxy_core: usize,
    load_core: usize,
    origin: String,
    /// What makes the figures less than they seem, in words.
    warnings: Vec<String>,
    rows: Vec<Row>,
}

#[derive(Debug, Clone, Serialize)]
struct Version {
    name: String,
    version: String,
    path: PathBuf,
}

pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    if let Some(core) = args.exec_on {
        return Err(child::become_program(core, args.child_of, &args.program));
    }
    // From here on Ctrl-C ends the comparison in order: children first, then their files.
    stop_if_interrupted()?;
    file::check(&[("--json", &args.json), ("--html", &args.html)])?;
    let mut warnings = Vec::new();
    let proxies = find(args, &mut warnings)?;
    let (proxy_core, load_core) = cores()?;
    let settled = child::settle_on(load_core);
    let before_others = settled.map_err(|e| Failure::runtime(format!("cannot use core {load_core}: {e}")))?;
    if !before_others {
        warnings.push("a higher priority (nice -20) is not allowed here: expect wider spreads".to_owned());
    }
    let cases = if args.cases.is_empty() { Case::DEFAULTS.to_vec() } else { args.cases.clone() };
    let setup = Setup { proxy_core, load_core, origin: args.origin, seconds: args.secs };
    let started = crate::capacity::now_rfc3339();
    let mut measured: Vec<(Kind, Case, Run)> = Vec::new();
    for repeat in 1..=args.repeat {
        for proxy in &proxies {
            let mut done = |case: Case, run: Run| {
                let (name, case_name) = (proxy.kind.name(), case.to_string());
                eprintln!("{repeat}/{} {name:<8} {case_name:<18} {}", args.repeat, table::progress(&run));
                measured.push((proxy.kind, case, run));
            };
            setup.measure(proxy, &cases, &mut done)?;
        }
    }
    let rows = rows(&proxies, &cases, &measured);
    warnings.extend(doubts(&rows));
    let comparison = Comparison {
        format: FORMAT,
        started,
        environment: Environment::here(),
        proxies: proxies
            .into_iter()
            .map(|Proxy { kind, path, version }| Version { name: kind.name().to_owned(), version, path })
            .collect(),
        seconds: args.secs,
        repeats: args.repeat,
        proxy_core,
        load_core,
        origin: args.origin.map_or("loadtest origin".to_owned(), |origin| origin.to_string()),
        warnings,
        rows,
    };
    write(args, &comparison)
}

/// How every run takes place.
struct Setup {
    proxy_core: usize,
    load_core: usize,
    origin: Option<SocketAddr>,
    seconds: u64,
}

impl Setup {
    /// Starts origin and proxy anew and takes each case once.
    fn measure(&self, proxy: &Proxy, cases: &[Case], done: &mut impl FnMut(Case, Run)) -> Result<(), Failure> {
        let directory = tempfile::Builder::new().prefix("loadtest-compare-").tempdir();
        let directory = directory.map_err(|error| Failure::runtime(format!("no temporary directory: {error}")))?;
        // Declared in this order, they end in the other: the proxy before its origin, both before their files.
        let (origin, address) = match self.origin {
            Some(address) => (None, address),
            None => {
                let (origin, address) = self.start_origin(directory.path())?;
                (Some(origin), address)
            }
        };
        let (running, port) = proxy.start(address, self.proxy_core, directory.path())?;
        let stage = Stage {
            proxy: Observed::by_pid(running.pid())?,
            origin: origin.as_ref().map(|origin| Observed::by_pid(origin.pid())).transpose()?,
            proxy_core: self.proxy_core,
            load_core: self.load_core,
        };
        stage.warm_up(&Case::FIRST.scenario(port, self.load_core, directory.path())?)?;
        for case in cases {
            let mut scenario = case.scenario(port, self.load_core, directory.path())?;
            scenario.duration = Duration::from_secs(self.seconds);
            done(*case, stage.undisturbed(&scenario, case.kind.answer_bytes())?);
        }
        Ok(())
    }

    fn start_origin(&self, directory: &Path) -> Result<(Running, SocketAddr), Failure> {
        let own = std::env::current_exe().map_err(|e| Failure::runtime(format!("cannot find this program: {e}")))?;
        let cores = format!("--cores={}", self.load_core);
        let args = ["origin", "--listen=127.0.0.1:0", &cores].map(Into::into).to_vec();
        let program = Program { name: "origin".to_owned(), path: own, args, core: self.load_core };
        Running::start_announced(&program, directory)
    }
}

/// Ctrl-C ends the whole comparison, not only the run that it met.
fn stop_if_interrupted() -> Result<(), Failure> {
    if crate::run::is_interrupted() { Err(Failure::runtime("interrupted")) } else { Ok(()) }
}

/// Those that are asked for and here; what is missing becomes a warning.
fn find(args: &Args, warnings: &mut Vec<String>) -> Result<Vec<Proxy>, Failure> {
    let kinds = if args.only.is_empty() { &Kind::ALL[..] } else { &args.only };
    let mut found: Vec<Proxy> = Vec::new();
    for &kind in kinds {
        match Proxy::find(kind, args.ringway.as_deref()) {
            // A path that was given and is wrong is a mistake, not an absence.
            Err(why) if kind == Kind::Ringway && args.ringway.is_some() => return Err(Failure::usage(why)),
            Err(why) => {
                eprintln!("loadtest: {why}");
                warnings.push(why);
            }
            Ok(proxy) if found.iter().any(|other| other.kind == proxy.kind) => {}
            Ok(proxy) => found.push(proxy),
        }
    }
    if found.is_empty() { Err(Failure::runtime("no proxy to measure")) } else { Ok(found) }
}

/// The first two cores that this process may use: the proxy's and the load's.
fn cores() -> Result<(usize, usize), Failure> {
    let allowed = core_affinity::get_core_ids().unwrap_or_default();
    match &allowed[..] {
        [proxy, load, ..] => Ok((proxy.id, load.id)),
        _ => Err(Failure::runtime("two cores are needed: one for the proxy, one for the load and the origin")),
    }
}

fn rows(proxies: &[Proxy], cases: &[Case], measured: &[(Kind, Case, Run)]) -> Vec<Row> {
    let mut rows = Vec::new();
    for case in cases {
        for Proxy { kind, .. } in proxies {
            let of_row = measured.iter().filter(|(k, c, _)| k == kind && c == case);
            let runs: Vec<_> = of_row.map(|(_, _, run)| run.clone()).collect();
            rows.push(Row::new(case.to_string(), case.connections, kind.name().to_owned(), runs));
        }
    }
    summary::relate(&mut rows, proxies.first().map_or("", |first| first.kind.name()));
    rows
}

/// What the reader of the rows should know.
fn doubts(rows: &[Row]) -> Vec<String> {
    let mut doubts = Vec::new();
    for row in rows {
        let name = format!("{}, {}", row.proxy, row.case);
        if row.bad > 0 {
            doubts.push(format!("{name}: {} requests had no answer or a wrong one; no ratio is shown", row.bad));
        }
        if row.runs.iter().any(Run::left_its_core) {
            doubts.push(format!("{name}: the proxy did not keep to its core"));
        }
        if row.runs.iter().any(Run::is_disturbed) {
            doubts.push(format!("{name}: other work used these cores, also when the run was taken again"));
        }
        if row.spread > 0.10 {
            doubts
                .push(format!("{name}: the rates of the repeats differ by {:.0} %; measure again", row.spread * 100.0));
        }
    }
    doubts
}

fn write(args: &Args, comparison: &Comparison) -> Result<(), Failure> {
    let json = || serde_json::to_string_pretty(comparison).map(|text| text + "\n").map_err(Failure::runtime);
    let html = || Ok(page::page(comparison));
    file::write(&|| table::table(comparison), &[(&args.json, &json), (&args.html, &html)])
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::compare::summary::tests::{row, run};
    use clap::Parser;

    /// Ringway and nginx in one case; nginx with a full load core.
    pub(crate) fn comparison() -> Comparison {
        let full = Run { load_core_busy: 0.99, ..run(20.0, 900.0) };
        let mut rows = vec![row("ringway", vec![run(15.0, 1000.0)]), row("nginx", vec![full])];
        summary::relate(&mut rows, "ringway");
        let version = |name: &str, version: &str| Version {
            name: name.to_owned(),
            version: version.to_owned(),
            path: name.into(),
        };
        Comparison {
            format: FORMAT,
            started: "2026-11-24T08:00:00.000Z".to_owned(),
            environment: Environment::here(),
            proxies: vec![version("ringway", "0.1.0"), version("nginx", "1.22.1")],
            seconds: 3,
            repeats: 1,
            proxy_core: 0,
            load_core: 1,
            origin: "loadtest origin".to_owned(),
            warnings: vec!["haproxy is not installed: left out".to_owned()],
            rows,
        }
    }

    #[derive(Debug, clap::Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    fn parse(args: &[&str]) -> Result<Args, String> {
        let line = Line::try_parse_from([&["compare"], args].concat());
        line.map(|line| line.args).map_err(|error| error.to_string())
    }

    #[test]
    fn lists_of_proxies_and_cases_are_read() {
        let args = parse(&["--only", "nginx,ringway", "--cases", "get-16k@64,post-2k"]).unwrap();
        assert_eq!(args.only, [Kind::Nginx, Kind::Ringway]);
        assert_eq!(args.cases.iter().map(Case::to_string).collect::<Vec<_>>(), ["get-16k@64", "post-2k@64"]);
        assert!(parse(&["--only", "apache"]).unwrap_err().contains("possible values: ringway, nginx, haproxy, envoy"));
        assert!(parse(&["--cases", "get-1"]).unwrap_err().contains("'get-1' is none of get-100, "));
        assert!(parse(&["--secs", "0"]).is_err() && parse(&["--repeat", "100"]).is_err());
    }

    #[test]
    fn doubts_name_what_is_wrong_with_a_row() {
        let runs = vec![Run { bad: 2, ..run(10.0, 1000.0) }, Run { foreign_cores: Some(0.2), ..run(10.0, 800.0) }];
        let doubts = doubts(&[row("envoy", runs), row("nginx", vec![run(10.0, 1000.0)])]);
        assert_eq!(doubts.len(), 3, "{doubts:?}");
        assert!(doubts[0].starts_with("envoy, get-100@64: 2 requests had no answer"));
        assert!(doubts[1].contains("other work used these cores"));
        assert!(doubts[2].contains("differ by 22 %"), "{doubts:?}");
        let strayed = Run { proxy_cores: 1.4, ..run(10.0, 1000.0) };
        assert!(super::doubts(&[row("nginx", vec![strayed])])[0].contains("did not keep to its core"));
    }

    #[test]
    fn rows_stand_case_by_case_in_the_order_asked_for() {
        let proxy = |kind| Proxy { kind, path: PathBuf::new(), version: "1".to_owned() };
        let cases = ["get-16k@1", "get-100@1"].map(|text| text.parse::<Case>().unwrap());
        let mut measured = Vec::new();
        for kind in [Kind::Ringway, Kind::Nginx] {
            measured.extend(cases.iter().map(|case| (kind, *case, run(10.0, 1.0))));
        }
        let rows = rows(&[proxy(Kind::Ringway), proxy(Kind::Nginx)], &cases, &measured);
        let order: Vec<_> = rows.iter().map(|row| format!("{} {}", row.case, row.proxy)).collect();
        assert_eq!(order, ["get-16k@1 ringway", "get-16k@1 nginx", "get-100@1 ringway", "get-100@1 nginx"]);
        assert_eq!(rows[1].cpu_ratio, Some(1.0));
    }
}
