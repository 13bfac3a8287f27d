//! Endpoints from DNS.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use hickory_resolver::config::{ConnectionConfig, NameServerConfig, ResolverConfig};
use hickory_resolver::lookup::Lookup;
use hickory_resolver::net::NetError;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::proto::rr::{RData, RecordType};
use hickory_resolver::{Resolver, TokioResolver};
use ringway_config::snapshot::{Endpoint, EndpointAddress, Records};
use ringway_core::members::PRIORITY_MAX;
use tokio::time::sleep;

use super::{ENDPOINTS_MAX, Found};

/// Of one question to one server; it is asked twice.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);
/// However short records hold.
const INTERVAL_MIN: Duration = Duration::from_secs(1);

pub(super) async fn find(mut found: Found, name: &str, records: Records, port: u16, servers: &[SocketAddr]) {
    let mut resolver = resolver(servers);
    loop {
        let interval = found.of.interval;
        let asked = match &resolver {
            Ok(resolver) => match records {
                Records::Addresses => addresses(resolver, name, port).await,
                Records::Srv => services(resolver, name).await,
            },
            Err(error) => Err(error.clone()),
        };
        let next = match asked {
            Ok((found_now, until)) => {
                let tls = found.of.tls.clone();
                let endpoint = |(address, weight, priority): (SocketAddr, u32, u8)| Endpoint {
                    label: address.to_string().into(),
                    address: EndpointAddress::Tcp(address),
                    weight,
                    priority,
                    zone: None,
                    metadata: Arc::default(),
                    tls: tls.clone(),
                };
                found.learn(found_now.into_iter().take(ENDPOINTS_MAX).map(endpoint).collect());
                until.saturating_duration_since(Instant::now()).min(interval).max(INTERVAL_MIN)
            }
            Err(error) if error.is_no_records_found() => {
                found.learn(Vec::new());
                interval
            }
            Err(error) => {
                found.fail(&format!("{name}: {error}"));
                if resolver.is_err() {
                    resolver = self::resolver(servers);
                }
                INTERVAL_MIN
            }
        };
        // A tenth more or less, so that a fleet does not ask at the same time.
        sleep(next.mul_f64(0.9 + 0.2 * fastrand::f64())).await;
    }
}

fn resolver(servers: &[SocketAddr]) -> Result<TokioResolver, NetError> {
    let mut builder = if servers.is_empty() {
        TokioResolver::builder_tokio()?
    } else {
        let server = |server: &SocketAddr| {
            let connections = [ConnectionConfig::udp(), ConnectionConfig::tcp()].map(|mut connection| {
                connection.port = server.port();
                connection
            });
            NameServerConfig::new(server.ip(), true, connections.into())
        };
        let config = ResolverConfig::from_name_servers(servers.iter().map(server).collect());
        Resolver::builder_with_config(config, TokioRuntimeProvider::default())
    };
    let options = builder.options_mut();
    options.timeout = ANSWER_TIMEOUT;
    options.attempts = 2;
    // What was found is kept here.
    options.cache_size = 0;
    builder.build()
}

/// Addresses with their weights and priorities, and until when that holds.
type Answer = (Vec<(SocketAddr, u32, u8)>, Instant);

async fn addresses(resolver: &TokioResolver, name: &str, port: u16) -> Result<Answer, NetError> {
    let answer = resolver.lookup_ip(name).await?;
    let until = answer.valid_until();
    Ok((distinct(answer.iter().map(|ip| (SocketAddr::new(ip, port), 1, 0)).collect()), until))
}

/// Priorities (RFC 2782) by their order: the lowest number comes first. A target of `.` says that there is no service.
async fn services(resolver: &TokioResolver, name: &str) -> Result<Answer, NetError> {
    let answer = resolver.lookup(name, RecordType::SRV).await?;
    let mut until = answer.valid_until();
    let records: Vec<_> = answer
        .answers()
        .iter()
        .filter_map(|record| match &record.data {
            RData::SRV(record) if !record.target.is_root() => Some(record),
            _ => None,
        })
        .collect();
    let mut levels: Vec<u16> = records.iter().map(|record| record.priority).collect();
    levels.sort_unstable();
    levels.dedup();
    let mut found = Vec::new();
    for record in records {
        let target = &record.target;
        let mut ips = addresses_beside(&answer, target);
        if ips.is_empty() {
            let looked_up = resolver.lookup_ip(target.clone()).await?;
            until = until.min(looked_up.valid_until());
            ips = looked_up.iter().collect();
        }
        let level = levels.partition_point(|level| *level < record.priority).min(PRIORITY_MAX.into()) as u8;
        let weight = u32::from(record.weight.max(1));
        found.extend(ips.into_iter().map(|ip| (SocketAddr::new(ip, record.port), weight, level)));
    }
    Ok((distinct(found), until))
}

/// What the server has said of a target without being asked.
fn addresses_beside(answer: &Lookup, target: &hickory_resolver::proto::rr::Name) -> Vec<IpAddr> {
    let records = answer.additionals().iter().filter(|record| record.name == *target);
    records
        .filter_map(|record| match &record.data {
            RData::A(address) => Some(IpAddr::V4(address.0)),
            RData::AAAA(address) => Some(IpAddr::V6(address.0)),
            _ => None,
        })
        .collect()
}

/// The one of the first priority of those with the same address; the first priority comes first.
fn distinct(mut found: Vec<(SocketAddr, u32, u8)>) -> Vec<(SocketAddr, u32, u8)> {
    found.sort_by_key(|(address, _, level)| (*address, *level));
    found.dedup_by_key(|(address, ..)| *address);
    found.sort_by_key(|(_, _, level)| *level);
    found
}
