//! Redis, on a thread of its own: a request that is held for Redis' word must not wait until a page of metrics is written.
//!
//! One connection, kept up in the background ([`link`]), besides those of the registry ([`registry`]), which are none of this thread's business; heartbeats that count the gateways ([`heartbeat`]). A Redis that
//! is not there is never an error of the gateway.

mod connect;
mod health;
mod heartbeat;
mod limits;
mod link;
mod poll;
mod registry;
mod script;
mod stats;

use std::io;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use ringway_config::snapshot::Redis as Settings;
use ringway_core::limit::Limiter;
use tokio::runtime::Builder;
use tokio::sync::watch;

pub(crate) use self::connect::Conn;
use self::heartbeat::Heartbeat;
pub(crate) use self::heartbeat::random_instance;
use self::limits::Limited;
pub use self::limits::Requests;
use self::link::Link;
pub use self::poll::{Deliver, Found, Kind, LIST_BYTES_MAX, Poll, PollError};
pub(crate) use self::registry::{Entry, Registered, Registry, RegistryError};
use self::script::Script;
pub use self::stats::RedisStats;

/// What the connection has loaded.
const SCRIPTS: &[&Script] = &[&heartbeat::SCRIPT, &limits::SCRIPT];

/// The handle of the thread `redis`.
#[derive(Debug)]
pub struct Redis {
    settings: watch::Sender<Option<Settings>>,
    polls: watch::Sender<Vec<Poll>>,
    limited: watch::Sender<Option<Limited>>,
    stats: Arc<RedisStats>,
    thread: JoinHandle<()>,
}

impl Redis {
    /// Starts the thread. It connects in the background.
    ///
    /// # Errors
    /// When the thread cannot be made.
    pub fn start(settings: Option<Settings>) -> io::Result<Self> {
        let stats = Arc::new(RedisStats::default());
        let (settings, settings_seen) = watch::channel(settings);
        let (polls, polls_seen) = watch::channel(Vec::new());
        let (limited, limited_seen) = watch::channel(None);
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let thread = thread::Builder::new().name("redis".into()).spawn({
            let stats = stats.clone();
            move || runtime.block_on(run(settings_seen, polls_seen, limited_seen, stats))
        })?;
        Ok(Self { settings, polls, limited, stats, thread })
    }

    /// Goes on with another Redis, or none; where nothing differs, with the same connection.
    pub fn set(&self, settings: Option<Settings>) {
        self.settings.send_if_modified(|current| {
            let differs = *current != settings;
            *current = settings;
            differs
        });
    }

    /// Keeps these limiters, made with [`Limiter::shared`], in agreement with Redis from now on, in place of those before.
    pub fn limit(&self, limiters: Vec<Arc<Limiter>>, requests: Requests) {
        self.limited.send_replace(Some(Limited { limiters, requests }));
    }

    /// Reads these from now on, in place of those before.
    pub fn poll(&self, polls: Vec<Poll>) {
        self.polls.send_replace(polls);
    }

    pub fn stats(&self) -> &Arc<RedisStats> {
        &self.stats
    }

    /// Takes this instance off the list, if Redis answers soon, and ends the thread.
    pub fn stop(self) {
        drop(self.settings);
        let _ = self.thread.join();
    }
}

async fn run(
    mut settings: watch::Receiver<Option<Settings>>,
    polls: watch::Receiver<Vec<Poll>>,
    limited: watch::Receiver<Option<Limited>>,
    stats: Arc<RedisStats>,
) {
    let instance = heartbeat::random_instance();
    let order = poll::Order::default();
    loop {
        let current = settings.borrow_and_update().clone();
        stats.set_server(current.as_ref().map(|settings| &*settings.label));
        let link = current.map(|settings| {
            let heartbeat = Heartbeat::new(&settings.prefix, instance.clone());
            Link::new(settings, heartbeat, SCRIPTS, stats.clone())
        });
        let work = async {
            match &link {
                Some(link) => {
                    tokio::join!(
                        link.maintain(),
                        link.beat(),
                        poll::run(link, polls.clone(), &order),
                        limits::run(link, &stats, limited.clone()),
                    );
                }
                None => std::future::pending().await,
            }
        };
        let changed = tokio::select! {
            changed = settings.changed() => changed,
            () = work => return,
        };
        if let Some(link) = link {
            link.leave().await;
        }
        if changed.is_err() {
            return;
        }
    }
}
