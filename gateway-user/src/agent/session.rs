//! Carries out one request after the other, each only if the rules allow it.
//!
//! Holds what outlives a `run`: the listening sockets that it handed over. They stay open when it ends, so that
//! connections queue up and the next `run` takes them, and are closed when nobody comes for them.

mod routers;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use gateway_common::abi::{MAX_NODES, vip_flag};

use self::routers::Routers;
use super::limit::Bucket;
use super::message::{
    self, Claim, Hello, Refusal, RefusalKind, Reply, Request, SOURCES_AT_ONCE, Welcome,
};
use super::policy::{Allowed, Facts, Policy};
use super::wire::Frame;
use crate::datapath::{Error, ForwardMode, NodePrivileges, PathQuestion, listening};
use crate::l4::diff::MapOp;
use crate::l4::vips::MAX_VIPS;
use crate::snapshot::Transport;

/// How old the list of this node's addresses may be.
const FRESH: Duration = Duration::from_secs(1);
/// How often the directory of manifests is read again at most.
const READ_AGAIN: Duration = Duration::from_millis(200);

/// Reads anew which addresses may be VIPs; none if that is not possible now.
pub type Source = Box<dyn FnMut() -> Option<Allowed> + Send>;

/// Descriptors of the tables that a `run` maps and writes itself: rows, alive words, heartbeat, tags of UDP
/// sessions.
pub type Shared = [OwnedFd; 4];

/// What goes back.
#[derive(Debug)]
pub struct Answer {
    /// The head.
    pub reply: Reply,
    /// The tail.
    pub tail: Vec<u8>,
    /// Descriptors.
    pub descriptors: Vec<OwnedFd>,
}

impl From<Reply> for Answer {
    fn from(reply: Reply) -> Self {
        Self {
            reply,
            tail: Vec::new(),
            descriptors: Vec::new(),
        }
    }
}

#[derive(Debug)]
struct Kept {
    sockets: Vec<OwnedFd>,
    /// A VIP table has led to this group.
    used: bool,
}

/// See the module.
pub struct Session {
    privileges: Box<dyn NodePrivileges>,
    shared: Shared,
    forward: ForwardMode,
    policy: Policy,
    source: Option<Source>,
    read_at: Instant,
    facts: Facts,
    facts_at: Option<Instant>,
    kept: BTreeMap<u16, Kept>,
    asked: BTreeSet<IpAddr>,
    announcements: Bucket,
    strangers: Bucket,
    routers: Routers,
    questions: Bucket,
}

impl Session {
    /// Over tables that are loaded and programs that are attached.
    #[must_use]
    pub fn new(
        privileges: Box<dyn NodePrivileges>,
        shared: Shared,
        forward: ForwardMode,
        policy: Policy,
        source: Option<Source>,
        now: Instant,
    ) -> Self {
        let mut facts = Facts::default();
        facts.attachments = privileges.attachments().to_vec();
        facts.adopt(privileges.image());
        Self {
            privileges,
            shared,
            forward,
            policy,
            source,
            read_at: now,
            facts,
            facts_at: None,
            kept: BTreeMap::new(),
            asked: BTreeSet::new(),
            // All VIPs at once when a node dies, and again soon after.
            announcements: Bucket::new(MAX_VIPS as u32, Duration::from_millis(2), now),
            // The kernel's neighbour table holds 1,024 entries by default: a stream of invented nodes must not fill it.
            strangers: Bucket::new(512, Duration::from_secs(1), now),
            routers: Routers::new(now),
            // Every node some twenty times a second.
            questions: Bucket::new(4 * MAX_NODES, Duration::from_micros(50), now),
        }
    }

