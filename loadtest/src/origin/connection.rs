//! The life of a connection: wait, read a request, let its time pass, answer; again.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use ringway_core::answer::status_line;
use ringway_core::http::{BodyDecoder, Framing, HeadScan, HeadScanner, leading_empty_lines};
use ringway_io::Sock;
use rustix::net::Shutdown;

use super::answer::Shape;
use super::fate::Fault;
use super::request::Request;
use super::worker::{Block, Open, Worker};

/// Answers to pipelined requests are sent together up to this size.
const TOGETHER_BYTES_MAX: usize = 64 * 1024;
/// Body of an answer that says that it failed.
const FAILED_BODY_BYTES_MAX: usize = 64;
/// How long a stalled answer stays as it is.
const STALL: Duration = Duration::from_secs(60);
/// How long a client may go on sending after its last answer. Without it the kernel would answer those bytes with a
/// reset, which can destroy the answer on its way.
const LINGER: Duration = Duration::from_secs(2);

/// The connection is to be closed.
struct Ended;

/// A connection at work. One that waits for a request has no block.
struct Connection<'a> {
    worker: &'a Worker,
    sock: &'a Sock,
    block: Block,
}

/// Serves a connection to its end.
pub(super) async fn serve(worker: &Worker, open: &Open) {
    let sock = &open.sock;
    loop {
        sock.readable().await;
        open.is_idle.set(false);
        let mut connection = Connection { worker, sock, block: worker.take_block() };
        let served = connection.serve_arrived().await;
        worker.give_block(connection.block);
        if served.is_err() {
            return;
        }
        open.is_idle.set(true);
        if worker.is_ending() {
            sock.shutdown(Shutdown::Read);
        }
    }
}

