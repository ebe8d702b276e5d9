//! What `run` asks of the agent, and what it is answered.
//!
//! Heads are JSON: they are short and grow with the versions. Tables are the bytes of the map layouts, which both
//! sides share by the ABI version that the greeting compares. Addresses are of either family everywhere.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use gateway_common::abi::{Config, MAX_NODES, NodeEntry, NodeIndex, VipEntry, node_flag};
use gateway_common::probe::SIZE;
use serde::{Deserialize, Serialize};

use super::wire::Frame;
use crate::datapath::{Attachment, ForwardMode, LocalAddresses, PathQuestion, ShieldStatus, Unset};
use crate::l4::diff::{Image, without_halves};
use crate::l4::sources::SourceTable;
use crate::l4::tables::{Reach, VipHalf};
use crate::l4::vips::MAX_VIPS;

/// Version of this protocol. Another one is refused in the greeting, so that neither side ever guesses.
pub const PROTOCOL: u32 = 4;

/// One request.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// The first one, and only the first.
    Hello(Hello),
    /// The configuration word by word; the tail holds it.
    Config,
    /// A whole node table; the tail holds it.
    Nodes,
    /// Which of these VIPs (address, port, IP protocol) would be refused in a table: asked first, so that one bad
    /// Gateway does not hold up the others.
    Claims(Vec<Claim>),
    /// These nodes leave the live table.
    Unlist(Vec<NodeIndex>),
    /// A whole VIP table with the seed of its slots; the tail holds slots and entries.
    Vips(u32),
    /// Prefixes of lists of sources: bits that count, the key's bytes, what they say or nothing if they go.
    Sources(Vec<(u32, [u8; 20], Option<u32>)>),
    /// The prefixes that are written, from this one on.
    SourcesFrom(u32),
    /// The listening sockets of a group; they come as descriptors.
    Listeners(u16),
    /// The listening sockets that an earlier `run` left in a group.
    Inherit(u16),
    /// A UDP socket on this VIP.
    OpenUdp(SocketAddr),
    /// How these nodes are reached.
    Reach(BTreeSet<IpAddr>),
    /// The addresses of this node.
    LocalAddresses,
    /// How the programs are attached by now.
    Attachments,
    /// All that was to be written is written.
    Written,
    /// Exactly these addresses are to be local.
    Routes(BTreeSet<IpAddr>),
    /// How local addresses are kept from NAT.
    Shield,
    /// Exactly these addresses are to be known to routers.
    Exported(BTreeSet<IpAddr>),
    /// The link is to learn that this address is here now.
    Announce(IpAddr),
    /// Nodes are to be asked for their paths: node, VIP and the port that the answer comes to; the tail holds the
    /// messages in the same order.
    Paths(Vec<(IpAddr, IpAddr, u16)>),
    /// The counters. Their map is not handed over: the kernel maps none that may only be read.
    Counters,
}

/// Prefixes in one answer.
pub const SOURCES_AT_ONCE: usize = 1_024;

/// Address, port and IP protocol of a VIP.
pub type Claim = (IpAddr, u16, u8);

/// Who speaks.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hello {
    /// [`PROTOCOL`].
    pub protocol: u32,
    /// [`gateway_common::abi::ABI_VERSION`].
    pub abi: u32,
    /// Version of the program, for the log.
    pub build: String,
}

impl Hello {
    /// Of this program.
    #[must_use]
    pub fn own() -> Self {
        Self {
            protocol: PROTOCOL,
            abi: gateway_common::abi::ABI_VERSION,
            build: env!("CARGO_PKG_VERSION").to_owned(),
        }
    }
}

/// One answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reply {
    /// To the greeting; the tail holds what the tables say, the descriptors are rows, alive words,
    /// heartbeat and tags, to be mapped and written.
    Welcome(Box<Welcome>),
    /// It is done.
    Done,
    /// The routes are as they were asked for, but those of these addresses, each with the reason.
    Routes(Unset),
    /// The claims that are refused: place in the question, and why.
    Claims(Vec<(u32, String)>),
    /// How nodes are reached.
    Reach(BTreeMap<IpAddr, Reach>),
    /// The addresses of this node.
    LocalAddresses(LocalAddresses),
    /// How the programs are attached.
    Attachments(Vec<Attachment>),
    /// How local addresses are kept from NAT.
    Shield(ShieldStatus),
    /// The tail holds the sums of all cells over all CPUs.
    Counters,
    /// The sockets come as descriptors, none if none are left.
    Inherited,
    /// The socket comes as a descriptor.
    Opened,
    /// At most [`SOURCES_AT_ONCE`] prefixes as they are written; fewer are the last.
    Sources(Vec<(u32, [u8; 20], u32)>),
    /// It is not done.
    Refused(Refusal),
}

