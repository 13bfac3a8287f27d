//! Calls one case so many times and ends: what `valgrind` counts the instructions of.

use std::process::ExitCode;

use ringway_bench::cases;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [id, times] = args.as_slice() else {
        eprintln!("usage: instructions CASE CALLS, for example: instructions request_head/curl 1000");
        return ExitCode::from(2);
    };
    let (Some(case), Ok(times)) = (cases::all().into_iter().find(|case| case.id() == *id), times.parse()) else {
        eprintln!("instructions: no case is called {id}, or {times} is not a number");
        return ExitCode::from(2);
    };
    case.prepare()(times);
    ExitCode::SUCCESS
}
