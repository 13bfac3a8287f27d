//! `loadtest origin`: a backend whose sizes, latencies and faults are chosen, and which costs so little that a test
//! measures what stands in front of it.

mod answer;
mod connection;
mod fate;
mod inbox;
mod latency;
mod request;
mod timers;
mod worker;

use std::io::{self, Write};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::net::Shutdown;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::time::{ClockId, clock_gettime};
use signal_hook::consts::{SIGINT, SIGTERM, SIGUSR1};
use signal_hook::iterator::Signals;

use crate::failure::Failure;
use crate::units;
use answer::Look;
use fate::Faults;
use latency::{Latency, SlowStart};
use worker::{Counts, Settings};

/// Bytes of an answer's body: it is kept rendered.
const BODY_BYTES_MAX: u64 = 64 << 20;
/// Latency of an answer, whoever asks for it.
const LATENCY_MAX: Duration = Duration::from_secs(600);
const THREADS_MAX: usize = 256;
/// Connections that the kernel keeps for a thread until it takes them.
const BACKLOG: u32 = 4096;
/// How often the end of the last connection is looked for.
const LOOK: Duration = Duration::from_millis(5);

const EXAMPLES: &str = "\
Examples:
  loadtest origin --body 16KiB                           answers at once, on 127.0.0.1:9000
  loadtest origin --listen 127.0.0.1:0 --cores 1         on a free port, which it prints, pinned to core 1
  loadtest origin --latency lognormal:5ms,0.5 --fail 1%  a service like most
  loadtest origin --latency 5ms --slow-start 30s         a service that has just started
  loadtest origin --stall 0.1% --reset 0.1% --seed 7     a service to test timeouts and retries with
  loadtest origin --fail 100% --on-signal                a good one, until SIGUSR1 comes
  loadtest origin --grace 10s                            one that is deployed anew without a failed request

Latencies (from the whole request to the first byte of its answer):
  5ms                  always the same
  exp:5ms              exponential with this mean
  lognormal:5ms,0.5    log-normal with this median and this sigma
  file:PATH            one of a file's values, each as likely; one on each line, as `5ms` or in microseconds;
                       or a percentile distribution of HdrHistogram's (.hgrm), whose values are milliseconds

A request may ask for its own answer, on any path:
  curl 'http://127.0.0.1:9000/any/path?size=100&delay=5ms&status=503'
  size in bytes or with a unit; delay instead of --latency; status instead of --status and of any failure, stall or
  reset. Other parameters do not matter.

Ctrl-C or SIGTERM ends it, with a line of counts and of the CPU time that a request took.";

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// Where to listen; port 0 is a free port, which is printed
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:9000")]
    listen: SocketAddr,
    /// Cores to pin threads to: `1`, `0,2-3` [default: not pinned]
    #[arg(long, value_name = "LIST", value_parser = parse_cores)]
    cores: Option<Cores>,
    /// Threads, each with its own loop [default: one for each core of --cores, else 1]
    #[arg(long, value_name = "N", value_parser = parse_threads)]
    threads: Option<usize>,
    /// Size of an answer's body
    #[arg(long, value_name = "SIZE", default_value = "16KiB", value_parser = parse_body)]
    body: usize,
    /// Status of an answer
    #[arg(long, value_name = "STATUS", default_value = "200", value_parser = parse_status)]
    status: u16,
    /// The body is JSON if this is, else a run of letters
    #[arg(long, value_name = "TYPE", default_value = "application/json", value_parser = parse_field_value)]
    content_type: String,
    /// One more header field, `name: value`; may be given more than once
    #[arg(long, value_name = "FIELD", value_parser = parse_field)]
    header: Vec<String>,
    /// Sends bodies in chunks instead of with a Content-Length
    #[arg(long)]
    chunked: bool,
    /// Latency of an answer, see below [default: none]
    #[arg(long, value_name = "LATENCY", value_parser = Latency::parse)]
    latency: Option<Latency>,
    /// Begins with ten times the latency, which falls to it steadily in this time
    #[arg(long, value_name = "TIME", requires = "latency", value_parser = parse_time)]
    slow_start: Option<Duration>,
    /// Share of requests that are answered with --fail-status and a short body
    #[arg(long, value_name = "SHARE", default_value = "0%", value_parser = units::share)]
    fail: f64,
    /// Status of the answers that fail
    #[arg(long, value_name = "STATUS", default_value = "503", value_parser = parse_status)]
    fail_status: u16,
    /// Share of requests whose answer stops half way, for 60 s or until the client leaves
    #[arg(long, value_name = "SHARE", default_value = "0%", value_parser = units::share)]
    stall: f64,
    /// Share of requests that are answered with a reset of the connection
    #[arg(long, value_name = "SHARE", default_value = "0%", value_parser = units::share)]
    reset: f64,
    /// Share of answers that close their connection
    #[arg(long, value_name = "SHARE", default_value = "0%", value_parser = units::share)]
    close: f64,
    /// Share of answers after which the connection ends, though they do not say so
    #[arg(long, value_name = "SHARE", default_value = "0%", value_parser = units::share)]
    hang_up: f64,
    /// Latency and faults begin with SIGUSR1, and end with the next one
    #[arg(long)]
    on_signal: bool,
    /// At its end it takes no more connections, answers what is under way for so long, and closes [default: ends at once]
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    grace: Option<Duration>,
    /// What is random is so in the same way each time with the same seed
    #[arg(long, value_name = "N", default_value = "1")]
    seed: u64,
}

