//! A service whose every byte a test decides.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::ops::{Deref, DerefMut};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use crate::message::{Head, Message};
use crate::wire::{End, Unframed, Wire};
use crate::{PATIENCE, eventually};

/// A server with a thread for each connection, which runs the test's script.
pub struct Backend {
    endpoint: String,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    connections: AtomicUsize,
    open: AtomicUsize,
    /// Bytes that arrived on connections whose scripts have read or ended.
    received: AtomicUsize,
    requests: Mutex<Vec<Head>>,
    stopped: AtomicBool,
    panics: Mutex<Vec<String>>,
}

/// One connection in the hands of a script. Dropped: closed.
pub struct Conn {
    wire: Wire,
    /// Which connection of the backend this is, from 0.
    pub index: usize,
    shared: Arc<Shared>,
    /// Last, so that it is dropped when the connection has closed.
    _open: Open,
}

/// Counts a connection as open.
struct Open(Arc<Shared>);

impl Backend {
    /// Runs `script` for every connection. A script that panics fails the test when the backend is dropped.
    pub fn start(script: impl Fn(&mut Conn) + Send + Sync + 'static) -> Self {
        Self::on(TcpListener::bind("127.0.0.1:0").expect("a port"), script)
    }

    /// The same on this socket.
    pub fn on(listener: TcpListener, script: impl Fn(&mut Conn) + Send + Sync + 'static) -> Self {
        let endpoint = listener.local_addr().expect("an address").to_string();
        Self::serve(endpoint, script, move || listener.accept().map(|(stream, _)| stream))
    }

    /// The same on a unix socket.
    pub fn start_unix(path: &Path, script: impl Fn(&mut Conn) + Send + Sync + 'static) -> Self {
        let listener = UnixListener::bind(path).expect("a unix socket");
        let endpoint = format!("unix:{}", path.display());
        // The calls that a test makes on its stream are the same for both families.
        Self::serve(endpoint, script, move || {
            listener.accept().map(|(stream, _)| TcpStream::from(OwnedFd::from(stream)))
        })
    }

    /// Answers every request the same way, on connections that live.
    pub fn fixed(answer: impl AsRef<[u8]>) -> Self {
        let answer = answer.as_ref().to_vec();
        Self::start(move |conn| {
            while conn.next_request().is_some() {
                conn.send(&answer);
            }
        })
    }

    /// Answers every request with 200 and a short body.
    pub fn ok() -> Self {
        Self::fixed("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
    }

    /// Answers every request with its own body.
    pub fn echo() -> Self {
        Self::start(|conn| {
            while let Some(request) = conn.next_request() {
                conn.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", request.body.len()));
                conn.send(request.body);
            }
        })
    }

    fn serve<A>(endpoint: String, script: impl Fn(&mut Conn) + Send + Sync + 'static, accept: A) -> Self
    where
        A: Fn() -> std::io::Result<TcpStream> + Send + 'static,
    {
        let shared = Arc::new(Shared::default());
        let script = Arc::new(script);
        let in_thread = Arc::clone(&shared);
        thread::spawn(move || {
            while let Ok(stream) = accept() {
                if in_thread.stopped.load(Ordering::Acquire) {
                    return;
                }
                let index = in_thread.connections.fetch_add(1, Ordering::AcqRel);
                in_thread.open.fetch_add(1, Ordering::AcqRel);
                let open = Open(Arc::clone(&in_thread));
                let (script, shared) = (Arc::clone(&script), Arc::clone(&in_thread));
                thread::spawn(move || {
                    let mut conn = Conn { wire: Wire::new(stream, PATIENCE), index, shared, _open: open };
                    let ended = catch_unwind(AssertUnwindSafe(|| script(&mut conn)));
                    if let Err(panic) = ended {
                        let text = panic.downcast_ref::<String>().cloned();
                        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
                        conn.shared.panics.lock().expect("a list").push(text.unwrap_or_default());
                    }
                });
            }
        });
        Self { endpoint, shared }
    }

    /// As the configuration writes it.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// # Panics
    /// On a unix socket.
    pub fn address(&self) -> SocketAddr {
        self.endpoint.parse().expect("a TCP endpoint")
    }

    /// Connections so far.
    pub fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::Acquire)
    }

    /// Connections that are open now.
    pub fn open(&self) -> usize {
        self.shared.open.load(Ordering::Acquire)
    }

    /// The heads of the requests so far.
    pub fn requests(&self) -> Vec<Head> {
        self.shared.requests.lock().expect("a list").clone()
    }

    /// The only request so far.
    #[track_caller]
    pub fn request(&self) -> Head {
        let requests = self.requests();
        assert_eq!(requests.len(), 1, "{requests:?}");
        requests[0].clone()
    }

    /// Bytes that arrived on connections that have ended.
    pub fn received(&self) -> usize {
        self.shared.received.load(Ordering::Acquire)
    }

    /// Waits until no connection is open any more.
    #[track_caller]
    pub fn expect_all_closed(&self) {
        eventually(PATIENCE, || self.open() == 0);
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Ordering::Release);
        match self.endpoint.strip_prefix("unix:") {
            Some(path) => drop(std::os::unix::net::UnixStream::connect(path)),
            None => drop(TcpStream::connect(&self.endpoint)),
        }
        let panics = self.shared.panics.lock().expect("a list");
        if !panics.is_empty() && !thread::panicking() {
            panic!("a backend's script failed: {panics:?}");
        }
    }
}

impl Conn {
    /// The next request's head; `None` when the connection has ended.
    #[track_caller]
    pub fn next_request_head(&mut self) -> Option<Head> {
        // A pooled connection may wait for long.
        let head = self.wire.next_head().ok()?;
        self.shared.requests.lock().expect("a list").push(head.clone());
        Some(head)
    }

    /// The next request, body and all; `None` when the connection has ended.
    #[track_caller]
    pub fn next_request(&mut self) -> Option<Message> {
        let head = self.next_request_head()?;
        Some(self.wire.read_rest(head, Unframed::Empty))
    }

    /// The next request, which must come.
    #[track_caller]
    pub fn request(&mut self) -> Message {
        self.next_request().expect("a request")
    }

    /// The body of a request whose head was read.
    #[track_caller]
    pub fn body_of(&mut self, head: Head) -> Message {
        self.wire.read_rest(head, Unframed::Empty)
    }

    /// Does nothing until the gateway ends the connection.
    #[track_caller]
    pub fn stall(&mut self) -> End {
        self.wire.drain().1
    }

    /// Ends the connection with a reset.
    pub fn reset(&mut self) {
        self.wire.reset_on_close();
    }
}

impl Drop for Conn {
    fn drop(&mut self) {
        self.shared.received.fetch_add(self.wire.received, Ordering::AcqRel);
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Deref for Conn {
    type Target = Wire;

    fn deref(&self) -> &Wire {
        &self.wire
    }
}

impl DerefMut for Conn {
    fn deref_mut(&mut self) -> &mut Wire {
        &mut self.wire
    }
}
