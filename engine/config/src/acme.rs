//! Certificates that the gateway orders by itself (ACME, RFC 8555): what the planes share of them. The control plane
//! orders and publishes, the data plane shows certificates and answers challenges.

use std::collections::HashMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};
use rcgen::{CertificateParams, CustomExtension, DistinguishedName, DnType, KeyPair};
use ringway_core::auth::HttpUrl;
use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::pki_types::PrivateKeyDer;
use rustls::sign::CertifiedKey;

use crate::tls::Pair;

/// Hosts of one certificate: what public authorities take.
pub const NAMES_MAX: usize = 100;
/// Hosts of all certificates of a configuration together.
pub const ALL_NAMES_MAX: usize = 1000;
/// Challenges that are answered at a time: those of one order.
pub const CHALLENGES_MAX: usize = NAMES_MAX;
/// Bytes of a token, and of what it is answered with; authorities use 43 and 87.
pub const TOKEN_BYTES_MAX: usize = 256;
/// What a ClientHello of an authority offers, and nothing else (RFC 8737 section 6.2).
pub const ALPN: &[u8] = b"acme-tls/1";

/// How certificates are ordered.
#[derive(Debug, Clone)]
pub struct Acme {
    /// The authority's directory; `https`.
    pub directory: HttpUrl,
    /// Where the authority may write to, as URLs.
    pub contact: Vec<String>,
    pub external_account: Option<ExternalAccount>,
    /// A file with the certificates (PEM) to trust for the directory, in place of the system's.
    pub ca: Option<PathBuf>,
    pub storage: Storage,
    pub challenge: ChallengeKind,
    /// How long before its end a certificate is renewed; `None`: a third of its lifetime.
    pub renew_before: Option<Duration>,
    /// Ask the authority when to renew (RFC 9773), where it can say.
    pub ari: bool,
    /// After a first failure; doubles with each one more, up to the second.
    pub back_off: (Duration, Duration),
    /// All certificates of the listeners. Several may be for the same names.
    pub certificates: Vec<Arc<Managed>>,
    pub challenges: Arc<Challenges>,
}

impl Acme {
    /// Takes over what is shown now, for the same names. (A certificate of another authority does until this one's is there.)
    pub(crate) fn go_on_from(&self, old: &Self) {
        for managed in &self.certificates {
            if let Some(known) = old.certificates.iter().find(|known| known.names == managed.names) {
                managed.go_on_from(known);
            }
        }
        self.challenges.go_on_from(&old.challenges);
    }
}

/// An account that the authority knows by other means (RFC 8555 section 7.3.4).
#[derive(Clone)]
pub struct ExternalAccount {
    pub id: String,
    /// The secret, decoded.
    pub key: Arc<[u8]>,
}

impl fmt::Debug for ExternalAccount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ExternalAccount").field("id", &self.id).finish_non_exhaustive()
    }
}

/// Where the account and the certificates are kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Storage {
    Directory(PathBuf),
    /// In the Redis of the configuration, where the keys begin so.
    Redis(Arc<str>),
}

/// How the authority is shown that a host is the gateway's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChallengeKind {
    /// RFC 8555 section 8.3.
    Http01,
    /// RFC 8737.
    TlsAlpn01,
}

/// A certificate that is ordered. Its names are fixed, what is shown for them changes.
pub struct Managed {
    /// In lower case; not empty.
    pub names: Vec<String>,
    issued: ArcSwapOption<Pair>,
    /// Signed by itself: shown until the first certificate is there, so that the listener can start.
    placeholder: Arc<CertifiedKey>,
    status: Mutex<Status>,
}

/// How it stands with a certificate.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Status {
    /// Unix time in seconds of the next order, or the next try.
    pub next_order: Option<i64>,
    /// Why the last try failed; gone after the next success.
    pub last_error: Option<String>,
}

impl fmt::Debug for Managed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Managed").field("names", &self.names).finish_non_exhaustive()
    }
}

impl Managed {
    /// # Errors
    /// Where no certificate can have these names.
    pub fn new(names: Vec<String>) -> Result<Arc<Self>, String> {
        let placeholder = self_signed(&names, "not issued yet", None)?;
        Ok(Arc::new(Self { names, issued: ArcSwapOption::empty(), placeholder, status: Mutex::default() }))
    }

    /// What it is called in metrics and logs: its first name.
    pub fn label(&self) -> &str {
        self.names.first().map_or("unnamed", String::as_str)
    }

    /// What an authority issued.
    pub fn issued(&self) -> Option<Arc<Pair>> {
        self.issued.load_full()
    }

    /// Shows another certificate from the next handshake on.
    pub fn publish(&self, pair: Arc<Pair>) {
        self.issued.store(Some(pair));
    }

    pub fn status(&self) -> Status {
        self.status.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn set_status(&self, status: Status) {
        *self.status.lock().unwrap_or_else(PoisonError::into_inner) = status;
    }

    /// Goes on from the certificate of a configuration before.
    pub(crate) fn go_on_from(&self, old: &Self) {
        self.issued.store(old.issued.load_full());
        self.set_status(old.status());
    }

    pub(crate) fn shown(&self) -> Arc<CertifiedKey> {
        match &*self.issued.load() {
            Some(pair) => pair.key(),
            None => Arc::clone(&self.placeholder),
        }
    }
}

/// What the authority asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Challenge {
    pub kind: ChallengeKind,
    pub name: String,
    pub token: String,
    /// The answer (RFC 8555 section 8.1). Public, unlike the account's key that it is made with.
    pub key_authorization: String,
}

/// The challenges of the order that is under way, for all workers.
#[derive(Default)]
pub struct Challenges(ArcSwap<Answers>);

