//! The gateway asks a service something itself while a client's request waits: on the same loop, over the same
//! connections, under the same deadlines as a request that is forwarded.

use ringway_core::failure::Failure;
use ringway_core::http::{BodyDecoder, Framing, HeadStorage, ResponseHead};

use crate::affinity::Wish;
use crate::answer::INTERIM_MAX;
use crate::buffer::Buffer;
use crate::bulkhead::own_place;
use crate::clock::us;
use crate::connection::Connection;
use crate::deadline::Slot;
use crate::io::Blocks;
use crate::outbound::{Broken, Outbound};
use crate::retry::status_of;
use crate::upstream::Upstream;
use crate::view::ServiceView;

/// How far a call may go.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// When the whole answer must be there, all tries together, on the core's clock.
    pub(crate) until: u64,
    pub(crate) body: Keep,
    /// It may wait for a place among the service's requests in flight, as the service says; else it is refused at once.
    pub(crate) may_wait: bool,
    /// The service may get the request twice: a pooled connection that was closed just before it was used is made up
    /// for by a fresh one, once.
    pub(crate) may_repeat: bool,
}

/// What becomes of the answer's body.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Keep {
    /// So many bytes; more is [`Failure::BadAnswer`].
    UpTo(usize),
    /// It is read, and dropped.
    Nothing,
}

/// A whole answer, in a buffer of the core's.
pub(crate) struct Reply {
    /// The head, then the body.
    buffer: Buffer,
    head: usize,
    /// From the request's sending to the answer's head, in microseconds.
    pub(crate) head_us: u64,
}

impl Reply {
    /// Status line and header fields, with the empty line that ends them.
    pub(crate) fn head(&self) -> &[u8] {
        self.buffer.data().get(..self.head).unwrap_or_default()
    }

    /// The body, freed of its transfer coding.
    pub(crate) fn body(&self) -> &[u8] {
        self.buffer.data().get(self.head..).unwrap_or_default()
    }
}

/// Sends `request`, a whole one, head and body, to a service (an index of the snapshot) and waits for the whole answer.
///
/// Uses `conn`'s row of deadlines, so that its client's going away ends the wait ([`Failure::ClientGone`]); nothing else
/// of the client's connection is touched. Counts as any other request to the service, in flight, among those that its bulkhead
/// allows ([`Failure::BulkheadFull`]), errors and time.
pub(crate) async fn call(conn: &Connection, service: usize, request: &[u8], limits: Limits) -> Result<Reply, Failure> {
    let pick = |view: &ServiceView| view.pick_where(&conn.worker, Wish::default(), 0, |_| true);
    let endpoint = conn.view.services.get(service).map(pick);
    match endpoint {
        Some(Some(endpoint)) => call_at(conn, service, endpoint, request, limits).await,
        Some(None) => Err(counted(conn, service, Failure::NoEndpoint)),
        None => Err(Failure::Internal),
    }
}

/// As [`call`], of an endpoint that was chosen.
pub(crate) async fn call_at(
    conn: &Connection,
    service: usize,
    endpoint: usize,
    request: &[u8],
    limits: Limits,
) -> Result<Reply, Failure> {
    let place = own_place(conn, service, limits.may_wait.then_some(limits.until)).await?;
    let result = attempt(conn, service, endpoint, request, limits).await;
    match &result {
        Ok(reply) => place.answered(status_of(reply.head()), reply.head_us),
        Err(Failure::AnswerTimeout) => {
            let waited = conn.view.services.get(service).map_or(0, |view| us(view.service.timeouts.answer));
            place.answered(0, waited);
        }
        Err(_) => {}
    }
    conn.timers.service(None, 0);
    // The request that waits goes on as if this had not been.
    conn.timers.forget(Slot::Request);
    result.map_err(|failure| counted(conn, service, failure))
}

fn counted(conn: &Connection, service: usize, failure: Failure) -> Failure {
    if let (Some(cell), Some(error)) = (conn.view.service_cell(service, conn.worker.id), failure.backend_error()) {
        cell.record_error(error);
    }
    failure
}

