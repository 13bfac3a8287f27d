//! Ejections come to their end, and endpoints are compared with each other at intervals.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use ringway_config::Hub;
use ringway_config::health::Health;
use ringway_core::ejection::{EjectionSettings, Sample};
use ringway_core::health::Reason;
use ringway_core::stats::EndpointStats;
use tokio::time::{MissedTickBehavior, interval};

/// How late an ejection may end.
const TICK: Duration = Duration::from_millis(100);

/// Runs as long as a service has ejection.
pub(super) async fn run(hub: Arc<Hub>) {
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut compared: HashMap<Arc<str>, Compared> = HashMap::new();
    loop {
        ticks.tick().await;
        let published = hub.published();
        let now_us = hub.epoch.elapsed().as_micros() as u64;
        let mut old = std::mem::take(&mut compared);
        let known = published.health.iter().zip(&published.endpoints);
        for (service, (health, stats)) in published.snapshot.services.iter().zip(known) {
            let Some(settings) = &service.watch.ejection else { continue };
            expire(health, now_us);
            let mut last = old.remove(&service.name).unwrap_or_else(|| Compared::begin(stats, now_us));
            if now_us.saturating_sub(last.at_us) >= settings.interval_us {
                let samples = last.samples(health, stats);
                compare(settings, health, &samples, now_us);
                last = Compared::begin(stats, now_us);
            }
            compared.insert(Arc::clone(&service.name), last);
        }
    }
}

/// Lets those back in whose time has come.
fn expire(health: &Health, now_us: u64) {
    for endpoint in &health.endpoints {
        if endpoint.ejection().is_some_and(|(until_us, _)| until_us <= now_us) && endpoint.reinstate() {
            let (service, endpoint) = (&health.fleet.service, &endpoint.endpoint);
            tracing::info!("service `{service}`, endpoint `{endpoint}`: back from ejection: its time is over");
        }
    }
}

fn compare(settings: &EjectionSettings, health: &Health, samples: &[Sample], now_us: u64) {
    for (endpoint, _) in health.endpoints.iter().zip(samples).filter(|(_, sample)| !sample.is_out) {
        endpoint.forgive();
    }
    for (index, reason) in settings.outliers(samples) {
        let Some(endpoint) = health.endpoints.get(index) else { continue };
        if let Some(ejection) = settings.eject(endpoint, reason, now_us) {
            let (service, endpoint) = (&health.fleet.service, &endpoint.endpoint);
            let seconds = ejection.time_us as f64 / 1e6;
            let reason = match reason {
                Reason::Latency => "it is much slower than the others",
                _ => "it fails much more often than the others",
            };
            tracing::warn!("service `{service}`, endpoint `{endpoint}`: ejected for {seconds:.1} s: {reason}");
        }
    }
}

/// What the counters of a service's endpoints were when they were last compared.
struct Compared {
    at_us: u64,
    totals: Vec<(Arc<EndpointStats>, Sample)>,
}

impl Compared {
    fn begin(stats: &[Arc<EndpointStats>], at_us: u64) -> Self {
        Self { at_us, totals: stats.iter().map(|stats| (Arc::clone(stats), totals(stats))).collect() }
    }

    /// What has happened since; of an endpoint that has just come, nothing.
    fn samples(&self, health: &Health, stats: &[Arc<EndpointStats>]) -> Vec<Sample> {
        let sample = |(stats, is_usable): (&Arc<EndpointStats>, bool)| {
            let now = totals(stats);
            let before = self.totals.iter().find(|(known, _)| Arc::ptr_eq(known, stats)).map_or(now, |(_, then)| *then);
            Sample {
                answers: now.answers.saturating_sub(before.answers),
                failures: now.failures.saturating_sub(before.failures),
                unanswered: now.unanswered.saturating_sub(before.unanswered),
                latency_us: now.latency_us.saturating_sub(before.latency_us),
                is_out: !is_usable,
            }
        };
        stats.iter().zip(health.endpoints.iter().map(|endpoint| endpoint.is_usable())).map(sample).collect()
    }
}

/// Since the start, over all workers.
fn totals(stats: &EndpointStats) -> Sample {
    stats.workers.iter().fold(Sample::default(), |sum, cell| Sample {
        answers: sum.answers + cell.answers.get(),
        failures: sum.failures + cell.failures.get(),
        unanswered: sum.unanswered + cell.unanswered.get(),
        latency_us: sum.latency_us + cell.latency_us.get(),
        is_out: false,
    })
}
