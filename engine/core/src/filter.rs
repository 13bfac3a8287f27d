//! The gate in front of every service: filters look at a request, in one order, and only they can make the [`Permit`] to
//! forward it.
//!
//! client address (403) -> authentication (401) -> authorization (403) -> rate limits (429) -> concurrency limits (429)
//! -> validation (400, 415) -> body size (413)

use std::cell::RefCell;
use std::net::IpAddr;
use std::sync::Arc;

use crate::access::ip::IpDenial;
use crate::access::{Access, Invalid, Subject};
use crate::auth::credentials::CredentialsError;
use crate::auth::{Authenticator, ClientCertificate, Finding, Flaw, Identity, Live, TokenCache};
use crate::auth_service::{self, Refusal};
use crate::failure::Failure;
use crate::http::Framing;
use crate::limit::{Concurrency, Decision, Held, Limiter, Places, Rule, Scope, State, Who};
use crate::router::{Captures, RouteRequest};
use crate::stats::Authentication;

/// Who may use a route, and how often.
#[derive(Debug, Default)]
pub struct Policy {
    /// Indices of the authenticators, in the order in which they are asked. None: nobody is asked who they are.
    pub authenticate: Box<[u32]>,
    /// A request without credentials passes, as nobody. One with bad credentials does not.
    pub anonymous: bool,
    /// Indices of the rate limits, which all must admit.
    pub limits: Box<[u32]>,
    /// Indices of the concurrency limits, which all must have a place; [`PLACES_MAX`](crate::limit::PLACES_MAX) at most.
    pub concurrency: Box<[u32]>,
}

/// What the filters judge by.
pub struct Gate<'a, 'r> {
    pub policy: &'a Policy,
    pub access: &'a Access,
    /// Of the whole configuration, index for index.
    pub authenticators: &'a [Arc<Authenticator>],
    pub live: &'a [Arc<Live>],
    pub tokens: &'a RefCell<TokenCache>,
    pub rules: &'a [Arc<Rule>],
    pub limiters: &'a [Arc<Limiter>],
    pub scopes: &'a [Arc<Scope>],
    pub concurrency: &'a [Concurrency],
    /// Room for a limit's key. After a refusal by one it holds that one's.
    pub key: &'a RefCell<Vec<u8>>,
    pub route: &'a str,
    pub request: &'a RouteRequest<'r>,
    pub captures: &'a Captures,
    pub client_ip: IpAddr,
    /// What the client has shown in the TLS handshake.
    pub certificate: Option<&'a ClientCertificate>,
    pub framing: Framing,
    /// The route's limit on request bodies; `None`: no limit.
    pub body_bytes_max: Option<u64>,
    pub now_unix_s: u64,
    /// The limiters' clock.
    pub now_us: u64,
    /// There is time left to wait for what a filter has to know.
    pub may_wait: bool,
}

/// How far a request has come, and what was learned of it. Kept over a wait.
#[derive(Debug, Default)]
pub struct Progress {
    /// Who asks; `None`: nobody said, or nobody was asked.
    pub identity: Option<Arc<Identity>>,
    /// The authenticator that accepted or refused, and what it said.
    pub authentication: Option<(u32, Authentication)>,
    /// Why the request is not valid.
    pub invalid: Option<Box<Invalid>>,
    /// What an auth service said, or what is known without asking it. A route names one at most.
    pub told: Option<Told>,
    /// The answer of an auth service that the client gets.
    pub refusal: Option<Arc<Refusal>>,
    /// The limit that the answer tells of: the one that refused, or that has least left. With its rule.
    pub limit: Option<(u32, State)>,
    /// Its places among the requests under way. Whoever ends the request gives them back; dropped with it otherwise.
    pub places: Places,
    /// The concurrency limit that refused.
    pub full: Option<u32>,
    /// The request is held by its next limit for Redis' word; or what came of that.
    pub held: Option<Waiting>,
    /// A limiter has something to say to Redis: whoever reads this wakes the control plane, and unsets it.
    pub rings: bool,
    /// Authentication is over.
    is_known: bool,
    /// Limits that have admitted it.
    admitted: usize,
}

