//! Where the data plane and the control plane meet: the published snapshot, the counters, the logs' queues, the phase.

use std::collections::HashMap;
use std::ops::Deref;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::Thread;

use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use ringway_core::auth::Live;
use ringway_core::limit::{Concurrency, Limiter, Mode};
use ringway_core::log_queue::LogQueue;
use ringway_core::stats::{
    AuthenticatorStats, EndpointStats, LimitStats, MirrorStats, RouteStats, ServiceStats, SplitStats, TlsStats,
    WorkerStats,
};

use crate::acme;
use crate::discovered::{Discovered, DiscoveryStats, Learnt, SoFar};
use crate::health::Health;
use crate::resilience::Resilience;
use crate::snapshot::{Discovery, Endpoint, KeySources, Snapshot, mirror_stats, split_stats};

/// The name that requests without a route are counted under.
pub const UNMATCHED: &str = "unmatched";

/// A snapshot with the counters of its parts, each index for index. Swapped in whole.
#[derive(Debug)]
pub struct Published {
    /// Counts up from 1.
    pub generation: u64,
    pub snapshot: Arc<Snapshot>,
    pub routes: Vec<Arc<RouteStats>>,
    /// By route, then by the services of its split.
    pub splits: Vec<Vec<Arc<SplitStats>>>,
    /// By route; `None` where nothing is copied.
    pub mirrors: Vec<Option<Arc<MirrorStats>>>,
    /// Requests that matched no route.
    pub unmatched: Arc<RouteStats>,
    pub services: Vec<Arc<ServiceStats>>,
    /// By service, where its requests go: the endpoints that are written, or those that were found.
    pub targets: Vec<Arc<[Endpoint]>>,
    /// By service, then by endpoint, as in `targets`.
    pub endpoints: Vec<Vec<Arc<EndpointStats>>>,
    /// Breakers and retry budgets, by service.
    pub resilience: Vec<Resilience>,
    /// How the endpoints are, by service.
    pub health: Vec<Health>,
    /// What the authenticators know now: it outlives reloads, by name, as long as its keys come from the same place.
    pub live: Vec<Arc<Live>>,
    pub authenticators: Vec<Arc<AuthenticatorStats>>,
    /// The buckets of the rate limits: they outlive reloads that do not change their policy.
    pub limiters: Vec<Arc<Limiter>>,
    pub limits: Vec<Arc<LimitStats>>,
    /// The requests under way, by limit: they outlive reloads.
    pub concurrency: Vec<Concurrency>,
    /// Refusals by those.
    pub concurrency_limits: Vec<Arc<LimitStats>>,
    /// By listener.
    pub tls: Vec<Arc<TlsStats>>,
}

/// The life of the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Phase {
    Starting = 0,
    Running = 1,
    /// The drain notice: not ready any more, new connections still accepted.
    Notice = 2,
    /// No new connections; requests in flight end.
    Draining = 3,
}

/// How reloads went.
#[derive(Debug, Default)]
pub struct ReloadStats {
    pub succeeded: AtomicU64,
    pub failed: AtomicU64,
    /// Unix time in milliseconds of the last success, the start included.
    pub last_success_ms: AtomicU64,
    /// 1 if the last attempt succeeded.
    pub last_ok: AtomicU8,
}

/// The one object that `data`, `control` and `ringway` share.
#[derive(Debug)]
pub struct Hub {
    published: ArcSwap<Published>,
    /// Locked while something is published.
    discovered: Mutex<Discovered>,
    /// Something was found.
    has_found: Condvar,
    phase: AtomicU8,
    pub workers: WorkerStats,
    /// The access log.
    pub log: LogLane,
    pub audit: LogLane,
    pub reloads: ReloadStats,
    /// Orders of certificates.
    pub acme_orders: acme::Orders,
    /// Time zero of the clock that all threads share: rate limits count by it.
    pub epoch: Instant,
    /// Rung for a worker when something that it waits for may have come.
    pub worker_bell: Bell,
    /// Rung when a limiter has something to say to Redis.
    pub limits_bell: Bell,
}

