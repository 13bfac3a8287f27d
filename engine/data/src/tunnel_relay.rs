//! What follows an upgrade (RFC 9110 section 7.8): bytes both ways, whatever they mean, until both sides have ended.
//!
//! An idle tunnel holds no block: each direction waits for bytes, takes a block from the core's for them, and gives it back
//! when they have left. The next bytes are read then, so that a slow reader slows the other side down.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::io;
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use ringway_core::http::websocket::{CLOSE_FRAME, Frames, masked_close_frame};
use ringway_io::Sock;
use rustix::net::Shutdown;

use crate::buffer::Buffer;
use crate::client::Client;
use crate::connection::Counted;
use crate::deadline::{CLIENT_CHECK_US, Signal, Slot, Timers};
use crate::io::{Blocks, Gone};
use crate::link::Link;
use crate::worker::Worker;

/// How long the ends of a tunnel that the gateway closes have to close theirs.
pub(crate) const CLOSE_US: u64 = 500_000;

/// A running tunnel.
pub(crate) struct Relay {
    worker: Rc<Worker>,
    client: Client,
    service: Link,
    is_websocket: bool,
    timers: Timers,
    idle: u64,
    /// The same once one side has ended.
    idle_half_closed: u64,
    to_service: Direction,
    to_client: Direction,
    /// When the sockets were last looked at, while something waits to be taken.
    looked: Cell<Option<u64>>,
    /// The connection goes on counting as one.
    _counted: Option<Counted>,
}

/// Who is at its ends.
pub(crate) struct Sides {
    pub(crate) client: Client,
    pub(crate) service: Link,
    /// The connection goes on counting as one.
    pub(crate) counted: Option<Counted>,
}

/// What came before there was a tunnel.
#[derive(Default)]
pub(crate) struct First {
    pub(crate) of_client: Option<Buffer>,
    pub(crate) of_service: Option<Buffer>,
}

/// How a tunnel ended.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ended {
    /// Both sides have.
    Whole,
    /// One of them is gone.
    Broken,
    /// It was idle for too long, or the process ends.
    ByGateway,
}

/// One direction.
#[derive(Default)]
struct Direction {
    bytes: Cell<u64>,
    frames: RefCell<Frames>,
    /// Bytes are on their way that have not all left.
    is_sending: Cell<bool>,
    has_ended: Cell<bool>,
}

impl Direction {
    fn may_close(&self) -> bool {
        !self.is_sending.get() && !self.has_ended.get() && self.frames.borrow().may_close()
    }
}

impl Relay {
    /// `idle`: how long nothing may go through, and how long once one side has ended, in microseconds.
    pub(crate) fn new(
        worker: &Rc<Worker>,
        sides: Sides,
        is_websocket: bool,
        timers: Timers,
        (idle, idle_half_closed): (u64, u64),
    ) -> Self {
        Self {
            worker: Rc::clone(worker),
            client: sides.client,
            service: sides.service,
            is_websocket,
            timers,
            idle,
            idle_half_closed,
            to_service: Direction::default(),
            to_client: Direction::default(),
            looked: Cell::new(None),
            _counted: sides.counted,
        }
    }

    /// Bytes from the client and to it.
    pub(crate) fn carried(&self) -> (u64, u64) {
        (self.to_service.bytes.get(), self.to_client.bytes.get())
    }

    /// Until both sides have ended, or the tunnel has.
    pub(crate) async fn run(&self, signal: &Signal, first: First) {
        self.timers.tunnel();
        self.touch();
        let ended = {
            let mut to_service = pin!(self.upload(first.of_client));
            let mut to_client = pin!(self.download(first.of_service));
            poll_fn(|cx| {
                signal.listen(cx);
                if self.timers.has_fired(Slot::ClientRead) {
                    return Poll::Ready(Ended::ByGateway);
                }
                let mut is_broken = false;
                if !self.to_service.has_ended.get() {
                    is_broken |= matches!(to_service.as_mut().poll(cx), Poll::Ready(Err(Gone)));
                }
                if !is_broken && !self.to_client.has_ended.get() {
                    is_broken |= matches!(to_client.as_mut().poll(cx), Poll::Ready(Err(Gone)));
                }
                is_broken = is_broken || self.poll_gone(cx);
                match self.to_service.has_ended.get() && self.to_client.has_ended.get() {
                    _ if is_broken => Poll::Ready(Ended::Broken),
                    true => Poll::Ready(Ended::Whole),
                    false => Poll::Pending,
                }
            })
            .await
        };
        match ended {
            Ended::Whole => {}
            Ended::Broken => self.reset(),
            Ended::ByGateway => self.close(signal).await,
        }
    }

