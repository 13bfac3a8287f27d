//! Values as they were written, each with its place, and what is wrong with them.

use std::fmt::Display;
use std::path::PathBuf;

use serde::{Deserialize, Deserializer};
use serde_saphyr::{Location, Spanned};

use super::variables;
use crate::failure::Failure;
use crate::template::{self, Template};

/// A value of a scenario file or a flag, before it becomes a number, a duration, a template.
#[derive(Debug, Clone)]
pub(crate) struct Text {
    pub(crate) written: String,
    pub(crate) place: Place,
}

/// Where a value stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Place {
    /// Nowhere in particular.
    Whole,
    Flag(&'static str),
    File {
        line: u64,
        column: u64,
    },
}

impl Text {
    pub(crate) fn flag(name: &'static str, written: impl Into<String>) -> Self {
        Self { written: written.into(), place: Place::Flag(name) }
    }
}

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let spanned = Spanned::<String>::deserialize(deserializer)?;
        Ok(Self { written: spanned.value, place: spanned.referenced.into() })
    }
}

impl From<Location> for Place {
    fn from(location: Location) -> Self {
        if location == Location::UNKNOWN {
            return Self::Whole;
        }
        Self::File { line: location.line(), column: location.column() }
    }
}

/// Turns texts into values and collects what is wrong, so that all of it can be told at once.
#[derive(Debug)]
pub(crate) struct Reader {
    /// The scenario file as it was named; a URL with flags has none.
    file: String,
    /// Where relative paths start.
    pub(crate) directory: PathBuf,
    problems: Vec<(Place, String)>,
}

impl Reader {
    pub(crate) fn new(file: String, directory: PathBuf) -> Self {
        Self { file, directory, problems: Vec::new() }
    }

    pub(crate) fn problem(&mut self, place: Place, message: impl Display, hint: Option<&str>) {
        let mut text = one_line(&message.to_string());
        if let Some(hint) = hint {
            text += "\n    hint: ";
            text += &one_line(hint);
        }
        self.problems.push((place, text));
    }

    /// A value with its variables put in. `None`: reported.
    pub(crate) fn plain(&mut self, text: &Text) -> Option<String> {
        self.expanded(text, false)
    }

    /// A value by `parse`, whose error is a hint; `kind` says what is expected.
    pub(crate) fn value<T>(
        &mut self,
        text: &Text,
        kind: &str,
        parse: impl FnOnce(&str) -> Result<T, Option<String>>,
    ) -> Option<T> {
        let plain = self.plain(text)?;
        match parse(&plain) {
            Ok(value) => Some(value),
            Err(hint) => {
                // A hint may repeat what a variable stands for, which may be a secret.
                let hint =
                    if plain == text.written { hint } else { Some("what it stands for has another form".into()) };
                self.problem(text.place, format!("expected {kind}, found `{}`", text.written), hint.as_deref());
                None
            }
        }
    }

    /// A whole number within bounds.
    pub(crate) fn number(&mut self, text: &Text, least: u64, most: u64) -> Option<u64> {
        self.value(text, &format!("a whole number from {least} to {most}"), |text| {
            text.parse().ok().filter(|number| (least..=most).contains(number)).ok_or(None)
        })
    }

    /// A template. What variables stand for is text and has no placeholders.
    pub(crate) fn template(&mut self, text: &Text, place: template::Place) -> Option<Template> {
        let source = self.expanded(text, true)?;
        match Template::compile(&source, place) {
            Ok(template) => Some(template),
            Err(wrong) => {
                self.problem(text.place, wrong.message, Some(&wrong.hint));
                None
            }
        }
    }

    fn expanded(&mut self, text: &Text, escape_braces: bool) -> Option<String> {
        let put_in = |value: String| if escape_braces { value.replace('{', "{{") } else { value };
        match variables::expand(&text.written, &self.directory, put_in) {
            Ok(expanded) => Some(expanded),
            Err((message, hint)) => {
                self.problem(text.place, message, Some(hint).filter(|hint| !hint.is_empty()));
                None
            }
        }
    }

    /// All problems in the order of the file, as one failure; `None` if there are none.
    pub(crate) fn failure(&mut self) -> Option<Failure> {
        const SHOWN_MAX: usize = 100;
        self.problems.sort();
        self.problems.dedup();
        let shown = self.problems.iter().take(SHOWN_MAX).map(|(place, text)| match place {
            Place::Whole if self.file.is_empty() => text.clone(),
            Place::Whole => format!("{}: {text}", self.file),
            Place::Flag(name) => format!("{name}: {text}"),
            Place::File { line, column } => format!("{}:{line}:{column}: {text}", self.file),
        });
        let mut lines: Vec<String> = shown.collect();
        match self.problems.len() {
            0 => return None,
            1 => {}
            count if count > SHOWN_MAX => lines.push(format!("{count} errors, the first {SHOWN_MAX} shown")),
            count => lines.push(format!("{count} errors")),
        }
        Some(Failure::usage(lines.join("\n")))
    }
}

/// Text that repeats parts of a file must not break a message up, nor speak to a terminal.
fn one_line(text: &str) -> String {
    text.chars().fold(String::with_capacity(text.len()), |mut line, c| {
        if c.is_control() {
            line.extend(c.escape_default());
        } else {
            line.push(c);
        }
        line
    })
}
