//! The answer's way back: its head written anew, its body passed on as it comes.

use ringway_config::snapshot::{Action, Route};
use ringway_core::access::Seen;
use ringway_core::failure::Failure;
use ringway_core::http::{
    BodyDecoder, CHUNK_HEAD_MAX, Framing, HeadLines, HeadStorage, Name, ResponseHead, list, list_has_token, websocket,
    write_chunk_head, write_trailers,
};
use ringway_core::limit::HeaderStyle;

use crate::buffer::Buffer;
use crate::clock::us;
use crate::deadline::Slot;
use crate::forward::Attempt;
use crate::gate;
use crate::io::{Blocks, Gone, wait_sent, write_client};
use crate::request::{Exchange, WEBSOCKET};
use crate::respond::{write_answer_ops, write_connection, write_number};
use crate::service_head::write_upgrade;
use crate::split;
use crate::sticky::write_cookie;
use crate::stream::Stream;
use crate::upstream::Upstream;

/// Interim answers (1xx) that a service may send before its answer.
pub(crate) const INTERIM_MAX: usize = 32;

/// What proves a WebSocket's handshake.
const ACCEPT: &str = "sec-websocket-accept";

/// How the relay ended once the answer had begun.
pub(crate) enum Relayed {
    Whole {
        /// The service's connection may be used again.
        reusable: bool,
    },
    /// The client did not take it.
    ClientGone,
    /// The service did not finish it.
    BrokenOff,
    /// The service has changed the protocol, and the client knows. With what the service has sent since.
    Upgraded(Buffer),
}

/// How the body goes on to the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Delivery {
    /// As it is: by its length, or until the connection is closed.
    Plain,
    Chunked,
}

struct Shape {
    framing: Framing,
    delivery: Delivery,
    reusable: bool,
    interim: bool,
    upgraded: bool,
}

