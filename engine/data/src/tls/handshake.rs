//! From a connection to a secured one.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;

use ringway_config::acme;
use ringway_core::failure::Failure;
use ringway_core::stats::Handshake;
use ringway_io::{LoopCounts, yield_now};
use rustix::net::sockopt::set_tcp_quickack;
use rustls::Error;
use rustls::client::{ClientConnectionData, UnbufferedClientConnection};
use rustls::server::{ServerConnectionData, UnbufferedServerConnection};
use rustls::unbuffered::{ConnectionState, EncodeError, UnbufferedStatus};

use super::identity::Secured;
use super::record::{ALERT, HANDSHAKE, alert};
use super::session::Tls;
use crate::accept::refusal;
use crate::buffer::Buffer;
use crate::clock::us;
use crate::connection::Connection;
use crate::deadline::Slot;
use crate::io::linger;
use crate::worker::Worker;

/// Handshakes that a core moves on in one turn of its loop: half a millisecond of arithmetic. Established connections have
/// their turn in between.
const MOVES_PER_TURN: u32 = 4;
/// What a peer may send before its handshake is through.
pub(super) const FLIGHT_BYTES_MAX: usize = 96 * 1024;

/// The handshakes of a core.
#[derive(Default)]
pub(crate) struct Handshakes {
    open: Cell<usize>,
    per_ip: RefCell<HashMap<IpAddr, usize, ahash::RandomState>>,
    turn: Cell<u64>,
    moves: Cell<u32>,
}

/// A place among the handshakes of a core, given back when dropped.
struct Place {
    worker: Rc<Worker>,
    ip: IpAddr,
}

impl Place {
    fn take(worker: &Rc<Worker>, ip: IpAddr, max: usize, max_per_ip: usize) -> Option<Self> {
        let handshakes = &worker.handshakes;
        let mut per_ip = handshakes.per_ip.borrow_mut();
        if handshakes.open.get() >= max || per_ip.get(&ip).is_some_and(|open| *open >= max_per_ip) {
            return None;
        }
        *per_ip.entry(ip).or_default() += 1;
        handshakes.open.set(handshakes.open.get() + 1);
        Some(Self { worker: Rc::clone(worker), ip })
    }