impl Connection<'_> {
    /// Answers what has arrived, until nothing is left of it.
    async fn serve_arrived(&mut self) -> Result<(), Ended> {
        match self.sock.recv(self.block.inbox.room()) {
            Ok(Some(0)) | Err(_) => return Err(Ended),
            Ok(Some(received)) => self.block.inbox.received(received),
            Ok(None) => return Ok(()),
        }
        while !self.block.inbox.is_empty() {
            let request = self.read_head().await?;
            if request.framing != Framing::None {
                self.drop_body(&request).await?;
            }
            self.answer(&request).await?;
        }
        self.flush().await
    }

    async fn read_head(&mut self) -> Result<Request, Ended> {
        let mut scanner = HeadScanner::default();
        loop {
            let empty_lines = leading_empty_lines(self.block.inbox.data());
            self.block.inbox.consume(empty_lines);
            let data = self.block.inbox.data();
            let scanned = if matches!(data, b"" | b"\r") { HeadScan::Partial } else { scanner.scan(data) };
            match scanned {
                HeadScan::Complete(length) => {
                    let read = Request::read(&data[..length]);
                    self.block.inbox.consume(length);
                    return match read {
                        Ok(request) => Ok(request),
                        Err(message) => Err(self.refuse(400, &message).await),
                    };
                }
                HeadScan::Partial if self.block.inbox.room().is_empty() => {
                    return Err(self.refuse(431, "the head is too large").await);
                }
                HeadScan::Partial => self.receive().await?,
                HeadScan::BareLineFeed => return Err(self.refuse(400, "a line does not end with CR LF").await),
                HeadScan::NotHttp => return Err(self.refuse(400, "this is not HTTP").await),
            }
        }
    }

    async fn drop_body(&mut self, request: &Request) -> Result<(), Ended> {
        let mut body = BodyDecoder::new(request.framing);
        let mut may_ask = request.expects_continue;
        loop {
            match body.decode(self.block.inbox.data_mut()) {
                Ok(decoded) => {
                    self.block.inbox.consume(decoded.consumed);
                    if decoded.done {
                        return Ok(());
                    }
                }
                Err(error) => return Err(self.refuse(400, &error.to_string()).await),
            }
            if std::mem::take(&mut may_ask) {
                self.block.out.extend_from_slice(b"HTTP/1.1 100 Continue\r\n\r\n");
            }
            self.receive().await?;
        }
    }

    async fn answer(&mut self, request: &Request) -> Result<(), Ended> {
        let Worker { settings, counts, .. } = self.worker;
        counts.requests.add();
        let mut fate = self.worker.fate();
        if request.wish.status.is_some() {
            fate.fault = None;
        }
        let delay = request.wish.delay.unwrap_or(fate.delay);
        if !delay.is_zero() {
            self.sleep(delay).await?;
        }

        let mut shape = Shape {
            status: request.wish.status.unwrap_or(settings.status),
            body_bytes: request.wish.size.unwrap_or(settings.body_bytes),
            is_head: request.is_head,
            is_http10: request.is_http10,
            keep_alive: request.keep_alive && !fate.close && !self.worker.is_ending(),
        };
        match fate.fault {
            None => {}
            Some(Fault::Fail) => {
                counts.failed.add();
                shape.status = settings.fail_status;
                shape.body_bytes = shape.body_bytes.min(FAILED_BODY_BYTES_MAX);
            }
            Some(Fault::Stall) => {
                counts.stalled.add();
                self.flush().await?;
                write(self.sock, self.worker.answer(shape).half()).await?;
                self.linger(STALL).await;
                return Err(Ended);
            }
            Some(Fault::Reset) => {
                counts.reset.add();
                self.flush().await?;
                self.sock.reset_on_close();
                return Err(Ended);
            }
        }
        self.send(shape).await?;
        if fate.hang_up {
            self.flush().await?;
            return Err(Ended);
        }
        Ok(())
    }

    /// Sends an answer, or keeps it to be sent with the next.
    async fn send(&mut self, shape: Shape) -> Result<(), Ended> {
        let answer = self.worker.answer(shape);
        let out = &mut self.block.out;
        let is_last_for_now = self.block.inbox.is_empty() || !shape.keep_alive;
        if is_last_for_now && out.is_empty() {
            write(self.sock, &answer.bytes).await?;
        } else if out.len() + answer.bytes.len() <= TOGETHER_BYTES_MAX {
            out.extend_from_slice(&answer.bytes);
        } else {
            self.flush().await?;
            write(self.sock, &answer.bytes).await?;
            ringway_io::yield_now().await;
        }
        if shape.keep_alive {
            return Ok(());
        }
        self.flush().await?;
        if !self.block.inbox.is_empty() {
            self.sock.shutdown(Shutdown::Write);
            self.linger(LINGER).await;
        }
        Err(Ended)
    }

    /// Tells the client what is wrong with its request. The connection ends: where the next would begin is not known.
    async fn refuse(&mut self, status: u16, message: &str) -> Ended {
        self.worker.counts.refused.add();
        let out = &mut self.block.out;
        status_line(status, out);
        let length = message.len() + 1;
        out.extend_from_slice(format!("Content-Type: text/plain\r\nContent-Length: {length}\r\n").as_bytes());
        out.extend_from_slice(format!("Connection: close\r\n\r\n{message}\n").as_bytes());
        if self.flush().await.is_ok() {
            self.sock.shutdown(Shutdown::Write);
            self.linger(LINGER).await;
        }
        Ended
    }

    /// Waits for more from the client, once it has what it is owed.
    async fn receive(&mut self) -> Result<(), Ended> {
        self.flush().await?;
        loop {
            match self.sock.recv(self.block.inbox.room()) {
                Ok(Some(0)) | Err(_) => return Err(Ended),
                Ok(Some(received)) => {
                    self.block.inbox.received(received);
                    return Ok(());
                }
                Ok(None) => self.sock.readable().await,
            }
        }
    }

    async fn flush(&mut self) -> Result<(), Ended> {
        if !self.block.out.is_empty() {
            write(self.sock, &self.block.out).await?;
            self.block.out.clear();
        }
        Ok(())
    }

    /// Lets time pass, without a block where there is nothing to keep in it.
    async fn sleep(&mut self, delay: Duration) -> Result<(), Ended> {
        self.flush().await?;
        if self.block.inbox.is_empty() {
            self.worker.give_block(std::mem::take(&mut self.block));
            self.worker.timers.sleep(delay).await;
            self.block = self.worker.take_block();
        } else {
            self.worker.timers.sleep(delay).await;
        }
        Ok(())
    }

    /// Reads and drops what comes until the client leaves, for so long at most.
    async fn linger(&mut self, limit: Duration) {
        let mut sleep = pin!(self.worker.timers.sleep(limit));
        loop {
            let mut readable = pin!(self.sock.readable());
            let is_late = poll_fn(|cx| match sleep.as_mut().poll(cx) {
                Poll::Ready(()) => Poll::Ready(true),
                Poll::Pending => readable.as_mut().poll(cx).map(|()| false),
            });
            if is_late.await {
                return;
            }
            self.block.inbox.clear();
            if matches!(self.sock.recv(self.block.inbox.room()), Ok(Some(0)) | Err(_)) {
                return;
            }
        }
    }
}

/// Writes everything.
async fn write(sock: &Sock, mut bytes: &[u8]) -> Result<(), Ended> {
    loop {
        let sent = sock.send(bytes, false).map_err(|_| Ended)?;
        bytes = &bytes[sent..];
        if bytes.is_empty() {
            return Ok(());
        }
        sock.writable().await;
    }
}
