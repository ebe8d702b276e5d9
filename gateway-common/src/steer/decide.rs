//! The decision about a VIP packet: here, to the owner of its row, to an heir, or down the ranks.
//!
//! A packet that comes from a peer is passed on only to a higher rank (as a delivery) or down the ranks (as a
//! second chance), so it cannot loop even where tables differ; the header bounds its hops besides.

use super::forward::{Errand, Purpose};
use super::heartbeat::proxy_alive;
use super::tables::{is_peer_mac, node};
use super::{Arrival, Flow, Local, Tables};
use crate::abi::row::ROW_NODES;
use crate::abi::{Counter, LiveConfig, NodeIndex, Row, config::flag, node_flag};
use crate::encap::Phase;
use crate::hash::row_of;
use crate::packet::{Ethernet, Packet};
use crate::verdict::Verdict;

/// Nodes of a row beside its owner.
const OTHERS: usize = ROW_NODES - 1;

/// What is decided about a VIP packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// It goes no further than this node.
    Stay(Verdict),
    /// It goes to another node.
    Send(Errand),
}

/// Decides about a VIP packet.
#[inline(always)]
pub(super) fn decide<T: Tables>(
    packet: &T::Packet,
    tables: &T,
    config: LiveConfig<'_>,
    flow: &Flow,
) -> Next {
    let row = tables.row(row_of(flow.hash)).unwrap_or_default();
    Decision {
        packet,
        tables,
        config,
        flow,
        row,
        me: config.self_index() as NodeIndex,
    }
    .next()
}

/// A packet, its row and what they are judged by.
struct Decision<'a, T: Tables> {
    packet: &'a T::Packet,
    tables: &'a T,
    config: LiveConfig<'a>,
    flow: &'a Flow,
    row: Row,
    me: NodeIndex,
}

