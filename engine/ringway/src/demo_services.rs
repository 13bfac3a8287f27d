//! Three small HTTP services for the demo: real servers on ports from the kernel, on one thread.

use std::collections::hash_map::RandomState;
use std::convert::Infallible;
use std::hash::{BuildHasher, Hasher};
use std::io;
use std::net::{SocketAddr, TcpListener as StdTcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use jsonwebtoken::{EncodingKey, Header};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use crate::demo_chaos::{Chaos, Fate};

/// Products are numbered from 1 to this.
const PRODUCTS_MAX: u64 = 1000;
const BODY_BYTES_MAX: usize = 64 * 1024;
/// Connections of each service at the same time; more wait.
const CONNECTIONS_MAX: usize = 1024;

/// Where the services listen. They end with the process.
#[derive(Debug)]
pub(crate) struct Services {
    pub(crate) product: SocketAddr,
    pub(crate) order: SocketAddr,
    pub(crate) auth: SocketAddr,
    pub(crate) tokens: Arc<Tokens>,
}

/// Signs the demo's tokens.
#[derive(Debug)]
pub(crate) struct Tokens(String);

/// Seconds that a token holds.
const TOKEN_LIFE_S: u64 = 3600;

impl Tokens {
    /// With a secret of this process, unless `JWT_SECRET` has one.
    fn new() -> Self {
        let random = || RandomState::new().build_hasher().finish();
        let secret = || format!("{:016x}{:016x}{:016x}{:016x}", random(), random(), random(), random());
        Self(std::env::var("JWT_SECRET").unwrap_or_else(|_| secret()))
    }

    pub(crate) fn secret(&self) -> &str {
        &self.0
    }

    /// A token for this user in this role, for an hour.
    pub(crate) fn sign(&self, user: &str, role: &str) -> String {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let claims = json!({ "sub": user, "role": role, "iat": now, "exp": now + TOKEN_LIFE_S });
        let key = EncodingKey::from_secret(self.0.as_bytes());
        // HMAC takes any secret.
        jsonwebtoken::encode(&Header::default(), &claims, &key).unwrap_or_default()
    }
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    Product,
    Order,
    Auth,
}

/// What a service answers: a status and a JSON value.
type Answer = (StatusCode, Value);

impl Services {
    pub(crate) fn start(chaos: bool) -> io::Result<Self> {
        let (product, products) = bind()?;
        let (order, orders) = bind()?;
        let (auth, signers) = bind()?;
        let tokens = Arc::new(Tokens::new());
        let signs = tokens.clone();
        let chaos = chaos.then(|| Arc::new(Chaos::default()));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        thread::Builder::new().name("demo".into()).spawn(move || {
            let services = [(products, Kind::Product, chaos), (orders, Kind::Order, None), (signers, Kind::Auth, None)];
            let all =
                services.map(|(listener, kind, chaos)| runtime.spawn(serve(listener, kind, signs.clone(), chaos)));
            runtime.block_on(async {
                for service in all {
                    if let Ok(Err(error)) = service.await {
                        tracing::error!("a demo service ended: {error}");
                    }
                }
            });
        })?;
        Ok(Self { product, order, auth, tokens })
    }
}

fn bind() -> io::Result<(SocketAddr, StdTcpListener)> {
    let listener = StdTcpListener::bind(("127.0.0.1", 0))?;
    listener.set_nonblocking(true)?;
    Ok((listener.local_addr()?, listener))
}

async fn serve(listener: StdTcpListener, kind: Kind, tokens: Arc<Tokens>, chaos: Option<Arc<Chaos>>) -> io::Result<()> {
    let listener = TcpListener::from_std(listener)?;
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(place) = places.clone().acquire_owned().await else { return Ok(()) };
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let (tokens, chaos) = (tokens.clone(), chaos.clone());
        tokio::spawn(async move {
            // Without this, an answer in two writes waits for the gateway's acknowledgement.
            let _ = stream.set_nodelay(true);
            let service = service_fn(|request| async {
                Ok::<_, Infallible>(answer(kind, request, &tokens, chaos.as_deref()).await)
            });
            let connection = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .serve_connection(TokioIo::new(stream), service);
            // A connection that breaks is the gateway's affair.
            let _ = connection.await;
            drop(place);
        });
    }
}

