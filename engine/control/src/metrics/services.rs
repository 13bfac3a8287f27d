//! What is counted of services and their endpoints.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use ringway_config::Hub;
use ringway_config::hub::Published;
use ringway_config::resilience::Retries;
use ringway_config::snapshot::{Action, Route, RouteRetries};
use ringway_core::breaker::{Breaker, State};
use ringway_core::stats::{EndpointCell, Hedged, ServiceCell};

use super::{CounterOf, merge};
use crate::exposition::{Exposition, Family};
use crate::families as f;

pub(super) fn calls(out: &mut Exposition, published: &Published) {
    let mut samples = out.family(&f::BACKEND_ERRORS);
    for service in &published.services {
        let mut kinds = BTreeMap::new();
        for (kind, count) in service.workers.iter().flat_map(|cell| cell.errors()) {
            *kinds.entry(kind).or_insert(0) += count;
        }
        for (kind, count) in kinds {
            samples.count(&[&service.service, kind], count);
        }
    }

    let mut samples = out.family(&f::BACKEND_HANDSHAKES);
    for (stats, service) in published.services.iter().zip(&published.snapshot.services) {
        if service.tls.is_none() {
            continue;
        }
        let mut results = BTreeMap::new();
        for (result, count) in stats.workers.iter().flat_map(|cell| cell.handshakes()) {
            *results.entry(result).or_insert(0) += count;
        }
        for (result, count) in results {
            samples.count(&[&stats.service, result], count);
        }
    }

    let mut samples = out.family(&f::BACKEND_DURATION);
    for service in &published.services {
        let (buckets, sum_us) = merge(service.workers.iter().map(|cell| &cell.latency));
        samples.histogram(&[&service.service], &buckets, sum_us);
    }

    let mut samples = out.family(&f::STALE_RETRIES);
    for service in &published.services {
        let retries = service.workers.iter().map(|cell| cell.stale_retries.get()).sum();
        samples.count(&[&service.service], retries);
    }

    resilience(out, published);
    bulkheads(out, published);

    let mut samples = out.family(&f::GRPC_REQUESTS);
    for service in &published.services {
        let mut calls = BTreeMap::new();
        for (status, count) in service.workers.iter().flat_map(|cell| cell.calls()).filter(|(_, count)| *count > 0) {
            *calls.entry(status).or_insert(0) += count;
        }
        for (status, count) in calls {
            samples.count(&[&service.service, &status.to_string()], count);
        }
    }
}

