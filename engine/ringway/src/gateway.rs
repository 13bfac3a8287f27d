//! The life of the process: start, events, drain.

use std::collections::BTreeSet;
use std::io;
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use ringway_config::Snapshot;
use ringway_config::hub::{Hub, Phase};
use ringway_config::snapshot::{DriverChoice, Listener};
use ringway_config::tls::Pair;
use ringway_control::log_writer::{Log, LogWriter};
use ringway_control::reload::{self, DataPlane, Running, Sockets};
use ringway_control::watch::{POLL_EVERY, Watch};
use ringway_control::{Control, Event};
use ringway_core::stats::Driver;
use ringway_data::Workers;

use crate::descriptors;
use crate::failure::Failure;

/// How long the start waits for the endpoints of services that have to be looked for.
const DISCOVERY_TIME_MAX: Duration = Duration::from_secs(3);
/// How long the last lines of a log may take at the end.
const LOG_FLUSH_TIME_MAX: Duration = Duration::from_secs(5);

/// A gateway that runs.
struct Gateway {
    hub: Arc<Hub>,
    plane: Plane,
    control: Control,
    log: LogWriter,
    audit: LogWriter,
    events: Receiver<Event>,
}

/// The workers as a reload sees them.
struct Plane {
    workers: Workers,
    count: usize,
}

/// Runs a gateway until it is told to stop and has drained. `source` is watched and reloaded; without it the
/// configuration stays. `up` is called once requests are served.
pub(crate) fn run(snapshot: Snapshot, source: Option<Watch>, up: impl FnOnce()) -> Result<(), Failure> {
    let gateway = Gateway::start(snapshot)?;
    gateway.announce();
    up();
    let result = gateway.attend(source);
    gateway.drain();
    result
}

impl Gateway {
    /// Binds, opens and starts everything, what can fail first.
    fn start(snapshot: Snapshot) -> Result<Self, Failure> {
        let count = ringway_data::workers_of(&snapshot.runtime);
        descriptors::raise();
        descriptors::check(&snapshot, count)?;
        let listeners = snapshot.listeners.iter().map(AsRef::as_ref);
        let sockets = reload::bind_all(listeners, |listener| bind(listener, count))?;
        let admin = reload::bind_admin(snapshot.admin.as_ref())?;
        let sink = reload::open_log(Log::Access, &snapshot.access_log)?;
        let audit_sink = reload::open_log(Log::Audit, &snapshot.audit_log)?;

        let hub = Hub::new(snapshot, count);
        reload::record_start(&hub);
        let start_log = |log, sink| LogWriter::start(log, hub.clone(), sink);
        let log = start_log(Log::Access, sink).map_err(|error| start_error("access-log", &error))?;
        let audit = start_log(Log::Audit, audit_sink).map_err(|error| start_error("audit-log", &error))?;
        let (control, events) = Control::start(hub.clone(), admin).map_err(|error| start_error("control", &error))?;
        reload::report_unfound(&hub.await_discovery(DISCOVERY_TIME_MAX));
        ringway_data::set_allocation_counter(crate::alloc::allocations);
        let workers = Workers::start(hub.clone(), sockets).map_err(Failure::runtime)?;
        hub.set_phase(Phase::Running);
        Ok(Self { hub, plane: Plane { workers, count }, control, log, audit, events })
    }

    fn announce(&self) {
        let snapshot = &self.hub.published().snapshot;
        let fallen_back = self.hub.workers.workers.iter().filter(|cell| cell.driver.get() == Driver::Epoll as u64);
        let fallen_back = fallen_back.count();
        if fallen_back > 0 && snapshot.runtime.driver != DriverChoice::Epoll {
            tracing::warn!(
                "io_uring is not available (an old kernel, a seccomp filter or `kernel.io_uring_disabled`): \
                 {fallen_back} of {} workers use epoll instead",
                self.plane.count
            );
        }
        for listener in &snapshot.listeners {
            tracing::info!("listener `{}` on {}", listener.name, listener.address);
        }
        if let Some(admin) = &snapshot.admin {
            tracing::info!("admin on {}", admin.address);
        }
        tracing::info!("up: {}, workers: {}", reload::summary(snapshot), self.plane.count);
    }

