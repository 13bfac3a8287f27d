//! The runtime shape of a configuration: checked, resolved, immutable. The data plane reads nothing else.

mod mirror;
mod service;
mod split;
mod subset;

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ipnet::IpNet;
use ringway_core::access::Access;
pub use ringway_core::auth::Authenticator;
use ringway_core::auth::{ClaimHeader, HttpUrl, Live, Looking, Source};
use ringway_core::filter::Policy;
use ringway_core::limit::{self, ConcurrencySpec, Rule, Scope};
use ringway_core::overload::{Criticality, OverloadSettings};
use ringway_core::path::PathPolicy;
use ringway_core::priorities::Priorities;
use ringway_core::proxy_protocol::Versions;
use ringway_core::router::Router;
use ringway_core::template::{HeaderOps, Template};

pub use self::mirror::Mirror;
pub(crate) use self::mirror::mirror_stats;
pub use self::service::{
    Balance, Discovery, DiscoverySource, Endpoint, EndpointAddress, EndpointTls, Etcd, EtcdLogin, EtcdServer, HashOn,
    Metadata, Pool, Records, RegistryPlace, Service, ServiceHttp2, ServiceTimeouts, ServiceTls, Zones,
};
pub(crate) use self::split::split_stats;
pub use self::split::{Split, Target};
pub use self::subset::{Asked, ByHeader, SUBSET_VALUES_MAX, Subset};
use crate::acme::Acme;
use crate::resilience::Retries;

/// One whole configuration. References between parts are indices that the compiler of the file has checked.
#[derive(Debug)]
pub struct Snapshot {
    pub runtime: Runtime,
    pub listeners: Vec<Arc<Listener>>,
    pub routes: Vec<Arc<Route>>,
    pub services: Vec<Arc<Service>>,
    /// Which endpoints of their service routes go to, where not to all.
    pub subsets: Vec<Arc<Subset>>,
    pub authenticators: Vec<Arc<Authenticator>>,
    /// What routes limit by.
    pub rate_limits: Vec<Arc<Rule>>,
    /// What those draw from: one for each limit, and one for each of its tiers.
    pub limiters: Vec<limit::Policy>,
    /// What routes limit the requests under way by.
    pub concurrency_limits: Vec<Arc<Scope>>,
    /// What those count on: one for each limit, and one for each of its tiers.
    pub concurrency: Vec<ConcurrencySpec>,
    /// What each worker remembers of verified tokens.
    pub token_cache: TokenCache,
    /// Where keys come from and what is revoked, by authenticator.
    pub keys: Vec<KeySources>,
    pub admin: Option<Admin>,
    pub access_log: AccessLog,
    pub audit_log: AuditLog,
    pub drain: Drain,
    pub limits: GlobalLimits,
    /// `None`: nothing is refused for want of time.
    pub overload: Option<Overload>,
    /// What the gateways of a fleet share; `None`: this one stands alone.
    pub redis: Option<Redis>,
    /// How certificates are ordered, where they are.
    pub acme: Option<Acme>,
    /// The file as read, secrets redacted, as YAML: what `/config` shows.
    pub redacted: String,
}

/// What is fixed at the start of the process; a reload that changes it is refused with a hint to restart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Runtime {
    /// `None`: one for each core that the process may run on.
    pub workers: Option<usize>,
    /// Pin each worker to a core.
    pub pin: bool,
    /// Cores to pin to, in order; empty: those that the process may run on.
    pub cores: Vec<usize>,
    pub driver: DriverChoice,
    /// Entries of each worker's submission queue, a power of two.
    pub ring_entries: u32,
    /// How long to look for the next event before sleeping, where events come that soon; `None`: sleep at once.
    pub busy_poll: Option<Duration>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DriverChoice {
    /// io_uring where the kernel allows it, else epoll.
    Auto,
    IoUring,
    Epoll,
}

/// When a worker has more to do than it can.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Overload {
    pub settings: OverloadSettings,
    /// Says how critical a request is, in lower case.
    pub header: Option<Arc<str>>,
    /// What a verified claim says of that.
    pub claim: Option<Priorities>,
}

#[derive(Debug, Clone)]
pub struct GlobalLimits {
    /// Open client connections of the process; more are closed at once (counted).
    pub connections: usize,
    /// Open client connections of one client address; `None`: no limit.
    pub connections_per_ip: Option<usize>,
}

