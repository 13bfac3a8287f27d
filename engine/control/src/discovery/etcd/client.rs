//! etcd's API v3 as JSON over HTTP/1.1, which its servers speak beside gRPC.

use std::collections::VecDeque;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HOST, HeaderValue};
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use ringway_config::snapshot::{Etcd, EtcdServer};
use serde::de::{DeserializeOwned, Error as _};
use serde::{Deserialize, Deserializer};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::super::ENDPOINTS_MAX;
use super::keys::{Event, Listed};

/// Until a connection stands, TLS included.
const CONNECT_TIME_MAX: Duration = Duration::from_secs(2);
/// Until an answer has come; of a watch, its beginning.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(5);
/// Bytes of a list, or of one line of a watch.
const BODY_BYTES_MAX: usize = 32 * 1024 * 1024;

/// A connection to one server, logged in where that is needed.
pub(super) struct Connection {
    sender: SendRequest<Full<Bytes>>,
    host: HeaderValue,
    token: Option<HeaderValue>,
    /// Ends with this.
    _task: JoinSet<()>,
}

/// What happens to the keys from now on.
pub(super) struct Watch {
    body: Incoming,
    lines: Lines,
    ready: VecDeque<Watched>,
    _connection: Connection,
}

#[derive(Debug)]
pub(super) enum Watched {
    /// At least one.
    Events(Vec<Event>),
    /// Where the watch was to begin is forgotten.
    Compacted,
}

impl Connection {
    pub(super) async fn open(server: &EtcdServer, of: &Etcd) -> Result<Self, String> {
        let connected = timeout(CONNECT_TIME_MAX, Self::connect(server)).await;
        let mut connection = connected.unwrap_or_else(|_| Err("no connection in time".into()))?;
        if let Some(login) = &of.login {
            let question = json!({ "name": &*login.user, "password": &*login.password });
            let Token { token } = connection.ask("/v3/auth/authenticate", &question).await?;
            connection.token = Some(HeaderValue::from_str(&token).map_err(|_| malformed(&"a token"))?);
        }
        Ok(connection)
    }

    async fn connect(EtcdServer { url, tls }: &EtcdServer) -> Result<Self, String> {
        let failed = |error: &dyn std::fmt::Display| format!("cannot connect: {error}");
        let stream = TcpStream::connect((url.host(), url.port())).await.map_err(|error| failed(&error))?;
        stream.set_nodelay(true).map_err(|error| failed(&error))?;
        let mut task = JoinSet::new();
        let sender = if let Some(tls) = tls {
            let connecting = TlsConnector::from(tls.client.clone()).connect(tls.name.clone(), stream);
            let stream = connecting.await.map_err(|error| failed(&error))?;
            let (sender, connection) = handshake(TokioIo::new(stream)).await.map_err(|error| failed(&error))?;
            task.spawn(async { drop(connection.await) });
            sender
        } else {
            let (sender, connection) = handshake(TokioIo::new(stream)).await.map_err(|error| failed(&error))?;
            task.spawn(async { drop(connection.await) });
            sender
        };
        let host = HeaderValue::from_str(url.authority()).map_err(|error| failed(&error))?;
        Ok(Self { sender, host, token: None, _task: task })
    }

    /// All keys that begin so.
    pub(super) async fn list(&mut self, prefix: &str) -> Result<Listed, String> {
        let (key, range_end) = range(prefix);
        let question = json!({ "key": key, "range_end": range_end, "limit": ENDPOINTS_MAX });
        let answer: Range = self.ask("/v3/kv/range", &question).await?;
        let keys = answer.kvs.into_iter().map(|kv| Ok((decoded(&kv.key)?, decoded(&kv.value)?)));
        let keys = keys.collect::<Result<_, String>>()?;
        Ok(Listed { revision: answer.header.revision, keys, is_cut: answer.more })
    }

    /// Watches them from a revision on.
    pub(super) async fn watch(mut self, prefix: &str, revision: u64) -> Result<Watch, String> {
        let (key, range_end) = range(prefix);
        let question = json!({ "create_request": {
            "key": key, "range_end": range_end, "start_revision": revision.to_string(),
        } });
        let begun = async {
            let answer = self.send("/v3/watch", &question).await?;
            let body = answer.into_body();
            let mut watch = Watch { body, lines: Lines::default(), ready: VecDeque::new(), _connection: self };
            // The first line says that it stands.
            let first = watch.line().await?;
            watch.take(&first)?;
            Ok(watch)
        };
        timeout(ANSWER_TIME_MAX, begun).await.unwrap_or_else(|_| Err("no answer in time".into()))
    }

