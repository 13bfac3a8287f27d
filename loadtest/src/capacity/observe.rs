//! What a process costs, as the kernel counts it: CPU time of all its threads and its children's, memory.

use std::collections::HashMap;
use std::fs;

use crate::failure::Failure;

/// A process and all its descendants.
#[derive(Debug, Clone)]
pub(crate) struct Observed {
    /// The process itself first.
    pids: Vec<u32>,
}

/// What they have used up to now, and hold.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    /// CPU time of the threads that are there, from the scheduler's own count: nanoseconds, not ticks.
    pub(crate) cpu_ns: u64,
    /// Resident memory; pages that processes share count once for each.
    pub(crate) rss_bytes: u64,
    pub(crate) threads: usize,
}

impl Observed {
    pub(crate) fn by_pid(pid: u32) -> Result<Self, Failure> {
        match fs::metadata(format!("/proc/{pid}/task")) {
            Ok(_) => Ok(Self { pids: descendants(pid) }),
            Err(_) => Err(Failure::usage(format!("--pid {pid}: there is no such process"))),
        }
    }

    /// The one process of this name (of the kernel's, or of its program's file) that is nobody's child of that name.
    pub(crate) fn by_name(name: &str) -> Result<Self, Failure> {
        let own = std::process::id();
        let parents = parents();
        let named: Vec<u32> = parents.keys().copied().filter(|pid| *pid != own && is_named(*pid, name)).collect();
        let mut roots: Vec<u32> =
            named.iter().copied().filter(|pid| parents.get(pid).is_none_or(|parent| !named.contains(parent))).collect();
        roots.sort_unstable();
        match roots[..] {
            [root] => Ok(Self { pids: descendants(root) }),
            [] => Err(Failure::usage(format!("--process {name}: no process has this name"))),
            _ => {
                let pids: Vec<_> = roots.iter().map(u32::to_string).collect();
                let pids = pids.join(", ");
                Err(Failure::usage(format!("--process {name}: several have this name ({pids}); choose with --pid")))
            }
        }
    }

    /// Looks for descendants anew.
    pub(crate) fn refresh(&mut self) {
        self.pids = self.pids.first().map_or(Vec::new(), |root| descendants(*root));
    }

    /// An error where the process has ended.
    pub(crate) fn usage(&self) -> Result<Usage, Failure> {
        let mut sum = Usage::default();
        for (at, pid) in self.pids.iter().enumerate() {
            let threads = thread_times_ns(*pid);
            if at == 0 && threads.is_empty() {
                return Err(Failure::runtime(format!("process {pid} has ended")));
            }
            sum.threads += threads.len();
            sum.cpu_ns += threads.iter().sum::<u64>();
            sum.rss_bytes += rss_bytes(*pid);
        }
        Ok(sum)
    }
}

/// The calling process' own CPU time.
pub(crate) fn own_cpu_ns() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

fn descendants(root: u32) -> Vec<u32> {
    let parents = parents();
    let mut found = vec![root];
    let mut next = 0;
    while let Some(&parent) = found.get(next) {
        found.extend(parents.iter().filter(|(_, of)| **of == parent).map(|(pid, _)| *pid));
        next += 1;
    }
    found
}

/// Every process and its parent.
fn parents() -> HashMap<u32, u32> {
    let pids = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter_map(|pid| Some((pid, parent(&read(pid, "stat"))?))).collect()
}

/// The fourth field; the second, the name in parentheses, may hold anything.
fn parent(stat: &str) -> Option<u32> {
    stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(1)?.parse().ok()
}

fn is_named(pid: u32, name: &str) -> bool {
    let program = fs::read_link(format!("/proc/{pid}/exe"));
    let of_file = program.ok().is_some_and(|path| path.file_name().is_some_and(|file| file == name));
    of_file || read(pid, "comm").trim_end() == name
}

fn thread_times_ns(pid: u32) -> Vec<u64> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let times = threads.map(|thread| fs::read_to_string(thread.path().join("schedstat")).unwrap_or_default());
    times.filter_map(|text| text.split_ascii_whitespace().next()?.parse().ok()).collect()
}

fn rss_bytes(pid: u32) -> u64 {
    let status = read(pid, "status");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib: Option<u64> = line.and_then(|rest| rest.split_ascii_whitespace().next()?.parse().ok());
    kib.unwrap_or(0) * 1024
}

/// Nothing where the process has gone.
fn read(pid: u32, file: &str) -> String {
    fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::process::{Command, Stdio};
    use std::time::{Duration, Instant};

    #[test]
    fn a_thread_that_works_shows_and_so_does_memory() {
        let own = Observed::by_pid(std::process::id()).unwrap();
        let before = own.usage().unwrap();
        let held = vec![1u8; 64 << 20];
        let worker = std::thread::spawn(move || {
            let until = own_cpu_ns() + 100_000_000;
            let mut sum = 0u64;
            while own_cpu_ns() < until {
                sum = held.iter().step_by(4096).map(|b| u64::from(*b)).sum();
            }
            // Its time counts as long as it is there.
            let after = own.usage().unwrap();
            drop(held);
            (sum, after)
        });
        let (_, after) = worker.join().unwrap();
        assert!(after.cpu_ns - before.cpu_ns >= 80_000_000, "{before:?} {after:?}");
        assert!(after.rss_bytes >= before.rss_bytes + (60 << 20), "{before:?} {after:?}");
        assert!(after.threads > 1);
    }

    #[test]
    fn children_count_and_the_end_is_noticed() {
        // A shell whose child burns CPU; `read` keeps the shell there.
        let script = "(while :; do :; done) & echo $!; read line; kill $!";
        let mut shell = Command::new("sh");
        let mut shell = shell.args(["-c", script]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = [0u8; 1];
        shell.stdout.as_mut().unwrap().read_exact(&mut line).unwrap();
        let mut observed = Observed::by_pid(shell.id()).unwrap();
        observed.refresh();
        let deadline = Instant::now() + Duration::from_secs(20);
        while observed.usage().unwrap().cpu_ns < 50_000_000 {
            assert!(Instant::now() < deadline, "the child's time is not seen");
            std::thread::yield_now();
        }
        assert_eq!(observed.usage().unwrap().threads, 2);
        drop(shell.stdin.take());
        shell.wait().unwrap();
        assert!(observed.usage().unwrap_err().to_string().contains("has ended"));
        assert!(Observed::by_pid(shell.id()).is_err());
    }

    #[test]
    fn names_find_one_process_or_say_why_not() {
        let spawn = || Command::new("sleep").arg("60").spawn().unwrap();
        // Its own: the same test may run twice on a machine.
        let name = &format!("sleep-of-{}", std::process::id());
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(name);
        fs::copy("/bin/sleep", &path).unwrap();
        assert!(Observed::by_name(name).unwrap_err().to_string().contains("no process has this name"));
        let mut first = Command::new(&path).arg("60").spawn().unwrap();
        let mut other = spawn();
        assert_eq!(Observed::by_name(name).unwrap().pids, [first.id()]);
        let mut second = Command::new(&path).arg("60").spawn().unwrap();
        let several = Observed::by_name(name).unwrap_err().to_string();
        assert!(several.contains(&first.id().to_string()) && several.contains("--pid"), "{several}");
        for child in [&mut first, &mut second, &mut other] {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    #[test]
    fn a_name_with_parentheses_does_not_hide_the_parent() {
        assert_eq!(parent("12 (a) b (c)) S 7 12 12 0"), Some(7));
        assert_eq!(parent(""), None);
    }
}
