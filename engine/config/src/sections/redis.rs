//! Where the gateways of a fleet agree.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use percent_encoding::percent_decode_str;
use schemars::{Schema, SchemaGenerator, json_schema};

use super::endpoint::is_host;
use crate::decode::{Cx, Decode, Spanned};
use crate::expand::{FILE_BYTES_MAX, REDACTED};
use crate::scalar::{or_variable, parsed};
use crate::shape::shape;
use crate::snapshot::{self, RedisNode, RedisServers};
use crate::tree::{Node, Origin, Value};
use crate::units::Time;

/// Nodes in one URL.
const NODES_MAX: usize = 64;
const PREFIX_LENGTH_MAX: usize = 64;

shape! {
    /// Where the gateways of a fleet agree on rate limits, and find API keys and revoked tokens.
    pub(crate) struct RedisSection {
        /// `redis://user:password@host:port/database`; `redis+sentinel://host:port,host:port/MASTER/database`;
        /// `redis+cluster://host:port,host:port`. With TLS: `rediss://`, `rediss+sentinel://`, `rediss+cluster://`. User,
        /// password, port and database may be left out. A Redis that cannot be reached is no error: the gateway goes on
        /// by itself and connects as soon as it can.
        url: Spanned<Url>,
        /// In front of every key, so that several fleets can share a Redis.
        prefix: Prefix = "ringway",
        /// Until a connection stands, name, TLS and password included.
        connect_timeout: Time<10, 60_000> = "1s",
        /// A connection without an answer for this time is given up and made anew.
        response_timeout: Time<100, 60_000> = "500ms",
        /// How the server's certificate is checked.
        tls: RedisTlsSection = "{}",
    }

    /// How the server's certificate is checked.
    pub(crate) struct RedisTlsSection {
        /// File with the certificates (PEM) of the authorities to trust, instead of the system's. A relative path starts at
        /// the directory of the configuration file.
        ca: Option<Spanned<String>>,
    }
}

impl RedisSection {
    pub(crate) fn compile(self, cx: &mut Cx) -> Option<snapshot::Redis> {
        let url = self.url.value;
        if let Some(ca) = self.tls.ca.as_ref().filter(|_| !url.tls) {
            cx.error(ca.span, "`ca` has no effect without TLS", "`rediss://` in place of `redis://`");
        }
        let ca = match self.tls.ca {
            Some(ca) => Some(certificates(&ca, cx)?),
            None => None,
        };
        Some(snapshot::Redis {
            label: Arc::from(url.label()),
            servers: url.servers,
            user: url.user,
            password: url.password,
            tls: url.tls.then_some(snapshot::RedisTls { ca }),
            prefix: Arc::from(self.prefix.0),
            connect_timeout: self.connect_timeout.0,
            response_timeout: self.response_timeout.0,
        })
    }
}

/// The text of a PEM file with at least one certificate.
fn certificates(path: &Spanned<String>, cx: &mut Cx) -> Option<Arc<[u8]>> {
    let directory = Path::new(cx.sink.source(path.span.source)).parent().unwrap_or(Path::new(""));
    let file = directory.join(&path.value);
    let mut bytes = Vec::new();
    let read = std::fs::File::open(&file).and_then(|file| file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes));
    let problem = match read {
        Err(error) => error.to_string(),
        Ok(_) if bytes.len() as u64 > FILE_BYTES_MAX => format!("larger than {} KiB", FILE_BYTES_MAX / 1024),
        Ok(_) if !String::from_utf8_lossy(&bytes).contains("-----BEGIN CERTIFICATE-----") => {
            "no certificate in it".into()
        }
        Ok(_) => return Some(bytes.into()),
    };
    cx.error(path.span, format!("`{}` cannot be used: {problem}", file.display()), "a file of PEM certificates");
    None
}

/// What stands in front of keys.
#[derive(Debug)]
pub(crate) struct Prefix(String);

impl Decode for Prefix {
    fn kind() -> String {
        "a word of letters, digits and `-._:`".into()
    }

