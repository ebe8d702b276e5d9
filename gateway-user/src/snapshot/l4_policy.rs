//! What a TrafficPolicy of Forebay says about one VIP: return path, admitted sources, how UDP flows are told apart.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::str::FromStr;

use serde::Serialize;

/// The policy of one VIP; the default is what a VIP without one gets.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct L4Policy {
    /// How answers get to the client.
    pub return_path: ReturnPath,
    /// Whose packets are taken.
    pub sources: Sources,
    /// What makes a UDP flow.
    pub udp_hash: UdpHash,
    /// How the client's address is known.
    pub client: ClientAddress,
}

/// `spec.clientAddress`: whom to believe about the client's address. The default believes nobody.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ClientAddress {
    /// `proxyProtocol`: every connection begins with a PROXY header, version 1 or 2; one without is closed.
    pub proxy_protocol: bool,
    /// `trustedHops`: how many proxies before this one append to `X-Forwarded-For` and `Forwarded` and can be believed.
    pub trusted_hops: u8,
}

/// `spec.returnPath`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub enum ReturnPath {
    /// A packet goes to the owner of its flow, which answers directly.
    #[default]
    Direct,
    /// A node serves what it receives; nothing is forwarded to another node.
    LocalOnly,
}

/// `spec.udp.hash`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub enum UdpHash {
    /// Addresses, ports and protocol.
    #[default]
    FiveTuple,
    /// Addresses and protocol: all of a client's flows, and fragments too, go to one node.
    Addresses,
}

/// `spec.sources`.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Sources {
    /// If given, only these are taken; an empty list takes nobody. Sorted, without doubles.
    pub allow: Option<Vec<Prefix>>,
    /// These are never taken, whatever `allow` says. Sorted, without doubles.
    pub deny: Vec<Prefix>,
}

impl Sources {
    /// Whether packets of this address are taken.
    #[must_use]
    pub fn admits(&self, source: IpAddr) -> bool {
        let among = |list: &[Prefix]| list.iter().any(|prefix| prefix.contains(source));
        !among(&self.deny) && self.allow.as_deref().is_none_or(among)
    }

    /// Whether every address is taken.
    #[must_use]
    pub fn admits_all(&self) -> bool {
        self.allow.is_none() && self.deny.is_empty()
    }
}

/// A CIDR whose host bits are zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Prefix {
    address: IpAddr,
    length: u8,
}

/// Why a text is no prefix.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadPrefix {
    /// Not of the form ADDRESS/LENGTH.
    #[error("{0:?} is not a CIDR such as 10.0.0.0/8 or 2001:db8::/32")]
    Form(String),
    /// Bits are set behind the length.
    #[error("{0:?} has bits set behind its length, write {1}")]
    HostBits(String, Prefix),
    /// IPv4 in IPv6 form.
    #[error("{0:?} is IPv4 in IPv6 form, write it as IPv4")]
    Mapped(String),
}

impl Prefix {
    /// First address.
    #[must_use]
    pub fn address(&self) -> IpAddr {
        self.address
    }

    /// Bits that count: at most 32 for IPv4, 128 for IPv6.
    #[must_use]
    pub fn length(&self) -> u8 {
        self.length
    }

    /// Whether the address lies in it; IPv4 in IPv6 form counts as IPv4.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        address.is_ipv4() == self.address.is_ipv4()
            && Self::masked(address, self.length) == self.address
    }

    fn masked(address: IpAddr, length: u8) -> IpAddr {
        match address {
            IpAddr::V4(v4) => {
                let shift = 32 - u32::from(length);
                let mask = u32::MAX.checked_shl(shift).unwrap_or(0);
                IpAddr::V4((u32::from(v4) & mask).into())
            }
            IpAddr::V6(v6) => {
                let shift = 128 - u32::from(length);
                let mask = u128::MAX.checked_shl(shift).unwrap_or(0);
                IpAddr::V6((u128::from(v6) & mask).into())
            }
        }
    }
}

impl FromStr for Prefix {
    type Err = BadPrefix;

