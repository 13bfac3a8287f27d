//! How the authority is asked: a connection for each request, since an order is a dozen of them in three months.

use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::header::{CONNECTION, CONTENT_TYPE, HOST, HeaderValue, RETRY_AFTER};
use hyper::{HeaderMap, Request, Response, Uri};
use hyper_util::rt::TokioIo;
use instant_acme::{BodyWrapper, BytesResponse, Error, HttpClient};
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::timeout;

use crate::keys::connector;

/// From the connection to the end of the answer.
const REQUEST_TIME_MAX: Duration = Duration::from_secs(30);
/// Bytes of an answer; a chain of certificates has some thousand.
const BODY_BYTES_MAX: usize = 256 * 1024;

type Cause = Box<dyn std::error::Error + Send + Sync>;

/// A client that trusts the certificates in a file, or else those of the system. Clones share what they know.
#[derive(Debug, Clone)]
pub(super) struct Http {
    ca: Option<PathBuf>,
    /// Until when the authority does not want to be asked.
    retry_at: Arc<Mutex<Option<Instant>>>,
}

impl Http {
    pub(super) fn new(ca: Option<PathBuf>) -> Self {
        Self { ca, retry_at: Arc::default() }
    }

    /// How long the authority asked to be left alone, in the errors since the last call.
    pub(super) fn take_retry_after(&self) -> Option<Duration> {
        let at = self.retry_at.lock().unwrap_or_else(PoisonError::into_inner).take();
        at.map(|at| at.saturating_duration_since(Instant::now()))
    }

    async fn send(self, request: Request<BodyWrapper<Bytes>>) -> Result<Response<Full<Bytes>>, Cause> {
        let uri = request.uri().clone();
        let (Some("https"), Some(host)) = (uri.scheme_str(), uri.host()) else {
            return Err(format!("the directory names `{uri}`, which is no `https://` URL").into());
        };
        let host = host.trim_matches(['[', ']']).to_owned();
        let port = uri.port_u16().unwrap_or(443);
        let connect = |error: &dyn std::fmt::Display| format!("cannot connect to {host}:{port}: {error}");
        // New each time: the certificates to trust may have changed since.
        let ca = self.ca.clone();
        let connector = spawn_blocking(move || connector(ca.as_deref())).await??;
        let stream = TcpStream::connect((host.as_str(), port)).await.map_err(|error| connect(&error))?;
        let name = ServerName::try_from(host.clone())?;
        let stream = connector.connect(name, stream).await.map_err(|error| connect(&error))?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        // Ends with this future, however that ends.
        let mut task = JoinSet::new();
        task.spawn(connection);
        let (head, body) = sender.send_request(in_origin_form(request, &uri)?).await?.into_parts();
        let body = match Limited::new(body, BODY_BYTES_MAX).collect().await {
            Ok(body) => body.to_bytes(),
            Err(error) if error.is::<LengthLimitError>() => {
                return Err(format!("an answer of {host} has more than {BODY_BYTES_MAX} bytes").into());
            }
            Err(error) => return Err(error),
        };
        if !head.status.is_success() {
            self.note_retry_after(&head.headers);
            let is_problem = |value: &HeaderValue| value.as_bytes().starts_with(b"application/problem+json");
            // Anything else was said by something in front of the authority.
            if !head.headers.get(CONTENT_TYPE).is_some_and(is_problem) {
                return Err(format!("{host} answered with status {}", head.status.as_u16()).into());
            }
        }
        Ok(Response::from_parts(head, Full::new(body)))
    }

    fn note_retry_after(&self, headers: &HeaderMap) {
        let after = headers.get(RETRY_AFTER).and_then(|value| seconds(value.to_str().ok()?));
        if let Some(at) = after.and_then(|after| Instant::now().checked_add(after)) {
            *self.retry_at.lock().unwrap_or_else(PoisonError::into_inner) = Some(at);
        }
    }
}

impl HttpClient for Http {
    fn request(
        &self,
        request: Request<BodyWrapper<Bytes>>,
    ) -> Pin<Box<dyn Future<Output = Result<BytesResponse, Error>> + Send>> {
        let sent = self.clone().send(request);
        Box::pin(async move {
            match timeout(REQUEST_TIME_MAX, sent).await {
                Ok(Ok(response)) => Ok(BytesResponse::from(response)),
                Ok(Err(error)) => Err(Error::Other(error)),
                Err(_) => Err(Error::Other("no answer of the authority within 30 s".into())),
            }
        })
    }
}

/// With the host in a field of its own, as servers want it.
fn in_origin_form(mut request: Request<BodyWrapper<Bytes>>, uri: &Uri) -> Result<Request<BodyWrapper<Bytes>>, Cause> {
    let target = uri.path_and_query().map_or("/", |target| target.as_str());
    *request.uri_mut() = target.parse()?;
    let authority = uri.authority().map_or("", |authority| authority.as_str());
    let headers = request.headers_mut();
    headers.insert(HOST, HeaderValue::from_str(authority)?);
    headers.insert(CONNECTION, HeaderValue::from_static("close"));
    Ok(request)
}

/// Seconds, or a date (RFC 9110 section 10.2.3).
fn seconds(text: &str) -> Option<Duration> {
    match text.parse() {
        Ok(seconds) => Some(Duration::from_secs(seconds)),
        Err(_) => httpdate::parse_http_date(text).ok()?.duration_since(SystemTime::now()).ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_authority_asks_for_is_remembered_once() {
        let http = Http::new(None);
        assert_eq!(http.take_retry_after(), None);
        http.note_retry_after(&HeaderMap::from_iter([(RETRY_AFTER, HeaderValue::from_static("120"))]));
        let after = http.take_retry_after().unwrap();
        assert!((119..=120).contains(&after.as_secs()), "{after:?}");
        assert_eq!(http.take_retry_after(), None);
        http.note_retry_after(&HeaderMap::from_iter([(RETRY_AFTER, HeaderValue::from_static("soon"))]));
        assert_eq!(http.take_retry_after(), None);
    }

    #[test]
    fn requests_name_their_host_in_a_field() {
        let uri: Uri = "https://ca.test:14000/dir?x=1".parse().unwrap();
        let request = Request::get(uri.clone()).body(BodyWrapper::default()).unwrap();
        let request = in_origin_form(request, &uri).unwrap();
        assert_eq!(request.uri(), "/dir?x=1");
        assert_eq!(request.headers()[HOST], "ca.test:14000");
    }
}
