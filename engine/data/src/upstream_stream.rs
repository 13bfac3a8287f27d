//! A stream to a service that speaks HTTP/2, as the serve path sees it: a connection that takes one request and gives one
//! answer, both in the form of HTTP/1.1. The form is what keeps one strict reading of answers; no byte of the service's
//! frames anything in it.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};

use bytes::Bytes;
use h2::client::ResponseFuture;
use h2::{Reason, RecvStream, SendStream};
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderName, HeaderValue, SEC_WEBSOCKET_ACCEPT};
use http::{HeaderMap, Response, StatusCode};
use ringway_core::failure::Failure;
use ringway_core::grpc::is_grpc;
use ringway_core::http::websocket::ACCEPT_CHARS;
use ringway_core::http::{
    BodyDecoder, CHUNK_HEAD_MAX, Framing, HEADERS_MAX, HeadStorage, Name, RequestHead, write_chunk_head,
};

use crate::buffer::Buffer;
use crate::deadline::Signal;
use crate::http2_upstream::Trunk;
use crate::outbound::Broken;
use crate::stream::{Piece, Unsent};
use crate::upstream_request::{Websocket, broken, fields, request, websocket};
use crate::worker::Worker;

/// Pieces of a request's body that may wait for the service's window: a block as the serve path fills it, and what does not
/// fit into another block with its framing.
const UNSENT_MAX: usize = 2;
/// Room that a piece of a chunked body needs besides its data.
const CHUNK_FRAMING: usize = CHUNK_HEAD_MAX + 2;
/// What is framed beside where there is less room than that.
const ASIDE_BYTES_MAX: usize = 1024;

/// Why a stream has no answer, or not all of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ended {
    /// The service has not looked at the request and will not (RFC 9113 section 8.7): it may be sent again, whatever it is.
    Refused,
    /// The connection was lost.
    Lost,
    /// The service has reset the stream.
    Reset,
    /// What the service sent is no answer.
    Malformed,
    /// The service does not take an extended CONNECT: nothing was sent.
    NoTunnels,
}

impl From<&h2::Error> for Ended {
    fn from(error: &h2::Error) -> Self {
        let is_refused = error.is_go_away() || error.reason() == Some(Reason::REFUSED_STREAM);
        match (error.is_remote(), error.is_io()) {
            (true, _) if is_refused => Self::Refused,
            (true, _) => Self::Reset,
            (_, true) => Self::Lost,
            _ => Self::Malformed,
        }
    }
}

/// How far the request is.
enum Asked {
    Nothing,
    Head(SendStream<Piece>, BodyDecoder),
    /// An extended CONNECT, whose bytes have no end but the stream's; whether that was sent.
    Tunnel(SendStream<Piece>, bool),
    All,
}

/// What a request's answer can be.
#[derive(Clone, Copy)]
enum Expected {
    Message,
    /// A head alone, to HEAD.
    Head,
    /// A tunnel, where it is 2xx. What proves to the serve path that it is what was asked for.
    Tunnel([u8; ACCEPT_CHARS]),
}

/// How far the answer is.
enum Told {
    Nothing,
    Awaited(ResponseFuture, Expected),
    Body(RecvStream),
    Trailers(RecvStream),
    All,
    Ended(Ended),
}

/// The answer in the form of HTTP/1.1.
struct Answer {
    told: Told,
    /// The body has no length, or may have trailers: it is told in chunks.
    chunked: bool,
    /// What is still to come of a body with a length.
    left: u64,
    /// Heads and trailers on their way to the serve path, and how much of them has gone.
    text: Vec<u8>,
    gone: usize,
    data: Bytes,
    /// Bytes that the serve path took with the last read: their window is given back when it asks for more, since they have
    /// gone on to the client then.
    taken: usize,
}

pub(crate) struct ServiceStream {
    pub(crate) signal: Rc<Signal>,
    trunk: Rc<Trunk>,
    worker: Rc<Worker>,
    /// When the request was sent, on the core's clock.
    since: Cell<u64>,
    asked: RefCell<Asked>,
    /// The head waits for the service to say whether it takes an extended CONNECT.
    awaits_settings: Cell<bool>,
    answer: RefCell<Answer>,
    unsent: Rc<Unsent>,
}

