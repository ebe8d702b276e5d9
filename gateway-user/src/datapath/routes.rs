//! Local routes for the VIPs, the addresses of this node, and how its interfaces answer ARP.
//!
//! A VIP is local by a route in the table `local` toward `lo` that carries our own protocol number: only routes
//! with that number are ever removed. `arp_ignore=1` and `arp_announce=2` are set on every interface but `lo`
//! and stay when the daemon goes: they are what the node needs as long as anybody holds a VIP, and nobody
//! remembers what they were before.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::netlink::{Body, Netlink, attributes, word};
use super::{Error, Frames};

/// `rtm_protocol` of our routes, from the range left to routing daemons.
pub const ROUTE_PROTOCOL: u8 = 174;

const RT_TABLE_LOCAL: u8 = 255;
const RTN_LOCAL: u8 = 2;
pub(super) const RTA_DST: u16 = 1;
pub(super) const RTA_OIF: u16 = 4;
const IFLA_VLAN_ID: u16 = 1;
const IFLA_AF_SPEC: u16 = 26;
const IFLA_INET_CONF: u16 = 1;
const IPV4_DEVCONF_ARP_ANNOUNCE: u16 = 18;
const IPV4_DEVCONF_ARP_IGNORE: u16 = 19;

/// One interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Interface {
    /// Name.
    pub name: String,
    /// Ethernet address, zero if it has none.
    pub mac: [u8; 6],
    /// MTU.
    pub mtu: u32,
    /// The interface of this namespace that it lies on (a VLAN, a macvlan); 0 for none.
    pub lower: u32,
    /// The bond or bridge that it is part of; 0 for none.
    pub master: u32,
    /// The VLAN that it is; 0 for none.
    pub vlan: u16,
}

/// MACs that frames for this machine carry on these uplinks, and the VLANs that it takes: those of the uplinks and of all
/// interfaces that lie on them. No MAC where one of the uplinks has none.
#[must_use]
pub fn frames(all: &BTreeMap<u32, Interface>, uplinks: &[u32]) -> Frames {
    let mut above: BTreeSet<u32> = uplinks
        .iter()
        .copied()
        .filter(|index| *index != 0)
        .collect();
    loop {
        let masters = above.iter().filter_map(|index| all.get(index));
        let mut more: BTreeSet<u32> = masters.map(|link| link.master).collect();
        let on_top = all.iter().filter(|(_, link)| above.contains(&link.lower));
        more.extend(on_top.map(|(index, _)| *index));
        let before = above.len();
        above.extend(more.into_iter().filter(|index| all.contains_key(index)));
        if above.len() == before {
            break;
        }
    }
    let links = || above.iter().filter_map(|index| all.get(index));
    let mut macs: BTreeSet<[u8; 6]> = links().map(|link| link.mac).collect();
    if above.is_empty() || macs.contains(&[0; 6]) {
        macs.clear();
    }
    let vlans = links().map(|link| link.vlan).filter(|vlan| *vlan != 0);
    Frames {
        macs,
        vlans: vlans.collect(),
    }
}

/// All interfaces by index.
///
/// # Errors
/// Netlink said no.
pub fn interfaces(netlink: &mut Netlink) -> Result<BTreeMap<u32, Interface>, Error> {
    let links = netlink
        .dump(libc::RTM_GETLINK, &Body::new(&[0; 16]))
        .map_err(Error::netlink("listing the interfaces"))?;
    Ok(links
        .iter()
        .filter(|link| link.len() >= 16)
        .map(|link| {
            let mut interface = Interface::default();
            let mut elsewhere = false;
            for (kind, value) in attributes(&link[16..]) {
                match kind {
                    libc::IFLA_IFNAME => {
                        let name = value.strip_suffix(&[0]).unwrap_or(value);
                        interface.name = String::from_utf8_lossy(name).into_owned();
                    }
                    libc::IFLA_ADDRESS => interface.mac = value.try_into().unwrap_or_default(),
                    libc::IFLA_MTU => interface.mtu = word(value, 0),
                    libc::IFLA_LINK => interface.lower = word(value, 0),
                    libc::IFLA_MASTER => interface.master = word(value, 0),
                    // The other end is in another namespace, which numbers interfaces for itself.
                    libc::IFLA_LINK_NETNSID => elsewhere = true,
                    libc::IFLA_LINKINFO => interface.vlan = vlan(value),
                    _ => {}
                }
            }
            if elsewhere || interface.lower == word(link, 4) {
                interface.lower = 0;
            }
            (word(link, 4), interface)
        })
        .collect())
}

