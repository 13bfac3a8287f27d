//! One check: a connection, what is asked over it, what must come back.

use std::fmt::Display;
use std::sync::Arc;

use ringway_config::health::{CheckKind, HealthCheck};
use ringway_config::snapshot::{Endpoint, EndpointAddress};
use ringway_core::proxy_protocol::Version;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::{grpc, http};

/// A PROXY header without a client: the connection is the gateway's own.
const PROXY_V1: &[u8] = b"PROXY UNKNOWN\r\n";
/// The same of version 2: its command LOCAL.
const PROXY_V2: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x20\x00\x00\x00";

/// What is checked, and how.
#[derive(Debug, Clone)]
pub(super) struct Target {
    pub(super) endpoint: Endpoint,
    pub(super) check: Arc<HealthCheck>,
    /// What the service speaks.
    pub(super) is_http2: bool,
    pub(super) proxy_protocol: Option<Version>,
}

/// A connection of any kind.
pub(super) trait Wire: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Wire for T {}

impl Target {
    /// Whether a check of the other goes on with this one: what an endpoint weighs, for instance, does not matter.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        let Self { endpoint, check, is_http2, proxy_protocol } = other;
        self.endpoint.is_place_of(endpoint)
            && self.check == *check
            && self.is_http2 == *is_http2
            && self.proxy_protocol == *proxy_protocol
    }

    /// Whether it is well; else what is wrong, in one line.
    pub(super) async fn probe(&self) -> Result<(), String> {
        match timeout(self.check.timeout, self.ask()).await {
            Ok(result) => result,
            Err(_) => Err(format!("no answer within {:?}", self.check.timeout)),
        }
    }

    async fn ask(&self) -> Result<(), String> {
        let wire = self.connect().await?;
        match &self.check.kind {
            CheckKind::Tcp => Ok(()),
            CheckKind::Http(check) => http::check(wire, check, self.host(), self.is_http2, self.scheme()).await,
            CheckKind::Grpc(service) => grpc::check(wire, service, self.host(), self.scheme()).await,
        }
    }

    async fn connect(&self) -> Result<Box<dyn Wire>, String> {
        let failed = |error: &dyn Display| format!("cannot connect: {error}");
        let mut wire: Box<dyn Wire> = match &self.endpoint.address {
            EndpointAddress::Tcp(address) => {
                Box::new(TcpStream::connect(address).await.map_err(|error| failed(&error))?)
            }
            EndpointAddress::Unix(path) => Box::new(UnixStream::connect(path).await.map_err(|error| failed(&error))?),
        };
        let header: &[u8] = match self.proxy_protocol {
            None => b"",
            Some(Version::V1) => PROXY_V1,
            Some(Version::V2) => PROXY_V2,
        };
        wire.write_all(header).await.map_err(|error| failed(&error))?;
        let Some(tls) = &self.endpoint.tls else { return Ok(wire) };
        let protocol: &[u8] = if self.is_http2 { b"h2" } else { b"http/1.1" };
        let connector = TlsConnector::from(Arc::clone(&tls.client));
        let connected = connector.with_alpn(vec![protocol.to_vec()]).connect(tls.name.clone(), wire).await;
        Ok(Box::new(connected.map_err(|error| format!("no TLS: {error}"))?))
    }

    fn scheme(&self) -> &'static str {
        if self.endpoint.tls.is_some() { "https" } else { "http" }
    }

    /// The endpoint as a `Host`.
    fn host(&self) -> &str {
        if self.endpoint.label.starts_with("unix:") { "localhost" } else { &self.endpoint.label }
    }
}
