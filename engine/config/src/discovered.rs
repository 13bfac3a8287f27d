//! What was found of the services whose endpoints are found while the gateway runs.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use crate::snapshot::{Discovery, Endpoint, Service, Snapshot};

/// How looking went.
#[derive(Debug, Default)]
pub struct DiscoveryStats {
    pub found: AtomicU64,
    /// Answers without endpoints.
    pub empty: AtomicU64,
    pub failed: AtomicU64,
    /// The endpoints became others.
    pub changes: AtomicU64,
}

/// What was found in a place before, and how looking there goes.
#[derive(Debug)]
pub struct SoFar {
    /// `None`: nobody has looked yet.
    pub endpoints: Option<Arc<[Endpoint]>>,
    pub stats: Arc<DiscoveryStats>,
}

/// By service. It outlives reloads as long as endpoints are found in the same place.
#[derive(Debug, Default)]
pub(crate) struct Discovered {
    services: HashMap<Arc<str>, Known>,
    /// The same of a snapshot that is about to be published, as far as it looks in other places.
    coming: HashMap<Arc<str>, Known>,
}

#[derive(Debug)]
struct Known {
    of: Discovery,
    /// `None`: nobody has looked yet.
    endpoints: Option<Arc<[Endpoint]>>,
    stats: Arc<DiscoveryStats>,
    /// Somebody waits for the first answer.
    is_awaited: bool,
}

/// What has become of an answer.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Learnt {
    Nothing,
    /// News of what is about to be published.
    Ahead,
    /// News.
    Now,
}

impl Known {
    fn new(of: &Discovery) -> Self {
        Self { of: of.clone(), endpoints: None, stats: Arc::default(), is_awaited: true }
    }

    fn learn(&mut self, endpoints: Vec<Endpoint>) -> bool {
        let is_news = self.endpoints.as_deref() != Some(&endpoints);
        if is_news {
            self.endpoints = Some(endpoints.into());
        }
        is_news
    }
}

impl Discovered {
    /// Makes room for what this snapshot, which is about to be published, finds elsewhere.
    pub(crate) fn look_ahead(&mut self, snapshot: &Snapshot) {
        let mut old = std::mem::take(&mut self.coming);
        for (name, of) in wanted(snapshot) {
            if !self.services.get(name).is_some_and(|known| known.of.is_place_of(of)) {
                let known = old.remove(name).filter(|known| known.of == *of);
                self.coming.insert(name.clone(), known.unwrap_or_else(|| Known::new(of)));
            }
        }
    }

    /// Goes on with the services of this snapshot.
    pub(crate) fn follow(&mut self, snapshot: &Snapshot) {
        let mut old = [std::mem::take(&mut self.services), std::mem::take(&mut self.coming)];
        for (name, of) in wanted(snapshot) {
            let known = old.iter_mut().find_map(|old| old.remove(name).filter(|known| known.of.is_place_of(of)));
            let known = known.map(|known| Known { of: of.clone(), ..known });
            self.services.insert(name.clone(), known.unwrap_or_else(|| Known::new(of)));
        }
    }

    /// Takes in what was found.
    pub(crate) fn learn(&mut self, service: &str, of: &Discovery, endpoints: Vec<Endpoint>) -> Learnt {
        for (services, learnt) in [(&mut self.services, Learnt::Now), (&mut self.coming, Learnt::Ahead)] {
            if let Some(known) = services.get_mut(service).filter(|known| known.of == *of) {
                return if known.learn(endpoints) { learnt } else { Learnt::Nothing };
            }
        }
        Learnt::Nothing
    }

    /// Where requests to a service go.
    pub(crate) fn targets(&self, service: &Service) -> Arc<[Endpoint]> {
        match &service.discovery {
            None => service.endpoints.as_slice().into(),
            Some(_) => {
                let known = self.services.get(&service.name).and_then(|known| known.endpoints.clone());
                known.unwrap_or_else(|| Arc::from([]))
            }
        }
    }

    /// What was found in this place, and how looking there goes.
    pub(crate) fn of(&self, service: &str, of: &Discovery) -> Option<SoFar> {
        let mut all = [&self.services, &self.coming].into_iter().filter_map(|services| services.get(service));
        let known = all.find(|known| known.of == *of)?;
        Some(SoFar { endpoints: known.endpoints.clone(), stats: known.stats.clone() })
    }

