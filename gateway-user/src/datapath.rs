//! The privileged shell around the kernel's tables: loads, attaches, pins, writes, watches neighbours.
//!
//! [`Driver`] is what the application holds: it feeds `l4` with facts and has its operations carried out. All
//! that needs privileges goes through the trait [`NodePrivileges`]; [`Agent`] does it in this process. What
//! only touches rows, alive bits and the heartbeat goes through [`SharedTables`], which needs none. This module
//! decides nothing about who owns what; it is the only one of the daemon with `unsafe` code.

#![allow(
    unsafe_code,
    reason = "mmapped maps, bpf(2) and raw sockets; each block says why it is sound"
)]

pub mod agent;
pub mod asking;
pub mod attach;
mod batch;
pub mod counts;
pub mod driver;
pub mod error;
pub mod exported;
pub mod gratuitous;
pub mod listening;
pub mod lock;
pub mod look;
pub mod mmap;
pub mod neighbours;
pub mod netfilter;
pub mod netlink;
pub mod object;
pub mod offer;
pub mod pins;
pub mod prober;
pub mod pulse;
pub mod routes;
pub mod status;
mod sys;
pub mod tags;
pub mod trace;
pub mod trial;
pub mod vip_socket;
pub mod writer;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{BorrowedFd, OwnedFd};

use gateway_common::encap::{OVERHEAD_V4, OVERHEAD_V6};

pub use agent::{Agent, AgentSettings};
pub use asking::PathQuestion;
pub use attach::{AttachMode, AttachState, Attachment, attach_pass};
pub use driver::{Driver, DriverSettings};
pub use error::Error;
pub use lock::Lock;
pub use mmap::SharedTables;
pub use neighbours::ForwardMode;
pub use netfilter::ShieldStatus;
pub use pins::{detach, open_shared};
pub use routes::Unset;
pub use status::DatapathStatus;
pub use sys::{
    Owed, PeerCredentials, interface_name, is_linux, keep_freed_memory, owed, peer_credentials,
    return_freed_memory, settle_memory,
};
pub use tags::{SessionTags, Tag};
pub use vip_socket::open_udp;

use crate::l4::diff::{Image, MapOp};
use crate::l4::tables::{Frames, Reach};
use crate::snapshot::BindKey;

/// Addresses on this node's interfaces.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct LocalAddresses {
    /// All addresses configured on an interface of this node.
    pub configured: BTreeSet<IpAddr>,
    /// The first address of an uplink.
    pub uplink: Option<IpAddr>,
    /// Which frames on the uplinks are for this node.
    pub frames: Frames,
}

/// Everything that needs privileges on this node: the border between `agent` and `run`.
pub trait NodePrivileges: Send {
    /// How the programs are attached to each uplink.
    fn attachments(&self) -> &[Attachment];

    /// What the maps say now (live halves).
    fn image(&self) -> Image;

    /// Carries out one operation on the tables; blocks until a half has rested (at most 100 ms).
    ///
    /// # Errors
    /// The operation that the kernel refused.
    fn apply(&mut self, op: &MapOp) -> Result<(), Error>;

