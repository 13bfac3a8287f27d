//! A real authority that speaks ACME: Pebble, the test server of Let's Encrypt, with a DNS server of its own.

use std::collections::HashMap;
use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use serde_json::{Value, json};

use crate::server::{Server, Serves, write_certificates};
use crate::{PATIENCE, free_port};

/// Where Pebble asks, and what it issues.
#[derive(Debug, Clone, Copy)]
pub struct PebbleSetup {
    /// Where hosts answer HTTP-01 challenges, in place of port 80.
    pub http_port: u16,
    /// Where they answer those by TLS-ALPN-01, in place of port 443.
    pub tls_port: u16,
    /// How long certificates hold, in seconds.
    pub validity_s: u64,
    /// Whom it knows by other means (RFC 8555 section 7.3.4): a name and its secret, as base64url. Nobody else gets an account then.
    pub external_account: Option<(&'static str, &'static str)>,
}

/// An authority. All hosts are at 127.0.0.1 unless it is told otherwise. Killed when dropped.
pub struct Pebble {
    server: Server,
    port: u16,
    management: u16,
    names: Names,
}

/// Its DNS server.
struct Names {
    server: Server,
    port: u16,
    management: u16,
}

impl Pebble {
    #[track_caller]
    pub fn start(setup: PebbleSetup) -> Self {
        Self::start_new(|| Self::stopped(setup))
    }

    /// One that nobody can ask before [`Pebble::restart`]; its DNS server runs.
    #[track_caller]
    pub fn stopped(setup: PebbleSetup) -> Self {
        let names = Names::start_new(Names::stopped);
        let directory = tempfile::tempdir().expect("a directory");
        write_certificates(directory.path());
        let [port, management] = [(); 2].map(|()| free_port());
        let config = json!({ "pebble": {
            "listenAddress": format!("127.0.0.1:{port}"),
            "managementListenAddress": format!("127.0.0.1:{management}"),
            "certificate": "cert.pem",
            "privateKey": "key.pem",
            "httpPort": setup.http_port,
            "tlsPort": setup.tls_port,
            "certificateValidityPeriod": setup.validity_s,
            "externalAccountBindingRequired": setup.external_account.is_some(),
            "externalAccountMACKeys": setup.external_account.into_iter().collect::<HashMap<_, _>>(),
        } });
        fs::write(directory.path().join("pebble.json"), config.to_string()).expect("a file");
        let mut command = Command::new("pebble");
        command.args(["-dnsserver", &format!("127.0.0.1:{}", names.port), "-config", "pebble.json"]);
        // Each order has its challenges, and they are looked at at once.
        command.env("PEBBLE_VA_NOSLEEP", "1").env("PEBBLE_AUTHZREUSE", "0");
        Self { server: Server::new(directory, command), port, management, names }
    }

    /// Starts it, again if need be: it has forgotten everything then, its root included.
    #[track_caller]
    pub fn restart(&mut self) {
        self.start_again();
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// Where its own certificate and key are (`cert.pem`, `key.pem`), and the authority that they are of (`ca.pem`).
    pub fn directory(&self) -> &Path {
        self.server.directory()
    }

    /// The URL of its directory.
    pub fn url(&self) -> String {
        format!("https://127.0.0.1:{}/dir", self.port)
    }

    /// The file with the authority that its own certificate is of.
    pub fn ca(&self) -> PathBuf {
        self.server.directory().join("ca.pem")
    }

    /// The certificate (PEM) that clients of what it issues trust.
    #[track_caller]
    pub fn root(&self) -> Vec<u8> {
        let url = format!("https://127.0.0.1:{}/roots/0", self.management);
        let output = Command::new("curl").args(["--silent", "--fail", "--cacert"]).arg(self.ca()).arg(url).output();
        let output = output.expect("curl is needed: apt-get install curl");
        assert!(output.status.success(), "pebble does not show its root");
        output.stdout
    }

    /// Certificates that it has issued since it was started first.
    pub fn issued(&self) -> usize {
        self.log().matches("Issued certificate serial").count()
    }

    /// What it wrote.
    pub fn log(&self) -> String {
        self.server.log()
    }

    /// Where a host is from now on.
    #[track_caller]
    pub fn set_address(&self, host: &str, address: Ipv4Addr) {
        self.tell_dns("/clear-a", &json!({ "host": host }));
        self.tell_dns("/add-a", &json!({ "host": host, "addresses": [address.to_string()] }));
    }

    #[track_caller]
    fn tell_dns(&self, path: &str, body: &Value) {
        let body = body.to_string();
        let mut stream = TcpStream::connect(("127.0.0.1", self.names.management)).expect("the DNS server");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        write!(
            stream,
            "POST {path} HTTP/1.1\r\nHost: dns\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )
        .expect("a request");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer");
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    }
}

impl Drop for Pebble {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("pebble wrote:\n{}", self.log());
        }
    }
}

impl Serves for Pebble {
    fn server(&mut self) -> &mut Server {
        &mut self.server
    }

    fn answers(&self) -> bool {
        listens(self.port) && listens(self.management)
    }
}

impl Names {
    fn stopped() -> Self {
        let [port, management] = [(); 2].map(|()| free_port());
        let mut command = Command::new("pebble-challtestsrv");
        command.args(["-dns01", &format!("127.0.0.1:{port}"), "-management", &format!("127.0.0.1:{management}")]);
        command.args([
            "-http01",
            "",
            "-https01",
            "",
            "-tlsalpn01",
            "",
            "-defaultIPv4",
            "127.0.0.1",
            "-defaultIPv6",
            "",
        ]);
        let directory = tempfile::tempdir().expect("a directory");
        Self { server: Server::new(directory, command), port, management }
    }
}

impl Serves for Names {
    fn server(&mut self) -> &mut Server {
        &mut self.server
    }

    fn answers(&self) -> bool {
        listens(self.management)
    }
}

fn listens(port: u16) -> bool {
    TcpStream::connect(("127.0.0.1", port)).is_ok()
}
