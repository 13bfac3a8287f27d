//! What is measured: a kind of request and a number of connections.

use std::fmt;
use std::fs;
use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

use clap::Parser;

use crate::failure::Failure;
use crate::scenario::{LoadFlags, RequestFlags, Scenario};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Case {
    pub(crate) kind: Kind,
    pub(crate) connections: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    GetSmall,
    GetLarge,
    Post,
    NewConnection,
}

/// Body of a POST, in bytes.
const POST_BYTES: usize = 2048;
const CONNECTIONS_MAX: usize = 4096;

impl Case {
    pub(crate) const DEFAULTS: [Self; 8] = [
        Self { kind: Kind::GetSmall, connections: 64 },
        Self { kind: Kind::GetSmall, connections: 256 },
        Self { kind: Kind::GetSmall, connections: 1 },
        Self { kind: Kind::GetLarge, connections: 64 },
        Self { kind: Kind::GetLarge, connections: 256 },
        Self { kind: Kind::GetLarge, connections: 1 },
        Self { kind: Kind::Post, connections: 64 },
        Self { kind: Kind::NewConnection, connections: 64 },
    ];
    /// Fills the connection pools of a proxy that has just started.
    pub(crate) const FIRST: Self = Self { kind: Kind::GetLarge, connections: 64 };

    /// A closed loop on one core: each connection sends its next request when it has its answer.
    pub(crate) fn scenario(self, port: u16, core: usize, directory: &Path) -> Result<Scenario, Failure> {
        let url = format!("http://127.0.0.1:{port}{}", self.kind.path());
        let mut flags = vec!["loadtest".to_owned(), "--closed".to_owned()];
        if self.kind == Kind::Post {
            let body = directory.join("order.json");
            fs::write(&body, order()).map_err(|e| Failure::runtime(format!("{}: {e}", body.display())))?;
            flags.extend(["--method=POST", "--header=Content-Type: application/json"].map(str::to_owned));
            flags.push(format!("--body=@{}", body.display()));
        }
        if self.kind == Kind::NewConnection {
            flags.push("--no-keep-alive".to_owned());
        }
        let flags = Flags::try_parse_from(&flags).map_err(Failure::runtime)?;
        let mut scenario = Scenario::open(&url, &flags.request, &flags.load)?;
        scenario.connections = self.connections;
        scenario.threads = 1;
        scenario.cores = vec![core];
        scenario.warmup = Duration::ZERO;
        Ok(scenario)
    }
}

impl Kind {
    const ALL: [Self; 4] = [Self::GetSmall, Self::GetLarge, Self::Post, Self::NewConnection];

    fn name(self) -> &'static str {
        match self {
            Self::GetSmall => "get-100",
            Self::GetLarge => "get-16k",
            Self::Post => "post-2k",
            Self::NewConnection => "new-connection",
        }
    }

    fn path(self) -> &'static str {
        match self {
            Self::GetLarge => "/products/123?size=16384",
            Self::GetSmall | Self::NewConnection => "/small?size=100",
            Self::Post => "/orders?size=100",
        }
    }

    /// Bytes of an answer's body.
    pub(crate) fn answer_bytes(self) -> u64 {
        if self == Self::GetLarge { 16384 } else { 100 }
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.kind.name(), self.connections)
    }
}

impl FromStr for Case {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, connections) = text.split_once('@').unwrap_or((text, "64"));
        let names: Vec<_> = Kind::ALL.map(Kind::name).to_vec();
        let kind = Kind::ALL.into_iter().find(|kind| kind.name() == name);
        let kind = kind.ok_or_else(|| format!("'{name}' is none of {}", names.join(", ")))?;
        let connections = connections.parse().ok().filter(|n| (1..=CONNECTIONS_MAX).contains(n));
        let connections =
            connections.ok_or_else(|| format!("after '@' a number from 1 to {CONNECTIONS_MAX} is expected"))?;
        Ok(Self { kind, connections })
    }
}

/// The flags of `loadtest run`, whose load this is.
#[derive(Debug, clap::Parser)]
struct Flags {
    #[command(flatten)]
    request: RequestFlags,
    #[command(flatten)]
    load: LoadFlags,
}

/// An order of a shop, filled up to its size with spaces.
fn order() -> String {
    let items: Vec<_> = (0..40).map(|n| format!(r#"{{"sku": "sku-{n:04}", "quantity": 1, "price": 9.9}}"#)).collect();
    let order = format!(r#"{{"customer": "c-1", "items": [{}]}}"#, items.join(","));
    format!("{order:POST_BYTES$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cases_read_as_they_are_shown() {
        for case in Case::DEFAULTS {
            assert_eq!(case.to_string().parse(), Ok(case));
        }
        assert_eq!("get-16k".parse(), Ok(Case { kind: Kind::GetLarge, connections: 64 }));
        let unknown = "get-17k@3".parse::<Case>().unwrap_err();
        assert_eq!(unknown, "'get-17k' is none of get-100, get-16k, post-2k, new-connection");
        for text in ["get-100@0", "get-100@", "get-100@many", "get-100@5000"] {
            assert_eq!(text.parse::<Case>().unwrap_err(), "after '@' a number from 1 to 4096 is expected");
        }
    }

    #[test]
    fn the_order_is_json_of_its_size() {
        let text = order();
        assert_eq!(text.len(), POST_BYTES);
        assert!(serde_json::from_str::<serde_json::Value>(&text).is_ok());
    }
}
