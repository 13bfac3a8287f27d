//! The chunked transfer coding (RFC 9112 section 7.1), decoded in place.

use std::ops::Range;

/// Bytes of all chunk extensions of one body, the blanks before them included; nobody uses them, attackers do, since
/// they count for no limit on bodies.
pub const CHUNK_EXTENSIONS_BYTES_MAX: usize = 4 * 1024;
/// Bytes of a trailer section.
pub const TRAILERS_BYTES_MAX: usize = 8 * 1024;
/// Hex digits of a chunk size: 2^60 - 1 at most.
const SIZE_DIGITS_MAX: u8 = 15;

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ChunkError {
    #[error("malformed chunk size")]
    Size,
    #[error("malformed or oversized chunk extension")]
    Extension,
    #[error("a chunk does not end where its size says")]
    End,
    #[error("malformed or oversized trailer section")]
    Trailers,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Hex digits of a size; how many there were, and their value.
    Size {
        digits: u8,
        value: u64,
    },
    /// Blanks between a size and the `;` that must follow them.
    Blank {
        value: u64,
    },
    Extension {
        value: u64,
    },
    SizeLf {
        value: u64,
    },
    Data {
        left: u64,
    },
    DataCr,
    DataLf,
    /// Where a trailer section may begin; most bodies end here and need no buffer for it.
    End,
    EndLf,
    Trailers,
    Done,
}

/// A decoder that takes a body in any pieces.
#[derive(Debug)]
pub struct Chunked {
    state: State,
    /// Bytes of extensions so far.
    extensions: usize,
    /// The trailer section as received; empty, and never allocated, for most bodies.
    trailers: Vec<u8>,
}

impl Default for Chunked {
    fn default() -> Self {
        Self { state: State::Size { digits: 0, value: 0 }, extensions: 0, trailers: Vec::new() }
    }
}

impl Chunked {
    /// Decodes `bytes` in place: gives back where the body's bytes lie afterwards, and how many bytes of input are used
    /// up, all of them unless the body has ended. The first piece stays where it is and the others move up to it, so
    /// that a large chunk is not moved at all.
    ///
    /// Hot; watched by the benchmark `chunked`.
    pub fn decode(&mut self, bytes: &mut [u8]) -> Result<(Range<usize>, usize), ChunkError> {
        let (mut read, mut data) = (0, 0..0);
        while let Some(&byte) = bytes.get(read) {
            self.state = match self.state {
                State::Data { left } => {
                    let here = left.min((bytes.len() - read) as u64) as usize;
                    if data.is_empty() {
                        data = read..read;
                    } else {
                        bytes.copy_within(read..read + here, data.end);
                    }
                    read += here;
                    data.end += here;
                    match left - here as u64 {
                        0 => State::DataCr,
                        left => State::Data { left },
                    }
                }
                State::Done => break,
                State::End if byte == b'\r' => {
                    read += 1;
                    State::EndLf
                }
                State::End | State::Trailers => {
                    read += 1;
                    self.trailer_byte(byte)?
                }
                state => {
                    read += 1;
                    let next = between(state, byte)?;
                    if matches!(next, State::Blank { .. } | State::Extension { .. }) {
                        self.extension_byte()?;
                    }
                    next
                }
            };
        }
        Ok((data, read))
    }

    /// Whether the last chunk and the trailer section have been read.
    pub fn is_done(&self) -> bool {
        self.state == State::Done
    }

    /// The trailer section as received, without its last empty line; empty where there is none.
    pub fn trailers(&self) -> &[u8] {
        &self.trailers
    }

    fn extension_byte(&mut self) -> Result<(), ChunkError> {
        self.extensions += 1;
        if self.extensions > CHUNK_EXTENSIONS_BYTES_MAX { Err(ChunkError::Extension) } else { Ok(()) }
    }

    fn trailer_byte(&mut self, byte: u8) -> Result<State, ChunkError> {
        if self.trailers.len() >= TRAILERS_BYTES_MAX {
            return Err(ChunkError::Trailers);
        }
        self.trailers.push(byte);
        match self.trailers.as_slice() {
            [.., b'\r', b'\n', b'\r', b'\n'] => {
                self.trailers.truncate(self.trailers.len() - 2);
                Ok(State::Done)
            }
            [.., b'\r', b'\n'] => Ok(State::Trailers),
            // Neither stands alone.
            [.., b'\r', _] | [.., b'\n'] => Err(ChunkError::Trailers),
            _ => Ok(State::Trailers),
        }
    }
}