/// What the agent says of itself and the node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Welcome {
    /// The agent's own greeting.
    pub hello: Hello,
    /// How the programs are attached.
    pub attachments: Vec<Attachment>,
    /// How packets go to other nodes.
    pub forward: ForwardMode,
    /// Groups whose sockets an earlier `run` left.
    pub kept: BTreeSet<u16>,
}

/// Why something is not done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{sentence}")]
pub struct Refusal {
    /// What kind of reason.
    pub kind: RefusalKind,
    /// One sentence with the remedy.
    pub sentence: String,
}

/// Kinds of reasons.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RefusalKind {
    /// The peer may not connect at all.
    Stranger,
    /// Another `run` is connected.
    Busy,
    /// Protocol or ABI differ.
    Version,
    /// The request cannot be read, or is out of its bounds.
    Malformed,
    /// The request is not this peer's to make.
    Denied,
    /// Too many requests of this kind.
    Limited,
    /// The kernel refused.
    Failed,
}

impl Refusal {
    /// A refusal of `kind`.
    #[must_use]
    pub fn new(kind: RefusalKind, sentence: impl Into<String>) -> Self {
        Self {
            kind,
            sentence: sentence.into(),
        }
    }

    /// A request that is out of its bounds.
    #[must_use]
    pub fn malformed(sentence: impl Into<String>) -> Self {
        Self::new(RefusalKind::Malformed, sentence)
    }

    /// A request that is not this peer's to make.
    #[must_use]
    pub fn denied(sentence: impl Into<String>) -> Self {
        Self::new(RefusalKind::Denied, sentence)
    }
}

const NODE: usize = size_of::<NodeEntry>();
const SLOT: usize = size_of::<u32>() + size_of::<VipEntry>();
const ENTRY: usize = size_of::<VipEntry>();

/// Reads the head of a frame.
///
/// # Errors
/// What is wrong with it; nothing that the peer wrote is repeated.
pub fn request(frame: &Frame) -> Result<Request, Refusal> {
    let request: Request = serde_json::from_slice(&frame.head).map_err(|error| {
        Refusal::malformed(format!(
            "the request cannot be read (column {}): run a forebay of the agent's version",
            error.column()
        ))
    })?;
    let tail = match request {
        Request::Config => frame.tail.len() == size_of::<Config>(),
        Request::Nodes => frame.tail.len() == MAX_NODES as usize * NODE,
        Request::Vips(_) => {
            frame.tail.len().is_multiple_of(SLOT) && frame.tail.len() <= MAX_VIPS * SLOT
        }
        Request::Paths(ref asked) => {
            asked.len() <= MAX_NODES as usize && frame.tail.len() == asked.len() * SIZE
        }
        _ => frame.tail.is_empty(),
    };
    if !tail {
        return Err(Refusal::malformed(format!(
            "a table of {} bytes is none of this forebay's layouts: run the agent and `forebay run` from the same version",
            frame.tail.len()
        )));
    }
    if !frame.descriptors.is_empty() && !matches!(request, Request::Listeners(_)) {
        return Err(Refusal::malformed(
            "descriptors came with a request that takes none",
        ));
    }
    Ok(request)
}

/// The configuration in a tail of its length.
#[must_use]
pub fn config(tail: &[u8]) -> Option<Config> {
    bytemuck::try_pod_read_unaligned(tail).ok()
}

/// The node table in a tail.
#[must_use]
pub fn nodes(tail: &[u8]) -> Box<[NodeEntry]> {
    tail.chunks_exact(NODE)
        .map(bytemuck::pod_read_unaligned)
        .collect()
}

/// The VIP table in a tail.
#[must_use]
pub fn vips(seed: u32, tail: &[u8]) -> VipHalf {
    let slots = tail
        .chunks_exact(SLOT)
        .map(|slot| {
            let (number, entry) = slot.split_at(size_of::<u32>());
            (
                bytemuck::pod_read_unaligned(number),
                bytemuck::pod_read_unaligned(entry),
            )
        })
        .collect();
    VipHalf { seed, slots }
}

