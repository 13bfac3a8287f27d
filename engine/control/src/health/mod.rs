//! How the endpoints of services are: they are asked at intervals, one checker for the whole process, and compared with
//! each other ([`judge`]). What comes of it the cores read from [`ringway_config::health::Health`].

mod grpc;
mod http;
mod judge;
mod metrics;
mod operate;
mod probe;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use ringway_config::Hub;
use ringway_config::hub::Published;
use ringway_core::health::{Checked, EndpointHealth, Reason};
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, sleep, sleep_until};

pub(crate) use metrics::render;
pub(crate) use operate::{operate, refusal};
use probe::Target;

/// Checks at a time, of all services; more wait.
const CHECKS_MAX: usize = 128;
/// In which a recovered endpoint gets its share back.
const RAMP_STEPS: u32 = 20;

/// The tasks that check endpoints. Dropped: they end.
#[derive(Debug)]
pub(crate) struct Keeper {
    /// By service and endpoint.
    checkers: HashMap<(Arc<str>, Arc<str>), Checker>,
    judge: Option<AbortHandle>,
    places: Arc<Semaphore>,
}

#[derive(Debug)]
struct Checker {
    target: Target,
    health: Arc<EndpointHealth>,
    task: AbortHandle,
}

impl Drop for Checker {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.judge.iter().for_each(AbortHandle::abort);
    }
}

impl Keeper {
    pub(crate) fn new() -> Self {
        Self { checkers: HashMap::new(), judge: None, places: Arc::new(Semaphore::new(CHECKS_MAX)) }
    }

    /// Goes on with what is published now. Checks that are the same as before go on where they are.
    pub(crate) fn follow(&mut self, handle: &Handle, hub: &Arc<Hub>) {
        let published = hub.published();
        let mut old = std::mem::take(&mut self.checkers);
        for (key, target, health) in targets(&published) {
            let known = old.remove(&key).filter(|old| old.target.is_same(&target) && Arc::ptr_eq(&old.health, &health));
            let checker = known.unwrap_or_else(|| {
                let checking = keep_checking(key.0.clone(), target.clone(), Arc::clone(&health), self.places.clone());
                Checker { target, health, task: handle.spawn(checking).abort_handle() }
            });
            self.checkers.insert(key, checker);
        }
        // A check may have been about to say something when it was given up: nobody would ever take it back.
        for unchecked in old.into_values().map(|old| Arc::clone(&old.health)) {
            handle.spawn(async move {
                unchecked.set_healthy(true);
                unchecked.set_ramp(100);
            });
        }
        let has_ejection = published.snapshot.services.iter().any(|service| service.watch.ejection.is_some());
        match (has_ejection, self.judge.take()) {
            (true, None) => self.judge = Some(handle.spawn(judge::run(Arc::clone(hub))).abort_handle()),
            (true, running) => self.judge = running,
            (false, Some(running)) => running.abort(),
            (false, None) => {}
        }
    }
}

type Key = (Arc<str>, Arc<str>);

fn targets(published: &Published) -> impl Iterator<Item = (Key, Target, Arc<EndpointHealth>)> {
    let services = published.snapshot.services.iter().zip(&published.health);
    services.filter_map(|(service, health)| Some((service, health, service.watch.check.clone()?))).flat_map(
        |(service, health, check)| {
            health.targets.iter().zip(&health.endpoints).map(move |(endpoint, health)| {
                let target = Target {
                    endpoint: endpoint.clone(),
                    check: Arc::clone(&check),
                    is_http2: service.pool.http2.is_some(),
                    proxy_protocol: service.proxy_protocol,
                };
                ((Arc::clone(&service.name), Arc::clone(&endpoint.label)), target, Arc::clone(health))
            })
        },
    )
}