    /// Does what a frame asks for.
    ///
    /// # Errors
    /// Why it was not done; maps, routes and sockets are as they were.
    pub fn handle(&mut self, frame: Frame, now: Instant) -> Result<Answer, Refusal> {
        let request = message::request(&frame)?;
        match request {
            Request::Hello(hello) => self.hello(&hello),
            Request::Config => {
                self.look(now, FRESH)?;
                let config = message::config(&frame.tail)
                    .ok_or_else(|| Refusal::malformed("the configuration has another length"))?;
                self.policy.config(&config, &self.facts)?;
                self.apply(&MapOp::Config(config))
            }
            Request::Nodes => {
                self.look(now, FRESH)?;
                let nodes = message::nodes(&frame.tail);
                self.policy.nodes(&nodes, &self.facts)?;
                self.apply(&MapOp::Nodes(nodes))
            }
            Request::Claims(claims) => self.claims(&claims, now),
            Request::Unlist(nodes) => {
                self.policy.unlist(&nodes)?;
                self.apply(&MapOp::UnlistNodes(nodes))
            }
            Request::Vips(seed) => self.vips(seed, &frame.tail, now),
            Request::Sources(prefixes) => {
                self.policy.sources(&prefixes)?;
                let prefixes = prefixes.into_iter();
                let prefixes = prefixes.map(|(bits, key, says)| (bits, bytemuck::cast(key), says));
                self.apply(&MapOp::Sources(prefixes.collect()))
            }
            Request::SourcesFrom(from) => {
                let written = self.facts.image().sources.iter().skip(from as usize);
                let some = written.take(SOURCES_AT_ONCE);
                let some = some.map(|((bits, key), says)| (*bits, bytemuck::cast(*key), *says));
                Ok(Reply::Sources(some.collect()).into())
            }
            Request::Listeners(group) => self.listeners(group, frame.descriptors),
            Request::Inherit(group) => self.inherit(group),
            Request::OpenUdp(vip) => self.open_udp(vip, now),
            Request::Reach(nodes) => self.reach(nodes, now),
            Request::LocalAddresses => self.local_addresses(now),
            Request::Attachments => Ok(Reply::Attachments(self.facts.attachments.clone()).into()),
            Request::Written => {
                self.privileges.tables_written().map_err(failed)?;
                Ok(Reply::Done.into())
            }
            Request::Routes(addresses) => self.routes(&addresses, now),
            Request::Shield => Ok(Reply::Shield(self.hold_shield()?).into()),
            Request::Exported(addresses) => self.exported(addresses, now),
            Request::Announce(address) => self.announce(address, now),
            Request::Paths(asked) => {
                let questions = message::questions(&asked, &frame.tail);
                self.ask_paths(&questions, now)
            }
            Request::Counters => Ok(self.counters()),
        }
    }

    fn counters(&self) -> Answer {
        let sums = self.privileges.counters();
        Answer {
            reply: Reply::Counters,
            tail: bytemuck::cast_slice(&sums).to_vec(),
            descriptors: Vec::new(),
        }
    }

    fn local_addresses(&mut self, now: Instant) -> Result<Answer, Refusal> {
        let local = self.privileges.local_addresses().map_err(failed)?;
        self.facts.configured.clone_from(&local.configured);
        self.facts.vlans.clone_from(&local.frames.vlans);
        // Interfaces were followed meanwhile.
        self.facts.attachments = self.privileges.attachments().to_vec();
        self.facts_at = Some(now);
        Ok(Reply::LocalAddresses(local).into())
    }

    fn routes(&mut self, addresses: &BTreeSet<IpAddr>, now: Instant) -> Result<Answer, Refusal> {
        self.look(now, Duration::ZERO)?;
        self.read_again(addresses.iter().copied(), now);
        self.policy.routes(addresses, &self.facts.configured)?;
        let unset = self.privileges.set_local_routes(addresses);
        let unset = unset.map_err(failed)?;
        self.localised(addresses);
        self.tell_routers(now)?;
        Ok(Reply::Routes(unset).into())
    }

    /// The `run` is gone: until the next one beats, packets for new connections go to other nodes, if there are any.
    /// Without this they would queue up here for as long as a proxy that hangs is waited for.
    pub fn ended(&mut self) {
        self.privileges.shared().beat(0);
    }

    /// Nobody came back for the listening sockets: they are closed, and this node has no local routes any more.
    ///
    /// # Errors
    /// What the kernel refused.
    pub fn abandon(&mut self) -> Result<(), Error> {
        let groups: Vec<u16> = self.kept.keys().copied().collect();
        for group in groups {
            self.privileges.set_listeners(group, &[])?;
            self.kept.remove(&group);
        }
        self.localised(&BTreeSet::new());
        self.privileges.set_exported_routes(&BTreeSet::new())?;
        self.privileges.set_local_routes(&BTreeSet::new()).map(drop)
    }

    /// How many listening sockets are kept.
    #[must_use]
    pub fn kept(&self) -> usize {
        self.kept.values().map(|kept| kept.sockets.len()).sum()
    }

