//! Services that fail as a test says, and clients that count what they are answered.

use std::collections::BTreeMap;
use std::io::Read;
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::{Backend, Client, PATIENCE, built, eventually};

/// What a [`Fickle`] does with a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Mood {
    Good,
    /// Answers 500.
    Broken,
    /// Answers 500 to every other request.
    Half,
    /// Closes the connection without an answer.
    Closing,
    /// Answers after 100 ms.
    Slow,
}

const MOODS: [Mood; 5] = [Mood::Good, Mood::Broken, Mood::Half, Mood::Closing, Mood::Slow];

/// A backend whose mood changes. Its answers have its name; `/health` counts apart.
pub struct Fickle {
    backend: Backend,
    mood: Arc<AtomicU8>,
    served: Arc<AtomicUsize>,
}

impl Fickle {
    pub fn new(name: &'static str) -> Self {
        let (mood, served) = (Arc::new(AtomicU8::new(0)), Arc::new(AtomicUsize::new(0)));
        let (seen, count) = (Arc::clone(&mood), Arc::clone(&served));
        let backend = Backend::start(move |conn| {
            while let Some(request) = conn.next_request() {
                let before = match request.target() {
                    "/health" => 0,
                    _ => count.fetch_add(1, Ordering::AcqRel),
                };
                let status = match MOODS[usize::from(seen.load(Ordering::Acquire))] {
                    Mood::Closing => return,
                    Mood::Broken => 500,
                    Mood::Half if before % 2 == 0 => 500,
                    Mood::Slow => {
                        thread::sleep(Duration::from_millis(100));
                        200
                    }
                    Mood::Good | Mood::Half => 200,
                };
                conn.send(format!("HTTP/1.1 {status} X\r\nContent-Length: {}\r\n\r\n{name}", name.len()));
            }
        });
        Self { backend, mood, served }
    }

    pub fn set(&self, mood: Mood) {
        self.mood.store(mood as u8, Ordering::Release);
    }

    pub fn endpoint(&self) -> &str {
        self.backend.endpoint()
    }

    /// Requests so far, without those for `/health`.
    pub fn served(&self) -> usize {
        self.served.load(Ordering::Acquire)
    }

    /// All requests so far.
    pub fn backend(&self) -> &Backend {
        &self.backend
    }
}

/// A `loadtest origin` of its own process. Killed when dropped.
pub struct Origin {
    child: Child,
    address: SocketAddr,
}

impl Origin {
    pub fn start() -> Self {
        Self::start_at(([127, 0, 0, 1], 0).into())
    }

    /// Waits until it takes connections.
    #[track_caller]
    pub fn start_at(address: SocketAddr) -> Self {
        Self::start_with(address, &[])
    }

    /// The same, with more of its flags.
    #[track_caller]
    pub fn start_with(address: SocketAddr, flags: &[&str]) -> Self {
        let mut command = Command::new(built("loadtest"));
        command.args(["origin", "--body", "16B", "--listen", &address.to_string()]).args(flags);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let end = Instant::now() + PATIENCE;
        loop {
            let mut origin = Self { child: command.spawn().expect("the origin starts"), address };
            // The first thing that it says is where it listens. It ends where one before it has not let go of the port yet.
            if let Some(address) = origin.listens_at() {
                origin.address = address;
                return origin;
            }
            assert!(Instant::now() < end, "no origin on {address}");
            thread::sleep(Duration::from_millis(5));
        }
    }

    fn listens_at(&mut self) -> Option<SocketAddr> {
        let (mut line, mut byte) = (Vec::new(), [0]);
        while byte != *b"\n" {
            self.child.stdout.as_mut()?.read_exact(&mut byte).ok()?;
            line.extend(byte);
        }
        let line = String::from_utf8(line).ok()?;
        line.split_once("http://")
            .and_then(|(_, rest)| rest.split_whitespace().next()?.trim_end_matches('/').parse().ok())
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn endpoint(&self) -> String {
        self.address.to_string()
    }

    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.child.id() as i32).expect("a process");
        kill_process(pid, signal).expect("a signal");
    }

    /// Ends it as Ctrl-C does; how many requests it has had.
    #[track_caller]
    pub fn finish(mut self) -> u64 {
        self.signal(Signal::INT);
        let mut said = String::new();
        let mut stdout = self.child.stdout.take().expect("a pipe");
        stdout.read_to_string(&mut said).expect("lines");
        let summary = said.lines().last().and_then(|line| line.split(' ').next()?.parse().ok());
        summary.unwrap_or_else(|| panic!("no summary: {said}"))
    }

    /// Waits until it has ended by itself.
    #[track_caller]
    pub fn expect_end(mut self) {
        eventually(PATIENCE, || self.child.try_wait().expect("a child").is_some());
    }

    /// Ends at once, with all of its connections.
    pub fn kill(mut self) {
        self.end();
    }

    fn end(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        self.end();
    }
}

/// Keep-alive clients that ask for `/` until they are dropped, and count the statuses of their answers.
pub struct Clients {
    stop: Arc<AtomicBool>,
    statuses: Arc<Mutex<BTreeMap<u16, u64>>>,
    threads: Vec<JoinHandle<()>>,
}

impl Clients {
    /// `rate`: requests per second, all clients together.
    pub fn start(address: SocketAddr, clients: u32, rate: u32) -> Self {
        let (stop, statuses) = (Arc::new(AtomicBool::new(false)), Arc::<Mutex<BTreeMap<u16, u64>>>::default());
        let run = |_| {
            let (stop, statuses) = (Arc::clone(&stop), Arc::clone(&statuses));
            let pause = Duration::from_secs(1) * clients / rate;
            thread::spawn(move || {
                let mut client = Client::connect(address);
                let mut next = Instant::now();
                while !stop.load(Ordering::Acquire) {
                    let answer = client.get("/");
                    *statuses.lock().expect("counts").entry(answer.status()).or_default() += 1;
                    if answer.get("connection") == Some("close") {
                        client = Client::connect(address);
                    }
                    next += pause;
                    thread::sleep(next.saturating_duration_since(Instant::now()));
                }
            })
        };
        let threads = (0..clients).map(run).collect();
        Self { stop, statuses, threads }
    }

    /// Answers so far, by status.
    pub fn statuses(&self) -> BTreeMap<u16, u64> {
        self.statuses.lock().expect("counts").clone()
    }

    /// Answers other than 200 so far.
    pub fn failures(&self) -> u64 {
        self.statuses().iter().filter(|(status, _)| **status != 200).map(|(_, count)| count).sum()
    }

    /// Waits for so many more answers.
    #[track_caller]
    pub fn more(&self, answers: u64) {
        let count = || self.statuses().values().sum::<u64>();
        let before = count();
        eventually(PATIENCE, || count() >= before + answers);
    }
}

impl Drop for Clients {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        for thread in self.threads.drain(..) {
            let ended = thread.join();
            if !thread::panicking() {
                ended.expect("a client");
            }
        }
    }
}
