//! [`NodePrivileges`] in this process.
//!
//! Belongs to the network namespace of the thread that opened it and must be used there. Dropping it leaves
//! everything in the kernel as it is: programs go on with the last tables. [`super::detach`] cleans up.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use aya::Ebpf;
use aya::maps::lpm_trie::{self, LpmTrie};
use aya::maps::{DevMapHash, Map, MapData, MapError, SockMap};
use gateway_common::abi::{
    self, Config, GROUPS, MAX_NODES, NodeEntry, PORT_WORDS, ROWS, SLOTS_PER_GROUP, SourceKey,
    TAG_SETS, TagSet, TraceFilter, VIP_SLOTS, VipEntry, fact,
};
use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};

use super::asking::{self, FrameSocket, PathQuestion};
use super::attach::{AttachMode, Attachment, Programs, Uplinks};
use super::exported::Exported;
use super::lock::Lock;
use super::mmap::{MappedArray, SharedTables};
use super::neighbours::{ForwardMode, Neighbours};
use super::netfilter::Shield;
use super::netlink::Netlink;
use super::writer::Writer;
use super::{
    Error, LocalAddresses, NodePrivileges, ShieldStatus, Unset, counts, gratuitous, object, pins,
    routes, vip_socket,
};
use crate::causes::chain;
use crate::l4::diff::{Image, MapOp};
use crate::l4::sources::{self, SourceTable};
use crate::l4::tables::Reach;

/// What the agent is told at its start.
#[derive(Clone, Debug)]
pub struct AgentSettings {
    /// Uplinks, at least one.
    pub interfaces: Vec<String>,
    /// How to attach.
    pub mode: AttachMode,
    /// `--bpffs`.
    pub bpffs: PathBuf,
    /// `--forward`.
    pub forward: ForwardMode,
    /// `--probe-port`.
    pub probe_port: u16,
}

/// The agent.
pub struct Agent {
    uplinks: Uplinks,
    forward: ForwardMode,
    probe_port: u16,
    /// Sends questions about paths; opened with the first one.
    frames: Option<FrameSocket>,
    writer: Writer,
    counters: Arc<MappedArray>,
    trace: MappedArray,
    ports: MappedArray,
    sockets: SockMap<MapData>,
    devices: DevMapHash<MapData>,
    sources: LpmTrie<MapData, [u8; 20], u32>,
    known_devices: BTreeSet<u32>,
    group_ports: BTreeMap<u16, Vec<u16>>,
    netlink: Netlink,
    shield: Shield,
    neighbours: Neighbours,
    quieted: BTreeSet<u32>,
    /// Holds the memberships; none on a machine without IPv6.
    groups: Option<OwnedFd>,
    joined: BTreeSet<(u32, Ipv6Addr)>,
    exported: Exported,
    _lock: Option<Lock>,
}

impl Agent {
    /// Loads (or adopts) the maps, attaches the programs and pins both.
    ///
    /// # Errors
    /// One sentence that names what is missing; nothing that an earlier process pinned is disturbed by a failure.
    pub fn open(settings: &AgentSettings) -> Result<Self, Error> {
        Self::open_locked(settings, Lock::of_pins(&settings.bpffs)?)
    }

