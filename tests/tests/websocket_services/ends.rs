//! Both ends of WebSockets over streams of HTTP/2 (RFC 8441), for a library that wants a stream of bytes.

use std::future::{Future, poll_fn};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::net::UnixStream;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use bytes::Bytes;
use h2::ext::Protocol;
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::{Method, Request, Response, request};
use ringway_tests::{Gateway, PATIENCE, Setup};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio_rustls::{TlsAcceptor, TlsConnector};
use tungstenite::protocol::{Role, WebSocketConfig};
use tungstenite::{Message, WebSocket};

/// A server of HTTP/2 on a thread of its own, which a test's handler answers for.
pub(crate) struct Service {
    pub(crate) endpoint: String,
    pub(crate) shared: Arc<Shared>,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
}

#[derive(Default)]
pub(crate) struct Shared {
    pub(crate) connections: AtomicUsize,
    /// Requests in handlers' hands.
    pub(crate) open: AtomicUsize,
    pub(crate) requests: Mutex<Vec<request::Parts>>,
    /// Reasons of the resets that handlers have seen.
    pub(crate) resets: Mutex<Vec<Reason>>,
    /// Bytes of tunnels that `h2` has taken.
    pub(crate) sent: AtomicUsize,
}

/// A request in a handler's hands.
pub(crate) struct Call {
    pub(crate) request: request::Parts,
    pub(crate) body: RecvStream,
    pub(crate) respond: SendResponse<Bytes>,
    pub(crate) shared: Arc<Shared>,
}

type Served = Pin<Box<dyn Future<Output = ()> + Send>>;
type Handler = Arc<dyn Fn(Call) -> Served + Send + Sync>;

