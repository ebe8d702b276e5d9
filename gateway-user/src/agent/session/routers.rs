//! What routers are told of: only as long as the heart of the `run` that wants it beats.
//!
//! A `run` that is killed or hangs cannot withdraw anything, so it is done here.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Instant;

use super::{Answer, Session, failed};
use crate::agent::message::{Refusal, Reply};
use crate::datapath::pulse::{self, Pulse};
use crate::datapath::{ShieldStatus, Unset};

/// What one `run` after the other wants, and what is so.
#[derive(Debug)]
pub(super) struct Routers {
    wanted: BTreeSet<IpAddr>,
    told: BTreeSet<IpAddr>,
    /// Those of them that the kernel refused.
    unset: Unset,
    /// Addresses that are local here.
    local: BTreeSet<IpAddr>,
    pulse: Pulse,
}

impl Routers {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            wanted: BTreeSet::new(),
            told: BTreeSet::new(),
            unset: Unset::new(),
            local: BTreeSet::new(),
            pulse: Pulse::new(now),
        }
    }
}

impl Session {
    /// Other addresses are local from now on: what is not is not told of.
    pub(super) fn localised(&mut self, addresses: &BTreeSet<IpAddr>) {
        self.routers.local.clone_from(addresses);
        self.routers
            .wanted
            .retain(|address| addresses.contains(address));
    }

    pub(super) fn exported(
        &mut self,
        addresses: BTreeSet<IpAddr>,
        now: Instant,
    ) -> Result<Answer, Refusal> {
        self.look(now, std::time::Duration::ZERO)?;
        self.policy.routes(&addresses, &self.facts.configured)?;
        if let Some(stranger) = addresses.difference(&self.routers.local).next() {
            return Err(Refusal::denied(format!(
                "routers are not told of {stranger}: it is not local here"
            )));
        }
        self.routers.wanted = addresses;
        self.tell_routers(now)?;
        Ok(Reply::Routes(self.routers.unset.clone()).into())
    }

    /// Puts right what keeps local addresses from NAT, and says how it is. Called from time to time, also while there is no
    /// `run`.
    ///
    /// # Errors
    /// It cannot be asked for.
    pub fn hold_shield(&mut self) -> Result<ShieldStatus, Refusal> {
        self.privileges.shield().map_err(failed)
    }

    /// When [`Self::tell_routers`] is to be called at the latest, if it matters.
    #[must_use]
    pub fn next_look(&self, now: Instant) -> Option<Instant> {
        let routers = &self.routers;
        (!routers.wanted.is_empty() || !routers.told.is_empty()).then(|| now + pulse::LOOK)
    }

    /// Looks whether the heart beats, and tells routers of what is wanted if so, else of nothing.
    ///
    /// # Errors
    /// What the kernel refused; calling again tries again.
    pub fn tell_routers(&mut self, now: Instant) -> Result<(), Refusal> {
        if self.next_look(now).is_none() {
            return Ok(());
        }
        let beat = self.privileges.shared().last_beat();
        let routers = &mut self.routers;
        let none = BTreeSet::new();
        let right = match routers.pulse.look(beat, now) {
            true => &routers.wanted,
            false => &none,
        };
        if *right == routers.told && routers.unset.is_empty() {
            return Ok(());
        }
        let unset = self.privileges.set_exported_routes(right);
        routers.unset = unset.map_err(failed)?;
        tracing::info!(
            addresses = right.len(),
            wanted = routers.wanted.len(),
            "routes for routers"
        );
        routers.told = right.clone();
        Ok(())
    }
}