    /// As [`Self::open`], with the lock of `--bpffs` taken before.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_locked(settings: &AgentSettings, lock: Lock) -> Result<Self, Error> {
        Self::set_up(settings, object::embedded()?, Some(lock))
    }

    /// As [`Self::open`], with the programs of another object than the one in this program, and whoever uses the pins.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn with_object(settings: &AgentSettings, object: &[u8]) -> Result<Self, Error> {
        Self::set_up(settings, object, None)
    }

    fn set_up(settings: &AgentSettings, object: &[u8], lock: Option<Lock>) -> Result<Self, Error> {
        let mut netlink = Netlink::open().map_err(Error::netlink("opening a netlink socket"))?;
        let interfaces = routes::interfaces(&mut netlink)?;
        let is_there = |name: &String| interfaces.values().any(|link| link.name == *name);
        if let Some(missing) = settings.interfaces.iter().find(|name| !is_there(name)) {
            return Err(Error::NoInterface(missing.clone()));
        }
        let directory = pins::prepare(&settings.bpffs)?;
        let mut ebpf = object::load(&directory, object)?;
        let programs = Programs::load(&mut ebpf)?;
        let names = &settings.interfaces;
        let uplinks = Uplinks::open(programs, &directory, &interfaces, names, settings.mode)?;
        let mut agent = Self::over(&mut ebpf, netlink, uplinks, settings, lock)?;
        agent.add_uplinks();
        Ok(agent)
    }

    fn over(
        programs: &mut Ebpf,
        mut netlink: Netlink,
        uplinks: Uplinks,
        settings: &AgentSettings,
        lock: Option<Lock>,
    ) -> Result<Self, Error> {
        let words = size_of::<u64>();
        let config = array(programs, abi::map::CONFIG, 1, size_of::<Config>())?;
        let nodes = array(
            programs,
            abi::map::NODES,
            2 * MAX_NODES,
            size_of::<NodeEntry>(),
        )?;
        let vips = array(
            programs,
            abi::map::VIPS,
            2 * VIP_SLOTS,
            size_of::<VipEntry>(),
        )?;
        let counters: Arc<MappedArray> =
            array(programs, abi::map::COUNTERS, counts::words_here(), words)?;
        let shared = SharedTables {
            rows: Arc::new(array(programs, abi::map::ROWS, ROWS, words)?),
            alive: Arc::new(array(programs, abi::map::ALIVE, MAX_NODES, words)?),
            heartbeat: Arc::new(array(programs, abi::map::HEARTBEAT, fact::WORDS, words)?),
            tags: Arc::new(array(
                programs,
                abi::map::TAGS,
                TAG_SETS,
                size_of::<TagSet>(),
            )?),
        };
        Ok(Self {
            uplinks,
            forward: settings.forward,
            probe_port: settings.probe_port,
            frames: None,
            writer: Writer::new(config, nodes, vips, Arc::clone(&counters), shared),
            counters,
            trace: array(programs, abi::map::TRACE, 1, size_of::<TraceFilter>())?,
            ports: array(programs, abi::map::PORTS, PORT_WORDS, words)?,
            sockets: SockMap::try_from(take(programs, abi::map::SOCKETS)?)
                .map_err(unfit(abi::map::SOCKETS))?,
            devices: DevMapHash::try_from(take(programs, abi::map::DEVICES)?)
                .map_err(unfit(abi::map::DEVICES))?,
            sources: LpmTrie::try_from(take(programs, abi::map::SOURCES)?)
                .map_err(unfit(abi::map::SOURCES))?,
            known_devices: BTreeSet::new(),
            group_ports: BTreeMap::new(),
            shield: Shield::adopt(routes::own_routes(&mut netlink)?),
            netlink,
            neighbours: Neighbours::default(),
            quieted: BTreeSet::new(),
            groups: rustix::net::socket_with(
                AddressFamily::INET6,
                SocketType::DGRAM,
                SocketFlags::CLOEXEC,
                None,
            )
            .ok(),
            joined: BTreeSet::new(),
            exported: Exported::default(),
            _lock: lock,
        })
    }

    /// A device that cannot be added only means that packets to nodes behind it are dropped and counted.
    fn add_device(&mut self, ifindex: u32) {
        if ifindex != 0
            && self.known_devices.insert(ifindex)
            && let Err(error) = self.devices.insert(ifindex, ifindex, None, 0)
        {
            tracing::warn!(ifindex, %error, "packets cannot be forwarded through this interface");
        }
    }

    fn write_sources(&mut self, prefixes: &[(u32, SourceKey, Option<u32>)]) -> Result<(), Error> {
        for (bits, key, says) in prefixes {
            let trie_key = lpm_trie::Key::new(*bits, bytemuck::cast::<_, [u8; 20]>(*key));
            let done = match says {
                Some(says) => self.sources.insert(&trie_key, says, 0),
                None => match self.sources.remove(&trie_key) {
                    Err(MapError::KeyNotFound) => Ok(()),
                    done => done,
                },
            };
            done.map_err(|error| Error::Sources {
                prefix: sources::prefix(*bits, key),
                reason: chain(&error),
            })?;
        }
        Ok(())
    }

    fn read_sources(&self) -> SourceTable {
        // An entry that cannot be read is as one that is not there: it is written again.
        self.sources
            .iter()
            .flatten()
            .map(|(key, says)| ((key.prefix_len(), bytemuck::cast(key.data())), says))
            .collect()
    }

    /// Joins the solicited-node groups of the IPv6 addresses on every uplink, and leaves the others: a network card that
    /// filters groups would not show the questions to the program. A failure only means that.
    fn join_groups(&mut self, addresses: &BTreeSet<IpAddr>) {
        let there = |uplink: &&Attachment| uplink.ifindex != 0;
        let uplinks = self
            .attachments()
            .iter()
            .filter(there)
            .map(|uplink| uplink.ifindex);
        let wanted: BTreeSet<(u32, Ipv6Addr)> = uplinks
            .flat_map(|ifindex| {
                let v6 = addresses.iter().filter_map(|address| match address {
                    IpAddr::V6(v6) => Some(gratuitous::solicited_node(*v6)),
                    IpAddr::V4(_) => None,
                });
                v6.map(move |group| (ifindex, group))
            })
            .collect();
        if wanted == self.joined {
            return;
        }
        let Some(socket) = &self.groups else {
            return;
        };
        for (ifindex, group) in self.joined.difference(&wanted) {
            // Gone with its interface, perhaps.
            let _left = sockopt::set_ipv6_drop_membership(socket, group, *ifindex);
        }
        for (ifindex, group) in wanted.difference(&self.joined) {
            if let Err(error) = sockopt::set_ipv6_add_membership(socket, group, *ifindex) {
                tracing::warn!(ifindex, %group, %error, "a solicited-node group cannot be joined: neighbours may not find VIPs on this interface");
            }
        }
        self.joined = wanted;
    }

    fn add_uplinks(&mut self) {
        let indices = self.attachments().iter().map(|uplink| uplink.ifindex);
        for index in indices.collect::<Vec<_>>() {
            self.add_device(index);
        }
    }

    fn write_ports(&self, listening: &BTreeSet<u16>) {
        let mut words = vec![0_u64; PORT_WORDS as usize];
        for port in listening {
            words[usize::from(port / 64)] |= 1 << (port % 64);
        }
        for (place, word) in self.ports.words().iter().zip(words) {
            place.store(word, Ordering::Release);
        }
    }

    fn listening_ports(&self) -> BTreeSet<u16> {
        self.group_ports.values().flatten().copied().collect()
    }
}

