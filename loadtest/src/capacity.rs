//! `loadtest capacity`: the highest rate at which a target holds an SLO.
//!
//! The load is open loop, so that a target past its capacity shows it: its queue grows, and with it the latency of all
//! that was due meanwhile. Each probe is a run of its own (`capacity/probe.rs`), `capacity/search.rs` says at which rate.

mod curve;
mod memory;
pub(crate) mod observe;
mod probe;
mod search;
mod slo;

use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::ValueEnum;
use serde::Serialize;

use crate::environment::Environment;
use crate::failure::Failure;
use crate::measured::Measured;
use crate::report::units::{rate as shown_rate, share, time_us};
use crate::report::{File, file};
use crate::scenario::{Load, LoadFlags, RequestFlags, Scenario};
use crate::schedule::Process;
use crate::units;
use observe::Observed;
use probe::{Point, Prober};
use search::{Limit, Outcome, Plan, Stage};
use slo::Slo;

/// Version of the JSON form.
const FORMAT: u32 = 1;
const REPEATS_MAX: u64 = 99;
const STEP_MIN: Duration = Duration::from_secs(1);
const RATE_LIMIT: f64 = 10e6;
/// Part of what a closed loop has reached at which the search starts: well below what an open loop can.
const START: f64 = 0.25;

const EXAMPLES: &str = "\
Examples:
  loadtest capacity http://127.0.0.1:8080/api/products/1 --slo 'p99<20ms,errors<0.1%'
  loadtest capacity http://127.0.0.1:8080/ --slo 'p99<5ms' --process ringway --json capacity.json
  loadtest capacity http://127.0.0.1:8080 --slo 'p99.9<50ms' --scenario shop.yaml --connections 256
  loadtest plan --from capacity.json --peak 10000      what it means for a peak

SLOs: terms with commas between them, all of which must hold:
  p50 p90 p95 p99 p99.9 p99.99 mean max   < or <=   a time: 250us, 20ms, 1s
  errors                                  < or <=   a share: 0.1%, 0.001
Latency counts from the time at which a request was due. A request without an answer is slower than any bound; an answer
with an unexpected status is an error.

The search: a closed loop to warm up; rates that double until the SLO breaks; bisection to 5 %; repeats at the rate that
was found, most of which must hold, else 3 % less. A run that breaks is taken twice. Where the generator cannot
keep its schedule, the result is a lower bound and says so. Give the generator cores of its own (--cores).";

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// URL of the target, or a scenario file, whose own rates do not count
    #[arg(value_name = "TARGET")]
    target: String,
    /// What must hold, e.g. 'p99<20ms,errors<0.1%'
    #[arg(long, value_name = "SLO")]
    slo: Slo,
    /// The target's process, to report its CPU time and memory; its children count too
    #[arg(long, value_name = "PID", conflicts_with = "process")]
    pid: Option<u32>,
    /// The same by its name
    #[arg(long, value_name = "NAME")]
    process: Option<String>,
    /// Takes requests and clients from a scenario file and sends them to TARGET, in place of the file's own
    #[arg(long, value_name = "FILE")]
    scenario: Option<PathBuf>,
    /// Measured part of a run at one rate, after a short warm-up
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = step_duration)]
    step_duration: Duration,
    /// Runs at the rate that was found; more than half of them must hold the SLO
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=REPEATS_MAX))]
    repeats: u64,
    /// Highest rate to try, in requests per second
    #[arg(long, value_name = "RATE", value_parser = rate_max)]
    max_rate: Option<f64>,
    /// How requests are spread over time
    #[arg(long, value_enum, default_value_t = Spread::Poisson)]
    arrivals: Spread,
    /// Writes everything that was measured; `loadtest plan --from FILE` takes its figures from it
    #[arg(long, value_name = "FILE")]
    json: Option<File>,
    /// Writes one self-contained page with the curve of latency against rate
    #[arg(long, value_name = "FILE")]
    html: Option<File>,
    #[command(flatten)]
    request: RequestFlags,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Spread {
    /// As independent users would send them
    Poisson,
    /// Evenly, which is kinder to the target
    Constant,
}

