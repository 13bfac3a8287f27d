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

/// A file, if it was asked for, and what makes its text.
pub(crate) type Wanted<'a> = (&'a Option<File>, &'a dyn Fn() -> Result<String, Failure>);

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

/// To be called before the work whose results are to be written: a file that cannot be is known before a long run, not
/// at its end. Each with its flag.
pub(crate) fn check(files: &[(&str, &Option<File>)]) -> Result<(), Failure> {
    if files.iter().filter(|(_, file)| **file == Some(File::Stdout)).count() > 1 {
        let flags: Vec<&str> = files.iter().map(|(flag, _)| *flag).collect();
        let (last, others) = flags.split_last().unwrap_or((&"", &[]));
        let flags = format!("{} and {last}", others.join(", "));
        return Err(Failure::usage(format!("only one of {flags} can go to standard output")));
    }
    files.iter().filter_map(|(_, file)| file.as_ref()).try_for_each(File::check)
}

/// Writes texts to the files that were asked for, and the table to standard output unless one of the files goes there.
/// What cannot be written keeps none of the others back; the first error is given.
pub(crate) fn write(table: &dyn Fn() -> String, files: &[Wanted<'_>]) -> Result<(), Failure> {
    let takes_stdout = files.iter().any(|(file, _)| **file == Some(File::Stdout));
    let table = if takes_stdout { Ok(()) } else { File::Stdout.write(&table()) };
    let files = files.iter().filter_map(|(file, text)| Some((file.as_ref()?, text)));
    files.map(|(file, text)| text().and_then(|text| file.write(&text))).fold(table, Result::and)
}

impl File {
    /// Whether the file can be made where it is to be.
    fn check(&self) -> Result<(), Failure> {
        let Self::Path(path) = self else { return Ok(()) };
        let wrong = |why: String| Failure::usage(format!("cannot write {}: {why}", path.display()));
        let directory = directory(path);
        match (path.metadata(), directory.metadata()) {
            (Ok(there), _) if there.is_dir() => Err(wrong("it is a directory".to_owned())),
            (_, Err(_)) => Err(wrong(format!("there is no directory {}", directory.display()))),
            (_, Ok(above)) if !above.is_dir() => Err(wrong(format!("{} is not a directory", directory.display()))),
            _ if is_device(path) => Ok(()),
            _ => Partial::new(path).map(drop).map_err(|error| wrong(error.to_string())),
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
            Self::Path(path) => Partial::new(path).and_then(|partial| partial.finish(text)),
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

/// A file that has not got its name yet. Removed when it is dropped before that.
struct Partial {
    file: fs::File,
    path: PathBuf,
    target: PathBuf,
}

impl Partial {
    fn new(path: &Path) -> io::Result<Self> {
        // A link stays a link: what it points to is replaced.
        let target = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        let mut name = target.file_name().unwrap_or_default().to_owned();
        name.push(format!(".{}.tmp", std::process::id()));
        let path = target.with_file_name(name);
        Ok(Self { file: fs::File::create_new(&path)?, path, target })
    }

    fn finish(mut self, text: &str) -> io::Result<()> {
        if let Ok(before) = self.target.metadata() {
            self.file.set_permissions(before.permissions())?;
        }
        self.file.write_all(text.as_bytes())?;
        self.file.sync_all()?;
        fs::rename(&self.path, &self.target)
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        // Nothing is there where it got its name; nothing can be added to the first error if this fails too.
        let _ = fs::remove_file(&self.path);
    }
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
    fn a_file_that_cannot_be_written_keeps_none_of_the_others_back() {
        let directory = tempfile::tempdir().unwrap();
        let good = Some(File::Path(directory.path().join("good")));
        let (full, bad) = (Some(File::Path("/dev/full".into())), Some(File::Path("/dev/null".into())));
        let text = || Ok("text".to_owned());
        let no_text = || Err(Failure::usage("no text"));
        let done = write(&String::new, &[(&full, &text), (&None, &text), (&bad, &no_text), (&good, &text)]);
        let error = done.expect_err("one is full").to_string();
        assert!(error.starts_with("cannot write /dev/full: "), "the first: {error}");
        assert_eq!(fs::read_to_string(directory.path().join("good")).unwrap(), "text");
    }

    #[test]
    fn standard_output_takes_one_file() {
        let (stdout, file) = (Some(File::Stdout), Some(File::Path("x".into())));
        assert!(check(&[("--json", &stdout), ("--html", &file), ("--hgrm", &None)]).is_ok());
        let error = check(&[("--json", &stdout), ("--html", &None), ("--hgrm", &stdout)]).expect_err("two").to_string();
        assert_eq!(error, "only one of --json, --html and --hgrm can go to standard output");
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
            (File::Path("/proc/run.json".into()), "No such file"),
        ] {
            let error = file.check().expect_err(why).to_string();
            assert!(error.contains(why), "{error}");
        }
        assert_eq!(names(directory.path()), ["file"], "looking leaves nothing behind");
    }
}
