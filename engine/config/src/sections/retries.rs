//! Which failed tries are followed by another one.

use std::time::Duration;

use ringway_core::grpc::Status;
use ringway_core::retry_budget::BudgetSettings;

use crate::decode::{Cx, OneOrMore, Spanned};
use crate::percent::Percent;
use crate::resilience::{Hedge, Retries, RetryOn};
use crate::scalar::{Int, OrOff, choice};
use crate::shape::shape;
use crate::units::{MIB, Size, Time, Timeout};

/// Longest wait before a retry, in milliseconds.
const BACKOFF_MAX_MS: u64 = 10_000;
/// Latest hedge, in milliseconds.
const HEDGE_MAX_MS: u64 = 60_000;

shape! {
    /// Another try for requests that failed, where it can do no harm, on another endpoint where there is one. `{}`: with the
    /// defaults.
    pub(crate) struct RetriesSection {
        /// Tries after the first one.
        attempts: Int<1, 10> = "2",
        /// What is tried again. `connect_failure`: no connection, or none in TLS. `refused_stream`: a service of HTTP/2 says
        /// that it has not looked at it. Those two whatever the method, since nothing was done; the others where the method is
        /// idempotent and the whole body is at hand: `reset`: the connection broke before an answer. `timeout`:
        /// no answer in time. Else a status of the service. Of gRPC, whatever the method, an answer without a message:
        /// `grpc_cancelled`, `grpc_deadline_exceeded`, `grpc_resource_exhausted`, `grpc_internal`, `grpc_unavailable`.
        on: OneOrMore<RetryOn> = "[connect_failure, refused_stream, reset, 502, 503, 504]",
        /// How many retries there may be, over all requests to the service.
        budget: BudgetSection = "{}",
        /// How long to wait before a retry.
        backoff: BackoffSection = "{}",
        /// One try, from the choice of an endpoint to the answer's head. The shorter one of this and the route's
        /// `timeouts.per_try` counts.
        per_try_timeout: OrOff<Timeout> = "off",
        /// Requests with a body up to this size, as it is sent, can be tried again although it did not come with the head: it is
        /// kept while it goes to the service, in as much memory for each request under way. Longer ones are not kept.
        body: Size<0, MIB> = "0B",
        /// Further tries at other endpoints while the first one is still awaited. Better said of a route: it is more load.
        hedge: Option<Spanned<HedgeSection>>,
    }

    /// Retries of a route's requests, in place of the service's; the budget is the service's in any case.
    pub(crate) struct RouteRetries {
        /// Tries after the first one.
        attempts: Int<1, 10> = "2",
        /// What is tried again, as in `services[].retries.on`.
        on: OneOrMore<RetryOn> = "[connect_failure, refused_stream, reset, 502, 503, 504]",
        /// How long to wait before a retry.
        backoff: BackoffSection = "{}",
        /// One try, from the choice of an endpoint to the answer's head.
        per_try_timeout: OrOff<Timeout> = "off",
        /// Bodies up to this size are kept to be sent again, as in `services[].retries.body`.
        body: Size<0, MIB> = "0B",
        /// Further tries at other endpoints while the first one is still awaited.
        hedge: Option<Spanned<HedgeSection>>,
    }

    /// A further try while the first one is still awaited, at an endpoint that has none of the request's; the first good answer
    /// is the client's, the other tries are given up. Of requests with an idempotent method (RFC 9110 section 9.2.2) and the
    /// whole body at hand, within the budget; not of upgrades, nor of sessions that are with an endpoint.
    pub(crate) struct HedgeSection {
        /// How long the try before it has been awaited: what nearly all answers take, such as their 95th percentile.
        after: Time<1, HEDGE_MAX_MS>,
        /// Such tries of one request; each after another `after`.
        max: Int<1, 3> = "1",
    }

    /// How many retries there may be, in any second and over all workers: `share` of the requests and `min_per_second`.
    pub(crate) struct BudgetSection {
        /// Of the requests to the service.
        share: Percent<0, 100> = "20%",
        /// So many in any case.
        min_per_second: Int<0, 1_000_000> = "10",
    }

    /// A wait between nothing and `base`, at random; twice as long at most before each further retry.
    pub(crate) struct BackoffSection {
        /// Before the first retry, at most.
        base: Time<0, BACKOFF_MAX_MS> = "25ms",
        /// Before any retry, at most.
        max: Time<0, BACKOFF_MAX_MS> = "250ms",
    }
}

choice! {
    RetryOn {
        "connect_failure" => RetryOn::ConnectFailure,
        "refused_stream" => RetryOn::RefusedStream,
        "reset" => RetryOn::Reset,
        "timeout" => RetryOn::Timeout,
        "429" => RetryOn::Status(429),
        "500" => RetryOn::Status(500),
        "502" => RetryOn::Status(502),
        "503" => RetryOn::Status(503),
        "504" => RetryOn::Status(504),
        "grpc_cancelled" => RetryOn::Grpc(Status::CANCELLED),
        "grpc_deadline_exceeded" => RetryOn::Grpc(Status::DEADLINE_EXCEEDED),
        "grpc_resource_exhausted" => RetryOn::Grpc(Status::RESOURCE_EXHAUSTED),
        "grpc_internal" => RetryOn::Grpc(Status::INTERNAL),
        "grpc_unavailable" => RetryOn::Grpc(Status::UNAVAILABLE),
    }
}

impl RetriesSection {
    /// `answer`: how long the service's answer may take, by its name.
    pub(crate) fn compile(self, answer: Limit, cx: &mut Cx) -> (Retries, BudgetSettings) {
        let Self { attempts, on, budget, backoff, per_try_timeout, body, hedge } = self;
        let own = RouteRetries { attempts, on, backoff, per_try_timeout, body, hedge };
        (own.compile(&[answer], cx), budget.compile())
    }
}

/// How long something may take, with the name of the key.
pub(crate) type Limit = (&'static str, Option<Duration>);

impl HedgeSection {
    /// A hedge that would come when nothing is awaited any more is none.
    fn compile(section: Spanned<Self>, limits: &[Limit], cx: &mut Cx) -> Hedge {
        let Spanned { value: Self { after, max }, span } = section;
        if let Some((name, _)) = limits.iter().find(|(_, limit)| limit.is_some_and(|limit| after.0 >= limit)) {
            cx.error(span, format!("nothing is awaited any more: `after` is not below `{name}`"), None);
        }
        Hedge { after: after.0, max: max.0 as u8 }
    }
}

impl BudgetSection {
    fn compile(self) -> BudgetSettings {
        BudgetSettings { share: self.share.0, min_per_second: self.min_per_second.0 as u32 }
    }
}

impl RouteRetries {
    /// `limits`: what else says how long a try is awaited.
    pub(crate) fn compile(self, limits: &[Limit], cx: &mut Cx) -> Retries {
        let per_try = self.per_try_timeout.0.map(|timeout| timeout.0);
        let limits = [&[("per_try_timeout", per_try)], limits].concat();
        Retries {
            attempts: self.attempts.0 as u8,
            on: self.on.0.into(),
            backoff_base: self.backoff.base.0,
            backoff_max: self.backoff.max.0,
            per_try,
            body_bytes_max: self.body.0 as usize,
            hedge: self.hedge.map(|hedge| HedgeSection::compile(hedge, &limits, cx)),
        }
    }
}