/// A request that a limiter holds.
#[derive(Debug)]
pub enum Waiting {
    For(Held),
    Over(Decision),
}

/// What is known of a request by way of an auth service.
#[derive(Debug)]
pub struct Told {
    pub authenticator: u32,
    pub answer: Answer,
}

#[derive(Debug)]
pub enum Answer {
    /// The request has no credentials for it.
    NoCredentials,
    /// What it has are none.
    BadCredentials(CredentialsError),
    Said {
        verdict: auth_service::Verdict,
        /// It was remembered.
        cached: bool,
    },
}

impl Answer {
    fn finding(&self) -> Finding {
        use auth_service::Verdict;
        let flaw = |description, reason| Finding::Refused(Flaw { code: "invalid_token", description, reason });
        match self {
            Self::NoCredentials => Finding::None,
            Self::BadCredentials(error) => Finding::Refused((*error).into()),
            Self::Said { verdict: Verdict::Pass(identity), cached } => {
                Finding::Known { identity: Arc::clone(identity), cached: *cached }
            }
            Self::Said { verdict: Verdict::Refuse(_), .. } => flaw("the auth service refused", "refused"),
            Self::Said { verdict: Verdict::Invalid(description), .. } => flaw(*description, "inactive"),
            Self::Said { verdict: Verdict::Down(_), .. } => Finding::Unavailable,
        }
    }

    fn refusal(&self) -> Option<&Arc<Refusal>> {
        match self {
            Self::Said { verdict: auth_service::Verdict::Refuse(refusal), .. } => Some(refusal),
            _ => None,
        }
    }
}

/// What a filter has to know before it can judge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lookup {
    /// The keys of this authenticator, which are being fetched.
    Keys(u32),
    /// What this authenticator's service says; the answer goes into [`Progress::told`].
    Service(u32),
    /// Redis' word on [`Progress::held`], from this limiter.
    Limit(u32),
}

/// What the filters say of a request.
#[derive(Debug)]
pub enum Verdict {
    Continue(Permit),
    /// Answer with this instead of forwarding.
    Answer(Failure),
    /// Look this up, then ask again with the same [`Progress`].
    Need(Lookup),
}

/// The proof that a request went through all filters. Forwarding takes one, and nothing else makes one.
#[derive(Debug)]
pub struct Permit(());

/// What stops a request.
enum Stop {
    Answer(Failure),
    Need(Lookup),
}

impl From<Failure> for Stop {
    fn from(failure: Failure) -> Self {
        Self::Answer(failure)
    }
}

/// Asks every filter, in order.
///
/// Hot; watched by the benchmark `admit`.
#[inline]
pub fn admit(gate: &Gate<'_, '_>, progress: &mut Progress) -> Verdict {
    match gate.judge(progress) {
        Ok(()) => Verdict::Continue(Permit(())),
        Err(Stop::Answer(failure)) => Verdict::Answer(failure),
        Err(Stop::Need(lookup)) => Verdict::Need(lookup),
    }
}

impl Gate<'_, '_> {
    fn judge(&self, progress: &mut Progress) -> Result<(), Stop> {
        self.address()?;
        if !progress.is_known {
            self.authenticate(progress)?;
            progress.is_known = true;
        }
        self.authorize(progress.identity.as_deref())?;
        self.limit(progress)?;
        self.take_places(progress)?;
        let judged = self.validate(progress).and_then(|()| self.body_size());
        judged.map_err(Stop::from)
    }

    fn address(&self) -> Result<(), Failure> {
        match self.access.ip.as_ref().map(|list| list.check(self.client_ip)) {
            None | Some(Ok(())) => Ok(()),
            Some(Err(IpDenial::Denied)) => Err(Failure::Forbidden("address_denied")),
            Some(Err(IpDenial::NotAllowed)) => Err(Failure::Forbidden("address_not_allowed")),
        }
    }