/// The tail of [`Request::Vips`].
#[must_use]
pub fn vips_tail(half: &VipHalf) -> Vec<u8> {
    let mut tail = Vec::with_capacity(half.slots.len() * SLOT);
    for (slot, entry) in &half.slots {
        tail.extend(bytemuck::bytes_of(slot));
        tail.extend(bytemuck::bytes_of(entry));
    }
    tail
}

/// The questions of [`Request::Paths`].
#[must_use]
pub fn questions(asked: &[(IpAddr, IpAddr, u16)], tail: &[u8]) -> Vec<PathQuestion> {
    let messages = tail.as_chunks::<SIZE>().0;
    let asked = asked.iter().zip(messages);
    asked
        .map(|((node, vip, reply_port), message)| PathQuestion {
            node: *node,
            vip: *vip,
            reply_port: *reply_port,
            message: *message,
        })
        .collect()
}

/// The tail of [`Reply::Welcome`]: everything but the rows, which come by their map.
#[must_use]
pub fn image_tail(image: &Image) -> Vec<u8> {
    let mut tail = bytemuck::bytes_of(&image.config).to_vec();
    tail.extend(bytemuck::cast_slice::<NodeEntry, u8>(&image.nodes));
    for entry in image.vips.values() {
        tail.extend(bytemuck::bytes_of(entry));
    }
    tail
}

/// What [`image_tail`] wrote, without rows; none if it has another length.
#[must_use]
pub fn image(tail: &[u8]) -> Option<Image> {
    let (first, rest) = tail.split_at_checked(size_of::<Config>())?;
    let (second, rest) = rest.split_at_checked(MAX_NODES as usize * NODE)?;
    if !rest.len().is_multiple_of(ENTRY) {
        return None;
    }
    let entries = rest.chunks_exact(ENTRY).map(bytemuck::pod_read_unaligned);
    Some(Image {
        config: without_halves(config(first)?),
        nodes: nodes(second),
        vips: entries.map(|entry: VipEntry| (entry.key, entry)).collect(),
        rows: Box::default(),
        sources: SourceTable::new(),
    })
}

/// The listed entries of a node table with their indices.
pub fn listed(nodes: &[NodeEntry]) -> impl Iterator<Item = (usize, &NodeEntry)> {
    nodes
        .iter()
        .enumerate()
        .filter(|(_, entry)| entry.flags & node_flag::LISTED != 0)
}

#[cfg(test)]
mod tests {
    use gateway_common::abi::{VipKey, vip_flag};

    use super::*;
    use crate::l4::tables::Frames;

    fn entry(last: u8) -> VipEntry {
        VipEntry {
            key: VipKey::v4([192, 0, 2, last], [0, 80], 6),
            flags: vip_flag::USED,
            group: 3,
            number: u16::from(last),
            ..VipEntry::default()
        }
    }

    #[test]
    fn requests_and_answers_go_there_and_back() {
        let address: IpAddr = "2001:db8::1".parse().unwrap();
        for request in [
            Request::Hello(Hello::own()),
            Request::Config,
            Request::Claims(vec![(address, 443, 6)]),
            Request::Unlist(vec![1, 1023]),
            Request::Vips(7),
            Request::Listeners(63),
            Request::Inherit(0),
            Request::Reach([address].into()),
            Request::LocalAddresses,
            Request::Routes(BTreeSet::new()),
            Request::Exported(BTreeSet::new()),
            Request::Announce(address),
            Request::Counters,
            Request::Shield,
            Request::Paths(vec![(address, address, 40_000)]),
        ] {
            let bytes = serde_json::to_vec(&request).unwrap();
            assert_eq!(serde_json::from_slice::<Request>(&bytes).unwrap(), request);
        }
        let reach = Reach {
            mac: [1, 2, 3, 4, 5, 6],
            source_mac: [7; 6],
            ifindex: 9,
            on_link: true,
            resolved: true,
            ..Reach::default()
        };
        for reply in [
            Reply::Done,
            Reply::Inherited,
            Reply::Counters,
            Reply::Claims(vec![(3, "no".to_owned())]),
            Reply::Reach([(address, reach)].into()),
            Reply::Routes([(IpAddr::from([9; 16]), "switched off".to_owned())].into()),
            Reply::LocalAddresses(LocalAddresses {
                configured: [address].into(),
                uplink: Some(address),
                frames: Frames {
                    macs: [[2, 0, 0, 0, 0, 9]].into(),
                    vlans: [4094].into(),
                },
            }),
            Reply::Shield(ShieldStatus {
                addresses: [address].into(),
                restored: 2,
                failed: Some("no".to_owned()),
            }),
            Reply::Refused(Refusal::denied("no")),
        ] {
            let bytes = serde_json::to_vec(&reply).unwrap();
            assert_eq!(serde_json::from_slice::<Reply>(&bytes).unwrap(), reply);
        }
    }

