//! `${env:NAME}`, `${env:NAME:-default}` and `${file:PATH}` in scalars, before they become numbers, sizes and names.

use std::borrow::Cow;
use std::io::Read;
use std::path::{Path, PathBuf};

use crate::error::{Sink, Span};
use crate::tree::{Node, Origin, Scalar, Value};

/// Most bytes of a file that a scalar takes in.
pub(crate) const FILE_BYTES_MAX: u64 = 64 * 1024;

/// What stands for a value that came from outside.
pub(crate) const REDACTED: &str = "[redacted]";

/// Expands every scalar of `node`, keys excepted. A scalar that cannot be expanded is reported and becomes invalid.
pub(crate) fn expand(node: &mut Node, env: &dyn Fn(&str) -> Option<String>, sink: &mut Sink) {
    match &mut node.value {
        Value::Invalid => {}
        Value::List(items) => items.iter_mut().for_each(|item| expand(item, env, sink)),
        Value::Map(entries) => entries.iter_mut().for_each(|entry| expand(&mut entry.value, env, sink)),
        Value::Scalar(scalar) if !scalar.text.contains("${") => {}
        Value::Scalar(scalar) => {
            let directory = Path::new(sink.source(node.span.source)).parent().unwrap_or(Path::new("")).to_path_buf();
            match expand_scalar(scalar, env, &directory) {
                Ok(None) => {}
                Ok(Some(expanded)) => *scalar = expanded,
                Err(error) => {
                    let Failure { message, hint } = error;
                    report(sink, node.span, message, hint);
                    node.value = Value::Invalid;
                }
            }
        }
    }
}

fn report(sink: &mut Sink, span: Span, message: String, hint: &str) {
    sink.error(span, message, (!hint.is_empty()).then(|| hint.into()));
}

struct Failure {
    message: String,
    hint: &'static str,
}

impl Failure {
    fn new(message: String, hint: &'static str) -> Self {
        Self { message, hint }
    }
}

/// `None`: nothing of it is ours.
fn expand_scalar(
    scalar: &Scalar,
    env: &dyn Fn(&str) -> Option<String>,
    directory: &Path,
) -> Result<Option<Scalar>, Failure> {
    let (mut text, mut redacted, mut inserted) = (String::new(), String::new(), Vec::new());
    let mut rest: &str = &scalar.text;
    while let Some(at) = rest.find('$') {
        let (before, from) = rest.split_at(at);
        text.push_str(before);
        redacted.push_str(before);
        let Some(reference) = Reference::at(from)? else {
            // `$$` is a template's dollar sign: it hides the brace behind it.
            let length = if from.starts_with("$$") { 2 } else { 1 };
            let (kept, after) = from.split_at(length);
            text.push_str(kept);
            redacted.push_str(kept);
            rest = after;
            continue;
        };
        let (value, secret) = reference.value(env, directory)?;
        redacted.push_str(if secret { REDACTED } else { &value });
        inserted.push(text.len()..text.len() + value.len());
        text.push_str(&value);
        rest = from.get(reference.length..).unwrap_or("");
    }
    if inserted.is_empty() {
        return Ok(None);
    }
    text.push_str(rest);
    redacted.push_str(rest);
    let written = scalar.text.to_string();
    let origin = Some(Box::new(Origin { written, redacted, inserted }));
    Ok(Some(Scalar { text: Cow::Owned(text), plain: scalar.plain, origin }))
}

enum Kind<'t> {
    Env { name: &'t str, default: Option<&'t str> },
    File(&'t str),
}

struct Reference<'t> {
    kind: Kind<'t>,
    /// In the text, braces included.
    length: usize,
}

impl<'t> Reference<'t> {
    /// The reference at the start of `text`; `None` where it is another kind of variable, or none.
    fn at(text: &'t str) -> Result<Option<Self>, Failure> {
        let Some((kind, body)) =
            ["env", "file"].into_iter().find_map(|kind| Some((kind, text.strip_prefix("${")?.strip_prefix(kind)?)))
        //
        else {
            return Ok(None);
        };
        let Some(body) = body.strip_prefix(':') else { return Ok(None) };
        let Some((body, _)) = body.split_once('}') else {
            return Err(Failure::new(format!("`${{{kind}:` without a closing `}}`"), ""));
        };
        let length = "${".len() + kind.len() + ":".len() + body.len() + "}".len();
        if kind == "file" {
            return Ok(Some(Self { kind: Kind::File(body), length }));
        }
        let (name, default) = match body.split_once(":-") {
            Some((name, default)) => (name, Some(default)),
            None => (body, None),
        };
        let letter = |c: char| c.is_ascii_alphanumeric() || c == '_';
        if name.is_empty() || !name.chars().all(letter) || name.starts_with(|c: char| c.is_ascii_digit()) {
            let hint = "write `${env:NAME}` or `${env:NAME:-default}`";
            return Err(Failure::new(format!("`{name}` is not the name of an environment variable"), hint));
        }
        if default.is_some_and(|default| default.contains('$')) {
            // The first `}` of a variable in it would end the whole; before a brace it would become one.
            return Err(Failure::new(format!("the default of `{name}` has a `$` in it"), "a default is plain text"));
        }
        Ok(Some(Self { kind: Kind::Env { name, default }, length }))
    }

