//! `loadtest`: load tests that people can plan with.
//!
//! The generator is open loop: requests are due by a schedule, and a latency counts from the time at which its request
//! was due, whether or not the target kept up.

mod capacity;
mod compare;
mod environment;
mod failure;
mod measured;
mod origin;
mod plan;
mod population;
mod report;
mod request;
mod results;
mod run;
mod scenario;
mod schedule;
mod template;
mod token;
mod units;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Load tests that people can plan with: open loop, corrected for coordinated omission, honest about their own limits.
#[derive(Debug, Parser)]
#[command(name = "loadtest", version, arg_required_else_help = true, disable_help_subcommand = true)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Loads a target: a scenario file, or flags and a URL
    Run(run::Args),
    /// A test backend with chosen sizes, latencies and faults
    Origin(origin::Args),
    /// Finds the highest rate at which a target holds an SLO
    Capacity(capacity::Args),
    /// Instances, bandwidth and memory from measured or given figures
    Plan(plan::Args),
    /// Shows a saved run again: table, page, percentiles
    Report(report::Args),
    /// Ringway beside nginx, HAProxy and Envoy: what a request costs each
    Compare(compare::Args),
}

fn main() -> ExitCode {
    let done = match Args::parse().command {
        Command::Run(args) => run::run(&args),
        Command::Origin(args) => origin::run(&args),
        Command::Capacity(args) => capacity::run(&args),
        Command::Plan(args) => plan::run(&args),
        Command::Report(args) => report::run(&args),
        Command::Compare(args) => compare::run(&args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("loadtest: {failure}");
            failure.code()
        }
    }
}
