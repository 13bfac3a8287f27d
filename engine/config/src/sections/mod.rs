//! The shapes of the file, section by section, each with its way into the snapshot.

mod action;
mod endpoint;
mod headers;
mod listener;
mod matching;
mod process;
mod redis;
mod route;
mod service;

pub(crate) use listener::Listener;
pub(crate) use process::{AccessLog, AdminSection, DrainSection, LimitsSection, RuntimeSection};
pub(crate) use redis::{RedisSection, hide_password};
pub(crate) use route::{Compiler, Route};
pub use service::Lookup;
pub(crate) use service::{Resolver, Service, system_lookup};

use crate::decode::{Items, Lenient, Spanned};
use crate::scalar::OrOff;
use crate::shape::shape;

shape! {
    /// The configuration of a Ringway gateway.
    pub(crate) struct File {
        /// Threads and rings. Fixed at the start: a reload that changes it is refused.
        runtime: Lenient<RuntimeSection> = "{}",
        /// The listener for operators: `/health`, `/ready`, `/metrics`, `/config`. Keep it away from clients.
        admin: Lenient<OrOff<AdminSection>> = "{}",
        /// Where the access log goes, one JSON line per request.
        access_log: Lenient<AccessLog> = "stdout",
        /// How the process ends after SIGTERM or SIGINT.
        drain: Lenient<DrainSection> = "{}",
        /// Limits of the process as a whole.
        limits: Lenient<LimitsSection> = "{}",
        /// The Redis that the gateways of a fleet share. `off`: each gateway stands alone.
        redis: Lenient<OrOff<RedisSection>> = "off",
        /// Where clients connect. At least one.
        listeners: Items<Spanned<Listener>>,
        /// Where requests are forwarded to.
        services: Items<Spanned<Service>> = "[]",
        /// Which requests go where.
        routes: Items<Spanned<Route>> = "[]",
    }
}