    /// Whether a side is gone from which nobody reads at the moment: the other one does not take what it has sent, or it has
    /// ended its direction.
    fn poll_gone(&self, cx: &mut Context<'_>) -> bool {
        let (client, service) = (self.to_service.is_sending.get(), self.to_client.is_sending.get());
        let looks = self.looks(client || service);
        let is_client_gone = match self.client.stream() {
            _ if !client => false,
            Some(stream) => stream.signal.gone(),
            None => looks && self.client.sock().is_some_and(Sock::is_reset),
        };
        let is_half_closed = self.to_client.has_ended.get() && !self.to_service.has_ended.get();
        let is_service_gone = match self.service.stream().filter(|_| service || is_half_closed) {
            None => service && looks && self.service.sock().is_some_and(Sock::is_reset),
            Some(stream) => match stream.poll_reset(cx) {
                Poll::Pending => false,
                Poll::Ready(takes_no_more) => {
                    if takes_no_more && is_half_closed {
                        self.to_service.has_ended.set(true);
                    }
                    !takes_no_more
                }
            },
        };
        is_client_gone || is_service_gone
    }

    /// Whether it is time to look at the sockets' state, which nobody tells while something waits to be taken.
    fn looks(&self, waits: bool) -> bool {
        let now = self.worker.clock.lately();
        match self.looked.get() {
            None if waits => {
                self.looked.set(Some(now));
                self.timers.watch(Some(now));
                false
            }
            Some(_) if !waits => {
                self.looked.set(None);
                self.timers.watch(None);
                false
            }
            // It is woken for this by another reading of the clock.
            Some(last) if now.saturating_sub(last) > CLIENT_CHECK_US / 2 => {
                self.looked.set(Some(now));
                true
            }
            _ => false,
        }
    }

    /// Something has moved.
    fn touch(&self) {
        let is_half_closed = self.to_service.has_ended.get() || self.to_client.has_ended.get();
        let idle = if is_half_closed { self.idle_half_closed } else { self.idle };
        self.timers.set(Slot::ClientRead, self.worker.clock.lately() + idle);
    }

    /// From the client to the service.
    async fn upload(&self, mut first: Option<Buffer>) -> Result<(), Gone> {
        let mut blocks = Blocks::default();
        loop {
            let buffer = match first.take() {
                Some(first) => first,
                None => {
                    self.client.readable().await;
                    let mut buffer = self.worker.take_inbox();
                    match self.client.recv(buffer.room()) {
                        Ok(None) => continue,
                        Ok(Some(received)) if received > 0 => {
                            self.worker.cell().client_bytes_in.add(received as u64);
                            buffer.received(received);
                            buffer
                        }
                        Ok(Some(_)) => break,
                        Err(error) if self.is_end(&error) => break,
                        Err(_) => return Err(Gone),
                    }
                }
            };
            self.begin(&self.to_service, &buffer);
            self.give_service(buffer).await?;
            self.to_service.is_sending.set(false);
            blocks.next().await;
        }
        self.service.shutdown(Shutdown::Write);
        self.to_service.has_ended.set(true);
        self.touch();
        Ok(())
    }

    /// From the service to the client.
    async fn download(&self, mut first: Option<Buffer>) -> Result<(), Gone> {
        let mut blocks = Blocks::default();
        loop {
            let buffer = match first.take() {
                Some(first) => first,
                None => {
                    self.service.readable().await;
                    let mut buffer = self.worker.take_answer();
                    match self.service.recv(buffer.room()) {
                        Ok(None) => continue,
                        Ok(Some(received)) if received > 0 => {
                            buffer.received(received);
                            buffer
                        }
                        Ok(Some(_)) => break,
                        Err(error) if self.is_end(&error) => break,
                        Err(_) => return Err(Gone),
                    }
                }
            };
            self.worker.cell().client_bytes_out.add(buffer.len() as u64);
            self.begin(&self.to_client, &buffer);
            self.give_client(buffer).await?;
            self.to_client.is_sending.set(false);
            blocks.next().await;
        }
        self.end_client();
        self.to_client.has_ended.set(true);
        self.touch();
        Ok(())
    }

