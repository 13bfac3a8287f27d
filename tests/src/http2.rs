//! A client of HTTP/2 that writes its frames by hand, good ones and bad ones (RFC 9113 section 6).

use std::net::SocketAddr;

use crate::{Client, End, Wire};

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const PRIORITY: u8 = 2;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;
/// RFC 9218 section 7.1.
pub const PRIORITY_UPDATE: u8 = 16;

pub const END_STREAM: u8 = 1;
pub const ACK: u8 = 1;
pub const END_HEADERS: u8 = 4;

pub const PROTOCOL_ERROR: u32 = 1;
pub const REFUSED_STREAM: u32 = 7;
pub const CANCEL: u32 = 8;
pub const ENHANCE_YOUR_CALM: u32 = 11;

pub const SETTINGS_INITIAL_WINDOW_SIZE: u16 = 4;

#[derive(Debug, Clone)]
pub struct Frame {
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
    pub payload: Vec<u8>,
}

impl Frame {
    /// The error of RST_STREAM or GOAWAY.
    pub fn error(&self) -> u32 {
        let at = if self.kind == GOAWAY { 4 } else { 0 };
        u32::from_be_bytes(self.payload[at..at + 4].try_into().expect("four bytes"))
    }

    /// `:status` of HEADERS, which comes first: from HPACK's static table, or as a string in its Huffman code (RFC 7541).
    pub fn status(&self) -> u16 {
        assert_eq!(self.kind, HEADERS, "{self:?}");
        let known = [200, 204, 206, 304, 400, 404, 500];
        match self.payload[0] {
            index @ 0x88..=0x8e => known[usize::from(index - 0x88)],
            0x48 => digits(&self.payload[2..]),
            other => panic!("{other:#x} is no status"),
        }
    }
}

/// Three digits in HPACK's Huffman code: 0, 1 and 2 have five bits, the others six.
fn digits(bytes: &[u8]) -> u16 {
    let bits = u32::from_be_bytes([bytes[0], bytes[1], bytes[2], 0]);
    let (mut at, mut number) = (0, 0);
    for _ in 0..3 {
        let (short, long) = (bits << at >> 27, bits << at >> 26);
        let (digit, length) = if short < 3 { (short, 5) } else { (long - 0b011_001 + 3, 6) };
        number = number * 10 + digit as u16;
        at += length;
    }
    number
}

/// A field without compression (RFC 7541 section 6.2.2).
pub fn field(name: &str, value: &str) -> Vec<u8> {
    assert!(name.len() < 127 && value.len() < 127, "the length is one byte");
    [&[0, name.len() as u8], name.as_bytes(), &[value.len() as u8], value.as_bytes()].concat()
}

/// The fields of a request.
pub fn fields(pairs: &[(&str, &str)]) -> Vec<u8> {
    pairs.iter().flat_map(|(name, value)| field(name, value)).collect()
}

pub struct Http2(Client);

impl std::ops::Deref for Http2 {
    type Target = Wire;
    fn deref(&self) -> &Wire {
        &self.0
    }
}

impl std::ops::DerefMut for Http2 {
    fn deref_mut(&mut self) -> &mut Wire {
        &mut self.0
    }
}

impl Http2 {
    #[track_caller]
    pub fn connect(address: SocketAddr) -> Self {
        Self::connect_with(address, &[])
    }

    /// With these SETTINGS.
    #[track_caller]
    pub fn connect_with(address: SocketAddr, settings: &[(u16, u32)]) -> Self {
        let mut client = Self(Client::connect(address));
        client.send("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
        let settings = settings
            .iter()
            .flat_map(|(name, value)| [name.to_be_bytes().to_vec(), value.to_be_bytes().to_vec()].concat());
        client.frame(SETTINGS, 0, 0, &settings.collect::<Vec<u8>>());
        client
    }

    pub fn bytes(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
        let length = (payload.len() as u32).to_be_bytes();
        [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
    }

    #[track_caller]
    pub fn frame(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) -> &mut Self {
        self.send(Self::bytes(kind, flags, stream, payload));
        self
    }

    /// HEADERS of a GET, which end the stream.
    pub fn get_bytes(stream: u32, path: &str) -> Vec<u8> {
        let head = [(":method", "GET"), (":scheme", "http"), (":path", path), (":authority", "a.test")];
        Self::bytes(HEADERS, END_STREAM | END_HEADERS, stream, &fields(&head))
    }

    #[track_caller]
    pub fn get(&mut self, stream: u32, path: &str) -> &mut Self {
        self.send(Self::get_bytes(stream, path));
        self
    }

    /// The next frame, or how the connection ended.
    #[track_caller]
    pub fn next_frame(&mut self) -> Result<Frame, End> {
        let head = self.read_up_to(9)?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let payload = self.read_up_to(length as usize)?;
        let stream = u32::from_be_bytes(head[5..9].try_into().expect("four bytes"));
        Ok(Frame { kind: head[3], flags: head[4], stream, payload })
    }

    /// The next frame of this kind, on this stream; those before it are skipped.
    #[track_caller]
    pub fn next_of(&mut self, kind: u8, stream: u32) -> Frame {
        loop {
            match self.next_frame() {
                Ok(frame) if frame.kind == kind && frame.stream == stream => return frame,
                Ok(frame) if frame.kind == GOAWAY && frame.error() != 0 => panic!("{frame:?} before {kind} {stream}"),
                Ok(_) => {}
                Err(end) => panic!("{end:?} before {kind} on {stream}"),
            }
        }
    }

    /// So many bytes of a stream's DATA frames, or some more.
    #[track_caller]
    pub fn read_data(&mut self, stream: u32, bytes: usize) -> Vec<u8> {
        let mut data = Vec::new();
        while data.len() < bytes {
            data.extend(self.next_of(DATA, stream).payload);
        }
        data
    }

    /// HEADERS of an extended CONNECT (RFC 8441).
    pub fn connect_bytes(stream: u32, protocol: &str, path: &str, more: &[(&str, &str)]) -> Vec<u8> {
        let head = [
            (":method", "CONNECT"),
            (":protocol", protocol),
            (":scheme", "http"),
            (":path", path),
            (":authority", "a.test"),
            ("sec-websocket-version", "13"),
        ];
        Self::bytes(HEADERS, END_HEADERS, stream, &[fields(&head), fields(more)].concat())
    }

    /// The status of this stream's answer.
    #[track_caller]
    pub fn status(&mut self, stream: u32) -> u16 {
        self.next_of(HEADERS, stream).status()
    }

    /// The error of the GOAWAY that ends the connection; nothing where it was reset before that could be read.
    #[track_caller]
    pub fn expect_go_away(&mut self) -> Option<u32> {
        let mut error = None;
        loop {
            match self.next_frame() {
                Ok(frame) if frame.kind == GOAWAY => error = Some(frame.error()),
                Ok(_) => {}
                Err(_) => return error,
            }
        }
    }
}
