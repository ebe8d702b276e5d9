//! Host routes for routers to learn: the addresses that no node announces on the link.
//!
//! They lie in a table of their own, which no rule of the kernel looks into: they carry no packet, they only tell a routing
//! daemon on this machine what to say to its neighbours. They are to be there no longer than somebody answers for them,
//! even if this process is killed: so they lead to a tunnel interface whose only holder is this process, and which goes with
//! it. Where there is no `/dev/net/tun` they are blackhole routes, which somebody else may have to remove.

use std::collections::BTreeSet;
use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::net::IpAddr;
use std::os::fd::AsRawFd;

use super::Error;
use super::netlink::{Body, Netlink, attributes, word};
use super::routes::{
    FAMILIES, ROUTE_PROTOCOL, RTA_DST, RTA_OIF, Unset, address, family_of, ignore, interfaces,
    note, octets, of_table,
};

/// The table of these routes: the same number as [`ROUTE_PROTOCOL`].
pub const TABLE: u8 = ROUTE_PROTOCOL;

/// Name of the interface; the kernel puts a number in.
const NAME: &CStr = c"forebay%d";

/// Our routes for routers.
#[derive(Debug, Default)]
pub struct Exported {
    device: Option<Device>,
    /// There is no device to be had.
    without: bool,
}

/// A tunnel interface that goes when this is dropped, or the process ends.
#[derive(Debug)]
struct Device {
    ifindex: u32,
    _holder: File,
}

/// A route as the kernel tells it: its address, and the interface or 0 for a blackhole.
type Route = (IpAddr, u32);

impl Exported {
    /// Makes exactly `wanted` known to routers, and returns those for which the kernel has no place.
    ///
    /// # Errors
    /// Netlink said no to this process, or does not let a route go; the sentence names the address.
    pub fn set(
        &mut self,
        netlink: &mut Netlink,
        wanted: &BTreeSet<IpAddr>,
    ) -> Result<Unset, Error> {
        if self.device.is_none() && !self.without && !wanted.is_empty() {
            self.device = open(netlink);
            self.without = self.device.is_none();
        }
        let device = self.device.as_ref().map_or(0, |device| device.ifindex);
        let wanted = wanted.iter().map(|address| (*address, device)).collect();
        set(netlink, &wanted)
    }
}

/// Removes them, whoever made them.
///
/// # Errors
/// Netlink said no.
pub fn remove(netlink: &mut Netlink) -> Result<(), Error> {
    set(netlink, &BTreeSet::new()).map(drop)
}

fn open(netlink: &mut Netlink) -> Option<Device> {
    let opened = tunnel().and_then(|(holder, name)| {
        let all = interfaces(netlink).map_err(io::Error::other)?;
        let found = all.into_iter().find(|(_, link)| link.name == name);
        let (ifindex, _) = found.ok_or(io::ErrorKind::NotFound)?;
        bring_up(netlink, ifindex)?;
        Ok(Device {
            ifindex,
            _holder: holder,
        })
    });
    match opened {
        Ok(device) => Some(device),
        Err(error) => {
            tracing::warn!(
                "routes for routers stay if this process is killed, until the next one starts or `forebay detach` removes them: /dev/net/tun cannot be used ({error}); let this user open it"
            );
            None
        }
    }
}

/// A new tunnel interface and its name.
fn tunnel() -> io::Result<(File, String)> {
    const TUNSETIFF: libc::c_ulong = 0x4004_54ca;
    let holder = File::options()
        .read(true)
        .write(true)
        .open("/dev/net/tun")?;
    // SAFETY: plain integers, arrays and a union of them.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (place, byte) in request.ifr_name.iter_mut().zip(NAME.to_bytes()) {
        *place = byte.cast_signed();
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TUN | libc::IFF_NO_PI) as i16;
    // SAFETY: the request is a whole `ifreq` that lives across the call, which writes the name into it.
    let done = unsafe { libc::ioctl(holder.as_raw_fd(), TUNSETIFF as _, &raw mut request) };
    if done < 0 {
        return Err(io::Error::last_os_error());
    }
    let name = request.ifr_name.iter().take_while(|byte| **byte != 0);
    let name: Vec<u8> = name.map(|byte| byte.cast_unsigned()).collect();
    Ok((holder, String::from_utf8_lossy(&name).into_owned()))
}

