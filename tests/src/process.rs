//! The command as people type it: arguments, exit code, output.

use std::io::Read;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::gateway::binary;
use crate::{PATIENCE, eventually};

/// A command that runs. Killed when dropped.
pub struct Process {
    child: Child,
    stdout: Reader,
    stderr: Reader,
}

/// What a command left behind.
#[derive(Debug)]
pub struct Output {
    /// `None`: ended by a signal.
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

struct Reader {
    text: Arc<Mutex<Vec<u8>>>,
    thread: Option<JoinHandle<()>>,
}

impl Process {
    /// Starts `ringway` with these arguments.
    pub fn start(args: &[&str]) -> Self {
        Self::start_with(args, |_| {})
    }

    /// The same, with a command that `prepare` has changed.
    pub fn start_with(args: &[&str], prepare: impl FnOnce(&mut Command)) -> Self {
        let mut command = Command::new(binary());
        command.args(args).env_remove("RINGWAY_LOG").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        prepare(&mut command);
        let mut child = command.spawn().expect("the binary starts");
        let (stdout, stderr) = (Reader::start(child.stdout.take()), Reader::start(child.stderr.take()));
        Self { child, stdout, stderr }
    }

    /// Runs `ringway` to its end.
    #[track_caller]
    pub fn run(args: &[&str]) -> Output {
        Self::start(args).finish(PATIENCE)
    }

    #[track_caller]
    pub fn run_with(args: &[&str], prepare: impl FnOnce(&mut Command)) -> Output {
        Self::start_with(args, prepare).finish(PATIENCE)
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.child.id() as i32).expect("a process");
        kill_process(pid, signal).expect("a signal");
    }

    pub fn stdout(&self) -> String {
        self.stdout.so_far()
    }

    pub fn stderr(&self) -> String {
        self.stderr.so_far()
    }

    /// Waits for the end.
    #[track_caller]
    pub fn finish(mut self, deadline: Duration) -> Output {
        let end = Instant::now() + deadline;
        let status = loop {
            if let Some(status) = self.child.try_wait().expect("a child") {
                break status;
            }
            assert!(Instant::now() < end, "still running after {deadline:?}:\n{}{}", self.stdout(), self.stderr());
            thread::sleep(Duration::from_millis(5));
        };
        Output { code: status.code(), stdout: self.stdout.whole(), stderr: self.stderr.whole() }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Reader {
    fn start(source: Option<impl Read + Send + 'static>) -> Self {
        let text = Arc::new(Mutex::new(Vec::new()));
        let thread = source.map(|mut source| {
            let text = Arc::clone(&text);
            thread::spawn(move || {
                let mut chunk = [0; 16 * 1024];
                while let Ok(read @ 1..) = source.read(&mut chunk) {
                    text.lock().expect("a text").extend_from_slice(&chunk[..read]);
                }
            })
        });
        Self { text, thread }
    }

    fn so_far(&self) -> String {
        String::from_utf8_lossy(&self.text.lock().expect("a text")).into_owned()
    }

    fn whole(&mut self) -> String {
        if let Some(thread) = self.thread.take() {
            // Someone else may hold the pipe still.
            eventually(PATIENCE, || thread.is_finished());
        }
        self.so_far()
    }
}