/// Without samples of services that have no breaker, or do not try again.
fn resilience(out: &mut Exposition, published: &Published) {
    type Column = (&'static str, CounterOf<ServiceCell>);
    let families: [(&'static Family, [Column; 2]); 2] = [
        (&f::RETRIES, [("success", |cell| &cell.retries_succeeded), ("failure", |cell| &cell.retries_failed)]),
        (
            &f::RETRIES_DENIED,
            [("budget", |cell| &cell.retries_denied_by_budget), ("breaker", |cell| &cell.retries_denied_by_breaker)],
        ),
    ];
    let tries = |service: usize, wanted: &dyn Fn(&Retries) -> bool| {
        let of_route = |route: &Arc<Route>| match &route.action {
            Action::Forward(forward) => {
                let own = matches!(&forward.retries, RouteRetries::Own(own) if wanted(own));
                own && forward.service.services().contains(&service)
            }
            _ => false,
        };
        let known = published.snapshot.services.get(service).and_then(|known| known.retries.as_ref());
        known.is_some_and(wanted) || published.snapshot.routes.iter().any(of_route)
    };
    for (family, columns) in families {
        let mut samples = out.family(family);
        for (_, stats) in published.services.iter().enumerate().filter(|(index, _)| tries(*index, &|_| true)) {
            for (label, counter) in columns {
                let count = stats.workers.iter().map(|cell| counter(cell).get()).sum();
                samples.count(&[&stats.service, label], count);
            }
        }
    }
    for (family, outcomes) in [
        (&f::HEDGES, [Hedged::Won, Hedged::Lost, Hedged::Failed]),
        (&f::HEDGES_DENIED, [Hedged::NoBudget, Hedged::NoPassage, Hedged::NoEndpoint]),
    ] {
        let mut samples = out.family(family);
        let hedged = |index: &usize| tries(*index, &|retries| retries.hedge.is_some());
        for (_, stats) in published.services.iter().enumerate().filter(|(index, _)| hedged(index)) {
            for outcome in outcomes {
                let count = stats.workers.iter().map(|cell| cell.hedges.get(outcome)).sum();
                samples.count(&[&stats.service, outcome.label()], count);
            }
        }
    }
    let mut samples = out.family(&f::STICKY_REQUESTS);
    for (stats, service) in published.services.iter().zip(&published.snapshot.services) {
        if service.sticky.is_none() {
            continue;
        }
        let mut sessions = BTreeMap::new();
        for (session, count) in stats.workers.iter().flat_map(|cell| cell.sessions()) {
            *sessions.entry(session).or_insert(0) += count;
        }
        for (session, count) in sessions {
            samples.count(&[&stats.service, session], count);
        }
    }
    let narrowed = |service: usize| {
        let of_route = |route: &Arc<Route>| match &route.action {
            Action::Forward(forward) => forward.service.services().contains(&service) && forward.subset.is_some(),
            _ => false,
        };
        published.snapshot.routes.iter().any(of_route)
    };
    let mut samples = out.family(&f::SUBSET_FALLBACKS);
    for (_, stats) in published.services.iter().enumerate().filter(|(index, _)| narrowed(*index)) {
        samples.count(&[&stats.service], stats.workers.iter().map(|cell| cell.subset_fallbacks.get()).sum());
    }
    let services = published.snapshot.services.iter().zip(&published.targets).zip(&published.resilience);
    let breakers: Vec<(&str, &str, &Breaker)> = services
        .flat_map(|((service, targets), known)| {
            let own = known.breaker.iter().map(|breaker| (&*service.name, "", &**breaker));
            let endpoints = targets.iter().zip(&known.endpoint_breakers);
            own.chain(endpoints.map(|(endpoint, breaker)| (&*service.name, &*endpoint.label, &**breaker)))
        })
        .collect();
    let mut samples = out.family(&f::BREAKER_STATE);
    for (service, endpoint, breaker) in &breakers {
        samples.count(&[service, endpoint], breaker.state() as u64);
    }
    let mut samples = out.family(&f::BREAKER_TRANSITIONS);
    for (service, endpoint, breaker) in &breakers {
        for to in State::ALL {
            samples.count(&[service, endpoint, to.label()], breaker.transitions(to));
        }
    }
    let mut samples = out.family(&f::BREAKER_REJECTED);
    for (stats, service) in published.services.iter().zip(&published.snapshot.services) {
        if service.circuit_breaker.is_some() {
            samples.count(&[&stats.service], stats.workers.iter().map(|cell| cell.breaker_rejected.get()).sum());
        }
    }
}

/// Without samples of services that have none.
fn bulkheads(out: &mut Exposition, published: &Published) {
    let services = published.snapshot.services.iter().zip(&published.resilience).zip(&published.services);
    let bulkheads: Vec<_> = services
        .filter_map(|((service, known), stats)| Some((&*service.name, service.bulkhead?, &known.bulkhead, stats)))
        .collect();
    let mut samples = out.family(&f::BULKHEAD_REJECTED);
    for (service, _, _, stats) in &bulkheads {
        let mut reasons = BTreeMap::new();
        for (reason, count) in stats.workers.iter().flat_map(|cell| cell.full()) {
            *reasons.entry(reason).or_insert(0) += count;
        }
        for (reason, count) in reasons {
            samples.count(&[service, reason], count);
        }
    }
    let mut samples = out.family(&f::BULKHEAD_REQUESTS);
    for (service, _, bulkhead, _) in &bulkheads {
        samples.count(&[service], bulkhead.in_flight().into());
    }
    let mut samples = out.family(&f::BULKHEAD_PENDING);
    for (service, _, bulkhead, _) in &bulkheads {
        samples.count(&[service], bulkhead.pending().into());
    }
    let adaptive =
        || bulkheads.iter().filter_map(|(service, known, of, _)| Some((service, known.adaptive?, &of.adaptive)));
    let mut samples = out.family(&f::ADAPTIVE_LIMIT);
    for (service, settings, known) in adaptive() {
        samples.count(&[service], known.limit(&settings).into());
    }
    let mut samples = out.family(&f::ADAPTIVE_BASELINE);
    for (service, _, known) in adaptive() {
        samples.value(&[service], known.baseline_us() as f64 / 1e6);
    }
}

pub(super) fn endpoints(out: &mut Exposition, published: &Published) {
    let columns: [(&'static Family, CounterOf<EndpointCell>); 7] = [
        (&f::ENDPOINT_IN_FLIGHT, |cell| &cell.in_flight),
        (&f::ENDPOINT_IDLE, |cell| &cell.idle),
        (&f::ENDPOINT_OPEN, |cell| &cell.open),
        (&f::ENDPOINT_REQUESTS, |cell| &cell.requests),
        (&f::ENDPOINT_CONNECTS, |cell| &cell.connects),
        (&f::ENDPOINT_REUSES, |cell| &cell.reuses),
        (&f::ENDPOINT_KEEPALIVE_TIMEOUTS, |cell| &cell.keepalive_timeouts),
    ];
    for (family, counter) in columns {
        let mut samples = out.family(family);
        for endpoint in published.endpoints.iter().flatten() {
            let sum = endpoint.workers.iter().map(|cell| counter(cell).get()).sum();
            samples.count(&[&endpoint.service, &endpoint.endpoint], sum);
        }
    }
}

/// Without samples of services whose endpoints are written.
pub(super) fn discovery(out: &mut Exposition, hub: &Hub, published: &Published) {
    let services = published.snapshot.services.iter().zip(&published.targets);
    let found: Vec<_> = services
        .filter_map(|(service, targets)| Some((&*service.name, targets.len(), hub.discovery_stats(&service.name)?)))
        .collect();
    let mut samples = out.family(&f::DISCOVERY_LOOKUPS);
    for (service, _, stats) in &found {
        for (result, count) in [("found", &stats.found), ("empty", &stats.empty), ("failure", &stats.failed)] {
            samples.count(&[service, result], count.load(Ordering::Relaxed));
        }
    }
    let mut samples = out.family(&f::DISCOVERY_CHANGES);
    for (service, _, stats) in &found {
        samples.count(&[service], stats.changes.load(Ordering::Relaxed));
    }
    let mut samples = out.family(&f::DISCOVERY_ENDPOINTS);
    for (service, endpoints, _) in &found {
        samples.count(&[service], *endpoints as u64);
    }
}
