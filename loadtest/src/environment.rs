//! Where a run took place.

use std::fs;

use serde::{Deserialize, Serialize};

/// The machine and the tool, as far as figures depend on them.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Environment {
    pub(crate) cpu: String,
    pub(crate) cores: usize,
    pub(crate) memory_mib: u64,
    pub(crate) kernel: String,
    pub(crate) os: String,
    /// Version of this tool.
    pub(crate) version: String,
    pub(crate) command_line: Vec<String>,
}

impl Environment {
    /// This machine and this process. What the system does not tell is `unknown`.
    pub(crate) fn here() -> Self {
        let read = |path| fs::read_to_string(path).unwrap_or_default();
        let kernel = rustix::system::uname();
        Self {
            cpu: field(&read("/proc/cpuinfo"), &["model name", "Model", "Hardware"], ':'),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            memory_mib: kib(&read("/proc/meminfo"), "MemTotal") / 1024,
            kernel: format!(
                "{} {} {}",
                kernel.sysname().to_string_lossy(),
                kernel.release().to_string_lossy(),
                kernel.machine().to_string_lossy()
            ),
            os: field(&read("/etc/os-release"), &["PRETTY_NAME"], '='),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            command_line: std::env::args_os().map(|arg| arg.to_string_lossy().into_owned()).collect(),
        }
    }
}

/// The value of the first line with one of these names.
fn field(text: &str, names: &[&str], separator: char) -> String {
    let find = |name: &&str| {
        let mut lines = text.lines().filter_map(|line| line.split_once(separator));
        lines.find(|(have, _)| have.trim() == *name).map(|(_, value)| value.trim().trim_matches('"').to_owned())
    };
    names.iter().find_map(find).unwrap_or_else(|| "unknown".to_owned())
}

fn kib(meminfo: &str, name: &str) -> u64 {
    field(meminfo, &[name], ':').split_whitespace().next().and_then(|digits| digits.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_under_the_names_of_each_architecture() {
        let x86 = "processor\t: 0\nmodel name\t: AMD EPYC 7763\nflags\t\t: fpu\n";
        let arm = "processor\t: 0\nBogoMIPS\t: 50.00\n\nModel\t\t: Raspberry Pi 5\n";
        let names = ["model name", "Model", "Hardware"];
        assert_eq!(field(x86, &names, ':'), "AMD EPYC 7763");
        assert_eq!(field(arm, &names, ':'), "Raspberry Pi 5");
        assert_eq!(field("", &names, ':'), "unknown");
        assert_eq!(
            field("ID=debian\nPRETTY_NAME=\"Debian GNU/Linux 13\"\n", &["PRETTY_NAME"], '='),
            "Debian GNU/Linux 13"
        );
        assert_eq!(kib("MemTotal:        8039312 kB\n", "MemTotal"), 8_039_312);
    }

    #[test]
    fn this_machine_has_cores_memory_and_a_kernel() {
        let here = Environment::here();
        assert!(here.cores >= 1 && here.memory_mib > 0, "{here:?}");
        assert!(here.kernel.starts_with("Linux "), "{here:?}");
        assert!(!here.command_line.is_empty());
    }
}
