//! Frames of HTTP/2 (RFC 9113 section 4.1), from an input and in what came back.

pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const RST_STREAM: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const PING: u8 = 6;
pub(crate) const GOAWAY: u8 = 7;
pub(crate) const WINDOW_UPDATE: u8 = 8;
pub(crate) const CONTINUATION: u8 = 9;

pub(crate) const ACK: u8 = 1;
pub(crate) const END_STREAM: u8 = 1;
pub(crate) const END_HEADERS: u8 = 4;

pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// What a receiver allows from the start: of a frame's payload, and of DATA of all streams.
const PAYLOAD_BYTES: usize = 16_384;
const WINDOW_BYTES: u64 = 65_535;

/// No input becomes longer.
const ALL_BYTES_MAX: usize = 256 * 1024;
/// The payload goes on with zeros, 64 times as many as it has bytes.
const STRETCHED: u8 = 0x20;
/// The length says one more than there is.
const LIES: u8 = 0x40;

/// Writes the frames that an input tells of, each in four bytes before its payload: the kind with its two flags, the flags,
/// the stream, the length.
pub(crate) fn of_input(mut input: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    while let [kind, flags, stream, length, rest @ ..] = input {
        if out.len() > ALL_BYTES_MAX {
            break;
        }
        let (payload, rest) = rest.split_at(rest.len().min(usize::from(*length)));
        input = rest;
        let zeros = if kind & STRETCHED == 0 { 0 } else { payload.len() * 64 };
        let told = (payload.len() + zeros) as u32 + u32::from(kind & LIES != 0);
        out.extend_from_slice(&told.to_be_bytes()[1..]);
        out.extend_from_slice(&[kind & 0x1f, *flags, 0, 0, 0, *stream]);
        out.extend_from_slice(payload);
        out.resize(out.len() + zeros, 0);
    }
    out.extend_from_slice(input);
    out
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Frame<'a> {
    pub(crate) kind: u8,
    pub(crate) flags: u8,
    pub(crate) stream: u32,
    pub(crate) payload: &'a [u8],
}

impl Frame<'_> {
    fn number(&self) -> u32 {
        self.payload.first_chunk().map_or(0, |bytes| u32::from_be_bytes(*bytes))
    }

    /// The error of RST_STREAM or GOAWAY.
    pub(crate) fn error(&self) -> u32 {
        let at = if self.kind == GOAWAY { 4 } else { 0 };
        Frame { payload: self.payload.get(at..).unwrap_or_default(), ..*self }.number()
    }
}

/// Those that are whole.
pub(crate) fn read(mut bytes: &[u8]) -> Vec<Frame<'_>> {
    let mut frames = Vec::new();
    while let Some(([a, b, c, kind, flags, s0, s1, s2, s3], rest)) = bytes.split_first_chunk() {
        let length = u32::from_be_bytes([0, *a, *b, *c]) as usize;
        let Some((payload, rest)) = rest.split_at_checked(length) else { break };
        let stream = u32::from_be_bytes([*s0, *s1, *s2, *s3]) & 0x7fff_ffff;
        frames.push(Frame { kind: *kind, flags: *flags, stream, payload });
        bytes = rest;
    }
    frames
}

/// How far a stream is that the gateway writes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stream {
    Begun,
    Ended,
    Reset,
}

/// What the gateway has written is in order: frames of allowed sizes, streams from their head to their end, and no more DATA
/// than the other side has asked for. `begins`: it opens the streams, as a client does.
pub(crate) fn check_order(written: &[Frame<'_>], asked: &[Frame<'_>], begins: bool) {
    let Some((first, rest)) = written.split_first() else { return };
    assert!(first.kind == SETTINGS && first.flags & ACK == 0, "{first:?} comes first");
    let of_kind = |kind| asked.iter().filter(move |frame| frame.kind == kind);
    let may_be_large = of_kind(SETTINGS).any(|frame| frame.payload.chunks(6).any(|one| one.starts_with(&[0, 5])));
    let window: u64 = of_kind(WINDOW_UPDATE)
        .filter(|frame| frame.stream == 0)
        .map(|frame| u64::from(frame.number() & 0x7fff_ffff))
        .sum();
    let highest = asked.iter().map(|frame| frame.stream).max().unwrap_or_default();
    let mut streams = std::collections::HashMap::new();
    let (mut data, mut last_begun) = (0, 0);
    for frame in rest {
        assert!(may_be_large || frame.payload.len() <= PAYLOAD_BYTES, "{} bytes", frame.payload.len());
        let known = streams.get(&frame.stream).copied();
        match frame.kind {
            DATA | HEADERS | RST_STREAM | CONTINUATION => {
                let is_known = if begins { frame.stream <= last_begun } else { frame.stream <= highest };
                let begins_now = begins && frame.kind == HEADERS && frame.stream > last_begun;
                // `h2` answers PUSH_PROMISE of a client with a reset of whatever stream it names.
                let is_of_client = frame.stream % 2 == 1 || (!begins && frame.kind == RST_STREAM);
                assert!(is_of_client && (is_known || begins_now), "{frame:?}");
                last_begun = last_begun.max(frame.stream);
            }
            SETTINGS | PING | GOAWAY => assert_eq!(frame.stream, 0, "{frame:?}"),
            WINDOW_UPDATE => assert!(frame.payload.len() == 4 && frame.number() > 0, "{frame:?}"),
            other => panic!("a frame of kind {other}"),
        }
        let ended = if frame.flags & END_STREAM == 0 { Stream::Begun } else { Stream::Ended };
        let next = match (frame.kind, known) {
            (HEADERS, None | Some(Stream::Begun)) => ended,
            (DATA, Some(Stream::Begun)) => ended,
            (CONTINUATION, Some(stream)) => stream,
            (RST_STREAM, _) => Stream::Reset,
            (HEADERS | DATA | CONTINUATION, known) => panic!("{frame:?} on a stream that is {known:?}"),
            _ => continue,
        };
        streams.insert(frame.stream, next);
        if frame.kind == DATA {
            data += frame.payload.len() as u64;
            assert!(data <= WINDOW_BYTES + window, "{data} bytes");
        }
    }
}
