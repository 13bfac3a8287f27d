//! What operators see of services: their breakers and their endpoints, how those are and why.

mod subsets;

use std::collections::BTreeMap;

use ringway_config::Hub;
use ringway_config::hub::Published;
use ringway_config::snapshot;
use ringway_core::breaker::{Breaker, BreakerSettings, State};
use ringway_core::bulkhead::{Bulkhead, BulkheadSettings};
use ringway_core::health::{EndpointHealth, Reason};
use ringway_core::stats::EndpointStats;
use serde::Serialize;

use self::subsets::SubsetState;

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Service {
    name: String,
    /// Too few endpoints are usable: all are used.
    panic: bool,
    /// The last priority that gets requests, where there are several.
    #[serde(skip_serializing_if = "Option::is_none")]
    priority: Option<u8>,
    /// The gateway's own, where it is preferred.
    #[serde(skip_serializing_if = "Option::is_none")]
    zone: Option<String>,
    /// Percent of the requests that the own zone gets, where that is preferred.
    #[serde(skip_serializing_if = "Option::is_none")]
    local_share: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    circuit_breaker: Option<BreakerState>,
    #[serde(skip_serializing_if = "Option::is_none")]
    bulkhead: Option<BulkheadState>,
    endpoints: Vec<Endpoint>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    subsets: Vec<SubsetState>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct BulkheadState {
    /// In flight, and how many may be.
    requests: u32,
    limit: u32,
    pending: u32,
    /// Of the adaptive limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    baseline_ms: Option<f64>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Endpoint {
    address: String,
    /// `healthy`, `unhealthy`, `ejected` or `drained`.
    state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    why: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ejected_for_ms: Option<u64>,
    /// It gets requests, also in a panic.
    in_use: bool,
    priority: u8,
    /// As an operator or the configuration says; of it, `share` percent count while it recovers.
    weight: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    share: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    zone: Option<String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    metadata: BTreeMap<String, String>,
    /// Over all workers, as are the others.
    in_flight: u64,
    connections: u64,
    /// Of late; where somebody judges by it.
    #[serde(skip_serializing_if = "Option::is_none")]
    latency_ms: Option<f64>,
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
    services.filter_map(|(index, service)| of_service(&published, index, service, now_us)).collect()
}

fn of_service(published: &Published, index: usize, service: &snapshot::Service, now_us: u64) -> Option<Service> {
    let (known, health) = (published.resilience.get(index)?, published.health.get(index)?);
    let settings = service.circuit_breaker.as_ref().map(|breaker| &breaker.settings);
    let seen = |breaker: &Breaker| settings.map(|settings| of_breaker(breaker, settings, now_us));
    let (candidates, chosen) = health.choose(service);
    let endpoints = health.targets.iter().zip(&health.endpoints).zip(published.endpoints.get(index)?).enumerate();
    Some(Service {
        name: service.name.to_string(),
        panic: chosen.is_panic,
        priority: health.priority_in_use(&chosen),
        zone: service.zones.as_ref().map(|zones| zones.own.to_string()),
        local_share: service.zones.as_ref().map(|_| chosen.local_share(&candidates) * 100.0),
        circuit_breaker: known.breaker.as_deref().and_then(seen),
        bulkhead: service.bulkhead.as_ref().map(|settings| of_bulkhead(&known.bulkhead, settings)),
        endpoints: endpoints
            .map(|(at, ((endpoint, health), stats))| Endpoint {
                in_use: chosen.members.contains(&at) || chosen.others.contains(&at),
                circuit_breaker: known.endpoint_breakers.get(at).and_then(|breaker| seen(breaker)),
                ..of_endpoint(endpoint, health, stats, now_us)
            })
            .collect(),
        subsets: subsets::of_service(published, index, service, health),
    })
}

fn of_endpoint(endpoint: &snapshot::Endpoint, health: &EndpointHealth, stats: &EndpointStats, now_us: u64) -> Endpoint {
    let weight = health.own_weight().unwrap_or(endpoint.weight);
    let ejection = health.ejection();
    let (state, why) = match ejection {
        _ if health.is_drained() => ("drained", Some("by an operator".to_owned())),
        _ if weight == 0 => ("drained", Some("its weight is 0".to_owned())),
        _ if !health.is_healthy() => ("unhealthy", Some(health.complaint())),
        Some((_, reason)) => ("ejected", Some(of_reason(reason).to_owned())),
        None => ("healthy", None),
    };
    let latency_us = health.latency.get_us(now_us);
    Endpoint {
        address: endpoint.label.to_string(),
        state,
        why: why.filter(|why| !why.is_empty()),
        ejected_for_ms: ejection.map(|(until_us, _)| until_us.saturating_sub(now_us) / 1000),
        in_use: false,
        priority: endpoint.priority,
        weight,
        share: Some(health.ramp()).filter(|ramp| *ramp < 100),
        zone: endpoint.zone.as_ref().map(|zone| zone.to_string()),
        metadata: endpoint.metadata.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect(),
        in_flight: stats.in_flight(),
        connections: stats.open(),
        latency_ms: (latency_us > 0.0).then_some((latency_us / 10.0).round() / 100.0),
        circuit_breaker: None,
    }
}

fn of_reason(reason: Reason) -> &'static str {
    match reason {
        Reason::Connect => "connections to it fail",
        Reason::Failures => "requests fail, one after the other",
        Reason::SuccessRate => "it fails much more often than the others",
        Reason::Latency => "it is much slower than the others",
    }
}

fn of_bulkhead(bulkhead: &Bulkhead, settings: &BulkheadSettings) -> BulkheadState {
    let adaptive = settings.adaptive.as_ref();
    let limit = adaptive.map_or(u32::MAX, |adaptive| bulkhead.adaptive.limit(adaptive));
    BulkheadState {
        requests: bulkhead.in_flight(),
        limit: settings.requests.unwrap_or(u32::MAX).min(limit),
        pending: bulkhead.pending(),
        baseline_ms: adaptive.map(|_| bulkhead.adaptive.baseline_us() as f64 / 1e3),
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
