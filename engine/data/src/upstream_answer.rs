//! The answer of a stream to a service, told in the form of HTTP/1.1.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::client::ResponseFuture;
use h2::{Reason, RecvStream};
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderName, HeaderValue, SEC_WEBSOCKET_ACCEPT};
use http::{Response, StatusCode};
use ringway_core::grpc::is_grpc;
use ringway_core::http::websocket::ACCEPT_CHARS;
use ringway_core::http::{CHUNK_HEAD_MAX, write_chunk_head};

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

/// What a request's answer can be.
#[derive(Clone, Copy)]
pub(crate) enum Expected {
    Message,
    /// A head alone, to HEAD.
    Head,
    /// A tunnel, where it is 2xx. What proves to the serve path that it is what was asked for.
    Tunnel([u8; ACCEPT_CHARS]),
}

/// How far the answer is.
pub(crate) enum Told {
    Nothing,
    Awaited(ResponseFuture, Expected),
    Body(RecvStream),
    Trailers(RecvStream),
    All,
    Ended(Ended),
}

/// The answer in the form of HTTP/1.1.
pub(crate) struct Answer {
    pub(crate) told: Told,
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

impl Answer {
    /// `text`: room for heads.
    pub(crate) fn new(text: Vec<u8>) -> Self {
        Self { told: Told::Nothing, chunked: false, left: 0, text, gone: 0, data: Bytes::new(), taken: 0 }
    }

    /// Gives up the room for heads: none is to come.
    pub(crate) fn take_text(&mut self) -> Option<Vec<u8>> {
        self.gone = 0;
        Some(std::mem::take(&mut self.text)).filter(|text| text.capacity() > 0)
    }

    /// Whether a body with a length has come whole and gone on.
    pub(crate) fn is_whole(&self) -> bool {
        !self.chunked && self.left == 0 && self.data.is_empty()
    }

    fn has_something(&self) -> bool {
        self.gone < self.text.len() || !self.data.is_empty()
    }

    /// Until there is something to tell, or nothing more to come.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
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
    pub(crate) fn fill(&mut self, room: &mut [u8]) -> usize {
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
    pub(crate) fn release(&mut self) {
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