    /// Hands the listening sockets of one group to `sk_lookup`, at most eight; replaces those set before.
    ///
    /// # Errors
    /// No such group, too many sockets, or a socket that is not a listening TCP socket.
    fn set_listeners(&mut self, group: u16, sockets: &[BorrowedFd<'_>]) -> Result<(), Error>;

    /// Opens one UDP socket on a VIP for the proxy; a port below 1024 needs CAP_NET_BIND_SERVICE.
    ///
    /// # Errors
    /// The port is taken or not permitted.
    fn open_udp(&mut self, vip: SocketAddr) -> Result<OwnedFd, Error>;

    /// All that was to be written is written: programs of another version, which went on with their own maps so far, give
    /// way now. Without such programs nothing happens.
    ///
    /// # Errors
    /// What the kernel refused; calling again goes on from there.
    fn tables_written(&mut self) -> Result<(), Error>;

    /// The tables that need no privilege once they are mapped.
    fn shared(&self) -> SharedTables;

    /// Sums of all cells of the counters over all CPUs, see [`counts::Counts::of`].
    fn counters(&self) -> Vec<u64>;

    /// How the given node addresses are reached; asks the kernel to resolve those that are not known yet.
    ///
    /// # Errors
    /// Netlink said no.
    fn reach(&mut self, nodes: &BTreeSet<IpAddr>) -> Result<BTreeMap<IpAddr, Reach>, Error>;

    /// Addresses on this node's interfaces; also sets `arp_ignore` and `arp_announce` on interfaces that are
    /// new since the last call.
    ///
    /// # Errors
    /// Netlink said no.
    fn local_addresses(&mut self) -> Result<LocalAddresses, Error>;

    /// Makes exactly these addresses local by routes on `lo`, by adding and removing own routes only; returns those that
    /// cannot be. Their packets are kept from NAT as long as they are local.
    ///
    /// # Errors
    /// Netlink said no to this process, or does not let a route go.
    fn set_local_routes(&mut self, addresses: &BTreeSet<IpAddr>) -> Result<Unset, Error>;

    /// Puts right what keeps local addresses from NAT, if it is time to look at it, and says how it is.
    ///
    /// # Errors
    /// It cannot be asked for.
    fn shield(&mut self) -> Result<ShieldStatus, Error> {
        Ok(ShieldStatus::default())
    }

    /// Makes exactly these addresses known to routers, by host routes in the table [`exported::TABLE`] that routing daemons
    /// read; returns those that cannot be.
    ///
    /// # Errors
    /// Netlink said no to this process, or does not let a route go.
    fn set_exported_routes(&mut self, addresses: &BTreeSet<IpAddr>) -> Result<Unset, Error>;

    /// Tells the link that `address` is at this node now (gratuitous ARP or unsolicited neighbour advertisement on every
    /// uplink).
    ///
    /// # Errors
    /// The packet socket said no.
    fn announce(&mut self, address: IpAddr) -> Result<(), Error>;

    /// Asks nodes on our link by way of a MAC rewrite whether frames for a VIP reach them. A question that cannot be sent is
    /// as one that is lost.
    ///
    /// # Errors
    /// The privileged side refuses, or there is none just now.
    fn ask_paths(&mut self, questions: &[PathQuestion]) -> Result<(), Error>;

    /// Whether the other side was started anew since this was last asked: then whatever was read from it is stale,
    /// and it has lost what it was told.
    ///
    /// # Errors
    /// There is no other side just now.
    fn renewed(&mut self) -> Result<bool, Error> {
        Ok(false)
    }

    /// Listening sockets that an earlier process left, by group: connections wait in them.
    ///
    /// # Errors
    /// They cannot be fetched.
    fn inherit(&mut self) -> Result<BTreeMap<u16, Vec<OwnedFd>>, Error> {
        Ok(BTreeMap::new())
    }

    /// Which of these VIPs this node may not serve, and why.
    ///
    /// # Errors
    /// They cannot be judged.
    fn refused(&mut self, _vips: &[BindKey]) -> Result<BTreeMap<BindKey, String>, Error> {
        Ok(BTreeMap::new())
    }
}

/// `TCP_MAXSEG` for the listening sockets of a node whose uplink has `mtu`: always leaves room for the tunnel header, over
/// IPv6 if a node is reached so (1424 at MTU 1500 over IPv4), and for the larger header of clients by IPv6 if there is a
/// VIP for them. None while only one node is listed: nothing is forwarded then.
#[must_use]
pub fn listener_mss(mtu: u32, nodes: &[IpAddr], vips_v6: bool) -> Option<u32> {
    const TCP: u32 = 20;
    const IPV4: u32 = 20;
    const IPV6: u32 = 40;
    if nodes.len() < 2 {
        return None;
    }
    let header = if vips_v6 { IPV6 } else { IPV4 };
    let tunnel = if nodes.iter().any(IpAddr::is_ipv6) {
        OVERHEAD_V6
    } else {
        OVERHEAD_V4
    };
    Some(mtu.saturating_sub(header + TCP + tunnel).max(536))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mss_leaves_room_for_the_tunnel_when_there_is_somebody_to_forward_to() {
        let v4 = [IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 0, 2])];
        let v6 = ["2001:db8::1", "2001:db8::2"].map(|text| text.parse().unwrap());
        assert_eq!(listener_mss(1500, &v4[..1], true), None);
        assert_eq!(listener_mss(1500, &v4, false), Some(1424));
        assert_eq!(listener_mss(1500, &v4, true), Some(1404));
        assert_eq!(listener_mss(1500, &v6, true), Some(1384));
        assert_eq!(listener_mss(9000, &v4, false), Some(8924));
        assert_eq!(listener_mss(500, &v4, false), Some(536));
    }
}
