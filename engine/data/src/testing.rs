//! A core without a process around it, for the tests of what runs on one.

use std::io::Read;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use ringway_config::{Hub, Source, compile};
use ringway_io::{EventLoop, Sock, Ticker};

use crate::connection::{Connection, Counted};
use crate::deadline::SWEEP;
use crate::mailbox::{Mailbox, PerIp};
use crate::worker::{Shared, Worker};

/// The other end of the connection that a test has.
pub(crate) struct Client(TcpStream);

impl From<Client> for TcpStream {
    fn from(client: Client) -> Self {
        client.0
    }
}

/// A service with a thread for each connection.
pub(crate) struct Service {
    address: SocketAddr,
    requests: Arc<AtomicUsize>,
}

impl Service {
    /// Runs `script` for each connection, which gets its number, itself, and what reads one more request (without a body);
    /// that says no where the connection has ended.
    pub(crate) fn start(
        script: impl Fn(usize, &mut TcpStream, &dyn Fn(&mut TcpStream) -> bool) + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let service = Self { address: listener.local_addr().unwrap(), requests: Arc::default() };
        let (script, requests) = (Arc::new(script), Arc::clone(&service.requests));
        std::thread::spawn(move || {
            for (index, stream) in listener.incoming().enumerate() {
                let (script, requests) = (Arc::clone(&script), Arc::clone(&requests));
                let mut stream = stream.unwrap();
                std::thread::spawn(move || {
                    let read_request = |stream: &mut TcpStream| {
                        let (mut head, mut byte) = (Vec::new(), [0]);
                        while !head.ends_with(b"\r\n\r\n") {
                            match stream.read(&mut byte) {
                                Ok(1) => head.push(byte[0]),
                                _ => return false,
                            }
                        }
                        requests.fetch_add(1, Ordering::AcqRel);
                        true
                    };
                    script(index, &mut stream, &read_request);
                });
            }
        });
        service
    }

    /// A service that does not run.
    pub(crate) fn nobody() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        Self { address: listener.local_addr().unwrap(), requests: Arc::default() }
    }

    pub(crate) fn requests(&self) -> usize {
        self.requests.load(Ordering::Acquire)
    }
}

/// What a core meets the others in, without services.
pub(crate) fn hub() -> Arc<Hub> {
    hub_of("listeners: [{ name: web, address: \"127.0.0.1:1\" }]\n".into())
}

fn hub_of(text: String) -> Arc<Hub> {
    Hub::new(compile(&[Source { name: "test".into(), text }], &|_| None).unwrap(), 1)
}

/// Runs `test` on a core whose only service is this one, with a client's connection.
pub(crate) fn on_core(service: &Service, test: impl AsyncFnOnce(&Connection, Client)) {
    let text = format!(
        "listeners: [{{ name: web, address: \"127.0.0.1:1\" }}]\nservices: [{{ name: auth, endpoints: \"{}\" }}]\n",
        service.address
    );
    let shared = Arc::new(Shared {
        hub: hub_of(text),
        mailboxes: vec![Mailbox::new().unwrap()],
        per_ip: PerIp::new(),
        abort: AtomicBool::new(false),
        allocations: None,
    });
    let mut looped = EventLoop::io_uring(64).or_else(|_| EventLoop::epoll(64)).unwrap();
    looped.block_on(async {
        let worker = Worker::new(0, shared);
        let ticking = Rc::clone(&worker);
        ringway_io::spawn(async move {
            let ticker = Ticker::every(SWEEP).unwrap();
            for round in 1.. {
                ticker.tick().await;
                ticking.tick(round);
            }
        });
        let (conn, client) = connect(&worker);
        test(&conn, client).await;
    });
}

/// A client's connection with this core.
pub(crate) fn connect(worker: &Rc<Worker>) -> (Connection, Client) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (accepted, peer) = listener.accept().unwrap();
    let listener = Arc::clone(&worker.view().published.snapshot.listeners[0]);
    let counted = Counted::new(worker, None);
    let conn = Connection::new(worker, Sock::new(accepted.into()).unwrap(), peer, listener, counted);
    (conn, Client(client))
}
