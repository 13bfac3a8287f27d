//! gRPC through the gateway: a client and a service of `tonic`, HTTP/2 on both sides.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::{Buf, BufMut, Bytes};
use http::uri::PathAndQuery;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use ringway_tests::{Gateway, Nobody, PATIENCE, settles_at};
use tokio_stream::{Stream, StreamExt};
use tonic::body::Body;
use tonic::client::GrpcService;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::server::{ClientStreamingService, ServerStreamingService, StreamingService, UnaryService};
use tonic::{Code, Request, Response, Status, Streaming};

/// The largest message of the tests, and more.
const MESSAGE_BYTES_MAX: usize = 32 * 1024 * 1024;

/// Messages are bytes.
#[derive(Debug, Clone, Copy)]
struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, message: Bytes, out: &mut EncodeBuf<'_>) -> Result<(), Status> {
        out.put(message);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, message: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(message.copy_to_bytes(message.remaining())))
    }
}

type Later<T> = Pin<Box<dyn Future<Output = T> + Send>>;
type Messages = Pin<Box<dyn Stream<Item = Result<Bytes, Status>> + Send>>;

/// What the service saw.
#[derive(Default)]
struct Seen {
    heads: Mutex<Vec<http::HeaderMap>>,
    /// Calls whose handler was dropped before it was through.
    cancelled: AtomicUsize,
    served: AtomicUsize,
}

/// The service: each method is one of the four kinds of calls.
#[derive(Clone)]
struct Echo(Arc<Seen>);

/// Counts a call that is cut off.
struct Guard(Arc<Seen>, bool);

impl Drop for Guard {
    fn drop(&mut self) {
        let counter = if self.1 { &self.0.served } else { &self.0.cancelled };
        counter.fetch_add(1, Ordering::AcqRel);
    }
}

impl Guard {
    fn of(seen: &Arc<Seen>) -> Self {
        Self(Arc::clone(seen), false)
    }

    fn done(mut self) {
        self.1 = true;
    }
}

impl UnaryService<Bytes> for Echo {
    type Response = Bytes;
    type Future = Later<Result<Response<Bytes>, Status>>;

    fn call(&mut self, request: Request<Bytes>) -> Self::Future {
        let guard = Guard::of(&self.0);
        Box::pin(async move {
            let message = request.get_ref().clone();
            if message.as_ref() == b"wait" {
                tokio::time::sleep(PATIENCE).await;
            }
            guard.done();
            if message.as_ref() == b"fail" {
                let mut status =
                    Status::with_details(Code::FailedPrecondition, "100 % é", Bytes::from_static(b"\0why"));
                status.metadata_mut().insert("x-reason", "asked".parse().expect("a value"));
                return Err(status);
            }
            let mut response = Response::new(message);
            if let Some(value) = request.metadata().get_bin("x-data-bin") {
                response.metadata_mut().insert_bin("x-back-bin", value.clone());
            }
            if let Some(value) = request.metadata().get("x-text") {
                response.metadata_mut().insert("x-text", value.clone());
            }
            Ok(response)
        })
    }
}

impl ClientStreamingService<Bytes> for Echo {
    type Response = Bytes;
    type Future = Later<Result<Response<Bytes>, Status>>;

    fn call(&mut self, request: Request<Streaming<Bytes>>) -> Self::Future {
        Box::pin(async move {
            let (mut count, mut bytes) = (0, 0);
            let mut messages = request.into_inner();
            while let Some(message) = messages.message().await? {
                (count, bytes) = (count + 1, bytes + message.len());
            }
            Ok(Response::new(format!("{count} {bytes}").into()))
        })
    }
}

impl ServerStreamingService<Bytes> for Echo {
    type Response = Bytes;
    type ResponseStream = Messages;
    type Future = Later<Result<Response<Messages>, Status>>;

    fn call(&mut self, request: Request<Bytes>) -> Self::Future {
        let guard = Guard::of(&self.0);
        Box::pin(async move {
            let asked = String::from_utf8_lossy(request.get_ref()).into_owned();
            let count: usize = asked.parse().map_err(|_| Status::invalid_argument("not a number"))?;
            let mut guard = Some(guard);
            let messages = tokio_stream::iter(0..=count).map(move |index| match index {
                // Without an end where it is asked for as many as that.
                index if index == count => {
                    guard.take().into_iter().for_each(Guard::done);
                    Err(Status::out_of_range("no more"))
                }
                index => {
                    let _ = &guard;
                    Ok(Bytes::from(format!("{index:08}").repeat(128)))
                }
            });
            Ok(Response::new(Box::pin(messages) as Messages))
        })
    }
}

