//! Transfers that may have to wait, each under a deadline.

use rustix::net::Shutdown;

use crate::buffer::Buffer;
use crate::clock::us;
use crate::connection::Connection;
use crate::deadline::Slot;
use ringway_io::{Sock, yield_now};

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
    let sent = conn.sock.send(bytes, false).map_err(|_| Gone)?;
    if sent == bytes.len() {
        return Ok(());
    }
    let limit = us(conn.listener.timeouts.write);
    write_rest(conn, &conn.sock, bytes.get(sent..).unwrap_or_default(), Slot::ClientWrite, limit).await
}

/// Writes everything to a service; `idle`: the longest wait between two writes, in microseconds.
#[inline]
pub(crate) async fn write_service(conn: &Connection, sock: &Sock, bytes: &[u8], idle: u64) -> Result<(), Gone> {
    let sent = sock.send(bytes, false).map_err(|_| Gone)?;
    if sent == bytes.len() {
        return Ok(());
    }
    write_rest(conn, sock, bytes.get(sent..).unwrap_or_default(), Slot::ServiceWrite, idle).await
}

async fn write_rest(conn: &Connection, sock: &Sock, mut bytes: &[u8], slot: Slot, limit: u64) -> Result<(), Gone> {
    while !bytes.is_empty() {
        conn.timers.set(slot, conn.worker.clock.lately() + limit);
        sock.writable().await;
        if conn.timers.has_fired(slot) {
            return Err(Gone);
        }
        let sent = sock.send(bytes, false).map_err(|_| Gone)?;
        bytes = bytes.get(sent..).unwrap_or_default();
    }
    conn.timers.clear(slot);
    Ok(())
}

/// Closes the writing side and reads what the client still sends, for a while.
pub(crate) async fn linger(conn: &Connection, buffer: &mut Buffer) {
    conn.sock.shutdown(Shutdown::Write);
    conn.timers.begin();
    conn.timers.set(Slot::ClientRead, conn.worker.clock.lately() + LINGER_US);
    let mut left = LINGER_BYTES_MAX;
    while left > 0 && !conn.timers.has_fired(Slot::ClientRead) {
        buffer.clear();
        match conn.sock.recv(buffer.room()) {
            Ok(Some(0)) | Err(_) => return,
            Ok(Some(received)) => left = left.saturating_sub(received),
            Ok(None) => conn.sock.readable().await,
        }
    }
}
