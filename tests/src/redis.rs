//! Real Redis servers: alone, with a password, with TLS, under sentinels, as a cluster; and a proxy that slows one down.

use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::server::{Server, Serves, write_certificates};
use crate::{PATIENCE, free_port};

/// What a server is started with.
#[derive(Debug, Clone, Copy, Default)]
pub struct RedisSetup<'a> {
    pub password: Option<&'a str>,
    pub tls: bool,
    /// More lines of `redis.conf`.
    pub config: &'a str,
}

/// A `redis-server` that keeps nothing on disk. Killed when dropped.
pub struct Redis {
    server: Server,
    port: u16,
    password: Option<String>,
    tls: bool,
}

impl Redis {
    /// Without password and TLS.
    #[track_caller]
    pub fn start() -> Self {
        Self::start_with(RedisSetup::default())
    }

    #[track_caller]
    pub fn start_with(setup: RedisSetup<'_>) -> Self {
        Self::start_as(setup, false)
    }

    /// A sentinel that watches the server on `port` under the name `main` and takes it for dead after half a second.
    #[track_caller]
    pub fn sentinel_of(port: u16) -> Self {
        let config = format!(
            "sentinel monitor main 127.0.0.1 {port} 1\nsentinel down-after-milliseconds main 500\n\
             sentinel failover-timeout main 2000\n"
        );
        Self::start_as(RedisSetup { config: &config, ..RedisSetup::default() }, true)
    }

    /// A server that copies the one on `port`.
    #[track_caller]
    pub fn replica_of(port: u16) -> Self {
        Self::start_with(RedisSetup { config: &format!("replicaof 127.0.0.1 {port}\n"), ..RedisSetup::default() })
    }

    /// Three masters that share the keys.
    #[track_caller]
    pub fn cluster() -> Vec<Self> {
        let node = |_| {
            Self::start_with(RedisSetup {
                config: "cluster-enabled yes\ncluster-node-timeout 1000\n",
                ..RedisSetup::default()
            })
        };
        let nodes: Vec<Self> = (0..3).map(node).collect();
        for (index, node) in nodes.iter().enumerate() {
            let (first, last) = (index * 16384 / 3, (index + 1) * 16384 / 3 - 1);
            node.ask(&["CLUSTER", "ADDSLOTSRANGE", &first.to_string(), &last.to_string()]);
            node.ask(&["CLUSTER", "SET-CONFIG-EPOCH", &(index + 1).to_string()]);
        }
        for other in &nodes[1..] {
            nodes[0].ask(&["CLUSTER", "MEET", "127.0.0.1", &other.port.to_string()]);
        }
        crate::eventually(PATIENCE, || {
            nodes.iter().all(|node| node.ask(&["CLUSTER", "INFO"]).contains("cluster_state:ok"))
        });
        nodes
    }

    fn start_as(setup: RedisSetup<'_>, sentinel: bool) -> Self {
        Self::start_new(|| {
            let directory = tempfile::tempdir().expect("a directory");
            if setup.tls {
                write_certificates(directory.path());
            }
            let (port, file) = (free_port(), directory.path().join("redis.conf"));
            fs::write(&file, config(setup, port, directory.path())).expect("a file");
            let mut command = Command::new("redis-server");
            command.arg(file).args(sentinel.then_some("--sentinel"));
            let password = setup.password.map(str::to_owned);
            Self { server: Server::new(directory, command), port, password, tls: setup.tls }
        })
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn address(&self) -> SocketAddr {
        ([127, 0, 0, 1], self.port).into()
    }

    /// As the configuration of a gateway has it, the password included.
    pub fn url(&self) -> String {
        let scheme = if self.tls { "rediss" } else { "redis" };
        let login = self.password.as_ref().map_or(String::new(), |password| format!(":{password}@"));
        format!("{scheme}://{login}127.0.0.1:{}", self.port)
    }

    /// The file with the certificate of the authority; only with TLS.
    pub fn ca(&self) -> std::path::PathBuf {
        self.server.directory().join("ca.pem")
    }

    /// The answer of `redis-cli` to a command.
    ///
    /// # Panics
    /// When the server does not answer.
    #[track_caller]
    pub fn ask(&self, command: &[&str]) -> String {
        self.try_ask(command).unwrap_or_else(|| panic!("redis-server does not answer {command:?}"))
    }

    /// `None`: the server does not answer.
    pub fn try_ask(&self, command: &[&str]) -> Option<String> {
        let mut cli = Command::new("redis-cli");
        cli.args(["-p", &self.port.to_string()]);
        if let Some(password) = &self.password {
            cli.env("REDISCLI_AUTH", password);
        }
        if self.tls {
            cli.arg("--tls").arg("--cacert").arg(self.ca());
        }
        let output = cli.args(command).stdin(Stdio::null()).output().expect("redis-cli runs");
        let text = String::from_utf8_lossy(&output.stdout).trim_end().to_owned();
        output.status.success().then_some(text)
    }

    /// Freezes the server: connections stand, and nothing is answered.
    pub fn stop(&self) {
        self.server.signal(Signal::STOP);
    }

    /// Ends what [`Redis::stop`] began.
    pub fn cont(&self) {
        self.server.signal(Signal::CONT);
    }

    /// Ends the server at once. Nothing listens on its port until [`Redis::restart`].
    pub fn kill(&mut self) {
        self.server.kill();
    }

    /// Starts the server again on the same port, empty.
    #[track_caller]
    pub fn restart(&mut self) {
        self.start_again();
    }

    /// Forgets all keys, and all scripts.
    #[track_caller]
    pub fn flush(&self) {
        assert_eq!(self.ask(&["FLUSHALL"]), "OK");
        assert_eq!(self.ask(&["SCRIPT", "FLUSH"]), "OK");
    }
}

impl Serves for Redis {
    fn server(&mut self) -> &mut Server {
        &mut self.server
    }