#[derive(Debug)]
pub struct Listener {
    pub name: Arc<str>,
    pub address: SocketAddr,
    /// Length of the kernel's accept queue.
    pub backlog: u32,
    /// Matches to indices into [`Snapshot::routes`].
    pub router: Router,
    pub path: PathPolicy,
    pub limits: ListenerLimits,
    pub http2: Http2,
    pub timeouts: ListenerTimeouts,
    /// Peers whose `X-Request-ID`, `X-Forwarded-*`, `X-Real-IP` and `Forwarded` headers are believed; those of others are
    /// dropped.
    pub trusted_proxies: Vec<IpNet>,
    pub forwarded: ForwardedHeaders,
    /// The pseudonym in `Via` (RFC 9110 section 7.6.3).
    pub via: Arc<str>,
    pub trace: TraceStart,
    /// Add `Proxy-Status` (RFC 9209) to answers that the gateway makes or maps.
    pub proxy_status: bool,
    /// Add `Server-Timing` with the service's share.
    pub server_timing: bool,
    /// `None`: in the clear.
    pub tls: Option<Tls>,
    pub redirect_to_https: Option<RedirectToHttps>,
    /// Where proxies stand before it that tell the client's address.
    pub proxy_protocol: Option<ProxyProtocol>,
}

impl Listener {
    /// The scheme of its requests.
    pub fn scheme(&self) -> &'static [u8] {
        if self.tls.is_some() { b"https" } else { b"http" }
    }
}

/// Every request is answered with a redirect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RedirectToHttps {
    pub port: u16,
    pub status: u16,
    /// Prefixes of normalized paths that are routed as ever.
    pub except: Box<[Box<str>]>,
}

/// Whom the PROXY protocol is read from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProxyProtocol {
    /// They must send a header.
    pub trusted: Vec<IpNet>,
    /// Others are refused, else served as themselves.
    pub required: bool,
    pub versions: Versions,
    /// From the connection to the end of the header.
    pub timeout: Duration,
}

/// How a listener speaks TLS.
#[derive(Clone)]
pub struct Tls {
    pub server: Arc<rustls::ServerConfig>,
    pub certificates: Arc<crate::tls::Certificates>,
    /// What it was read from, and is watched for changes.
    pub files: Vec<PathBuf>,
    /// From the connection to the end of the handshake; closed above.
    pub handshake_timeout: Duration,
    /// Handshakes at a time, of each worker; more connections are closed at once.
    pub handshakes: usize,
    /// The same of one client address.
    pub handshakes_per_ip: usize,
    /// Services are told of a client's certificate in `Client-Cert` (RFC 9440).
    pub client_cert_header: bool,
}

/// What was written; the certificates by their files.
impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls")
            .field("files", &self.files)
            .field("handshake_timeout", &self.handshake_timeout)
            .field("handshakes", &self.handshakes)
            .field("handshakes_per_ip", &self.handshakes_per_ip)
            .finish_non_exhaustive()
    }
}

/// What clients of HTTP/2 may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Http2 {
    /// A connection that begins with HTTP/2's preface is served as one; else as HTTP/1.
    pub enabled: bool,
    /// Requests at a time on one connection.
    pub max_concurrent_streams: u32,
    /// Streams of a connection that the client may open and reset at once, and that it may make the gateway reset in all.
    pub max_reset_streams: usize,
}

/// Which forwarding headers a service gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ForwardedHeaders {
    /// `X-Forwarded-For`, `-Proto`, `-Host`.
    pub x_forwarded: bool,
    /// `Forwarded` (RFC 7239).
    pub forwarded: bool,
}

