//! The control thread: the admin listener and the signals of the process, on one tokio current-thread runtime.

use std::io;
use std::net::TcpListener as StdTcpListener;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::SystemTime;

use ringway_config::hub::Phase;
use ringway_config::{Hub, Snapshot};
use tokio::net::TcpListener;
use tokio::runtime::Builder;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use crate::acme;
use crate::admin::{Admin, Places, accept_one};
use crate::discovery::{Finders, Tools, Wake};
use crate::health;
use crate::keys::{self, Done, Keeper};
use crate::redis::{Redis, Registry, Requests};

/// What an operator asks for. The thread that owns the workers acts on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// `SIGHUP`
    Reload,
    /// `SIGUSR1`
    ReopenLogs,
    /// The first `SIGTERM` or `SIGINT`, named; the phase is `Notice` then. The second one ends the process at once, with exit code 143 or 130.
    Stop(&'static str),
}

/// The handle of the control thread.
#[derive(Debug)]
pub struct Control {
    /// Dropped: the thread ends.
    admin: UnboundedSender<Option<TcpListener>>,
    handle: tokio::runtime::Handle,
    hub: Arc<Hub>,
    redis: Redis,
    registry: Registry,
    keeper: Mutex<Keeper>,
    acme: Mutex<acme::Keeper>,
    finders: Mutex<Finders>,
    health: Arc<Mutex<health::Keeper>>,
    requests: Requests,
    thread: JoinHandle<()>,
}

impl Control {
    /// Takes over the signals and serves the admin listener, a socket from [`crate::admin::bind`].
    pub fn start(hub: Arc<Hub>, admin: Option<StdTcpListener>) -> io::Result<(Self, Receiver<Event>)> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let _context = handle.enter();
        let signals = Signals::new()?;
        let listener = admin.map(TcpListener::from_std).transpose()?;
        let (events, receiver) = channel();
        let (sender, swaps) = unbounded_channel();
        let redis = Redis::start(hub.published().snapshot.redis.clone())?;
        let registry = Registry::default();
        let requests = {
            let hub = hub.clone();
            Requests::new(hub.epoch, Arc::new(move |wake| hub.worker_bell.ring(wake.worker)))
        };
        hub.limits_bell.tie({
            let requests = requests.clone();
            Box::new(move |_| requests.ring())
        });
        let admin = Arc::new(Admin {
            hub: hub.clone(),
            redis: redis.stats().clone(),
            registry: registry.clone(),
            started: SystemTime::now(),
        });
        let of_thread = hub.clone();
        let thread = thread::Builder::new().name("control".into()).spawn(move || {
            runtime.spawn(signals.forward(of_thread, events));
            runtime.block_on(serve(admin, listener, swaps));
        })?;
        drop(_context);
        let acme = Mutex::new(acme::Keeper::new());
        let (keeper, finders, health) =
            (Mutex::default(), Mutex::default(), Arc::new(Mutex::new(health::Keeper::new())));
        let control =
            Self { admin: sender, handle, hub, redis, registry, keeper, acme, finders, health, requests, thread };
        control.follow();
        Ok((control, receiver))
    }

    /// Goes on with another admin listener, or none. Connections of the old one are served to their end.
    pub fn set_admin(&self, listener: Option<StdTcpListener>) -> io::Result<()> {
        let _context = self.handle.enter();
        let listener = listener.map(TcpListener::from_std).transpose()?;
        // Fails only when the thread has ended, at the end of the process.
        let _ = self.admin.send(listener);
        Ok(())
    }

    /// Goes on with what was published: its Redis, its limiters, its keys, its certificates by ACME, the endpoints
    /// of its services and how they are.
    pub fn follow(&self) {
        let published = self.hub.published();
        self.redis.set(published.snapshot.redis.clone());
        self.registry.set(&published.snapshot.redis);
        if published.snapshot.redis.is_some() {
            self.redis.limit(published.limiters.clone(), self.requests.clone());
        }
        let done = self.done();
        self.redis.poll(keys::polls(&published, &done));
        let mut keeper = self.keeper.lock().unwrap_or_else(PoisonError::into_inner);
        keeper.replace(&self.handle, keys::sources(&published), Box::new(move || done()));
        self.finders().follow(&self.tools());
        self.acme.lock().unwrap_or_else(PoisonError::into_inner).follow(&self.handle, &self.hub);
        self.health.lock().unwrap_or_else(PoisonError::into_inner).follow(&self.handle, &self.hub);
    }

    /// Begins to look for the endpoints of a snapshot that is about to be published.
    pub fn look_ahead(&self, snapshot: &Snapshot) {
        self.registry.set(self.hub.published().snapshot.redis.iter().chain(&snapshot.redis));
        self.finders().look_ahead(snapshot, &self.tools());
    }

    fn finders(&self) -> MutexGuard<'_, Finders> {
        self.finders.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tools(&self) -> Tools<'_> {
        // Endpoints that were found are to be checked, too.
        let wake: Wake = Arc::new({
            let (done, hub, handle, health) = (self.done(), self.hub.clone(), self.handle.clone(), self.health.clone());
            move || {
                done();
                health.lock().unwrap_or_else(PoisonError::into_inner).follow(&handle, &hub);
            }
        });
        Tools { runtime: &self.handle, hub: &self.hub, registry: &self.registry, wake }
    }

    /// Wakes the workers.
    fn done(&self) -> Done {
        let hub = Arc::clone(&self.hub);
        let workers = hub.workers.workers.len() as u32;
        Arc::new(move || (0..workers).for_each(|worker| hub.worker_bell.ring(worker)))
    }

    /// Ends the threads. Signals have their default effect again only in a new process.
    pub fn stop(self) {
        self.redis.stop();
        drop(self.admin);
        let _ = self.thread.join();
    }
}

