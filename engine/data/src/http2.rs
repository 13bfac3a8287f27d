//! HTTP/2 connections of clients (RFC 9113): the crate `h2` over our loop, a task for each stream, which goes through
//! the serve path like any request.
//!
//! Memory of a connection: an inbox block and at most one answer block for each stream, what the windows let a client send
//! ahead (1 MiB), and what is gathered for one send ([`GATHERED_BYTES_MAX`] and a frame).

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use h2::server::SendResponse;
use h2::{Reason, RecvStream};
use http::Request;
use ringway_config::snapshot::Http2;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::buffer::Buffer;
use crate::client::Client;
use crate::clock::us;
use crate::connection::Connection;
use crate::deadline::{Signal, Slot};
use crate::serve::serve_stream;
use crate::stream::{Piece, Stream};

/// What a client of HTTP/2 sends first (RFC 9113 section 3.4).
pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// What the streams of a connection may write before it has to leave.
const GATHERED_BYTES_MAX: usize = 256 * 1024;
/// Capacity that the gathered bytes keep while there are none.
const GATHERED_KEPT_BYTES_MAX: usize = 64 * 1024;
/// Windows: of a stream, and of all streams of a connection together.
const STREAM_WINDOW_BYTES: u32 = 64 * 1024;
const CONNECTION_WINDOW_BYTES: u32 = 1024 * 1024;

/// The connection's bytes between `h2` and the socket.
struct Pipe {
    client: Rc<Client>,
    /// What came before the version was known.
    first: Option<Buffer>,
    gathered: Vec<u8>,
    sent: usize,
    wants_read: bool,
}

impl Pipe {
    /// Sends what was gathered as far as there is room; whether all of it has left.
    fn flush(&mut self) -> io::Result<bool> {
        if self.sent < self.gathered.len() {
            self.sent += self.client.send(self.gathered.get(self.sent..).unwrap_or_default())?;
        }
        if self.sent < self.gathered.len() {
            return Ok(false);
        }
        self.sent = 0;
        self.gathered.clear();
        self.gathered.shrink_to(GATHERED_KEPT_BYTES_MAX);
        Ok(true)
    }
}

/// What `h2` takes for a socket. It wakes nobody: who drives the connection waits for the client, too.
struct Carrier(Rc<RefCell<Pipe>>);

impl AsyncRead for Carrier {
    fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, room: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut pipe = self.0.borrow_mut();
        if let Some(first) = &mut pipe.first {
            let part = first.data().get(..first.len().min(room.remaining())).unwrap_or_default();
            room.put_slice(part);
            let taken = part.len();
            first.consume(taken);
            if first.is_empty() {
                pipe.first = None;
            }
            return Poll::Ready(Ok(()));
        }
        match pipe.client.recv(room.initialize_unfilled())? {
            Some(received) => {
                room.advance(received);
                Poll::Ready(Ok(()))
            }
            None => {
                pipe.wants_read = true;
                Poll::Pending
            }
        }
    }
}

impl AsyncWrite for Carrier {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let mut pipe = self.0.borrow_mut();
        if pipe.gathered.len() > GATHERED_BYTES_MAX && !pipe.flush()? {
            return Poll::Pending;
        }
        pipe.gathered.extend_from_slice(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.0.borrow_mut().flush().map(drop))
    }
}

fn settings(http2: &Http2, head_bytes: usize) -> h2::server::Builder {
    let mut builder = h2::server::Builder::new();
    builder
        .initial_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_concurrent_streams(http2.max_concurrent_streams)
        .max_header_list_size(head_bytes as u32)
        .max_local_error_reset_streams(Some(http2.max_reset_streams))
        .max_pending_accept_reset_streams(http2.max_reset_streams)
        .max_concurrent_reset_streams(http2.max_concurrent_streams as usize);
    builder
}

