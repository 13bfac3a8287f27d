//! The real binary as a child process.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use socket2::{Domain, Socket, Type};
use tempfile::TempDir;

use crate::{Client, PATIENCE, eventually};

/// Starts before a port that someone else took in the meantime is given up on.
const TRIES: usize = 5;
/// What a test's configuration does not say itself. One worker: what a pool holds is the same in every run.
/// `RINGWAY_TEST_DRIVER=epoll` runs the tests without io_uring.
const DEFAULTS: [(&str, &str); 5] = [
    ("runtime:", "runtime: { workers: 1, pin: false, driver: \"${env:RINGWAY_TEST_DRIVER:-auto}\" }\n"),
    ("admin:", "admin: { address: ADMIN }\n"),
    ("access_log:", "access_log: { file: LOG }\n"),
    ("drain:", "drain: { notice: 0s, timeout: 10s }\n"),
    ("listeners:", "listeners: [{ name: public, address: LISTEN }]\n"),
];

/// A running gateway. Killed when dropped.
pub struct Gateway {
    child: Child,
    directory: TempDir,
    listen: SocketAddr,
    admin: SocketAddr,
}

/// A gateway with one listener, one service `app` and one route `all`, and what each of them says besides, as the inside
/// of a YAML flow mapping: `timeouts: { head: 1s }`.
#[derive(Debug, Clone, Copy, Default)]
pub struct Setup<'a> {
    pub listener: &'a str,
    pub service: &'a str,
    pub route: &'a str,
    /// Whole sections, each with its line feed.
    pub sections: &'a str,
}

impl Setup<'_> {
    #[track_caller]
    pub fn start(self, endpoint: &str) -> Gateway {
        Gateway::start(&self.yaml(endpoint))
    }

    pub fn yaml(self, endpoint: &str) -> String {
        let Self { listener, service, route, sections } = self;
        format!(
            "listeners: [{{ name: public, address: LISTEN, {listener} }}]\n\
             services: [{{ name: app, endpoints: [\"{endpoint}\"], {service} }}]\n\
             routes: [{{ name: all, service: app, {route} }}]\n{sections}"
        )
    }
}

/// A port that was free a moment ago, and that this test has not been given before.
pub fn free_port() -> u16 {
    static GIVEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());
    loop {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("an address").port();
        if GIVEN.lock().expect("a set of ports").insert(port) {
            return port;
        }
    }
}

/// An address that refuses connections: its port is taken, and nobody listens.
pub struct Nobody {
    endpoint: String,
    _socket: Socket,
}

impl Nobody {
    pub fn new() -> Self {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
        socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).expect("a port");
        let address = socket.local_addr().expect("an address").as_socket().expect("an IP address");
        Self { endpoint: address.to_string(), _socket: socket }
    }

    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }
}

impl Default for Nobody {
    fn default() -> Self {
        Self::new()
    }
}

/// Resident memory of a process.
pub fn rss_bytes(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("a process");
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("VmRSS");
    line.split_ascii_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok()).expect("a number") * 1024
}

impl Gateway {
    /// Starts a gateway with this configuration and waits until it serves.
    ///
    /// `LISTEN` and `ADMIN` stand for addresses with free ports, `LOG` for the access log, `DIR` for a directory of this
    /// test. Sections that are missing get defaults: a listener `public`, the admin listener, one worker that is not
    /// pinned, the access log in a file.
    ///
    /// # Panics
    /// When it does not start, with what it wrote to stderr.
    #[track_caller]
    pub fn start(yaml: &str) -> Self {
        Self::start_with(yaml, |_| {})
    }

    /// The same, with a command that `prepare` has changed: its environment, its limits, where its output goes.
    #[track_caller]
    pub fn start_with(yaml: &str, prepare: impl Fn(&mut Command)) -> Self {
        for _ in 1..TRIES {
            match Self::try_start(yaml, &prepare) {
                Ok(gateway) => return gateway,
                Err(stderr) if stderr.contains("in use") => {}
                Err(stderr) => panic!("the gateway did not start:\n{stderr}\nconfiguration:\n{yaml}"),
            }
        }
        panic!("no free port in {TRIES} tries");
    }

    /// Everything goes to one service, `app`.
    #[track_caller]
    pub fn to(endpoint: &str) -> Self {
        Self::start(&Self::route_to(endpoint))
    }

