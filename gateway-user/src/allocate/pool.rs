//! AddressPools: their ranges, whom they admit, and the next free address.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::snapshot::ObjectKey;
use crate::translate::{Inputs, namespace};

/// `spec.announce` of pools whose addresses no node announces.
pub const ANNOUNCE_NONE: &str = "None";

/// First and last address of one range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolRange {
    first: IpAddr,
    last: IpAddr,
}

/// Why a range cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is neither a CIDR nor FIRST-LAST")]
pub struct BadRange(String);

impl PoolRange {
    /// Reads a CIDR or `FIRST-LAST`, from which addresses are given out.
    ///
    /// A CIDR stands for its host addresses: an IPv4 one up to /30 leaves out the network's and the broadcast address,
    /// an IPv6 one up to /126 the subnet-router anycast address, which hosts would not answer for.
    ///
    /// # Errors
    /// If the text is neither.
    pub fn parse(text: &str) -> Result<Self, BadRange> {
        let all = Self::all_of(text)?;
        if !text.contains('/') {
            return Ok(all);
        }
        Ok(match (all.first, all.last) {
            (IpAddr::V4(first), IpAddr::V4(last)) if u32::from(last) - u32::from(first) >= 3 => {
                Self {
                    first: Ipv4Addr::from(u32::from(first) + 1).into(),
                    last: Ipv4Addr::from(u32::from(last) - 1).into(),
                }
            }
            (IpAddr::V6(first), IpAddr::V6(last)) if u128::from(last) - u128::from(first) >= 3 => {
                Self {
                    first: Ipv6Addr::from(u128::from(first) + 1).into(),
                    last: last.into(),
                }
            }
            _ => all,
        })
    }

    /// Reads a CIDR or `FIRST-LAST`, every address of which is meant.
    ///
    /// # Errors
    /// If the text is neither.
    pub fn all_of(text: &str) -> Result<Self, BadRange> {
        let bad = || BadRange(text.to_owned());
        if let Some((first, last)) = text.split_once('-') {
            let first: IpAddr = first.trim().parse().map_err(|_| bad())?;
            let last: IpAddr = last.trim().parse().map_err(|_| bad())?;
            let fine = first.is_ipv4() == last.is_ipv4() && first <= last;
            return fine.then_some(Self { first, last }).ok_or_else(bad);
        }
        let (address, length) = text.split_once('/').ok_or_else(bad)?;
        let length: u32 = length.parse().map_err(|_| bad())?;
        match address.trim().parse().map_err(|_| bad())? {
            IpAddr::V4(v4) if length <= 32 => {
                let mask = u32::MAX.checked_shl(32 - length).unwrap_or(0);
                Ok(Self {
                    first: Ipv4Addr::from(u32::from(v4) & mask).into(),
                    last: Ipv4Addr::from(u32::from(v4) | !mask).into(),
                })
            }
            IpAddr::V6(v6) if length <= 128 => {
                let mask = u128::MAX.checked_shl(128 - length).unwrap_or(0);
                Ok(Self {
                    first: Ipv6Addr::from(u128::from(v6) & mask).into(),
                    last: Ipv6Addr::from(u128::from(v6) | !mask).into(),
                })
            }
            _ => Err(bad()),
        }
    }

    /// Whether the address lies in it.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        address.is_ipv4() == self.first.is_ipv4() && self.first <= address && address <= self.last
    }
}

fn successor(address: IpAddr) -> Option<IpAddr> {
    match address {
        IpAddr::V4(v4) => u32::from(v4)
            .checked_add(1)
            .map(|next| Ipv4Addr::from(next).into()),
        IpAddr::V6(v6) => u128::from(v6)
            .checked_add(1)
            .map(|next| Ipv6Addr::from(next).into()),
    }
}

/// Which addresses no node announces, because of the pool in whose range they lie.
pub struct Unannounced {
    pools: Pools,
    silent: BTreeSet<ObjectKey>,
}

impl Unannounced {
    /// Reads the pools.
    #[must_use]
    pub fn new(inputs: &Inputs) -> Self {
        let silent = inputs
            .address_pools
            .iter()
            .filter(|(_, pool)| pool.spec.announce.as_deref() == Some(ANNOUNCE_NONE))
            .map(|(key, _)| key.clone())
            .collect();
        Self {
            pools: Pools::new(inputs),
            silent,
        }
    }

    /// Whether an address of a Gateway in `namespace` is such a one, given out by the pool or written into the Gateway.
    /// Of several pools with that address the first by name decides, those that admit the namespace before the others.
    #[must_use]
    pub fn holds(&self, namespace: &str, address: IpAddr) -> bool {
        if self.silent.is_empty() {
            return false;
        }
        let admitted = self.pools.admitted.get(namespace);
        let with_it = || {
            let ranges = self.pools.ranges.iter();
            ranges.filter(|range| range.range.contains(address))
        };
        with_it()
            .find(|range| admitted.is_some_and(|pools| pools.contains(&range.pool)))
            .or_else(|| with_it().next())
            .is_some_and(|range| self.silent.contains(&range.pool))
    }
}

