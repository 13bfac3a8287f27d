//! What operators see of subsets: which endpoints each has, and who of them gets its requests.

use std::collections::BTreeMap;

use ringway_config::health::Health;
use ringway_config::hub::Published;
use ringway_config::snapshot::{Action, Asked, Service, Subset};
use serde::Serialize;

/// A subset of a service's endpoints that routes go to.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct SubsetState {
    routes: Vec<String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    metadata: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    by_header: Option<ByHeaderState>,
    /// `none` or `any`.
    fallback: &'static str,
    #[serde(flatten)]
    all: PartState,
    /// What the header may choose.
    #[serde(skip_serializing_if = "Option::is_none")]
    values: Option<Vec<ValueState>>,
}

#[derive(Debug, Serialize)]
struct ByHeaderState {
    name: String,
    metadata: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    default: Option<String>,
}

#[derive(Debug, Serialize)]
struct ValueState {
    value: String,
    #[serde(flatten)]
    part: PartState,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct PartState {
    /// Those that belong to it, by their addresses.
    endpoints: Vec<String>,
    /// Those of them that get requests, also in a panic.
    in_use: Vec<String>,
    panic: bool,
    /// None of them is usable: all endpoints of the service get the requests.
    falls_back: bool,
}

/// The subsets that routes to the service with this index have.
pub(super) fn of_service(published: &Published, index: usize, service: &Service, health: &Health) -> Vec<SubsetState> {
    let mut routes: BTreeMap<u32, Vec<String>> = BTreeMap::new();
    for route in &published.snapshot.routes {
        if let Action::Forward(forward) = &route.action
            && let Some(subset) = forward.subset
            && forward.service.services().contains(&index)
        {
            routes.entry(subset).or_default().push(route.name.to_string());
        }
    }
    let subsets = routes.into_iter().filter_map(|(subset, routes)| {
        let subset = published.snapshot.subsets.get(subset as usize)?;
        Some(of_subset(subset, routes, service, health))
    });
    subsets.collect()
}

fn of_subset(subset: &Subset, routes: Vec<String>, service: &Service, health: &Health) -> SubsetState {
    let value = |value: std::sync::Arc<str>| ValueState {
        part: of_part(subset, Asked::Value(&value), service, health),
        value: value.to_string(),
    };
    let by_header = subset.by_header.as_ref();
    SubsetState {
        routes,
        metadata: subset.metadata.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect(),
        fallback: if subset.falls_back { "any" } else { "none" },
        all: of_part(subset, Asked::Any, service, health),
        values: by_header.map(|_| subset.values(&health.targets).into_iter().map(value).collect()),
        by_header: by_header.map(|by| ByHeaderState {
            name: by.header.to_string(),
            metadata: by.entry.to_string(),
            default: by.default.as_ref().map(|value| value.to_string()),
        }),
    }
}

fn of_part(subset: &Subset, asked: Asked<'_>, service: &Service, health: &Health) -> PartState {
    let chosen = health.choose_of(service, subset, asked).map(|(_, chosen)| chosen);
    let falls_back = chosen.is_none();
    let chosen = chosen.unwrap_or_default();
    let of_subset = health.targets.iter().enumerate().filter(|(_, endpoint)| subset.has(endpoint, asked));
    let names = |is_wanted: &dyn Fn(usize) -> bool| -> Vec<String> {
        let wanted = of_subset.clone().filter(|(at, _)| is_wanted(*at));
        wanted.map(|(_, endpoint)| endpoint.label.to_string()).collect()
    };
    PartState {
        endpoints: names(&|_| true),
        in_use: names(&|at| chosen.members.contains(&at) || chosen.others.contains(&at)),
        panic: chosen.is_panic,
        falls_back,
    }
}