async fn answer(
    kind: Kind,
    request: Request<Incoming>,
    tokens: &Tokens,
    chaos: Option<&Chaos>,
) -> Response<Full<Bytes>> {
    let fate = chaos.map_or(Fate::Good, |chaos| chaos.fate(Instant::now()));
    if let Fate::Late(time) = fate {
        tokio::time::sleep(time).await;
    }
    let path = request.uri().path().to_owned();
    let (status, value) = match (fate, kind, request.method(), path.as_str()) {
        (Fate::Fails(status), ..) => (status, json!({ "error": "Chaos" })),
        (_, Kind::Product, &Method::GET, path) if path.starts_with("/products/") => product(path),
        (_, Kind::Order, &Method::POST, "/orders") => order(body(request).await),
        (_, Kind::Auth, &Method::POST, "/token") => token(body(request).await, tokens),
        _ => (StatusCode::NOT_FOUND, json!({ "error": "Not found" })),
    };
    let mut response = Response::new(Full::new(format!("{value}\n").into()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

fn product(path: &str) -> Answer {
    let id = path.strip_prefix("/products/").and_then(|id| id.parse().ok());
    match id {
        Some(id @ 1..=PRODUCTS_MAX) => {
            let (name, cents) = (format!("Product {id}"), 500 + id * 37 % 10_000);
            // Each tenth is sold out, so that an order can fail.
            let available = id % 10 != 0;
            (StatusCode::OK, json!({ "id": id, "name": name, "priceCents": cents, "available": available }))
        }
        _ => (StatusCode::NOT_FOUND, json!({ "error": "No such product" })),
    }
}

fn order(body: Option<Bytes>) -> Answer {
    static ORDERS: AtomicU64 = AtomicU64::new(0);
    let order: Option<Value> = body.and_then(|body| serde_json::from_slice(&body).ok());
    let field = |name: &str| order.as_ref().and_then(|order| order.get(name)).filter(|value| !value.is_null());
    let (Some(product), Some(quantity)) = (field("productId"), field("quantity").and_then(Value::as_u64)) else {
        let error = "An order is JSON with a productId and a quantity";
        return (StatusCode::BAD_REQUEST, json!({ "error": error }));
    };
    let id = ORDERS.fetch_add(1, Ordering::Relaxed) + 1;
    let created = json!({ "orderId": id, "productId": product, "quantity": quantity, "status": "created" });
    (StatusCode::CREATED, created)
}

/// The fields of RFC 6749 section 5.1. A demo asks for no password.
fn token(body: Option<Bytes>, tokens: &Tokens) -> Answer {
    let asked: Value = body.and_then(|body| serde_json::from_slice(&body).ok()).unwrap_or_default();
    let field = |name: &str, default| asked.get(name).and_then(Value::as_str).unwrap_or(default).to_owned();
    let (user, role) = (field("user", "usr_demo"), field("role", "user"));
    let token = tokens.sign(&user, &role);
    (StatusCode::OK, json!({ "access_token": token, "token_type": "Bearer", "expires_in": TOKEN_LIFE_S }))
}

/// The whole body; `None` where it broke off or is too long.
async fn body(request: Request<Incoming>) -> Option<Bytes> {
    let body = Limited::new(request.into_body(), BODY_BYTES_MAX).collect().await.ok()?;
    Some(body.to_bytes())
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpStream;

    use super::*;

    /// Sends one request and gives back (status, JSON).
    fn ask(address: SocketAddr, method: &str, path: &str, body: &str) -> (u16, Value) {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let length = body.len();
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nHost: demo\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}"
        )
        .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head[9..12].parse().unwrap(), serde_json::from_str(body).unwrap())
    }

    #[test]
    fn products_exist_up_to_a_thousand() {
        let services = Services::start(false).unwrap();
        let (status, product) = ask(services.product, "GET", "/products/42", "");
        assert_eq!((status, &product["id"], &product["available"]), (200, &json!(42), &json!(true)));
        assert_eq!(ask(services.product, "GET", "/products/50", "").1["available"], json!(false));
        for id in ["0", "1001", "x", ""] {
            assert_eq!(ask(services.product, "GET", &format!("/products/{id}"), "").0, 404);
        }
        assert_eq!(ask(services.product, "POST", "/products/42", "").0, 404);
    }

    #[test]
    fn orders_are_created_from_json() {
        let services = Services::start(false).unwrap();
        let (status, order) = ask(services.order, "POST", "/orders", r#"{"productId":42,"quantity":2}"#);
        assert_eq!((status, &order["productId"], &order["status"]), (201, &json!(42), &json!("created")));
        for body in ["", "no JSON", "{}", r#"{"productId":1}"#, r#"{"productId":1,"quantity":-1}"#] {
            assert_eq!(ask(services.order, "POST", "/orders", body).0, 400, "{body}");
        }
        assert_eq!(ask(services.order, "POST", "/orders", &"x".repeat(BODY_BYTES_MAX + 1)).0, 400);
    }

    #[test]
    fn tokens_have_the_standard_fields() {
        let services = Services::start(false).unwrap();
        let (status, token) = ask(services.auth, "POST", "/token", "");
        assert_eq!((status, &token["token_type"], &token["expires_in"]), (200, &json!("Bearer"), &json!(3600)));
        assert_eq!(token["access_token"].as_str().unwrap().split('.').count(), 3);
    }
}
