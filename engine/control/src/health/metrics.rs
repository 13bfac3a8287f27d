//! What the metrics say of endpoints.

use ringway_config::Hub;
use ringway_config::health::Health;
use ringway_config::snapshot::{Endpoint, Service};
use ringway_core::health::EndpointHealth;

use crate::exposition::{Exposition, Family};
use crate::families as f;

/// In the order of [`crate::families`].
pub(crate) fn render(out: &mut Exposition, hub: &Hub) {
    let published = hub.published();
    let now_us = hub.epoch.elapsed().as_micros() as u64;
    let services: Vec<(&Service, &Health)> =
        published.snapshot.services.iter().map(AsRef::as_ref).zip(&published.health).collect();

    let mut samples = out.family(&f::SERVICE_PANIC);
    for (service, health) in &services {
        samples.count(&[&service.name], health.choose(service).1.is_panic.into());
    }
    let mut samples = out.family(&f::LOCAL_SHARE);
    for (service, health) in services.iter().filter(|(service, _)| service.zones.is_some()) {
        let (candidates, chosen) = health.choose(service);
        samples.value(&[&service.name], chosen.local_share(&candidates));
    }
    let mut samples = out.family(&f::SERVICE_PRIORITY);
    for (service, health) in &services {
        if let Some(priority) = health.priority_in_use(&health.choose(service).1) {
            samples.value(&[&service.name], f64::from(priority));
        }
    }
    type Gauge<'g> = &'g dyn Fn(&Endpoint, &EndpointHealth) -> Option<f64>;
    let mut gauge = |family: &'static Family, wanted: fn(&Service) -> bool, value: Gauge<'_>| {
        let mut samples = out.family(family);
        for (service, health) in services.iter().filter(|(service, _)| wanted(service)) {
            for (endpoint, health) in health.targets.iter().zip(&health.endpoints) {
                if let Some(value) = value(endpoint, health) {
                    samples.value(&[&service.name, &endpoint.label], value);
                }
            }
        }
    };
    let weight = |endpoint: &Endpoint, health: &EndpointHealth| Some(f64::from(health.weight(endpoint.weight)) / 100.0);
    gauge(&f::ENDPOINT_WEIGHT, |_| true, &weight);
    let latency = |_: &Endpoint, health: &EndpointHealth| {
        Some(health.latency.get_us(now_us) / 1e6).filter(|latency| *latency > 0.0)
    };
    gauge(&f::ENDPOINT_LATENCY, |_| true, &latency);
    let is_healthy = |_: &Endpoint, health: &EndpointHealth| Some(f64::from(u8::from(health.is_healthy())));
    gauge(&f::ENDPOINT_HEALTHY, |service| service.watch.check.is_some(), &is_healthy);
    let is_ejected = |_: &Endpoint, health: &EndpointHealth| Some(f64::from(u8::from(health.ejection().is_some())));
    gauge(&f::ENDPOINT_EJECTED, |service| service.watch.ejection.is_some(), &is_ejected);

    let endpoints = |wanted: fn(&Service) -> bool| {
        let wanted = services.iter().filter(move |(service, _)| wanted(service));
        wanted.flat_map(|(service, health)| health.endpoints.iter().map(|health| (&*service.name, health)))
    };
    let mut samples = out.family(&f::HEALTH_CHECKS);
    for (service, health) in endpoints(|service| service.watch.check.is_some()) {
        for (result, count) in ["success", "failure"].into_iter().zip(health.checks()) {
            samples.count(&[service, &health.endpoint, result], count);
        }
    }
    let mut samples = out.family(&f::EJECTIONS);
    for (service, health) in endpoints(|service| service.watch.ejection.is_some()) {
        for (reason, count) in health.ejections() {
            samples.count(&[service, &health.endpoint, reason], count);
        }
    }
}
