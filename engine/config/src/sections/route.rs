//! Which requests go where.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use ringway_core::filter::Policy;
use ringway_core::limit::PLACES_MAX;
use ringway_core::overload::Criticality;
use ringway_core::router::{RouteError, Router, RouterBuilder};
use schemars::{Schema, SchemaGenerator, json_schema};

use super::access::{self, Defaults};
use super::action::{HostChoice, RedirectSection, RespondSection, RewriteSection};
use super::authorize::AuthorizeSection;
use super::cors::CorsSection;
use super::deprecation::DeprecationSection;
use super::headers::HeaderSection;
use super::ip::IpSection;
use super::matching::MatchSection;
use super::mirror::MirrorSection;
use super::retries::RouteRetries;
use super::security_headers::SecurityHeadersChoice;
use super::split::ServiceChoice;
use super::subset::SubsetSection;
use super::validate::ValidateSection;
use crate::decode::{Cx, Decode, OneOrMore, Spanned};
use crate::error::Span;
use crate::hub::UNMATCHED;
use crate::scalar::{Int, Name, OrOff, is_token, parsed};
use crate::shape::shape;
use crate::snapshot::{self, Action, HostRewrite, Rewrite, Subset};
use crate::suggest;
use crate::tree::Node;
use crate::units::{Size, TIB, Timeout};

shape! {
    /// Which requests go where. Exactly one of `service`, `redirect` and `respond`.
    pub(crate) struct Route {
        /// Names it in logs and metrics. Unique. Without one it is called by its methods, host and path.
        name: Option<Spanned<Name>>,
        /// The listeners that it belongs to. Without it: all.
        listeners: Option<OneOrMore<ListenerRef>>,
        /// What it asks of a request.
        r#match: MatchSection = "{}",
        /// Of the routes that match a request the one with the highest priority wins.
        priority: Int<-1_000_000, 1_000_000> = "0",
        /// The service that requests are forwarded to, by name, or several that share them.
        service: Option<ServiceChoice>,
        /// The endpoints of the service that requests go to, by what is known of them. Without it: all.
        subset: Option<Spanned<SubsetSection>>,
        /// Copies of its requests for another service, whose answers are dropped.
        mirror: Option<Spanned<MirrorSection>>,
        /// Answer with a redirect.
        redirect: Option<Spanned<RedirectSection>>,
        /// Answer with this.
        respond: Option<Spanned<RespondSection>>,
        /// The authenticators that are asked who a request comes from, in this order. `anonymous` as the last one lets
        /// requests without credentials pass, as nobody; those with bad credentials are refused all the same.
        authenticate: Option<Spanned<OneOrMore<Spanned<AuthenticatorRef>>>>,
        /// The rate limits that count its requests, all of which must admit them; 429 else. Routes that name the same
        /// limit share it.
        rate_limit: Option<OneOrMore<Spanned<RateLimitRef>>>,
        /// The concurrency limits that its requests count on while they are under way, all of which must have a place for
        /// them; 429 else. Four at most. Routes that name the same limit share it.
        concurrency_limit: Option<OneOrMore<Spanned<ConcurrencyLimitRef>>>,
        /// How the path is changed for the service; the query stays.
        rewrite: Option<Spanned<RewriteSection>>,
        /// The `Host` that the service gets. `keep`: the client's (the default). `endpoint`: the endpoint's
        /// address. Else a host name.
        host: Option<Spanned<HostChoice>>,
        /// Changes of the request's headers, for the service.
        request_headers: Option<Spanned<HeaderSection>>,
        /// Changes of the answer's headers.
        response_headers: HeaderSection = "{}",
        /// The protocols that a connection may change to, if the service agrees, by the names in `Upgrade`. Without it:
        /// `websocket`. `off`: none.
        upgrades: Option<OrOff<Spanned<OneOrMore<Protocol>>>>,
        /// How long a request may take.
        timeouts: Option<Spanned<RouteTimeouts>>,
        /// Another try for requests that failed. Without it: as the service has it. `off`: none.
        retries: Option<OrOff<Spanned<RouteRetries>>>,
        /// Limits of a request.
        limits: RouteLimits = "{}",
        /// Which client addresses may ask; 403 for others. Without it: `defaults.ip`.
        ip: Option<OrOff<Spanned<IpSection>>>,
        /// Who may ask, once it is known who does; 403 for others.
        authorize: Option<Spanned<AuthorizeSection>>,
        /// Which scripts of other origins may read the answers. Without it: `defaults.cors`.
        cors: Option<OrOff<Spanned<CorsSection>>>,
        /// Headers that tell browsers to be careful. Without it: `defaults.security_headers`.
        security_headers: Option<SecurityHeadersChoice>,
        /// Tells clients that the route is going away.
        deprecation: Option<Spanned<DeprecationSection>>,
        /// What requests must look like; 400 or 415 for others.
        validate: Option<Spanned<ValidateSection>>,
        /// How much its requests matter when a worker is overloaded and `overload` says that some are refused: `low` ones are
        /// refused first, `critical` ones last. Those that the gateway answers itself never are.
        criticality: Criticality = "normal",
        /// Write its requests to the access log.
        log: bool = "true",
    }

    /// How long a request may take.
    pub(crate) struct RouteTimeouts {
        /// From its head to the end of the answer, over all tries; 504 above.
        request: OrOff<Timeout> = "off",
        /// One try, from the choice of an endpoint to the answer's head; 504 above.
        per_try: OrOff<Timeout> = "off",
        /// After an upgrade (WebSocket): a tunnel through which nothing has gone for this time is closed.
        tunnel_idle: Timeout = "1h",
    }

    /// Limits of a request.
    pub(crate) struct RouteLimits {
        /// Its body; 413 above.
        body: OrOff<Size<0, TIB>> = "1MiB",
    }
}

