//! How a listener speaks TLS.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::acme::{AcmeOf, Hosts, managed};
use crate::acme::ChallengeKind;
use crate::decode::{Cx, OneOrMore, Spanned};
use crate::error::Span;
use crate::scalar::{Int, choice};
use crate::shape::shape;
use crate::snapshot;
use crate::tls::{self, Certificates, ClientAuth, Entry, Pair, Policy};
use crate::units::Time;

shape! {
    /// How a listener speaks TLS.
    pub(crate) struct TlsSection {
        /// One for each name, or for each kind of key (ECDSA beside RSA). A client gets the one whose names fit best what it
        /// asks for, exact before wildcard; else the first.
        certificates: OneOrMore<Spanned<CertificateSection>>,
        /// `modern`: TLS 1.3. `intermediate`: TLS 1.2 too, with ECDHE and AES-GCM or ChaCha20-Poly1305.
        policy: Policy = "intermediate",
        /// Whether clients prove who they are with a certificate.
        client_certificates: Option<ClientCertificatesSection>,
        /// From the connection to the end of the handshake; closed above.
        handshake_timeout: Time<100, 120_000> = "10s",
        /// Handshakes at a time, of each worker; more connections are closed at once.
        handshakes: Int<1, 1_000_000> = "1024",
        /// The same of one client address.
        handshakes_per_ip: Int<1, 1_000_000> = "128",
    }

    /// A certificate and its key, from files or by ACME. Relative paths start at the directory of the configuration file.
    pub(crate) struct CertificateSection {
        /// File with the certificate and those that lead to its authority (PEM).
        certificate: Option<Spanned<String>>,
        /// File with the private key (PEM).
        key: Option<Spanned<String>>,
        /// File with the authority's word that it is not revoked (OCSP, DER), which is stapled.
        ocsp: Option<Spanned<String>>,
        /// In place of files: hosts, no wildcards, whose certificate is ordered as the section `acme` says.
        acme: Option<Hosts>,
    }

    /// Certificates of clients.
    pub(crate) struct ClientCertificatesSection {
        /// File with the authorities that clients' certificates may be of (PEM).
        ca: Spanned<String>,
        /// File with revoked certificates (PEM).
        crl: Option<Spanned<String>>,
        /// `required`: a client without one is refused. `optional`: it passes. One that is not valid is refused in any case.
        verify: ClientAuth = "required",
        /// Tell services of the certificate in `Client-Cert` (RFC 9440). The client's own `Client-Cert` and
        /// `Client-Cert-Chain` are dropped in any case, but for those of `trusted_proxies` where this is off.
        header: bool = "false",
    }
}

choice! {
    Policy {
        "modern" => Policy::Modern,
        "intermediate" => Policy::Intermediate,
    }
    ClientAuth {
        "required" => ClientAuth::Required,
        "optional" => ClientAuth::Optional,
    }
}

