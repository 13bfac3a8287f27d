//! Who the client is, behind proxies that are trusted, and how a service is told.

use std::io::Write;
use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;

use crate::byte_set::ByteSet;

/// Whether `ip` lies in one of `nets`. An IPv4-mapped IPv6 address counts as the IPv4 address that it stands for,
/// so that a network of such addresses (`::ffff:10.0.0.0/104`) has nobody in it.
#[inline]
pub fn is_trusted(nets: &[IpNet], ip: IpAddr) -> bool {
    match ip.to_canonical() {
        // By hand: `IpNet::contains` works out both ends of every network anew.
        IpAddr::V4(ip) => nets.iter().any(|net| match net {
            IpNet::V4(net) => {
                let differing = u32::from(net.addr()) ^ u32::from(ip);
                differing.leading_zeros() >= u32::from(net.prefix_len())
            }
            IpNet::V6(_) => false,
        }),
        IpAddr::V6(ip) => nets.iter().any(|net| match net {
            IpNet::V6(net) => {
                let differing = u128::from(net.addr()) ^ u128::from(ip);
                differing.leading_zeros() >= u32::from(net.prefix_len())
            }
            IpNet::V4(_) => false,
        }),
    }
}

/// The address of the client: the nearest hop that is not trusted, or the farthest that is known.
///
/// `x_forwarded_for`: the values of all `X-Forwarded-For` headers in the order of the head; together they are one list,
/// the nearest hop last. Entries may carry ports (`192.0.2.1:567`, `[2001:db8::1]:80`). What is not an address ends
/// the walk, since nothing to the left of it can be relied on; empty entries are skipped.
///
/// Hot; watched by the benchmark `forwarded`.
pub fn client_ip<'a>(
    peer: IpAddr,
    trusted: &[IpNet],
    x_forwarded_for: impl DoubleEndedIterator<Item = &'a [u8]>,
) -> IpAddr {
    let mut client = peer.to_canonical();
    if !is_trusted(trusted, client) {
        return client;
    }
    let entries = x_forwarded_for.rev().flat_map(|value| value.rsplit(|byte| *byte == b','));
    for entry in entries.map(<[u8]>::trim_ascii).filter(|entry| !entry.is_empty()) {
        let Some(hop) = parse_hop(entry) else { break };
        client = hop;
        if !is_trusted(trusted, hop) {
            break;
        }
    }
    client
}

/// Appends an address as text, 45 bytes at most; an IPv6 address in the form of RFC 5952, without brackets.
#[inline]
pub fn write_ip(ip: IpAddr, out: &mut Vec<u8>) {
    match ip {
        IpAddr::V4(ip) => write_ipv4(ip, out),
        // Writing to a vector does not fail.
        IpAddr::V6(ip) => drop(write!(out, "{ip}")),
    }
}

/// Appends one element of `Forwarded` (RFC 7239 section 4): `for=192.0.2.1;host=example.com;proto=http`. An IPv6
/// address is bracketed and quoted; a host that is not a token, as one with a port, is quoted; an empty one is left out.
pub fn write_forwarded_element(client: IpAddr, host: &[u8], scheme: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(b"for=");
    if client.is_ipv4() {
        write_ip(client, out);
    } else {
        out.extend_from_slice(b"\"[");
        write_ip(client, out);
        out.extend_from_slice(b"]\"");
    }
    if !host.is_empty() {
        out.extend_from_slice(b";host=");
        write_value(host, out);
    }
    out.extend_from_slice(b";proto=");
    write_value(scheme, out);
}

/// `1.2.3.4`, `1.2.3.4:567`, `::1`, `[::1]`, `[::1]:80`.
fn parse_hop(entry: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(entry).ok()?;
    let ip = if let Some(bracketed) = text.strip_prefix('[') {
        let (ip, rest) = bracketed.split_once(']')?;
        if !rest.is_empty() && !is_port(rest.strip_prefix(':')?) {
            return None;
        }
        IpAddr::V6(ip.parse().ok()?)
    } else {
        match text.split_once(':') {
            None => IpAddr::V4(text.parse().ok()?),
            Some((ip, port)) if is_port(port) => IpAddr::V4(ip.parse().ok()?),
            Some(_) => IpAddr::V6(text.parse().ok()?),
        }
    };
    Some(ip.to_canonical())
}