impl Service {
    /// One that takes extended CONNECTs.
    pub(crate) fn start<F: Future<Output = ()> + Send + 'static>(
        handler: impl Fn(Call) -> F + Send + Sync + 'static,
    ) -> Self {
        Self::with(true, None, handler)
    }

    pub(crate) fn with<F: Future<Output = ()> + Send + 'static>(
        takes_tunnels: bool,
        tls: Option<TlsAcceptor>,
        handler: impl Fn(Call) -> F + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        listener.set_nonblocking(true).expect("a socket that does not block");
        let endpoint = listener.local_addr().expect("an address").to_string();
        let shared = Arc::new(Shared::default());
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let of_thread = Arc::clone(&shared);
        let handler: Handler = Arc::new(move |call| Box::pin(handler(call)));
        on_a_thread(async move {
            let listener = tokio::net::TcpListener::from_std(listener).expect("a listener");
            let accept = async {
                loop {
                    let (stream, _) = listener.accept().await.expect("a connection");
                    let _ = stream.set_nodelay(true);
                    let (handler, shared) = (Arc::clone(&handler), Arc::clone(&of_thread));
                    match tls.clone() {
                        None => drop(tokio::spawn(serve(stream, takes_tunnels, handler, shared))),
                        Some(tls) => drop(tokio::spawn(async move {
                            if let Ok(stream) = tls.accept(stream).await {
                                serve(stream, takes_tunnels, handler, shared).await;
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
        Self { endpoint, shared, stop: Some(stop) }
    }

    /// A library's server behind each stream, that sends messages back.
    pub(crate) fn library(tls: Option<TlsAcceptor>) -> Self {
        Self::with(true, tls, |call| async move {
            let protocols = call.request.headers.get("sec-websocket-protocol").cloned();
            let mut head = Response::builder().header("x-service", "2");
            if let Some(protocols) = protocols {
                head = head.header("sec-websocket-protocol", protocols.to_str().unwrap().split(", ").next().unwrap());
            }
            let (ours, theirs) = UnixStream::pair().expect("a pair");
            std::thread::spawn(move || send_back(WebSocket::from_raw_socket(theirs, Role::Server, Some(no_limits()))));
            call.carry(head, ours).await;
        })
    }

    /// A gateway before it; `service` and `route` say more of them.
    #[track_caller]
    pub(crate) fn gateway(&self, service: &str, route: &str) -> Gateway {
        let service = format!("protocol: http2, {service}");
        Setup { service: &service, route, ..Setup::default() }.start(&self.endpoint)
    }

    #[track_caller]
    pub(crate) fn request(&self, index: usize) -> request::Parts {
        self.shared.requests.lock().expect("a list")[index].clone()
    }

    pub(crate) fn requests(&self) -> usize {
        self.shared.requests.lock().expect("a list").len()
    }

    pub(crate) fn resets(&self) -> Vec<Reason> {
        self.shared.resets.lock().expect("a list").clone()
    }

    pub(crate) fn open(&self) -> usize {
        self.shared.open.load(Ordering::Acquire)
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        drop(self.stop.take());
    }
}

async fn serve(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    takes_tunnels: bool,
    handler: Handler,
    shared: Arc<Shared>,
) {
    shared.connections.fetch_add(1, Ordering::AcqRel);
    let mut builder = h2::server::Builder::new();
    // One stream that is not read leaves the others theirs.
    builder.initial_connection_window_size(16 << 20);
    if takes_tunnels {
        builder.enable_connect_protocol();
    }
    let Ok(mut connection) = builder.handshake::<_, Bytes>(stream).await else { return };
    while let Some(Ok((request, respond))) = connection.accept().await {
        let (request, body) = request.into_parts();
        shared.requests.lock().expect("a list").push(request.clone());
        shared.open.fetch_add(1, Ordering::AcqRel);
        let of_call = Arc::clone(&shared);
        let handled = handler(Call { request, body, respond, shared: Arc::clone(&shared) });
        tokio::spawn(async move {
            handled.await;
            of_call.open.fetch_sub(1, Ordering::AcqRel);
        });
    }
}

impl Call {
    pub(crate) fn path(&self) -> &str {
        self.request.uri.path()
    }

    pub(crate) fn begin(&mut self, head: http::response::Builder) -> SendStream<Bytes> {
        self.respond.send_response(head.body(()).expect("a head"), false).expect("a stream")
    }

    /// Agrees, unless the stream is gone already.
    pub(crate) fn agree(&mut self) -> Option<SendStream<Bytes>> {
        self.respond.send_response(Response::new(()), false).ok()
    }

    /// What the gateway resets the stream with.
    pub(crate) fn note_reset(&self, reason: Result<Reason, h2::Error>) {
        self.shared.resets.lock().expect("a list").push(reason.unwrap_or(Reason::INTERNAL_ERROR));
    }

    /// So many bytes; `None` where they do not come.
    pub(crate) async fn read_exact(&mut self, length: usize) -> Option<Vec<u8>> {
        let mut read = Vec::new();
        while read.len() < length {
            read.extend_from_slice(&self.read_some().await?);
        }
        Some(read)
    }

    pub(crate) async fn read_some(&mut self) -> Option<Bytes> {
        loop {
            let data = self.body.data().await?.ok()?;
            let _ = self.body.flow_control().release_capacity(data.len());
            // An empty frame says nothing but the end.
            if !data.is_empty() {
                return Some(data);
            }
        }
    }

    /// Sends back what comes, up to its end.
    pub(crate) async fn echo(mut self) {
        let Some(mut stream) = self.agree() else { return };
        while let Some(data) = self.read_some().await {
            if send_all(&mut stream, data, &self.shared.sent).await.is_err() {
                return;
            }
        }
        if self.body.is_end_stream() {
            let _ = stream.send_data(Bytes::new(), true);
        }
    }

    async fn carry(mut self, head: http::response::Builder, end: UnixStream) {
        let stream = self.begin(head);
        carry(end, stream, self.body).await;
    }
}

/// Sends all of it as the window opens.
pub(crate) async fn send_all(
    stream: &mut SendStream<Bytes>,
    mut data: Bytes,
    sent: &AtomicUsize,
) -> Result<(), h2::Error> {
    while !data.is_empty() {
        stream.reserve_capacity(data.len());
        let room = poll_fn(|cx| stream.poll_capacity(cx)).await.unwrap_or(Err(Reason::CANCEL.into()))?;
        let piece = data.split_to(room.min(data.len()));
        sent.fetch_add(piece.len(), Ordering::AcqRel);
        stream.send_data(piece, false)?;
    }
    Ok(())
}

/// Bytes both ways between a stream and a socket, up to both ends.
async fn carry(end: UnixStream, mut stream: SendStream<Bytes>, mut body: RecvStream) {
    end.set_nonblocking(true).expect("a socket that does not block");
    let (mut from, mut to) = tokio::net::UnixStream::from_std(end).expect("a socket").into_split();
    let up = async {
        let (mut room, sent) = (vec![0; 16 * 1024], AtomicUsize::new(0));
        while let Ok(read @ 1..) = from.read(&mut room).await {
            if send_all(&mut stream, Bytes::copy_from_slice(&room[..read]), &sent).await.is_err() {
                return;
            }
        }
        let _ = stream.send_data(Bytes::new(), true);
    };
    let down = async {
        while let Some(Ok(data)) = body.data().await {
            let _ = body.flow_control().release_capacity(data.len());
            if to.write_all(&data).await.is_err() {
                return;
            }
        }
        let _ = to.shutdown().await;
    };
    tokio::join!(up, down);
}

fn on_a_thread(task: impl Future<Output = ()> + Send + 'static) {
    std::thread::spawn(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(task);
    });
}

pub(crate) fn no_limits() -> WebSocketConfig {
    WebSocketConfig::default().max_message_size(None).max_frame_size(None)
}

/// What a library's server does here.
pub(crate) fn send_back<S: std::io::Read + std::io::Write>(mut socket: WebSocket<S>) {
    while let Ok(message) = socket.read() {
        if (message.is_text() || message.is_binary()) && socket.send(message).is_err() {
            return;
        }
    }
}

/// A library's client over a stream of a connection of its own, and the answer's head; else its status.
pub(crate) fn client(
    address: SocketAddr,
    tls: Option<Arc<rustls::ClientConfig>>,
    request: request::Builder,
) -> Result<(WebSocket<UnixStream>, http::response::Parts), u16> {
    let request = request.method(Method::CONNECT).extension(Protocol::from_static("websocket"));
    let request = request.header("sec-websocket-version", "13").body(()).expect("a request");
    let (told, tells) = mpsc::channel();
    on_a_thread(async move {
        let socket = tokio::net::TcpStream::connect(address).await.expect("a connection");
        match tls {
            None => run(socket, request, told).await,
            Some(config) => {
                let name = ServerName::try_from("localhost").expect("a name");
                let stream = TlsConnector::from(config).connect(name, socket).await.expect("a handshake");
                assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
                run(stream, request, told).await;
            }
        }
    });
    let (head, end) = tells.recv_timeout(PATIENCE).expect("an answer");
    let Some(end) = end else { return Err(head.status.as_u16()) };
    end.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    Ok((WebSocket::from_raw_socket(end, Role::Client, Some(no_limits())), head))
}

type Told = mpsc::Sender<(http::response::Parts, Option<UnixStream>)>;

async fn run(socket: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, request: Request<()>, told: Told) {
    let (mut send, connection) = h2::client::handshake(socket).await.expect("a handshake");
    let driven = tokio::spawn(connection);
    // Nothing is to be asked before the gateway has said that it may be.
    while !send.is_extended_connect_protocol_enabled() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let (answer, stream) = send.send_request(request, false).expect("a stream");
    let (head, body) = answer.await.expect("an answer").into_parts();
    if head.status != 200 {
        told.send((head, None)).expect("a test that waits");
        return;
    }
    let (ours, theirs) = UnixStream::pair().expect("a pair");
    told.send((head, Some(theirs))).expect("a test that waits");
    carry(ours, stream, body).await;
    drop(send);
    let _ = driven.await;
}

/// What a library's client makes sure of.
pub(crate) fn messages_of_every_kind<S: std::io::Read + std::io::Write>(socket: &mut WebSocket<S>) {
    use tungstenite::protocol::frame::Frame;
    use tungstenite::protocol::frame::coding::{Data, OpCode};

    socket.send(Message::text("Grüße")).expect("sent");
    assert_eq!(socket.read().expect("an echo"), Message::text("Grüße"));
    // In three frames, with a ping between them.
    for (part, opcode, last) in [("one ", Data::Text, false), ("two ", Data::Continue, false)] {
        socket.send(Message::Frame(Frame::message(part, OpCode::Data(opcode), last))).expect("sent");
    }
    socket.send(Message::Ping("are you there".into())).expect("sent");
    socket.send(Message::Frame(Frame::message("three", OpCode::Data(Data::Continue), true))).expect("sent");
    let both = [socket.read().expect("a message"), socket.read().expect("a message")];
    assert!(both.contains(&Message::Pong("are you there".into())), "{both:?}");
    assert!(both.contains(&Message::text("one two three")), "{both:?}");

    let large: Vec<u8> = (0..4 << 20).map(|n: u32| ((n * 31) >> 3) as u8).collect();
    socket.send(Message::binary(large.clone())).expect("sent");
    assert!(socket.read().expect("an echo").into_data() == large, "4 MiB come back as they were");
    socket.close(None).expect("sent");
    let ended = loop {
        if let Err(error) = socket.read() {
            break error;
        }
    };
    assert!(matches!(ended, tungstenite::Error::ConnectionClosed), "{ended}");
}
