//! `${env:NAME}`, `${env:NAME:-default}` and `${file:PATH}`, as in the gateway's configuration.

use std::io::Read;
use std::path::Path;

/// Most bytes of a file that stands for a value.
const FILE_BYTES_MAX: u64 = 64 * 1024;

/// A message and a hint, which may be empty.
pub(crate) type Wrong = (String, &'static str);

/// The text with its variables put in, each passed through `put_in`. What is put in is not looked at again.
pub(crate) fn expand(text: &str, directory: &Path, put_in: impl Fn(String) -> String) -> Result<String, Wrong> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, reference, after)) = next_reference(rest)? {
        out.push_str(before);
        out.push_str(&put_in(reference.value(directory)?));
        rest = after;
    }
    out.push_str(rest);
    Ok(out)
}

/// Whether the text is one variable and nothing else: how secrets are given.
pub(crate) fn is_reference(text: &str) -> bool {
    matches!(next_reference(text), Ok(Some(("", _, ""))))
}

#[derive(Debug)]
enum Reference<'t> {
    Env { name: &'t str, default: Option<&'t str> },
    File(&'t str),
}

/// What stands before the next variable, the variable, and what stands behind it.
fn next_reference(text: &str) -> Result<Option<(&str, Reference<'_>, &str)>, Wrong> {
    let starts = ["${env:", "${file:"].into_iter();
    let Some((at, start)) = starts.filter_map(|start| Some((text.find(start)?, start))).min() else { return Ok(None) };
    let (before, from) = text.split_at(at);
    let Some((body, after)) = from[start.len()..].split_once('}') else {
        return Err((format!("`{start}` without a closing `}}`"), ""));
    };
    if start == "${file:" {
        return Ok(Some((before, Reference::File(body), after)));
    }
    let (name, default) = match body.split_once(":-") {
        Some((name, default)) => (name, Some(default)),
        None => (body, None),
    };
    let letter = |c: char| c.is_ascii_alphanumeric() || c == '_';
    if name.is_empty() || !name.chars().all(letter) || name.starts_with(|c: char| c.is_ascii_digit()) {
        let message = format!("`{name}` is not the name of an environment variable");
        return Err((message, "write `${env:NAME}` or `${env:NAME:-default}`"));
    }
    Ok(Some((before, Reference::Env { name, default }, after)))
}

impl Reference<'_> {
    fn value(&self, directory: &Path) -> Result<String, Wrong> {
        match *self {
            Self::Env { name, default } => match (std::env::var(name).ok(), default) {
                (Some(value), None) => Ok(value),
                (Some(value), Some(_)) if !value.is_empty() => Ok(value),
                (_, Some(default)) => Ok(default.to_owned()),
                (None, None) => Err((
                    format!("the environment variable `{name}` is not set"),
                    "set it, or give a default: `${env:NAME:-default}`",
                )),
            },
            Self::File(path) => {
                let path = directory.join(path);
                let bytes = read(&path, FILE_BYTES_MAX)?;
                let mut text = String::from_utf8(bytes).map_err(|_| cannot_read(&path, "it is not UTF-8"))?;
                text.truncate(text.trim_end_matches(['\n', '\r']).len());
                Ok(text)
            }
        }
    }
}

/// A file's bytes, at most `bytes_max` of them.
pub(crate) fn read(path: &Path, bytes_max: u64) -> Result<Vec<u8>, Wrong> {
    let failed = |error: std::io::Error| cannot_read(path, &error.to_string());
    // Looked at before it is opened: opening a pipe would wait for a writer.
    if !std::fs::metadata(path).map_err(failed)?.is_file() {
        return Err(cannot_read(path, "it is not a file"));
    }
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).map_err(failed)?;
    file.take(bytes_max + 1).read_to_end(&mut bytes).map_err(failed)?;
    match bytes.len() as u64 > bytes_max {
        true => Err(cannot_read(path, &format!("it is larger than {} KiB", bytes_max / 1024))),
        false => Ok(bytes),
    }
}

fn cannot_read(path: &Path, why: &str) -> Wrong {
    (format!("cannot read `{}`: {why}", path.display()), "a relative path starts at the directory of the scenario file")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expanded(text: &str, directory: &Path) -> Result<String, String> {
        expand(text, directory, |value| format!("<{value}>")).map_err(|(message, _)| message)
    }

    #[test]
    fn variables_are_put_in_once() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("secret"), "${env:PATH}\n").unwrap();
        let expanded = |text| expanded(text, directory.path());
        assert_eq!(expanded("a ${file:secret} b").unwrap(), "a <${env:PATH}> b");
        assert_eq!(expanded("${env:LOADTEST_NO_SUCH:-x}/${file:secret}").unwrap(), "<x>/<${env:PATH}>");
        assert_eq!(expanded("${other} $ {n}").unwrap(), "${other} $ {n}");
        assert!(!expanded("${env:PATH}").unwrap().contains("PATH"));
    }

    #[test]
    fn what_is_missing_is_an_error() {
        let expanded = |text| expanded(text, Path::new("/nowhere")).unwrap_err();
        assert_eq!(expanded("${env:LOADTEST_NO_SUCH}"), "the environment variable `LOADTEST_NO_SUCH` is not set");
        assert_eq!(expanded("${env:A-B}"), "`A-B` is not the name of an environment variable");
        assert_eq!(expanded("x${env:A"), "`${env:` without a closing `}`");
        assert!(expanded("${file:x}").starts_with("cannot read `/nowhere/x`: No such file"));
        assert_eq!(expanded("${file:/dev/zero}"), "cannot read `/dev/zero`: it is not a file");
    }

    #[test]
    fn a_reference_stands_alone() {
        assert!(is_reference("${env:A}") && is_reference("${file:a/b}") && is_reference("${env:A:-b}"));
        assert!(!is_reference("x${env:A}") && !is_reference("${env:A}x") && !is_reference("secret"));
    }
}
