//! `ringway demo`: the gateway of `configs/quickstart.yaml` in front of three services that run in this process.

use std::io::{self, Write};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use ringway_config::snapshot::Admin;
use ringway_config::{Snapshot, Source};

use crate::demo_chaos::CHAOS;
use crate::demo_services::Services;
use crate::failure::Failure;
use crate::gateway;

const QUICKSTART: &str = include_str!("../../../configs/quickstart.yaml");
const QUICKSTART_NAME: &str = "configs/quickstart.yaml";

pub(crate) fn run(listen: SocketAddr, admin: SocketAddr, chaos: bool) -> Result<(), Failure> {
    let services = Services::start(chaos)
        .map_err(|error| Failure::runtime(format!("the demo's services cannot start: {error}")))?;
    let mut snapshot = compile(&services)?;
    relocate(&mut snapshot, listen, admin)?;
    let welcome = welcome(listen, admin, &services, chaos);
    gateway::run(snapshot, None, || {
        // Nobody may be reading.
        let _ = io::stdout().write_all(welcome.as_bytes());
    })
}

/// The quickstart with the services of this process.
fn compile(services: &Services) -> Result<Snapshot, Failure> {
    let source = Source { name: QUICKSTART_NAME.into(), text: QUICKSTART.into() };
    let environment = |name: &str| match name {
        "PRODUCT_SERVICE" => Some(services.product.to_string()),
        "ORDER_SERVICE" => Some(services.order.to_string()),
        "AUTH_SERVICE" => Some(services.auth.to_string()),
        "JWT_SECRET" => Some(services.tokens.secret().to_owned()),
        _ => std::env::var(name).ok(),
    };
    ringway_config::compile(&[source], &environment).map_err(Failure::usage)
}

fn relocate(snapshot: &mut Snapshot, listen: SocketAddr, admin: SocketAddr) -> Result<(), Failure> {
    let listener = snapshot.listeners.first_mut().and_then(Arc::get_mut);
    listener.ok_or_else(|| Failure::usage(format!("{QUICKSTART_NAME} has no listener")))?.address = listen;
    snapshot.admin = Some(Admin { address: admin, may_change: false });
    // No load balancer needs a notice here, and who presses Ctrl-C does not want to wait for it.
    snapshot.drain.notice = Duration::ZERO;
    Ok(())
}

fn welcome(listen: SocketAddr, admin: SocketAddr, services: &Services, chaos: bool) -> String {
    let Services { product, order, auth, tokens } = services;
    format!(
        "
Ringway demo

  gateway          http://{listen}   as {QUICKSTART_NAME} says
  admin            http://{admin}   /health /ready /metrics /config /services
  product service  http://{product}
  order service    http://{order}
  auth service     http://{auth}

Tokens for an hour:

{}

Try:

{}
{}
Ctrl-C drains and ends.

",
        ["user", "admin", "guest"]
            .map(|role| format!("  {}={}", role.to_uppercase(), tokens.sign(&format!("usr_{role}"), role)))
            .join("\n"),
        curl_lines(listen, admin).map(|line| format!("  {line}")).join("\n"),
        if chaos { chaos_lines(listen, admin) } else { String::new() }
    )
}

/// What there is to see when a service fails.
fn chaos_lines(listen: SocketAddr, admin: SocketAddr) -> String {
    format!(
        "
Chaos: {CHAOS}. Watch:

  for i in $(seq 70); do curl -s -o /dev/null -w '%{{http_code}}\\n' http://{listen}/api/products/1 \
-H \"Authorization: Bearer $ADMIN\"; done | sort | uniq -c    # 200, retried or not; 500; 503: the breaker is open
  curl -s http://{admin}/services    # the circuitBreaker of product-service; its endpoint
  curl -s http://{admin}/metrics | grep -E '^gateway_(retries|circuit_breaker)'

The log below has \"attempts\" where a request was tried again, \"circuitBreaker\":\"open\" where it was refused, and lines of
the breaker's transitions. After half a minute it lets requests pass to see whether the service is well again.
"
    )
}

/// What the welcome tells people to type, once they have set the variables above it.
fn curl_lines(listen: SocketAddr, admin: SocketAddr) -> [String; 6] {
    let order = "-H 'Content-Type: application/json' -d '{\"productId\":42,\"quantity\":1}'";
    let authorized = |role: &str| format!("-H \"Authorization: Bearer ${role}\"");
    [
        format!("curl -i http://{listen}/api/products/42 {}", authorized("USER")),
        format!("curl -i http://{listen}/api/orders {} {order}", authorized("USER")),
        format!("curl -i http://{listen}/api/products/42    # 401: no token"),
        format!("curl -i http://{listen}/api/orders {} {order}    # 403: not for guests", authorized("GUEST")),
        format!(
            "for i in $(seq 120); do curl -s -o /dev/null -w '%{{http_code}}\\n' http://{listen}/api/products/1 {}; done \
             | sort | uniq -c    # 429: 100 a minute",
            authorized("ADMIN")
        ),
        format!("curl -s http://{admin}/metrics | grep -E '^gateway_(requests|rate_limit|authentications)'"),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_quickstart_compiles_and_moves_to_the_given_addresses() {
        let services = Services::start(false).unwrap();
        let mut snapshot = compile(&services).unwrap();
        let (listen, admin) = ("127.0.0.1:1".parse().unwrap(), "127.0.0.1:2".parse().unwrap());
        relocate(&mut snapshot, listen, admin).unwrap();
        assert_eq!(snapshot.listeners[0].address, listen);
        assert_eq!(snapshot.admin, Some(Admin { address: admin, may_change: false }));
    }

    #[test]
    fn the_welcome_names_everything() {
        let services = Services::start(false).unwrap();
        let text = welcome("127.0.0.1:1".parse().unwrap(), "127.0.0.1:2".parse().unwrap(), &services, true);
        assert_eq!(text.lines().filter(|line| line.starts_with("  curl ")).count(), 7);
        for address in [services.product, services.order, services.auth] {
            assert!(text.contains(&address.to_string()));
        }
    }
}
