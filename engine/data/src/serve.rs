//! The life of a request, top to bottom:
//!
//! read head -> match route -> filters -> pick endpoint -> forward -> relay the answer -> record

use std::rc::Rc;

use ringway_core::failure::Failure;
use ringway_core::http::{BodyDecoder, Framing, HeadScan, HeadScanner, leading_empty_lines};
use ringway_io::yield_now;

use crate::buffer::Buffer;
use crate::bulkhead;
use crate::clock::us;
use crate::connection::Connection;
use crate::deadline::Slot;
use crate::forward::forward;
use crate::gate;
use crate::hold::hold;
use crate::http2::PREFACE;
use crate::io::{Blocks, linger, write_client};
use crate::record::record;
use crate::request::{Exchange, Step};
use crate::respond;
use crate::tunnel::Tunnel;

/// Answers what has arrived. Gives the connection back when it is idle, nothing when it is to be closed.
pub(crate) async fn serve(mut conn: Box<Connection>) -> Option<Box<Connection>> {
    let worker = Rc::clone(&conn.worker);
    let mut inbox = worker.take_inbox();
    let mut out = worker.take_head();
    let mut in_a_row = 0;
    let goes_on = loop {
        match read_head(&conn, &mut inbox).await {
            Next::Head(length) => {
                if !exchange(&mut conn, &mut inbox, length, &mut out).await {
                    break conn.tunnel.get_mut().is_some();
                }
            }
            Next::Idle => break true,
            Next::Http2 => {
                let rest = std::mem::replace(&mut inbox, worker.take_inbox());
                conn.http2 = Some(Box::new(rest));
                break true;
            }
            Next::Closed => break false,
            Next::Refused(failure) => {
                refuse(&mut conn, failure, &mut out).await;
                break false;
            }
        }
        if inbox.is_empty() {
            break true;
        }
        in_a_row += 1;
        if in_a_row >= conn.listener.limits.pipelined {
            yield_now().await;
            in_a_row = 0;
        }
    };
    worker.give_head(out);
    if !goes_on {
        conn.client.end();
    }
    goes_on.then_some(conn)
}

/// Answers the one request of an HTTP/2 stream, whose head stands at the front of the inbox in the form of HTTP/1.1.
/// Gives it back where it has become a tunnel.
pub(crate) async fn serve_stream(
    mut conn: Box<Connection>,
    mut inbox: Buffer,
    head_length: usize,
) -> Option<Box<Connection>> {
    let worker = Rc::clone(&conn.worker);
    let mut out = worker.take_head();
    if head_length <= conn.listener.limits.head_bytes {
        exchange(&mut conn, &mut inbox, head_length, &mut out).await;
    } else {
        refuse(&mut conn, Failure::HeadTooLarge, &mut out).await;
    }
    worker.give_head(out);
    conn.tunnel.get_mut().is_some().then_some(conn)
}

enum Next {
    /// A whole head of this length stands at the front of the inbox.
    Head(usize),
    /// Nothing has arrived.
    Idle,
    /// The client's first bytes are those of HTTP/2 (RFC 9113 section 3.4).
    Http2,
    Closed,
    Refused(Failure),
}

/// Reads until the inbox holds a whole head.
async fn read_head(conn: &Connection, inbox: &mut Buffer) -> Next {
    let limit = conn.listener.limits.head_bytes;
    let mut scanner = HeadScanner::default();
    let mut has_deadline = false;
    let next = loop {
        if !inbox.is_empty() {
            inbox.consume(leading_empty_lines(inbox.data()));
        }
        let may_be_http2 = conn.served == 0 && conn.listener.http2.enabled && !inbox.is_empty();
        if may_be_http2 && inbox.data().starts_with(PREFACE) {
            break Next::Http2;
        }
        let awaits_preface = may_be_http2 && PREFACE.starts_with(inbox.data());
        if !awaits_preface && !inbox.is_empty() && inbox.data() != b"\r" {
            match scanner.scan(inbox.data()) {
                HeadScan::Complete(length) if length <= limit => break Next::Head(length),
                HeadScan::Partial if inbox.len() < limit => {}
                HeadScan::Partial | HeadScan::Complete(_) => {
                    let target_fits = scanner.has_first_line_within(limit);
                    break Next::Refused(if target_fits { Failure::HeadTooLarge } else { Failure::TargetTooLong });
                }
                HeadScan::BareLineFeed => {
                    break Next::Refused(Failure::Malformed("A line does not end with CR LF"));
                }
                HeadScan::NotHttp => break Next::Refused(Failure::Malformed("This is not HTTP")),
            }
        }
        if inbox.room().is_empty() {
            inbox.make_room(limit.min(inbox.len() * 2).max(1));
        }
        match conn.client.recv(inbox.room()) {
            Ok(Some(0)) | Err(_) => {
                let late = conn.timers.has_fired(Slot::ClientRead) && !inbox.is_empty();
                break if late { Next::Refused(Failure::HeadTimeout) } else { Next::Closed };
            }
            Ok(Some(received)) => {
                conn.worker.cell().client_bytes_in.add(received as u64);
                inbox.received(received);
            }
            Ok(None) if inbox.is_empty() => break Next::Idle,
            Ok(None) => {
                if !has_deadline {
                    has_deadline = true;
                    let head = us(conn.listener.timeouts.head);
                    conn.timers.set(Slot::ClientRead, conn.worker.clock.lately() + head);
                }
                conn.client.readable().await;
            }
        }
    };
    conn.timers.clear(Slot::ClientRead);
    next
}

