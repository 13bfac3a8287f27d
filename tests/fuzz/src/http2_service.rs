//! Services of HTTP/2 that answer whatever they like: the adapter between `h2` and the loop, the meter of heads, and answers as
//! the serve path sees them.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, Mutex};
use std::thread;

use ringway_core::http::{BodyDecoder, Framing, HeadScan, HeadScanner, HeadStorage, ResponseHead};

use crate::frames::{self, PREFACE};
use crate::gateway::{Gateway, PATIENCE, eventually};

pub const DICTIONARY: &[&str] = &[
    // SETTINGS: as they are, with tunnels, initial window 0; GOAWAY; PING; WINDOW_UPDATE.
    "\x04\0\0\0",
    "\x04\x01\0\0",
    "\x04\0\0\x06\0\x08\0\0\0\x01",
    "\x04\0\0\x06\0\x04\0\0\0\0",
    "\x04\0\0\x06\0\x03\0\0\0\0",
    "\x07\0\0\x08\0\0\0\0\0\0\0\0",
    "\x07\0\0\x08\0\0\0\x01\0\0\0\x0b",
    "\x06\0\0\x0812345678",
    "\x08\0\0\x04\0\x01\0\0",
    "\x08\0\x01\x04\0\x01\0\0",
    "\x03\0\x01\x04\0\0\0\x07",
    "\x03\0\x01\x04\0\0\0\x08",
    "\x03\0\x01\x04\0\0\0\0",
    // Heads: 200, 200 and the end, 103, 101, with a length, with what must not be there.
    "\x01\x04\x01\x0d\0\x07:status\x03200",
    "\x01\x05\x01\x0d\0\x07:status\x03200",
    "\x01\x05\x01\x0d\0\x07:status\x03204",
    "\x01\x04\x01\x0d\0\x07:status\x03103",
    "\x01\x04\x01\x0d\0\x07:status\x03101",
    "\x01\x04\x01\x1f\0\x07:status\x03200\0\x0econtent-length\x015",
    "\x01\x04\x01\"\0\x07:status\x03200\0\nconnection\x07upgrade",
    "\0\x0econtent-length\x015",
    "\0\x11transfer-encoding\x07chunked",
    // Trailers, a CONTINUATION, PUSH_PROMISE, DATA of several sizes.
    "\x01\x05\x01\x07\0\x03x-a\x011",
    "\x09\x04\x01\x07\0\x03x-a\x011",
    "\x05\x04\x01\x04\0\0\0\x02",
    "\0\0\x01\x05hello",
    "\0\x01\x01\x05hello",
    "\0\x01\x01\0",
    " \x01\x01\x7f",
    " \0\x01\x10################",
];

/// What the client asks, by the first byte of an input.
const REQUESTS: [&str; 6] = [
    "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
    "HEAD / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 5\r\n\r\nhello",
    "POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nX-A: 1\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade, close\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
     Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Type: application/grpc\r\nTE: trailers\r\nContent-Length: 5\r\n\r\n\
     \0\0\0\0\0",
];
/// More than the serve path passes on.
const INTERIMS_MAX: usize = 40;

static SERVICE: LazyLock<Arc<Service>> = LazyLock::new(Service::start);
static GATEWAY: LazyLock<Gateway> = LazyLock::new(|| {
    let more = format!(
        "services: [{{ name: app, endpoints: \"{}\", protocol: http2, timeouts: {{ connect: 2s, answer: 2s, idle: 2s }} }}]\n\
         routes: [{{ name: all, match: {{ prefix: / }}, service: app }}]\n",
        SERVICE.address
    );
    Gateway::start("", &more)
});

/// A service whose connections say all the same.
struct Service {
    address: SocketAddr,
    /// How many pieces it sends, and what.
    script: Mutex<(usize, Vec<u8>)>,
    open: AtomicUsize,
    /// What its connections have received.
    received: Mutex<Vec<Vec<u8>>>,
}