/// Declares a reference by name to the items of a list.
macro_rules! reference {
    ($($(#[$doc:meta])* $name:ident = $what:literal in $table:ident)*) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, Copy)]
        pub(crate) struct $name(pub(crate) usize);

        impl Decode for $name {
            fn kind() -> String {
                concat!("the name of a ", $what).into()
            }

            fn decode(node: &Node, cx: &mut Cx) -> Option<Self> {
                let text = String::decode(node, cx)?;
                if let Some(index) = cx.names.$table.get(&text) {
                    return Some(Self(*index));
                }
                let mut known: Vec<&str> = cx.names.$table.keys().map(String::as_str).collect();
                known.sort_unstable();
                let hint = suggest::hint(&text, &known, concat!("the ", stringify!($table)));
                cx.sink.error(node.span, format!(concat!("no ", $what, " is named {}"), node.found()), hint);
                None
            }

            fn schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!({ "type": "string" })
            }
        }
    )*};
}

reference! {
    /// Index of a listener.
    ListenerRef = "listener" in listeners
    /// Index of a service.
    ServiceRef = "service" in services
    /// Index of an authenticator.
    KnownAuthenticator = "authenticator" in authenticators
    /// Index of a rate limit.
    RateLimitRef = "rate limit" in rate_limits
    /// Index of a concurrency limit.
    ConcurrencyLimitRef = "concurrency limit" in concurrency_limits
}

/// An authenticator, or (`None`) the word `anonymous`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct AuthenticatorRef(Option<usize>);

impl Decode for AuthenticatorRef {
    fn kind() -> String {
        "the name of an authenticator, or `anonymous`".into()
    }

    fn decode(node: &Node, cx: &mut Cx) -> Option<Self> {
        match node.scalar() {
            Some(scalar) if scalar.text == ANONYMOUS => Some(Self(None)),
            _ => KnownAuthenticator::decode(node, cx).map(|known| Self(Some(known.0))),
        }
    }

    fn schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string" })
    }
}

/// What an authenticator cannot be called.
pub(crate) const ANONYMOUS: &str = "anonymous";

