//! Feeds `l4` with facts and carries out what it wants: the one object that the application holds.
//!
//! Synchronous; belongs on a thread of its own (a change may block 100 ms while a half rests), in the network
//! namespace of its [`NodePrivileges`]. The application calls [`Driver::tick`] at [`Driver::next_tick`] or
//! earlier. A failure leaves the tables at the last finished operation; the next tick tries again.

mod other_side;
mod routing;
mod show;
mod targets;
mod ways;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use gateway_common::hash::Key;

use self::routing::own_reach;
use super::attach::Attachment;
use super::neighbours::ForwardMode;
use super::prober::{self, CountForeign, Link, Prober};
use super::pulse::{self, Pulse};
use super::{
    Error, LocalAddresses, NodePrivileges, SessionTags, SharedTables, ShieldStatus, Unset,
    listener_mss, sys,
};
use crate::l4::diff::{Image, MapOp, diff};
use crate::l4::liveness::Settings as ProbeTimes;
use crate::l4::paths::Paths;
use crate::l4::tables::{Planner, Reach, Settings};
use crate::snapshot::{BindKey, ObjectKey, Snapshot};

/// How often neighbours and local addresses are looked at.
const REFRESH: Duration = Duration::from_secs(1);
/// The same while a listed node is not resolved.
const REFRESH_UNRESOLVED: Duration = Duration::from_millis(100);

/// How often the routes are looked at: whoever takes `lo` down takes them away.
const HOLD: Duration = Duration::from_secs(5);

/// How often the prober's reports are looked at.
const LOOK: Duration = Duration::from_millis(50);

/// What the driver is told at its start.
#[derive(Clone, Debug)]
pub struct DriverSettings {
    /// `--node-name`.
    pub node_name: String,
    /// `hash-seed` of the cluster's keys.
    pub hash_key: Key,
    /// `--forward`.
    pub forward: ForwardMode,
    /// `--tunnel-port`.
    pub tunnel_port: u16,
    /// `--probe-port`.
    pub probe_port: u16,
    /// Key of the probes, then the one before it; zero for none.
    pub probe_keys: [Key; 2],
    /// `--drain-timeout`.
    pub drain_timeout: Duration,
}

/// See the module.
pub struct Driver {
    privileges: Box<dyn NodePrivileges>,
    shared: SharedTables,
    hash_key: Key,
    forward: ForwardMode,
    planner: Planner,
    started: Instant,
    /// What the maps say, kept in step with them.
    image: Image,
    reach: BTreeMap<IpAddr, Reach>,
    own_reach: Reach,
    local: LocalAddresses,
    routes: Option<BTreeSet<IpAddr>>,
    /// Those of them that the kernel refused.
    unset: Unset,
    /// How they are kept from NAT.
    shield: ShieldStatus,
    next_hold: Instant,
    /// What routers are told of, if it is known.
    exported: Option<BTreeSet<IpAddr>>,
    /// Those of them that the kernel refused.
    unexported: Unset,
    pulse: Pulse,
    beating: bool,
    announced: BTreeSet<IpAddr>,
    /// Others may have announced in this node's place.
    doubted: bool,
    proxy_alive: bool,
    draining: bool,
    have_snapshot: bool,
    dirty: bool,
    next_refresh: Instant,
    /// When the prober's reports are looked at next: fixed, so that whoever asks for the status often delays nothing.
    next_look: Instant,
    last_apply: Duration,
    /// The last snapshot, to judge its VIPs again.
    snapshot: Snapshot,
    /// VIPs that this node may not serve, and why.
    refused: BTreeMap<BindKey, String>,
    renewed: bool,
    prober: Option<Prober>,
    /// With `--forward auto`, while nodes are probed.
    paths: Option<Paths>,
    written: bool,
}

