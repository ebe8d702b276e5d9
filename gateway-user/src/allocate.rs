//! Gives addresses to Gateways: a pure function of the objects and of what was given out before.
//!
//! Invariants: no address belongs to two Gateways; of two that ask for one address the older keeps it; an address from a
//! pool stays with its Gateway as long as a pool still admits it. Announcing addresses is not done here.

mod pool;

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

pub use pool::{ANNOUNCE_NONE, BadRange, PoolRange, Unannounced};

use self::pool::Pools;
use crate::snapshot::ObjectKey;
use crate::translate::objects::Gateway;
use crate::translate::{Inputs, gateway_class};

/// Which Gateway has which addresses. Kept under the state directory in file mode.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Allocations {
    /// By Gateway.
    pub gateways: BTreeMap<ObjectKey, Allocation>,
}

/// The addresses of one Gateway.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Allocation {
    /// Addresses that it may use, in the order of its spec.
    pub addresses: Vec<IpAddr>,
    /// Why it did not get all that it asks for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<Problem>,
}

/// Why a Gateway did not get an address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Problem {
    /// An address type other than IPAddress.
    UnsupportedAddress(String),
    /// It names an address that it cannot have.
    AddressNotUsable(String),
    /// No pool has one left for it.
    AddressNotAssigned(String),
}

/// Gives every Gateway of ours its addresses.
///
/// `on_cluster`: a static address must lie in a pool that admits the namespace; in files any will do. `existing`: the
/// result of the last call, for stability.
#[must_use]
pub fn allocate(inputs: &Inputs, on_cluster: bool, existing: &Allocations) -> Allocations {
    give(inputs, on_cluster, existing, true)
}

/// What Gateways on a cluster have by the statuses that the lease holder has written: nothing new is given out, and what no
/// pool admits is not believed.
#[must_use]
pub fn follow(inputs: &Inputs, existing: &Allocations) -> Allocations {
    give(inputs, true, existing, false)
}

fn give(inputs: &Inputs, on_cluster: bool, existing: &Allocations, new: bool) -> Allocations {
    let classes = gateway_class::ours(inputs);
    let mut gateways: Vec<&Gateway> = inputs
        .gateways
        .values()
        .map(AsRef::as_ref)
        .filter(|gateway| classes.contains(gateway.spec.gateway_class_name.as_str()))
        .collect();
    gateways.sort_by_key(|gateway| gateway.metadata.age());
    let mut run = Run {
        on_cluster,
        pools: Pools::new(inputs),
        holders: BTreeMap::new(),
    };
    let claims: Vec<Claim> = gateways
        .into_iter()
        .map(|gateway| {
            let key = gateway.metadata.key();
            let before = existing.gateways.get(&key);
            run.claim(gateway, key, before.map_or(&[], |a| &a.addresses))
        })
        .collect();
    let fill = |claim: Claim| {
        if new { run.fill(claim) } else { claim.wait() }
    };
    let gateways = claims.into_iter().map(fill).collect();
    Allocations { gateways }
}

/// A Gateway between the two passes: what it named or had is settled, new addresses are not.
struct Claim {
    key: ObjectKey,
    allocation: Allocation,
    open: usize,
}

impl Claim {
    /// The lease holder gives out what is open.
    fn wait(mut self) -> (ObjectKey, Allocation) {
        if self.open > 0 {
            let why = "waiting for the node that gives out addresses".to_owned();
            let problem = Problem::AddressNotAssigned(why);
            self.allocation.problem.get_or_insert(problem);
        }
        (self.key, self.allocation)
    }
}

struct Run {
    on_cluster: bool,
    pools: Pools,
    holders: BTreeMap<IpAddr, ObjectKey>,
}

impl Run {
    /// First pass, older Gateways first: static addresses, and those that it already has from a pool.
    fn claim(&mut self, gateway: &Gateway, key: ObjectKey, before: &[IpAddr]) -> Claim {
        let mut allocation = Allocation::default();
        let mut open = usize::from(gateway.spec.addresses.is_empty());
        for wanted in &gateway.spec.addresses {
            let kind = wanted.kind.as_deref().unwrap_or("IPAddress");
            if kind != "IPAddress" {
                let problem = format!("addresses of type {kind} are not supported, use IPAddress");
                allocation.problem = Some(Problem::UnsupportedAddress(problem));
            } else if wanted.value.is_empty() {
                open += 1;
            } else {
                match self.fixed(&wanted.value, &key) {
                    Ok(address) => allocation.addresses.push(address),
                    Err(problem) => {
                        let problem = Problem::AddressNotUsable(problem);
                        allocation.problem.get_or_insert(problem);
                    }
                }
            }
        }
        for address in before {
            let free = !self.holders.contains_key(address);
            if open > 0 && free && self.pools.admit(&key.namespace, *address) {
                self.holders.insert(*address, key.clone());
                allocation.addresses.push(*address);
                open -= 1;
            }
        }
        Claim {
            key,
            allocation,
            open,
        }
    }

    fn fixed(&mut self, text: &str, key: &ObjectKey) -> Result<IpAddr, String> {
        let address: IpAddr = text
            .parse()
            .map_err(|_| format!("{text:?} is not an IP address"))?;
        let address = address.to_canonical();
        if address.is_unspecified() || address.is_multicast() || is_broadcast(address) {
            return Err(format!("{address} is not the address of one host"));
        }
        if let Some(holder) = self.holders.get(&address) {
            return Err(format!("{address} is held by Gateway {holder}"));
        }
        if self.on_cluster && !self.pools.admit(&key.namespace, address) {
            return Err(format!(
                "{address} lies in no AddressPool that admits namespace {}",
                key.namespace
            ));
        }
        self.holders.insert(address, key.clone());
        Ok(address)
    }

    /// Second pass: new addresses, first fit.
    fn fill(&mut self, mut claim: Claim) -> (ObjectKey, Allocation) {
        for _ in 0..claim.open {
            match self.pools.next(&claim.key.namespace, &self.holders) {
                Ok(address) => {
                    self.holders.insert(address, claim.key.clone());
                    claim.allocation.addresses.push(address);
                }
                Err(problem) => {
                    let problem = Problem::AddressNotAssigned(problem);
                    claim.allocation.problem.get_or_insert(problem);
                }
            }
        }
        (claim.key, claim.allocation)
    }
}

fn is_broadcast(address: IpAddr) -> bool {
    matches!(address, IpAddr::V4(v4) if v4.is_broadcast())
}