    fn decode(node: &Node, cx: &mut Cx) -> Option<Self> {
        parsed(node, cx, |text| {
            // Braces would choose another node of a cluster.
            let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-._:".contains(&byte);
            match (1..=PREFIX_LENGTH_MAX).contains(&text.len()) && text.bytes().all(allowed) {
                true => Ok(Self(text.to_owned())),
                false => Err(Some(format!("from 1 to {PREFIX_LENGTH_MAX} of them"))),
            }
        })
    }

    fn schema(generator: &mut SchemaGenerator) -> Schema {
        or_variable(json_schema!({ "type": "string", "pattern": "^[A-Za-z0-9._:-]{1,64}$" }), generator)
    }
}

/// Where a Redis is and how to get in. Not `Debug` by derivation: it holds a password.
pub(crate) struct Url {
    tls: bool,
    user: Option<Arc<str>>,
    password: Option<Arc<str>>,
    servers: RedisServers,
}

impl std::fmt::Debug for Url {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.label())
    }
}

impl Decode for Url {
    fn kind() -> String {
        "the URL of a Redis".into()
    }

    fn decode(node: &Node, cx: &mut Cx) -> Option<Self> {
        let Some(scalar) = node.scalar().filter(|scalar| !scalar.is_null()) else {
            cx.mismatch::<Self>(node, Some("such as `redis://127.0.0.1:6379`".into()));
            return None;
        };
        match Self::parse(&scalar.text) {
            Ok(url) => Some(url),
            // The hint repeats nothing of the text.
            Err(hint) => {
                cx.error(node.span, format!("expected {}, found {}", Self::kind(), node.found()), hint);
                None
            }
        }
    }

    fn schema(generator: &mut SchemaGenerator) -> Schema {
        let pattern = r"^rediss?(\+sentinel|\+cluster)?://";
        or_variable(json_schema!({ "type": "string", "pattern": pattern }), generator)
    }
}

impl Url {
    /// The URL, or what is wrong with it.
    fn parse(text: &str) -> Result<Self, &'static str> {
        let (scheme, rest) = text.split_once("://").ok_or("such as `redis://127.0.0.1:6379`")?;
        let (tls, kind) = match scheme.split_once('+').unwrap_or((scheme, "")) {
            ("redis", kind) => (false, kind),
            ("rediss", kind) => (true, kind),
            _ => return Err("it begins with `redis://` or `rediss://` (TLS)"),
        };
        if rest.contains(['?', '#']) {
            return Err("without `?` and `#`; in a password they are written `%3F` and `%23`");
        }
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let (login, hosts) = match authority.rsplit_once('@') {
            Some((login, hosts)) => (Some(login), hosts),
            None => (None, authority),
        };
        let (user, password) = match login.map(|login| login.split_once(':').unwrap_or((login, ""))) {
            Some((user, password)) => (decoded(user)?, decoded(password)?),
            None => (None, None),
        };
        if user.is_some() && password.is_none() {
            return Err("a user needs a password: `user:password@`; without a user `:password@`");
        }
        let mut path = path.split('/');
        let servers = match kind {
            "" => {
                let [node] = <[RedisNode; 1]>::try_from(nodes(hosts, 6379)?)
                    .map_err(|_| "one host; several need `redis+sentinel://` or `redis+cluster://`")?;
                RedisServers::One { node, database: database(path.next())? }
            }
            "sentinel" => {
                let nodes = nodes(hosts, 26_379)?;
                let master = path.next().filter(|name| !name.is_empty());
                let master = master.ok_or("the name of the master is missing: `redis+sentinel://host:port/MASTER`")?;
                RedisServers::Sentinel { nodes, master: Arc::from(master), database: database(path.next())? }
            }
            "cluster" => RedisServers::Cluster { nodes: nodes(hosts, 6379)? },
            _ => return Err("`redis`, `redis+sentinel` or `redis+cluster`; with TLS `rediss`, and so on"),
        };
        match path.next() {
            None | Some("") => Ok(Self { tls, user, password, servers }),
            Some(_) if kind == "cluster" => Err("a cluster has one database: nothing follows the hosts"),
            Some(_) => Err("nothing follows the number of the database"),
        }
    }

    /// The URL without the password.
    fn label(&self) -> String {
        let tls = if self.tls { "s" } else { "" };
        let (kind, nodes, path) = match &self.servers {
            RedisServers::One { node, database } => ("", std::slice::from_ref(node), format!("/{database}")),
            RedisServers::Sentinel { nodes, master, database } => {
                ("+sentinel", nodes.as_slice(), format!("/{master}/{database}"))
            }
            RedisServers::Cluster { nodes } => ("+cluster", nodes.as_slice(), String::new()),
        };
        let mut label = format!("redis{tls}{kind}://");
        for (index, node) in nodes.iter().enumerate() {
            // A `String` takes whatever is written.
            let _ = write!(label, "{}{node}", if index > 0 { "," } else { "" });
        }
        label + path.strip_suffix("/0").unwrap_or(&path)
    }
}