/// Passes an answer on whose head stands whole in `buffer`. `out` is room for heads.
pub(crate) async fn relay(
    attempt: &Attempt<'_>,
    exchange: &mut Exchange,
    upstream: &mut Upstream,
    mut buffer: Buffer,
    mut length: usize,
    out: &mut Vec<u8>,
) -> Result<Relayed, Failure> {
    let conn = attempt.outbound.conn;
    let mut interims = 0;
    let shape = loop {
        out.clear();
        let head = buffer.data().get(..length).unwrap_or_default();
        let shape = write_answer_head(attempt, exchange, head, out)?;
        if !shape.interim {
            attempt.begun(exchange, head);
        }
        buffer.consume(length);
        if !shape.interim {
            break shape;
        }
        interims += 1;
        if interims > INTERIM_MAX {
            return Err(Failure::BadAnswer);
        }
        // A client of HTTP/1.0 does not know interim answers.
        if !exchange.is_http10 && write_client(conn, out).await.is_err() {
            return Err(Failure::ClientGone);
        }
        (buffer, length) = attempt.outbound.next_answer(upstream, buffer).await?;
    };
    attempt.answered.set(true);
    conn.timers.clear(Slot::Service);
    if exchange.call.is_some() {
        // From now on the client may be silent.
        conn.timers.clear(Slot::ClientRead);
    }
    if shape.upgraded {
        let told = match conn.client.stream() {
            Some(stream) => stream.send_head(out, false).map_err(|_| Gone),
            None => write_client(conn, out).await,
        };
        return Ok(told.map_or(Relayed::ClientGone, |()| Relayed::Upgraded(buffer)));
    }

    let idle = us(attempt.outbound.service.timeouts.idle);
    let mut body = BodyDecoder::new(shape.framing);
    let mut has_head = true;
    let mut blocks = Blocks::default();
    loop {
        let Ok(decoded) = body.decode(buffer.data_mut()) else {
            if has_head {
                exchange.status = 0;
                return Err(Failure::BadAnswer);
            }
            return Ok(Relayed::BrokenOff);
        };
        let has_rest = decoded.consumed < buffer.len();
        if let Some(call) = &mut exchange.call {
            if decoded.done {
                call.learn_trailers(body.trailers());
            }
            attempt.follow(!decoded.data.is_empty(), decoded.done.then_some(call.status));
        }
        buffer.narrow(decoded.data);
        if let Some(stream) = conn.client.stream() {
            let head = std::mem::take(&mut has_head).then_some(&mut *out);
            let block = std::mem::replace(&mut buffer, conn.worker.take_answer());
            let delivered = deliver(attempt, exchange, stream, head, block, &body, decoded.done).await;
            if delivered.is_err() {
                return Ok(Relayed::ClientGone);
            }
            if decoded.done {
                return Ok(Relayed::Whole { reusable: shape.reusable && !has_rest });
            }
        }
        let has_trailers = frame(&mut buffer, shape.delivery, &body, decoded.done);
        if decoded.done {
            // With the last piece the client may ask again, of another worker.
            exchange.give_back(conn);
        }
        if std::mem::take(&mut has_head) && !buffer.prepend(out) && write_client(conn, out).await.is_err() {
            return Ok(Relayed::ClientGone);
        }
        if !buffer.is_empty() && write_client(conn, buffer.data()).await.is_err() {
            return Ok(Relayed::ClientGone);
        }
        if has_trailers {
            out.clear();
            let ops = conn.route(exchange).map(|route| &route.response_headers);
            if write_trailers(body.trailers(), |name| ops.is_none_or(|ops| !ops.drops(name)), out).is_none() {
                return Ok(Relayed::BrokenOff);
            }
            if write_client(conn, out).await.is_err() {
                return Ok(Relayed::ClientGone);
            }
        }
        if decoded.done {
            return Ok(Relayed::Whole { reusable: shape.reusable && !has_rest });
        }
        buffer.clear();
        blocks.next().await;
        conn.timers.set(Slot::Service, conn.worker.clock.lately() + idle);
        loop {
            match upstream.link.recv(buffer.room()) {
                Ok(Some(received)) if received > 0 => {
                    buffer.received(received);
                    break;
                }
                Ok(None) => upstream.ready().await,
                Ok(Some(_))
                    if shape.framing == Framing::Close
                        && attempt.outbound.late(Failure::AnswerIncomplete).is_none() =>
                {
                    exchange.give_back(conn);
                    if let Some(call) = exchange.call {
                        attempt.follow(false, Some(call.status));
                    }
                    let end: &[u8] = if shape.delivery == Delivery::Chunked { b"0\r\n\r\n" } else { b"" };
                    if let Some(stream) = conn.client.stream() {
                        let ended = stream.send_bytes(b"", true).is_ok();
                        return Ok(if ended { Relayed::Whole { reusable: false } } else { Relayed::ClientGone });
                    }
                    let ended = end.is_empty() || write_client(conn, end).await.is_ok();
                    return Ok(if ended { Relayed::Whole { reusable: false } } else { Relayed::ClientGone });
                }
                Ok(Some(_)) | Err(_) if conn.timers.has_fired(Slot::ClientGone) => return Ok(Relayed::ClientGone),
                Ok(Some(_)) | Err(_) => return Ok(Relayed::BrokenOff),
            }
        }
        conn.timers.clear(Slot::Service);
    }
}

/// Gives a stream what has come of its answer, and waits until it has left.
async fn deliver(
    attempt: &Attempt<'_>,
    exchange: &Exchange,
    stream: &Stream,
    head: Option<&mut Vec<u8>>,
    block: Buffer,
    body: &BodyDecoder,
    done: bool,
) -> Result<(), Gone> {
    let conn = attempt.outbound.conn;
    let has_trailers = done && !body.trailers().is_empty();
    conn.worker.cell().client_bytes_out.add(block.len() as u64);
    if let Some(head) = head {
        conn.worker.cell().client_bytes_out.add(head.len() as u64);
        let end = done && block.is_empty() && !has_trailers;
        stream.send_head(head, end).map_err(|_| Gone)?;
        if end {
            return Ok(());
        }
    }
    if !block.is_empty() || (done && !has_trailers) {
        stream.send_block(block, done && !has_trailers).map_err(|_| Gone)?;
        wait_sent(conn, stream).await?;
    }
    if has_trailers {
        let mut section = conn.worker.take_head();
        let ops = conn.route(exchange).map(|route| &route.response_headers);
        write_trailers(body.trailers(), |name| ops.is_none_or(|ops| !ops.drops(name)), &mut section).ok_or(Gone)?;
        stream.send_trailers(&section).map_err(|_| Gone)?;
        conn.worker.give_head(section);
    }
    Ok(())
}

