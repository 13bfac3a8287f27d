//! From sources to a snapshot.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;

use crate::decode::{Cx, Decode, Names, Spanned};
use crate::error::{Errors, Sink, Span};
use crate::sections::{
    AcmeOf, Compiler, File, LimitsSection, Listener, Lookup, Redis, Resolver, check_fallbacks, count_names,
    hide_password, system_lookup,
};
use crate::tls::Entry;
use crate::tree::{self, Node, Value};
use crate::{Snapshot, emit, expand, snapshot};

/// A configuration file, or a part of one.
#[derive(Debug, Clone)]
pub struct Source {
    /// What messages call it. Relative paths of `${file:PATH}` start at its directory.
    pub name: String,
    pub text: String,
}

/// Checks `sources`, which are parts of one configuration, as a whole and compiles them: lists of the same name are
/// joined in order, any other section may occur once. `env` looks environment variables up.
/// Resolves host names and so may block.
///
/// # Errors
/// All that is wrong; never empty. Where a source is not YAML, nothing but that is reported.
pub fn compile(sources: &[Source], env: &dyn Fn(&str) -> Option<String>) -> Result<Snapshot, Errors> {
    compile_with(sources, env, &system_lookup)
}

/// The same where `lookup` resolves the host names.
///
/// # Errors
/// As of [`compile`].
pub fn compile_with(
    sources: &[Source],
    env: &dyn Fn(&str) -> Option<String>,
    lookup: Lookup<'_>,
) -> Result<Snapshot, Errors> {
    let mut sink = Sink::new(sources.iter().map(|source| source.name.clone()).collect());
    if sources.is_empty() {
        sink.error(Span::whole(0), "there is no configuration", None);
        return Err(sink.into_errors());
    }
    let parts: Vec<Option<Node>> =
        sources.iter().enumerate().map(|(index, source)| tree::parse(&source.text, index, &mut sink)).collect();
    let Some(parts) = parts.into_iter().collect::<Option<Vec<Node>>>() else { return Err(sink.into_errors()) };
    let Some(mut root) = merge(parts, &mut sink) else { return Err(sink.into_errors()) };
    expand::expand(&mut root, env, &mut sink);
    hide_password(&mut root);
    let names = Names::scan(&root, &mut sink);
    let mut cx = Cx::new(sink, names);
    let snapshot = File::decode(&root, &mut cx).and_then(|file| build(file, &root, lookup, &mut cx));
    match snapshot {
        Some(snapshot) if cx.sink.is_clean() => Ok(snapshot),
        _ => Err(cx.sink.into_errors()),
    }
}

/// Joins the top levels. `None` where that is not possible.
fn merge(parts: Vec<Node>, sink: &mut Sink) -> Option<Node> {
    let mut root: Option<Node> = None;
    for part in parts {
        let (span, found) = (part.span, part.found());
        let Value::Map(entries) = part.value else {
            sink.error(span, format!("expected a section of keys, found {found}"), Some("`listeners: …`".into()));
            return None;
        };
        let Some(Node { value: Value::Map(known), .. }) = &mut root else {
            root = Some(Node { span, value: Value::Map(entries) });
            continue;
        };
        for entry in entries {
            let Some(first) = known.iter_mut().find(|known| known.key() == entry.key()) else {
                known.push(entry);
                continue;
            };
            let place = sink.place(first.key.span);
            match (&mut first.value.value, entry.value.value) {
                (Value::List(items), Value::List(more)) => items.extend(more),
                _ => {
                    let message =
                        format!("`{}` is defined in two files, first at {place}", tree::shortened(first.key()));
                    sink.error(entry.key.span, message, Some("only lists are joined".into()));
                }
            }
        }
    }
    root
}

