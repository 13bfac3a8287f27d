//! Clients of HTTP/2 that send whatever they like: the adapter between `h2` and the loop, its meters, and streams as the serve
//! path sees them.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::LazyLock;
use std::thread;
use std::time::{Duration, Instant};

use crate::frames::{self, ACK, END_HEADERS, END_STREAM, Frame, GOAWAY, HEADERS, PING, PREFACE, RST_STREAM, SETTINGS};
use crate::gateway::{Gateway, PATIENCE};

pub const DICTIONARY: &[&str] = &[
    // SETTINGS: initial window 0, maximum frame size; PING; WINDOW_UPDATE of the connection and of a stream.
    "\x04\0\0\x06\0\x04\0\0\0\0",
    "\x04\0\0\x06\0\x05\0\0@\0",
    "\x04\0\0\0",
    "\x04\x01\0\0",
    "\x06\0\0\x0812345678",
    "\x08\0\0\x04\0\x01\0\0",
    "\x08\0\x01\x04\0\x01\0\0",
    "\x08\0\x03\x04\x7f\x7f\x7f\x7f",
    // RST_STREAM, PRIORITY, GOAWAY, PRIORITY_UPDATE.
    "\x03\0\x01\x04\0\0\0\x08",
    "\x02\0\x01\x05\0\0\0\0\x10",
    "\x07\0\0\x08\0\0\0\0\0\0\0\0",
    "\x10\0\0\x07\0\0\0\x01u=1",
    // Requests: GET / on stream 1 and 3, of a service, POST without an end.
    "\x01\x05\x012\0\x07:method\x03GET\0\x07:scheme\x04http\0\x05:path\x01/\0\n:authority\x01a",
    "\x01\x05\x032\0\x07:method\x03GET\0\x07:scheme\x04http\0\x05:path\x01/\0\n:authority\x01a",
    "\x01\x05\x053\0\x07:method\x03GET\0\x07:scheme\x04http\0\x05:path\x02/s\0\n:authority\x01a",
    "\x01\x04\x013\0\x07:method\x04POST\0\x07:scheme\x04http\0\x05:path\x01/\0\n:authority\x01a",
    "\x01\x04\x014\0\x07:method\x04POST\0\x07:scheme\x04http\0\x05:path\x02/s\0\n:authority\x01a",
    // An extended CONNECT, trailers, a CONTINUATION, DATA of several sizes.
    "\x01\x04\x01M\0\x07:method\x07CONNECT\0\x09:protocol\x09websocket\0\x07:scheme\x04http\0\x05:path\x02/s\0\n:authority\x01a",
    "\x01\x05\x01\x07\0\x03x-a\x011",
    "\x09\x04\x01\x07\0\x03x-a\x011",
    "\0\0\x01\x05hello",
    "\0\x01\x01\0",
    " \0\x01\x10################",
    " \x01\x01\x7f",
    "\0\x0e:content-length\x015",
    "\0\x06cookie\x03a=1",
];

/// Of the first byte of an input: no preface; gone without reading; its half closed before anything was read.
const BARE: u8 = 1;
const GONE: u8 = 2;
const HALF_CLOSED: u8 = 4;

/// What the last PING says.
const BARRIER: &[u8; 8] = b"ringway!";
/// How long what hangs (an upload without an end, a window that stays shut) is waited for.
const HANGS: Duration = Duration::from_millis(20);

static GATEWAY: LazyLock<Gateway> = LazyLock::new(|| {
    let text = "x".repeat(40_000);
    let http2 = "http2: { max_concurrent_streams: 20, max_reset_streams: 10 }";
    let more = format!(
        "services: [{{ name: app, endpoints: \"{}\", pool: {{ idle: 0 }} }}]\n\
         routes:\n\
         - {{ name: s, match: {{ prefix: /s }}, service: app, limits: {{ body: 64KiB }} }}\n\
         - {{ name: all, match: {{ prefix: / }}, respond: {{ text: \"{text}\" }} }}\n",
        service()
    );
    Gateway::start(http2, &more)
});

