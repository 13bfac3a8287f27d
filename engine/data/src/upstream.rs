//! Connections to services: made, kept idle, taken again. They belong to one core and one endpoint; nobody shares them.

use std::cell::{Cell, RefCell};
use std::fmt::Display;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use ringway_config::snapshot::{Endpoint, EndpointAddress, Pool};
use ringway_core::health::EndpointHealth;
use ringway_core::stats::{EndpointCell, EndpointStats};
use ringway_io::{Sock, connect, connected};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use crate::clock::us;
use crate::http2_upstream::Trunk;
use crate::link::Link;
use crate::tls::Tls;
use crate::upstream_stream::ServiceStream;

/// Between two lines of the log about the same endpoint, of each worker.
const COMPLAINT_US: u64 = 10_000_000;

/// A connection to an endpoint.
pub(crate) struct Upstream {
    pub(crate) link: Link,
    /// None of a stream, which is not kept.
    readiness: Option<Readiness>,
    born: u64,
    idle_since: u64,
    pub(crate) pool: Rc<EndpointPool>,
}

/// An endpoint as one core sees it.
pub(crate) struct EndpointPool {
    pub(crate) endpoint: Endpoint,
    pub(crate) settings: Pool,
    idle: RefCell<Vec<Upstream>>,
    /// Connections of HTTP/2.
    pub(crate) trunks: RefCell<Vec<Rc<Trunk>>>,
    pub(crate) stats: Arc<EndpointStats>,
    pub(crate) health: Arc<EndpointHealth>,
    worker: usize,
    /// No longer in the configuration: connections are not kept.
    closed: Cell<bool>,
    /// When the log last told of a failed handshake.
    complained: Cell<Option<u64>>,
}

/// A wait for a connection's readiness that survives its waiter: armed when a connection becomes idle, it tells the next
/// taker that the service has closed it (or has sent what nobody asked for), and then goes on as the wait for the
/// answer. One ring operation per exchange, and no stale connection is used unknowingly.
struct Readiness {
    wait: Pin<Box<dyn Future<Output = ()>>>,
    ready: Rc<Cell<bool>>,
}

impl Readiness {
    fn new(link: Link) -> Self {
        let ready = Rc::new(Cell::new(false));
        let flag = Rc::clone(&ready);
        let wait = async move {
            loop {
                link.readable().await;
                flag.set(true);
                pause().await;
            }
        };
        Self { wait: Box::pin(wait), ready }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        // The wait never ends; it says so when the connection is ready and waits again when it is next asked.
        let _ = self.wait.as_mut().poll(cx);
        if self.ready.replace(false) { Poll::Ready(()) } else { Poll::Pending }
    }
}

/// Pending once.
async fn pause() {
    let mut paused = false;
    std::future::poll_fn(|_| match std::mem::replace(&mut paused, true) {
        false => Poll::Pending,
        true => Poll::Ready(()),
    })
    .await;
}

impl Upstream {
    /// Counts as open from here on, connected or not yet, so that those that connect at once respect the cap too.
    fn new(link: Link, now: u64, pool: Rc<EndpointPool>) -> Self {
        pool.cell().open.add(1);
        Self { readiness: Some(Readiness::new(link.clone())), link, born: now, idle_since: now, pool }
    }

    /// A stream of a connection of HTTP/2, which is counted itself.
    pub(crate) fn of_stream(stream: Rc<ServiceStream>, now: u64, pool: Rc<EndpointPool>) -> Self {
        Self { link: Link::of_stream(stream), readiness: None, born: now, idle_since: now, pool }
    }

    /// From now on in this session.
    pub(crate) fn secure(&mut self, session: Tls) {
        self.link.secure(session);
        self.readiness = Some(Readiness::new(self.link.clone()));
    }

    /// Until the service has sent something, has closed the connection, or a deadline has ended it.
    pub(crate) fn ready(&mut self) -> impl Future<Output = ()> {
        std::future::poll_fn(|cx| match (&mut self.readiness, self.link.stream()) {
            (Some(readiness), _) => readiness.poll(cx),
            (None, Some(stream)) => stream.poll_readable(cx),
            (None, None) => Poll::Ready(()),
        })
    }

    /// Between two requests: the service has closed the connection, or has sent what nobody asked for. Else it is armed.
    fn is_spent(&mut self, cx: &mut Context<'_>) -> bool {
        let Some(readiness) = &mut self.readiness else { return true };
        while readiness.poll(cx).is_ready() {
            if !self.link.is_quiet() {
                return true;
            }
        }
        false
    }

    /// Back to its pool, armed; closed where the pool is full or the connection too old.
    pub(crate) fn give_back(mut self, now: u64) {
        let pool = Rc::clone(&self.pool);
        let settings = &pool.settings;
        let too_old = settings.max_age.is_some_and(|age| now.saturating_sub(self.born) > us(age));
        if too_old || pool.closed.get() || pool.idle.borrow().len() >= settings.idle_per_endpoint {
            return;
        }
        if self.is_spent(&mut Context::from_waker(Waker::noop())) {
            return;
        }
        self.idle_since = now;
        let mut idle = pool.idle.borrow_mut();
        idle.push(self);
        pool.cell().idle.set(idle.len() as u64);
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        if self.readiness.is_some() {
            self.link.close();
            self.pool.cell().open.sub(1);
        }
    }
}