/// Wakes another thread; does nothing until somebody has tied its rope.
#[derive(Default)]
pub struct Bell(OnceLock<Box<dyn Fn(u32) + Send + Sync>>);

impl Bell {
    /// `ring` must neither block nor allocate. The first one stays.
    pub fn tie(&self, ring: Box<dyn Fn(u32) + Send + Sync>) {
        let _ = self.0.set(ring);
    }

    /// `whom`: a worker's number, where that matters.
    pub fn ring(&self, whom: u32) {
        if let Some(ring) = self.0.get() {
            ring(whom);
        }
    }
}

impl std::fmt::Debug for Bell {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Bell").field(&self.0.get().is_some()).finish()
    }
}

/// Lines on their way from the workers to the thread that writes them.
#[derive(Debug)]
pub struct LogLane {
    queue: LogQueue,
    /// Failed writes.
    pub write_errors: AtomicU64,
    writer: Mutex<Option<Thread>>,
}

impl LogLane {
    /// `buffers`: how many full ones may wait.
    fn new(buffers: usize) -> Self {
        Self { queue: LogQueue::new(buffers), write_errors: AtomicU64::new(0), writer: Mutex::new(None) }
    }

    /// Names the thread that [`LogLane::wake`] wakes.
    pub fn set_writer(&self, thread: Thread) {
        *self.writer.lock().unwrap_or_else(PoisonError::into_inner) = Some(thread);
    }

    /// Once per batch of lines, never per request.
    pub fn wake(&self) {
        if let Some(thread) = &*self.writer.lock().unwrap_or_else(PoisonError::into_inner) {
            thread.unpark();
        }
    }
}

impl Deref for LogLane {
    type Target = LogQueue;

    fn deref(&self) -> &LogQueue {
        &self.queue
    }
}

fn stats_of<K: std::hash::Hash + Eq + Clone, S>(old: &HashMap<K, Arc<S>>, key: &K, make: impl FnOnce() -> S) -> Arc<S> {
    old.get(key).cloned().unwrap_or_else(|| Arc::new(make()))
}

