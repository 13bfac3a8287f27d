//! What is done about services that fail: breakers and retries. Their settings are in the snapshot; what they remember
//! outlives it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use ringway_core::breaker::{Breaker, BreakerSettings};
use ringway_core::bulkhead::Bulkhead;
use ringway_core::grpc::Status;
use ringway_core::retry_budget::{BudgetSettings, RetryBudget};

use crate::hub::Published;
use crate::snapshot::{Endpoint, Respond, Service, Snapshot};

/// When a service is left alone, and what clients hear meanwhile.
#[derive(Debug)]
pub struct CircuitBreaker {
    pub scope: Scope,
    pub settings: BreakerSettings,
    pub failing: Failing,
    /// `None`: 503 with `Retry-After`.
    pub fallback: Option<Fallback>,
}

/// What has a breaker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    Service,
    Endpoint,
    Both,
}

#[derive(Debug)]
pub enum Fallback {
    Respond(Respond),
    /// Index into [`Snapshot::services`].
    Service(usize),
}

/// The statuses of a service that count as failures.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failing {
    /// A bit for each status from [`Failing::FIRST`] on.
    statuses: [u64; 4],
    /// A 503 with `Retry-After` does not count.
    pub spares_retry_after: bool,
}

/// Which failed tries are followed by another one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Retries {
    /// Tries after the first one.
    pub attempts: u8,
    pub on: Box<[RetryOn]>,
    pub backoff_base: Duration,
    pub backoff_max: Duration,
    /// One try, to the answer's head.
    pub per_try: Option<Duration>,
    /// Bytes of a body that are kept beyond the block that came with the head; 0: none.
    pub body_bytes_max: usize,
    /// Further tries while the first one is still awaited.
    pub hedge: Option<Hedge>,
}

/// When a further try is sent although none has failed yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hedge {
    /// After the try before.
    pub after: Duration,
    /// Such tries of one request.
    pub max: u8,
}

/// Why a try is followed by another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RetryOn {
    /// There was no connection: nothing was sent.
    ConnectFailure,
    /// The service says that it has not looked at it (RFC 9113 section 8.7).
    RefusedStream,
    /// The connection broke before an answer.
    Reset,
    /// No answer in time.
    Timeout,
    Status(u16),
    /// The answer's head says so, and there is no message: it is safe as far as whoever has named it says.
    Grpc(Status),
}

/// What a service's breakers and its budget remember. Outlives reloads, by the names of the service and its endpoints.
#[derive(Debug)]
pub struct Resilience {
    /// `None`: it has none.
    pub breaker: Option<Arc<Breaker>>,
    /// By endpoint; empty where they have none.
    pub endpoint_breakers: Vec<Arc<Breaker>>,
    pub budget: Arc<RetryBudget>,
    /// Its requests in flight, counted where it has a limit on them.
    pub bulkhead: Arc<Bulkhead>,
}

impl Failing {
    /// The first status that may count.
    const FIRST: u16 = 400;

    /// These and no others.
    pub fn of(statuses: impl IntoIterator<Item = u16>) -> Self {
        let mut failing = Self { statuses: [0; 4], spares_retry_after: false };
        for status in statuses {
            let bit = status.wrapping_sub(Self::FIRST);
            if let Some(word) = failing.statuses.get_mut(usize::from(bit / 64)) {
                *word |= 1 << (bit % 64);
            }
        }
        failing
    }

    #[inline]
    pub fn has(&self, status: u16) -> bool {
        let bit = status.wrapping_sub(Self::FIRST);
        self.statuses.get(usize::from(bit / 64)).is_some_and(|word| word & 1 << (bit % 64) != 0)
    }
}

/// What a service says of itself: all of 5xx but 501, which is about the request, and 503 with `Retry-After`, which is an
/// answer.
impl Default for Failing {
    fn default() -> Self {
        Self { spares_retry_after: true, ..Self::of((500..600).filter(|status| *status != 501)) }
    }
}

impl Retries {
    pub fn has(&self, on: RetryOn) -> bool {
        self.on.contains(&on)
    }
}

impl Resilience {
    /// What a budget allows of a service that does not say.
    pub const BUDGET: BudgetSettings = BudgetSettings { share: 20, min_per_second: 10 };

    /// By service of the snapshot, with its endpoints in `targets`, going on from what was published before.
    pub(crate) fn join(
        snapshot: &Snapshot,
        targets: &[Arc<[Endpoint]>],
        workers: usize,
        old: Option<&Published>,
    ) -> Vec<Self> {
        let (mut services, mut endpoints) = (HashMap::new(), HashMap::new());
        let known = old.into_iter().flat_map(|old| old.snapshot.services.iter().zip(&old.targets).zip(&old.resilience));
        for ((service, targets), known) in known {
            let kept = (known.breaker.clone(), (known.budget.clone(), known.bulkhead.clone()));
            services.insert(&*service.name, kept);
            for (endpoint, breaker) in targets.iter().zip(&known.endpoint_breakers) {
                endpoints.insert((&*service.name, &*endpoint.label), breaker.clone());
            }
        }
        let of_service = |(service, targets): (&Arc<Service>, &Arc<[Endpoint]>)| {
            let (known, kept) = services.get(&*service.name).cloned().unzip();
            let (budget, bulkhead) = kept.unzip();
            let new = || Arc::new(Breaker::new(workers));
            let scope = service.circuit_breaker.as_ref().map(|breaker| breaker.scope);
            let of_endpoint = |label: &str| endpoints.get(&(&*service.name, label)).cloned().unwrap_or_else(new);
            Self {
                breaker: matches!(scope, Some(Scope::Service | Scope::Both))
                    .then(|| known.flatten().unwrap_or_else(new)),
                endpoint_breakers: match scope {
                    Some(Scope::Endpoint | Scope::Both) => {
                        targets.iter().map(|endpoint| of_endpoint(&endpoint.label)).collect()
                    }
                    _ => Vec::new(),
                },
                budget: budget.unwrap_or_else(|| Arc::new(RetryBudget::new(workers))),
                bulkhead: bulkhead.unwrap_or_default(),
            }
        };
        snapshot.services.iter().zip(targets).map(of_service).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_that_fail() {
        let failing = Failing::default();
        for status in [500, 502, 503, 504, 599] {
            assert!(failing.has(status), "{status}");
        }
        for status in [0, 100, 200, 399, 400, 429, 499, 501, 600, 655, 656, u16::MAX] {
            assert!(!failing.has(status), "{status}");
        }
        let told = Failing::of([429, 500]);
        assert!(told.has(429) && told.has(500) && !told.has(503) && !told.spares_retry_after);
    }
}
