//! How each listed node is reached: interface, MAC of the node or of the next hop toward it.
//!
//! The kernel resolves and refreshes; this module asks it to, and keeps the last MAC that it gave while an
//! entry is being resolved again. It never opens a connection to a node.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::Error;
use super::netlink::{Body, Netlink, attributes, word};
use super::routes::{FAMILIES, Interface, address, configured, family_of, interfaces, octets};
use crate::l4::tables::Reach;

/// `--forward`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ForwardMode {
    /// By MAC rewrite to nodes on our link, else by UDP.
    #[default]
    Auto,
    /// Only by MAC rewrite; a node that is not on our link is not forwarded to.
    L2,
    /// Always by UDP.
    Udp,
}

impl std::str::FromStr for ForwardMode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "l2" => Ok(Self::L2),
            "udp" => Ok(Self::Udp),
            _ => Err(format!("--forward {text} is not one of auto, l2, udp")),
        }
    }
}

const NDA_DST: u16 = 1;
const NDA_LLADDR: u16 = 2;
const NTF_USE: u8 = 1;
/// Reachable, stale, delay, probe, no-ARP, permanent: there is a MAC to use.
const USABLE: u16 = 0x02 | 0x04 | 0x08 | 0x10 | 0x40 | 0x80;
/// Stale: usable, but nobody has confirmed it for a while.
const STALE: u16 = 0x04;

/// Knows how the listed nodes are reached.
#[derive(Debug, Default)]
pub struct Neighbours {
    known: BTreeMap<IpAddr, Reach>,
}

struct Hop {
    ifindex: u32,
    next: IpAddr,
    on_link: bool,
}

impl Neighbours {
    /// How a node was reached when that was last looked up.
    #[must_use]
    pub fn known(&self, node: IpAddr) -> Option<Reach> {
        self.known.get(&node).copied()
    }

    /// Looks up routes and neighbour entries of `nodes`, and has the kernel resolve what is missing or stale.
    ///
    /// # Errors
    /// Netlink said no. A node without a route is not an error: it is unresolved.
    pub fn refresh(
        &mut self,
        netlink: &mut Netlink,
        nodes: &BTreeSet<IpAddr>,
        mode: ForwardMode,
    ) -> Result<BTreeMap<IpAddr, Reach>, Error> {
        self.known.retain(|address, _| nodes.contains(address));
        if nodes.is_empty() {
            return Ok(BTreeMap::new());
        }
        let links = interfaces(netlink)?;
        let own: BTreeSet<IpAddr> = configured(netlink)?.into_iter().map(|(_, a)| a).collect();
        let entries = neighbour_entries(netlink)?;
        for node in nodes {
            if own.contains(node) {
                continue;
            }
            let Some(hop) = route_to(netlink, *node) else {
                self.known.remove(node);
                continue;
            };
            let entry = entries.get(&(hop.ifindex, hop.next));
            if entry.is_none_or(|(state, _)| state & USABLE == 0 || state & STALE != 0) {
                resolve(netlink, &hop);
            }
            let reach = self.known.entry(*node).or_default();
            let moved = reach.ifindex != hop.ifindex || reach.on_link != hop.on_link;
            if let Some((state, mac)) = entry.filter(|(state, _)| state & USABLE != 0) {
                reach.mac = *mac;
                reach.resolved = *state != 0;
            } else if moved {
                reach.resolved = false;
            }
            reach.ifindex = hop.ifindex;
            reach.on_link = hop.on_link;
            reach.mtu = links.get(&hop.ifindex).map_or(0, |link| link.mtu);
            reach.source_mac = links
                .get(&hop.ifindex)
                .map_or([0; 6], |i: &Interface| i.mac);
        }
        Ok(self
            .known
            .iter()
            .map(|(address, reach)| (*address, for_mode(*reach, mode)))
            .collect())
    }
}

fn for_mode(mut reach: Reach, mode: ForwardMode) -> Reach {
    if mode == ForwardMode::L2 && !reach.on_link {
        reach.resolved = false;
    }
    reach
}

/// Index of the interface by which packets to an address leave; none without a route.
pub(super) fn leaves_by(netlink: &mut Netlink, address: IpAddr) -> Option<u32> {
    route_to(netlink, address).map(|hop| hop.ifindex)
}

fn route_to(netlink: &mut Netlink, node: IpAddr) -> Option<Hop> {
    const RTA_DST: u16 = 1;
    const RTA_OIF: u16 = 4;
    const RTA_GATEWAY: u16 = 5;
    let mut fixed = [0; 12];
    let destination = octets(node);
    fixed[0] = family_of(node);
    fixed[1] = 8 * destination.len() as u8;
    let body = Body::new(&fixed).attribute(RTA_DST, &destination);
    let replies = netlink.request(libc::RTM_GETROUTE, 0, &body).ok()?;
    let route = replies.first().filter(|route| route.len() >= 12)?;
    let find = |wanted| attributes(&route[12..]).find(|(kind, _)| *kind == wanted);
    let ifindex = word(find(RTA_OIF)?.1, 0);
    let gateway = find(RTA_GATEWAY).and_then(|(_, value)| address(value));
    Some(Hop {
        ifindex,
        next: gateway.unwrap_or(node),
        on_link: gateway.is_none(),
    })
}

type Entries = BTreeMap<(u32, IpAddr), (u16, [u8; 6])>;

fn neighbour_entries(netlink: &mut Netlink) -> Result<Entries, Error> {
    let mut entries = BTreeMap::new();
    for family in FAMILIES {
        let mut fixed = [0; 12];
        fixed[0] = family;
        let messages = netlink
            .dump(libc::RTM_GETNEIGH, &Body::new(&fixed))
            .map_err(Error::netlink("listing the neighbours"))?;
        for message in messages.iter().filter(|m| m.len() >= 12) {
            let find = |wanted| attributes(&message[12..]).find(|(kind, _)| *kind == wanted);
            let neighbour = find(NDA_DST).and_then(|(_, value)| address(value));
            let mac = find(NDA_LLADDR).and_then(|(_, value)| <[u8; 6]>::try_from(value).ok());
            if let (Some(neighbour), Some(mac)) = (neighbour, mac) {
                let state = u16::from_ne_bytes([message[8], message[9]]);
                entries.insert((word(message, 4), neighbour), (state, mac));
            }
        }
    }
    Ok(entries)
}

/// Has the kernel use the entry, which resolves or confirms it. It answers nothing of interest.
fn resolve(netlink: &mut Netlink, hop: &Hop) {
    let mut fixed = [0; 12];
    fixed[0] = family_of(hop.next);
    fixed[4..8].copy_from_slice(&hop.ifindex.to_ne_bytes());
    fixed[10] = NTF_USE;
    let body = Body::new(&fixed).attribute(NDA_DST, &octets(hop.next));
    if let Err(error) = netlink.request(libc::RTM_NEWNEIGH, libc::NLM_F_CREATE, &body) {
        tracing::debug!(next_hop = %hop.next, %error, "the kernel does not resolve a node's address");
    }
}
