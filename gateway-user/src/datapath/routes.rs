//! Local routes for the VIPs, the addresses of this node, and how its interfaces answer ARP.
//!
//! A VIP is local by a route in the table `local` toward `lo` that carries our own protocol number: only routes
//! with that number are ever removed. `arp_ignore=1` and `arp_announce=2` are set on every interface but `lo`
//! and stay when the daemon goes: they are what the node needs as long as anybody holds a VIP, and nobody
//! remembers what they were before.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use super::Error;
use super::netlink::{Body, Netlink, attributes, word};

/// `rtm_protocol` of our routes, from the range left to routing daemons.
pub const ROUTE_PROTOCOL: u8 = 174;

const RT_TABLE_LOCAL: u8 = 255;
const RTN_LOCAL: u8 = 2;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const IFLA_AF_SPEC: u16 = 26;
const IFLA_INET_CONF: u16 = 1;
const IPV4_DEVCONF_ARP_ANNOUNCE: u16 = 18;
const IPV4_DEVCONF_ARP_IGNORE: u16 = 19;

/// One interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Name.
    pub name: String,
    /// Ethernet address, zero if it has none.
    pub mac: [u8; 6],
    /// MTU.
    pub mtu: u32,
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
            let mut interface = Interface {
                name: String::new(),
                mac: [0; 6],
                mtu: 0,
            };
            for (kind, value) in attributes(&link[16..]) {
                match kind {
                    libc::IFLA_IFNAME => {
                        let name = value.strip_suffix(&[0]).unwrap_or(value);
                        interface.name = String::from_utf8_lossy(name).into_owned();
                    }
                    libc::IFLA_ADDRESS => interface.mac = value.try_into().unwrap_or_default(),
                    libc::IFLA_MTU => interface.mtu = word(value, 0),
                    _ => {}
                }
            }
            (word(link, 4), interface)
        })
        .collect())
}

/// All IPv4 addresses configured on interfaces, with the index of the interface.
///
/// # Errors
/// Netlink said no.
pub fn configured(netlink: &mut Netlink) -> Result<Vec<(u32, Ipv4Addr)>, Error> {
    let mut fixed = [0; 8];
    fixed[0] = libc::AF_INET as u8;
    let addresses = netlink
        .dump(libc::RTM_GETADDR, &Body::new(&fixed))
        .map_err(Error::netlink("listing the addresses"))?;
    Ok(addresses
        .iter()
        .filter(|message| message.len() >= 8)
        .filter_map(|message| {
            let local = attributes(&message[8..]).find(|(kind, _)| *kind == libc::IFA_LOCAL)?;
            Some((word(message, 4), v4(local.1)?))
        })
        .collect())
}

/// Our local routes.
///
/// # Errors
/// Netlink said no.
pub fn own_routes(netlink: &mut Netlink) -> Result<BTreeSet<Ipv4Addr>, Error> {
    let mut fixed = [0; 12];
    fixed[0] = libc::AF_INET as u8;
    let routes = netlink
        .dump(libc::RTM_GETROUTE, &Body::new(&fixed))
        .map_err(Error::netlink("listing the routes"))?;
    Ok(routes
        .iter()
        .filter(|m| m.len() >= 12 && m[4] == RT_TABLE_LOCAL && m[5] == ROUTE_PROTOCOL)
        .filter_map(|m| v4(attributes(&m[12..]).find(|(kind, _)| *kind == RTA_DST)?.1))
        .collect())
}

/// Makes exactly `wanted` local, as far as it is up to our routes.
///
/// # Errors
/// Netlink said no; the sentence names the address.
pub fn set_own_routes(netlink: &mut Netlink, wanted: &BTreeSet<Ipv4Addr>) -> Result<(), Error> {
    let present = own_routes(netlink)?;
    if present == *wanted {
        return Ok(());
    }
    let loopback = interfaces(netlink)?
        .into_iter()
        .find(|(_, interface)| interface.name == "lo")
        .map_or(1, |(index, _)| index);
    for address in wanted.difference(&present) {
        let flags = libc::NLM_F_CREATE | libc::NLM_F_EXCL;
        netlink
            .request(libc::RTM_NEWROUTE, flags, &local_route(*address, loopback))
            .map(drop)
            .or_else(|error| ignore(error, libc::EEXIST))
            .map_err(Error::netlink(format!(
                "adding the local route for {address} on lo"
            )))?;
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

fn local_route(address: Ipv4Addr, loopback: u32) -> Body {
    const RT_SCOPE_HOST: u8 = 254;
    let mut fixed = [0; 12];
    fixed[0] = libc::AF_INET as u8;
    fixed[1] = 32;
    fixed[4] = RT_TABLE_LOCAL;
    fixed[5] = ROUTE_PROTOCOL;
    fixed[6] = RT_SCOPE_HOST;
    fixed[7] = RTN_LOCAL;
    Body::new(&fixed)
        .attribute(RTA_DST, &address.octets())
        .attribute(RTA_OIF, &loopback.to_ne_bytes())
}

fn ignore(error: std::io::Error, errno: i32) -> std::io::Result<()> {
    if error.raw_os_error() == Some(errno) {
        Ok(())
    } else {
        Err(error)
    }
}

pub(super) fn v4(bytes: &[u8]) -> Option<Ipv4Addr> {
    Some(Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?))
}

/// The IPv4 addresses among `addresses`.
pub fn only_v4(addresses: impl IntoIterator<Item = IpAddr>) -> BTreeSet<Ipv4Addr> {
    addresses
        .into_iter()
        .filter_map(|address| match address {
            IpAddr::V4(v4) => Some(v4),
            IpAddr::V6(_) => None,
        })
        .collect()
}
