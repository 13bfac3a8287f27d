//! The record layer: TLS 1.3 (RFC 8446 section 5), and TLS 1.2 with AEAD suites (RFC 5246 section 6.2.3.3, RFC 5288, RFC 7905).

use std::ops::Range;

use aws_lc_rs::aead::{AES_128_GCM, AES_256_GCM, Aad, Algorithm, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use rustls::{ConnectionTrafficSecrets, ProtocolVersion};

pub const HEADER_BYTES: usize = 5;
const TAG_BYTES: usize = 16;
/// Plaintext of a record.
pub const PLAIN_BYTES_MAX: usize = 16 * 1024;
/// What a record may carry behind its header (RFC 8446 section 5.2).
const BODY_BYTES_MAX: usize = PLAIN_BYTES_MAX + 256;
/// The longest record.
pub const RECORD_BYTES_MAX: usize = HEADER_BYTES + BODY_BYTES_MAX;
/// What sealing adds to a record at most.
pub const OVERHEAD_BYTES_MAX: usize = HEADER_BYTES + 8 + TAG_BYTES;
/// Records under one key of AES-GCM (RFC 8446 section 5.5).
pub const RECORDS_MAX: u64 = 1 << 24;

pub const ALERT: u8 = 21;
pub const HANDSHAKE: u8 = 22;
pub const APPLICATION_DATA: u8 = 23;

/// What an alert says (RFC 8446 section 6).
pub mod alert {
    pub const CLOSE_NOTIFY: u8 = 0;
    pub const UNEXPECTED_MESSAGE: u8 = 10;
    pub const BAD_RECORD_MAC: u8 = 20;
    pub const RECORD_OVERFLOW: u8 = 22;
    pub const DECODE_ERROR: u8 = 50;
    pub const USER_CANCELED: u8 = 90;
    pub const NO_RENEGOTIATION: u8 = 100;
}

/// How nonces and additional data are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Tls13,
    /// With half of the nonce in the record.
    Gcm12,
    ChaCha12,
}

/// One direction of a connection.
pub struct Cipher {
    key: LessSafeKey,
    iv: [u8; 12],
    sequence: u64,
    form: Form,
}

/// The whole length of the record that begins here; `None`: too little has come. `Err`: no record, or too long.
pub fn length(bytes: &[u8]) -> Result<Option<usize>, u8> {
    let Some([_, major, _, high, low]) = bytes.first_chunk::<HEADER_BYTES>() else { return Ok(None) };
    let body = usize::from(u16::from_be_bytes([*high, *low]));
    match (*major, body) {
        (3, 0..=BODY_BYTES_MAX) => Ok(Some(HEADER_BYTES + body)),
        (3, _) => Err(alert::RECORD_OVERFLOW),
        _ => Err(alert::UNEXPECTED_MESSAGE),
    }
}

impl Cipher {
    /// Goes on with these keys, behind as many records. `None` where the suite is not known.
    pub fn new(version: ProtocolVersion, (sequence, secrets): (u64, ConnectionTrafficSecrets)) -> Option<Self> {
        use ConnectionTrafficSecrets::{Aes128Gcm, Aes256Gcm, Chacha20Poly1305};
        let gcm = if version == ProtocolVersion::TLSv1_3 { Form::Tls13 } else { Form::Gcm12 };
        let chacha = if version == ProtocolVersion::TLSv1_3 { Form::Tls13 } else { Form::ChaCha12 };
        let (algorithm, key, iv, form): (&'static Algorithm, _, _, _) = match secrets {
            Aes128Gcm { key, iv } => (&AES_128_GCM, key, iv, gcm),
            Aes256Gcm { key, iv } => (&AES_256_GCM, key, iv, gcm),
            Chacha20Poly1305 { key, iv } => (&CHACHA20_POLY1305, key, iv, chacha),
            _ => return None,
        };
        let key = LessSafeKey::new(UnboundKey::new(algorithm, key.as_ref()).ok()?);
        Some(Self { key, iv: iv.as_ref().try_into().ok()?, sequence, form })
    }

    pub fn is_tls13(&self) -> bool {
        self.form == Form::Tls13
    }

    /// Whether as many records as are safe have been sealed.
    pub fn is_used_up(&self) -> bool {
        self.sequence >= RECORDS_MAX
    }

    /// As if as many had been.
    #[cfg(test)]
    pub(super) fn use_up(&mut self) {
        self.sequence = RECORDS_MAX;
    }

    fn nonce(&self) -> [u8; 12] {
        let mut nonce = self.iv;
        nonce.iter_mut().skip(4).zip(self.sequence.to_be_bytes()).for_each(|(byte, of)| *byte ^= of);
        nonce
    }