/// Serves a connection until either side ends it. `first`: what was read of it.
pub(crate) async fn http2(mut conn: Box<Connection>, first: Buffer) {
    let worker = Rc::clone(&conn.worker);
    let signal = Rc::new(Signal::default());
    conn.act_on(Rc::clone(&signal));
    let client = Rc::new(conn.take_client());
    let (gathered, sent, wants_read) = (Vec::new(), 0, false);
    let first = Some(first);
    let pipe = Rc::new(RefCell::new(Pipe { client: Rc::clone(&client), first, gathered, sent, wants_read }));
    let builder = settings(&conn.listener.http2, conn.listener.limits.head_bytes);
    let mut handshake = builder.handshake::<_, Piece>(Carrier(Rc::clone(&pipe)));
    let mut h2 = None;
    let mut reading = pin!(client.readable());
    let mut writing = pin!(client.writable());
    let (mut ends, mut is_late) = (false, false);
    let (mut is_blocked, mut is_idle) = (false, false);
    let idle = us(conn.listener.timeouts.idle);
    let driven = poll_fn(|cx| {
        signal.listen(cx);
        loop {
            if conn.timers.has_fired(Slot::ClientWrite) {
                return Poll::Ready(());
            }
            let mut closed = false;
            match &mut h2 {
                None => match Pin::new(&mut handshake).poll(cx) {
                    Poll::Ready(Ok(connection)) => {
                        h2 = Some(connection);
                        continue;
                    }
                    Poll::Ready(Err(_)) => closed = true,
                    Poll::Pending => closed = conn.timers.has_fired(Slot::ClientRead),
                },
                Some(h2) => {
                    conn.renew();
                    if conn.timers.has_fired(Slot::ClientRead) {
                        if !std::mem::replace(&mut is_late, true) {
                            h2.abrupt_shutdown(Reason::NO_ERROR);
                        }
                    } else if !ends && !conn.may_keep_alive() {
                        ends = true;
                        h2.graceful_shutdown();
                    }
                    match h2.poll_accept(cx) {
                        Poll::Ready(Some(Ok((request, respond)))) => {
                            conn.served += 1;
                            begin(&conn, request, respond);
                            continue;
                        }
                        Poll::Ready(Some(Err(_)) | None) => closed = true,
                        Poll::Pending => {}
                    }
                    // An idle connection has a deadline, a busy one has its streams'.
                    let was_idle = std::mem::replace(&mut is_idle, !h2.has_streams());
                    if is_idle && !was_idle {
                        conn.timers.set(Slot::ClientRead, worker.clock.lately() + idle);
                    } else if was_idle && !is_idle {
                        conn.timers.clear(Slot::ClientRead);
                    }
                }
            }
            let Ok(all_sent) = pipe.borrow_mut().flush() else { return Poll::Ready(()) };
            if all_sent {
                if is_blocked {
                    conn.timers.clear(Slot::ClientWrite);
                    is_blocked = false;
                    continue;
                }
                if closed {
                    return Poll::Ready(());
                }
            } else {
                if !std::mem::replace(&mut is_blocked, true) {
                    let write = us(conn.listener.timeouts.write);
                    conn.timers.set(Slot::ClientWrite, worker.clock.lately() + write);
                }
                if writing.as_mut().poll(cx).is_ready() {
                    writing.set(client.writable());
                    conn.timers.set(Slot::ClientWrite, worker.clock.lately() + us(conn.listener.timeouts.write));
                    continue;
                }
            }
            if pipe.borrow().wants_read && reading.as_mut().poll(cx).is_ready() {
                reading.set(client.readable());
                pipe.borrow_mut().wants_read = false;
                continue;
            }
            return Poll::Pending;
        }
    });
    let mut driven = pin!(driven);
    let ended = poll_fn(|cx| match catch_unwind(AssertUnwindSafe(|| driven.as_mut().poll(cx))) {
        Ok(poll) => poll.map(Ok),
        Err(_) => Poll::Ready(Err(())),
    });
    if ended.await.is_err() {
        worker.cell().panics.add(1);
        tracing::error!(worker = worker.id, "an HTTP/2 connection's task panicked; the connection was closed");
    }
}