/// A user or password with its escapes undone; `None` where it is empty.
fn decoded(text: &str) -> Result<Option<Arc<str>>, &'static str> {
    let decoded = percent_decode_str(text).decode_utf8().map_err(|_| "user and password are UTF-8")?;
    Ok((!decoded.is_empty()).then(|| Arc::from(decoded)))
}

fn database(text: Option<&str>) -> Result<u16, &'static str> {
    match text {
        None | Some("") => Ok(0),
        Some(text) => text.parse().map_err(|_| "a database is a number from 0 to 65535: `redis://host:port/0`"),
    }
}

fn nodes(text: &str, port: u16) -> Result<Vec<RedisNode>, &'static str> {
    const HINT: &str = "a host is written `name`, `name:port`, `192.0.2.1:port` or `[2001:db8::1]:port`";
    let node = |text: &str| {
        let (host, port) = match text.strip_prefix('[').and_then(|text| text.split_once(']')) {
            Some((ip, "")) => (ip, port),
            Some((ip, rest)) => (ip, rest.strip_prefix(':').and_then(|port| port.parse().ok()).ok_or(HINT)?),
            None => match text.split_once(':') {
                Some((host, port)) => (host, port.parse().map_err(|_| HINT)?),
                None => (text, port),
            },
        };
        let good = if text.starts_with('[') { host.parse::<std::net::Ipv6Addr>().is_ok() } else { is_host(host) };
        if good && port > 0 { Ok(RedisNode { host: Arc::from(host), port }) } else { Err(HINT) }
    };
    let nodes: Vec<RedisNode> = text.split(',').take(NODES_MAX + 1).map(node).collect::<Result<_, _>>()?;
    if nodes.len() > NODES_MAX { Err("at most 64 hosts; the others are found by themselves") } else { Ok(nodes) }
}

/// A password that is written out in the file is shown nowhere either.
pub(crate) fn hide_password(root: &mut Node) {
    let Value::Map(entries) = &mut root.value else { return };
    let section = entries.iter_mut().find(|entry| entry.key() == "redis").map(|entry| &mut entry.value.value);
    let Some(Value::Map(entries)) = section else { return };
    let url = entries.iter_mut().find(|entry| entry.key() == "url").map(|entry| &mut entry.value.value);
    let Some(Value::Scalar(scalar)) = url else { return };
    match &mut scalar.origin {
        Some(origin) => {
            origin.written = without_password(&origin.written).into_owned();
            origin.redacted = without_password(&origin.redacted).into_owned();
        }
        None => {
            if let Cow::Owned(shown) = without_password(&scalar.text) {
                let origin = Origin { written: shown.clone(), redacted: shown, inserted: Vec::new() };
                scalar.origin = Some(Box::new(origin));
            }
        }
    }
}

