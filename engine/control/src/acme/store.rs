//! Where the account and the certificates are kept: a directory, or Redis.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use aws_lc_rs::digest::{SHA256, digest};
use ringway_config::acme::{Acme, Challenge, Storage};
use ringway_config::snapshot::Redis as Settings;
use ringway_core::auth::HttpUrl;
use rustix::fs::{FlockOperation, flock};
use tokio::task::spawn_blocking;

use super::redis_store::RedisStore;

/// Bytes of an account, or of a certificate with its chain and its key.
pub(super) const ITEM_BYTES_MAX: usize = 64 * 1024;

/// What is kept.
#[derive(Debug, Clone, Copy)]
pub(super) enum Item<'a> {
    /// As JSON.
    Account,
    /// The private key and the chain as PEM, of the certificate for these names.
    Certificate(&'a [String]),
}

impl Item<'_> {
    /// Letters, digits, `-` and dots; the names in another order are the same.
    fn key(self) -> String {
        match self {
            Self::Account => "account.json".into(),
            Self::Certificate(names) => {
                let mut sorted: Vec<&str> = names.iter().map(String::as_str).collect();
                sorted.sort_unstable();
                format!("{}-{}.pem", names.first().map_or("", String::as_str), hash(&sorted.join(",")))
            }
        }
    }
}

/// Why something could not be read or written.
#[derive(Debug, thiserror::Error)]
pub(super) enum StoreError {
    #[error("`{}`: {error}", path.display())]
    File { path: PathBuf, error: io::Error },
    #[error("Redis: {0}")]
    Redis(String),
    #[error("`{0}` in the storage is larger than {ITEM_BYTES_MAX} bytes")]
    TooLarge(String),
}

/// The right to order, which one gateway at a time has.
pub(super) enum Lock {
    /// Given back by the kernel, also when the process is killed.
    File { _file: File },
    /// Runs out when it is not held.
    Redis,
}

/// What of the storage belongs to one authority.
pub(super) enum Store {
    Directory(PathBuf),
    Redis(Box<RedisStore>),
}

impl Store {
    /// `None` where the storage is in Redis and there is none, which the configuration does not allow. `instance` is
    /// this process' name among the gateways.
    pub(super) fn new(acme: &Acme, redis: Option<&Settings>, instance: &str) -> Option<Self> {
        let of_authority = of_authority(&acme.directory);
        match &acme.storage {
            Storage::Directory(path) => Some(Self::Directory(path.join(of_authority))),
            Storage::Redis(prefix) => {
                let prefix = format!("{prefix}:{of_authority}");
                Some(Self::Redis(Box::new(RedisStore::new(redis?.clone(), prefix, instance))))
            }
        }
    }

    /// Whether other gateways may be asked for the challenges of this one.
    pub(super) fn is_shared(&self) -> bool {
        matches!(self, Self::Redis(_))
    }

    pub(super) async fn read(&self, item: Item<'_>) -> Result<Option<Vec<u8>>, StoreError> {
        let key = item.key();
        let found = match self {
            Self::Directory(directory) => on_disk(directory.join(&key), read_file).await?,
            Self::Redis(redis) => redis.get(&key).await?,
        };
        match found {
            Some(bytes) if bytes.len() > ITEM_BYTES_MAX => Err(StoreError::TooLarge(key)),
            found => Ok(found),
        }
    }

    pub(super) async fn write(&self, item: Item<'_>, bytes: Vec<u8>) -> Result<(), StoreError> {
        let key = item.key();
        match self {
            _ if bytes.len() > ITEM_BYTES_MAX => Err(StoreError::TooLarge(key)),
            Self::Directory(directory) => {
                make(directory).await?;
                on_disk(directory.join(key), move |path| write_file(path, &bytes)).await
            }
            Self::Redis(redis) => redis.set(&key, bytes).await,
        }
    }

    pub(super) async fn forget(&self, item: Item<'_>) -> Result<(), StoreError> {
        match self {
            Self::Directory(directory) => on_disk(directory.join(item.key()), |path| fs::remove_file(path)).await,
            Self::Redis(redis) => redis.remove(&item.key()).await,
        }
    }

    /// `None`: another gateway orders now.
    pub(super) async fn lock(&self) -> Result<Option<Lock>, StoreError> {
        match self {
            Self::Directory(directory) => {
                make(directory).await?;
                let file = on_disk(directory.join("lock"), lock_file).await?;
                Ok(file.map(|file| Lock::File { _file: file }))
            }
            Self::Redis(redis) => Ok(redis.lock().await?.then_some(Lock::Redis)),
        }
    }

    /// Keeps the lock; comes back when it is lost.
    pub(super) async fn hold(&self, _lock: &Lock) {
        match self {
            Self::Directory(_) => std::future::pending().await,
            Self::Redis(redis) => redis.hold().await,
        }
    }