    fn begin(&self, direction: &Direction, buffer: &Buffer) {
        direction.bytes.set(direction.bytes.get() + buffer.len() as u64);
        direction.is_sending.set(true);
        if self.is_websocket {
            direction.frames.borrow_mut().pass(buffer.data());
        }
        self.touch();
    }

    /// Writes a block to the service.
    async fn give_service(&self, buffer: Buffer) -> Result<(), Gone> {
        if let Some(stream) = self.service.stream() {
            stream.send_block(buffer).map_err(|_| Gone)?;
            return poll_fn(|cx| stream.poll_sent(cx)).await.map_err(|_| Gone);
        }
        let mut sent = 0;
        while let Some(left) = buffer.data().get(sent..).filter(|left| !left.is_empty()) {
            let taken = self.service.send(left).map_err(|_| Gone)?;
            sent += taken;
            if taken < left.len() {
                self.service.writable().await;
                self.touch();
            }
        }
        Ok(())
    }

    /// Writes a block to the client.
    async fn give_client(&self, buffer: Buffer) -> Result<(), Gone> {
        if let Some(stream) = self.client.stream() {
            stream.send_block(buffer, false).map_err(|_| Gone)?;
            return poll_fn(|cx| stream.poll_sent(cx)).await.map_err(|_| Gone);
        }
        let mut sent = 0;
        while let Some(left) = buffer.data().get(sent..).filter(|left| !left.is_empty()) {
            let taken = self.client.send(left).map_err(|_| Gone)?;
            sent += taken;
            if taken < left.len() {
                self.client.writable().await;
                self.touch();
            }
        }
        Ok(())
    }

    /// TLS is closed without its word for that by many. A WebSocket says by itself whether it is whole.
    fn is_end(&self, error: &io::Error) -> bool {
        error.kind() == io::ErrorKind::UnexpectedEof && self.is_websocket
    }

    /// Nothing more goes to the client.
    fn end_client(&self) {
        match self.client.stream() {
            Some(stream) => drop(stream.send_bytes(b"", true)),
            None => self.client.shutdown(Shutdown::Write),
        }
    }

    /// What did not come whole must not look as if it had.
    fn reset(&self) {
        match self.client.stream() {
            // RFC 8441 section 5.
            Some(stream) => stream.reset(h2::Reason::CANCEL),
            None => self.client.reset_on_close(),
        }
        self.service.reset_on_close();
    }

    /// Tells both sides that the gateway ends it, and gives them a moment to end it too. Between two frames of a WebSocket
    /// that is a close frame.
    async fn close(&self, signal: &Signal) {
        if self.is_websocket && self.to_client.may_close() {
            let _ = match self.client.stream() {
                Some(stream) => stream.send_bytes(&CLOSE_FRAME, false),
                None => self.client.send(&CLOSE_FRAME).map(drop),
            };
        }
        if self.is_websocket && self.to_service.may_close() {
            let mask = (self.worker.random() as u32).to_ne_bytes();
            let _ = self.service.send(&masked_close_frame(mask));
        }
        self.end_client();
        self.service.shutdown(Shutdown::Write);
        self.timers.forget(Slot::ClientRead);
        self.timers.set(Slot::ClientRead, self.worker.clock.now() + CLOSE_US);
        let mut client = pin!(self.drop_rest(&self.to_service, false));
        let mut service = pin!(self.drop_rest(&self.to_client, true));
        let (mut client_is_over, mut service_is_over) = (false, false);
        poll_fn(|cx| {
            signal.listen(cx);
            client_is_over = client_is_over || client.as_mut().poll(cx).is_ready();
            service_is_over = service_is_over || service.as_mut().poll(cx).is_ready();
            let is_over = client_is_over && service_is_over;
            if is_over || self.timers.has_fired(Slot::ClientRead) { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }

    /// Reads up to the end of what is sent into a direction.
    async fn drop_rest(&self, direction: &Direction, of_service: bool) {
        let mut blocks = Blocks::default();
        while !direction.has_ended.get() {
            if of_service {
                self.service.readable().await
            } else {
                self.client.readable().await
            }
            let mut buffer = self.worker.take_inbox();
            let room = buffer.room();
            let received = if of_service { self.service.recv(room) } else { self.client.recv(room) };
            match received {
                Ok(Some(0)) | Err(_) => return,
                Ok(_) => blocks.next().await,
            }
        }
    }
}
