//! API keys and revocations that others keep in Redis.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use ringway_config::hub::Published;
use ringway_config::snapshot::{KeySource, RedisList};
use ringway_core::auth::{ClaimHeader, Entries, Live, Loaded, Taken};

use super::Done;
use crate::process::unix_ms;
use crate::redis::{Deliver, Found, Kind, Poll, PollError};

/// What a configuration takes from Redis. `done` is called after every look that changed something, and after the first
/// one: it must not block.
pub fn polls(published: &Published, done: &Done) -> Vec<Poll> {
    let lists = published.live.iter().zip(&published.snapshot.keys);
    lists
        .filter_map(|(live, of)| {
            let list = of.list()?.clone();
            let (kind, headers) = match &of.keys {
                KeySource::Redis(headers, _) => (Kind::Hash, Arc::clone(headers)),
                _ => (Kind::Set, Arc::default()),
            };
            let deliver = deliver(Arc::clone(live), &list, headers, Arc::clone(done));
            Some(Poll { kind, list, deliver })
        })
        .collect()
}

fn deliver(live: Arc<Live>, list: &RedisList, headers: Arc<[ClaimHeader]>, done: Done) -> Deliver {
    let key = Arc::clone(&list.key);
    // The failure that was told last: it is not told again as long as it lasts.
    let told: Mutex<Option<PollError>> = Mutex::default();
    Arc::new(move |found| {
        let is_first = live.is_awaited();
        let is_changed = match take(&live, &headers, found) {
            Ok(taken) => {
                *told.lock().unwrap_or_else(PoisonError::into_inner) = None;
                report(&live, &key, &taken);
                taken.loaded == Loaded::Changed
            }
            Err(error) => {
                let mut told = told.lock().unwrap_or_else(PoisonError::into_inner);
                if told.as_ref() != Some(&error) {
                    let (name, what) = (&live.name, what_stays(&live));
                    tracing::warn!("authenticator `{name}`: {key} in Redis cannot be read: {error}; {what}");
                    *told = Some(error);
                }
                false
            }
        };
        live.set_awaited(false);
        if is_first || is_changed {
            done();
        }
    })
}

fn take(live: &Live, headers: &Arc<[ClaimHeader]>, found: Result<Found, PollError>) -> Result<Taken, PollError> {
    let now_s = unix_ms(SystemTime::now()) / 1000;
    let entries = match found {
        Ok(Found::Hash(entries)) => Entries::ApiKeys { headers: Arc::clone(headers), entries },
        Ok(Found::Set(ids)) => Entries::Revoked(ids),
        Ok(Found::Unchanged) => {
            live.still_good(now_s);
            return Ok(Taken { loaded: Loaded::Unchanged, malformed: 0, problem: None });
        }
        Err(error) => {
            live.failed();
            return Err(error);
        }
    };
    live.load_entries(entries, now_s).map_err(|error| PollError::Refused(error.to_string()))
}

fn report(live: &Live, key: &str, taken: &Taken) {
    let name = &live.name;
    if taken.loaded == Loaded::Changed {
        tracing::info!("authenticator `{name}`: {key} in Redis loaded");
    }
    if let Some(problem) = &taken.problem {
        let malformed = taken.malformed;
        tracing::error!(
            "authenticator `{name}`: {malformed} entries of {key} in Redis do not count; of one: {problem}"
        );
    }
}

fn what_stays(live: &Live) -> &'static str {
    let is_known = live.revoked().is_some() && (live.api_keys().is_some() || !live.keys().is_empty());
    if is_known { "what was read last stays" } else { "nobody passes until it can" }
}
