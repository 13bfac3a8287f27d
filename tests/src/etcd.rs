//! A real etcd, asked through its own JSON API.

use std::path::PathBuf;
use std::process::Command;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Value, json};

use crate::free_port;
use crate::server::{Server, Serves, write_certificates};

/// An `etcd` of one member that keeps its data until it is dropped. Killed then.
pub struct Etcd {
    server: Server,
    port: u16,
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

    #[track_caller]
    fn start_as(tls: Tls) -> Self {
        Self::start_new(|| {
            let directory = tempfile::tempdir().expect("a directory");
            let (port, scheme) = (free_port(), if tls == Tls::Off { "http" } else { "https" });
            let client = format!("{scheme}://127.0.0.1:{port}");
            let peer = format!("http://127.0.0.1:{}", free_port());
            let mut command = Command::new("etcd");
            command.args(["--data-dir", "data"]);
            command.args(["--listen-client-urls", &client, "--advertise-client-urls", &client]);
            command.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
            command.args(["--initial-cluster", &format!("default={peer}")]);
            if tls == Tls::Mutual {
                command.args(["--client-cert-auth", "--trusted-ca-file", "ca.pem"]);
            }
            if tls != Tls::Off {
                write_certificates(directory.path());
                command.args(["--cert-file", "cert.pem", "--key-file", "key.pem"]);
            }
            Self { server: Server::new(directory, command), port, tls }
        })
    }

    pub fn url(&self) -> String {
        let scheme = if self.tls == Tls::Off { "http" } else { "https" };
        format!("{scheme}://127.0.0.1:{}", self.port)
    }

    pub fn address(&self) -> std::net::SocketAddr {
        ([127, 0, 0, 1], self.port).into()
    }

    pub fn ca(&self) -> PathBuf {
        self.server.directory().join("ca.pem")
    }

    /// Of a client, and its key.
    pub fn certificate(&self) -> [PathBuf; 2] {
        ["cert.pem", "key.pem"].map(|name| self.server.directory().join(name))
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
        self.server.kill();
    }

    /// Starts it again on the same port, with its data.
    #[track_caller]
    pub fn restart(&mut self) {
        self.start_again();
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

impl Serves for Etcd {
    fn server(&mut self) -> &mut Server {
        &mut self.server
    }

    fn answers(&self) -> bool {
        self.try_ask("/v3/kv/range", &json!({ "key": BASE64.encode("x") })).is_some()
    }
}
