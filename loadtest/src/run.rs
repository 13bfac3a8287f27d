//! The generator: sends what a scenario says, when it says so, and measures what comes back.
//!
//! One pinned thread for each core (`run/pacer.rs`) with its own event loop, connections (`run/connection.rs`), share of
//! the schedule (`run/worker.rs`) and histograms (`run/record.rs`); nothing is shared between them while they run.

mod connection;
mod cost;
mod fault;
mod idle;
mod live;
mod pacer;
mod reader;
mod record;
mod slot;
mod start;
mod timeline;
mod worker;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, LazyLock, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::environment::Environment;
use crate::failure::Failure;
use crate::report::Output;
use crate::results::{self, Generator, Results};
use crate::scenario::{self, LoadFlags, RequestFlags, Scenario};

pub(crate) use live::Live;

use cost::Cost;
use live::{LiveLine, Published};
use pacer::{Link, Outcome};
use record::Record;
use worker::Share;

/// How often a run is looked at from outside.
const LOOK: Duration = Duration::from_millis(250);
/// From the moment at which all threads are ready to the first request.
const LEAD: Duration = Duration::from_millis(5);
/// Shares beyond which the generator's own figures make those of the target doubtful.
const BUSY_MAX: f64 = 0.9;
const WAITED_MAX: f64 = 0.1;
const WAITED_LATE_MAX: f64 = 0.005;
const ON_SCHEDULE_MIN: f64 = 0.99;

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// A scenario file, or the URL to load
    #[arg(value_name = "SCENARIO|URL")]
    target: String,
    #[command(flatten)]
    request: RequestFlags,
    #[command(flatten)]
    load: LoadFlags,
    #[command(flatten)]
    output: Output,
}

const EXAMPLES: &str = "\
Examples:
  loadtest run --rate 5000 --connections 64 --duration 30s http://127.0.0.1:8080/
      5,000 requests a second for 30 seconds, whether or not the target keeps up
  loadtest run --rate 5000 --poisson --html report.html http://127.0.0.1:8080/
      The same with random gaps, as independent users would send; a page with graphs
  loadtest run --closed --connections 64 --duration 10s http://127.0.0.1:8080/
      Each connection sends when it has its answer: what the target can do at most
  loadtest run scenario.yaml --json results.json
      What a file says: mixes of requests, ramps, clients with their own addresses and tokens

With a rate, a latency counts from the time at which its request was due, not from when it could be sent: a target that
stops for a while is charged with every request that had to wait. A request that finds no free connection in half of its
time-out has failed (`no_connection`): the target is too slow for this rate, or there are too few connections.

Ctrl-C ends a run early and reports what was measured.

Exit code: 0 after a run, also one with errors in it; 1 if it could not take place; 2 if the command line or a file is
wrong.";

pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    let scenario = Scenario::open(&args.target, &args.request, &args.load)?;
    args.output.check()?;
    let results = {
        let mut line = LiveLine::new();
        execute(&scenario, &mut |live| line.draw(live))?
    };
    args.output.write(&results)
}

/// Runs a scenario to its end, or until Ctrl-C. `watch` is called about four times a second.
///
/// # Errors
/// When the run cannot take place: the target cannot be reached, connections do not fit, a core is not to be had.
pub(crate) fn execute(scenario: &Scenario, watch: &mut dyn FnMut(&Live)) -> Result<Results, Failure> {
    start::check_cores(scenario)?;
    start::make_room(scenario)?;
    let address = start::reach(scenario)?;
    let mixes = scenario.mixes();
    let interrupted = Arc::clone(&INTERRUPTED);
    let clock = Instant::now();
    let mut arrivals = match &scenario.load {
        scenario::Load::Open(arrivals) => arrivals.split(scenario.threads),
        scenario::Load::Closed => Vec::new(),
    }
    .into_iter();
    let (alive, all_ended) = mpsc::channel();
    let mut threads = Vec::new();
    for (number, mix) in mixes.into_iter().enumerate() {
        let connections =
            scenario.connections / scenario.threads + usize::from(number < scenario.connections % scenario.threads);
        let arrivals = arrivals.next();
        let share = Share { scenario: scenario.clone(), address, connections, mix, arrivals, clock };
        let core = (!scenario.cores.is_empty()).then(|| scenario.cores[number % scenario.cores.len()]);
        threads.push(Thread::start(number, share, core, alive.clone(), &interrupted)?);
    }
    drop(alive);
    threads.iter().try_for_each(Thread::wait_until_ready)?;

    let started = SystemTime::now() + LEAD;
    let start = clock.elapsed() + LEAD;
    for thread in &threads {
        // A thread that has failed since is found when it is joined.
        let _ = thread.start.send(start.as_nanos() as u64);
    }
    watch_until_done(scenario, &threads, &all_ended, (clock, start), watch);
    let outcomes: Option<Vec<Outcome>> = threads.into_iter().map(Thread::join).collect();
    let outcomes = outcomes.ok_or_else(|| Failure::runtime("a thread of the generator has failed"))?;
    Ok(gather(scenario, outcomes, start, started))
}

