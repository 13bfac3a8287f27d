//! A published snapshot as one core sees it: with the core's own balancers and connection pools.

use std::cell::{Cell, RefCell};
use std::collections::hash_map::RandomState;
use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher, Hasher};
use std::rc::Rc;
use std::sync::Arc;

use ringway_config::health::Health;
use ringway_config::hub::Published;
use ringway_config::snapshot::{Authenticator, Balance, Service};
use ringway_core::auth::{Kind as AuthKind, TokenCache};
use ringway_core::auth_service::AuthService;
use ringway_core::balance::{Balancer, Kind};
use ringway_core::health::Fleet;
use ringway_core::http::RequestHead;
use ringway_core::maglev::Maglev;
use ringway_core::members::{Candidate, Chosen, Members};
use ringway_core::stats::{EndpointStats, RouteStats, ServiceCell};
use ringway_core::sticky::{Session, Sessions};

use crate::affinity::Wish;
use crate::auth_service::AuthState;
use crate::bulkhead::Line;
use crate::subset::{Part, Subsets};
use crate::upstream::EndpointPool;
use crate::worker::Worker;

pub(crate) struct View {
    pub(crate) published: Arc<Published>,
    pub(crate) services: Vec<ServiceView>,
    /// What the core knows of auth services, by authenticator.
    pub(crate) auth_states: Vec<Option<Rc<AuthState>>>,
    /// Verified tokens. They do not outlive the rules that they were verified by: each snapshot begins without any.
    pub(crate) tokens: Rc<RefCell<TokenCache>>,
}

pub(crate) struct ServiceView {
    pub(crate) service: Arc<Service>,
    /// Its place in the snapshot.
    index: usize,
    published: Arc<Published>,
    fleet: Arc<Fleet>,
    /// The fleet's epoch in which the members were chosen.
    epoch: Cell<u64>,
    members: RefCell<Members>,
    /// The same for the subsets that requests have asked for since.
    subsets: Subsets,
    pub(crate) pools: Vec<Rc<EndpointPool>>,
    /// Requests of this core that wait for a place; the same one as long as the service's bulkhead is.
    pub(crate) line: Rc<Line>,
}