impl ServiceStream {
    /// Takes a place on the connection, which need not stand yet.
    pub(crate) fn new(trunk: Rc<Trunk>, worker: &Rc<Worker>) -> Rc<Self> {
        let signal = Rc::new(Signal::default());
        trunk.enter(&signal);
        let text = worker.take_head();
        let answer =
            Answer { told: Told::Nothing, chunked: false, left: 0, text, gone: 0, data: Bytes::new(), taken: 0 };
        Rc::new(Self {
            unsent: Unsent::new(&signal, Rc::default()),
            signal,
            trunk,
            worker: Rc::clone(worker),
            since: Cell::new(u64::MAX),
            asked: RefCell::new(Asked::Nothing),
            awaits_settings: Cell::new(false),
            answer: RefCell::new(answer),
        })
    }

    /// Until the connection stands, or will not.
    pub(crate) async fn connected(&self) -> Result<(), Failure> {
        poll_fn(|cx| {
            if self.signal.reads_ended() {
                return Poll::Ready(Err(Failure::ConnectTimeout));
            }
            self.signal.listen(cx);
            self.trunk.connected()
        })
        .await
    }

    /// The answer did not come in time. Where nothing at all has come since the request was sent, the connection is to have
    /// no more.
    pub(crate) fn suspect(&self) {
        self.trunk.suspect(self.since.get());
    }

    /// What it means that no answer came.
    pub(crate) fn broken(&self) -> Broken {
        match self.answer.borrow().told {
            Told::Ended(Ended::Refused) => {
                self.trunk.refuses();
                Broken::Refused
            }
            Told::Ended(Ended::Malformed) => Failure::BadAnswer.into(),
            Told::Ended(Ended::Reset) => Failure::ConnectionBroken.into(),
            Told::Ended(Ended::NoTunnels) => Failure::UnsupportedUpgrade.into(),
            _ => Broken::Unanswered,
        }
    }

    /// What was sent, as far as it was taken without waiting, maybe nothing. A head comes whole.
    pub(crate) fn send(&self, bytes: &[u8]) -> io::Result<usize> {
        if self.signal.writes_ended() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        let mut asked = self.asked.borrow_mut();
        let mut sent = 0;
        if matches!(*asked, Asked::Nothing) {
            let head = memchr::memmem::find(bytes, b"\r\n\r\n").ok_or_else(|| broken("no head"))? + 4;
            let Some(begun) = self.ask(bytes.get(..head).unwrap_or_default())? else { return Ok(0) };
            (*asked, sent) = (begun, head);
        }
        while sent < bytes.len() && self.unsent.count() < UNSENT_MAX {
            let rest = bytes.get(sent..).unwrap_or_default();
            match &mut *asked {
                Asked::Head(stream, body) => {
                    sent += self.send_body(stream, body, rest)?;
                    if body.is_done() {
                        *asked = Asked::All;
                    }
                }
                Asked::Tunnel(stream, _) => {
                    let block = self.block_of(rest);
                    sent += block.len();
                    stream.send_data(Piece::new(block, &self.unsent), false).map_err(broken)?;
                }
                Asked::Nothing | Asked::All => return Err(broken("more than a request")),
            }
        }
        Ok(sent)
    }

    /// Until there is room for [`ServiceStream::send`], or an end of it.
    pub(crate) fn poll_writable(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.signal.listen(cx);
        let may_begin = !self.awaits_settings.get() || self.trunk.takes_tunnels(&self.signal).is_ready();
        let has_room = self.unsent.count() < UNSENT_MAX && may_begin;
        if has_room || self.signal.writes_ended() { Poll::Ready(()) } else { Poll::Pending }
    }

