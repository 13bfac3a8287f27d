//! Notices that the configuration has changed, by looking.
//!
//! A look once a second costs one `stat` a file and needs no case analysis: editors that write in place, atomic
//! renames, and directories whose symbolic links are swapped (Kubernetes) all change what `stat` tells of the path.
//! inotify reports each of them differently, on different directories, and not at all on some network file systems.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How often [`Watch::poll`] is to be called.
pub const POLL_EVERY: Duration = Duration::from_secs(1);

/// Files of a directory that are looked at; more are not.
const FILES_MAX: usize = 1024;

/// What `stat` tells of one file; `None` where it cannot be read.
type Stat = Option<[i64; 7]>;

/// A file, or a directory with `.yaml` and `.yml` files.
#[derive(Debug)]
pub struct Watch {
    path: PathBuf,
    /// How it looked when it was last loaded.
    loaded: Vec<(PathBuf, Stat)>,
    /// How it looked at the last poll.
    seen: Vec<(PathBuf, Stat)>,
}

impl Watch {
    /// To be called before the first load, so that a change during it is seen.
    pub fn new(path: &Path) -> Self {
        let now = look(path);
        Self { path: path.into(), loaded: now.clone(), seen: now }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// True if it has changed since it was last loaded, and not again since the last poll: who writes slowly is
    /// waited for. The caller loads it then.
    pub fn poll(&mut self) -> bool {
        let now = look(&self.path);
        let changed = now != self.loaded && now == self.seen;
        if changed {
            self.loaded.clone_from(&now);
        }
        self.seen = now;
        changed
    }

    /// To be called right before a load for another reason, so that the same change does not count twice.
    pub fn loading(&mut self) {
        self.loaded = look(&self.path);
        self.seen.clone_from(&self.loaded);
    }
}

fn look(path: &Path) -> Vec<(PathBuf, Stat)> {
    let Ok(entries) = fs::read_dir(path) else { return vec![(path.to_path_buf(), stat(path))] };
    let parts = entries.flatten().map(|entry| entry.path()).filter(|path| is_part(path));
    let mut files: Vec<_> = parts.take(FILES_MAX).map(|path| (path.clone(), stat(&path))).collect();
    files.sort();
    files
}

/// Whether a configuration directory's file belongs to the configuration; editors keep hidden files beside those.
fn is_part(path: &Path) -> bool {
    let hidden = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
    !hidden && path.extension().is_some_and(|extension| extension == "yaml" || extension == "yml")
}

/// Follows symbolic links, so that a swapped one tells another device or inode.
fn stat(path: &Path) -> Stat {
    let stat = fs::metadata(path).ok()?;
    Some([
        stat.dev() as i64,
        stat.ino() as i64,
        stat.size() as i64,
        stat.mtime(),
        stat.mtime_nsec(),
        stat.ctime(),
        stat.ctime_nsec(),
    ])
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// Polls until nothing changes any more and counts the loads.
    fn loads(watch: &mut Watch) -> usize {
        (0..4).filter(|_| watch.poll()).count()
    }

    #[test]
    fn a_change_counts_once_and_only_when_it_has_settled() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("gateway.yaml");
        fs::write(&path, "a").unwrap();
        let mut watch = Watch::new(&path);
        assert_eq!(loads(&mut watch), 0);

        fs::write(&path, "bb").unwrap();
        assert!(!watch.poll());
        fs::write(&path, "ccc").unwrap();
        assert!(!watch.poll(), "still being written");
        assert!(watch.poll());
        assert_eq!(loads(&mut watch), 0);

        fs::write(&path, "dddd").unwrap();
        watch.loading();
        assert_eq!(loads(&mut watch), 0, "already loaded");
    }

    #[test]
    fn a_renamed_file_of_the_same_size_counts() {
        let dir = tempfile::tempdir().unwrap();
        let (path, new) = (dir.path().join("gateway.yaml"), dir.path().join("new"));
        fs::write(&path, "a").unwrap();
        let mut watch = Watch::new(&path);
        fs::write(&new, "b").unwrap();
        fs::rename(&new, &path).unwrap();
        assert_eq!(loads(&mut watch), 1);
    }

    #[test]
    fn a_swapped_symbolic_link_counts() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for version in ["v1", "v2"] {
            fs::create_dir(at(version)).unwrap();
            fs::write(at(version).join("gateway.yaml"), version).unwrap();
        }
        symlink("v1", at("..data")).unwrap();
        symlink("..data/gateway.yaml", at("gateway.yaml")).unwrap();
        let mut watch = Watch::new(&at("gateway.yaml"));
        assert_eq!(loads(&mut watch), 0);
        symlink("v2", at("..data_tmp")).unwrap();
        fs::rename(at("..data_tmp"), at("..data")).unwrap();
        assert_eq!(loads(&mut watch), 1);
    }

    #[test]
    fn a_directory_counts_when_a_file_in_it_does() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("a.yaml"), "a").unwrap();
        let mut watch = Watch::new(dir.path());
        fs::write(dir.path().join("a.yaml"), "bb").unwrap();
        assert_eq!(loads(&mut watch), 1);
        fs::write(dir.path().join("b.yml"), "b").unwrap();
        assert_eq!(loads(&mut watch), 1);
        fs::write(dir.path().join(".#b.yml"), "b").unwrap();
        fs::write(dir.path().join("b.yml~"), "b").unwrap();
        assert_eq!(loads(&mut watch), 0);
        fs::remove_file(dir.path().join("a.yaml")).unwrap();
        assert_eq!(loads(&mut watch), 1);
    }
}
