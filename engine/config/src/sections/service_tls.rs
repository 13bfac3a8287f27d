//! TLS to services.

use std::path::PathBuf;
use std::sync::Arc;

use rustls::pki_types::ServerName;

use super::endpoint::Address;
use super::tls::{located, read};
use crate::decode::{Cx, Decode, Spanned};
use crate::error::Span;
use crate::service_tls::{Trust, Written, client};
use crate::shape::shape;
use crate::snapshot::{EndpointTls, ServiceTls};
use crate::tls::{Pair, Policy};
use crate::tree::Node;

shape! {
    /// TLS to a service. `{}`: its certificate is verified by the system's authorities.
    pub(crate) struct ServiceTlsSection {
        /// The name that the certificate must be for, and that the service is told (SNI). Without it, the host name of the
        /// endpoint; an endpoint that is an IP address must have that address in its certificate.
        server_name: Option<Spanned<ServerNameText>>,
        /// File with the authorities that the service's certificate may be of (PEM), in place of the system's.
        ca: Option<Spanned<String>>,
        /// File with revoked certificates (PEM): lists of all authorities that services' certificates are of. A certificate that is on
        /// them is refused, and one of an authority without a list.
        crl: Option<Spanned<String>>,
        /// File with the gateway's own certificate, and those that lead to its authority (PEM), for services that ask for
        /// one.
        certificate: Option<Spanned<String>>,
        /// File with its private key (PEM).
        key: Option<Spanned<String>>,
        /// `modern`: TLS 1.3. `intermediate`: TLS 1.2 too, with ECDHE and AES-GCM or ChaCha20-Poly1305.
        policy: Policy = "intermediate",
        /// Takes any certificate, whoever it is of: who stands between can read and change everything. Warned of at the start
        /// and with each reload.
        insecure_skip_verify: bool = "false",
    }
}

/// A host name or an IP address.
#[derive(Debug, Clone)]
pub(crate) struct ServerNameText(ServerName<'static>);

impl Decode for ServerNameText {
    fn kind() -> String {
        "a host name or an IP address".into()
    }

    fn decode(node: &Node, cx: &mut Cx) -> Option<Self> {
        let scalar = node.scalar().filter(|scalar| !scalar.is_null());
        match scalar.and_then(|scalar| ServerName::try_from(scalar.text.to_string()).ok()) {
            Some(name) => Some(Self(name)),
            None => {
                cx.mismatch::<Self>(node, Some("without a scheme and a port".into()));
                None
            }
        }
    }

    fn schema(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
        String::schema(generator)
    }
}

/// How the endpoints of a service are secured.
pub(crate) struct Compiled {
    pub(crate) service: ServiceTls,
    client: Arc<rustls::ClientConfig>,
    name: Option<ServerName<'static>>,
}

impl ServiceTlsSection {
    /// `None` after an error, which is reported.
    pub(crate) fn compile(self, span: Span, cx: &mut Cx) -> Option<Compiled> {
        let mut files: Vec<PathBuf> = Vec::new();
        let mut contents = |path: &Spanned<String>, cx: &mut Cx| {
            files.push(located(path, cx));
            read(path, cx).map(|(_, text)| text)
        };
        let trust = match (&self.ca, self.insecure_skip_verify) {
            (Some(ca), true) => {
                cx.error(ca.span, "`ca` has no effect where nothing is verified", "without `insecure_skip_verify`");
                return None;
            }
            (None, true) => Trust::Anybody,
            (Some(ca), false) => Trust::Authorities(contents(ca, cx)?),
            (None, false) => Trust::System,
        };
        let crl = match (&self.crl, self.insecure_skip_verify) {
            (Some(crl), true) => {
                cx.error(crl.span, "`crl` has no effect where nothing is verified", "without `insecure_skip_verify`");
                return None;
            }
            (Some(crl), false) => Some(contents(crl, cx)?),
            (None, _) => None,
        };
        let own = match (&self.certificate, &self.key) {
            (None, None) => None,
            (Some(certificate), Some(key)) => {
                let (pem, key) = (contents(certificate, cx), contents(key, cx));
                let (pem, key) = (pem?, key?);
                match Pair::new(&pem, &key, None) {
                    Ok(pair) => Some((Arc::new(pair), [pem, key])),
                    Err(problem) => {
                        let message = format!("`{}` cannot be used: {problem}", located(certificate, cx).display());
                        cx.error(certificate.span, message, "a certificate and its own private key, both in PEM");
                        return None;
                    }
                }
            }
            (Some(one), None) => {
                cx.error(one.span, "the key `key` is missing: the private key of `certificate`", None);
                return None;
            }
            (None, Some(one)) => {
                cx.error(one.span, "the key `certificate` is missing: the certificate of `key`", None);
                return None;
            }
        };
        let certificate = own.as_ref().map(|(pair, _)| Arc::clone(pair));
        let is_verified = trust != Trust::Anybody;
        let client = client(Written { policy: self.policy, trust, crl, own });
        let client = client.map_err(|problem| cx.sink.error(span, problem, None)).ok()?;
        let service = ServiceTls { files, certificate, is_verified };
        Some(Compiled { service, client, name: self.server_name.map(|name| name.value.0) })
    }
}

impl Compiled {
    /// What every endpoint gets, whatever its address; `None` where the name that its certificate is for depends on that.
    pub(crate) fn of_any(&self) -> Option<EndpointTls> {
        Some(EndpointTls { client: Arc::clone(&self.client), name: self.name.clone()? })
    }

    /// What an endpoint that was written so gets. `None` after an error, which is reported.
    pub(crate) fn of_endpoint(&self, address: &Spanned<Address>, cx: &mut Cx) -> Option<EndpointTls> {
        let name = match (&self.name, &address.value) {
            (Some(name), _) => name.clone(),
            (None, Address::Ip(address)) => ServerName::from(address.ip()),
            (None, Address::Name { host, .. }) => {
                match ServerName::try_from(host.trim_end_matches('.').to_ascii_lowercase()) {
                    Ok(name) => name,
                    Err(_) => {
                        let message = format!("no certificate is for the name `{host}`");
                        cx.error(address.span, message, "say `server_name` in the service's `tls`");
                        return None;
                    }
                }
            }
            (None, Address::Unix(_)) => {
                let message = "a socket's path is no name that a certificate could be for";
                cx.error(address.span, message, "say `server_name` in the service's `tls`");
                return None;
            }
        };
        Some(EndpointTls { client: Arc::clone(&self.client), name })
    }
}