    /// Begins the stream; nothing where the service has to say first whether it may.
    fn ask(&self, head: &[u8]) -> io::Result<Option<Asked>> {
        let mut storage = HeadStorage::new();
        let parsed = RequestHead::parse(head, HEADERS_MAX, &mut storage).map_err(broken)?;
        let request = request(head, &parsed, self.trunk.scheme())?;
        let (request, expected, framing) = if parsed.has(Name::Upgrade) {
            let takes = self.trunk.takes_tunnels(&self.signal);
            self.awaits_settings.set(takes.is_pending());
            match takes {
                Poll::Pending => return Ok(None),
                Poll::Ready(false) => {
                    self.answer.borrow_mut().told = Told::Ended(Ended::NoTunnels);
                    return Err(broken("the service takes no extended CONNECT"));
                }
                Poll::Ready(true) => {}
            }
            let Websocket { request, accept } = websocket(request, &parsed)?;
            (request, Expected::Tunnel(accept), None)
        } else {
            let expected = if parsed.method == "HEAD" { Expected::Head } else { Expected::Message };
            (request, expected, Some(parsed.framing))
        };
        self.since.set(self.worker.clock.lately());
        let mut answer = self.answer.borrow_mut();
        match self.trunk.send(request, framing == Some(Framing::None)) {
            Ok((awaited, stream)) => {
                answer.told = Told::Awaited(awaited, expected);
                Ok(Some(match framing {
                    None => Asked::Tunnel(stream, false),
                    Some(Framing::None) => Asked::All,
                    Some(framing) => Asked::Head(stream, BodyDecoder::new(framing)),
                }))
            }
            Err(ended) => {
                answer.told = Told::Ended(ended);
                Err(broken("the connection takes no more requests"))
            }
        }
    }

    /// As much of it as fits into a block.
    fn block_of(&self, bytes: &[u8]) -> Buffer {
        let mut block = self.worker.take_answer();
        let room = block.room();
        let taken = room.len().min(bytes.len());
        if let (Some(room), Some(bytes)) = (room.get_mut(..taken), bytes.get(..taken)) {
            room.copy_from_slice(bytes);
        }
        block.received(taken);
        block
    }

    /// Sends a tunnel's next block; [`ServiceStream::poll_sent`] tells when it has left.
    pub(crate) fn send_block(&self, block: Buffer) -> io::Result<()> {
        let Asked::Tunnel(stream, false) = &mut *self.asked.borrow_mut() else { return Err(broken("no tunnel")) };
        stream.send_data(Piece::new(block, &self.unsent), false).map_err(broken)
    }

