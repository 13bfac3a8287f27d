//! `loadtest plan`: instances, bandwidth and memory, from measured or given figures.

mod arithmetic;
mod limiter;
mod quantity;
mod show;

use std::path::PathBuf;

use crate::failure::Failure;
use crate::measured::Measured;
use crate::report::{File, file};
use arithmetic::{Inputs, plan};
use limiter::Demand;
use quantity::Limit;

#[derive(Debug, clap::Args)]
#[command(after_help = "Sizes: 1 KB is 1000 bytes, 1 KiB is 1024. Rates: 10000/s, 10k/s, 600/min.

Examples:
  10,000 requests/s of 2 KB, answers of 16 KB, instances that carry 2,000/s each, twice the peak to be safe:
    loadtest plan --peak 10000/s --request 2KB --response 16KB --per-instance 2000/s --safety 2

  What one instance carries as 'loadtest capacity TARGET --json capacity.json' measured it, three zones of which one
  may fail, 200,000 clients connected:
    loadtest plan --from capacity.json --peak 10000/s --zones 3 --connections 200000

  Redis of the rate limiter, 5,000 clients active at a time, 100 requests per minute each:
    loadtest plan --from capacity.json --peak 10000/s --rate-limit-keys 5000 --rate-limit 100/min")]
pub(crate) struct Args {
    /// Requests per second at the peak
    #[arg(long, value_name = "RATE", allow_hyphen_values = true, value_parser = quantity::rate)]
    peak: f64,
    /// Figures of one instance, as `loadtest capacity --json` wrote them; flags override them
    #[arg(long, value_name = "FILE")]
    from: Option<PathBuf>,
    /// Rate that one instance carries
    #[arg(long, value_name = "RATE", allow_hyphen_values = true, value_parser = quantity::rate)]
    per_instance: Option<f64>,
    /// Size of a request, head and body
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true, value_parser = quantity::bytes)]
    request: Option<f64>,
    /// Size of an answer, head and body
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true, value_parser = quantity::bytes)]
    response: Option<f64>,
    /// Times the peak that must be carried
    #[arg(long, value_name = "FACTOR", default_value = "2", allow_hyphen_values = true, value_parser = quantity::factor)]
    safety: f64,
    /// Share of an instance that stays free even then
    #[arg(long, value_name = "SHARE", default_value = "0%", allow_hyphen_values = true, value_parser = quantity::share)]
    headroom: f64,
    /// Instances that may be lost, or be out for an update
    #[arg(long, value_name = "COUNT", default_value_t = 0, value_parser = clap::value_parser!(u64).range(..=1000))]
    n_plus: u64,
    /// Zones, evenly filled, of which one may be lost (not together with the instances of --n-plus)
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u64).range(2..=100))]
    zones: Option<u64>,
    /// Fewest instances, for availability
    #[arg(long, value_name = "COUNT", default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..=1000))]
    instances_min: u64,
    /// Mean latency of a request, for the number of requests in flight
    #[arg(long, value_name = "TIME", allow_hyphen_values = true, value_parser = quantity::seconds)]
    latency: Option<f64>,
    /// CPU time of the gateway per request
    #[arg(long, value_name = "TIME", allow_hyphen_values = true, value_parser = quantity::seconds)]
    cpu_per_request: Option<f64>,
    /// Client connections in all, most of them idle
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u64).range(1..=10_000_000_000))]
    connections: Option<u64>,
    /// Memory of an idle connection
    #[arg(long, value_name = "SIZE", requires = "connections", allow_hyphen_values = true, value_parser = quantity::bytes)]
    connection_memory: Option<f64>,
    /// Memory of an instance without its connections
    #[arg(long, value_name = "SIZE", requires = "connections", allow_hyphen_values = true, value_parser = quantity::bytes)]
    base_memory: Option<f64>,
    /// Clients (keys of the rate limiter) that are active at the same time
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u64).range(1..=10_000_000_000))]
    rate_limit_keys: Option<u64>,
    /// What each of them may do
    #[arg(long, value_name = "LIMIT", default_value = "100/min", allow_hyphen_values = true)]
    rate_limit: Limit,
    /// Requests that each may make at once; as many as the limit says unless given
    #[arg(long, value_name = "COUNT", requires = "rate_limit_keys", value_parser = clap::value_parser!(u64).range(1..=1_000_000_000))]
    rate_limit_burst: Option<u64>,
    /// Writes the plan as JSON; `-` is standard output, in place of the table
    #[arg(long, value_name = "FILE")]
    json: Option<File>,
}

/// More than this is a mistake in the figures, and would leave the range of whole numbers.
const INSTANCES_MAX: f64 = 1e9;

pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    file::check(&[("--json", &args.json)])?;
    let inputs = inputs(args)?;
    let plan = plan(&inputs);
    let json = || Ok(show::json(&inputs, &plan));
    file::write(&|| show::table(&inputs, &plan), &[(&args.json, &json)])
}

fn inputs(args: &Args) -> Result<Inputs, Failure> {
    let measured = args.from.as_deref().map(Measured::load).transpose()?;
    let measured = measured.as_ref();
    let needed = |given: Option<f64>, measured: Option<f64>, flag: &str| {
        let wanted =
            || Failure::usage(format!("{flag} is missing: give it, or --from with a file of 'loadtest capacity'"));
        given.or(measured).ok_or_else(wanted)
    };
    let memory_bytes_per_connection =
        args.connection_memory.or(measured.and_then(|from| from.memory_bytes_per_connection));
    if args.connections.is_some() && memory_bytes_per_connection.is_none() {
        return Err(Failure::usage("--connections needs --connection-memory, or --from with a file that has it"));
    }
    let inputs = Inputs {
        peak_per_s: args.peak,
        safety: args.safety,
        per_instance_per_s: needed(args.per_instance, measured.map(|from| from.qps_per_instance), "--per-instance")?,
        headroom: args.headroom,
        n_plus: args.n_plus,
        zones: args.zones,
        instances_min: args.instances_min,
        request_bytes: needed(args.request, measured.map(|from| from.request_bytes), "--request")?,
        response_bytes: needed(args.response, measured.map(|from| from.response_bytes), "--response")?,
        latency_s: args.latency,
        cpu_us_per_request: args
            .cpu_per_request
            .map(|seconds| seconds * 1e6)
            .or(measured.and_then(|from| from.cpu_us_per_request)),
        connections: args.connections,
        memory_bytes_per_connection,
        memory_bytes_base: args
            .base_memory
            .or(measured.and_then(|from| from.memory_bytes_base).map(|bytes| bytes as f64)),
        rate_limit: args.rate_limit_keys.map(|keys| Demand::new(keys, args.rate_limit, args.rate_limit_burst)),
        slo: measured.map(|from| from.slo.clone()),
    };
    let carries_per_s = inputs.per_instance_per_s * (1.0 - inputs.headroom);
    if inputs.peak_per_s * inputs.safety / carries_per_s > INSTANCES_MAX {
        return Err(Failure::usage(
            "more than 1,000,000,000 instances: look at --peak, --safety, --headroom and --per-instance",
        ));
    }
    Ok(inputs)
}
