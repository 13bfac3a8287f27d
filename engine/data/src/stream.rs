//! A stream of an HTTP/2 connection as the serve path sees it: a client that sends one request, in the form of HTTP/1.1,
//! and takes one answer. The form is what keeps one strict reading of requests; no client's byte frames anything in it.

use std::cell::{Cell, RefCell};
use std::io;
use std::ops::Range;
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};

use bytes::{Buf, Bytes};
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::{HeaderMap, Response, StatusCode};
use ringway_core::http::{CHUNK_HEAD_MAX, HeadStorage, Name, ResponseHead, write_chunk_head};

use crate::buffer::Buffer;
use crate::deadline::Signal;
use crate::fields::{append, broken};

/// A part of an answer's body, on its way through `h2`. Its block goes back to the core when it has been written.
pub(crate) struct Piece {
    data: Data,
    left: Rc<Unsent>,
}

enum Data {
    /// What of the block's data is left.
    Block(Rc<Buffer>, Range<usize>),
    Bytes(Bytes),
}

/// The block whose data `h2` was shown last: who takes the data can hold the block instead of copying it.
pub(crate) type Shown = Cell<Option<Rc<Buffer>>>;

/// Pieces that `h2` has not written yet: few, since the next is made when they are gone.
pub(crate) struct Unsent {
    count: Cell<usize>,
    signal: Rc<Signal>,
    shown: Rc<Shown>,
}

impl Unsent {
    pub(crate) fn new(signal: &Rc<Signal>, shown: Rc<Shown>) -> Rc<Self> {
        Rc::new(Self { count: Cell::new(0), signal: Rc::clone(signal), shown })
    }

    pub(crate) fn count(&self) -> usize {
        self.count.get()
    }
}

impl Piece {
    pub(crate) fn new(block: Buffer, unsent: &Rc<Unsent>) -> Self {
        Self::of(Data::block(block), unsent)
    }

    fn of(data: Data, unsent: &Rc<Unsent>) -> Self {
        unsent.count.set(unsent.count.get() + 1);
        Self { data, left: Rc::clone(unsent) }
    }
}

impl Data {
    fn block(block: Buffer) -> Self {
        let length = block.len();
        Self::Block(Rc::new(block), 0..length)
    }
}

impl Buf for Piece {
    fn remaining(&self) -> usize {
        match &self.data {
            Data::Block(_, left) => left.len(),
            Data::Bytes(bytes) => bytes.len(),
        }
    }

    fn chunk(&self) -> &[u8] {
        match &self.data {
            Data::Block(block, left) => {
                self.left.shown.set(Some(Rc::clone(block)));
                block.data().get(left.clone()).unwrap_or_default()
            }
            Data::Bytes(bytes) => bytes,
        }
    }

    fn advance(&mut self, count: usize) {
        match &mut self.data {
            Data::Block(_, left) => left.start = left.end.min(left.start + count),
            Data::Bytes(bytes) => bytes.advance(count.min(bytes.len())),
        }
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        self.left.count.set(self.left.count.get().saturating_sub(1));
        self.left.signal.wake();
    }
}

/// How far the answer is.
enum Answer {
    Awaited(SendResponse<Piece>),
    Begun(SendStream<Piece>),
    Over,
}

/// How far the request's body is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Progress {
    Coming,
    Trailers,
    Done,
    Failed,
}

pub(crate) struct Stream {
    pub(crate) signal: Rc<Signal>,
    body: RefCell<RecvStream>,
    progress: Cell<Progress>,
    /// The body has no length: it is told to the serve path in chunks.
    chunked: bool,
    arrived: RefCell<Bytes>,
    trailers: RefCell<Option<HeaderMap>>,
    /// Bytes that the serve path took with the last read: their window is given back when it asks for more, since they have
    /// gone on to the service then.
    taken: Cell<usize>,
    answer: RefCell<Answer>,
    unsent: Rc<Unsent>,
}