    async fn ask<T: DeserializeOwned>(&mut self, path: &str, question: &Value) -> Result<T, String> {
        let answered = async {
            let body = Limited::new(self.send(path, question).await?.into_body(), BODY_BYTES_MAX);
            let body = body.collect().await.map_err(|error| format!("no whole answer: {error}"))?.to_bytes();
            serde_json::from_slice(&body).map_err(|error| malformed(&error))
        };
        timeout(ANSWER_TIME_MAX, answered).await.unwrap_or_else(|_| Err("no answer in time".into()))
    }

    /// An answer of status 200.
    async fn send(&mut self, path: &str, question: &Value) -> Result<Response<Incoming>, String> {
        let mut request = Request::post(path)
            .header(HOST, &self.host)
            .header(CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(question.to_string())))
            .map_err(|error| error.to_string())?;
        if let Some(token) = &self.token {
            request.headers_mut().insert(AUTHORIZATION, token.clone());
        }
        self.sender.ready().await.map_err(|error| error.to_string())?;
        let answer = self.sender.send_request(request).await.map_err(|error| error.to_string())?;
        match answer.status() {
            StatusCode::OK => Ok(answer),
            status => {
                const REASON_BYTES_MAX: usize = 64 * 1024;
                let body = Limited::new(answer.into_body(), REASON_BYTES_MAX).collect().await;
                let refusal: Option<Refusal> = body.ok().and_then(|body| serde_json::from_slice(&body.to_bytes()).ok());
                let reason = refusal.map(|refusal| format!(": {}", refusal.error)).unwrap_or_default();
                Err(format!("answered with status {}{reason}", status.as_u16()))
            }
        }
    }
}

impl Watch {
    /// Waits for what happens next. Safe to cancel.
    pub(super) async fn next(&mut self) -> Result<Watched, String> {
        loop {
            if let Some(watched) = self.ready.pop_front() {
                return Ok(watched);
            }
            let line = self.line().await?;
            self.take(&line)?;
        }
    }

    async fn line(&mut self) -> Result<Vec<u8>, String> {
        loop {
            if let Some(line) = self.lines.next() {
                return Ok(line);
            }
            match self.body.frame().await {
                Some(Ok(frame)) => self.lines.push(&frame.into_data().unwrap_or_default())?,
                Some(Err(error)) => return Err(format!("the watch broke: {error}")),
                None => return Err("the watch ended".into()),
            }
        }
    }

    fn take(&mut self, line: &[u8]) -> Result<(), String> {
        self.ready.extend(watched(line)?);
        Ok(())
    }
}

/// The lines of a stream.
#[derive(Debug, Default)]
struct Lines {
    bytes: BytesMut,
    /// In which there is no line feed.
    looked_at: usize,
}

impl Lines {
    fn push(&mut self, bytes: &[u8]) -> Result<(), String> {
        if self.bytes.len() + bytes.len() > BODY_BYTES_MAX {
            return Err(malformed(&"a line that is too long"));
        }
        self.bytes.extend_from_slice(bytes);
        Ok(())
    }

    fn next(&mut self) -> Option<Vec<u8>> {
        let unseen = self.bytes.get(self.looked_at..)?;
        match memchr::memchr(b'\n', unseen) {
            Some(at) => {
                let line = self.bytes.split_to(self.looked_at + at + 1);
                self.looked_at = 0;
                Some(line.to_vec())
            }
            None => {
                self.looked_at = self.bytes.len();
                None
            }
        }
    }
}

/// What a line of a watch says.
fn watched(line: &[u8]) -> Result<Option<Watched>, String> {
    let line: WatchLine = serde_json::from_slice(line).map_err(|error| malformed(&error))?;
    let Some(result) = line.result else {
        return Err(format!("the watch was refused: {}", line.error.unwrap_or_default()));
    };
    if result.compact_revision > 0 {
        return Ok(Some(Watched::Compacted));
    }
    if result.canceled {
        return Err(format!("the watch was ended: {}", result.cancel_reason));
    }
    let event = |WatchEvent { kind, kv }: WatchEvent| {
        let value = match kind.as_str() {
            "DELETE" => None,
            _ => Some(decoded(&kv.value)?),
        };
        Ok(Event { key: decoded(&kv.key)?, value, revision: kv.mod_revision })
    };
    let events = result.events.into_iter().map(event).collect::<Result<Vec<_>, String>>()?;
    Ok((!events.is_empty()).then_some(Watched::Events(events)))
}

