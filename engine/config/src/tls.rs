//! Certificates and what a listener's TLS does with them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::{self, Ticketer, cipher_suite as suite};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};
use rustls::server::{ClientHello, NoServerSessionStorage, ProducesTickets, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{
    Error, InconsistentKeys, RootCertStore, ServerConfig, SignatureAlgorithm, SupportedProtocolVersion, version,
};
use x509_parser::extensions::GeneralName;
use x509_parser::parse_x509_certificate;

use crate::acme::{self, Challenges, Managed};

/// Which versions and suites are spoken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Policy {
    /// TLS 1.3.
    Modern,
    /// TLS 1.3, and TLS 1.2 with ECDHE and AEAD suites.
    Intermediate,
}

/// Whether clients need a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClientAuth {
    Required,
    Optional,
}

/// A certificate with its key.
#[derive(Debug)]
pub struct Pair {
    key: Arc<CertifiedKey>,
    /// The DNS names that it is for, in lower case.
    names: Vec<String>,
    /// Unix time in seconds from which and up to which it is valid.
    pub not_before: i64,
    pub not_after: i64,
}

impl Pair {
    /// # Errors
    /// In one line, where the texts are no PEM, or the key is not the certificate's.
    pub fn new(certificates: &[u8], key: &[u8], ocsp: Option<Vec<u8>>) -> Result<Self, String> {
        let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(certificates).collect();
        let chain = chain.map_err(|error| format!("its certificates are no PEM ({error})"))?;
        let own = chain.first().ok_or("there is no certificate in it")?.clone();
        let key = PrivateKeyDer::from_pem_slice(key).map_err(|error| format!("its key is no PEM ({error})"))?;
        let mut key = CertifiedKey::from_der(chain, key, &provider()).map_err(|error| match error {
            Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => "the key does not fit the certificate".into(),
            error => error.to_string(),
        })?;
        key.ocsp = ocsp;
        let (_, parsed) = parse_x509_certificate(&own).map_err(|error| format!("it is no certificate ({error})"))?;
        let names = parsed.subject_alternative_name().ok().flatten();
        let names = names.iter().flat_map(|names| &names.value.general_names).filter_map(|name| match name {
            GeneralName::DNSName(name) => Some(name.to_ascii_lowercase()),
            _ => None,
        });
        let validity = parsed.validity();
        let (not_before, not_after) = (validity.not_before.timestamp(), validity.not_after.timestamp());
        Ok(Self { names: names.collect(), key: Arc::new(key), not_before, not_after })
    }

    /// What it is called in metrics and logs: its first name.
    pub fn label(&self) -> &str {
        self.names.first().map_or("unnamed", String::as_str)
    }

    /// The time left at which it should have been replaced: a third of its lifetime, thirty days at most. In seconds.
    pub fn warn_below_s(&self) -> i64 {
        ((self.not_after - self.not_before) / 3).min(30 * 24 * 3600)
    }

    /// The DNS names that it is for, in lower case.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// The certificate itself, without those that lead to its authority.
    pub fn certificate(&self) -> Option<&CertificateDer<'static>> {
        self.key.cert.first()
    }

    pub(crate) fn key(&self) -> Arc<CertifiedKey> {
        Arc::clone(&self.key)
    }

    fn is_rsa(&self) -> bool {
        self.key.key.algorithm() == SignatureAlgorithm::RSA
    }
}

/// Where a certificate of a listener comes from.
#[derive(Debug, Clone)]
pub enum Entry {
    Files(Arc<Pair>),
    /// Ordered by the gateway; ECDSA.
    Managed(Arc<Managed>),
}

impl Entry {
    fn names(&self) -> &[String] {
        match self {
            Self::Files(pair) => &pair.names,
            Self::Managed(managed) => &managed.names,
        }
    }

    fn is_rsa(&self) -> bool {
        matches!(self, Self::Files(pair) if pair.is_rsa())
    }