    fn from_str(text: &str) -> Result<Self, BadPrefix> {
        let bad = || BadPrefix::Form(text.to_owned());
        let (address, length) = text.split_once('/').ok_or_else(bad)?;
        let address: IpAddr = address.parse().map_err(|_| bad())?;
        let digits = !length.is_empty() && length.bytes().all(|b| b.is_ascii_digit());
        let length: u8 = length.parse().map_err(|_| bad())?;
        let most = if address.is_ipv4() { 32 } else { 128 };
        if !digits || length > most {
            return Err(bad());
        }
        let mapped = |v6: Ipv6Addr| v6.to_ipv4_mapped().is_some() && length >= 96;
        if matches!(address, IpAddr::V6(v6) if mapped(v6)) {
            return Err(BadPrefix::Mapped(text.to_owned()));
        }
        let prefix = Self {
            address: Self::masked(address, length),
            length,
        };
        if prefix.address == address {
            Ok(prefix)
        } else {
            Err(BadPrefix::HostBits(text.to_owned(), prefix))
        }
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.length)
    }
}

impl Serialize for Prefix {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prefix(text: &str) -> Prefix {
        text.parse().expect(text)
    }

    #[test]
    fn prefixes_hold_exactly_their_addresses() {
        for (text, inside, outside) in [
            ("10.0.0.0/8", "10.255.0.1", "11.0.0.0"),
            ("192.0.2.1/32", "192.0.2.1", "192.0.2.2"),
            ("0.0.0.0/0", "255.255.255.255", "::"),
            ("2001:db8::/33", "2001:db8:7fff::1", "2001:db8:8000::"),
            ("::/0", "2001:db8::1", "192.0.2.1"),
            ("::1/128", "::1", "::2"),
            ("10.0.0.0/8", "::ffff:10.0.0.1", "::10.0.0.1"),
        ] {
            let (prefix, address) = (prefix(text), |text: &str| text.parse().expect("address"));
            assert!(prefix.contains(address(inside)), "{text} {inside}");
            assert!(!prefix.contains(address(outside)), "{text} {outside}");
            assert_eq!(prefix.to_string(), text);
        }
    }

    #[test]
    fn what_is_no_prefix_is_told() {
        for (text, want) in [
            (
                "10.0.0.1",
                "\"10.0.0.1\" is not a CIDR such as 10.0.0.0/8 or 2001:db8::/32",
            ),
            (
                "10.0.0.0/33",
                "\"10.0.0.0/33\" is not a CIDR such as 10.0.0.0/8 or 2001:db8::/32",
            ),
            (
                "10.0.0.0/+8",
                "\"10.0.0.0/+8\" is not a CIDR such as 10.0.0.0/8 or 2001:db8::/32",
            ),
            (
                "::/",
                "\"::/\" is not a CIDR such as 10.0.0.0/8 or 2001:db8::/32",
            ),
            (
                "10.0.0.1/24",
                "\"10.0.0.1/24\" has bits set behind its length, write 10.0.0.0/24",
            ),
            (
                "::ffff:10.0.0.0/104",
                "\"::ffff:10.0.0.0/104\" is IPv4 in IPv6 form, write it as IPv4",
            ),
        ] {
            assert_eq!(text.parse::<Prefix>().expect_err(text).to_string(), want);
        }
    }

    #[test]
    fn deny_wins_and_an_allow_list_shuts_everybody_else_out() {
        let sources = Sources {
            allow: Some(vec![prefix("10.0.0.0/8")]),
            deny: vec![prefix("10.1.0.0/16")],
        };
        let admits = |sources: &Sources, text: &str| sources.admits(text.parse().expect("address"));
        assert!(admits(&sources, "10.2.0.1"));
        assert!(!admits(&sources, "10.1.0.1"));
        assert!(!admits(&sources, "11.0.0.1") && !admits(&sources, "::1"));
        let only_deny = Sources {
            allow: None,
            ..sources
        };
        assert!(admits(&only_deny, "11.0.0.1") && !admits(&only_deny, "10.1.0.1"));
        let nobody = Sources {
            allow: Some(Vec::new()),
            deny: Vec::new(),
        };
        assert!(!admits(&nobody, "10.2.0.1") && !nobody.admits_all());
        assert!(Sources::default().admits_all());
    }
}
