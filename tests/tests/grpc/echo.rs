//! A client and a service of gRPC, both of `tonic`, and a gateway between them.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use bytes::{Buf, BufMut, Bytes};
use http::uri::PathAndQuery;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use ringway_tests::{Gateway, PATIENCE};
use tokio_stream::{Stream, StreamExt};
use tonic::body::Body;
use tonic::client::GrpcService;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::server::{ClientStreamingService, ServerStreamingService, StreamingService, UnaryService};
use tonic::{Code, Request, Response, Status, Streaming};

/// The largest message of the tests, and more.
pub(crate) const MESSAGE_BYTES_MAX: usize = 32 * 1024 * 1024;

/// Messages are bytes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Raw;

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

pub(crate) type Later<T> = Pin<Box<dyn Future<Output = T> + Send>>;
pub(crate) type Messages = Pin<Box<dyn Stream<Item = Result<Bytes, Status>> + Send>>;

/// What the service saw.
#[derive(Default)]
pub(crate) struct Seen {
    pub(crate) heads: Mutex<Vec<http::HeaderMap>>,
    /// Calls whose handler was dropped before it was through.
    pub(crate) cancelled: AtomicUsize,
    served: AtomicUsize,
    /// Calls that are still to fail, and how.
    failing: Mutex<(usize, Option<Code>)>,
}

impl Seen {
    /// What the next call ends with, where it is to fail.
    fn fails(&self) -> Option<Code> {
        let (left, code) = &mut *self.failing.lock().expect("a count");
        *left = left.checked_sub(1)?;
        *code
    }

    /// The next calls fail so.
    pub(crate) fn fail(&self, calls: usize, code: Code) {
        *self.failing.lock().expect("a count") = (calls, Some(code));
    }
}

/// The service: each method is one of the four kinds of calls.
#[derive(Clone)]
pub(crate) struct Echo(Arc<Seen>);

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
        let (guard, seen) = (Guard::of(&self.0), Arc::clone(&self.0));
        Box::pin(async move {
            let message = request.get_ref().clone();
            if message.as_ref() == b"wait" {
                tokio::time::sleep(PATIENCE).await;
            }
            guard.done();
            if let Some(code) = seen.fails() {
                return Err(Status::new(code, "as it was told"));
            }
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
        let (guard, code) = (Guard::of(&self.0), self.0.fails().unwrap_or(Code::OutOfRange));
        Box::pin(async move {
            let asked = String::from_utf8_lossy(request.get_ref()).into_owned();
            let count: usize = asked.parse().map_err(|_| Status::invalid_argument("not a number"))?;
            let mut guard = Some(guard);
            let messages = tokio_stream::iter(0..=count).map(move |index| match index {
                // Without an end where it is asked for as many as that.
                index if index == count => {
                    guard.take().into_iter().for_each(Guard::done);
                    Err(Status::new(code, "no more"))
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
pub(crate) struct Service {
    pub(crate) endpoint: String,
    pub(crate) seen: Arc<Seen>,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
}

impl Service {
    pub(crate) fn start() -> Self {
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
    pub(crate) fn stop(&mut self) {
        drop(self.stop.take());
    }

    pub(crate) fn head(&self, index: usize) -> http::HeaderMap {
        self.seen.heads.lock().expect("a list")[index].clone()
    }
}

pub(crate) fn on_runtime<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime").block_on(work)
}

/// A gateway before a service; `route` and `service` say more of them.
#[track_caller]
pub(crate) fn gateway(endpoint: &str, service: &str, route: &str, sections: &str) -> Gateway {
    Gateway::start(&format!(
        "listeners: [{{ name: public, address: LISTEN, http2: {{ enabled: true }} }}]\n\
         services: [{{ name: app, endpoints: [\"{endpoint}\"], protocol: http2, {service} }}]\n\
         routes: [{{ name: all, service: app, limits: {{ body: off }}, {route} }}]\n{sections}"
    ))
}

/// A connection to the gateway, which does not look at the time itself.
#[derive(Clone)]
pub(crate) struct Wire(hyper::client::conn::http2::SendRequest<Body>);

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

pub(crate) type Client = tonic::client::Grpc<Wire>;

pub(crate) async fn connect(gateway: &Gateway) -> Client {
    let stream = tokio::net::TcpStream::connect(gateway.address()).await.expect("a connection");
    let (send, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.expect("a handshake");
    tokio::spawn(connection);
    let origin = format!("http://{}", gateway.address()).parse().expect("a URI");
    tonic::client::Grpc::with_origin(Wire(send), origin).max_decoding_message_size(MESSAGE_BYTES_MAX)
}

pub(crate) fn path(method: &'static str) -> PathAndQuery {
    PathAndQuery::from_static(method)
}

pub(crate) const UNARY: &str = "/test.Echo/Unary";

pub(crate) async fn unary(client: &mut Client, request: Request<Bytes>) -> Result<Response<Bytes>, Status> {
    client.ready().await.map_err(|error| Status::from_error(error.into()))?;
    client.unary(request, path(UNARY), Raw).await
}

pub(crate) fn message(text: &'static str) -> Request<Bytes> {
    Request::new(Bytes::from_static(text.as_bytes()))
}

/// A call of a service that may be anything.
pub(crate) fn call(gateway: &Gateway, request: Request<Bytes>) -> Result<Response<Bytes>, Status> {
    on_runtime(async { unary(&mut connect(gateway).await, request).await })
}

#[track_caller]
pub(crate) fn refused(gateway: &Gateway, request: Request<Bytes>) -> Status {
    call(gateway, request).expect_err("a refusal")
}
