//! A new configuration for a running gateway: all of it or nothing.
//!
//! Everything that can fail, reading the file, binding new listeners, opening the log, is done before the snapshot is
//! published. Runs on the thread that owns the workers; none of them waits for it.

use std::io::{self, ErrorKind};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use ringway_config::snapshot::{AccessLog, Admin, AuditLog, Listener, Runtime};
use ringway_config::{Hub, Snapshot};

use crate::admin;
use crate::control::Control;
use crate::log_writer::{Log, LogWriter, Sink, Target};
use crate::process::unix_ms;

/// How long a reload waits for the first answer of services whose endpoints have to be looked for.
const DISCOVERY_TIME_MAX: Duration = Duration::from_secs(2);

/// Listening sockets of one address, one for each worker.
pub type Sockets = (SocketAddr, Vec<TcpListener>);

/// What a reload asks of the data plane, which this crate does not know.
pub trait DataPlane {
    /// One socket for each worker.
    fn bind(&self, listener: &Listener) -> io::Result<Vec<TcpListener>>;
    /// Called after a snapshot was published, with the sockets of addresses that are new in it.
    fn reload(&self, added: Vec<Sockets>);
}

/// The parts of a running gateway that a reload touches.
#[derive(Clone, Copy)]
pub struct Running<'a> {
    pub hub: &'a Hub,
    pub data: &'a dyn DataPlane,
    pub control: &'a Control,
    pub log: &'a LogWriter,
    pub audit: &'a LogWriter,
}

/// Why a configuration cannot be put to work. Each message is one line, those of a file one line an error.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    #[error("{0}")]
    Config(ringway_config::Errors),
    #[error("`runtime` cannot change while the process runs ({0}); restart it to change that")]
    Runtime(String),
    #[error("{what}: cannot listen on {address}: {error}{hint}", hint = hint(.error, .address))]
    Listen { what: String, address: SocketAddr, error: io::Error },
    #[error("{log}: cannot open {path}: {error}")]
    Log { log: &'static str, path: String, error: io::Error },
}

impl Running<'_> {
    /// Loads the file and puts it to work, or keeps what runs. Logs and counts how it went.
    pub fn reload(self, source: &Path) -> bool {
        let result = ringway_config::load(source).map_err(Refused::Config).and_then(|snapshot| self.apply(snapshot));
        match &result {
            Ok(summary) => tracing::info!("configuration reloaded: {summary}"),
            Err(refused) => {
                tracing::error!("configuration refused, the running one stays:");
                refused.to_string().lines().for_each(|line| tracing::error!("{line}"));
            }
        }
        record(self.hub, result.is_ok());
        result.is_ok()
    }

    /// Puts a snapshot to work and says what it is in a few words.
    fn apply(self, snapshot: Snapshot) -> Result<String, Refused> {
        let old = self.hub.published().snapshot.clone();
        if snapshot.runtime != old.runtime {
            return Err(Refused::Runtime(difference(&old.runtime, &snapshot.runtime)));
        }
        let has = |snapshot: &Snapshot, address| snapshot.listeners.iter().any(|other| other.address == address);
        let new = snapshot.listeners.iter().filter(|listener| !has(&old, listener.address));
        let added = bind_all(new.map(AsRef::as_ref), |listener| self.data.bind(listener))?;
        let removed = old.listeners.iter().filter(|listener| !has(&snapshot, listener.address)).count();
        let address = |snapshot: &Snapshot| snapshot.admin.as_ref().map(|admin| admin.address);
        let admin = (address(&snapshot) != address(&old)).then(|| bind_admin(snapshot.admin.as_ref())).transpose()?;
        // Switched off, the old log stays open: requests in flight still end up in it, and no others.
        let log_moves = snapshot.access_log != old.access_log && snapshot.access_log != AccessLog::Off;
        let sink = log_moves.then(|| open_log(Log::Access, &snapshot.access_log)).transpose()?;
        let audit_moves = snapshot.audit_log != old.audit_log && snapshot.audit_log != AuditLog::Off;
        let audit_sink = audit_moves.then(|| open_log(Log::Audit, &snapshot.audit_log)).transpose()?;
        if let Some(listener) = admin {
            self.control.set_admin(listener).map_err(|error| listen_error(snapshot.admin.as_ref(), error))?;
        }

        let summary = format!("{}; listeners added: {}, removed: {removed}", summary(&snapshot), added.len());
        if let Some(sink) = sink {
            self.log.redirect(sink);
        }
        if let Some(sink) = audit_sink {
            self.audit.redirect(sink);
        }
        // A service that is new is to have endpoints when its first request comes.
        self.control.look_ahead(&snapshot);
        report_unfound(&self.hub.await_discovery(DISCOVERY_TIME_MAX));
        let generation = self.hub.publish(snapshot);
        self.data.reload(added);
        self.control.follow();
        Ok(format!("generation {generation}, {summary}"))
    }
}

/// Names the services that are put to work without endpoints.
pub fn report_unfound(services: &[Arc<str>]) {
    for service in services {
        tracing::warn!("service `{service}`: no endpoints were found in time: going on without them");
    }
}