    /// Asks the authenticators in order, up to the first that knows the credential. What is no credential of one may be
    /// one of the next: a bad one refuses only when all were asked.
    fn authenticate(&self, progress: &mut Progress) -> Result<(), Stop> {
        let mut flaw: Option<(u32, Flaw)> = None;
        let mut unavailable = None;
        for &index in &self.policy.authenticate {
            let at = index as usize;
            let (Some(authenticator), Some(live)) = (self.authenticators.get(at), self.live.get(at)) else {
                return Err(Failure::Internal.into());
            };
            let carried = (self.request.headers, self.request.query, self.certificate);
            let mut tokens = self.tokens.borrow_mut();
            let told = progress.told.as_ref().filter(|told| told.authenticator == index);
            let finding = match told {
                Some(told) => told.answer.finding(),
                None => authenticator.judge(index, live, carried, &mut tokens, self.now_unix_s, self.may_wait),
            };
            match finding {
                Finding::None => {}
                Finding::Known { identity, cached } => {
                    let how = if cached { Authentication::Cached } else { Authentication::Verified };
                    progress.identity = Some(identity);
                    progress.authentication = Some((index, how));
                    return Ok(());
                }
                // The token of another issuer is no news where several are asked.
                Finding::Refused(found) if flaw.is_none_or(|(_, flaw)| flaw.reason == "issuer") => {
                    flaw = Some((index, found));
                }
                Finding::Refused(_) => {}
                Finding::Unavailable => unavailable = Some(index),
                Finding::Wait => return Err(Stop::Need(Lookup::Keys(index))),
                Finding::Ask => return Err(Stop::Need(Lookup::Service(index))),
            }
        }
        let (first, missing) = (self.policy.authenticate.first().copied(), Authentication::Missing);
        match (unavailable, flaw, first) {
            (Some(index), ..) => {
                progress.authentication = Some((index, Authentication::Unavailable));
                Err(Failure::AuthenticationUnavailable.into())
            }
            (None, Some((index, flaw)), _) => {
                progress.authentication = Some((index, Authentication::Refused));
                let told = progress.told.as_ref().filter(|told| told.authenticator == index);
                progress.refusal = told.and_then(|told| told.answer.refusal()).cloned();
                Err(Failure::Unauthenticated(Some(flaw)).into())
            }
            (None, None, Some(first)) => {
                progress.authentication = Some((first, missing));
                if self.policy.anonymous { Ok(()) } else { Err(Failure::Unauthenticated(None).into()) }
            }
            (None, None, None) => Ok(()),
        }
    }

    fn authorize(&self, identity: Option<&Identity>) -> Result<(), Failure> {
        let Some(condition) = &self.access.authorize else { return Ok(()) };
        let subject = Subject {
            user: identity.and_then(|identity| identity.user.as_deref()),
            roles: identity.map(|identity| identity.roles.as_slice()).unwrap_or_default(),
            scopes: identity.map(|identity| identity.scopes.as_slice()).unwrap_or_default(),
            claims: identity.map(|identity| &identity.claims),
        };
        condition.check(&subject, self.request, self.client_ip).map_err(|denial| Failure::Forbidden(denial.as_str()))
    }

