//! Redis, on a thread of its own: a request that is held for Redis' word must not wait until a page of metrics is written.
//!
//! One connection, kept up in the background ([`link`]); heartbeats that count the gateways ([`heartbeat`]). A Redis that
//! is not there is never an error of the gateway.

mod connect;
mod heartbeat;
mod link;
mod script;
mod stats;

use std::io;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use ringway_config::snapshot::Redis as Settings;
use tokio::runtime::Builder;
use tokio::sync::watch;

use self::heartbeat::Heartbeat;
use self::link::Link;
use self::script::Script;
pub use self::stats::RedisStats;

/// What every connection has loaded.
const SCRIPTS: &[&Script] = &[&heartbeat::SCRIPT];

/// The handle of the thread `redis`.
#[derive(Debug)]
pub struct Redis {
    settings: watch::Sender<Option<Settings>>,
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
        let (sender, receiver) = watch::channel(settings);
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let thread = thread::Builder::new().name("redis".into()).spawn({
            let stats = stats.clone();
            move || runtime.block_on(run(receiver, stats))
        })?;
        Ok(Self { settings: sender, stats, thread })
    }

    /// Goes on with another Redis, or none; where nothing differs, with the same connection.
    pub fn set(&self, settings: Option<Settings>) {
        self.settings.send_if_modified(|current| {
            let differs = *current != settings;
            *current = settings;
            differs
        });
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

async fn run(mut settings: watch::Receiver<Option<Settings>>, stats: Arc<RedisStats>) {
    let instance = heartbeat::random_instance();
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
                    tokio::join!(link.maintain(), link.beat());
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
