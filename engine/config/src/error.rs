//! Errors with a place and a hint, collected so that all of them are shown at once.

use std::collections::HashSet;
use std::fmt;

/// Where a value or key begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Span {
    /// Index into the sources.
    pub(crate) source: usize,
    /// From 1; 0 stands for the source as a whole.
    pub(crate) line: u32,
    /// From 1, in characters.
    pub(crate) column: u32,
}

impl Span {
    pub(crate) const fn whole(source: usize) -> Self {
        Self { source, line: 0, column: 0 }
    }
}

/// One thing that is wrong with a configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError {
    /// The file as it was named to [`load`](crate::load) or [`compile`](crate::compile).
    pub file: String,
    /// From 1; 0 where the error is about the file as a whole (it cannot be read, it is empty).
    pub line: u32,
    /// From 1, in characters; 0 as `line`.
    pub column: u32,
    pub message: String,
    pub hint: Option<String>,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => write!(f, "{}: {}", self.file, self.message)?,
            _ => write!(f, "{}:{}:{}: {}", self.file, self.line, self.column, self.message)?,
        }
        match &self.hint {
            Some(hint) => write!(f, "\n    hint: {hint}"),
            None => Ok(()),
        }
    }
}

/// Everything that is wrong with a configuration, in the order of the files. Never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Errors {
    list: Vec<ConfigError>,
    more: usize,
}

impl Errors {
    /// The errors, at least one and at most [`ERRORS_MAX`].
    pub fn list(&self) -> &[ConfigError] {
        &self.list
    }

    /// How many were found, those above [`ERRORS_MAX`] included.
    pub fn count(&self) -> usize {
        self.list.len() + self.more
    }
}

impl fmt::Display for Errors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for error in &self.list {
            writeln!(f, "{error}")?;
        }
        match (self.count(), self.more) {
            (1, _) => write!(f, "1 error"),
            (count, 0) => write!(f, "{count} errors"),
            (count, _) => write!(f, "{count} errors, the first {ERRORS_MAX} shown"),
        }
    }
}

impl std::error::Error for Errors {}

/// Most errors that are kept; more are only counted.
pub const ERRORS_MAX: usize = 100;

/// Collects errors while the work goes on.
#[derive(Debug)]
pub(crate) struct Sink {
    /// Names of the sources, by index.
    sources: Vec<String>,
    found: Vec<(Span, String, Option<String>)>,
    more: usize,
}

impl Sink {
    pub(crate) fn new(sources: Vec<String>) -> Self {
        Self { sources, found: Vec::new(), more: 0 }
    }

    pub(crate) fn error(&mut self, span: Span, message: impl Into<String>, hint: Option<String>) {
        if self.found.len() < ERRORS_MAX {
            self.found.push((span, one_line(message.into()), hint.map(one_line)));
        } else {
            self.more += 1;
        }
    }

    pub(crate) fn is_clean(&self) -> bool {
        self.found.is_empty()
    }

    pub(crate) fn source(&self, index: usize) -> &str {
        self.sources.get(index).map_or("", String::as_str)
    }

    /// `file:line:column`, to name another place in a message.
    pub(crate) fn place(&self, span: Span) -> String {
        format!("{}:{}:{}", self.source(span.source), span.line, span.column)
    }

    /// The errors found, in the order of the sources; call it only after an error. What is said twice about one place,
    /// which aliases lead to from several, is said once.
    pub(crate) fn into_errors(mut self) -> Errors {
        let mut said = HashSet::new();
        self.found.retain(|(span, message, _)| said.insert((*span, message.clone())));
        self.found.sort_by_key(|(span, ..)| *span);
        let sources = &self.sources;
        let list = self.found.into_iter().map(|(span, message, hint)| ConfigError {
            file: sources.get(span.source).cloned().unwrap_or_default(),
            line: span.line,
            column: span.column,
            message,
            hint,
        });
        Errors { list: list.collect(), more: self.more }
    }
}

/// Text that repeats parts of a file must not break a message up, nor speak to a terminal.
fn one_line(text: String) -> String {
    if !text.contains(char::is_control) {
        return text;
    }
    text.chars().fold(String::with_capacity(text.len() + 8), |mut line, c| {
        if c.is_control() {
            line.extend(c.escape_default())
        } else {
            line.push(c)
        }
        line
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shows_all_in_order_with_hints_and_the_number() {
        let mut sink = Sink::new(vec!["a.yaml".into(), "b.yaml".into()]);
        sink.error(Span { source: 1, line: 2, column: 3 }, "second", None);
        sink.error(Span { source: 0, line: 9, column: 1 }, "first", Some("do this".into()));
        sink.error(Span::whole(1), "whole", None);
        let errors = sink.into_errors();
        assert_eq!(
            errors.to_string(),
            "a.yaml:9:1: first\n    hint: do this\nb.yaml: whole\nb.yaml:2:3: second\n3 errors"
        );
    }

    #[test]
    fn a_message_is_one_line() {
        let mut sink = Sink::new(vec!["a".into()]);
        sink.error(Span::whole(0), "`a\nb\u{1b}[2J`", Some("not `\r`".into()));
        let errors = sink.into_errors();
        assert_eq!(errors.to_string(), "a: `a\\nb\\u{1b}[2J`\n    hint: not `\\r`\n1 error");
    }

    #[test]
    fn is_bounded() {
        let mut sink = Sink::new(vec!["a".into()]);
        for line in 0..ERRORS_MAX as u32 + 7 {
            sink.error(Span { source: 0, line: line + 1, column: 1 }, "x", None);
        }
        let errors = sink.into_errors();
        assert_eq!((errors.list().len(), errors.count()), (100, 107));
        assert!(errors.to_string().ends_with("107 errors, the first 100 shown"));
    }
}
