//! HTTP/2 connections of clients (RFC 9113): the crate `h2` over our loop, a task for each stream, which goes through
//! the serve path like any request.
//!
//! Memory of a connection: for each stream a block for its request (a small one where it has no body) and at most one for its answer,
//! what the windows let a client send
//! ahead (1 MiB), and what is gathered for one send ([`Pipe`]).

use std::cell::RefCell;
use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use h2::server::SendResponse;
use h2::{Reason, RecvStream};
use http::Request;
use ringway_config::snapshot::Http2;
use ringway_core::http::websocket::{KEY_CHARS, new_key};
use ringway_core::http2_meter::Excess;
use ringway_core::stats::Http2Abuse;

use crate::buffer::Buffer;
use crate::client::Client;
use crate::clock::us;
use crate::connection::Connection;
use crate::deadline::{Signal, Slot};
use crate::io::linger;
use crate::pipe::{Carrier, Pipe};
use crate::places::Panicked;
use crate::request::WEBSOCKET;
use crate::stream::{Piece, Shown, Stream};
use crate::tunnel::tunnel;

/// What a client of HTTP/2 sends first (RFC 9113 section 3.4).
pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Windows: of a stream, and of all streams of a connection together.
const STREAM_WINDOW_BYTES: u32 = 64 * 1024;
const CONNECTION_WINDOW_BYTES: u32 = 1024 * 1024;

fn settings(http2: &Http2, head_bytes: usize) -> h2::server::Builder {
    let mut builder = h2::server::Builder::new();
    builder
        .initial_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_concurrent_streams(http2.max_concurrent_streams)
        .max_header_list_size(head_bytes as u32)
        .max_local_error_reset_streams(Some(http2.max_reset_streams))
        .max_pending_accept_reset_streams(http2.max_reset_streams)
        .max_concurrent_reset_streams(http2.max_concurrent_streams as usize)
        .enable_connect_protocol();
    builder
}

/// Serves a connection until either side ends it. `first`: what was read of it.
pub(crate) async fn http2(mut conn: Box<Connection>, first: Buffer) {
    let worker = Rc::clone(&conn.worker);
    let signal = Rc::new(Signal::default());
    conn.act_on(Rc::clone(&signal));
    let client = Rc::new(conn.take_client());
    let mut session = Session::new(conn, Rc::clone(&client), first);
    worker.cell().http2_connections.add(1);
    let ended = {
        let mut driven = pin!(session.drive(&client, &signal));
        poll_fn(|cx| match catch_unwind(AssertUnwindSafe(|| driven.as_mut().poll(cx))) {
            Ok(poll) => poll.map(Ok),
            Err(_) => Poll::Ready(Err(())),
        })
        .await
    };
    worker.cell().http2_connections.sub(1);
    if ended.is_err() {
        worker.cell().panics.add(1);
        tracing::error!(worker = worker.id, "an HTTP/2 connection's task panicked; the connection was closed");
        return;
    }
    let is_stuck = session.conn.timers.has_fired(Slot::ClientWrite);
    let mut conn = session.conn;
    drop((session.protocol, session.pipe));
    if let (false, Ok(client)) = (is_stuck, Rc::try_unwrap(client)) {
        // What the client still sends must not make the kernel throw away what it has not read yet.
        conn.give_client(client);
        linger(&conn, &mut worker.take_inbox()).await;
    }
}

/// One connection.
struct Session {
    conn: Box<Connection>,
    pipe: Rc<RefCell<Pipe>>,
    protocol: Protocol,
    ended: Ended,
    /// There are no streams.
    is_idle: bool,
    /// There is more to send than the client takes.
    is_blocked: bool,
}

enum Protocol {
    Handshake(Box<h2::server::Handshake<Carrier, Piece>>),
    Open(Box<h2::server::Connection<Carrier, Piece>>),
    /// What is gathered still has to leave.
    Closed,
}

