//! The record layer: TLS 1.3 (RFC 8446 section 5), and TLS 1.2 with AEAD suites (RFC 5246 section 6.2.3.3, RFC 5288, RFC 7905).

use std::ops::Range;

use aws_lc_rs::aead::{AES_128_GCM, AES_256_GCM, Aad, Algorithm, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use rustls::{ConnectionTrafficSecrets, ProtocolVersion};

pub(crate) const HEADER_BYTES: usize = 5;
const TAG_BYTES: usize = 16;
/// Plaintext of a record.
pub(crate) const PLAIN_BYTES_MAX: usize = 16 * 1024;
/// What a record may carry behind its header (RFC 8446 section 5.2).
const BODY_BYTES_MAX: usize = PLAIN_BYTES_MAX + 256;
/// The longest record.
pub(crate) const RECORD_BYTES_MAX: usize = HEADER_BYTES + BODY_BYTES_MAX;
/// What sealing adds to a record at most.
pub(crate) const OVERHEAD_BYTES_MAX: usize = HEADER_BYTES + 8 + TAG_BYTES;
/// Records under one key of AES-GCM (RFC 8446 section 5.5).
pub(crate) const RECORDS_MAX: u64 = 1 << 24;

pub(crate) const ALERT: u8 = 21;
pub(crate) const HANDSHAKE: u8 = 22;
pub(crate) const APPLICATION_DATA: u8 = 23;

/// What an alert says (RFC 8446 section 6).
pub(crate) mod alert {
    pub(crate) const CLOSE_NOTIFY: u8 = 0;
    pub(crate) const UNEXPECTED_MESSAGE: u8 = 10;
    pub(crate) const BAD_RECORD_MAC: u8 = 20;
    pub(crate) const RECORD_OVERFLOW: u8 = 22;
    pub(crate) const DECODE_ERROR: u8 = 50;
    pub(crate) const USER_CANCELED: u8 = 90;
    pub(crate) const NO_RENEGOTIATION: u8 = 100;
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
pub(crate) struct Cipher {
    key: LessSafeKey,
    iv: [u8; 12],
    sequence: u64,
    form: Form,
}

/// The whole length of the record that begins here; `None`: too little has come. `Err`: no record, or too long.
pub(crate) fn length(bytes: &[u8]) -> Result<Option<usize>, u8> {
    let Some([_, major, _, high, low]) = bytes.first_chunk::<HEADER_BYTES>() else { return Ok(None) };
    let body = usize::from(u16::from_be_bytes([*high, *low]));
    match (*major, body) {
        (3, 0..=BODY_BYTES_MAX) => Ok(Some(HEADER_BYTES + body)),
        (3, _) => Err(alert::RECORD_OVERFLOW),
        _ => Err(alert::UNEXPECTED_MESSAGE),
    }
}

impl Cipher {
    /// `None` where the suite is not known.
    pub(crate) fn new(version: ProtocolVersion, (sequence, secrets): (u64, ConnectionTrafficSecrets)) -> Option<Self> {
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

    pub(crate) fn is_tls13(&self) -> bool {
        self.form == Form::Tls13
    }

    /// Whether as many records as are safe have been sealed.
    pub(crate) fn is_used_up(&self) -> bool {
        self.sequence >= RECORDS_MAX
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
    pub(crate) fn seal(&mut self, kind: u8, data: &[u8], out: &mut [u8]) -> Option<usize> {
        let (explicit, inner, outer) = match self.form {
            Form::Tls13 => (0, 1, APPLICATION_DATA),
            Form::Gcm12 => (8, 0, kind),
            Form::ChaCha12 => (0, 0, kind),
        };
        let body = explicit + data.len() + inner + TAG_BYTES;
        let out = out.get_mut(..HEADER_BYTES + body)?;
        let (header, rest) = out.split_first_chunk_mut::<HEADER_BYTES>()?;
        let (in_clear, rest) = rest.split_at_mut_checked(explicit)?;
        let (text, tag) = rest.split_at_mut_checked(data.len() + inner)?;
        text.get_mut(..data.len())?.copy_from_slice(data);
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
            _ => self.key.seal_in_place_separate_tag(nonce, Aad::from(self.aad12(kind, data.len())), text),
        };
        tag.copy_from_slice(sealed.ok()?.as_ref());
        self.sequence += 1;
        Some(HEADER_BYTES + body)
    }

    /// Opens a whole record in place: its kind, and where its plaintext stands. `Err`: the alert.
    pub(crate) fn open(&mut self, record: &mut [u8]) -> Result<(u8, Range<usize>), u8> {
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