fn is_port(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_digit()) && text.parse::<u16>().is_ok()
}

#[inline]
fn write_ipv4(ip: Ipv4Addr, out: &mut Vec<u8>) {
    /// Each octet's digits and a dot, first digit in the lowest byte, and how many bytes that is.
    #[allow(clippy::indexing_slicing)] // evaluated by the compiler: an index out of bounds does not build
    static OCTETS: [(u32, u8); 256] = {
        let mut table = [(0, 0); 256];
        let mut octet = 0;
        while octet < 256 {
            let (a, b, c) = (b'0' + (octet / 100) as u8, b'0' + (octet / 10 % 10) as u8, b'0' + (octet % 10) as u8);
            table[octet] = match octet {
                0..10 => (u32::from_le_bytes([c, b'.', 0, 0]), 2),
                10..100 => (u32::from_le_bytes([b, c, b'.', 0]), 3),
                _ => (u32::from_le_bytes([a, b, c, b'.']), 4),
            };
            octet += 1;
        }
        table
    };
    // Joined in a register: sixteen bytes hold the longest address and its last dot.
    let (mut text, mut len) = (0u128, 0u32);
    for octet in ip.octets() {
        let (digits, digits_len) = OCTETS.get(usize::from(octet)).copied().unwrap_or_default();
        text |= u128::from(digits) << (8 * len);
        len += u32::from(digits_len);
    }
    out.extend_from_slice(text.to_le_bytes().get(..len as usize - 1).unwrap_or_default());
}

/// A token as it is, all else as a quoted string (RFC 9110 section 5.6.4). Control characters are left out: they could
/// end the header line.
fn write_value(value: &[u8], out: &mut Vec<u8>) {
    if !value.is_empty() && TOKEN.contains_all(value) {
        return out.extend_from_slice(value);
    }
    out.push(b'"');
    // Usually one run, as of `example.com:8080`.
    for run in value.chunk_by(|left, right| is_plain(*left) && is_plain(*right)) {
        match run {
            [byte @ (b'"' | b'\\')] => out.extend_from_slice(&[b'\\', *byte]),
            [byte] if byte.is_ascii_control() => {}
            _ => out.extend_from_slice(run),
        }
    }
    out.push(b'"');
}

fn is_plain(byte: u8) -> bool {
    !byte.is_ascii_control() && !matches!(byte, b'"' | b'\\')
}

