//! Addresses of services.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::sync::Arc;

use ringway_core::members::PRIORITY_MAX;
use schemars::{Schema, SchemaGenerator, json_schema};

use super::metadata::{Label, Metadata};
use crate::decode::{Cx, Decode, Spanned};
use crate::scalar::Int;
use crate::shape::shape;
use crate::snapshot::{self, EndpointAddress, EndpointTls};
use crate::tree::{Node, Value};

shape! {
    /// An endpoint with its share of the traffic.
    struct Weighted {
        /// `host:port` or `unix:/path`. A host name is resolved once, when the file is read; each of its addresses
        /// becomes an endpoint.
        address: Spanned<Address>,
        /// Its share of the requests, relative to the other endpoints. 0: none; what is under way ends in peace.
        weight: Int<0, 65_535> = "1",
        /// Those of a later priority get requests only when too few of the earlier ones are usable (`panic_threshold`); 0
        /// comes first.
        priority: Option<Spanned<Int<0, { PRIORITY_MAX as i64 }>>>,
        /// As `priority: 1`.
        backup: bool = "false",
        /// Where it is, as the gateway's own zone is named.
        zone: Option<Label>,
        /// Whatever else is known of it: `{ version: v2 }`.
        metadata: Metadata = "{}",
    }
}

/// `host:port`, `unix:/path`, or a section with the address and more.
#[derive(Debug)]
pub(crate) struct Endpoint {
    pub(crate) address: Spanned<Address>,
    pub(crate) weight: u32,
    pub(crate) priority: u8,
    pub(crate) zone: Option<Arc<str>>,
    pub(crate) metadata: snapshot::Metadata,
}

impl Endpoint {
    pub(crate) fn plain(address: Spanned<Address>) -> Self {
        Self { address, weight: 1, priority: 0, zone: None, metadata: Arc::default() }
    }

    /// What it stands for at one of its addresses.
    pub(crate) fn at(&self, label: Arc<str>, address: EndpointAddress, tls: Option<EndpointTls>) -> snapshot::Endpoint {
        let (zone, metadata) = (self.zone.clone(), Arc::clone(&self.metadata));
        snapshot::Endpoint { label, address, weight: self.weight, priority: self.priority, zone, metadata, tls }
    }
}

impl Decode for Endpoint {
    fn kind() -> String {
        format!("{}, or a section of keys", Address::kind())
    }

    fn decode(node: &Node, cx: &mut Cx) -> Option<Self> {
        match &node.value {
            Value::Map(_) => {
                let Weighted { address, weight, priority, backup, zone, metadata } = Weighted::decode(node, cx)?;
                if let Some(written) = priority.as_ref().filter(|written| backup && written.value.0 == 0) {
                    cx.error(written.span, "a backup does not come first", "`backup: true` is `priority: 1`");
                }
                let priority = priority.map_or(u8::from(backup), |written| written.value.0 as u8);
                let (zone, metadata) = (zone.map(|zone| zone.0), metadata.0);
                Some(Self { address, weight: weight.0 as u32, priority, zone, metadata })
            }
            _ => Some(Self::plain(Spanned::decode(node, cx)?)),
        }
    }

    fn schema(generator: &mut SchemaGenerator) -> Schema {
        json_schema!({ "anyOf": [{ "type": "string" }, Weighted::schema(generator)] })
    }
}

/// As written; names are not resolved yet.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Address {
    Ip(SocketAddr),
    Name { host: String, port: u16 },
    Unix(PathBuf),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(address) => address.fmt(f),
            Self::Name { host, port } => write!(f, "{host}:{port}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl Address {
    /// The address, or a hint at what is wrong.
    fn parse(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("unix:") {
            // What `sun_path` holds, with its closing NUL.
            const PATH_BYTES_MAX: usize = 107;
            return match path.starts_with('/') && path.len() <= PATH_BYTES_MAX && !path.contains('\0') {
                true => Ok(Self::Unix(PathBuf::from(path))),
                false => Err(format!("a socket's path starts with `/` and has at most {PATH_BYTES_MAX} bytes")),
            };
        }
        if let Some((scheme, rest)) = text.split_once("://") {
            let authority = rest.split(['/', '?', '#']).next().unwrap_or("");
            return Err(match scheme {
                "http" => format!("without the scheme and the path: `{authority}`"),
                "https" => format!("without the scheme and the path: `{authority}`, and `tls: {{}}` in the service"),
                _ => format!("`{scheme}` is not spoken here: plain HTTP/1.1 to `host:port`"),
            });
        }
        if let Ok(address) = text.parse::<SocketAddr>() {
            return if address.port() == 0 { Err("a port is from 1 to 65535".into()) } else { Ok(Self::Ip(address)) };
        }
        if text.parse::<IpAddr>().is_ok() {
            return Err(if text.contains(':') { format!("`[{text}]:8080`") } else { format!("`{text}:8080`") });
        }
        let Some((host, port)) = text.rsplit_once(':') else {
            return Err(format!("the port is missing: `{text}:8080`"));
        };
        if !is_host(host) || is_numeric(host) {
            return Err(format!("`{host}` is not a host name"));
        }
        match port.parse::<u16>() {
            Ok(port) if port > 0 => Ok(Self::Name { host: host.to_owned(), port }),
            _ => Err("a port is from 1 to 65535".into()),
        }
    }
}