/// Up, and without addresses that the kernel would make up and look for duplicates of.
fn bring_up(netlink: &mut Netlink, ifindex: u32) -> io::Result<()> {
    const IFLA_AF_SPEC: u16 = 26;
    const IFLA_INET6_ADDR_GEN_MODE: u16 = 8;
    const NONE: u8 = 1;
    let mut fixed = [0; 16];
    fixed[4..8].copy_from_slice(&ifindex.to_ne_bytes());
    let inet6 = Body::default().attribute(IFLA_INET6_ADDR_GEN_MODE, &[NONE]);
    let family = Body::default().nested(libc::AF_INET6 as u16, &inet6);
    let quiet = Body::new(&fixed).nested(IFLA_AF_SPEC, &family);
    // Fails where there is no IPv6, and then it needs no quieting.
    drop(netlink.request(libc::RTM_SETLINK, 0, &quiet));
    let up = (libc::IFF_UP as u32).to_ne_bytes();
    fixed[8..12].copy_from_slice(&up);
    fixed[12..16].copy_from_slice(&up);
    netlink
        .request(libc::RTM_SETLINK, 0, &Body::new(&fixed))
        .map(drop)
}

fn set(netlink: &mut Netlink, wanted: &BTreeSet<Route>) -> Result<Unset, Error> {
    let mut unset = Unset::new();
    let present = present(netlink)?;
    for route in present.difference(wanted) {
        netlink
            .request(libc::RTM_DELROUTE, 0, &message(*route))
            .map(drop)
            .or_else(|error| ignore(error, libc::ESRCH))
            .map_err(Error::netlink(format!(
                "withdrawing the route for {} from table {TABLE}",
                route.0
            )))?;
    }
    for route in wanted.difference(&present) {
        let flags = libc::NLM_F_CREATE | libc::NLM_F_EXCL;
        let added = netlink.request(libc::RTM_NEWROUTE, flags, &message(*route));
        let what = format!("adding the route for {} to table {TABLE}", route.0);
        note(&mut unset, route.0, added.map(drop), what)?;
    }
    Ok(unset)
}

fn present(netlink: &mut Netlink) -> Result<BTreeSet<Route>, Error> {
    let mut all = BTreeSet::new();
    for family in FAMILIES {
        let routes = of_table(netlink, family, TABLE)?;
        let ours = routes
            .iter()
            .filter(|m| m.len() >= 12 && m[0] == family && m[4] == TABLE && m[5] == ROUTE_PROTOCOL);
        all.extend(ours.filter_map(|m| {
            let find = |wanted| attributes(&m[12..]).find(|(kind, _)| *kind == wanted);
            let to = address(find(RTA_DST)?.1)?;
            let through = find(RTA_OIF).map_or(0, |(_, value)| word(value, 0));
            Some((
                to,
                if m[7] == libc::RTN_UNICAST {
                    through
                } else {
                    0
                },
            ))
        }));
    }
    Ok(all)
}

fn message((to, device): Route) -> Body {
    let link_v4 = to.is_ipv4() && device != 0;
    let mut fixed = [0; 12];
    fixed[0] = family_of(to);
    fixed[1] = if to.is_ipv4() { 32 } else { 128 };
    fixed[4] = TABLE;
    fixed[5] = ROUTE_PROTOCOL;
    fixed[6] = if link_v4 {
        libc::RT_SCOPE_LINK
    } else {
        libc::RT_SCOPE_UNIVERSE
    };
    fixed[7] = if device == 0 {
        libc::RTN_BLACKHOLE
    } else {
        libc::RTN_UNICAST
    };
    let body = Body::new(&fixed).attribute(RTA_DST, &octets(to));
    if device == 0 {
        body
    } else {
        body.attribute(RTA_OIF, &device.to_ne_bytes())
    }
}
