//! What a handshake told of a connection: version, suite, and who the client is.

use std::rc::Rc;

use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ringway_core::auth::{ClientCertificate, TlsFacts};
use rustls::server::UnbufferedServerConnection;
use rustls::{CipherSuite, ProtocolVersion};
use x509_parser::asn1_rs::{Any, Oid, Tag};
use x509_parser::extensions::GeneralName;
use x509_parser::parse_x509_certificate;
use x509_parser::x509::{AttributeTypeAndValue, X509Name};

/// What is known of a connection by its handshake. Learned once, and shared by the streams of HTTP/2.
#[derive(Debug, Clone, Default)]
pub(crate) struct Secured {
    version: &'static str,
    cipher: &'static str,
    /// Verified by the handshake, or by the one that its session began with.
    pub(crate) certificate: Option<Rc<ClientCertificate>>,
}

impl Secured {
    /// `tells_services`: they get the whole certificate in a header field.
    pub(super) fn of(tls: &UnbufferedServerConnection, tells_services: bool) -> Self {
        let version = match tls.protocol_version() {
            Some(ProtocolVersion::TLSv1_3) => "TLSv1.3",
            Some(ProtocolVersion::TLSv1_2) => "TLSv1.2",
            _ => "",
        };
        let own = tls.peer_certificates().and_then(<[_]>::first);
        let certificate = own.and_then(|der| read(der, tells_services));
        Self {
            version,
            cipher: tls.negotiated_cipher_suite().map_or("", |suite| registered_name(suite.suite())),
            certificate: certificate.map(Rc::new),
        }
    }

    #[inline]
    pub(crate) fn facts(&self) -> TlsFacts<'_> {
        TlsFacts { version: self.version, cipher: self.cipher, certificate: self.certificate.as_deref() }
    }
}

/// As the registry of IANA calls it.
fn registered_name(suite: CipherSuite) -> &'static str {
    match suite {
        CipherSuite::TLS13_AES_128_GCM_SHA256 => "TLS_AES_128_GCM_SHA256",
        CipherSuite::TLS13_AES_256_GCM_SHA384 => "TLS_AES_256_GCM_SHA384",
        CipherSuite::TLS13_CHACHA20_POLY1305_SHA256 => "TLS_CHACHA20_POLY1305_SHA256",
        other => other.as_str().unwrap_or_default(),
    }
}

