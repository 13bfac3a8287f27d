//! Lists of networks that may ask, and that may not.

use std::net::{IpAddr, Ipv6Addr};

use ipnet::IpNet;

/// Why an address was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IpDenial {
    /// It lies in a network of `deny`.
    Denied,
    /// There is an `allow` list, and it lies in none of its networks.
    NotAllowed,
}

/// Networks that may ask and that may not. `deny` wins; where `allow` is empty, all others may.
///
/// An IPv4-mapped IPv6 address counts as the IPv4 address that it stands for, and so does a network of such addresses
/// (`::ffff:10.0.0.0/104` is `10.0.0.0/8`). IPv4 addresses lie in no other IPv6 network, also not in `::/0`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct IpList {
    /// `None`: all.
    allow: Option<Networks>,
    deny: Networks,
}

impl IpList {
    pub fn new(allow: &[IpNet], deny: &[IpNet]) -> Self {
        Self { allow: (!allow.is_empty()).then(|| Networks::new(allow)), deny: Networks::new(deny) }
    }

    /// Whether the address may ask. Two binary searches at most, whatever the number of networks.
    ///
    /// Hot; watched by the benchmark `ip`.
    ///
    /// # Errors
    /// Why not.
    #[inline]
    pub fn check(&self, ip: IpAddr) -> Result<(), IpDenial> {
        let ip = ip.to_canonical();
        if self.deny.contains(ip) {
            return Err(IpDenial::Denied);
        }
        match &self.allow {
            Some(allow) if !allow.contains(ip) => Err(IpDenial::NotAllowed),
            _ => Ok(()),
        }
    }
}

/// Ranges (first, last), sorted, that neither overlap nor touch.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Networks {
    v4: Box<[(u32, u32)]>,
    v6: Box<[(u128, u128)]>,
}

impl Networks {
    fn new(networks: &[IpNet]) -> Self {
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        for network in networks {
            match (network.network(), network.broadcast()) {
                (IpAddr::V4(first), IpAddr::V4(last)) => v4.push((u32::from(first), u32::from(last))),
                (IpAddr::V6(first), IpAddr::V6(last)) => match (mapped(first), mapped(last)) {
                    (Some(first), Some(last)) => v4.push((first, last)),
                    _ => v6.push((u128::from(first), u128::from(last))),
                },
                _ => {}
            }
        }
        Self { v4: joined(v4, u32::checked_add), v6: joined(v6, u128::checked_add) }
    }

    fn contains(&self, ip: IpAddr) -> bool {
        match ip {
            IpAddr::V4(ip) => lies_in(&self.v4, u32::from(ip)),
            IpAddr::V6(ip) => lies_in(&self.v6, u128::from(ip)),
        }
    }
}

fn mapped(ip: Ipv6Addr) -> Option<u32> {
    ip.to_ipv4_mapped().map(u32::from)
}

fn lies_in<T: Ord + Copy>(ranges: &[(T, T)], address: T) -> bool {
    let after = ranges.partition_point(|(first, _)| *first <= address);
    after.checked_sub(1).and_then(|at| ranges.get(at)).is_some_and(|(_, last)| address <= *last)
}

fn joined<T: Ord + Copy + From<u8>>(mut ranges: Vec<(T, T)>, add: fn(T, T) -> Option<T>) -> Box<[(T, T)]> {
    ranges.sort_unstable();
    let mut out: Vec<(T, T)> = Vec::with_capacity(ranges.len());
    for (first, last) in ranges {
        match out.last_mut() {
            Some((_, end)) if add(*end, T::from(1)).is_none_or(|next| first <= next) => *end = last.max(*end),
            _ => out.push((first, last)),
        }
    }
    out.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn list(allow: &[&str], deny: &[&str]) -> IpList {
        let nets = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<IpNet>>();
        IpList::new(&nets(allow), &nets(deny))
    }

    fn check(list: &IpList, ip: &str) -> Result<(), IpDenial> {
        list.check(ip.parse().unwrap())
    }

    #[test]
    fn deny_wins_and_no_allow_means_all() {
        let both = list(&["10.0.0.0/8", "2001:db8::/32"], &["10.1.0.0/16"]);
        for (ip, expected) in [
            ("10.2.3.4", Ok(())),
            ("::ffff:10.2.3.4", Ok(())),
            ("2001:db8::1", Ok(())),
            ("10.1.2.3", Err(IpDenial::Denied)),
            ("::ffff:10.1.2.3", Err(IpDenial::Denied)),
            ("11.0.0.0", Err(IpDenial::NotAllowed)),
            ("::10.2.3.4", Err(IpDenial::NotAllowed)),
        ] {
            assert_eq!(check(&both, ip), expected, "{ip}");
        }
        let only_deny = list(&[], &["10.0.0.0/8"]);
        assert_eq!(check(&only_deny, "11.0.0.1"), Ok(()));
        assert_eq!(check(&only_deny, "10.0.0.1"), Err(IpDenial::Denied));
        assert_eq!(check(&IpList::default(), "::1"), Ok(()));
    }

    #[test]
    fn mapped_networks_are_ipv4_networks() {
        let mapped = list(&["::ffff:10.0.0.0/104"], &[]);
        assert_eq!(check(&mapped, "10.1.2.3"), Ok(()));
        assert_eq!(check(&mapped, "11.1.2.3"), Err(IpDenial::NotAllowed));
        let all_v6 = list(&["::/0"], &[]);
        assert_eq!(check(&all_v6, "2001:db8::1"), Ok(()));
        assert_eq!(check(&all_v6, "10.0.0.1"), Err(IpDenial::NotAllowed));
    }

    #[test]
    fn the_ends_of_the_space_are_reached() {
        let all = list(&["0.0.0.0/0", "255.255.255.255/32", "::/0"], &[]);
        for ip in ["0.0.0.0", "255.255.255.255", "::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"] {
            assert_eq!(check(&all, ip), Ok(()), "{ip}");
        }
    }

    fn networks() -> impl Strategy<Value = Vec<IpNet>> {
        // Close to each other, so that they overlap and touch.
        let v4 = (0..1024u32, 20..=32u8).prop_map(|(ip, len)| IpNet::new(IpAddr::V4(ip.into()), len).unwrap());
        let v6 = (0..1024u128, 116..=128u8).prop_map(|(ip, len)| IpNet::new(IpAddr::V6(ip.into()), len).unwrap());
        prop::collection::vec(prop_oneof![v4, v6], 0..24)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn the_search_agrees_with_the_naive_way(allow in networks(), deny in networks(), ip in 0..1100u32, v6: bool) {
            let ip = if v6 { IpAddr::V6(u128::from(ip).into()) } else { IpAddr::V4(ip.into()) };
            let within = |nets: &[IpNet]| nets.iter().any(|net| net.contains(&ip));
            let expected = if within(&deny) {
                Err(IpDenial::Denied)
            } else if allow.is_empty() || within(&allow) {
                Ok(())
            } else {
                Err(IpDenial::NotAllowed)
            };
            prop_assert_eq!(IpList::new(&allow, &deny).check(ip), expected);
        }

        #[test]
        fn ranges_are_sorted_and_apart(nets in networks()) {
            let networks = Networks::new(&nets);
            prop_assert!(networks.v4.windows(2).all(|pair| pair[0].1 + 1 < pair[1].0));
            prop_assert!(networks.v6.windows(2).all(|pair| pair[0].1 + 1 < pair[1].0));
        }
    }
}
