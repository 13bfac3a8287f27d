//! A server of `h2` that a test scripts.

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::{HeaderMap, Request, Response};
use ringway_tests::{Gateway, Setup};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Notify;
use tokio_rustls::TlsAcceptor;

/// A server of HTTP/2 on a thread of its own, which a test's handler answers for.
pub(crate) struct Service {
    pub(crate) endpoint: String,
    pub(crate) shared: Arc<Shared>,
    pub(crate) stop: Option<tokio::sync::oneshot::Sender<()>>,
}

#[derive(Default)]
pub(crate) struct Shared {
    pub(crate) connections: AtomicUsize,
    pub(crate) open: AtomicUsize,
    pub(crate) requests: Mutex<Vec<http::request::Parts>>,
    /// Reasons of the resets that streams were ended with.
    pub(crate) resets: Mutex<Vec<Reason>>,
    /// Bytes of answers that `h2` has taken.
    pub(crate) sent: AtomicUsize,
}

/// One request in a handler's hands.
pub(crate) struct Call {
    /// Which request of the service this is, from 0.
    pub(crate) index: usize,
    /// Which connection it came on, from 0.
    pub(crate) connection: usize,
    pub(crate) request: Request<RecvStream>,
    pub(crate) respond: SendResponse<Bytes>,
    /// Its connection.
    pub(crate) control: Arc<Control>,
    pub(crate) shared: Arc<Shared>,
}

/// What a handler may do with its connection.
#[derive(Default)]
pub(crate) struct Control {
    pub(crate) go_away: Notify,
    pub(crate) drop: Notify,
}

pub(crate) type Served = Pin<Box<dyn Future<Output = ()> + Send>>;

impl Service {
    pub(crate) fn start<F: Future<Output = ()> + Send + 'static>(
        handler: impl Fn(Call) -> F + Send + Sync + 'static,
    ) -> Self {
        Self::with(|_| {}, None, handler)
    }

    /// With settings of the test's own, and maybe over TLS.
    pub(crate) fn with<F: Future<Output = ()> + Send + 'static>(
        prepare: impl Fn(&mut h2::server::Builder) + Send + 'static,
        tls: Option<TlsAcceptor>,
        handler: impl Fn(Call) -> F + Send + Sync + 'static,
    ) -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        listener.set_nonblocking(true).expect("a socket that does not block");
        let endpoint = listener.local_addr().expect("an address").to_string();
        let shared = Arc::new(Shared::default());
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let of_thread = Arc::clone(&shared);
        let handler: Arc<dyn Fn(Call) -> Served + Send + Sync> = Arc::new(move |call| Box::pin(handler(call)));
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async {
                let listener = tokio::net::TcpListener::from_std(listener).expect("a listener");
                let accept = async {
                    loop {
                        let (stream, _) = listener.accept().await.expect("a connection");
                        let _ = stream.set_nodelay(true);
                        let mut builder = h2::server::Builder::new();
                        prepare(&mut builder);
                        let (handler, shared) = (Arc::clone(&handler), Arc::clone(&of_thread));
                        match tls.clone() {
                            None => drop(tokio::spawn(serve(stream, builder, handler, shared))),
                            Some(tls) => drop(tokio::spawn(async move {
                                if let Ok(stream) = tls.accept(stream).await {
                                    serve(stream, builder, handler, shared).await;
                                }
                            })),
                        }
                    }
                };
                tokio::select! {
                    () = accept => {}
                    _ = stopped => {}
                }
            });
        });
        Self { endpoint, shared, stop: Some(stop) }
    }

    /// Answers every request with 200 and a short body.
    pub(crate) fn ok() -> Self {
        Self::start(|mut call| async move { call.answer(Response::builder(), "ok") })
    }

    pub(crate) fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::Acquire)
    }

    pub(crate) fn open(&self) -> usize {
        self.shared.open.load(Ordering::Acquire)
    }

    pub(crate) fn requests(&self) -> usize {
        self.shared.requests.lock().expect("a list").len()
    }

    #[track_caller]
    pub(crate) fn request(&self, index: usize) -> http::request::Parts {
        self.shared.requests.lock().expect("a list")[index].clone()
    }

    pub(crate) fn resets(&self) -> Vec<Reason> {
        self.shared.resets.lock().expect("a list").clone()
    }

    /// A gateway before it; `service` says more of the service.
    #[track_caller]
    pub(crate) fn gateway(&self, service: &str) -> Gateway {
        let service = format!("protocol: http2, {service}");
        Setup { service: &service, listener: "http2: { enabled: true }", ..Setup::default() }.start(&self.endpoint)
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        drop(self.stop.take());
    }
}

