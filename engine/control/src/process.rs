//! What the kernel knows about this process.

use std::time::{SystemTime, UNIX_EPOCH};

use rustix::process::{Resource, getrlimit};
use rustix::time::{ClockId, clock_gettime};

/// Milliseconds since 1970; 0 for a time before.
pub fn unix_ms(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64
}

/// Resident memory in bytes; `None` where `/proc` is not mounted.
pub fn resident_bytes() -> Option<u64> {
    let pages: u64 = std::fs::read_to_string("/proc/self/statm").ok()?.split(' ').nth(1)?.parse().ok()?;
    Some(pages * rustix::param::page_size() as u64)
}

/// Open file descriptors; `None` where `/proc` is not mounted.
pub fn open_fds() -> Option<u64> {
    // One of them is the directory itself.
    Some((std::fs::read_dir("/proc/self/fd").ok()?.count() as u64).saturating_sub(1))
}

/// The soft limit on open file descriptors; `None`: no limit.
pub fn max_fds() -> Option<u64> {
    getrlimit(Resource::Nofile).current
}

/// Processor time in seconds, all threads, user and system.
pub fn cpu_seconds() -> f64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_plausible() {
        assert!(resident_bytes().unwrap() > 100_000);
        assert!((3..100_000).contains(&open_fds().unwrap()));
        assert!(max_fds().is_none_or(|max| max >= open_fds().unwrap()));
        assert!((0.0..1e6).contains(&cpu_seconds()));
    }
}
