//! Services: where their endpoints are, and how they are spoken to.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ringway_core::auth::HttpUrl;
use ringway_core::bulkhead::BulkheadSettings;
use ringway_core::grpc::Statuses;
use ringway_core::keepalive::KeepaliveSettings;
use ringway_core::proxy_protocol::Version;
use ringway_core::retry_budget::BudgetSettings;
use rustls::pki_types::ServerName;

use super::RedisServers;
use crate::health::Watch;
use crate::resilience::{CircuitBreaker, Retries};
use crate::sticky::Sticky;

#[derive(Debug)]
pub struct Service {
    pub name: Arc<str>,
    /// Those that are written; [`Published::targets`](crate::hub::Published::targets) are those that requests go to.
    pub endpoints: Vec<Endpoint>,
    /// Where they are found otherwise.
    pub discovery: Option<Discovery>,
    pub balance: Balance,
    /// `None`: a request goes where the balance has it.
    pub sticky: Option<Sticky>,
    pub watch: Watch,
    /// `None`: zones do not matter.
    pub zones: Option<Zones>,
    pub pool: Pool,
    pub timeouts: ServiceTimeouts,
    /// Send a request again, once, on a fresh connection when a pooled one turns out to have been closed before
    /// a byte of an answer came, if that is safe (RFC 9110 section 9.2.2, RFC 9112 section 9.3.1).
    pub retry_stale: bool,
    /// `None`: it is asked whatever becomes of it.
    pub circuit_breaker: Option<CircuitBreaker>,
    /// `None`: it has any number of requests in flight.
    pub bulkhead: Option<BulkheadSettings>,
    /// `None`: a request that failed is not tried again.
    pub retries: Option<Retries>,
    pub retry_budget: BudgetSettings,
    /// Calls of gRPC that end with one of these have failed.
    pub grpc_failures: Statuses,
    /// `None`: in the clear.
    pub tls: Option<ServiceTls>,
    /// The header that tells it how many milliseconds a request has left, in lower case; `None`: it is not told.
    pub deadline_header: Option<Arc<str>>,
    /// Each connection begins with a PROXY header, and is not kept.
    pub proxy_protocol: Option<Version>,
}

/// Requests stay in the gateway's own zone as long as that can carry them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Zones {
    pub own: Arc<str>,
    /// Percent of what its endpoints have to carry that they can, when all are well.
    pub capacity: u32,
}

/// TLS to a service, or to where its endpoints are found, as far as it is the same for all who are spoken to.
#[derive(Debug, Clone)]
pub struct ServiceTls {
    /// What it was read from, and is watched for changes.
    pub files: Vec<PathBuf>,
    /// The gateway's own.
    pub certificate: Option<Arc<crate::tls::Pair>>,
    /// Whether the service's certificate is looked at.
    pub is_verified: bool,
}

/// What was written; what was in the files decides about [`EndpointTls::client`].
impl PartialEq for ServiceTls {
    fn eq(&self, other: &Self) -> bool {
        self.files == other.files && self.is_verified == other.is_verified
    }
}

impl Eq for ServiceTls {}

impl Service {
    /// All TLS that is spoken for it, with what each is for.
    pub fn all_tls(&self) -> impl Iterator<Item = (&'static str, &ServiceTls)> {
        let of_etcd = match self.discovery.as_ref().map(|discovery| &discovery.source) {
            Some(DiscoverySource::Etcd(etcd)) => etcd.tls.as_ref(),
            _ => None,
        };
        self.tls.iter().map(|tls| ("", tls)).chain(of_etcd.map(|tls| (", its etcd", tls)))
    }
}

/// Where a service's endpoints are found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Discovery {
    pub source: DiscoverySource,
    /// Between two looks.
    pub interval: Duration,
    /// How long there must have been none before that is believed.
    pub grace: Duration,
    /// How they are secured; `None`: in the clear.
    pub tls: Option<EndpointTls>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DiscoverySource {
    Dns {
        name: Arc<str>,
        records: Records,
        /// Of addresses.
        port: u16,
        /// Empty: those of the system.
        servers: Vec<SocketAddr>,
    },
    File(PathBuf),
    /// Instances register with the admin listener of any gateway.
    Registry {
        /// Of the service, there.
        name: Arc<str>,
        place: RegistryPlace,
    },
    Etcd(Etcd),
}

impl Discovery {
    /// Whether what was found by `other` is found by this one, too, however and however often it looks.
    pub(crate) fn is_place_of(&self, other: &Self) -> bool {
        let is_same = match (&self.source, &other.source) {
            (DiscoverySource::Etcd(one), DiscoverySource::Etcd(other)) => one.is_place_of(other),
            (one, other) => one == other,
        };
        is_same && self.tls == other.tls
    }
}

