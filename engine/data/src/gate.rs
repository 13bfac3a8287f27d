//! What the gate cannot know by itself, and what its refusals leave behind.

use httparse::Header;
use ringway_config::snapshot::{Authenticator, Route};
use ringway_core::audit_line::Kind;
use ringway_core::auth::credentials::cookies;
use ringway_core::failure::Failure;
use ringway_core::filter::{Answer, Lookup, Told, Waiting};
use ringway_core::limit::{HeaderStyle, Limiter, Wake, write_headers};

use crate::audit::{self, Refused};
use crate::connection::Connection;
use crate::request::Exchange;

/// Waits until there is news of what the gate has to know, or a tick has passed: it then asks again, and sees whether
/// it still may wait.
///
/// # Errors
/// When the client has gone meanwhile.
pub(crate) async fn look_up(conn: &Connection, exchange: &mut Exchange, lookup: Lookup) -> Result<(), Failure> {
    match lookup {
        // The control plane fetches them, and rings when it is done, well or not.
        Lookup::Keys(_) => conn.worker.news.wait().await,
        Lookup::Limit(limiter) => limit(conn, exchange, limiter).await,
        Lookup::Service(authenticator) => {
            let (settings, state) = conn.view.auth_service(authenticator).ok_or(Failure::Internal)?;
            let question = exchange.question.take().ok_or(Failure::Internal)?;
            let verdict = state.ask(conn, settings, question).await;
            if let Some(stats) = conn.view.published.authenticators.get(authenticator as usize)
                && let Some(cell) = stats.workers.get(conn.worker.id)
            {
                cell.breaker_open.set(u64::from(state.is_broken()));
            }
            let verdict = verdict?;
            exchange.gate.told = Some(Told { authenticator, answer: Answer::Said { verdict, cached: false } });
        }
    }
    Ok(())
}

/// Waits for Redis' word on a request that a rate limit holds, or for the end of its hold.
async fn limit(conn: &Connection, exchange: &mut Exchange, limiter: u32) {
    let (worker, published) = (&conn.worker, &conn.view.published);
    let Some(Waiting::For(held)) = exchange.gate.held.take() else { return };
    let Some(of) = published.limiters.get(limiter as usize) else { return };
    let _held = worker.hold();
    held.wake(Wake { worker: worker.id as u32, ticket: 0 });
    loop {
        if let Some(decision) = of.outcome(&held, worker.clock.now()) {
            exchange.gate.held = Some(Waiting::Over(decision));
            // It may have been decided without Redis, which is to hear of it.
            if of.take_bell() {
                worker.hub.limits_bell.ring(0);
            }
            return;
        }
        worker.news.wait().await;
    }
}

/// Counts a refusal by the gate and records it in the audit log. `head`: the request's.
pub(crate) async fn record_refusal(conn: &Connection, exchange: &Exchange, head: &[u8], failure: Failure) {
    let (kind, reason) = match failure {
        Failure::Unauthenticated(None) => (Kind::Authentication, "missing"),
        Failure::Unauthenticated(Some(flaw)) => (Kind::Authentication, flaw.reason),
        Failure::AuthenticationUnavailable => (Kind::Authentication, "unavailable"),
        Failure::Forbidden(reason @ ("address_denied" | "address_not_allowed")) => (Kind::Ip, reason),
        Failure::Forbidden(reason) => (Kind::Authorization, reason),
        Failure::RateLimited => (Kind::RateLimit, "limit"),
        Failure::LimiterUnavailable => (Kind::RateLimit, "unavailable"),
        Failure::ConcurrencyLimited => (Kind::ConcurrencyLimit, "limit"),
        _ => return,
    };
    let published = &conn.view.published;
    let (authenticators, limit) = (&published.snapshot.authenticators, limiter_of(conn, exchange));
    if let (Failure::RateLimited, Some((index, _))) = (failure, limit)
        && let Some(cell) = published.limits.get(index as usize).and_then(|stats| stats.workers.get(conn.worker.id))
    {
        cell.refuse(&conn.worker.limit_key.borrow());
    }
    if let Some(index) = full_of(conn, exchange)
        && let Some(stats) = published.concurrency_limits.get(index as usize)
        && let Some(cell) = stats.workers.get(conn.worker.id)
    {
        cell.refuse(&conn.worker.limit_key.borrow());
    }
    let judged = exchange.gate.authentication.and_then(|(index, _)| authenticators.get(index as usize));
    let user = exchange.gate.identity.as_ref().and_then(|identity| identity.user.as_deref());
    let policy = match kind {
        Kind::RateLimit => limit.map(|(_, limiter)| &*limiter.policy().spec().name),
        Kind::ConcurrencyLimit => concurrency_limit_of(conn, exchange),
        _ => judged.map(|authenticator| &*authenticator.name),
    };
    let refused = Refused { kind, policy, reason, user };
    audit::audit(conn, exchange, head, &refused).await;
}

/// Whether the gate tells the service a field of this name itself, so that the client's own is dropped.
pub(crate) fn vouches_for(conn: &Connection, route: &Route, name: &str) -> bool {
    authenticators(conn, route).any(|authenticator| authenticator.vouches_for(name))
}

