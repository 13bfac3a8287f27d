//! What is counted of routes that share requests out, or copy them.

use ringway_config::hub::Published;

use crate::exposition::Exposition;
use crate::families as f;

pub(super) fn render(out: &mut Exposition, published: &Published) {
    let mut samples = out.family(&f::SPLIT_REQUESTS);
    for stats in published.splits.iter().flatten() {
        let requests = stats.workers.iter().map(|cell| cell.get()).sum();
        samples.count(&[&stats.route, &stats.service], requests);
    }
    let mut samples = out.family(&f::MIRRORED_REQUESTS);
    for stats in published.mirrors.iter().flatten() {
        for (outcome, count) in stats.outcomes() {
            samples.count(&[&stats.route, outcome], count);
        }
    }
}
