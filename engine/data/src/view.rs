//! A published snapshot as one core sees it: with the core's own balancers and connection pools.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use ringway_config::hub::Published;
use ringway_config::snapshot::{Balance, Service};
use ringway_core::balance::{Balancer, Kind};
use ringway_core::stats::{RouteStats, ServiceCell};

use crate::upstream::EndpointPool;
use crate::worker::Worker;

pub(crate) struct View {
    pub(crate) published: Arc<Published>,
    pub(crate) services: Vec<ServiceView>,
}

pub(crate) struct ServiceView {
    pub(crate) service: Arc<Service>,
    balancer: RefCell<Balancer>,
    pub(crate) pools: Vec<Rc<EndpointPool>>,
}

impl View {
    /// Joins a snapshot with this core's pools; those of `old` whose endpoint is unchanged go on with their
    /// connections, the others are closed.
    pub(crate) fn build(published: Arc<Published>, worker: usize, old: Option<&View>) -> Self {
        let services = published
            .snapshot
            .services
            .iter()
            .enumerate()
            .map(|(index, service)| {
                let stats = published.endpoints.get(index).map(Vec::as_slice).unwrap_or_default();
                let pools = service.endpoints.iter().zip(stats).map(|(endpoint, stats)| {
                    let kept = old
                        .into_iter()
                        .flat_map(|old| old.services.iter().flat_map(|service| &service.pools))
                        .find(|pool| pool.serves(endpoint, &service.pool, stats));
                    kept.cloned()
                        .unwrap_or_else(|| EndpointPool::new(endpoint.clone(), service.pool, Arc::clone(stats), worker))
                });
                let kind = match service.balance {
                    Balance::RoundRobin => Kind::RoundRobin,
                    Balance::LeastLoaded => Kind::LeastLoaded,
                };
                let weights: Vec<u32> = service.endpoints.iter().map(|endpoint| endpoint.weight).collect();
                ServiceView {
                    service: Arc::clone(service),
                    balancer: RefCell::new(Balancer::new(kind, &weights)),
                    pools: pools.collect(),
                }
            })
            .collect();
        let view = Self { published, services };
        for pool in old.into_iter().flat_map(View::pools) {
            if !view.pools().any(|kept| Rc::ptr_eq(kept, pool)) {
                pool.close();
            }
        }
        view
    }

    pub(crate) fn pools(&self) -> impl Iterator<Item = &Rc<EndpointPool>> {
        self.services.iter().flat_map(|service| &service.pools)
    }

    /// A route's counters; those of requests without a route for `None`.
    pub(crate) fn route_stats(&self, route: Option<u32>) -> &RouteStats {
        route.and_then(|route| self.published.routes.get(route as usize)).unwrap_or(&self.published.unmatched)
    }

    pub(crate) fn service_cell(&self, service: usize, worker: usize) -> Option<&ServiceCell> {
        self.published.services.get(service)?.workers.get(worker).map(|cell| &**cell)
    }
}

impl ServiceView {
    /// The endpoint for the next request.
    #[inline]
    pub(crate) fn pick(&self, worker: &Worker) -> Option<usize> {
        if self.pools.len() == 1 {
            return Some(0);
        }
        let in_flight = |index: usize| self.pools.get(index).map_or(0, |pool| pool.stats.in_flight());
        self.balancer.borrow_mut().pick(worker.random(), None, in_flight)
    }

    /// The endpoint's address as a `Host`.
    pub(crate) fn endpoint_host(&self, endpoint: usize) -> &[u8] {
        match self.service.endpoints.get(endpoint).map(|endpoint| &*endpoint.label) {
            Some(label) if !label.starts_with("unix:") => label.as_bytes(),
            _ => b"localhost",
        }
    }
}