impl TlsSection {
    /// `None` after an error, which is reported.
    pub(crate) fn compile(self, span: Span, http2: bool, acme: AcmeOf<'_>, cx: &mut Cx) -> Option<snapshot::Tls> {
        let entries: Vec<Option<Entry>> =
            self.certificates.0.iter().map(|entry| entry.value.compile(entry.span, acme, cx)).collect();
        let entries = entries.into_iter().collect::<Option<Vec<_>>>()?;
        let is_ordered = |entry: &Entry| matches!(entry, Entry::Managed(_));
        let by_handshake = acme.section.filter(|acme| acme.challenge == ChallengeKind::TlsAlpn01);
        let challenges =
            by_handshake.filter(|_| entries.iter().any(is_ordered)).map(|acme| Arc::clone(&acme.challenges));
        if challenges.is_some()
            && let Some(ClientAuth::Required) = self.client_certificates.as_ref().map(|section| section.verify)
        {
            let hint = "`challenge: http-01` in the section `acme`, or `verify: optional`";
            cx.error(span, "authorities have no client certificate to answer `tls-alpn-01` with", hint);
        }
        let clients = match &self.client_certificates {
            None => None,
            Some(section) => Some((
                section.verify,
                read(&section.ca, cx)?.1,
                match &section.crl {
                    Some(crl) => Some(read(crl, cx)?.1),
                    None => None,
                },
            )),
        };
        let written = self.certificates.0.iter().flat_map(|Spanned { value, .. }| {
            [&value.certificate, &value.key, &value.ocsp].into_iter().filter_map(Option::as_ref)
        });
        let clients_files = self.client_certificates.iter();
        let written = written.chain(clients_files.flat_map(|section| std::iter::once(&section.ca).chain(&section.crl)));
        let files = written.map(|path| located(path, cx)).collect();
        let certificates = Certificates::new(entries, challenges);
        let server = tls::server(self.policy, Arc::clone(&certificates), clients, http2);
        let server = server.map_err(|problem| cx.sink.error(span, problem, None)).ok()?;
        Some(snapshot::Tls {
            server,
            certificates,
            files,
            handshake_timeout: self.handshake_timeout.0,
            handshakes: self.handshakes.0 as usize,
            handshakes_per_ip: self.handshakes_per_ip.0 as usize,
            client_cert_header: self.client_certificates.as_ref().is_some_and(|section| section.header),
        })
    }
}

impl CertificateSection {
    fn compile(&self, span: Span, acme: AcmeOf<'_>, cx: &mut Cx) -> Option<Entry> {
        match (&self.acme, &self.certificate, &self.key) {
            (Some(hosts), None, None) if self.ocsp.is_none() => managed(hosts, acme, cx).map(Entry::Managed),
            (Some(hosts), ..) => {
                let hint = "leave `certificate`, `key` and `ocsp` out, or `acme`";
                cx.error(hosts.span, "a certificate comes from files or by ACME, not both", hint);
                None
            }
            (None, Some(certificate), Some(key)) => {
                self.read_pair(certificate, key, cx).map(|pair| Entry::Files(Arc::new(pair)))
            }
            (None, certificate, _) => {
                let missing = if certificate.is_none() { "certificate" } else { "key" };
                cx.error(span, format!("the key `{missing}` is missing: text"), "or `acme: [HOST]` alone");
                None
            }
        }
    }

    fn read_pair(&self, certificate: &Spanned<String>, key: &Spanned<String>, cx: &mut Cx) -> Option<Pair> {
        let (at, certificate, key) = (certificate.span, read(certificate, cx), read(key, cx));
        let ocsp = match &self.ocsp {
            Some(ocsp) => Some(read(ocsp, cx)?.1),
            None => None,
        };
        let ((path, certificate), (_, key)) = (certificate?, key?);
        match Pair::new(&certificate, &key, ocsp) {
            Ok(pair) => Some(pair),
            Err(problem) => {
                let message = format!("`{}` cannot be used: {problem}", path.display());
                cx.error(at, message, "a certificate and its own private key, both in PEM");
                None
            }
        }
    }
}

/// A relative path starts at the directory of the configuration file.
pub(super) fn located(path: &Spanned<String>, cx: &Cx) -> PathBuf {
    Path::new(cx.sink.source(path.span.source)).parent().unwrap_or(Path::new("")).join(&path.value)
}

pub(super) fn read(path: &Spanned<String>, cx: &mut Cx) -> Option<(PathBuf, Vec<u8>)> {
    const FILE_BYTES_MAX: u64 = 1024 * 1024;
    let file = located(path, cx);
    let problem = match std::fs::metadata(&file) {
        Ok(metadata) if !metadata.is_file() => "not a file".into(),
        Ok(metadata) if metadata.len() > FILE_BYTES_MAX => "larger than 1 MiB".into(),
        Ok(_) => match std::fs::read(&file) {
            Ok(text) => return Some((file, text)),
            Err(error) => error.to_string(),
        },
        Err(error) => error.to_string(),
    };
    let hint = "a relative path starts at the directory of the configuration file";
    cx.error(path.span, format!("`{}` cannot be used: {problem}", file.display()), hint);
    None
}
