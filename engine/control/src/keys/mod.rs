//! Keeps the keys of authenticators fresh: remote key sets are fetched ahead of time and when a token asks for an
//! unknown key, files are watched, lists in Redis are read again and again. What cannot be had or read changes nothing: the last good keys stay.

mod fetch;
mod file;
mod freshness;
mod list;
mod remote;
#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ringway_config::hub::Published;
use ringway_config::snapshot::{KeySource, RevokedSource};
use ringway_core::auth::{HttpUrl, Live, Looking, Source};
use tokio::runtime::Handle;
use tokio::task::AbortHandle;

pub use fetch::{BODY_BYTES_MAX, FetchError};
pub use file::{FILE_BYTES_MAX, FileError, load_file};
pub use list::polls;

/// A source of keys or revocations, and where it is.
#[derive(Debug, Clone)]
pub struct SourceSpec {
    pub source: Source,
    pub place: Place,
}

/// Where a source is.
#[derive(Debug, Clone)]
pub enum Place {
    /// Looked at once a second.
    File(PathBuf),
    /// A key set at an address of its own.
    Url { url: HttpUrl, fetching: Fetching },
    /// The key set that the metadata of an issuer names (OpenID Connect Discovery 1.0).
    Issuer { issuer: HttpUrl, fetching: Fetching },
}

impl Place {
    fn is_remote(&self) -> bool {
        !matches!(self, Self::File(_))
    }
}

/// How a remote key set is kept fresh.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fetching {
    /// For a whole fetch, the metadata's included.
    pub timeout: Duration,
    /// Keys are fetched anew when four fifths of their `max-age` or `Expires` have passed, within these bounds.
    pub refresh_min: Duration,
    pub refresh_max: Duration,
    /// The same where the answer does not say how long it is fresh.
    pub refresh_default: Duration,
    /// Between fetches that unknown keys lead to: a new key that an issuer uses at once may be refused for so long.
    pub ask_interval: Duration,
    /// How long a key that was looked for in vain is not looked for again.
    pub missing: Duration,
    /// Wait after the first failure; doubles with each one more.
    pub retry_min: Duration,
    pub retry_max: Duration,
    /// A file with certificates (PEM) to trust in place of the system's.
    pub ca: Option<PathBuf>,
}

impl Default for Fetching {
    fn default() -> Self {
        Self {
            timeout: Duration::from_secs(5),
            refresh_min: Duration::from_secs(30),
            refresh_max: Duration::from_secs(3600),
            refresh_default: Duration::from_secs(300),
            ask_interval: Duration::from_secs(10),
            missing: Duration::from_secs(60),
            retry_min: Duration::from_secs(1),
            retry_max: Duration::from_secs(60),
            ca: None,
        }
    }
}

/// Where the keys of a configuration are kept fresh from; what stands in it needs nobody, and of Redis [`polls`] tells.
pub fn sources(published: &Published) -> Vec<(Arc<Live>, SourceSpec)> {
    let mut sources = Vec::new();
    for (live, of) in published.live.iter().zip(&published.snapshot.keys) {
        let remote = Source::Jwks { secrets: false };
        let keys = match &of.keys {
            KeySource::Text(..) | KeySource::Redis(..) | KeySource::Nowhere => None,
            KeySource::File(source, path, _) => Some((source.clone(), Place::File(path.clone()))),
            KeySource::Jwks(url) => Some((remote, Place::Url { url: url.clone(), fetching: Fetching::default() })),
            KeySource::Oidc(issuer) => {
                Some((remote, Place::Issuer { issuer: issuer.clone(), fetching: Fetching::default() }))
            }
        };
        let revoked = match &of.revoked {
            RevokedSource::File(path, _) => Some((Source::Revoked, Place::File(path.clone()))),
            RevokedSource::Nowhere | RevokedSource::Redis(_) => None,
        };
        let all = keys.into_iter().chain(revoked);
        sources.extend(all.map(|(source, place)| (Arc::clone(live), SourceSpec { source, place })));
    }
    sources
}

/// Called after every fetch and every look at a changed file, whether it went well or not.
pub type Done = Arc<dyn Fn() + Send + Sync>;

/// The tasks that keep keys fresh. Dropped: they end; what was published stays.
#[derive(Debug, Default)]
pub struct Keeper {
    tasks: Vec<AbortHandle>,
}

impl Keeper {
    /// Starts a task for each source on the runtime of `handle`. An authenticator may have several, for keys and for
    /// revocations, but one for each of them. `done` is called on the runtime's thread and must not block; it is how a
    /// worker is told that what [`Live::ask`] promised is over.
    pub fn start(handle: &Handle, sources: Vec<(Arc<Live>, SourceSpec)>, done: Box<dyn Fn() + Send + Sync>) -> Self {
        let mut keeper = Self::default();
        keeper.replace(handle, sources, done);
        keeper
    }

    /// Goes on with other sources. Those that stay are fetched or read again.
    pub fn replace(
        &mut self,
        handle: &Handle,
        sources: Vec<(Arc<Live>, SourceSpec)>,
        done: Box<dyn Fn() + Send + Sync>,
    ) {
        self.stop();
        let done: Done = Arc::from(done);
        for (live, _) in &sources {
            let is_fetched = sources.iter().any(|(other, spec)| Arc::ptr_eq(other, live) && spec.place.is_remote());
            // Before the task has begun: what is fetched at once is worth waiting for.
            live.set_looking(if is_fetched { Looking::Now } else { Looking::No });
        }
        let start = |(live, SourceSpec { source, place }): (Arc<Live>, SourceSpec)| {
            let done = done.clone();
            match place {
                Place::File(path) => handle.spawn(file::keep(live, source, path, done)),
                Place::Url { url, fetching } => {
                    handle.spawn(remote::keep(live, source, remote::From::KeySet(url), fetching, done))
                }
                Place::Issuer { issuer, fetching } => {
                    handle.spawn(remote::keep(live, source, remote::From::Issuer(issuer), fetching, done))
                }
            }
            .abort_handle()
        };
        self.tasks = sources.into_iter().map(start).collect();
    }

    fn stop(&mut self) {
        self.tasks.drain(..).for_each(|task| task.abort());
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.stop();
    }
}
