//! How long a request's body may take to come.

use ringway_core::failure::Failure;

use crate::buffer::Buffer;
use crate::clock::us;
use crate::connection::Connection;
use crate::deadline::Slot;

/// How slowly a client may send its body.
pub(crate) struct Pace {
    /// Moves on while the service is waited for: that time is not the client's.
    pub(crate) started: u64,
    /// The longest wait between two reads; no end where it is `u64::MAX`.
    wait: u64,
    /// Bytes per second; 0: no minimum.
    rate: u64,
}

impl Pace {
    pub(crate) fn start(conn: &Connection) -> Self {
        let times = &conn.listener.timeouts;
        Self { started: conn.worker.clock.now(), wait: us(times.body), rate: times.body_rate }
    }

    /// A client of gRPC sends a message when it has one. Once the service has begun to answer, it is the service that may
    /// not be silent for too long.
    pub(crate) fn of_call(&mut self, wait: u64) {
        (self.wait, self.rate) = (wait, 0);
    }

    /// Waits for more of the body, of which `received` bytes came since the start. How many bytes arrived.
    pub(crate) async fn receive(&self, conn: &Connection, buffer: &mut Buffer, received: u64) -> Result<u64, Failure> {
        let by_rate = match self.rate {
            0 => u64::MAX,
            rate => self.started + self.wait + received.saturating_mul(1_000_000) / rate,
        };
        conn.timers.set(Slot::ClientRead, conn.worker.clock.lately().saturating_add(self.wait).min(by_rate));
        let arrived = loop {
            match conn.client.recv(buffer.room()) {
                Ok(None) => conn.client.readable().await,
                Ok(Some(arrived)) if arrived > 0 => break arrived,
                Ok(Some(_)) | Err(_) => {
                    let late = conn.timers.has_fired(Slot::ClientRead);
                    return Err(match (late, conn.timers.has_fired(Slot::Request)) {
                        (true, _) => Failure::BodyTimeout,
                        (_, true) => Failure::RequestTimeout,
                        _ => Failure::ClientGone,
                    });
                }
            }
        };
        conn.timers.clear(Slot::ClientRead);
        conn.worker.cell().client_bytes_in.add(arrived as u64);
        buffer.received(arrived);
        Ok(arrived as u64)
    }
}