    /// Acts on what the operator asks for until that is to stop.
    fn attend(&self, mut source: Option<Watch>) -> Result<(), Failure> {
        let Self { hub, plane, control, log, audit, .. } = self;
        let running = Running { hub, data: plane, control, log, audit };
        let mut certificates = CertificateFiles::of(hub);
        certificates.warn(hub);
        loop {
            match (self.events.recv_timeout(POLL_EVERY), &mut source) {
                (Ok(Event::Stop(signal)), _) => {
                    tracing::info!("{signal}: draining");
                    return Ok(());
                }
                (Ok(Event::ReopenLogs), _) => {
                    log.reopen();
                    audit.reopen();
                }
                (Ok(Event::Reload), Some(watch)) => {
                    watch.loading();
                    if running.reload(watch.path()) {
                        certificates = CertificateFiles::of(hub);
                        certificates.warn(hub);
                    }
                }
                (Ok(Event::Reload), None) => tracing::warn!("SIGHUP: a built-in configuration, nothing to reload"),
                (Err(RecvTimeoutError::Timeout), Some(watch)) => {
                    // All are polled, whatever the first says. A pair that does not fit, since half of it is written,
                    // is refused, and the running one stays.
                    let changed = certificates.poll() | watch.poll();
                    if changed && running.reload(watch.path()) {
                        certificates = CertificateFiles::of(hub);
                        certificates.warn(hub);
                    }
                }
                (Err(RecvTimeoutError::Timeout), None) => {}
                (Err(RecvTimeoutError::Disconnected), _) => {
                    return Err(Failure::runtime("the control thread has ended unexpectedly"));
                }
            }
        }
    }

    /// Not ready, then no new connections, then the end of those that are open. Meanwhile the control thread still
    /// answers, and ends the process on a second signal.
    fn drain(self) {
        let drain = self.hub.published().snapshot.drain;
        self.hub.set_phase(Phase::Notice);
        let notice = Instant::now();
        while let Some(left) = drain.notice.checked_sub(notice.elapsed()).filter(|left| !left.is_zero()) {
            // Only a lost control thread ends this early; other events do not matter any more.
            if self.events.recv_timeout(left) == Err(RecvTimeoutError::Disconnected) {
                break;
            }
        }
        self.hub.set_phase(Phase::Draining);
        self.plane.workers.wake();
        let cut_off = self.plane.workers.join(drain.timeout);
        if cut_off > 0 {
            tracing::warn!("{cut_off} connections cut off after `drain.timeout`");
        }
        if !self.log.finish(LOG_FLUSH_TIME_MAX) {
            tracing::warn!("access log: nobody takes the last lines, they are lost");
        }
        if !self.audit.finish(LOG_FLUSH_TIME_MAX) {
            tracing::error!("audit log: nobody takes the last records, they are lost");
        }
        self.control.stop();
        tracing::info!("ended");
    }
}

/// The files that certificates were read from.
struct CertificateFiles(Vec<Watch>);

impl CertificateFiles {
    fn of(hub: &Hub) -> Self {
        let snapshot = &hub.published().snapshot;
        let of_listeners = snapshot.listeners.iter().filter_map(|listener| listener.tls.as_ref());
        let of_services = snapshot.services.iter().flat_map(|service| service.all_tls());
        let files = of_listeners.flat_map(|tls| &tls.files).chain(of_services.flat_map(|(_, tls)| &tls.files));
        let files: BTreeSet<_> = files.collect();
        Self(files.iter().map(|file| Watch::new(file)).collect())
    }

    fn poll(&mut self) -> bool {
        self.0.iter_mut().fold(false, |changed, watch| watch.poll() | changed)
    }

    /// Names the certificates that should have been replaced by now, and the services whose certificate is not looked at.
    fn warn(&self, hub: &Hub) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs() as i64);
        let snapshot = &hub.published().snapshot;
        for listener in &snapshot.listeners {
            for pair in listener.tls.iter().flat_map(|tls| tls.certificates.pairs()) {
                warn_of(&format!("listener `{}`", listener.name), &pair, now);
            }
        }
        for service in &snapshot.services {
            for (what, tls) in service.all_tls() {
                if let Some(pair) = &tls.certificate {
                    warn_of(&format!("service `{}`{what}", service.name), pair, now);
                }
                if !tls.is_verified {
                    let name = &service.name;
                    tracing::warn!("service `{name}`{what}: `insecure_skip_verify`: anybody may answer in its place");
                }
            }
        }
    }
}

fn warn_of(whose: &str, pair: &Pair, now: i64) {
    let (left, name) = (pair.not_after - now, pair.label());
    if left < 0 {
        tracing::warn!("{whose}: the certificate of `{name}` has expired");
    } else if left < pair.warn_below_s() {
        let days = left / 86_400;
        tracing::warn!("{whose}: the certificate of `{name}` expires in {days} days");
    }
}

impl DataPlane for Plane {
    fn bind(&self, listener: &Listener) -> io::Result<Vec<TcpListener>> {
        bind(listener, self.count)
    }

    fn reload(&self, added: Vec<Sockets>) {
        self.workers.reload(added);
    }
}

fn bind(listener: &Listener, workers: usize) -> io::Result<Vec<TcpListener>> {
    ringway_data::bind(listener.address, listener.backlog, workers)
}

fn start_error(thread: &str, error: &io::Error) -> Failure {
    Failure::runtime(format!("the thread `{thread}` cannot start: {error}"))
}
