//! What the tests of several modules need.

use std::sync::Arc;
use std::time::{Duration, Instant};

use ringway_config::snapshot::*;
use ringway_config::{Hub, Snapshot};
use ringway_core::router::RouterBuilder;

/// One listener, one route whose name needs escapes, one service with one endpoint.
pub(crate) fn snapshot() -> Snapshot {
    let second = Duration::from_secs(1);
    let route = Route {
        name: "products \"old\"".into(),
        action: Action::Respond(Respond { status: 200, content_type: "".into(), body: [].into() }),
        request_headers: Default::default(),
        response_headers: Default::default(),
        access: Default::default(),
        policy: Default::default(),
        body_bytes: None,
        log: true,
        criticality: ringway_core::overload::Criticality::Normal,
    };
    let service = Service {
        name: "product".into(),
        endpoints: vec![Endpoint {
            label: "127.0.0.1:9".into(),
            address: EndpointAddress::Tcp(([127, 0, 0, 1], 9).into()),
            weight: 1,
            priority: 0,
            zone: None,
            metadata: Arc::default(),
            tls: None,
        }],
        balance: Balance::RoundRobin,
        sticky: None,
        zones: None,
        watch: ringway_config::health::Watch { check: None, ejection: None, panic_threshold: 50 },
        pool: Pool { idle_per_endpoint: 1, connections_per_endpoint: None, idle: second, max_age: None, http2: None },
        timeouts: ServiceTimeouts { connect: second, answer: second, idle: second, head_bytes: 1024 },
        deadline_header: None,
        proxy_protocol: None,
        retry_stale: true,
        discovery: None,
        circuit_breaker: None,
        bulkhead: None,
        retries: None,
        retry_budget: ringway_config::resilience::Resilience::BUDGET,
        grpc_failures: Default::default(),
        tls: None,
    };
    Snapshot {
        runtime: Runtime {
            workers: Some(1),
            pin: false,
            cores: vec![],
            driver: DriverChoice::Auto,
            ring_entries: 64,
            busy_poll: None,
        },
        listeners: vec![Arc::new(listener(1))],
        routes: vec![Arc::new(route)],
        services: vec![Arc::new(service)],
        authenticators: vec![],
        subsets: vec![],
        rate_limits: vec![],
        limiters: vec![],
        concurrency_limits: vec![],
        concurrency: vec![],
        token_cache: TokenCache { entries: 8, bytes: 1 << 16, ttl: second },
        keys: vec![],
        admin: None,
        access_log: AccessLog::Off,
        audit_log: AuditLog::Off,
        drain: Drain { notice: second, timeout: second },
        limits: GlobalLimits { connections: 10, connections_per_ip: None },
        overload: None,
        redis: None,
        acme: None,
        redacted: "listeners: []\n".into(),
    }
}

/// A listener called `web` on this port of 127.0.0.1.
pub(crate) fn listener(port: u16) -> Listener {
    let second = Duration::from_secs(1);
    Listener {
        name: "web".into(),
        address: ([127, 0, 0, 1], port).into(),
        backlog: 16,
        router: RouterBuilder::new().build(),
        path: Default::default(),
        limits: ListenerLimits { head_bytes: 1024, headers: 8, requests_per_connection: None, pipelined: 1 },
        timeouts: ListenerTimeouts {
            head: second,
            idle: second,
            body: second,
            body_rate: 0,
            write: second,
            connection_age: None,
        },
        trusted_proxies: vec![],
        forwarded: ForwardedHeaders { x_forwarded: true, forwarded: false },
        via: "ringway".into(),
        trace: TraceStart::Off,
        proxy_status: false,
        server_timing: false,
        tls: None,
        redirect_to_https: None,
        proxy_protocol: None,
        http2: Http2 { enabled: false, max_concurrent_streams: 1, max_reset_streams: 1 },
    }
}

pub(crate) fn hub(snapshot: Snapshot) -> Arc<Hub> {
    let workers = snapshot.runtime.workers.unwrap_or(1);
    Hub::new(snapshot, workers)
}

/// Waits until it is so; fails after five seconds.
pub(crate) fn wait_for(it_is_so: impl Fn() -> bool) {
    let start = Instant::now();
    while !it_is_so() {
        assert!(start.elapsed() < Duration::from_secs(5), "waited for five seconds");
        std::thread::sleep(Duration::from_millis(2));
    }
}
