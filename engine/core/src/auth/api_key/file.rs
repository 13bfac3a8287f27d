//! The shape of a file of API keys.

use std::collections::HashSet;

use serde::Deserialize;
use serde_json::{Map, Value};

use super::ApiKeysError;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct File {
    pub(super) clients: Vec<Client>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Client {
    pub(super) name: String,
    #[serde(default)]
    pub(super) roles: Vec<Box<str>>,
    #[serde(default)]
    pub(super) scopes: Vec<Box<str>>,
    #[serde(default)]
    metadata: Map<String, Value>,
    pub(super) keys: Vec<KeyEntry>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct KeyEntry {
    pub(super) id: Option<Box<str>>,
    pub(super) hash: String,
    not_before: Option<String>,
    expires: Option<String>,
    pub(super) roles: Option<Vec<Box<str>>>,
    pub(super) scopes: Option<Vec<Box<str>>>,
    metadata: Option<Map<String, Value>>,
}

/// One key in a list that others keep, by its hash: all that is known of it and its client.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ListEntry {
    client: String,
    id: Option<Box<str>>,
    not_before: Option<String>,
    expires: Option<String>,
    #[serde(default)]
    roles: Vec<Box<str>>,
    #[serde(default)]
    scopes: Vec<Box<str>>,
    #[serde(default)]
    metadata: Map<String, Value>,
}

/// Reads an entry of a list, JSON, as a client with one key.
pub(super) fn of_list(hash: &[u8], json: &[u8]) -> Result<Client, ApiKeysError> {
    let entry: ListEntry = serde_json::from_slice(json).map_err(|error| ApiKeysError::Syntax(error.to_string()))?;
    let ListEntry { client: name, id, not_before, expires, roles, scopes, metadata } = entry;
    if name.is_empty() {
        return Err(ApiKeysError::Client { client: name, problem: "a client needs a name" });
    }
    // What is no text is no hash either.
    let hash = String::from_utf8_lossy(hash).into_owned();
    let key = KeyEntry { id, hash, not_before, expires, roles: None, scopes: None, metadata: None };
    Ok(Client { name, roles, scopes, metadata, keys: vec![key] })
}

impl File {
    /// JSON where it begins as such, which is the faster way for long lists; YAML otherwise. Both refuse a key that
    /// occurs twice, and the YAML parser has budgets for depth, aliases and nodes.
    pub(super) fn parse(text: &str) -> Result<Self, ApiKeysError> {
        let file: Self = if text.trim_ascii_start().starts_with('{') {
            serde_json::from_str(text).map_err(|error| ApiKeysError::Syntax(error.to_string()))?
        } else {
            let options = serde_saphyr::options! { with_snippet: false };
            serde_saphyr::from_str_with_options(text, options)
                .map_err(|error| ApiKeysError::Syntax(error.to_string()))?
        };
        let mut names = HashSet::new();
        for client in &file.clients {
            let problem = |problem| Err(ApiKeysError::Client { client: client.name.clone(), problem });
            if client.name.is_empty() {
                return problem("a client needs a name");
            }
            if !names.insert(&client.name) {
                return problem("a name that occurs twice");
            }
        }
        Ok(file)
    }
}

impl Client {
    /// What conditions and headers see of a key.
    pub(super) fn claims(&self, key: &KeyEntry) -> Result<Map<String, Value>, &'static str> {
        let mut claims = key.metadata.as_ref().unwrap_or(&self.metadata).clone();
        match claims.insert("sub".into(), self.name.as_str().into()) {
            None => Ok(claims),
            Some(_) => Err("`sub` in metadata, which is the client's name"),
        }
    }
}

impl KeyEntry {
    /// From when and until when, in Unix seconds.
    pub(super) fn validity(&self) -> Result<(Option<u64>, Option<u64>), &'static str> {
        let time = |text: &Option<String>| {
            let parse = |text: &String| unix_seconds(text).ok_or("a time is `2027-01-31` or `2027-01-31T12:00:00Z`");
            text.as_ref().map(parse).transpose()
        };
        match (time(&self.not_before)?, time(&self.expires)?) {
            (Some(from), Some(until)) if until <= from => Err("a key that expires before it becomes valid"),
            validity => Ok(validity),
        }
    }
}

/// A date, at midnight, or a time with whole seconds, both in UTC (a subset of RFC 3339). From 1970 on.
fn unix_seconds(text: &str) -> Option<u64> {
    let (date, time) = match text.split_once('T') {
        Some((date, time)) => (date, time.strip_suffix('Z')?),
        None => (text, "00:00:00"),
    };
    let [year, month, day] = fields(date, '-', [4, 2, 2])?;
    let [hour, minute, second] = fields(time, ':', [2, 2, 2])?;
    let is_leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let days_of_month = match month {
        2 => 28 + u64::from(is_leap),
        4 | 6 | 9 | 11 => 30,
        1..=12 => 31,
        _ => return None,
    };
    if year < 1970 || !(1..=days_of_month).contains(&day) || hour > 23 || minute > 59 || second > 59 {
        return None;
    }
    // Years begin in March here, so that the leap day is a year's last.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = year * 365 + year / 4 - year / 100 + year / 400 + (month * 153 + 2) / 5 + day - 1;
    let days = days.checked_sub(719_468)?;
    Some(((days * 24 + hour) * 60 + minute) * 60 + second)
}

fn fields(text: &str, separator: char, lengths: [usize; 3]) -> Option<[u64; 3]> {
    let mut parts = text.split(separator);
    let mut numbers = [0; 3];
    for (number, length) in numbers.iter_mut().zip(lengths) {
        let part =
            parts.next().filter(|part| part.len() == length && part.bytes().all(|byte| byte.is_ascii_digit()))?;
        *number = part.parse().ok()?;
    }
    parts.next().is_none().then_some(numbers)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::timestamp::rfc3339_millis;
    use proptest::prelude::*;

    #[test]
    fn times_are_read() {
        assert_eq!(unix_seconds("1970-01-01"), Some(0));
        assert_eq!(unix_seconds("2024-02-29T23:59:59Z"), Some(1_709_251_199));
        for bad in [
            "",
            "2024",
            "2024-2-29",
            "2023-02-29",
            "2100-02-29",
            "2024-13-01",
            "2024-00-01",
            "2024-01-00",
            "2024-04-31",
            "1969-12-31",
            "2024-01-01T24:00:00Z",
            "2024-01-01T00:60:00Z",
            "2024-01-01T00:00:60Z",
            "2024-01-01T00:00:00",
            "2024-01-01 00:00:00Z",
            "2024-01-01T00:00:00+00:00",
            "+024-01-01",
            "2024-01-01-01",
        ] {
            assert_eq!(unix_seconds(bad), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn a_time_that_is_written_is_read_again(seconds in 0u64..253_402_300_800) {
            let mut text = Vec::new();
            rfc3339_millis(seconds * 1000, &mut text);
            let text = String::from_utf8(text).unwrap().replace(".000Z", "Z");
            prop_assert_eq!(unix_seconds(&text), Some(seconds), "{}", text);
        }
    }
}
