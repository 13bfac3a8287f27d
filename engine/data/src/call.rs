//! gRPC calls: what the serve path does for them besides what it does for every request.

use std::time::Duration;

use httparse::Header;
use ringway_core::failure::Failure;
use ringway_core::grpc::{Status, is_grpc, parse_timeout, write_message, write_timeout};
use ringway_core::http::RequestHead;

use crate::clock::us;
use crate::connection::Connection;
use crate::deadline::Slot;
use crate::forward::timeouts;
use crate::request::Exchange;

/// The field that tells how long a call may take. Its value is written anew for the service.
pub(crate) const TIMEOUT: &str = "grpc-timeout";
const STATUS: &str = "grpc-status";

/// What is known of a call.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Call {
    /// How long it may take, from its head on; `None` where its client does not say.
    pub(crate) timeout: Option<Duration>,
    /// How it ended, as far as somebody has said so.
    pub(crate) status: Option<Status>,
}

impl Call {
    /// The call that a request of HTTP/2 is, if it is one.
    pub(crate) fn of(request: &RequestHead<'_, '_>) -> Option<Self> {
        let is_call = request.method == "POST" && value(request.headers, "content-type").is_some_and(is_grpc);
        is_call.then(Self::default)
    }

    /// Reads how long it may take.
    pub(crate) fn read_timeout(&mut self, request: &RequestHead<'_, '_>) -> Result<(), Failure> {
        if let Some(text) = value(request.headers, TIMEOUT) {
            let us = parse_timeout(text).ok_or(Failure::Malformed("Malformed grpc-timeout"))?;
            self.timeout = Some(Duration::from_micros(us));
        }
        Ok(())
    }

    /// Takes in what an answer's head says of the end.
    pub(crate) fn learn(&mut self, fields: &[Header<'_>]) {
        self.status = value(fields, STATUS).map(Status::parse).or(self.status);
    }

    /// The same of a trailer section as received.
    pub(crate) fn learn_trailers(&mut self, section: &[u8]) {
        self.status = status_in(section).or(self.status);
    }
}

/// What a head, or a trailer section, says of how the call ended.
pub(crate) fn status_in(section: &[u8]) -> Option<Status> {
    let status_of = |line: &[u8]| {
        let (name, value) = line.split_at_checked(STATUS.len())?;
        let value = value.strip_prefix(b":").filter(|_| name.eq_ignore_ascii_case(STATUS.as_bytes()))?;
        Some(Status::parse(value.trim_ascii()))
    };
    section.split(|byte| *byte == b'\n').find_map(status_of)
}

fn value<'h>(fields: &[Header<'h>], name: &str) -> Option<&'h [u8]> {
    fields.iter().find(|field| field.name.eq_ignore_ascii_case(name)).map(|field| field.value)
}

/// Whether a field of a call is written anew.
pub(crate) fn is_rewritten(name: &str) -> bool {
    name.eq_ignore_ascii_case(TIMEOUT)
}

/// Tells the service how much time is left: of the client's, or of the route's, where that is less.
pub(crate) fn write_time_left(conn: &Connection, exchange: &Exchange, out: &mut Vec<u8>) {
    if let Some(limit) = timeouts(conn, exchange).request {
        let spent = conn.worker.clock.now().saturating_sub(exchange.started);
        out.extend_from_slice(b"grpc-timeout: ");
        write_timeout(us(limit).saturating_sub(spent), out);
        out.extend_from_slice(b"\r\n");
    }
}

/// The rest of the head of an answer that the gateway gives a call itself, which has no body ("Trailers-Only").
pub(crate) fn write_end(status: Status, message: &str, out: &mut Vec<u8>) {
    out.extend_from_slice(b"Content-Type: application/grpc\r\ngrpc-status: ");
    out.extend_from_slice(itoa::Buffer::new().format(status.code()).as_bytes());
    out.extend_from_slice(b"\r\ngrpc-message: ");
    write_message(message, out);
    out.extend_from_slice(b"\r\n\r\n");
}

/// How a call has ended, once it is over.
pub(crate) fn outcome(conn: &Connection, exchange: &Exchange) -> Option<Status> {
    let call = exchange.call?;
    Some(match call.status {
        Some(status) => status,
        None if exchange.broken_off && conn.timers.has_fired(Slot::Request) => Status::DEADLINE_EXCEEDED,
        // What its client makes of the reset.
        None if exchange.broken_off => Status::INTERNAL,
        None if exchange.status == 499 || conn.client.stream().is_some_and(|stream| stream.signal.gone()) => {
            Status::CANCELLED
        }
        None => Status::of_http(exchange.status),
    })
}