impl Driver {
    /// Takes over what the maps say. Nothing is written before the first snapshot.
    ///
    /// # Errors
    /// The local addresses cannot be read.
    pub fn new(
        mut privileges: Box<dyn NodePrivileges>,
        settings: &DriverSettings,
        now: Instant,
    ) -> Result<Self, Error> {
        let l4 = Settings {
            hash_key: settings.hash_key,
            encapsulate_always: settings.forward == ForwardMode::Udp,
            tunnel_port: settings.tunnel_port,
            probe_port: settings.probe_port,
            probe_keys: settings.probe_keys,
            ticks_per_second: sys::ticks_per_second(),
            drain_timeout: settings.drain_timeout,
        };
        let local = privileges.local_addresses()?;
        let own_address = local.uplink.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
        let mut planner = Planner::new(l4, &settings.node_name, own_address);
        let image = privileges.image();
        planner.adopt(&image, Duration::ZERO);
        let own_reach = own_reach(privileges.attachments());
        planner.set_own_reach(own_reach);
        planner.set_shared(local.configured.clone());
        planner.set_frames(local.frames.clone());
        Ok(Self {
            shared: privileges.shared(),
            hash_key: settings.hash_key,
            privileges,
            forward: settings.forward,
            planner,
            started: now,
            image,
            reach: BTreeMap::new(),
            own_reach,
            local,
            routes: None,
            unset: Unset::new(),
            shield: ShieldStatus::default(),
            next_hold: now + HOLD,
            exported: None,
            unexported: Unset::new(),
            pulse: Pulse::new(now),
            beating: true,
            announced: BTreeSet::new(),
            doubted: false,
            proxy_alive: false,
            draining: false,
            have_snapshot: false,
            dirty: false,
            next_refresh: now,
            next_look: now,
            last_apply: Duration::ZERO,
            snapshot: Snapshot::default(),
            refused: BTreeMap::new(),
            renewed: false,
            prober: None,
            paths: None,
            written: false,
        })
    }

    /// Probes the other nodes from now on, and lets them know how many connections this node holds of rows that it
    /// does not own, as `count` says. To be called before the first snapshot.
    ///
    /// # Errors
    /// The system has no thread left.
    pub fn start_probing(
        &mut self,
        times: ProbeTimes,
        count: Box<CountForeign>,
    ) -> std::io::Result<()> {
        self.prober = Some(Prober::start(times, self.shared(), count)?);
        self.planner.set_probing();
        self.start_asking(times, prober::seed());
        Ok(())
    }

    /// Other keys of the probes.
    ///
    /// # Errors
    /// As [`Self::on_snapshot`].
    pub fn set_probe_keys(&mut self, keys: [Key; 2], now: Instant) -> Result<(), Error> {
        if self.planner.settings().probe_keys == keys {
            return Ok(());
        }
        self.planner.set_probe_keys(keys);
        self.dirty = true;
        self.tick(now)
    }

    /// Whether tables were computed since this was last asked.
    pub fn take_written(&mut self) -> bool {
        std::mem::take(&mut self.written)
    }

    /// What the prober shares, for whoever beats.
    #[must_use]
    pub fn link(&self) -> Option<Arc<Link>> {
        self.prober.as_ref().map(Prober::link)
    }

    /// Socket group of each Gateway: make the listening sockets and [`Self::set_listeners`] with them before
    /// the snapshot comes, so that no VIP is without a socket.
    pub fn groups(&mut self, snapshot: &Snapshot) -> BTreeMap<ObjectKey, u16> {
        self.planner.groups(snapshot)
    }

