//! The system calls of a process, counted by `strace`.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::PATIENCE;

/// Counts while it lives.
pub struct Strace {
    child: Child,
    directory: TempDir,
}

impl Strace {
    /// Begins to count the calls of all threads that the process has now. It must allow that:
    /// [`confine::allow_tracing`](crate::confine::allow_tracing).
    ///
    /// # Panics
    /// Where `strace` is missing, or may not do this here.
    #[track_caller]
    pub fn attach(pid: u32) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let file = |name| File::create(directory.path().join(name)).expect("a file");
        let mut command = Command::new("strace");
        command.args(["-f", "-c", "-o"]).arg(directory.path().join("counts")).args(["-p", &pid.to_string()]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(file("stderr")).env("LC_ALL", "C");
        let child = command
            .spawn()
            .unwrap_or_else(|error| panic!("strace: {error}; this test needs it, Debian's package is `strace`"));
        let mut strace = Self { child, directory };
        let end = Instant::now() + PATIENCE;
        while !strace.read("stderr").contains(" attached") {
            let exited = strace.child.try_wait().expect("a child").is_some();
            assert!(
                !exited && Instant::now() < end,
                "strace cannot attach to the gateway. This test needs ptrace, which containers allow with `--cap-add \
                 SYS_PTRACE` (and a seccomp profile that has it). strace says: {}",
                strace.read("stderr")
            );
            thread::sleep(Duration::from_millis(5));
        }
        strace
    }

    /// How often each call was made.
    #[track_caller]
    pub fn finish(mut self) -> BTreeMap<String, u64> {
        let pid = Pid::from_raw(self.child.id() as i32).expect("a process");
        kill_process(pid, Signal::INT).expect("a signal");
        // It lets go of the process, writes what it has counted, and ends by the signal.
        self.child.wait().expect("a child");
        let text = self.read("counts");
        // % time, seconds, usecs/call, calls, errors (or nothing), name
        let calls = text.lines().filter_map(|line| {
            let columns: Vec<_> = line.split_ascii_whitespace().collect();
            let [_, _, _, count, .., name] = columns.as_slice() else { return None };
            Some(((*name).to_owned(), count.parse().ok()?))
        });
        let calls: BTreeMap<_, _> = calls.filter(|(name, _)| name != "total").collect();
        assert!(!calls.is_empty(), "strace has counted nothing: {text}{}", self.read("stderr"));
        calls
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.directory.path().join(name)).unwrap_or_default()
    }
}

impl Drop for Strace {
    /// Killed as well, it would let go of the process.
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