async fn attempt(
    conn: &Connection,
    service: usize,
    endpoint: usize,
    request: &[u8],
    limits: Limits,
) -> Result<Reply, Failure> {
    let outbound = Outbound::new(conn, service, endpoint)?;
    conn.timers.set(Slot::Request, limits.until);
    let (upstream, reused) = outbound.acquire(false).await?;
    let repeats = reused && limits.may_repeat && outbound.service.retry_stale;
    match exchange(&outbound, upstream, request, limits.body).await {
        Err(broken) if matches!(broken, Broken::Refused) || (repeats && matches!(broken, Broken::Unanswered)) => {
            outbound.cell.stale_retries.add(1);
            let (upstream, _) = outbound.acquire(true).await?;
            Ok(exchange(&outbound, upstream, request, limits.body).await?)
        }
        result => Ok(result?),
    }
}

/// One try on one connection.
async fn exchange(
    outbound: &Outbound<'_>,
    mut upstream: Upstream,
    request: &[u8],
    keep: Keep,
) -> Result<Reply, Broken> {
    let clock = &outbound.conn.worker.clock;
    let begun = clock.lately();
    let taken = outbound.send(&upstream, request).await?;
    outbound.sent();
    outbound.arm_answer();
    let (mut buffer, mut length) = outbound.read_answer(&mut upstream, None).await?;
    let head_us = clock.now().saturating_sub(begun);
    outbound.cell.latency.record_us(head_us);
    let to_head = request.starts_with(b"HEAD ");
    for _ in 0..INTERIM_MAX {
        let Shape { status, framing, reusable } = judge(buffer.data().get(..length).unwrap_or_default(), to_head)?;
        if status >= 200 {
            let is_spent = read_body(outbound, &mut upstream, &mut buffer, length, framing, keep).await?;
            if taken && reusable && !is_spent {
                outbound.conn.timers.service(None, 0);
                upstream.give_back(clock.lately());
            }
            return Ok(Reply { buffer, head: length, head_us });
        }
        buffer.consume(length);
        (buffer, length) = outbound.next_answer(&mut upstream, buffer).await?;
    }
    Err(Failure::BadAnswer.into())
}

/// What of an answer's head decides how to go on.
struct Shape {
    status: u16,
    framing: Framing,
    reusable: bool,
}

fn judge(head: &[u8], to_head: bool) -> Result<Shape, Failure> {
    let mut storage = HeadStorage::new();
    let answer = ResponseHead::parse(head, to_head, &mut storage).map_err(|_| Failure::BadAnswer)?;
    match answer.status {
        // Nothing asked for an upgrade.
        101 => Err(Failure::BadAnswer),
        status => Ok(Shape { status, framing: answer.framing, reusable: answer.keep_alive }),
    }
}