async fn serve(
    admin: Arc<Admin>,
    mut listener: Option<TcpListener>,
    mut swaps: UnboundedReceiver<Option<TcpListener>>,
) {
    let places = Places::new();
    loop {
        let accepted = async {
            match &listener {
                Some(listener) => accept_one(listener, &places, &admin).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            swap = swaps.recv() => match swap {
                Some(new) => listener = new,
                None => return,
            },
            () = accepted => {}
        }
    }
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hang_up: Signal,
    user: Signal,
}

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hang_up: signal(SignalKind::hangup())?,
            user: signal(SignalKind::user_defined1())?,
        })
    }

    async fn forward(mut self, hub: Arc<Hub>, events: Sender<Event>) {
        let mut stopping = false;
        loop {
            let (event, exit_code) = tokio::select! {
                _ = self.terminate.recv() => (Event::Stop("SIGTERM"), 143),
                _ = self.interrupt.recv() => (Event::Stop("SIGINT"), 130),
                _ = self.hang_up.recv() => (Event::Reload, 0),
                _ = self.user.recv() => (Event::ReopenLogs, 0),
            };
            if let Event::Stop(name) = event {
                // At once, also while a reload keeps the other thread.
                hub.set_phase(Phase::Notice);
                if stopping {
                    tracing::warn!("{name} again: ending at once");
                    std::process::exit(exit_code);
                }
                stopping = true;
            }
            // Nobody listens any more: the process is about to end.
            let _ = events.send(event);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{SocketAddr, TcpStream};
    use std::time::Duration;

    use rustix::process::{Signal, getpid, kill_process};

    use super::*;
    use crate::testing::{hub, snapshot};

    fn get(address: SocketAddr, path: &str) -> String {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    fn bind() -> (SocketAddr, StdTcpListener) {
        let listener = crate::admin::bind(([127, 0, 0, 1], 0).into()).unwrap();
        (listener.local_addr().unwrap(), listener)
    }

    #[test]
    fn answers_over_a_socket_and_moves_to_another() {
        let (old, listener) = bind();
        let (control, _events) = Control::start(hub(snapshot()), Some(listener)).unwrap();
        assert!(get(old, "/ready").starts_with("HTTP/1.1 503 "));
        assert!(get(old, "/nothing").starts_with("HTTP/1.1 404 "));

        let (new, listener) = bind();
        control.set_admin(Some(listener)).unwrap();
        assert!(get(new, "/health").starts_with("HTTP/1.1 200 "));
        control.set_admin(None).unwrap();
        crate::testing::wait_for(|| TcpStream::connect(new).is_err());
        assert!(TcpStream::connect(old).is_err());
        control.stop();
    }

    #[test]
    fn more_connections_than_places_wait_and_are_served() {
        let (address, listener) = bind();
        let (control, _events) = Control::start(hub(snapshot()), Some(listener)).unwrap();
        let idle: Vec<_> = (0..70).map(|_| TcpStream::connect(address).unwrap()).collect();
        let late = thread::spawn(move || get(address, "/health"));
        thread::sleep(Duration::from_millis(50));
        assert!(!late.is_finished());
        drop(idle);
        assert!(late.join().unwrap().starts_with("HTTP/1.1 200 "));
        control.stop();
    }

    #[test]
    fn signals_become_events() {
        let hub = hub(snapshot());
        let (control, events) = Control::start(hub.clone(), None).unwrap();
        for (signal, event) in
            [(Signal::HUP, Event::Reload), (Signal::USR1, Event::ReopenLogs), (Signal::TERM, Event::Stop("SIGTERM"))]
        {
            kill_process(getpid(), signal).unwrap();
            assert_eq!(events.recv_timeout(Duration::from_secs(5)).unwrap(), event);
        }
        assert_eq!(hub.phase(), Phase::Notice);
        control.stop();
    }
}