    /// Additional data of TLS 1.2.
    fn aad12(&self, kind: u8, length: usize) -> [u8; 13] {
        let ([a, b, c, d, e, f, g, h], [high, low]) = (self.sequence.to_be_bytes(), (length as u16).to_be_bytes());
        [a, b, c, d, e, f, g, h, kind, 3, 3, high, low]
    }

    /// Writes a record with `data`, at most [`PLAIN_BYTES_MAX`], to the front of `out`. Its length; `None` where there is
    /// no room.
    ///
    /// Hot; watched by the test `cost`.
    pub fn seal(&mut self, kind: u8, data: &[u8], out: &mut [u8]) -> Option<usize> {
        self.seal_with(kind, data.len(), out, |text| text.copy_from_slice(data))
    }

    /// As [`Cipher::seal`], of `length` bytes that `fill` writes.
    pub fn seal_with(
        &mut self,
        kind: u8,
        length: usize,
        out: &mut [u8],
        fill: impl FnOnce(&mut [u8]),
    ) -> Option<usize> {
        let (explicit, inner, outer) = match self.form {
            Form::Tls13 => (0, 1, APPLICATION_DATA),
            Form::Gcm12 => (8, 0, kind),
            Form::ChaCha12 => (0, 0, kind),
        };
        let body = explicit + length + inner + TAG_BYTES;
        let out = out.get_mut(..HEADER_BYTES + body)?;
        let (header, rest) = out.split_first_chunk_mut::<HEADER_BYTES>()?;
        let (in_clear, rest) = rest.split_at_mut_checked(explicit)?;
        let (text, tag) = rest.split_at_mut_checked(length + inner)?;
        fill(text.get_mut(..length)?);
        if inner == 1 {
            *text.last_mut()? = kind;
        }
        let [high, low] = (body as u16).to_be_bytes();
        *header = [outer, 3, 3, high, low];
        let nonce = self.nonce();
        if let (8, Some(half)) = (explicit, nonce.get(4..)) {
            in_clear.copy_from_slice(half);
        }
        let nonce = Nonce::assume_unique_for_key(nonce);
        let sealed = match self.form {
            Form::Tls13 => self.key.seal_in_place_separate_tag(nonce, Aad::from(&*header), text),
            _ => self.key.seal_in_place_separate_tag(nonce, Aad::from(self.aad12(kind, length)), text),
        };
        tag.copy_from_slice(sealed.ok()?.as_ref());
        self.sequence += 1;
        Some(HEADER_BYTES + body)
    }