/// What a configuration holds: `1 listener, 3 routes, 2 services`.
pub fn summary(snapshot: &Snapshot) -> String {
    let counts = [
        ("listener", snapshot.listeners.len()),
        ("route", snapshot.routes.len()),
        ("service", snapshot.services.len()),
    ];
    counts.map(|(name, count)| format!("{count} {name}{}", if count == 1 { "" } else { "s" })).join(", ")
}

/// Counts a reload. The start counts neither as success nor as failure: [`record_start`].
fn record(hub: &Hub, ok: bool) {
    let reloads = &hub.reloads;
    let counter = if ok { &reloads.succeeded } else { &reloads.failed };
    counter.fetch_add(1, Ordering::Relaxed);
    reloads.last_ok.store(ok.into(), Ordering::Relaxed);
    if ok {
        reloads.last_success_ms.store(unix_ms(SystemTime::now()), Ordering::Relaxed);
    }
}

/// Notes that the configuration of the start was good.
pub fn record_start(hub: &Hub) {
    hub.reloads.last_ok.store(1, Ordering::Relaxed);
    hub.reloads.last_success_ms.store(unix_ms(SystemTime::now()), Ordering::Relaxed);
}

/// Binds these listeners, or says which one cannot be bound.
pub fn bind_all<'a>(
    listeners: impl Iterator<Item = &'a Listener>,
    bind: impl Fn(&Listener) -> io::Result<Vec<TcpListener>>,
) -> Result<Vec<Sockets>, Refused> {
    listeners
        .map(|listener| match bind(listener) {
            Ok(sockets) => Ok((listener.address, sockets)),
            Err(error) => {
                let what = format!("listener `{}`", listener.name);
                Err(Refused::Listen { what, address: listener.address, error })
            }
        })
        .collect()
}

/// Binds the admin listener where there is one.
pub fn bind_admin(admin: Option<&Admin>) -> Result<Option<TcpListener>, Refused> {
    admin.map(|admin| admin::bind(admin.address)).transpose().map_err(|error| listen_error(admin, error))
}

/// Opens a log.
pub fn open_log(log: Log, target: impl Into<Target>) -> Result<Sink, Refused> {
    let target = target.into();
    Sink::open(&target).map_err(|error| {
        let path = match target {
            Target::File(path) => path.display().to_string(),
            Target::Stderr => "stderr".into(),
            Target::Stdout | Target::Off => "stdout".into(),
        };
        Refused::Log { log: log.name(), path, error }
    })
}

fn listen_error(admin: Option<&Admin>, error: io::Error) -> Refused {
    let address = admin.map_or(([0, 0, 0, 0], 0).into(), |admin| admin.address);
    Refused::Listen { what: "admin".into(), address, error }
}

fn hint(error: &io::Error, address: &SocketAddr) -> String {
    let port = address.port();
    match error.kind() {
        ErrorKind::AddrInUse => format!("; `ss -ltnp sport = :{port}` shows which process has it"),
        ErrorKind::PermissionDenied => format!("; port {port} needs the capability CAP_NET_BIND_SERVICE"),
        ErrorKind::AddrNotAvailable => "; no interface of this machine has that address".into(),
        _ => String::new(),
    }
}