impl StreamingService<Bytes> for Echo {
    type Response = Bytes;
    type ResponseStream = Messages;
    type Future = Later<Result<Response<Messages>, Status>>;

    fn call(&mut self, request: Request<Streaming<Bytes>>) -> Self::Future {
        let guard = Guard::of(&self.0);
        Box::pin(async move {
            let messages = request.into_inner().map(move |message| {
                let _ = &guard;
                message
            });
            Ok(Response::new(Box::pin(messages) as Messages))
        })
    }
}

async fn serve(seen: Arc<Seen>, request: http::Request<Incoming>) -> Result<http::Response<Body>, Infallible> {
    seen.heads.lock().expect("a list").push(request.headers().clone());
    let mut grpc = tonic::server::Grpc::new(Raw).max_decoding_message_size(MESSAGE_BYTES_MAX);
    let echo = Echo(seen);
    Ok(match request.uri().path() {
        "/test.Echo/Unary" => grpc.unary(echo, request).await,
        "/test.Echo/Collect" => grpc.client_streaming(echo, request).await,
        "/test.Echo/Count" => grpc.server_streaming(echo, request).await,
        "/test.Echo/Chat" => grpc.streaming(echo, request).await,
        _ => Status::unimplemented("no such method").into_http(),
    })
}

/// The service on a thread of its own.
struct Service {
    endpoint: String,
    seen: Arc<Seen>,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
}

impl Service {
    fn start() -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        listener.set_nonblocking(true).expect("a socket that does not block");
        let endpoint = listener.local_addr().expect("an address").to_string();
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let seen = Arc::new(Seen::default());
        let of_thread = Arc::clone(&seen);
        std::thread::spawn(move || {
            on_runtime(async {
                let listener = tokio::net::TcpListener::from_std(listener).expect("a listener");
                let accept = async {
                    loop {
                        let (stream, _) = listener.accept().await.expect("a connection");
                        let seen = Arc::clone(&of_thread);
                        let service = hyper::service::service_fn(move |request| serve(Arc::clone(&seen), request));
                        let connection = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                            .serve_connection(TokioIo::new(stream), service);
                        tokio::spawn(connection);
                    }
                };
                tokio::select! {
                    () = accept => {}
                    _ = stopped => {}
                }
            });
        });
        Self { endpoint, seen, stop: Some(stop) }
    }

    /// Ends it and all its connections.
    fn stop(&mut self) {
        drop(self.stop.take());
    }

    fn head(&self, index: usize) -> http::HeaderMap {
        self.seen.heads.lock().expect("a list")[index].clone()
    }
}

fn on_runtime<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime").block_on(work)
}

/// A gateway before a service; `route` and `service` say more of them.
#[track_caller]
fn gateway(endpoint: &str, service: &str, route: &str, sections: &str) -> Gateway {
    Gateway::start(&format!(
        "listeners: [{{ name: public, address: LISTEN, http2: {{ enabled: true }} }}]\n\
         services: [{{ name: app, endpoints: [\"{endpoint}\"], protocol: http2, {service} }}]\n\
         routes: [{{ name: all, service: app, limits: {{ body: off }}, {route} }}]\n{sections}"
    ))
}

/// A connection to the gateway, which does not look at the time itself.
#[derive(Clone)]
struct Wire(hyper::client::conn::http2::SendRequest<Body>);

impl GrpcService<Body> for Wire {
    type ResponseBody = Incoming;
    type Error = hyper::Error;
    type Future = Later<Result<http::Response<Incoming>, hyper::Error>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), hyper::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        Box::pin(self.0.send_request(request))
    }
}

type Client = tonic::client::Grpc<Wire>;