/// Who may use the route. `asks_a_service`: by authenticator.
fn policy(
    authenticate: Option<Spanned<OneOrMore<Spanned<AuthenticatorRef>>>>,
    asks_a_service: &[bool],
    cx: &mut Cx,
) -> Policy {
    let Some(Spanned { value, span }) = authenticate else { return Policy::default() };
    let (mut known, mut anonymous) = (Vec::new(), false);
    for Spanned { value, span } in value.0 {
        if anonymous {
            cx.error(span, "nothing is asked after `anonymous`", "it comes last");
        }
        match value.0 {
            None => anonymous = true,
            Some(index) if known.contains(&(index as u32)) => cx.error(span, "the authenticator is named twice", None),
            Some(index) => {
                let asks = |index: usize| asks_a_service.get(index).is_some_and(|asks| *asks);
                if asks(index) && known.iter().any(|known| asks(*known as usize)) {
                    cx.error(span, "one service is asked at most", "each would add its time to every request");
                }
                known.push(index as u32);
            }
        }
    }
    if known.is_empty() {
        cx.error(span, "`anonymous` alone asks nobody", "leave `authenticate` out");
    }
    Policy { authenticate: known.into(), anonymous, ..Policy::default() }
}

/// How often the route may be used.
fn limits(rate_limit: Option<OneOrMore<Spanned<RateLimitRef>>>, cx: &mut Cx) -> Box<[u32]> {
    let mut known = Vec::new();
    for Spanned { value, span } in rate_limit.into_iter().flat_map(|limits| limits.0) {
        if known.contains(&(value.0 as u32)) {
            cx.error(span, "the rate limit is named twice", None);
        }
        known.push(value.0 as u32);
    }
    known.into()
}

/// How many of its requests may be under way.
fn concurrency(limit: Option<OneOrMore<Spanned<ConcurrencyLimitRef>>>, cx: &mut Cx) -> Box<[u32]> {
    let mut known = Vec::new();
    for Spanned { value, span } in limit.into_iter().flat_map(|limits| limits.0) {
        if known.contains(&(value.0 as u32)) {
            cx.error(span, "the concurrency limit is named twice", None);
        } else if known.len() == PLACES_MAX {
            cx.error(span, format!("a route has {PLACES_MAX} concurrency limits at most"), None);
        }
        known.push(value.0 as u32);
    }
    known.into()
}

/// Compiles routes, one after the other, into the routers of the listeners.
pub(crate) struct Compiler {
    routers: Vec<RouterBuilder>,
    defaults: Defaults,
    /// By authenticator.
    asks_a_service: Vec<bool>,
    /// Which endpoints routes go to, where not to all of a service.
    pub(crate) subsets: Vec<Arc<Subset>>,
    /// Where the routes so far stand.
    spans: Vec<Span>,
    names: HashSet<String>,
    /// How many routes have the same derived name.
    alike: HashMap<String, usize>,
}

impl Compiler {
    /// `listeners`: how many there are. Reports names that two of `routes` have.
    pub(crate) fn new(
        listeners: usize,
        routes: &[Spanned<Route>],
        defaults: Defaults,
        asks_a_service: Vec<bool>,
        cx: &mut Cx,
    ) -> Self {
        let mut first: HashMap<&str, Span> = HashMap::new();
        for name in routes.iter().filter_map(|route| route.value.name.as_ref()) {
            let text = name.value.0.as_str();
            if text == UNMATCHED {
                cx.error(name.span, format!("`{UNMATCHED}` is what requests without a route are counted under"), None);
            }
            match first.get(text) {
                Some(at) => {
                    let message = format!("`{text}` is the name of two routes, first at {}", cx.sink.place(*at));
                    cx.error(name.span, message, None);
                }
                None => {
                    first.insert(text, name.span);
                }
            }
        }
        let names = first.into_keys().map(str::to_owned).collect();
        Self {
            routers: (0..listeners).map(|_| RouterBuilder::new()).collect(),
            defaults,
            asks_a_service,
            subsets: Vec::new(),
            spans: Vec::new(),
            names,
            alike: HashMap::new(),
        }
    }

    /// The routers, by listener.
    pub(crate) fn finish(self) -> Vec<Router> {
        self.routers.into_iter().map(RouterBuilder::build).collect()
    }