impl NodePrivileges for Agent {
    fn attachments(&self) -> &[Attachment] {
        self.uplinks.attachments()
    }

    fn image(&self) -> Image {
        Image {
            sources: self.read_sources(),
            ..self.writer.image()
        }
    }

    fn apply(&mut self, op: &MapOp) -> Result<(), Error> {
        match op {
            MapOp::Sources(prefixes) => self.write_sources(prefixes),
            other => self.writer.apply(other),
        }
    }

    fn set_listeners(&mut self, group: u16, sockets: &[BorrowedFd<'_>]) -> Result<(), Error> {
        let unfit = |reason: String| Error::Listeners { group, reason };
        if u32::from(group) >= GROUPS || sockets.len() > SLOTS_PER_GROUP as usize {
            return Err(unfit(format!(
                "there are {GROUPS} groups of at most {SLOTS_PER_GROUP} sockets"
            )));
        }
        let ports = sockets
            .iter()
            .map(|socket| listening_port(*socket).map_err(unfit))
            .collect::<Result<Vec<_>, _>>()?;
        // New ports are closed to direct dials before their sockets take connections.
        let mut before = self.listening_ports();
        before.extend(&ports);
        self.write_ports(&before);
        let first = u32::from(group) * SLOTS_PER_GROUP;
        for slot in 0..SLOTS_PER_GROUP {
            match sockets.get(slot as usize) {
                Some(socket) => self
                    .sockets
                    .set(first + slot, &socket.as_raw_fd(), 0)
                    .map_err(|error| unfit(chain(&error)))?,
                // An empty slot cannot be cleared, which is what we want.
                None => drop(self.sockets.clear_index(&(first + slot))),
            }
        }
        self.group_ports.insert(group, ports);
        self.write_ports(&self.listening_ports());
        Ok(())
    }

    fn open_udp(&mut self, vip: SocketAddr) -> Result<OwnedFd, Error> {
        vip_socket::open_udp(vip).map_err(|source| Error::Udp { vip, source })
    }

    fn shared(&self) -> SharedTables {
        self.writer.shared().clone()
    }

    fn tables_written(&mut self) -> Result<(), Error> {
        self.uplinks.take_over()
    }

    fn counters(&self) -> Vec<u64> {
        counts::sums(self.counters.words())
    }

    fn reach(&mut self, nodes: &BTreeSet<IpAddr>) -> Result<BTreeMap<IpAddr, Reach>, Error> {
        let reach = self
            .neighbours
            .refresh(&mut self.netlink, nodes, self.forward)?;
        for ifindex in reach
            .values()
            .map(|reach| reach.ifindex)
            .collect::<BTreeSet<_>>()
        {
            self.add_device(ifindex);
        }
        Ok(reach)
    }

    fn local_addresses(&mut self) -> Result<LocalAddresses, Error> {
        self.writer.end_trace_if_over(&self.trace);
        let interfaces = routes::interfaces(&mut self.netlink)?;
        for (index, interface) in interfaces
            .iter()
            .filter(|(_, interface)| interface.name != "lo")
        {
            if self.quieted.insert(*index) {
                routes::quiet_arp(&mut self.netlink, *index, &interface.name)?;
            }
        }
        self.quieted.retain(|index| interfaces.contains_key(index));
        self.known_devices
            .retain(|index| interfaces.contains_key(index));
        self.uplinks.follow(&mut self.netlink, &interfaces);
        self.add_uplinks();
        let uplinks: Vec<u32> = self.attachments().iter().map(|a| a.ifindex).collect();
        let configured = routes::configured(&mut self.netlink)?;
        let uplink = configured
            .iter()
            .find(|(index, _)| uplinks.contains(index))
            .map(|(_, address)| *address);
        let configured = configured.into_iter().map(|(_, address)| address).collect();
        Ok(LocalAddresses {
            configured,
            uplink,
            frames: routes::frames(&interfaces, &uplinks),
        })
    }

    fn set_local_routes(&mut self, addresses: &BTreeSet<IpAddr>) -> Result<Unset, Error> {
        self.join_groups(addresses);
        // Kept from NAT before they are local, and until they are local no more.
        self.shield.add(addresses);
        let unset = routes::set_own_routes(&mut self.netlink, addresses)?;
        self.shield.set(addresses);
        Ok(unset)
    }

    fn shield(&mut self) -> Result<ShieldStatus, Error> {
        Ok(self.shield.look(Instant::now()).clone())
    }

    fn set_exported_routes(&mut self, addresses: &BTreeSet<IpAddr>) -> Result<Unset, Error> {
        self.exported.set(&mut self.netlink, addresses)
    }

    fn ask_paths(&mut self, questions: &[PathQuestion]) -> Result<(), Error> {
        if self.frames.is_none() {
            let opened = FrameSocket::open();
            self.frames = Some(opened.map_err(Error::netlink("opening a packet socket"))?);
        }
        let frames = self.frames.iter();
        for (socket, question) in frames.flat_map(|s| questions.iter().map(move |q| (s, q))) {
            let reach = self.neighbours.known(question.node);
            let Some(reach) = reach.filter(|reach| reach.resolved && reach.on_link) else {
                continue;
            };
            let frame = asking::frame(question, &reach, self.probe_port);
            if let Err(error) = socket.send(reach.ifindex, &frame) {
                tracing::debug!(node = %question.node, %error, "a path cannot be asked for");
            }
        }
        Ok(())
    }

    fn announce(&mut self, address: IpAddr) -> Result<(), Error> {
        let there = |uplink: &&Attachment| uplink.ifindex != 0;
        for uplink in self.attachments().iter().filter(there) {
            gratuitous::send(uplink.ifindex, uplink.mac, address).map_err(Error::netlink(
                format!("announcing {address} on {}", uplink.interface),
            ))?;
        }
        Ok(())
    }
}

fn take(programs: &mut Ebpf, name: &'static str) -> Result<Map, Error> {
    programs
        .take_map(name)
        .ok_or_else(|| Error::BadObject(format!("it has no map {name}")))
}

fn unfit(name: &'static str) -> impl FnOnce(MapError) -> Error {
    move |error| Error::BadObject(format!("map {name}: {error}"))
}

/// Maps an array for reading and writing, after a look at its size.
fn array<T: From<MappedArray>>(
    programs: &mut Ebpf,
    name: &'static str,
    entries: u32,
    size: usize,
) -> Result<T, Error> {
    let Map::Array(data) = take(programs, name)? else {
        return Err(Error::BadObject(format!("map {name} is no array")));
    };
    let info = data.info().map_err(unfit(name))?;
    if info.max_entries() != entries || info.value_size() as usize != size {
        return Err(Error::BadObject(format!(
            "map {name} has {} entries of {} bytes, not {entries} of {size}",
            info.max_entries(),
            info.value_size()
        )));
    }
    MappedArray::new(name, data.fd().as_fd(), entries, size).map(T::from)
}

/// The port that a listening TCP socket is bound to.
fn listening_port(socket: BorrowedFd<'_>) -> Result<u16, String> {
    let listening = sockopt::socket_acceptconn(socket).map_err(|error| error.to_string())?;
    if !listening {
        return Err("one of them is not listening".to_owned());
    }
    let name = rustix::net::getsockname(socket).map_err(|error| error.to_string())?;
    SocketAddr::try_from(name)
        .map(|address| address.port())
        .map_err(|_| "one of them is not bound to an IP address".to_owned())
}
