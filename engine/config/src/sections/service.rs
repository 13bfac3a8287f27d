//! Where requests are forwarded to.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use ringway_core::grpc::{Status, Statuses};
use ringway_core::http::Name as HeaderField;
use ringway_core::keepalive::KeepaliveSettings;
use ringway_core::proxy_protocol::Version;

use super::bulkhead::{self, AdaptiveSection, BulkheadSection};
use super::circuit_breaker::CircuitBreakerSection;
use super::discovery::DiscoverySection;
pub use super::endpoint::Lookup;
use super::endpoint::{Address, Endpoint};
pub(crate) use super::endpoint::{Resolver, system_lookup};
use super::headers::HeaderName;
use super::health_check::HealthCheckSection;
use super::key_list::Redis;
use super::outlier_ejection::OutlierEjectionSection;
use super::retries::RetriesSection;
use super::route::ServiceRef;
use super::service_tls::{Compiled, ServiceTlsSection};
use super::sticky::StickySection;
use super::zones::ZonesSection;
use crate::decode::{Cx, Decode, OneOrMore, Spanned};
use crate::error::Span;
use crate::health::Watch;
use crate::percent::Percent;
use crate::resilience::Resilience;
use crate::scalar::{Int, Name, OrOff, choice};
use crate::shape::shape;
use crate::snapshot::{self, Balance};
use crate::tree::Node;
use crate::units::{KIB, MIB, Size, Time, Timeout};