/// A service of HTTP/1.1 that answers the head of a request, reads what else comes, and ends.
fn service() -> std::net::SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address");
    let body = "y".repeat(50_000);
    thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { continue };
            let body = body.clone();
            thread::spawn(move || {
                let (mut head, mut byte) = (Vec::new(), [0]);
                while !head.ends_with(b"\r\n\r\n") && matches!(stream.read(&mut byte), Ok(1)) {
                    head.push(byte[0]);
                }
                let answer = match head.windows(10).any(|part| part.eq_ignore_ascii_case(b"\r\nupgrade:")) {
                    true => "HTTP/1.1 426 Upgrade Required\r\nContent-Length: 0\r\n\r\n".to_owned(),
                    false => format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len()),
                };
                let _ = stream.write_all(answer.as_bytes());
                let _ = stream.shutdown(Shutdown::Write);
                let _ = stream.read_to_end(&mut Vec::new());
            });
        }
    });
    address
}

/// The first byte says how the client behaves, the second in how many pieces it sends; the others are frames.
pub fn target(bytes: &[u8]) {
    let [mode, pieces, input @ ..] = bytes else { return };
    let gateway = &*GATEWAY;
    let mut sent = if mode & BARE == 0 { PREFACE.to_vec() } else { Vec::new() };
    let start = sent.len();
    sent.extend_from_slice(&frames::of_input(input));
    sent.extend_from_slice(&[0, 0, 8, PING, 0, 0, 0, 0, 0]);
    sent.extend_from_slice(BARRIER);

    let mut stream = TcpStream::connect(gateway.address).expect("a connection");
    stream.set_nodelay(true).expect("a socket");
    stream.set_write_timeout(Some(PATIENCE)).expect("a socket");
    let size = sent.len().div_ceil(1 + usize::from(pieces % 8)).max(1);
    // An error is the gateway's end of it.
    let _ = sent.chunks(size).try_for_each(|piece| stream.write_all(piece));
    if mode & GONE == 0 {
        let (received, is_through) = receive(&mut stream, gateway, mode & HALF_CLOSED != 0);
        if mode & BARE == 0 {
            let (answers, requests) = (frames::read(&received), frames::read(&sent[start..]));
            frames::check_order(&answers, &requests, false);
            // Those of the service may take longer.
            if is_through && !sent.windows(2).any(|part| part == b"/s") {
                check_answered(&answers, &requests);
            }
        }
    }
    drop(stream);
    gateway.expect_idle();
}

/// Everything that comes, and whether all that was sent has been read, and time was left for the answers.
fn receive(stream: &mut TcpStream, gateway: &Gateway, half_closed: bool) -> (Vec<u8>, bool) {
    let (mut received, mut room) = (Vec::new(), vec![0; 64 * 1024]);
    let mut is_through = false;
    let mut open = !half_closed;
    if half_closed {
        let _ = stream.shutdown(Shutdown::Write);
    }
    let started = Instant::now();
    loop {
        let patience = if open { Duration::from_millis(1) } else { PATIENCE };
        stream.set_read_timeout(Some(patience)).expect("a socket");
        match stream.read(&mut room) {
            Ok(0) => return (received, is_through),
            Ok(count) => received.extend_from_slice(&room[..count]),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                assert!(open, "the connection does not end");
                is_through =
                    received.windows(17).any(|end| end[3] == PING && end[4] & ACK != 0 && end[9..] == *BARRIER);
                if is_through && gateway.cell().requests.get() == 0 || started.elapsed() > HANGS {
                    open = false;
                    let _ = stream.shutdown(Shutdown::Write);
                }
            }
            // A reset; what it has overtaken is lost.
            Err(_) => return (received, false),
        }
    }
}

/// Where the connection was not ended for what the client did, every request has an answer or a reset.
fn check_answered(answers: &[Frame<'_>], requests: &[Frame<'_>]) {
    let is_ended = answers.iter().any(|frame| frame.kind == GOAWAY && frame.error() != 0);
    let gives_up = requests.iter().any(|frame| frame.kind == GOAWAY);
    if is_ended || gives_up || requests.first().is_none_or(|first| first.kind != SETTINGS) {
        return;
    }
    let mut last = 0;
    for request in requests.iter().filter(|frame| frame.kind == HEADERS) {
        if request.stream <= last {
            continue;
        }
        last = request.stream;
        let of_stream = |kinds: &[u8], frames: &[Frame<'_>]| {
            frames.iter().any(|frame| frame.stream == request.stream && kinds.contains(&frame.kind))
        };
        let is_whole = request.flags & (END_HEADERS | END_STREAM) == END_HEADERS | END_STREAM;
        if is_whole && !of_stream(&[RST_STREAM], requests) {
            assert!(of_stream(&[HEADERS, RST_STREAM], answers), "no answer on stream {}", request.stream);
        }
    }
}
