//! Load by the clock, and what became of each request.

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::load::{connect, exchange, has_ended};
use crate::{PATIENCE, eventually};

/// Keep-alive clients, each with its part of the schedule. A request is due at its time, however long those before it took;
/// one that its client is late with has waited since then.
pub struct Steady {
    begun: Instant,
    rate: u32,
    stop: Arc<AtomicBool>,
    samples: Arc<Mutex<Vec<Sample>>>,
    clients: Vec<JoinHandle<()>>,
}

/// A request that is done. Times count from the start.
#[derive(Debug, Clone, Copy)]
pub struct Sample {
    pub due: Duration,
    pub sent: Duration,
    pub done: Duration,
    /// 0: there was no answer.
    pub status: u16,
}

impl Sample {
    pub fn is_good(&self) -> bool {
        self.status == 200
    }

    pub fn took(&self) -> Duration {
        self.done - self.due
    }
}

impl Steady {
    /// GETs of `/`. `rate`: requests per second, all clients together.
    pub fn start(address: SocketAddr, clients: u32, rate: u32) -> Self {
        let (begun, stop) = (Instant::now(), Arc::new(AtomicBool::new(false)));
        let samples = Arc::<Mutex<Vec<Sample>>>::default();
        let run = |client: u32| {
            let (stop, samples) = (Arc::clone(&stop), Arc::clone(&samples));
            thread::spawn(move || {
                let mut stream = None;
                // The clients take turns.
                let dues = (client..).step_by(clients as usize).map(|turn| Duration::from_secs(1) * turn / rate);
                for due in dues {
                    thread::sleep(due.saturating_sub(begun.elapsed()));
                    if stop.load(Ordering::Acquire) {
                        return;
                    }
                    let sent = begun.elapsed();
                    let status = ask(&mut stream, address).unwrap_or(0);
                    let sample = Sample { due, sent, done: begun.elapsed(), status };
                    samples.lock().expect("samples").push(sample);
                }
            })
        };
        let clients = (0..clients).map(run).collect();
        Self { begun, rate, stop, samples, clients }
    }

    /// Since the start.
    pub fn now(&self) -> Duration {
        self.begun.elapsed()
    }

    /// Those that are done, and were due in this time.
    pub fn between(&self, from: Duration, to: Duration) -> Vec<Sample> {
        let samples = self.samples.lock().expect("samples");
        samples.iter().filter(|sample| (from..to).contains(&sample.due)).copied().collect()
    }

    /// How many have failed so far.
    pub fn failures(&self) -> usize {
        self.samples.lock().expect("samples").iter().filter(|sample| !sample.is_good()).count()
    }

    /// Answers by status; 0: none.
    pub fn statuses(&self) -> BTreeMap<u16, usize> {
        let mut statuses = BTreeMap::new();
        for sample in self.samples.lock().expect("samples").iter() {
            *statuses.entry(sample.status).or_default() += 1;
        }
        statuses
    }

    /// Waits until all that was due before now is done, and as much again as is due in this time.
    #[track_caller]
    pub fn go_on(&self, time: Duration) {
        let until = self.now() + time;
        let due = (until.as_secs_f64() * f64::from(self.rate)) as usize;
        eventually(PATIENCE + time, || self.between(Duration::ZERO, until).len() >= due);
    }

    /// Ends the clients; how many requests they have made.
    #[track_caller]
    pub fn finish(mut self) -> usize {
        self.join();
        self.samples.lock().expect("samples").len()
    }

    fn join(&mut self) {
        self.stop.store(true, Ordering::Release);
        for client in self.clients.drain(..) {
            let ended = client.join();
            if !thread::panicking() {
                ended.expect("a client");
            }
        }
    }
}

impl Drop for Steady {
    fn drop(&mut self) {
        self.join();
    }
}

/// The latency that so many of a thousand are not above.
pub fn percentile(samples: &[Sample], per_mille: usize) -> Duration {
    let mut took: Vec<Duration> = samples.iter().map(Sample::took).collect();
    took.sort_unstable();
    took.get((took.len() * per_mille / 1000).min(took.len().saturating_sub(1))).copied().unwrap_or_default()
}

/// A connection that was closed between two requests is made anew.
fn ask(stream: &mut Option<TcpStream>, address: SocketAddr) -> Result<u16, String> {
    let open = stream.take().filter(|stream| !has_ended(stream));
    let mut open = open.map_or_else(|| connect(address), Ok).map_err(|error| error.to_string())?;
    let (status, lives_on) = exchange(&mut open, "/")?;
    *stream = lives_on.then_some(open);
    Ok(status)
}
