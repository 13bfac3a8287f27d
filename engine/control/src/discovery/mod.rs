//! Finds the endpoints of services while the gateway runs: by DNS, or in files. What was found last stays while looking fails.

mod dns;
mod file;

use std::collections::HashMap;
use std::fmt::Display;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use ringway_config::snapshot::{Discovery, DiscoverySource, Endpoint};
use ringway_config::{DiscoveryStats, Hub};
use tokio::runtime::Handle;
use tokio::task::AbortHandle;

/// Wakes the workers.
pub(crate) type Wake = Arc<dyn Fn() + Send + Sync>;

/// One task for each service whose endpoints are found.
#[derive(Debug, Default)]
pub(crate) struct Finders {
    running: HashMap<Arc<str>, Finder>,
}

#[derive(Debug)]
struct Finder {
    of: Discovery,
    task: AbortHandle,
}

impl Drop for Finder {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Finders {
    /// Goes on with what was published: what is unchanged is not begun anew.
    pub(crate) fn follow(&mut self, runtime: &Handle, hub: &Arc<Hub>, wake: &Wake) {
        let published = hub.published();
        let wanted: HashMap<_, _> = published
            .snapshot
            .services
            .iter()
            .filter_map(|service| Some((service.name.clone(), service.discovery.as_ref()?)))
            .collect();
        self.running.retain(|name, finder| wanted.get(name).is_some_and(|of| **of == finder.of));
        for (name, of) in wanted {
            let Some(stats) = hub.discovery_stats(&name) else { continue };
            self.running.entry(name.clone()).or_insert_with(|| {
                let found = Found {
                    known: Known::new(of.grace),
                    service: name,
                    of: of.clone(),
                    stats,
                    hub: hub.clone(),
                    wake: wake.clone(),
                    complaint: String::new(),
                };
                Finder { of: of.clone(), task: runtime.spawn(find(found)).abort_handle() }
            });
        }
    }
}

async fn find(found: Found) {
    match found.of.source.clone() {
        DiscoverySource::Dns { name, records, port, servers } => {
            dns::find(found, &name, records, port, &servers).await;
        }
        DiscoverySource::File(path) => file::find(found, &path).await,
    }
}

/// Where a finder tells what it found.
struct Found {
    service: Arc<str>,
    of: Discovery,
    known: Known,
    stats: Arc<DiscoveryStats>,
    hub: Arc<Hub>,
    wake: Wake,
    /// Why looking failed last, as it was told.
    complaint: String,
}

impl Found {
    /// These are all that there are now.
    fn learn(&mut self, endpoints: Vec<Endpoint>) {
        let is_empty = endpoints.is_empty();
        if is_empty { &self.stats.empty } else { &self.stats.found }.fetch_add(1, Ordering::Relaxed);
        if !self.complaint.is_empty() {
            tracing::info!("service `{}`: its endpoints are found again", self.service);
            self.complaint.clear();
        }
        match self.known.learn(endpoints, Instant::now()) {
            Some(endpoints) => {
                let (count, service) = (endpoints.len(), &self.service);
                if self.hub.discover(service, &self.of, endpoints) {
                    self.stats.changes.fetch_add(1, Ordering::Relaxed);
                    tracing::info!("service `{service}`: {count} endpoint{}", if count == 1 { "" } else { "s" });
                    (self.wake)();
                }
            }
            None if is_empty => self.complain(&"there are none any more; those that were known are kept for `grace`"),
            None => {}
        }
    }

    /// Looking has failed: what is known stays. The log is told once of each reason.
    fn fail(&mut self, reason: &dyn Display) {
        self.stats.failed.fetch_add(1, Ordering::Relaxed);
        self.complain(reason);
    }

    fn complain(&mut self, reason: &dyn Display) {
        let reason = reason.to_string();
        if reason != self.complaint {
            tracing::warn!("service `{}`: looking for endpoints: {reason}", self.service);
            self.complaint = reason;
        }
    }
}

/// What is known of a service, and what of an answer is believed.
#[derive(Debug)]
struct Known {
    endpoints: Option<Vec<Endpoint>>,
    /// Since when answers are empty.
    empty_since: Option<Instant>,
    grace: Duration,
}

impl Known {
    fn new(grace: Duration) -> Self {
        Self { endpoints: None, empty_since: None, grace }
    }

    /// What the endpoints are now, where that is news. An empty answer does not take away what is known before there was no
    /// other for the time of grace. The order of an answer says nothing.
    fn learn(&mut self, mut endpoints: Vec<Endpoint>, now: Instant) -> Option<Vec<Endpoint>> {
        endpoints.sort_by(|one, other| one.label.cmp(&other.label));
        if endpoints.is_empty() && self.endpoints.as_ref().is_some_and(|known| !known.is_empty()) {
            let since = *self.empty_since.get_or_insert(now);
            if now.duration_since(since) < self.grace {
                return None;
            }
        }
        if !endpoints.is_empty() {
            self.empty_since = None;
        }
        if self.endpoints.as_ref() == Some(&endpoints) {
            return None;
        }
        self.endpoints = Some(endpoints.clone());
        Some(endpoints)
    }
}

#[cfg(test)]
mod tests {
    use ringway_config::snapshot::EndpointAddress;

    use super::*;

    fn endpoints(ports: &[u16]) -> Vec<Endpoint> {
        let endpoint = |port: &u16| Endpoint {
            label: format!("127.0.0.1:{port}").into(),
            address: EndpointAddress::Tcp(([127, 0, 0, 1], *port).into()),
            weight: 1,
            priority: 0,
            zone: None,
            metadata: Arc::default(),
            tls: None,
        };
        ports.iter().map(endpoint).collect()
    }

    #[test]
    fn an_empty_answer_is_believed_after_the_time_of_grace() {
        let begun = Instant::now();
        let at = |secs| begun + Duration::from_secs(secs);
        let mut known = Known::new(Duration::from_secs(60));
        assert_eq!(known.learn(endpoints(&[2, 1]), at(0)), Some(endpoints(&[1, 2])));
        assert_eq!(known.learn(endpoints(&[1, 2]), at(1)), None, "another order");
        assert_eq!(known.learn(vec![], at(2)), None);
        assert_eq!(known.learn(vec![], at(61)), None);
        assert_eq!(known.learn(endpoints(&[1, 2]), at(61)), None);
        assert_eq!(known.learn(vec![], at(62)), None, "from the beginning");
        assert_eq!(known.learn(vec![], at(122)), Some(vec![]));
        assert_eq!(known.learn(vec![], at(123)), None);
        assert_eq!(known.learn(endpoints(&[1]), at(124)), Some(endpoints(&[1])));
    }

    #[test]
    fn an_empty_answer_is_believed_where_nothing_is_known() {
        let mut known = Known::new(Duration::from_secs(60));
        assert_eq!(known.learn(vec![], Instant::now()), Some(vec![]));
    }
}