    /// The configuration of [`Gateway::to`], to be extended.
    pub fn route_to(endpoint: &str) -> String {
        format!("services: [{{ name: app, endpoints: [\"{endpoint}\"] }}]\nroutes: [{{ name: all, service: app }}]\n")
    }

    fn try_start(yaml: &str, prepare: &impl Fn(&mut Command)) -> Result<Self, String> {
        let directory = tempfile::tempdir().expect("a directory");
        let [listen, admin] = [(); 2].map(|()| SocketAddr::from(([127, 0, 0, 1], free_port())));
        let stderr = fs::File::create(directory.path().join("stderr")).expect("a file for stderr");
        let config = directory.path().join("gateway.yaml");
        fs::write(&config, render(yaml, listen, admin, directory.path())).expect("a configuration");
        let mut command = Command::new(binary());
        command.args(["run", "--config"]).arg(&config).env("RINGWAY_LOG", "info");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(stderr);
        prepare(&mut command);
        let child = command.spawn().expect("the binary starts");
        let mut gateway = Self { child, directory, listen, admin };
        let end = Instant::now() + PATIENCE;
        while !gateway.is_ready() {
            let exited = gateway.child.try_wait().expect("a child").is_some();
            if exited || Instant::now() > end {
                return Err(gateway.stderr());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(gateway)
    }

    /// Whether this process, and not another one on the same port, serves.
    fn is_ready(&self) -> bool {
        self.stderr().contains(" up: ") && self.try_admin("/ready").is_some_and(|(status, _)| status == 200)
    }

    /// Where clients connect.
    pub fn address(&self) -> SocketAddr {
        self.listen
    }

    pub fn admin_address(&self) -> SocketAddr {
        self.admin
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The directory that `DIR` stands for.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// A new connection.
    #[track_caller]
    pub fn connect(&self) -> Client {
        Client::connect(self.listen)
    }

    /// One GET on a connection of its own.
    #[track_caller]
    pub fn get(&self, target: &str) -> crate::Message {
        self.connect().get(target)
    }

    /// The status and the body of a page of the admin listener.
    #[track_caller]
    pub fn admin(&self, path: &str) -> (u16, String) {
        self.try_admin(path).unwrap_or_else(|| panic!("admin does not answer:\n{}", self.stderr()))
    }

    /// The status and the answer to a POST to the admin listener.
    #[track_caller]
    pub fn post_admin(&self, path: &str) -> (u16, String) {
        self.change("POST", path, "")
    }

    /// The status and the answer to a request to the admin listener.
    #[track_caller]
    pub fn change(&self, method: &str, path: &str, body: &str) -> (u16, String) {
        self.ask_admin(method, path, body).unwrap_or_else(|| panic!("admin does not answer:\n{}", self.stderr()))
    }

    fn try_admin(&self, path: &str) -> Option<(u16, String)> {
        self.ask_admin("GET", path, "")
    }

    fn ask_admin(&self, method: &str, path: &str, body: &str) -> Option<(u16, String)> {
        let mut stream = TcpStream::connect_timeout(&self.admin, PATIENCE).ok()?;
        stream.set_read_timeout(Some(PATIENCE)).ok()?;
        let length = body.len();
        let head =
            format!("{method} {path} HTTP/1.1\r\nHost: admin\r\nConnection: close\r\nContent-Length: {length}\r\n");
        stream.write_all(format!("{head}\r\n{body}").as_bytes()).ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        let (head, body) = answer.split_once("\r\n\r\n")?;
        Some((head.get(9..12)?.parse().ok()?, body.to_owned()))
    }

    /// A sample as `/metrics` shows it, `name` or `name{label="value"}`; 0 where its family has no such sample.
    ///
    /// # Panics
    /// Where there is no such family.
    #[track_caller]
    pub fn metric(&self, sample: &str) -> f64 {
        let page = self.admin("/metrics").1;
        let name = sample.split('{').next().unwrap_or_default();
        // Of a histogram.
        let family = ["_bucket", "_sum", "_count"].iter().find_map(|part| name.strip_suffix(part)).unwrap_or(name);
        assert!(page.contains(&format!("# TYPE {family} ")), "no metric is called {family}");
        let line = page.lines().find_map(|line| line.strip_prefix(sample)?.strip_prefix(' '));
        line.map_or(0.0, |value| value.parse().expect("a number"))
    }

    /// The number of backend errors of a kind at the service `app`.
    #[track_caller]
    pub fn backend_errors(&self, kind: &str) -> f64 {
        self.metric(&format!("gateway_backend_errors_total{{service=\"app\",kind=\"{kind}\"}}"))
    }

    /// The lines of the access log so far.
    pub fn log_lines(&self) -> Vec<Value> {
        let text = fs::read_to_string(self.directory.path().join("access.log")).unwrap_or_default();
        let whole = text.split_inclusive('\n').filter(|line| line.ends_with('\n'));
        whole.map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))).collect()
    }