impl View {
    /// Joins a snapshot with this core's pools; those of `old` whose endpoint is unchanged go on with their
    /// connections, the others are closed.
    pub(crate) fn build(published: Arc<Published>, worker: usize, old: Option<&View>) -> Self {
        // One look for each of the endpoints, of which there may be many.
        let mut pools_before: HashMap<*const EndpointStats, &Rc<EndpointPool>> = HashMap::new();
        for pool in old.into_iter().flat_map(View::pools) {
            pools_before.entry(Arc::as_ptr(&pool.stats)).or_insert(pool);
        }
        let services = published
            .snapshot
            .services
            .iter()
            .enumerate()
            .filter_map(|(index, service)| {
                let stats = published.endpoints.get(index).map(Vec::as_slice).unwrap_or_default();
                let health = published.health.get(index)?;
                let known = stats.iter().zip(&health.endpoints);
                let pools = health.targets.iter().zip(known).map(|(endpoint, (stats, health))| {
                    let kept = pools_before.get(&Arc::as_ptr(stats)).copied();
                    let kept = kept.filter(|pool| pool.serves(endpoint, &service.pool, stats));
                    let known = (Arc::clone(stats), Arc::clone(health));
                    kept.cloned().unwrap_or_else(|| EndpointPool::new(endpoint.clone(), service.pool, known, worker))
                });
                let pools = pools.collect();
                let epoch = Cell::new(health.fleet.epoch());
                let (service, fleet) = (Arc::clone(service), Arc::clone(&health.fleet));
                let members = RefCell::new(members(health, &service, health.choose(&service), health.targets.len()));
                let line = line_of(&published, index, old);
                let published = Arc::clone(&published);
                let subsets = Subsets::default();
                Some(ServiceView { service, index, published, fleet, epoch, members, subsets, pools, line })
            })
            .collect();
        let auth_states = auth_states(&published, old);
        let same = old.filter(|old| Arc::ptr_eq(&old.published.snapshot, &published.snapshot));
        let tokens = match same {
            Some(old) => Rc::clone(&old.tokens),
            None => Rc::new(RefCell::new(tokens(&published))),
        };
        let view = Self { published, services, auth_states, tokens };
        let kept: HashSet<_> = view.pools().map(Rc::as_ptr).collect();
        for pool in old.into_iter().flat_map(View::pools) {
            if !kept.contains(&Rc::as_ptr(pool)) {
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

    /// The service that an authenticator asks, and what this core knows of it.
    pub(crate) fn auth_service(&self, authenticator: u32) -> Option<(&AuthService, &AuthState)> {
        let index = authenticator as usize;
        match &self.published.snapshot.authenticators.get(index)?.kind {
            AuthKind::Service(settings) => Some((settings, self.auth_states.get(index)?.as_deref()?)),
            _ => None,
        }
    }

    pub(crate) fn service_cell(&self, service: usize, worker: usize) -> Option<&ServiceCell> {
        self.published.services.get(service)?.workers.get(worker).map(|cell| &**cell)
    }
}

/// Where a service's requests wait: where they do already.
fn line_of(published: &Published, index: usize, old: Option<&View>) -> Rc<Line> {
    let bulkhead = |published: &Published, index: usize| Some(Arc::as_ptr(&published.resilience.get(index)?.bulkhead));
    let own = bulkhead(published, index);
    let mut known = old.into_iter().flat_map(|old| &old.services);
    let found = known.find(|known| bulkhead(&known.published, known.index) == own);
    found.map(|known| Rc::clone(&known.line)).unwrap_or_default()
}

/// An empty table of verified tokens, of the size that the configuration says. Its seed is secret.
fn tokens(published: &Published) -> TokenCache {
    let settings = published.snapshot.token_cache;
    let seed = [(); 4].map(|()| RandomState::new().build_hasher().finish());
    TokenCache::new(settings.entries, settings.bytes, settings.ttl.as_secs(), seed)
}

/// Those of `old` whose authenticator asks the same service in the same way go on.
fn auth_states(published: &Published, old: Option<&View>) -> Vec<Option<Rc<AuthState>>> {
    let asked = |published: &Published, kind: &AuthKind| match kind {
        AuthKind::Service(settings) => {
            let service = published.snapshot.services.get(settings.service);
            Some((Arc::clone(settings), service.map(|service| Arc::clone(&service.name))))
        }
        _ => None,
    };
    let state_of = |authenticator: &Arc<Authenticator>| {
        let (settings, service) = asked(published, &authenticator.kind)?;
        let known = old.and_then(|old| {
            let place =
                old.published.snapshot.authenticators.iter().position(|known| known.name == authenticator.name)?;
            let known = old.published.snapshot.authenticators.get(place)?;
            let is_same = asked(&old.published, &known.kind)? == (Arc::clone(&settings), service);
            is_same.then(|| old.auth_states.get(place).cloned().flatten()).flatten()
        });
        Some(known.unwrap_or_else(|| AuthState::new(&settings)))
    };
    published.snapshot.authenticators.iter().map(state_of).collect()
}

/// Among whom a core balances, of so many endpoints.
pub(crate) fn members(
    health: &Health,
    service: &Service,
    (candidates, chosen): (Vec<Candidate>, Chosen),
    endpoints_max: usize,
) -> Members {
    let weight = |index: &usize| candidates.get(*index).map_or(1, |candidate| candidate.weight);
    Members::new(chosen, |endpoints| {
        let weights: Vec<u32> = endpoints.iter().map(weight).collect();
        let of_kind = |kind| Balancer::new(kind, &weights);
        match &service.balance {
            Balance::RoundRobin => of_kind(Kind::RoundRobin),
            Balance::LeastLoaded => of_kind(Kind::LeastLoaded),
            Balance::PeakEwma => of_kind(Kind::PeakEwma),
            Balance::Random => of_kind(Kind::Random),
            Balance::ConsistentHash(_) => {
                let name = |index: &usize| health.targets.get(*index).map_or("", |endpoint| &*endpoint.label);
                let named = endpoints.iter().map(name).zip(weights);
                Balancer::ConsistentHash(Maglev::new(named, endpoints_max))
            }
        }
    })
}

impl ServiceView {
    /// The values of cookies, where sessions stay.
    #[inline]
    pub(crate) fn sessions(&self) -> Option<&Sessions> {
        self.published.health.get(self.index)?.sessions.as_ref()
    }

    /// The endpoint that a request's session is with, as long as that is usable; the weight of who is drained does not matter.
    #[inline]
    fn kept(&self, wish: &Wish) -> Option<usize> {
        let Session::With(endpoint) = wish.session else { return None };
        let pool = self.pools.get(endpoint as usize)?;
        let is_kept = |members: &mut Members| pool.health.is_usable() || members.is_panic;
        let is_of_subset = wish.subset.is_none_or(|part| self.subsets.has(part, endpoint as usize));
        (self.among(wish.subset, is_kept) && is_of_subset).then_some(endpoint as usize)
    }

    /// Asks the members that requests of a subset are for.
    #[inline]
    fn among<T>(&self, subset: Option<Part>, ask: impl FnOnce(&mut Members) -> T) -> T {
        match subset {
            Some(part) => self.subsets.among(part, &self.members, ask),
            None => ask(&mut self.members.borrow_mut()),
        }
    }

    /// The part of a subset that a request asks for.
    #[inline]
    pub(crate) fn part_of(&self, subset: u32, request: &RequestHead<'_, '_>) -> Part {
        self.subsets.part_of(subset, &self.published, self.index, request)
    }

    /// Whether a part has nobody, so that all endpoints are used. It is chosen with its first request, and then anew when
    /// something of an endpoint has changed.
    #[inline]
    fn falls_back(&self, part: Part) -> bool {
        let narrow = || {
            let subset = self.published.snapshot.subsets.get(part.subset as usize)?;
            Some((self.published.health.get(self.index)?, &*self.service, &**subset))
        };
        self.subsets.falls_back(part, narrow)
    }

    /// The endpoint for the next request, which goes by `key` where that is not 0 and the balance goes by keys.
    #[inline]
    fn pick(&self, worker: &Worker, wish: &Wish) -> Option<usize> {
        let load = |endpoint: usize| {
            let Some(pool) = self.pools.get(endpoint) else { return 0 };
            match self.service.balance {
                Balance::PeakEwma => pool.health.latency.cost(pool.stats.in_flight(), worker.clock.lately()),
                _ => pool.stats.in_flight(),
            }
        };
        let random = match (wish.key, &self.service.balance) {
            // The table looks at the high bits.
            (1.., Balance::ConsistentHash(_)) => u64::from(wish.key) << 32,
            _ => worker.random(),
        };
        self.among(wish.subset, |members| members.pick(random, load))
    }

    /// Whether others are used in its place.
    pub(crate) fn has_left_out(&self, endpoint: usize) -> bool {
        self.look();
        self.members.borrow().are_others_than(endpoint)
    }

    /// Chooses the members anew where something of an endpoint has changed.
    #[inline]
    fn look(&self) {
        let epoch = self.fleet.epoch();
        if epoch != self.epoch.get() {
            self.choose(epoch);
        }
    }

    #[cold]
    fn choose(&self, epoch: u64) {
        self.epoch.set(epoch);
        if let Some(health) = self.published.health.get(self.index) {
            let chosen = health.choose(&self.service);
            *self.members.borrow_mut() = members(health, &self.service, chosen, health.targets.len());
            self.subsets.choose_anew();
        }
    }

    /// The endpoint for a try: a member that `lets_pass` lets it, and none of `tried` (a bit each; the last for all from there
    /// on) where there is another. A first try stays with its session, else it is the balancer's to place, unless it may not go
    /// there.
    pub(crate) fn pick_where(
        &self,
        worker: &Worker,
        wish: Wish,
        tried: u64,
        mut lets_pass: impl FnMut(usize) -> bool,
    ) -> Option<usize> {
        self.look();
        if let Some(part) = wish.subset
            && self.falls_back(part)
            && tried == 0
            && let Some(stats) = self.published.services.get(self.index)
            && let Some(cell) = stats.workers.get(worker.id)
        {
            cell.subset_fallbacks.add(1);
        }
        let mut refused = None;
        // What is tried again is no request more: if it took its turn, the next one would always meet the same endpoint.
        if tried == 0 {
            if let Some(kept) = self.kept(&wish)
                && lets_pass(kept)
            {
                return Some(kept);
            }
            let picked = self.pick(worker, &wish)?;
            if lets_pass(picked) {
                return Some(picked);
            }
            refused = Some(picked);
        }
        let is_tried = |endpoint: usize| tried & 1 << endpoint.min(63) != 0;
        let start = worker.random();
        self.among(wish.subset, |members| {
            let others = || members.around(start).filter(|endpoint| Some(*endpoint) != refused);
            let found = others().find(|endpoint| !is_tried(*endpoint) && lets_pass(*endpoint));
            found.or_else(|| others().find(|endpoint| is_tried(*endpoint) && lets_pass(*endpoint)))
        })
    }

    /// The endpoint's address as a `Host`.
    pub(crate) fn endpoint_host(&self, endpoint: usize) -> &[u8] {
        match self.pools.get(endpoint).map(|pool| &*pool.endpoint.label) {
            Some(label) if !label.starts_with("unix:") => label.as_bytes(),
            _ => b"localhost",
        }
    }
}
