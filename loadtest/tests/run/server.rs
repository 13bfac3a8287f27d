//! A small HTTP/1.1 server whose every answer a test decides.

use std::collections::HashSet;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

/// A request as it came.
pub(crate) struct Request {
    /// Of all requests to the server, from 1.
    pub(crate) number: usize,
    /// Of those on its connection, from 1.
    pub(crate) on_connection: usize,
    pub(crate) head: String,
    pub(crate) body_bytes: usize,
    pub(crate) peer: IpAddr,
}

/// What becomes of a connection after an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Then {
    Keep,
    Close,
    Reset,
}

/// One thread for each connection. Its threads end with the test's process.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    pub(crate) seen: Arc<Seen>,
}

#[derive(Default)]
pub(crate) struct Seen {
    pub(crate) requests: AtomicUsize,
    pub(crate) peers: Mutex<HashSet<IpAddr>>,
}

impl Server {
    pub(crate) fn start(answer: impl Fn(&Request, &mut TcpStream) -> Then + Send + Sync + 'static) -> Self {
        Self::start_for(usize::MAX, answer)
    }

    /// Stops listening after so many connections; the tool's first look at its target is one of them.
    pub(crate) fn start_for(
        connections: usize,
        answer: impl Fn(&Request, &mut TcpStream) -> Then + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("a bound listener has an address");
        let (seen, answer) = (Arc::new(Seen::default()), Arc::new(answer));
        let server = Self { address, seen: Arc::clone(&seen) };
        thread::spawn(move || {
            for stream in listener.incoming().take(connections).flatten() {
                let (seen, answer) = (Arc::clone(&seen), Arc::clone(&answer));
                thread::spawn(move || serve(stream, &seen, &*answer));
            }
        });
        server
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    pub(crate) fn requests(&self) -> usize {
        self.seen.requests.load(Ordering::Relaxed)
    }
}

fn serve(mut stream: TcpStream, seen: &Seen, answer: &dyn Fn(&Request, &mut TcpStream) -> Then) {
    let Ok(peer) = stream.peer_addr() else { return };
    let _ = stream.set_nodelay(true);
    let mut bytes = Vec::new();
    let mut room = vec![0; 64 * 1024];
    for on_connection in 1.. {
        let head_end = loop {
            if let Some(at) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
                break at + 4;
            }
            match stream.read(&mut room) {
                Ok(0) | Err(_) => return,
                Ok(read) => bytes.extend_from_slice(&room[..read]),
            }
        };
        let head = String::from_utf8_lossy(&bytes[..head_end]).into_owned();
        let length = head.lines().filter_map(|line| line.split_once(':'));
        let mut length = length.filter(|(name, _)| name.eq_ignore_ascii_case("content-length"));
        let body_bytes = length.next().and_then(|(_, value)| value.trim().parse().ok()).unwrap_or(0);
        let mut have = bytes.len() - head_end;
        while have < body_bytes {
            match stream.read(&mut room) {
                Ok(0) | Err(_) => return,
                Ok(read) => have += read,
            }
        }
        bytes.clear();
        seen.peers.lock().expect("no test panics while it holds it").insert(peer.ip());
        let number = seen.requests.fetch_add(1, Ordering::Relaxed) + 1;
        let request = Request { number, on_connection, head, body_bytes, peer: peer.ip() };
        match answer(&request, &mut stream) {
            Then::Keep => {}
            Then::Close => return,
            Then::Reset => {
                let _ = socket2::SockRef::from(&stream).set_linger(Some(std::time::Duration::ZERO));
                return;
            }
        }
    }
}

/// A usual answer of 100 bytes.
pub(crate) fn ok(_: &Request, stream: &mut TcpStream) -> Then {
    say(stream, &format!("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{:100}", ""))
}

/// Writes as it stands, and keeps the connection.
pub(crate) fn say(stream: &mut TcpStream, text: &str) -> Then {
    match stream.write_all(text.as_bytes()) {
        Ok(()) => Then::Keep,
        Err(_) => Then::Close,
    }
}
