//! Where requests go.

use std::net::{Ipv6Addr, SocketAddr, ToSocketAddrs};

use crate::failure::Failure;

/// The parts of a URL that requests need.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Target {
    /// As it was written.
    pub(crate) url: String,
    /// A name or an address, IPv6 without brackets.
    pub(crate) host: String,
    pub(crate) port: u16,
    /// For `Host`: without the port if it is 80.
    pub(crate) authority: String,
    /// What stands before the requests' paths: empty, or begins with `/` and does not end with one.
    pub(crate) base: String,
}

/// A message and a hint.
type Wrong = (String, Option<&'static str>);

impl Target {
    /// `http://host:port/base`, and nothing more.
    pub(crate) fn parse(url: &str) -> Result<Self, Wrong> {
        let (target, path) = Self::split(url)?;
        if path.contains('?') {
            return Err(("a target has no query".into(), Some("write it into the requests' paths")));
        }
        if path.contains(|c: char| !c.is_ascii_graphic()) {
            return Err(("the target's path has a byte that would break the request's framing".into(), None));
        }
        Ok(Self { base: path.trim_end_matches('/').into(), ..target })
    }

    /// The target without a base, and the rest of the URL: path and query, beginning with `/`.
    pub(crate) fn split(url: &str) -> Result<(Self, String), Wrong> {
        const FORM: Option<&str> = Some("targets are written `http://host:port/base`");
        let Some((scheme, rest)) = url.split_once("://") else {
            return Err((format!("`{url}` is not a URL"), FORM));
        };
        if scheme.eq_ignore_ascii_case("https") {
            let message = "targets are plain `http://`: loadtest does not speak TLS yet";
            return Err((message.into(), Some("load a listener without TLS")));
        }
        if !scheme.eq_ignore_ascii_case("http") {
            return Err((format!("`{scheme}` is not a scheme that loadtest speaks"), FORM));
        }
        if rest.contains('#') {
            return Err(("a URL that is requested has no fragment".into(), Some("leave `#` and what follows out")));
        }
        let authority_ends = rest.find(['/', '?']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at(authority_ends);
        if authority.contains('@') {
            return Err(("a target has no user name".into(), Some("send credentials in a header")));
        }
        let (host, port) =
            host_and_port(authority).ok_or_else(|| (format!("`{authority}` is not `host:port`"), FORM))?;
        let bracketed = if host.contains(':') { format!("[{host}]") } else { host.into() };
        let authority = if port == 80 { bracketed } else { format!("{bracketed}:{port}") };
        let slash = if path.starts_with('/') { "" } else { "/" };
        let target = Self { url: url.into(), host: host.into(), port, authority, base: String::new() };
        Ok((target, format!("{slash}{path}")))
    }

    /// Looks the host's name up; the first address counts. Blocks.
    pub(crate) fn resolve(&self) -> Result<SocketAddr, Failure> {
        let found = (self.host.as_str(), self.port).to_socket_addrs();
        let mut found = found.map_err(|error| Failure::runtime(format!("cannot resolve `{}`: {error}", self.host)))?;
        found.next().ok_or_else(|| Failure::runtime(format!("`{}` has no address", self.host)))
    }
}

fn host_and_port(authority: &str) -> Option<(&str, u16)> {
    let (host, port) = match authority.strip_prefix('[') {
        Some(rest) => {
            let (host, after) = rest.split_once(']')?;
            host.parse::<Ipv6Addr>().ok()?;
            (host, if after.is_empty() { None } else { Some(after.strip_prefix(':')?) })
        }
        None => match authority.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (authority, None),
        },
    };
    let letter = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_' | b':');
    let port = match port {
        None => 80,
        Some(port) if port.bytes().all(|byte| byte.is_ascii_digit()) => port.parse().ok().filter(|port| *port != 0)?,
        Some(_) => return None,
    };
    (!host.is_empty() && host.bytes().all(letter)).then_some((host, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_taken_apart() {
        for (url, host, port, authority, base) in [
            ("http://127.0.0.1:3000", "127.0.0.1", 3000, "127.0.0.1:3000", ""),
            ("http://localhost/", "localhost", 80, "localhost", ""),
            ("HTTP://a.example:80/api/", "a.example", 80, "a.example", "/api"),
            ("http://[::1]:8080/x/y", "::1", 8080, "[::1]:8080", "/x/y"),
            ("http://[::1]", "::1", 80, "[::1]", ""),
        ] {
            let target = Target::parse(url).unwrap();
            assert_eq!((&target.host[..], target.port), (host, port), "{url}");
            assert_eq!((&target.authority[..], &target.base[..]), (authority, base), "{url}");
        }
        let (target, path) = Target::split("http://h:1/a/{n}?x=1").unwrap();
        assert_eq!((&target.base[..], &path[..]), ("", "/a/{n}?x=1"));
        assert_eq!(Target::split("http://h:1?x=1").unwrap().1, "/?x=1");
    }

    #[test]
    fn others_are_refused() {
        for (url, message) in [
            ("localhost:3000", "`localhost:3000` is not a URL"),
            ("https://h/", "targets are plain `http://`: loadtest does not speak TLS yet"),
            ("ftp://h/", "`ftp` is not a scheme that loadtest speaks"),
            ("http://", "`` is not `host:port`"),
            ("http://h:0/", "`h:0` is not `host:port`"),
            ("http://h:70000/", "`h:70000` is not `host:port`"),
            ("http://h:/", "`h:` is not `host:port`"),
            ("http://a b/", "`a b` is not `host:port`"),
            ("http://::1/", "`::1` is not `host:port`"),
            ("http://[::1/", "`[::1` is not `host:port`"),
            ("http://u:p@h/", "a target has no user name"),
            ("http://h/#x", "a URL that is requested has no fragment"),
            ("http://h/?x", "a target has no query"),
            ("http://h/a b", "the target's path has a byte that would break the request's framing"),
        ] {
            assert_eq!(Target::parse(url).unwrap_err().0, message, "{url}");
        }
    }
}