    /// The listening sockets of one group.
    ///
    /// # Errors
    /// See [`NodePrivileges::set_listeners`].
    pub fn set_listeners(&mut self, group: u16, sockets: &[BorrowedFd<'_>]) -> Result<(), Error> {
        self.privileges.set_listeners(group, sockets)
    }

    /// One UDP socket on a VIP, for the proxy.
    ///
    /// # Errors
    /// See [`NodePrivileges::open_udp`].
    pub fn open_udp(&mut self, vip: SocketAddr) -> Result<OwnedFd, Error> {
        self.privileges.open_udp(vip)
    }

    /// Rows, alive words and the heartbeat, for whoever beats.
    #[must_use]
    pub fn shared(&self) -> SharedTables {
        self.shared.clone()
    }

    /// The table of UDP sessions, emptied: those of an earlier process are gone.
    #[must_use]
    pub fn session_tags(&self) -> SessionTags {
        SessionTags::new(&self.shared, self.hash_key)
    }

    /// What flows are hashed with.
    #[must_use]
    pub fn hash_key(&self) -> Key {
        self.hash_key
    }

    /// Takes a snapshot and writes what it changes.
    ///
    /// # Errors
    /// What could not be read or written; the next tick tries again.
    pub fn on_snapshot(&mut self, snapshot: &Snapshot, now: Instant) -> Result<(), Error> {
        self.snapshot = snapshot.clone();
        self.admit(now)?;
        self.have_snapshot = true;
        self.next_refresh = now;
        self.tick(now)
    }

    /// This node's own decision to drain, or to stop doing so.
    ///
    /// # Errors
    /// As [`Self::on_snapshot`].
    pub fn set_draining(&mut self, draining: bool, now: Instant) -> Result<(), Error> {
        self.draining = draining;
        self.planner.set_draining(draining, self.time(now));
        self.dirty = true;
        self.tick(now)
    }

    /// Whether the local proxy is alive: without it this node has no local routes for the VIPs.
    ///
    /// # Errors
    /// As [`Self::on_snapshot`].
    pub fn set_proxy_alive(&mut self, alive: bool, now: Instant) -> Result<(), Error> {
        self.dirty |= self.proxy_alive != alive;
        self.proxy_alive = alive;
        self.tick(now)
    }

    /// The proxy's last socket of a VIP that left the configuration is gone.
    ///
    /// # Errors
    /// As [`Self::on_snapshot`].
    pub fn sockets_gone(&mut self, vip: BindKey, now: Instant) -> Result<(), Error> {
        self.planner.sockets_gone(vip);
        self.dirty = true;
        self.tick(now)
    }

    /// VIPs that left the configuration and wait for [`Self::sockets_gone`] or the deadline.
    #[must_use]
    pub fn draining_vips(&self) -> Vec<BindKey> {
        self.planner.vips().draining().collect()
    }

    /// `TCP_MAXSEG` for listening sockets, none if they need none.
    #[must_use]
    pub fn listener_mss(&self) -> Option<u32> {
        let there = |uplink: &&Attachment| uplink.ifindex != 0;
        let uplinks = self.privileges.attachments().iter().filter(there);
        let mtu = uplinks.map(|a| a.mtu).min()?;
        let nodes: Vec<IpAddr> = self
            .planner
            .listed()
            .iter()
            .map(|node| node.member.address)
            .collect();
        let vips_v6 = self.planner.vips().addresses().iter().any(IpAddr::is_ipv6);
        listener_mss(mtu, &nodes, vips_v6)
    }

    /// When [`Self::tick`] has something to do at the latest.
    #[must_use]
    pub fn next_tick(&self) -> Instant {
        let timeout = self.planner.poll_timeout().map(|at| self.started + at);
        let next = timeout.map_or(self.next_refresh, |at| at.min(self.next_refresh));
        let next = match &self.exported {
            Some(known) if !known.is_empty() => next.min(Instant::now() + pulse::LOOK),
            _ => next,
        };
        // Reports are looked at as often as they come.
        let reports = self
            .prober
            .as_ref()
            .filter(|_| self.planner.listed().len() > 1);
        reports.map_or(next, |_| next.min(self.next_look))
    }

    /// Lets time pass: ends what has ended, looks at neighbours and addresses, writes what changed.
    ///
    /// # Errors
    /// What could not be read or written.
    pub fn tick(&mut self, now: Instant) -> Result<(), Error> {
        self.next_look = now + LOOK;
        // Also while there is no agent: a timeout that stands would be asked for again at once.
        let time = self.time(now);
        if self.planner.poll_timeout().is_some_and(|at| at <= time) {
            self.planner.handle_timeout(time);
            self.dirty = true;
        }
        let result = match self.renew(now) {
            // The caller hands the sockets over first: tables that lead to none would refuse connections.
            Ok(true) => Ok(()),
            Ok(false) => self.go_on(now),
            Err(error) => Err(error),
        };
        if matches!(result, Err(Error::AgentGone { .. })) {
            self.next_refresh = now + REFRESH_UNRESOLVED;
        }
        result
    }

    fn go_on(&mut self, now: Instant) -> Result<(), Error> {
        if !self.have_snapshot {
            self.next_refresh = now + REFRESH;
            return Ok(());
        }
        if self.next_refresh <= now {
            // Set first: an error must not make the caller spin.
            self.next_refresh = now + REFRESH;
            self.refresh(now)?;
            self.hold_routes(now)?;
        }
        // A failure is tried again when the tables are written next.
        self.dirty |= self.feel_pulse(now) && !self.planner.routed().is_empty();
        if let Some(link) = self.link() {
            let time = self.time(now);
            if link.take_gap() {
                self.planner.after_gap(time);
                // Whoever beats has put rows in transition.
                self.image.rows = self.shared.rows();
                self.dirty = true;
            }
            self.dirty |= self.planner.observe(&link.report(), time);
            self.ask_paths(&link, now);
        }
        if self.dirty {
            let link = self.link();
            link.iter().for_each(|link| link.begin_write());
            self.written = true;
            self.write()?;
            self.dirty = false;
            link.iter().for_each(|link| link.end_write(self.targets()));
        }
        Ok(())
    }

    /// Withdraws the local routes: the daemon stops, the programs go on.
    ///
    /// # Errors
    /// Netlink said no.
    pub fn shutdown(mut self) -> Result<(), Error> {
        self.privileges.set_exported_routes(&BTreeSet::new())?;
        self.privileges.set_local_routes(&BTreeSet::new()).map(drop)
    }

    fn time(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.started)
    }

