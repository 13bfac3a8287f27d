//! Copies of a route's requests.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use ringway_core::stats::MirrorStats;

use super::{Action, Snapshot};
use crate::hub::Published;

/// Which requests are copied for another service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mirror {
    /// Index into [`Snapshot::services`].
    pub service: usize,
    /// In percent.
    pub share: u8,
    /// Requests with a longer body are not copied.
    pub body_bytes_max: usize,
    /// Copies at a time, over all workers.
    pub in_flight: usize,
    /// From the whole copy to the end of its answer.
    pub timeout: Duration,
}

/// By route; those of `old` where the name is the same.
pub(crate) fn mirror_stats(
    snapshot: &Snapshot,
    workers: usize,
    old: Option<&Published>,
) -> Vec<Option<Arc<MirrorStats>>> {
    let known: HashMap<&str, _> =
        old.into_iter().flat_map(|old| old.mirrors.iter().flatten()).map(|stats| (&*stats.route, stats)).collect();
    let of_route = |route: &Arc<super::Route>| match &route.action {
        Action::Forward(forward) if forward.mirror.is_some() => Some(match known.get(&*route.name) {
            Some(stats) => Arc::clone(stats),
            None => Arc::new(MirrorStats::new(route.name.clone(), workers)),
        }),
        _ => None,
    };
    snapshot.routes.iter().map(of_route).collect()
}