/// The steps outside data and trailers.
fn between(state: State, byte: u8) -> Result<State, ChunkError> {
    match (state, byte) {
        (State::Size { digits, value }, _) if byte.is_ascii_hexdigit() => {
            if digits == SIZE_DIGITS_MAX {
                return Err(ChunkError::Size);
            }
            let digit = (byte as char).to_digit(16).map_or(0, u64::from);
            Ok(State::Size { digits: digits + 1, value: value << 4 | digit })
        }
        (State::Size { digits: 1.., value }, b'\r') => Ok(State::SizeLf { value }),
        (State::Size { digits: 1.., value } | State::Blank { value }, b';') => Ok(State::Extension { value }),
        (State::Size { digits: 1.., value } | State::Blank { value }, b' ' | b'\t') => Ok(State::Blank { value }),
        (State::Size { .. } | State::Blank { .. }, _) => Err(ChunkError::Size),
        (State::Extension { value }, b'\r') => Ok(State::SizeLf { value }),
        (State::Extension { value }, _) => {
            let allowed = byte == b'\t' || (byte >= b' ' && byte != 0x7f);
            if allowed { Ok(State::Extension { value }) } else { Err(ChunkError::Extension) }
        }
        (State::SizeLf { value: 0 }, b'\n') => Ok(State::End),
        (State::EndLf, b'\n') => Ok(State::Done),
        (State::EndLf, _) => Err(ChunkError::Trailers),
        (State::SizeLf { value }, b'\n') => Ok(State::Data { left: value }),
        (State::SizeLf { .. }, _) => Err(ChunkError::Size),
        (State::DataCr, b'\r') => Ok(State::DataLf),
        (State::DataLf, b'\n') => Ok(State::Size { digits: 0, value: 0 }),
        (State::DataCr | State::DataLf, _) => Err(ChunkError::End),
        (State::Data { .. } | State::End | State::Trailers | State::Done, _) => Ok(state),
    }
}

/// Room that a chunk's head may take: 16 hex digits and CR LF.
pub const CHUNK_HEAD_MAX: usize = 18;