pub(crate) async fn serve(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    builder: h2::server::Builder,
    handler: Arc<dyn Fn(Call) -> Served + Send + Sync>,
    shared: Arc<Shared>,
) {
    let number = shared.connections.fetch_add(1, Ordering::AcqRel);
    shared.open.fetch_add(1, Ordering::AcqRel);
    let control = Arc::new(Control::default());
    if let Ok(mut connection) = builder.handshake::<_, Bytes>(stream).await {
        loop {
            tokio::select! {
                accepted = connection.accept() => match accepted {
                    Some(Ok((request, respond))) => {
                        let (parts, body) = request.into_parts();
                        let mut requests = shared.requests.lock().expect("a list");
                        let index = requests.len();
                        requests.push(parts.clone());
                        drop(requests);
                        let request = Request::from_parts(parts, body);
                        let (control, shared) = (Arc::clone(&control), Arc::clone(&shared));
                        tokio::spawn(handler(Call { index, connection: number, request, respond, control, shared }));
                    }
                    _ => break,
                },
                () = control.go_away.notified() => connection.graceful_shutdown(),
                () = control.drop.notified() => break,
            }
        }
    }
    shared.open.fetch_sub(1, Ordering::AcqRel);
}

impl Call {
    /// The whole body and its trailers.
    pub(crate) async fn body(&mut self) -> (Vec<u8>, HeaderMap) {
        let (mut whole, body) = (Vec::new(), self.request.body_mut());
        while let Some(Ok(data)) = body.data().await {
            let _ = body.flow_control().release_capacity(data.len());
            whole.extend_from_slice(&data);
        }
        (whole, body.trailers().await.ok().flatten().unwrap_or_default())
    }

    pub(crate) fn answer(&mut self, head: http::response::Builder, body: &str) {
        let mut stream = self.begin(head, body.is_empty());
        if !body.is_empty() {
            let _ = stream.send_data(Bytes::copy_from_slice(body.as_bytes()), true);
        }
    }

    pub(crate) fn begin(&mut self, head: http::response::Builder, end: bool) -> SendStream<Bytes> {
        self.respond.send_response(head.body(()).expect("a head"), end).expect("a stream")
    }

    /// Waits for the gateway to reset the stream.
    pub(crate) async fn expect_reset(mut self) {
        let reset = std::future::poll_fn(|cx| self.respond.poll_reset(cx)).await;
        self.shared.resets.lock().expect("a list").push(reset.unwrap_or(Reason::INTERNAL_ERROR));
    }
}

/// Sends all of it as the window opens, and waits for each piece to be taken.
pub(crate) async fn send_all(
    stream: &mut SendStream<Bytes>,
    mut data: Bytes,
    shared: &Shared,
) -> Result<(), h2::Error> {
    while !data.is_empty() {
        stream.reserve_capacity(data.len());
        let room = match std::future::poll_fn(|cx| stream.poll_capacity(cx)).await {
            Some(room) => room?,
            None => return Err(Reason::CANCEL.into()),
        };
        let piece = data.split_to(room.min(data.len()));
        shared.sent.fetch_add(piece.len(), Ordering::AcqRel);
        stream.send_data(piece, false)?;
    }
    Ok(())
}