impl Service {
    fn start() -> Arc<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let service = Arc::new(Self {
            address: listener.local_addr().expect("an address"),
            script: Mutex::default(),
            open: AtomicUsize::new(0),
            received: Mutex::default(),
        });
        let accepting = Arc::clone(&service);
        thread::spawn(move || {
            for stream in listener.incoming() {
                let (Ok(stream), service) = (stream, Arc::clone(&accepting)) else { continue };
                service.open.fetch_add(1, Ordering::AcqRel);
                thread::spawn(move || {
                    service.serve(stream);
                    service.open.fetch_sub(1, Ordering::AcqRel);
                });
            }
        });
        service
    }

    fn serve(&self, mut stream: TcpStream) {
        let (pieces, script) = self.script.lock().expect("a script").clone();
        let _ = stream.set_read_timeout(Some(PATIENCE)).and(stream.set_write_timeout(Some(PATIENCE)));
        let mut received = vec![0; PREFACE.len()];
        if stream.read_exact(&mut received).is_ok() {
            let size = script.len().div_ceil(pieces).max(1);
            let _ = script.chunks(size).try_for_each(|piece| stream.write_all(piece));
            let _ = stream.shutdown(Shutdown::Write);
            let _ = stream.read_to_end(&mut received);
        }
        self.received.lock().expect("a list").push(received);
    }
}

/// The first byte says what is asked, the second in how many pieces it is answered; the others are frames.
pub fn target(bytes: &[u8]) {
    let [request, pieces, input @ ..] = bytes else { return };
    let (gateway, service) = (&*GATEWAY, &*SERVICE);
    let script = frames::of_input(input);
    *service.script.lock().expect("a script") = (1 + usize::from(pieces % 8), script.clone());
    let request = REQUESTS[usize::from(*request) % REQUESTS.len()];

    let mut stream = TcpStream::connect(gateway.address).expect("a connection");
    stream.set_read_timeout(Some(PATIENCE)).expect("a socket");
    stream.write_all(request.as_bytes()).expect("a request");
    let mut answer = Vec::new();
    let is_clean = match read_to_end(&mut stream, &mut answer) {
        Ok(()) => true,
        Err(ErrorKind::WouldBlock | ErrorKind::TimedOut) => panic!("no answer: {}", answer.escape_ascii()),
        Err(_) => false,
    };
    check_answer(&answer, request, is_clean);
    drop(stream);
    gateway.expect_idle();

    eventually("the service's connections stay", || service.open.load(Ordering::Acquire) == 0);
    let script = frames::read(&script);
    for received in service.received.lock().expect("a list").drain(..) {
        let frames = received.strip_prefix(PREFACE).expect("a preface");
        frames::check_order(&frames::read(frames), &script, true);
    }
}

fn read_to_end(stream: &mut TcpStream, answer: &mut Vec<u8>) -> Result<(), ErrorKind> {
    stream.read_to_end(answer).map(drop).map_err(|error| error.kind())
}

/// The client has one answer and nothing else, or sees that it has not.
fn check_answer(mut answer: &[u8], request: &str, is_clean: bool) {
    let (to_head, upgrades) = (request.starts_with("HEAD"), request.contains("Upgrade:"));
    for interims in 0.. {
        let length = match HeadScanner::default().scan(answer) {
            HeadScan::Complete(length) => length,
            other => return assert!(!is_clean, "{other:?}: {}", answer.escape_ascii()),
        };
        let (head, rest) = answer.split_at(length);
        let mut storage = HeadStorage::new();
        let parsed = ResponseHead::parse(head, to_head, &mut storage).expect("a good head");
        let (status, framing) = (parsed.status, parsed.framing);
        if status == 101 {
            return assert!(upgrades, "{}", head.escape_ascii());
        }
        if status >= 200 {
            assert!(framing != Framing::Close, "{}", head.escape_ascii());
            let (mut body, mut rest) = (BodyDecoder::new(framing), rest.to_vec());
            let length = rest.len();
            let decoded = body.decode(&mut rest).expect("a good body");
            // One that is broken off has not come whole, or was whole before.
            assert!(!is_clean || (body.is_done() && decoded.consumed == length), "{}", answer.escape_ascii());
            return;
        }
        assert!(interims < INTERIMS_MAX, "{interims} interim answers");
        answer = rest;
    }
}
