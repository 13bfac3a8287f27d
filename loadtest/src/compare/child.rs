//! Processes on cores of their own that never outlive this one.
//!
//! A child starts as this program again (`--exec-on`), which sets what only a process itself can set safely, and then
//! becomes the wanted program: its core, its priority, its limit of open files, and the signal that ends it when
//! this process dies, however that happens.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Resource, Rlimit, Signal};
use rustix::thread::CpuSet;

use crate::compare::stop_if_interrupted;
use crate::failure::Failure;

/// From the start of a process to its first accepted connection.
const START_TIME_MAX: Duration = Duration::from_secs(15);
const POLL_INTERVAL: Duration = Duration::from_millis(20);
/// The highest priority that niceness has: other work then takes about a hundredth of a contended core.
const NICENESS: i32 = -20;

/// A running process, ended with its descendants when it is dropped.
#[derive(Debug)]
pub(crate) struct Running {
    name: String,
    child: Child,
    log: PathBuf,
}

/// What to start.
#[derive(Debug)]
pub(crate) struct Program {
    pub(crate) name: String,
    pub(crate) path: PathBuf,
    pub(crate) args: Vec<OsString>,
    pub(crate) core: usize,
}

impl Running {
    /// Starts a program that logs to a file in `directory`, and waits until it accepts connections on `port`.
    pub(crate) fn start(program: &Program, directory: &Path, port: u16) -> Result<Self, Failure> {
        let log = directory.join(format!("{}.log", program.name));
        let output = File::create(&log).map_err(|e| Failure::runtime(format!("{}: {e}", log.display())))?;
        let errors = output.try_clone().map_err(|e| Failure::runtime(format!("{}: {e}", log.display())))?;
        let child = command(program)?.stdout(output).stderr(errors).spawn();
        let child = child.map_err(|e| Failure::runtime(format!("cannot start {}: {e}", program.name)))?;
        let mut running = Self { name: program.name.clone(), child, log };
        running.wait_for(port)?;
        Ok(running)
    }

    /// Starts a program that says on its standard output where it listens: `... http://ADDRESS ...`.
    pub(crate) fn start_announced(program: &Program, directory: &Path) -> Result<(Self, SocketAddr), Failure> {
        let log = directory.join(format!("{}.log", program.name));
        let errors = File::create(&log).map_err(|e| Failure::runtime(format!("{}: {e}", log.display())))?;
        let child = command(program)?.stdout(Stdio::piped()).stderr(errors).spawn();
        let child = child.map_err(|e| Failure::runtime(format!("cannot start {}: {e}", program.name)))?;
        let mut running = Self { name: program.name.clone(), child, log };
        let mut line = String::new();
        if let Some(stdout) = &mut running.child.stdout {
            // Ends with the process, if not with a line.
            let _ = BufReader::new(stdout).read_line(&mut line);
        }
        let address = line.split_once("http://").and_then(|(_, rest)| rest.split_whitespace().next()?.parse().ok());
        let address = address.ok_or_else(|| running.failed("did not say where it listens"))?;
        Ok((running, address))
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    fn wait_for(&mut self, port: u16) -> Result<(), Failure> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let deadline = Instant::now() + START_TIME_MAX;
        while TcpStream::connect_timeout(&address, Duration::from_millis(500)).is_err() {
            if let Ok(Some(status)) = self.child.try_wait() {
                return Err(self.failed(&format!("ended at once ({status})")));
            }
            if Instant::now() > deadline {
                return Err(self.failed(&format!("does not listen after {} s", START_TIME_MAX.as_secs())));
            }
            stop_if_interrupted()?;
            std::thread::sleep(POLL_INTERVAL);
        }
        Ok(())
    }

    /// With the last line of its log, where the reason stands as a rule.
    fn failed(&self, what: &str) -> Failure {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let last = log.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("it logged nothing").trim();
        Failure::runtime(format!("{} {what}: {last}", self.name))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // At once: there is nothing to lose, and no time limit to get wrong. The group has the child's descendants.
        if let Some(group) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
            let _ = rustix::process::kill_process_group(group, Signal::KILL);
        }
        let _ = self.child.wait();
    }
}

/// Puts this process on a core, and before other work where that is allowed; returns whether it was.
pub(crate) fn settle_on(core: usize) -> io::Result<bool> {
    if core >= CpuSet::MAX_CPU {
        return Err(io::Error::other("there is no such core"));
    }
    let mut cores = CpuSet::new();
    cores.set(core);
    rustix::thread::sched_setaffinity(None, &cores)?;
    Ok(rustix::process::setpriority_process(None, NICENESS).is_ok())
}

/// Becomes a program on a core, as long as `parent` lives. Returns only if that fails.
pub(crate) fn become_program(core: usize, parent: Option<i32>, program: &[OsString]) -> Failure {
    let Some((path, args)) = program.split_first() else {
        return Failure::usage("--exec-on needs a program");
    };
    let prepared = settle_on(core).and_then(|_| {
        rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
        // The signal does not come for a death before it was asked for.
        if parent.is_some() && parent != rustix::process::getppid().map(Pid::as_raw_pid) {
            return Err(io::Error::other("whoever started it is gone"));
        }
        let limit = rustix::process::getrlimit(Resource::Nofile);
        let all = Rlimit { current: limit.maximum, maximum: limit.maximum };
        Ok(rustix::process::setrlimit(Resource::Nofile, all)?)
    });
    match prepared {
        Err(error) => Failure::runtime(format!("cannot prepare for core {core}: {error}")),
        Ok(()) => {
            let error = Command::new(path).args(args).exec();
            Failure::runtime(format!("cannot run {}: {error}", path.to_string_lossy()))
        }
    }
}

/// A port that nobody listens on at this moment.
pub(crate) fn free_port() -> Result<u16, Failure> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0));
    let port = listener.and_then(|listener| listener.local_addr()).map(|address| address.port());
    port.map_err(|error| Failure::runtime(format!("no port is free: {error}")))
}

fn command(program: &Program) -> Result<Command, Failure> {
    let own = std::env::current_exe().map_err(|e| Failure::runtime(format!("cannot find this program: {e}")))?;
    let mut command = Command::new(own);
    command.arg("compare").arg(format!("--exec-on={}", program.core));
    command.arg(format!("--child-of={}", std::process::id())).arg("--").arg(&program.path);
    // A group of its own, so that Ctrl-C comes to this process alone, which then ends them in order.
    command.args(&program.args).stdin(Stdio::null()).process_group(0);
    Ok(command)
}
