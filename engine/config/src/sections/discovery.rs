//! Endpoints that are found while the gateway runs.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::Arc;

use super::endpoint::{Address, Endpoint, is_host};
use super::service_tls::Compiled;
use super::tls::located;
use crate::decode::{Cx, Decode, Names, OneOrMore, Spanned};
use crate::error::{Errors, Sink};
use crate::scalar::{Int, choice, parsed};
use crate::shape::shape;
use crate::snapshot::{self, Discovery, DiscoverySource, EndpointAddress, EndpointTls, Records};
use crate::tree::{self, Node};
use crate::units::{DAY_MS, Time};

shape! {
    /// Where a service's endpoints are found while the gateway runs. Exactly one of `dns` and `file`.
    pub(crate) struct DiscoverySection {
        /// By the addresses or the SRV records of a name.
        dns: Option<DnsSection>,
        /// By a list in a file (YAML or JSON), written as `endpoints` is, but without host names. Read again when it changes.
        file: Option<Spanned<String>>,
        /// Between two lookups of a name; less where its records hold for less. A file is looked at four times a second.
        interval: Time<1_000, 30_000> = "10s",
        /// An answer without endpoints is believed when there has been no other for this time.
        grace: Time<0, { DAY_MS }> = "60s",
    }

    /// Endpoints from DNS.
    pub(crate) struct DnsSection {
        /// The name that is looked up.
        name: Spanned<HostName>,
        /// `addresses`: each A and AAAA record is an endpoint, at `port`. `srv`: each SRV record (RFC 2782) is, with its port,
        /// weight and priority.
        records: Records = "addresses",
        /// The port of the endpoints, with `records: addresses`.
        port: Option<Spanned<Int<1, 65_535>>>,
        /// Name servers to ask, `address:port`; those of the system without.
        servers: Vec<SocketAddr> = "[]",
    }
}

choice! {
    Records {
        "addresses" => Records::Addresses,
        "srv" => Records::Srv,
    }
}

#[derive(Debug)]
pub(crate) struct HostName(String);

impl Decode for HostName {
    fn kind() -> String {
        "a host name".into()
    }

    fn decode(node: &Node, cx: &mut Cx) -> Option<Self> {
        parsed(node, cx, |text| match is_host(text) {
            true => Ok(Self(text.to_owned())),
            false => Err(Some("without a scheme and a port".into())),
        })
    }

    fn schema(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
        String::schema(generator)
    }
}

impl DiscoverySection {
    /// `None` after an error, which is reported.
    pub(crate) fn compile(section: Spanned<Self>, tls: Option<&Compiled>, cx: &mut Cx) -> Option<Discovery> {
        let Spanned { value: section, span } = section;
        let (source, tls) = match (section.dns, section.file) {
            (Some(dns), None) => {
                let name =
                    Spanned { value: Address::Name { host: dns.name.value.0.clone(), port: 0 }, span: dns.name.span };
                let tls = match tls {
                    Some(tls) => Some(tls.of_endpoint(&name, cx)?),
                    None => None,
                };
                (dns.compile(cx)?, tls)
            }
            (None, Some(file)) => {
                let tls = match tls.map(|tls| tls.of_any()) {
                    Some(None) => {
                        let message = "the endpoints of a file are addresses, of which certificates seldom are";
                        cx.error(file.span, message, "say `server_name` in the service's `tls`");
                        return None;
                    }
                    Some(tls) => tls,
                    None => None,
                };
                (DiscoverySource::File(located(&file, cx)), tls)
            }
            _ => {
                cx.error(span, "exactly one of `dns` and `file` says where endpoints are found", None);
                return None;
            }
        };
        Some(Discovery { source, interval: section.interval.0, grace: section.grace.0, tls })
    }
}

