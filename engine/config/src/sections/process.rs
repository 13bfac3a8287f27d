//! What belongs to the process as a whole.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::path::PathBuf;

use schemars::{Schema, SchemaGenerator, json_schema};

use crate::decode::{Cx, Decode, Spanned};
use crate::scalar::{Auto, Int, Or, OrOff, PowerOfTwo, choice};
use crate::shape::shape;
use crate::snapshot::{self, DriverChoice};
use crate::tree::{Node, Value};
use crate::units::{HOUR_MS, Micros, Time};

shape! {
    /// Threads and rings.
    pub(crate) struct RuntimeSection {
        /// Worker threads, each with its own ring and connections. `auto`: one for each core that the process may
        /// run on.
        workers: Spanned<Or<Auto, Int<1, 1024>>> = "auto",
        /// Pin each worker to a core.
        pin: bool = "true",
        /// Cores to pin to, in order. Empty: those that the process may run on.
        cores: Spanned<Vec<Spanned<Int<0, 4095>>>> = "[]",
        /// How workers wait for I/O. `auto`: io_uring where the kernel allows it, else epoll.
        driver: DriverChoice = "auto",
        /// Entries of each worker's submission queue.
        ring_entries: PowerOfTwo<256, 32768> = "4096",
        /// How long a worker that has run out of work looks for the next event before it sleeps. Only where events
        /// have come that soon lately, since there it saves CPU time: a sleep and a wake-up cost more. A worker without
        /// traffic sleeps. On io_uring only.
        busy_poll: OrOff<Micros<1, 1000>> = "15us",
    }

    /// The listener for operators.
    pub(crate) struct AdminSection {
        /// Where it listens.
        address: SocketAddr = "127.0.0.1:9901",
        /// Whether whoever reaches it may also change something: drain, enable and weigh endpoints, register instances.
        changes: bool = "false",
    }

    /// How the process ends.
    pub(crate) struct DrainSection {
        /// After the signal: how long new connections are still accepted while `/ready` already fails, so that a
        /// load balancer can turn away.
        notice: Time<0, HOUR_MS> = "1s",
        /// How long requests in flight may take after that.
        timeout: Time<0, HOUR_MS> = "30s",
    }

    /// Limits of the process as a whole.
    pub(crate) struct LimitsSection {
        /// Open client connections; more are closed at once.
        connections: Int<1, 10_000_000> = "65536",
        /// Open client connections of one client address; more are closed at once.
        connections_per_ip: OrOff<Int<1, 10_000_000>> = "1024",
        /// Keys that all of `rate_limits` and `concurrency_limits` together may have: the sum of their `keys`, those of tiers
        /// included, must not be above.
        limit_keys: Int<1, 1_000_000_000> = "1000000",
    }

    pub(crate) struct LogFile {
        /// Lines are appended; SIGUSR1 opens it anew.
        file: String,
    }
}

choice! {
    DriverChoice {
        "auto" => DriverChoice::Auto,
        "io_uring" => DriverChoice::IoUring,
        "epoll" => DriverChoice::Epoll,
    }
}

#[derive(Debug, Clone)]
pub(crate) struct AccessLog(pub(crate) snapshot::AccessLog);

impl Decode for AccessLog {
    fn kind() -> String {
        "`stdout`, `off` or `file: PATH`".into()
    }

    fn decode(node: &Node, cx: &mut Cx) -> Option<Self> {
        match &node.value {
            Value::Scalar(scalar) if scalar.text == "stdout" => Some(Self(snapshot::AccessLog::Stdout)),
            Value::Scalar(scalar) if scalar.text == "off" => Some(Self(snapshot::AccessLog::Off)),
            Value::Map(_) => {
                let file = LogFile::decode(node, cx)?.file;
                Some(Self(snapshot::AccessLog::File(PathBuf::from(file))))
            }
            _ => {
                cx.mismatch::<Self>(node, Some("a file is written `access_log: { file: PATH }`".into()));
                None
            }
        }
    }

    fn schema(generator: &mut SchemaGenerator) -> Schema {
        json_schema!({ "anyOf": [{ "enum": ["stdout", "off"] }, LogFile::schema(generator)] })
    }
}

impl RuntimeSection {
    pub(crate) fn compile(self, cx: &mut Cx) -> snapshot::Runtime {
        let workers = self.workers.value.0.map(|workers| workers.0 as usize);
        let mut seen = HashSet::new();
        for core in &self.cores.value {
            if !seen.insert(core.value.0) {
                cx.error(core.span, format!("core {} is named twice", core.value.0), None);
            }
        }
        let cores: Vec<usize> = self.cores.value.iter().map(|core| core.value.0 as usize).collect();
        if !cores.is_empty() && !self.pin {
            cx.error(self.cores.span, "`cores` has no effect with `pin: false`", None);
        }
        if let Some(workers) = workers.filter(|workers| !cores.is_empty() && *workers > cores.len()) {
            let message = format!("{workers} workers do not fit on the {} of `cores`", cores.len());
            cx.error(self.workers.span, message, "leave `workers` out: one for each of `cores`");
        }
        // `cores` alone says how many workers there are.
        let workers = workers.or((!cores.is_empty()).then_some(cores.len()));
        let busy_poll = self.busy_poll.0.map(|limit| limit.0);
        let Self { pin, driver, .. } = self;
        snapshot::Runtime { workers, pin, cores, driver, ring_entries: self.ring_entries.0, busy_poll }
    }
}

impl DrainSection {
    pub(crate) fn compile(self) -> snapshot::Drain {
        snapshot::Drain { notice: self.notice.0, timeout: self.timeout.0 }
    }
}

impl LimitsSection {
    pub(crate) fn compile(self) -> snapshot::GlobalLimits {
        snapshot::GlobalLimits {
            connections: self.connections.0 as usize,
            connections_per_ip: self.connections_per_ip.0.map(|limit| limit.0 as usize),
        }
    }
}
