//! The keys under a prefix and their values, as of a revision.

use std::collections::BTreeMap;

use ringway_config::Instance;
use ringway_config::snapshot::{Endpoint, EndpointTls};

use super::super::{ENDPOINTS_MAX, distinct};

/// A key's value; `None`: it is gone.
#[derive(Debug)]
pub(super) struct Event {
    pub(super) key: Vec<u8>,
    pub(super) value: Option<Vec<u8>>,
    pub(super) revision: u64,
}

/// What was listed.
#[derive(Debug)]
pub(super) struct Listed {
    pub(super) revision: u64,
    pub(super) keys: Vec<(Vec<u8>, Vec<u8>)>,
    /// There are more.
    pub(super) is_cut: bool,
}

/// A value that cannot be read leaves its key as it was.
#[derive(Debug, Default)]
pub(super) struct Keys {
    known: BTreeMap<Vec<u8>, Endpoint>,
    /// Of the last list, or of the last event after that.
    revision: u64,
    problem: Option<String>,
}

impl Keys {
    /// Takes a list. Whether anything is different.
    pub(super) fn list(&mut self, listed: Listed, tls: Option<&EndpointTls>) -> bool {
        (self.revision, self.problem) = (listed.revision, None);
        let mut old = std::mem::take(&mut self.known);
        let mut is_changed = false;
        for (key, value) in listed.keys {
            let known = old.remove(&key);
            match read(&key, &value, tls) {
                Ok(endpoint) => {
                    is_changed |= known.as_ref() != Some(&endpoint);
                    self.known.insert(key, endpoint);
                }
                Err(problem) => {
                    self.problem = Some(problem);
                    self.known.extend(known.map(|known| (key, known)));
                }
            }
        }
        if listed.is_cut {
            self.problem = Some(format!("there are more than {ENDPOINTS_MAX} keys"));
        }
        is_changed || !old.is_empty()
    }

    /// Takes what has happened since. Whether anything is different.
    pub(super) fn follow(&mut self, events: Vec<Event>, tls: Option<&EndpointTls>) -> bool {
        let since = self.revision;
        let mut is_changed = false;
        for Event { key, value, revision } in events.into_iter().filter(|event| event.revision > since) {
            self.revision = self.revision.max(revision);
            let Some(value) = value else {
                is_changed |= self.known.remove(&key).is_some();
                continue;
            };
            match read(&key, &value, tls) {
                Ok(_) if self.known.len() >= ENDPOINTS_MAX && !self.known.contains_key(&key) => {
                    self.problem = Some(format!("there are more than {ENDPOINTS_MAX} keys"));
                }
                Ok(endpoint) => is_changed |= self.known.insert(key, endpoint.clone()) != Some(endpoint),
                Err(problem) => self.problem = Some(problem),
            }
        }
        is_changed
    }

    pub(super) fn endpoints(&self) -> Vec<Endpoint> {
        distinct(self.known.values())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.known.is_empty()
    }

    pub(super) fn revision(&self) -> u64 {
        self.revision
    }

    /// Of a value, until the next list.
    pub(super) fn problem(&self) -> Option<String> {
        self.problem.clone()
    }
}

fn read(key: &[u8], value: &[u8], tls: Option<&EndpointTls>) -> Result<Endpoint, String> {
    let named = |errors| format!("`{}`: {errors}", String::from_utf8_lossy(key));
    Instance::read(value, true, tls).map(|instance| instance.endpoint).map_err(named)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(revision: u64, keys: &[(&str, &str)]) -> Listed {
        let keys = keys.iter().map(|(key, value)| (key.as_bytes().to_vec(), value.as_bytes().to_vec()));
        Listed { revision, keys: keys.collect(), is_cut: false }
    }

    fn event(revision: u64, key: &str, value: Option<&str>) -> Event {
        Event { key: key.into(), value: value.map(Into::into), revision }
    }

    fn labels(keys: &Keys) -> Vec<String> {
        keys.endpoints().iter().map(|endpoint| endpoint.label.to_string()).collect()
    }

    #[test]
    fn lists_and_events_make_one_picture() {
        let mut keys = Keys::default();
        assert!(keys.list(listed(5, &[("/a", "127.0.0.1:1"), ("/b", "{\"address\":\"127.0.0.1:2\"}")]), None));
        assert_eq!(labels(&keys), ["127.0.0.1:1", "127.0.0.1:2"]);
        assert!(!keys.follow(vec![event(5, "/a", None)], None), "part of the list");
        assert!(keys.follow(vec![event(6, "/a", None), event(6, "/c", Some("127.0.0.1:3"))], None));
        assert_eq!((labels(&keys), keys.revision()), (vec!["127.0.0.1:2".into(), "127.0.0.1:3".into()], 6));
        assert!(!keys.follow(vec![event(7, "/c", Some("127.0.0.1:3"))], None));
        assert!(keys.list(listed(9, &[("/c", "127.0.0.1:3")]), None));
        assert_eq!(labels(&keys), ["127.0.0.1:3"]);
    }

    #[test]
    fn a_value_that_cannot_be_read_leaves_its_key_as_it_was() {
        let mut keys = Keys::default();
        keys.list(listed(5, &[("/a", "127.0.0.1:1"), ("/b", "nobody")]), None);
        assert_eq!(labels(&keys), ["127.0.0.1:1"]);
        assert!(keys.problem().unwrap().contains("`/b`: the instance: "), "{:?}", keys.problem());
        assert!(!keys.follow(vec![event(6, "/a", Some("{}"))], None));
        assert!(!keys.list(listed(7, &[("/a", "{}")]), None));
        assert_eq!(labels(&keys), ["127.0.0.1:1"]);
        assert!(!keys.list(listed(8, &[("/a", "127.0.0.1:1")]), None));
        assert_eq!(keys.problem(), None);
    }

    #[test]
    fn a_cluster_that_begins_anew_is_believed() {
        let mut keys = Keys::default();
        keys.list(listed(100_000, &[("/a", "127.0.0.1:1")]), None);
        assert!(keys.list(listed(2, &[("/b", "127.0.0.1:2")]), None));
        assert!(keys.follow(vec![event(3, "/b", None)], None));
        assert!(keys.is_empty());
    }
}
