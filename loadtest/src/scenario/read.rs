//! From a file's text to a scenario.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde_saphyr::Error;

use super::file::{self, File};
use super::text::{Place, Reader};
use super::{Load, Scenario, Target, clients, load, requests, variables};
use crate::failure::Failure;
use crate::request::Requests;
use crate::schedule::Arrivals;

const FILE_BYTES_MAX: u64 = 4 << 20;
const CONNECTIONS_MAX: u64 = 1_000_000;
const THREADS_MAX: u64 = 256;
const CORE_MAX: u64 = 4_095;
const CONNECTIONS_DEFAULT: u64 = 64;
const TIMEOUT_DEFAULT: Duration = Duration::from_secs(10);
const SEED_DEFAULT: u64 = 1;

/// The file in its shape. What is wrong with the shape ends the reading, since serde stops there.
pub(crate) fn file(path: &Path, reader: &mut Reader) -> Result<File, Failure> {
    let bytes = variables::read(path, FILE_BYTES_MAX).map_err(|(message, _)| {
        let hint = "give a scenario file, or a URL that begins with `http://`";
        Failure::usage(format!("{message}\n    hint: {hint}"))
    })?;
    let text = String::from_utf8(bytes).map_err(|_| Failure::usage(format!("{}: not UTF-8", path.display())))?;
    let options = serde_saphyr::options! { with_snippet: false };
    serde_saphyr::from_str_with_options(&text, options).map_err(|error| {
        shape_problem(&error, reader);
        reader.failure().unwrap_or_else(|| Failure::usage(error))
    })
}

fn shape_problem(error: &Error, reader: &mut Reader) {
    let error = error.without_snippet();
    let place = error.location().map_or(Place::Whole, Place::from);
    match error {
        Error::SerdeUnknownField { field, expected, .. } => {
            reader.problem(place, format!("unknown key `{field}`"), Some(&closest(field, expected, "the keys here")));
        }
        Error::SerdeUnknownVariant { variant, expected, .. } => {
            reader.problem(place, format!("unknown word `{variant}`"), Some(&closest(variant, expected, "known here")));
        }
        Error::SerdeMissingField { field, .. } => {
            reader.problem(place, format!("the key `{field}` is missing"), None);
        }
        Error::Unexpected { expected, .. } => {
            let expected = match *expected {
                "string scalar" => "a single value",
                "mapping start" => "a section of keys",
                "sequence start" => "a list",
                other => other,
            };
            reader.problem(place, format!("expected {expected}"), None);
        }
        Error::ExternallyTaggedEnumExpectedScalarOrMapping { .. } => {
            reader.problem(place, "expected a word or a section of one key", None);
        }
        Error::DuplicateMappingKey { key, .. } => {
            reader.problem(place, format!("the key `{}` stands here twice", key.as_deref().unwrap_or("?")), None);
        }
        Error::NullIntoString { .. } => reader.problem(place, "a value is missing", None),
        Error::Eof { .. } => reader.problem(place, "the file is empty, or ends too early", None),
        other => {
            // The place stands before the message already.
            let text = other.to_string();
            let text = text.lines().next().unwrap_or("not YAML");
            reader.problem(place, text.split(" at line ").next().unwrap_or(text), None);
        }
    }
}

fn closest(word: &str, known: &[&str], what: &str) -> String {
    let distance = |candidate: &&&str| strsim::damerau_levenshtein(word, candidate);
    match known.iter().min_by_key(distance) {
        Some(candidate) if distance(&candidate) <= (word.len() / 3).max(1) => format!("did you mean `{candidate}`?"),
        _ => format!("{what}: {}", known.iter().map(|word| format!("`{word}`")).collect::<Vec<_>>().join(", ")),
    }
}