    fn shown(&self) -> Arc<CertifiedKey> {
        match self {
            Self::Files(pair) => pair.key(),
            Self::Managed(managed) => managed.shown(),
        }
    }

    /// What is shown for its names; `None` where nothing was issued yet.
    pub fn pair(&self) -> Option<Arc<Pair>> {
        match self {
            Self::Files(pair) => Some(Arc::clone(pair)),
            Self::Managed(managed) => managed.issued(),
        }
    }
}

/// The certificates of a listener, by name.
#[derive(Debug)]
pub struct Certificates {
    entries: Vec<Entry>,
    /// Exact names, and what follows the `*.` of wildcards: where they stand in `entries`.
    exact: HashMap<String, Vec<usize>>,
    wildcard: HashMap<String, Vec<usize>>,
    /// The first certificate, and those for the same names.
    default: Vec<usize>,
    /// Those by TLS-ALPN-01, where they are answered.
    challenges: Option<Arc<Challenges>>,
}

impl Certificates {
    /// `entries`: not empty; the first is for clients that name no host, or an unknown one. Whoever asks for a challenge
    /// (TLS-ALPN-01) gets the certificate in `challenges`.
    pub fn new(entries: Vec<Entry>, challenges: Option<Arc<Challenges>>) -> Arc<Self> {
        let (mut exact, mut wildcard) = (HashMap::<_, Vec<usize>>::new(), HashMap::<_, Vec<usize>>::new());
        let mut order: Vec<usize> = (0..entries.len()).collect();
        // Signatures with ECDSA cost a tenth: who knows both gets that.
        order.sort_by_key(|index| entries.get(*index).is_some_and(Entry::is_rsa));
        let mut default = Vec::new();
        for index in order {
            let Some(entry) = entries.get(index) else { continue };
            if index == 0 || entries.first().is_some_and(|first| first.names() == entry.names()) {
                default.push(index);
            }
            for name in entry.names() {
                match name.strip_prefix("*.") {
                    Some(parent) => wildcard.entry(parent.to_owned()).or_default().push(index),
                    None => exact.entry(name.clone()).or_default().push(index),
                }
            }
        }
        Arc::new(Self { entries, exact, wildcard, default, challenges })
    }

    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The certificates that are there.
    pub fn pairs(&self) -> impl Iterator<Item = Arc<Pair>> {
        self.entries.iter().filter_map(Entry::pair)
    }

    fn of(&self, name: &str) -> Option<&[usize]> {
        let wildcard = || self.wildcard.get(name.split_once('.')?.1);
        self.exact.get(name).or_else(wildcard).map(Vec::as_slice)
    }
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let name = hello.server_name().map(str::to_ascii_lowercase);
        if let Some(challenges) = &self.challenges
            && hello.alpn().is_some_and(|offered| offered.eq([acme::ALPN]))
        {
            return name.and_then(|name| challenges.certificate(&name));
        }
        let candidates = name.and_then(|name| self.of(&name)).unwrap_or(&self.default);
        let candidates = candidates.iter().filter_map(|index| self.entries.get(*index));
        let fits = |key: &Arc<CertifiedKey>| key.key.choose_scheme(hello.signature_schemes()).is_some();
        candidates.map(Entry::shown).find(fits)
    }
}

/// AES-128 first: it costs least, and is as safe.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::new(CryptoProvider {
        cipher_suites: vec![
            suite::TLS13_AES_128_GCM_SHA256,
            suite::TLS13_AES_256_GCM_SHA384,
            suite::TLS13_CHACHA20_POLY1305_SHA256,
            suite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
            suite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
            suite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
            suite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
            suite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
            suite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
        ],
        ..aws_lc_rs::default_provider()
    })
}

pub(crate) fn versions(policy: Policy) -> &'static [&'static SupportedProtocolVersion] {
    static VERSIONS: [&SupportedProtocolVersion; 2] = [&version::TLS13, &version::TLS12];
    match policy {
        Policy::Modern => VERSIONS.split_at(1).0,
        Policy::Intermediate => &VERSIONS,
    }
}

