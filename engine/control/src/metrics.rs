//! The counters of all workers, merged into one exposition. Runs when somebody asks, off every request's path.

mod services;
mod traffic;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use ringway_config::Hub;
use ringway_config::hub::Published;
use ringway_core::auth::{Kind, Stats};
use ringway_core::limit::{Concurrency, Limiter, Mode};
use ringway_core::stats::{
    Counter, Histogram, LimitStats, REFUSED_CLIENTS_MAX, RouteStats, TunnelCounters, WorkerCell,
};

use crate::exposition::{Buckets, Exposition, Family, Format};
use crate::redis::RedisStats;
use crate::{families as f, health, process};

/// The version that `gateway_build_info`, `/health` and `--version` tell.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
/// Set where the build has `RINGWAY_COMMIT` in its environment.
pub const COMMIT: Option<&str> = option_env!("RINGWAY_COMMIT");

/// Picks one counter of a cell.
type CounterOf<Cell> = fn(&Cell) -> &Counter;

/// Everything in [`crate::families::ALL`], in that order.
pub fn render(hub: &Hub, redis: &RedisStats, started: SystemTime, format: Format) -> String {
    let published = hub.published();
    let mut out = Exposition::new(format);
    requests(&mut out, &published, hub);
    http2(&mut out, hub);
    tls(&mut out, &published);
    acme(&mut out, &published, hub);
    proxy_protocol(&mut out, &published);
    authenticators(&mut out, &published);
    rate_limits(&mut out, &published);
    concurrency_limits(&mut out, &published);
    traffic::render(&mut out, &published);
    services::calls(&mut out, &published);
    services::endpoints(&mut out, &published);
    services::discovery(&mut out, hub, &published);
    health::render(&mut out, hub);
    workers(&mut out, hub);
    configuration(&mut out, hub, &published);
    of_redis(&mut out, redis);
    this_process(&mut out, started);
    out.finish()
}

/// The name of a worker's driver: `io_uring`, `epoll`, or `none` before it is up.
pub fn driver_name(cell: &WorkerCell) -> &'static str {
    match cell.driver.get() {
        1 => "io_uring",
        2 => "epoll",
        _ => "none",
    }
}

fn requests(out: &mut Exposition, published: &Published, hub: &Hub) {
    let routes: Vec<&RouteStats> = published.routes.iter().chain([&published.unmatched]).map(AsRef::as_ref).collect();

    let mut samples = out.family(&f::REQUESTS);
    for route in &routes {
        let mut statuses = BTreeMap::new();
        for (status, count) in route.workers.iter().flat_map(|cell| cell.statuses()) {
            *statuses.entry(status).or_insert(0) += count;
        }
        for (status, count) in statuses {
            samples.count(&[&route.route, &status], count);
        }
    }

    let mut samples = out.family(&f::REQUEST_DURATION);
    for route in &routes {
        let (buckets, sum_us) = merge(route.workers.iter().map(|cell| &cell.latency));
        samples.histogram(&[&route.route], &buckets, sum_us);
    }

    let mut samples = out.family(&f::SHED);
    for route in &routes {
        let mut reasons = BTreeMap::new();
        for (reason, count) in route.workers.iter().flat_map(|cell| cell.shed()).filter(|(_, count)| *count > 0) {
            *reasons.entry(reason).or_insert(0) += count;
        }
        for (reason, count) in reasons {
            samples.count(&[&route.route, reason], count);
        }
    }

    out.family(&f::ACTIVE_CONNECTIONS).count(&[], total(hub, |cell| &cell.connections));
    out.family(&f::ACTIVE_REQUESTS).count(&[], total(hub, |cell| &cell.requests));
    out.family(&f::ACTIVE_TUNNELS).count(&[], total(hub, |cell| &cell.tunnels));
    tunnels(out, &routes);
}

