//! The proxies that are compared: where they are, which versions, how they are started.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::compare::child::{Program, Running, free_port};
use crate::failure::Failure;

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Kind {
    Ringway,
    Nginx,
    Haproxy,
    Envoy,
}

/// A proxy that is installed here.
#[derive(Debug, Clone)]
pub(crate) struct Proxy {
    pub(crate) kind: Kind,
    pub(crate) path: PathBuf,
    pub(crate) version: String,
}

impl Kind {
    pub(crate) const ALL: [Self; 4] = [Self::Ringway, Self::Nginx, Self::Haproxy, Self::Envoy];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Ringway => "ringway",
            Self::Nginx => "nginx",
            Self::Haproxy => "haproxy",
            Self::Envoy => "envoy",
        }
    }

    fn version_flag(self) -> &'static str {
        match self {
            Self::Nginx | Self::Haproxy => "-v",
            Self::Ringway | Self::Envoy => "--version",
        }
    }

    /// The configuration file's name and text.
    fn template(self) -> (&'static str, &'static str) {
        match self {
            Self::Ringway => ("ringway.yaml", include_str!("templates/ringway.yaml")),
            Self::Nginx => ("nginx.conf", include_str!("templates/nginx.conf")),
            Self::Haproxy => ("haproxy.cfg", include_str!("templates/haproxy.cfg")),
            Self::Envoy => ("envoy.yaml", include_str!("templates/envoy.yaml")),
        }
    }

    fn args(self, config: &str, directory: &Path) -> Vec<String> {
        let error_log = directory.join("nginx-error.log").display().to_string();
        let args: &[&str] = match self {
            Self::Ringway => &["run", "--config", config],
            Self::Nginx => &["-e", &error_log, "-c", config],
            Self::Haproxy => &["-db", "-f", config],
            Self::Envoy => &["-c", config, "--concurrency", "1", "--log-level", "error", "--disable-hot-restart"],
        };
        args.iter().map(|arg| (*arg).to_owned()).collect()
    }
}

impl Proxy {
    /// Looks for a proxy: Ringway at `ringway`, else beside this program; all others on the path. The error says in
    /// words why it is left out.
    pub(crate) fn find(kind: Kind, ringway: Option<&Path>) -> Result<Self, String> {
        let beside = || {
            let own = std::env::current_exe().ok()?;
            Some(own.parent()?.join(kind.name())).filter(|path| path.is_file())
        };
        let given = ringway.filter(|_| kind == Kind::Ringway).map(Path::to_owned);
        let found = given.or_else(|| beside().filter(|_| kind == Kind::Ringway)).or_else(|| on_path(kind.name()));
        let path = found.ok_or_else(|| format!("{} is not installed: left out", kind.name()))?;
        let output = Command::new(&path).arg(kind.version_flag()).stdin(Stdio::null()).output();
        let output = output.map_err(|error| format!("{} does not run: {error}", path.display()))?;
        let text = [output.stdout, output.stderr].concat();
        let version = version_in(&String::from_utf8_lossy(&text));
        let version = version.ok_or_else(|| format!("{} does not tell its version", path.display()))?;
        Ok(Self { kind, path, version })
    }

    /// Starts it in front of `origin` on a core; files go to `directory`.
    pub(crate) fn start(&self, origin: SocketAddr, core: usize, directory: &Path) -> Result<(Running, u16), Failure> {
        let port = free_port()?;
        let values = [
            ("@DIRECTORY@", directory.display().to_string()),
            ("@PORT@", port.to_string()),
            ("@ADMIN_PORT@", free_port()?.to_string()),
            ("@CORE@", core.to_string()),
            ("@ORIGIN@", origin.to_string()),
            ("@ORIGIN_HOST@", origin.ip().to_string()),
            ("@ORIGIN_PORT@", origin.port().to_string()),
        ];
        let (file, template) = self.kind.template();
        let config = directory.join(file);
        let text = values.iter().fold(template.to_owned(), |text, (name, value)| text.replace(name, value));
        fs::write(&config, text).map_err(|error| Failure::runtime(format!("{}: {error}", config.display())))?;
        let args = self.kind.args(&config.display().to_string(), directory);
        let program = Program {
            name: self.kind.name().to_owned(),
            path: self.path.clone(),
            args: args.into_iter().map(Into::into).collect(),
            core,
        };
        Ok((Running::start(&program, directory, port)?, port))
    }
}

/// Also where administrators' programs lie, which are not on every user's path.
fn on_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/usr/local/sbin".into()]);
    folders.map(|folder| folder.join(name)).find(|file| file.is_file())
}

/// The first word in the text that is made of numbers and dots: `1.22.1` in `nginx version: nginx/1.22.1`.
fn version_in(text: &str) -> Option<String> {
    text.split(|c: char| !(c.is_ascii_digit() || c == '.')).map(|word| word.trim_matches('.')).find_map(|word| {
        let parts = word.split('.').filter(|part| !part.is_empty()).count();
        (parts >= 2).then(|| word.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_found_in_what_programs_say() {
        for (text, version) in [
            ("nginx version: nginx/1.22.1\n", "1.22.1"),
            ("HAProxy version 2.6.12-1+deb12u4 2026/10/17 - https://haproxy.org/", "2.6.12"),
            ("\nenvoy  version: 3a6bd9d0f2a1/1.40.0/Clean/RELEASE/BoringSSL", "1.40.0"),
            ("ringway 0.1.0", "0.1.0"),
        ] {
            assert_eq!(version_in(text).as_deref(), Some(version));
        }
        assert_eq!(version_in("no version. 7"), None);
    }

    #[test]
    fn a_missing_program_is_said_in_one_line() {
        let missing = Proxy::find(Kind::Ringway, Some(Path::new("/nonexistent/ringway"))).unwrap_err();
        assert!(missing.starts_with("/nonexistent/ringway does not run: "), "{missing}");
    }
}