impl Stream {
    /// `first`: what was read of the body already.
    pub(crate) fn new(
        body: RecvStream,
        first: Bytes,
        respond: SendResponse<Piece>,
        chunked: bool,
        shown: Rc<Shown>,
    ) -> Rc<Self> {
        let signal = Rc::new(Signal::default());
        Rc::new(Self {
            unsent: Unsent::new(&signal, shown),
            signal,
            body: RefCell::new(body),
            progress: Cell::new(Progress::Coming),
            chunked,
            arrived: RefCell::new(first),
            trailers: RefCell::default(),
            taken: Cell::new(0),
            answer: RefCell::new(Answer::Awaited(respond)),
        })
    }

    /// Whether the client has reset the stream, or its connection is gone.
    pub(crate) fn poll_reset(&self, cx: &mut Context<'_>) -> bool {
        let reset = match &mut *self.answer.borrow_mut() {
            Answer::Awaited(respond) => respond.poll_reset(cx).is_ready(),
            Answer::Begun(stream) => stream.poll_reset(cx).is_ready(),
            Answer::Over => false,
        };
        if reset {
            self.signal.is_gone();
        }
        reset
    }

    /// Ends the stream where its answer did not come whole.
    pub(crate) fn reset(&self, reason: Reason) {
        match std::mem::replace(&mut *self.answer.borrow_mut(), Answer::Over) {
            Answer::Awaited(mut respond) => respond.send_reset(reason),
            Answer::Begun(mut stream) => stream.send_reset(reason),
            Answer::Over => {}
        }
    }

    /// Until there is more of the body, its end or an error.
    pub(crate) fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<()> {
        if self.signal.reads_ended() || !self.arrived.borrow().is_empty() {
            return Poll::Ready(());
        }
        self.signal.listen(cx);
        loop {
            match self.progress.get() {
                Progress::Coming => match ready!(self.body.borrow_mut().poll_data(cx)) {
                    // An empty frame says nothing.
                    Some(Ok(data)) if data.is_empty() => {}
                    Some(Ok(data)) => {
                        *self.arrived.borrow_mut() = data;
                        return Poll::Ready(());
                    }
                    Some(Err(_)) => self.progress.set(Progress::Failed),
                    None => self.progress.set(Progress::Trailers),
                },
                Progress::Trailers if self.trailers.borrow().is_none() => {
                    match ready!(self.body.borrow_mut().poll_trailers(cx)) {
                        Ok(trailers) => {
                            *self.trailers.borrow_mut() = Some(trailers.unwrap_or_default());
                        }
                        Err(_) => self.progress.set(Progress::Failed),
                    }
                }
                _ => return Poll::Ready(()),
            }
        }
    }

    /// More of the body, framed as its head has announced it; as [`Client::recv`](crate::client::Client::recv).
    pub(crate) fn recv(&self, room: &mut [u8]) -> io::Result<Option<usize>> {
        if self.signal.reads_ended() {
            return Ok(Some(0));
        }
        match self.taken.take() {
            0 => {}
            taken => self.body.borrow_mut().flow_control().release_capacity(taken).map_err(broken)?,
        }
        if self.poll_readable(&mut Context::from_waker(Waker::noop())).is_pending() {
            return Ok(None);
        }
        let mut arrived = self.arrived.borrow_mut();
        if !arrived.is_empty() {
            let framing = if self.chunked { CHUNK_HEAD_MAX + 2 } else { 0 };
            let taken = arrived.len().min(room.len().saturating_sub(framing));
            let data = arrived.split_to(taken);
            if data.is_empty() {
                return Err(broken("no room"));
            }
            self.taken.set(data.len());
            let mut head = [0; CHUNK_HEAD_MAX];
            let length = if self.chunked { write_chunk_head(data.len(), &mut head) } else { 0 };
            let head = head.get(CHUNK_HEAD_MAX - length..).unwrap_or_default();
            let tail: &[u8] = if self.chunked { b"\r\n" } else { b"" };
            return fill(room, &[head, &data, tail]).map(Some);
        }
        match self.progress.get() {
            Progress::Trailers if self.chunked => {
                self.progress.set(Progress::Done);
                let mut end = b"0\r\n".to_vec();
                for (name, value) in self.trailers.take().iter().flatten() {
                    for part in [name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"] {
                        end.extend_from_slice(part);
                    }
                }
                end.extend_from_slice(b"\r\n");
                fill(room, &[&end]).map(Some)
            }
            Progress::Failed => Err(broken("the stream was reset")),
            _ => Ok(Some(0)),
        }
    }