/// Checks one endpoint for as long as it lives.
async fn keep_checking(service: Arc<str>, target: Target, health: Arc<EndpointHealth>, places: Arc<Semaphore>) {
    let check = &*target.check;
    let mut checked = Checked::new(health.is_healthy());
    let mut ramp = JoinSet::new();
    if health.ramp() < 100 {
        ramp.spawn(ramp_up(Arc::clone(&health), check.slow_start));
    }
    // Soon, but not all in the same moment.
    sleep(check.interval.mul_f64(fastrand::f64() / 10.0)).await;
    loop {
        let begun = Instant::now();
        let result = match places.acquire().await {
            Ok(_place) => target.probe().await,
            Err(_) => return,
        };
        let passed = result.is_ok();
        let complaint = result.as_ref().err().cloned().unwrap_or_default();
        health.count_check(result);
        match checked.judge(passed, check.unhealthy, check.healthy) {
            Some(true) => {
                ramp.abort_all();
                if check.slow_start.is_some() {
                    health.set_ramp(100 / RAMP_STEPS);
                    ramp.spawn(ramp_up(Arc::clone(&health), check.slow_start));
                }
                health.reinstate();
                health.set_healthy(true);
                tracing::info!("service `{service}`, endpoint `{}`: healthy again", health.endpoint);
            }
            Some(false) => {
                health.set_healthy(false);
                let endpoint = &health.endpoint;
                tracing::warn!("service `{service}`, endpoint `{endpoint}`: unhealthy: {complaint}");
            }
            // It was ejected since nobody could connect; now somebody has.
            None if passed && health.ejection().is_some_and(|(_, reason)| reason == Reason::Connect) => {
                health.reinstate();
                let endpoint = &health.endpoint;
                tracing::info!("service `{service}`, endpoint `{endpoint}`: back from ejection: its check is good");
            }
            None => {}
        }
        sleep_until(begun + pause(check.interval, check.jitter)).await;
    }
}

/// The interval, and by chance some percent more or less.
fn pause(interval: Duration, jitter: u8) -> Duration {
    let jitter = f64::from(jitter) / 100.0;
    interval.mul_f64(1.0 - jitter + 2.0 * jitter * fastrand::f64())
}

/// Gives an endpoint its whole share back within this time.
async fn ramp_up(health: Arc<EndpointHealth>, time: Option<Duration>) {
    while health.ramp() < 100 {
        sleep(time.unwrap_or_default() / RAMP_STEPS).await;
        health.set_ramp(health.ramp() + 100 / RAMP_STEPS);
    }
}

#[cfg(test)]
mod tests {
    use ringway_config::health::{CheckKind, HealthCheck};

    use super::*;
    use crate::testing::{hub, snapshot};

    #[test]
    fn what_a_check_says_as_it_is_given_up_does_not_stay() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let (mut checked, hour) = (snapshot(), Duration::from_secs(3_600));
        Arc::get_mut(&mut checked.services[0]).unwrap().watch.check = Some(Arc::new(HealthCheck {
            kind: CheckKind::Tcp,
            interval: hour,
            jitter: 0,
            timeout: hour,
            unhealthy: 1,
            healthy: 1,
            slow_start: Some(hour),
        }));
        let hub = hub(checked);
        let mut keeper = Keeper::new();
        keeper.follow(runtime.handle(), &hub);
        hub.publish(snapshot());
        // Between the publication and the end of the checks.
        let health = Arc::clone(&hub.published().health[0].endpoints[0]);
        health.set_healthy(false);
        health.set_ramp(5);
        keeper.follow(runtime.handle(), &hub);
        runtime.block_on(runtime.spawn(async {})).unwrap();
        assert_eq!((health.is_healthy(), health.ramp()), (true, 100));
    }

    #[test]
    fn pauses_differ_by_the_jitter_at_most() {
        let second = Duration::from_secs(1);
        assert_eq!(pause(second, 0), second);
        let pauses: Vec<_> = (0..1000).map(|_| pause(second, 10).as_millis()).collect();
        assert!(pauses.iter().all(|pause| (900..=1100).contains(pause)));
        assert!(pauses.iter().any(|pause| *pause < 950) && pauses.iter().any(|pause| *pause > 1050));
    }
}