    /// `None` after an error, which is reported.
    pub(crate) fn route(&mut self, route: Spanned<Route>, cx: &mut Cx) -> Option<snapshot::Route> {
        let Spanned { value: mut route, span } = route;
        let parameters = self.add(&route, span, cx);
        let name = match &route.name {
            Some(name) => name.value.0.clone(),
            None => self.derive_name(&route),
        };
        let parameters = parameters?;
        let access = access::compile(&mut route, &parameters, &self.defaults, cx);
        let request_headers = route.request_headers.as_ref();
        Some(snapshot::Route {
            name: Arc::from(name),
            body_bytes: route.limits.body.0.map(|size| size.0),
            log: route.log,
            criticality: route.criticality,
            access,
            request_headers: request_headers.map(|ops| ops.value.compile(true, &parameters, cx)).unwrap_or_default(),
            response_headers: route.response_headers.compile(false, &parameters, cx),
            policy: Policy {
                limits: limits(route.rate_limit.take(), cx),
                concurrency: concurrency(route.concurrency_limit.take(), cx),
                ..policy(route.authenticate.take(), &self.asks_a_service, cx)
            },
            action: action(route, span, &parameters, &mut self.subsets, cx)?,
        })
    }

    /// Adds the route to its listeners' routers; gives the names that its path captures.
    fn add(&mut self, route: &Route, span: Span, cx: &mut Cx) -> Option<Vec<String>> {
        let index = u32::try_from(self.spans.len()).unwrap_or(u32::MAX);
        self.spans.push(span);
        let spec = route.r#match.spec(route.priority.0 as i32, cx)?;
        let listeners: Vec<usize> = match &route.listeners {
            Some(listeners) => listeners.0.iter().map(|listener| listener.0).collect(),
            None => (0..self.routers.len()).collect(),
        };
        let mut added = None;
        for listener in listeners {
            let Some(router) = self.routers.get_mut(listener) else { continue };
            added = Some(router.add(index, spec.clone()));
            if matches!(added, Some(Err(_))) {
                break;
            }
        }
        match added.unwrap_or_else(|| RouterBuilder::new().add(index, spec)) {
            Ok(parameters) => Some(parameters),
            Err(error) => {
                let message = match &error {
                    RouteError::Duplicate(earlier) => {
                        let earlier = self.spans.get(*earlier as usize).copied().unwrap_or(span);
                        format!("the route matches the same requests as the one at {}", cx.sink.place(earlier))
                    }
                    error => error.to_string(),
                };
                let (span, hint) = route.r#match.explain(&error, span);
                cx.sink.error(span, message, hint);
                None
            }
        }
    }

    fn derive_name(&mut self, route: &Route) -> String {
        let summary: String =
            route.r#match.summary().chars().filter(|c| !c.is_control() && *c != '"' && *c != '\\').collect();
        // The next number to try, so that many alike cost no search each.
        let number = self.alike.entry(summary.clone()).or_insert(1);
        let mut name = summary.clone();
        while !self.names.insert(name.clone()) {
            *number += 1;
            name = format!("{summary} #{number}");
        }
        name
    }
}

fn action(
    mut route: Route,
    span: Span,
    parameters: &[String],
    subsets: &mut Vec<Arc<Subset>>,
    cx: &mut Cx,
) -> Option<Action> {
    let given = [
        route.service.as_ref().map(|_| "`service`"),
        route.redirect.as_ref().map(|_| "`redirect`"),
        route.respond.as_ref().map(|_| "`respond`"),
    ];
    let given: Vec<&str> = given.into_iter().flatten().collect();
    if given.len() != 1 {
        let found = if given.is_empty() { "it has none".into() } else { format!("it has {}", given.join(" and ")) };
        let message = format!("a route has exactly one of `service`, `redirect` and `respond`: {found}");
        cx.error(span, message, None);
        return None;
    }
    if let Some(service) = route.service.take() {
        return forward(route, service, parameters, subsets, cx).map(Action::Forward);
    }
    for (key, span) in [
        ("subset", route.subset.as_ref().map(|section| section.span)),
        ("rewrite", route.rewrite.as_ref().map(|section| section.span)),
        ("host", route.host.as_ref().map(|section| section.span)),
        ("request_headers", route.request_headers.as_ref().map(|section| section.span)),
        ("timeouts", route.timeouts.as_ref().map(|section| section.span)),
        ("upgrades", route.upgrades.as_ref().and_then(|list| list.0.as_ref()).map(|list| list.span)),
        ("mirror", route.mirror.as_ref().map(|section| section.span)),
        ("retries", route.retries.as_ref().and_then(|retries| retries.0.as_ref()).map(|retries| retries.span)),
    ] {
        if let Some(span) = span {
            cx.error(span, format!("`{key}` has no effect in a route without a `service`"), None);
        }
    }
    if let Some(redirect) = route.redirect {
        return redirect.compile(parameters, cx).map(Action::Redirect);
    }
    route.respond?.compile(cx).map(Action::Respond)
}

