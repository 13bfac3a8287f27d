//! Hosts: exact ones and wildcards.

use std::collections::HashMap;
use std::net::Ipv6Addr;
use std::ops::ControlFlow;

use super::{RouteError, trie::FixedState};

/// RFC 1035 section 2.3.4, as text without the final dot.
const HOST_BYTES_MAX: usize = 253;
const LABEL_BYTES_MAX: usize = 63;

/// A host of the configuration, lower case.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Host {
    Exact(Box<[u8]>),
    /// `example.com`, from `*.example.com`.
    Below(Box<[u8]>),
}

impl Host {
    pub(super) fn parse(text: &str) -> Result<Self, RouteError> {
        let bad = || RouteError::BadHost(text.to_owned());
        if let Some(address) = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            let address: Ipv6Addr = address.parse().map_err(|_| bad())?;
            return Ok(Self::Exact(format!("[{address}]").into_bytes().into()));
        }
        let (name, make): (_, fn(_) -> _) = match text.strip_prefix("*.") {
            Some(name) => (name, Self::Below),
            None => (text, Self::Exact),
        };
        if name.len() > HOST_BYTES_MAX || !name.split('.').all(is_label) {
            return Err(bad());
        }
        Ok(make(name.to_ascii_lowercase().into_bytes().into()))
    }
}

/// Letters, digits and hyphens (RFC 1123 section 2.1), and `_`, which private networks use.
fn is_label(label: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    (1..=LABEL_BYTES_MAX).contains(&label.len())
        && label.bytes().all(inner)
        && !label.starts_with('-')
        && !label.ends_with('-')
}

/// The roots of the tries that belong to hosts.
#[derive(Debug, Default)]
pub(super) struct Hosts {
    exact: HashMap<Box<[u8]>, u32, FixedState>,
    below: HashMap<Box<[u8]>, u32, FixedState>,
    /// Of the names in `below`: nothing longer needs to be looked up.
    below_bytes_max: usize,
}

impl Hosts {
    pub(super) fn is_empty(&self) -> bool {
        self.exact.is_empty() && self.below.is_empty()
    }

    /// The root that belongs to `host`, made by `root` where there is none yet.
    pub(super) fn root_or(&mut self, host: &Host, root: impl FnOnce() -> u32) -> u32 {
        let (roots, name) = match host {
            Host::Exact(name) => (&mut self.exact, name),
            Host::Below(name) => {
                self.below_bytes_max = self.below_bytes_max.max(name.len());
                (&mut self.below, name)
            }
        };
        *roots.entry(name.clone()).or_insert_with(root)
    }

    /// Visits the roots for a host as a client wrote it, the most specific first. A final dot is no difference.
    pub(super) fn each(&self, host: &[u8], mut visit: impl FnMut(u32) -> ControlFlow<()>) -> ControlFlow<()> {
        let host = host.strip_suffix(b".").unwrap_or(host);
        let mut buffer = [0; HOST_BYTES_MAX];
        let Some(name) = buffer.get_mut(..host.len()) else { return ControlFlow::Continue(()) };
        name.copy_from_slice(host);
        name.make_ascii_lowercase();
        let name = &*name;
        if let Some(root) = self.exact.get(name) {
            visit(*root)?;
        }
        if self.below.is_empty() {
            return ControlFlow::Continue(());
        }
        for dot in memchr::memchr_iter(b'.', name) {
            let suffix = name.get(dot + 1..).unwrap_or_default();
            if dot == 0 || suffix.len() > self.below_bytes_max {
                continue;
            }
            if let Some(root) = self.below.get(suffix) {
                visit(*root)?;
            }
        }
        ControlFlow::Continue(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn roots(hosts: &Hosts, host: &str) -> Vec<u32> {
        let mut seen = Vec::new();
        let _ = hosts.each(host.as_bytes(), |root| {
            seen.push(root);
            ControlFlow::Continue(())
        });
        seen
    }

    #[test]
    fn the_most_specific_comes_first() {
        let mut hosts = Hosts::default();
        for (root, text) in ["*.example.com", "a.example.com", "*.b.example.com", "*.com", "[::1]"].iter().enumerate() {
            let host = Host::parse(text).unwrap();
            hosts.root_or(&host, || root as u32);
        }
        assert_eq!(roots(&hosts, "a.example.com"), [1, 0, 3]);
        assert_eq!(roots(&hosts, "A.Example.COM."), [1, 0, 3]);
        assert_eq!(roots(&hosts, "x.y.b.example.com"), [2, 0, 3]);
        assert_eq!(roots(&hosts, "example.com"), [3]);
        assert_eq!(roots(&hosts, ".example.com"), [3]);
        assert_eq!(roots(&hosts, "notexample.com"), [3]);
        assert_eq!(roots(&hosts, "[::1]"), [4]);
        assert_eq!(roots(&hosts, ""), [0u32; 0]);
        assert_eq!(roots(&hosts, &"a.".repeat(300)), [0u32; 0]);
    }

    #[test]
    fn names_are_checked() {
        for text in ["example.com", "A-1.b_c", "10.0.0.1", "*.x", "localhost", "[2001:DB8::1]"] {
            assert!(Host::parse(text).is_ok(), "{text}");
        }
        let long = "a".repeat(64);
        for text in
            ["", "*", "*.", ".a", "a.", "a..b", "a.*.b", "*a.b", "-a", "a-", "a b", "a:80", "[::g]", "caf\u{e9}", &long]
        {
            assert_eq!(Host::parse(text), Err(RouteError::BadHost(text.to_owned())));
        }
    }
}
