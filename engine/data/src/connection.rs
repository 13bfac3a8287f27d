//! A client's connection: what it keeps while it waits, and the loop between waiting and serving.

use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;

use ringway_config::snapshot::{Listener, Route};

use crate::client::Client;
use crate::clock::us;
use crate::deadline::{Slot, Timers};
use crate::places::Panicked;
use crate::request::Exchange;
use crate::tls::shake_hands;
use crate::view::View;
use crate::worker::Worker;
use ringway_io::Sock;

/// A client's connection. While it is idle this is all there is of it: no buffer, no future of a request.
pub(crate) struct Connection {
    pub(crate) worker: Rc<Worker>,
    pub(crate) client: Client,
    pub(crate) peer: SocketAddr,
    /// The snapshot of the current request; never changes within one.
    pub(crate) view: Rc<View>,
    pub(crate) listener: Arc<Listener>,
    pub(crate) timers: Timers,
    /// Requests so far.
    pub(crate) served: u64,
    /// Its listener is gone from the configuration: it ends after the current request.
    orphaned: bool,
    _counted: Counted,
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
        Self {
            timers: worker.deadlines.register(sock.clone()),
            view: worker.view(),
            worker: Rc::clone(worker),
            client: Client::plain(sock),
            peer,
            listener,
            served: 0,
            orphaned: false,
            _counted: counted,
        }
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
        !self.orphaned && !self.worker.is_draining() && limit.is_none_or(|limit| self.served < limit)
    }
}

/// Waits for requests and has them served, until either side has enough. A panic ends this connection, and no other.
pub(crate) async fn connection(mut conn: Box<Connection>) {
    let worker = Rc::clone(&conn.worker);
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
                    Some(idle) => conn = idle,
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