/// Whether Ctrl-C has ended a run early.
pub(crate) fn is_interrupted() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}

/// Set by the first Ctrl-C (or SIGTERM), once a run has begun; the second ends the process.
static INTERRUPTED: LazyLock<Arc<AtomicBool>> = LazyLock::new(|| {
    use signal_hook::consts::{SIGINT, SIGTERM};
    let flag = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        // In this order: the handlers of a signal run in the order in which they were set.
        let _ = signal_hook::flag::register_conditional_shutdown(signal, 128 + signal, Arc::clone(&flag));
        let _ = signal_hook::flag::register(signal, Arc::clone(&flag));
    }
    flag
});

struct Thread {
    handle: JoinHandle<Option<Outcome>>,
    ready: mpsc::Receiver<std::io::Result<()>>,
    start: mpsc::Sender<u64>,
    published: Arc<Mutex<Published>>,
}

impl Thread {
    fn start(
        number: usize,
        share: Share,
        core: Option<usize>,
        alive: mpsc::Sender<()>,
        interrupted: &Arc<AtomicBool>,
    ) -> Result<Self, Failure> {
        let published = Arc::new(Mutex::new(Published::default()));
        let (ready, is_ready) = mpsc::channel();
        let (start, begin) = mpsc::channel();
        let interrupted = Arc::clone(interrupted);
        let link = Link { ready, start: begin, published: Arc::clone(&published), interrupted };
        let body = move || {
            // Dropped when the thread ends, however it does.
            let _alive = alive;
            if let Some(core) = core
                && !core_affinity::set_for_current(core_affinity::CoreId { id: core })
            {
                let error = format!("it may not run on core {core}");
                let _ = link.ready.send(Err(std::io::Error::other(error)));
                return None;
            }
            pacer::run(share, &link)
        };
        let thread = std::thread::Builder::new().name(format!("loadtest-{number}")).spawn(body);
        let handle = thread.map_err(|error| Failure::runtime(format!("cannot start a thread: {error}")))?;
        Ok(Self { handle, ready: is_ready, start, published })
    }

    fn wait_until_ready(&self) -> Result<(), Failure> {
        let ready = self.ready.recv().unwrap_or_else(|_| Err(std::io::Error::other("it ended at once")));
        ready.map_err(|error| Failure::runtime(format!("a thread of the generator cannot start: {error}")))
    }

    fn join(self) -> Option<Outcome> {
        self.handle.join().ok().flatten()
    }
}

/// `threads` hold the sending side of `ended` for as long as they live.
fn watch_until_done(
    scenario: &Scenario,
    threads: &[Thread],
    ended: &mpsc::Receiver<()>,
    (clock, start): (Instant, Duration),
    watch: &mut dyn FnMut(&Live),
) {
    let (mut answered, mut looked) = (0, clock.elapsed());
    while let Err(RecvTimeoutError::Timeout) = ended.recv_timeout(LOOK) {
        let mut all = Published::default();
        for thread in threads {
            if let Ok(published) = thread.published.lock() {
                all.add(&published);
            }
        }
        let now = clock.elapsed();
        let elapsed = now.saturating_sub(start);
        let live = Live {
            elapsed,
            left: (scenario.warmup + scenario.duration).saturating_sub(elapsed),
            is_warming_up: elapsed < scenario.warmup,
            ..Live::new(&all, answered, now - looked)
        };
        (answered, looked) = (live.answered, now);
        watch(&live);
    }
}

/// The results of all threads as one.
fn gather(scenario: &Scenario, outcomes: Vec<Outcome>, start: Duration, started: SystemTime) -> Results {
    let classes = scenario.classes();
    let mut record = Record::new(classes.len());
    outcomes.iter().for_each(|outcome| record.merge(&outcome.record));
    let measured_from = start + scenario.warmup;
    let ended = outcomes.iter().map(|outcome| Duration::from_nanos(outcome.ended)).max().unwrap_or_default();
    let measured = ended.saturating_sub(measured_from).min(scenario.duration);
    let seconds = measured.as_secs_f64();
    let generator = generator(scenario, &outcomes, &record, measured);
    let unix_ms = started.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64;
    let mut text = Vec::new();
    ringway_core::timestamp::rfc3339_millis(unix_ms, &mut text);
    let mut load = scenario.describe();
    if measured < scenario.duration {
        load.rate = load.rate.map(|_| record.counts.due as f64 / seconds.max(f64::MIN_POSITIVE));
    }
    Results {
        format: results::FORMAT,
        started: String::from_utf8_lossy(&text).into_owned(),
        environment: Environment::here(),
        target: scenario.target.url.clone(),
        load,
        seconds,
        latency: record.latency(),
        service_time: record.service_time(),
        classes: record.classes(classes.iter().map(|class| class.name.as_str())),
        errors: record.errors(),
        timeline: record.timeline(seconds),
        generator,
        counts: record.counts,
    }
}