/// What is sent to the service when the client sent no (valid) trace context. What it sent is passed on in any case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TraceStart {
    Off,
    /// `traceparent` (W3C Trace Context).
    W3c,
    /// `b3` (single header).
    B3,
    /// `X-B3-TraceId` and `X-B3-SpanId`; whether to sample is left to the service.
    B3Multi,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ListenerLimits {
    /// Request line and headers; 431 above (414 when the target alone is longer).
    pub head_bytes: usize,
    /// Header fields; 431 above.
    pub headers: usize,
    /// Requests on one connection before it is closed; `None`: no limit.
    pub requests_per_connection: Option<u64>,
    /// Requests that may follow each other on a connection without waiting for the answers; when they have been
    /// answered in one go, other connections get their turn before the next.
    pub pipelined: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ListenerTimeouts {
    /// From a request's first byte to the end of its head; 408 above.
    pub head: Duration,
    /// A connection without a request.
    pub idle: Duration,
    /// Between two reads of a request body; 408 above.
    pub body: Duration,
    /// Bytes per second that a request body must keep up once it has had `body` of time; 0: no minimum.
    pub body_rate: u64,
    /// Between two writes of an answer that the client does not take.
    pub write: Duration,
    /// How old a connection may become.
    pub connection_age: Option<Duration>,
}

#[derive(Debug)]
pub struct Route {
    pub name: Arc<str>,
    pub action: Action,
    pub request_headers: HeaderOps,
    pub response_headers: HeaderOps,
    /// What the gate asks besides authentication and rate limits, and what the answer gets of it.
    pub access: Access,
    /// Who may use it.
    pub policy: Policy,
    /// Request body; 413 above, before anything of it is forwarded where `Content-Length` tells, else as soon as it
    /// is known. `None`: no limit.
    pub body_bytes: Option<u64>,
    /// Written to the access log.
    pub log: bool,
    /// Who is refused first.
    pub criticality: Criticality,
}

/// What an authenticator judges by.
#[derive(Debug, Clone)]
pub struct KeySources {
    pub keys: KeySource,
    /// Token IDs that do not hold any more.
    pub revoked: RevokedSource,
}

impl KeySources {
    pub(crate) const NONE: Self = Self { keys: KeySource::Nowhere, revoked: RevokedSource::Nowhere };

    /// What an authenticator of this name knows before anything came from elsewhere: requests wait for what is about to be
    /// fetched, and do not pass without it.
    pub(crate) fn new_live(&self, name: &str) -> Live {
        let live = Live::new(name);
        if let KeySource::Jwks(_) | KeySource::Oidc(_) = self.keys {
            live.set_looking(Looking::Now);
        }
        if let RevokedSource::Redis(_) = self.revoked {
            live.await_revoked();
        }
        live.set_awaited(self.list().is_some());
        live
    }

    /// Gives an authenticator what stands in the configuration and its files. Both were checked when they were read.
    pub(crate) fn load(&self, live: &Live) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        if let KeySource::Text(source, text) | KeySource::File(source, _, text) = &self.keys {
            let _ = live.load(source, text, now);
        }
        let revoked: &[u8] = match &self.revoked {
            RevokedSource::Nowhere => b"",
            RevokedSource::File(_, text) => text,
            RevokedSource::Redis(_) => return,
        };
        let _ = live.load(&Source::Revoked, revoked, now);
    }

    /// The list in Redis. There is one at most: keys that are kept there are API keys, which are revoked by taking them out.
    pub fn list(&self) -> Option<&RedisList> {
        match (&self.keys, &self.revoked) {
            (KeySource::Redis(_, list), _) | (_, RevokedSource::Redis(list)) => Some(list),
            _ => None,
        }
    }

    /// Whether what was learned from `old` still counts: what stands in the configuration or in a file is read with it, but
    /// what came from somewhere else must not be trusted for another moment.
    pub(crate) fn goes_on_from(&self, old: &Self) -> bool {
        let keys = match (&self.keys, &old.keys) {
            (KeySource::Text(..) | KeySource::File(..), KeySource::Text(..) | KeySource::File(..))
            | (KeySource::Nowhere, KeySource::Nowhere) => true,
            (KeySource::Jwks(new), KeySource::Jwks(old)) | (KeySource::Oidc(new), KeySource::Oidc(old)) => new == old,
            // The fields that tell the service are made when the keys are read.
            (KeySource::Redis(headers, new), KeySource::Redis(old_headers, old)) => {
                headers == old_headers && new.is_place_of(old)
            }
            _ => false,
        };
        let revoked = match (&self.revoked, &old.revoked) {
            (RevokedSource::Redis(new), RevokedSource::Redis(old)) => new.is_place_of(old),
            (RevokedSource::Redis(_), _) | (_, RevokedSource::Redis(_)) => false,
            _ => true,
        };
        keys && revoked
    }
}

/// Where keys come from.
#[derive(Debug, Clone)]
pub enum KeySource {
    /// The configuration itself.
    Text(Source, Arc<[u8]>),
    /// A file as it was when the configuration was read, and is watched for changes.
    File(Source, PathBuf, Arc<[u8]>),
    /// A JSON Web Key Set at an `http:` or `https:` URL.
    Jwks(HttpUrl),
    /// OpenID Connect discovery at this issuer.
    Oidc(HttpUrl),
    /// A hash in Redis: API keys, and the header fields made of each.
    Redis(Arc<[ClaimHeader]>, RedisList),
    /// None are needed: a service judges, or the TLS layer has.
    Nowhere,
}

/// Where the IDs of revoked tokens come from.
#[derive(Debug, Clone)]
pub enum RevokedSource {
    /// Nothing is revoked.
    Nowhere,
    /// A file and its text, one ID a line, watched for changes.
    File(PathBuf, Arc<[u8]>),
    /// A set in Redis.
    Redis(RedisList),
}

/// A list that others keep in Redis.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RedisList {
    /// The Redis of the snapshot.
    pub servers: RedisServers,
    /// The whole key, prefix included.
    pub key: Arc<str>,
    /// Between two looks at it.
    pub every: Duration,
}

impl RedisList {
    /// Whether both are the same list, however often it is looked at.
    fn is_place_of(&self, other: &Self) -> bool {
        self.servers == other.servers && self.key == other.key
    }
}