/// Where a service's instances are registered in Redis.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RegistryPlace {
    /// The Redis of the snapshot.
    pub servers: RedisServers,
    /// The whole key, prefix included.
    pub key: Arc<str>,
}

/// Keys in etcd whose values are instances.
#[derive(Clone, PartialEq, Eq)]
pub struct Etcd {
    /// Of one cluster, at least one: each is asked in turn while others do not answer.
    pub servers: Vec<EtcdServer>,
    /// What the keys begin with.
    pub prefix: Arc<str>,
    pub login: Option<EtcdLogin>,
    /// Of all servers that have it.
    pub tls: Option<ServiceTls>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EtcdServer {
    pub url: HttpUrl,
    /// `None`: in the clear.
    pub tls: Option<EndpointTls>,
}

impl Etcd {
    /// Whether both are the same keys, whoever asks for them.
    fn is_place_of(&self, other: &Self) -> bool {
        let urls = |etcd: &Self| etcd.servers.iter().map(|server| server.url.clone()).collect::<Vec<_>>();
        urls(self) == urls(other) && self.prefix == other.prefix
    }
}

#[derive(Clone, PartialEq, Eq)]
pub struct EtcdLogin {
    pub user: Arc<str>,
    pub password: Arc<str>,
}

/// Without the password.
impl fmt::Debug for Etcd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { servers, prefix, login: _, tls } = self;
        let mut out = f.debug_struct("Etcd");
        out.field("servers", servers).field("prefix", prefix).field("tls", tls).finish_non_exhaustive()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Records {
    /// A and AAAA.
    Addresses,
    /// RFC 2782.
    Srv,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// As written: `127.0.0.1:8080`, `unix:/run/app.sock`. Names it in metrics and logs.
    pub label: Arc<str>,
    pub address: EndpointAddress,
    /// 0: it gets no requests.
    pub weight: u32,
    /// 0 comes first; those of a later one get requests only when too few of the others are usable.
    pub priority: u8,
    /// Where it is.
    pub zone: Option<Arc<str>>,
    pub metadata: Metadata,
    /// `None`: in the clear.
    pub tls: Option<EndpointTls>,
}

/// Whatever else is known of an endpoint: names with their values, sorted.
pub type Metadata = Arc<[(Arc<str>, Arc<str>)]>;

impl Endpoint {
    /// Whether connections to both are the same, whatever else is known of them.
    pub fn is_place_of(&self, other: &Self) -> bool {
        self.address == other.address && self.tls == other.tls
    }
}

/// How an endpoint is secured.
#[derive(Clone)]
pub struct EndpointTls {
    /// The same one for the same settings, reloads included.
    pub client: Arc<rustls::ClientConfig>,
    /// What its certificate must be for.
    pub name: ServerName<'static>,
}

impl PartialEq for EndpointTls {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.client, &other.client) && self.name == other.name
    }
}

impl Eq for EndpointTls {}

impl fmt::Debug for EndpointTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EndpointTls").field("name", &self.name).finish_non_exhaustive()
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum EndpointAddress {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Balance {
    /// Weighted, smooth.
    RoundRobin,
    /// Of two chosen at random by weight, the one with fewer requests in flight per weight.
    LeastLoaded,
    /// Of two chosen at random by weight, the one that is likely to answer sooner.
    PeakEwma,
    /// By weight.
    Random,
    /// The same endpoint for the same requests.
    ConsistentHash(HashOn),
}

/// Which requests are the same. Those that lack it go anywhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HashOn {
    ClientIp,
    /// As authentication knows them.
    User,
    /// By name, in lower case.
    Header(Arc<str>),
    Cookie(Arc<str>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pool {
    /// Idle connections kept per endpoint and worker.
    pub idle_per_endpoint: usize,
    /// Open connections per endpoint, all workers together; 503 above. `None`: no limit.
    pub connections_per_endpoint: Option<usize>,
    /// An idle connection is closed after this time.
    pub idle: Duration,
    /// A connection is not used again after this age. `None`: no limit.
    pub max_age: Option<Duration>,
    /// The service speaks HTTP/2; `None`: HTTP/1.1.
    pub http2: Option<ServiceHttp2>,
}

/// How a service is spoken to in HTTP/2.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServiceHttp2 {
    /// Connections per endpoint and worker; 503 when they all have as many streams as they may.
    pub connections: usize,
    /// Requests at a time on one connection, fewer where the service says so.
    pub max_concurrent_streams: usize,
    /// `None`: nobody asks whether the service is still there.
    pub keepalive: Option<KeepaliveSettings>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServiceTimeouts {
    pub connect: Duration,
    /// From the request sent to the answer's head; 504 above.
    pub answer: Duration,
    /// Between two reads of the answer's body, and between two writes of the request's.
    pub idle: Duration,
    /// Bytes of an answer's head; 502 above.
    pub head_bytes: usize,
}
