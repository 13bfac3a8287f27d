//! The PROXY protocol: what a proxy says before a connection.

use std::net::SocketAddr;

use ringway_core::proxy_protocol::{HEADER_BYTES_MAX, Origin, ProxyError, Version, Versions, parse, write};

pub const DICTIONARY: &[&str] = &[
    "PROXY ",
    "TCP4 ",
    "TCP6 ",
    "UNKNOWN",
    "192.0.2.1 ",
    "2001:db8::1 ",
    "::ffff:192.0.2.1 ",
    "65535",
    "\r\n",
    "\r\n\r\n\0\r\nQUIT\n",
    "!",
    "\x11",
    "\0\x0c",
    "\0\0",
    " ",
    "0",
];

const BOTH: Versions = Versions { v1: true, v2: true };

/// Any bytes, as what arrives first on a connection.
pub fn target(bytes: &[u8]) {
    let whole = parse(bytes, BOTH);
    match whole {
        Ok(Some((length, origin))) => {
            assert!(length <= bytes.len() && length <= HEADER_BYTES_MAX);
            // What follows is not looked at, and what has come of it is never more than the header.
            assert_eq!(parse(&bytes[..length], BOTH), whole);
            for end in (0..length).step_by(1 + length / 64) {
                assert_eq!(parse(&bytes[..end], BOTH), Ok(None), "{end} of {length}");
            }
            if let Origin::Client { source, destination } = origin {
                check_written(source, destination);
                assert_eq!(naive(&bytes[..length]), Some((source, destination)));
            }
        }
        Ok(None) => assert!(bytes.len() < HEADER_BYTES_MAX, "what is not whole is bounded"),
        Err(_) => {}
    }
    for (v1, v2) in [(false, false), (true, false), (false, true)] {
        let some = parse(bytes, Versions { v1, v2 });
        assert!(some == whole || some == Err(ProxyError::Missing) || bytes.len() < 12, "{some:?}, {whole:?}");
    }
}

/// Reads the addresses in another way.
fn naive(header: &[u8]) -> Option<(SocketAddr, SocketAddr)> {
    if header.starts_with(b"PROXY") {
        let text = std::str::from_utf8(header).ok()?.trim_end();
        let words: Vec<&str> = text.split(' ').collect();
        let [_, _, source, destination, from, to] = words[..] else { return None };
        let address = |ip: &str, port: &str| Some(SocketAddr::new(ip.parse().ok()?, port.parse().ok()?));
        return Some((address(source, from)?, address(destination, to)?));
    }
    let body = &header[16..];
    let port = |at: usize| u16::from(body[at]) << 8 | u16::from(body[at + 1]);
    let v4 = |at: usize| <[u8; 4]>::try_from(&body[at..at + 4]).ok();
    let v6 = |at: usize| <[u8; 16]>::try_from(&body[at..at + 16]).ok();
    match header[13] >> 4 {
        1 => Some(((v4(0)?, port(8)).into(), (v4(4)?, port(10)).into())),
        _ => Some(((v6(0)?, port(32)).into(), (v6(16)?, port(34)).into())),
    }
}

/// What was read is the same once written and read again.
fn check_written(source: SocketAddr, destination: SocketAddr) {
    let plain = |address: SocketAddr| (address.ip().to_canonical(), address.port());
    for version in [Version::V1, Version::V2] {
        let mut bytes = Vec::new();
        write(version, source, destination, &mut bytes);
        let Ok(Some((length, Origin::Client { source: from, destination: to }))) = parse(&bytes, BOTH) else {
            panic!("{}", bytes.escape_ascii());
        };
        assert_eq!(length, bytes.len());
        assert_eq!((plain(from), plain(to)), (plain(source), plain(destination)));
    }
}