/// What a certificate says. `None` where it cannot be read, so that its owner is nobody.
fn read(der: &[u8], tells_services: bool) -> Option<ClientCertificate> {
    let (rest, certificate) = parse_x509_certificate(der).ok()?;
    if !rest.is_empty() {
        return None;
    }
    // Where there are two of an extension that may be there once, none counts.
    let names = certificate.subject_alternative_name().ok().flatten();
    let names = names.as_ref().map(|names| names.value.general_names.as_slice()).unwrap_or_default();
    let first = |pick: fn(&GeneralName<'_>) -> Option<Box<str>>| names.iter().find_map(pick);
    let serial = certificate.raw_serial();
    Some(ClientCertificate {
        subject: distinguished_name(certificate.subject()).into(),
        common_name: certificate.subject().iter_common_name().last().and_then(text).filter(is_plain).map(Into::into),
        san_uri: first(|name| match name {
            GeneralName::URI(uri) => visible(uri),
            _ => None,
        }),
        san_dns: first(|name| match name {
            GeneralName::DNSName(name) => visible(name),
            _ => None,
        }),
        san_email: first(|name| match name {
            GeneralName::RFC822Name(address) => visible(address),
            _ => None,
        }),
        fingerprint: hex(digest(&SHA256, der).as_ref()).into(),
        serial: hex(serial.strip_prefix(&[0]).filter(|rest| !rest.is_empty()).unwrap_or(serial))
            .to_ascii_uppercase()
            .into(),
        not_after: u64::try_from(certificate.validity().not_after.timestamp()).unwrap_or(0),
        header: if tells_services { format!(":{}:", STANDARD.encode(der)).into() } else { "".into() },
        ..ClientCertificate::default()
    })
}

/// An alternative name, which is ASCII without spaces: any other would read differently in a header or a log.
fn visible(name: &str) -> Option<Box<str>> {
    (!name.is_empty() && name.bytes().all(|byte| byte.is_ascii_graphic())).then(|| name.into())
}

fn is_plain(name: &String) -> bool {
    !name.is_empty() && !name.chars().any(char::is_control)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The text of a value of one of the kinds of strings that names have.
fn text(attribute: &AttributeTypeAndValue<'_>) -> Option<String> {
    let value = attribute.attr_value();
    match value.tag() {
        Tag::Utf8String | Tag::PrintableString | Tag::Ia5String | Tag::NumericString | Tag::VisibleString => {
            std::str::from_utf8(value.data).ok().map(str::to_owned)
        }
        Tag::BmpString => {
            let (pairs, rest) = value.data.as_chunks::<2>();
            let units = pairs.iter().map(|pair| u16::from_be_bytes(*pair));
            rest.is_empty().then(|| char::decode_utf16(units).collect::<Result<_, _>>().ok()).flatten()
        }
        _ => None,
    }
}

/// The string form of a name (RFC 4514), in ASCII: the last part first, what is special behind a backslash, other bytes as
/// `\XX`. Values that are no text, or whose type has no usual name, stand in hexadecimal digits (section 2.4).
fn distinguished_name(name: &X509Name<'_>) -> String {
    let mut parts: Vec<String> = Vec::new();
    for part in name.iter_rdn() {
        let pairs = part.iter().map(|pair| match (short_name(pair.attr_type()), text(pair)) {
            (Some(name), Some(text)) => format!("{name}={}", escaped(&text)),
            (Some(name), None) => format!("{name}=#{}", encoded(pair.attr_value())),
            (None, _) => format!("{}=#{}", pair.attr_type().to_id_string(), encoded(pair.attr_value())),
        });
        parts.push(pairs.collect::<Vec<_>>().join("+"));
    }
    parts.reverse();
    parts.join(",")
}

/// RFC 4514 section 3, and two that OpenSSL and nginx name too.
fn short_name(oid: &Oid<'_>) -> Option<&'static str> {
    Some(match oid.to_id_string().as_str() {
        "2.5.4.3" => "CN",
        "2.5.4.5" => "serialNumber",
        "2.5.4.6" => "C",
        "2.5.4.7" => "L",
        "2.5.4.8" => "ST",
        "2.5.4.9" => "street",
        "2.5.4.10" => "O",
        "2.5.4.11" => "OU",
        "0.9.2342.19200300.100.1.1" => "UID",
        "0.9.2342.19200300.100.1.25" => "DC",
        "1.2.840.113549.1.9.1" => "emailAddress",
        _ => return None,
    })
}

/// A value as its DER, in hexadecimal digits.
fn encoded(value: &Any<'_>) -> String {
    let length = value.data.len();
    let size = match length {
        0..=127 => vec![length as u8],
        _ => {
            let bytes = length.to_be_bytes();
            let significant = bytes.iter().skip_while(|byte| **byte == 0);
            let mut size = vec![0x80 | significant.clone().count() as u8];
            size.extend(significant);
            size
        }
    };
    // Names have no tags beyond one byte.
    let constructed = if value.header.is_constructed() { 0x20 } else { 0 };
    let tag = (value.header.class() as u8) << 6 | constructed | value.tag().0 as u8;
    hex(&[&[tag], &size[..], value.data].concat()).to_ascii_uppercase()
}

fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let last = text.len().saturating_sub(1);
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            b',' | b'+' | b'"' | b'\\' | b'<' | b'>' | b';' => out.extend(['\\', char::from(byte)]),
            b'#' if at == 0 => out.push_str("\\#"),
            b' ' if at == 0 || at == last => out.push_str("\\ "),
            b' '..=b'~' => out.push(char::from(byte)),
            _ => out.push_str(&format!("\\{byte:02X}")),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_special_in_a_name_is_escaped() {
        for (text, expected) in [
            ("Sales, \"EU\" + <US>; a\\b", r#"Sales\, \"EU\" \+ \<US\>\; a\\b"#),
            (" both ", r"\ both\ "),
            ("#1 a=b", r"\#1 a=b"),
            ("a#", "a#"),
            ("Jürgen\r\n", r"J\C3\BCrgen\0D\0A"),
            ("", ""),
        ] {
            assert_eq!(escaped(text), expected);
        }
    }

    #[test]
    fn names_that_would_read_differently_are_none() {
        assert_eq!(visible("spiffe://a/b").as_deref(), Some("spiffe://a/b"));
        for bad in ["", "a b", "a\r\nb", "a\0b", "é"] {
            assert_eq!(visible(bad), None, "{bad:?}");
        }
    }
}
