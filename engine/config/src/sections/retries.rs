//! Which failed tries are followed by another one.

use ringway_core::grpc::Status;
use ringway_core::retry_budget::BudgetSettings;

use crate::decode::OneOrMore;
use crate::percent::Percent;
use crate::resilience::{Retries, RetryOn};
use crate::scalar::{Int, OrOff, choice};
use crate::shape::shape;
use crate::units::{MIB, Size, Time, Timeout};

/// Longest wait before a retry, in milliseconds.
const BACKOFF_MAX_MS: u64 = 10_000;

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
    pub(crate) fn compile(self) -> (Retries, BudgetSettings) {
        let Self { attempts, on, budget, backoff, per_try_timeout, body } = self;
        (RouteRetries { attempts, on, backoff, per_try_timeout, body }.compile(), budget.compile())
    }
}

impl BudgetSection {
    fn compile(self) -> BudgetSettings {
        BudgetSettings { share: self.share.0, min_per_second: self.min_per_second.0 as u32 }
    }
}

impl RouteRetries {
    pub(crate) fn compile(self) -> Retries {
        Retries {
            attempts: self.attempts.0 as u8,
            on: self.on.0.into(),
            backoff_base: self.backoff.base.0,
            backoff_max: self.backoff.max.0,
            per_try: self.per_try_timeout.0.map(|timeout| timeout.0),
            body_bytes_max: self.body.0 as usize,
        }
    }
}
