//! The admin listener: health, readiness, metrics and the running configuration. It runs on the control thread, so it
//! answers while the data plane is busy. It has no authentication: it belongs on an address that only operators reach.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{ACCEPT, ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue, X_CONTENT_TYPE_OPTIONS};
use hyper::service::service_fn;
use hyper::{HeaderMap, Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use ringway_config::Hub;
use ringway_config::hub::Phase;
use ringway_config::snapshot::DriverChoice;
use ringway_core::stats::Driver;
use ringway_core::timestamp;
use serde::Serialize;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use crate::acme;
use crate::exposition::Format;
use crate::redis::{RedisStats, Registry};
use crate::{health, registry};
use crate::{metrics, process::unix_ms, services};

/// Connections at the same time; more wait in the kernel's queue.
const CONNECTIONS_MAX: usize = 64;
/// From one answer to the end of the next head; 408 or a closed connection after that.
const HEAD_TIME_MAX: Duration = Duration::from_secs(20);
/// A connection is closed after this age, between two requests if it can be.
const CONNECTION_AGE_MAX: Duration = Duration::from_secs(60);
/// How long an answer may take once its connection is at that age.
const LAST_ANSWER_TIME_MAX: Duration = Duration::from_secs(10);
const HEAD_BYTES_MAX: usize = 16 * 1024;
const HEADERS_MAX: usize = 64;

const INDEX: &str = "\
Ringway admin

/health   whether the process lives, its version and its workers
/ready    200 while requests are welcome, 503 while starting and draining
/metrics  Prometheus text; OpenMetrics where Accept asks for it
/config   the running configuration, secrets redacted
/services  where requests go: services, their circuit breakers, their endpoints: how they are, and why
/registry  instances of services that have registered themselves
/certificates  of the listeners: names, how long they hold, the next order by ACME
";

/// Binds the admin listener's address.
pub fn bind(address: SocketAddr) -> io::Result<std::net::TcpListener> {
    let listener = std::net::TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// What the admin listener answers from.
#[derive(Debug)]
pub(crate) struct Admin {
    pub(crate) hub: Arc<Hub>,
    pub(crate) redis: Arc<RedisStats>,
    pub(crate) registry: Registry,
    pub(crate) started: SystemTime,
}

/// Bounds the connections of all admin listeners of the process, one after the other.
#[derive(Debug, Clone)]
pub(crate) struct Places(Arc<Semaphore>);

#[derive(Serialize)]
struct Health<'a> {
    status: &'a str,
    timestamp: String,
    version: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    degraded: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    redis: Option<RedisHealth>,
    workers: Vec<Worker<'a>>,
}

#[derive(Serialize)]
struct Worker<'a> {
    driver: &'a str,
}

#[derive(Serialize)]
struct RedisHealth {
    server: String,
    connected: bool,
    /// Gateways that share it; 0 as long as that is not known.
    instances: u64,
}

#[derive(Serialize)]
struct Ready<'a> {
    status: &'a str,
    phase: &'a str,
}

impl Places {
    pub(crate) fn new() -> Self {
        Self(Arc::new(Semaphore::new(CONNECTIONS_MAX)))
    }
}