impl DnsSection {
    fn compile(self, cx: &mut Cx) -> Option<DiscoverySource> {
        let port = match (self.records, self.port) {
            (Records::Addresses, Some(port)) => port.value.0 as u16,
            (Records::Srv, None) => 0,
            (Records::Addresses, None) => {
                cx.error(self.name.span, "the key `port` is missing: addresses have none", "or `records: srv`");
                return None;
            }
            (Records::Srv, Some(port)) => {
                cx.error(port.span, "SRV records have ports of their own", "leave `port` out");
                return None;
            }
        };
        let name = Arc::from(self.name.value.0);
        Some(DiscoverySource::Dns { name, records: self.records, port, servers: self.servers })
    }
}

/// Reads the endpoints of a list that was found in a file. What is written twice counts once.
///
/// # Errors
/// All that is wrong with it, with its places.
pub fn read_endpoints(name: &str, text: &str, tls: Option<&EndpointTls>) -> Result<Vec<snapshot::Endpoint>, Errors> {
    let mut sink = Sink::new(vec![name.to_owned()]);
    let Some(root) = tree::parse(text, 0, &mut sink) else { return Err(sink.into_errors()) };
    let names = Names::scan(&root, &mut sink);
    let mut cx = Cx::new(sink, names);
    // An empty list is one.
    let written = match &root.value {
        tree::Value::List(items) if items.is_empty() => Vec::new(),
        _ => OneOrMore::<Endpoint>::decode(&root, &mut cx).map(|list| list.0).unwrap_or_default(),
    };
    let mut known = HashSet::new();
    let mut endpoints = Vec::new();
    for written in written {
        let label: Arc<str> = written.address.value.to_string().into();
        let address = match &written.address.value {
            Address::Ip(ip) => EndpointAddress::Tcp(*ip),
            Address::Unix(path) => EndpointAddress::Unix(path.clone()),
            Address::Name { .. } => {
                cx.error(
                    written.address.span,
                    format!("`{label}`: a file names addresses"),
                    "names are found by `dns`",
                );
                continue;
            }
        };
        if known.insert(address.clone()) {
            endpoints.push(written.at(label, address, tls.cloned()));
        }
    }
    if cx.sink.is_clean() { Ok(endpoints) } else { Err(cx.sink.into_errors()) }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn files_of_endpoints() {
        let read = |text| read_endpoints("list", text, None).map_err(|errors| errors.to_string());
        let found =
            read("- 127.0.0.1:80\n- { address: 127.0.0.1:81, weight: 3 }\n- unix:/a\n- 127.0.0.1:80\n").unwrap();
        let found: Vec<_> = found.iter().map(|endpoint| (&*endpoint.label, endpoint.weight)).collect();
        assert_eq!(found, [("127.0.0.1:80", 1), ("127.0.0.1:81", 3), ("unix:/a", 1)]);
        assert_eq!(read(r#"["127.0.0.1:80", {"address": "127.0.0.1:81"}]"#).unwrap().len(), 2);
        assert_eq!(read("[]").unwrap().len(), 0);
        let known = read("{ address: 127.0.0.1:80, zone: eu-1, metadata: { version: 2, os: a b } }").unwrap();
        let metadata: Vec<_> = known[0].metadata.iter().map(|(name, value)| (&**name, &**value)).collect();
        assert_eq!((known[0].zone.as_deref(), metadata), (Some("eu-1"), vec![("os", "a b"), ("version", "2")]));
        for (text, said) in [
            ("- a.example:80\n- 127.0.0.1:81", "list:1:3: `a.example:80`: a file names addresses"),
            ("- { address: 127.0.0.1:80, wieght: 3 }", "wieght"),
            ("", "the file is empty"),
            ("- 127.0.0.1", "127.0.0.1:8080"),
            ("- { address: 127.0.0.1:80, zone: \"\" }", "from 1 to 64"),
            ("- { address: 127.0.0.1:80, metadata: { a: 1, a: 2 } }", "occurs twice"),
            ("- { address: 127.0.0.1:80, metadata: { a b: 1 } }", "letters, digits and `-._/:`"),
            ("- { address: 127.0.0.1:80, metadata: { a: [] } }", "expected text"),
            ("- [", "list"),
        ] {
            let errors = read(text).unwrap_err();
            assert!(errors.contains(said), "{text}: {errors}");
        }
    }
}
