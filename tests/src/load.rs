//! Clients that send one request after the other, to see whether any of them fails while something else happens.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

use crate::PATIENCE;

/// Keep-alive clients at work. What HTTP allows is no failure: a connection that is closed between two requests, or after
/// an answer with `Connection: close`, is made anew.
pub struct Load {
    shared: Arc<Shared>,
    clients: Vec<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    answered: AtomicU64,
    reconnects: AtomicU64,
    failures: Mutex<Vec<String>>,
}

impl Load {
    /// Each client asks for `targets` in turn until [`Load::finish`], or until nobody listens any more.
    pub fn start(address: SocketAddr, clients: usize, targets: &[&str]) -> Self {
        let targets: Arc<[String]> = targets.iter().map(|target| (*target).to_owned()).collect();
        let shared = Arc::new(Shared::default());
        let clients = (0..clients)
            .map(|_| {
                let (shared, targets) = (Arc::clone(&shared), Arc::clone(&targets));
                thread::spawn(move || shared.run(address, &targets))
            })
            .collect();
        Self { shared, clients }
    }

    /// Answers so far.
    pub fn answered(&self) -> u64 {
        self.shared.answered.load(Ordering::Relaxed)
    }

    /// Clients that have found nobody listening any more, or have failed.
    pub fn ended(&self) -> usize {
        self.clients.iter().filter(|client| client.is_finished()).count()
    }

    /// Connections made anew.
    pub fn reconnects(&self) -> u64 {
        self.shared.reconnects.load(Ordering::Relaxed)
    }

    /// Ends the clients; gives back how many requests were answered.
    ///
    /// # Panics
    /// Where one failed.
    #[track_caller]
    pub fn finish(self) -> u64 {
        self.shared.stop.store(true, Ordering::Relaxed);
        for client in self.clients {
            client.join().expect("a client");
        }
        let failures = self.shared.failures.lock().expect("a list");
        assert!(failures.is_empty(), "{} requests failed: {failures:?}", failures.len());
        self.shared.answered.load(Ordering::Relaxed)
    }
}

impl Shared {
    fn run(&self, address: SocketAddr, targets: &[String]) {
        let mut stream: Option<TcpStream> = None;
        for target in targets.iter().cycle() {
            if self.stop.load(Ordering::Relaxed) {
                return;
            }
            if stream.as_ref().is_some_and(has_ended) {
                stream = None;
                self.reconnects.fetch_add(1, Ordering::Relaxed);
            }
            let mut connected = match stream.take().map_or_else(|| connect(address), Ok) {
                Ok(connected) => connected,
                Err(error) if error.kind() == ErrorKind::ConnectionRefused => return,
                Err(error) => return self.fail(format!("connect: {error}")),
            };
            match exchange(&mut connected, target) {
                Ok((200, true)) => stream = Some(connected),
                Ok((200, false)) => {
                    self.reconnects.fetch_add(1, Ordering::Relaxed);
                }
                Ok((status, _)) => return self.fail(format!("{target}: {status}")),
                Err(failure) => return self.fail(format!("{target}: {failure}")),
            }
            self.answered.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn fail(&self, failure: String) {
        self.failures.lock().expect("a list").push(failure);
    }
}

pub(crate) fn connect(address: SocketAddr) -> std::io::Result<TcpStream> {
    let stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// Whether the other side has closed the connection, or reset it.
pub(crate) fn has_ended(stream: &TcpStream) -> bool {
    let _ = stream.set_nonblocking(true);
    let peeked = stream.peek(&mut [0]);
    let _ = stream.set_nonblocking(false);
    !matches!(peeked, Err(error) if error.kind() == ErrorKind::WouldBlock)
}

/// One request; the status of its answer, and whether the connection lives on.
pub(crate) fn exchange(stream: &mut TcpStream, target: &str) -> Result<(u16, bool), String> {
    let request = format!("GET {target} HTTP/1.1\r\nHost: load\r\n\r\n");
    stream.write_all(request.as_bytes()).map_err(|error| format!("send: {error}"))?;
    let mut answer = Vec::with_capacity(1024);
    loop {
        let mut chunk = [0; 16 * 1024];
        match stream.read(&mut chunk) {
            Ok(0) => return Err(format!("closed after {} bytes of the answer", answer.len())),
            Ok(read) => answer.extend_from_slice(&chunk[..read]),
            Err(error) => return Err(format!("receive: {error}, after {} bytes", answer.len())),
        }
        let Some(end) = answer.windows(4).position(|window| window == b"\r\n\r\n") else { continue };
        let head = String::from_utf8_lossy(&answer[..end]).to_ascii_lowercase();
        let field = |name: &str| head.lines().find_map(|line| line.strip_prefix(name));
        let length = field("content-length: ").and_then(|value| value.parse::<usize>().ok());
        if answer.len() - end - 4 < length.ok_or("no content-length")? {
            continue;
        }
        let status = head.get(9..12).and_then(|status| status.parse().ok()).ok_or("no status")?;
        return Ok((status, field("connection: close").is_none()));
    }
}
