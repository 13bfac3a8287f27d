//! What the servers of others that tests start have in common: Redis, etcd, Pebble.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::PATIENCE;

/// A port may be taken between the question and the start.
const TRIES: usize = 5;

/// Somebody else's program, with a directory of its own, where `log` is what it says. Killed when dropped.
pub(crate) struct Server {
    command: Command,
    child: Option<Child>,
    directory: TempDir,
}

/// What is made of one.
pub(crate) trait Serves: Sized {
    fn server(&mut self) -> &mut Server;

    fn answers(&self) -> bool;

    /// Starts what `make` has made ready, and waits until it answers; something else in its place where it ends at once.
    #[track_caller]
    fn start_new(make: impl Fn() -> Self) -> Self {
        let mut failure = String::new();
        for _ in 0..TRIES {
            let mut made = make();
            match made.comes_up() {
                Ok(()) => return made,
                Err(why) => failure = why,
            }
        }
        panic!("{failure}");
    }

    /// Ends it if it runs, and starts it where it was.
    #[track_caller]
    fn start_again(&mut self) {
        self.server().kill();
        self.comes_up().unwrap_or_else(|failure| panic!("{failure}"));
    }

    fn comes_up(&mut self) -> Result<(), String> {
        self.server().spawn();
        let end = Instant::now() + PATIENCE;
        while Instant::now() < end && !self.server().has_ended() {
            if self.answers() {
                return Ok(());
            }
            thread::sleep(Duration::from_millis(10));
        }
        let server = self.server();
        Err(format!("{} does not start:\n{}", server.name(), server.log()))
    }
}

impl Server {
    /// What `command` starts; it is not started yet.
    pub(crate) fn new(directory: TempDir, mut command: Command) -> Self {
        let log = File::create(directory.path().join("log")).expect("a log");
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("a log")).stderr(log);
        command.current_dir(directory.path());
        Self { command, child: None, directory }
    }

    fn name(&self) -> String {
        self.command.get_program().to_string_lossy().into_owned()
    }

    fn spawn(&mut self) {
        let child = self.command.spawn();
        self.child = Some(child.unwrap_or_else(|error| panic!("{}: {error}; `./test` installs it", self.name())));
    }

    fn has_ended(&mut self) -> bool {
        self.child.as_mut().is_none_or(|child| child.try_wait().expect("a child").is_some())
    }

    pub(crate) fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// What it has said since it was started first.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.directory().join("log")).unwrap_or_default()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let child = self.child.as_ref().expect("it runs");
        kill_process(Pid::from_child(child), signal).expect("a signal");
    }

    /// Ends it at once. Nothing listens on its ports until it is started again.
    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

/// An authority (`ca.pem`) and a certificate of 127.0.0.1 from it (`cert.pem`, `key.pem`).
pub(crate) fn write_certificates(directory: &Path) {
    let mut authority = CertificateParams::new(Vec::new()).expect("parameters");
    // The same name for both would look like a certificate that signs itself.
    authority.distinguished_name.push(DnType::CommonName, "authority");
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let issuer = CertifiedIssuer::self_signed(authority, KeyPair::generate().expect("a key")).expect("an authority");
    let key = KeyPair::generate().expect("a key");
    let server = CertificateParams::new(vec!["127.0.0.1".to_owned(), "localhost".to_owned()]).expect("parameters");
    let certificate = server.signed_by(&key, &issuer).expect("a certificate");
    for (name, text) in [("ca.pem", issuer.pem()), ("cert.pem", certificate.pem()), ("key.pem", key.serialize_pem())] {
        fs::write(directory.join(name), text).expect("a file");
    }
}
