//! Endpoints that are found while the gateway runs.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::Arc;

use ringway_core::auth::HttpUrl;

use super::authenticator::Url;
use super::endpoint::{Address, Endpoint, is_host};
use super::key_list::{Redis, RedisKey, is_redis_key, needed};
use super::service_tls::{Compiled, ServiceTlsSection};
use super::tls::located;
use crate::decode::{Cx, Decode, Names, OneOrMore, Spanned};
use crate::error::{Errors, Sink, Span};
use crate::scalar::{Int, Name, choice, parsed};
use crate::shape::shape;
use crate::snapshot::{
    self, Discovery, DiscoverySource, EndpointAddress, EndpointTls, Etcd, EtcdLogin, EtcdServer, Records, RegistryPlace,
};
use crate::tree::{self, Node};
use crate::units::{DAY_MS, Time};

shape! {
    /// Where a service's endpoints are found while the gateway runs. Exactly one of `dns`, `file`, `registry` and `etcd`.
    pub(crate) struct DiscoverySection {
        /// By the addresses or the SRV records of a name.
        dns: Option<DnsSection>,
        /// By a list in a file (YAML or JSON), written as `endpoints` is, but without host names. Read again when it changes.
        file: Option<Spanned<String>>,
        /// By the instances that register with the admin listener of any gateway that shares the Redis of the section `redis`.
        registry: Option<Spanned<RegistrySection>>,
        /// By keys in etcd, which are watched.
        etcd: Option<Spanned<EtcdSection>>,
        /// Between two lookups of a name; less where its records hold for less. Between two looks at all keys in etcd, besides
        /// the watch. A file and the registry are looked at four times a second.
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

    /// Endpoints that register themselves.
    pub(crate) struct RegistrySection {
        /// The service's name in the registry; by default its name here.
        service: Option<RedisKey>,
    }

    /// Endpoints from etcd, each the value of a key: `address:port`, or JSON as the registry takes it.
    pub(crate) struct EtcdSection {
        /// The servers of one cluster, `http://` or `https://`, which are tried in turn.
        endpoints: OneOrMore<Spanned<Url>>,
        /// What the keys begin with.
        prefix: Spanned<String>,
        /// Whom to log in as, with `password`.
        user: Option<Spanned<String>>,
        /// Its password.
        password: Option<Spanned<String>>,
        /// How servers with `https://` are spoken to, with a certificate of the gateway's own where they ask for one. Without it,
        /// their certificates are verified by the system's authorities.
        tls: Option<Spanned<ServiceTlsSection>>,
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
    pub(crate) fn compile(
        section: Spanned<Self>,
        service: &Name,
        tls: Option<&Compiled>,
        redis: Redis<'_>,
        cx: &mut Cx,
    ) -> Option<Discovery> {
        let Spanned { value: section, span } = section;
        let (source, tls) = match (section.dns, section.file, section.registry, section.etcd) {
            (Some(dns), None, None, None) => {
                let name =
                    Spanned { value: Address::Name { host: dns.name.value.0.clone(), port: 0 }, span: dns.name.span };
                let tls = match tls {
                    Some(tls) => Some(tls.of_endpoint(&name, cx)?),
                    None => None,
                };
                (dns.compile(cx)?, tls)
            }
            (None, Some(file), None, None) => {
                let tls = of_addresses(tls, file.span, cx);
                (DiscoverySource::File(located(&file, cx)), tls?)
            }
            (None, None, Some(registry), None) => {
                let tls = of_addresses(tls, registry.span, cx);
                (registry.value.compile(service, registry.span, redis, cx)?, tls?)
            }
            (None, None, None, Some(etcd)) => {
                let tls = of_addresses(tls, etcd.span, cx);
                (DiscoverySource::Etcd(etcd.value.compile(cx)?), tls?)
            }
            _ => {
                let message = "exactly one of `dns`, `file`, `registry` and `etcd` says where endpoints are found";
                cx.error(span, message, None);
                return None;
            }
        };
        Some(Discovery { source, interval: section.interval.0, grace: section.grace.0, tls })
    }
}

/// How endpoints are secured that are addresses. `None` after an error, which is reported.
fn of_addresses(tls: Option<&Compiled>, span: Span, cx: &mut Cx) -> Option<Option<EndpointTls>> {
    let Some(tls) = tls else { return Some(None) };
    let of_any = tls.of_any();
    if of_any.is_none() {
        let message = "the endpoints that are found here are addresses, of which certificates seldom are";
        cx.error(span, message, "say `server_name` in the service's `tls`");
    }
    of_any.map(Some)
}

impl RegistrySection {
    fn compile(self, service: &Name, span: Span, redis: Redis<'_>, cx: &mut Cx) -> Option<DiscoverySource> {
        let name = self.service.map_or_else(|| service.0.clone(), |key| key.0);
        if !is_redis_key(&name) {
            let message = format!("`{name}` cannot be a name in the registry, which has letters, digits and `-._:`");
            cx.error(span, message, "`registry: { service: NAME }`");
            return None;
        }
        let redis = needed(redis, ("endpoints that register themselves", span), cx)?;
        let key = format!("{}:registry:{name}", redis.prefix).into();
        let place = RegistryPlace { servers: redis.servers.clone(), key };
        Some(DiscoverySource::Registry { name: name.into(), place })
    }
}

impl EtcdSection {
    fn compile(self, cx: &mut Cx) -> Option<Etcd> {
        const PREFIX_LENGTH_MAX: usize = 1024;
        let Self { endpoints: OneOrMore(endpoints), prefix, user, password, tls } = self;
        if !(1..=PREFIX_LENGTH_MAX).contains(&prefix.value.len()) {
            let message = format!("a prefix has from 1 to {PREFIX_LENGTH_MAX} bytes");
            cx.error(prefix.span, message, "such as `/services/api/`");
            return None;
        }
        for url in &endpoints {
            if url.value.0.target() != "/" {
                cx.error(url.span, "the URL of an etcd server has no path", "such as `http://127.0.0.1:2379`");
                return None;
            }
        }
        let secured = endpoints.iter().find(|url| url.value.0.is_https()).map(|url| url.span);
        let tls = match (tls, secured) {
            (Some(tls), None) => {
                cx.error(tls.span, "`tls` has no effect without TLS", "`https://` in place of `http://`");
                return None;
            }
            (Some(tls), Some(_)) => Some(tls.value.compile(tls.span, cx)?),
            (None, Some(span)) => Some(ServiceTlsSection::decode(&Node::literal("{}", span), cx)?.compile(span, cx)?),
            (None, None) => None,
        };
        let login = match (user, password) {
            (Some(user), Some(password)) => {
                Some(EtcdLogin { user: user.value.into(), password: password.value.into() })
            }
            (None, None) => None,
            (Some(alone), None) => {
                cx.error(alone.span, "the key `password` is missing: that of `user`", None);
                return None;
            }
            (None, Some(alone)) => {
                cx.error(alone.span, "the key `user` is missing: whose `password` it is", None);
                return None;
            }
        };
        let servers = endpoints.into_iter().map(|Spanned { value: Url(url), span }| {
            let tls = match tls.as_ref().filter(|_| url.is_https()) {
                Some(tls) => Some(tls.of_endpoint(&Spanned { value: address_of(&url), span }, cx)?),
                None => None,
            };
            Some(EtcdServer { url, tls })
        });
        let servers = servers.collect::<Option<_>>()?;
        Some(Etcd { servers, prefix: prefix.value.into(), login, tls: tls.map(|tls| tls.service) })
    }
}

/// The host whose certificate is looked for.
fn address_of(url: &HttpUrl) -> Address {
    match url.host().parse() {
        Ok(ip) => Address::Ip(SocketAddr::new(ip, url.port())),
        Err(_) => Address::Name { host: url.host().to_owned(), port: url.port() },
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