    /// Waits for the access log to have so many lines and gives back the last one.
    #[track_caller]
    pub fn log_line(&self, count: usize) -> Value {
        crate::settles_at(count, || self.log_lines().len());
        self.log_lines().pop().expect("a line")
    }

    /// What the gateway has written to stderr.
    pub fn stderr(&self) -> String {
        fs::read_to_string(self.directory.path().join("stderr")).unwrap_or_default()
    }

    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.child.id() as i32).expect("a process");
        kill_process(pid, signal).expect("a signal");
    }

    pub fn terminate(&self) {
        self.signal(Signal::TERM);
    }

    /// Waits for the process to end by itself.
    #[track_caller]
    pub fn wait_exit(&mut self, deadline: Duration) -> ExitStatus {
        let end = Instant::now() + deadline;
        loop {
            if let Some(status) = self.child.try_wait().expect("a child") {
                return status;
            }
            assert!(Instant::now() < end, "still running after {deadline:?}:\n{}", self.stderr());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// A configuration as its file has it: addresses and paths filled in, missing sections added.
    pub fn render(&self, yaml: &str) -> String {
        render(yaml, self.listen, self.admin, self.directory.path())
    }

    /// Puts another configuration in place of the running one and has it loaded; whether it was taken.
    #[track_caller]
    pub fn replace_config(&self, yaml: &str) -> bool {
        let results = || {
            ["success", "failure"]
                .map(|result| self.metric(&format!("gateway_config_reloads_total{{result=\"{result}\"}}")))
        };
        let before = results();
        let new = self.directory.path().join("new.yaml");
        fs::write(&new, self.render(yaml)).expect("a configuration");
        fs::rename(&new, self.directory.path().join("gateway.yaml")).expect("a new configuration");
        self.signal(Signal::HUP);
        eventually(PATIENCE, || results() != before);
        let taken = results()[0] > before[0];
        if taken {
            let generation = self.metric("gateway_config_generation");
            crate::settles_at(true, || self.metric("gateway_worker_config_generation{worker=\"0\"}") >= generation);
        }
        taken
    }

    /// Open descriptors of the process.
    pub fn open_fds(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.pid())).expect("a process").count()
    }

    /// Resident memory of the process.
    pub fn rss_bytes(&self) -> u64 {
        rss_bytes(self.pid())
    }

    /// Waits until no client is connected and no request is active.
    #[track_caller]
    pub fn expect_idle(&self) {
        crate::settles_at([0.0; 2], || {
            ["gateway_active_connections", "gateway_active_requests"].map(|name| self.metric(name))
        });
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        let panics = self.stderr().contains("panicked");
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("the gateway wrote:\n{}", self.stderr());
        } else {
            assert!(!panics, "the gateway panicked:\n{}", self.stderr());
        }
    }
}

/// The configuration as written to the file.
fn render(yaml: &str, listen: SocketAddr, admin: SocketAddr, directory: &Path) -> String {
    let mut text = yaml.to_owned();
    for (key, section) in DEFAULTS {
        if !yaml.lines().any(|line| line.starts_with(key)) {
            text.push_str(section);
        }
    }
    text.replace("LISTEN", &listen.to_string())
        .replace("ADMIN", &admin.to_string())
        .replace("LOG", &directory.join("access.log").display().to_string())
        .replace("DIR", &directory.display().to_string())
}

/// `RINGWAY_BIN`, else the binary of the profile that the tests were built with.
pub fn binary() -> PathBuf {
    if let Some(path) = std::env::var_os("RINGWAY_BIN") {
        return path.into();
    }
    let test = std::env::current_exe().expect("the path of this test");
    // target/PROFILE/deps/TEST
    let path = test.parent().and_then(Path::parent).expect("a target directory").join("ringway");
    assert!(path.exists(), "{} is missing: cargo build --profile ci -p ringway", path.display());
    path
}
