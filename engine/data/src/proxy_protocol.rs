//! Whom a connection is of, where a proxy stands before the gateway or the gateway before a service that wants to know: the
//! PROXY protocol on both sides.

use std::sync::Arc;

use ringway_config::snapshot::ProxyProtocol;
use ringway_core::failure::Failure;
use ringway_core::forwarded::is_trusted;
use ringway_core::proxy_protocol::{HEADER_BYTES_MAX, Origin, Version, parse, write};
use ringway_io::Sock;

use crate::accept::refusal;
use crate::clock::us;
use crate::connection::Connection;
use crate::deadline::Slot;

/// Why a connection is closed before its first request.
enum Refused {
    /// A proxy that only looked whether there is somebody, or that was in no mood to go on.
    Gone,
    Bad,
}

/// Learns from the header of a trusted proxy whose connection this is; false where it is to be closed.
pub(crate) async fn introduce(conn: &mut Connection) -> bool {
    let listener = Arc::clone(&conn.listener);
    let Some(settings) = &listener.proxy_protocol else { return true };
    let introduced = match is_trusted(&settings.trusted, conn.peer.ip()) {
        true => read(conn, settings).await,
        // Nobody else is believed: what it sends is its request.
        false if !settings.required => return true,
        false => Err(Refused::Bad),
    };
    match introduced {
        Ok(Origin::Proxy) => {}
        Ok(Origin::Client { source, destination }) => {
            conn.peer = source;
            conn.destination = Some(destination);
            if !conn.count_address() {
                conn.worker.cell().refused_per_ip.add(1);
                let mut out = conn.worker.take_head();
                refusal(&conn.worker, Failure::Overloaded, &mut out);
                let _ = conn.client.send(&out);
                conn.worker.give_head(out);
                return false;
            }
        }
        Err(refused) => {
            if let (Refused::Bad, Some(cell)) = (refused, conn.listener_cell()) {
                cell.proxy_protocol_errors.add(1);
            }
            return false;
        }
    }
    conn.timers.begin();
    true
}

/// Reads the header and nothing behind it: what has arrived is looked at before it is taken.
async fn read(conn: &Connection, settings: &ProxyProtocol) -> Result<Origin, Refused> {
    conn.timers.set(Slot::ClientRead, conn.worker.clock.lately() + us(settings.timeout));
    let mut header = conn.worker.take_inbox();
    loop {
        let held = header.len();
        let room = header.room();
        let wanted = (HEADER_BYTES_MAX - held).min(room.len());
        let room = room.get_mut(..wanted).unwrap_or_default();
        match conn.client.peek(room) {
            Ok(Some(seen)) if seen > 0 => header.received(seen),
            Ok(None) => {
                conn.client.readable().await;
                continue;
            }
            _ if held == 0 && !conn.timers.has_fired(Slot::ClientRead) => return Err(Refused::Gone),
            _ => return Err(Refused::Bad),
        }
        let parsed = parse(header.data(), settings.versions).map_err(|_| Refused::Bad)?;
        // Where it is not whole yet, all of this belongs to it.
        let end = parsed.map_or(header.len(), |(length, _)| length);
        let own = header.data_mut().get_mut(held..end).unwrap_or_default();
        let own_bytes = own.len();
        match conn.client.recv(own) {
            Ok(Some(taken)) if taken == own_bytes => conn.worker.cell().client_bytes_in.add(taken as u64),
            _ => return Err(Refused::Bad),
        }
        if let Some((_, origin)) = parsed {
            return Ok(origin);
        }
    }
}

/// Tells a service whose requests come on this connection, which is new: there is room for so little.
pub(crate) fn announce(conn: &Connection, version: Version, service: &Sock) -> Result<(), Failure> {
    let destination = conn.destination.or_else(|| conn.client.local_address()).unwrap_or(conn.listener.address);
    let mut header = conn.worker.take_head();
    header.clear();
    write(version, conn.peer, destination, &mut header);
    let sent = service.send(&header, true);
    let whole = sent.is_ok_and(|sent| sent == header.len());
    conn.worker.give_head(header);
    if whole { Ok(()) } else { Err(Failure::ConnectFailed) }
}