    /// Opens a whole record in place: its kind, and where its plaintext stands. `Err`: the alert.
    pub fn open(&mut self, record: &mut [u8]) -> Result<(u8, Range<usize>), u8> {
        const BAD: u8 = alert::BAD_RECORD_MAC;
        let (header, body) = record.split_first_chunk_mut::<HEADER_BYTES>().ok_or(BAD)?;
        let outer = header[0];
        let mut nonce = self.nonce();
        let (start, plain) = match self.form {
            Form::Tls13 if outer != APPLICATION_DATA => return Err(alert::UNEXPECTED_MESSAGE),
            Form::Tls13 => {
                let nonce = Nonce::assume_unique_for_key(nonce);
                (0, self.key.open_in_place(nonce, Aad::from(&*header), body).map_err(|_| BAD)?)
            }
            Form::Gcm12 | Form::ChaCha12 => {
                let explicit = if self.form == Form::Gcm12 { 8 } else { 0 };
                let (in_clear, text) = body.split_at_mut_checked(explicit).ok_or(BAD)?;
                if let (8, Some(half)) = (explicit, nonce.get_mut(4..)) {
                    half.copy_from_slice(in_clear);
                }
                let nonce = Nonce::assume_unique_for_key(nonce);
                let aad = Aad::from(self.aad12(outer, text.len().checked_sub(TAG_BYTES).ok_or(BAD)?));
                (explicit, self.key.open_in_place(nonce, aad, text).map_err(|_| BAD)?)
            }
        };
        self.sequence = self.sequence.checked_add(1).ok_or(BAD)?;
        let (kind, length) = match self.form {
            // The kind stands behind the text, before zeros.
            Form::Tls13 => {
                let at = plain.iter().rposition(|byte| *byte != 0).ok_or(alert::UNEXPECTED_MESSAGE)?;
                (plain.get(at).copied().unwrap_or_default(), at)
            }
            _ => (outer, plain.len()),
        };
        if length > PLAIN_BYTES_MAX {
            return Err(alert::RECORD_OVERFLOW);
        }
        let start = HEADER_BYTES + start;
        Ok((kind, start..start + length))
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use proptest::prelude::*;
    use rustls::ClientConnection;
    use rustls::crypto::cipher::{AeadKey, Iv};

    use super::super::testing::{SUITES, deliver, shaken};
    use super::*;

    /// What a client of rustls sends is opened here, and what is sealed here it reads.
    struct Ends {
        opener: Cipher,
        sealer: Cipher,
        client: ClientConnection,
    }

    impl Ends {
        fn new(suite: rustls::SupportedCipherSuite) -> Self {
            let (server, client) = shaken(suite);
            let (secrets, keys) = server.dangerous_into_kernel_connection().unwrap();
            let version = keys.protocol_version();
            let [opener, sealer] = [secrets.rx, secrets.tx].map(|secrets| Cipher::new(version, secrets).unwrap());
            Self { opener, sealer, client }
        }

        /// The records of what the client writes.
        fn written(&mut self, data: &[u8]) -> Vec<u8> {
            self.client.writer().write_all(data).unwrap();
            let mut records = Vec::new();
            while self.client.wants_write() {
                self.client.write_tls(&mut records).unwrap();
            }
            records
        }
    }

    /// Opens all records, of application data.
    fn open_all(opener: &mut Cipher, mut records: &mut [u8]) -> Result<Vec<u8>, u8> {
        let mut data = Vec::new();
        while !records.is_empty() {
            let (record, rest) = records.split_at_mut(length(records)?.unwrap());
            let (kind, text) = opener.open(record)?;
            assert_eq!(kind, APPLICATION_DATA);
            data.extend_from_slice(&record[text]);
            records = rest;
        }
        Ok(data)
    }

    fn sealed(sealer: &mut Cipher, kind: u8, data: &[u8]) -> Vec<u8> {
        let mut record = vec![0; data.len() + OVERHEAD_BYTES_MAX];
        let length = sealer.seal(kind, data, &mut record).unwrap();
        record.truncate(length);
        record
    }

    fn bytes(count: usize) -> Vec<u8> {
        (0..count).map(|at| (at.wrapping_mul(0x9e37_79b1) >> 13) as u8).collect()
    }

    /// Two ciphers with the same key, for each form.
    fn twins() -> [[Cipher; 2]; 4] {
        let cipher = |version, is_chacha| {
            let (key, iv) = (AeadKey::from([7; 32]), Iv::new([9; 12]));
            let secrets = match is_chacha {
                true => ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv },
                false => ConnectionTrafficSecrets::Aes256Gcm { key, iv },
            };
            Cipher::new(version, (5, secrets)).unwrap()
        };
        let twins = |version, is_chacha| [cipher(version, is_chacha), cipher(version, is_chacha)];
        let (tls13, tls12) = (ProtocolVersion::TLSv1_3, ProtocolVersion::TLSv1_2);
        [twins(tls13, false), twins(tls13, true), twins(tls12, false), twins(tls12, true)]
    }

    #[test]
    fn rustls_and_we_read_each_other() {
        for suite in SUITES {
            let mut ends = Ends::new(suite);
            for count in [1, 15, 16, 1000, PLAIN_BYTES_MAX - 1, PLAIN_BYTES_MAX, PLAIN_BYTES_MAX * 2 + 1] {
                let data = bytes(count);
                let mut records = ends.written(&data);
                assert!(open_all(&mut ends.opener, &mut records) == Ok(data.clone()), "{suite:?}, {count} bytes");
                for piece in data.chunks(PLAIN_BYTES_MAX) {
                    let record = sealed(&mut ends.sealer, APPLICATION_DATA, piece);
                    deliver(&mut ends.client, &record).unwrap();
                    let mut read = vec![0; piece.len()];
                    ends.client.reader().read_exact(&mut read).unwrap();
                    assert!(read == piece, "{suite:?}, {count} bytes");
                }
            }
            let close = sealed(&mut ends.sealer, ALERT, &[1, alert::CLOSE_NOTIFY]);
            deliver(&mut ends.client, &close).unwrap();
            assert_eq!(ends.client.reader().read(&mut [0; 8]).unwrap(), 0, "{suite:?}");
        }
    }