impl<T: Tables> Decision<'_, T> {
    #[inline(always)]
    fn next(&self) -> Next {
        if let Arrival::Tunnel(tunnel) = self.flow.arrival
            && tunnel.phase == Phase::SecondChance
        {
            return self.here_or_down(self.below_me(), tunnel.fingerprint);
        }
        let owner = self.row.owner();
        if owner == self.me {
            self.own()
        } else if owner == 0 {
            self.without_owner()
        } else if self.outranks_owner() && self.comes_from_peer() {
            self.superior(owner)
        } else {
            self.send(owner, Purpose::Deliver)
        }
    }

    /// This node owns the row.
    #[inline(always)]
    fn own(&self) -> Next {
        let leaving =
            self.config.flags() & flag::DRAINING != 0 || !proxy_alive(self.tables, self.config);
        if self.flow.syn {
            return self.own_syn(leaving);
        }
        if self.row.in_transition() || leaving {
            return self.here_or_down(0, self.config.fingerprint());
        }
        Next::Stay(Verdict::pass(Counter::OwnPass))
    }

    /// A SYN for this node: to its listener, unless it is leaving or has none and another node is ready.
    #[inline(always)]
    fn own_syn(&self, leaving: bool) -> Next {
        let heir = if leaving { self.ready_from(0) } else { 0 };
        if heir != 0 {
            return self.send(heir, Purpose::Inherit);
        }
        self.here_or_down(0, self.config.fingerprint())
    }

    /// No node is ready: whoever holds the flow, or still listens, keeps it.
    #[inline(always)]
    fn without_owner(&self) -> Next {
        let next = if self.row.next(0) == 0 {
            Next::Stay(Verdict::drop(Counter::NoOwner))
        } else {
            self.here_or_down(0, self.config.fingerprint())
        };
        match next {
            Next::Stay(Verdict {
                counter: Counter::SynNoListener,
                ..
            }) => Next::Stay(Verdict::drop(Counter::NoOwner)),
            next => next,
        }
    }

    /// A peer took this node for the owner, but here the owner ranks lower (this node joins or leaves): what this
    /// node does not hold goes down to the owner.
    #[inline(always)]
    fn superior(&self, owner: NodeIndex) -> Next {
        match self.held() {
            Some(counter) => Next::Stay(Verdict::pass(counter)),
            None if self.flow.syn => self.send(owner, Purpose::Inherit),
            None => self.send(owner, Purpose::Search),
        }
    }

    /// Keeps the packet if a socket here takes it, else sends it to the next rank, from place `from` of the other
    /// nodes on, that may take it. `fingerprint` is that of the node where this search began.
    #[inline(always)]
    fn here_or_down(&self, from: usize, fingerprint: u32) -> Next {
        if let Some(counter) = self.held() {
            return Next::Stay(Verdict::pass(counter));
        }
        if self.flow.syn {
            return match self.ready_from(from) {
                0 => Next::Stay(Verdict::drop(Counter::SynNoListener)),
                to => Next::Send(Errand {
                    to,
                    purpose: Purpose::Inherit,
                    fingerprint,
                }),
            };
        }
        match self.next_from(from) {
            0 if fingerprint == self.config.fingerprint() => {
                Next::Stay(Verdict::pass(Counter::ExhaustedPass))
            }
            0 => Next::Stay(Verdict::drop(Counter::ExhaustedDrop)),
            to => Next::Send(Errand {
                to,
                purpose: Purpose::Search,
                fingerprint,
            }),
        }
    }

    #[inline(always)]
    fn send(&self, to: NodeIndex, purpose: Purpose) -> Next {
        Next::Send(Errand {
            to,
            purpose,
            fingerprint: self.config.fingerprint(),
        })
    }

    /// Why the packet stays here, if a socket takes it.
    #[inline(always)]
    fn held(&self) -> Option<Counter> {
        match self.tables.local(self.packet, &self.flow.tuple) {
            Local::None => None,
            _ if self.flow.syn => Some(Counter::OwnSyn),
            Local::Listener => None,
            Local::Cookie => Some(Counter::OwnCookie),
            Local::Flow => Some(Counter::OwnSocket),
        }
    }

    /// First place of the other nodes that ranks below this node; past the end where this node is not in the row.
    #[inline(always)]
    fn below_me(&self) -> usize {
        let owns = self.row.owner() == self.me;
        let mut i = 0;
        while i < OTHERS {
            if owns && !self.row.outranks_owner(i) {
                return i;
            }
            if self.row.next(i) == self.me {
                return i + 1;
            }
            i += 1;
        }
        OTHERS
    }

    /// The first of the other nodes from place `from` on that is not this one; 0 if there is none.
    #[inline(always)]
    fn next_from(&self, from: usize) -> NodeIndex {
        self.first_from(from, |_| true)
    }

    /// The same, of those that are ready and not suspected.
    #[inline(always)]
    fn ready_from(&self, from: usize) -> NodeIndex {
        self.first_from(from, |index| {
            let ready = |flags| flags & node_flag::READY != 0;
            !self.tables.suspect(index)
                && node(self.tables, self.config, index).is_some_and(|entry| ready(entry.flags))
        })
    }

    #[inline(always)]
    fn first_from(&self, from: usize, suits: impl Fn(NodeIndex) -> bool) -> NodeIndex {
        let mut i = 0;
        while i < OTHERS {
            let index = self.row.next(i);
            if i >= from && index != 0 && index != self.me && suits(index) {
                return index;
            }
            i += 1;
        }
        0
    }

    /// Whether this node is in the row and ranks above its owner.
    #[inline(always)]
    fn outranks_owner(&self) -> bool {
        let mut i = 0;
        while i < OTHERS {
            if self.row.next(i) == self.me {
                return self.row.outranks_owner(i);
            }
            i += 1;
        }
        false
    }

    /// Whether a peer sent the packet here.
    #[inline(always)]
    fn comes_from_peer(&self) -> bool {
        matches!(self.flow.arrival, Arrival::Tunnel(_))
            || self
                .packet
                .read::<Ethernet>(0)
                .is_some_and(|ethernet| is_peer_mac(self.tables, self.config, &ethernet.source))
    }
}
