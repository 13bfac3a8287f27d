//! Endpoints that register themselves.

use std::time::{Duration, Instant};

use ringway_config::Instance;
use ringway_config::snapshot::{Endpoint, EndpointTls, RegistryPlace};
use ringway_core::registry::{Listed, Roll};
use tokio::time::sleep;

use super::{Found, distinct};
use crate::redis::{Entry, Registry};

/// Between two looks, which cost little as long as nothing has changed.
const LOOK_EVERY: Duration = Duration::from_millis(250);

pub(super) async fn find(mut found: Found, registry: &Registry, place: &RegistryPlace) {
    let (mut roll, mut seen, mut problem) = (Roll::default(), None::<String>, None);
    let begun = Instant::now();
    loop {
        let listing = registry.list(place, seen.as_deref()).await;
        let now_us = begun.elapsed().as_micros() as u64;
        match listing {
            Ok(listing) => {
                let is_first = seen.is_none();
                let store = listing.store().to_owned();
                let is_changed = match listing.entries {
                    None => roll.unchanged(now_us),
                    Some(entries) => {
                        let (listed, bad) = read(entries, found.of.tls.as_ref());
                        (seen, problem) = (Some(listing.seen), bad);
                        roll.learn(&store, listed, now_us)
                    }
                };
                // That there is nobody is believed in time.
                match is_changed || is_first || roll.is_empty() {
                    true => found.learn_but(distinct(roll.instances()), problem.clone()),
                    false => found.unchanged(problem.clone()),
                }
            }
            Err(error) => {
                roll.lost();
                found.fail(&error);
            }
        }
        sleep(LOOK_EVERY).await;
    }
}

/// Those that can be read, and what is wrong with one that cannot: gateways write none.
fn read(entries: Vec<Entry>, tls: Option<&EndpointTls>) -> (Vec<Listed<Endpoint>>, Option<String>) {
    let mut problem = None;
    let mut listed = Vec::with_capacity(entries.len());
    for Entry { name, ttl, body, .. } in entries {
        let instance = match body.is_empty() {
            true => None,
            false => match Instance::read(body.as_bytes(), false, tls) {
                Ok(instance) => Some(instance.endpoint),
                Err(errors) => {
                    problem = Some(format!("`{name}`: {errors}"));
                    continue;
                }
            },
        };
        listed.push(Listed { name: name.into(), ttl_us: ttl.as_micros() as u64, instance });
    }
    (listed, problem)
}