    pub(super) async fn release(&self, lock: Lock) {
        if let (Self::Redis(redis), Lock::Redis) = (self, lock) {
            redis.release().await;
        }
    }

    /// Tells the other gateways what to answer; nothing where there are none.
    pub(super) async fn share(&self, challenges: &[Challenge]) -> Result<(), StoreError> {
        match self {
            Self::Directory(_) => Ok(()),
            Self::Redis(redis) => redis.share(challenges).await,
        }
    }

    /// What another gateway wants to be answered; `None` where there are no others.
    pub(super) async fn shared(&self) -> Result<Option<Vec<Challenge>>, StoreError> {
        match self {
            Self::Directory(_) => Ok(None),
            Self::Redis(redis) => redis.shared().await.map(Some),
        }
    }
}

/// The part of a key that tells authorities apart: `acme.example-0123456789abcdef`.
fn of_authority(directory: &HttpUrl) -> String {
    let host: String =
        directory.host().chars().map(|c| if c.is_ascii_alphanumeric() || c == '.' { c } else { '-' }).collect();
    format!("{host}-{}", hash(directory.as_str()))
}

fn hash(text: &str) -> String {
    let bytes = digest(&SHA256, text.as_bytes());
    bytes.as_ref().iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

/// Disks may be slow, and the thread has other things to do.
async fn on_disk<T: Send + 'static>(
    path: PathBuf,
    work: impl FnOnce(&Path) -> io::Result<T> + Send + 'static,
) -> Result<T, StoreError> {
    let at = path.clone();
    let done = spawn_blocking(move || work(&at)).await.unwrap_or_else(|error| Err(io::Error::other(error)));
    done.map_err(|error| StoreError::File { path, error })
}

async fn make(directory: &Path) -> Result<(), StoreError> {
    on_disk(directory.to_owned(), |path| DirBuilder::new().recursive(true).mode(0o700).create(path)).await
}

fn read_file(path: &Path) -> io::Result<Option<Vec<u8>>> {
    let mut bytes = Vec::new();
    match File::open(path) {
        Ok(file) => file.take(ITEM_BYTES_MAX as u64 + 1).read_to_end(&mut bytes).map(|_| Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// All of it or nothing, also when the power fails.
fn write_file(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&new, path)?;
    match path.parent() {
        Some(directory) => File::open(directory)?.sync_all(),
        None => Ok(()),
    }
}

fn lock_file(path: &Path) -> io::Result<Option<File>> {
    let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path)?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(file)),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn run<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
    }

    #[test]
    fn a_directory_keeps_items_that_only_its_owner_reads() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a/b");
        let store = Store::Directory(path.clone());
        let names = ["a.test".to_owned(), "b.test".to_owned()];
        let turned = [names[1].clone(), names[0].clone()];
        run(async {
            assert_eq!(store.read(Item::Account).await.unwrap(), None);
            store.write(Item::Certificate(&names), b"one".to_vec()).await.unwrap();
            store.write(Item::Certificate(&names), b"two".to_vec()).await.unwrap();
            assert_eq!(store.read(Item::Certificate(&names)).await.unwrap().as_deref(), Some(&b"two"[..]));
            assert_eq!(store.read(Item::Certificate(&names[..1])).await.unwrap(), None);
            assert!(store.write(Item::Account, vec![b'x'; ITEM_BYTES_MAX + 1]).await.is_err());
            store.write(Item::Account, b"{}".to_vec()).await.unwrap();
            store.forget(Item::Account).await.unwrap();
            assert_eq!(store.read(Item::Account).await.unwrap(), None);
        });
        let hash = |names: &[String]| Item::Certificate(names).key().rsplit_once('-').unwrap().1.to_owned();
        assert_eq!(hash(&names), hash(&turned));
        let file = path.join(Item::Certificate(&names).key());
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700);
        fs::write(&file, vec![b'x'; ITEM_BYTES_MAX + 1]).unwrap();
        assert!(run(store.read(Item::Certificate(&names))).is_err());
    }

    #[test]
    fn one_at_a_time_has_the_lock() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::Directory(directory.path().to_owned());
        run(async {
            let lock = store.lock().await.unwrap().expect("the first");
            assert!(store.lock().await.unwrap().is_none());
            store.release(lock).await;
            assert!(store.lock().await.unwrap().is_some());
        });
    }

    #[test]
    fn authorities_are_told_apart() {
        let of = |url: &str| of_authority(&HttpUrl::parse(url).unwrap());
        assert!(of("https://ca.test:14000/dir").starts_with("ca.test-"));
        assert_ne!(of("https://ca.test/a"), of("https://ca.test/b"));
        assert!(of("https://[::1]/a").starts_with("--1-"));
    }
}
