//! Finds the endpoints of services while the gateway runs: by DNS, in files, in the registry and in etcd. What was found last
//! stays while looking fails.

mod dns;
mod etcd;
mod file;
mod registry;

use std::collections::{HashMap, HashSet};
use std::fmt::Display;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use ringway_config::snapshot::{Discovery, DiscoverySource, Endpoint};
use ringway_config::{DiscoveryStats, Hub, Snapshot, SoFar};
use tokio::runtime::Handle;
use tokio::task::AbortHandle;

use crate::redis::Registry;

/// Endpoints of a service; what there is beyond that is left out.
const ENDPOINTS_MAX: usize = 1024;

/// Wakes the workers.
pub(crate) type Wake = Arc<dyn Fn() + Send + Sync>;

/// One task for each service whose endpoints are found.
#[derive(Debug, Default)]
pub(crate) struct Finders {
    running: HashMap<Arc<str>, Finder>,
    /// For a snapshot that is about to be published, as far as it looks in other places.
    ahead: HashMap<Arc<str>, Finder>,
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

/// What finders are made with.
pub(crate) struct Tools<'a> {
    pub(crate) runtime: &'a Handle,
    pub(crate) hub: &'a Arc<Hub>,
    pub(crate) registry: &'a Registry,
    pub(crate) wake: Wake,
}

impl Finders {
    /// Begins with what this snapshot, which is about to be published, finds elsewhere.
    pub(crate) fn look_ahead(&mut self, snapshot: &Snapshot, tools: &Tools<'_>) {
        tools.hub.look_ahead(snapshot);
        let mut old = std::mem::take(&mut self.ahead);
        for (name, of) in wanted(snapshot) {
            if self.running.get(name).is_some_and(|finder| finder.of == *of) {
                continue;
            }
            let known = old.remove(name).filter(|finder| finder.of == *of);
            // One that looks in the same place in another way begins when that is in force.
            if let Some(finder) = known.or_else(|| Finder::start(name, of, tools)) {
                self.ahead.insert(name.clone(), finder);
            }
        }
    }

    /// Goes on with what was published: what is unchanged is not begun anew.
    pub(crate) fn follow(&mut self, tools: &Tools<'_>) {
        let mut old = [std::mem::take(&mut self.running), std::mem::take(&mut self.ahead)];
        for (name, of) in wanted(&tools.hub.published().snapshot) {
            let known = old.iter_mut().find_map(|old| old.remove(name).filter(|finder| finder.of == *of));
            if let Some(finder) = known.or_else(|| Finder::start(name, of, tools)) {
                self.running.insert(name.clone(), finder);
            }
        }
    }
}

fn wanted(snapshot: &Snapshot) -> impl Iterator<Item = (&Arc<str>, &Discovery)> {
    snapshot.services.iter().filter_map(|service| Some((&service.name, service.discovery.as_ref()?)))
}

impl Finder {
    /// `None`: nobody wants to know.
    fn start(service: &Arc<str>, of: &Discovery, tools: &Tools<'_>) -> Option<Self> {
        let SoFar { endpoints, stats } = tools.hub.discovered_of(service, of)?;
        let found = Found {
            known: Known::new(of.grace, endpoints.map(|endpoints| endpoints.to_vec())),
            service: service.clone(),
            of: of.clone(),
            stats,
            hub: tools.hub.clone(),
            wake: tools.wake.clone(),
            complaint: String::new(),
        };
        let task = tools.runtime.spawn(find(found, tools.registry.clone())).abort_handle();
        Some(Self { of: of.clone(), task })
    }
}

async fn find(found: Found, registry: Registry) {
    match found.of.source.clone() {
        DiscoverySource::Dns { name, records, port, servers } => {
            dns::find(found, &name, records, port, &servers).await;
        }
        DiscoverySource::File(path) => file::find(found, &path).await,
        DiscoverySource::Registry { place, .. } => registry::find(found, &registry, &place).await,
        DiscoverySource::Etcd(of) => etcd::find(found, &of).await,
    }
}

/// The first of those with the same address.
fn distinct<'e>(endpoints: impl Iterator<Item = &'e Endpoint>) -> Vec<Endpoint> {
    let mut known = HashSet::new();
    endpoints.filter(|endpoint| known.insert(&endpoint.address)).take(ENDPOINTS_MAX).cloned().collect()
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
        self.learn_but(endpoints, None);
    }

    /// These are all that can be read; with one of the others there is this problem.
    fn learn_but(&mut self, endpoints: Vec<Endpoint>, problem: Option<String>) {
        let is_empty = endpoints.is_empty();
        if is_empty { &self.stats.empty } else { &self.stats.found }.fetch_add(1, Ordering::Relaxed);
        if let Some(endpoints) = self.known.learn(endpoints, Instant::now()) {
            let (count, service) = (endpoints.len(), &self.service);
            if self.hub.discover(service, &self.of, endpoints) {
                self.stats.changes.fetch_add(1, Ordering::Relaxed);
                tracing::info!("service `{service}`: {count} endpoint{}", if count == 1 { "" } else { "s" });
                (self.wake)();
            }
        }
        let kept = || {
            let are_kept = is_empty && self.known.endpoints.as_ref().is_some_and(|known| !known.is_empty());
            are_kept.then(|| "there are none any more; those that were known are kept for `grace`".into())
        };
        self.settle(problem.or_else(kept));
    }

    /// They are what they were.
    fn unchanged(&mut self, problem: Option<String>) {
        self.stats.found.fetch_add(1, Ordering::Relaxed);
        self.settle(problem);
    }

    fn settle(&mut self, problem: Option<String>) {
        match problem {
            Some(problem) => self.complain(&problem),
            None if self.complaint.is_empty() => {}
            None => {
                tracing::info!("service `{}`: its endpoints are found again", self.service);
                self.complaint.clear();
            }
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
    /// `endpoints`: what is known already.
    fn new(grace: Duration, endpoints: Option<Vec<Endpoint>>) -> Self {
        Self { endpoints, empty_since: None, grace }
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
        let mut known = Known::new(Duration::from_secs(60), None);
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
        let mut known = Known::new(Duration::from_secs(60), None);
        assert_eq!(known.learn(vec![], Instant::now()), Some(vec![]));
    }
}
