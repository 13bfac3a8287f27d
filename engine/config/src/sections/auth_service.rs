//! Services that say who a request comes from.

use std::sync::Arc;
use std::time::Duration;

use ringway_core::auth_service::{
    self, AskMethod, AskPath, BreakerSettings, CacheSettings, Check, Introspection, Mode, Tells, basic_credentials,
    may_be_asked_with, may_be_given, may_be_passed_on,
};
use schemars::{Schema, SchemaGenerator, json_schema};

use super::authenticator::{ClaimName, Forward, Location, claim_headers};
use super::headers::HeaderName;
use super::route::ServiceRef;
use crate::decode::{Cx, Decode, OneOrMore, Pairs, Spanned};
use crate::scalar::{Int, OrOff, choice, is_token, or_variable, parsed};
use crate::shape::shape;
use crate::snapshot;
use crate::tree::{Node, Value};
use crate::units::{HOUR_MS, KIB, MIB, Size, Time};

shape! {
    /// A service that is told of each request and answers with a status: 2xx lets it pass, 3xx and 4xx go to the client, all
    /// else means that the service is down.
    pub(crate) struct AuthServiceSection {
        /// The service that is asked.
        service: ServiceRef,
        /// Where it is asked.
        path: AskedPath = "/",
        /// Put the client's path and query behind `path`.
        append_path: bool = "false",
        /// The method that it is asked with. `client`: the client's.
        method: AskedMethod = "GET",
        /// Its `Host`. Without it: the service's name.
        host: Option<AskedHost>,
        /// Headers of the client that it gets.
        request_headers: Vec<Spanned<HeaderName>> = "[Authorization, Cookie]",
        /// What else it is told of the request: `X-Forwarded-Method`, `-Uri`, `-Host`, `-For` (`client`) and `-Proto`
        /// (`scheme`). An answer is used again for requests that are the same in all that the service is told.
        tell: Vec<Tell> = "[method, uri, host, client, scheme]",
        /// Headers of a positive answer that the service behind gets. The client's own of that name are dropped.
        answer_headers: Vec<Spanned<HeaderName>> = "[]",
        /// Headers of a refusal that the client gets, besides its status and body.
        refusal_headers: Vec<Spanned<HeaderName>> = "[WWW-Authenticate, Location, Set-Cookie, Content-Type, Content-Encoding, Content-Language, Cache-Control, Retry-After]",
        /// The header of a positive answer that names the user, for the log and for limits by user.
        user: HeaderName = "X-User-Id",
        /// The header with the roles, between commas or blanks.
        roles: HeaderName = "X-User-Roles",
        /// The header with the scopes, between commas or blanks.
        scopes: HeaderName = "X-User-Scopes",
        /// From the question to the whole answer. A service that is slower is down.
        timeout: Time<1, 60_000> = "1s",
        /// The answer's body; a longer one is no answer.
        body: Size<0, { MIB }> = "64KiB",
        /// Answers that each worker remembers.
        cache: AuthCacheSection = "{}",
        /// What happens while it is down. `closed`: 503. `{ stale: 5m }`: credentials that it let pass within that time
        /// still pass; 503 for others.
        when_down: WhenDown = "closed",
        /// When it is left alone for a while.
        breaker: AuthBreakerSection = "{}",
    }

    /// A service that knows what tokens stand for (OAuth 2.0 Token Introspection, RFC 7662).
    pub(crate) struct IntrospectionSection {
        /// The service that is asked.
        service: ServiceRef,
        /// Where it is asked.
        path: AskedPath,
        /// Its `Host`. Without it: the service's name.
        host: Option<AskedHost>,
        /// The gateway's own name at that service (RFC 6749 section 2.3.1).
        client_id: Option<Spanned<String>>,
        /// The secret that goes with it.
        client_secret: Option<Spanned<String>>,
        /// Where a request has its token. Of several, one at a time may be filled.
        from: OneOrMore<Location> = "bearer",
        /// What `aud` must name. Without it: anything.
        audience: Option<String>,
        /// The member of the answer that says who the user is; where it is missing, `username` does.
        user: ClaimName = "sub",
        /// The member with the roles. Scopes are in `scope`.
        roles: ClaimName = "roles",
        /// Headers that tell the service behind a member of the answer. The client's own of that name are dropped.
        headers: Pairs<HeaderName, ClaimName> = "{}",
        /// Which tokens go on to the service behind. `headers`: those in header fields and cookies, and none of the query.
        /// `none`, `all`.
        forward_credentials: Forward = "headers",
        /// From the question to the whole answer. A service that is slower is down.
        timeout: Time<1, 60_000> = "1s",
        /// The answer's body; a longer one is no answer.
        body: Size<0, { MIB }> = "64KiB",
        /// Answers that each worker remembers; never beyond a token's `exp`.
        cache: AuthCacheSection = "{}",
        /// What happens while it is down. `closed`: 503. `{ stale: 5m }`: tokens that were active within that time still
        /// pass; 503 for others.
        when_down: WhenDown = "closed",
        /// When it is left alone for a while.
        breaker: AuthBreakerSection = "{}",
    }

    /// Answers of an auth service that each worker remembers.
    pub(crate) struct AuthCacheSection {
        /// How long a positive answer counts. What is revoked meanwhile still passes. `off`: each request is asked for.
        ttl: OrOff<Time<1, { HOUR_MS }>> = "5s",
        /// How long a refusal counts.
        refusals: OrOff<Time<1, 1000>> = "off",
        /// Answers.
        entries: Int<1, 10_000_000> = "10000",
        /// Their memory, by estimate.
        memory: Size<{ 64 * KIB }, { 64 * 1024 * MIB }> = "8MiB",
    }

    /// When a worker leaves an auth service alone, so that its requests need not wait for what does not come.
    pub(crate) struct AuthBreakerSection {
        /// Failures in a row.
        failures: Int<1, 1_000_000> = "5",
        /// How long, up to a half more at random. Then one question is asked, and its answer decides.
        open: Time<100, { HOUR_MS }> = "5s",
    }

    struct Stale {
        /// How old a positive answer may be.
        stale: Time<1000, { 24 * HOUR_MS }>,
    }
}