/// Those that a route asks.
fn authenticators<'c>(conn: &'c Connection, route: &'c Route) -> impl Iterator<Item = &'c Authenticator> {
    let all = &conn.view.published.snapshot.authenticators;
    route.policy.authenticate.iter().filter_map(|index| all.get(*index as usize)).map(|known| &**known)
}

/// Writes the client's query, with its `?`, without the credentials that the service does not get. The rest is left as it
/// is, byte for byte.
pub(crate) fn write_query(conn: &Connection, route: &Route, query: &[u8], out: &mut Vec<u8>) {
    if route.policy.authenticate.is_empty() {
        out.push(b'?');
        out.extend_from_slice(query);
        return;
    }
    let hides = |pair: &&[u8]| authenticators(conn, route).any(|known| known.hides_parameter(pair));
    let mut before = b'?';
    for pair in query.split(|byte| *byte == b'&').filter(|pair| !hides(pair)) {
        out.push(before);
        out.extend_from_slice(pair);
        before = b'&';
    }
}

/// Whether a service gets less than the client sent in header fields.
pub(crate) fn hides_fields(conn: &Connection, route: &Route) -> bool {
    authenticators(conn, route).any(Authenticator::hides_fields)
}

/// Whether a field is a credential that the service does not get.
pub(crate) fn hides_field(conn: &Connection, route: &Route, field: &Header<'_>) -> bool {
    authenticators(conn, route).any(|known| known.hides_field(field.name, field.value))
}

/// Whether cookies of this field are credentials that the service does not get, or the `hidden` one: [`write_cookies`] writes
/// the others.
pub(crate) fn hides_cookies(conn: &Connection, route: &Route, hidden: Option<&str>, field: &Header<'_>) -> bool {
    let hides = |pair| hides_cookie(conn, route, hidden, pair);
    field.name.eq_ignore_ascii_case("cookie") && field.value.split(|byte| *byte == b';').any(hides)
}

fn hides_cookie(conn: &Connection, route: &Route, hidden: Option<&str>, pair: &[u8]) -> bool {
    let is_hidden = |name: &str| cookies(pair, name.as_bytes()).next().is_some();
    hidden.is_some_and(is_hidden) || authenticators(conn, route).any(|known| known.hides_cookie(pair))
}

/// Writes the lines of `Cookie` that [`hides_cookies`] is true of, without what the service does not get.
pub(crate) fn write_cookies(
    conn: &Connection,
    route: &Route,
    hidden: Option<&str>,
    fields: &[Header<'_>],
    out: &mut Vec<u8>,
) {
    let hides = |pair: &&[u8]| hides_cookie(conn, route, hidden, pair);
    for field in fields.iter().filter(|field| hides_cookies(conn, route, hidden, field)) {
        let mut before: &[u8] = b"Cookie: ";
        for pair in field.value.split(|byte| *byte == b';').filter(|pair| !hides(pair)) {
            out.extend_from_slice(before);
            out.extend_from_slice(pair.trim_ascii());
            before = b"; ";
        }
        if before == b"; " {
            out.extend_from_slice(b"\r\n");
        }
    }
}

/// The limiter that the answer tells of.
pub(crate) fn limiter_of<'c>(conn: &'c Connection, exchange: &Exchange) -> Option<(u32, &'c Limiter)> {
    let published = &conn.view.published;
    let rule = published.snapshot.rate_limits.get(exchange.gate.limit?.0 as usize)?;
    let index = rule.scope.counter(exchange.gate.identity.as_deref());
    published.limiters.get(index as usize).map(|limiter| (index, &**limiter))
}

/// The concurrency limit that refused, by name.
pub(crate) fn concurrency_limit_of<'c>(conn: &'c Connection, exchange: &Exchange) -> Option<&'c str> {
    let limit = conn.view.published.concurrency.get(full_of(conn, exchange)? as usize)?;
    Some(&limit.spec().name)
}

fn full_of(conn: &Connection, exchange: &Exchange) -> Option<u32> {
    let scope = conn.view.published.snapshot.concurrency_limits.get(exchange.gate.full? as usize)?;
    Some(scope.counter(exchange.gate.identity.as_deref()))
}

/// Which headers tell the client of the rate limit that holds for its request.
pub(crate) fn limit_headers(conn: &Connection, exchange: &Exchange) -> HeaderStyle {
    let rule = exchange.gate.limit.and_then(|(index, _)| conn.view.published.snapshot.rate_limits.get(index as usize));
    rule.map_or(HeaderStyle::None, |rule| rule.headers)
}

/// What the rate limit tells the client, as header lines.
pub(crate) fn write_limit(conn: &Connection, exchange: &Exchange, out: &mut Vec<u8>) {
    let (Some((index, state)), Some((_, limiter))) = (exchange.gate.limit, limiter_of(conn, exchange)) else { return };
    let Some(rule) = conn.view.published.snapshot.rate_limits.get(index as usize) else { return };
    let unix_s = conn.worker.clock.unix_ms(exchange.started) / 1000;
    write_headers(rule.headers, limiter.policy(), &state, unix_s, out);
}