    fn answers(&self) -> bool {
        self.try_ask(&["PING"]).is_some_and(|answer| answer.trim() == "PONG")
    }
}

fn config(setup: RedisSetup<'_>, port: u16, directory: &Path) -> String {
    let directory = directory.display();
    let mut text = format!("bind 127.0.0.1\nsave \"\"\nappendonly no\nprotected-mode no\ndir {directory}\n");
    match setup.tls {
        true => text.push_str(&format!(
            "port 0\ntls-port {port}\ntls-auth-clients no\ntls-cert-file {directory}/cert.pem\n\
             tls-key-file {directory}/key.pem\ntls-ca-cert-file {directory}/ca.pem\n"
        )),
        false => text.push_str(&format!("port {port}\n")),
    }
    if let Some(password) = setup.password {
        text.push_str(&format!("requirepass {password}\n"));
    }
    text + setup.config
}

/// A proxy in front of a server that lets what passes wait.
pub struct Slow {
    address: SocketAddr,
    delays: Arc<Delays>,
    ended: Arc<AtomicBool>,
}

/// Of each direction.
#[derive(Default)]
struct Delays {
    to_server_us: AtomicU64,
    to_client_us: AtomicU64,
}

impl Slow {
    /// Without delay at first.
    pub fn before(server: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        let (delays, ended) = (Arc::<Delays>::default(), Arc::new(AtomicBool::new(false)));
        thread::spawn({
            let (delays, ended) = (delays.clone(), ended.clone());
            move || {
                for client in listener.incoming().flatten() {
                    if ended.load(Ordering::Relaxed) {
                        return;
                    }
                    let Ok(server) = TcpStream::connect(server) else { continue };
                    relay(client, server, &delays);
                }
            }
        });
        Self { address, delays, ended }
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// How long each answer waits from now on.
    pub fn set_delay(&self, delay: Duration) {
        self.delays.to_client_us.store(delay.as_micros() as u64, Ordering::Relaxed);
    }

    /// How long everything waits from now on, in each direction.
    pub fn set_delay_each_way(&self, delay: Duration) {
        self.set_delay(delay);
        self.delays.to_server_us.store(delay.as_micros() as u64, Ordering::Relaxed);
    }
}

impl Drop for Slow {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        // Wakes the thread that accepts.
        let _ = TcpStream::connect(self.address);
    }
}

/// Both directions of a connection.
fn relay(client: TcpStream, server: TcpStream, delays: &Arc<Delays>) {
    for stream in [&client, &server] {
        stream.set_nodelay(true).expect("an option");
    }
    let [from_client, to_client] = [(); 2].map(|()| client.try_clone().expect("a clone"));
    let (to_server, delays_up, delays_down) = (server.try_clone().expect("a clone"), delays.clone(), delays.clone());
    pump(from_client, to_server, move || delays_up.to_server_us.load(Ordering::Relaxed));
    pump(server, to_client, move || delays_down.to_client_us.load(Ordering::Relaxed));
}

/// Passes on what comes, each piece as late as it is told, however much comes.
fn pump(mut from: TcpStream, mut to: TcpStream, delay_us: impl Fn() -> u64 + Send + 'static) {
    let (late, due) = std::sync::mpsc::channel::<(Instant, Vec<u8>)>();
    thread::spawn(move || {
        while let Ok((at, bytes)) = due.recv() {
            thread::sleep(at.saturating_duration_since(Instant::now()));
            if to.write_all(&bytes).is_err() {
                break;
            }
        }
        let _ = to.shutdown(Shutdown::Both);
    });
    thread::spawn(move || {
        let mut chunk = [0; 16 * 1024];
        while let Ok(read @ 1..) = from.read(&mut chunk) {
            let at = Instant::now() + Duration::from_micros(delay_us());
            if late.send((at, chunk[..read].to_vec())).is_err() {
                break;
            }
        }
    });
}