/// Without samples of routes that had none.
fn tunnels(out: &mut Exposition, routes: &[&RouteStats]) {
    let sum = |stats: &RouteStats, counter: CounterOf<TunnelCounters>| -> u64 {
        stats.workers.iter().map(|cell| counter(&cell.tunnels).get()).sum()
    };
    let protocols: [(&str, CounterOf<TunnelCounters>); 2] =
        [("websocket", |tunnels| &tunnels.websocket), ("other", |tunnels| &tunnels.other)];
    let mut samples = out.family(&f::TUNNELS);
    for (stats, (protocol, counter)) in routes.iter().flat_map(|stats| protocols.map(|column| (stats, column))) {
        let count = sum(stats, counter);
        if count > 0 {
            samples.count(&[&stats.route, protocol], count);
        }
    }
    let columns: [(&'static Family, CounterOf<TunnelCounters>); 2] = [
        (&f::TUNNEL_RECEIVED_BYTES, |tunnels| &tunnels.bytes_in),
        (&f::TUNNEL_SENT_BYTES, |tunnels| &tunnels.bytes_out),
    ];
    for (family, counter) in columns {
        let mut samples = out.family(family);
        for stats in routes {
            let bytes = sum(stats, counter);
            if bytes > 0 {
                samples.count(&[&stats.route], bytes);
            }
        }
    }
}

fn http2(out: &mut Exposition, hub: &Hub) {
    out.family(&f::HTTP2_CONNECTIONS).count(&[], total(hub, |cell| &cell.http2_connections));
    let mut kinds = BTreeMap::new();
    for (kind, count) in hub.workers.workers.iter().flat_map(|cell| cell.http2_abuse()) {
        *kinds.entry(kind).or_insert(0) += count;
    }
    let mut samples = out.family(&f::HTTP2_ABUSE);
    for (kind, count) in kinds {
        samples.count(&[kind], count);
    }
}

fn tls(out: &mut Exposition, published: &Published) {
    let mut samples = out.family(&f::TLS_HANDSHAKES);
    for (stats, listener) in published.tls.iter().zip(&published.snapshot.listeners) {
        if listener.tls.is_none() {
            continue;
        }
        let mut results = BTreeMap::new();
        for (result, count) in stats.workers.iter().flat_map(|cell| cell.handshakes()) {
            *results.entry(result).or_insert(0) += count;
        }
        for (result, count) in results {
            samples.count(&[&stats.listener, result], count);
        }
    }
    let mut samples = out.family(&f::TLS_CONNECTIONS);
    for stats in &published.tls {
        let mut suites = BTreeMap::new();
        for (suite, count) in stats.workers.iter().flat_map(|cell| cell.connections()).filter(|(_, count)| *count > 0) {
            *suites.entry(suite).or_insert(0) += count;
        }
        for ((version, cipher), count) in suites {
            samples.count(&[&stats.listener, version, cipher], count);
        }
    }
    let now = process::unix_ms(SystemTime::now()) as f64 / 1000.0;
    let mut soonest = BTreeMap::new();
    let listeners = published.snapshot.listeners.iter().filter_map(|listener| listener.tls.as_ref());
    let services = published.snapshot.services.iter().flat_map(|service| service.all_tls().map(|(_, tls)| tls));
    let own = services.filter_map(|tls| tls.certificate.clone());
    for pair in listeners.flat_map(|tls| tls.certificates.pairs()).chain(own) {
        let at = soonest.entry(pair.label().to_owned()).or_insert(pair.not_after);
        *at = pair.not_after.min(*at);
    }
    let mut samples = out.family(&f::CERTIFICATE_EXPIRY);
    for (name, at) in soonest {
        samples.value(&[&name], at as f64 - now);
    }
}

/// Without samples where nothing is ordered.
fn acme(out: &mut Exposition, published: &Published, hub: &Hub) {
    // Of several listeners with the same names one stands for all.
    let certificates = published.snapshot.acme.iter().flat_map(|acme| &acme.certificates);
    let by_name: BTreeMap<&str, _> = certificates.map(|managed| (managed.label(), managed)).collect();
    let mut samples = out.family(&f::ACME_ORDERS);
    if published.snapshot.acme.is_some() {
        samples.count(&["success"], hub.acme_orders.succeeded.load(Ordering::Relaxed));
        samples.count(&["failure"], hub.acme_orders.failed.load(Ordering::Relaxed));
    }
    let mut samples = out.family(&f::ACME_ISSUED);
    for (name, managed) in &by_name {
        samples.count(&[name], managed.issued().is_some().into());
    }
    let mut samples = out.family(&f::ACME_RENEWAL);
    for (name, managed) in &by_name {
        if let Some(at) = managed.status().next_order {
            samples.value(&[name], at as f64);
        }
    }
}

fn proxy_protocol(out: &mut Exposition, published: &Published) {
    let mut samples = out.family(&f::PROXY_PROTOCOL_ERRORS);
    for (stats, listener) in published.tls.iter().zip(&published.snapshot.listeners) {
        if listener.proxy_protocol.is_some() {
            samples.count(&[&stats.listener], stats.workers.iter().map(|cell| cell.proxy_protocol_errors.get()).sum());
        }
    }
}

fn authenticators(out: &mut Exposition, published: &Published) {
    let mut samples = out.family(&f::AUTHENTICATIONS);
    for stats in &published.authenticators {
        let mut outcomes = BTreeMap::new();
        for (outcome, count) in stats.workers.iter().flat_map(|cell| cell.outcomes()) {
            *outcomes.entry(outcome).or_insert(0) += count;
        }
        for (outcome, count) in outcomes {
            samples.count(&[&stats.authenticator, outcome], count);
        }
    }
    let mut samples = out.family(&f::AUTH_SERVICE_BREAKER);
    for (stats, authenticator) in published.authenticators.iter().zip(&published.snapshot.authenticators) {
        if matches!(authenticator.kind, Kind::Service(_)) {
            let open = stats.workers.iter().map(|cell| cell.breaker_open.get()).sum();
            samples.count(&[&stats.authenticator], open);
        }
    }
    type Gauge = fn(&Stats) -> &AtomicU64;
    let columns: [(&'static Family, Gauge); 3] = [
        (&f::AUTHENTICATOR_KEYS, |stats| &stats.keys),
        (&f::AUTHENTICATOR_REVOKED, |stats| &stats.revoked),
        (&f::AUTHENTICATOR_MALFORMED, |stats| &stats.malformed),
    ];
    for (family, gauge) in columns {
        let mut samples = out.family(family);
        for live in &published.live {
            samples.count(&[&live.name], gauge(&live.stats).load(Ordering::Relaxed));
        }
    }
    let mut samples = out.family(&f::KEY_REFRESHES);
    for live in &published.live {
        samples.count(&[&live.name, "success"], live.stats.refreshes_ok.load(Ordering::Relaxed));
        samples.count(&[&live.name, "failure"], live.stats.refreshes_failed.load(Ordering::Relaxed));
    }
    let mut samples = out.family(&f::KEYS_REFRESHED);
    for live in &published.live {
        samples.count(&[&live.name], live.stats.refreshed_at_s.load(Ordering::Relaxed));
    }
}

fn rate_limits(out: &mut Exposition, published: &Published) {
    exceeded(out, &f::RATE_LIMIT_EXCEEDED, &published.limits);
    type Value<'v> = &'v dyn Fn(&Limiter) -> u64;
    let columns: [(&'static Family, Value<'_>); 5] = [
        (&f::RATE_LIMIT_BOUND, &Limiter::bound),
        (&f::RATE_LIMIT_DEGRADED, &|limiter| u64::from(limiter.mode() == Mode::Degraded)),
        (&f::RATE_LIMIT_KEYS, &|limiter| limiter.keys() as u64),
        (&f::RATE_LIMIT_HELD, &Limiter::held_total),
        (&f::RATE_LIMIT_CALLS, &Limiter::calls_total),
    ];
    for (family, value) in columns {
        let mut samples = out.family(family);
        for limiter in &published.limiters {
            samples.count(&[&limiter.policy().spec().name], value(limiter));
        }
    }
}

fn concurrency_limits(out: &mut Exposition, published: &Published) {
    exceeded(out, &f::CONCURRENCY_EXCEEDED, &published.concurrency_limits);
    type Value = fn(&Concurrency) -> u64;
    let columns: [(&'static Family, Value); 2] =
        [(&f::CONCURRENCY_REQUESTS, Concurrency::requests), (&f::CONCURRENCY_KEYS, |limit| limit.keys() as u64)];
    for (family, value) in columns {
        let mut samples = out.family(family);
        for limit in &published.concurrency {
            samples.count(&[&limit.spec().name], value(limit));
        }
    }
}

/// Refusals by limits, by key.
fn exceeded(out: &mut Exposition, family: &'static Family, limits: &[Arc<LimitStats>]) {
    let mut samples = out.family(family);
    for stats in limits {
        let (mut clients, mut others) = (BTreeMap::new(), 0);
        for cell in &stats.workers {
            let (refused, more) = cell.refused();
            others += more;
            for (key, count) in refused {
                *clients.entry(key.escape_ascii().to_string()).or_insert(0) += count;
            }
        }
        while clients.len() > REFUSED_CLIENTS_MAX
            && let Some((_, count)) = clients.pop_last()
        {
            others += count;
        }
        for (client, count) in clients {
            samples.count(&[&stats.policy, &client], count);
        }
        if others > 0 {
            samples.count(&[&stats.policy, "other"], others);
        }
    }
}

fn workers(out: &mut Exposition, hub: &Hub) {
    per_worker(out, hub, &f::ACCEPTED, |cell| &cell.accepted);
    per_worker(out, hub, &f::HANDED_OVER, |cell| &cell.handed_over);
    out.family(&f::REFUSED)
        .count(&["connections"], total(hub, |cell| &cell.refused_total))
        .count(&["connections_per_ip"], total(hub, |cell| &cell.refused_per_ip));
    out.family(&f::ACCEPT_ERRORS).count(&[], total(hub, |cell| &cell.accept_errors));
    per_worker(out, hub, &f::WORKER_CONNECTIONS, |cell| &cell.connections);
    let connections: Vec<u64> = hub.workers.workers.iter().map(|cell| cell.connections.get()).collect();
    out.family(&f::WORKER_SKEW).value(&[], skew(&connections));
    out.family(&f::WORKER_PANICS).count(&[], total(hub, |cell| &cell.panics));
    out.family(&f::DEADLINES).count(&[], total(hub, |cell| &cell.deadlines));
    per_worker(out, hub, &f::RING_OPERATIONS, |cell| &cell.ring_ops);
    per_worker(out, hub, &f::LOOP_TURNS, |cell| &cell.loop_turns);
    per_worker(out, hub, &f::LOOP_SLEEPS, |cell| &cell.loop_sleeps);
    let gauges: [(&'static Family, CounterOf<WorkerCell>, f64); 3] = [
        (&f::QUEUEING_DELAY, |cell| &cell.queueing_us, 1e6),
        (&f::BUSY, |cell| &cell.busy, 1e3),
        (&f::SHED_RATIO, |cell| &cell.shed, 1e3),
    ];
    for (family, counter, unit) in gauges {
        let mut samples = out.family(family);
        for (worker, cell) in hub.workers.workers.iter().enumerate() {
            samples.value(&[&worker.to_string()], counter(cell).get() as f64 / unit);
        }
    }
    per_worker(out, hub, &f::ALLOCATIONS, |cell| &cell.allocations);
    let mut samples = out.family(&f::DRIVER);
    for (worker, cell) in hub.workers.workers.iter().enumerate() {
        samples.count(&[&worker.to_string(), driver_name(cell)], 1);
    }
    per_worker(out, hub, &f::WORKER_GENERATION, |cell| &cell.generation);
    per_worker(out, hub, &f::BUFFERS_IN_USE, |cell| &cell.buffers_in_use);
    per_worker(out, hub, &f::BUFFERS_MADE, |cell| &cell.buffers_made);
    out.family(&f::RECEIVED_BYTES).count(&[], total(hub, |cell| &cell.client_bytes_in));
    out.family(&f::SENT_BYTES).count(&[], total(hub, |cell| &cell.client_bytes_out));
    out.family(&f::LOG_DROPPED).count(&[], hub.log.dropped_lines());
    out.family(&f::AUDIT_ERRORS).count(&[], hub.audit.write_errors.load(Ordering::Relaxed));
}

fn configuration(out: &mut Exposition, hub: &Hub, published: &Published) {
    let reloads = &hub.reloads;
    out.family(&f::RELOADS)
        .count(&["success"], reloads.succeeded.load(Ordering::Relaxed))
        .count(&["failure"], reloads.failed.load(Ordering::Relaxed));
    out.family(&f::RELOAD_OK).count(&[], reloads.last_ok.load(Ordering::Relaxed).into());
    out.family(&f::RELOAD_TIME).value(&[], reloads.last_success_ms.load(Ordering::Relaxed) as f64 / 1e3);
    out.family(&f::GENERATION).count(&[], published.generation);
}

/// Without samples where no Redis is configured.
fn of_redis(out: &mut Exposition, redis: &RedisStats) {
    let configured = redis.server().is_some();
    let (buckets, sum_us) = (redis.round_trip.buckets(), redis.round_trip.sum_us());
    let counts = [
        (&f::REDIS_CONNECTED, &redis.connected),
        (&f::REDIS_RECONNECTS, &redis.reconnects),
        (&f::REDIS_CONNECT_ERRORS, &redis.connect_errors),
        (&f::REDIS_CALLS, &redis.calls),
        (&f::REDIS_ERRORS, &redis.errors),
        (&f::REDIS_INSTANCES, &redis.instances),
        (&f::REDIS_DEGRADED, &redis.degraded),
    ];
    for (family, counter) in counts {
        let mut samples = out.family(family);
        if configured {
            samples.count(&[], counter.get());
        }
    }
    let mut samples = out.family(&f::REDIS_ROUND_TRIP);
    if configured {
        samples.histogram(&[], &buckets, sum_us);
    }
}

fn this_process(out: &mut Exposition, started: SystemTime) {
    out.family(&f::BUILD).count(&[VERSION, COMMIT.unwrap_or_default()], 1);
    out.family(&f::START_TIME).value(&[], process::unix_ms(started) as f64 / 1e3);
    let gauges = [
        (&f::RESIDENT_MEMORY, process::resident_bytes()),
        (&f::OPEN_FDS, process::open_fds()),
        (&f::MAX_FDS, process::max_fds()),
    ];
    for (family, value) in gauges {
        let mut samples = out.family(family);
        if let Some(value) = value {
            samples.count(&[], value);
        }
    }
    out.family(&f::CPU_SECONDS).value(&[], process::cpu_seconds());
}

fn per_worker(out: &mut Exposition, hub: &Hub, family: &'static Family, counter: CounterOf<WorkerCell>) {
    let mut samples = out.family(family);
    for (worker, cell) in hub.workers.workers.iter().enumerate() {
        samples.count(&[&worker.to_string()], counter(cell).get());
    }
}

fn total(hub: &Hub, counter: CounterOf<WorkerCell>) -> u64 {
    hub.workers.workers.iter().map(|cell| counter(cell).get()).sum()
}

fn merge<'a>(histograms: impl Iterator<Item = &'a Histogram>) -> (Buckets, u64) {
    histograms.fold((Buckets::default(), 0), |(mut sums, sum_us), histogram| {
        sums.iter_mut().zip(histogram.buckets()).for_each(|(sum, count)| *sum += count);
        (sums, sum_us + histogram.sum_us())
    })
}

/// The largest over the mean.
fn skew(connections: &[u64]) -> f64 {
    let (largest, sum) = (connections.iter().max().copied().unwrap_or(0), connections.iter().sum::<u64>());
    if sum == 0 { 1.0 } else { largest as f64 * connections.len() as f64 / sum as f64 }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::process::{Command, Stdio};

    use ringway_core::stats::BackendError;

    use super::*;
    use crate::families;
    use crate::testing::{hub, snapshot};

    fn busy_hub() -> std::sync::Arc<Hub> {
        let mut snapshot = snapshot();
        snapshot.runtime.workers = Some(2);
        let hub = hub(snapshot);
        let published = hub.published();
        published.unmatched.workers[0].record(404, 1_000);
        for worker in 0..2 {
            published.routes[0].workers[worker].record(200, 300);
            published.services[0].workers[worker].record_error(BackendError::Connect);
            published.endpoints[0][0].workers[worker].requests.add(3);
            hub.workers.workers[worker].connections.set(1 + 2 * worker as u64);
            hub.workers.workers[worker].driver.set(1 + worker as u64);
        }
        hub
    }

    fn redis() -> RedisStats {
        let stats = RedisStats::default();
        stats.set_server(Some("redis://127.0.0.1:6379"));
        stats.instances.set(4);
        stats.round_trip.record_us(300);
        stats
    }

    #[test]
    fn workers_are_merged_and_told_apart() {
        let text = render(&busy_hub(), &redis(), SystemTime::now(), Format::Text);
        for line in [
            r#"gateway_requests_total{route="unmatched",status="404"} 1"#,
            r#"gateway_requests_total{route="products \"old\"",status="200"} 2"#,
            r#"gateway_request_duration_seconds_bucket{route="products \"old\"",le="0.0005"} 2"#,
            r#"gateway_request_duration_seconds_sum{route="products \"old\""} 0.000600"#,
            r#"gateway_backend_errors_total{service="product",kind="connect"} 2"#,
            r#"gateway_backend_errors_total{service="product",kind="reset"} 0"#,
            r#"gateway_endpoint_requests_total{service="product",endpoint="127.0.0.1:9"} 6"#,
            r#"gateway_active_connections 4"#,
            r#"gateway_worker_connections{worker="1"} 3"#,
            r#"gateway_worker_skew_ratio 1.5"#,
            r#"gateway_worker_driver_info{worker="0",driver="io_uring"} 1"#,
            r#"gateway_worker_driver_info{worker="1",driver="epoll"} 1"#,
            r#"gateway_config_generation 1"#,
            r#"gateway_redis_instances 4"#,
            r#"gateway_redis_round_trip_seconds_bucket{le="0.0005"} 1"#,
        ] {
            assert!(text.lines().any(|seen| seen == line), "{line}\nis not in\n{text}");
        }
    }

    #[test]
    fn every_family_is_exposed_once_and_in_order() {
        let text = render(&busy_hub(), &redis(), SystemTime::now(), Format::Text);
        let exposed: Vec<&str> =
            text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).collect();
        let described: Vec<&str> = families::ALL.iter().map(|family| family.name).collect();
        assert_eq!(exposed, described);
    }

    #[test]
    fn without_redis_its_families_are_empty() {
        let text = render(&busy_hub(), &RedisStats::default(), SystemTime::now(), Format::Text);
        assert!(text.contains("# TYPE gateway_redis_connected gauge\n# HELP"), "{text}");
    }

    #[test]
    fn skew_is_one_when_even_or_idle() {
        assert_eq!(skew(&[0, 0]), 1.0);
        assert_eq!(skew(&[5, 5]), 1.0);
        assert_eq!(skew(&[4, 0]), 2.0);
        assert_eq!(skew(&[]), 1.0);
    }

    #[test]
    fn promtool_finds_nothing_to_say() {
        let mut promtool = Command::new("promtool")
            .args(["check", "metrics"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("promtool is needed: apt-get install prometheus");
        let text = render(&busy_hub(), &redis(), SystemTime::now(), Format::Text);
        promtool.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
        let output = promtool.wait_with_output().unwrap();
        let said = [output.stdout, output.stderr].concat();
        assert!(output.status.success() && said.is_empty(), "{}", String::from_utf8_lossy(&said));
    }
}