/// Frames the data in the buffer for the client. Gives back whether a trailer section is to follow, which may not fit
/// behind it.
fn frame(buffer: &mut Buffer, delivery: Delivery, body: &BodyDecoder, done: bool) -> bool {
    if delivery == Delivery::Plain {
        return false;
    }
    if !buffer.is_empty() {
        let mut room = [0; CHUNK_HEAD_MAX];
        let length = write_chunk_head(buffer.len(), &mut room);
        buffer.prepend(room.get(CHUNK_HEAD_MAX - length..).unwrap_or_default());
        buffer.append(b"\r\n");
    }
    let has_trailers = !body.trailers().is_empty();
    if done {
        buffer.append(if has_trailers { b"0\r\n" } else { b"0\r\n\r\n" });
    }
    done && has_trailers
}

/// Judges an answer's head and writes the client's into `out`. Settles whether the client's connection lives.
fn write_answer_head(
    attempt: &Attempt<'_>,
    exchange: &mut Exchange,
    head: &[u8],
    out: &mut Vec<u8>,
) -> Result<Shape, Failure> {
    let conn = attempt.outbound.conn;
    let mut storage = HeadStorage::new();
    let answer = ResponseHead::parse(head, exchange.is_head, &mut storage).map_err(|_| Failure::BadAnswer)?;
    let upgraded = answer.status == 101;
    let interim = answer.status < 200 && !upgraded;
    let asked = exchange.upgrade.get(attempt.request);
    if upgraded && !asked.is_some_and(|asked| agrees(&answer, asked, exchange.websocket_key.get(attempt.request))) {
        return Err(Failure::BadAnswer);
    }
    if exchange.is_http2 && asked.is_some() && (200..300).contains(&answer.status) {
        // To the client it would say that it has its tunnel (RFC 8441 section 5).
        return Err(Failure::BadAnswer);
    }
    let status = if upgraded && exchange.is_http2 { 200 } else { answer.status };
    let unframed = answer.framing == Framing::Chunked || answer.framing == Framing::Close;
    let delivery =
        if unframed && !exchange.is_http10 && !exchange.is_http2 { Delivery::Chunked } else { Delivery::Plain };
    if !interim {
        exchange.status = status;
        if let Some(call) = &mut exchange.call {
            call.learn(answer.headers);
        }
        // While the request's body still comes nobody knows where the next request would begin.
        let next = attempt.outbound.is_sent.get() && conn.may_keep_alive();
        exchange.keep_alive &= next && !(unframed && exchange.is_http10);
    }

    out.extend_from_slice(b"HTTP/1.1 ");
    write_number(status, out);
    out.push(b' ');
    out.extend_from_slice(answer.reason.as_bytes());
    out.extend_from_slice(b"\r\n");
    let route = conn.route(exchange);
    let ops = route.map(|route| &route.response_headers).filter(|ops| !ops.is_empty() && !interim);
    let access = route.map(|route| &route.access).filter(|access| access.changes_answers() && !interim);
    let limit = if interim { HeaderStyle::None } else { gate::limit_headers(conn, exchange) };
    let mut seen = Seen::default();
    HeadLines { head, headers: answer.headers, names: answer.names }.copy(out, |name, header| {
        let kept = match name {
            // Answers the key that the gateway made.
            Name::Other if upgraded && exchange.is_http2 => !header.name.eq_ignore_ascii_case(ACCEPT),
            Name::Other => !limit.has(header.name),
            Name::XRequestId => false,
            Name::ContentLength => !matches!(answer.status, 100..=199 | 204),
            name => !name.is_hop_by_hop(),
        };
        let connection_field = answer.has_connection_fields
            && name != Name::ContentLength
            && list_has_token(answer.values(Name::Connection), header.name.as_bytes());
        kept && !connection_field
            && ops.is_none_or(|ops| !ops.drops(header.name))
            && access.is_none_or(|access| access.keeps(header.name, &mut seen))
    });
    if interim {
        out.extend_from_slice(b"\r\n");
        let (framing, delivery) = (Framing::None, Delivery::Plain);
        return Ok(Shape { framing, delivery, reusable: false, interim, upgraded });
    }
    out.extend_from_slice(b"X-Request-ID: ");
    out.extend_from_slice(exchange.id.as_bytes());
    out.extend_from_slice(b"\r\n");
    if !answer.has_date {
        // RFC 9110 section 6.6.1: a recipient with a clock adds it.
        out.extend_from_slice(b"Date: ");
        conn.worker.clock.write_date(out);
        out.extend_from_slice(b"\r\n");
    }
    if delivery == Delivery::Chunked {
        out.extend_from_slice(b"Transfer-Encoding: chunked\r\n");
    }
    match upgraded.then_some(asked).flatten().or_else(|| missed(&answer, exchange, route)) {
        Some(protocol) => write_upgrade(protocol, out),
        None => write_connection(exchange.keep_alive, exchange.is_http10, out),
    }
    if conn.listener.server_timing {
        out.extend_from_slice(b"Server-Timing: service;dur=");
        let us = exchange.service_us.unwrap_or_default();
        write_number(us / 1000, out);
        out.push(b'.');
        let fraction = us % 1000;
        out.extend_from_slice(&[100, 10, 1].map(|unit| b'0' + (fraction / unit % 10) as u8));
        out.extend_from_slice(b"\r\n");
    }
    write_cookie(conn, exchange, &attempt.passage, out);
    gate::write_limit(conn, exchange, out);
    if exchange.given_key != 0 {
        split::write_cookie(conn, exchange, out);
    }
    if let Some(access) = access {
        access.write_answer_headers(exchange.origin.get(attempt.request), conn.listener.tls.is_some(), seen, out);
    }
    if let (Some(ops), Some(route)) = (ops, route) {
        write_answer_ops(attempt, exchange, ops, route, out);
    }
    out.extend_from_slice(b"\r\n");
    Ok(Shape { framing: answer.framing, delivery, reusable: answer.keep_alive && !upgraded, interim, upgraded })
}

