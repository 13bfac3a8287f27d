//! The PROXY protocol, versions 1 and 2: whom a proxy before the gateway speaks for (HAProxy, `doc/proxy-protocol.txt`).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crc32c::{crc32c, crc32c_append};

/// The longest header of version 1 (section 2.1).
pub const V1_BYTES_MAX: usize = 107;
/// The longest header of version 2 that is taken: what follows its first 16 bytes may be this much.
pub const V2_BODY_BYTES_MAX: usize = 4096;
/// The longest header.
pub const HEADER_BYTES_MAX: usize = V2_HEAD_BYTES + V2_BODY_BYTES_MAX;

const V1_START: &[u8] = b"PROXY ";
const V2_SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
const V2_HEAD_BYTES: usize = 16;
/// What the addresses of a family take.
const V4_BYTES: usize = 12;
const V6_BYTES: usize = 36;
const UNIX_BYTES: usize = 216;
/// The type of the field with a checksum (section 2.2.3).
const CRC32C: u8 = 3;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    V1,
    V2,
}

/// Which versions are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Versions {
    pub v1: bool,
    pub v2: bool,
}

/// Whom a connection is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// The proxy itself, for one as of its health checks; or a client whose address it cannot tell.
    Proxy,
    /// A client, and where it had connected to.
    Client { source: SocketAddr, destination: SocketAddr },
}

/// Why there is no header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ProxyError {
    #[error("no PROXY header of a version that is read")]
    Missing,
    #[error("a malformed PROXY header")]
    Malformed,
    #[error("a PROXY header that is too long")]
    TooLong,
    #[error("a PROXY header whose checksum is not right")]
    Checksum,
}

/// Reads a header from the front of what has arrived: its length, and whom the connection is of. `None`: all of it belongs
/// to the header, and more is to come.
pub fn parse(bytes: &[u8], versions: Versions) -> Result<Option<(usize, Origin)>, ProxyError> {
    let begins = |start: &[u8]| bytes.starts_with(start) || start.starts_with(bytes);
    if versions.v2 && begins(V2_SIGNATURE) {
        return parse_v2(bytes);
    }
    if versions.v1 && begins(V1_START) {
        return parse_v1(bytes);
    }
    Err(ProxyError::Missing)
}

fn parse_v1(bytes: &[u8]) -> Result<Option<(usize, Origin)>, ProxyError> {
    let Some(end) = memchr::memchr(b'\n', bytes.get(..V1_BYTES_MAX).unwrap_or(bytes)) else {
        return if bytes.len() < V1_BYTES_MAX { Ok(None) } else { Err(ProxyError::TooLong) };
    };
    let line = bytes.get(..end).and_then(|line| line.strip_suffix(b"\r")).ok_or(ProxyError::Malformed)?;
    let line = line.strip_prefix(V1_START).and_then(|line| std::str::from_utf8(line).ok());
    let line = line.ok_or(ProxyError::Malformed)?;
    let origin = match line.strip_prefix("UNKNOWN") {
        Some(rest) if rest.is_empty() || rest.starts_with(' ') => Origin::Proxy,
        _ => v1_addresses(line).ok_or(ProxyError::Malformed)?,
    };
    Ok(Some((end + 1, origin)))
}

