//! Transfers that may have to wait, each under a deadline.

use std::future::poll_fn;

use rustix::net::Shutdown;

use crate::buffer::Buffer;
use crate::clock::us;
use crate::connection::Connection;
use crate::deadline::{Slot, Timers};
use crate::link::Link;
use crate::stream::Stream;
use crate::worker::Worker;
use ringway_io::yield_now;

/// How long, and for how many bytes, a client may go on sending after the gateway has closed its own side; without it the
/// kernel would answer those bytes with a reset that can destroy the answer on its way.
const LINGER_US: u64 = 2_000_000;
const LINGER_BYTES_MAX: usize = 256 * 1024;

/// Blocks that one message moves before the others get their turn: 640 KiB. Two quick peers could keep a core to themselves.
const BLOCKS_IN_A_ROW: u32 = 32;

/// Counts the blocks of one message.
#[derive(Default)]
pub(crate) struct Blocks(u32);

impl Blocks {
    /// Gives way where it is time.
    #[inline]
    pub(crate) async fn next(&mut self) {
        self.0 += 1;
        if self.0 == BLOCKS_IN_A_ROW {
            self.0 = 0;
            yield_now().await;
        }
    }
}

/// The other side is gone, or did not take the bytes in time.
#[derive(Debug)]
pub(crate) struct Gone;

/// Writes everything to the client.
#[inline]
pub(crate) async fn write_client(conn: &Connection, bytes: &[u8]) -> Result<(), Gone> {
    conn.worker.cell().client_bytes_out.add(bytes.len() as u64);
    if let Some(stream) = conn.client.stream() {
        return answer_stream(conn, stream, bytes).await;
    }
    let mut sent = conn.client.send(bytes).map_err(|_| Gone)?;
    while sent < bytes.len() {
        let limit = us(conn.listener.timeouts.write);
        wait_to_write(&conn.worker, &conn.timers, Slot::ClientWrite, limit, conn.client.writable()).await?;
        sent += conn.client.send(bytes.get(sent..).unwrap_or_default()).map_err(|_| Gone)?;
    }
    Ok(())
}

/// Gives a stream an answer that is written whole, or the head of an interim one.
async fn answer_stream(conn: &Connection, stream: &Stream, bytes: &[u8]) -> Result<(), Gone> {
    let end = memchr::memmem::find(bytes, b"\r\n\r\n").map_or(bytes.len(), |end| end + 4);
    let (head, body) = bytes.split_at_checked(end).unwrap_or((bytes, b""));
    stream.send_head(head, body.is_empty()).map_err(|_| Gone)?;
    if body.is_empty() {
        return Ok(());
    }
    stream.send_bytes(body, true).map_err(|_| Gone)?;
    wait_sent(conn, stream).await
}

/// Waits until the stream's client has taken what it was given, as far as its window goes.
pub(crate) async fn wait_sent(conn: &Connection, stream: &Stream) -> Result<(), Gone> {
    conn.timers.set(Slot::ClientWrite, conn.worker.clock.lately() + us(conn.listener.timeouts.write));
    let sent = poll_fn(|cx| stream.poll_sent(cx)).await;
    conn.timers.clear(Slot::ClientWrite);
    if sent.is_err() {
        stream.reset(h2::Reason::CANCEL);
    }
    sent.map_err(|_| Gone)
}

/// Writes everything to a service; `idle`: the longest wait between two writes, in microseconds.
#[inline]
pub(crate) async fn write_service(
    worker: &Worker,
    timers: &Timers,
    link: &Link,
    bytes: &[u8],
    idle: u64,
) -> Result<(), Gone> {
    let mut sent = link.send(bytes).map_err(|_| Gone)?;
    while sent < bytes.len() {
        wait_to_write(worker, timers, Slot::ServiceWrite, idle, link.writable()).await?;
        sent += link.send(bytes.get(sent..).unwrap_or_default()).map_err(|_| Gone)?;
    }
    Ok(())
}

/// Waits until there is room, for at most `limit` microseconds.
async fn wait_to_write(
    worker: &Worker,
    timers: &Timers,
    slot: Slot,
    limit: u64,
    writable: impl Future<Output = ()>,
) -> Result<(), Gone> {
    timers.set(slot, worker.clock.lately() + limit);
    writable.await;
    if timers.has_fired(slot) {
        return Err(Gone);
    }
    timers.clear(slot);
    Ok(())
}

/// Closes the writing side and reads what the client still sends, for a while.
pub(crate) async fn linger(conn: &Connection, buffer: &mut Buffer) {
    conn.client.shutdown(Shutdown::Write);
    conn.timers.begin();
    conn.timers.set(Slot::ClientRead, conn.worker.clock.lately() + LINGER_US);
    let mut left = LINGER_BYTES_MAX;
    while left > 0 && !conn.timers.has_fired(Slot::ClientRead) {
        buffer.clear();
        match conn.client.recv(buffer.room()) {
            Ok(Some(0)) | Err(_) => return,
            Ok(Some(received)) => left = left.saturating_sub(received),
            Ok(None) => conn.client.readable().await,
        }
    }
}