    /// Until what was given to it has been written, or will not be.
    pub(crate) fn poll_sent(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.signal.listen(cx);
        if self.signal.writes_ended() {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        if self.unsent.count() == 0 { Poll::Ready(Ok(())) } else { Poll::Pending }
    }

    /// Nothing more follows in a tunnel: its end is what FIN is to a connection (RFC 8441 section 5).
    pub(crate) fn end_tunnel(&self) {
        if let Asked::Tunnel(stream, ended @ false) = &mut *self.asked.borrow_mut() {
            *ended = true;
            // It fails where the stream has ended, which is told elsewhere.
            let _ = stream.send_data(Piece::new(self.worker.take_answer(), &self.unsent), true);
        }
    }

    /// Whether the service has reset a tunnel, or its connection is gone; `true` where it only takes no more (RFC 9113
    /// section 8.1).
    pub(crate) fn poll_reset(&self, cx: &mut Context<'_>) -> Poll<bool> {
        let Asked::Tunnel(stream, _) = &mut *self.asked.borrow_mut() else { return Poll::Pending };
        stream.poll_reset(cx).map(|reason| matches!(reason, Ok(Reason::NO_ERROR)))
    }

    /// Sends a part of the body, its transfer coding taken off; how many bytes of it were used.
    fn send_body(&self, stream: &mut SendStream<Piece>, body: &mut BodyDecoder, bytes: &[u8]) -> io::Result<usize> {
        let mut block = self.block_of(bytes);
        let decoded = body.decode(block.data_mut()).map_err(broken)?;
        block.narrow(decoded.data);
        let trailers = if decoded.done { fields(body.trailers())? } else { HeaderMap::new() };
        let ends = decoded.done && trailers.is_empty();
        if ends || !block.is_empty() {
            stream.send_data(Piece::new(block, &self.unsent), ends).map_err(broken)?;
        }
        if !trailers.is_empty() {
            stream.send_trailers(trailers).map_err(broken)?;
        }
        Ok(decoded.consumed)
    }

    /// Until there is more of the answer, its end or an error.
    pub(crate) fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<()> {
        if self.signal.reads_ended() {
            return Poll::Ready(());
        }
        self.signal.listen(cx);
        self.answer.borrow_mut().poll(cx)
    }

    /// What has come of the answer: `None` means wait, `Some(0)` the end.
    pub(crate) fn recv(&self, room: &mut [u8]) -> io::Result<Option<usize>> {
        if self.signal.reads_ended() {
            return Ok(Some(0));
        }
        let mut answer = self.answer.borrow_mut();
        answer.release();
        let mut filled = 0;
        loop {
            let is_ready = answer.poll(&mut Context::from_waker(Waker::noop())).is_ready();
            let more = if is_ready { answer.fill(room.get_mut(filled..).unwrap_or_default()) } else { 0 };
            filled += more;
            if more > 0 {
                self.trunk.answers();
                continue;
            }
            return match (filled, &answer.told) {
                (1.., _) => Ok(Some(filled)),
                (0, Told::Ended(ended)) => Err(broken(format_args!("the stream has ended: {ended:?}"))),
                (0, Told::All) => Ok(Some(0)),
                (0, _) => Ok(None),
            };
        }
    }
}

impl Drop for ServiceStream {
    fn drop(&mut self) {
        // What is left of the stream ends with a reset (CANCEL), which `h2` sends once nobody has a hold of it.
        let answer = self.answer.get_mut();
        self.worker.give_head(std::mem::take(&mut answer.text));
        answer.release();
        let told = std::mem::replace(&mut answer.told, Told::All);
        let is_whole = !answer.chunked && answer.left == 0 && answer.data.is_empty();
        if let (Told::Body(body), true, Asked::All) = (told, is_whole, &*self.asked.get_mut())
            && !body.is_end_stream()
        {
            self.trunk.await_end(body);
        }
        *self.asked.get_mut() = Asked::All;
        self.trunk.leave(self.worker.clock.lately());
    }
}

impl Answer {
    fn has_something(&self) -> bool {
        self.gone < self.text.len() || !self.data.is_empty()
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while !self.has_something() {
            self.told = match &mut self.told {
                Told::Nothing => return Poll::Pending,
                Told::All | Told::Ended(_) => return Poll::Ready(()),
                Told::Awaited(awaited, expected) => {
                    let expected = *expected;
                    let answered = match awaited.poll_informational(cx) {
                        Poll::Ready(Some(Ok(interim))) => {
                            self.begin(&interim, false);
                            continue;
                        }
                        Poll::Ready(Some(Err(error))) => Err(error),
                        Poll::Ready(None) => ready!(Pin::new(awaited).poll(cx)),
                        Poll::Pending => return Poll::Pending,
                    };
                    match answered {
                        Ok(answer) => {
                            let (parts, body) = answer.into_parts();
                            self.head(&Response::from_parts(parts, ()), body, expected)
                        }
                        Err(error) => Told::Ended(Ended::from(&error)),
                    }
                }
                Told::Body(body) => match ready!(body.poll_data(cx)) {
                    Some(Ok(data)) => {
                        self.left = self.left.saturating_sub(data.len() as u64);
                        self.data = data;
                        continue;
                    }
                    Some(Err(error)) => Told::Ended(Ended::from(&error)),
                    None => match std::mem::replace(&mut self.told, Told::All) {
                        Told::Body(body) if self.chunked => Told::Trailers(body),
                        _ => Told::All,
                    },
                },
                Told::Trailers(body) => match ready!(body.poll_trailers(cx)) {
                    Ok(trailers) => {
                        self.begin_text(b"0\r\n");
                        trailers.iter().flatten().for_each(|(name, value)| put_field(name, value, &mut self.text));
                        self.text.extend_from_slice(b"\r\n");
                        Told::All
                    }
                    Err(error) => Told::Ended(Ended::from(&error)),
                },
            };
        }
        Poll::Ready(())
    }

