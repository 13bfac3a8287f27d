//! How services are spoken to in TLS.

use std::sync::{Arc, Mutex, PoisonError, Weak};

use aws_lc_rs::digest::{Context, SHA256};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::sign::SingleCertAndKey;
use rustls::{ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};

use crate::tls::{Pair, Policy, provider, revocations, versions};

/// Names of services that sessions are remembered of, eight of each.
const SESSION_NAMES_MAX: usize = 256;

/// Whose certificates are believed.
#[derive(PartialEq, Eq)]
pub(crate) enum Trust {
    System,
    /// Those of a PEM file.
    Authorities(Vec<u8>),
    /// Whoever answers.
    Anybody,
}

/// All that decides how a service is spoken to.
pub(crate) struct Written {
    pub(crate) policy: Policy,
    pub(crate) trust: Trust,
    /// Lists of revoked certificates, as PEM.
    pub(crate) crl: Option<Vec<u8>>,
    /// The gateway's own certificate, and the texts that it was read from.
    pub(crate) own: Option<(Arc<Pair>, [Vec<u8>; 2])>,
}

/// The same for all who want the same, and kept over reloads: with its sessions, and so that connections go on.
///
/// # Errors
/// In one line.
pub(crate) fn client(written: Written) -> Result<Arc<ClientConfig>, String> {
    type Known = Vec<([u8; 32], Weak<ClientConfig>)>;
    static KNOWN: Mutex<Known> = Mutex::new(Vec::new());
    let authorities = authorities(&written.trust)?;
    let digest = digest(&written, authorities.as_deref().unwrap_or_default());
    let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    known.retain(|(_, client)| client.strong_count() > 0);
    if let Some(client) = known.iter().find(|(of, _)| *of == digest).and_then(|(_, client)| client.upgrade()) {
        return Ok(client);
    }
    let client = Arc::new(make(written, authorities)?);
    known.push((digest, Arc::downgrade(&client)));
    Ok(client)
}

/// `None`: nothing is verified.
fn authorities(trust: &Trust) -> Result<Option<Vec<CertificateDer<'static>>>, String> {
    match trust {
        Trust::Anybody => Ok(None),
        Trust::Authorities(text) => {
            let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(text).collect();
            let found = found.map_err(|error| format!("`ca` is no PEM ({error})"))?;
            if found.is_empty() { Err("`ca`: there is no certificate in it".into()) } else { Ok(Some(found)) }
        }
        Trust::System => {
            let mut found = rustls_native_certs::load_native_certs().certs;
            found.sort_unstable_by(|one, other| one.as_ref().cmp(other.as_ref()));
            if found.is_empty() {
                return Err("the system has no certificates of authorities: say `ca`".into());
            }
            Ok(Some(found))
        }
    }
}

fn digest(written: &Written, authorities: &[CertificateDer<'static>]) -> [u8; 32] {
    let mut digest = Context::new(&SHA256);
    digest.update(&[u8::from(written.policy == Policy::Modern), u8::from(written.trust == Trust::Anybody)]);
    let own = written.own.iter().flat_map(|(_, texts)| texts.iter().map(Vec::as_slice));
    let crl = [b"|".as_slice(), written.crl.as_deref().unwrap_or_default()];
    for part in own.chain(crl).chain(authorities.iter().map(AsRef::as_ref)) {
        digest.update(&(part.len() as u64).to_be_bytes());
        digest.update(part);
    }
    let mut out = [0; 32];
    out.iter_mut().zip(digest.finish().as_ref()).for_each(|(to, from)| *to = *from);
    out
}

fn make(written: Written, authorities: Option<Vec<CertificateDer<'static>>>) -> Result<ClientConfig, String> {
    let provider = provider();
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider));
    let builder = builder.with_protocol_versions(versions(written.policy)).map_err(|error| error.to_string())?;
    let builder = match authorities {
        None => builder.dangerous().with_custom_certificate_verifier(Arc::new(Anybody(provider))),
        Some(authorities) => {
            let mut roots = RootCertStore::empty();
            let is_system = written.trust == Trust::System;
            for authority in authorities {
                match roots.add(authority) {
                    // Systems come with some that webpki does not read.
                    Err(error) if !is_system => return Err(format!("`ca` cannot be used: {error}")),
                    _ => {}
                }
            }
            let crls = revocations(written.crl.as_deref())?;
            let mut verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider);
            if !crls.is_empty() {
                verifier = verifier.with_crls(crls).only_check_end_entity_revocation();
            }
            builder.with_webpki_verifier(verifier.build().map_err(|error| error.to_string())?)
        }
    };
    let mut client = match written.own {
        None => builder.with_no_client_auth(),
        Some((pair, _)) => builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(pair.key()))),
    };
    client.resumption = Resumption::in_memory_sessions(SESSION_NAMES_MAX * 8);
    // The workers encrypt and decrypt by themselves.
    client.enable_secret_extraction = true;
    Ok(client)
}

/// Believes every certificate; who answers must still hold its key.
#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_same_settings_share_their_sessions_and_others_do_not() {
        let of = |policy, trust, own| client(Written { policy, trust, crl: None, own }).unwrap();
        let ca = || Trust::Authorities(include_bytes!("../../../configs/keys/test-only.pem").to_vec());
        let own = || {
            let pem = include_bytes!("../../../configs/keys/test-only.pem").to_vec();
            let key = include_bytes!("../../../configs/keys/test-only.key").to_vec();
            Some((Arc::new(Pair::new(&pem, &key, None).unwrap()), [pem, key]))
        };
        let all = [
            of(Policy::Modern, ca(), None),
            of(Policy::Intermediate, ca(), None),
            of(Policy::Modern, Trust::Anybody, None),
            of(Policy::Modern, ca(), own()),
        ];
        for (index, one) in all.iter().enumerate() {
            assert!(all.iter().skip(index + 1).all(|other| !Arc::ptr_eq(one, other)), "{index}");
        }
        let [first, .., last] = &all;
        assert!(Arc::ptr_eq(first, &of(Policy::Modern, ca(), None)));
        assert!(Arc::ptr_eq(last, &of(Policy::Modern, ca(), own())));
        assert!(last.client_auth_cert_resolver.has_certs() && !first.client_auth_cert_resolver.has_certs());
    }
}
