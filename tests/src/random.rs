//! Connections that do what comes to their mind, in great number.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use fastrand::Rng;

/// As many as the time allows.
const CONNECTIONS: usize = 10_000;
const TIME: Duration = Duration::from_secs(30);
const THREADS: usize = 4;

/// Calls `connection` ten thousand times from a few threads, each time with a course of its own, for half a minute at most.
/// The seed of all is printed, and taken from `SEED` where that is set.
pub fn ten_thousand(connection: impl Fn(&mut Rng) + Sync) {
    let seed = std::env::var("SEED").ok().map_or_else(|| fastrand::u64(..), |seed| seed.parse().expect("a number"));
    println!("SEED={seed}");
    let (made, started) = (AtomicUsize::new(0), Instant::now());
    thread::scope(|scope| {
        for first in 0..THREADS {
            let (made, connection) = (&made, &connection);
            scope.spawn(move || {
                for index in (first..CONNECTIONS).step_by(THREADS).take_while(|_| started.elapsed() < TIME) {
                    connection(&mut Rng::with_seed(seed ^ (index as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15)));
                    made.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    });
    println!("{} connections in {:?}", made.into_inner(), started.elapsed());
}
