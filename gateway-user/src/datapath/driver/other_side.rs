//! What a driver does because its privileges may be another process's: that one may be started anew, keep sockets of
//! an earlier process, and refuse some of the VIPs.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::time::Instant;

use super::Driver;
use crate::datapath::Error;
use crate::l4::tables::ListedNode;
use crate::snapshot::{BindKey, Transport};

impl Driver {
    /// Listening sockets that an earlier process left, by group.
    ///
    /// # Errors
    /// See [`crate::datapath::NodePrivileges::inherit`].
    pub fn inherit(&mut self) -> Result<BTreeMap<u16, Vec<OwnedFd>>, Error> {
        self.privileges.inherit()
    }

    /// Whether the privileged side was started anew since this was last asked: it has no listening sockets, and
    /// [`Self::shared`] may be others.
    pub fn take_renewed(&mut self) -> bool {
        std::mem::take(&mut self.renewed)
    }

    /// VIPs of the last snapshot that this node may not serve, and why.
    #[must_use]
    pub fn refused(&self) -> &BTreeMap<BindKey, String> {
        &self.refused
    }

    /// Gives the planner the snapshot without the VIPs that this node may not serve: one of them must not hold up the
    /// others.
    pub(super) fn admit(&mut self, now: Instant) -> Result<(), Error> {
        let binds = self.snapshot.binds.keys().copied();
        let addresses = self.snapshot.addresses.keys();
        let addresses = addresses.map(|address| whole(*address));
        let vips: Vec<BindKey> = binds.chain(addresses).collect();
        let refused = self.privileges.refused(&vips)?;
        for (vip, why) in &refused {
            if vip.port != 0 && self.refused.get(vip) != Some(why) {
                tracing::error!(listener = %vip, "{why}");
            }
        }
        let mut admitted = self.snapshot.clone();
        admitted.binds.retain(|key, _| !refused.contains_key(key));
        admitted
            .addresses
            .retain(|address, _| !refused.contains_key(&whole(*address)));
        self.refused = refused;
        self.planner.on_snapshot(&admitted, self.time(now));
        if let Some(why) = self.misnamed() {
            tracing::warn!("{why}");
        }
        self.dirty = true;
        Ok(())
    }

    /// That the list has this machine under another name, if so: then this node owns nothing.
    pub(super) fn misnamed(&self) -> Option<String> {
        let here =
            |node: &&ListedNode| !node.own && self.local.configured.contains(&node.member.address);
        let node = self.planner.listed().iter().find(here)?;
        let (name, address) = (&node.member.name, node.member.address);
        Some(format!(
            "the list of replicas calls the node at {address} {name}, which is this machine: give it that name with --node-name, or correct nodeName in its EndpointSlice"
        ))
    }

    /// A privileged side that was started anew may have new tables; says whether it was.
    pub(super) fn renew(&mut self, now: Instant) -> Result<bool, Error> {
        if !self.privileges.renewed()? {
            return Ok(false);
        }
        tracing::info!("the agent is back");
        self.shared = self.privileges.shared();
        self.image = self.privileges.image();
        if let Some(link) = self.link() {
            link.set_tables(self.shared());
        }
        self.routes = None;
        self.exported = None;
        self.reach.clear();
        self.announced.clear();
        self.renewed = true;
        self.dirty = true;
        self.next_refresh = now;
        Ok(true)
    }
}

/// An address as a whole, as the privileged side is asked for it.
fn whole(address: IpAddr) -> BindKey {
    BindKey {
        address,
        port: 0,
        transport: Transport::Tcp,
    }
}