/// Reads the body behind the head, which is `head` bytes long. Gives back whether the connection must not be used
/// again: more came than the answer.
async fn read_body(
    outbound: &Outbound<'_>,
    upstream: &mut Upstream,
    buffer: &mut Buffer,
    head: usize,
    framing: Framing,
    keep: Keep,
) -> Result<bool, Failure> {
    let timers = &outbound.conn.timers;
    let idle = us(outbound.service.timeouts.idle);
    let (bytes_max, is_kept) = match keep {
        Keep::UpTo(bytes) => (bytes, true),
        Keep::Nothing => (0, false),
    };
    if is_kept && matches!(framing, Framing::Length(length) if length > bytes_max as u64) {
        return Err(Failure::BadAnswer);
    }
    let mut body = BodyDecoder::new(framing);
    let mut end = head;
    let mut blocks = Blocks::default();
    loop {
        let arrived = buffer.data_mut().get_mut(end..).unwrap_or_default();
        let received = arrived.len();
        let decoded = body.decode(arrived).map_err(|_| Failure::BadAnswer)?;
        let gathered = decoded.data.len();
        // What the transfer coding has left out leaves no gap.
        arrived.copy_within(decoded.data, 0);
        if is_kept {
            end += gathered;
        }
        buffer.narrow(0..end);
        if end - head > bytes_max {
            return Err(Failure::BadAnswer);
        }
        if decoded.done {
            return Ok(decoded.consumed < received);
        }
        blocks.next().await;
        if buffer.room().is_empty() {
            // What is not kept needs room for a piece at a time, and the head may have taken all of it.
            let whole = if is_kept { head + bytes_max + 1 } else { usize::MAX };
            buffer.make_room(whole.min(buffer.len() * 2));
        }
        timers.set(Slot::Service, outbound.conn.worker.clock.lately() + idle);
        loop {
            match upstream.link.recv(buffer.room()) {
                Ok(Some(received)) if received > 0 => break buffer.received(received),
                Ok(None) => upstream.ready().await,
                Ok(Some(_)) if framing == Framing::Close && outbound.late(Failure::AnswerIncomplete).is_none() => {
                    return Ok(true);
                }
                Ok(Some(_)) | Err(_) => {
                    return Err(outbound.late(Failure::AnswerTimeout).unwrap_or(Failure::AnswerIncomplete));
                }
            }
        }
        timers.clear(Slot::Service);
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::net::TcpStream;
    use std::time::{Duration, Instant};

    use super::*;
    use crate::testing::{Client, Service, on_core};

    const REQUEST: &[u8] = b"GET /check HTTP/1.1\r\nHost: auth\r\n\r\n";

    async fn ask(conn: &Connection, within: Duration, body_bytes_max: usize) -> Result<Reply, Failure> {
        let until = conn.worker.clock.now() + us(within);
        call(conn, 0, REQUEST, Limits { until, body: Keep::UpTo(body_bytes_max), may_repeat: true, may_wait: true })
            .await
    }

    async fn ask_for(conn: &Connection, body_bytes_max: usize) -> Result<(u16, String), Failure> {
        let reply = ask(conn, Duration::from_secs(10), body_bytes_max).await?;
        assert!(reply.head().starts_with(b"HTTP/1.") && reply.head().ends_with(b"\r\n\r\n"));
        Ok((status(&reply), String::from_utf8_lossy(reply.body()).into_owned()))
    }

    fn status(reply: &Reply) -> u16 {
        std::str::from_utf8(&reply.head()[9..12]).unwrap().parse().unwrap()
    }

    /// What the gauges of the only endpoint say: in flight, idle, open.
    fn gauges(conn: &Connection) -> [u64; 3] {
        let cell = conn.view.services[0].pools[0].cell();
        [cell.in_flight.get(), cell.idle.get(), cell.open.get()]
    }

    fn errors(conn: &Connection) -> Vec<(&'static str, u64)> {
        let cell = conn.view.service_cell(0, 0).unwrap();
        cell.errors().filter(|(_, count)| *count > 0).collect()
    }

    /// Answers every request of every connection with these pieces, a moment apart.
    fn answering(pieces: &'static [&'static str]) -> Service {
        Service::start(move |_, stream, read_request| {
            while read_request(stream) {
                for piece in pieces {
                    stream.write_all(piece.as_bytes()).unwrap();
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
        })
    }

    #[test]
    fn answers_come_whole_however_they_are_framed_and_the_connection_is_kept() {
        for pieces in [
            &["HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"][..],
            &["HTTP/1.1 200 OK\r\nContent-", "Length: 5\r\n\r\nhe", "l", "lo"],
            &["HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n"],
            &[
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2;x=y\r\nh",
                "e\r",
                "\n3\r\nllo\r\n0\r\nA: b\r\n\r\n",
            ],
            &[
                "HTTP/1.1 100 Continue\r\n\r\n",
                "HTTP/1.1 103 Hints\r\nA: b\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
            ],
        ] {
            let service = answering(pieces);
            on_core(&service, async |conn: &Connection, _| {
                for _ in 0..3 {
                    assert_eq!(ask_for(conn, 100).await, Ok((200, "hello".into())), "{pieces:?}");
                    assert_eq!(gauges(conn), [0, 1, 1]);
                }
                conn.worker.tick(1);
                assert_eq!(conn.worker.cell().buffers_in_use.get(), 0);
                assert_eq!(errors(conn), []);
                let cell = conn.view.services[0].pools[0].cell();
                assert_eq!((cell.requests.get(), cell.connects.get(), cell.reuses.get()), (3, 1, 2));
            });
            assert_eq!(service.requests(), 3);
        }
    }

    #[test]
    fn an_answer_that_ends_with_its_connection_is_whole_and_the_connection_gone() {
        let service = Service::start(|_, stream, read_request| {
            assert!(read_request(stream));
            stream.write_all(b"HTTP/1.0 403 No\r\n\r\nsorry").unwrap();
        });
        on_core(&service, async |conn: &Connection, _| {
            assert_eq!(ask_for(conn, 5).await, Ok((403, "sorry".into())));
            assert_eq!(gauges(conn), [0, 0, 0]);
        });
    }

    #[test]
    fn a_body_over_its_limit_is_a_bad_answer_and_a_large_one_within_it_is_not() {
        let long: &'static str = Box::leak("x".repeat(60_000).into_boxed_str());
        let by_length: &'static str =
            Box::leak(format!("HTTP/1.1 200 OK\r\nContent-Length: 60000\r\n\r\n{long}").into());
        let chunked: &'static str = Box::leak(
            format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nEA60\r\n{long}\r\n0\r\n\r\n").into(),
        );
        for answer in [by_length, chunked] {
            let service = Service::start(move |_, stream, read_request| {
                while read_request(stream) {
                    let _ = stream.write_all(answer.as_bytes());
                }
            });
            on_core(&service, async |conn: &Connection, _| {
                assert_eq!(ask_for(conn, 60_000).await, Ok((200, long.into())));
                assert_eq!(ask_for(conn, 59_999).await, Err(Failure::BadAnswer));
                assert_eq!(errors(conn), [("bad_answer", 1)]);
                assert_eq!(gauges(conn), [0, 0, 0]);
            });
        }
    }

    #[test]
    fn a_body_that_nobody_wants_takes_no_room_and_leaves_the_connection() {
        let long: &'static str = Box::leak("x".repeat(300_000).into_boxed_str());
        let by_length: &'static str =
            Box::leak(format!("HTTP/1.1 200 OK\r\nContent-Length: 300000\r\n\r\n{long}").into());
        let chunked: &'static str = Box::leak(
            format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n493E0\r\n{long}\r\n0\r\n\r\n").into(),
        );
        for answer in [by_length, chunked] {
            let service = Service::start(move |_, stream, read_request| {
                while read_request(stream) {
                    let _ = stream.write_all(answer.as_bytes());
                }
            });
            on_core(&service, async |conn: &Connection, _| {
                for _ in 0..2 {
                    let until = conn.worker.clock.now() + us(Duration::from_secs(10));
                    let limits = Limits { until, body: Keep::Nothing, may_repeat: true, may_wait: true };
                    let reply = call(conn, 0, REQUEST, limits).await.unwrap();
                    assert_eq!((status(&reply), reply.body().len()), (200, 0));
                    assert!(reply.buffer.len() < 20_000);
                    assert_eq!((gauges(conn), errors(conn)), ([0, 1, 1], vec![]));
                }
            });
        }
    }

    #[test]
    fn what_is_not_an_answer_is_a_bad_answer() {
        for answer in [
            "SSH-2.0-x\r\n\r\n",
            "HTTP/1.1 101 Switching\r\nUpgrade: x\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nx",
        ] {
            let service = Service::start(move |_, stream, read_request| {
                while read_request(stream) {
                    let _ = stream.write_all(answer.as_bytes());
                }
            });
            on_core(&service, async |conn: &Connection, _| {
                assert_eq!(ask_for(conn, 100).await, Err(Failure::BadAnswer), "{answer:?}");
                assert_eq!(errors(conn), [("bad_answer", 1)]);
            });
        }
    }

    #[test]
    fn an_answer_that_breaks_off_is_no_answer() {
        let service = Service::start(|_, stream, read_request| {
            assert!(read_request(stream));
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhel").unwrap();
        });
        on_core(&service, async |conn: &Connection, _| {
            assert_eq!(ask_for(conn, 100).await, Err(Failure::AnswerIncomplete));
            assert_eq!((gauges(conn), errors(conn)), ([0, 0, 0], vec![("body", 1)]));
        });
    }

    #[test]
    fn a_pooled_connection_that_was_just_closed_is_made_up_for_once() {
        // The first connection takes a second request and closes without a word, so does every later one at once.
        let service = Service::start(|index, stream, read_request| {
            while read_request(stream) && (index == 0 || index == 1) {
                stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").unwrap();
                if index == 0 {
                    read_request(stream);
                    return;
                }
            }
        });
        on_core(&service, async |conn: &Connection, _| {
            assert_eq!(ask_for(conn, 0).await, Ok((200, String::new())));
            assert_eq!(ask_for(conn, 0).await, Ok((200, String::new())));
            assert_eq!(conn.view.service_cell(0, 0).unwrap().stale_retries.get(), 1);
            assert_eq!((gauges(conn), errors(conn)), ([0, 1, 1], vec![]));
        });
        let silent = Service::start(|_, stream, read_request| {
            read_request(stream);
        });
        on_core(&silent, async |conn: &Connection, _| {
            assert_eq!(ask_for(conn, 0).await, Err(Failure::ConnectionBroken));
            assert_eq!((gauges(conn), errors(conn)), ([0, 0, 0], vec![("reset", 1)]));
        });
        assert_eq!(silent.requests(), 1, "a fresh connection's failure is not repeated");
    }

    #[test]
    fn the_whole_deadline_holds_over_a_trickle_and_leaves_no_trace() {
        let service = Service::start(|index, stream, read_request| {
            assert!(read_request(stream));
            if index > 0 {
                stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").unwrap();
            }
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n").unwrap();
            while stream.write_all(b"x").is_ok() {
                std::thread::sleep(Duration::from_millis(10));
            }
        });
        on_core(&service, async |conn: &Connection, _| {
            let begun = Instant::now();
            let result = ask(conn, Duration::from_millis(200), 100_000).await;
            assert_eq!(result.err(), Some(Failure::RequestTimeout));
            assert!(begun.elapsed() >= Duration::from_millis(200) && begun.elapsed() < Duration::from_secs(5));
            assert_eq!(errors(conn), [("answer_timeout", 1)]);
            assert!(!conn.timers.has_fired(Slot::Request));
            assert_eq!(ask(conn, Duration::from_secs(10), 0).await.map(|reply| status(&reply)).ok(), Some(204));
        });
    }

    #[test]
    fn nobody_there_is_a_failed_connection() {
        on_core(&Service::nobody(), async |conn: &Connection, _| {
            assert_eq!(ask_for(conn, 0).await, Err(Failure::ConnectFailed));
            assert_eq!((gauges(conn), errors(conn)), ([0, 0, 0], vec![("connect", 1)]));
        });
    }

    #[test]
    fn a_client_that_goes_away_ends_the_wait() {
        let service = Service::start(|_, stream, read_request| {
            assert!(read_request(stream));
            read_request(stream);
        });
        on_core(&service, async |conn: &Connection, client: Client| {
            let stream: TcpStream = client.into();
            rustix::net::sockopt::set_socket_linger(&stream, Some(Duration::ZERO)).unwrap();
            drop(stream);
            let begun = Instant::now();
            let result = ask(conn, Duration::from_secs(60), 0).await;
            assert_eq!(result.err(), Some(Failure::ClientGone));
            assert!(begun.elapsed() < Duration::from_secs(10));
            assert_eq!((gauges(conn), errors(conn)), ([0, 0, 0], vec![]));
        });
    }
}