    fn refresh(&mut self, now: Instant) -> Result<(), Error> {
        let local = self.privileges.local_addresses()?;
        if local != self.local {
            self.planner.set_shared(local.configured.clone());
            self.planner.set_frames(local.frames.clone());
            self.local = local;
            self.admit(now)?;
        }
        let own_reach = own_reach(self.privileges.attachments());
        if own_reach != self.own_reach {
            self.planner.set_own_reach(own_reach);
            self.own_reach = own_reach;
            self.dirty = true;
        }
        let others: BTreeSet<IpAddr> = self
            .planner
            .listed()
            .iter()
            .filter(|node| !node.own)
            .map(|node| node.member.address)
            .collect();
        let reach = self.privileges.reach(&others)?;
        if !others
            .iter()
            .all(|node| reach.get(node).is_some_and(|r| r.resolved))
        {
            self.next_refresh = now + REFRESH_UNRESOLVED;
        }
        if reach != self.reach {
            self.planner.set_reach(reach.clone());
            self.reach = reach;
            self.dirty = true;
        }
        Ok(())
    }

    fn write(&mut self) -> Result<(), Error> {
        let begun = Instant::now();
        let desired = self.planner.desired();
        let ops = diff(&self.image, &desired);
        self.withdraw()?;
        // An interface that comes back has no program at first, and the stack would reset what other nodes hold.
        let wanted = if self.proxy_alive && self.own_reach.ifindex != 0 {
            self.planner.routes()
        } else {
            BTreeSet::new()
        };
        // New VIPs are local before packets for them come through, old ones until they do not.
        if let Some(routes) = &self.routes {
            let both = routes.union(&wanted).copied().collect();
            self.set_routes(both)?;
        }
        let mut took = begun.elapsed();
        for op in &ops {
            let begun = Instant::now();
            match op {
                MapOp::Rows(rows) => self.shared.store_rows(rows),
                other => self.privileges.apply(other)?,
            }
            self.image.apply(op);
            took += begun.elapsed();
        }
        self.last_apply = took;
        self.privileges.tables_written()?;
        self.set_routes(wanted)?;
        let doubted = self.planner.own_episode();
        if self.doubted && !doubted {
            // Who did not hear us may have spoken in our place: the link is told again.
            self.announced.clear();
        }
        self.doubted = doubted;
        let announced = self.planner.announced();
        for address in announced.difference(&self.announced).copied() {
            // Nobody may be listening yet (an interface that is down): the next change of announcer speaks again.
            if let Err(error) = self.privileges.announce(address) {
                tracing::warn!(%address, %error, "the link was not told that this address is here");
            }
        }
        self.announced = announced;
        self.export()
    }
}