impl Published {
    /// Joins a snapshot with counters, those of `old` where the names are the same.
    fn join(snapshot: Arc<Snapshot>, discovered: &Discovered, workers: usize, old: Option<&Published>) -> Self {
        let targets: Vec<_> = snapshot.services.iter().map(|service| discovered.targets(service)).collect();
        let (mut routes, mut services, mut endpoints) = (HashMap::new(), HashMap::new(), HashMap::new());
        if let Some(old) = old {
            routes.extend(old.routes.iter().map(|stats| (stats.route.clone(), stats.clone())));
            services.extend(old.services.iter().map(|stats| (stats.service.clone(), stats.clone())));
            for stats in old.endpoints.iter().flatten() {
                endpoints.insert((stats.service.clone(), stats.endpoint.clone()), stats.clone());
            }
        }
        let mut authenticators = HashMap::new();
        let mut live: HashMap<&str, (Arc<Live>, &KeySources)> = HashMap::new();
        if let Some(old) = old {
            authenticators.extend(old.authenticators.iter().map(|stats| (stats.authenticator.clone(), stats.clone())));
            let known = old.live.iter().zip(&old.snapshot.keys);
            live.extend(known.map(|(live, sources)| (&*live.name, (live.clone(), sources))));
        }
        let (mut limiters, mut limits): (HashMap<_, Arc<Limiter>>, HashMap<_, _>) = Default::default();
        if let Some(old) = old {
            limiters.extend(old.limiters.iter().map(|limiter| (limiter.policy().spec().name.clone(), limiter.clone())));
            limits.extend(old.limits.iter().map(|stats| (stats.policy.clone(), stats.clone())));
        }
        let (mut concurrency, mut full): (HashMap<_, Concurrency>, HashMap<_, _>) = Default::default();
        let mut tls = HashMap::new();
        if let Some(old) = old {
            concurrency.extend(old.concurrency.iter().map(|limit| (limit.spec().name.clone(), limit.clone())));
            full.extend(old.concurrency_limits.iter().map(|stats| (stats.policy.clone(), stats.clone())));
            tls.extend(old.tls.iter().map(|stats| (stats.listener.clone(), stats.clone())));
        }
        let is_same = old.is_some_and(|old| Arc::ptr_eq(&old.snapshot, &snapshot));
        let other = old.filter(|_| !is_same);
        if let (Some(acme), Some(old)) = (&snapshot.acme, other.and_then(|old| old.snapshot.acme.as_ref())) {
            acme.go_on_from(old);
        }
        let is_shared = snapshot.redis.is_some();
        let unmatched = match old {
            Some(old) => old.unmatched.clone(),
            None => Arc::new(RouteStats::new(UNMATCHED.into(), workers)),
        };
        Self {
            generation: old.map_or(1, |old| old.generation + 1),
            routes: snapshot
                .routes
                .iter()
                .map(|route| stats_of(&routes, &route.name, || RouteStats::new(route.name.clone(), workers)))
                .collect(),
            splits: split_stats(&snapshot, workers, old),
            mirrors: mirror_stats(&snapshot, workers, old),
            unmatched,
            services: snapshot
                .services
                .iter()
                .map(|service| stats_of(&services, &service.name, || ServiceStats::new(service.name.clone(), workers)))
                .collect(),
            endpoints: snapshot
                .services
                .iter()
                .zip(&targets)
                .map(|(service, targets)| {
                    let of_endpoint = |endpoint: &Endpoint| {
                        let key = (service.name.clone(), endpoint.label.clone());
                        stats_of(&endpoints, &key, || {
                            EndpointStats::new(service.name.clone(), endpoint.label.clone(), workers)
                        })
                    };
                    targets.iter().map(of_endpoint).collect()
                })
                .collect(),
            resilience: Resilience::join(&snapshot, &targets, workers, old),
            health: Health::join(&snapshot, &targets, old.map_or(&[], |old| &old.health)),
            targets,
            live: snapshot
                .authenticators
                .iter()
                .zip(&snapshot.keys)
                .map(|(authenticator, sources)| {
                    let name = &*authenticator.name;
                    let known = live.get(name).filter(|(_, old)| sources.goes_on_from(old));
                    let known = known.map(|(live, _)| live.clone());
                    let known = known.unwrap_or_else(|| Arc::new(sources.new_live(name)));
                    if !is_same {
                        sources.load(&known);
                    }
                    known
                })
                .collect(),
            authenticators: snapshot
                .authenticators
                .iter()
                .map(|authenticator| {
                    let name = &authenticator.name;
                    stats_of(&authenticators, name, || AuthenticatorStats::new(name.clone(), workers))
                })
                .collect(),
            limiters: snapshot
                .limiters
                .iter()
                .map(|policy| match limiters.get(&policy.spec().name) {
                    Some(known) if known.policy() == policy && (known.mode() != Mode::Alone) == is_shared => {
                        known.clone()
                    }
                    _ if is_shared => Arc::new(Limiter::shared(policy.clone())),
                    _ => Arc::new(Limiter::new(policy.clone())),
                })
                .collect(),
            limits: snapshot
                .limiters
                .iter()
                .map(|policy| {
                    let name = &policy.spec().name;
                    stats_of(&limits, name, || LimitStats::new(name.clone(), workers))
                })
                .collect(),
            concurrency: snapshot
                .concurrency
                .iter()
                .map(|spec| match concurrency.get(&spec.name) {
                    Some(known) => known.changed(spec.clone()),
                    None => Concurrency::new(spec.clone()),
                })
                .collect(),
            concurrency_limits: snapshot
                .concurrency
                .iter()
                .map(|spec| stats_of(&full, &spec.name, || LimitStats::new(spec.name.clone(), workers)))
                .collect(),
            tls: snapshot
                .listeners
                .iter()
                .map(|listener| stats_of(&tls, &listener.name, || TlsStats::new(listener.name.clone(), workers)))
                .collect(),
            snapshot,
        }
    }
}

