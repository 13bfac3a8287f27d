//! Which requests belong together, where a service is balanced by that, and with whom.

use std::net::IpAddr;

use ringway_config::snapshot::{Balance, HashOn};
use ringway_core::auth::credentials::{cookies, fields};
use ringway_core::http::RequestHead;
use ringway_core::maglev::hash;
use ringway_core::sticky::Session;

use crate::request::Exchange;
use crate::sticky::session_of;
use crate::subset::Part;
use crate::view::ServiceView;

/// Where a request wants to go.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Wish {
    /// What the balance goes by; 0 where it goes by nothing, or the request does not have it.
    pub(crate) key: u32,
    pub(crate) session: Session,
    /// Which of the endpoints; `None`: any of the service.
    pub(crate) subset: Option<Part>,
}

impl Wish {
    #[inline]
    pub(crate) fn of(
        view: &ServiceView,
        exchange: &Exchange,
        request: &RequestHead<'_, '_>,
        subset: Option<u32>,
    ) -> Self {
        let key = affinity(&view.service.balance, exchange, request);
        let subset = subset.map(|subset| view.part_of(subset, request));
        Self { key, session: session_of(view, request), subset }
    }
}

#[inline]
fn affinity(balance: &Balance, exchange: &Exchange, request: &RequestHead<'_, '_>) -> u32 {
    let Balance::ConsistentHash(on) = balance else { return 0 };
    key_of(on, exchange, request).map_or(0, |key| ((key >> 32) as u32).max(1))
}

/// What tells the request from those of others, where it has that.
pub(crate) fn key_of(on: &HashOn, exchange: &Exchange, request: &RequestHead<'_, '_>) -> Option<u64> {
    match on {
        HashOn::ClientIp => Some(match exchange.client_ip {
            IpAddr::V4(ip) => hash(&ip.octets()),
            IpAddr::V6(ip) => hash(&ip.octets()),
        }),
        HashOn::User => Some(hash(exchange.gate.identity.as_ref()?.user.as_deref()?.as_bytes())),
        HashOn::Header(name) => fields(request.headers, name).next().map(hash),
        HashOn::Cookie(name) => {
            fields(request.headers, "cookie").find_map(|field| cookies(field, name.as_bytes()).next()).map(hash)
        }
    }
}