/// How far the end of a connection is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ended {
    Not,
    /// With the streams that are open.
    Gracefully,
    AtOnce,
}

impl Session {
    fn new(conn: Box<Connection>, client: Rc<Client>, first: Buffer) -> Self {
        let http2 = &conn.listener.http2;
        let pipe = Pipe::new(&conn.worker, client, first, http2.max_reset_streams as u32);
        let pipe = Rc::new(RefCell::new(pipe));
        let handshake = settings(http2, conn.listener.limits.head_bytes).handshake(Carrier(Rc::clone(&pipe)));
        let protocol = Protocol::Handshake(Box::new(handshake));
        Self { conn, pipe, protocol, ended: Ended::Not, is_idle: false, is_blocked: false }
    }

    /// Until the connection has ended.
    async fn drive(&mut self, client: &Client, signal: &Signal) {
        let mut reading = pin!(client.readable());
        let mut writing = pin!(client.writable());
        poll_fn(|cx| {
            signal.listen(cx);
            while self.advance(cx) {
                if self.is_blocked && writing.as_mut().poll(cx).is_ready() {
                    writing.set(client.writable());
                    self.may_write();
                } else if self.pipe.borrow().wants_read && reading.as_mut().poll(cx).is_ready() {
                    reading.set(client.readable());
                    self.pipe.borrow_mut().wants_read = false;
                } else {
                    if self.pipe.borrow_mut().end_turn() {
                        cx.waker().wake_by_ref();
                    }
                    return Poll::Pending;
                }
            }
            Poll::Ready(())
        })
        .await;
    }

    /// Moves on as far as it can; whether the connection goes on.
    fn advance(&mut self, cx: &mut Context<'_>) -> bool {
        loop {
            if self.conn.timers.has_fired(Slot::ClientWrite) {
                return false;
            }
            self.poll_protocol(cx);
            let mut pipe = self.pipe.borrow_mut();
            let Ok(all_sent) = pipe.flush() else { return false };
            let was_blocked = self.is_blocked | (all_sent && std::mem::take(&mut pipe.wants_room));
            drop(pipe);
            match (all_sent, was_blocked) {
                (true, false) => return !matches!(self.protocol, Protocol::Closed),
                (true, true) => {
                    self.is_blocked = false;
                    self.conn.timers.clear(Slot::ClientWrite);
                    // What has waited for room may go on.
                }
                (false, true) => return true,
                (false, false) => {
                    self.is_blocked = true;
                    self.may_write();
                    return true;
                }
            }
        }
    }

    /// The client has taken something, or is to do so from now on.
    fn may_write(&self) {
        let write = us(self.conn.listener.timeouts.write);
        self.conn.timers.set(Slot::ClientWrite, self.conn.worker.clock.lately() + write);
    }

    fn poll_protocol(&mut self, cx: &mut Context<'_>) {
        loop {
            self.judge();
            match &mut self.protocol {
                Protocol::Handshake(handshake) => match Pin::new(&mut **handshake).poll(cx) {
                    Poll::Ready(Ok(connection)) => self.protocol = Protocol::Open(Box::new(connection)),
                    Poll::Ready(Err(error)) => return self.close(Some(&error)),
                    Poll::Pending if self.conn.timers.has_fired(Slot::ClientRead) => return self.close(None),
                    Poll::Pending => return,
                },
                Protocol::Open(open) => match open.poll_accept(cx) {
                    Poll::Ready(Some(Ok((request, respond)))) => {
                        self.conn.served += 1;
                        let shown = self.pipe.borrow().shown();
                        begin(&self.conn, shown, request, respond);
                    }
                    Poll::Ready(Some(Err(error))) => return self.close(Some(&error)),
                    Poll::Ready(None) => return self.close(None),
                    Poll::Pending if self.pipe.borrow().excess.is_some() && self.ended != Ended::AtOnce => {}
                    Poll::Pending => return self.watch_idleness(),
                },
                Protocol::Closed => return,
            }
        }
    }

