//! HTTP/1.1 without I/O (RFC 9112): what is safe to accept, how a message is framed, how it is written again.
//!
//! Framing is what a gateway's safety rests on, so that this codec accepts one reading of a message only: where two
//! recipients could disagree on where it ends, it is refused.

mod chunked;
mod framing;
mod names;
mod request;
mod response;
mod scan;
pub mod websocket;
mod write;

pub use chunked::{
    CHUNK_EXTENSIONS_BYTES_MAX, CHUNK_HEAD_MAX, ChunkError, Chunked, TRAILERS_BYTES_MAX, write_chunk_head,
};
pub use framing::{BodyDecoder, Decoded, Framing};
pub use names::{Name, claims_a_hop, is_look_alike};
pub(crate) use request::host_of;
pub use request::{RequestError, RequestHead, Target};
pub use response::{ResponseError, ResponseHead};
pub use scan::{HeadScan, HeadScanner, leading_empty_lines};
pub use write::{HeadLines, list_has_token, write_trailers};

use std::mem::MaybeUninit;

/// Most header fields of a head, whatever the configuration says.
pub const HEADERS_MAX: usize = 512;

/// HTTP/1.0 or HTTP/1.1; nothing else is spoken here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    Http10,
    Http11,
}

/// Room for one head's header fields, on the stack, used again and again.
pub struct HeadStorage<'b> {
    headers: [MaybeUninit<httparse::Header<'b>>; HEADERS_MAX],
    names: [Name; HEADERS_MAX],
}

impl HeadStorage<'_> {
    #[inline]
    pub fn new() -> Self {
        Self { headers: [const { MaybeUninit::uninit() }; HEADERS_MAX], names: [Name::Other; HEADERS_MAX] }
    }
}

impl Default for HeadStorage<'_> {
    fn default() -> Self {
        Self::new()
    }
}

/// The value of `Content-Length`: digits, nothing else (RFC 9110 section 8.6), below 2^63.
fn parse_length(value: &[u8]) -> Option<u64> {
    if value.is_empty() || value.len() > 18 {
        return None;
    }
    value.iter().try_fold(0u64, |n, byte| byte.is_ascii_digit().then(|| n * 10 + u64::from(byte - b'0')))
}

/// The elements of a comma-separated list (RFC 9110 section 5.6.1), trimmed; empty ones are left out.
pub fn list(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii).filter(|element| !element.is_empty())
}
