//! The services of a route.

use std::collections::HashMap;
use std::sync::Arc;

use ringway_core::split::Shares;
use ringway_core::stats::SplitStats;

use super::{Action, HashOn, Snapshot};
use crate::hub::Published;

/// Where a route's requests go. Services are indices into [`Snapshot::services`].
#[derive(Debug)]
pub enum Target {
    Service(usize),
    Split(Box<Split>),
}

/// Several services that share a route's requests.
#[derive(Debug)]
pub struct Split {
    pub services: Box<[usize]>,
    /// By place in `services`.
    pub shares: Shares,
    /// Which requests go to the same service. The gateway gives clients that have no such cookie one.
    pub sticky: Option<HashOn>,
    /// The header whose value may name one of the services, in lower case.
    pub override_header: Option<Arc<str>>,
}

impl Target {
    /// All services that a request may go to.
    pub fn services(&self) -> &[usize] {
        match self {
            Self::Service(service) => std::slice::from_ref(service),
            Self::Split(split) => &split.services,
        }
    }

    pub fn split(&self) -> Option<&Split> {
        match self {
            Self::Service(_) => None,
            Self::Split(split) => Some(split),
        }
    }
}

/// By route, then by the services of its split; those of `old` where both names are the same.
pub(crate) fn split_stats(snapshot: &Snapshot, workers: usize, old: Option<&Published>) -> Vec<Vec<Arc<SplitStats>>> {
    let known = old.into_iter().flat_map(|old| old.splits.iter().flatten());
    let known: HashMap<_, _> = known.map(|stats| ((&*stats.route, &*stats.service), stats)).collect();
    let of_route = |route: &Arc<super::Route>| {
        let Action::Forward(forward) = &route.action else { return Vec::new() };
        let services = forward.service.split().map_or(&[][..], |split| &split.services);
        let services = services.iter().filter_map(|service| snapshot.services.get(*service));
        let of_service = |service: &Arc<super::Service>| match known.get(&(&*route.name, &*service.name)) {
            Some(stats) => Arc::clone(stats),
            None => Arc::new(SplitStats::new(route.name.clone(), service.name.clone(), workers)),
        };
        services.map(of_service).collect()
    };
    snapshot.routes.iter().map(of_route).collect()
}