fn forward(
    route: Route,
    service: ServiceChoice,
    parameters: &[String],
    subsets: &mut Vec<Arc<Subset>>,
    cx: &mut Cx,
) -> Option<snapshot::Forward> {
    let subset = route.subset.and_then(|subset| subset.compile(subsets, cx));
    let rewrite = match route.rewrite {
        Some(rewrite) => rewrite.compile(route.r#match.written(), parameters, cx),
        None => Some(Rewrite::Keep),
    };
    let mut timeouts = snapshot::RouteTimeouts { request: None, per_try: None };
    let mut idle = TUNNEL_IDLE;
    if let Some(Spanned { value, span }) = route.timeouts {
        timeouts.request = value.request.0.map(|limit| limit.0);
        timeouts.per_try = value.per_try.0.map(|limit| limit.0);
        idle = value.tunnel_idle.0;
        if let (Some(request), Some(per_try)) = (timeouts.request, timeouts.per_try)
            && per_try > request
        {
            cx.error(span, "`per_try` is longer than the whole `request` may take", None);
        }
    }
    let host = route.host.map_or(HostRewrite::Keep, |host| host.value.into());
    let protocols = match route.upgrades {
        None => [WEBSOCKET.into()].into(),
        Some(written) => written.0.into_iter().flat_map(|list| list.value.0).map(|name| name.0.into()).collect(),
    };
    let upgrades = snapshot::Upgrades { protocols, idle };
    let retries = match route.retries {
        None => snapshot::RouteRetries::OfService,
        Some(written) => match written.0 {
            None => snapshot::RouteRetries::Off,
            Some(own) => {
                let limits = [("timeouts.request", timeouts.request), ("timeouts.per_try", timeouts.per_try)];
                snapshot::RouteRetries::Own(Box::new(own.value.compile(&limits, cx)))
            }
        },
    };
    let service = service.compile(cx)?;
    let mirror = route.mirror.map(|section| Box::new(section.value.compile(&service, cx)));
    Some(snapshot::Forward { service, subset, mirror, rewrite: rewrite?, host, timeouts, upgrades, retries })
}

const WEBSOCKET: &str = "websocket";
/// That of a route without `timeouts`.
const TUNNEL_IDLE: Duration = Duration::from_secs(3600);

/// The name of a protocol that a connection may change to, with its version where it has one.
#[derive(Debug)]
pub(crate) struct Protocol(String);

impl Decode for Protocol {
    fn kind() -> String {
        "the name of a protocol".into()
    }

    fn decode(node: &Node, cx: &mut Cx) -> Option<Self> {
        parsed(node, cx, |text| {
            let name = text.split('/').next().unwrap_or_default().to_ascii_lowercase();
            if matches!(&*name, "h2c" | "h2" | "http" | "tls") {
                return Err(Some("requests inside of it would pass unseen: it is never upgraded to".into()));
            }
            match text.split('/').count() <= 2 && text.split('/').all(is_token) {
                true => Ok(Self(text.to_owned())),
                false => Err(Some(format!("such as `{WEBSOCKET}`, or `name/version`"))),
            }
        })
    }

    fn schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string" })
    }
}
