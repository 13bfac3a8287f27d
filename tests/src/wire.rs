//! A connection in a test's hands: raw bytes, messages, and every way to end it.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::message::{Head, Message, field};

/// How a connection ended, seen from here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// An orderly end (FIN).
    Closed,
    /// A reset (RST).
    Reset,
}

/// A stream with what was read ahead of it.
pub struct Wire {
    stream: TcpStream,
    buffer: Vec<u8>,
    patience: Duration,
    /// Bytes read so far.
    pub received: usize,
}

impl Wire {
    pub(crate) fn new(stream: TcpStream, patience: Duration) -> Self {
        // Fails on a unix socket, which has nothing to delay.
        let _ = stream.set_nodelay(true);
        stream.set_write_timeout(Some(patience)).expect("a write timeout");
        Self { stream, buffer: Vec::new(), patience, received: 0 }
    }

    pub fn stream(&self) -> &TcpStream {
        &self.stream
    }

    /// Writes everything.
    #[track_caller]
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) -> &mut Self {
        self.try_send(bytes).unwrap_or_else(|error| panic!("cannot send: {error}"));
        self
    }

    /// Writes everything, unless the other side does not take it.
    pub fn try_send(&mut self, bytes: impl AsRef<[u8]>) -> std::io::Result<()> {
        self.stream.write_all(bytes.as_ref())
    }

    /// Writes as much as the other side takes without reading any further; gives back how much that was.
    pub fn try_send_now(&mut self, bytes: impl AsRef<[u8]>) -> usize {
        let bytes = bytes.as_ref();
        self.stream.set_write_timeout(Some(Duration::from_millis(300))).expect("a write timeout");
        let mut sent = 0;
        while sent < bytes.len() {
            match self.stream.write(&bytes[sent..]) {
                Ok(written) => sent += written,
                Err(_) => break,
            }
        }
        self.stream.set_write_timeout(Some(self.patience)).expect("a write timeout");
        sent
    }

    /// Reads more into the buffer; `Err` at the end of the stream. Panics when nothing comes.
    #[track_caller]
    fn fill(&mut self) -> Result<(), End> {
        self.fill_until(Instant::now() + self.patience).unwrap_or_else(|| {
            panic!("nothing came within {:?}; so far: {:?}", self.patience, String::from_utf8_lossy(&self.buffer))
        })
    }

    /// The same; `None` when nothing comes in time.
    fn fill_until(&mut self, deadline: Instant) -> Option<Result<(), End>> {
        let mut chunk = [0; 64 * 1024];
        let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
        self.stream.set_read_timeout(Some(left)).expect("a read timeout");
        match self.stream.read(&mut chunk) {
            Ok(0) => Some(Err(End::Closed)),
            Ok(read) => {
                self.received += read;
                self.buffer.extend_from_slice(&chunk[..read]);
                Some(Ok(()))
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => None,
            Err(error) if error.kind() == ErrorKind::Interrupted => self.fill_until(deadline),
            Err(_) => Some(Err(End::Reset)),
        }
    }

    /// A head, or how the connection ended before its first byte.
    #[track_caller]
    pub fn next_head(&mut self) -> Result<Head, End> {
        loop {
            if let Some(end) = self.buffer.windows(4).position(|window| window == b"\r\n\r\n") {
                let raw: Vec<u8> = self.buffer.drain(..end + 4).collect();
                return Ok(Head::parse(&raw));
            }
            if let Err(end) = self.fill() {
                let so_far = String::from_utf8_lossy(&self.buffer);
                assert!(self.buffer.is_empty(), "{end:?} within a head: {so_far:?}");
                return Err(end);
            }
        }
    }

    #[track_caller]
    pub fn read_head(&mut self) -> Head {
        self.next_head().unwrap_or_else(|end| panic!("{end:?} instead of a head"))
    }

    /// Exactly so many bytes.
    #[track_caller]
    pub fn read_exact(&mut self, bytes: usize) -> Vec<u8> {
        while self.buffer.len() < bytes {
            if let Err(end) = self.fill() {
                panic!("{end:?} after {} of {bytes} bytes", self.buffer.len());
            }
        }
        self.buffer.drain(..bytes).collect()
    }

    /// Exactly so many bytes, or how the connection ended before they were there.
    #[track_caller]
    pub fn read_up_to(&mut self, bytes: usize) -> Result<Vec<u8>, End> {
        while self.buffer.len() < bytes {
            self.fill()?;
        }
        Ok(self.buffer.drain(..bytes).collect())
    }

    /// Whatever comes next, at least a byte.
    #[track_caller]
    pub fn read_some(&mut self) -> Result<Vec<u8>, End> {
        if self.buffer.is_empty() {
            self.fill()?;
        }
        Ok(std::mem::take(&mut self.buffer))
    }

    /// Everything up to the end of the connection.
    #[track_caller]
    pub fn read_to_end(&mut self) -> (Vec<u8>, End) {
        loop {
            if let Err(end) = self.fill() {
                return (std::mem::take(&mut self.buffer), end);
            }
        }
    }

    /// Drops everything that comes up to the end of the connection; gives back how much that was.
    #[track_caller]
    pub fn drain(&mut self) -> (usize, End) {
        let mut dropped = 0;
        loop {
            dropped += std::mem::take(&mut self.buffer).len();
            if let Err(end) = self.fill() {
                return (dropped, end);
            }
        }
    }

    /// A line of a chunked body, without its CR LF.
    #[track_caller]
    fn read_line(&mut self) -> String {
        loop {
            if let Some(end) = self.buffer.windows(2).position(|window| window == b"\r\n") {
                let line: Vec<u8> = self.buffer.drain(..end + 2).collect();
                return String::from_utf8_lossy(&line[..end]).into_owned();
            }
            if let Err(end) = self.fill() {
                panic!("{end:?} within a line: {:?}", String::from_utf8_lossy(&self.buffer));
            }
        }
    }

    /// One chunk's data; empty for the last one, whose trailer section follows.
    #[track_caller]
    pub fn read_chunk(&mut self) -> Vec<u8> {
        let line = self.read_line();
        let size = line.split(';').next().unwrap_or_default();
        let size = usize::from_str_radix(size, 16).unwrap_or_else(|_| panic!("not a chunk size: {line:?}"));
        if size == 0 {
            return Vec::new();
        }
        let data = self.read_exact(size);
        assert_eq!(self.read_exact(2), b"\r\n", "a chunk ends with CR LF");
        data
    }

    #[track_caller]
    pub fn read_trailers(&mut self) -> Vec<(String, String)> {
        let mut trailers = Vec::new();
        loop {
            let line = self.read_line();
            if line.is_empty() {
                return trailers;
            }
            trailers.push(field(&line));
        }
    }

    /// The rest of a message whose head was read. `unframed`: what the body is without a framing field.
    #[track_caller]
    pub(crate) fn read_rest(&mut self, head: Head, unframed: Unframed) -> Message {
        let mut message = Message { head, body: Vec::new(), trailers: Vec::new(), chunks: Vec::new() };
        if unframed == Unframed::Never {
            return message;
        }
        if message.head.is_chunked() {
            loop {
                let data = self.read_chunk();
                if data.is_empty() {
                    message.trailers = self.read_trailers();
                    return message;
                }
                message.chunks.push(data.len());
                message.body.extend_from_slice(&data);
            }
        }
        message.body = match (message.head.length(), unframed) {
            (Some(length), _) => self.read_exact(length),
            (None, Unframed::Empty) => Vec::new(),
            (None, _) => {
                let (body, end) = self.read_to_end();
                assert_eq!(end, End::Closed, "a body that ends with its connection must not end with a reset");
                body
            }
        };
        message
    }

    /// The end of the connection; no byte may come before it.
    #[track_caller]
    pub fn expect_end(&mut self) -> End {
        match self.fill() {
            Err(end) if self.buffer.is_empty() => end,
            _ => panic!("bytes instead of the end: {:?}", String::from_utf8_lossy(&self.buffer)),
        }
    }

    /// An orderly end; no byte may come before it.
    #[track_caller]
    pub fn expect_closed(&mut self) {
        assert_eq!(self.expect_end(), End::Closed);
    }

    #[track_caller]
    pub fn expect_reset(&mut self) {
        assert_eq!(self.expect_end(), End::Reset);
    }

    /// Whether anything, the end included, comes within this time.
    pub fn stays_silent(&mut self, time: Duration) -> bool {
        self.buffer.is_empty() && self.fill_until(Instant::now() + time).is_none()
    }

    /// Whether the other side has ended the connection, even if it has left bytes unread.
    pub fn is_over(&self) -> bool {
        let ends = PollFlags::RDHUP | PollFlags::HUP | PollFlags::ERR;
        let mut fds = [PollFd::new(&self.stream, ends)];
        poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).expect("a poll");
        fds[0].revents().intersects(ends)
    }

    /// Ends the sending direction only.
    pub fn half_close(&mut self) -> &mut Self {
        let _ = self.stream.shutdown(Shutdown::Write);
        self
    }

    /// The coming close sends a reset.
    pub fn reset_on_close(&self) {
        let socket = socket2::SockRef::from(&self.stream);
        socket.set_linger(Some(Duration::ZERO)).expect("SO_LINGER");
    }
}

/// What the body of a message is that has neither a length nor a coding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unframed {
    /// No body, whatever the head says.
    Never,
    Empty,
    UntilClose,
}
