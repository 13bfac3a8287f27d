//! A real authority that speaks ACME: Pebble, the test server of Let's Encrypt, with a DNS server of its own.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::redis::write_certificates;
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
    setup: PebbleSetup,
    directory: TempDir,
    port: u16,
    management: u16,
    dns: u16,
    dns_management: u16,
    server: Option<Child>,
    names: Child,
}

impl Pebble {
    #[track_caller]
    pub fn start(setup: PebbleSetup) -> Self {
        let mut pebble = Self::stopped(setup);
        pebble.restart();
        pebble
    }

    /// One that nobody can ask before [`Pebble::restart`]; its DNS server runs.
    #[track_caller]
    pub fn stopped(setup: PebbleSetup) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        write_certificates(directory.path());
        let [port, management, dns, dns_management] = [(); 4].map(|()| free_port());
        let names = Command::new("pebble-challtestsrv")
            .args(["-dns01", &format!("127.0.0.1:{dns}"), "-management", &format!("127.0.0.1:{dns_management}")])
            .args(["-http01", "", "-https01", "", "-tlsalpn01", "", "-defaultIPv4", "127.0.0.1", "-defaultIPv6", ""])
            .stdin(Stdio::null())
            .stdout(File::create(directory.path().join("dns.log")).expect("a log"))
            .stderr(Stdio::null())
            .spawn()
            .expect("pebble-challtestsrv is needed: apt-get install pebble");
        let pebble = Self { setup, directory, port, management, dns, dns_management, server: None, names };
        comes_up(dns_management);
        pebble
    }

    /// Starts it, again if need be: it has forgotten everything then, its root included.
    #[track_caller]
    pub fn restart(&mut self) {
        self.kill();
        let path = |name: &str| self.directory.path().join(name);
        let config = json!({ "pebble": {
            "listenAddress": format!("127.0.0.1:{}", self.port),
            "managementListenAddress": format!("127.0.0.1:{}", self.management),
            "certificate": path("cert.pem"),
            "privateKey": path("key.pem"),
            "httpPort": self.setup.http_port,
            "tlsPort": self.setup.tls_port,
            "certificateValidityPeriod": self.setup.validity_s,
            "externalAccountBindingRequired": self.setup.external_account.is_some(),
            "externalAccountMACKeys": self.setup.external_account.into_iter().collect::<HashMap<_, _>>(),
        } });
        fs::write(path("pebble.json"), config.to_string()).expect("a file");
        let log = File::create(path("pebble.log")).expect("a log");
        let mut command = Command::new("pebble");
        command.args(["-dnsserver", &format!("127.0.0.1:{}", self.dns), "-config"]).arg(path("pebble.json"));
        // Each order has its challenges, and they are looked at at once.
        command.env("PEBBLE_VA_NOSLEEP", "1").env("PEBBLE_AUTHZREUSE", "0");
        command.stdin(Stdio::null()).stderr(log.try_clone().expect("a log")).stdout(log);
        self.server = Some(command.spawn().expect("pebble is needed: apt-get install pebble"));
        comes_up(self.port);
        comes_up(self.management);
    }

    pub fn kill(&mut self) {
        if let Some(mut server) = self.server.take() {
            let _ = server.kill();
            let _ = server.wait();
        }
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// Where its own certificate and key are (`cert.pem`, `key.pem`), and the authority that they are of (`ca.pem`).
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// The URL of its directory.
    pub fn url(&self) -> String {
        format!("https://127.0.0.1:{}/dir", self.port)
    }

    /// The file with the authority that its own certificate is of.
    pub fn ca(&self) -> PathBuf {
        self.directory.path().join("ca.pem")
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

    /// Certificates that it has issued since it was started.
    pub fn issued(&self) -> usize {
        self.log().matches("Issued certificate serial").count()
    }

    /// What it wrote.
    pub fn log(&self) -> String {
        fs::read_to_string(self.directory.path().join("pebble.log")).unwrap_or_default()
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
        let mut stream = TcpStream::connect(("127.0.0.1", self.dns_management)).expect("the DNS server");
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
        self.kill();
        let _ = self.names.kill();
        let _ = self.names.wait();
    }
}

#[track_caller]
fn comes_up(port: u16) {
    let end = Instant::now() + PATIENCE;
    while TcpStream::connect(("127.0.0.1", port)).is_err() {
        assert!(Instant::now() < end, "nobody listens on port {port}");
        thread::sleep(Duration::from_millis(10));
    }
}
