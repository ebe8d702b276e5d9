//! The routes of this node: what is local here, and what routers are told.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Instant;

use super::{Driver, HOLD};
use crate::datapath::attach::Attachment;
use crate::datapath::{Error, Unset};
use crate::l4::tables::Reach;
use crate::snapshot::BindKey;

impl Driver {
    pub(super) fn set_routes(&mut self, wanted: BTreeSet<IpAddr>) -> Result<(), Error> {
        if self.routes.as_ref() == Some(&wanted) {
            return Ok(());
        }
        self.make_local(&wanted)?;
        self.routes = Some(wanted);
        Ok(())
    }

    fn make_local(&mut self, wanted: &BTreeSet<IpAddr>) -> Result<(), Error> {
        let unset = self.privileges.set_local_routes(wanted)?;
        tell(&self.unset, &unset);
        self.unset = unset;
        self.shield = self.privileges.shield()?;
        Ok(())
    }

    /// Puts routes back that somebody took away, and what keeps them from NAT, and tries those again that the kernel refused.
    pub(super) fn hold_routes(&mut self, now: Instant) -> Result<(), Error> {
        self.shield = self.privileges.shield()?;
        if self.next_hold > now && self.unset.is_empty() && self.unexported.is_empty() {
            return Ok(());
        }
        self.next_hold = now + HOLD;
        if let Some(routes) = self.routes.clone() {
            self.make_local(&routes)?;
        }
        if let Some(exported) = self.exported.clone() {
            let unexported = self.privileges.set_exported_routes(&exported)?;
            tell(&self.unexported, &unexported);
            self.unexported = unexported;
        }
        Ok(())
    }

    /// VIPs of the last snapshot whose address the kernel does not take, and why.
    pub fn unserved(&self) -> impl Iterator<Item = (BindKey, &str)> {
        let binds = self.snapshot.binds.keys();
        binds.filter_map(|vip| Some((*vip, self.unset.get(&vip.address)?.as_str())))
    }

    /// Why routers are told of no address here, if so.
    pub(super) fn withheld(&self) -> Option<&'static str> {
        if !self.proxy_alive || !self.beating {
            return Some("the proxy is not alive");
        }
        self.planner.unfit_for_routers()
    }

    /// Takes a look at the proxy's heart; whether it started or stopped beating.
    pub(super) fn feel_pulse(&mut self, now: Instant) -> bool {
        let before = self.beating;
        self.beating = self.pulse.look(self.shared.last_beat(), now);
        self.beating != before
    }

    /// Tells routers of no address any more that they are not to know of: before anything else changes, so that they turn
    /// to other nodes first.
    pub(super) fn withdraw(&mut self) -> Result<(), Error> {
        let wanted = self.to_export();
        match &self.exported {
            None => Ok(()),
            Some(known) => {
                let rest = known.intersection(&wanted).copied().collect();
                self.set_exported(rest)
            }
        }
    }

    /// Tells routers of all addresses that they are to know of.
    pub(super) fn export(&mut self) -> Result<(), Error> {
        self.set_exported(self.to_export())
    }

    pub(super) fn set_exported(&mut self, wanted: BTreeSet<IpAddr>) -> Result<(), Error> {
        if self.exported.as_ref() == Some(&wanted) {
            return Ok(());
        }
        let withheld = self.withheld().filter(|_| wanted.is_empty());
        let unexported = self.privileges.set_exported_routes(&wanted)?;
        tell(&self.unexported, &unexported);
        self.unexported = unexported;
        if self.exported.iter().flatten().next().is_some() || !wanted.is_empty() {
            tracing::info!(addresses = wanted.len(), withheld, "routes for routers");
        }
        self.exported = Some(wanted);
        Ok(())
    }

    fn to_export(&self) -> BTreeSet<IpAddr> {
        match self.withheld() {
            Some(_) => BTreeSet::new(),
            None => self.planner.routed(),
        }
    }
}

/// Says in the log what has changed.
fn tell(before: &Unset, now: &Unset) {
    for (address, why) in now {
        if !before.contains_key(address) {
            tracing::error!(%address, "{why}");
        }
    }
    for address in before.keys().filter(|address| !now.contains_key(*address)) {
        tracing::info!(%address, "the kernel takes this address now, or it is not wanted any more");
    }
}

/// How this node's own frames leave: by its first uplink that is there.
pub(super) fn own_reach(uplinks: &[Attachment]) -> Reach {
    let first = uplinks.iter().find(|uplink| uplink.ifindex != 0);
    first.map_or_else(Reach::default, |uplink| Reach {
        source_mac: uplink.mac,
        ifindex: uplink.ifindex,
        resolved: true,
        ..Reach::default()
    })
}