/// The table of verified tokens that each worker has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TokenCache {
    pub entries: usize,
    pub bytes: usize,
    pub ttl: Duration,
}

#[derive(Debug)]
pub enum Action {
    Forward(Forward),
    Redirect(Redirect),
    Respond(Respond),
}

#[derive(Debug)]
pub struct Forward {
    pub service: Target,
    /// Index into [`Snapshot::subsets`]; `None`: all endpoints.
    pub subset: Option<u32>,
    /// `None`: nothing is copied.
    pub mirror: Option<Box<Mirror>>,
    pub rewrite: Rewrite,
    pub host: HostRewrite,
    pub timeouts: RouteTimeouts,
    pub upgrades: Upgrades,
    pub retries: RouteRetries,
}

/// Which failed tries of a route's requests are followed by another one.
#[derive(Debug)]
pub enum RouteRetries {
    /// As the service has it.
    OfService,
    /// None.
    Off,
    Own(Box<Retries>),
}

/// Which protocols a connection may change to, if the service agrees (RFC 9110 section 7.8).
#[derive(Debug)]
pub struct Upgrades {
    /// Names, compared in any case. Empty: none.
    pub protocols: Box<[Box<str>]>,
    /// A tunnel through which nothing has gone for this time is closed.
    pub idle: Duration,
}

impl Upgrades {
    pub fn allows(&self, protocol: &[u8]) -> bool {
        self.protocols.iter().any(|allowed| allowed.as_bytes().eq_ignore_ascii_case(protocol))
    }
}

/// How the path is changed before it goes to the service; the query stays.
#[derive(Debug)]
pub enum Rewrite {
    Keep,
    /// Removes this many bytes from the front of the path; a `/` is put back where none is left.
    Strip(usize),
    /// The whole path from a template.
    Path(Template),
}

#[derive(Debug)]
pub enum HostRewrite {
    /// The client's host (the default).
    Keep,
    /// The endpoint's address.
    Endpoint,
    Fixed(Arc<str>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RouteTimeouts {
    /// From the request's head to the end of the answer, over all tries; 504 if nothing was answered yet, else the
    /// connection is closed. `None`: no limit.
    pub request: Option<Duration>,
    /// One try: from the choice of an endpoint to the answer's head. `None`: no limit.
    pub per_try: Option<Duration>,
}

#[derive(Debug)]
pub struct Redirect {
    pub status: u16,
    pub location: Template,
}

#[derive(Debug)]
pub struct Respond {
    pub status: u16,
    /// Empty where there is no body.
    pub content_type: Arc<str>,
    pub body: Arc<[u8]>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Admin {
    pub address: SocketAddr,
    /// Whoever reaches it may drain and weigh endpoints.
    pub may_change: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AccessLog {
    Off,
    Stdout,
    File(PathBuf),
}

/// Where refusals by authentication, authorization and rate limits are recorded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AuditLog {
    Off,
    Stdout,
    Stderr,
    File(PathBuf),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Drain {
    /// After the signal: how long new connections are still accepted while `/ready` already fails.
    pub notice: Duration,
    /// How long requests in flight may take after that.
    pub timeout: Duration,
}

/// A Redis and how to reach it.
#[derive(Clone, PartialEq, Eq)]
pub struct Redis {
    /// The URL without user and password: for logs and `/health`.
    pub label: Arc<str>,
    pub servers: RedisServers,
    pub user: Option<Arc<str>>,
    pub password: Option<Arc<str>>,
    /// `None`: in the clear.
    pub tls: Option<RedisTls>,
    /// In front of every key, without the colon that follows it.
    pub prefix: Arc<str>,
    pub connect_timeout: Duration,
    /// A connection without an answer for this time is given up.
    pub response_timeout: Duration,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RedisServers {
    One {
        node: RedisNode,
        database: u16,
    },
    /// The sentinels say which server is the master of this name.
    Sentinel {
        nodes: Vec<RedisNode>,
        master: Arc<str>,
        database: u16,
    },
    /// Some of the nodes; they tell the others.
    Cluster {
        nodes: Vec<RedisNode>,
    },
}

/// A host name or IP address, and a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RedisNode {
    pub host: Arc<str>,
    pub port: u16,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RedisTls {
    /// Authorities to trust (PEM); `None`: those of the system.
    pub ca: Option<Arc<[u8]>>,
}

impl fmt::Display for RedisNode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host.contains(':') {
            true => write!(f, "[{}]:{}", self.host, self.port),
            false => write!(f, "{}:{}", self.host, self.port),
        }
    }
}

/// Without user and password.
impl fmt::Debug for Redis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Redis")
            .field("label", &self.label)
            .field("prefix", &self.prefix)
            .field("connect_timeout", &self.connect_timeout)
            .field("response_timeout", &self.response_timeout)
            .finish_non_exhaustive()
    }
}
