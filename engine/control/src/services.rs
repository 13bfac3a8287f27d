//! What operators see of services and their endpoints.

use std::collections::BTreeMap;

use ringway_config::Hub;
use ringway_config::hub::Published;
use ringway_config::snapshot;
use ringway_core::breaker::{Breaker, BreakerSettings, State};
use serde::Serialize;

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Service {
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    circuit_breaker: Option<BreakerState>,
    endpoints: Vec<Endpoint>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Endpoint {
    address: String,
    weight: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    zone: Option<String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    metadata: BTreeMap<String, String>,
    /// Over all workers, as are the others.
    in_flight: u64,
    connections: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    circuit_breaker: Option<BreakerState>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct BreakerState {
    state: &'static str,
    /// Of the window, while it is closed.
    #[serde(skip_serializing_if = "Option::is_none")]
    requests: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    failed: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    slow: Option<u64>,
    /// Until it lets probes pass.
    #[serde(skip_serializing_if = "Option::is_none")]
    open_for_ms: Option<u64>,
    /// How often it has opened.
    opened: u64,
}

/// All services, in the order of the configuration.
pub(crate) fn page(hub: &Hub) -> Vec<Service> {
    let published = hub.published();
    let now_us = hub.epoch.elapsed().as_micros() as u64;
    let services = published.snapshot.services.iter().enumerate();
    services.map(|(index, service)| of_service(&published, index, service, now_us)).collect()
}

fn of_service(published: &Published, index: usize, service: &snapshot::Service, now_us: u64) -> Service {
    let known = published.resilience.get(index);
    let settings = service.circuit_breaker.as_ref().map(|breaker| &breaker.settings);
    let seen = |breaker: &Breaker| settings.map(|settings| of_breaker(breaker, settings, now_us));
    let stats = published.endpoints.get(index).map(Vec::as_slice).unwrap_or_default();
    let targets = published.targets.get(index).map(|targets| &**targets).unwrap_or_default();
    let endpoints = targets.iter().zip(stats).enumerate();
    Service {
        name: service.name.to_string(),
        circuit_breaker: known.and_then(|known| seen(known.breaker.as_deref()?)),
        endpoints: endpoints
            .map(|(at, (endpoint, stats))| Endpoint {
                address: endpoint.label.to_string(),
                weight: endpoint.weight,
                zone: endpoint.zone.as_ref().map(|zone| zone.to_string()),
                metadata: endpoint.metadata.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect(),
                in_flight: stats.in_flight(),
                connections: stats.open(),
                circuit_breaker: known.and_then(|known| seen(known.endpoint_breakers.get(at)?)),
            })
            .collect(),
    }
}

fn of_breaker(breaker: &Breaker, settings: &BreakerSettings, now_us: u64) -> BreakerState {
    let seen = breaker.seen(settings, now_us);
    let while_closed = |count| (seen.state == State::Closed).then_some(count);
    BreakerState {
        state: seen.state.label(),
        requests: while_closed(seen.counts.total),
        failed: while_closed(seen.counts.failed),
        slow: settings.slow.and_then(|_| while_closed(seen.counts.slow)),
        open_for_ms: (seen.state == State::Open).then_some(seen.left_us / 1000),
        opened: breaker.transitions(State::Open),
    }
}
