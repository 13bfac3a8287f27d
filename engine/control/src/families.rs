//! Every metric that Ringway has. `docs/METRICS.md` is checked against this table.

use crate::exposition::{Family, Kind};

macro_rules! families {
    ($($id:ident = $kind:ident $name:literal $unit:literal [$($label:literal),*] $help:literal)*) => {
        $(pub const $id: Family =
            Family { name: $name, kind: Kind::$kind, unit: $unit, labels: &[$($label),*], help: $help };)*
        /// In the order in which they are exposed.
        pub const ALL: &[Family] = &[$($id),*];
    };
}

families! {
    REQUESTS = Counter "gateway_requests_total" "" ["route", "status"]
        "Requests answered, by route and status; route \"unmatched\" where no route matched."
    REQUEST_DURATION = Histogram "gateway_request_duration_seconds" "seconds" ["route"]
        "From a request's head to the end of its answer."
    SHED = Counter "gateway_shed_requests_total" "" ["route", "reason"]
        "Requests refused because their worker was overloaded, by what showed it: delay (of what is ready) or busy."
    ACTIVE_CONNECTIONS = Gauge "gateway_active_connections" "" []
        "Open client connections."
    ACTIVE_REQUESTS = Gauge "gateway_active_requests" "" []
        "Requests between their head and the end of their answer."
    ACTIVE_TUNNELS = Gauge "gateway_active_tunnels" "" []
        "Connections and streams that carry another protocol after an upgrade, such as WebSocket."
    TUNNELS = Counter "gateway_tunnels_total" "" ["route", "protocol"]
        "Upgrades that a service agreed to, by route and protocol: websocket, or other."
    TUNNEL_RECEIVED_BYTES = Counter "gateway_tunnel_received_bytes_total" "bytes" ["route"]
        "Bytes from clients after an upgrade, counted when the tunnel ends."
    TUNNEL_SENT_BYTES = Counter "gateway_tunnel_sent_bytes_total" "bytes" ["route"]
        "Bytes to clients after an upgrade, counted when the tunnel ends."
    HTTP2_CONNECTIONS = Gauge "gateway_http2_connections" "" []
        "Open client connections that speak HTTP/2."
    HTTP2_ABUSE = Counter "gateway_http2_abuse_total" "" ["kind"]
        "HTTP/2 connections that the gateway ended for what their client did: resets and control_frames (too many), flood \
         (CONTINUATION, small DATA frames, streams that break the protocol), protocol (it broke the protocol)."
    TLS_HANDSHAKES = Counter "gateway_tls_handshakes_total" "" ["listener", "result"]
        "TLS handshakes by how they ended: ok, failed, client_certificate (missing or not valid), timeout, closed by the \
         client, plain_http, not_tls, refused because there were too many at a time, or acme for a challenge that was answered."
    TLS_CONNECTIONS = Counter "gateway_tls_connections_total" "" ["listener", "version", "cipher"]
        "Client connections that were secured, by version and cipher suite."
    CERTIFICATE_EXPIRY = Gauge "gateway_certificate_expiry_seconds" "seconds" ["name"]
        "Seconds until a certificate expires, by its first name; of several with the same name the soonest."
    ACME_ORDERS = Counter "gateway_acme_orders_total" "" ["result"]
        "Certificates ordered by ACME, by result: success, or failure, which left the old one in place."
    ACME_ISSUED = Gauge "gateway_acme_certificate_issued" "" ["name"]
        "1 where a certificate by ACME is there, by its first name; 0 as long as a self-signed one stands in for it."
    ACME_RENEWAL = Gauge "gateway_acme_renewal_timestamp_seconds" "seconds" ["name"]
        "Unix time of the next order of a certificate by ACME, or of the next try."
    PROXY_PROTOCOL_ERRORS = Counter "gateway_proxy_protocol_errors_total" "" ["listener"]
        "Connections closed because their PROXY header was missing, malformed or late, or had a wrong checksum, or because they came \
         from an address that is not trusted to send one."
    AUTHENTICATIONS = Counter "gateway_authentications_total" "" ["authenticator", "outcome"]
        "Requests whose credentials were looked at: verified anew, cached, missing, refused, or unavailable where there \
         were no keys to judge them with."
    AUTH_SERVICE_BREAKER = Gauge "gateway_auth_service_breaker_open" "" ["authenticator"]
        "Workers that leave an auth service alone, since it failed several times in a row."
    AUTHENTICATOR_KEYS = Gauge "gateway_authenticator_keys" "" ["authenticator"]
        "Keys that an authenticator knows."
    AUTHENTICATOR_REVOKED = Gauge "gateway_authenticator_revoked_tokens" "" ["authenticator"]
        "Token IDs that an authenticator refuses."
    AUTHENTICATOR_MALFORMED = Gauge "gateway_authenticator_malformed_entries" "" ["authenticator"]
        "Entries of an authenticator's list in Redis that could not be read and do not count."
    KEY_REFRESHES = Counter "gateway_authenticator_key_refreshes_total" "" ["authenticator", "result"]
        "Key sets, files and lists in Redis that were read, by result: success, or failure, which left the old in place."
    KEYS_REFRESHED = Gauge "gateway_authenticator_keys_refresh_timestamp_seconds" "seconds" ["authenticator"]
        "Unix time at which an authenticator's keys were last read."
    RATE_LIMIT_EXCEEDED = Counter "gateway_rate_limit_exceeded_total" "" ["policy", "client"]
        "Requests refused by a rate limit, by its key: of each policy the first hundred, the others as \"other\"."
    RATE_LIMIT_BOUND = Gauge "gateway_rate_limit_bound" "" ["policy"]
        "By how much all gateways together may exceed the limit, in requests: H of the rate limiter's bound."
    RATE_LIMIT_DEGRADED = Gauge "gateway_rate_limit_degraded" "" ["policy"]
        "1 while Redis is configured and away, so that the policy goes by what it says for that."
    RATE_LIMIT_KEYS = Gauge "gateway_rate_limit_keys" "" ["policy"]
        "Keys that a policy has in memory."
    RATE_LIMIT_HELD = Counter "gateway_rate_limit_held_total" "" ["policy"]
        "Requests that waited for Redis' word, for 5 ms at most."
    RATE_LIMIT_CALLS = Counter "gateway_rate_limit_redis_calls_total" "" ["policy"]
        "Calls of the rate limiter to Redis."
    CONCURRENCY_EXCEEDED = Counter "gateway_concurrency_limit_exceeded_total" "" ["policy", "client"]
        "Requests refused by a concurrency limit, by its key: of each policy the first hundred, the others as \"other\"."
    CONCURRENCY_REQUESTS = Gauge "gateway_concurrency_limit_requests" "" ["policy"]
        "Requests under way that a concurrency limit counts."
    CONCURRENCY_KEYS = Gauge "gateway_concurrency_limit_keys" "" ["policy"]
        "Keys that a concurrency limit has in memory, those without requests included."
    SPLIT_REQUESTS = Counter "gateway_split_requests_total" "" ["route", "service"]
        "Requests that a route gave to one of the services of its split."
    MIRRORED_REQUESTS = Counter "gateway_mirrored_requests_total" "" ["route", "outcome"]
        "Requests that were to be copied for a route's mirror: answered, server_error (5xx), failed, aborted (the original's body \
         did not come whole); not copied: body_too_large, upgrade, in_flight (too many at a time), breaker_open, bulkhead_full."
    BACKEND_ERRORS = Counter "gateway_backend_errors_total" "" ["service", "kind"]
        "Failed tries at a service, by what happened."
    BACKEND_HANDSHAKES = Counter "gateway_backend_tls_handshakes_total" "" ["service", "result"]
        "TLS handshakes with a service: full, resumed, untrusted (its certificate), failed, timeout."
    BACKEND_DURATION = Histogram "gateway_backend_duration_seconds" "seconds" ["service"]
        "From a request sent to a service to the head of its answer."
    STALE_RETRIES = Counter "gateway_backend_stale_retries_total" "" ["service"]
        "Requests sent again on a fresh connection because the pooled one had just been closed."
    RETRIES = Counter "gateway_retries_total" "" ["service", "outcome"]
        "Tries after a request's first one: success, or failure (no answer, or one to be tried again)."
    RETRIES_DENIED = Counter "gateway_retries_denied_total" "" ["service", "reason"]
        "Failed tries that were to be followed by another one, but budget (used up) or breaker (open) forbade it."
    HEDGES = Counter "gateway_hedges_total" "" ["service", "outcome"]
        "Tries that were sent while another one was awaited: won (its answer was the client's), lost (given up: another try was \
         quicker, or nobody waited any more), failed (no answer, or one to be tried again)."
    HEDGES_DENIED = Counter "gateway_hedges_denied_total" "" ["service", "reason"]
        "Tries that were due while another one was awaited, but budget (used up), breaker (open) or endpoint (no other one) forbade it."
    STICKY_REQUESTS = Counter "gateway_sticky_requests_total" "" ["service", "session"]
        "Answers of a sticky service, by the client's session: new (it had none), kept, moved (its endpoint is not usable), unknown (its cookie \
         is forged, or that of an endpoint that is gone)."
    SUBSET_FALLBACKS = Counter "gateway_subset_fallbacks_total" "" ["service"]
        "Requests of a route with a subset that went to other endpoints, since none of the subset was usable."
    BREAKER_STATE = Gauge "gateway_circuit_breaker_state" "" ["service", "endpoint"]
        "State of a circuit breaker: 0 closed, 1 half-open, 2 open; endpoint \"\" is the service's own."
    BREAKER_TRANSITIONS = Counter "gateway_circuit_breaker_transitions_total" "" ["service", "endpoint", "to"]
        "Changes of a circuit breaker's state: to closed, half_open, open."
    BREAKER_REJECTED = Counter "gateway_circuit_breaker_rejected_total" "" ["service"]
        "Requests that did not go to a service because its circuit breaker, or those of all its endpoints, were open."
    BULKHEAD_REJECTED = Counter "gateway_bulkhead_rejected_total" "" ["service", "reason"]
        "Requests refused because a service has as many as it may: requests or adaptive (the limit that was met, where nobody waits), \
         pending (as many wait as may), timeout (it waited in vain)."
    BULKHEAD_REQUESTS = Gauge "gateway_bulkhead_requests" "" ["service"]
        "Requests in flight to a service with bulkhead or adaptive_concurrency, as those count them."
    BULKHEAD_PENDING = Gauge "gateway_bulkhead_pending_requests" "" ["service"]
        "Requests that wait for a place among those."
    ADAPTIVE_LIMIT = Gauge "gateway_adaptive_concurrency_limit" "" ["service"]
        "Requests in flight that a service's adaptive_concurrency allows now."
    ADAPTIVE_BASELINE = Gauge "gateway_adaptive_concurrency_baseline_seconds" "seconds" ["service"]
        "What it takes for the service's latency without a queue."
    GRPC_REQUESTS = Counter "gateway_grpc_requests_total" "" ["service", "grpc_status"]
        "gRPC calls that came to a service, by grpc-status, the gateway's own included."
    ENDPOINT_IN_FLIGHT = Gauge "gateway_endpoint_in_flight" "" ["service", "endpoint"]
        "Requests in flight to an endpoint."
    ENDPOINT_IDLE = Gauge "gateway_endpoint_idle_connections" "" ["service", "endpoint"]
        "Idle pooled connections to an endpoint."
    ENDPOINT_OPEN = Gauge "gateway_endpoint_open_connections" "" ["service", "endpoint"]
        "Open connections to an endpoint, idle or not."
    ENDPOINT_REQUESTS = Counter "gateway_endpoint_requests_total" "" ["service", "endpoint"]
        "Requests sent to an endpoint, those sent again included."
    ENDPOINT_CONNECTS = Counter "gateway_endpoint_connects_total" "" ["service", "endpoint"]
        "Connections made to an endpoint."
    ENDPOINT_REUSES = Counter "gateway_endpoint_reuses_total" "" ["service", "endpoint"]
        "Requests that found an idle connection to an endpoint."
    ENDPOINT_KEEPALIVE_TIMEOUTS = Counter "gateway_endpoint_keepalive_timeouts_total" "" ["service", "endpoint"]
        "Connections of HTTP/2 to an endpoint that were closed since nothing came after a PING."
    DISCOVERY_LOOKUPS = Counter "gateway_discovery_lookups_total" "" ["service", "result"]
        "Looks for a service's endpoints: `found`, `empty` (there are none) or `failure`."
    DISCOVERY_CHANGES = Counter "gateway_discovery_changes_total" "" ["service"]
        "Times that a service's endpoints were found to be others."
    DISCOVERY_ENDPOINTS = Gauge "gateway_discovery_endpoints" "" ["service"]
        "Endpoints of a service whose endpoints are looked for."
    SERVICE_PANIC = Gauge "gateway_service_panic" "" ["service"]
        "1 while too few of a service's endpoints are usable, so that all are used."
    LOCAL_SHARE = Gauge "gateway_service_local_share" "" ["service"]
        "Share of a service's requests that go to endpoints of the gateway's own zone: 1 as long as those can carry them; of services with zones."
    SERVICE_PRIORITY = Gauge "gateway_service_priority" "" ["service"]
        "The last priority of a service's endpoints that gets requests: above the first one as long as too few of the earlier are usable; of \
         services whose endpoints have several."
    ENDPOINT_WEIGHT = Gauge "gateway_endpoint_weight" "" ["service", "endpoint"]
        "An endpoint's weight now: less while it recovers, 0 where an operator has taken it out."
    ENDPOINT_LATENCY = Gauge "gateway_endpoint_latency_seconds" "seconds" ["service", "endpoint"]
        "How slow an endpoint is of late, where outlier_ejection or peak_ewma look at it: a peak EWMA."
    ENDPOINT_HEALTHY = Gauge "gateway_endpoint_healthy" "" ["service", "endpoint"]
        "1 while an endpoint's checks say that it is well; of services with a health_check."
    ENDPOINT_EJECTED = Gauge "gateway_endpoint_ejected" "" ["service", "endpoint"]
        "1 while an endpoint is left out for how it answers; of services with outlier_ejection."
    HEALTH_CHECKS = Counter "gateway_health_checks_total" "" ["service", "endpoint", "result"]
        "Checks of an endpoint, by result: success or failure."
    EJECTIONS = Counter "gateway_outlier_ejections_total" "" ["service", "endpoint", "reason"]
        "Ejections of an endpoint, by reason: connect_failures or failures (in a row), success_rate or latency (beside the others)."
    ACCEPTED = Counter "gateway_connections_accepted_total" "" ["worker"]
        "Client connections that a worker accepted."
    HANDED_OVER = Counter "gateway_connections_handed_over_total" "" ["worker"]
        "Client connections that a worker gave to a less busy one."
    REFUSED = Counter "gateway_connections_refused_total" "" ["reason"]
        "Client connections closed at once: the process (connections) or the client address (connections_per_ip) \
         was at its limit."
    ACCEPT_ERRORS = Counter "gateway_accept_errors_total" "" []
        "Failed accepts, too many open files above all."
    WORKER_CONNECTIONS = Gauge "gateway_worker_connections" "" ["worker"]
        "Open client connections of a worker."
    WORKER_SKEW = Gauge "gateway_worker_skew_ratio" "ratio" []
        "Connections of the busiest worker over the mean of all workers; 1 is even, also when idle."
    WORKER_PANICS = Counter "gateway_worker_panics_total" "" []
        "Panics that ended a connection and nothing else. Each one is a bug."
    DEADLINES = Counter "gateway_deadlines_total" "" []
        "Deadlines that passed: head, body, idle, and those towards services."
    RING_OPERATIONS = Counter "gateway_worker_ring_operations_total" "" ["worker"]
        "Operations that a worker submitted to its ring, or waits on epoll."
    LOOP_TURNS = Counter "gateway_worker_loop_turns_total" "" ["worker"]
        "Times that a worker's loop asked its ring for events (io_uring only)."
    LOOP_SLEEPS = Counter "gateway_worker_loop_sleeps_total" "" ["worker"]
        "Those of them that had to wait: the worker slept until the next event (io_uring only)."
    QUEUEING_DELAY = Gauge "gateway_worker_queueing_delay_seconds" "seconds" ["worker"]
        "How long what is ready waits for its turn, on average over the last tick; on epoll how late the tick was."
    BUSY = Gauge "gateway_worker_busy_ratio" "ratio" ["worker"]
        "Share of the last tick in which a worker had something to do (io_uring only)."
    SHED_RATIO = Gauge "gateway_worker_shed_ratio" "ratio" ["worker"]
        "Share of its requests that an overloaded worker refuses now; 0 where it is not overloaded."
    ALLOCATIONS = Counter "gateway_worker_allocations_total" "" ["worker"]
        "Heap allocations of a worker's thread."
    DRIVER = Info "gateway_worker_driver_info" "" ["worker", "driver"]
        "How a worker waits for I/O: io_uring, or epoll where io_uring is not allowed."
    WORKER_GENERATION = Gauge "gateway_worker_config_generation" "" ["worker"]
        "Generation of the configuration that a worker has seen last."
    BUFFERS_IN_USE = Gauge "gateway_buffers_in_use" "" ["worker"]
        "Buffers that a worker's connections hold now."
    BUFFERS_MADE = Counter "gateway_buffers_made_total" "" ["worker"]
        "Buffers that a worker's pool has allocated since the start."
    RECEIVED_BYTES = Counter "gateway_received_bytes_total" "bytes" []
        "Bytes received from clients."
    SENT_BYTES = Counter "gateway_sent_bytes_total" "bytes" []
        "Bytes sent to clients."
    LOG_DROPPED = Counter "gateway_access_log_dropped_lines_total" "" []
        "Access log lines dropped because the writer was behind or could not write."
    AUDIT_ERRORS = Counter "gateway_audit_write_errors_total" "" []
        "Failed writes of the audit log. Its records are kept and tried again, and refusals wait once there are too many."
    RELOADS = Counter "gateway_config_reloads_total" "" ["result"]
        "Configuration reloads, by result: success, or failure, which left the running one in place."
    RELOAD_OK = Gauge "gateway_config_last_reload_successful" "" []
        "1 if the last load of the configuration succeeded, the start included."
    RELOAD_TIME = Gauge "gateway_config_last_reload_success_timestamp_seconds" "seconds" []
        "Unix time of the last successful load of the configuration, the start included."
    GENERATION = Gauge "gateway_config_generation" "" []
        "Generation of the running configuration; 1 at the start, one more with each reload."
    REDIS_CONNECTED = Gauge "gateway_redis_connected" "" []
        "1 while the connection to Redis stands. None of these where no Redis is configured."
    REDIS_RECONNECTS = Counter "gateway_redis_reconnects_total" "" []
        "Connections to Redis made after the first."
    REDIS_CONNECT_ERRORS = Counter "gateway_redis_connect_errors_total" "" []
        "Failed tries to connect to Redis."
    REDIS_CALLS = Counter "gateway_redis_calls_total" "" []
        "Commands sent to Redis."
    REDIS_ERRORS = Counter "gateway_redis_errors_total" "" []
        "Commands that Redis did not answer, or answered with an error."
    REDIS_INSTANCES = Gauge "gateway_redis_instances" "" []
        "Gateways that share the Redis, this one included; 0 as long as that is not known."
    REDIS_DEGRADED = Gauge "gateway_redis_degraded" "" []
        "1 while rate limits are kept without Redis because it does not answer in time."
    REDIS_ROUND_TRIP = Histogram "gateway_redis_round_trip_seconds" "seconds" []
        "From commands sent to Redis to their answers."
    BUILD = Info "gateway_build_info" "" ["version", "commit"]
        "What is running; commit only where the build was told it."
    START_TIME = Gauge "gateway_start_time_seconds" "seconds" []
        "Unix time of the start of the process."
    RESIDENT_MEMORY = Gauge "process_resident_memory_bytes" "bytes" []
        "Resident memory of the process."
    OPEN_FDS = Gauge "process_open_fds" "" []
        "Open file descriptors of the process."
    MAX_FDS = Gauge "process_max_fds" "" []
        "The limit on open file descriptors (RLIMIT_NOFILE, soft)."
    CPU_SECONDS = Counter "process_cpu_seconds_total" "seconds" []
        "Processor time of the process, user and system."
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/METRICS.md");
    const BEGIN: &str = "<!-- families -->\n";
    const END: &str = "<!-- /families -->\n";

    fn table() -> String {
        let row = |family: &Family| {
            let labels: Vec<String> = family.labels.iter().map(|label| format!("`{label}`")).collect();
            format!("| `{}` | {} | {} | {} |\n", family.name, family.kind.name(), labels.join(", "), family.help)
        };
        let rows: String = ALL.iter().map(row).collect();
        format!("| name | kind | labels | meaning |\n|---|---|---|---|\n{rows}")
    }

    #[test]
    fn the_page_has_the_table() {
        let page = std::fs::read_to_string(PAGE).unwrap();
        let (before, rest) = page.split_once(BEGIN).expect("docs/METRICS.md has lost the start of its table");
        let (_, after) = rest.split_once(END).expect("docs/METRICS.md has lost the end of its table");
        let written = [before, BEGIN, &table(), END, after].concat();
        if std::env::var_os("RINGWAY_WRITE_DOCS").is_some() {
            std::fs::write(PAGE, &written).unwrap();
        }
        let same = page == written || std::env::var_os("RINGWAY_WRITE_DOCS").is_some();
        assert!(same, "docs/METRICS.md is old: RINGWAY_WRITE_DOCS=1 cargo test -p ringway-control families");
    }

    #[test]
    fn names_follow_their_kind_and_unit() {
        for family in ALL {
            let name = family.name;
            assert_eq!(name.ends_with("_total"), family.kind == Kind::Counter, "{name}");
            assert_eq!(name.ends_with("_info"), family.kind == Kind::Info, "{name}");
            let stem = name.trim_end_matches("_total");
            assert!(stem.ends_with(family.unit), "{name}");
            assert_eq!(ALL.iter().filter(|other| other.name == name).count(), 1, "{name}");
        }
    }
}
