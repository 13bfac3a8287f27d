//! A client's connection: what it keeps while it waits, and the loop between waiting and serving.

use std::cell::Cell;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;

use ringway_config::snapshot::{Listener, Route};
use ringway_core::stats::TlsCell;

use crate::buffer::Buffer;
use crate::client::Client;
use crate::clock::us;
use crate::deadline::{End, Signal, Slot, Timers};
use crate::http2::http2;
use crate::places::Panicked;
use crate::proxy_protocol::introduce;
use crate::request::Exchange;
use crate::stream::Stream;
use crate::tls::{Secured, shake_hands};
use crate::tunnel::{Tunnel, tunnel};
use crate::view::View;
use crate::worker::Worker;
use ringway_io::Sock;

/// A client's connection. While it is idle this is all there is of it: no buffer, no future of a request.
pub(crate) struct Connection {
    pub(crate) worker: Rc<Worker>,
    pub(crate) client: Client,
    /// The client's address: a proxy's word, where one is trusted to tell it.
    pub(crate) peer: SocketAddr,
    /// Where the client had connected to, as far as that is known without asking the kernel.
    pub(crate) destination: Option<SocketAddr>,
    /// What its TLS handshake told; a stream has its connection's.
    pub(crate) secured: Secured,
    /// The snapshot of the current request; never changes within one.
    pub(crate) view: Rc<View>,
    pub(crate) listener: Arc<Listener>,
    pub(crate) timers: Timers,
    /// Requests so far.
    pub(crate) served: u64,
    /// When it is too old for another request.
    pub(crate) ends_at: u64,
    /// Its listener is gone from the configuration: it ends after the current request.
    orphaned: bool,
    /// What has come of a connection that turned out to be HTTP/2.
    pub(crate) http2: Option<Box<Buffer>>,
    /// It has changed its protocol.
    pub(crate) tunnel: Cell<Option<Box<Tunnel>>>,
    /// Streams have none: their connection is counted.
    counted: Option<Counted>,
}

/// A place in the counts of open connections, given back when dropped.
pub(crate) struct Counted {
    worker: Rc<Worker>,
    ip: Option<IpAddr>,
}

impl Counted {
    /// `ip`: where connections are counted per address.
    pub(crate) fn new(worker: &Rc<Worker>, ip: Option<IpAddr>) -> Self {
        worker.cell().connections.add(1);
        Self { worker: Rc::clone(worker), ip }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.worker.cell().connections.sub(1);
        if let Some(ip) = self.ip {
            self.worker.shared.per_ip.leave(ip);
        }
    }
}

impl Connection {
    pub(crate) fn new(
        worker: &Rc<Worker>,
        sock: Sock,
        peer: SocketAddr,
        listener: Arc<Listener>,
        counted: Counted,
    ) -> Self {
        let age = listener.timeouts.connection_age.map(us);
        // Up to a tenth more, so that those that were made together do not end together.
        let ends_at = age.map(|age| worker.clock.lately() + age + worker.random() % (age / 10 + 1));
        Self {
            timers: worker.deadlines.register(End::Sock(sock.clone())),
            view: worker.view(),
            worker: Rc::clone(worker),
            client: Client::plain(sock),
            peer,
            destination: None,
            secured: Secured::default(),
            listener,
            served: 0,
            ends_at: ends_at.unwrap_or(u64::MAX),
            orphaned: false,
            http2: None,
            tunnel: Cell::default(),
            counted: Some(counted),
        }
    }

    /// A stream of this connection, as a connection with one request.
    pub(crate) fn for_stream(&self, stream: Rc<Stream>) -> Box<Self> {
        self.beside(Rc::clone(&stream.signal), Client::of_stream(stream))
    }

    /// For what the gateway asks on account of this connection and nobody waits for.
    pub(crate) fn for_nobody(&self) -> Box<Self> {
        self.beside(Rc::default(), Client::nobody())
    }

    /// Another one of the same client. Deadlines act on `signal`.
    fn beside(&self, signal: Rc<Signal>, client: Client) -> Box<Self> {
        Box::new(Self {
            timers: self.worker.deadlines.register(End::Task(signal)),
            view: Rc::clone(&self.view),
            worker: Rc::clone(&self.worker),
            client,
            peer: self.peer,
            destination: self.destination,
            secured: self.secured.clone(),
            listener: Arc::clone(&self.listener),
            served: 0,
            ends_at: self.ends_at,
            orphaned: false,
            http2: None,
            tunnel: Cell::default(),
            counted: None,
        })
    }