/// All of it, as `--json` writes it.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Capacity {
    format: u32,
    /// RFC 3339, UTC.
    started: String,
    environment: Environment,
    target: String,
    slo: String,
    connections: usize,
    measured: Measured,
    /// Whether the target may be able to do more than was found.
    is_lower_bound: bool,
    /// What ended the search upwards, in words.
    limit: String,
    /// Medians of the runs at the rate that was found.
    latency: Percentiles,
    memory_bytes_at_start: Option<u64>,
    memory_bytes_at_capacity: Option<u64>,
    points: Vec<Point>,
}

#[derive(Debug, Clone, Copy, Serialize)]
struct Percentiles {
    p50_us: f64,
    p99_us: f64,
    p999_us: f64,
}

pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    file::check(&[("--json", &args.json), ("--html", &args.html)])?;
    let scenario = scenario(args)?;
    let mut target = match (&args.pid, &args.process) {
        (Some(pid), _) => Some(Observed::by_pid(*pid)?),
        (None, Some(name)) => Some(Observed::by_name(name)?),
        (None, None) => None,
    };
    let at_start = target.as_ref().map(Observed::usage).transpose()?.map(|usage| usage.rss_bytes);
    let started = now_rfc3339();
    let start = warm_up(&scenario, args, &mut target)?;

    let process = if args.arrivals == Spread::Poisson { Process::Poisson } else { Process::Constant };
    let mut prober = Prober {
        scenario: &scenario,
        process,
        slo: &args.slo,
        step: args.step_duration,
        target: target.clone(),
        runs: 0,
    };
    let plan = Plan { start, rate_max: args.max_rate, repeats: args.repeats as usize };
    let mut points = Vec::new();
    let outcome = search::search(&plan, &mut |stage, rate| {
        let point = prober.probe(stage, rate)?;
        eprintln!("{}", curve::progress(&point));
        let verdict = point.verdict.clone();
        points.push(point);
        Ok::<_, Failure>(verdict)
    })?;
    let (rate, limit) = match outcome {
        Outcome::Found { rate, limit } => (rate, limit),
        Outcome::Never { rate, why } => {
            let rate = shown_rate(rate);
            return Err(Failure::runtime(format!("the target does not hold {} even at {rate}: {why}", args.slo)));
        }
    };
    let per_connection = match &target {
        Some(target) => memory::per_connection(&scenario, target)?,
        None => None,
    };
    let confirmed: Vec<&Point> = points.iter().filter(|p| p.stage == Stage::Confirm && p.rate == rate).collect();
    let of = |figure: fn(&Point) -> Option<f64>| median(confirmed.iter().filter_map(|point| figure(point)).collect());
    let at_capacity = of(|point| point.rss_bytes.map(|bytes| bytes as f64)).map(|bytes| bytes as u64);
    let held_by_connections = per_connection.unwrap_or(0.0) * scenario.connections as f64;
    let zero = |figure: Option<f64>| figure.unwrap_or(0.0);
    let capacity = Capacity {
        format: FORMAT,
        started,
        environment: Environment::here(),
        target: args.target.clone(),
        slo: args.slo.to_string(),
        connections: scenario.connections,
        measured: Measured {
            qps_per_instance: rate,
            cpu_us_per_request: of(|point| point.cpu_us_per_request),
            memory_bytes_base: at_capacity.map(|bytes| bytes.saturating_sub(held_by_connections as u64)),
            memory_bytes_per_connection: per_connection,
            request_bytes: zero(of(|point| Some(point.request_bytes))),
            response_bytes: zero(of(|point| Some(point.response_bytes))),
            slo: args.slo.to_string(),
        },
        is_lower_bound: !matches!(limit, Limit::Slo(_)),
        limit: match limit {
            Limit::Slo(why) => format!("the target: {why}"),
            Limit::Generator(why) => format!("the generator: {why}"),
            Limit::RateMax => "--max-rate".to_owned(),
        },
        latency: Percentiles {
            p50_us: zero(of(|point| Some(point.p50_us as f64))),
            p99_us: zero(of(|point| Some(point.p99_us as f64))),
            p999_us: zero(of(|point| Some(point.p999_us as f64))),
        },
        memory_bytes_at_start: at_start,
        memory_bytes_at_capacity: at_capacity,
        points,
    };
    let json = || serde_json::to_string_pretty(&capacity).map(|text| text + "\n").map_err(Failure::runtime);
    let html = || Ok(curve::page(&capacity));
    file::write(&|| curve::table(&capacity), &[(&args.json, &json), (&args.html, &html)])
}

