//! What the datapath does right now, for `/status`, `forebay status` and metrics.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use gateway_common::abi::{Path, node_flag};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::attach::Attachment;
use super::counts::OfNode;
use super::neighbours::ForwardMode;
use super::netfilter::ShieldStatus;
use crate::l4::Time;
use crate::l4::liveness::{PeerReport, Standing};
use crate::l4::paths::PathReport;
use crate::snapshot::ReplicaState;

/// The whole picture.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct DatapathStatus {
    /// Uplinks and their modes.
    pub interfaces: Vec<Attachment>,
    /// `--forward`.
    pub forward: ForwardMode,
    /// Listed nodes in the order of their names.
    pub nodes: Vec<NodeStatus>,
    /// Rows in transition, of 65,536.
    pub rows_in_transition: u32,
    /// Whether this node is draining by its own decision.
    pub draining: bool,
    /// Whether the local proxy is alive, as the application said.
    pub proxy_alive: bool,
    /// VIPs, `address:port`, with `/udp` behind it for UDP.
    pub vips: Vec<VipStatus>,
    /// VIP addresses that this node answers ARP for.
    pub announcing: Vec<IpAddr>,
    /// Addresses with a local route of ours.
    pub routes: Vec<IpAddr>,
    /// How these addresses are kept from NAT.
    pub nat_shield: ShieldStatus,
    /// VIP addresses that no node announces.
    pub routed: Vec<IpAddr>,
    /// Those of them that routers are told of here, by host routes.
    pub exported: Vec<IpAddr>,
    /// Why routers are told of none here, if so.
    pub withheld: Option<&'static str>,
    /// VIP addresses that are configured on an interface of this node.
    pub shared: Vec<IpAddr>,
    /// What found no place in the tables, one sentence part each.
    pub left_out: Vec<String>,
    /// Counters since the maps were made, by name.
    pub counters: BTreeMap<&'static str, u64>,
    /// How long the last change of the tables took, in microseconds.
    #[serde(serialize_with = "microseconds", rename = "last_apply_us")]
    pub last_apply: Duration,
}

/// One listed node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct NodeStatus {
    /// Name.
    pub name: String,
    /// Address.
    pub address: IpAddr,
    /// State.
    pub state: ReplicaState,
    /// Weight.
    pub weight: u8,
    /// Index in this machine's tables.
    pub index: u16,
    /// Rows that it owns.
    pub rows: u32,
    /// How packets go to it.
    pub forward: Forward,
    /// Why so.
    #[serde(serialize_with = "why", rename = "forward_reason")]
    pub forward_why: Why,
    /// What the questions by way of a MAC rewrite say; none if none are sent to it.
    pub path: Option<PathReport>,
    /// Its MAC, or the next hop's; zero if not resolved.
    #[serde(serialize_with = "mac")]
    pub mac: [u8; 6],
    /// Taken for dead: it owns nothing here although it is listed.
    pub dead: bool,
    /// Others may hold connections of its rows since it was not well.
    pub episode: bool,
    /// Packets that went to it since it has its index.
    pub packets: NodePackets,
    /// What its answers to probes say; none of this node itself.
    pub probes: Option<ProbeStatus>,
}

/// Packets that went to a node, by path.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct NodePackets {
    /// By MAC rewrite.
    pub l2: u64,
    /// By UDP encapsulation.
    pub udp: u64,
    /// As second chances, and past a suspect owner.
    pub second_chance: u64,
    /// SYNs that it inherited.
    pub syn_heir: u64,
}

impl From<OfNode> for NodePackets {
    fn from([l2, udp, second_chance, syn_heir]: OfNode) -> Self {
        Self {
            l2,
            udp,
            second_chance,
            syn_heir,
        }
    }
}

impl NodePackets {
    /// The names of the paths with their packets.
    #[must_use]
    pub fn by_path(self) -> [(&'static str, u64); Path::ALL.len()] {
        let sums = [self.l2, self.udp, self.second_chance, self.syn_heir];
        std::array::from_fn(|i| (Path::ALL[i].name(), sums[i]))
    }
}

/// What one node's answers to probes say.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ProbeStatus {
    /// What it is held for.
    pub standing: Standing,
    /// Milliseconds since its last answer.
    pub last_answer_ms: Option<u64>,
    /// Whether it works with the same membership.
    pub same_membership: Option<bool>,
    /// Its connections of rows that it does not own.
    pub foreign_sockets: Option<u32>,
    /// Whether its proxy beats.
    pub proxy_alive: Option<bool>,
    /// Round trip of its last answer in microseconds.
    pub round_trip_us: Option<u64>,
    /// Probes sent to it.
    pub sent: u64,
    /// Probes that it never answered.
    pub lost: u64,
    /// Times that it became suspect.
    pub suspected: u64,
}

