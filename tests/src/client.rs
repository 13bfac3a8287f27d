//! A client that sends what it is told, byte for byte.

use std::net::{IpAddr, SocketAddr, TcpStream};
use std::ops::{Deref, DerefMut};
use std::time::Duration;

use socket2::{Domain, Socket, Type};

use crate::PATIENCE;
use crate::message::Message;
use crate::wire::{Unframed, Wire};

/// A connection to the gateway. Every read has a deadline.
pub struct Client(Wire);

impl Client {
    #[track_caller]
    pub fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).unwrap_or_else(|error| panic!("connect to {address}: {error}"));
        Self(Wire::new(stream, PATIENCE))
    }

    /// Comes from another address of 127/8.
    #[track_caller]
    pub fn connect_from(ip: IpAddr, address: SocketAddr) -> Self {
        Self::connect_with(address, |socket| {
            socket.bind(&SocketAddr::new(ip, 0).into()).expect("a local address");
        })
    }

    /// With a small receive buffer, so that a client that does not read is noticed soon.
    #[track_caller]
    pub fn connect_narrow(address: SocketAddr) -> Self {
        Self::connect_with(address, |socket| socket.set_recv_buffer_size(4096).expect("SO_RCVBUF"))
    }

    #[track_caller]
    fn connect_with(address: SocketAddr, prepare: impl FnOnce(&Socket)) -> Self {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
        prepare(&socket);
        socket.connect_timeout(&address.into(), PATIENCE).unwrap_or_else(|error| panic!("{address}: {error}"));
        Self(Wire::new(socket.into(), PATIENCE))
    }

    /// Sends a GET on HTTP/1.1 and reads the answer.
    #[track_caller]
    pub fn get(&mut self, target: &str) -> Message {
        self.send(format!("GET {target} HTTP/1.1\r\nHost: test\r\n\r\n")).read_response()
    }

    /// Sends a whole request and reads its answer.
    #[track_caller]
    pub fn ask(&mut self, request: impl AsRef<[u8]>) -> Message {
        self.send(request).read_response()
    }

    #[track_caller]
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) -> &mut Self {
        self.0.send(bytes);
        self
    }

    /// The next answer, which may be an interim one.
    #[track_caller]
    pub fn read_response(&mut self) -> Message {
        let head = self.read_head();
        let unframed = match head.status() {
            100..200 | 204 | 304 => Unframed::Never,
            _ => Unframed::UntilClose,
        };
        self.read_rest(head, unframed)
    }

    /// The answer to a HEAD request.
    #[track_caller]
    pub fn read_response_to_head(&mut self) -> Message {
        let head = self.read_head();
        self.read_rest(head, Unframed::Never)
    }

    /// Sends byte by byte, with a pause between two.
    #[track_caller]
    pub fn send_slowly(&mut self, bytes: impl AsRef<[u8]>, pause: Duration) -> &mut Self {
        for byte in bytes.as_ref() {
            self.send([*byte]);
            std::thread::sleep(pause);
        }
        self
    }

    /// Ends the connection with a reset.
    pub fn reset(self) {
        self.reset_on_close();
    }
}

impl Deref for Client {
    type Target = Wire;

    fn deref(&self) -> &Wire {
        &self.0
    }
}

impl DerefMut for Client {
    fn deref_mut(&mut self) -> &mut Wire {
        &mut self.0
    }
}