/// A host name as it may stand in an address: letters, digits, `-`, `_` and dots.
pub(crate) fn is_host(text: &str) -> bool {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
    };
    let text = text.strip_suffix('.').unwrap_or(text);
    (1..=253).contains(&text.len()) && text.split('.').all(label)
}

/// Would be read as an IPv4 address in one of its forgotten forms: `127.1`, `0x7f000001`.
fn is_numeric(host: &str) -> bool {
    let last = host.trim_end_matches('.').rsplit('.').next().unwrap_or("");
    match last.strip_prefix("0x") {
        Some(hex) => hex.bytes().all(|byte| byte.is_ascii_hexdigit()),
        None => last.bytes().all(|byte| byte.is_ascii_digit()),
    }
}

impl Decode for Address {
    fn kind() -> String {
        "`host:port` or `unix:/path`".into()
    }

    fn decode(node: &Node, cx: &mut Cx) -> Option<Self> {
        let hint = match node.scalar().filter(|scalar| !scalar.is_null()) {
            Some(scalar) => match Self::parse(&scalar.text) {
                Ok(address) => return Some(address),
                Err(hint) => Some(hint),
            },
            None => None,
        };
        cx.mismatch::<Self>(node, hint);
        None
    }

    fn schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string" })
    }
}

/// Gives the addresses of a host, or says why there are none.
pub type Lookup<'a> = &'a dyn Fn(&str, u16) -> io::Result<Vec<SocketAddr>>;

/// Asks the system.
pub(crate) fn system_lookup(host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
    Ok((host, port).to_socket_addrs()?.collect())
}

/// Resolves names, each once.
pub(crate) struct Resolver<'a> {
    lookup: Lookup<'a>,
    known: HashMap<(String, u16), Result<Vec<SocketAddr>, String>>,
}

impl<'a> Resolver<'a> {
    pub(crate) fn new(lookup: Lookup<'a>) -> Self {
        Self { lookup, known: HashMap::new() }
    }

    /// The addresses of `address`, each with the label that metrics and logs know it by. Blocks on DNS.
    pub(crate) fn resolve(&mut self, address: &Address) -> Result<Vec<(String, EndpointAddress)>, String> {
        match address {
            Address::Ip(ip) => Ok(vec![(address.to_string(), EndpointAddress::Tcp(*ip))]),
            Address::Unix(path) => Ok(vec![(address.to_string(), EndpointAddress::Unix(path.clone()))]),
            Address::Name { host, port } => {
                let found = self
                    .known
                    .entry((host.clone(), *port))
                    .or_insert_with(|| found(self.lookup, host, *port))
                    .clone()?;
                Ok(match found.as_slice() {
                    [one] => vec![(address.to_string(), EndpointAddress::Tcp(*one))],
                    many => many.iter().map(|one| (one.to_string(), EndpointAddress::Tcp(*one))).collect(),
                })
            }
        }
    }
}

/// Sorted, so that a reload gives the same endpoints in the same order.
fn found(lookup: Lookup<'_>, host: &str, port: u16) -> Result<Vec<SocketAddr>, String> {
    let mut found = lookup(host, port).map_err(|error| error.to_string())?;
    found.sort_unstable();
    found.dedup();
    if found.is_empty() { Err("it has no address".into()) } else { Ok(found) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        for good in
            ["127.0.0.1:80", "[::1]:80", "a.b-c.example:65535", "product_service:1", "3fa9c0:80", "unix:/run/a.sock"]
        {
            assert_eq!(Address::parse(good).unwrap().to_string(), good);
        }
        for bad in [
            "",
            ":80",
            "a",
            "a:",
            "a:0",
            "a:65536",
            "a:-1",
            "a b:80",
            "1.2.3.4",
            "::1",
            "1.2.3.4:0",
            "unix:",
            "unix:a",
            "http://a:80/x",
            "https://a",
            "a/b:80",
            "[::1]",
            "127.1:80",
            "0x7f000001:80",
            "1.2.3.256:80",
            "a..b:80",
        ] {
            assert!(Address::parse(bad).is_err(), "{bad}");
        }
        assert_eq!(Address::parse("http://a:80/x").unwrap_err(), "without the scheme and the path: `a:80`");
    }

    #[test]
    fn names_are_resolved_to_labelled_addresses() {
        let resolved = Resolver::new(&system_lookup).resolve(&Address::parse("localhost:8081").unwrap()).unwrap();
        match resolved.as_slice() {
            [(label, _)] => assert_eq!(label, "localhost:8081"),
            many => assert!(many.iter().all(|(label, address)| match address {
                EndpointAddress::Tcp(ip) => *label == ip.to_string(),
                EndpointAddress::Unix(_) => false,
            })),
        }
    }
}
