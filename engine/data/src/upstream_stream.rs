//! A stream to a service that speaks HTTP/2, as the serve path sees it: a connection that takes one request and gives one
//! answer, both in the form of HTTP/1.1. The form is what keeps one strict reading of answers; no byte of the service's
//! frames anything in it.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::io;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use h2::{Reason, SendStream};
use http::HeaderMap;
use ringway_core::failure::Failure;
use ringway_core::http::{BodyDecoder, Framing, HEADERS_MAX, HeadStorage, Name, RequestHead};

use crate::buffer::Buffer;
use crate::deadline::Signal;
use crate::fields::broken;
use crate::http2_upstream::Trunk;
use crate::outbound::Broken;
use crate::stream::{Piece, Unsent};
use crate::upstream_answer::{Answer, Ended, Expected, Told};
use crate::upstream_request::{Websocket, fields, request, websocket};
use crate::worker::Worker;

/// Pieces of a request's body that may wait for the service's window: a block as the serve path fills it, and what does not
/// fit into another block with its framing.
const UNSENT_MAX: usize = 2;
/// How far the request is.
enum Asked {
    Nothing,
    Head(SendStream<Piece>, BodyDecoder),
    /// An extended CONNECT, whose bytes have no end but the stream's; whether that was sent.
    Tunnel(SendStream<Piece>, bool),
    All,
}

pub(crate) struct ServiceStream {
    pub(crate) signal: Rc<Signal>,
    trunk: Rc<Trunk>,
    worker: Rc<Worker>,
    /// When the request was sent, on the core's clock.
    since: Cell<u64>,
    asked: RefCell<Asked>,
    answer: RefCell<Answer>,
    unsent: Rc<Unsent>,
}

impl ServiceStream {
    /// Takes a place on the connection, which need not stand yet.
    pub(crate) fn new(trunk: Rc<Trunk>, worker: &Rc<Worker>) -> Rc<Self> {
        let signal = Rc::new(Signal::default());
        trunk.enter(&signal);
        Rc::new(Self {
            unsent: Unsent::new(&signal, Rc::clone(&trunk.shown)),
            signal,
            trunk,
            worker: Rc::clone(worker),
            since: Cell::new(u64::MAX),
            asked: RefCell::new(Asked::Nothing),
            answer: RefCell::new(Answer::new(worker.take_head())),
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

    /// Whether a request has to wait for [`ServiceStream::settled`]: it asks for a tunnel, and the service has yet to say
    /// whether it takes one.
    pub(crate) fn must_settle(&self, request: &[u8]) -> bool {
        if self.trunk.takes_tunnels(&self.signal).is_ready() {
            return false;
        }
        let head = memchr::memmem::find(request, b"\r\n\r\n").and_then(|end| request.get(..end + 4));
        let mut storage = HeadStorage::new();
        let parsed = head.and_then(|head| RequestHead::parse(head, HEADERS_MAX, &mut storage).ok());
        parsed.is_some_and(|parsed| parsed.has(Name::Upgrade))
    }

    /// Until the service has said what it takes, or cannot any more; `false` where it did not in time.
    pub(crate) async fn settled(&self) -> bool {
        poll_fn(|cx| {
            if self.signal.reads_ended() {
                return Poll::Ready(false);
            }
            self.signal.listen(cx);
            self.trunk.takes_tunnels(&self.signal).map(|_| true)
        })
        .await
    }

    /// When its connection was begun, on the core's clock.
    pub(crate) fn connection_born(&self) -> u64 {
        self.trunk.born
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
            (*asked, sent) = (self.ask(bytes.get(..head).unwrap_or_default())?, head);
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
        let has_room = self.unsent.count() < UNSENT_MAX;
        if has_room || self.signal.writes_ended() { Poll::Ready(()) } else { Poll::Pending }
    }

    /// Begins the stream.
    fn ask(&self, head: &[u8]) -> io::Result<Asked> {
        let mut storage = HeadStorage::new();
        let parsed = RequestHead::parse(head, HEADERS_MAX, &mut storage).map_err(broken)?;
        let request = request(head, &parsed, self.trunk.scheme())?;
        let (request, expected, framing) = if parsed.has(Name::Upgrade) {
            if self.trunk.takes_tunnels(&self.signal) != Poll::Ready(true) {
                self.answer.borrow_mut().told = Told::Ended(Ended::NoTunnels);
                return Err(broken("the service takes no extended CONNECT"));
            }
            let Websocket { request, accept } = websocket(request)?;
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
                Ok(match framing {
                    None => Asked::Tunnel(stream, false),
                    Some(Framing::None) => Asked::All,
                    Some(framing) => Asked::Head(stream, BodyDecoder::new(framing)),
                })
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

    /// The head has gone on: a tunnel holds no room for another.
    pub(crate) fn become_tunnel(&self) {
        self.answer.borrow_mut().take_text().into_iter().for_each(|text| self.worker.give_head(text));
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
        answer.take_text().into_iter().for_each(|text| self.worker.give_head(text));
        answer.release();
        let told = std::mem::replace(&mut answer.told, Told::All);
        if let (Told::Body(body), true, Asked::All) = (told, answer.is_whole(), &*self.asked.get_mut())
            && !body.is_end_stream()
        {
            self.trunk.await_end(body);
        }
        *self.asked.get_mut() = Asked::All;
        self.trunk.leave(self.worker.clock.lately());
    }
}