    /// Sends an answer's head, which is written as HTTP/1.1; what belongs to one connection of HTTP/1.1 is left out (RFC
    /// 9113 section 8.2.2).
    pub(crate) fn send_head(&self, head: &[u8], end: bool) -> io::Result<()> {
        let mut storage = HeadStorage::new();
        let parsed = ResponseHead::parse(head, false, &mut storage).map_err(|_| broken("malformed head"))?;
        let mut response = Response::new(());
        *response.status_mut() = StatusCode::from_u16(parsed.status).map_err(broken)?;
        let fields = response.headers_mut();
        fields.reserve(parsed.headers.len());
        for (field, name) in parsed.headers.iter().zip(parsed.names) {
            if !name.is_hop_by_hop() {
                append(fields, field, *name)?;
            }
        }
        let mut answer = self.answer.borrow_mut();
        let Answer::Awaited(respond) = &mut *answer else { return Err(broken("a second head")) };
        if parsed.status < 200 {
            return respond.send_informational(response).map_err(broken);
        }
        let stream = respond.send_response(response, end).map_err(broken)?;
        *answer = if end { Answer::Over } else { Answer::Begun(stream) };
        Ok(())
    }

    /// Queues a part of the body; [`Stream::poll_sent`] tells when it has left.
    pub(crate) fn send_block(&self, buffer: Buffer, end: bool) -> io::Result<()> {
        self.send_data(Data::block(buffer), end)
    }

    pub(crate) fn send_bytes(&self, bytes: &[u8], end: bool) -> io::Result<()> {
        self.send_data(Data::Bytes(Bytes::copy_from_slice(bytes)), end)
    }

    fn send_data(&self, data: Data, end: bool) -> io::Result<()> {
        let Answer::Begun(stream) = &mut *self.answer.borrow_mut() else { return Err(broken("no head")) };
        stream.send_data(Piece::of(data, &self.unsent), end).map_err(broken)
    }

    /// Sends the trailer section, which is written as HTTP/1.1, and ends the answer.
    pub(crate) fn send_trailers(&self, section: &[u8]) -> io::Result<()> {
        let mut fields = [httparse::EMPTY_HEADER; 64];
        let parsed = httparse::parse_headers(section, &mut fields).map_err(broken)?;
        let httparse::Status::Complete((_, parsed)) = parsed else { return Err(broken("malformed trailers")) };
        let mut trailers = HeaderMap::with_capacity(parsed.len());
        for field in parsed {
            append(&mut trailers, field, Name::of(field.name))?;
        }
        let Answer::Begun(stream) = &mut *self.answer.borrow_mut() else { return Err(broken("no head")) };
        stream.send_trailers(trailers).map_err(broken)
    }

    /// Until what was queued has been written, or will not be.
    pub(crate) fn poll_sent(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.signal.listen(cx);
        if self.signal.writes_ended() || self.signal.gone() {
            return Poll::Ready(Err(broken("the stream has ended")));
        }
        if self.unsent.count.get() == 0 { Poll::Ready(Ok(())) } else { Poll::Pending }
    }
}

fn fill(room: &mut [u8], parts: &[&[u8]]) -> io::Result<usize> {
    let mut filled = 0;
    for part in parts {
        let place = room.get_mut(filled..filled + part.len()).ok_or_else(|| broken("no room"))?;
        place.copy_from_slice(part);
        filled += part.len();
    }
    Ok(filled)
}