/// Everything is looked at, so that all errors are found; what is built is good only if there was none.
fn build(file: File, root: &Node, lookup: Lookup<'_>, cx: &mut Cx) -> Option<Snapshot> {
    let (listeners, routes) = (file.listeners.0, file.routes.0);
    let admin = file
        .admin
        .0
        .map(|admin| admin.0.map(|section| snapshot::Admin { address: section.address, may_change: section.changes }));
    let written = root.get("listeners");
    if let Some(list) = written.filter(|list| matches!(list.value, Value::List(_)) && list.items().is_empty()) {
        let hint = "`- { name: public, address: 127.0.0.1:3000 }`";
        cx.error(list.span, "the gateway needs at least one listener", hint);
    }
    check_addresses(&listeners, admin.as_ref().and_then(Option::as_ref), cx);

    let defaults = file.defaults.0.map(|section| section.compile(cx)).unwrap_or_default();
    let asks_a_service = file.authenticators.0.iter().map(|known| known.value.asks_a_service()).collect();
    let mut compiler =
        Compiler::new(written.map_or(0, |list| list.items().len()), &routes, defaults, asks_a_service, cx);
    let routes = routes.into_iter().filter_map(|route| compiler.route(route, cx)).map(Arc::new).collect();
    let subsets = std::mem::take(&mut compiler.subsets);
    let routers = compiler.finish();

    check_fallbacks(&file.services.0, cx);
    let is_off = file.redis.0.as_ref().is_some_and(|redis| redis.0.is_none());
    let redis = file.redis.0.map(|redis| redis.0.and_then(|section| section.compile(cx)));
    let of_lists = Redis { section: redis.as_ref().and_then(Option::as_ref), is_off };
    let mut resolver = Resolver::new(lookup);
    let zone = file.zone.map(|zone| zone.0);
    let services = file.services.0.into_iter();
    let compiled = services.map(|service| Arc::new(service.value.compile(&mut resolver, of_lists, zone.as_ref(), cx)));
    let services: Vec<_> = compiled.collect();
    let sees_certificates = listeners.iter().any(|listener| listener.value.sees_certificates());
    let (mut authenticators, mut keys) = (Vec::new(), Vec::new());
    for authenticator in file.authenticators.0 {
        if let Some((authenticator, sources)) = authenticator.value.compile(&services, sees_certificates, of_lists, cx)
        {
            authenticators.push(Arc::new(authenticator));
            keys.push(sources);
        }
    }
    let (mut rate_limits, mut limiters) = (Vec::new(), Vec::new());
    let mut keys_left = KeysLeft::of(file.limits.0.as_ref());
    for Spanned { value, span } in file.rate_limits.0 {
        let first = limiters.len();
        rate_limits.extend(value.compile(&mut limiters, cx).map(Arc::new));
        let added = limiters.iter().skip(first);
        keys_left.take(added.map(|policy| policy.spec().keys_max).sum(), span, cx);
    }
    let (mut concurrency_limits, mut concurrency) = (Vec::new(), Vec::new());
    for Spanned { value, span } in file.concurrency_limits.0 {
        let first = concurrency.len();
        concurrency_limits.extend(value.compile(&mut concurrency, cx).map(Arc::new));
        keys_left.take(concurrency.iter().skip(first).map(|spec| spec.keys_max).sum(), span, cx);
    }
    let runtime = file.runtime.0.map(|section| section.compile(cx));
    let is_off = file.acme.0.as_ref().is_some_and(|acme| acme.0.is_none());
    let mut acme = file.acme.0.map(|acme| acme.0.and_then(|section| section.compile(of_lists, cx)));
    let of_certificates = AcmeOf { section: acme.as_ref().and_then(Option::as_ref), is_off };
    let listeners = listeners.into_iter().zip(routers);
    let compiled = listeners.map(|(listener, router)| Arc::new(listener.value.compile(router, of_certificates, cx)));
    let listeners: Vec<_> = compiled.collect();
    if let (Some(Some(acme)), Some(written)) = (&mut acme, root.get("acme")) {
        let entries =
            listeners.iter().filter_map(|listener| listener.tls.as_ref()).flat_map(|tls| tls.certificates.entries());
        acme.certificates.extend(entries.filter_map(|entry| match entry {
            Entry::Managed(managed) => Some(Arc::clone(managed)),
            Entry::Files(_) => None,
        }));
        count_names(acme, written.span, cx);
    }
    Some(Snapshot {
        runtime: runtime?,
        listeners,
        routes,
        services,
        subsets,
        authenticators,
        rate_limits,
        limiters,
        concurrency_limits,
        concurrency,
        token_cache: file.token_cache.compile(),
        keys,
        admin: admin?,
        access_log: file.access_log.0?.0,
        audit_log: file.audit_log.0?.0,
        drain: file.drain.0?.compile(),
        limits: file.limits.0?.compile(),
        overload: file.overload.0?.0.map(|section| section.compile(cx)),
        redis: redis?,
        acme: acme?,
        redacted: emit::redacted(root),
    })
}

/// The room for keys that limits have not asked for yet. Each has its own, so that none takes another's; this bounds what
/// all of them take.
struct KeysLeft {
    keys_max: usize,
    asked: usize,
}

impl KeysLeft {
    fn of(limits: Option<&LimitsSection>) -> Self {
        Self { keys_max: limits.map_or(usize::MAX, |limits| limits.limit_keys.0 as usize), asked: 0 }
    }

    /// Reports the limit that asks for more than is left; one is enough.
    fn take(&mut self, keys: usize, span: Span, cx: &mut Cx) {
        let fitted = self.asked <= self.keys_max;
        self.asked = self.asked.saturating_add(keys);
        if fitted && self.asked > self.keys_max {
            let message = format!(
                "with this one all limits together have {} keys, `limits.limit_keys` allows {}",
                self.asked, self.keys_max
            );
            cx.error(span, message, "lower `keys`, of which each tier has as many, or raise `limits.limit_keys`");
        }
    }
}

/// Every listener, the operators' included, has an address of its own. Port 0 is another port each time.
fn check_addresses(listeners: &[Spanned<Listener>], admin: Option<&snapshot::Admin>, cx: &mut Cx) {
    let mut first: HashMap<SocketAddr, Span> = HashMap::new();
    for Spanned { value, span } in listeners.iter().map(|listener| &listener.value.address) {
        if value.port() == 0 {
            continue;
        }
        if let Some(at) = first.get(value) {
            let place = cx.sink.place(*at);
            cx.error(*span, format!("two listeners have the address `{value}`, first at {place}"), None);
        } else if admin.is_some_and(|admin| admin.address == *value) {
            let hint = "keep operators and clients apart";
            cx.error(*span, format!("`admin` has the address `{value}` too"), hint);
        }
        first.entry(*value).or_insert(*span);
    }
}