/// Whether a 101 is the answer to what was asked: this protocol and no other, and of a WebSocket the proof that the service
/// knows what it agrees to (RFC 6455 section 4.1).
fn agrees(answer: &ResponseHead<'_, '_>, asked: &[u8], key: Option<&[u8]>) -> bool {
    let mut named = answer.values(Name::Upgrade).flat_map(list);
    let is_named = named.next().is_some_and(|named| named.eq_ignore_ascii_case(asked)) && named.next().is_none();
    let mut accepts = answer.headers.iter().filter(|header| header.name.eq_ignore_ascii_case(ACCEPT));
    let mut is_proven = || match (key, accepts.next(), accepts.next()) {
        (Some(key), Some(accept), None) => accept.value == websocket::accept_of(key),
        _ => !asked.eq_ignore_ascii_case(WEBSOCKET),
    };
    is_named && list_has_token(answer.values(Name::Connection), b"upgrade") && is_proven()
}

/// The protocol that the service would have a client change to (426, RFC 9110 section 15.5.22), where the route allows it.
fn missed<'b>(answer: &ResponseHead<'b, '_>, exchange: &Exchange, route: Option<&Route>) -> Option<&'b [u8]> {
    if answer.status != 426 || exchange.is_http10 || exchange.is_http2 || !exchange.keep_alive {
        return None;
    }
    let Action::Forward(forward) = &route?.action else { return None };
    answer.values(Name::Upgrade).flat_map(list).find(|protocol| forward.upgrades.allows(protocol))
}
