//! A name server whose answers a test sets (RFC 1035, RFC 2782).

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

/// What is known of a name.
#[derive(Debug, Clone)]
pub enum Record {
    A(Ipv4Addr),
    Srv { priority: u16, weight: u16, port: u16, target: &'static str },
}

/// Answers over UDP until it is dropped. A name that was not set does not exist.
pub struct NameServer {
    address: SocketAddr,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    names: Mutex<HashMap<String, Vec<Record>>>,
    asked: AtomicUsize,
    is_silent: AtomicBool,
    delay_ms: AtomicU64,
    is_stopped: AtomicBool,
}

const A: u16 = 1;
const SRV: u16 = 33;
const TTL_SECS: u32 = 1;
const HEADER_BYTES: usize = 12;

impl NameServer {
    pub fn start() -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").expect("a port");
        socket.set_read_timeout(Some(Duration::from_millis(100))).expect("a timeout");
        let address = socket.local_addr().expect("an address");
        let shared = Arc::new(Shared::default());
        let in_thread = Arc::clone(&shared);
        thread::spawn(move || {
            let mut query = [0; 1500];
            while !in_thread.is_stopped.load(Ordering::Acquire) {
                let Ok((length, from)) = socket.recv_from(&mut query) else { continue };
                in_thread.asked.fetch_add(1, Ordering::AcqRel);
                thread::sleep(Duration::from_millis(in_thread.delay_ms.load(Ordering::Acquire)));
                if !in_thread.is_silent.load(Ordering::Acquire) {
                    let answer = in_thread.answer(&query[..length]);
                    socket.send_to(&answer, from).expect("an answer");
                }
            }
        });
        Self { address, shared }
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Replaces what is known of a name; without records it exists and has none.
    pub fn set(&self, name: &str, records: &[Record]) {
        self.shared.names.lock().expect("names").insert(name.to_owned(), records.to_vec());
    }

    /// Questions so far.
    pub fn asked(&self) -> usize {
        self.shared.asked.load(Ordering::Acquire)
    }

    /// Answers no more, or again.
    pub fn silence(&self, is_silent: bool) {
        self.shared.is_silent.store(is_silent, Ordering::Release);
    }

    /// Takes this time for each question, one after the other.
    pub fn set_delay(&self, delay: Duration) {
        self.shared.delay_ms.store(delay.as_millis() as u64, Ordering::Release);
    }
}

impl Drop for NameServer {
    fn drop(&mut self) {
        self.shared.is_stopped.store(true, Ordering::Release);
    }
}

impl Shared {
    fn answer(&self, query: &[u8]) -> Vec<u8> {
        let mut labels = Vec::new();
        let mut at = HEADER_BYTES;
        while query[at] != 0 {
            let end = at + 1 + query[at] as usize;
            labels.push(String::from_utf8_lossy(&query[at + 1..end]).to_lowercase());
            at = end;
        }
        let question = &query[HEADER_BYTES..at + 5];
        let kind = u16::from_be_bytes([query[at + 1], query[at + 2]]);
        let names = self.names.lock().expect("names");
        let known = names.get(&labels.join("."));
        let records: Vec<Vec<u8>> = known
            .into_iter()
            .flatten()
            .filter_map(|record| match (record, kind) {
                (Record::A(ip), A) => Some(ip.octets().to_vec()),
                (Record::Srv { priority, weight, port, target }, SRV) => {
                    let mut data: Vec<u8> =
                        [priority, weight, port].iter().flat_map(|part| part.to_be_bytes()).collect();
                    for label in target.split('.') {
                        data.push(label.len() as u8);
                        data.extend_from_slice(label.as_bytes());
                    }
                    data.push(0);
                    Some(data)
                }
                _ => None,
            })
            .collect();
        const NO_SUCH_NAME: u16 = 3;
        let flags = 0x8180 | if known.is_none() { NO_SUCH_NAME } else { 0 };
        let mut answer = query[..2].to_vec();
        [flags, 1, records.len() as u16, 0, 0].iter().for_each(|part| answer.extend(part.to_be_bytes()));
        answer.extend_from_slice(question);
        for data in records {
            // The name of the question.
            answer.extend_from_slice(&[0xc0, HEADER_BYTES as u8]);
            [kind, 1].iter().for_each(|part| answer.extend(part.to_be_bytes()));
            answer.extend(TTL_SECS.to_be_bytes());
            answer.extend((data.len() as u16).to_be_bytes());
            answer.extend(data);
        }
        answer
    }
}