shape! {
    /// Where requests are forwarded to.
    pub(crate) struct Service {
        /// Names it in routes, logs and metrics. Unique.
        name: Spanned<Name>,
        /// `host:port`, `unix:/path`, or with a weight `{ address: host:port, weight: 2 }`. A host name is resolved
        /// once, when the file is read; each of its addresses becomes an endpoint.
        endpoints: Option<OneOrMore<Endpoint>>,
        /// Where its endpoints are found while the gateway runs, in place of `endpoints`.
        discovery: Option<Spanned<DiscoverySection>>,
        /// TLS to its endpoints; in the clear without it.
        tls: Option<Spanned<ServiceTlsSection>>,
        /// What it speaks. `http1`: HTTP/1.1. `http2`: HTTP/2, from the first byte on (prior knowledge), over TLS by ALPN; what
        /// gRPC needs.
        protocol: Spanned<Protocol> = "http1",
        /// How it is spoken to in HTTP/2.
        http2: Option<Spanned<Http2Section>>,
        /// How an endpoint is chosen. `least_loaded`: of two at random, by weight, the one with fewer requests in
        /// flight. `peak_ewma`: the one that is likely to answer sooner, by its latency of late and its requests in flight.
        /// `round_robin`: in turn, by weight. `random`: by weight. `{ consistent_hash: { on: header X-Tenant } }`: by what the
        /// request has, always the same endpoint.
        balance: Balance = "least_loaded",
        /// Who has been with an endpoint once comes back to it, by a cookie of the gateway's.
        sticky: Option<Spanned<StickySection>>,
        /// Asks each endpoint at intervals how it is.
        health_check: Option<Spanned<HealthCheckSection>>,
        /// Leaves endpoints out for a while that answer badly.
        outlier_ejection: Option<Spanned<OutlierEjectionSection>>,
        /// Share of the endpoints that must be usable. Where fewer are, those of the next `priority` join them, and where there are none,
        /// all are used, whatever is known of them. `0%`: what is not usable is never used.
        panic_threshold: Percent<0, 100> = "50%",
        /// Requests stay in the gateway's own zone. Without it: zones do not matter.
        zones: Option<Spanned<ZonesSection>>,
        /// Connections that are kept for the next request.
        pool: PoolSection = "{}",
        /// How long the service may take.
        timeouts: ServiceTimeouts = "{}",
        /// Status line and headers of an answer; 502 above.
        head: Size<{ KIB }, { MIB }> = "32KiB",
        /// Send a request again, once, on a fresh connection when a pooled one turns out to have been closed before
        /// any answer came, if that is safe (RFC 9110 section 9.2.2).
        retry_stale: bool = "true",
        /// Another try for requests that failed.
        retries: Option<RetriesSection>,
        /// Leaves the service alone for a while when it fails too often.
        circuit_breaker: Option<Spanned<CircuitBreakerSection>>,
        /// The statuses of gRPC with which a call counts as failed, for `circuit_breaker` and `outlier_ejection`; those that
        /// stand for a 5xx of HTTP but `unimplemented`, unless said otherwise.
        grpc_failures: OrOff<OneOrMore<Status>> = "[unknown, deadline_exceeded, internal, unavailable, data_loss]",
        /// How many requests it may have in flight. Without it: any number.
        bulkhead: Option<BulkheadSection>,
        /// Finds out how many requests it can take at a time, by its latency, and lets no more be in flight; 503 above.
        adaptive_concurrency: Option<Spanned<AdaptiveSection>>,
        /// The header that tells the service in how many milliseconds the answer must be there: what is left of the route's
        /// `timeouts.request` or the time of one try, whichever is less. A client's own counts where that is less.
        deadline_header: Option<Spanned<HeaderName>>,
        /// Tell the service the client's address with the PROXY protocol, `v1` or `v2`. Each request then has a connection of
        /// its own, which is not kept.
        proxy_protocol: Option<Version>,
    }

    /// HTTP/2 to a service (RFC 9113).
    pub(crate) struct Http2Section {
        /// Connections per endpoint and worker; one more is opened when the others have as many requests as they may, and
        /// 503 is answered when there are this many.
        connections: Int<1, 1024> = "16",
        /// Requests at a time on one connection; fewer where the service says so.
        max_concurrent_streams: Int<1, 1000> = "100",
        /// Asks with PING whether the service is still there, while requests wait for it. Without it nobody asks.
        keepalive: Option<Spanned<KeepaliveSection>>,
    }

    /// Whether a connection is still alive.
    pub(crate) struct KeepaliveSection {
        /// Nothing has come from the service for so long: it is asked. Servers of gRPC may take more than one PING in five minutes
        /// for abuse.
        interval: Time<100, 3_600_000> = "30s",
        /// Nothing has come for so long since then: the connection is closed, and what waits for an answer fails as on any that is
        /// lost. At most `interval`.
        timeout: Time<100, 120_000> = "10s",
    }

    /// Connections that are kept for the next request.
    pub(crate) struct PoolSection {
        /// Idle connections kept per endpoint and worker. Does not count for HTTP/2.
        idle: Int<0, 65_536> = "512",
        /// Open connections per endpoint, all workers together; 503 above.
        connections: OrOff<Int<1, 1_000_000>> = "off",
        /// An idle connection is closed after this time. Keep it below the service's own.
        idle_timeout: Timeout = "30s",
        /// A connection is not used again after this age.
        max_age: OrOff<Timeout> = "off",
    }

    /// How long the service may take.
    pub(crate) struct ServiceTimeouts {
        /// Until a connection stands, its TLS handshake included; for a WebSocket over HTTP/2, until the service has said that
        /// it takes one. 504 above.
        connect: Timeout = "1s",
        /// From the request sent to the answer's head; 504 above.
        answer: Timeout = "15s",
        /// Between two reads of the answer's body, and between two writes of the request's.
        idle: Timeout = "60s",
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Protocol {
    Http1,
    Http2,
}

choice! {
    Protocol {
        "http1" => Protocol::Http1,
        "http2" => Protocol::Http2,
    }
}

choice! {
    Status {
        "cancelled" => Status::CANCELLED,
        "unknown" => Status::UNKNOWN,
        "invalid_argument" => Status::INVALID_ARGUMENT,
        "deadline_exceeded" => Status::DEADLINE_EXCEEDED,
        "not_found" => Status::NOT_FOUND,
        "already_exists" => Status::ALREADY_EXISTS,
        "permission_denied" => Status::PERMISSION_DENIED,
        "resource_exhausted" => Status::RESOURCE_EXHAUSTED,
        "failed_precondition" => Status::FAILED_PRECONDITION,
        "aborted" => Status::ABORTED,
        "out_of_range" => Status::OUT_OF_RANGE,
        "unimplemented" => Status::UNIMPLEMENTED,
        "internal" => Status::INTERNAL,
        "unavailable" => Status::UNAVAILABLE,
        "data_loss" => Status::DATA_LOSS,
        "unauthenticated" => Status::UNAUTHENTICATED,
    }
}

impl Service {
    /// `zone`: the gateway's own.
    pub(crate) fn compile(
        self,
        resolver: &mut Resolver<'_>,
        redis: Redis<'_>,
        zone: Option<&Arc<str>>,
        cx: &mut Cx,
    ) -> snapshot::Service {
        let tls = self.tls.and_then(|tls| tls.value.compile(tls.span, cx));
        let http2 = http2(&self.protocol, self.http2, cx);
        if http2.is_some() && self.proxy_protocol.is_some() {
            let message = "the streams of a connection are of many clients: `proxy_protocol` cannot say of whom";
            cx.error(self.protocol.span, message, "`protocol: http1`, or leave `proxy_protocol` out");
        }
        let (endpoints, discovery) = match (self.endpoints, self.discovery) {
            (Some(written), None) => (endpoints(written.0, tls.as_ref(), resolver, cx), None),
            (None, Some(section)) => {
                (Vec::new(), DiscoverySection::compile(section, &self.name.value, tls.as_ref(), redis, cx))
            }
            (Some(_), Some(section)) => {
                cx.error(section.span, "the service has `endpoints` already", "either `endpoints` or `discovery`");
                (Vec::new(), None)
            }
            (None, None) => {
                let message = "the key `endpoints` is missing: where the service is";
                cx.error(self.name.span, message, "`endpoints: 127.0.0.1:8080`, or `discovery`");
                (Vec::new(), None)
            }
        };
        let answer = ("timeouts.answer", Some(self.timeouts.answer.0));
        let (retries, budget) = self.retries.map(|section| section.compile(answer, cx)).unzip();
        snapshot::Service {
            name: Arc::from(self.name.value.0),
            endpoints,
            discovery,
            balance: self.balance,
            watch: Watch {
                check: self.health_check.and_then(|check| check.compile(http2.is_some(), cx)),
                ejection: self.outlier_ejection.map(|ejection| ejection.compile(cx)),
                panic_threshold: self.panic_threshold.0,
            },
            sticky: self.sticky.and_then(|sticky| sticky.compile(cx)),
            zones: self.zones.and_then(|zones| zones.compile(zone, cx)),
            pool: snapshot::Pool {
                // Whose connection it is was said when it began.
                idle_per_endpoint: if self.proxy_protocol.is_some() { 0 } else { self.pool.idle.0 as usize },
                connections_per_endpoint: self.pool.connections.0.map(|limit| limit.0 as usize),
                idle: self.pool.idle_timeout.0,
                max_age: self.pool.max_age.0.map(|age| age.0),
                http2,
            },
            timeouts: snapshot::ServiceTimeouts {
                connect: self.timeouts.connect.0,
                answer: self.timeouts.answer.0,
                idle: self.timeouts.idle.0,
                head_bytes: self.head.0 as usize,
            },
            retry_stale: self.retry_stale,
            circuit_breaker: self.circuit_breaker.map(|breaker| breaker.compile(cx)),
            bulkhead: bulkhead::compile(self.bulkhead, self.adaptive_concurrency, cx),
            retries,
            retry_budget: budget.unwrap_or(Resilience::BUDGET),
            grpc_failures: Statuses::of(self.grpc_failures.0.into_iter().flat_map(|statuses| statuses.0)),
            tls: tls.map(|tls| tls.service),
            deadline_header: self.deadline_header.map(|name| deadline_header(name, cx)),
            proxy_protocol: self.proxy_protocol,
        }
    }
}

fn deadline_header(name: Spanned<HeaderName>, cx: &mut Cx) -> Arc<str> {
    let Spanned { value: HeaderName(name), span } = name;
    if HeaderField::of(&name) != HeaderField::Other || name == "grpc-timeout" {
        let hint = "such as `X-Request-Timeout-Ms`";
        cx.error(span, format!("the gateway writes `{name}` for another purpose"), hint);
    }
    Arc::from(name)
}

fn http2(
    protocol: &Spanned<Protocol>,
    section: Option<Spanned<Http2Section>>,
    cx: &mut Cx,
) -> Option<snapshot::ServiceHttp2> {
    let section = match (protocol.value, section) {
        (Protocol::Http1, None) => return None,
        (Protocol::Http1, Some(section)) => {
            let message = "the service speaks HTTP/1.1: what is said of HTTP/2 does not count";
            cx.error(section.span, message, "say `protocol: http2` as well");
            return None;
        }
        (Protocol::Http2, Some(section)) => section.value,
        (Protocol::Http2, None) => Http2Section::decode(&Node::literal("{}", protocol.span), cx)?,
    };
    Some(snapshot::ServiceHttp2 {
        connections: section.connections.0 as usize,
        max_concurrent_streams: section.max_concurrent_streams.0 as usize,
        keepalive: section.keepalive.map(|keepalive| {
            let KeepaliveSection { interval, timeout } = keepalive.value;
            if timeout.0 > interval.0 {
                cx.error(keepalive.span, "`timeout` is longer than `interval`", "who is there answers at once");
            }
            KeepaliveSettings { interval: interval.0, timeout: timeout.0 }
        }),
    })
}

/// A service falls back to another one, which then answers by itself: no chain, and no circle.
pub(crate) fn check_fallbacks(services: &[Spanned<Service>], cx: &mut Cx) {
    for service in services {
        let Some(fallback) = fallback_of(&service.value) else { continue };
        let Some(other) =
            services.iter().find(|other| cx.names.services.get(&other.value.name.value.0) == Some(&fallback.value.0))
        else {
            continue;
        };
        if std::ptr::eq(service, other) {
            cx.error(fallback.span, "a service cannot stand in for itself", "name another one");
        } else if fallback_of(&other.value).is_some() {
            let message = format!("`{}` falls back to a third service itself", other.value.name.value.0);
            cx.error(fallback.span, message, "one service may stand in for another");
        }
    }
}

fn fallback_of(service: &Service) -> Option<&Spanned<ServiceRef>> {
    service.circuit_breaker.as_ref()?.value.fallback.as_ref()?.value.service.as_ref()
}

/// Resolves the endpoints. One that is written twice is an error; an address that two names share is kept once.
fn endpoints(
    written: Vec<Endpoint>,
    tls: Option<&Compiled>,
    resolver: &mut Resolver<'_>,
    cx: &mut Cx,
) -> Vec<snapshot::Endpoint> {
    let mut first: HashMap<Address, Span> = HashMap::new();
    let (mut endpoints, mut known) = (Vec::new(), HashSet::new());
    for written in written {
        let address = &written.address;
        if let Some(at) = first.get(&address.value) {
            let place = cx.sink.place(*at);
            cx.error(
                address.span,
                format!("the endpoint occurs twice, first at {place}"),
                "give it a `weight` instead",
            );
            continue;
        }
        first.insert(address.value.clone(), address.span);
        let tls = tls.and_then(|tls| tls.of_endpoint(address, cx));
        match resolver.resolve(&address.value) {
            Ok(found) => {
                for (label, address) in found {
                    if known.insert(address.clone()) {
                        endpoints.push(written.at(label.into(), address, tls.clone()));
                    }
                }
            }
            Err(error) => {
                let message = format!("the endpoint's name cannot be resolved: {error}");
                cx.error(address.span, message, "names are resolved when the file is read");
            }
        }
    }
    endpoints
}