/// Writes `size` in hex and CR LF to the end of `room`; gives back how many bytes that took.
pub fn write_chunk_head(size: usize, room: &mut [u8; CHUNK_HEAD_MAX]) -> usize {
    let mut at = CHUNK_HEAD_MAX;
    let mut put = |byte: u8| {
        at -= 1;
        if let Some(slot) = room.get_mut(at) {
            *slot = byte;
        }
    };
    put(b'\n');
    put(b'\r');
    let mut left = size;
    loop {
        put(char::from_digit((left & 15) as u32, 16).map_or(b'0', |digit| digit as u8));
        left >>= 4;
        if left == 0 {
            break;
        }
    }
    CHUNK_HEAD_MAX - at
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The body, what was left over, and the trailer section.
    type Parts = (Vec<u8>, Vec<u8>, Vec<u8>);

    /// Decodes in pieces of the given sizes.
    fn decode(mut input: &[u8], pieces: &[usize]) -> Result<Parts, ChunkError> {
        let (mut decoder, mut body) = (Chunked::default(), Vec::new());
        let mut sizes = pieces.iter().copied().cycle();
        while !input.is_empty() && !decoder.is_done() {
            let (piece, rest) = input.split_at(sizes.next().unwrap_or(1).clamp(1, input.len()));
            let mut piece = piece.to_vec();
            let (data, consumed) = decoder.decode(&mut piece)?;
            body.extend_from_slice(&piece[data]);
            input = if decoder.is_done() { &input[consumed..] } else { rest };
        }
        assert!(decoder.is_done(), "incomplete");
        Ok((body, input.to_vec(), decoder.trailers().to_vec()))
    }

    #[test]
    fn decodes_extensions_and_trailers() {
        let input = b"5\r\nhello\r\n6 ;a=\"b\"\r\n world\r\n000\r\nX: y\r\nZ: w\r\n\r\nGET /";
        let (body, rest, trailers) = decode(input, &[input.len()]).unwrap();
        assert_eq!(
            (&body[..], &rest[..], &trailers[..]),
            (&b"hello world"[..], &b"GET /"[..], &b"X: y\r\nZ: w\r\n"[..])
        );
    }

    #[test]
    fn refuses_what_others_guess_at() {
        for (input, error) in [
            (&b"\r\n"[..], ChunkError::Size),
            (b";\r\n", ChunkError::Size),
            (b"5\nhello", ChunkError::Size),
            (b"5 \r\nhello", ChunkError::Size),
            (b"0x5\r\n", ChunkError::Size),
            (b"-1\r\n", ChunkError::Size),
            (b" 5\r\n", ChunkError::Size),
            (b"1000000000000000\r\n", ChunkError::Size),
            (b"5\rx", ChunkError::Size),
            (b"5;a\nb\r\n", ChunkError::Extension),
            (b"5\r\nhello0\r\n", ChunkError::End),
            (b"5\r\nhello\n", ChunkError::End),
            (b"5\r\nhello\rx", ChunkError::End),
            (b"0\r\n\n", ChunkError::Trailers),
            (b"0\r\nA: b\n\r\n", ChunkError::Trailers),
            (b"0\r\nA: b\rC: d\r\n\r\n", ChunkError::Trailers),
        ] {
            let mut bytes = input.to_vec();
            assert_eq!(Chunked::default().decode(&mut bytes), Err(error), "{:?}", String::from_utf8_lossy(input));
        }
    }

    #[test]
    fn extensions_and_trailers_are_bounded() {
        let long = |start: &str, byte| [start.as_bytes(), &[byte; CHUNK_EXTENSIONS_BYTES_MAX + 1]].concat();
        for mut endless in [long("1;", b'a'), long("1", b' '), long("1;", b' '), b"1;a\r\nx\r\n".repeat(4096)] {
            assert_eq!(Chunked::default().decode(&mut endless), Err(ChunkError::Extension));
        }
        let mut long = b"0\r\nA: ".to_vec();
        long.resize(3 * TRAILERS_BYTES_MAX, b'a');
        assert_eq!(Chunked::default().decode(&mut long), Err(ChunkError::Trailers));
    }

    #[test]
    fn chunk_heads() {
        for size in [0, 1, 15, 16, 0x3fff, usize::MAX] {
            let mut room = [0; CHUNK_HEAD_MAX];
            let length = write_chunk_head(size, &mut room);
            assert_eq!(&room[CHUNK_HEAD_MAX - length..], format!("{size:x}\r\n").as_bytes());
        }
    }

    proptest! {
        #[test]
        fn encoding_and_decoding_in_any_pieces_is_identity(
            chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..200), 0..12),
            pieces in prop::collection::vec(1usize..64, 1..8),
            rest in prop::collection::vec(any::<u8>(), 0..10),
        ) {
            let mut input = Vec::new();
            for chunk in &chunks {
                let mut room = [0; CHUNK_HEAD_MAX];
                let length = write_chunk_head(chunk.len(), &mut room);
                input.extend_from_slice(&room[CHUNK_HEAD_MAX - length..]);
                input.extend_from_slice(chunk);
                input.extend_from_slice(b"\r\n");
            }
            input.extend_from_slice(b"0\r\n\r\n");
            input.extend_from_slice(&rest);
            let (body, left, trailers) = decode(&input, &pieces).unwrap();
            prop_assert_eq!(body, chunks.concat());
            prop_assert_eq!(left, rest);
            prop_assert!(trailers.is_empty());
        }

        #[test]
        fn any_bytes_give_the_same_result_in_any_pieces(
            input in prop::collection::vec(prop::sample::select(b"0123af;\r\n \tXx:".to_vec()), 0..60),
            piece in 1usize..8,
        ) {
            let whole = { let mut bytes = input.clone(); let mut d = Chunked::default(); d.decode(&mut bytes).map(|(n, c)| (bytes[n].to_vec(), c, d.is_done())) };
            let mut decoder = Chunked::default();
            let (mut body, mut consumed) = (Vec::new(), 0);
            let mut failed = None;
            for part in input.chunks(piece) {
                let mut part = part.to_vec();
                match decoder.decode(&mut part) {
                    Ok((n, c)) => { body.extend_from_slice(&part[n]); consumed += c; }
                    Err(error) => { failed = Some(error); break; }
                }
            }
            match whole {
                Ok((all, used, done)) => {
                    prop_assert_eq!(failed, None);
                    prop_assert_eq!((body, consumed, decoder.is_done()), (all, used, done));
                }
                Err(error) => prop_assert_eq!(failed, Some(error)),
            }
        }
    }
}