    #[test]
    fn records_that_were_changed_swapped_or_repeated_are_refused() {
        for suite in SUITES {
            let records: Vec<Vec<u8>> = {
                let mut ends = Ends::new(suite);
                let [first, second] = [b"first".as_slice(), b"second"].map(|data| ends.written(data));
                assert_eq!(ends.opener.open(&mut second.clone()), Err(alert::BAD_RECORD_MAC), "out of order");
                assert!(ends.opener.open(&mut first.clone()).is_ok(), "a refused one does not count");
                assert_eq!(ends.opener.open(&mut first.clone()), Err(alert::BAD_RECORD_MAC), "again");
                assert!(ends.opener.open(&mut second.clone()).is_ok());
                vec![first, second]
            };
            let mut ends = Ends::new(suite);
            assert!(ends.opener.open(&mut records[0].clone()).is_err(), "another connection's");
            let good = ends.written(b"a record");
            for at in 0..good.len() {
                let mut bad = good.clone();
                bad[at] ^= 0x40;
                // The version and the length are not the cipher's to judge, but in TLS 1.3 they are sealed too.
                let is_header = matches!(at, 1..=4) && !ends.opener.is_tls13();
                assert!(is_header || ends.opener.open(&mut bad).is_err(), "{suite:?}, byte {at}");
            }
            let short = good.len() - 1;
            assert!(ends.opener.open(&mut good[..short].to_vec()).is_err());
            assert!(ends.opener.open(&mut good[..HEADER_BYTES].to_vec()).is_err());
            assert!(ends.opener.open(&mut []).is_err());
            assert!(ends.opener.open(&mut good.clone()).is_ok());
        }
    }

    #[test]
    fn lengths_are_judged_before_anything_is_opened() {
        let header = |major, body: usize| [&[23, major, 3][..], &(body as u16).to_be_bytes()].concat();
        assert_eq!(length(&header(3, BODY_BYTES_MAX)), Ok(Some(RECORD_BYTES_MAX)));
        assert_eq!(length(&header(3, 0)), Ok(Some(HEADER_BYTES)));
        assert_eq!(length(&header(3, BODY_BYTES_MAX + 1)), Err(alert::RECORD_OVERFLOW));
        assert_eq!(length(&header(2, 1)), Err(alert::UNEXPECTED_MESSAGE));
        assert!((0..HEADER_BYTES).all(|end| length(&header(3, 9)[..end]) == Ok(None)));
        for [mut sealer, mut opener] in twins() {
            // The longest that is allowed, and one byte more, sealed with the right key.
            for (count, expected) in [(PLAIN_BYTES_MAX, None), (PLAIN_BYTES_MAX + 1, Some(alert::RECORD_OVERFLOW))] {
                let mut record = sealed(&mut sealer, APPLICATION_DATA, &bytes(count));
                assert_eq!(opener.open(&mut record).err(), expected);
            }
        }
    }

    #[test]
    fn padding_is_taken_off() {
        let [[mut sealer, mut opener], ..] = twins();
        let mut padded = sealed(&mut sealer, 0, b"text\x17\0\0\0");
        let (kind, text) = opener.open(&mut padded).unwrap();
        assert_eq!((kind, &padded[text]), (APPLICATION_DATA, &b"text"[..]));
        let mut nothing = sealed(&mut sealer, 0, &[0; 20]);
        assert_eq!(opener.open(&mut nothing), Err(alert::UNEXPECTED_MESSAGE), "RFC 8446 section 5.4");
        let mut in_clear = [ALERT, 3, 3, 0, 2, 2, 40];
        assert_eq!(opener.open(&mut in_clear), Err(alert::UNEXPECTED_MESSAGE));
    }

    #[test]
    fn where_there_is_no_room_nothing_is_sealed() {
        for [mut sealer, mut opener] in twins() {
            let whole = sealed(&mut sealer, APPLICATION_DATA, b"data").len();
            for room in 0..whole {
                assert_eq!(sealer.seal(APPLICATION_DATA, b"data", &mut vec![0; room]), None);
            }
            let mut next = sealed(&mut sealer, APPLICATION_DATA, b"data");
            assert!(opener.open(&mut next).is_err(), "the first one is missing");
            assert_eq!(next.len(), whole);
        }
    }

    #[test]
    fn a_key_is_used_up() {
        for [mut sealer, _] in twins() {
            sealer.use_up();
            sealer.sequence -= 1;
            assert!(!sealer.is_used_up());
            sealed(&mut sealer, APPLICATION_DATA, b"");
            assert!(sealer.is_used_up());
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn what_is_sealed_is_opened_and_nothing_else(
            pieces in prop::collection::vec((1..255u8, prop::collection::vec(any::<u8>(), 0..300)), 1..6),
            at in any::<prop::sample::Index>(), bit in 0..8u32,
        ) {
            for [mut sealer, mut opener] in twins() {
                for (kind, data) in &pieces {
                    let record = sealed(&mut sealer, *kind, data);
                    prop_assert_eq!(length(&record), Ok(Some(record.len())));
                    let mut bad = record.clone();
                    let place = at.index(bad.len());
                    bad[place] ^= 1 << bit;
                    if opener.is_tls13() || place >= HEADER_BYTES || place == 0 {
                        prop_assert!(opener.open(&mut bad).is_err());
                    }
                    let mut record = record;
                    let (opened, text) = opener.open(&mut record).unwrap();
                    prop_assert_eq!((opened, &record[text]), (*kind, &data[..]));
                }
            }
        }
    }
}