    /// All limits admit, or none has taken anything.
    fn limit(&self, progress: &mut Progress) -> Result<(), Stop> {
        while let Some(index) = self.policy.limits.get(progress.admitted) {
            let (rule, at, limiter) = self.rule(*index, progress)?;
            let decision = match progress.held.take() {
                Some(Waiting::Over(decision)) => decision,
                Some(Waiting::For(held)) => Decision::Hold(held),
                None => {
                    let mut key = self.key.borrow_mut();
                    rule.scope.write_key(&self.who(progress), &mut key);
                    let decision = limiter.check(&key, rule.cost, self.now_us);
                    progress.rings |= limiter.take_bell();
                    decision
                }
            };
            match decision {
                Decision::Admitted(state) => {
                    progress.admitted += 1;
                    if progress.limit.is_none_or(|(_, least)| state.remaining < least.remaining) {
                        progress.limit = Some((*index, state));
                    }
                }
                Decision::Refused(state) => {
                    self.give_back(progress)?;
                    // For who counts the refusals.
                    rule.scope.write_key(&self.who(progress), &mut self.key.borrow_mut());
                    progress.limit = Some((*index, state));
                    return Err(Failure::RateLimited.into());
                }
                Decision::Unavailable => {
                    self.give_back(progress)?;
                    progress.limit = None;
                    return Err(Failure::LimiterUnavailable.into());
                }
                Decision::Hold(held) => {
                    progress.held = Some(Waiting::For(held));
                    return Err(Stop::Need(Lookup::Limit(at)));
                }
            }
        }
        Ok(())
    }

    /// What the limits have taken so far.
    fn give_back(&self, progress: &Progress) -> Result<(), Failure> {
        for index in self.policy.limits.iter().take(progress.admitted) {
            let (rule, _, limiter) = self.rule(*index, progress)?;
            let mut key = self.key.borrow_mut();
            rule.scope.write_key(&self.who(progress), &mut key);
            limiter.give_back(&key, rule.cost);
        }
        Ok(())
    }

    /// All concurrency limits have a place for the request, or it takes none, and no token either.
    fn take_places(&self, progress: &mut Progress) -> Result<(), Failure> {
        while let Some(index) = self.policy.concurrency.get(progress.places.taken()) {
            let scope = self.scopes.get(*index as usize).ok_or(Failure::Internal)?;
            let at = scope.counter(progress.identity.as_deref());
            let limit = self.concurrency.get(at as usize).ok_or(Failure::Internal)?;
            scope.write_key(&self.who(progress), &mut self.key.borrow_mut());
            let Some(place) = limit.enter(&self.key.borrow()) else {
                progress.places.give_back();
                self.give_back(progress)?;
                // What it told of has its tokens back.
                progress.limit = None;
                progress.full = Some(*index);
                // For who counts the refusals.
                scope.write_key(&self.who(progress), &mut self.key.borrow_mut());
                return Err(Failure::ConcurrencyLimited);
            };
            progress.places.keep(place);
        }
        Ok(())
    }

    /// A rate limit, and the limiter that this request draws from.
    fn rule(&self, index: u32, progress: &Progress) -> Result<(&Rule, u32, &Limiter), Failure> {
        let rule = self.rules.get(index as usize).ok_or(Failure::Internal)?;
        let at = rule.scope.counter(progress.identity.as_deref());
        let limiter = self.limiters.get(at as usize).ok_or(Failure::Internal)?;
        Ok((rule, at, limiter))
    }

    fn who<'w>(&'w self, progress: &'w Progress) -> Who<'w> {
        Who {
            client_ip: self.client_ip,
            identity: progress.identity.as_deref(),
            headers: self.request.headers,
            route: self.route,
        }
    }

    fn validate(&self, progress: &mut Progress) -> Result<(), Failure> {
        let Some(validation) = &self.access.validation else { return Ok(()) };
        validation.check_head(self.request, self.captures, self.framing != Framing::None).map_err(|invalid| {
            let failure = if invalid.status == 415 { Failure::UnsupportedContent } else { Failure::Invalid };
            progress.invalid = Some(Box::new(invalid));
            failure
        })
    }

    /// 413 before a byte of the body is read, where `Content-Length` tells; a chunked body is counted as it comes.
    fn body_size(&self) -> Result<(), Failure> {
        match (self.framing, self.body_bytes_max) {
            (Framing::Length(length), Some(max)) if length > max => Err(Failure::BodyTooLarge),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests;