/// Accepts one connection and serves it in a task of its own. Safe to cancel: nothing is accepted and lost.
pub(crate) async fn accept_one(listener: &TcpListener, places: &Places, admin: &Arc<Admin>) {
    let Ok(place) = places.0.clone().acquire_owned().await else { return };
    match listener.accept().await {
        Ok((stream, _)) => {
            let admin = Arc::clone(admin);
            tokio::spawn(async move {
                serve(stream, admin).await;
                drop(place);
            });
        }
        Err(error) => {
            tracing::warn!("admin listener: {error}");
            // Out of descriptors: that does not pass within a turn of the loop, and one line a second is enough.
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }
}

async fn serve(stream: TcpStream, admin: Arc<Admin>) {
    let service = service_fn(|request: Request<hyper::body::Incoming>| {
        let admin = &admin;
        async move {
            let path = request.uri().path();
            Ok::<_, std::convert::Infallible>(match registry::has(path) {
                true => registry::answer(&admin.hub, &admin.registry, request).await,
                false => admin.answer(request.method(), path, request.headers()),
            })
        }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIME_MAX)
        .max_buf_size(HEAD_BYTES_MAX)
        .max_headers(HEADERS_MAX)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    // What a client does wrong is its own affair: errors are not logged.
    if tokio::time::timeout(CONNECTION_AGE_MAX, connection.as_mut()).await.is_err() {
        connection.as_mut().graceful_shutdown();
        let _ = tokio::time::timeout(LAST_ANSWER_TIME_MAX, connection).await;
    }
}

impl Admin {
    fn answer(&self, method: &Method, path: &str, headers: &HeaderMap) -> Response<Full<Bytes>> {
        if path.starts_with("/services/") {
            let (status, body) = health::operate(&self.hub, method, path, headers);
            return text(status, body);
        }
        if !["/", "/health", "/ready", "/metrics", "/config", "/services", "/certificates"].contains(&path) {
            return text(StatusCode::NOT_FOUND, "no such page; / lists them\n".into());
        }
        if method != Method::GET && method != Method::HEAD {
            let mut answer = text(StatusCode::METHOD_NOT_ALLOWED, "GET and HEAD only\n".into());
            answer.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
            return answer;
        }
        match path {
            "/health" => self.health(),
            "/ready" => self.ready(),
            "/metrics" => self.metrics(headers),
            "/services" => json(StatusCode::OK, &services::page(&self.hub)),
            "/certificates" => json(StatusCode::OK, &acme::page(&self.hub.published())),
            "/config" => {
                let yaml = self.hub.published().snapshot.redacted.clone();
                page(StatusCode::OK, "text/yaml; charset=utf-8", yaml)
            }
            _ => text(StatusCode::OK, INDEX.into()),
        }
    }

    fn health(&self) -> Response<Full<Bytes>> {
        let wanted = self.hub.published().snapshot.runtime.driver;
        let workers = &self.hub.workers.workers;
        let fallen_back = workers.iter().filter(|cell| cell.driver.get() == Driver::Epoll as u64).count();
        let degraded = (fallen_back > 0 && wanted != DriverChoice::Epoll).then(|| {
            format!("{fallen_back} of {} workers use epoll because io_uring is not allowed here", workers.len())
        });
        let health = Health {
            status: "healthy",
            timestamp: now(),
            version: metrics::VERSION,
            degraded,
            redis: self.redis.server().map(|server| RedisHealth {
                server,
                connected: self.redis.connected.get() == 1,
                instances: self.redis.instances.get(),
            }),
            workers: workers.iter().map(|cell| Worker { driver: metrics::driver_name(cell) }).collect(),
        };
        json(StatusCode::OK, &health)
    }

    fn ready(&self) -> Response<Full<Bytes>> {
        let (status, ready) = match self.hub.phase() {
            Phase::Starting => (StatusCode::SERVICE_UNAVAILABLE, Ready { status: "not ready", phase: "starting" }),
            Phase::Running => (StatusCode::OK, Ready { status: "ready", phase: "running" }),
            Phase::Notice => (StatusCode::SERVICE_UNAVAILABLE, Ready { status: "not ready", phase: "notice" }),
            Phase::Draining => (StatusCode::SERVICE_UNAVAILABLE, Ready { status: "not ready", phase: "draining" }),
        };
        json(status, &ready)
    }

    fn metrics(&self, headers: &HeaderMap) -> Response<Full<Bytes>> {
        let accept: Vec<&str> = headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok()).collect();
        let format = Format::of_accept(&accept.join(","));
        page(StatusCode::OK, format.content_type(), metrics::render(&self.hub, &self.redis, self.started, format))
    }
}

/// RFC 3339, UTC, with milliseconds.
fn now() -> String {
    let mut text = Vec::new();
    timestamp::rfc3339_millis(unix_ms(SystemTime::now()), &mut text);
    // Digits and punctuation.
    String::from_utf8(text).unwrap_or_default()
}

pub(crate) fn text(status: StatusCode, body: String) -> Response<Full<Bytes>> {
    page(status, "text/plain; charset=utf-8", body)
}

pub(crate) fn json(status: StatusCode, value: &impl Serialize) -> Response<Full<Bytes>> {
    // These types hold nothing that JSON cannot say.
    let mut body = serde_json::to_string(value).unwrap_or_default();
    body.push('\n');
    page(status, "application/json", body)
}

fn page(status: StatusCode, content_type: &'static str, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;
    use crate::testing::{hub, snapshot};

    fn admin() -> Admin {
        Admin {
            hub: hub(snapshot()),
            redis: Default::default(),
            registry: Registry::default(),
            started: SystemTime::now(),
        }
    }

    /// (status, content type, body)
    fn ask(admin: &Admin, method: Method, path: &str, accept: &'static str) -> (u16, String, String) {
        let headers = HeaderMap::from_iter([(ACCEPT, HeaderValue::from_static(accept))]);
        let answer = admin.answer(&method, path, &headers);
        let content_type = answer.headers()[CONTENT_TYPE].to_str().unwrap().to_owned();
        let status = answer.status().as_u16();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let body = runtime.block_on(answer.into_body().collect()).unwrap().to_bytes();
        (status, content_type, String::from_utf8(body.to_vec()).unwrap())
    }

    #[test]
    fn health_names_the_workers_and_a_fallback() {
        let admin = admin();
        let cell = &admin.hub.workers.workers[0];
        cell.driver.set(Driver::IoUring as u64);
        let (status, content_type, body) = ask(&admin, Method::GET, "/health", "*/*");
        assert_eq!((status, content_type.as_str()), (200, "application/json"));
        assert!(body.starts_with(r#"{"status":"healthy","timestamp":"2"#), "{body}");
        assert!(body.ends_with("\"workers\":[{\"driver\":\"io_uring\"}]}\n"), "{body}");
        assert!(!body.contains("degraded"), "{body}");

        cell.driver.set(Driver::Epoll as u64);
        let body = ask(&admin, Method::GET, "/health", "*/*").2;
        assert!(body.contains(r#""degraded":"1 of 1 workers use epoll"#), "{body}");
    }

    #[test]
    fn an_epoll_that_was_asked_for_is_no_fallback() {
        let mut snapshot = snapshot();
        snapshot.runtime.driver = DriverChoice::Epoll;
        let admin = Admin {
            hub: hub(snapshot),
            redis: Default::default(),
            registry: Registry::default(),
            started: SystemTime::now(),
        };
        admin.hub.workers.workers[0].driver.set(Driver::Epoll as u64);
        assert!(!ask(&admin, Method::GET, "/health", "*/*").2.contains("degraded"));
    }

    #[test]
    fn ready_only_while_running() {
        let admin = admin();
        for (phase, status, name) in [
            (Phase::Starting, 503, "starting"),
            (Phase::Running, 200, "running"),
            (Phase::Notice, 503, "notice"),
            (Phase::Draining, 503, "draining"),
        ] {
            admin.hub.set_phase(phase);
            let (seen, _, body) = ask(&admin, Method::GET, "/ready", "*/*");
            assert_eq!(seen, status);
            assert!(body.contains(&format!("\"phase\":\"{name}\"")), "{body}");
        }
    }

    #[test]
    fn pages_methods_and_formats() {
        let admin = admin();
        let asked = |method: Method, path: &str, accept| {
            let (status, content_type, _) = ask(&admin, method, path, accept);
            (status, content_type)
        };
        let yaml = (200, "text/yaml; charset=utf-8".to_owned());
        assert_eq!(asked(Method::GET, "/config", "*/*"), yaml);
        assert_eq!(asked(Method::HEAD, "/config", "*/*"), yaml);
        assert_eq!(asked(Method::GET, "/metrics", "").1, Format::Text.content_type());
        let open_metrics = asked(Method::GET, "/metrics", "application/openmetrics-text;version=1.0.0");
        assert_eq!(open_metrics.1, Format::OpenMetrics.content_type());
        assert_eq!(asked(Method::GET, "/", "*/*").0, 200);
        assert_eq!(asked(Method::POST, "/config", "*/*").0, 405);
        assert_eq!(asked(Method::POST, "/x", "*/*").0, 404);
    }
}
