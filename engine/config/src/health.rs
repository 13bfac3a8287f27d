//! What is known of the endpoints of services, beside the snapshot that names them: how they are checked, when they are
//! ejected, and the state that outlives reloads.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use ringway_core::ejection::EjectionSettings;
use ringway_core::health::{EndpointHealth, Fleet};
use ringway_core::members::{Candidate, Chosen, Rules, choose};
use ringway_core::sticky::Sessions;

use crate::snapshot::{Asked, Endpoint, Service, Snapshot, Subset};

/// How a service's endpoints are watched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Watch {
    /// `None`: nobody asks them how they are.
    pub check: Option<Arc<HealthCheck>>,
    /// `None`: they are used however they answer.
    pub ejection: Option<EjectionSettings>,
    /// Percent of the endpoints that must be usable; where fewer are, all are used. 0: never.
    pub panic_threshold: u8,
}

/// Asks endpoints how they are, at intervals.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HealthCheck {
    pub kind: CheckKind,
    pub interval: Duration,
    /// Percent of the interval that a pause is shorter or longer at most, by chance.
    pub jitter: u8,
    /// From the connection to the end of the answer.
    pub timeout: Duration,
    /// Failed checks in a row that make an endpoint unwell.
    pub unhealthy: u32,
    /// Good ones in a row that make it well again.
    pub healthy: u32,
    /// How long a recovered endpoint takes to get its whole share again. `None`: no time.
    pub slow_start: Option<Duration>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CheckKind {
    /// It must take a connection, over TLS where the service has it.
    Tcp,
    Http(HttpCheck),
    /// `grpc.health.v1.Health/Check` of this service; empty: of the server as a whole.
    Grpc(Arc<str>),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpCheck {
    pub path: Arc<str>,
    /// `None`: the endpoint's address.
    pub host: Option<Arc<str>>,
    /// Those that are good.
    pub statuses: Box<[u16]>,
    /// What the body must have in it.
    pub body: Option<Arc<str>>,
}

/// What a service's endpoints share, and what each has for itself, by endpoint. Outlives reloads, by name.
#[derive(Debug)]
pub struct Health {
    pub fleet: Arc<Fleet>,
    /// Where the service's requests go.
    pub targets: Arc<[Endpoint]>,
    /// By target.
    pub endpoints: Vec<Arc<EndpointHealth>>,
    /// Of a service whose sessions stay.
    pub sessions: Option<Sessions>,
}

impl Health {
    /// By service of the snapshot, with its endpoints in `targets`, going on from what was published before.
    pub(crate) fn join(snapshot: &Snapshot, targets: &[Arc<[Endpoint]>], old: &[Self]) -> Vec<Self> {
        let mut old: HashMap<&str, &Self> = old.iter().map(|known| (&*known.fleet.service, known)).collect();
        let services = snapshot.services.iter().zip(targets);
        services.map(|(service, targets)| Self::go_on(service, targets, old.remove(&*service.name))).collect()
    }

    fn go_on(service: &Service, targets: &Arc<[Endpoint]>, old: Option<&Self>) -> Self {
        let fleet = old.map_or_else(|| Fleet::new(Arc::clone(&service.name)), |old| Arc::clone(&old.fleet));
        let known = old.into_iter().flat_map(|old| &old.endpoints);
        let mut known: HashMap<&str, _> = known.map(|health| (&*health.endpoint, health)).collect();
        let endpoints = targets.iter().map(|endpoint| match known.remove(&*endpoint.label) {
            Some(health) => Arc::clone(health),
            None => Arc::new(EndpointHealth::new(&fleet, Arc::clone(&endpoint.label))),
        });
        let endpoints: Vec<_> = endpoints.collect();
        known.into_values().for_each(|gone| gone.remove());
        if service.watch.check.is_none() {
            for health in &endpoints {
                health.set_healthy(true);
                health.set_ramp(100);
            }
        }
        fleet.set_cap(service.watch.ejection.map_or(0, |settings| settings.cap(endpoints.len())));
        for health in &endpoints {
            if fleet.surplus() > 0 {
                health.reinstate();
            }
        }
        let sessions = service.sticky.as_ref().map(|sticky| {
            let names = targets.iter().map(|endpoint| &*endpoint.label);
            Sessions::new(sticky.secret.bytes(), &service.name, names)
        });
        Self { fleet, targets: Arc::clone(targets), endpoints, sessions }
    }

    /// The service's endpoints as they are now, and among whom it is to be balanced.
    pub fn choose(&self, service: &Service) -> (Vec<Candidate>, Chosen) {
        let candidates = self.candidates(service);
        let chosen = choose(&candidates, rules(service));
        (candidates, chosen)
    }

    /// The same for the requests that go to some of them. `None`: none of those can be used, and all are to be.
    pub fn choose_of(&self, service: &Service, subset: &Subset, asked: Asked<'_>) -> Option<(Vec<Candidate>, Chosen)> {
        let mut candidates = self.candidates(service);
        for (candidate, endpoint) in candidates.iter_mut().zip(self.targets.iter()) {
            if !subset.has(endpoint, asked) {
                (candidate.weight, candidate.full_weight) = (0, 0);
            }
        }
        let is_usable = candidates.iter().any(|candidate| candidate.weight > 0 && candidate.is_usable);
        let chosen = choose(&candidates, rules(service));
        (is_usable || !subset.falls_back).then_some((candidates, chosen))
    }

    /// The last priority of those that get requests, where endpoints have several.
    pub fn priority_in_use(&self, chosen: &Chosen) -> Option<u8> {
        let first = self.targets.first()?.priority;
        let are_several = self.targets.iter().any(|endpoint| endpoint.priority != first);
        let members = chosen.members.iter().chain(&chosen.others).filter_map(|at| self.targets.get(*at));
        members.map(|endpoint| endpoint.priority).max().filter(|_| are_several)
    }

    fn candidates(&self, service: &Service) -> Vec<Candidate> {
        let own_zone = service.zones.as_ref().map(|zones| &zones.own);
        let of = |(endpoint, health): (&Endpoint, &Arc<EndpointHealth>)| Candidate {
            weight: health.weight(endpoint.weight),
            full_weight: health.full_weight(endpoint.weight),
            is_usable: health.is_usable(),
            priority: endpoint.priority,
            is_local: own_zone.is_some() && endpoint.zone.as_ref() == own_zone,
        };
        self.targets.iter().zip(&self.endpoints).map(of).collect()
    }
}

fn rules(service: &Service) -> Rules {
    let capacity = service.zones.as_ref().map(|zones| zones.capacity);
    Rules { panic_threshold: service.watch.panic_threshold, capacity }
}
