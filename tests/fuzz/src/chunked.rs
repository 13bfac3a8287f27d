//! The chunked transfer coding.

use ringway_core::http::{CHUNK_HEAD_MAX, Chunked, Name, TRAILERS_BYTES_MAX, write_chunk_head, write_trailers};

use crate::lines;
use crate::pieces::splits;

pub const DICTIONARY: &[&str] = &[
    "\r\n",
    "\n",
    "\r",
    "0\r\n\r\n",
    "0\r\n",
    "5\r\nhello\r\n",
    "1\r\na\r\n",
    "a",
    "F",
    "00000000",
    "fffffffffffffff",
    "1000000000000000",
    "0x",
    "+1",
    "-1",
    " ",
    "\t",
    ";",
    ";a=b",
    ";a=\"b\"",
    ": ",
    "X-Sum: 1\r\n",
    "Content-Length: 3\r\n",
    "Host: a\r\n",
    "\0",
    "\u{e9}",
];

/// What a body is read as.
#[derive(Debug, PartialEq, Eq)]
struct Read {
    body: Vec<u8>,
    trailers: Vec<u8>,
    consumed: usize,
    done: bool,
}

/// Any bytes, as they follow a head.
pub fn target(bytes: &[u8]) {
    let whole = decode(bytes, &[bytes.len()]);
    for split in splits(bytes) {
        assert_eq!(decode(bytes, &split), whole, "in pieces of {split:?}");
    }
    let Some(read) = whole.filter(|read| read.done) else {
        assert_eq!(naive(bytes), None, "refused, or waited for more");
        return;
    };
    assert_eq!(naive(bytes).as_ref(), Some(&read));
    check_encoded(&read);
}

/// `None`: refused.
fn decode(bytes: &[u8], split: &[usize]) -> Option<Read> {
    let (mut decoder, mut room) = (Chunked::default(), bytes.to_vec());
    let (mut body, mut consumed, mut start) = (Vec::new(), 0, 0);
    for size in split {
        let piece = &mut room[start..start + size];
        start += size;
        let (data, used) = decoder.decode(piece).ok()?;
        assert!(data.end <= used && used <= piece.len(), "{data:?} of data from {used}");
        assert!(used == piece.len() || decoder.is_done(), "stopped before the end");
        body.extend_from_slice(&piece[data]);
        consumed += used;
        if decoder.is_done() {
            break;
        }
    }
    let trailers = decoder.trailers().to_vec();
    assert!(trailers.len() <= TRAILERS_BYTES_MAX);
    let done = decoder.is_done();
    // What of a trailer section has come is nobody's business before its end.
    Some(Read { body, trailers: if done { trailers } else { Vec::new() }, consumed, done })
}

/// RFC 9112 section 7.1, line by line; `None` where the body is not whole or not valid.
fn naive(bytes: &[u8]) -> Option<Read> {
    let (mut rest, mut body, mut extensions) = (bytes, Vec::new(), 0);
    loop {
        let (line, after) = line(rest)?;
        rest = after;
        let digits = line.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
        let (size, extension) = line.split_at(digits);
        if !(1..=15).contains(&digits) || !is_extension(extension) {
            return None;
        }
        extensions += extension.len();
        if extensions > ringway_core::http::CHUNK_EXTENSIONS_BYTES_MAX {
            return None;
        }
        let size = usize::from_str_radix(std::str::from_utf8(size).ok()?, 16).ok()?;
        if size == 0 {
            break;
        }
        body.extend_from_slice(rest.get(..size)?);
        rest = rest.get(size..)?.strip_prefix(b"\r\n")?;
    }
    let mut trailers = Vec::new();
    loop {
        let (line, after) = line(rest)?;
        rest = after;
        if line.is_empty() {
            break;
        }
        trailers.extend_from_slice(line);
        trailers.extend_from_slice(b"\r\n");
    }
    // The empty line counts too, where there is a section that it ends.
    if !trailers.is_empty() && trailers.len() + 2 > TRAILERS_BYTES_MAX {
        return None;
    }
    Some(Read { body, trailers, consumed: bytes.len() - rest.len(), done: true })
}

/// Up to CR LF; neither may stand alone.
fn line(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = bytes.iter().position(|byte| matches!(byte, b'\r' | b'\n'))?;
    Some((&bytes[..end], bytes[end..].strip_prefix(b"\r\n")?))
}

fn is_extension(text: &[u8]) -> bool {
    let is_text = |byte: &u8| *byte == b'\t' || (*byte >= b' ' && *byte != 0x7f);
    text.is_empty() || (lines::trim(text).starts_with(b";") && text.iter().all(is_text))
}

/// Encoded again, it is the same body; the trailer section keeps nothing that must not stand there.
fn check_encoded(read: &Read) {
    let mut out = Vec::new();
    for chunk in read.body.chunks(7) {
        let mut room = [0; CHUNK_HEAD_MAX];
        let length = write_chunk_head(chunk.len(), &mut room);
        out.extend_from_slice(&room[CHUNK_HEAD_MAX - length..]);
        out.extend_from_slice(chunk);
        out.extend_from_slice(b"\r\n");
    }
    out.extend_from_slice(b"0\r\n");
    let start = out.len();
    if write_trailers(&read.trailers, |_| true, &mut out).is_none() {
        return;
    }
    let again = decode(&out, &[out.len()]).expect("what is written is accepted");
    assert!(again.done && again.body == read.body && again.consumed == out.len());
    let written = out[start..].strip_suffix(b"\r\n").expect("an empty line ends the section");
    assert_eq!(again.trailers, written);
    for line in lines::split_lines(written.strip_suffix(b"\r\n").unwrap_or_default()).iter().filter(|l| !l.is_empty()) {
        let name = line.split(|byte| *byte == b':').next().unwrap_or_default();
        assert!(lines::is_token(name), "{}", name.escape_ascii());
        let name = Name::of(std::str::from_utf8(name).expect("a token is ASCII"));
        assert!(!name.is_forbidden_in_trailers(), "{name:?}");
    }
}
