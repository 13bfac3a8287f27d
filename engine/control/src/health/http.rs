//! Checks by HTTP: one GET, over HTTP/1.1 or HTTP/2.

use bytes::{Bytes, BytesMut};
use h2::RecvStream;
use http_body_util::{BodyExt, Empty};
use hyper::header::{CONNECTION, HOST, HeaderMap, HeaderValue, USER_AGENT};
use hyper::{Method, Request, StatusCode, Version};
use hyper_util::rt::TokioIo;
use ringway_config::health::HttpCheck;
use tokio::task::JoinSet;

use super::probe::Wire;

/// Bytes of a body that are looked at.
pub(super) const BODY_BYTES_MAX: usize = 64 * 1024;
/// Bytes of an answer's head over HTTP/2; HTTP/1 has hyper's bound.
const HEAD_BYTES_MAX: u32 = 64 * 1024;
const AGENT: HeaderValue = HeaderValue::from_static("ringway");

pub(super) async fn check(
    wire: Box<dyn Wire>,
    check: &HttpCheck,
    host: &str,
    is_http2: bool,
    scheme: &str,
) -> Result<(), String> {
    let host = check.host.as_deref().unwrap_or(host);
    let (status, body) = match is_http2 {
        false => ask(wire, check, host).await?,
        true => {
            let request = request(scheme, host, &check.path).body(()).map_err(|error| error.to_string())?;
            let is_enough = |body: &[u8]| is_enough(check, body);
            let answer = exchange(wire, request, None, is_enough).await?;
            (answer.status, answer.body)
        }
    };
    if !check.statuses.contains(&status.as_u16()) {
        return Err(format!("GET {} was answered with {}", check.path, status.as_u16()));
    }
    match &check.body {
        Some(text) if !contains(&body, text.as_bytes()) => {
            Err(format!("the body of {} does not have {text:?}", check.path))
        }
        _ => Ok(()),
    }
}

fn contains(body: &[u8], text: &[u8]) -> bool {
    memchr::memmem::find(body, text).is_some()
}

fn is_enough(check: &HttpCheck, body: &[u8]) -> bool {
    check.body.as_ref().is_none_or(|text| contains(body, text.as_bytes())) || body.len() >= BODY_BYTES_MAX
}

async fn ask(wire: Box<dyn Wire>, check: &HttpCheck, host: &str) -> Result<(StatusCode, BytesMut), String> {
    let failed = |error: hyper::Error| error.to_string();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(wire)).await.map_err(failed)?;
    // Ends with this future, however that ends.
    let mut task = JoinSet::new();
    task.spawn(connection);
    let request = Request::get(&*check.path)
        .header(HOST, host)
        .header(USER_AGENT, AGENT)
        .header(CONNECTION, "close")
        .body(Empty::<Bytes>::new())
        .map_err(|error| error.to_string())?;
    let (head, mut body) = sender.send_request(request).await.map_err(failed)?.into_parts();
    let mut seen = BytesMut::new();
    while !is_enough(check, &seen)
        && let Some(frame) = body.frame().await
    {
        if let Ok(data) = frame.map_err(failed)?.into_data() {
            seen.extend_from_slice(&data);
        }
    }
    Ok((head.status, seen))
}

/// An answer by HTTP/2.
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    /// As much of it as was wanted.
    pub(super) body: BytesMut,
    pub(super) trailers: HeaderMap,
}

/// A GET over HTTP/2.
pub(super) fn request(scheme: &str, host: &str, path: &str) -> hyper::http::request::Builder {
    let uri = format!("{scheme}://{host}{path}");
    Request::builder().method(Method::GET).version(Version::HTTP_2).uri(uri).header(USER_AGENT, AGENT)
}

/// One request and its answer over HTTP/2; the body is read until `is_enough` says so.
pub(super) async fn exchange(
    wire: Box<dyn Wire>,
    request: Request<()>,
    body: Option<Bytes>,
    is_enough: impl Fn(&[u8]) -> bool,
) -> Result<Answer, String> {
    let failed = |error: h2::Error| error.to_string();
    let mut builder = h2::client::Builder::new();
    builder.enable_push(false).max_header_list_size(HEAD_BYTES_MAX);
    let (sender, connection) = builder.handshake::<_, Bytes>(wire).await.map_err(failed)?;
    let mut task = JoinSet::new();
    task.spawn(connection);
    let mut sender = sender.ready().await.map_err(failed)?;
    let (answer, mut upload) = sender.send_request(request, body.is_none()).map_err(failed)?;
    if let Some(body) = body {
        upload.send_data(body, true).map_err(failed)?;
    }
    let (head, mut stream) = answer.await.map_err(failed)?.into_parts();
    let mut answer =
        Answer { status: head.status, headers: head.headers, body: BytesMut::new(), trailers: HeaderMap::new() };
    if read(&mut stream, &mut answer.body, is_enough).await.map_err(failed)? {
        answer.trailers = stream.trailers().await.map_err(failed)?.unwrap_or_default();
    }
    Ok(answer)
}

/// Whether the body has ended.
async fn read(
    stream: &mut RecvStream,
    body: &mut BytesMut,
    is_enough: impl Fn(&[u8]) -> bool,
) -> Result<bool, h2::Error> {
    while !is_enough(body) {
        let Some(data) = stream.data().await else { return Ok(true) };
        let data = data?;
        stream.flow_control().release_capacity(data.len())?;
        body.extend_from_slice(&data);
    }
    Ok(false)
}