/// The identifier that a description of an interface holds, if it is a VLAN; else 0.
fn vlan(description: &[u8]) -> u16 {
    let find = |wanted| attributes(description).find(|(kind, _)| *kind == wanted);
    let is_vlan = find(libc::IFLA_INFO_KIND).is_some_and(|(_, kind)| kind.starts_with(b"vlan\0"));
    find(libc::IFLA_INFO_DATA)
        .filter(|_| is_vlan)
        .and_then(|(_, data)| attributes(data).find(|(kind, _)| *kind == IFLA_VLAN_ID))
        .and_then(|(_, id)| Some(u16::from_ne_bytes(id.get(..2)?.try_into().ok()?)))
        .unwrap_or(0)
}

/// All addresses configured on interfaces but link-local ones, with the index of the interface; IPv4 first.
///
/// # Errors
/// Netlink said no.
pub fn configured(netlink: &mut Netlink) -> Result<Vec<(u32, IpAddr)>, Error> {
    let mut all = Vec::new();
    for family in FAMILIES {
        let mut fixed = [0; 8];
        fixed[0] = family;
        let addresses = netlink
            .dump(libc::RTM_GETADDR, &Body::new(&fixed))
            .map_err(Error::netlink("listing the addresses"))?;
        let of_family = addresses
            .iter()
            .filter(|message| message.len() >= 8 && message[0] == family);
        all.extend(of_family.filter_map(|message| {
            let find = |wanted| attributes(&message[8..]).find(|(kind, _)| *kind == wanted);
            // The far end of a point-to-point link has the other attribute; IPv6 has only that one.
            let (_, value) = find(libc::IFA_LOCAL).or_else(|| find(libc::IFA_ADDRESS))?;
            let address = address(value).filter(|address| !is_link_local(address))?;
            Some((word(message, 4), address))
        }));
    }
    Ok(all)
}

fn is_link_local(address: &IpAddr) -> bool {
    matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local())
}

/// Our local routes.
///
/// # Errors
/// Netlink said no.
pub fn own_routes(netlink: &mut Netlink) -> Result<BTreeSet<IpAddr>, Error> {
    let mut all = BTreeSet::new();
    for family in FAMILIES {
        let routes = of_table(netlink, family, RT_TABLE_LOCAL)?;
        let ours = routes.iter().filter(|m| {
            m.len() >= 12 && m[0] == family && m[4] == RT_TABLE_LOCAL && m[5] == ROUTE_PROTOCOL
        });
        all.extend(
            ours.filter_map(|m| {
                address(attributes(&m[12..]).find(|(kind, _)| *kind == RTA_DST)?.1)
            }),
        );
    }
    Ok(all)
}

/// Routes of a table with our protocol number, perhaps among others: the kernel sorts them out if it can, for there may be a
/// million in other tables.
pub(super) fn of_table(
    netlink: &mut Netlink,
    family: u8,
    table: u8,
) -> Result<Vec<Vec<u8>>, Error> {
    let mut fixed = [0; 12];
    fixed[0] = family;
    fixed[4] = table;
    fixed[5] = ROUTE_PROTOCOL;
    match netlink.dump_fitting(libc::RTM_GETROUTE, &Body::new(&fixed)) {
        // There is no such table yet.
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(Vec::new()),
        routes => routes.map_err(Error::netlink("listing the routes")),
    }
}

/// Addresses whose route the kernel refuses, each with one sentence that says why.
pub type Unset = BTreeMap<IpAddr, String>;

/// Makes exactly `wanted` local, as far as it is up to our routes, and returns those for which the kernel has no place: one
/// of them says nothing of the others.
///
/// # Errors
/// Netlink said no to this process, or does not let a route go; the sentence names the address.
pub fn set_own_routes(netlink: &mut Netlink, wanted: &BTreeSet<IpAddr>) -> Result<Unset, Error> {
    let mut unset = Unset::new();
    let present = own_routes(netlink)?;
    if present == *wanted {
        return Ok(unset);
    }
    let loopback = interfaces(netlink)?
        .into_iter()
        .find(|(_, interface)| interface.name == "lo")
        .map_or(1, |(index, _)| index);
    for address in wanted.difference(&present) {
        let flags = libc::NLM_F_CREATE | libc::NLM_F_EXCL;
        let added = netlink.request(libc::RTM_NEWROUTE, flags, &local_route(*address, loopback));
        let what = format!("adding the local route for {address} on lo");
        note(&mut unset, *address, added.map(drop), what)?;
    }
    for address in present.difference(wanted) {
        netlink
            .request(libc::RTM_DELROUTE, 0, &local_route(*address, loopback))
            .map(drop)
            .or_else(|error| ignore(error, libc::ESRCH))
            .map_err(Error::netlink(format!(
                "removing the local route for {address}"
            )))?;
    }
    Ok(unset)
}

