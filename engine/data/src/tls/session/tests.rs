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
fn parts_come_through_in_their_order_however_little_the_client_takes() {
    each(|ends| {
        let mut numbers = Numbers(43);
        for round in 0..20 {
            let data: Vec<u8> = (0..numbers.below(400_000)).map(|_| numbers.below(256) as u8).collect();
            let (mut sent, mut received) = (0, Vec::new());
            while sent < data.len() {
                // What was not taken is offered again, first of all, in parts cut elsewhere, and with more behind it.
                let offered = &data[sent..];
                let parts: Vec<IoSlice<'_>> = offered.chunks(1 + numbers.below(30_000)).map(IoSlice::new).collect();
                sent += ends.tls.send_parts(&ends.sock, &parts).unwrap();
                received.extend(ends.catch_up().unwrap());
            }
            received.extend(ends.catch_up().unwrap());
            assert!(received == data, "round {round}");
        }
    });
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