/// `tchar` of RFC 9110 section 5.6.2.
static TOKEN: ByteSet = ByteSet::alphanumeric_and(b"!#$%&'*+-.^_`|~");

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn nets(texts: &[&str]) -> Vec<IpNet> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn client(peer: &str, headers: &[&str]) -> IpAddr {
        let trusted = nets(&["10.0.0.0/8", "127.0.0.1/32", "fd00::/8"]);
        client_ip(ip(peer), &trusted, headers.iter().map(|header| header.as_bytes()))
    }

    #[test]
    fn trust_follows_the_networks() {
        let trusted = nets(&["10.0.0.0/8", "2001:db8::/32"]);
        for inside in ["10.1.2.3", "::ffff:10.1.2.3", "2001:db8::1"] {
            assert!(is_trusted(&trusted, ip(inside)), "{inside}");
        }
        for outside in ["11.1.2.3", "::ffff:11.1.2.3", "2001:db9::1", "::1", "::10.1.2.3"] {
            assert!(!is_trusted(&trusted, ip(outside)), "{outside}");
        }
        assert!(!is_trusted(&[], ip("127.0.0.1")));
    }

    #[test]
    fn nobody_is_believed_who_is_not_trusted() {
        assert_eq!(client("203.0.113.9", &["198.51.100.1"]), ip("203.0.113.9"));
        assert_eq!(client("::ffff:203.0.113.9", &["198.51.100.1"]), ip("203.0.113.9"));
    }

    #[test]
    fn the_walk_ends_at_the_nearest_hop_that_is_not_trusted() {
        assert_eq!(client("10.0.0.1", &[]), ip("10.0.0.1"));
        assert_eq!(client("10.0.0.1", &["198.51.100.1"]), ip("198.51.100.1"));
        assert_eq!(client("10.0.0.1", &["1.1.1.1, 198.51.100.1, 10.0.0.2"]), ip("198.51.100.1"));
        assert_eq!(client("10.0.0.1", &["1.1.1.1,198.51.100.1", "10.0.0.3 ,\t10.0.0.2"]), ip("198.51.100.1"));
        assert_eq!(client("10.0.0.1", &["10.0.0.4, fd00::1, ::ffff:10.0.0.2"]), ip("10.0.0.4"));
        assert_eq!(client("10.0.0.1", &["198.51.100.1,, ,10.0.0.2,"]), ip("198.51.100.1"));
        assert_eq!(client("10.0.0.1", &["", " "]), ip("10.0.0.1"));
    }

    #[test]
    fn ports_are_left_aside_and_garbage_ends_the_walk() {
        assert_eq!(client("10.0.0.1", &["198.51.100.1:4711"]), ip("198.51.100.1"));
        assert_eq!(client("10.0.0.1", &["[2001:db8::1]:80, [fd00::2]"]), ip("2001:db8::1"));
        assert_eq!(client("10.0.0.1", &["2001:db8::1"]), ip("2001:db8::1"));
        for garbage in [
            "unknown",
            "_hidden",
            "1.2.3",
            "1.2.3.4.5",
            "1.2.3.4:",
            "1.2.3.4:x",
            "1.2.3.4:99999",
            "1.2.3.4:+1",
            "[::1",
            "[::1]80",
            "[::1]:",
            "[1.2.3.4]",
            "::1]",
            "fe80::1%eth0",
            "1.2.3.4 5",
            "\u{fc}",
            "\"1.2.3.4\"",
        ] {
            assert_eq!(client("10.0.0.1", &[&format!("1.1.1.1, {garbage}, 10.0.0.2")]), ip("10.0.0.2"), "{garbage}");
        }
    }

    fn element(client: &str, host: &[u8]) -> String {
        let mut out = Vec::new();
        write_forwarded_element(ip(client), host, b"http", &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn forwarded_elements_quote_what_is_no_token() {
        assert_eq!(element("192.0.2.1", b"example.com"), "for=192.0.2.1;host=example.com;proto=http");
        assert_eq!(element("192.0.2.1", b"a.de:80"), "for=192.0.2.1;host=\"a.de:80\";proto=http");
        assert_eq!(element("2001:db8::1", b"[::1]"), "for=\"[2001:db8::1]\";host=\"[::1]\";proto=http");
        assert_eq!(element("192.0.2.1", b""), "for=192.0.2.1;proto=http");
        assert_eq!(element("192.0.2.1", b"a\"\\\r\n\0b"), "for=192.0.2.1;host=\"a\\\"\\\\b\";proto=http");
    }

    proptest! {
        #[test]
        fn addresses_are_written_as_the_standard_library_does(v4: Ipv4Addr, v6: std::net::Ipv6Addr) {
            for ip in [IpAddr::V4(v4), IpAddr::V6(v6)] {
                let mut out = Vec::new();
                write_ip(ip, &mut out);
                prop_assert_eq!(String::from_utf8(out).unwrap(), ip.to_string());
            }
        }

        #[test]
        fn trust_agrees_with_the_networks_own_view(a: u128, b: u128, len in 0..=128u8, flip in 0..128u32) {
            for b in [b, a ^ 1 << flip, a] {
                let v6 = IpNet::new(IpAddr::V6(a.into()), len).unwrap();
                let ip = IpAddr::V6(b.into());
                prop_assert_eq!(is_trusted(&[v6], ip), v6.contains(&ip) && ip.to_canonical() == ip);
                let v4 = IpNet::new(IpAddr::V4((a as u32).into()), len / 4).unwrap();
                let ip = IpAddr::V4((b as u32).into());
                prop_assert_eq!(is_trusted(&[v4], ip), v4.contains(&ip));
                prop_assert!(!is_trusted(&[v6], ip));
            }
        }

        #[test]
        fn any_bytes_are_walked_without_a_panic(values: Vec<Vec<u8>>) {
            let trusted = nets(&["0.0.0.0/0", "::/0"]);
            client_ip(ip("::1"), &trusted, values.iter().map(Vec::as_slice));
        }
    }
}
