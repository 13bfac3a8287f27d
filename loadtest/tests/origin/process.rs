//! The command as a process.

use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::process::{Child, ChildStdout, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};

/// An origin that is up. Killed when dropped.
pub(crate) struct Origin {
    pub(crate) address: SocketAddr,
    /// What it said when it was up.
    pub(crate) line: String,
    child: Child,
    stdout: BufReader<ChildStdout>,
    /// Sockets of its own: those that listen, those that signals arrive on.
    own_sockets: usize,
}

/// What a command left behind.
pub(crate) struct Ended {
    pub(crate) code: Option<i32>,
    pub(crate) summary: String,
    pub(crate) stderr: String,
}

impl Origin {
    /// Starts one on a free port.
    pub(crate) fn start(args: &[&str]) -> Self {
        Self::start_with(args, |_| {})
    }

    pub(crate) fn start_with(args: &[&str], prepare: impl FnOnce(&mut Command)) -> Self {
        let mut command = command(&[&["--listen=127.0.0.1:0"], args].concat());
        prepare(&mut command);
        let mut child = command.spawn().expect("the binary starts");
        let mut stdout = BufReader::new(child.stdout.take().expect("a pipe"));
        let mut line = String::new();
        stdout.read_line(&mut line).expect("a line");
        let address = line.split(' ').find_map(|word| word.strip_prefix("http://")?.parse().ok());
        let line = line.trim_end().to_owned();
        Self {
            address: address.unwrap_or_else(|| panic!("no address in {line:?}")),
            line,
            own_sockets: sockets(&child),
            child,
            stdout,
        }
    }

    /// Open connections.
    pub(crate) fn connections(&self) -> usize {
        sockets(&self.child) - self.own_sockets
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).expect("a signal");
    }

    /// Ends it as Ctrl-C does.
    pub(crate) fn end(self) -> Ended {
        self.signal(Signal::INT);
        self.ended()
    }

    /// Waits until it has ended.
    pub(crate) fn ended(mut self) -> Ended {
        let mut summary = String::new();
        self.stdout.read_to_string(&mut summary).expect("a line");
        let code = self.child.wait().expect("an end").code();
        Ended { code, summary, stderr: String::new() }
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Ended {
    pub(crate) fn requests(&self) -> u64 {
        self.summary.split(' ').next().and_then(|count| count.parse().ok()).expect("a count")
    }
}

/// Runs an origin that does not come up.
pub(crate) fn fails(args: &[&str]) -> Ended {
    let output = command(args).output().expect("the binary starts");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "");
    let stderr = String::from_utf8(output.stderr).expect("UTF-8");
    Ended { code: output.status.code(), summary: String::new(), stderr }
}

fn sockets(child: &Child) -> usize {
    let links = std::fs::read_dir(format!("/proc/{}/fd", child.id())).expect("/proc");
    let targets = links.filter_map(|link| std::fs::read_link(link.ok()?.path()).ok());
    targets.filter(|target| target.to_string_lossy().starts_with("socket:")).count()
}

fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_loadtest"));
    command.arg("origin").args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}
