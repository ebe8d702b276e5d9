//! AddressPools: their ranges, whom they admit, and the next free address.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::snapshot::ObjectKey;
use crate::translate::{Inputs, namespace};

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
    /// Reads a CIDR or `FIRST-LAST`.
    ///
    /// A CIDR stands for its host addresses: an IPv4 one up to /30 leaves out the network's and the broadcast address,
    /// an IPv6 one up to /126 the subnet-router anycast address, which hosts would not answer for.
    ///
    /// # Errors
    /// If the text is neither.
    pub fn parse(text: &str) -> Result<Self, BadRange> {
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
                let (low, high) = (u32::from(v4) & mask, u32::from(v4) | !mask);
                let edge = u32::from(length <= 30);
                Ok(Self {
                    first: Ipv4Addr::from(low + edge).into(),
                    last: Ipv4Addr::from(high - edge).into(),
                })
            }
            IpAddr::V6(v6) if length <= 128 => {
                let mask = u128::MAX.checked_shl(128 - length).unwrap_or(0);
                let edge = u128::from(length <= 126);
                Ok(Self {
                    first: Ipv6Addr::from((u128::from(v6) & mask) + edge).into(),
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
