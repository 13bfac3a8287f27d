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

/// By service. It outlives reloads as long as endpoints are found in the same place.
#[derive(Debug, Default)]
pub(crate) struct Discovered {
    services: HashMap<Arc<str>, Known>,
}

#[derive(Debug)]
struct Known {
    of: Discovery,
    /// `None`: nobody has looked yet.
    endpoints: Option<Arc<[Endpoint]>>,
    stats: Arc<DiscoveryStats>,
}

impl Discovered {
    /// Goes on with the services of this snapshot.
    pub(crate) fn follow(&mut self, snapshot: &Snapshot) {
        let wanted: HashMap<_, _> = snapshot
            .services
            .iter()
            .filter_map(|service| Some((service.name.clone(), service.discovery.as_ref()?)))
            .collect();
        self.services.retain(|name, known| wanted.get(name).is_some_and(|of| **of == known.of));
        for (name, of) in wanted {
            self.services.entry(name).or_insert_with(|| Known {
                of: of.clone(),
                endpoints: None,
                stats: Arc::default(),
            });
        }
    }

    /// Takes in what was found. Whether that changes anything.
    pub(crate) fn learn(&mut self, service: &str, of: &Discovery, endpoints: Vec<Endpoint>) -> bool {
        match self.services.get_mut(service).filter(|known| known.of == *of) {
            Some(known) if known.endpoints.as_deref() != Some(&endpoints) => {
                known.endpoints = Some(endpoints.into());
                true
            }
            _ => false,
        }
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

    pub(crate) fn stats(&self, service: &str) -> Option<Arc<DiscoveryStats>> {
        self.services.get(service).map(|known| known.stats.clone())
    }

    /// Whether somebody has looked for the endpoints of every service.
    pub(crate) fn is_complete(&self) -> bool {
        self.services.values().all(|known| known.endpoints.is_some())
    }
}
