//! An established connection. While it is idle it holds no block.

use std::cell::RefCell;
use std::io::{Error, ErrorKind, Result};
use std::rc::Rc;

use ringway_io::Sock;
use rustls::client::{ClientConnectionData, UnbufferedClientConnection};
use rustls::kernel::KernelConnection;
use rustls::server::{ServerConnectionData, UnbufferedServerConnection};
use rustls::{ConnectionTrafficSecrets, ExtractedSecrets, ProtocolVersion};

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
    outgoing: Option<Buffer>,
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
            outgoing: None,
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
        let state = &mut *self.state.borrow_mut();
        if !state.flush(sock)? {
            return Ok(0);
        }
        let mut taken = std::mem::take(&mut state.owed);
        while let Some(left) = bytes.get(taken..).filter(|left| !left.is_empty()) {
            if state.mute {
                return Err(ErrorKind::BrokenPipe.into());
            }
            if state.sealer.is_used_up() {
                if !state.sealer.is_tls13() {
                    return Err(ErrorKind::BrokenPipe.into());
                }
                self.renew_key(state, sock)?;
            }
            let mut sealed = 0;
            for piece in left.chunks(PLAIN_BYTES_MAX) {
                let outgoing = state.outgoing.get_or_insert_with(|| self.worker.take_answer());
                let room = outgoing.room();
                let fits = room.len().saturating_sub(OVERHEAD_BYTES_MAX);
                // A short record in the end of a block is not worth its overhead.
                if fits < piece.len().min(1024) || fits == 0 {
                    break;
                }
                let piece = piece.get(..fits).unwrap_or(piece);
                let length = state.sealer.seal(APPLICATION_DATA, piece, room).ok_or(ErrorKind::InvalidData)?;
                outgoing.received(length);
                sealed += piece.len();
                if piece.len() == fits {
                    break;
                }
            }
            if !state.flush(sock)? {
                state.owed = sealed;
                return Ok(taken);
            }
            taken += sealed;
        }
        Ok(taken)
    }

    /// Seals a message of the protocol itself, behind what waits to leave; as much leaves as can.
    fn say(&self, state: &mut State, sock: &Sock, kind: u8, message: &[u8]) -> Result<()> {
        let outgoing = state.outgoing.get_or_insert_with(|| self.worker.take_answer());
        if outgoing.room().len() < message.len() + OVERHEAD_BYTES_MAX {
            outgoing.make_room(outgoing.len() + message.len() + OVERHEAD_BYTES_MAX);
        }
        let length = state.sealer.seal(kind, message, outgoing.room()).ok_or(ErrorKind::InvalidData)?;
        outgoing.received(length);
        state.flush(sock).map(drop)
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

    /// Whether all that was sealed has left.
    fn flush(&mut self, sock: &Sock) -> Result<bool> {
        let Some(outgoing) = &mut self.outgoing else { return Ok(true) };
        while !outgoing.is_empty() {
            match sock.send(outgoing.data(), false)? {
                0 => return Ok(false),
                sent => outgoing.consume(sent),
            }
        }
        self.outgoing = None;
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use std::io::{ErrorKind, Read, Write};
    use std::os::unix::net::UnixStream;

    use ringway_io::Sock;
    use rustls::{AlertDescription, ClientConnection, Error, SupportedCipherSuite};

    use super::super::record::{OVERHEAD_BYTES_MAX, RECORD_BYTES_MAX};
    use super::super::testing::{SUITES, deliver, shaken};
    use super::*;
    use crate::testing::{Service, on_core};

    const ROOM: usize = 4096;

    /// A session and its client, with a pair of sockets between them. Nothing waits: what is not there yet is seen as such.
    struct Ends {
        tls: Tls,
        sock: Sock,
        client: Option<ClientConnection>,
        wire: UnixStream,
    }

    impl Ends {
        fn new(worker: &Rc<Worker>, suite: SupportedCipherSuite) -> Self {
            let (server, client) = shaken(suite);
            let (ours, wire) = UnixStream::pair().unwrap();
            ours.set_nonblocking(true).unwrap();
            wire.set_nonblocking(true).unwrap();
            let tls = Tls::of_client(worker, server, b"", b"").unwrap();
            Self { tls, sock: Sock::new(ours.into()).unwrap(), client: Some(client), wire }
        }

        fn client(&mut self) -> &mut ClientConnection {
            self.client.as_mut().unwrap()
        }

        /// The records that the client has to send.
        fn records(&mut self) -> Vec<u8> {
            let mut records = Vec::new();
            while self.client().wants_write() {
                self.client().write_tls(&mut records).unwrap();
            }
            records
        }

        fn write(&mut self, data: &[u8]) {
            self.client().writer().write_all(data).unwrap();
            let records = self.records();
            self.wire.write_all(&records).unwrap();
        }

        /// Our cipher in place of the client, to say what rustls does not.
        fn forger(&mut self) -> Cipher {
            let client = self.client.take().unwrap();
            let version = client.protocol_version().unwrap();
            Cipher::new(version, client.dangerous_extract_secrets().unwrap().tx).unwrap()
        }

        fn forge(&mut self, cipher: &mut Cipher, kind: u8, data: &[u8]) {
            let mut record = vec![0; data.len() + OVERHEAD_BYTES_MAX];
            let length = cipher.seal(kind, data, &mut record).unwrap();
            self.wire.write_all(&record[..length]).unwrap();
        }

        /// What the session has received by now, and how it stands.
        fn received(&self) -> (Vec<u8>, Result<Option<usize>>) {
            let (mut data, mut room) = (Vec::new(), [0; ROOM]);
            loop {
                match self.tls.recv(&self.sock, &mut room) {
                    Ok(Some(count)) if count > 0 => data.extend_from_slice(&room[..count]),
                    end => return (data, end),
                }
            }
        }

        /// Has the client read what the session has sent.
        fn catch_up(&mut self) -> std::result::Result<Vec<u8>, Error> {
            let (mut records, mut room) = (Vec::new(), [0; ROOM]);
            while let Ok(count @ 1..) = self.wire.read(&mut room) {
                records.extend_from_slice(&room[..count]);
            }
            let client = self.client();
            let mut data = Vec::new();
            for part in records.chunks(1000) {
                deliver(client, part)?;
                let _ = client.reader().read_to_end(&mut data);
            }
            Ok(data)
        }
    }

    fn each(test: impl Fn(&mut Ends)) {
        on_core(&Service::nobody(), async |conn, _| {
            for suite in SUITES {
                test(&mut Ends::new(&conn.worker, suite));
            }
        });
    }

    fn is_open(end: &Result<Option<usize>>) -> bool {
        matches!(end, Ok(None))
    }

    fn is_alert<T: std::fmt::Debug>(read: std::result::Result<T, Error>, alert: AlertDescription) -> bool {
        matches!(read, Err(Error::AlertReceived(received)) if received == alert)
    }

    /// Numbers that look like chance, the same each time.
    struct Numbers(u64);

    impl Numbers {
        fn below(&mut self, end: usize) -> usize {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (self.0 >> 33) as usize % end
        }
    }

    #[test]
    fn bytes_come_through_however_they_are_cut() {
        each(|ends| {
            let mut numbers = Numbers(42);
            for round in 0..60 {
                let data: Vec<u8> = (0..numbers.below(40_000)).map(|_| numbers.below(256) as u8).collect();
                ends.client().writer().write_all(&data).unwrap();
                let records = ends.records();
                let (mut rest, mut received) = (&records[..], Vec::new());
                while !rest.is_empty() {
                    let (piece, behind) = rest.split_at(1 + numbers.below(rest.len()));
                    ends.wire.write_all(piece).unwrap();
                    rest = behind;
                    let mut room = vec![0; 1 + numbers.below(20_000)];
                    while let Some(count) = ends.tls.recv(&ends.sock, &mut room).unwrap() {
                        received.extend_from_slice(&room[..count]);
                    }
                }
                assert!(received == data, "round {round}");
                assert!(!ends.tls.has_input());
                let mut sent = 0;
                let mut back = Vec::new();
                while sent < data.len() {
                    sent += ends.tls.send(&ends.sock, &data[sent..]).unwrap();
                    back.extend(ends.catch_up().unwrap());
                }
                back.extend(ends.catch_up().unwrap());
                assert!(back == data, "round {round}");
            }
        });
    }

    #[test]
    fn a_full_socket_is_gone_on_with() {
        each(|ends| {
            let data: Vec<u8> = (0..2 * 1024 * 1024u32).map(|at| (at.wrapping_mul(0x9e37_79b1) >> 24) as u8).collect();
            let (mut sent, mut back, mut full) = (0, Vec::new(), 0);
            while sent < data.len() {
                match ends.tls.send(&ends.sock, &data[sent..]).unwrap() {
                    taken if sent + taken < data.len() => {
                        sent += taken;
                        full += 1;
                        back.extend(ends.catch_up().unwrap());
                    }
                    taken => sent += taken,
                }
            }
            back.extend(ends.catch_up().unwrap());
            assert!(full > 1 && back == data);
        });
    }

    #[test]
    fn an_end_is_one_only_where_it_was_announced() {
        each(|ends| {
            ends.write(b"whole");
            ends.client().send_close_notify();
            let records = ends.records();
            ends.wire.write_all(&records).unwrap();
            assert!(matches!(ends.received(), (data, Ok(Some(0))) if data == b"whole"));
            assert!(ends.tls.has_input());
        });
        each(|ends| {
            ends.write(b"half");
            ends.wire.shutdown(std::net::Shutdown::Write).unwrap();
            let (data, end) = ends.received();
            assert_eq!((&data[..], end.unwrap_err().kind()), (&b"half"[..], ErrorKind::UnexpectedEof));
            assert!(ends.received().1.is_err(), "it stays one");
        });
        each(|ends| {
            let records = {
                ends.client().writer().write_all(b"cut off").unwrap();
                ends.records()
            };
            ends.wire.write_all(&records[..records.len() - 1]).unwrap();
            ends.wire.shutdown(std::net::Shutdown::Write).unwrap();
            let (data, end) = ends.received();
            assert!(data.is_empty() && end.unwrap_err().kind() == ErrorKind::UnexpectedEof);
        });
    }

    #[test]
    fn our_end_is_announced_but_for_one_that_broke_off() {
        each(|ends| {
            ends.tls.close(&ends.sock);
            ends.tls.close(&ends.sock);
            assert_eq!(ends.catch_up().unwrap(), b"");
            assert_eq!(ends.client().reader().read(&mut [0; 8]).unwrap(), 0, "close_notify");
            assert!(ends.tls.send(&ends.sock, b"more").is_err());
        });
        each(|ends| {
            ends.tls.break_off();
            ends.tls.close(&ends.sock);
            assert_eq!(ends.catch_up().unwrap(), b"");
            let nothing = ends.client().reader().read(&mut [0; 8]);
            assert_eq!(nothing.unwrap_err().kind(), ErrorKind::WouldBlock, "no close_notify");
        });
    }

    #[test]
    fn what_is_no_record_gets_the_right_alert() {
        let overflow = [&[23, 3, 3][..], &((RECORD_BYTES_MAX - 4) as u16).to_be_bytes()].concat();
        each(|ends| {
            ends.wire.write_all(&overflow).unwrap();
            assert!(ends.received().1.is_err());
            assert!(is_alert(ends.catch_up(), AlertDescription::RecordOverflow));
        });
        each(|ends| {
            ends.wire.write_all(b"GET / HTTP/1.1\r\n").unwrap();
            assert!(ends.received().1.is_err());
            assert!(is_alert(ends.catch_up(), AlertDescription::UnexpectedMessage));
        });
        each(|ends| {
            ends.write(b"good");
            ends.client().writer().write_all(b"bad").unwrap();
            let mut records = ends.records();
            *records.last_mut().unwrap() ^= 1;
            ends.wire.write_all(&records).unwrap();
            let (data, end) = ends.received();
            assert!(data == b"good" && end.is_err());
            assert!(ends.received().1.is_err() && ends.tls.send(&ends.sock, b"x").is_err());
            assert!(is_alert(ends.catch_up(), AlertDescription::BadRecordMac));
        });
        each(|ends| {
            let [first, second] = [b"1", b"2"].map(|data| {
                ends.client().writer().write_all(data).unwrap();
                ends.records()
            });
            ends.wire.write_all(&[second, first].concat()).unwrap();
            assert!(matches!(ends.received(), (data, Err(_)) if data.is_empty()));
            assert!(is_alert(ends.catch_up(), AlertDescription::BadRecordMac));
        });
    }

    #[test]
    fn keys_change_and_not_without_end() {
        each(|ends| {
            if !ends.tls.state.borrow().opener.is_tls13() {
                return;
            }
            for round in 0..40u8 {
                ends.client().refresh_traffic_keys().unwrap();
                ends.write(&[round]);
                assert!(matches!(ends.received(), (data, end) if data == [round] && is_open(&end)));
                assert_eq!(ends.tls.send(&ends.sock, &[round]).unwrap(), 1);
                assert_eq!(ends.catch_up().unwrap(), [round], "the answer's key has changed too");
            }
            for _ in 0..=EMPTY_RECORDS_MAX {
                ends.client().refresh_traffic_keys().unwrap();
            }
            let records = ends.records();
            ends.wire.write_all(&records).unwrap();
            assert!(ends.received().1.is_err());
            assert!(is_alert(ends.catch_up(), AlertDescription::UnexpectedMessage));
        });
    }

    #[test]
    fn a_used_up_key_is_renewed_or_ends_the_connection() {
        each(|ends| {
            let is_tls13 = {
                let state = &mut *ends.tls.state.borrow_mut();
                state.sealer.use_up();
                state.sealer.is_tls13()
            };
            assert_eq!(ends.tls.send(&ends.sock, b"more").is_ok(), is_tls13);
        });
    }

    #[test]
    fn records_without_data_are_bounded() {
        each(|ends| {
            let mut forger = ends.forger();
            for _ in 0..3 {
                (0..EMPTY_RECORDS_MAX).for_each(|_| ends.forge(&mut forger, APPLICATION_DATA, b""));
                ends.forge(&mut forger, APPLICATION_DATA, b"x");
                assert!(matches!(ends.received(), (data, end) if data == b"x" && is_open(&end)));
            }
            (0..=EMPTY_RECORDS_MAX).for_each(|_| ends.forge(&mut forger, APPLICATION_DATA, b""));
            assert!(ends.received().1.is_err());
        });
    }

    #[test]
    fn alerts_are_heard() {
        let outcome = |alert: [u8; 2]| {
            move |ends: &mut Ends| {
                let mut forger = ends.forger();
                ends.forge(&mut forger, ALERT, &alert);
                ends.forge(&mut forger, APPLICATION_DATA, b"behind");
                let is_tls13 = forger.is_tls13();
                let (data, end) = ends.received();
                (is_tls13, data, end)
            }
        };
        each(|ends| {
            let (_, data, end) = outcome([FATAL, 40])(ends);
            assert!(data.is_empty() && end.is_err());
            assert!(ends.tls.send(&ends.sock, b"x").is_err(), "nobody listens any more");
            assert!(ends.wire.read(&mut [0; 8]).is_err(), "and nothing was said");
        });
        each(|ends| {
            let (_, data, end) = outcome([WARNING, alert::CLOSE_NOTIFY])(ends);
            assert!(data.is_empty() && matches!(end, Ok(Some(0))), "what follows the end is not read");
        });
        each(|ends| {
            let (_, data, end) = outcome([WARNING, alert::USER_CANCELED])(ends);
            assert!(data == b"behind" && is_open(&end));
        });
        each(|ends| {
            let (is_tls13, data, end) = outcome([WARNING, 41])(ends);
            assert_eq!((data.is_empty(), end.is_err()), (is_tls13, is_tls13), "RFC 8446 section 6.2");
        });
    }

    #[test]
    fn messages_of_a_handshake_have_no_place_here() {
        for message in [&[KEY_UPDATE, 0, 0, 1, 2][..], &[KEY_UPDATE, 0, 0, 1, 0, 0], &[1, 0, 0, 1, 0], &[0, 0, 0, 0]] {
            each(|ends| {
                let mut forger = ends.forger();
                ends.forge(&mut forger, HANDSHAKE, message);
                assert!(ends.received().1.is_err(), "{message:?}");
            });
        }
        each(|ends| {
            let mut forger = ends.forger();
            ends.forge(&mut forger, 25, b"x");
            assert!(ends.received().1.is_err(), "no kind of record that there is");
        });
    }

    #[test]
    fn what_came_with_the_handshake_comes_first() {
        on_core(&Service::nobody(), async |conn, _| {
            for suite in SUITES {
                let (server, mut client) = shaken(suite);
                let mut records = Vec::new();
                client.writer().write_all(b"second").unwrap();
                while client.wants_write() {
                    client.write_tls(&mut records).unwrap();
                }
                let (ours, _wire) = UnixStream::pair().unwrap();
                ours.set_nonblocking(true).unwrap();
                let tls = Tls::of_client(&conn.worker, server, b"first,", &records).unwrap();
                assert!(tls.has_input());
                let (sock, mut room) = (Sock::new(ours.into()).unwrap(), [0; 64]);
                assert_eq!(tls.recv(&sock, &mut room).unwrap(), Some(6));
                assert_eq!(tls.recv(&sock, &mut room).unwrap(), Some(6));
                assert_eq!(&room[..6], b"second");
                assert!(!tls.has_input());
            }
        });
    }
}