/// Whatever stands before the last `@`, except the scheme and the user: also where the URL is not a good one.
fn without_password(text: &str) -> Cow<'_, str> {
    let Some((before, host)) = text.rsplit_once('@') else { return Cow::Borrowed(text) };
    let (scheme, login) = match before.split_once("://") {
        Some((scheme, login)) => (format!("{scheme}://"), login),
        None => (String::new(), before),
    };
    match login.split_once(':') {
        // A variable has a colon of its own.
        Some((user, password)) if !user.contains('$') && password != REDACTED && !is_variable(password) => {
            Cow::Owned(format!("{scheme}{user}:{REDACTED}@{host}"))
        }
        _ => Cow::Borrowed(text),
    }
}

/// Nothing but a `${…}`: what is written is no secret.
fn is_variable(text: &str) -> bool {
    text.strip_prefix("${").and_then(|text| text.strip_suffix('}')).is_some_and(|name| !name.contains(['$', '{', '}']))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_with_and_without_parts() {
        for (text, label, user, password) in [
            ("redis://127.0.0.1:6380", "redis://127.0.0.1:6380", None, None),
            ("redis://cache", "redis://cache:6379", None, None),
            ("rediss://:p%40ss@[::1]/3", "rediss://[::1]:6379/3", None, Some("p@ss")),
            ("redis://me:p:a/@cache/0", "", None, None),
            ("redis://me:pass@cache:1/", "redis://cache:1", Some("me"), Some("pass")),
            ("redis+sentinel://:p@a,b:2/main", "redis+sentinel://a:26379,b:2/main", None, Some("p")),
            ("rediss+sentinel://a/main/7", "rediss+sentinel://a:26379/main/7", None, None),
            ("redis+cluster://a:1,[::2]:2,c", "redis+cluster://a:1,[::2]:2,c:6379", None, None),
        ] {
            let Ok(url) = Url::parse(text) else {
                assert_eq!(label, "", "{text}");
                continue;
            };
            assert_eq!((url.label().as_str(), url.user.as_deref(), url.password.as_deref()), (label, user, password));
        }
    }

    #[test]
    fn what_is_wrong_is_said_without_repeating_it() {
        for (text, hint) in [
            ("127.0.0.1:6379", "such as `redis://127.0.0.1:6379`"),
            ("http://x", "it begins with `redis://` or `rediss://` (TLS)"),
            ("redis+ring://x", "`redis`, `redis+sentinel` or `redis+cluster`; with TLS `rediss`, and so on"),
            ("redis://", "a host is written `name`, `name:port`, `192.0.2.1:port` or `[2001:db8::1]:port`"),
            ("redis://a:0", "a host is written `name`, `name:port`, `192.0.2.1:port` or `[2001:db8::1]:port`"),
            ("redis://a,b", "one host; several need `redis+sentinel://` or `redis+cluster://`"),
            ("redis://me@a", "a user needs a password: `user:password@`; without a user `:password@`"),
            ("redis://a/x", "a database is a number from 0 to 65535: `redis://host:port/0`"),
            ("redis://a/1/2", "nothing follows the number of the database"),
            ("redis+cluster://a/1", "a cluster has one database: nothing follows the hosts"),
            ("redis+sentinel://a", "the name of the master is missing: `redis+sentinel://host:port/MASTER`"),
            ("redis://a?db=1", "without `?` and `#`; in a password they are written `%3F` and `%23`"),
        ] {
            assert_eq!(Url::parse(text).err(), Some(hint), "{text}");
        }
    }

    #[test]
    fn passwords_are_taken_out_of_whatever_is_shown() {
        for (text, shown) in [
            ("redis://me:secret@a", "redis://me:[redacted]@a"),
            ("redis://:sec@ret@a", "redis://:[redacted]@a"),
            ("me:secret@a", "me:[redacted]@a"),
            ("redis://me:${env:P}@a", "redis://me:${env:P}@a"),
            ("redis://me:x${env:P}@a", "redis://me:[redacted]@a"),
            ("redis://${env:LOGIN}@a", "redis://${env:LOGIN}@a"),
            ("redis://a:1/0", "redis://a:1/0"),
        ] {
            assert_eq!(without_password(text), shown);
        }
    }
}