/// `TCP4 192.0.2.1 192.0.2.2 50000 443`: one space between, numbers without zeros in front.
fn v1_addresses(line: &str) -> Option<Origin> {
    let mut words = line.split(' ');
    let mut next = || words.next();
    let address: fn(&str) -> Option<IpAddr> = match next()? {
        "TCP4" => |text| text.parse::<Ipv4Addr>().ok().map(IpAddr::V4),
        "TCP6" => |text| text.parse::<Ipv6Addr>().ok().map(IpAddr::V6),
        _ => return None,
    };
    let port = |text: &str| {
        let is_plain = text.bytes().all(|byte| byte.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
        text.parse::<u16>().ok().filter(|_| is_plain)
    };
    let [source, destination] = [address(next()?)?, address(next()?)?];
    let [from, to] = [port(next()?)?, port(next()?)?];
    let origin =
        Origin::Client { source: SocketAddr::new(source, from), destination: SocketAddr::new(destination, to) };
    words.next().is_none().then_some(origin)
}

fn parse_v2(bytes: &[u8]) -> Result<Option<(usize, Origin)>, ProxyError> {
    let Some(head) = bytes.first_chunk::<V2_HEAD_BYTES>() else { return Ok(None) };
    let [.., command, family, high, low] = *head;
    if command >> 4 != 2 {
        return Err(ProxyError::Malformed);
    }
    let length = usize::from(u16::from_be_bytes([high, low]));
    if length > V2_BODY_BYTES_MAX {
        return Err(ProxyError::TooLong);
    }
    let end = V2_HEAD_BYTES + length;
    let Some((header, _)) = bytes.split_at_checked(end) else { return Ok(None) };
    let body = header.get(V2_HEAD_BYTES..).unwrap_or_default();
    // TCP over IPv4 and IPv6. Of unix sockets, datagrams and what the proxy does not know the connection's own addresses count.
    let (origin, addresses) = match (command & 15, family) {
        // LOCAL: what else it says does not count (section 2.2).
        (0, _) => return Ok(Some((end, Origin::Proxy))),
        (1, 0x00) => return Ok(Some((end, Origin::Proxy))),
        (1, 0x11) => (v4_addresses(body), V4_BYTES),
        (1, 0x21) => (v6_addresses(body), V6_BYTES),
        (1, 0x12) => (Some(Origin::Proxy), V4_BYTES),
        (1, 0x22) => (Some(Origin::Proxy), V6_BYTES),
        (1, 0x31 | 0x32) => (Some(Origin::Proxy), UNIX_BYTES),
        _ => return Err(ProxyError::Malformed),
    };
    check_fields(header, V2_HEAD_BYTES + addresses)?;
    Ok(Some((end, origin.ok_or(ProxyError::Malformed)?)))
}

/// Walks through what stands behind the addresses, up to the end of the header: nothing of it counts but its checksum.
fn check_fields(header: &[u8], mut at: usize) -> Result<(), ProxyError> {
    while at != header.len() {
        let field = header.get(at..).and_then(<[u8]>::split_first_chunk::<3>).ok_or(ProxyError::Malformed)?;
        let ([kind, high, low], rest) = field;
        let value = rest.get(..usize::from(u16::from_be_bytes([*high, *low]))).ok_or(ProxyError::Malformed)?;
        at += 3 + value.len();
        if *kind != CRC32C {
            continue;
        }
        // It is that of the header with zeros in its own place.
        let said = u32::from_be_bytes(value.try_into().map_err(|_| ProxyError::Malformed)?);
        let (before, behind) = header.split_at_checked(at).ok_or(ProxyError::Malformed)?;
        let before = before.strip_suffix(value).unwrap_or(before);
        if crc32c_append(crc32c_append(crc32c(before), &[0; 4]), behind) != said {
            return Err(ProxyError::Checksum);
        }
    }
    Ok(())
}

fn v4_addresses(body: &[u8]) -> Option<Origin> {
    let [s0, s1, s2, s3, d0, d1, d2, d3, f0, f1, t0, t1] = *body.first_chunk::<12>()?;
    let [source, destination] = [Ipv4Addr::new(s0, s1, s2, s3), Ipv4Addr::new(d0, d1, d2, d3)];
    let [from, to] = [u16::from_be_bytes([f0, f1]), u16::from_be_bytes([t0, t1])];
    Some(Origin::Client { source: (source, from).into(), destination: (destination, to).into() })
}

fn v6_addresses(body: &[u8]) -> Option<Origin> {
    let (source, rest) = body.split_first_chunk::<16>()?;
    let (destination, rest) = rest.split_first_chunk::<16>()?;
    let [f0, f1, t0, t1] = *rest.first_chunk::<4>()?;
    let [from, to] = [u16::from_be_bytes([f0, f1]), u16::from_be_bytes([t0, t1])];
    let [source, destination] = [Ipv6Addr::from(*source), Ipv6Addr::from(*destination)];
    Some(Origin::Client { source: (source, from).into(), destination: (destination, to).into() })
}

/// Writes a header that speaks for a client. Addresses of different families become those of IPv6.
pub fn write(version: Version, source: SocketAddr, destination: SocketAddr, out: &mut Vec<u8>) {
    let ips = (source.ip().to_canonical(), destination.ip().to_canonical());
    let (from, to) = (source.port(), destination.port());
    let (v4, v6) = match ips {
        (IpAddr::V4(source), IpAddr::V4(destination)) => (Some([source, destination]), None),
        (source, destination) => (None, Some([source, destination].map(to_v6))),
    };
    match version {
        Version::V1 => {
            use std::io::Write as _;
            // Writing to a vector does not fail.
            let _ = match (v4, v6) {
                (Some([source, destination]), _) => {
                    write!(out, "PROXY TCP4 {source} {destination} {from} {to}\r\n")
                }
                (None, Some([source, destination])) => {
                    write!(out, "PROXY TCP6 {source} {destination} {from} {to}\r\n")
                }
                (None, None) => Ok(()),
            };
        }
        Version::V2 => {
            out.extend_from_slice(V2_SIGNATURE);
            if let Some([source, destination]) = v4 {
                out.extend_from_slice(&[0x21, 0x11, 0, 12]);
                out.extend_from_slice(&source.octets());
                out.extend_from_slice(&destination.octets());
            }
            if let Some([source, destination]) = v6 {
                out.extend_from_slice(&[0x21, 0x21, 0, 36]);
                out.extend_from_slice(&source.octets());
                out.extend_from_slice(&destination.octets());
            }
            out.extend_from_slice(&from.to_be_bytes());
            out.extend_from_slice(&to.to_be_bytes());
        }
    }
}

fn to_v6(ip: IpAddr) -> Ipv6Addr {
    match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        IpAddr::V6(ip) => ip,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const BOTH: Versions = Versions { v1: true, v2: true };

    fn client(source: &str, destination: &str) -> Origin {
        Origin::Client { source: source.parse().unwrap(), destination: destination.parse().unwrap() }
    }

    /// A header of version 2.
    fn v2(command: u8, family: u8, body: &[u8]) -> Vec<u8> {
        let length = (body.len() as u16).to_be_bytes();
        [&V2_SIGNATURE[..], &[command, family], &length, body].concat()
    }

    #[test]
    fn version_1() {
        let longest = format!("PROXY UNKNOWN {}\r\n", "f".repeat(V1_BYTES_MAX - 16));
        for (text, origin) in [
            ("PROXY TCP4 192.0.2.1 192.0.2.2 50000 443\r\n", client("192.0.2.1:50000", "192.0.2.2:443")),
            ("PROXY TCP6 2001:db8::1 ::1 0 65535\r\n", client("[2001:db8::1]:0", "[::1]:65535")),
            ("PROXY UNKNOWN\r\n", Origin::Proxy),
            ("PROXY UNKNOWN ffff::1 ffff::2 1 2\r\n", Origin::Proxy),
            (&longest, Origin::Proxy),
        ] {
            let behind = format!("{text}GET / HTTP/1.1\r\n");
            assert_eq!(parse(behind.as_bytes(), BOTH), Ok(Some((text.len(), origin))), "{text}");
            for end in 0..text.len() {
                assert_eq!(parse(&text.as_bytes()[..end], BOTH), Ok(None), "{end} bytes of {text}");
            }
        }
        for bad in [
            "PROXY TCP4 192.0.2.1 192.0.2.2 50000 443\n",
            "PROXY TCP4 192.0.2.1 192.0.2.2 50000 443 \r\n",
            "PROXY TCP4 192.0.2.1 192.0.2.2 50000\r\n",
            "PROXY TCP4  192.0.2.1 192.0.2.2 1 2\r\n",
            "PROXY TCP4 192.0.2.01 192.0.2.2 1 2\r\n",
            "PROXY TCP4 ::1 ::1 1 2\r\n",
            "PROXY TCP6 192.0.2.1 192.0.2.2 1 2\r\n",
            "PROXY TCP6 fe80::1%eth0 ::1 1 2\r\n",
            "PROXY TCP4 192.0.2.1 192.0.2.2 01 2\r\n",
            "PROXY TCP4 192.0.2.1 192.0.2.2 +1 2\r\n",
            "PROXY TCP4 192.0.2.1 192.0.2.2 1 65536\r\n",
            "PROXY tcp4 192.0.2.1 192.0.2.2 1 2\r\n",
            "PROXY UNKNOWNX\r\n",
            "PROXY \r\n",
        ] {
            assert_eq!(parse(bad.as_bytes(), BOTH), Err(ProxyError::Malformed), "{bad}");
        }
        let endless = format!("PROXY UNKNOWN {}", "f".repeat(V1_BYTES_MAX));
        assert_eq!(parse(endless.as_bytes(), BOTH), Err(ProxyError::TooLong));
        for other in ["GET / HTTP/1.1\r\n", "PROXx", "proxy TCP4", "\r\nPROXY UNKNOWN\r\n", "\x16\x03\x01"] {
            assert_eq!(parse(other.as_bytes(), BOTH), Err(ProxyError::Missing), "{other}");
        }
    }

    #[test]
    fn version_2() {
        let v4 = [192, 0, 2, 1, 192, 0, 2, 2, 0xc3, 0x50, 1, 0xbb];
        let with_fields = [&v4[..], b"\x04\x00\x01x\x20\x00\x02\x01\x02"].concat();
        let v6 = [&Ipv6Addr::LOCALHOST.octets()[..], &Ipv6Addr::UNSPECIFIED.octets(), &[0, 1, 0, 2]].concat();
        let is_v4 = client("192.0.2.1:50000", "192.0.2.2:443");
        for (bytes, origin) in [
            (v2(0x21, 0x11, &v4), is_v4),
            (v2(0x21, 0x11, &with_fields), is_v4),
            (v2(0x21, 0x21, &v6), client("[::1]:1", "[::]:2")),
            (v2(0x20, 0x11, &v4), Origin::Proxy),
            (v2(0x20, 0x00, &[]), Origin::Proxy),
            (v2(0x20, 0xff, &[1]), Origin::Proxy),
            (v2(0x21, 0x31, &[b'/'; 216]), Origin::Proxy),
            (v2(0x21, 0x00, &[9; 40]), Origin::Proxy),
            (v2(0x21, 0x12, &v4), Origin::Proxy),
            (v2(0x21, 0x00, &[0; V2_BODY_BYTES_MAX]), Origin::Proxy),
        ] {
            let behind = [&bytes[..], b"\x16\x03\x01"].concat();
            assert_eq!(parse(&behind, BOTH), Ok(Some((bytes.len(), origin))), "{bytes:?}");
            assert!((0..bytes.len()).all(|end| parse(&bytes[..end], BOTH) == Ok(None)));
            assert!(bytes.len() <= HEADER_BYTES_MAX);
        }
        for bad in [
            v2(0x21, 0x11, &v4[..11]),
            v2(0x21, 0x21, &v6[..35]),
            v2(0x22, 0x11, &v4),
            v2(0x11, 0x11, &v4),
            v2(0x21, 0x13, &v4),
            v2(0x21, 0x41, &v4),
            v2(0x21, 0x22, &v4),
            v2(0x21, 0x31, &[b'/'; 215]),
            v2(0x21, 0x11, &with_fields[..with_fields.len() - 1]),
            v2(0x21, 0x11, &[&v4[..], &[4, 0]].concat()),
            v2(0x21, 0x11, &[&v4[..], &[CRC32C, 0, 3, 1, 2, 3]].concat()),
        ] {
            assert_eq!(parse(&bad, BOTH), Err(ProxyError::Malformed), "{bad:?}");
        }
        assert_eq!(parse(&v2(0x21, 0, &[0; V2_BODY_BYTES_MAX + 1]), BOTH), Err(ProxyError::TooLong));
    }

    #[test]
    fn a_checksum_is_looked_at() {
        // As a load balancer of Amazon sends it: the checksum, a field of its own, and 36 bytes of nothing.
        let addresses = [0xac, 0x1f, 7, 0x71, 0xac, 0x1f, 10, 0x1f, 0xc8, 0xf2, 0, 0x50];
        let body = [
            &addresses[..],
            b"\x03\x00\x04\xe8\xd6\x89\x2d",
            b"\xea\x00\x17\x01vpce-08d2bf15fac5001c9",
            b"\x04\x00\x24",
            &[0; 36],
        ]
        .concat();
        let header = v2(0x21, 0x11, &body);
        assert_eq!(parse(&header, BOTH), Ok(Some((100, client("172.31.7.113:51442", "172.31.10.31:80")))));
        let of = |family, body: &[u8]| parse(&v2(0x21, family, body), BOTH);
        let wrong = [&[0; UNIX_BYTES][..], &[CRC32C, 0, 4, 1, 2, 3, 4]].concat();
        for (family, addresses) in [(0x12, V4_BYTES), (0x21, V6_BYTES), (0x22, V6_BYTES), (0x31, UNIX_BYTES)] {
            assert_eq!(of(family, &wrong[UNIX_BYTES - addresses..]), Err(ProxyError::Checksum), "{family:x}");
        }
        // Nothing of these counts.
        assert_eq!(of(0, &wrong).map(|parsed| parsed.map(|(_, origin)| origin)), Ok(Some(Origin::Proxy)));
        assert!(parse(&v2(0x20, 0x11, &wrong), BOTH).is_ok());
    }

    #[test]
    fn only_the_versions_that_are_allowed() {
        let (v1, v2) = (b"PROXY UNKNOWN\r\n".as_slice(), v2(0x20, 0, &[]));
        let (only_1, only_2) = (Versions { v2: false, ..BOTH }, Versions { v1: false, ..BOTH });
        assert!(parse(v1, only_1).is_ok() && parse(&v2, only_2).is_ok());
        assert_eq!(parse(v1, only_2), Err(ProxyError::Missing));
        assert_eq!(parse(&v2, only_1), Err(ProxyError::Missing));
    }

    #[test]
    fn families_that_differ_become_one() {
        let mut out = Vec::new();
        write(Version::V1, "192.0.2.1:1".parse().unwrap(), "[::1]:2".parse().unwrap(), &mut out);
        assert_eq!(out, b"PROXY TCP6 ::ffff:192.0.2.1 ::1 1 2\r\n");
        out.clear();
        write(Version::V1, "[::ffff:192.0.2.1]:1".parse().unwrap(), "192.0.2.2:2".parse().unwrap(), &mut out);
        assert_eq!(out, b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n");
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(is_v4: bool, ips: [u128; 2], ports: [u16; 2], behind: Vec<u8>) {
            let ip = |bits: u128| if is_v4 { IpAddr::V4((bits as u32).into()) } else { IpAddr::V6(bits.into()) };
            let [source, destination] = [0, 1].map(|at| SocketAddr::new(ip(ips[at]), ports[at]));
            for version in [Version::V1, Version::V2] {
                let mut bytes = Vec::new();
                write(version, source, destination, &mut bytes);
                let length = bytes.len();
                bytes.extend_from_slice(&behind);
                let Ok(Some((read, Origin::Client { source: from, destination: to }))) = parse(&bytes, BOTH) else {
                    panic!("{}", bytes.escape_ascii());
                };
                prop_assert_eq!(read, length);
                let same = |a: SocketAddr, b: SocketAddr| a.ip().to_canonical() == b.ip().to_canonical() && a.port() == b.port();
                prop_assert!(same(from, source) && same(to, destination));
                prop_assert!((0..length).all(|end| parse(&bytes[..end], BOTH) == Ok(None)));
            }
        }

        #[test]
        fn a_bit_that_changes_is_noticed(addresses: [u8; V4_BYTES], behind: Vec<u8>, changed: usize) {
            let length = (behind.len() as u16).to_be_bytes();
            let fields = [&[CRC32C, 0, 4, 0, 0, 0, 0, 4], &length[..], &behind].concat();
            let mut header = v2(0x21, 0x11, &[&addresses[..], &fields].concat());
            let place = V2_HEAD_BYTES + V4_BYTES + 3;
            let crc = crc32c(&header);
            header[place..place + 4].copy_from_slice(&crc.to_be_bytes());
            let whole = parse(&header, BOTH);
            let is_read = matches!(whole, Ok(Some((_, Origin::Client { .. }))));
            prop_assert!(is_read, "{:?}", whole);
            // Addresses, the checksum itself, and what stands behind the head of the last field.
            let mut bytes = (V2_HEAD_BYTES..place - 3).chain(place..place + 4).chain(place + 7..header.len());
            let count = bytes.clone().count() * 8;
            header[bytes.nth(changed % count / 8).unwrap()] ^= 1 << (changed % 8);
            prop_assert_eq!(parse(&header, BOTH), Err(ProxyError::Checksum));
        }

        #[test]
        fn what_is_whole_does_not_depend_on_what_follows(bytes in prop::collection::vec(any::<u8>(), 0..60), v2 in any::<bool>()) {
            let start: &[u8] = if v2 { V2_SIGNATURE } else { V1_START };
            let bytes = [start, &bytes].concat();
            if let Ok(Some((length, origin))) = parse(&bytes, BOTH) {
                prop_assert!(length <= bytes.len());
                prop_assert_eq!(parse(&bytes[..length], BOTH), Ok(Some((length, origin))));
            }
        }
    }
}
