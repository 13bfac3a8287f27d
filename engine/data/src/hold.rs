//! Bodies that must be known whole before a byte of the request goes to its service: those with a schema.

use ringway_core::failure::Failure;
use ringway_core::http::{BodyDecoder, CHUNK_HEAD_MAX, Framing, write_chunk_head};

use crate::buffer::Buffer;
use crate::clock::us;
use crate::connection::Connection;
use crate::deadline::Slot;
use crate::forward::{check_size, timeouts};
use crate::io::{Blocks, write_client};
use crate::pace::Pace;
use crate::request::Exchange;
use crate::retry::per_try;
use crate::time_left;

const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// Where the route looks at bodies: reads the whole body and checks it. It then stands behind the head in `out`, as the
/// service gets it, but for the end of a chunked one, which [`forward`](crate::forward::forward) writes.
///
/// `used` and `body` tell how much of the inbox, and of the body, was used; `rest` is the buffer that holds what followed
/// a body that did not end with a read.
///
/// Memory: `out` grows to twice `exchange.body_bytes_max` at most, for a request that sends as much.
///
/// # Errors
/// The body is too large, too slow, malformed or not valid, or the client has gone. Nothing was sent to the service.
pub(crate) async fn hold(
    conn: &Connection,
    exchange: &mut Exchange,
    inbox: &mut Buffer,
    used: &mut usize,
    body: &mut BodyDecoder,
    out: &mut Vec<u8>,
    rest: &mut Option<Buffer>,
) -> Result<(), Failure> {
    let held = conn.route(exchange).and_then(|route| route.access.validation.as_ref());
    let Some(validation) = held.filter(|validation| validation.body_bytes_max().is_some()) else { return Ok(()) };
    if exchange.framing == Framing::None {
        return Ok(());
    }
    let begin = out.len();
    let checked = match read(conn, exchange, inbox, used, body, out, rest).await {
        Ok(()) => validation.check_body(out.get(begin..).unwrap_or_default()).map_err(|invalid| {
            exchange.gate.invalid = Some(Box::new(invalid));
            Failure::Invalid
        }),
        Err(failure) => {
            // Where this request ends, and the next begins, is not known.
            exchange.keep_alive = false;
            Err(failure)
        }
    };
    if checked.is_err() {
        exchange.service = None;
    } else if exchange.framing == Framing::Chunked {
        frame(begin, out);
    }
    if let (Ok(()), Some(view)) = (&checked, exchange.service.and_then(|service| conn.view.services.get(service))) {
        // It has taken its time.
        let try_until =
            per_try(conn, exchange, &view.service).map_or(u64::MAX, |limit| conn.worker.clock.now() + us(limit));
        time_left::renew(conn, exchange, &view.service, try_until, out);
    }
    checked
}

async fn read(
    conn: &Connection,
    exchange: &mut Exchange,
    inbox: &mut Buffer,
    used: &mut usize,
    body: &mut BodyDecoder,
    out: &mut Vec<u8>,
    rest: &mut Option<Buffer>,
) -> Result<(), Failure> {
    let begin = out.len();
    *used += take(exchange, body, inbox.data_mut().get_mut(*used..).unwrap_or_default(), begin, out)?;
    if body.is_done() {
        return Ok(());
    }
    // RFC 9110 section 10.1.1: the gateway is the one that wants the body, and it has judged the head.
    if std::mem::take(&mut exchange.expects_continue) {
        write_client(conn, CONTINUE).await.map_err(|_| Failure::ClientGone)?;
    }
    if let Some(request) = timeouts(conn, exchange).request {
        conn.timers.set(Slot::Request, exchange.started + us(request));
    }
    let mut buffer = conn.worker.take_inbox();
    let pace = Pace::start(conn);
    let mut blocks = Blocks::default();
    let mut received = 0;
    while !body.is_done() {
        blocks.next().await;
        received += pace.receive(conn, &mut buffer, received).await?;
        let consumed = take(exchange, body, buffer.data_mut(), begin, out)?;
        buffer.consume(consumed);
    }
    *rest = (!buffer.is_empty()).then_some(buffer);
    Ok(())
}

/// Decodes what has arrived and appends what it holds of the body. How many bytes of it were the body's.
fn take(
    exchange: &Exchange,
    body: &mut BodyDecoder,
    arrived: &mut [u8],
    begin: usize,
    out: &mut Vec<u8>,
) -> Result<usize, Failure> {
    let decoded = body.decode(arrived).map_err(|_| Failure::Malformed("Malformed chunked body"))?;
    let data = arrived.get(decoded.data).unwrap_or_default();
    // Before it is copied, so that the bound holds for the memory too.
    check_size((out.len() - begin + data.len()) as u64, exchange)?;
    out.extend_from_slice(data);
    Ok(decoded.consumed)
}

/// Makes one chunk of what stands in `out` from `begin` on.
fn frame(begin: usize, out: &mut Vec<u8>) {
    let size = out.len() - begin;
    if size == 0 {
        return;
    }
    let mut room = [0; CHUNK_HEAD_MAX];
    let length = write_chunk_head(size, &mut room);
    out.splice(begin..begin, room.into_iter().skip(CHUNK_HEAD_MAX - length));
    out.extend_from_slice(b"\r\n");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_becomes_one_chunk() {
        let mut out = b"head".to_vec();
        frame(4, &mut out);
        assert_eq!(out, b"head", "an empty body is its end alone");
        out.extend_from_slice(&[b'x'; 18]);
        frame(4, &mut out);
        assert_eq!(out, b"head12\r\nxxxxxxxxxxxxxxxxxx\r\n");
    }
}