    /// Tells the answer's head.
    fn head(&mut self, answer: &Response<()>, body: RecvStream, expected: Expected) -> Told {
        let is_empty = matches!(answer.status(), StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
        let has_body = match expected {
            Expected::Tunnel(accept) if answer.status().is_success() => {
                self.begin_tunnel(answer, &accept);
                return Told::Body(body);
            }
            Expected::Head => false,
            Expected::Message | Expected::Tunnel(_) => !is_empty,
        };
        // The status of a gRPC call stands in trailers, which a body with a length cannot have.
        let is_call = answer.headers().get(CONTENT_TYPE).is_some_and(|value| is_grpc(value.as_bytes()));
        self.chunked = has_body && (is_call || !answer.headers().contains_key(CONTENT_LENGTH));
        let length = answer.headers().get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
        self.left = length.unwrap_or_default();
        self.begin(answer, self.chunked);
        match has_body {
            true => Told::Body(body),
            false => Told::All,
        }
    }

    fn begin(&mut self, answer: &Response<()>, chunked: bool) {
        self.begin_text(b"HTTP/1.1 ");
        self.text.extend_from_slice(answer.status().as_str().as_bytes());
        self.text.push(b' ');
        self.text.extend_from_slice(answer.status().canonical_reason().unwrap_or_default().as_bytes());
        self.text.extend_from_slice(b"\r\n");
        for (name, value) in answer.headers().iter().filter(|(name, _)| !chunked || **name != CONTENT_LENGTH) {
            put_field(name, value, &mut self.text);
        }
        self.text.extend_from_slice(if chunked { b"Transfer-Encoding: chunked\r\n\r\n" } else { b"\r\n" });
    }

    /// Tells of a tunnel what a service of HTTP/1.1 tells of one. A length of it means nothing (RFC 9110 section 9.3.6).
    fn begin_tunnel(&mut self, answer: &Response<()>, accept: &[u8; ACCEPT_CHARS]) {
        self.begin_text(b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n");
        self.text.extend_from_slice(b"Sec-WebSocket-Accept: ");
        self.text.extend_from_slice(accept);
        self.text.extend_from_slice(b"\r\n");
        let is_kept = |name: &HeaderName| *name != CONTENT_LENGTH && *name != SEC_WEBSOCKET_ACCEPT;
        for (name, value) in answer.headers().iter().filter(|(name, _)| is_kept(name)) {
            put_field(name, value, &mut self.text);
        }
        self.text.extend_from_slice(b"\r\n");
    }

    fn begin_text(&mut self, start: &[u8]) {
        self.text.clear();
        self.gone = 0;
        self.text.extend_from_slice(start);
    }

    /// Moves what there is into `room`, as much as fits; how many bytes of the room that took.
    fn fill(&mut self, room: &mut [u8]) -> usize {
        if self.gone == self.text.len() && !self.data.is_empty() {
            let framing = if self.chunked { CHUNK_FRAMING } else { 0 };
            if room.len() > framing {
                let data = self.data.split_to(self.data.len().min(room.len() - framing));
                self.taken += data.len();
                return frame(&data, self.chunked, room);
            }
            if room.is_empty() {
                return 0;
            }
            let data = self.data.split_to(self.data.len().min(ASIDE_BYTES_MAX));
            self.taken += data.len();
            self.text.resize(data.len() + framing, 0);
            let length = frame(&data, self.chunked, &mut self.text);
            self.text.truncate(length);
            self.gone = 0;
        }
        let text = self.text.get(self.gone..).unwrap_or_default();
        let length = text.len().min(room.len());
        if let (Some(room), Some(text)) = (room.get_mut(..length), text.get(..length)) {
            room.copy_from_slice(text);
        }
        self.gone += length;
        length
    }

    /// Gives back the window of what has gone on.
    fn release(&mut self) {
        let taken = std::mem::take(&mut self.taken);
        if let (1.., Told::Body(body) | Told::Trailers(body)) = (taken, &mut self.told) {
            // It fails where the stream has ended, which is told elsewhere.
            let _ = body.flow_control().release_capacity(taken);
        }
    }
}

/// Writes a piece of a body, as a chunk where it is to be one; how many bytes that took. The room is large enough.
fn frame(data: &[u8], chunked: bool, room: &mut [u8]) -> usize {
    let mut head = [0; CHUNK_HEAD_MAX];
    let length = if chunked { write_chunk_head(data.len(), &mut head) } else { 0 };
    let head = head.get(CHUNK_HEAD_MAX - length..).unwrap_or_default();
    let mut filled = 0;
    for part in [head, data, if chunked { b"\r\n" } else { b"" }] {
        if let Some(place) = room.get_mut(filled..filled + part.len()) {
            place.copy_from_slice(part);
            filled += part.len();
        }
    }
    filled
}

fn put_field(name: &HeaderName, value: &HeaderValue, out: &mut Vec<u8>) {
    for part in [name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"] {
        out.extend_from_slice(part);
    }
}
