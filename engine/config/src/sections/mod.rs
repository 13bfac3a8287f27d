//! The shapes of the file, section by section, each with its way into the snapshot.

mod access;
mod acme;
mod action;
mod audit;
mod auth_service;
mod authenticator;
mod authorize;
mod balance;
mod bulkhead;
mod circuit_breaker;
mod concurrency_limit;
mod cors;
mod deprecation;
mod discovery;
mod endpoint;
mod headers;
mod health_check;
mod instance;
mod ip;
mod key_list;
mod listener;
mod matching;
mod metadata;
mod mirror;
mod outlier_ejection;
mod overload;
mod parameter;
mod process;
mod proxy_protocol;
mod rate_limit;
mod redirect_to_https;
mod redis;
mod retries;
mod route;
mod security_headers;
mod service;
mod service_tls;
mod split;
mod sticky;
mod subset;
mod tls;
mod validate;
mod zones;

pub(crate) use access::DefaultsSection;
pub(crate) use acme::{AcmeOf, AcmeSection, count_names};
pub(crate) use audit::AuditLog;
pub(crate) use authenticator::{Authenticator, TokenCacheSection};
pub(crate) use concurrency_limit::ConcurrencyLimit;
pub use discovery::read_endpoints;
pub use instance::{INSTANCE_BYTES_MAX, Instance};
pub(crate) use key_list::Redis;
pub use key_list::is_redis_key;
pub(crate) use listener::Listener;
pub(crate) use overload::OverloadSection;
pub(crate) use process::{AccessLog, AdminSection, DrainSection, LimitsSection, RuntimeSection};
pub(crate) use rate_limit::RateLimit;
pub(crate) use redis::{RedisSection, hide_password};
pub(crate) use route::{Compiler, Route};
pub use service::Lookup;
pub(crate) use service::{Resolver, Service, check_fallbacks, system_lookup};

use self::metadata::Label;
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
        /// Where the audit log goes, one JSON line for each request that is refused by authentication, authorization
        /// or a limit. No record is dropped: where it cannot be written, such requests wait for their answer.
        audit_log: Lenient<AuditLog> = "stderr",
        /// How the process ends after SIGTERM or SIGINT.
        drain: Lenient<DrainSection> = "{}",
        /// Where the gateway is, as its endpoints' `zone` is named; what `services[].zones` goes by.
        zone: Option<Label>,
        /// Limits of the process as a whole.
        limits: Lenient<LimitsSection> = "{}",
        /// What a worker refuses that has more to do than it can. `off`: nothing.
        overload: Lenient<OrOff<Spanned<OverloadSection>>> = "off",
        /// The Redis that the gateways of a fleet share. `off`: each gateway stands alone.
        redis: Lenient<OrOff<RedisSection>> = "off",
        /// How certificates of listeners are ordered. `off`: they come from files only.
        acme: Lenient<OrOff<AcmeSection>> = "off",
        /// Where clients connect. At least one.
        listeners: Items<Spanned<Listener>>,
        /// Where requests are forwarded to.
        services: Items<Spanned<Service>> = "[]",
        /// What routes get that have no such key of their own.
        defaults: Lenient<DefaultsSection> = "{}",
        /// How requests prove who they come from. Routes name them.
        authenticators: Items<Spanned<Authenticator>> = "[]",
        /// What each worker remembers of verified tokens, so that a token is not verified with each request.
        token_cache: TokenCacheSection = "{}",
        /// How often requests may come. Routes name them.
        rate_limits: Items<Spanned<RateLimit>> = "[]",
        /// How many requests may be under way at the same time. Routes name them.
        concurrency_limits: Items<Spanned<ConcurrencyLimit>> = "[]",
        /// Which requests go where.
        routes: Items<Spanned<Route>> = "[]",
    }
}