#[derive(Debug, Clone)]
struct Cores(Vec<usize>);

pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    let settings = Arc::new(settings(args)?);
    let cores = pinnable(args)?;
    let threads = args.threads.unwrap_or(cores.len().max(1));
    raise_descriptors();
    // Before the line that says that it is up: who reads it may end it at once.
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGUSR1])
        .map_err(|error| Failure::runtime(format!("cannot listen to signals: {error}")))?;
    let cannot_listen = |error| Failure::runtime(format!("cannot listen on {}: {error}", args.listen));
    let listeners = ringway_io::bind(args.listen, BACKLOG, threads).map_err(cannot_listen)?;
    let address = match listeners.first() {
        Some(listener) => listener.local_addr().map_err(cannot_listen)?,
        None => args.listen,
    };

    let closers =
        listeners.iter().map(TcpListener::try_clone).collect::<io::Result<Vec<_>>>().map_err(cannot_listen)?;

    let (up, ups) = mpsc::channel();
    let (mut counts, mut bells) = (Vec::new(), Vec::new());
    for (id, listener) in listeners.into_iter().enumerate() {
        let core = (!cores.is_empty()).then(|| cores[id % cores.len()]);
        let counted = Arc::new(Counts::default());
        counts.push(Arc::clone(&counted));
        let cannot_start = |error| Failure::runtime(format!("cannot start a thread: {error}"));
        let (bell, rings) = UnixStream::pair().map_err(cannot_start)?;
        bells.push(bell);
        // A thread never ends by itself; were one to panic, the process would go with it.
        let alive = worker::EndsWith(signals.handle());
        worker::start(id, core, (listener, rings), Arc::clone(&settings), counted, up.clone(), alive)
            .map_err(cannot_start)?;
    }
    drop(up);
    let mut driver = "io_uring";
    for _ in 0..threads {
        match ups.recv() {
            Ok(Ok(is_io_uring)) if is_io_uring => {}
            Ok(Ok(_)) => driver = "epoll, since io_uring is not available",
            Ok(Err(message)) => return Err(Failure::runtime(message)),
            Err(_) => return Err(Failure::runtime("a thread ended before it was up")),
        }
    }
    let cpu = cpu_time();
    say(&format!("listening on http://{address} ({driver}, {threads} thread{})\n", plural(threads as u64)));

    loop {
        match signals.forever().next() {
            None => return Err(Failure::runtime("a thread ended unexpectedly")),
            Some(SIGUSR1) => drop(settings.is_faulty.fetch_xor(args.on_signal, Ordering::Relaxed)),
            Some(_) => break,
        }
    }
    let used = cpu_time().saturating_sub(cpu);
    // The kernel takes a ring apart after the process has ended; until then the port would not be free.
    for closer in &closers {
        let _ = rustix::net::shutdown(closer, Shutdown::Read);
    }
    if let Some(grace) = args.grace {
        drop(bells);
        let end = Instant::now() + grace;
        while Instant::now() < end && !counts.iter().all(|counts| counts.has_ended()) {
            thread::sleep(LOOK);
        }
    }
    say(&summary(&counts, used));
    Ok(())
}

fn settings(args: &Args) -> Result<Settings, Failure> {
    let Args { fail, stall, reset, close, hang_up, .. } = *args;
    let faults = Faults { fail, stall, reset, close, hang_up };
    if !faults.fit() {
        return Err(Failure::usage("--fail, --stall and --reset together are more than 100% of the requests"));
    }
    Ok(Settings {
        look: Look::new(&args.content_type, &args.header, args.chunked),
        body_bytes: args.body,
        status: args.status,
        fail_status: args.fail_status,
        latency: args.latency.clone(),
        slow_start: args.slow_start.map(|time| SlowStart::new(Instant::now(), time)),
        faults,
        is_faulty: AtomicBool::new(!args.on_signal),
        seed: args.seed,
    })
}

/// The cores to pin to, which are there.
fn pinnable(args: &Args) -> Result<Vec<core_affinity::CoreId>, Failure> {
    let Some(Cores(named)) = &args.cores else { return Ok(Vec::new()) };
    let allowed = core_affinity::get_core_ids().unwrap_or_default();
    let find = |core: &usize| {
        let found = allowed.iter().find(|allowed| allowed.id == *core).copied();
        found.ok_or_else(|| {
            let have = allowed.iter().map(|core| core.id.to_string()).collect::<Vec<_>>().join(", ");
            Failure::usage(format!("--cores: core {core} is not among those that this process may use: {have}"))
        })
    };
    named.iter().map(find).collect()
}