    #[test]
    fn tables_go_there_and_back() {
        let half = VipHalf {
            seed: 5,
            slots: vec![(0, entry(1)), (8191, entry(2))],
        };
        assert_eq!(vips(5, &vips_tail(&half)), half);
        let mut before = Image {
            rows: Box::default(),
            ..Image::default()
        };
        before.config.self_index = 4;
        before.nodes[4].flags = node_flag::LISTED;
        before.vips.insert(entry(1).key, entry(1));
        let tail = image_tail(&before);
        assert_eq!(image(&tail), Some(before));
        assert_eq!(image(&tail[1..]), None);
        assert_eq!(image(&[]), None);
    }

    #[test]
    fn a_full_table_fits_a_frame() {
        use crate::agent::wire::{MAX_HEAD, MAX_TAIL};
        let image = size_of::<Config>() + MAX_NODES as usize * NODE + MAX_VIPS * ENTRY;
        assert!(image <= MAX_TAIL && MAX_VIPS * SLOT <= MAX_TAIL, "{image}");
        let sums = gateway_common::abi::COUNTERS_PER_CPU as usize * size_of::<u64>();
        assert!(sums <= MAX_TAIL, "{sums}");
        let address = |n: u32| IpAddr::from(std::net::Ipv6Addr::from(u128::MAX - u128::from(n)));
        let reach = Reach {
            mac: [255; 6],
            source_mac: [255; 6],
            ifindex: u32::MAX,
            mtu: u32::MAX,
            vlan: u16::MAX,
            on_link: false,
            resolved: false,
        };
        let prefixes = vec![(u32::MAX, [255; 20], Some(u32::MAX)); SOURCES_AT_ONCE];
        let head = serde_json::to_vec(&Request::Sources(prefixes))
            .unwrap()
            .len();
        assert!(head <= MAX_HEAD, "{head}");
        let nodes = (0..MAX_NODES).map(|n| (address(n), reach)).collect();
        let head = serde_json::to_vec(&Reply::Reach(nodes)).unwrap().len();
        assert!(head <= MAX_HEAD, "{head}");
        let routes = (0..MAX_VIPS as u32).map(address).collect();
        let head = serde_json::to_vec(&Request::Routes(routes)).unwrap().len();
        assert!(head <= MAX_HEAD, "{head}");
    }

    #[test]
    fn what_does_not_belong_to_a_request_is_refused() {
        let frame = |head: &str, tail: usize, descriptors: usize| Frame {
            head: head.as_bytes().to_vec(),
            tail: vec![0; tail],
            descriptors: (0..descriptors)
                .map(|_| tempfile::tempfile().unwrap().into())
                .collect(),
        };
        let config = size_of::<Config>();
        for (head, tail, descriptors) in [
            ("", 0, 0),
            ("null", 0, 0),
            ("\"config\"", config - 1, 0),
            ("\"config\"", config, 1),
            ("\"nodes\"", NODE, 0),
            ("{\"vips\":1}", SLOT - 1, 0),
            ("{\"vips\":1}", (MAX_VIPS + 1) * SLOT, 0),
            ("{\"vips\":-1}", 0, 0),
            ("{\"listeners\":65536}", 0, 0),
            ("{\"listeners\":1}", 1, 1),
            ("{\"announce\":\"nobody\"}", 0, 0),
            ("{\"erase\":1}", 0, 0),
            (
                "{\"hello\":{\"protocol\":1,\"abi\":1,\"build\":\"\",\"more\":1}}",
                0,
                0,
            ),
        ] {
            let refusal = request(&frame(head, tail, descriptors)).expect_err(head);
            assert_eq!(refusal.kind, RefusalKind::Malformed, "{head}");
        }
        assert_eq!(
            request(&frame("\"config\"", config, 0)),
            Ok(Request::Config)
        );
        assert_eq!(
            request(&frame("{\"listeners\":1}", 0, 8)),
            Ok(Request::Listeners(1))
        );
    }
}