impl EndpointPool {
    pub(crate) fn new(
        endpoint: Endpoint,
        settings: Pool,
        (stats, health): (Arc<EndpointStats>, Arc<EndpointHealth>),
        worker: usize,
    ) -> Rc<Self> {
        let idle = RefCell::new(Vec::with_capacity(settings.idle_per_endpoint.min(64)));
        let (trunks, closed, complained) = (RefCell::default(), Cell::new(false), Cell::default());
        Rc::new(Self { endpoint, settings, idle, trunks, stats, health, worker, closed, complained })
    }

    /// This core's counters.
    #[inline]
    pub(crate) fn cell(&self) -> &EndpointCell {
        static NOBODY: std::sync::LazyLock<EndpointCell> = std::sync::LazyLock::new(EndpointCell::default);
        self.stats.workers.get(self.worker).map_or(&NOBODY, |cell| cell)
    }

    /// Whether the pool of a newer configuration may go on with this one's connections.
    pub(crate) fn serves(&self, endpoint: &Endpoint, settings: &Pool, stats: &Arc<EndpointStats>) -> bool {
        self.endpoint.is_place_of(endpoint) && self.settings == *settings && Arc::ptr_eq(&self.stats, stats)
    }

    /// Closes the idle connections and keeps none any more.
    pub(crate) fn close(&self) {
        self.closed.set(true);
        self.idle.borrow_mut().clear();
        self.close_trunks();
        self.cell().idle.set(0);
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed.get()
    }

    /// The idle connection that was used last and is still good.
    pub(crate) fn take(&self, now: u64, cx: &mut Context<'_>) -> Option<Upstream> {
        loop {
            let taken = self.idle.borrow_mut().pop();
            let mut upstream = taken?;
            self.cell().idle.set(self.idle.borrow().len() as u64);
            let too_old = self.settings.max_age.is_some_and(|age| now.saturating_sub(upstream.born) > us(age));
            if too_old || upstream.is_spent(cx) {
                continue;
            }
            self.cell().reuses.add(1);
            return Some(upstream);
        }
    }

    /// Closes connections that have been idle for too long, or that the service has closed.
    pub(crate) fn sweep(&self, now: u64) {
        if self.settings.http2.is_some() {
            return self.sweep_trunks(now);
        }
        let mut idle = self.idle.borrow_mut();
        let limit = us(self.settings.idle);
        let waiting = &mut Context::from_waker(Waker::noop());
        let before = idle.len();
        idle.retain_mut(|upstream| now.saturating_sub(upstream.idle_since) <= limit && !upstream.is_spent(waiting));
        if idle.len() != before {
            self.cell().idle.set(idle.len() as u64);
        }
    }

    /// Whether the cap on open connections, over all cores, leaves room for one more.
    pub(crate) fn may_connect(&self) -> bool {
        self.settings.connections_per_endpoint.is_none_or(|max| self.stats.open() < max as u64)
    }

    /// Tells the log why a connection cannot be secured, unless it was told a moment ago.
    pub(crate) fn complain(&self, now: u64, reason: &dyn Display) {
        if self.complained.get().is_some_and(|last| now.saturating_sub(last) < COMPLAINT_US) {
            return;
        }
        self.complained.set(Some(now));
        let (service, endpoint) = (&self.stats.service, &self.stats.endpoint);
        tracing::warn!(worker = self.worker, "service `{service}`, endpoint `{endpoint}`: no TLS: {reason}");
    }

    /// Begins a connection. `started` gets it before the wait, so that a deadline can end it.
    pub(crate) async fn connect(self: &Rc<Self>, now: u64, started: impl FnOnce(&Link)) -> io::Result<Upstream> {
        let (sock, pending) = begin_connect(&self.endpoint.address)?;
        let upstream = Upstream::new(Link::plain(sock.clone()), now, Rc::clone(self));
        if pending {
            started(&upstream.link);
            sock.writable().await;
            connected(&sock)?;
        }
        self.cell().connects.add(1);
        Ok(upstream)
    }
}

/// A socket that connects or has connected already; whether it still does.
fn begin_connect(address: &EndpointAddress) -> io::Result<(Sock, bool)> {
    let path = match address {
        EndpointAddress::Tcp(address) => return connect(*address, None),
        EndpointAddress::Unix(path) => path,
    };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let fd = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    let pending = match rustix::net::connect(&fd, &SocketAddrUnix::new(path.as_path())?) {
        Ok(()) => false,
        Err(Errno::INPROGRESS) => true,
        Err(errno) => return Err(errno.into()),
    };
    Ok((Sock::new(fd)?, pending))
}