    /// Counts the connection for its client's address, which was not known before; false where that one has enough.
    pub(crate) fn count_address(&mut self) -> bool {
        let (ip, max) = (self.peer.ip().to_canonical(), self.view.published.snapshot.limits.connections_per_ip);
        let (Some(max), Some(counted)) = (max, &mut self.counted) else { return true };
        if !self.worker.shared.per_ip.enter(ip, max) {
            return false;
        }
        counted.ip = Some(ip);
        true
    }

    /// What this core counts of how connections of the listener begin.
    pub(crate) fn listener_cell(&self) -> Option<&TlsCell> {
        let published = &self.view.published;
        let place = published.snapshot.listeners.iter().position(|listener| Arc::ptr_eq(listener, &self.listener))?;
        published.tls.get(place)?.workers.get(self.worker.id).map(|cell| &**cell)
    }

    /// Has the deadlines act on a task from now on, and a drain tell it, and its age.
    pub(crate) fn act_on(&mut self, signal: Rc<Signal>) {
        self.timers = self.worker.deadlines.register(End::Task(signal));
        let idle = us(self.listener.timeouts.idle);
        self.timers.idle(self.worker.clock.lately(), idle);
        self.timers.set(Slot::Request, self.ends_at);
    }

    pub(crate) fn take_counted(&mut self) -> Option<Counted> {
        self.counted.take()
    }

    pub(crate) fn take_client(&mut self) -> Client {
        std::mem::replace(&mut self.client, Client::nobody())
    }

    /// Takes it back; deadlines act on its socket again.
    pub(crate) fn give_client(&mut self, client: Client) {
        if let Some(sock) = client.sock() {
            self.timers = self.worker.deadlines.register(End::Sock(sock.clone()));
        }
        self.client = client;
    }

    /// Takes the newest snapshot, if it is another one. Between requests only.
    #[inline]
    pub(crate) fn renew(&mut self) {
        let newest = self.worker.view();
        if Rc::ptr_eq(&newest, &self.view) {
            return;
        }
        let address = self.listener.address;
        match newest.published.snapshot.listeners.iter().find(|listener| listener.address == address) {
            Some(listener) => {
                self.listener = Arc::clone(listener);
                self.view = newest;
            }
            None => self.orphaned = true,
        }
    }

    /// The route of a request, once it is known.
    #[inline]
    pub(crate) fn route(&self, exchange: &Exchange) -> Option<&Route> {
        self.view.published.snapshot.routes.get(exchange.route? as usize).map(|route| &**route)
    }

    /// Whether there may be another request after this one, as far as the gateway is concerned.
    #[inline]
    pub(crate) fn may_keep_alive(&self) -> bool {
        let limit = self.listener.limits.requests_per_connection;
        let is_enough = limit.is_some_and(|limit| self.served >= limit) || self.worker.clock.lately() >= self.ends_at;
        !is_enough && !self.orphaned && !self.worker.is_draining()
    }
}

/// Waits for requests and has them served, until either side has enough. A panic ends this connection, and no other.
pub(crate) async fn connection(mut conn: Box<Connection>) {
    let worker = Rc::clone(&conn.worker);
    if conn.listener.proxy_protocol.is_some() && !Box::pin(introduce(&mut conn)).await {
        return;
    }
    // In a box of its own, which is gone when the handshake is through.
    if conn.listener.tls.is_some() && !Box::pin(shake_hands(&mut conn)).await {
        return;
    }
    loop {
        conn.timers.idle(worker.clock.lately(), us(conn.listener.timeouts.idle));
        conn.client.readable().await;
        if conn.timers.has_fired(Slot::ClientRead) {
            conn.client.end();
            return;
        }
        conn.timers.begin();
        let mut place = worker.take_place();
        let served = place.serve(conn).await;
        match served {
            Ok(idle) => {
                worker.give_place(place);
                match idle {
                    // On tasks of their own, so that those that speak HTTP/1 have no room for it.
                    Some(mut idle) => match (idle.http2.take(), idle.tunnel.take()) {
                        (Some(first), _) => {
                            // Its streams have no socket of their own.
                            idle.destination = idle.destination.or_else(|| idle.client.local_address());
                            return ringway_io::spawn(http2(idle, *first));
                        }
                        (_, Some(opened)) => return ringway_io::spawn(tunnel(idle, opened)),
                        (None, None) => conn = idle,
                    },
                    None => return,
                }
            }
            Err(Panicked) => {
                worker.cell().panics.add(1);
                tracing::error!(worker = worker.id, "a connection's task panicked; the connection was closed");
                return;
            }
        }
    }
}
