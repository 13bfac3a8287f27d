//! An API gateway engine for Linux. This crate is the command: arguments, start, signals, end.

mod alloc;
mod api_key;
mod args;
mod demo;
mod demo_chaos;
mod demo_services;
mod descriptors;
mod failure;
mod gateway;
mod logging;

use std::io::{self, ErrorKind, Write};
use std::path::Path;
use std::process::ExitCode;

use clap::Parser;
use ringway_control::reload::summary;
use ringway_control::watch::Watch;

use crate::args::{Args, Command};
use crate::failure::Failure;

#[global_allocator]
static ALLOCATOR: alloc::Counting = alloc::Counting;

fn main() -> ExitCode {
    // The allocator asks for huge pages, which keep resident what nobody has touched: half of an idle HTTP/2 connection.
    let _ = rustix::thread::disable_transparent_huge_pages(true);
    let args = Args::parse();
    match logging::start().and_then(|()| obey(args.command)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            // `eprintln!` would panic where stderr is closed.
            let _ = writeln!(io::stderr(), "{failure}");
            failure.code()
        }
    }
}

fn obey(command: Command) -> Result<(), Failure> {
    match command {
        Command::Run { config: Some(path) } => {
            let watch = Watch::new(&path);
            gateway::run(load(&path)?, Some(watch), || {})
        }
        Command::Run { config: None } => Err(Failure::usage(
            "run needs a configuration: `ringway run --config FILE`; `ringway demo` runs without one",
        )),
        Command::Check { file } => {
            let snapshot = load(&file)?;
            print(&format!("{}: ok ({})\n", file.display(), summary(&snapshot)))
        }
        Command::Schema => print(&format!("{:#}\n", ringway_config::schema())),
        Command::ApiKey(args) => print(&args.make()?),
        Command::Demo { listen, admin, chaos } => demo::run(listen, admin, chaos),
    }
}

fn load(path: &Path) -> Result<ringway_config::Snapshot, Failure> {
    ringway_config::load(path).map_err(Failure::usage)
}

/// Prints to stdout. A reader that has seen enough (`| head`) is no failure.
fn print(text: &str) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(Failure::runtime(format!("stdout: {error}"))),
        _ => Ok(()),
    }
}