/// What an auth service is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tell {
    Method,
    Uri,
    Host,
    Client,
    Scheme,
}

choice! {
    Tell {
        "method" => Tell::Method,
        "uri" => Tell::Uri,
        "host" => Tell::Host,
        "client" => Tell::Client,
        "scheme" => Tell::Scheme,
    }
}

/// A path, without a query.
#[derive(Debug, Clone)]
pub(crate) struct AskedPath(Box<str>);

impl Decode for AskedPath {
    fn kind() -> String {
        "a path, such as `/validate`".into()
    }

    fn decode(node: &Node, cx: &mut Cx) -> Option<Self> {
        parsed(node, cx, |text| {
            let is_path =
                text.starts_with('/') && text.bytes().all(|byte| byte.is_ascii_graphic() && !b"?#".contains(&byte));
            if is_path { Ok(Self(text.into())) } else { Err(None) }
        })
    }

    fn schema(generator: &mut SchemaGenerator) -> Schema {
        or_variable(json_schema!({ "type": "string", "pattern": "^/[^?# ]*$" }), generator)
    }
}

/// A value of `Host`.
#[derive(Debug, Clone)]
pub(crate) struct AskedHost(Box<str>);

impl Decode for AskedHost {
    fn kind() -> String {
        "a host, such as `auth.internal`".into()
    }

    fn decode(node: &Node, cx: &mut Cx) -> Option<Self> {
        parsed(node, cx, |text| match is_host_value(text) {
            true => Ok(Self(text.into())),
            false => Err(None),
        })
    }

    fn schema(generator: &mut SchemaGenerator) -> Schema {
        or_variable(json_schema!({ "type": "string", "pattern": "^[A-Za-z0-9._:\\[\\]-]+$" }), generator)
    }
}

fn is_host_value(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-_:[]".contains(&byte))
}

/// A method, or the client's.
#[derive(Debug, Clone)]
pub(crate) struct AskedMethod(AskMethod);

impl Decode for AskedMethod {
    fn kind() -> String {
        "a method, or `client`".into()
    }

    fn decode(node: &Node, cx: &mut Cx) -> Option<Self> {
        parsed(node, cx, |text| match text {
            "client" => Ok(Self(AskMethod::OfClient)),
            "CONNECT" => Err(None),
            text if is_token(text) && !text.bytes().any(|byte| byte.is_ascii_lowercase()) => {
                Ok(Self(AskMethod::Fixed(text.into())))
            }
            _ => Err(None),
        })
    }

    fn schema(generator: &mut SchemaGenerator) -> Schema {
        or_variable(json_schema!({ "type": "string" }), generator)
    }
}

/// What happens while the service is down.
#[derive(Debug, Clone, Copy)]
pub(crate) struct WhenDown(Option<Duration>);

impl Decode for WhenDown {
    fn kind() -> String {
        "`closed` or `stale: DURATION`".into()
    }

    fn decode(node: &Node, cx: &mut Cx) -> Option<Self> {
        match &node.value {
            Value::Map(_) => Stale::decode(node, cx).map(|section| Self(Some(section.stale.0))),
            Value::Scalar(scalar) if scalar.text == "closed" => Some(Self(None)),
            Value::Scalar(scalar) if matches!(&*scalar.text, "open" | "allow") => {
                cx.mismatch::<Self>(node, Some("a gate that opens when nobody guards it is none".into()));
                None
            }
            _ => {
                cx.mismatch::<Self>(node, Some("`when_down: { stale: 5m }`".into()));
                None
            }
        }
    }