    /// Whether the connection has to end, and how.
    fn judge(&mut self) {
        self.conn.renew();
        let Protocol::Open(open) = &mut self.protocol else { return };
        if self.ended == Ended::AtOnce {
            return;
        }
        let excess = self.pipe.borrow().excess;
        if let Some(excess) = excess {
            self.ended = Ended::AtOnce;
            self.conn.worker.cell().record_abuse(match excess {
                Excess::Resets => Http2Abuse::Resets,
                Excess::ControlFrames => Http2Abuse::ControlFrames,
            });
            open.abrupt_shutdown(Reason::ENHANCE_YOUR_CALM);
        } else if self.conn.timers.has_fired(Slot::ClientRead) {
            self.ended = Ended::AtOnce;
            open.abrupt_shutdown(Reason::NO_ERROR);
        } else if self.ended == Ended::Not && !self.conn.may_keep_alive() {
            self.ended = Ended::Gracefully;
            open.graceful_shutdown();
        }
    }

    /// An idle connection has a deadline, a busy one has its streams'.
    fn watch_idleness(&mut self) {
        let Protocol::Open(open) = &self.protocol else { return };
        let was_idle = std::mem::replace(&mut self.is_idle, !open.has_streams());
        if self.is_idle && !was_idle {
            let idle = us(self.conn.listener.timeouts.idle);
            self.conn.timers.set(Slot::ClientRead, self.conn.worker.clock.lately() + idle);
        } else if was_idle && !self.is_idle {
            self.conn.timers.clear(Slot::ClientRead);
        }
    }

    fn close(&mut self, error: Option<&h2::Error>) {
        self.protocol = Protocol::Closed;
        let Some(error) = error.filter(|error| error.is_library() && error.is_go_away()) else { return };
        let kind = match error.reason() {
            Some(Reason::ENHANCE_YOUR_CALM) => Http2Abuse::Flood,
            _ => Http2Abuse::Protocol,
        };
        if self.ended != Ended::AtOnce {
            self.conn.worker.cell().record_abuse(kind);
        }
    }
}

/// Has a stream served on a task of its own.
fn begin(conn: &Connection, shown: Rc<Shown>, request: Request<RecvStream>, respond: SendResponse<Piece>) {
    let (mut parts, mut body) = request.into_parts();
    let upgrade = parts
        .extensions
        .remove::<h2::ext::Protocol>()
        .map(|protocol| Upgrade::new(protocol, conn.worker.random_wide()));
    let has_length = parts.headers.contains_key(http::header::CONTENT_LENGTH);
    let mut first = None;
    let mut ended = body.is_end_stream();
    if !ended && !has_length {
        // Some clients send the end in an empty frame of its own.
        match body.poll_data(&mut Context::from_waker(Waker::noop())) {
            // Trailers may follow.
            Poll::Ready(None) => ended = body.is_end_stream(),
            Poll::Ready(Some(Ok(data))) => first = Some(data),
            Poll::Ready(Some(Err(_))) => return,
            Poll::Pending => {}
        }
    }
    let chunked = !ended && !has_length && upgrade.is_none();
    let worker = &conn.worker;
    let mut inbox = if ended { worker.take_request() } else { worker.take_inbox() };
    let mut head = conn.worker.take_head();
    write_head(&parts, upgrade.as_ref(), chunked, &mut head);
    inbox.make_room(head.len());
    let fits = inbox.append(&head);
    let length = head.len();
    conn.worker.give_head(head);
    let stream = Stream::new(body, first.unwrap_or_default(), respond, chunked, shown);
    if upgrade.is_some_and(|upgrade| !upgrade.is_well_formed()) {
        return stream.reset(Reason::PROTOCOL_ERROR);
    }
    let Some(serving) = fits.then(|| conn.for_stream(Rc::clone(&stream))) else {
        return stream.reset(Reason::INTERNAL_ERROR);
    };
    let worker = Rc::clone(&conn.worker);
    ringway_io::spawn(async move {
        let mut place = worker.take_place();
        let served = {
            let mut serving = pin!(place.serve_stream(serving, inbox, length));
            poll_fn(|cx| {
                stream.poll_reset(cx);
                serving.as_mut().poll(cx)
            })
            .await
        };
        match served {
            Ok(ended) => {
                worker.give_place(place);
                if let Some((conn, opened)) = ended.and_then(|conn| conn.tunnel.take().map(|opened| (conn, opened))) {
                    let mut tunnel = Box::pin(tunnel(conn, opened));
                    poll_fn(|cx| {
                        stream.poll_reset(cx);
                        tunnel.as_mut().poll(cx)
                    })
                    .await;
                }
            }
            Err(Panicked) => {
                worker.cell().panics.add(1);
                tracing::error!(worker = worker.id, "a stream's task panicked; the stream was reset");
                stream.reset(Reason::INTERNAL_ERROR);
            }
        }
    });
}