fn scenario(args: &Args) -> Result<Scenario, Failure> {
    // The load is the search's; a URL alone must say something about it all the same.
    let closed = LoadFlags { closed: true, ..LoadFlags::default() };
    match &args.scenario {
        None => Scenario::open(&args.target, &args.request, &closed),
        Some(path) => Scenario::from_file(path, Some(&args.target), &args.request, &LoadFlags::default()),
    }
}

/// Warms the target up in a closed loop, which also says where to start. An error where nothing is answered well.
fn warm_up(scenario: &Scenario, args: &Args, target: &mut Option<Observed>) -> Result<f64, Failure> {
    let mut closed = scenario.clone();
    closed.load = Load::Closed;
    closed.warmup = Duration::ZERO;
    closed.duration = args.step_duration.min(Duration::from_secs(3));
    let (results, _) = probe::watched(&closed, target)?;
    let counts = &results.counts;
    let good = counts.answered.saturating_sub(counts.unexpected);
    if good == 0 {
        let seen: Vec<String> = results
            .classes
            .iter()
            .flat_map(|class| &class.statuses)
            .map(|status| format!("status {}", status.name()))
            .chain(results.errors.iter().map(|error| format!("{} ({})", error.kind, error.count)))
            .take(3)
            .collect();
        return Err(Failure::runtime(format!("no request to {} is answered well: {}", args.target, seen.join(", "))));
    }
    let rate = good as f64 / results.seconds.max(f64::MIN_POSITIVE);
    eprintln!(
        "warm-up  {:>11} in a closed loop of {} connections, p99 {}, {} errors",
        shown_rate(rate),
        scenario.connections,
        time_us(results.latency.p99 as f64),
        share(counts.error_share())
    );
    Ok((rate * START).max(1.0))
}

/// This moment, as results tell it.
pub(crate) fn now_rfc3339() -> String {
    let unix_ms = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64;
    let mut text = Vec::new();
    ringway_core::timestamp::rfc3339_millis(unix_ms, &mut text);
    String::from_utf8_lossy(&text).into_owned()
}

fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let upper = *values.get(values.len() / 2)?;
    let lower = values[(values.len() - 1) / 2];
    Some((lower + upper) / 2.0)
}

fn step_duration(text: &str) -> Result<Duration, String> {
    let duration = units::duration(text)?;
    if duration < STEP_MIN { Err("1s at least: shorter runs show nothing".to_owned()) } else { Ok(duration) }
}

fn rate_max(text: &str) -> Result<f64, String> {
    let rate = units::or_plain(text, "/s", units::rate).ok().filter(|rate| (1.0..=RATE_LIMIT).contains(rate));
    rate.ok_or_else(|| format!("'{text}' is no number from 1 to {RATE_LIMIT}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, clap::Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    fn error(args: &[&str]) -> String {
        let line = Line::try_parse_from([&["capacity", "http://127.0.0.1:1/"], args].concat());
        line.map(drop).expect_err("a wrong flag").to_string()
    }

    #[test]
    fn bad_flags_are_named() {
        assert!(error(&[]).contains("--slo <SLO>"));
        assert!(error(&["--slo", "p99<20"]).contains("column 7: a unit was expected"));
        for (flag, value, expected) in [
            ("--step-duration", "10ms", "1s at least"),
            ("--max-rate", "0", "no number from 1 to"),
            ("--repeats", "0", "1..=99"),
        ] {
            let error = error(&["--slo", "p99<1s", flag, value]);
            assert!(error.contains(expected), "{error}");
        }
        assert!(error(&["--slo", "p99<1s", "--pid", "1", "--process", "x"]).contains("cannot be used with"));
    }

    #[test]
    fn rates_are_per_second() {
        assert_eq!((rate_max("2500"), rate_max("2500/s")), (Ok(2500.0), Ok(2500.0)));
        assert!(rate_max("0.5").is_err() && rate_max("many").is_err() && rate_max("1e99").is_err());
    }

    #[test]
    fn medians() {
        assert_eq!(median(vec![]), None);
        assert_eq!(median(vec![3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), Some(2.5));
    }
}