/// The first key that begins so, and the first one behind all those.
fn range(prefix: &str) -> (String, String) {
    let mut end = prefix.as_bytes().to_vec();
    // No byte of UTF-8 is 255.
    if let Some(last) = end.last_mut() {
        *last += 1;
    }
    (BASE64.encode(prefix), BASE64.encode(end))
}

fn decoded(text: &str) -> Result<Vec<u8>, String> {
    BASE64.decode(text).map_err(|error| malformed(&error))
}

fn malformed(what: &dyn std::fmt::Display) -> String {
    format!("a malformed answer: {what}")
}

#[derive(Deserialize)]
struct Token {
    token: String,
}

#[derive(Deserialize)]
struct Refusal {
    error: String,
}

#[derive(Deserialize)]
struct Header {
    #[serde(deserialize_with = "whole")]
    revision: u64,
}

#[derive(Deserialize)]
struct Range {
    header: Header,
    #[serde(default)]
    kvs: Vec<KeyValue>,
    #[serde(default)]
    more: bool,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct KeyValue {
    key: String,
    value: String,
    #[serde(deserialize_with = "whole")]
    mod_revision: u64,
}

#[derive(Deserialize)]
struct WatchLine {
    result: Option<WatchResult>,
    error: Option<Value>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct WatchResult {
    canceled: bool,
    #[serde(deserialize_with = "whole")]
    compact_revision: u64,
    cancel_reason: String,
    events: Vec<WatchEvent>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct WatchEvent {
    #[serde(rename = "type")]
    kind: String,
    kv: KeyValue,
}

/// Numbers of 64 bits are texts in JSON that was made of protobuf.
fn whole<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    match Value::deserialize(deserializer)? {
        Value::String(text) => text.parse().map_err(D::Error::custom),
        Value::Number(number) => number.as_u64().ok_or_else(|| D::Error::custom("a number below 0")),
        _ => Err(D::Error::custom("not a number")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_found_however_they_arrive() {
        let mut lines = Lines::default();
        for part in [&b"a"[..], b"b\nc", b"\n\n"] {
            lines.push(part).unwrap();
        }
        let found: Vec<_> = std::iter::from_fn(|| lines.next()).collect();
        assert_eq!(found, [&b"ab\n"[..], b"c\n", b"\n"]);
        lines.push(b"d").unwrap();
        assert_eq!(lines.next(), None);
        lines.push(b"\n").unwrap();
        assert_eq!(lines.next().as_deref(), Some(&b"d\n"[..]));
        assert!(lines.push(&vec![0; BODY_BYTES_MAX + 1]).is_err());
    }

    #[test]
    fn what_a_watch_says() {
        let header = r#""header":{"cluster_id":"1","revision":"7"}"#;
        let created = format!(r#"{{"result":{{{header},"created":true}}}}"#);
        assert!(watched(created.as_bytes()).unwrap().is_none());
        let events = format!(
            r#"{{"result":{{{header},"events":[{{"kv":{{"key":"L2E=","mod_revision":"7","value":"eA=="}}}},
            {{"type":"DELETE","kv":{{"key":"L2I=","mod_revision":7}}}}]}}}}"#
        );
        let Some(Watched::Events(events)) = watched(events.as_bytes()).unwrap() else { panic!("events") };
        assert_eq!((&events[0].key[..], events[0].value.as_deref()), (&b"/a"[..], Some(&b"x"[..])));
        assert_eq!((&events[1].key[..], events[1].value.as_deref(), events[1].revision), (&b"/b"[..], None, 7));
        let compacted = format!(r#"{{"result":{{{header},"canceled":true,"compact_revision":"9"}}}}"#);
        assert!(matches!(watched(compacted.as_bytes()).unwrap(), Some(Watched::Compacted)));
        let canceled = format!(r#"{{"result":{{{header},"canceled":true,"cancel_reason":"why"}}}}"#);
        assert_eq!(watched(canceled.as_bytes()).unwrap_err(), "the watch was ended: why");
        assert!(watched(br#"{"error":{"message":"no"}}"#).unwrap_err().contains("no"));
        for bad in [&b""[..], b"{}", b"[]", br#"{"result":{"events":[{"kv":{"key":"!"}}]}}"#] {
            assert!(watched(bad).is_err());
        }
    }

    #[test]
    fn ranges_end_behind_their_prefix() {
        let (key, end) = range("/a/");
        assert_eq!((decoded(&key).unwrap(), decoded(&end).unwrap()), (b"/a/".to_vec(), b"/a0".to_vec()));
    }
}
