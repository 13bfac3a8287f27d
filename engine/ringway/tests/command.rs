//! The command as people and service managers use it: messages, exit codes, signals. What it does with requests is
//! tested elsewhere.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

fn ringway(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ringway"));
    command.args(arguments).env_remove("RINGWAY_LOG").stdin(Stdio::null());
    command
}

/// (exit code, stdout, stderr)
fn outcome(arguments: &[&str]) -> (i32, String, String) {
    let Output { status, stdout, stderr } = ringway(arguments).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (status.code().unwrap(), text(stdout), text(stderr))
}

fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

fn wait_for(what: &str, it_is_so: impl Fn() -> bool) {
    let start = Instant::now();
    while !it_is_so() {
        assert!(start.elapsed() < Duration::from_secs(20), "waited for {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A gateway that runs, and the directory with its file.
struct Gateway {
    child: Child,
    dir: TempDir,
    admin: SocketAddr,
    listen: SocketAddr,
}

impl Gateway {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (listen, admin) = (free_address(), free_address());
        let file = dir.path().join("gateway.yaml");
        fs::write(&file, Self::text(dir.path(), listen, admin, "200ms")).unwrap();
        let child = ringway(&["run", "--config", file.to_str().unwrap()])
            .stderr(fs::File::create(dir.path().join("stderr")).unwrap())
            .spawn()
            .unwrap();
        let gateway = Self { child, dir, admin, listen };
        wait_for("readiness", || gateway.ask("/ready").starts_with("HTTP/1.1 200 "));
        gateway
    }

    fn text(dir: &Path, listen: SocketAddr, admin: SocketAddr, notice: &str) -> String {
        let log = dir.join("access.log");
        format!(
            "runtime: {{ workers: 1, pin: false }}\nadmin: {{ address: {admin} }}\n\
             access_log: {{ file: {} }}\ndrain: {{ notice: {notice}, timeout: 2s }}\n\
             listeners: [{{ name: web, address: {listen} }}]\n\
             routes: [{{ name: hello, respond: {{ text: hello }} }}]\n",
            log.display()
        )
    }

    fn file(&self) -> PathBuf {
        self.dir.path().join("gateway.yaml")
    }

    /// The whole answer of the admin listener; empty where there is none.
    fn ask(&self, path: &str) -> String {
        let mut answer = String::new();
        if let Ok(mut stream) = TcpStream::connect(self.admin) {
            let _ = write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
            let _ = stream.read_to_string(&mut answer);
        }
        answer
    }

    fn has_metric(&self, line: &str) -> bool {
        self.ask("/metrics").lines().any(|seen| seen == line)
    }

    fn stderr(&self) -> String {
        fs::read_to_string(self.dir.path().join("stderr")).unwrap()
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    fn exit_code(&mut self) -> Option<i32> {
        self.child.wait().unwrap().code()
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn help_teaches_and_the_version_is_told() {
    let (code, out, _) = outcome(&["--help"]);
    assert_eq!(code, 0);
    for words in ["ringway demo", "ringway check gateway.yaml", "kill -HUP", "RINGWAY_LOG", "Exit codes"] {
        assert!(out.contains(words), "{words}");
    }
    let (code, out, _) = outcome(&["--version"]);
    assert_eq!((code, out.trim()), (0, concat!("ringway ", env!("CARGO_PKG_VERSION"))));
}

#[test]
fn a_wrong_command_line_is_2_and_says_what_to_type() {
    let (code, _, err) = outcome(&["run"]);
    assert_eq!(code, 2);
    assert!(err.contains("ringway run --config FILE") && err.lines().count() == 1, "{err}");
    for arguments in [&["walk"][..], &["check"], &["run", "--confg", "x"], &[]] {
        assert_eq!(outcome(arguments).0, 2, "{arguments:?}");
    }
}

#[test]
fn check_tells_what_is_there_or_what_is_wrong() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("gateway.yaml");
    let name = file.to_str().unwrap();
    let good = "listeners: [{ name: web, address: 127.0.0.1:1 }]\n";
    fs::write(&file, good).unwrap();
    let (code, out, _) = outcome(&["check", name]);
    assert_eq!((code, out), (0, format!("{name}: ok (1 listener, 0 routes, 0 services)\n")));

    fs::write(&file, format!("{good}listenrs: 1\n")).unwrap();
    let (code, out, err) = outcome(&["check", name]);
    assert_eq!((code, out.as_str()), (2, ""));
    assert!(err.starts_with(&format!("{name}:2:1: ")), "{err}");
    assert!(err.contains("hint"), "{err}");
    // The same words from `run`.
    assert_eq!(outcome(&["run", "-c", name]), (2, String::new(), err));

    let (code, _, err) = outcome(&["run", "-c", "/no/such/file.yaml"]);
    assert_eq!(code, 2);
    assert!(err.starts_with("/no/such/file.yaml: "), "{err}");
}

#[test]
fn the_schema_is_json_and_a_reader_may_leave() {
    let (code, out, _) = outcome(&["schema"]);
    assert_eq!(code, 0);
    assert!(serde_json::from_str::<serde_json::Value>(&out).unwrap().is_object());

    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output = ringway(&["schema"]).stdout(writer).stderr(Stdio::piped()).output().unwrap();
    assert_eq!((output.status.code(), output.stderr.as_slice()), (Some(0), &b""[..]));
}

#[test]
fn an_address_in_use_is_one_line_that_names_it() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("gateway.yaml");
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let (taken_address, free) = (taken.local_addr().unwrap(), free_address());
    for (listen, admin, what) in [(taken_address, free, "listener `web`"), (free, taken_address, "admin")] {
        let text = Gateway::text(dir.path(), listen, admin, "0ms");
        fs::write(&file, format!("{text}limits: {{ connections: 16 }}\n")).unwrap();
        let (code, _, err) = outcome(&["run", "-c", file.to_str().unwrap()]);
        assert_eq!(code, 1, "{err}");
        assert!(err.starts_with(&format!("{what}: cannot listen on {taken_address}: ")), "{err}");
        assert_eq!(err.lines().count(), 1, "{err}");
    }
}

#[test]
fn too_few_open_files_are_said() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("gateway.yaml");
    fs::write(&file, Gateway::text(dir.path(), free_address(), free_address(), "0ms")).unwrap();
    let script = format!("ulimit -n 64 && exec {} run -c {}", env!("CARGO_BIN_EXE_ringway"), file.display());
    let output = Command::new("sh").args(["-c", &script]).output().unwrap();
    let err = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{err}");
    assert!(err.starts_with("the limit on open files is 64,") && err.lines().count() == 1, "{err}");
}

#[test]
fn a_changed_file_and_a_signal_reload_and_a_bad_file_is_refused() {
    let gateway = Gateway::start();
    let file = gateway.file();
    let good = fs::read_to_string(&file).unwrap();
    assert!(gateway.has_metric("gateway_config_generation 1"));

    // A rename, as careful editors and deployment tools do it; noticed without a signal.
    let new = gateway.dir.path().join("new");
    fs::write(&new, format!("{good}limits: {{ connections: 100 }}\n")).unwrap();
    fs::rename(&new, &file).unwrap();
    wait_for("the changed file", || gateway.has_metric("gateway_config_generation 2"));

    fs::write(&file, format!("{good}limts: {{}}\n")).unwrap();
    gateway.signal(Signal::HUP);
    wait_for("the refusal", || gateway.has_metric("gateway_config_reloads_total{result=\"failure\"} 1"));
    assert!(gateway.has_metric("gateway_config_last_reload_successful 0"));
    assert!(gateway.has_metric("gateway_config_generation 2"));
    assert!(gateway.stderr().contains(&format!("{}:7:1: ", file.display())), "{}", gateway.stderr());

    fs::write(&file, &good).unwrap();
    gateway.signal(Signal::HUP);
    wait_for("the next good file", || gateway.has_metric("gateway_config_generation 3"));
    assert!(gateway.has_metric("gateway_config_last_reload_successful 1"));
}

#[test]
fn the_log_is_opened_again_after_a_rotation() {
    let gateway = Gateway::start();
    let log = gateway.dir.path().join("access.log");
    fs::rename(&log, gateway.dir.path().join("access.log.1")).unwrap();
    gateway.signal(Signal::USR1);
    wait_for("the new file", || log.exists());
}

#[test]
fn the_end_is_announced_before_it_comes() {
    let mut gateway = Gateway::start();
    let file = gateway.file();
    fs::write(&file, Gateway::text(gateway.dir.path(), gateway.listen, gateway.admin, "1s")).unwrap();
    gateway.signal(Signal::HUP);
    wait_for("the longer notice", || gateway.has_metric("gateway_config_generation 2"));

    let told = Instant::now();
    gateway.signal(Signal::TERM);
    wait_for("the notice", || gateway.ask("/ready").starts_with("HTTP/1.1 503 "));
    assert!(gateway.ask("/ready").contains("\"notice\""));
    TcpStream::connect(gateway.listen).expect("still accepted during the notice");
    assert_eq!(gateway.exit_code(), Some(0));
    assert!(told.elapsed() >= Duration::from_millis(900));
    assert!(TcpStream::connect(gateway.listen).is_err());
}

#[test]
fn a_second_signal_ends_at_once() {
    for (signal, code) in [(Signal::TERM, 143), (Signal::INT, 130)] {
        let mut gateway = Gateway::start();
        let file = gateway.file();
        fs::write(&file, Gateway::text(gateway.dir.path(), gateway.listen, gateway.admin, "60s")).unwrap();
        gateway.signal(Signal::HUP);
        wait_for("the long notice", || gateway.has_metric("gateway_config_generation 2"));
        gateway.signal(Signal::TERM);
        wait_for("the notice", || gateway.ask("/ready").starts_with("HTTP/1.1 503 "));
        gateway.signal(signal);
        assert_eq!(gateway.exit_code(), Some(code));
    }
}

#[test]
fn the_demo_says_what_is_where_and_ends_well() {
    let (listen, admin) = (free_address(), free_address());
    let mut child = ringway(&["demo", "--listen", &listen.to_string(), "--admin", &admin.to_string()])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut stdout = child.stdout.take().unwrap();
    let mut said = String::new();
    let mut byte = [0];
    while !said.contains("Ctrl-C drains") && stdout.read(&mut byte).unwrap() > 0 {
        said.push(byte[0].into());
    }
    assert_eq!(said.lines().filter(|line| line.starts_with("  curl ")).count(), 5, "{said}");
    assert!(said.contains(&listen.to_string()) && said.contains(&admin.to_string()), "{said}");
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
}