/// Keeps a refusal that concerns one address alone; that of a missing privilege concerns all.
pub(super) fn note(
    unset: &mut Unset,
    address: IpAddr,
    added: std::io::Result<()>,
    what: String,
) -> Result<(), Error> {
    let Err(error) = added.or_else(|error| ignore(error, libc::EEXIST)) else {
        return Ok(());
    };
    if error.raw_os_error() == Some(libc::EPERM) {
        return Err(Error::netlink(what)(error));
    }
    // What the kernel says of a family that is switched off, or not built in.
    let off = [libc::EACCES, libc::EAFNOSUPPORT, libc::EOPNOTSUPP];
    let off = address.is_ipv6() && error.raw_os_error().is_some_and(|code| off.contains(&code));
    let remedy = if off {
        "switch IPv6 on with `sysctl net.ipv6.conf.all.disable_ipv6=0` and `sysctl net.ipv6.conf.lo.disable_ipv6=0`, or take the address from the Gateway"
    } else {
        "it is tried again every second"
    };
    unset.insert(
        address,
        format!("{address} is not served by this node: {what} failed ({error}); {remedy}"),
    );
    Ok(())
}

/// `arp_ignore=1` (answer only for addresses of the asked interface) and `arp_announce=2` (never speak for an
/// address of `lo`) on one interface, by netlink because /proc/sys is read-only in most containers.
///
/// # Errors
/// Netlink said no; the sentence names the interface.
pub fn quiet_arp(netlink: &mut Netlink, index: u32, name: &str) -> Result<(), Error> {
    let mut fixed = [0; 16];
    fixed[4..8].copy_from_slice(&index.to_ne_bytes());
    let values = Body::default()
        .attribute(IPV4_DEVCONF_ARP_ANNOUNCE, &2_u32.to_ne_bytes())
        .attribute(IPV4_DEVCONF_ARP_IGNORE, &1_u32.to_ne_bytes());
    let inet = Body::default().nested(IFLA_INET_CONF, &values);
    let family = Body::default().nested(libc::AF_INET as u16, &inet);
    netlink
        .request(
            libc::RTM_SETLINK,
            0,
            &Body::new(&fixed).nested(IFLA_AF_SPEC, &family),
        )
        .map(drop)
        .map_err(Error::netlink(format!(
            "setting arp_ignore and arp_announce on {name}"
        )))
}

fn local_route(address: IpAddr, loopback: u32) -> Body {
    const RT_SCOPE_HOST: u8 = 254;
    const RT_SCOPE_UNIVERSE: u8 = 0;
    let (bits, scope) = match address {
        IpAddr::V4(_) => (32, RT_SCOPE_HOST),
        IpAddr::V6(_) => (128, RT_SCOPE_UNIVERSE),
    };
    let mut fixed = [0; 12];
    fixed[0] = family_of(address);
    fixed[1] = bits;
    fixed[4] = RT_TABLE_LOCAL;
    fixed[5] = ROUTE_PROTOCOL;
    fixed[6] = scope;
    fixed[7] = RTN_LOCAL;
    Body::new(&fixed)
        .attribute(RTA_DST, &octets(address))
        .attribute(RTA_OIF, &loopback.to_ne_bytes())
}

pub(super) fn ignore(error: std::io::Error, errno: i32) -> std::io::Result<()> {
    if error.raw_os_error() == Some(errno) {
        Ok(())
    } else {
        Err(error)
    }
}

/// The address in an attribute of four or sixteen bytes.
pub(super) fn address(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from),
        16 => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
        _ => None,
    }
}

/// The value of an attribute that holds an address.
pub(super) fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

/// The family that netlink messages about an address begin with.
pub(super) fn family_of(address: IpAddr) -> u8 {
    match address {
        IpAddr::V4(_) => libc::AF_INET as u8,
        IpAddr::V6(_) => libc::AF_INET6 as u8,
    }
}

/// The families that are looked through.
pub(super) const FAMILIES: [u8; 2] = [libc::AF_INET as u8, libc::AF_INET6 as u8];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_for_the_uplinks_and_all_that_lies_on_them() {
        let link = |mac: u8, lower, master, vlan| Interface {
            mac: [2, 0, 0, 0, 0, mac],
            lower,
            master,
            vlan,
            ..Interface::default()
        };
        let all: BTreeMap<u32, Interface> = [
            (1, Interface::default()),
            (2, link(2, 0, 4, 0)),
            (3, link(3, 0, 4, 0)),
            (4, link(2, 0, 0, 0)),
            (5, link(5, 4, 0, 7)),
            (6, link(6, 5, 0, 9)),
            (7, link(7, 0, 0, 0)),
            (8, link(8, 7, 0, 11)),
        ]
        .into();
        let got = frames(&all, &[2, 0]);
        assert_eq!(
            got.macs.iter().map(|mac| mac[5]).collect::<Vec<_>>(),
            [2, 5, 6]
        );
        assert_eq!(got.vlans, [7, 9].into());
        assert_eq!(frames(&all, &[1]), Frames::default(), "it has no MAC");
        assert_eq!(frames(&all, &[]), Frames::default());
        assert_eq!(frames(&all, &[99]), Frames::default(), "it is gone");
    }
}
