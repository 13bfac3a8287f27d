//! One measured run, and what the machine did meanwhile.

use std::fs;
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::capacity::observe::{Observed, own_cpu_ns};
use crate::compare::stop_if_interrupted;
use crate::failure::Failure;
use crate::run;
use crate::scenario::Scenario;

/// One run of one case against one proxy.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Run {
    pub(crate) requests: u64,
    /// Without an answer, or with another than expected.
    pub(crate) bad: u64,
    pub(crate) seconds: f64,
    pub(crate) requests_per_s: f64,
    /// Of the proxy, all its threads.
    pub(crate) cpu_us_per_request: f64,
    pub(crate) load_cpu_us_per_request: f64,
    /// None where the origin is not this tool's.
    pub(crate) origin_cpu_us_per_request: Option<f64>,
    pub(crate) p50_us: u64,
    pub(crate) p99_us: u64,
    pub(crate) proxy_rss_bytes: u64,
    /// Cores that the proxy used, 0 to 1 if it kept to its own.
    pub(crate) proxy_cores: f64,
    /// Share of the time that its core was busy, with whatever.
    pub(crate) proxy_core_busy: f64,
    pub(crate) load_core_busy: f64,
    /// Cores that anything else used; none where the origin is not this tool's, since it would count.
    pub(crate) foreign_cores: Option<f64>,
    pub(crate) taken_again: bool,
}

/// Who is measured, and where.
#[derive(Debug)]
pub(crate) struct Stage {
    pub(crate) proxy: Observed,
    pub(crate) origin: Option<Observed>,
    pub(crate) proxy_core: usize,
    pub(crate) load_core: usize,
}

/// A core counts as full from here on.
pub(crate) const FULL: f64 = 0.97;
/// Above this a run was disturbed, and is taken once more.
pub(crate) const FOREIGN_CORES_MAX: f64 = 0.08;
/// Before a disturbed run is taken again.
const PAUSE: Duration = Duration::from_secs(2);
const WARM_UP: Duration = Duration::from_secs(1);

impl Stage {
    /// One run after a warm-up. A disturbed one is taken once more; the less disturbed of the two counts.
    pub(crate) fn undisturbed(&self, scenario: &Scenario, body_bytes: u64) -> Result<Run, Failure> {
        let first = self.once(scenario, body_bytes)?;
        if !first.is_disturbed() {
            return Ok(first);
        }
        std::thread::sleep(PAUSE);
        let second = Run { taken_again: true, ..self.once(scenario, body_bytes)? };
        let first = Run { taken_again: true, ..first };
        Ok(if second.foreign_cores < first.foreign_cores { second } else { first })
    }

    fn once(&self, scenario: &Scenario, body_bytes: u64) -> Result<Run, Failure> {
        self.warm_up(scenario)?;
        let origin_ns = || self.origin.as_ref().map(|origin| Ok(origin.usage()?.cpu_ns)).transpose();
        let (proxy_core, load_core) = (CoreTime::read(self.proxy_core)?, CoreTime::read(self.load_core)?);
        let (own, origin, proxy) = (own_cpu_ns(), origin_ns()?, self.proxy.usage()?);
        let started = Instant::now();

        let results = execute(scenario)?;

        let window_s = started.elapsed().as_secs_f64();
        let after = self.proxy.usage()?;
        let proxy_ns = after.cpu_ns.saturating_sub(proxy.cpu_ns);
        let origin_ns = origin_ns()?.zip(origin).map(|(after, before)| after.saturating_sub(before));
        let own_ns = own_cpu_ns() - own;
        let proxy_core = CoreTime::read(self.proxy_core)?.since(&proxy_core);
        let load_core = CoreTime::read(self.load_core)?.since(&load_core);

        let requests = results.counts.answered;
        let per_request = |ns: u64| ns as f64 / 1e3 / requests.max(1) as f64;
        // Cores, from the time that they were busy less the time of all that should be there.
        let foreign = |origin_ns: u64| {
            (proxy_core.busy_s + load_core.busy_s - (proxy_ns + origin_ns + own_ns) as f64 / 1e9) / window_s
        };
        // An answer of the right status and the wrong size: the origin does not obey, or the proxy answers itself.
        let short = results.counts.bytes_received < requests * body_bytes;
        Ok(Run {
            requests,
            bad: if short { requests } else { results.counts.failed + results.counts.unexpected },
            seconds: results.seconds,
            requests_per_s: requests as f64 / results.seconds,
            cpu_us_per_request: per_request(proxy_ns),
            load_cpu_us_per_request: per_request(own_ns),
            origin_cpu_us_per_request: origin_ns.map(per_request),
            p50_us: results.latency.p50,
            p99_us: results.latency.p99,
            proxy_rss_bytes: after.rss_bytes,
            proxy_cores: proxy_ns as f64 / 1e9 / window_s,
            proxy_core_busy: proxy_core.share(),
            load_core_busy: load_core.share(),
            foreign_cores: origin_ns.map(foreign),
            taken_again: false,
        })
    }