/// Has a stream served on a task of its own.
fn begin(conn: &Connection, request: Request<RecvStream>, respond: SendResponse<Piece>) {
    let (parts, mut body) = request.into_parts();
    let has_length = parts.headers.contains_key(http::header::CONTENT_LENGTH);
    let mut first = None;
    let mut ended = body.is_end_stream();
    if !ended && !has_length {
        // Some clients send the end in an empty frame of its own.
        match body.poll_data(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(None) => ended = true,
            Poll::Ready(Some(Ok(data))) => first = Some(data),
            Poll::Ready(Some(Err(_))) => return,
            Poll::Pending => {}
        }
    }
    let chunked = !ended && !has_length;
    let mut inbox = conn.worker.take_inbox();
    let mut head = conn.worker.take_head();
    write_head(&parts, chunked, &mut head);
    inbox.make_room(head.len());
    let fits = inbox.append(&head);
    let length = head.len();
    conn.worker.give_head(head);
    let stream = Stream::new(body, first.unwrap_or_default(), respond, chunked);
    let Some(serving) = fits.then(|| conn.for_stream(Rc::clone(&stream))) else {
        return stream.reset(Reason::INTERNAL_ERROR);
    };
    let worker = Rc::clone(&conn.worker);
    ringway_io::spawn(async move {
        let mut serving = pin!(serve_stream(serving, inbox, length));
        let served = poll_fn(|cx| {
            stream.poll_reset(cx);
            match catch_unwind(AssertUnwindSafe(|| serving.as_mut().poll(cx))) {
                Ok(poll) => poll.map(Ok),
                Err(_) => Poll::Ready(Err(())),
            }
        });
        if served.await.is_err() {
            worker.cell().panics.add(1);
            tracing::error!(worker = worker.id, "a stream's task panicked; the stream was reset");
            stream.reset(Reason::INTERNAL_ERROR);
        }
    });
}

/// Writes a request's head as HTTP/1.1, to be judged like any other. What contradicts itself is written as it is, and is
/// refused there: a `Host` that is not `:authority`, lengths that differ, `Transfer-Encoding`.
fn write_head(parts: &http::request::Parts, chunked: bool, out: &mut Vec<u8>) {
    let mut put = |part: &[&[u8]]| part.iter().for_each(|bytes| out.extend_from_slice(bytes));
    let authority = parts.uri.authority().map(http::uri::Authority::as_str);
    let target = match parts.uri.path_and_query() {
        Some(target) if parts.method != http::Method::CONNECT => target.as_str(),
        _ => authority.unwrap_or("*"),
    };
    put(&[parts.method.as_str().as_bytes(), b" ", target.as_bytes(), b" HTTP/1.1\r\n"]);
    if let Some(authority) = authority {
        put(&[b"Host: ", authority.as_bytes(), b"\r\n"]);
    }
    let mut cookies = 0;
    for (name, value) in &parts.headers {
        let is_same_host = |authority: &str| value.as_bytes().eq_ignore_ascii_case(authority.as_bytes());
        if *name == http::header::COOKIE {
            cookies += 1;
        } else if *name != http::header::HOST || !authority.is_some_and(is_same_host) {
            put(&[name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"]);
        }
    }
    // RFC 9113 section 8.2.3: crumbs are joined.
    if cookies > 0 {
        put(&[b"cookie: "]);
        for (index, crumb) in parts.headers.get_all(http::header::COOKIE).iter().enumerate() {
            put(&[if index > 0 { b"; " } else { b"" }, crumb.as_bytes()]);
        }
        put(&[b"\r\n"]);
    }
    if chunked {
        put(&[b"Transfer-Encoding: chunked\r\n"]);
    }
    put(&[b"\r\n"]);
}
