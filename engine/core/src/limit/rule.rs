//! What a route limits by: what a request is counted with, and how much of it there may be.

use std::net::IpAddr;

use httparse::Header;

use super::HeaderStyle;
use crate::auth::{ClaimPath, Identity, Method};
use crate::forwarded::write_ip;

/// A rate limit as routes apply it.
#[derive(Debug, Clone)]
pub struct Rule {
    /// Its counters are limiters.
    pub scope: Scope,
    /// Tokens that a request takes.
    pub cost: u32,
    pub headers: HeaderStyle,
}

/// Which requests are counted together, and by what.
#[derive(Debug, Clone)]
pub struct Scope {
    /// Index of what counts: a limiter, or a concurrency limit.
    pub counter: u32,
    /// Requests whose identity has this claim with one of these values are counted by another.
    pub tiers: Option<Tiers>,
    /// What is counted by. Without parts: all requests together.
    pub key: Box<[KeyPart]>,
    /// Of an IPv6 address this many bits count: one client commonly has a whole network.
    pub ipv6_prefix_bits: u8,
}

#[derive(Debug, Clone)]
pub struct Tiers {
    pub claim: ClaimPath,
    /// Value of the claim, index of what counts.
    pub counters: Box<[(Box<str>, u32)]>,
}

/// What requests are told apart by. Where a request lacks it, its address stands in, so that nothing goes unlimited.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeyPart {
    ClientIp,
    /// Who the authenticator says it is.
    User,
    /// The client of an API key.
    ApiKey,
    /// The value of a header, in lower case its name.
    Header(Box<str>),
    Route,
}

/// Whose request it is.
#[derive(Clone, Copy)]
pub struct Who<'a> {
    pub client_ip: IpAddr,
    pub identity: Option<&'a Identity>,
    pub headers: &'a [Header<'a>],
    pub route: &'a str,
}

impl Scope {
    /// Index of what counts a request of this identity.
    pub fn counter(&self, identity: Option<&Identity>) -> u32 {
        let tier = self.tiers.as_ref().zip(identity).and_then(|(tiers, identity)| {
            let value = tiers.claim.find(&identity.claims)?.as_str()?;
            tiers.counters.iter().find(|(name, _)| **name == *value).map(|(_, counter)| *counter)
        });
        tier.unwrap_or(self.counter)
    }

    /// Writes the key of a request. Two requests have the same one only if all parts are the same: each part says its length,
    /// but where there is only one.
    pub fn write_key(&self, who: &Who<'_>, out: &mut Vec<u8>) {
        out.clear();
        if let [only] = &*self.key {
            return self.write_part(only, who, out);
        }
        for part in &self.key {
            let start = out.len();
            out.extend_from_slice(&[0; 2]);
            self.write_part(part, who, out);
            let length = (out.len() - start - 2).min(usize::from(u16::MAX)) as u16;
            if let Some(room) = out.get_mut(start..start + 2) {
                room.copy_from_slice(&length.to_be_bytes());
            }
        }
    }

    fn write_part(&self, part: &KeyPart, who: &Who<'_>, out: &mut Vec<u8>) {
        let user = who.identity.and_then(|identity| identity.user.as_deref().map(|user| (identity.method, user)));
        let named = match part {
            KeyPart::ClientIp => None,
            KeyPart::User => user.map(|(_, user)| user.as_bytes()),
            KeyPart::ApiKey => user.filter(|(method, _)| *method == Method::ApiKey).map(|(_, user)| user.as_bytes()),
            KeyPart::Header(name) => {
                who.headers.iter().find(|header| header.name.eq_ignore_ascii_case(name)).map(|header| header.value)
            }
            KeyPart::Route => return out.extend_from_slice(who.route.as_bytes()),
        };
        match named {
            Some(named) => out.extend_from_slice(named),
            None => {
                // A name is never taken for an address.
                if *part != KeyPart::ClientIp {
                    out.push(0);
                }
                write_ip(self.network(who.client_ip), out);
            }
        }
    }

    fn network(&self, ip: IpAddr) -> IpAddr {
        match ip.to_canonical() {
            IpAddr::V6(v6) => {
                let hidden = 128u32.saturating_sub(self.ipv6_prefix_bits.into());
                let mask = u128::MAX.checked_shl(hidden).unwrap_or(0);
                IpAddr::V6((v6.to_bits() & mask).into())
            }
            v4 => v4,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(parts: &[KeyPart], ip: &str, headers: &[Header<'_>]) -> Vec<u8> {
        let scope = Scope { counter: 0, tiers: None, key: parts.into(), ipv6_prefix_bits: 64 };
        let mut out = b"old".to_vec();
        scope.write_key(&Who { client_ip: ip.parse().unwrap(), identity: None, headers, route: "products" }, &mut out);
        out
    }

    #[test]
    fn addresses_count_by_network() {
        assert_eq!(key(&[KeyPart::ClientIp], "192.0.2.7", &[]), b"192.0.2.7");
        assert_eq!(key(&[KeyPart::ClientIp], "::ffff:192.0.2.7", &[]), b"192.0.2.7");
        let of = |ip| key(&[KeyPart::ClientIp], ip, &[]);
        assert_eq!(of("2001:db8::1"), of("2001:db8::ffff:2"));
        assert_ne!(of("2001:db8::1"), of("2001:db8:0:1::1"));
    }

    #[test]
    fn what_is_missing_is_counted_by_address_and_never_mistaken() {
        let tenant = KeyPart::Header("x-tenant".into());
        let named = |value| key(std::slice::from_ref(&tenant), "192.0.2.7", &[Header { name: "X-Tenant", value }]);
        assert_eq!(named(b"acme"), b"acme");
        assert_ne!(named(b"192.0.2.7"), key(std::slice::from_ref(&tenant), "192.0.2.7", &[]));
    }

    #[test]
    fn parts_are_told_apart() {
        let parts = [KeyPart::Header("a".into()), KeyPart::Header("b".into()), KeyPart::Route];
        let of = |a: &'static [u8], b: &'static [u8]| {
            key(&parts, "192.0.2.7", &[Header { name: "a", value: a }, Header { name: "b", value: b }])
        };
        assert_ne!(of(b"xy", b"z"), of(b"x", b"yz"));
    }
}