#[derive(Default)]
struct Answers {
    /// What tokens are answered with.
    tokens: HashMap<String, Arc<str>>,
    /// By host.
    certificates: HashMap<String, Arc<CertifiedKey>>,
}

impl fmt::Debug for Challenges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.load().tokens.keys()).finish()
    }
}

impl Challenges {
    /// Answers these, in place of those before; at most [`CHALLENGES_MAX`].
    ///
    /// # Errors
    /// Where a certificate cannot be made for one.
    pub fn set(&self, challenges: &[Challenge]) -> Result<(), String> {
        let mut answers = Answers::default();
        for challenge in challenges.iter().take(CHALLENGES_MAX) {
            let Challenge { kind, name, token, key_authorization } = challenge;
            match kind {
                _ if token.len().max(key_authorization.len()) > TOKEN_BYTES_MAX => {
                    return Err(format!("a challenge for `{name}` has more than {TOKEN_BYTES_MAX} bytes"));
                }
                ChallengeKind::Http01 => {
                    answers.tokens.insert(token.clone(), key_authorization.as_str().into());
                }
                ChallengeKind::TlsAlpn01 => {
                    let key = self_signed(std::slice::from_ref(name), "ACME challenge", Some(key_authorization))?;
                    answers.certificates.insert(name.clone(), key);
                }
            }
        }
        self.0.store(Arc::new(answers));
        Ok(())
    }

    /// What the token of an HTTP-01 challenge is answered with.
    pub fn answer(&self, token: &str) -> Option<Arc<str>> {
        self.0.load().tokens.get(token).cloned()
    }

    pub(crate) fn certificate(&self, name: &str) -> Option<Arc<CertifiedKey>> {
        self.0.load().certificates.get(name).cloned()
    }

    /// Goes on answering what the configuration before did.
    pub(crate) fn go_on_from(&self, old: &Self) {
        self.0.store(old.0.load_full());
    }
}

/// How orders ended since the start of the process.
#[derive(Debug, Default)]
pub struct Orders {
    pub succeeded: AtomicU64,
    pub failed: AtomicU64,
}

/// A certificate that nobody else vouches for; with the answer to a challenge in it where there is one (RFC 8737
/// section 3).
fn self_signed(names: &[String], subject: &str, key_authorization: Option<&str>) -> Result<Arc<CertifiedKey>, String> {
    let say = |error: rcgen::Error| error.to_string();
    let key = KeyPair::generate().map_err(say)?;
    let mut params = CertificateParams::new(names).map_err(say)?;
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, subject);
    if let Some(text) = key_authorization {
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, text.as_bytes());
        params.custom_extensions.push(CustomExtension::new_acme_identifier(digest.as_ref()));
    }
    let certificate = params.self_signed(&key).map_err(say)?;
    let key = PrivateKeyDer::Pkcs8(key.serialize_der().into());
    let key = any_supported_type(&key).map_err(|error| error.to_string())?;
    // Not looked at again: what checks certificates refuses a critical extension that it does not know.
    Ok(Arc::new(CertifiedKey::new(vec![certificate.der().clone()], key)))
}

#[cfg(test)]
mod tests {
    use x509_parser::parse_x509_certificate;

    use super::*;

    fn challenge(kind: ChallengeKind) -> Challenge {
        let [name, token, key_authorization] = ["a.test", "t", "t.k"].map(str::to_owned);
        Challenge { kind, name, token, key_authorization }
    }

    #[test]
    fn until_it_is_issued_a_placeholder_is_shown() {
        let managed = Managed::new(vec!["a.test".into(), "b.test".into()]).unwrap();
        assert!(managed.issued().is_none());
        assert!(Arc::ptr_eq(&managed.shown(), &managed.placeholder));
        let made = rcgen::generate_simple_self_signed(managed.names.clone()).unwrap();
        let (certificate, key) = (made.cert.pem(), made.signing_key.serialize_pem());
        let issued = Arc::new(Pair::new(certificate.as_bytes(), key.as_bytes(), None).unwrap());
        managed.publish(issued.clone());
        assert!(Arc::ptr_eq(&managed.shown(), &issued.key()));

        let next = Managed::new(managed.names.clone()).unwrap();
        next.go_on_from(&managed);
        assert!(Arc::ptr_eq(&next.shown(), &issued.key()));
    }

    #[test]
    fn challenges_are_answered_until_others_take_their_place() {
        let challenges = Challenges::default();
        challenges.set(&[challenge(ChallengeKind::Http01)]).unwrap();
        assert_eq!(challenges.answer("t").as_deref(), Some("t.k"));
        assert_eq!(challenges.answer("u"), None);
        assert!(challenges.certificate("a.test").is_none());
        challenges.set(&[]).unwrap();
        assert_eq!(challenges.answer("t"), None);

        let long = Challenge { token: "x".repeat(TOKEN_BYTES_MAX + 1), ..challenge(ChallengeKind::Http01) };
        assert!(challenges.set(&[long]).is_err());
    }

    #[test]
    fn the_certificate_of_a_challenge_has_the_digest_in_a_critical_extension() {
        let challenges = Challenges::default();
        challenges.set(&[challenge(ChallengeKind::TlsAlpn01)]).unwrap();
        assert!(challenges.certificate("b.test").is_none());
        let key = challenges.certificate("a.test").unwrap();
        let (_, certificate) = parse_x509_certificate(&key.cert[0]).unwrap();
        let of_acme =
            |extension: &&x509_parser::prelude::X509Extension<'_>| extension.oid.to_id_string() == "1.3.6.1.5.5.7.1.31";
        let extension = certificate.extensions().iter().find(of_acme).expect("acmeIdentifier");
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, b"t.k");
        assert!(extension.critical);
        assert_eq!(extension.value, [&[4, 32], digest.as_ref()].concat());
    }
}