    fn hello(&mut self, hello: &Hello) -> Result<Answer, Refusal> {
        let own = Hello::own();
        if (hello.protocol, hello.abi) != (own.protocol, own.abi) {
            return Err(Refusal::new(
                RefusalKind::Version,
                format!(
                    "the agent ({}) speaks protocol {} and map layout {}, this forebay {} and {}: run the agent and `forebay run` from the same version",
                    own.build, own.protocol, own.abi, hello.protocol, hello.abi
                ),
            ));
        }
        let image = self.privileges.image();
        let tail = message::image_tail(&image);
        self.facts.adopt(image);
        Ok(Answer {
            reply: Reply::Welcome(Box::new(Welcome {
                hello: own,
                attachments: self.facts.attachments.clone(),
                forward: self.forward,
                kept: self.kept.keys().copied().collect(),
            })),
            tail,
            descriptors: duplicates(&self.shared)?,
        })
    }

    fn claims(&mut self, claims: &[Claim], now: Instant) -> Result<Answer, Refusal> {
        if claims.len() > 2 * MAX_VIPS {
            return Err(Refusal::malformed(format!(
                "there are at most {MAX_VIPS} VIPs"
            )));
        }
        self.look(now, Duration::ZERO)?;
        self.read_again(claims.iter().map(|claim| claim.0), now);
        let refused = (0_u32..)
            .zip(claims)
            .filter_map(|(place, claim)| {
                let refusal = self.policy.claim(*claim, &self.facts).err()?;
                Some((place, refusal.sentence))
            })
            .collect();
        Ok(Reply::Claims(refused).into())
    }

    fn vips(&mut self, seed: u32, tail: &[u8], now: Instant) -> Result<Answer, Refusal> {
        let half = message::vips(seed, tail);
        self.look(now, Duration::ZERO)?;
        let addresses = half
            .slots
            .iter()
            .map(|(_, entry)| crate::l4::address_of(entry.key.address));
        self.read_again(addresses, now);
        self.policy.vips(&half, &self.facts)?;
        let answer = self.apply(&MapOp::Vips(half))?;
        self.release_unused().map_err(failed)?;
        Ok(answer)
    }

    /// Closes the sockets of groups that VIPs led to and do not any more: their Gateway is gone.
    fn release_unused(&mut self) -> Result<(), Error> {
        let vips = self.facts.image().vips.values();
        let groups: BTreeSet<u16> = vips
            .filter(|entry| entry.key.protocol != 0 && entry.flags & vip_flag::USED != 0)
            .map(|entry| entry.group)
            .collect();
        let mut unused = Vec::new();
        for (group, kept) in &mut self.kept {
            if groups.contains(group) {
                kept.used = true;
            } else if kept.used {
                unused.push(*group);
            }
        }
        for group in unused {
            self.privileges.set_listeners(group, &[])?;
            self.kept.remove(&group);
        }
        Ok(())
    }

    fn listeners(&mut self, group: u16, sockets: Vec<OwnedFd>) -> Result<Answer, Refusal> {
        let described = sockets
            .iter()
            .map(|socket| {
                listening::describe(socket.as_fd()).map_err(|why| {
                    Refusal::denied(format!(
                        "the listening sockets of group {group} cannot be used: {why}"
                    ))
                })
            })
            .collect::<Result<Vec<_>, _>>()?;
        self.policy.listeners(group, &described)?;
        let borrowed: Vec<BorrowedFd<'_>> = sockets.iter().map(AsFd::as_fd).collect();
        self.privileges
            .set_listeners(group, &borrowed)
            .map_err(failed)?;
        tracing::debug!(group, sockets = sockets.len(), "listening sockets are kept");
        if sockets.is_empty() {
            self.kept.remove(&group);
        } else {
            let used = self.kept.get(&group).is_some_and(|kept| kept.used);
            self.kept.insert(group, Kept { sockets, used });
        }
        Ok(Reply::Done.into())
    }

    fn inherit(&self, group: u16) -> Result<Answer, Refusal> {
        let sockets = self
            .kept
            .get(&group)
            .map_or(&[][..], |kept| kept.sockets.as_slice());
        Ok(Answer {
            descriptors: duplicates(sockets)?,
            ..Reply::Inherited.into()
        })
    }

