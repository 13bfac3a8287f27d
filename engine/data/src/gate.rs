//! What the gate cannot know by itself, and what its refusals leave behind.

use ringway_core::audit_line::Kind;
use ringway_core::failure::Failure;
use ringway_core::filter::{Answer, Lookup, Told};

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
        Lookup::Service(authenticator) => {
            let (settings, state) = conn.view.auth_service(authenticator).ok_or(Failure::Internal)?;
            let question = exchange.question.take().ok_or(Failure::Internal)?;
            let verdict = state.ask(conn, settings, question).await?;
            exchange.gate.told = Some(Told { authenticator, answer: Answer::Said { verdict, cached: false } });
        }
    }
    Ok(())
}

/// Records a refusal by the gate in the audit log. `head`: the request's.
pub(crate) async fn audit(conn: &Connection, exchange: &Exchange, head: &[u8], failure: Failure) {
    let (kind, reason) = match failure {
        Failure::Unauthenticated(None) => (Kind::Authentication, "missing"),
        Failure::Unauthenticated(Some(flaw)) => (Kind::Authentication, flaw.reason),
        Failure::AuthenticationUnavailable => (Kind::Authentication, "unavailable"),
        Failure::Forbidden(reason @ ("address_denied" | "address_not_allowed")) => (Kind::Ip, reason),
        Failure::Forbidden(reason) => (Kind::Authorization, reason),
        Failure::RateLimited => (Kind::RateLimit, "limit"),
        Failure::LimiterUnavailable => (Kind::RateLimit, "unavailable"),
        _ => return,
    };
    let authenticators = &conn.view.published.snapshot.authenticators;
    let judged = exchange.gate.authentication.and_then(|(index, _)| authenticators.get(index as usize));
    let user = exchange.gate.identity.as_ref().and_then(|identity| identity.user.as_deref());
    let refused = Refused { kind, policy: judged.map(|authenticator| &*authenticator.name), reason, user };
    audit::audit(conn, exchange, head, &refused).await;
}