    /// The value, and whether it came from outside of the configuration.
    fn value(&self, env: &dyn Fn(&str) -> Option<String>, directory: &Path) -> Result<(String, bool), Failure> {
        match self.kind {
            Kind::Env { name, default } => match (env(name), default) {
                (Some(value), None) => Ok((value, true)),
                (Some(value), Some(_)) if !value.is_empty() => Ok((value, true)),
                (_, Some(default)) => Ok((default.to_owned(), false)),
                (None, None) => Err(Failure::new(
                    format!("the environment variable `{name}` is not set"),
                    "set it, or give a default: `${env:NAME:-default}`",
                )),
            },
            Kind::File(path) => {
                let path = directory.join(path);
                read(&path).map(|value| (value, true)).map_err(|error| {
                    Failure::new(
                        format!("`{}` cannot be used: {error}", path.display()),
                        "a relative path starts at the directory of the configuration file",
                    )
                })
            }
        }
    }
}

fn read(path: &PathBuf) -> Result<String, String> {
    // Looked at before it is opened: opening a pipe would wait for a writer.
    let is_file = std::fs::metadata(path).map_err(|error| error.to_string())?.is_file();
    if !is_file {
        return Err("not a file".into());
    }
    let file = std::fs::File::open(path).map_err(|error| error.to_string())?;
    let mut bytes = Vec::new();
    file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(|error| error.to_string())?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(format!("larger than {} KiB", FILE_BYTES_MAX / 1024));
    }
    let mut text = String::from_utf8(bytes).map_err(|_| "not UTF-8".to_string())?;
    if text.ends_with('\n') {
        text.pop();
        if text.ends_with('\r') {
            text.pop();
        }
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scalar(text: &str) -> Scalar {
        Scalar { text: Cow::Owned(text.into()), plain: true, origin: None }
    }

    fn expanded(text: &str) -> Result<(String, String), String> {
        let env = |name: &str| match name {
            "PORT" => Some("8080".to_string()),
            "EMPTY" => Some(String::new()),
            "TRICK" => Some("${env:PORT}".to_string()),
            _ => None,
        };
        match expand_scalar(&scalar(text), &env, Path::new("")) {
            Ok(None) => Ok((text.into(), text.into())),
            Ok(Some(scalar)) => Ok((scalar.text.to_string(), scalar.origin.unwrap().redacted)),
            Err(failure) => Err(failure.message),
        }
    }

    #[test]
    fn values_are_put_in_and_hidden() {
        for (text, value, shown) in [
            ("a:${env:PORT}!", "a:8080!", "a:[redacted]!"),
            ("${env:NO:-x:-y}", "x:-y", "x:-y"),
            ("${env:EMPTY:-x}", "x", "x"),
            ("${env:EMPTY}", "", "[redacted]"),
            ("${env:PORT}${env:PORT}", "80808080", "[redacted][redacted]"),
            // Not expanded again.
            ("${env:TRICK}", "${env:PORT}", "[redacted]"),
            (
                "${request.id} $$ ${environment} $",
                "${request.id} $$ ${environment} $",
                "${request.id} $$ ${environment} $",
            ),
            ("$${env:PORT}", "$${env:PORT}", "$${env:PORT}"),
            ("$$${env:PORT}", "$$8080", "$$[redacted]"),
            ("${request.id}-${env:PORT}", "${request.id}-8080", "${request.id}-[redacted]"),
        ] {
            assert_eq!(expanded(text), Ok((value.into(), shown.into())), "{text}");
        }
    }

    #[test]
    fn what_is_missing_is_an_error() {
        assert_eq!(expanded("${env:NO}").unwrap_err(), "the environment variable `NO` is not set");
        assert_eq!(expanded("${env:PORT").unwrap_err(), "`${env:` without a closing `}`");
        assert_eq!(expanded("${env:}").unwrap_err(), "`` is not the name of an environment variable");
        assert_eq!(expanded("${env:A-B}").unwrap_err(), "`A-B` is not the name of an environment variable");
        assert_eq!(expanded("${env:A:-${env:B}}").unwrap_err(), "the default of `A` has a `$` in it");
        assert!(expanded("${file:/no/such}").unwrap_err().starts_with("`/no/such` cannot be used: "));
        assert!(expanded("${file:/dev/zero}").unwrap_err().ends_with("not a file"));
    }
}