    /// A UDP socket, only where this node may serve a UDP VIP.
    fn open_udp(&mut self, vip: SocketAddr, now: Instant) -> Result<Answer, Refusal> {
        self.look(now, FRESH)?;
        let address = vip.ip().to_canonical();
        self.read_again(std::iter::once(address), now);
        if vip.port() == 0 {
            return Err(Refusal::malformed("a VIP has a port"));
        }
        let claim = (address, vip.port(), Transport::Udp.number());
        self.policy.claim(claim, &self.facts)?;
        let socket = self
            .privileges
            .open_udp(SocketAddr::new(address, vip.port()))
            .map_err(failed)?;
        Ok(Answer {
            descriptors: vec![socket],
            ..Reply::Opened.into()
        })
    }

    fn reach(&mut self, nodes: BTreeSet<IpAddr>, now: Instant) -> Result<Answer, Refusal> {
        self.policy.reach(&nodes)?;
        let strangers = nodes.difference(&self.asked).count();
        if !self.strangers.take(strangers as u32, now) {
            return Err(Refusal::new(
                RefusalKind::Limited,
                "too many new nodes were asked about in a short time; try again in a minute",
            ));
        }
        let reach = self.privileges.reach(&nodes).map_err(failed)?;
        self.asked = nodes;
        self.facts.reach.clone_from(&reach);
        Ok(Reply::Reach(reach).into())
    }

    fn announce(&mut self, address: IpAddr, now: Instant) -> Result<Answer, Refusal> {
        self.look(now, FRESH)?;
        self.policy.announce(address, &self.facts)?;
        if !self.announcements.take(1, now) {
            return Err(Refusal::new(
                RefusalKind::Limited,
                format!("{address} is not announced: too many announcements in a short time"),
            ));
        }
        self.privileges.announce(address).map_err(failed)?;
        Ok(Reply::Done.into())
    }

    fn ask_paths(&mut self, questions: &[PathQuestion], now: Instant) -> Result<Answer, Refusal> {
        self.policy.paths(questions, &self.facts)?;
        if !self.questions.take(questions.len() as u32, now) {
            return Err(Refusal::new(
                RefusalKind::Limited,
                "too many paths were asked for in a short time; try again in a second",
            ));
        }
        self.privileges.ask_paths(questions).map_err(failed)?;
        Ok(Reply::Done.into())
    }

    fn apply(&mut self, op: &MapOp) -> Result<Answer, Refusal> {
        self.privileges.apply(op).map_err(failed)?;
        self.facts.applied(op);
        Ok(Reply::Done.into())
    }

    /// Looks at this node's addresses unless that was done less than `age` ago.
    fn look(&mut self, now: Instant, age: Duration) -> Result<(), Refusal> {
        let fresh = self
            .facts_at
            .is_some_and(|at| now.saturating_duration_since(at) < age);
        if !fresh {
            let local = self.privileges.local_addresses().map_err(failed)?;
            self.facts.configured = local.configured;
            self.facts.vlans = local.frames.vlans;
            self.facts_at = Some(now);
        }
        Ok(())
    }

    /// Reads the manifests again if an address is not known from them. What was allowed once stays so: a VIP that
    /// has left the manifests drains for a while.
    fn read_again(&mut self, mut addresses: impl Iterator<Item = IpAddr>, now: Instant) {
        let Some(source) = &mut self.source else {
            return;
        };
        if now.saturating_duration_since(self.read_at) < READ_AGAIN
            || addresses.all(|address| self.policy.allowed.contains(address))
        {
            return;
        }
        self.read_at = now;
        if let Some(read) = source() {
            let allowed = &mut self.policy.allowed;
            allowed.addresses.extend(read.addresses);
            for range in read.ranges {
                if !allowed.ranges.contains(&range) {
                    allowed.ranges.push(range);
                }
            }
        }
    }
}

#[expect(
    clippy::needless_pass_by_value,
    reason = "the shape that map_err wants"
)]
fn failed(error: Error) -> Refusal {
    Refusal::new(RefusalKind::Failed, error.to_string())
}

fn duplicates<'a>(
    descriptors: impl IntoIterator<Item = &'a OwnedFd>,
) -> Result<Vec<OwnedFd>, Refusal> {
    descriptors
        .into_iter()
        .map(OwnedFd::try_clone)
        .collect::<Result<_, _>>()
        .map_err(|error| {
            Refusal::new(
                RefusalKind::Failed,
                format!("a descriptor cannot be duplicated: {error}; check the agent's limit on open files"),
            )
        })
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session")
            .field("policy", &self.policy)
            .field("kept", &self.kept())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
