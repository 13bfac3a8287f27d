//! Files that are whole or not there.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::failure::Failure;

/// Where to write: a file, or standard output (`-`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum File {
    Stdout,
    Path(PathBuf),
}

impl FromStr for File {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "" => Err("a file name, or - for standard output, was expected".to_owned()),
            "-" => Ok(Self::Stdout),
            path => Ok(Self::Path(path.into())),
        }
    }
}

impl File {
    /// Whether its directory is there and the name can be a file's, so that a long run does not find out at its end.
    pub(crate) fn check(&self) -> Result<(), Failure> {
        let Self::Path(path) = self else { return Ok(()) };
        let wrong = |why: &str| Err(Failure::usage(format!("cannot write {}: {why}", path.display())));
        let directory = directory(path);
        match (path.metadata(), directory.metadata()) {
            (Ok(there), _) if there.is_dir() => wrong("it is a directory"),
            (_, Err(_)) => wrong(&format!("there is no directory {}", directory.display())),
            (_, Ok(above)) if !above.is_dir() => wrong(&format!("{} is not a directory", directory.display())),
            _ => Ok(()),
        }
    }

    /// A file gets its name when its last byte is on the disk; one that was there before stays as it was until then.
    /// Devices and pipes are written directly.
    pub(crate) fn write(&self, text: &str) -> Result<(), Failure> {
        let done = match self {
            Self::Stdout => {
                let mut out = io::stdout().lock();
                out.write_all(text.as_bytes()).and_then(|()| out.flush())
            }
            Self::Path(path) if is_device(path) => {
                fs::OpenOptions::new().write(true).open(path).and_then(|mut device| {
                    device.write_all(text.as_bytes())?;
                    device.flush()
                })
            }
            Self::Path(path) => replace(path, text),
        };
        done.map_err(|error| match self {
            Self::Stdout => Failure::runtime(format!("cannot write to standard output: {error}")),
            Self::Path(path) => Failure::runtime(format!("cannot write {}: {error}", path.display())),
        })
    }
}

fn directory(path: &Path) -> &Path {
    path.parent().filter(|above| !above.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn is_device(path: &Path) -> bool {
    path.metadata().is_ok_and(|there| !there.is_file())
}

fn replace(path: &Path, text: &str) -> io::Result<()> {
    // A link stays a link: what it points to is replaced.
    let target = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let mut name = target.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.tmp", std::process::id()));
    let partial = target.with_file_name(name);
    let done = fs::File::create_new(&partial).and_then(|mut file| {
        if let Ok(before) = target.metadata() {
            file.set_permissions(before.permissions())?;
        }
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&partial, &target)
    });
    if done.is_err() {
        // Nothing to add to the first error if this fails too.
        let _ = fs::remove_file(&partial);
    }
    done
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(directory: &Path) -> Vec<String> {
        let entries = fs::read_dir(directory).unwrap();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_file_is_replaced_as_a_whole() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("run.json");
        for text in ["first, and longer", "second"] {
            File::Path(path.clone()).write(text).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
        }
        assert_eq!(names(directory.path()), ["run.json"]);
    }

    #[test]
    fn a_link_stays_a_link() {
        let directory = tempfile::tempdir().unwrap();
        let (file, link) = (directory.path().join("file"), directory.path().join("link"));
        fs::write(&file, "old").unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        File::Path(link.clone()).write("new").unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "new");
        assert!(link.symlink_metadata().unwrap().is_symlink());
    }

    #[test]
    fn a_full_device_is_said() {
        let error = File::Path("/dev/full".into()).write("text").expect_err("nothing fits").to_string();
        assert!(error.starts_with("cannot write /dev/full: No space left on device"), "{error}");
    }

    #[test]
    fn wrong_places_are_found_before_the_run() {
        let directory = tempfile::tempdir().unwrap();
        let inside = |name: &str| File::Path(directory.path().join(name));
        fs::write(directory.path().join("file"), "").unwrap();
        assert!(inside("new.json").check().is_ok() && inside("file").check().is_ok() && File::Stdout.check().is_ok());
        assert!("run.json".parse::<File>().unwrap().check().is_ok());
        for (file, why) in [
            (inside("missing/run.json"), "there is no directory"),
            (inside("file/run.json"), "is not a directory"),
            (inside(""), "it is a directory"),
        ] {
            let error = file.check().expect_err(why).to_string();
            assert!(error.contains(why), "{error}");
        }
    }
}