impl Hub {
    /// How many full buffers of the access log may wait for the writer: 8 MiB and a quarter.
    const LOG_BUFFERS: usize = 176;
    /// The same of the audit log: 1 MiB and a half. Each worker keeps a backlog besides.
    const AUDIT_BUFFERS: usize = 32;

    pub fn new(snapshot: Snapshot, workers: usize) -> Arc<Self> {
        let mut discovered = Discovered::default();
        discovered.follow(&snapshot);
        let published = Published::join(Arc::new(snapshot), &discovered, workers, None);
        Arc::new(Self {
            published: ArcSwap::from_pointee(published),
            discovered: Mutex::new(discovered),
            has_found: Condvar::new(),
            phase: AtomicU8::new(Phase::Starting as u8),
            workers: WorkerStats::new(workers),
            log: LogLane::new(Self::LOG_BUFFERS),
            audit: LogLane::new(Self::AUDIT_BUFFERS),
            reloads: ReloadStats::default(),
            acme_orders: acme::Orders::default(),
            epoch: Instant::now(),
            worker_bell: Bell::default(),
            limits_bell: Bell::default(),
        })
    }

    /// The newest snapshot. A worker keeps its own reference and compares generations.
    pub fn published(&self) -> Arc<Published> {
        self.published.load_full()
    }

    /// Swaps a new snapshot in. Workers take it when they are woken.
    pub fn publish(&self, snapshot: Snapshot) -> u64 {
        let mut discovered = self.discovered();
        discovered.follow(&snapshot);
        self.swap(Arc::new(snapshot), &discovered)
    }

    /// Takes in the endpoints of a service as they were found, and publishes them where it is in use. Whether they are others
    /// than before: workers are to be woken then.
    pub fn discover(&self, service: &str, of: &Discovery, endpoints: Vec<Endpoint>) -> bool {
        let mut discovered = self.discovered();
        let learnt = discovered.learn(service, of, endpoints);
        if learnt == Learnt::Now {
            self.swap(self.published().snapshot.clone(), &discovered);
        }
        if learnt != Learnt::Nothing {
            self.has_found.notify_all();
        }
        learnt != Learnt::Nothing
    }

    /// What is found from now on may be of this snapshot, too, which is about to be published.
    pub fn look_ahead(&self, snapshot: &Snapshot) {
        self.discovered().look_ahead(snapshot);
    }

    /// What was found of a service in this place, if anything, and how looking there goes.
    pub fn discovered_of(&self, service: &str, of: &Discovery) -> Option<SoFar> {
        self.discovered().of(service, of)
    }

    /// How looking for a service's endpoints goes, where that is done.
    pub fn discovery_stats(&self, service: &str) -> Option<Arc<DiscoveryStats>> {
        self.discovered().stats(service)
    }

    /// Waits for the first answer of every service that is new, for so long at most; gives back those that have none. They are
    /// not waited for again.
    pub fn await_discovery(&self, patience: Duration) -> Vec<Arc<str>> {
        let is_open = |discovered: &mut Discovered| discovered.awaited().next().is_some();
        let waited = self.has_found.wait_timeout_while(self.discovered(), patience, is_open);
        let (mut discovered, _) = waited.unwrap_or_else(PoisonError::into_inner);
        let mut left: Vec<_> = discovered.awaited().cloned().collect();
        discovered.give_up();
        left.sort_unstable();
        left
    }

    fn discovered(&self) -> MutexGuard<'_, Discovered> {
        self.discovered.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn swap(&self, snapshot: Arc<Snapshot>, discovered: &Discovered) -> u64 {
        let old = self.published();
        let new = Published::join(snapshot, discovered, self.workers.workers.len(), Some(&old));
        let generation = new.generation;
        self.published.store(Arc::new(new));
        generation
    }

    pub fn phase(&self) -> Phase {
        match self.phase.load(Ordering::Acquire) {
            0 => Phase::Starting,
            1 => Phase::Running,
            2 => Phase::Notice,
            _ => Phase::Draining,
        }
    }

    pub fn set_phase(&self, phase: Phase) {
        self.phase.store(phase as u8, Ordering::Release);
    }
}