/// Names what differs.
fn difference(old: &Runtime, new: &Runtime) -> String {
    let Runtime { workers, pin, cores, driver, ring_entries, busy_poll } = old;
    let fields = [
        ("workers", *workers != new.workers),
        ("pin", *pin != new.pin),
        ("cores", *cores != new.cores),
        ("driver", *driver != new.driver),
        ("ring_entries", *ring_entries != new.ring_entries),
        ("busy_poll", *busy_poll != new.busy_poll),
    ];
    let changed: Vec<&str> = fields.iter().filter(|(_, differs)| *differs).map(|(name, _)| *name).collect();
    format!("changed: {}", changed.join(", "))
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;
    use crate::testing::{hub, listener, snapshot};

    /// Notes what it was asked to do. Port 99 is in use.
    #[derive(Default)]
    struct Plane {
        bound: RefCell<Vec<u16>>,
        added: RefCell<Vec<u16>>,
    }

    impl DataPlane for Plane {
        fn bind(&self, listener: &Listener) -> io::Result<Vec<TcpListener>> {
            self.bound.borrow_mut().push(listener.address.port());
            if listener.address.port() == 99 { Err(ErrorKind::AddrInUse.into()) } else { Ok(vec![]) }
        }

        fn reload(&self, added: Vec<Sockets>) {
            self.added.borrow_mut().extend(added.iter().map(|(address, _)| address.port()));
        }
    }

    fn with_running(test: impl FnOnce(Running<'_>, &Plane)) {
        with_running_as(snapshot(), test);
    }

    fn with_running_as(snapshot: Snapshot, test: impl FnOnce(Running<'_>, &Plane)) {
        let hub = hub(snapshot);
        let (control, _events) = Control::start(hub.clone(), None).unwrap();
        let start = |log| LogWriter::start(log, hub.clone(), Sink::open(&Target::Off).unwrap()).unwrap();
        let (log, audit) = (start(Log::Access), start(Log::Audit));
        let plane = Plane::default();
        test(Running { hub: &hub, data: &plane, control: &control, log: &log, audit: &audit }, &plane);
        control.stop();
        assert!(log.finish(Duration::from_secs(5)) && audit.finish(Duration::from_secs(5)));
    }

    #[test]
    fn only_new_listeners_are_bound_and_handed_over() {
        with_running(|running, plane| {
            let mut new = snapshot();
            new.listeners.push(Arc::new(listener(2)));
            let summary = running.apply(new).unwrap();
            assert_eq!(summary, "generation 2, 2 listeners, 1 route, 1 service; listeners added: 1, removed: 0");
            assert_eq!((plane.bound.take(), plane.added.take()), (vec![2], vec![2]));

            let summary = running.apply(snapshot()).unwrap();
            assert!(summary.contains("; listeners added: 0, removed: 1"), "{summary}");
            assert_eq!((plane.bound.take(), plane.added.take()), (vec![], vec![]));
            assert_eq!(running.hub.published().generation, 3);
        });
    }

    #[test]
    fn nothing_changes_when_a_listener_cannot_be_bound() {
        with_running(|running, plane| {
            let mut new = snapshot();
            new.listeners.extend([Arc::new(listener(2)), Arc::new(listener(99))]);
            let refused = running.apply(new).unwrap_err().to_string();
            assert!(refused.starts_with("listener `web`: cannot listen on 127.0.0.1:99: "), "{refused}");
            assert!(refused.ends_with("; `ss -ltnp sport = :99` shows which process has it"), "{refused}");
            assert_eq!(running.hub.published().generation, 1);
            assert!(plane.added.take().is_empty());
        });
    }

    #[test]
    fn the_runtime_and_a_log_that_cannot_be_opened_are_refused() {
        with_running(|running, _| {
            let mut new = snapshot();
            (new.runtime.workers, new.runtime.pin) = (Some(7), true);
            let refused = running.apply(new).unwrap_err().to_string();
            assert!(refused.contains("(changed: workers, pin)"), "{refused}");

            let mut new = snapshot();
            new.access_log = AccessLog::File("/no/such/directory/access.log".into());
            let refused = running.apply(new).unwrap_err().to_string();
            assert!(refused.starts_with("access log: cannot open /no/such/directory/access.log: "), "{refused}");

            let mut new = snapshot();
            new.audit_log = AuditLog::File("/no/such/directory/audit.log".into());
            let refused = running.apply(new).unwrap_err().to_string();
            assert!(refused.starts_with("audit log: cannot open /no/such/directory/audit.log: "), "{refused}");
            assert_eq!(running.hub.published().generation, 1);
        });
    }

    #[test]
    fn the_admin_listener_and_the_logs_follow() {
        with_running(|running, _| {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("access.log");
            let probe = TcpListener::bind("127.0.0.1:0").unwrap();
            let address = probe.local_addr().unwrap();
            drop(probe);
            let mut new = snapshot();
            new.admin = Some(Admin { address, may_change: false });
            new.access_log = AccessLog::File(path.clone());
            let audit = dir.path().join("audit.log");
            new.audit_log = AuditLog::File(audit.clone());
            running.apply(new).unwrap();
            std::net::TcpStream::connect(address).unwrap();
            assert!(path.exists() && audit.exists());
        });
    }

    #[test]
    fn files_are_put_to_work_or_refused_and_counted() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("gateway.yaml");
        let write = |text: &str| std::fs::write(&path, format!("admin: off\naccess_log: off\n{text}")).unwrap();
        write("listeners: [{ name: web, address: 127.0.0.1:1 }]\n");
        with_running_as(ringway_config::load(&path).unwrap(), |running, plane| {
            record_start(running.hub);
            let counted = || {
                let reloads = &running.hub.reloads;
                let count = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
                (count(&reloads.succeeded), count(&reloads.failed), reloads.last_ok.load(Ordering::Relaxed))
            };
            assert_eq!(counted(), (0, 0, 1));
            write("listeners: [{ name: web, address: 127.0.0.1:1 }]\nlisteners_: 1\n");
            assert!(!running.reload(&path));
            assert_eq!((counted(), running.hub.published().generation), ((0, 1, 0), 1));
            write("listeners: [{ name: web, address: 127.0.0.1:2 }]\n");
            assert!(running.reload(&path));
            assert_eq!((counted(), running.hub.published().generation), ((1, 1, 1), 2));
            assert_eq!(plane.added.take(), [2]);
            write("runtime: { workers: 7 }\nlisteners: [{ name: web, address: 127.0.0.1:3 }]\n");
            assert!(!running.reload(&path));
            assert_eq!((counted(), running.hub.published().generation), ((1, 2, 0), 2));
            assert!(running.hub.reloads.last_success_ms.load(Ordering::Relaxed) > 0);
        });
    }
}
