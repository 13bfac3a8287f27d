//! A real etcd, asked through its own JSON API.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::redis::write_certificates;
use crate::{PATIENCE, free_port};

/// An `etcd` of one member that keeps its data until it is dropped. Killed then.
pub struct Etcd {
    child: Child,
    directory: TempDir,
    ports: [u16; 2],
    tls: Tls,
}

/// How clients are spoken to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tls {
    Off,
    On,
    /// They must show a certificate of the same authority.
    Mutual,
}

impl Etcd {
    #[track_caller]
    pub fn start() -> Self {
        Self::start_as(Tls::Off)
    }

    /// With a certificate for 127.0.0.1, of the authority in [`Etcd::ca`].
    #[track_caller]
    pub fn with_tls() -> Self {
        Self::start_as(Tls::On)
    }

    /// The same, for clients with a certificate as those in [`Etcd::certificate`].
    #[track_caller]
    pub fn with_client_certificates() -> Self {
        Self::start_as(Tls::Mutual)
    }

    fn start_as(tls: Tls) -> Self {
        let mut log = String::new();
        // A port may be taken between the question and the start.
        for _ in 0..5 {
            let directory = tempfile::tempdir().expect("a directory");
            if tls != Tls::Off {
                write_certificates(directory.path());
            }
            let ports = [free_port(), free_port()];
            let child = spawn(&directory, ports, tls);
            let mut etcd = Self { child, directory, ports, tls };
            if etcd.comes_up() {
                return etcd;
            }
            log = fs::read_to_string(etcd.directory.path().join("log")).unwrap_or_default();
        }
        panic!("etcd does not start:\n{log}");
    }

    fn comes_up(&mut self) -> bool {
        let end = Instant::now() + PATIENCE;
        while Instant::now() < end {
            if self.child.try_wait().expect("a child").is_some() {
                return false;
            }
            if self.try_ask("/v3/kv/range", &json!({ "key": BASE64.encode("x") })).is_some() {
                return true;
            }
            thread::sleep(Duration::from_millis(10));
        }
        false
    }

    pub fn url(&self) -> String {
        let scheme = if self.tls == Tls::Off { "http" } else { "https" };
        format!("{scheme}://127.0.0.1:{}", self.ports[0])
    }

    pub fn address(&self) -> std::net::SocketAddr {
        ([127, 0, 0, 1], self.ports[0]).into()
    }

    pub fn ca(&self) -> PathBuf {
        self.directory.path().join("ca.pem")
    }

    /// Of a client, and its key.
    pub fn certificate(&self) -> [PathBuf; 2] {
        ["cert.pem", "key.pem"].map(|name| self.directory.path().join(name))
    }

    #[track_caller]
    pub fn put(&self, key: &str, value: &str) {
        self.ask("/v3/kv/put", &json!({ "key": BASE64.encode(key), "value": BASE64.encode(value) }));
    }

    /// The key is gone after so many seconds.
    #[track_caller]
    pub fn put_for(&self, key: &str, value: &str, seconds: u64) {
        let lease = self.ask("/v3/lease/grant", &json!({ "TTL": seconds }))["ID"].clone();
        let (key, value) = (BASE64.encode(key), BASE64.encode(value));
        self.ask("/v3/kv/put", &json!({ "key": key, "value": value, "lease": lease }));
    }

    #[track_caller]
    pub fn delete(&self, key: &str) {
        self.ask("/v3/kv/deleterange", &json!({ "key": BASE64.encode(key) }));
    }

    /// Forgets all history.
    #[track_caller]
    pub fn compact(&self) {
        let now = self.ask("/v3/kv/range", &json!({ "key": BASE64.encode("x") }))["header"]["revision"].clone();
        self.ask("/v3/kv/compaction", &json!({ "revision": now, "physical": true }));
    }

    /// Nobody is let in any more without this user and password, who may do everything.
    #[track_caller]
    pub fn protect(&self, user: &str, password: &str) {
        self.ask("/v3/auth/user/add", &json!({ "name": "root", "password": "of root" }));
        self.ask("/v3/auth/user/add", &json!({ "name": user, "password": password }));
        self.ask("/v3/auth/role/add", &json!({ "name": "root" }));
        for user in ["root", user] {
            self.ask("/v3/auth/user/grant", &json!({ "user": user, "role": "root" }));
        }
        self.ask("/v3/auth/enable", &json!({}));
    }

    /// Ends it at once. Nothing listens on its port until [`Etcd::restart`].
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Starts it again on the same port, with its data.
    #[track_caller]
    pub fn restart(&mut self) {
        self.kill();
        self.child = spawn(&self.directory, self.ports, self.tls);
        assert!(self.comes_up(), "etcd does not start again");
    }

    #[track_caller]
    fn ask(&self, path: &str, question: &Value) -> Value {
        self.try_ask(path, question).unwrap_or_else(|| panic!("etcd does not answer {path} {question}"))
    }

    fn try_ask(&self, path: &str, question: &Value) -> Option<Value> {
        let mut curl = Command::new("curl");
        curl.args(["--silent", "--fail", "--data", &question.to_string()]);
        if self.tls != Tls::Off {
            curl.arg("--cacert").arg(self.ca());
        }
        if self.tls == Tls::Mutual {
            let [certificate, key] = self.certificate();
            curl.arg("--cert").arg(certificate).arg("--key").arg(key);
        }
        let output = curl.arg(format!("{}{path}", self.url())).output().expect("curl is needed: apt-get install curl");
        output.status.success().then(|| serde_json::from_slice(&output.stdout).expect("JSON"))
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        self.kill();
    }
}

fn spawn(directory: &TempDir, ports: [u16; 2], tls: Tls) -> Child {
    let log = File::create(directory.path().join("log")).expect("a log");
    let scheme = if tls == Tls::Off { "http" } else { "https" };
    let client = format!("{scheme}://127.0.0.1:{}", ports[0]);
    let peer = format!("http://127.0.0.1:{}", ports[1]);
    let mut command = Command::new("etcd");
    command.arg("--data-dir").arg(directory.path().join("data"));
    command.args(["--listen-client-urls", &client, "--advertise-client-urls", &client]);
    command.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
    command.args(["--initial-cluster", &format!("default={peer}")]);
    if tls == Tls::Mutual {
        command.arg("--client-cert-auth").arg("--trusted-ca-file").arg(directory.path().join("ca.pem"));
    }
    if tls != Tls::Off {
        command.arg("--cert-file").arg(directory.path().join("cert.pem"));
        command.arg("--key-file").arg(directory.path().join("key.pem"));
    }
    command.stdin(Stdio::null()).stdout(log.try_clone().expect("a log")).stderr(log);
    command.spawn().expect("etcd is needed: apt-get install etcd-server")
}