    pub(crate) fn stats(&self, service: &str) -> Option<Arc<DiscoveryStats>> {
        self.services.get(service).map(|known| known.stats.clone())
    }

    /// Services whose first answer is waited for.
    pub(crate) fn awaited(&self) -> impl Iterator<Item = &Arc<str>> {
        let all = self.services.iter().chain(&self.coming);
        all.filter(|(_, known)| known.is_awaited && known.endpoints.is_none()).map(|(name, _)| name)
    }

    /// Nobody waits any more.
    pub(crate) fn give_up(&mut self) {
        self.services.values_mut().chain(self.coming.values_mut()).for_each(|known| known.is_awaited = false);
    }
}

fn wanted(snapshot: &Snapshot) -> impl Iterator<Item = (&Arc<str>, &Discovery)> {
    snapshot.services.iter().filter_map(|service| Some((&service.name, service.discovery.as_ref()?)))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::{Source, compile};

    fn snapshot(discovery: &str) -> Snapshot {
        let text = format!(
            "listeners: [{{ name: web, address: 127.0.0.1:1 }}]\n\
             services: [{{ name: app, discovery: {{ {discovery} }} }}]\nroutes: [{{ service: app }}]\n"
        );
        compile(&[Source { name: "gateway.yaml".into(), text }], &|_| None).unwrap()
    }

    fn of(snapshot: &Snapshot) -> &Discovery {
        snapshot.services[0].discovery.as_ref().unwrap()
    }

    fn endpoints(snapshot: &Snapshot, discovered: &Discovered) -> usize {
        discovered.targets(&snapshot.services[0]).len()
    }

    #[test]
    fn what_is_found_ahead_counts_when_it_is_published_and_not_before() {
        let (old, new) = (snapshot("file: a.yaml"), snapshot("file: b.yaml"));
        let found = |list: &str| crate::read_endpoints("list", list, None).unwrap();
        let mut discovered = Discovered::default();
        discovered.follow(&old);
        assert_eq!(discovered.awaited().count(), 1);
        assert_eq!(discovered.learn("app", of(&old), found("127.0.0.1:1")), Learnt::Now);
        assert_eq!((discovered.awaited().count(), endpoints(&old, &discovered)), (0, 1));

        discovered.look_ahead(&new);
        assert_eq!(discovered.awaited().count(), 1);
        let two = || found("[127.0.0.1:2, 127.0.0.1:3]");
        assert_eq!(discovered.learn("app", of(&new), two()), Learnt::Ahead);
        assert_eq!(discovered.learn("app", of(&new), two()), Learnt::Nothing);
        assert_eq!((discovered.awaited().count(), endpoints(&old, &discovered)), (0, 1));
        discovered.follow(&new);
        assert_eq!(endpoints(&new, &discovered), 2);
        assert_eq!(discovered.learn("app", of(&old), found("127.0.0.1:1")), Learnt::Nothing, "too late");
    }

    #[test]
    fn who_was_given_up_is_not_awaited_again() {
        let (old, new) = (snapshot("file: a.yaml"), snapshot("file: b.yaml"));
        let mut discovered = Discovered::default();
        discovered.follow(&old);
        discovered.give_up();
        discovered.look_ahead(&new);
        discovered.give_up();
        discovered.follow(&new);
        discovered.look_ahead(&new);
        assert_eq!((discovered.awaited().count(), endpoints(&new, &discovered)), (0, 0));
    }

    #[test]
    fn the_same_place_is_not_looked_for_ahead() {
        let (old, new) = (snapshot("file: a.yaml"), snapshot("file: a.yaml, grace: 1s"));
        let mut discovered = Discovered::default();
        discovered.follow(&old);
        discovered.learn("app", of(&old), crate::read_endpoints("list", "127.0.0.1:1", None).unwrap());
        discovered.look_ahead(&new);
        assert_eq!(discovered.awaited().count(), 0);
        assert!(discovered.of("app", of(&new)).is_none());
        discovered.follow(&new);
        assert_eq!(endpoints(&new, &discovered), 1);
    }
}
