//! WebSocket as far as a gateway takes part in it (RFC 6455): the opening handshake, and where frames end. What is in
//! the frames is nobody's business here.

use aws_lc_rs::digest;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;

/// Characters of a `Sec-WebSocket-Key`: 16 bytes in base64 (RFC 6455 section 4.1).
pub const KEY_CHARS: usize = 24;
/// Characters of a `Sec-WebSocket-Accept`: a SHA-1 in base64.
pub const ACCEPT_CHARS: usize = 28;
/// Bytes of the longest frame header (RFC 6455 section 5.2): the first two, a length of eight, a masking key.
const HEADER_BYTES_MAX: usize = 14;
/// What a server proves its handshake with (RFC 6455 section 1.3).
const GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
const CLOSE: u8 = 8;
/// "An endpoint is going away" (RFC 6455 section 7.4.1).
const GOING_AWAY: [u8; 2] = 1001u16.to_be_bytes();

/// Whether this is 16 bytes in base64.
pub fn is_key(value: &[u8]) -> bool {
    value.len() == KEY_CHARS && STANDARD.decode(value).is_ok_and(|key| key.len() == 16)
}

/// A `Sec-WebSocket-Key` of these random bytes.
pub fn new_key(random: u128) -> [u8; KEY_CHARS] {
    let mut key = [0; KEY_CHARS];
    // Always fits: 16 bytes are 24 characters.
    let _ = STANDARD.encode_slice(random.to_ne_bytes(), &mut key);
    key
}

/// The `Sec-WebSocket-Accept` that answers a `Sec-WebSocket-Key` (RFC 6455 section 4.2.2).
pub fn accept_of(key: &[u8]) -> [u8; ACCEPT_CHARS] {
    let mut hash = digest::Context::new(&digest::SHA1_FOR_LEGACY_USE_ONLY);
    hash.update(key);
    hash.update(GUID);
    let mut accept = [0; ACCEPT_CHARS];
    // Always fits: 20 bytes are 28 characters.
    let _ = STANDARD.encode_slice(hash.finish().as_ref(), &mut accept);
    accept
}

/// A close frame that says "going away", as a server sends it.
pub const CLOSE_FRAME: [u8; 4] = [0x80 | CLOSE, 2, GOING_AWAY[0], GOING_AWAY[1]];

/// The same as a client sends it (RFC 6455 section 5.3). `mask`: random.
pub const fn masked_close_frame(mask: [u8; 4]) -> [u8; 8] {
    let [a, b, c, d] = mask;
    [0x80 | CLOSE, 0x80 | 2, a, b, c, d, GOING_AWAY[0] ^ a, GOING_AWAY[1] ^ b]
}

/// Follows the frames of one direction, in any pieces.
#[derive(Debug, Default)]
pub struct Frames {
    header: [u8; HEADER_BYTES_MAX],
    /// Bytes of the header so far.
    have: u8,
    /// Bytes of the payload that are still to come.
    left: u64,
    has_closed: bool,
}

impl Frames {
    /// Takes in what went by.
    pub fn pass(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let skipped = self.left.min(bytes.len() as u64);
            self.left -= skipped;
            bytes = bytes.get(skipped as usize..).unwrap_or_default();
            let Some((first, rest)) = bytes.split_first() else { return };
            bytes = rest;
            if let Some(place) = self.header.get_mut(usize::from(self.have)) {
                *place = *first;
            }
            self.have += 1;
            self.judge();
        }
    }

    /// Whether another frame may be put in here (RFC 6455 section 5.5): between two frames, be it of one message, and
    /// before a close frame.
    pub fn may_close(&self) -> bool {
        self.have == 0 && self.left == 0 && !self.has_closed
    }

    fn judge(&mut self) {
        let [first, second, ..] = self.header;
        let length_bytes: u8 = match second & 0x7f {
            126 => 2,
            127 => 8,
            _ => 0,
        };
        let mask_bytes = if second & 0x80 == 0 { 0 } else { 4 };
        if self.have < 2 || self.have < 2 + length_bytes + mask_bytes {
            return;
        }
        let extended = self.header.get(2..2 + usize::from(length_bytes)).unwrap_or_default();
        self.left = match length_bytes {
            0 => u64::from(second & 0x7f),
            _ => extended.iter().fold(0, |length, byte| length << 8 | u64::from(*byte)),
        };
        self.has_closed |= first & 0x0f == CLOSE;
        self.have = 0;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frame(opcode: u8, length: usize, masked: bool) -> Vec<u8> {
        let mask_bit = if masked { 0x80 } else { 0 };
        let mut frame = vec![0x80 | opcode];
        match length {
            0..=125 => frame.push(mask_bit | length as u8),
            126..=0xffff => {
                frame.push(mask_bit | 126);
                frame.extend((length as u16).to_be_bytes());
            }
            _ => {
                frame.push(mask_bit | 127);
                frame.extend((length as u64).to_be_bytes());
            }
        }
        frame.extend(vec![0xff; if masked { 4 } else { 0 } + length]);
        frame
    }

    #[test]
    fn the_handshake_of_the_rfc() {
        assert_eq!(&accept_of(b"dGhlIHNhbXBsZSBub25jZQ=="), b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        assert!(is_key(b"dGhlIHNhbXBsZSBub25jZQ==") && is_key(&new_key(7)) && new_key(7) != new_key(8));
        for bad in [&b""[..], b"dGhlIHNhbXBsZSBub25jZQ", b"dGhlIHNhbXBsZSBub25jZSBsb25n", b"dGhlIHNhbXBsZSBub25j!Q=="] {
            assert!(!is_key(bad), "{}", bad.escape_ascii());
        }
    }

    #[test]
    fn close_frames_are_whole_frames_and_the_last() {
        for frame in [&CLOSE_FRAME[..], &masked_close_frame([1, 2, 3, 4])] {
            let mut frames = Frames::default();
            assert!(frames.may_close());
            frames.pass(frame);
            assert!(frames.have == 0 && frames.left == 0 && frames.has_closed && !frames.may_close());
        }
        assert_eq!(&masked_close_frame([0; 4])[6..], &CLOSE_FRAME[2..]);
    }

    #[test]
    fn an_endless_frame_never_ends() {
        let mut frames = Frames::default();
        frames.pass(&[0x82, 127, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]);
        frames.pass(&[0; 100_000]);
        assert!(!frames.may_close());
    }

    proptest! {
        #[test]
        fn frames_end_where_they_end_in_any_pieces(
            wanted in prop::collection::vec((0u8..3, prop::sample::select(vec![0, 1, 125, 126, 300, 65_535, 65_536]), any::<bool>()), 1..6),
            pieces in prop::collection::vec(1usize..5000, 1..8),
        ) {
            let frames: Vec<Vec<u8>> = wanted.iter().map(|(opcode, length, masked)| frame(*opcode, *length, *masked)).collect();
            let ends: Vec<usize> = frames.iter().scan(0, |at, frame| { *at += frame.len(); Some(*at) }).collect();
            let bytes = frames.concat();
            let (mut seen, mut at) = (Frames::default(), 0);
            for piece in pieces.iter().cycle() {
                let end = (at + piece).min(bytes.len());
                seen.pass(&bytes[at..end]);
                at = end;
                prop_assert_eq!(seen.may_close(), ends.contains(&at));
                if at == bytes.len() {
                    break;
                }
            }
        }
    }
}