impl ProbeStatus {
    /// What a report says, to a node that works with membership `fingerprint`.
    #[must_use]
    pub fn of(report: &PeerReport, fingerprint: u32, now: Time) -> Self {
        let age = report.heard_at.map(|at| now.saturating_sub(at));
        let whole = |count: u128| u64::try_from(count).unwrap_or(u64::MAX);
        Self {
            standing: report.standing,
            last_answer_ms: age.map(|age| whole(age.as_millis())),
            same_membership: report.fingerprint.map(|theirs| theirs == fingerprint),
            foreign_sockets: report.foreign,
            proxy_alive: report.known.then_some(report.proxy_alive),
            round_trip_us: report.round_trip.map(|time| whole(time.as_micros())),
            sent: report.asked,
            lost: report.lost,
            suspected: report.suspected,
        }
    }
}

/// How packets go to a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Forward {
    /// It is this node.
    Own,
    /// MAC rewrite.
    L2,
    /// UDP encapsulation.
    Udp,
    /// Not at all: its address (or the next hop's) is not resolved.
    Unresolved,
}

impl Forward {
    /// As a node's flags in the kernel's table say it; `encapsulates`: no MAC is ever rewritten.
    #[must_use]
    pub const fn of(flags: u32, encapsulates: bool) -> Self {
        if flags & node_flag::SELF != 0 {
            Self::Own
        } else if flags & node_flag::RESOLVED == 0 {
            Self::Unresolved
        } else if flags & (node_flag::ON_LINK | node_flag::ENCAPSULATE) == node_flag::ON_LINK
            && !encapsulates
        {
            Self::L2
        } else {
            Self::Udp
        }
    }

    /// As in JSON.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Own => "own",
            Self::L2 => "l2",
            Self::Udp => "udp",
            Self::Unresolved => "unresolved",
        }
    }
}

/// Why packets go to a node the way they do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// There is no way to explain.
    None,
    /// `--forward` says so.
    Forced,
    /// Frames for VIPs were answered.
    Proven,
    /// Frames for VIPs are not answered, although the node is well.
    NotAnswered,
    /// Frames for VIPs have not been answered often enough yet.
    Asking,
    /// There is no VIP to ask with.
    NoVip,
    /// Nodes are not probed.
    NotAsked,
    /// The node is behind a router.
    NotOnLink,
    /// Several nodes answer with the same MAC: it is a router's or a fabric's.
    SharedMac,
}

impl Why {
    /// As a part of a sentence.
    #[must_use]
    pub const fn words(self) -> &'static str {
        match self {
            Self::None => "",
            Self::Forced => "forced",
            Self::Proven => "proven",
            Self::NotAnswered => "l2 not answered",
            Self::Asking => "l2 not proven yet",
            Self::NoVip => "no VIP to prove l2 with",
            Self::NotAsked => "nodes are not probed",
            Self::NotOnLink => "not on-link",
            Self::SharedMac => "MAC shared by nodes",
        }
    }
}

/// One VIP.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct VipStatus {
    /// `address:port`.
    pub vip: String,
    /// Socket group.
    pub group: u16,
    /// Deleted, its sockets end.
    pub draining: bool,
    /// Packets that arrived for it here, by whatever way, since it is listed.
    pub packets: u64,
}

pub(super) fn mac<S: Serializer>(mac: &[u8; 6], serializer: S) -> Result<S::Ok, S::Error> {
    let [a, b, c, d, e, f] = mac;
    serializer.collect_str(&format_args!(
        "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}"
    ))
}

pub(super) fn read_mac<'de, D: Deserializer<'de>>(deserializer: D) -> Result<[u8; 6], D::Error> {
    let text = String::deserialize(deserializer)?;
    let bytes: Option<Vec<u8>> = text
        .split(':')
        .map(|byte| u8::from_str_radix(byte, 16).ok())
        .collect();
    bytes
        .and_then(|bytes| bytes.try_into().ok())
        .ok_or_else(|| D::Error::custom("not a MAC address"))
}

fn why<S: Serializer>(why: &Why, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(why.words())
}

fn microseconds<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u64(u64::try_from(duration.as_micros()).unwrap_or(u64::MAX))
}
