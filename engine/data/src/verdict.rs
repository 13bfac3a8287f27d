//! How a try went, told to the breakers and to those who watch the endpoint: by its answer's head. A gRPC call whose head says
//! nothing of its end went well when a message comes, and else as it ends.

use ringway_core::failure::{Failure, Fault};
use ringway_core::grpc::Status;

use crate::bulkhead;
use crate::forward::Attempt;
use crate::outbound::Outbound;
use crate::request::Exchange;

/// What is still to be told of a call.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) enum Verdict {
    /// Nothing: it is no call, or it is over.
    #[default]
    Given,
    /// How it went; its head came so many microseconds after the request was sent.
    Awaited(u64),
    /// Whether it ends well, too: it has gone well so far.
    Good,
}

/// Whether a failure says something of the service: not what the client or the gateway's own bounds have caused.
pub(crate) fn is_of_service(outbound: &Outbound<'_>, failure: Failure) -> bool {
    match failure {
        Failure::RequestTimeout => outbound.is_sent.get() && outbound.own_deadline.get(),
        Failure::ConnectionCap | Failure::NoEndpoint => false,
        failure => failure.fault() == Fault::Service,
    }
}

impl Attempt<'_> {
    /// The head that is passed on has come.
    #[inline]
    pub(crate) fn begun(&self, exchange: &Exchange, head: &[u8]) {
        let said = exchange.call.and_then(|call| call.status);
        let has_failed = said.is_some_and(|said| self.outbound.fails(said));
        if exchange.call.is_some() && said.is_none() && exchange.status == 200 {
            self.verdict.set(Verdict::Awaited(self.took_us()));
        } else {
            self.judge(exchange.status, said, head);
        }
        if exchange.attempts > 1 {
            self.tries.end(!self.passage.is_bad());
        }
        let status = if has_failed { 503 } else { exchange.status };
        bulkhead::answered(&self.outbound, self.passage.service, status, self.took_us());
    }

    /// Tells the breakers of an answer by its head. `said`: how a call has ended, where that says so.
    #[inline]
    pub(crate) fn judge(&self, status: u16, said: Option<Status>, head: &[u8]) {
        match said {
            Some(said) if self.outbound.fails(said) => self.passage.failed(),
            _ => self.passage.answered(status, head, self.took_us()),
        }
    }

    /// Some of a call's answer has come, or all of it; then with its status, if it has one.
    pub(crate) fn follow(&self, has_message: bool, end: Option<Option<Status>>) {
        let is_good = match end {
            // What its client makes of it.
            Some(status) => !self.outbound.fails(status.unwrap_or(Status::UNKNOWN)),
            None if has_message => true,
            None => return,
        };
        let next = if end.is_some() { Verdict::Given } else { Verdict::Good };
        match self.verdict.replace(next) {
            Verdict::Given => self.verdict.set(Verdict::Given),
            Verdict::Awaited(took_us) => self.settle_call(is_good, took_us),
            Verdict::Good if !is_good => {
                self.passage.broke_off();
                self.outbound.note_broken_off();
            }
            Verdict::Good => {}
        }
    }

    /// The client has gone: what had begun had begun well.
    pub(crate) fn left(&self) {
        if let Verdict::Awaited(took_us) = self.verdict.take() {
            self.settle_call(true, took_us);
        }
    }

    /// The answer had begun, and broke off.
    pub(crate) fn broke_off(&self) {
        if let Verdict::Awaited(took_us) = self.verdict.take() {
            return self.settle_call(false, took_us);
        }
        self.passage.broke_off();
        self.outbound.note_broken_off();
    }

    fn settle_call(&self, is_good: bool, took_us: u64) {
        match is_good {
            true => self.passage.answered(200, b"", took_us),
            false => self.passage.failed(),
        }
        self.outbound.note_went(is_good);
    }
}