fn generator(scenario: &Scenario, outcomes: &[Outcome], record: &Record, measured: Duration) -> Generator {
    let costs = || outcomes.iter().map(|outcome| &outcome.cost);
    let busiest = |share: fn(&Cost) -> f64| costs().map(share).fold(0.0, f64::max);
    let (busy, waited) = (busiest(Cost::busy), busiest(Cost::waited));
    let (cpu_ns, answers) = costs().fold((0, 0), |(cpu, n), cost| (cpu + cost.cpu_ns, n + cost.answers));
    let on_schedule = record.on_schedule();
    let percent = |share: f64| share * 100.0;

    let mut warnings = Vec::new();
    if measured < scenario.duration {
        warnings.push(format!(
            "the run was ended early, after {:.1} of {} s; {} requests were not finished and are not counted",
            measured.as_secs_f64(),
            scenario.duration.as_secs_f64(),
            record.abandoned
        ));
    }
    if busy > BUSY_MAX {
        warnings.push(format!(
            "a thread of the generator was busy {:.0} % of the time: latencies contain its own delay; give it more \
             threads or a lower rate",
            percent(busy)
        ));
    }
    if on_schedule < ON_SCHEDULE_MIN {
        warnings.push(format!(
            "the generator could not keep its schedule: {:.1} % of the requests were on time to 1 ms, the latest was \
             {:.1} ms late; the target was asked for less, and later, than planned",
            percent(on_schedule),
            record.late_max_us() as f64 / 1e3
        ));
    }
    // A schedule that was missed for a hundredth of the requests was missed for a hundredth of the time.
    if waited > WAITED_MAX || (on_schedule < ON_SCHEDULE_MIN && waited > WAITED_LATE_MAX) {
        warnings.push(format!(
            "a thread of the generator waited for its core {:.1} % of the time, since something else ran there: give it \
             a core of its own",
            percent(waited)
        ));
    }
    if record.connects_failed > 0 {
        warnings.push(format!("{} attempts to connect failed", record.connects_failed));
    }
    let signed: u64 = outcomes.iter().map(|outcome| outcome.tokens_signed).sum();
    if signed > 0 {
        warnings
            .push(format!("{signed} tokens had to be signed during the run, which the generator's CPU time contains"));
    }
    if outcomes.iter().any(|outcome| !outcome.is_io_uring) {
        warnings
            .push("io_uring is not available here: epoll is used, and a request costs the generator more".to_owned());
    }
    Generator {
        cpu_us_per_request: cpu_ns as f64 / 1e3 / answers.max(1) as f64,
        busy,
        on_schedule,
        late_max_us: record.late_max_us(),
        warnings,
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use ringway_tests::{Backend, eventually};

    use super::*;

    /// Rings, timers and threads of generators in this process.
    fn held() -> (usize, usize) {
        let files = fs::read_dir("/proc/self/fd").unwrap().filter_map(|file| fs::read_link(file.ok()?.path()).ok());
        let rings = files.filter(|file| file.to_string_lossy().starts_with("anon_inode:")).count();
        let tasks = fs::read_dir("/proc/self/task").unwrap().filter_map(Result::ok);
        let names = tasks.filter_map(|task| fs::read_to_string(task.path().join("comm")).ok());
        (rings, names.filter(|name| name.starts_with("loadtest-")).count())
    }

    #[test]
    fn a_thread_that_fails_before_it_is_ready_is_not_waited_for() {
        let load = LoadFlags { closed: true, ..LoadFlags::default() };
        let scenario = Scenario::open("http://127.0.0.1:1/", &RequestFlags::default(), &load).unwrap();
        let (mix, address) = (scenario.mixes().remove(0), "127.0.0.1:1".parse().unwrap());
        // More than there is memory for.
        let connections = usize::MAX / 2;
        let share = Share { scenario, address, connections, mix, arrivals: None, clock: Instant::now() };
        let (alive, ended) = mpsc::channel();
        let thread = Thread::start(0, share, None, alive.clone(), &Arc::default()).unwrap();
        let told = thread.wait_until_ready().unwrap_err().to_string();
        assert_eq!(told, "a thread of the generator cannot start: it ended at once");
        assert!(thread.join().is_none());
        drop(alive);
        assert_eq!(ended.recv_timeout(LOOK), Err(RecvTimeoutError::Disconnected));
    }

    #[test]
    fn a_run_leaves_nothing_behind() {
        let backend = Backend::ok();
        let url = format!("http://{}/", backend.endpoint());
        let before = held();
        for no_keep_alive in [false, true] {
            let request = RequestFlags { no_keep_alive, threads: Some("2".into()), ..RequestFlags::default() };
            let load = LoadFlags { rate: Some("1000".into()), duration: Some("100ms".into()), ..LoadFlags::default() };
            let scenario = Scenario::open(&url, &request, &load).unwrap();
            let results = execute(&scenario, &mut |_| {}).unwrap();
            assert_eq!((results.counts.answered, results.counts.failed), (100, 0), "{:?}", results.errors);
            backend.expect_all_closed();
            eventually(ringway_tests::PATIENCE, || held() == before);
        }
    }
}
