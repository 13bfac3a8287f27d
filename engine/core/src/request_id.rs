//! The ID that a request carries through the gateway, its service, the log and an error's body.

use std::fmt;

use crate::byte_set::ByteSet;
use crate::hex;

/// Bytes of an ID that the gateway makes.
pub const LEN: usize = 36;

/// Most bytes of an ID that is taken over from a client.
pub const BYTES_MAX: usize = 64;

/// A request's ID: safe in a header value and in a JSON string as it is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct RequestId {
    /// Zero beyond `len`.
    bytes: [u8; BYTES_MAX],
    len: u8,
}

impl RequestId {
    /// A UUID of version 7 (RFC 9562 section 5.7): the 48 low bits of `unix_ms` and 74 of `random`.
    ///
    /// Hot; watched by the benchmark `request_id`.
    #[inline]
    pub fn generate(unix_ms: u64, random: u128) -> Self {
        let version_and_random = 0x7000 | (random >> 64) as u64 & 0x0fff;
        let time = hex::digits(unix_ms << 16 | version_and_random);
        let rest = hex::digits(1 << 63 | random as u64 >> 2);

        let mut bytes = [0; BYTES_MAX];
        bytes[0..8].copy_from_slice(&time[0..8]);
        bytes[8] = b'-';
        bytes[9..13].copy_from_slice(&time[8..12]);
        bytes[13] = b'-';
        bytes[14..18].copy_from_slice(&time[12..16]);
        bytes[18] = b'-';
        bytes[19..23].copy_from_slice(&rest[0..4]);
        bytes[23] = b'-';
        bytes[24..36].copy_from_slice(&rest[4..16]);
        Self { bytes, len: LEN as u8 }
    }

    /// Takes over an ID that a trusted client sent: 1 to [`BYTES_MAX`] bytes of `[A-Za-z0-9._~+/=:@-]`.
    pub fn accept(value: &[u8]) -> Option<Self> {
        let mut bytes = [0; BYTES_MAX];
        bytes.get_mut(..value.len())?.copy_from_slice(value);
        if value.is_empty() || !ALLOWED.contains_all(value) {
            return None;
        }
        Some(Self { bytes, len: value.len() as u8 })
    }

    #[inline]
    pub fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..usize::from(self.len)).unwrap_or_default()
    }
}

impl fmt::Debug for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RequestId({})", self.as_bytes().escape_ascii())
    }
}

static ALLOWED: ByteSet = ByteSet::alphanumeric_and(b"._~+/=:@-");

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_example_of_the_rfc() {
        // RFC 9562 appendix A.6: unix_ts_ms 0x017F22E279B0, rand_a 0xCC3, rand_b 0x18C4DC0C0C07398F.
        let random = 0xcc3 << 64 | 0x18c4_dc0c_0c07_398f << 2;
        let id = RequestId::generate(0x017f_22e2_79b0, random);
        assert_eq!(id.as_bytes(), b"017f22e2-79b0-7cc3-98c4-dc0c0c07398f");
        assert_eq!(format!("{id:?}"), "RequestId(017f22e2-79b0-7cc3-98c4-dc0c0c07398f)");
    }

    proptest! {
        #[test]
        fn generated_ids_are_uuids_of_version_7_that_sort_by_time(unix_ms in 0..1u64 << 47, random: u128) {
            let id = RequestId::generate(unix_ms, random);
            let text = std::str::from_utf8(id.as_bytes()).unwrap();
            prop_assert_eq!(text.len(), LEN);
            let value = u128::from_str_radix(&text.replace('-', ""), 16).unwrap();
            prop_assert_eq!((value >> 80) as u64, unix_ms);
            prop_assert_eq!(value >> 76 & 0xf, 7);
            prop_assert_eq!(value >> 62 & 0b11, 0b10);
            let dashes: Vec<_> = text.match_indices('-').map(|(at, _)| at).collect();
            prop_assert_eq!(dashes, [8, 13, 18, 23]);
            prop_assert!(RequestId::generate(unix_ms + 1, random).as_bytes() > id.as_bytes());
            prop_assert_eq!(RequestId::accept(id.as_bytes()), Some(id));
        }
    }

    #[test]
    fn only_sane_ids_are_accepted() {
        for sane in ["a", "550e8400-e29b-41d4-a716-446655440000", "AZ09._~+/=:@-", &"x".repeat(64)] {
            assert_eq!(RequestId::accept(sane.as_bytes()).unwrap().as_bytes(), sane.as_bytes());
        }
        for wrong in ["", " ", "a b", "a\"b", "a\\b", "a\r\nX: y", "a,b", "\u{fc}", "a\0", "<>", &"x".repeat(65)] {
            assert_eq!(RequestId::accept(wrong.as_bytes()), None, "{wrong:?}");
        }
    }
}