/// One request and its answer; whether the connection goes on.
async fn exchange(conn: &mut Connection, inbox: &mut Buffer, head_length: usize, out: &mut Vec<u8>) -> bool {
    conn.renew();
    conn.served += 1;
    conn.timers.begin();
    let conn = &*conn;
    let _active = conn.worker.count_request();
    let mut exchange = Exchange::new(conn);
    out.clear();
    let mut step = exchange.prepare(conn, inbox.data().get(..head_length).unwrap_or_default(), out);
    loop {
        let waited = match step {
            Step::Wait(lookup) => gate::look_up(conn, &mut exchange, lookup).await,
            Step::Queue(service) => Box::pin(bulkhead::wait(conn, &mut exchange, service)).await,
            _ => break,
        };
        if let Err(failure) = waited {
            step = Step::Fail(failure);
            break;
        }
        out.clear();
        step = exchange.prepare(conn, inbox.data().get(..head_length).unwrap_or_default(), out);
    }
    let mut body = BodyDecoder::new(exchange.framing);
    // Bytes of the inbox that belong to this request.
    let mut used = head_length;
    let mut spare = None;

    let failure = match step {
        Step::Answer => None,
        Step::Wait(_) | Step::Queue(_) => Some(Failure::Internal),
        Step::Fail(failure) => Some(failure),
        Step::Forward { passage, permit } => {
            let held = hold(conn, &mut exchange, inbox, &mut used, &mut body, out, &mut spare).await;
            let forwarded = match held {
                Ok(()) => forward(conn, &mut exchange, inbox, &mut used, &mut body, out, passage, permit).await,
                Err(failure) => Err(failure),
            };
            match forwarded {
                Ok(_) if exchange.opened.is_some() => {
                    bulkhead::opened(conn, &mut exchange);
                    conn.tunnel.set(Tunnel::new(conn, exchange, inbox, used));
                    return false;
                }
                Ok(rest) => {
                    exchange.give_back(conn);
                    record(conn, &exchange, inbox.data());
                    spare = spare.or(rest);
                    return finish(conn, &exchange, inbox, used, body, spare).await;
                }
                Err(failure) => {
                    // What of the body has come is used up; what has not is not waited for.
                    if body.is_done() {
                        exchange.framing = Framing::None;
                    } else {
                        exchange.keep_alive = false;
                    }
                    Some(failure)
                }
            }
        }
    };
    if let Some(failure) = failure {
        let head = inbox.data().get(..head_length).unwrap_or_default();
        respond::failure(conn, &mut exchange, failure, head, out);
        gate::record_refusal(conn, &exchange, head, failure).await;
        if let (Some(service), Some(error)) = (exchange.service, failure.backend_error()) {
            conn.view.service_cell(service, conn.worker.id).inspect(|cell| cell.record_error(error));
        }
    }
    // Before the client knows that it may ask again.
    exchange.give_back(conn);
    if failure != Some(Failure::ClientGone) && write_client(conn, out).await.is_err() {
        exchange.keep_alive = false;
    }
    record(conn, &exchange, inbox.data());
    finish(conn, &exchange, inbox, used, body, spare).await
}

/// Makes the inbox ready for the next request, if there may be one.
async fn finish(
    conn: &Connection,
    exchange: &Exchange,
    inbox: &mut Buffer,
    used: usize,
    mut body: BodyDecoder,
    spare: Option<Buffer>,
) -> bool {
    inbox.consume(used);
    if conn.client.stream().is_some() {
        // What the client still sends of it is not waited for: the stream is let go of.
        return false;
    }
    if let Some(rest) = spare {
        *inbox = rest;
    }
    if !exchange.keep_alive {
        if !exchange.broken_off && (exchange.sends_more || !body.is_done() || !inbox.is_empty()) {
            linger(conn, inbox).await;
        }
        return false;
    }
    if !body.is_done() {
        return drain(conn, inbox, &mut body).await;
    }
    true
}

/// Reads and drops the rest of a body that nobody needed; whether it came whole and in time.
async fn drain(conn: &Connection, inbox: &mut Buffer, body: &mut BodyDecoder) -> bool {
    conn.timers.set(Slot::ClientRead, conn.worker.clock.lately() + us(conn.listener.timeouts.body));
    let mut blocks = Blocks::default();
    loop {
        blocks.next().await;
        let Ok(decoded) = body.decode(inbox.data_mut()) else { return false };
        inbox.consume(decoded.consumed);
        if decoded.done {
            conn.timers.clear(Slot::ClientRead);
            return true;
        }
        match conn.client.recv(inbox.room()) {
            Ok(Some(0)) | Err(_) => return false,
            Ok(Some(received)) => inbox.received(received),
            Ok(None) => conn.client.readable().await,
        }
    }
}

/// Answers a request whose head cannot be read at all, and closes.
async fn refuse(conn: &mut Connection, failure: Failure, out: &mut Vec<u8>) {
    let conn = &*conn;
    let mut exchange = Exchange::new(conn);
    respond::failure(conn, &mut exchange, failure, b"", out);
    let written = write_client(conn, out).await;
    record(conn, &exchange, b"");
    if written.is_ok() && conn.client.stream().is_none() {
        let mut inbox = conn.worker.take_inbox();
        linger(conn, &mut inbox).await;
    }
}
