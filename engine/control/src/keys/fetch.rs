//! One GET, over a connection of its own: seldom enough that there is nothing to keep.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, LengthLimitError, Limited};
use hyper::header::{ACCEPT, CONNECTION, HOST, USER_AGENT};
use hyper::{HeaderMap, Request, StatusCode};
use hyper_util::rt::TokioIo;
use ringway_core::auth::{HttpUrl, LoadError};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::task::{JoinSet, spawn_blocking};
use tokio_rustls::TlsConnector;

/// Bytes of an answer's body; a longer answer is refused.
pub const BODY_BYTES_MAX: usize = 1024 * 1024;

/// Why keys could not be had.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    #[error("cannot connect to {host}: {error}")]
    Connect { host: String, error: io::Error },
    #[error("TLS with {host}: {error}")]
    Tls { host: String, error: io::Error },
    #[error("no certificates to trust: {0}")]
    Trust(String),
    #[error("{0}")]
    Http(#[from] hyper::Error),
    #[error("{url} answered with status {status}")]
    Status { url: HttpUrl, status: u16 },
    #[error("{url} answered with a redirect (status {status}), which is not followed; name the address it leads to")]
    Redirect { url: HttpUrl, status: u16 },
    #[error("the answer has more than 1 MiB")]
    TooLarge,
    #[error("no whole answer within {0:?}")]
    Timeout(std::time::Duration),
    #[error("the issuer's metadata {0}")]
    Metadata(&'static str),
    #[error("{0}")]
    Load(#[from] LoadError),
}

/// A whole answer of status 200.
pub(super) struct Fetched {
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
}

/// Fetches with one idea of whom to trust.
pub(super) struct Client {
    ca: Option<PathBuf>,
    /// Made when it is first needed, since that reads files.
    tls: Option<TlsConnector>,
}

impl Client {
    /// Trusts the certificates in `ca`, or else those of the system.
    pub(super) fn new(ca: Option<PathBuf>) -> Self {
        Self { ca, tls: None }
    }

    /// Reads the certificates again before the next use, so that new ones count.
    pub(super) fn forget_trust(&mut self) {
        self.tls = None;
    }

    async fn tls(&mut self) -> Result<TlsConnector, FetchError> {
        if let Some(tls) = &self.tls {
            return Ok(tls.clone());
        }
        let ca = self.ca.clone();
        let made = spawn_blocking(move || connector(ca.as_deref())).await;
        let tls = made.map_err(|error| FetchError::Trust(error.to_string()))??;
        Ok(self.tls.insert(tls).clone())
    }

    pub(super) async fn get(&mut self, url: &HttpUrl) -> Result<Fetched, FetchError> {
        let host = || url.authority().to_owned();
        let stream = TcpStream::connect((url.host(), url.port()))
            .await
            .map_err(|error| FetchError::Connect { host: host(), error })?;
        if !url.is_https() {
            return exchange(stream, url).await;
        }
        let name = ServerName::try_from(url.host().to_owned()).map_err(io::Error::other);
        let stream = match name {
            Ok(name) => self.tls().await?.connect(name, stream).await,
            Err(error) => Err(error),
        };
        exchange(stream.map_err(|error| FetchError::Tls { host: host(), error })?, url).await
    }
}

/// Trusts the certificates in `ca`, or else those of the system. Reads files.
pub(crate) fn connector(ca: Option<&Path>) -> Result<TlsConnector, FetchError> {
    let trust = |error: &dyn ToString| FetchError::Trust(error.to_string());
    let mut roots = RootCertStore::empty();
    match ca {
        Some(path) => {
            let named = |error: &dyn ToString| trust(&format!("{}: {}", path.display(), error.to_string()));
            for certificate in CertificateDer::pem_file_iter(path).map_err(|error| named(&error))? {
                roots.add(certificate.map_err(|error| named(&error))?).map_err(|error| named(&error))?;
            }
        }
        None => {
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
    }
    if roots.is_empty() {
        return Err(trust(&"none were found"));
    }
    let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| trust(&error))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(TlsConnector::from(Arc::new(config)))
}

async fn exchange<S>(stream: S, url: &HttpUrl) -> Result<Fetched, FetchError>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    // Ends with this future, however that ends.
    let mut task = JoinSet::new();
    task.spawn(connection);
    let request = Request::get(url.target())
        .header(HOST, url.authority())
        .header(ACCEPT, "application/json, application/jwk-set+json")
        .header(USER_AGENT, "ringway")
        .header(CONNECTION, "close")
        .body(Empty::<Bytes>::new());
    // A URL that was parsed has a target and an authority without blanks or controls.
    let Ok(request) = request else { return Err(FetchError::Metadata("names an address that is no URL")) };
    let (head, body) = sender.send_request(request).await?.into_parts();
    let status = head.status.as_u16();
    if head.status.is_redirection() {
        return Err(FetchError::Redirect { url: url.clone(), status });
    }
    if head.status != StatusCode::OK {
        return Err(FetchError::Status { url: url.clone(), status });
    }
    match Limited::new(body, BODY_BYTES_MAX).collect().await {
        Ok(body) => Ok(Fetched { headers: head.headers, body: body.to_bytes() }),
        Err(error) if error.is::<LengthLimitError>() => Err(FetchError::TooLarge),
        Err(error) => match error.downcast::<hyper::Error>() {
            Ok(error) => Err(FetchError::Http(*error)),
            Err(_) => Err(FetchError::TooLarge),
        },
    }
}