    pub(crate) fn warm_up(&self, scenario: &Scenario) -> Result<(), Failure> {
        let mut short = scenario.clone();
        short.duration = WARM_UP;
        execute(&short).map(drop)
    }
}

impl Run {
    pub(crate) fn is_disturbed(&self) -> bool {
        self.foreign_cores.is_some_and(|cores| cores > FOREIGN_CORES_MAX)
    }

    /// More CPU time than its core can have given it.
    pub(crate) fn left_its_core(&self) -> bool {
        self.proxy_cores > self.proxy_core_busy + 0.1
    }
}

fn execute(scenario: &Scenario) -> Result<crate::results::Results, Failure> {
    let results = run::execute(scenario, &mut |_| {})?;
    stop_if_interrupted()?;
    Ok(results)
}

/// A core's time since the machine's start, from /proc/stat.
#[derive(Debug, Clone, Copy, PartialEq)]
struct CoreTime {
    busy_s: f64,
    total_s: f64,
}

impl CoreTime {
    fn read(core: usize) -> Result<Self, Failure> {
        let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
        Self::parse(&stat, core).ok_or_else(|| Failure::runtime(format!("/proc/stat does not show core {core}")))
    }

    fn parse(stat: &str, core: usize) -> Option<Self> {
        let name = format!("cpu{core}");
        let line = stat.lines().find_map(|line| line.strip_prefix(&name).filter(|rest| rest.starts_with(' ')))?;
        // user nice system idle iowait irq softirq steal; what follows is contained in user and nice.
        let ticks: Vec<u64> = line.split_ascii_whitespace().take(8).map_while(|word| word.parse().ok()).collect();
        let &[_, _, _, idle, waiting, _, _, stolen] = &ticks[..] else { return None };
        let per_s = rustix::param::clock_ticks_per_second() as f64;
        let total: u64 = ticks.iter().sum();
        Some(Self { busy_s: (total - idle - waiting - stolen) as f64 / per_s, total_s: total as f64 / per_s })
    }

    fn since(&self, before: &Self) -> Self {
        Self { busy_s: self.busy_s - before.busy_s, total_s: self.total_s - before.total_s }
    }

    fn share(&self) -> f64 {
        if self.total_s > 0.0 { self.busy_s / self.total_s } else { 0.0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_core_is_busy_but_for_idle_waiting_and_stolen_time() {
        let stat = "cpu  9 9 9 9 9 9 9 9 0 0\ncpu1 10 20 30 400 50 6 7 80 5 5\ncpu11 1 1 1 1 1 1 1 1 0 0\n";
        let per_s = rustix::param::clock_ticks_per_second() as f64;
        let core = CoreTime::parse(stat, 1).unwrap();
        assert_eq!(core, CoreTime { busy_s: 73.0 / per_s, total_s: 603.0 / per_s });
        assert_eq!(CoreTime::parse(stat, 11).unwrap().busy_s, 5.0 / per_s);
        assert_eq!(CoreTime::parse(stat, 2), None);
        assert_eq!(CoreTime::parse("cpu1 1 2 3", 1), None);
        let later = CoreTime { busy_s: core.busy_s + 1.0, total_s: core.total_s + 4.0 };
        assert!((later.since(&core).share() - 0.25).abs() < 1e-9);
        assert_eq!(core.since(&core).share(), 0.0);
    }
}
