//! A client that sees every byte.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use ringway_tests::PATIENCE;

pub(crate) struct Client {
    stream: TcpStream,
    /// Received, not used yet.
    buffer: Vec<u8>,
}

#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) body: Vec<u8>,
    headers: Vec<(String, String)>,
}

/// Asks once, on a connection of its own.
pub(crate) fn ask(address: SocketAddr, request_line: &str) -> Answer {
    let mut client = Client::connect(address);
    client.send(&format!("{request_line} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"));
    let answer = client.read_answer(false);
    client.assert_closed();
    answer
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(have, _)| have == name).map(|(_, value)| value.as_str())
    }

    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).expect("UTF-8")
    }
}

impl Client {
    pub(crate) fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).expect("a connection");
        stream.set_nodelay(true).expect("an option");
        stream.set_read_timeout(Some(PATIENCE)).expect("an option");
        Self { stream, buffer: Vec::new() }
    }

    pub(crate) fn set_patience(&self, limit: Duration) {
        self.stream.set_read_timeout(Some(limit)).expect("an option");
    }

    pub(crate) fn send(&mut self, text: &str) {
        self.send_bytes(text.as_bytes());
    }

    pub(crate) fn send_bytes(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).expect("sent");
    }

    pub(crate) fn get(&mut self, target: &str) -> Answer {
        self.send(&format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n"));
        self.read_answer(false)
    }

    /// Milliseconds that an answer takes.
    pub(crate) fn time(&mut self, target: &str) -> f64 {
        let asked = Instant::now();
        self.get(target);
        asked.elapsed().as_secs_f64() * 1e3
    }

    /// Reads an answer that is framed by its head.
    pub(crate) fn read_answer(&mut self, to_head: bool) -> Answer {
        let mut answer = self.read_head();
        if to_head || matches!(answer.status, 204 | 304) {
            return answer;
        }
        if answer.header("transfer-encoding") == Some("chunked") {
            loop {
                let line = self.read_until(b"\r\n");
                let size = usize::from_str_radix(line.trim_end(), 16).expect("a chunk's size");
                let chunk = self.read_exact(size);
                assert_eq!(self.read_exact(2), b"\r\n");
                if size == 0 {
                    return answer;
                }
                answer.body.extend(chunk);
            }
        }
        let length = answer.header("content-length").expect("a length").parse().expect("a number");
        answer.body = self.read_exact(length);
        answer
    }

    pub(crate) fn read_head(&mut self) -> Answer {
        let head = self.read_until(b"\r\n\r\n");
        let mut lines = head.trim_end().split("\r\n");
        let status_line = lines.next().expect("a status line");
        let status = status_line.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3)?.parse().ok());
        let headers = lines.map(|line| {
            let (name, value) = line.split_once(": ").expect("a field");
            (name.to_ascii_lowercase(), value.to_owned())
        });
        Answer { status: status.expect("a status"), body: Vec::new(), headers: headers.collect() }
    }

    pub(crate) fn read_exact(&mut self, count: usize) -> Vec<u8> {
        while self.buffer.len() < count {
            let more = self.read_some().expect("more to read");
            assert!(!more.is_empty(), "the connection ended within an answer");
            self.buffer.extend(more);
        }
        self.buffer.drain(..count).collect()
    }

    /// What arrives next; nothing at the end.
    pub(crate) fn read_some(&mut self) -> io::Result<Vec<u8>> {
        let mut room = vec![0; 64 * 1024];
        let received = self.stream.read(&mut room)?;
        room.truncate(received);
        Ok(room)
    }

    #[track_caller]
    pub(crate) fn assert_closed(&mut self) {
        assert_eq!((self.buffer.len(), self.read_some().expect("an end").len()), (0, 0), "more than was asked for");
    }

    fn read_until(&mut self, end: &[u8]) -> String {
        loop {
            if let Some(at) = self.buffer.windows(end.len()).position(|window| window == end) {
                return String::from_utf8(self.read_exact(at + end.len())).expect("text");
            }
            let more = self.read_some().expect("more to read");
            assert!(!more.is_empty(), "the connection ended within a head");
            self.buffer.extend(more);
        }
    }
}
