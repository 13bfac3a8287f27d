//! The limit on open files (`RLIMIT_NOFILE`), which bounds how many connections a process can hold.

use ringway_config::Snapshot;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::failure::Failure;

/// A client's connection and the one to a service for it.
const PER_CONNECTION: u64 = 2;
/// A worker's ring, its wake-up and what its driver keeps, besides a socket for each listener.
const PER_WORKER: u64 = 8;
/// Standard streams, the access log, the control thread with its admin connections, files read at a reload.
const FOR_THE_PROCESS: u64 = 96;

/// Raises the soft limit to the hard one. The default soft limit of 1024 is there for programs that use `select`.
pub(crate) fn raise() {
    let limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum {
        // Refused where the hard limit is above the kernel's `fs.nr_open`; the soft limit stays then.
        let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
    }
}

/// Warns if the limit is too low for `limits.connections`; fails if it leaves room for none.
pub(crate) fn check(snapshot: &Snapshot, workers: usize) -> Result<(), Failure> {
    let Some(limit) = ringway_control::process::max_fds() else { return Ok(()) };
    let wanted = snapshot.limits.connections as u64;
    let fixed = FOR_THE_PROCESS + workers as u64 * (PER_WORKER + snapshot.listeners.len() as u64);
    let fit = limit.saturating_sub(fixed) / PER_CONNECTION;
    let needed = fixed.saturating_add(wanted.saturating_mul(PER_CONNECTION));
    if fit == 0 {
        return Err(Failure::runtime(format!(
            "the limit on open files is {limit}, which leaves none for connections; raise it: `ulimit -n {needed}`"
        )));
    }
    if fit < wanted {
        tracing::warn!(
            "the limit on open files is {limit}: about {fit} connections fit, `limits.connections` is {wanted}; \
             `ulimit -n {needed}` makes room for all"
        );
    }
    Ok(())
}
