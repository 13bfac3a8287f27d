//! What is counted of routes that share requests out.

use ringway_config::hub::Published;

use crate::exposition::Exposition;
use crate::families as f;

pub(super) fn render(out: &mut Exposition, published: &Published) {
    let mut samples = out.family(&f::SPLIT_REQUESTS);
    for stats in published.splits.iter().flatten() {
        let requests = stats.workers.iter().map(|cell| cell.get()).sum();
        samples.count(&[&stats.route, &stats.service], requests);
    }
}