    /// Waits for a turn of the loop in which there is time for it. (On epoll turns are not counted.)
    async fn turn(&self) {
        let Handshakes { turn, moves, .. } = &self.worker.handshakes;
        loop {
            let now = LoopCounts::of_this_thread().turns;
            if turn.replace(now) != now || now == 0 {
                moves.set(0);
            }
            if moves.get() < MOVES_PER_TURN {
                moves.set(moves.get() + 1);
                return;
            }
            yield_now().await;
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let handshakes = &self.worker.handshakes;
        handshakes.open.set(handshakes.open.get() - 1);
        let mut per_ip = handshakes.per_ip.borrow_mut();
        if let Some(open) = per_ip.get_mut(&self.ip) {
            *open -= 1;
            if *open == 0 {
                per_ip.remove(&self.ip);
            }
        }
    }
}

/// Secures a connection of a listener that speaks TLS; false where it is to be closed.
pub(crate) async fn shake_hands(conn: &mut Connection) -> bool {
    let ended = shake(conn).await;
    if let Some(cell) = conn.listener_cell() {
        cell.record(ended);
        if ended == Handshake::Done {
            cell.record_connection(conn.secured.facts().cipher);
        }
    }
    conn.timers.begin();
    ended == Handshake::Done
}

/// What a handshake needs next.
pub(super) enum Next {
    Go,
    Flush,
    Read,
    Done,
}

async fn shake(conn: &mut Connection) -> Handshake {
    let Some(settings) = conn.listener.tls.clone() else { return Handshake::Failed };
    let worker = Rc::clone(&conn.worker);
    let ip = conn.peer.ip().to_canonical();
    let Some(place) = Place::take(&worker, ip, settings.handshakes, settings.handshakes_per_ip) else {
        return Handshake::Refused;
    };
    let until = worker.clock.lately() + us(settings.handshake_timeout);
    conn.timers.set(Slot::ClientRead, until);
    conn.timers.set(Slot::ClientWrite, until);
    let Ok(mut tls) = UnbufferedServerConnection::new(Arc::clone(&settings.server)) else { return Handshake::Failed };
    // A client that is slow holds a block only once it has begun.
    let (mut incoming, mut outgoing): (Option<Buffer>, Option<Buffer>) = (None, None);
    let mut plain = Vec::new();
    let mut is_first = true;
    let mut is_acknowledged = true;
    loop {
        let next = match &mut incoming {
            None => Ok(Next::Read),
            Some(incoming) => {
                place.turn().await;
                let outgoing = outgoing.get_or_insert_with(|| worker.take_answer());
                proceed(&mut tls, incoming, outgoing, &mut plain)
            }
        };
        match next {
            Ok(Next::Go) => {}
            Ok(Next::Flush) => {
                is_acknowledged = true;
                if !flush(conn, &mut outgoing).await {
                    return if has_answered(&tls) { Handshake::Acme } else { ended(conn) };
                }
            }
            Ok(Next::Read) => {
                if incoming.as_ref().is_some_and(Buffer::is_empty) {
                    incoming = None;
                }
                is_acknowledged = false;
                let room = incoming.get_or_insert_with(|| worker.take_inbox());
                if room.room().is_empty() {
                    if room.len() >= FLIGHT_BYTES_MAX {
                        return Handshake::Failed;
                    }
                    room.make_room(FLIGHT_BYTES_MAX);
                }
                match conn.client.recv(room.room()) {
                    Ok(Some(0)) | Err(_) => return ended(conn),
                    Ok(Some(received)) => {
                        worker.cell().client_bytes_in.add(received as u64);
                        room.received(received);
                        if std::mem::take(&mut is_first) && room.data().first() != Some(&HANDSHAKE) {
                            return turn_away(conn, room).await;
                        }
                    }
                    Ok(None) => {
                        if room.is_empty() {
                            incoming = None;
                        }
                        outgoing = None;
                        conn.client.readable().await;
                    }
                }
            }
            Ok(Next::Done) => break,
            Err(_) if has_answered(&tls) => return Handshake::Acme,
            Err(error) => {
                // What is queued now is the alert.
                if let (Some(incoming), Some(outgoing)) = (&mut incoming, &mut outgoing) {
                    while tls.has_queued() && proceed(&mut tls, incoming, outgoing, &mut plain).is_ok() {}
                    if outgoing.is_empty() {
                        outgoing.append(&[ALERT, 3, 3, 0, 2, 2, alert::DECODE_ERROR]);
                    }
                }
                flush(conn, &mut outgoing).await;
                linger(conn, &mut worker.take_inbox()).await;
                return match error {
                    Error::InvalidCertificate(_)
                    | Error::InvalidCertRevocationList(_)
                    | Error::NoCertificatesPresented => Handshake::ClientCertificate,
                    _ => Handshake::Failed,
                };
            }
        }
    }
    if has_answered(&tls) {
        return Handshake::Acme;
    }
    if !is_acknowledged {
        // The client's last message wants an acknowledgement before it sends its request (Nagle), and none leaves with
        // an answer.
        let _ = conn.client.fd().map(|fd| set_tcp_quickack(fd, true));
    }
    conn.secured = Secured::of(&tls, settings.client_cert_header);
    let rest = incoming.as_ref().map(Buffer::data).unwrap_or_default();
    match Tls::of_client(&worker, tls, &plain, rest) {
        Some(session) => conn.client.secure(session),
        None => return Handshake::Failed,
    }
    Handshake::Done
}

/// Whether an authority has seen what it wanted to see, the certificate: nothing follows, and most go away at once
/// (RFC 8737 section 3).
fn has_answered(tls: &UnbufferedServerConnection) -> bool {
    tls.alpn_protocol() == Some(acme::ALPN) && !tls.is_handshaking()
}

/// Either side of a handshake.
pub(super) trait Side {
    type Data;