/// One range of one pool, and where the search for a free address goes on.
struct Range {
    pool: ObjectKey,
    range: PoolRange,
    next: Option<IpAddr>,
}

/// All pools, in the order of their names.
pub(super) struct Pools {
    ranges: Vec<Range>,
    /// Pools that admit a namespace, by namespace; filled for every namespace with a Gateway.
    admitted: BTreeMap<String, BTreeSet<ObjectKey>>,
}

impl Pools {
    pub(super) fn new(inputs: &Inputs) -> Self {
        let mut admitted = BTreeMap::new();
        for gateway in inputs.gateways.keys() {
            admitted
                .entry(gateway.namespace.to_string())
                .or_insert_with(|| {
                    let labels = namespace::labels(inputs, &gateway.namespace);
                    let admits = |selector: &Option<_>| match selector {
                        None => true,
                        Some(selector) => {
                            let selector: &crate::translate::objects::LabelSelector = selector;
                            selector.matches(&labels)
                        }
                    };
                    inputs
                        .address_pools
                        .iter()
                        .filter(|(_, pool)| admits(&pool.spec.namespace_selector))
                        .map(|(key, _)| key.clone())
                        .collect()
                });
        }
        let ranges = inputs
            .address_pools
            .iter()
            .flat_map(|(key, pool)| {
                let readable = pool.spec.ranges.iter().map(|text| PoolRange::parse(text));
                readable.flatten().map(|range| Range {
                    pool: key.clone(),
                    range,
                    next: Some(range.first),
                })
            })
            .collect();
        Self { ranges, admitted }
    }

    /// Whether a pool that admits the namespace holds the address.
    pub(super) fn admit(&self, namespace: &str, address: IpAddr) -> bool {
        self.admitted.get(namespace).is_some_and(|pools| {
            self.ranges
                .iter()
                .any(|range| pools.contains(&range.pool) && range.range.contains(address))
        })
    }

    /// The first address that nobody holds, or a sentence that names the pools.
    pub(super) fn next(
        &mut self,
        namespace: &str,
        holders: &BTreeMap<IpAddr, ObjectKey>,
    ) -> Result<IpAddr, String> {
        let pools = self
            .admitted
            .get(namespace)
            .filter(|pools| !pools.is_empty())
            .ok_or_else(|| {
                format!(
                    "there is no AddressPool that admits namespace {namespace}; add one or give spec.addresses"
                )
            })?;
        for range in self.ranges.iter_mut().filter(|r| pools.contains(&r.pool)) {
            while let Some(address) = range.next {
                range.next = successor(address).filter(|next| range.range.contains(*next));
                if !holders.contains_key(&address) {
                    return Ok(address);
                }
            }
        }
        let names: Vec<_> = pools.iter().map(ToString::to_string).collect();
        Err(format!(
            "no free address is left in AddressPool {}",
            names.join(", ")
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(text: &str) -> String {
        match PoolRange::parse(text) {
            Ok(range) => format!("{}-{}", range.first, range.last),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn a_cidr_stands_for_its_host_addresses() {
        for (text, want) in [
            ("192.0.2.7/24", "192.0.2.1-192.0.2.254"),
            ("192.0.2.4/30", "192.0.2.5-192.0.2.6"),
            ("192.0.2.4/31", "192.0.2.4-192.0.2.5"),
            ("192.0.2.4/32", "192.0.2.4-192.0.2.4"),
            ("0.0.0.0/0", "0.0.0.1-255.255.255.254"),
            ("2001:db8::/126", "2001:db8::1-2001:db8::3"),
            ("2001:db8::/127", "2001:db8::-2001:db8::1"),
            ("::/0", "::1-ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
            ("192.0.2.1 - 192.0.2.3", "192.0.2.1-192.0.2.3"),
        ] {
            assert_eq!(range(text), want, "{text}");
        }
    }

    #[test]
    fn everything_else_is_refused() {
        for text in [
            "",
            "-",
            "/",
            "192.0.2.1",
            "192.0.2.0/33",
            "::/129",
            "192.0.2.3-192.0.2.1",
            "192.0.2.1-::2",
            "a/24",
            "192.0.2.0/-1",
        ] {
            assert_eq!(
                range(text),
                format!("{text:?} is neither a CIDR nor FIRST-LAST")
            );
        }
    }

    #[test]
    fn the_last_address_of_the_family_ends_the_search() {
        assert_eq!(successor("255.255.255.255".parse().expect("address")), None);
        assert_eq!(
            successor("192.0.2.255".parse().expect("address")),
            Some("192.0.3.0".parse().expect("address"))
        );
    }
}