/// Makes sense of all values, or tells all that is wrong.
pub(crate) fn compile(file: &File, mut reader: Reader) -> Result<Scenario, Failure> {
    let r = &mut reader;
    let target = r.plain(&file.target).and_then(|url| match Target::parse(&url) {
        Ok(target) => Some(target),
        Err((message, hint)) => {
            r.problem(file.target.place, message, hint);
            None
        }
    });
    let seed = file.seed.as_ref().map_or(Some(SEED_DEFAULT), |text| r.number(text, 0, u64::MAX));
    let warmup = file.warmup.as_ref().map_or(Some(Duration::ZERO), |text| load::duration_or_zero(r, text));
    let timeout = file.timeout.as_ref().map_or(Some(TIMEOUT_DEFAULT), |text| load::duration(r, text));
    let keep_alive = file
        .keep_alive
        .as_ref()
        .map_or(Some(true), |text| r.value(text, "`true` or `false`", |text| text.parse().map_err(|_| None)));
    let cores: Vec<_> = file.cores.iter().map(|text| r.number(text, 0, CORE_MAX)).collect();
    let threads = match &file.threads {
        Some(text) => r.number(text, 1, THREADS_MAX),
        None => Some(file.cores.len().max(1) as u64),
    };
    let connections =
        file.connections.as_ref().map_or(Some(CONNECTIONS_DEFAULT), |text| r.number(text, 1, CONNECTIONS_MAX));
    if let (Some(threads), Some(connections)) = (threads, connections)
        && connections < threads
    {
        let place = file.connections.as_ref().or(file.threads.as_ref()).map_or(Place::Whole, |text| text.place);
        r.problem(place, format!("{connections} connections for {threads} threads"), Some("each thread needs one"));
    }
    let planned = load_of(r, file, warmup.unwrap_or_default(), seed.unwrap_or_default());
    let population = clients::population(r, &file.clients, target.as_ref());
    let minter = file.clients.jwt.as_ref().map(|jwt| clients::minter(r, jwt, seed.unwrap_or_default()));
    let classes = target.as_ref().and_then(|target| requests::classes(r, file, target, keep_alive.unwrap_or(true)));
    if let Some(failure) = r.failure() {
        return Err(failure);
    }
    // Whatever could not be read has been reported above.
    let scenario = || {
        let population = population?;
        let tokens = match minter {
            None => None,
            Some(minter) => Some(Arc::new(crate::token::Tokens::new(minter?, population.count()))),
        };
        let (load, duration) = planned?;
        Some(Scenario {
            target: target?,
            load,
            warmup: warmup?,
            duration,
            connections: connections? as usize,
            threads: threads? as usize,
            cores: cores.into_iter().map(|core| Some(core? as usize)).collect::<Option<_>>()?,
            keep_alive: keep_alive?,
            timeout: timeout?,
            seed: seed?,
            requests: Arc::new(Requests::new(classes?, population, tokens)),
        })
    };
    scenario().ok_or_else(|| Failure::usage("the scenario cannot be read"))
}

/// The schedule and the length of the measured part.
fn load_of(reader: &mut Reader, file: &File, warmup: Duration, seed: u64) -> Option<(Load, Duration)> {
    match &file.load.value {
        file::Load::Closed => {
            let text = file.duration.as_ref();
            let length = text.map_or(Some(load::DURATION_DEFAULT), |text| load::duration(reader, text));
            Some((Load::Closed, length?))
        }
        file::Load::Open(open) => {
            let place = file.load.referenced.into();
            let profile = load::profile(reader, open, place, file.duration.as_ref())?;
            if !warmup.is_zero() && profile.segments.first().is_some_and(|first| first.from == 0.0) {
                let place = file.warmup.as_ref().map_or(Place::Whole, |text| text.place);
                reader.problem(place, "the warm-up has the first phase's rate, which is 0", Some("leave `warmup` out"));
            }
            let arrivals = Arrivals::new(&profile.segments, profile.process, seed);
            let length = arrivals.duration();
            Some((Load::Open(arrivals.with_warmup(warmup)), length))
        }
    }
}