/// Raises the soft limit on open files to the hard one: each connection takes one.
fn raise_descriptors() {
    let limit = getrlimit(Resource::Nofile);
    // Where it is refused, the limit stays as it is, and connections wait until others leave.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
}

/// CPU time of the process so far.
fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

fn summary(counts: &[Arc<Counts>], used: Duration) -> String {
    let sum = |of: fn(&Counts) -> u64| counts.iter().map(|counts| of(counts)).sum::<u64>();
    let (requests, connections) = (sum(|c| c.requests.get()), sum(|c| c.connections.get()));
    let mut line = format!("{requests} request{}, {connections} connection{}", plural(requests), plural(connections));
    if requests > 0 {
        line += &format!(", {:.2} us CPU/request", used.as_secs_f64() * 1e6 / requests as f64);
    }
    for (count, what) in [
        (sum(|c| c.failed.get()), "failed"),
        (sum(|c| c.stalled.get()), "stalled"),
        (sum(|c| c.reset.get()), "reset"),
        (sum(|c| c.refused.get()), "refused as malformed"),
    ] {
        if count > 0 {
            line += &format!(", {count} {what}");
        }
    }
    line + "\n"
}

fn plural(count: u64) -> &'static str {
    if count == 1 { "" } else { "s" }
}

/// Prints to stdout, where somebody may be reading.
fn say(line: &str) {
    let mut stdout = io::stdout().lock();
    let _ = stdout.write_all(line.as_bytes()).and_then(|()| stdout.flush());
}

fn parse_cores(text: &str) -> Result<Cores, String> {
    let mut cores = Vec::new();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let range = first.parse::<usize>().ok().zip(last.parse::<usize>().ok());
        match range {
            Some((first, last)) if first <= last && last - first < THREADS_MAX => cores.extend(first..=last),
            _ => return Err(format!("`{part}` is not a core or a range of cores like `0` or `2-3`")),
        }
    }
    Ok(Cores(cores))
}

fn parse_threads(text: &str) -> Result<usize, String> {
    let threads = text.parse().ok().filter(|threads| (1..=THREADS_MAX).contains(threads));
    threads.ok_or_else(|| format!("`{text}` is not a number from 1 to {THREADS_MAX}"))
}

fn parse_body(text: &str) -> Result<usize, String> {
    body_bytes(units::bytes(text))
}

fn body_bytes(read: Result<u64, units::Wrong>) -> Result<usize, String> {
    match read? {
        bytes if bytes > BODY_BYTES_MAX => Err(format!("a body has {}MiB at most", BODY_BYTES_MAX >> 20)),
        bytes => Ok(bytes as usize),
    }
}

fn parse_status(text: &str) -> Result<u16, String> {
    let status = text.parse().ok().filter(|status| (200..=599).contains(status));
    status.ok_or_else(|| format!("`{text}` is not a status from 200 to 599"))
}

fn parse_time(text: &str) -> Result<Duration, String> {
    match units::duration(text)? {
        time if time.is_zero() => Err("it must take some time".into()),
        time => Ok(time),
    }
}

fn parse_field(text: &str) -> Result<String, String> {
    let (name, value) = text.split_once(':').ok_or_else(|| format!("`{text}` is not `name: value`"))?;
    let is_token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    if name.is_empty() || !name.bytes().all(is_token) {
        return Err(format!("`{name}` is not the name of a header field"));
    }
    if ["content-length", "transfer-encoding", "connection"].contains(&name.to_ascii_lowercase().as_str()) {
        return Err(format!("{name} is set by the answer itself"));
    }
    Ok(format!("{name}: {}", parse_field_value(value)?))
}

fn parse_field_value(text: &str) -> Result<String, String> {
    let value = text.trim();
    let is_allowed = |byte: u8| byte == b'\t' || (byte >= b' ' && byte != 0x7f);
    if value.bytes().all(is_allowed) { Ok(value.into()) } else { Err("control characters are not allowed".into()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cores() {
        assert_eq!(parse_cores("1").unwrap().0, [1]);
        assert_eq!(parse_cores("0,2-4").unwrap().0, [0, 2, 3, 4]);
        for text in ["", "a", "1,", "3-2", "-1", "0-99999999"] {
            assert!(parse_cores(text).is_err(), "{text}");
        }
    }

    #[test]
    fn fields() {
        assert_eq!(parse_field("X-A:  b c ").unwrap(), "X-A: b c");
        for text in ["X-A", ": b", "X A: b", "X: a\r\nY: b", "Content-Length: 5", "connection: close"] {
            assert!(parse_field(text).is_err(), "{text}");
        }
    }

    #[test]
    fn the_summary_names_what_happened_only() {
        let counts = [Arc::new(Counts::default()), Arc::new(Counts::default())];
        assert_eq!(summary(&counts, Duration::ZERO), "0 requests, 0 connections\n");
        counts[0].requests.add();
        counts[1].requests.add();
        counts[1].connections.add();
        counts[1].stalled.add();
        let line = summary(&counts, Duration::from_micros(9));
        assert_eq!(line, "2 requests, 1 connection, 4.50 us CPU/request, 1 stalled\n");
    }
}
