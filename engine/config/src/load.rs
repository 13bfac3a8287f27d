//! From files to sources.

use std::io::Read;
use std::path::{Path, PathBuf};

use crate::error::{Errors, Sink, Span};
use crate::{Snapshot, Source, compile};

/// Most bytes of one file.
pub const FILE_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// Reads a file, or the `*.yaml` and `*.yml` files of a directory in the order of their names (not those whose name
/// starts with a dot), and compiles them with the process's environment. Resolves host names and so may block.
///
/// # Errors
/// All that is wrong; never empty. Where a file cannot be read or is not UTF-8, nothing else is looked at.
pub fn load(path: &Path) -> Result<Snapshot, Errors> {
    let files = match files(path) {
        Ok(files) => files,
        Err(message) => {
            let mut sink = Sink::new(vec![path.display().to_string()]);
            sink.error(Span::whole(0), message, None);
            return Err(sink.into_errors());
        }
    };
    let mut sink = Sink::new(files.iter().map(|file| file.display().to_string()).collect());
    let mut sources = Vec::with_capacity(files.len());
    for (index, file) in files.iter().enumerate() {
        if let Some(text) = read(file, index, &mut sink) {
            sources.push(Source { name: file.display().to_string(), text });
        }
    }
    if !sink.is_clean() {
        return Err(sink.into_errors());
    }
    compile(&sources, &|name| std::env::var(name).ok())
}

fn files(path: &Path) -> Result<Vec<PathBuf>, String> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let mut files = Vec::new();
    for entry in std::fs::read_dir(path).map_err(|error| format!("cannot be read: {error}"))? {
        let file = entry.map_err(|error| format!("cannot be read: {error}"))?.path();
        let hidden = file.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        let yaml = file.extension().is_some_and(|extension| extension == "yaml" || extension == "yml");
        if yaml && !hidden && !file.is_dir() {
            files.push(file);
        }
    }
    files.sort();
    if files.is_empty() { Err("the directory has no `*.yaml` or `*.yml` file".into()) } else { Ok(files) }
}

fn read(path: &Path, source: usize, sink: &mut Sink) -> Option<String> {
    let whole = Span::whole(source);
    let mut bytes = Vec::new();
    let opened = std::fs::File::open(path);
    if let Err(error) = opened.and_then(|file| file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes)) {
        let missing = error.kind() == std::io::ErrorKind::NotFound;
        let hint = missing.then(|| "give the path of a file, or of a directory of `*.yaml` files".into());
        sink.error(whole, format!("cannot be read: {error}"), hint);
        return None;
    }
    if bytes.len() as u64 > FILE_BYTES_MAX {
        sink.error(whole, format!("larger than {} MiB", FILE_BYTES_MAX / 1024 / 1024), None);
        return None;
    }
    match String::from_utf8(bytes) {
        Ok(text) => Some(text),
        Err(error) => {
            let valid = error.utf8_error().valid_up_to();
            let before = String::from_utf8_lossy(error.as_bytes().get(..valid).unwrap_or(&[])).into_owned();
            let line = before.matches('\n').count() + 1;
            let column = before.rsplit('\n').next().map_or(0, |line| line.chars().count()) + 1;
            let span = Span { source, line: line as u32, column: column as u32 };
            sink.error(span, "not UTF-8", Some("save the file as UTF-8".into()));
            None
        }
    }
}