async fn connect(gateway: &Gateway) -> Client {
    let stream = tokio::net::TcpStream::connect(gateway.address()).await.expect("a connection");
    let (send, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.expect("a handshake");
    tokio::spawn(connection);
    let origin = format!("http://{}", gateway.address()).parse().expect("a URI");
    tonic::client::Grpc::with_origin(Wire(send), origin).max_decoding_message_size(MESSAGE_BYTES_MAX)
}

fn path(method: &'static str) -> PathAndQuery {
    PathAndQuery::from_static(method)
}

const UNARY: &str = "/test.Echo/Unary";

async fn unary(client: &mut Client, request: Request<Bytes>) -> Result<Response<Bytes>, Status> {
    client.ready().await.map_err(|error| Status::from_error(error.into()))?;
    client.unary(request, path(UNARY), Raw).await
}

fn message(text: &'static str) -> Request<Bytes> {
    Request::new(Bytes::from_static(text.as_bytes()))
}

/// A call of a service that may be anything.
fn call(gateway: &Gateway, request: Request<Bytes>) -> Result<Response<Bytes>, Status> {
    on_runtime(async { unary(&mut connect(gateway).await, request).await })
}

#[track_caller]
fn refused(gateway: &Gateway, request: Request<Bytes>) -> Status {
    call(gateway, request).expect_err("a refusal")
}

#[test]
fn unary_calls_go_through_with_their_metadata() {
    let service = Service::start();
    let gateway = gateway(&service.endpoint, "", "", "");
    let mut request = message("hello");
    request.metadata_mut().insert("x-text", "some text".parse().expect("a value"));
    request.metadata_mut().insert_bin("x-data-bin", tonic::metadata::MetadataValue::from_bytes(b"\0\xff"));
    let response = call(&gateway, request).expect("an answer");
    assert_eq!(response.get_ref().as_ref(), b"hello");
    assert_eq!(response.metadata().get("x-text").expect("metadata"), "some text");
    let data = response.metadata().get_bin("x-back-bin").expect("metadata").to_bytes().expect("base64");
    assert_eq!(data.as_ref(), b"\0\xff");
    let head = service.head(0);
    assert_eq!(
        (&head["te"], &head["content-type"]),
        (&"trailers".parse().unwrap(), &"application/grpc".parse().unwrap())
    );
    assert!(!head.contains_key("grpc-timeout") && !head.contains_key("connection"));
    let line = gateway.log_line(1);
    assert_eq!((&line["statusCode"], &line["grpcStatus"]), (&200.into(), &0.into()));
    assert_eq!(gateway.metric("gateway_grpc_requests_total{service=\"app\",grpc_status=\"0\"}"), 1.0);
}

#[test]
fn large_messages_go_both_ways() {
    let service = Service::start();
    let gateway = gateway(&service.endpoint, "", "", "");
    let large: Bytes = (0..12 * 1024 * 1024u32).map(|index| (index.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let response = call(&gateway, Request::new(large.clone())).expect("an answer");
    assert!(response.get_ref() == &large, "{} bytes", response.get_ref().len());
    settles_at(0.0, || gateway.metric("gateway_buffers_in_use{worker=\"0\"}"));
}

#[test]
fn messages_of_a_client_are_collected() {
    let service = Service::start();
    let gateway = gateway(&service.endpoint, "", "", "");
    let answer = on_runtime(async {
        let mut client = connect(&gateway).await;
        client.ready().await.expect("a connection");
        let messages = tokio_stream::iter((0..1000).map(|_| Bytes::from_static(&[7; 1000])));
        client.client_streaming(Request::new(messages), path("/test.Echo/Collect"), Raw).await
    });
    assert_eq!(answer.expect("an answer").into_inner().as_ref(), b"1000 1000000");
}

#[test]
fn messages_of_a_service_come_in_order_and_end_with_its_status() {
    let service = Service::start();
    let gateway = gateway(&service.endpoint, "", "", "");
    on_runtime(async {
        let mut client = connect(&gateway).await;
        client.ready().await.expect("a connection");
        let answer = client.server_streaming(message("2000"), path("/test.Echo/Count"), Raw).await;
        let mut messages = answer.expect("an answer").into_inner();
        for index in 0..2000 {
            let message = messages.message().await.expect("a message").expect("not the end");
            assert_eq!(message, format!("{index:08}").repeat(128));
        }
        let end = messages.message().await.expect_err("a status");
        assert_eq!((end.code(), end.message()), (Code::OutOfRange, "no more"));
    });
    assert_eq!(gateway.log_line(1)["grpcStatus"], 11);
    assert_eq!(gateway.metric("gateway_grpc_requests_total{service=\"app\",grpc_status=\"11\"}"), 1.0);
}

#[test]
fn both_sides_talk_in_turn() {
    let service = Service::start();
    // Nothing waits for a body, or for a rate of it, once the service has begun to answer.
    let gateway = Gateway::start(&format!(
        "listeners: [{{ name: public, address: LISTEN, http2: {{ enabled: true }}, timeouts: {{ body: 100ms }} }}]\n\
         services: [{{ name: app, endpoints: [\"{}\"], protocol: http2 }}]\nroutes: [{{ name: all, service: app }}]\n",
        service.endpoint
    ));
    on_runtime(async {
        let (say, said) = tokio::sync::mpsc::unbounded_channel::<Bytes>();
        let said = tokio_stream::wrappers::UnboundedReceiverStream::new(said);
        let mut client = connect(&gateway).await;
        client.ready().await.expect("a connection");
        let answer = client.streaming(Request::new(said), path("/test.Echo/Chat"), Raw).await;
        let mut heard = answer.expect("an answer before a message").into_inner();
        for index in 0..50 {
            say.send(format!("message {index}").into()).expect("a receiver");
            let echo = heard.message().await.expect("a message").expect("not the end");
            assert_eq!(echo, format!("message {index}"));
            if index == 25 {
                // Longer than a body may stand still otherwise.
                tokio::time::sleep(Duration::from_millis(400)).await;
            }
        }
        drop(say);
        assert_eq!(heard.message().await.expect("an end"), None);
    });
    assert_eq!(gateway.log_line(1)["grpcStatus"], 0);
}

#[test]
fn a_failure_of_the_service_comes_with_its_message_and_details() {
    let service = Service::start();
    let gateway = gateway(&service.endpoint, "", "", "");
    let status = refused(&gateway, message("fail"));
    assert_eq!((status.code(), status.message()), (Code::FailedPrecondition, "100 % é"));
    assert_eq!(status.details(), b"\0why");
    assert_eq!(status.metadata().get("x-reason").expect("metadata"), "asked");
    let line = gateway.log_line(1);
    assert_eq!((&line["statusCode"], &line["grpcStatus"]), (&200.into(), &9.into()));
}

#[test]
fn an_answer_of_trailers_alone_stays_one() {
    let service = Service::start();
    let gateway = gateway(&service.endpoint, "", "match: { prefix: /test.Echo }", "");
    for (method, code) in [("/test.Echo/Nothing", "12"), ("/other.Echo/Unary", "12")] {
        on_runtime(async {
            let stream = tokio::net::TcpStream::connect(gateway.address()).await.expect("a connection");
            let (mut send, connection) = h2::client::handshake(stream).await.expect("a handshake");
            tokio::spawn(connection);
            let request = http::Request::post(format!("http://{}{method}", gateway.address()))
                .header("content-type", "application/grpc")
                .header("te", "trailers")
                .body(())
                .expect("a request");
            let (answer, mut body) = send.send_request(request, false).expect("a stream");
            body.send_data(Bytes::from_static(&[0; 5]), true).expect("a stream");
            let answer = answer.await.expect("an answer");
            assert_eq!(answer.status(), 200, "{method}");
            assert_eq!(answer.headers()["content-type"], "application/grpc", "{method}");
            assert_eq!(answer.headers()["grpc-status"], code, "{method}");
            assert!(answer.headers().contains_key("x-request-id"), "{method}");
            assert!(!answer.headers().contains_key("content-length"), "{method}");
            assert!(answer.body().is_end_stream(), "{method}: the head ends the stream");
        });
    }
}

#[test]
fn the_gateways_own_refusals_are_told_in_grpc() {
    let service = Service::start();
    let sections = "authenticators: [{ name: main, jwt: { algorithms: HS256, keys: { secret: \"0123456789abcdef0123456789abcdef\" } } }]\n\
                    rate_limits: [{ name: few, limit: 1/min }]\n";
    for (route, code, message_of, status, field) in [
        ("ip: { deny: [127.0.0.0/8] }", Code::PermissionDenied, "Insufficient permissions", 403, None),
        ("authenticate: main", Code::Unauthenticated, "Missing authorization token", 401, Some("www-authenticate")),
        ("rate_limit: few", Code::ResourceExhausted, "Too many requests", 429, Some("retry-after")),
        ("limits: { body: 3B }", Code::ResourceExhausted, "Request body too large", 413, None),
    ] {
        let route =
            if route.starts_with("limits") { route.to_owned() } else { format!("limits: {{ body: off }}, {route}") };
        let gateway = Gateway::start(&format!(
            "listeners: [{{ name: public, address: LISTEN, http2: {{ enabled: true }} }}]\n\
             services: [{{ name: app, endpoints: [\"{}\"], protocol: http2 }}]\n\
             routes: [{{ name: all, service: app, {route} }}]\n{sections}",
            service.endpoint
        ));
        if status == 429 {
            call(&gateway, message("x")).expect("the one that is allowed");
        }
        let refusal = refused(&gateway, message("x"));
        assert_eq!((refusal.code(), refusal.message()), (code, message_of), "{route}");
        assert!(refusal.metadata().contains_key("x-request-id"), "{route}");
        if let Some(field) = field {
            assert!(refusal.metadata().contains_key(field), "{route}: {field}");
        }
        let line = gateway.log_line(if status == 429 { 2 } else { 1 });
        assert_eq!((&line["statusCode"], &line["grpcStatus"]), (&status.into(), &(code as i32).into()), "{route}");
    }
    let gets = gateway(&service.endpoint, "", "match: { methods: [GET] }", "");
    assert_eq!(refused(&gets, message("x")).code(), Code::Unimplemented);
}

#[test]
fn a_service_that_is_not_there_is_unavailable() {
    let nobody = Nobody::new();
    let gateway = gateway(nobody.endpoint(), "", "", "");
    let status = refused(&gateway, message("x"));
    assert_eq!((status.code(), status.message()), (Code::Unavailable, "Bad gateway"));
    assert_eq!(gateway.log_line(1)["statusCode"], 502);
    assert_eq!(gateway.metric("gateway_grpc_requests_total{service=\"app\",grpc_status=\"14\"}"), 1.0);
}

#[test]
fn a_deadline_is_passed_on_and_kept() {
    let service = Service::start();
    let gateway = gateway(&service.endpoint, "", "", "");
    let mut request = message("wait");
    request.set_timeout(Duration::from_millis(400));
    let begun = Instant::now();
    let status = refused(&gateway, request);
    assert_eq!((status.code(), status.message()), (Code::DeadlineExceeded, "Gateway timeout"));
    assert!((Duration::from_millis(300)..PATIENCE).contains(&begun.elapsed()), "{:?}", begun.elapsed());
    let head = service.head(0);
    let left = head["grpc-timeout"].to_str().expect("text");
    let us: u64 = left.strip_suffix('u').expect("microseconds").parse().expect("a number");
    assert!((1..=400_000).contains(&us), "{left}");
    settles_at(1, || service.seen.cancelled.load(Ordering::Acquire));
    let line = gateway.log_line(1);
    assert_eq!((&line["statusCode"], &line["grpcStatus"]), (&504.into(), &4.into()));
}

#[test]
fn the_routes_deadline_holds_where_it_is_sooner() {
    let service = Service::start();
    let gateway = gateway(&service.endpoint, "", "timeouts: { request: 300ms }", "");
    let mut request = message("wait");
    request.set_timeout(Duration::from_secs(3600));
    assert_eq!(refused(&gateway, request).code(), Code::DeadlineExceeded);
    assert_eq!(refused(&gateway, message("wait")).code(), Code::DeadlineExceeded);
    for index in 0..2 {
        let head = service.head(index);
        let left = head["grpc-timeout"].to_str().expect("text");
        let us: u64 = left.strip_suffix('u').expect("microseconds").parse().expect("a number");
        assert!((1..=300_000).contains(&us), "{left}");
    }
}

#[test]
fn a_retry_is_told_what_is_left() {
    let service = Service::start();
    // Its queue is full: no connection stands within its time.
    let full = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    rustix::net::listen(&full, 0).expect("a short queue");
    let address = full.local_addr().expect("an address");
    let mut waiting = Vec::new();
    while let Ok(stream) = std::net::TcpStream::connect_timeout(&address, Duration::from_millis(200)) {
        waiting.push(stream);
    }
    let gateway = gateway(
        &format!("{address}\", \"{}", service.endpoint),
        "balance: round_robin, timeouts: { connect: 500ms }, retries: { backoff: { base: 0s } }",
        "",
        "",
    );
    for _ in 0..2 {
        let mut request = message("hello");
        request.set_timeout(Duration::from_secs(20));
        assert_eq!(call(&gateway, request).expect("an answer").get_ref().as_ref(), b"hello");
    }
    let left = |index| -> u64 {
        let head = service.head(index);
        let text = head["grpc-timeout"].to_str().expect("text");
        text.strip_suffix('u').expect("microseconds").parse().expect("a number")
    };
    let retried = left(0).min(left(1));
    assert!((10_000_000..=19_500_000).contains(&retried), "{retried}");
}

#[test]
fn a_deadline_that_cannot_be_read_is_refused() {
    let service = Service::start();
    let gateway = gateway(&service.endpoint, "", "", "");
    let mut request = message("x");
    request.metadata_mut().insert("grpc-timeout", "soon".parse().expect("a value"));
    let status = refused(&gateway, request);
    assert_eq!((status.code(), status.message()), (Code::Internal, "Malformed grpc-timeout"));
    assert_eq!(service.seen.heads.lock().expect("a list").len(), 0);
}

#[test]
fn a_client_that_lets_go_ends_the_call_at_the_service() {
    let service = Service::start();
    let gateway = gateway(&service.endpoint, "", "", "");
    on_runtime(async {
        let mut client = connect(&gateway).await;
        client.ready().await.expect("a connection");
        let answer = client.server_streaming(message("1000000000"), path("/test.Echo/Count"), Raw).await;
        let mut messages = answer.expect("an answer").into_inner();
        messages.message().await.expect("a message");
        drop(messages);
        let end = Instant::now() + PATIENCE;
        while service.seen.cancelled.load(Ordering::Acquire) == 0 {
            assert!(Instant::now() < end, "the call goes on");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert_eq!(unary(&mut client, message("x")).await.expect("an answer").into_inner(), "x");
    });
    gateway.log_line(2);
    assert_eq!(gateway.metric("gateway_grpc_requests_total{service=\"app\",grpc_status=\"1\"}"), 1.0);
    gateway.expect_idle();
}

#[test]
fn a_service_that_dies_within_a_call_ends_it_with_an_error() {
    let mut service = Service::start();
    let gateway = gateway(&service.endpoint, "", "", "");
    on_runtime(async {
        let (say, said) = tokio::sync::mpsc::unbounded_channel::<Bytes>();
        let said = tokio_stream::wrappers::UnboundedReceiverStream::new(said);
        let mut client = connect(&gateway).await;
        client.ready().await.expect("a connection");
        let answer = client.streaming(Request::new(said), path("/test.Echo/Chat"), Raw).await;
        let mut heard = answer.expect("an answer").into_inner();
        say.send(Bytes::from_static(b"one")).expect("a receiver");
        assert_eq!(heard.message().await.expect("a message").expect("not the end"), "one");
        service.stop();
        let status = heard.message().await.expect_err("an error");
        // Its client takes that for INTERNAL, but for `tonic` over a connection of its own.
        assert!(format!("{status:?}").contains("INTERNAL_ERROR"), "{status:?}");
    });
    assert_eq!(gateway.log_line(1)["grpcStatus"], 13);
}

#[test]
fn many_calls_at_a_time_share_few_connections() {
    let service = Service::start();
    let gateway = gateway(&service.endpoint, "", "", "");
    on_runtime(async {
        let client = connect(&gateway).await;
        let calls: Vec<_> = (0..64)
            .map(|_| {
                let mut client = client.clone();
                tokio::spawn(async move {
                    for index in 0..20 {
                        let text = format!("{index}");
                        let answer = unary(&mut client, Request::new(text.clone().into())).await.expect("an answer");
                        assert_eq!(answer.into_inner(), text);
                    }
                })
            })
            .collect();
        for call in calls {
            call.await.expect("a task");
        }
    });
    let endpoint = format!("{{service=\"app\",endpoint=\"{}\"}}", service.endpoint);
    assert_eq!(gateway.metric(&format!("gateway_endpoint_open_connections{endpoint}")), 1.0);
    gateway.log_line(64 * 20);
    assert_eq!(gateway.metric("gateway_grpc_requests_total{service=\"app\",grpc_status=\"0\"}"), 1280.0);
}
