//! Services of several processes that fail as services do, under load by the clock: what clients notice, and for how long.
//!
//! `RINGWAY_FAULTS_RATE=2000` loads more than a busy machine bears, and holds the times to their targets too. With
//! `--no-capture` the rows of the table in docs/resilience.md are printed.

mod matrix;
mod outage;
mod rolling;

use std::net::SocketAddr;
use std::time::Duration;

use ringway_tests::failing::Origin;
use ringway_tests::free_port;
use ringway_tests::steady::Steady;
use ringway_tests::{Gateway, eventually};
use serde_json::Value;

/// What docs/resilience.md recommends.
const RECOMMENDED: &str = r"    balance: peak_ewma
    timeouts: { connect: 250ms, answer: 5s }
    health_check:
      http: { path: /health }
      interval: 500ms
      timeout: 250ms
      unhealthy_threshold: 2
    outlier_ejection: { success_rate: {} }
    retries:
      on: [connect_failure, refused_stream, reset, timeout, 500, 502, 503, 504]
      per_try_timeout: 250ms
    circuit_breaker: { error_share: 50%, open: 30s }
";

/// Requests per second; with the second one times count too.
const RATE: u32 = 400;
const CLIENTS: u32 = 32;

/// Three origins and a gateway in front of them.
struct Fleet {
    origins: Vec<Origin>,
    endpoints: Vec<String>,
    gateway: Gateway,
}

fn address() -> SocketAddr {
    ([127, 0, 0, 1], free_port()).into()
}

/// The rate, and whether the machine is free for it.
fn rate() -> (u32, bool) {
    let said = std::env::var("RINGWAY_FAULTS_RATE").ok().and_then(|rate| rate.parse().ok());
    said.map_or((RATE, false), |rate| (rate, true))
}

/// With more patience where the machine is busy: what stops for a while there is not a service that fails.
fn recommended() -> String {
    let (_, is_free) = rate();
    if is_free { RECOMMENDED.to_owned() } else { RECOMMENDED.replace("250ms", "1s") }
}

fn yaml(endpoints: &[String], settings: &str, route: &str) -> String {
    format!(
        "runtime: {{ workers: 2, pin: false }}\nadmin: {{ address: ADMIN, changes: true }}\nservices:\n  - name: app\n    \
         endpoints: [{}]\n{settings}routes: [{{ name: all, service: app, {route} }}]\n",
        endpoints.iter().map(|endpoint| format!("\"{endpoint}\"")).collect::<Vec<_>>().join(", ")
    )
}

impl Fleet {
    /// Each origin with these flags.
    #[track_caller]
    fn start(flags: [&[&str]; 3], settings: &str, route: &str) -> Self {
        let origins: Vec<Origin> = flags.iter().map(|flags| Origin::start_with(address(), flags)).collect();
        let endpoints: Vec<String> = origins.iter().map(Origin::endpoint).collect();
        let gateway = Gateway::start(&yaml(&endpoints, settings, route));
        Self { origins, endpoints, gateway }
    }

    /// With every client served well for a while.
    #[track_caller]
    fn load(&self, rate: u32) -> Steady {
        let load = Steady::start(self.gateway.address(), CLIENTS, rate);
        load.go_on(Duration::from_secs(1));
        assert_eq!(load.failures(), 0, "{:?}", load.statuses());
        load
    }

    /// What `/services` says of the service.
    #[track_caller]
    fn page(&self) -> Value {
        let page: Value = serde_json::from_str(&self.gateway.admin("/services").1).expect("JSON");
        page[0].clone()
    }

    /// What it says of an endpoint.
    #[track_caller]
    fn seen(&self, endpoint: &str) -> Value {
        let all = self.page()["endpoints"].as_array().expect("endpoints").clone();
        all.into_iter().find(|seen| seen["address"] == endpoint).expect("the endpoint")
    }

    /// A counter of an endpoint.
    #[track_caller]
    fn of(&self, endpoint: &str, metric: &str) -> f64 {
        self.gateway.metric(&format!("{metric}{{service=\"app\",endpoint=\"{endpoint}\"}}"))
    }

    /// All checks of the service's endpoints so far.
    fn checks(&self) -> u64 {
        let count = |endpoint: &String, result: &str| {
            let labels = format!("{{service=\"app\",endpoint=\"{endpoint}\",result=\"{result}\"}}");
            self.gateway.metric(&format!("gateway_health_checks_total{labels}"))
        };
        let all =
            self.endpoints.iter().flat_map(|endpoint| ["success", "failure"].map(|result| count(endpoint, result)));
        all.sum::<f64>() as u64
    }

    fn retries(&self) -> u64 {
        let count = |outcome: &str| format!("gateway_retries_total{{service=\"app\",outcome=\"{outcome}\"}}");
        ["success", "failure"].iter().map(|outcome| self.gateway.metric(&count(outcome)) as u64).sum()
    }
}

/// Waits until nothing is on its way to an endpoint.
#[track_caller]
fn until_idle(fleet: &Fleet, endpoint: &str) {
    eventually(ringway_tests::PATIENCE, || fleet.seen(endpoint)["inFlight"] == 0);
}

#[test]
fn the_recommendation_is_in_the_documentation() {
    let page = include_str!("../../../docs/resilience.md");
    assert!(page.contains(RECOMMENDED), "docs/resilience.md has not:\n{RECOMMENDED}");
}
