//! What operators may do to an endpoint while the gateway runs: take it out, put it back, weigh it.

use std::sync::Arc;

use hyper::header::ORIGIN;
use hyper::{HeaderMap, Method, StatusCode};
use percent_encoding::percent_decode_str;
use ringway_config::Hub;
use ringway_core::health::EndpointHealth;

/// What a weight may be at most, as in the configuration.
const WEIGHT_MAX: u32 = 65_535;
const USAGE: &str =
    "POST /services/NAME/endpoints/ADDRESS/drain, .../enable, .../weight/NUMBER or .../weight/configured\n";

enum Action {
    Drain,
    Enable,
    /// `None`: as configured.
    Weight(Option<u32>),
}

/// Why a request may not change anything, where that is so.
pub(crate) fn refusal(hub: &Hub, headers: &HeaderMap) -> Option<&'static str> {
    let may_change = hub.published().snapshot.admin.as_ref().is_some_and(|admin| admin.may_change);
    // A browser names the page that makes it ask; no page has any business here.
    let is_browser = headers.contains_key(ORIGIN) || headers.contains_key("sec-fetch-site");
    let hint = "changes are not allowed: `admin: { changes: true }` allows them, from anywhere but a browser\n";
    (!may_change || is_browser).then_some(hint)
}

/// Does what a path below `/services/` says. An answer of plain text.
pub(crate) fn operate(hub: &Hub, method: &Method, path: &str, headers: &HeaderMap) -> (StatusCode, String) {
    if method != Method::POST {
        return (StatusCode::METHOD_NOT_ALLOWED, USAGE.into());
    }
    if let Some(refusal) = refusal(hub, headers) {
        return (StatusCode::FORBIDDEN, refusal.into());
    }
    let published = hub.published();
    let Some((service, endpoint, action)) = parse(path) else { return (StatusCode::NOT_FOUND, USAGE.into()) };
    let health = published.health.iter().find(|health| *health.fleet.service == *service);
    let found = health.and_then(|health| health.endpoints.iter().find(|health| *health.endpoint == *endpoint));
    match found {
        None => (StatusCode::NOT_FOUND, format!("no endpoint `{endpoint}` of a service `{service}`\n")),
        Some(health) => (StatusCode::OK, act(&service, health, &action)),
    }
}

fn act(service: &str, health: &Arc<EndpointHealth>, action: &Action) -> String {
    let done = match action {
        Action::Drain => {
            health.set_drained(true);
            "drained".to_owned()
        }
        Action::Enable => {
            health.set_drained(false);
            health.reinstate();
            "enabled".to_owned()
        }
        Action::Weight(weight) => {
            health.set_weight(*weight);
            weight.map_or_else(|| "weight as configured".to_owned(), |weight| format!("weight {weight}"))
        }
    };
    let line = format!("service `{service}`, endpoint `{}`: {done}", health.endpoint);
    tracing::info!("{line} by an operator");
    line + "\n"
}

/// The names of a service and an endpoint, each percent-encoded where it has to be, and what is to be done.
fn parse(path: &str) -> Option<(String, String, Action)> {
    let mut parts = path.strip_prefix("/services/")?.split('/');
    let name = |parts: &mut std::str::Split<'_, char>| {
        let decoded = percent_decode_str(parts.next()?).decode_utf8().ok()?;
        Some(decoded.into_owned())
    };
    let service = name(&mut parts)?;
    if parts.next()? != "endpoints" {
        return None;
    }
    let endpoint = name(&mut parts)?;
    let action = match (parts.next()?, parts.next()) {
        ("drain", None) => Action::Drain,
        ("enable", None) => Action::Enable,
        ("weight", Some("configured")) => Action::Weight(None),
        ("weight", Some(weight)) => {
            let is_number = weight.bytes().all(|byte| byte.is_ascii_digit());
            Action::Weight(Some(weight.parse().ok().filter(|weight| is_number && *weight <= WEIGHT_MAX)?))
        }
        _ => return None,
    };
    parts.next().is_none().then_some((service, endpoint, action))
}

#[cfg(test)]
mod tests {
    use hyper::header::HeaderValue;

    use super::*;
    use crate::testing::{hub, snapshot};

    fn started(may_change: bool) -> Arc<Hub> {
        let mut snapshot = snapshot();
        snapshot.admin = Some(ringway_config::snapshot::Admin { address: ([127, 0, 0, 1], 1).into(), may_change });
        hub(snapshot)
    }

    fn post(hub: &Hub, path: &str) -> u16 {
        operate(hub, &Method::POST, path, &HeaderMap::new()).0.as_u16()
    }

    #[test]
    fn operators_drain_enable_and_weigh() {
        let hub = started(true);
        let health = Arc::clone(&hub.published().health[0].endpoints[0]);
        let of = |action: &str| post(&hub, &format!("/services/product/endpoints/127.0.0.1:9/{action}"));
        assert_eq!((of("drain"), health.is_drained()), (200, true));
        assert_eq!((of("enable"), health.is_drained()), (200, false));
        assert_eq!((of("weight/7"), health.own_weight()), (200, Some(7)));
        assert_eq!((of("weight/configured"), health.own_weight()), (200, None));
        for bad in ["", "drain/x", "weight", "weight/", "weight/+1", "weight/65536", "weight/1/2", "kill"] {
            assert_eq!(of(bad), 404, "{bad}");
        }
        assert_eq!(post(&hub, "/services/pro%64uct/endpoints/127.0.0.1%3A9/drain"), 200);
        for bad in
            ["/services/", "/services/product/endpoints/127.0.0.1:8/drain", "/services/x/endpoints/127.0.0.1:9/drain"]
        {
            assert_eq!(post(&hub, bad), 404, "{bad}");
        }
    }

    #[test]
    fn nobody_changes_anything_unasked() {
        let path = "/services/product/endpoints/127.0.0.1:9/drain";
        let hub = started(false);
        assert_eq!(post(&hub, path), 403);
        let hub = started(true);
        assert_eq!(operate(&hub, &Method::GET, path, &HeaderMap::new()).0.as_u16(), 405);
        let from_a_page = HeaderMap::from_iter([(ORIGIN, HeaderValue::from_static("https://a.test"))]);
        assert_eq!(operate(&hub, &Method::POST, path, &from_a_page).0.as_u16(), 403);
        assert!(!hub.published().health[0].endpoints[0].is_drained());
    }
}