/// An extended CONNECT (RFC 8441), which asks of a service of HTTP/1.1 to change to a protocol.
struct Upgrade {
    protocol: h2::ext::Protocol,
    key: [u8; KEY_CHARS],
}

impl Upgrade {
    fn new(protocol: h2::ext::Protocol, random: u128) -> Self {
        Self { protocol, key: new_key(random) }
    }

    /// `h2` lets any text pass.
    fn is_well_formed(&self) -> bool {
        let name = self.protocol.as_str().as_bytes();
        !name.is_empty() && name.iter().all(|byte| byte.is_ascii_alphanumeric() || b"-._+/".contains(byte))
    }

    fn is_websocket(&self) -> bool {
        self.protocol.as_str().as_bytes().eq_ignore_ascii_case(WEBSOCKET)
    }
}

/// Writes a request's head as HTTP/1.1, to be judged like any other. What contradicts itself is written as it is, and is
/// refused there: a `Host` that is not `:authority`, lengths that differ, `Transfer-Encoding`.
fn write_head(parts: &http::request::Parts, upgrade: Option<&Upgrade>, chunked: bool, out: &mut Vec<u8>) {
    let mut put = |part: &[&[u8]]| part.iter().for_each(|bytes| out.extend_from_slice(bytes));
    let authority = parts.uri.authority().map(http::uri::Authority::as_str);
    let target = match parts.uri.path_and_query() {
        Some(target) if parts.method != http::Method::CONNECT || upgrade.is_some() => target.as_str(),
        _ => authority.unwrap_or("*"),
    };
    let method = if upgrade.is_some() { "GET" } else { parts.method.as_str() };
    put(&[method.as_bytes(), b" ", target.as_bytes(), b" HTTP/1.1\r\n"]);
    if let Some(authority) = authority {
        put(&[b"Host: ", authority.as_bytes(), b"\r\n"]);
    }
    let mut cookies = 0;
    for (name, value) in &parts.headers {
        let is_same_host = |authority: &str| value.as_bytes().eq_ignore_ascii_case(authority.as_bytes());
        if *name == http::header::COOKIE {
            cookies += 1;
        } else if upgrade.is_some() && *name == http::header::SEC_WEBSOCKET_KEY {
            // Of no meaning here (RFC 8441 section 5): the service gets one of the gateway's.
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
    if let Some(upgrade) = upgrade.filter(|upgrade| upgrade.is_well_formed()) {
        put(&[b"Connection: upgrade\r\nUpgrade: ", upgrade.protocol.as_str().as_bytes(), b"\r\n"]);
        if upgrade.is_websocket() {
            put(&[b"Sec-WebSocket-Key: ", &upgrade.key, b"\r\n"]);
        }
    }
    if chunked {
        put(&[b"Transfer-Encoding: chunked\r\n"]);
    }
    put(&[b"\r\n"]);
}
