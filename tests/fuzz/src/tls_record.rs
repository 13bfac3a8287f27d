//! Records of TLS: what a peer, or somebody on the way, sends once the keys are known.

use ringway_data::tls_record::{
    APPLICATION_DATA, Cipher, HEADER_BYTES, OVERHEAD_BYTES_MAX, PLAIN_BYTES_MAX, RECORD_BYTES_MAX, alert, length,
};
use rustls::crypto::cipher::{AeadKey, Iv};
use rustls::{ConnectionTrafficSecrets, ProtocolVersion};

pub const DICTIONARY: &[&str] = &[
    "\x17\x03\x03",
    "\x16\x03\x03",
    "\x15\x03\x03",
    "\x14\x03\x03",
    "\0\x12",
    "\0\x02",
    "@\0",
    "A\0",
    "A\x01",
    "\x7f\x7f",
    "\0",
    "\0\0\0\0\0\0\0\0",
    "\x01\0",
    "\x18\0\0\x01\x01",
];

/// A cipher of one of the four forms; two of the same form have the same key.
fn cipher(form: u8) -> Cipher {
    let (key, iv) = (AeadKey::from([7; 32]), Iv::new([9; 12]));
    let secrets = match form & 1 {
        1 => ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv },
        _ => ConnectionTrafficSecrets::Aes256Gcm { key, iv },
    };
    let version = if form & 2 == 0 { ProtocolVersion::TLSv1_3 } else { ProtocolVersion::TLSv1_2 };
    Cipher::new(version, (0, secrets)).expect("a known suite")
}

/// The first byte chooses the form, the second a place to change, the others are what is sent: as they are, and sealed.
pub fn target(bytes: &[u8]) {
    let [form, place, sent @ ..] = bytes else { return };
    check_forged(&mut cipher(*form), sent);
    check_sealed(*form, *place, sent);
}

/// Who does not know the key makes no record that opens, and whatever he sends is bounded.
fn check_forged(opener: &mut Cipher, sent: &[u8]) {
    let mut sent = sent.to_vec();
    let mut rest = &mut sent[..];
    loop {
        let whole = length(rest);
        match (whole, rest) {
            (Ok(None), left) => return assert!(left.len() < HEADER_BYTES),
            (Err(reason), left) => {
                let body = usize::from(u16::from_be_bytes([left[3], left[4]]));
                let expected = if left[1] == 3 { alert::RECORD_OVERFLOW } else { alert::UNEXPECTED_MESSAGE };
                return assert!(reason == expected && (left[1] != 3 || HEADER_BYTES + body > RECORD_BYTES_MAX));
            }
            (Ok(Some(length)), left) => {
                assert!((HEADER_BYTES..=RECORD_BYTES_MAX).contains(&length));
                let Some((record, behind)) = left.split_at_mut_checked(length) else { return };
                assert!(opener.open(record).is_err());
                rest = behind;
            }
        }
    }
}

/// What is sealed opens to the same, in order; a changed record does not, and does no harm to the next one.
fn check_sealed(form: u8, place: u8, sent: &[u8]) {
    let (mut sealer, mut opener) = (cipher(form), cipher(form));
    let size = 1 + usize::from(place) * 7 % PLAIN_BYTES_MAX;
    for piece in sent.chunks(size) {
        let mut record = vec![0; piece.len() + OVERHEAD_BYTES_MAX];
        let count = sealer.seal(APPLICATION_DATA, piece, &mut record).expect("room enough");
        record.truncate(count);
        assert_eq!(length(&record), Ok(Some(count)));
        assert!((0..HEADER_BYTES).all(|end| length(&record[..end]) == Ok(None)));
        let mut changed = record.clone();
        let at = HEADER_BYTES + usize::from(place) % (count - HEADER_BYTES);
        changed[at] ^= 1 << (place & 7);
        assert!(opener.open(&mut changed).is_err());
        let (kind, text) = opener.open(&mut record).expect("our own record");
        assert_eq!((kind, &record[text]), (APPLICATION_DATA, piece));
        assert!(opener.open(&mut record).is_err(), "again");
    }
}
