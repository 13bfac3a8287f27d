//! An established connection. While it is idle it holds no block.

use std::cell::RefCell;
use std::io::{Error, ErrorKind, IoSlice, Result};
use std::rc::Rc;

use ringway_io::Sock;
use rustls::client::{ClientConnectionData, UnbufferedClientConnection};
use rustls::kernel::KernelConnection;
use rustls::server::{ServerConnectionData, UnbufferedServerConnection};
use rustls::{ConnectionTrafficSecrets, ExtractedSecrets, ProtocolVersion};

use super::outgoing::{Outgoing, Parts};
use super::record::{self, ALERT, APPLICATION_DATA, Cipher, HANDSHAKE, OVERHEAD_BYTES_MAX, PLAIN_BYTES_MAX, alert};
use crate::buffer::Buffer;
use crate::worker::Worker;

/// Records in a row that carry no data; a peer that sends more is up to no good.
const EMPTY_RECORDS_MAX: u32 = 32;
const WARNING: u8 = 1;
const FATAL: u8 = 2;
/// What messages of the handshake that come after it may hold: a ticket has 64 KiB at most (RFC 8446 section 4.6.1).
const HANDSHAKE_BYTES_MAX: usize = 80 * 1024;
const NEW_SESSION_TICKET: u8 = 4;
const KEY_UPDATE: u8 = 24;

/// An established connection.
pub(crate) struct Tls {
    worker: Rc<Worker>,
    state: RefCell<State>,
}

struct State {
    opener: Cipher,
    sealer: Cipher,
    /// Knows how keys go on.
    keys: Keys,
    /// What has arrived: first `plain` bytes that are opened already, then `behind` bytes of no more use, then records.
    incoming: Option<Buffer>,
    plain: usize,
    behind: usize,
    /// Records that have not all left, with `owed` bytes of what was given to [`Tls::send`] in them.
    outgoing: Outgoing,
    owed: usize,
    /// Records without data since the last one that had some.
    empty: u32,
    /// The begin of a message of the handshake that goes on in the next record.
    message: Vec<u8>,
    /// Whether any data has come, and the alert that came in its place.
    has_heard: bool,
    refusal: Option<u8>,
    end: End,
    /// Nothing more is sealed: the end was said, or must not be.
    mute: bool,
}

/// What is left of a handshake.
enum Keys {
    OfClient(KernelConnection<ServerConnectionData>),
    OfService(KernelConnection<ClientConnectionData>),
}

impl Keys {
    fn protocol_version(&self) -> ProtocolVersion {
        match self {
            Self::OfClient(keys) => keys.protocol_version(),
            Self::OfService(keys) => keys.protocol_version(),
        }
    }

    fn update_rx_secret(&mut self) -> std::result::Result<(u64, ConnectionTrafficSecrets), rustls::Error> {
        match self {
            Self::OfClient(keys) => keys.update_rx_secret(),
            Self::OfService(keys) => keys.update_rx_secret(),
        }
    }