/// Authorities and revocations that clients are judged by, as PEM.
pub(crate) type Clients = (ClientAuth, Vec<u8>, Option<Vec<u8>>);

/// `http2`: whether it is offered (ALPN, RFC 7301).
///
/// # Errors
/// In one line.
pub(crate) fn server(
    policy: Policy,
    certificates: Arc<Certificates>,
    clients: Option<Clients>,
    http2: bool,
) -> Result<Arc<ServerConfig>, String> {
    let provider = provider();
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider)).with_protocol_versions(versions(policy));
    let builder = builder.map_err(|error| error.to_string())?;
    let answers_challenges = certificates.challenges.is_some();
    let tickets = tickets(&clients).map_err(|error| format!("there are no keys for session tickets: {error}"))?;
    let builder = match clients {
        None => builder.with_no_client_auth(),
        Some((auth, ca, crl)) => {
            let mut roots = RootCertStore::empty();
            for ca in CertificateDer::pem_slice_iter(&ca) {
                let ca = ca.map_err(|error| format!("`ca` is no PEM ({error})"))?;
                roots.add(ca).map_err(|error| format!("`ca` cannot be used: {error}"))?;
            }
            let crls = revocations(crl.as_deref())?;
            let mut verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
            if !crls.is_empty() {
                verifier = verifier.with_crls(crls).only_check_end_entity_revocation();
            }
            if auth == ClientAuth::Optional {
                verifier = verifier.allow_unauthenticated();
            }
            let verifier = verifier.build().map_err(|error| format!("`client_certificates`: {error}"))?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    let mut server = builder.with_cert_resolver(certificates);
    server.ignore_client_order = true;
    let mut protocols: Vec<&[u8]> = if http2 { vec![b"h2", b"http/1.1"] } else { vec![b"http/1.1"] };
    if answers_challenges {
        // The last: only who offers nothing else gets it.
        protocols.push(acme::ALPN);
    }
    server.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
    server.session_storage = Arc::new(NoServerSessionStorage {});
    server.ticketer = tickets;
    // One is enough; with none a client waits for the acknowledgement of its last message before it asks.
    server.send_tls13_tickets = 1;
    // The workers encrypt and decrypt by themselves.
    server.enable_secret_extraction = true;
    Ok(Arc::new(server))
}

/// The lists in a PEM text.
///
/// # Errors
/// In one line.
pub(crate) fn revocations(crl: Option<&[u8]>) -> Result<Vec<CertificateRevocationListDer<'static>>, String> {
    let Some(crl) = crl else { return Ok(Vec::new()) };
    let found: Result<Vec<_>, _> = CertificateRevocationListDer::pem_slice_iter(crl).collect();
    match found.map_err(|error| format!("`crl` is no PEM ({error})"))? {
        found if found.is_empty() => Err("`crl`: there is no list in it".into()),
        found => Ok(found),
    }
}

/// The keys of session tickets: the same for all listeners and cores of the process that judge clients alike, kept over
/// reloads, changed every six hours. Where clients are judged otherwise a ticket must not stand for a certificate.
fn tickets(clients: &Option<Clients>) -> Result<Arc<dyn ProducesTickets>, Error> {
    type Known = Vec<(Option<Clients>, Weak<dyn ProducesTickets>)>;
    static KNOWN: Mutex<Known> = Mutex::new(Vec::new());
    let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    known.retain(|(_, tickets)| tickets.strong_count() > 0);
    if let Some(tickets) = known.iter().find(|(of, _)| of == clients).and_then(|(_, tickets)| tickets.upgrade()) {
        return Ok(tickets);
    }
    let tickets = Ticketer::new()?;
    known.push((clients.clone(), Arc::downgrade(&tickets)));
    Ok(tickets)
}
