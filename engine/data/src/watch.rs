//! What becomes of tries at endpoints, told to those who judge by it: counters, the row of failures, the latency.

use ringway_config::snapshot::{Balance, Service};
use ringway_core::ejection::{Ejection, Failed};
use ringway_core::failure::Failure;
use ringway_core::health::Reason;

use crate::upstream::EndpointPool;

/// Whether anybody wants to know.
#[inline]
pub(crate) fn is_watched(service: &Service) -> bool {
    service.watch.ejection.is_some() || service.balance == Balance::PeakEwma
}

/// An answer's head has come, `took_us` after the request was sent; `None`: not all of it was. `is_good`: `None` where
/// that is told later, with [`went`].
pub(crate) fn answered(
    service: &Service,
    pool: &EndpointPool,
    is_good: Option<bool>,
    took_us: Option<u64>,
    now_us: u64,
) {
    let cell = pool.cell();
    cell.answers.add(1);
    if let Some(took_us) = took_us {
        cell.latency_us.add(took_us);
        pool.health.latency.observe(took_us, now_us);
    }
    if let Some(is_good) = is_good {
        went(service, pool, is_good, now_us);
    }
}

/// What an answer says of its endpoint.
pub(crate) fn went(service: &Service, pool: &EndpointPool, is_good: bool, now_us: u64) {
    if is_good {
        pool.health.succeeded();
    } else {
        pool.cell().failures.add(1);
        judge(service, pool, Failed::Request, now_us);
    }
}

/// There is no answer. `sent`: some of the request was sent, and if all of it was, how long ago.
pub(crate) fn failed(service: &Service, pool: &EndpointPool, failure: Failure, sent: Option<Option<u64>>, now_us: u64) {
    let failed = match failure {
        Failure::ConnectFailed | Failure::ConnectTimeout | Failure::Untrusted | Failure::TlsFailed => Failed::Connect,
        Failure::RequestTimeout if sent.is_none() => Failed::Connect,
        Failure::ConnectionBroken
        | Failure::AnswerTimeout
        | Failure::RequestTimeout
        | Failure::BadAnswer
        | Failure::AnswerHeadTooLarge => Failed::Request,
        _ => return,
    };
    let cell = pool.cell();
    cell.failures.add(1);
    cell.unanswered.add(1);
    if let (Failure::AnswerTimeout | Failure::RequestTimeout, Some(Some(took_us))) = (failure, sent) {
        pool.health.latency.observe(took_us, now_us);
    }
    judge(service, pool, failed, now_us);
}

fn judge(service: &Service, pool: &EndpointPool, failed: Failed, now_us: u64) {
    if let Some(settings) = &service.watch.ejection
        && let Some(ejection) = settings.failed(&pool.health, failed, now_us)
    {
        log(service, pool, ejection);
    }
}

#[cold]
fn log(service: &Service, pool: &EndpointPool, Ejection { reason, time_us }: Ejection) {
    let (name, endpoint, seconds) = (&service.name, &pool.health.endpoint, time_us as f64 / 1e6);
    let reason = match reason {
        Reason::Connect => "connections to it fail",
        _ => "requests fail, one after the other",
    };
    tracing::warn!("service `{name}`, endpoint `{endpoint}`: ejected for {seconds:.1} s: {reason}");
}
