//! Keys and revocations in files.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use ringway_core::auth::{Live, LoadError, Loaded, Source};
use tokio::task::spawn_blocking;
use tokio::time::{MissedTickBehavior, interval};

use super::Done;
use crate::process::unix_ms;
use crate::watch::{POLL_EVERY, Watch};

/// Bytes of a file; a longer one is refused.
pub const FILE_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// Why a file was not taken.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    #[error("{path}: {error}", path = .path.display())]
    Read { path: PathBuf, error: io::Error },
    #[error("{path}: more than 64 MiB", path = .0.display())]
    TooLarge(PathBuf),
    #[error("{path}: {error}", path = .path.display())]
    Load { path: PathBuf, error: LoadError },
}

/// Reads a file and publishes what it holds; what was there before stays where that fails. For the start, where a bad
/// file is an error.
pub fn load_file(live: &Live, source: &Source, path: &Path) -> Result<Loaded, FileError> {
    let text = read(path).inspect_err(|_| live.failed())?;
    let now_s = unix_ms(SystemTime::now()) / 1000;
    live.load(source, &text, now_s).map_err(|error| FileError::Load { path: path.into(), error })
}

fn read(path: &Path) -> Result<Vec<u8>, FileError> {
    let mut text = Vec::new();
    let file = File::open(path).and_then(|file| file.take(FILE_BYTES_MAX + 1).read_to_end(&mut text));
    match file {
        Err(error) => Err(FileError::Read { path: path.into(), error }),
        Ok(_) if text.len() as u64 > FILE_BYTES_MAX => Err(FileError::TooLarge(path.into())),
        Ok(_) => Ok(text),
    }
}

pub(super) async fn keep(live: Arc<Live>, source: Source, path: PathBuf, done: Done) {
    let mut watch = Watch::new(&path);
    let mut ticks = interval(POLL_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut is_first = true;
    loop {
        ticks.tick().await;
        if !is_first && !watch.poll() {
            continue;
        }
        is_first = false;
        let (own, source, path) = (live.clone(), source.clone(), path.clone());
        // Long lists take their time, and the control thread has others to serve.
        match spawn_blocking(move || load_file(&own, &source, &path)).await {
            Ok(Ok(Loaded::Changed)) => {
                tracing::info!("authenticator `{}`: {} loaded", live.name, watch.path().display())
            }
            Ok(Ok(Loaded::Unchanged)) => {}
            Ok(Err(error)) => tracing::error!("authenticator `{}`: {error}; what was loaded before stays", live.name),
            // The runtime ends.
            Err(_) => return,
        }
        done();
    }
}
