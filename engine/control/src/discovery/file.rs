//! Endpoints from a file.

use std::path::Path;
use std::time::Duration;

use ringway_config::{FILE_BYTES_MAX, read_endpoints};
use tokio::time::sleep;

use super::Found;
use crate::watch::Watch;

/// Between two looks. A change is taken when it is seen twice the same: who writes slowly is waited for.
const LOOK_EVERY: Duration = Duration::from_millis(250);

pub(super) async fn find(mut found: Found, path: &Path) {
    let mut watch = Watch::new(path);
    read(&mut found, path);
    loop {
        sleep(LOOK_EVERY).await;
        if watch.poll() {
            read(&mut found, path);
        }
    }
}

fn read(found: &mut Found, path: &Path) {
    let name = path.display().to_string();
    let text = match std::fs::metadata(path) {
        Ok(metadata) if metadata.len() > FILE_BYTES_MAX => {
            return found.fail(&format!("{name}: larger than {FILE_BYTES_MAX} bytes"));
        }
        _ => std::fs::read_to_string(path),
    };
    match text.map(|text| read_endpoints(&name, &text, found.of.tls.as_ref())) {
        Ok(Ok(endpoints)) => found.learn(endpoints),
        Ok(Err(errors)) => found.fail(&errors.to_string().trim_end()),
        Err(error) => found.fail(&format!("{name}: {error}")),
    }
}
