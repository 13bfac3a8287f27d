//! Clients that ask for a WebSocket, byte by byte.

use fastrand::Rng;

use crate::{Client, Gateway, settles_at};

/// Of the example of RFC 6455 section 1.3.
pub const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
/// What the gateway says to a client when it ends a tunnel, and to a service, masked.
pub const GOING_AWAY: [u8; 4] = [0x88, 2, 0x03, 0xe9];
/// "Hi" in a text frame of a client, masked with zeros.
pub const HI: [u8; 8] = [0x81, 0x82, 0, 0, 0, 0, b'H', b'i'];

/// A request of HTTP/1.1 for a WebSocket, with more fields, each with its line end.
pub fn handshake(path: &str, more: &str) -> String {
    format!(
        "GET {path} HTTP/1.1\r\nHost: a.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {KEY}\r\n{more}\r\n"
    )
}

/// A client of HTTP/1.1 that has its tunnel.
#[track_caller]
pub fn open(gateway: &Gateway, path: &str) -> Client {
    let mut client = gateway.connect();
    let answer = client.send(handshake(path, "")).read_head();
    assert_eq!(answer.status(), 101, "{answer:?}");
    client
}

/// Bytes that an idle tunnel holds. The service echoes.
#[track_caller]
pub fn idle_tunnel_bytes(gateway: &Gateway) -> u64 {
    const TUNNELS: usize = 900;
    // What the first ones leave behind is not theirs alone.
    drop((0..50).map(|_| open(gateway, "/")).collect::<Vec<_>>());
    gateway.expect_idle();
    let before = gateway.rss_bytes();
    let mut tunnels: Vec<Client> = (0..TUNNELS).map(|_| open(gateway, "/")).collect();
    for tunnel in &mut tunnels {
        assert_eq!(tunnel.send(HI).read_exact(HI.len()), HI);
    }
    settles_at(0.0, || gateway.metric("gateway_buffers_in_use{worker=\"0\"}"));
    let each = gateway.rss_bytes().saturating_sub(before) / TUNNELS as u64;
    println!("an idle tunnel: {each} bytes");
    each
}

/// One connection of HTTP/1.1 that ends at a random point, in a random way. The service echoes on `/`, does as it likes on
/// other `paths`, and does not answer at all on `silent`.
pub fn come_and_go(gateway: &Gateway, rng: &mut Rng, paths: &[&str], silent: &str) {
    let mut client = gateway.connect();
    let path = paths[rng.usize(..paths.len())];
    let (head, point) = (handshake(path, ""), rng.u32(..6));
    let sent = if point == 0 { rng.usize(..head.len()) } else { head.len() };
    let _ = client.try_send(&head.as_bytes()[..sent]);
    if point >= 2 && path != silent {
        let Ok(answer) = client.next_head() else { return };
        if answer.status() == 101 && path == "/" && point >= 3 {
            let bytes = vec![0x5a; rng.usize(1..60_000)];
            let _ = client.try_send(&bytes);
            if point >= 4 {
                assert_eq!(client.read_exact(bytes.len()), bytes);
            }
            if point == 5 {
                client.half_close();
                client.expect_closed();
            }
        }
    }
    if rng.bool() {
        client.reset();
    }
}
