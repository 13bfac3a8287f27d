//! What must hold before a run begins.

use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::failure::Failure;
use crate::scenario::Scenario;

/// A thread's ring and timer, and what its driver keeps.
const FILES_PER_THREAD: u64 = 8;
/// Standard streams, reports, name lookup.
const FILES_FOR_THE_PROCESS: u64 = 32;
/// A target that takes longer to accept a first connection counts as unreachable.
const REACH_MAX: Duration = Duration::from_secs(5);

/// Raises the soft limit on open files to the hard one; an error if the connections do not fit.
pub(crate) fn make_room(scenario: &Scenario) -> Result<(), Failure> {
    let limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum {
        // Refused where the hard limit is above the kernel's `fs.nr_open`; the soft limit stays then.
        let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
    }
    let connections = scenario.connections as u64;
    let needed = connections + scenario.threads as u64 * FILES_PER_THREAD + FILES_FOR_THE_PROCESS;
    match getrlimit(Resource::Nofile).current {
        Some(limit) if limit < needed => Err(Failure::runtime(format!(
            "{connections} connections need {needed} open files, the limit is {limit}: raise it (`ulimit -n {needed}`) or \
             use fewer connections"
        ))),
        _ => Ok(()),
    }
}

/// That this process may run on the cores that the scenario names.
pub(crate) fn check_cores(scenario: &Scenario) -> Result<(), Failure> {
    let allowed: Vec<usize> = core_affinity::get_core_ids().unwrap_or_default().iter().map(|core| core.id).collect();
    let list = || allowed.iter().map(usize::to_string).collect::<Vec<_>>().join(", ");
    match scenario.cores.iter().find(|core| !allowed.contains(core)) {
        Some(core) => Err(Failure::runtime(format!("cannot run on core {core}: this process may use {}", list()))),
        None => Ok(()),
    }
}

/// The target's address, once a connection to it could be made.
pub(crate) fn reach(scenario: &Scenario) -> Result<SocketAddr, Failure> {
    let address = scenario.target.resolve()?;
    let limit = scenario.timeout.min(REACH_MAX);
    TcpStream::connect_timeout(&address, limit).map_err(|error| {
        let target = &scenario.target;
        let host = if target.host.contains(':') { format!("[{}]", target.host) } else { target.host.clone() };
        let reason = match error.kind() {
            std::io::ErrorKind::ConnectionRefused => "connection refused: is the target running?".to_owned(),
            std::io::ErrorKind::TimedOut => format!("no answer within {} s", limit.as_secs_f64()),
            _ => error.to_string(),
        };
        let resolved = if address.ip().to_string() == target.host { String::new() } else { format!(" ({address})") };
        Failure::runtime(format!("cannot connect to {host}:{}{resolved}: {reason}", target.port))
    })?;
    Ok(address)
}