    fn update_tx_secret(&mut self) -> std::result::Result<(u64, ConnectionTrafficSecrets), rustls::Error> {
        match self {
            Self::OfClient(keys) => keys.update_tx_secret(),
            Self::OfService(keys) => keys.update_tx_secret(),
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    Open,
    /// The peer has said that nothing follows.
    Closed,
    Broken,
}

impl Tls {
    /// Takes over after the handshake with a client. `plain`: what was read of the first requests meanwhile; `rest`: records
    /// behind it.
    pub(super) fn of_client(
        worker: &Rc<Worker>,
        shaken: UnbufferedServerConnection,
        plain: &[u8],
        rest: &[u8],
    ) -> Option<Self> {
        let (secrets, keys) = shaken.dangerous_into_kernel_connection().ok()?;
        Self::new(worker, secrets, Keys::OfClient(keys), plain, rest)
    }

    /// Takes over after the handshake with a service.
    pub(super) fn of_service(worker: &Rc<Worker>, shaken: UnbufferedClientConnection, rest: &[u8]) -> Option<Self> {
        let (secrets, keys) = shaken.dangerous_into_kernel_connection().ok()?;
        Self::new(worker, secrets, Keys::OfService(keys), b"", rest)
    }

    fn new(worker: &Rc<Worker>, secrets: ExtractedSecrets, keys: Keys, plain: &[u8], rest: &[u8]) -> Option<Self> {
        let version = keys.protocol_version();
        let mut incoming = None;
        if !plain.is_empty() || !rest.is_empty() {
            let mut buffer = worker.take_inbox();
            buffer.make_room(plain.len() + rest.len());
            (buffer.append(plain) && buffer.append(rest)).then_some(())?;
            incoming = Some(buffer);
        }
        let state = State {
            opener: Cipher::new(version, secrets.rx)?,
            sealer: Cipher::new(version, secrets.tx)?,
            keys,
            incoming,
            plain: plain.len(),
            behind: 0,
            outgoing: Outgoing::default(),
            owed: 0,
            empty: 0,
            message: Vec::new(),
            has_heard: false,
            refusal: None,
            end: End::Open,
            mute: false,
        };
        Some(Self { worker: Rc::clone(worker), state: RefCell::new(state) })
    }

    /// Whether there is something to receive without the socket.
    pub(crate) fn has_input(&self) -> bool {
        let state = self.state.borrow();
        state.plain > 0
            || state.end != End::Open
            || state.incoming.as_ref().is_some_and(|incoming| {
                record::length(incoming.data()).map_or(true, |length| length.is_some_and(|len| len <= incoming.len()))
            })
    }

    /// As [`Sock::recv`]. An end that the peer has not announced is an error: it may not be where the peer meant it.
    pub(crate) fn recv(&self, sock: &Sock, room: &mut [u8]) -> Result<Option<usize>> {
        let state = &mut *self.state.borrow_mut();
        loop {
            if state.plain > 0 {
                return Ok(Some(state.take(room)));
            }
            match state.end {
                End::Open => {}
                End::Closed => return Ok(Some(0)),
                End::Broken => return Err(ErrorKind::InvalidData.into()),
            }
            let incoming = state.incoming.get_or_insert_with(|| self.worker.take_inbox());
            match record::length(incoming.data()) {
                Err(reason) => return Err(self.fail(state, sock, reason)),
                Ok(Some(length)) if length <= incoming.len() => {
                    if let Err(reason) = self.open(state, sock, length) {
                        return Err(self.fail(state, sock, reason));
                    }
                    continue;
                }
                Ok(_) => {}
            }
            if incoming.len() + incoming.room().len() < record::RECORD_BYTES_MAX {
                incoming.make_room(record::RECORD_BYTES_MAX);
            }
            match sock.recv(incoming.room()) {
                Ok(Some(0)) => {
                    state.end = End::Broken;
                    return Err(ErrorKind::UnexpectedEof.into());
                }
                Ok(Some(received)) => incoming.received(received),
                Ok(None) => {
                    if incoming.is_empty() {
                        state.incoming = None;
                    }
                    return Ok(None);
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Opens the record of `length` bytes that stands first, and acts on it.
    fn open(&self, state: &mut State, sock: &Sock, length: usize) -> std::result::Result<(), u8> {
        let Some(incoming) = &mut state.incoming else { return Ok(()) };
        let record = incoming.data_mut().get_mut(..length).unwrap_or_default();
        let (kind, text) = state.opener.open(record)?;
        // RFC 8446 section 5.1.
        if kind != HANDSHAKE && !state.message.is_empty() {
            return Err(alert::UNEXPECTED_MESSAGE);
        }
        if kind == APPLICATION_DATA && !text.is_empty() {
            state.empty = 0;
            state.has_heard = true;
            state.plain = text.len();
            state.behind = length - text.end;
            incoming.consume(text.start);
            return Ok(());
        }
        state.empty += 1;
        let content = incoming.data().get(text.clone()).unwrap_or_default();
        let message = content.first_chunk::<2>().copied().unwrap_or_default();
        if kind == HANDSHAKE {
            state.message.extend_from_slice(content);
        }
        incoming.consume(length);
        if state.empty > EMPTY_RECORDS_MAX {
            return Err(alert::UNEXPECTED_MESSAGE);
        }
        match (kind, text.len(), message) {
            (APPLICATION_DATA, ..) => Ok(()),
            (ALERT, 2, [_, alert::CLOSE_NOTIFY]) => {
                state.end = End::Closed;
                Ok(())
            }
            // Of TLS 1.2 only: in TLS 1.3 all others are fatal, whatever they say of themselves.
            (ALERT, 2, [WARNING, _]) if !state.opener.is_tls13() => Ok(()),
            (ALERT, 2, [_, alert::USER_CANCELED]) => Ok(()),
            (ALERT, 2, [_, reason]) => {
                state.refusal = (!state.has_heard).then_some(reason);
                state.end = End::Broken;
                state.mute = true;
                Ok(())
            }
            (HANDSHAKE, 1.., _) if state.opener.is_tls13() => self.take_messages(state, sock),
            (HANDSHAKE, ..) if !state.opener.is_tls13() => Err(alert::NO_RENEGOTIATION),
            _ => Err(alert::UNEXPECTED_MESSAGE),
        }
    }

    /// Acts on the messages of the handshake that have come whole.
    fn take_messages(&self, state: &mut State, sock: &Sock) -> std::result::Result<(), u8> {
        const UNEXPECTED: u8 = alert::UNEXPECTED_MESSAGE;
        let messages = std::mem::take(&mut state.message);
        let mut rest = messages.as_slice();
        while let Some(([kind, long @ ..], behind)) = rest.split_first_chunk::<4>() {
            let [high, middle, low] = *long;
            let length = u32::from_be_bytes([0, high, middle, low]) as usize;
            let Some((body, behind)) = behind.split_at_checked(length) else { break };
            rest = behind;
            match (*kind, body, &mut state.keys) {
                (NEW_SESSION_TICKET, _, Keys::OfService(keys)) => {
                    keys.handle_new_session_ticket(body).map_err(|_| alert::DECODE_ERROR)?;
                }
                // RFC 8446 section 5.1: a key changes at the end of a record.
                (KEY_UPDATE, [asked @ (0 | 1)], keys) if rest.is_empty() => {
                    let version = keys.protocol_version();
                    let secrets = keys.update_rx_secret().map_err(|_| UNEXPECTED)?;
                    state.opener = Cipher::new(version, secrets).ok_or(UNEXPECTED)?;
                    if *asked == 1 {
                        self.renew_key(state, sock).map_err(|_| UNEXPECTED)?;
                    }
                }
                _ => return Err(UNEXPECTED),
            }
        }
        if rest.len() > HANDSHAKE_BYTES_MAX {
            return Err(UNEXPECTED);
        }
        state.message = rest.to_vec();
        Ok(())
    }

    /// Tells the peer that another key follows, and takes it.
    fn renew_key(&self, state: &mut State, sock: &Sock) -> Result<()> {
        self.say(state, sock, HANDSHAKE, &[KEY_UPDATE, 0, 0, 1, 0])?;
        let version = state.keys.protocol_version();
        let secrets = state.keys.update_tx_secret().map_err(Error::other)?;
        state.sealer = Cipher::new(version, secrets).ok_or(ErrorKind::InvalidData)?;
        Ok(())
    }

    /// As [`Sock::send`]. Bytes count as taken when their records have left: what was not taken is offered again first.
    pub(crate) fn send(&self, sock: &Sock, bytes: &[u8]) -> Result<usize> {
        self.send_parts(sock, &[IoSlice::new(bytes)])
    }

    /// As [`Tls::send`], of parts one behind the other.
    pub(crate) fn send_parts(&self, sock: &Sock, parts: &[IoSlice<'_>]) -> Result<usize> {
        let state = &mut *self.state.borrow_mut();
        if !state.outgoing.flush(sock)? {
            return Ok(0);
        }
        let mut taken = std::mem::take(&mut state.owed);
        let mut left = Parts::new(parts);
        left.skip(taken);
        while left.length > 0 {
            if state.mute {
                return Err(ErrorKind::BrokenPipe.into());
            }
            if state.sealer.is_used_up() {
                if !state.sealer.is_tls13() {
                    return Err(ErrorKind::BrokenPipe.into());
                }
                self.renew_key(state, sock)?;
            }
            let before = left.length;
            while left.length > 0 && !state.sealer.is_used_up() {
                let wanted = left.length.min(PLAIN_BYTES_MAX);
                let Some(block) = state.outgoing.room(wanted, &self.worker) else { break };
                let room = block.room();
                let length = wanted.min(room.len().saturating_sub(OVERHEAD_BYTES_MAX));
                let sealed = state.sealer.seal_with(APPLICATION_DATA, length, room, |text| left.fill(text));
                block.received(sealed.ok_or(ErrorKind::InvalidData)?);
            }
            let sealed = before - left.length;
            if !state.outgoing.flush(sock)? {
                state.owed = sealed;
                return Ok(taken);
            }
            taken += sealed;
        }
        Ok(taken)
    }

    /// Seals a message of the protocol itself, behind what waits to leave; as much leaves as can.
    fn say(&self, state: &mut State, sock: &Sock, kind: u8, message: &[u8]) -> Result<()> {
        let outgoing = state.outgoing.last(&self.worker);
        if outgoing.room().len() < message.len() + OVERHEAD_BYTES_MAX {
            outgoing.make_room(outgoing.len() + message.len() + OVERHEAD_BYTES_MAX);
        }
        let length = state.sealer.seal(kind, message, outgoing.room()).ok_or(ErrorKind::InvalidData)?;
        outgoing.received(length);
        state.outgoing.flush(sock).map(drop)
    }

    fn fail(&self, state: &mut State, sock: &Sock, reason: u8) -> Error {
        state.end = End::Broken;
        if !std::mem::replace(&mut state.mute, true) {
            let _ = self.say(state, sock, ALERT, &[FATAL, reason]);
        }
        state.incoming = None;
        ErrorKind::InvalidData.into()
    }

    /// Says that nothing follows, where what was sent so far is whole.
    pub(crate) fn close(&self, sock: &Sock) {
        let state = &mut *self.state.borrow_mut();
        if !std::mem::replace(&mut state.mute, true) && state.owed == 0 {
            let _ = self.say(state, sock, ALERT, &[WARNING, alert::CLOSE_NOTIFY]);
        }
    }

    /// The alert with which the peer has ended the connection before it sent any data: what it did not like is the
    /// handshake.
    pub(crate) fn refusal(&self) -> Option<u8> {
        self.state.borrow().refusal
    }

    /// The end will not be said: what was sent is not whole.
    pub(crate) fn break_off(&self) {
        self.state.borrow_mut().mute = true;
    }
}

impl State {
    /// Gives what was opened to who asked for it.
    fn take(&mut self, room: &mut [u8]) -> usize {
        let Some(incoming) = &mut self.incoming else { return 0 };
        let length = self.plain.min(room.len());
        if let (Some(to), Some(from)) = (room.get_mut(..length), incoming.data().get(..length)) {
            to.copy_from_slice(from);
        }
        self.plain -= length;
        incoming.consume(length);
        if self.plain == 0 {
            incoming.consume(std::mem::take(&mut self.behind));
        }
        if incoming.is_empty() {
            self.incoming = None;
        }
        length
    }
}

#[cfg(test)]
mod tests;
