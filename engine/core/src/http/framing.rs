//! How long a body is, and the one decoder for all of the ways to say so.

use std::ops::Range;

use super::{ChunkError, Chunked};

/// How a message's body is delimited (RFC 9112 section 6.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    None,
    /// So many bytes, more than 0.
    Length(u64),
    Chunked,
    /// Until the connection is closed; answers only.
    Close,
}

/// Turns the bytes of a connection into those of a body.
#[derive(Debug)]
pub enum BodyDecoder {
    Length(u64),
    Chunked(Chunked),
    Close,
}

/// What one call of [`BodyDecoder::decode`] found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decoded {
    /// Where in the bytes the body's lie now.
    pub data: Range<usize>,
    /// Bytes of the input that belong to this body; what follows is the next message's.
    pub consumed: usize,
    /// The body is whole.
    pub done: bool,
}

impl BodyDecoder {
    pub fn new(framing: Framing) -> Self {
        match framing {
            Framing::None => Self::Length(0),
            Framing::Length(length) => Self::Length(length),
            Framing::Chunked => Self::Chunked(Chunked::default()),
            Framing::Close => Self::Close,
        }
    }

    /// Decodes in place.
    #[inline]
    pub fn decode(&mut self, bytes: &mut [u8]) -> Result<Decoded, ChunkError> {
        match self {
            Self::Length(left) => {
                let data = (*left).min(bytes.len() as u64) as usize;
                *left -= data as u64;
                Ok(Decoded { data: 0..data, consumed: data, done: *left == 0 })
            }
            Self::Chunked(chunked) => {
                let (data, consumed) = chunked.decode(bytes)?;
                Ok(Decoded { data, consumed, done: chunked.is_done() })
            }
            Self::Close => Ok(Decoded { data: 0..bytes.len(), consumed: bytes.len(), done: false }),
        }
    }

    pub fn is_done(&self) -> bool {
        match self {
            Self::Length(left) => *left == 0,
            Self::Chunked(chunked) => chunked.is_done(),
            Self::Close => false,
        }
    }

    /// The trailer section of a chunked body, once it is done.
    pub fn trailers(&self) -> &[u8] {
        match self {
            Self::Chunked(chunked) => chunked.trailers(),
            _ => &[],
        }
    }
}