    fn process<'c, 'i>(&'c mut self, incoming: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data>;

    /// Whether a message waits to be encoded. After an error the others must not be looked for.
    fn has_queued(&self) -> bool;
}

impl Side for UnbufferedServerConnection {
    type Data = ServerConnectionData;

    fn process<'c, 'i>(&'c mut self, incoming: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(incoming)
    }

    fn has_queued(&self) -> bool {
        self.wants_write()
    }
}

impl Side for UnbufferedClientConnection {
    type Data = ClientConnectionData;

    fn process<'c, 'i>(&'c mut self, incoming: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(incoming)
    }

    fn has_queued(&self) -> bool {
        self.wants_write()
    }
}

/// Moves a handshake on by one step.
pub(super) fn proceed(
    tls: &mut impl Side,
    incoming: &mut Buffer,
    outgoing: &mut Buffer,
    plain: &mut Vec<u8>,
) -> Result<Next, Error> {
    let UnbufferedStatus { discard, state, .. } = tls.process(incoming.data_mut());
    let next = match state {
        Err(error) => Err(error),
        Ok(ConnectionState::EncodeTlsData(mut message)) => {
            let encoded = match message.encode(outgoing.room()) {
                Err(EncodeError::InsufficientSize(more)) => {
                    outgoing.make_room(outgoing.len() + more.required_size);
                    message.encode(outgoing.room())
                }
                encoded => encoded,
            };
            match encoded {
                Ok(length) => {
                    outgoing.received(length);
                    Ok(Next::Go)
                }
                Err(_) => Err(Error::General("a message does not fit".into())),
            }
        }
        Ok(ConnectionState::TransmitTlsData(sent)) => {
            sent.done();
            Ok(Next::Flush)
        }
        Ok(ConnectionState::ReadTraffic(mut traffic)) => {
            while let Some(Ok(record)) = traffic.next_record() {
                plain.extend_from_slice(record.payload);
            }
            Ok(Next::Go)
        }
        Ok(ConnectionState::BlockedHandshake) => Ok(Next::Read),
        Ok(ConnectionState::WriteTraffic(_)) => Ok(Next::Done),
        Ok(_) => Err(Error::General("the peer has closed".into())),
    };
    incoming.consume(discard);
    next
}

/// Sends what is queued; whether all has left in time.
async fn flush(conn: &Connection, outgoing: &mut Option<Buffer>) -> bool {
    let Some(mut buffer) = outgoing.take() else { return true };
    conn.worker.cell().client_bytes_out.add(buffer.len() as u64);
    while !buffer.is_empty() {
        match conn.client.send(buffer.data()) {
            Err(_) => return false,
            Ok(0) => conn.client.writable().await,
            Ok(sent) => buffer.consume(sent),
        }
        if conn.timers.has_fired(Slot::ClientWrite) {
            return false;
        }
    }
    true
}

fn ended(conn: &Connection) -> Handshake {
    let late = conn.timers.has_fired(Slot::ClientRead) || conn.timers.has_fired(Slot::ClientWrite);
    if late { Handshake::Timeout } else { Handshake::Closed }
}

/// A client that does not speak TLS is told so, in the clear.
async fn turn_away(conn: &Connection, received: &mut Buffer) -> Handshake {
    let is_http = received.data().first().is_some_and(u8::is_ascii_uppercase);
    let mut out = conn.worker.take_head();
    match is_http {
        true => refusal(&conn.worker, Failure::Malformed("This port speaks TLS: https://"), &mut out),
        false => out.extend_from_slice(&[ALERT, 3, 3, 0, 2, 2, alert::UNEXPECTED_MESSAGE]),
    }
    let _ = conn.client.send(&out);
    conn.worker.give_head(out);
    linger(conn, received).await;
    if is_http { Handshake::PlainHttp } else { Handshake::NotTls }
}