    fn schema(generator: &mut SchemaGenerator) -> Schema {
        json_schema!({ "anyOf": [{ "const": "closed" }, Stale::schema(generator)] })
    }
}

impl AuthServiceSection {
    pub(crate) fn compile(self, services: &[Arc<snapshot::Service>], cx: &mut Cx) -> auth_service::AuthService {
        let told = |what| self.tell.contains(&what);
        let tells = Tells {
            method: told(Tell::Method),
            uri: told(Tell::Uri),
            host: told(Tell::Host),
            client: told(Tell::Client),
            scheme: told(Tell::Scheme),
        };
        let hint = "it has this from the gateway, or frames the message";
        let path = self.path.0;
        let check = Check {
            method: self.method.0,
            path: match self.append_path {
                true => AskPath::Prefix(path.trim_end_matches('/').into()),
                false => AskPath::Fixed(path),
            },
            request_headers: names(self.request_headers, may_be_asked_with, hint, cx),
            tells,
            answer_headers: names(self.answer_headers, may_be_given, hint, cx),
            refusal_headers: names(self.refusal_headers, may_be_passed_on, hint, cx),
            user: Some(self.user.0.into()),
            roles: Some(self.roles.0.into()),
            scopes: Some(self.scopes.0.into()),
        };
        let asked = Asked { service: self.service, host: self.host, timeout: self.timeout.0, body: self.body.0 };
        asked.compile(Mode::Check(check), self.cache, self.when_down, self.breaker, services)
    }
}

impl IntrospectionSection {
    pub(crate) fn compile(self, services: &[Arc<snapshot::Service>], cx: &mut Cx) -> auth_service::AuthService {
        let authorization = match (&self.client_id, &self.client_secret) {
            (Some(id), Some(secret)) => Some(basic_credentials(&id.value, &secret.value).into()),
            (None, None) => None,
            (Some(alone), None) => {
                cx.error(alone.span, "`client_id` needs `client_secret`", None);
                None
            }
            (None, Some(alone)) => {
                cx.error(alone.span, "`client_secret` needs `client_id`", None);
                None
            }
        };
        let introspection = Introspection {
            path: self.path.0,
            authorization,
            places: self.from.0.into_iter().map(|location| location.0).collect(),
            audience: self.audience.map(Into::into),
            user: self.user.0,
            roles: Some(self.roles.0),
            headers: claim_headers(self.headers, cx),
        };
        let asked = Asked { service: self.service, host: self.host, timeout: self.timeout.0, body: self.body.0 };
        asked.compile(Mode::Introspection(introspection), self.cache, self.when_down, self.breaker, services)
    }
}

/// What both kinds have.
struct Asked {
    service: ServiceRef,
    host: Option<AskedHost>,
    timeout: Duration,
    body: u64,
}

impl Asked {
    fn compile(
        self,
        mode: Mode,
        cache: AuthCacheSection,
        WhenDown(stale): WhenDown,
        breaker: AuthBreakerSection,
        services: &[Arc<snapshot::Service>],
    ) -> auth_service::AuthService {
        let service = self.service.0;
        // A name may have blanks, a host may not.
        let name =
            services.get(service).map(|service| &*service.name).filter(|name| is_host_value(name)).unwrap_or("auth");
        auth_service::AuthService {
            service,
            host: self.host.map_or_else(|| name.into(), |host| host.0),
            mode,
            timeout: self.timeout,
            body_bytes_max: self.body as usize,
            cache: CacheSettings {
                ttl: cache.ttl.0.map(|ttl| ttl.0).unwrap_or_default(),
                refusals: cache.refusals.0.map(|ttl| ttl.0).unwrap_or_default(),
                keeps_stale: stale.is_some(),
                entries_max: cache.entries.0 as usize,
                bytes_max: cache.memory.0 as usize,
            },
            stale,
            breaker: BreakerSettings { failures: breaker.failures.0 as u32, open: breaker.open.0 },
        }
    }
}

fn names(
    written: Vec<Spanned<HeaderName>>,
    allowed: fn(&str) -> bool,
    hint: &'static str,
    cx: &mut Cx,
) -> Vec<Box<str>> {
    for Spanned { value, span } in written.iter().filter(|name| !allowed(&name.value.0)) {
        cx.error(*span, format!("`{}` cannot be passed on", value.0), hint);
    }
    written.into_iter().map(|name| name.value.0.into()).collect()
}
