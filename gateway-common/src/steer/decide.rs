//! The decision about a VIP packet: here, to the owner of its row, to an heir, or down the ranks.
//!
//! Two cases are plain and by far the most frequent: this node owns the row and nothing is in doubt, or another node does.
//! All others are decided out of line.
//!
//! A packet that comes from a peer is passed on only to a higher rank (as a delivery) or down the ranks (as a
//! second chance), so it cannot loop even where tables differ; the header bounds its hops besides.
//!
//! A SYN that nothing speaks against asks only whether the proxy listens for the VIP's group: our own lookup program would
//! find it that socket and no other. In doubt the kernel is asked for the packet's own socket.
//!
//! A silent owner is *suspect*: new connections go to its heir, other packets to the heir first, which passes on to the
//! owner what it does not hold: a detour, whatever the heir itself holds the owner for. From there the packet takes its
//! usual way, and a second chance never becomes a delivery again, so nothing goes round.
//!
//! A node that drains by its own decision hands on the SYNs of peers that do not know it yet, also where its proxy listens: that
//! may end before it has served them. The owner takes them as those of an heir, whomever it holds for the owner itself.
//!
//! A connection that this node ended leaves a socket in TIME_WAIT, also across a restart of the proxy. A client that opens
//! another one from the same port may be at another node by then: such a socket takes only what nobody else has.
//!
//! UDP has no sockets that tell whose a packet is, but sessions. A packet of no known session belongs to the owner of its
//! row: after those who may know it have been asked it comes back there, as a second chance, and is taken.

mod held;
mod others;

pub(super) use self::held::held;
use self::held::{COOKIE, LISTENER, NOTHING, SOCKET, WAITED};
pub(super) use self::others::first_from;
use super::flow::Flow;
use super::forward::{Errand, Purpose};
use super::heartbeat::{self, Proxy};
use super::place::{Place, kind};
use super::tables::is_from_peer;
use super::{Tables, forward};
use crate::abi::row::ROW_NODES;
use crate::abi::{Counter, LiveConfig, NodeIndex, Row, VipCell, config::flag, cpu_state, vip_flag};
use crate::encap::{MAX_HOPS, NOBODYS, Phase, Tunnel};
use crate::hash::row_of;
use crate::packet::protocol;
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
    /// It is a SYN beyond the budget: answered by a cookie if the kernel makes one, else decided about once more as
    /// [`kind::NO_COOKIE`].
    Cookie,
}

impl Next {
    const SEND: u64 = 1 << 62;
    const COOKIE: u64 = 1 << 61;

    /// One word, as functions out of line hand it back.
    #[inline(always)]
    pub(super) const fn pack(self) -> u64 {
        match self {
            Self::Stay(verdict) => verdict.pack(),
            Self::Send(errand) => Self::SEND | errand.pack(),
            Self::Cookie => Self::COOKIE,
        }
    }

    /// What [`Self::pack`] packed.
    #[inline(always)]
    pub(super) const fn unpack(word: u64) -> Self {
        if let Some(verdict) = Verdict::unpack(word) {
            Self::Stay(verdict)
        } else if word & Self::SEND != 0 {
            Self::Send(Errand::unpack(word))
        } else {
            Self::Cookie
        }
    }
}

/// Decides about a VIP packet; `arrival` is what the tunnel said that it came out of. A `PLAIN` one is delivered at once if
/// nothing speaks against it.
#[inline(always)]
pub(super) fn next<T: Tables, const PLAIN: bool>(
    packet: &mut T::Packet,
    tables: &T,
    config: LiveConfig<'_>,
    mut place: Place,
    flow: &Flow,
    arrival: Option<Tunnel>,
) -> Next {
    if flow.vip & (vip_flag::LOCAL_ONLY | vip_flag::SHARED) != 0 {
        return Next::Stay(Verdict::pass_in(VipCell::LocalOnly.cell(flow.number)));
    }
    let row = tables.row(row_of(flow.hash)).unwrap_or_default();
    let (owner, me) = (row.owner(), config.self_index() as NodeIndex);
    if arrival.is_none() {
        if owner == me {
            let certain = !row.in_transition()
                && config.flags() & flag::DRAINING == 0
                && heartbeat::proxy(tables, config) == Proxy::Alive;
            if certain && !flow.syn {
                return Next::Stay(Verdict::pass_in(VipCell::Owned.cell(flow.number)));
            }
            if certain && tables.listens(flow.group) {
                tables.count(VipCell::Other.cell(flow.number));
                return admit(tables, config);
            }
            if PLAIN && !flow.syn && place.protocol == protocol::TCP {
                match tables.call_held(packet, place.pack()) {
                    SOCKET => {
                        tables.count(VipCell::Other.cell(flow.number));
                        return Next::Stay(Verdict::pass(Counter::OwnSocket));
                    }
                    NOTHING | LISTENER => place.kind |= kind::NOT_HELD,
                    _ => {}
                }
            }
        } else if owner != 0 && !row.is_outranked() && !tables.suspect(owner) {
            tables.count(VipCell::Other.cell(flow.number));
            if PLAIN
                && let Some(verdict) =
                    forward::plain(packet, tables, config, place, flow.hash, owner)
            {
                return Next::Stay(verdict);
            }
            return Next::Send(Errand {
                to: owner,
                purpose: Purpose::Deliver,
                fingerprint: config.fingerprint(),
            });
        }
    }
    tables.count(VipCell::Other.cell(flow.number));
    let arrival = arrival.map_or(0, Tunnel::pack);
    let place = place.of_flow(flow.syn).pack();
    Next::unpack(tables.call_decide(packet, place, flow.hash, arrival))
}

/// A SYN for which this node has a listening socket.
#[inline(always)]
fn admit<T: Tables>(tables: &T, config: LiveConfig<'_>) -> Next {
    let limit = config.syn_limit();
    if limit == 0 || heartbeat::take(tables, config, cpu_state::SYNS, limit) {
        Next::Stay(Verdict::pass(Counter::OwnSyn))
    } else {
        Next::Cookie
    }
}

/// Decides about a packet in any case, in one word.
#[inline(always)]
pub(super) fn decide<T: Tables>(
    packet: &mut T::Packet,
    tables: &T,
    place: Place,
    hash: u64,
    arrival: u64,
) -> u64 {
    let Some(config) = tables.config() else {
        return Verdict::pass(Counter::NotConfigured).pack();
    };
    let mut decision = Decision {
        packet,
        tables,
        config,
        place,
        hash,
        arrival: Tunnel::unpack(arrival),
        row: tables.row(row_of(hash)).unwrap_or_default(),
        me: config.self_index() as NodeIndex,
        strays: false,
        waited: false,
    };
    decision.next().pack()
}

/// A packet, its row and what they are judged by.
struct Decision<'a, T: Tables> {
    packet: &'a mut T::Packet,
    tables: &'a T,
    config: LiveConfig<'a>,
    place: Place,
    hash: u64,
    arrival: Option<Tunnel>,
    row: Row,
    me: NodeIndex,
    /// A peer sent the packet here whose row names another owner than ours.
    strays: bool,
    /// Whether an earlier connection of the flow waits here for its last packets: others are asked first, and if they
    /// have none the packet must not be answered with a reset.
    waited: bool,
}

/// What becomes of a packet that nobody here holds.
#[derive(Clone, Copy)]
struct Miss {
    /// Node to send it to; 0: down the ranks.
    to: NodeIndex,
    /// Why that node.
    purpose: Purpose,
    /// Place among the other nodes where the way down begins.
    from: usize,
    /// Whether it is a SYN for which this node should have a listener.
    own_syn: bool,
}

impl<T: Tables> Decision<'_, T> {
    #[inline(always)]
    fn next(&mut self) -> Next {
        let miss = match self.before_lookup() {
            Ok(miss) => miss,
            Err(next) => return next,
        };
        // Before the socket is looked up, which the kernel's cookie needs anyway.
        if miss.own_syn && !self.place.is(kind::NO_COOKIE) {
            let limit = self.config.syn_limit();
            if limit != 0 && !heartbeat::take(self.tables, self.config, cpu_state::SYNS, limit) {
                return Next::Cookie;
            }
        }
        if let Some(counter) = self.held() {
            return Next::Stay(Verdict::pass(counter));
        }
        if miss.own_syn {
            heartbeat::no_listener(self.tables);
        }
        if miss.to != 0 {
            return self.send(miss.to, miss.purpose);
        }
        self.down(miss.from)
    }

    /// What needs no look at sockets and sessions, and what becomes of the rest if none has it.
    #[inline(always)]
    fn before_lookup(&mut self) -> Result<Miss, Next> {
        let owner = self.row.owner();
        let mut miss = Miss {
            to: 0,
            purpose: Purpose::Search,
            from: 0,
            own_syn: false,
        };
        let suspect = owner != 0 && owner != self.me && self.tables.suspect(owner);
        if self.is_second_chance() {
            if self.is_udp() && owner == self.me {
                return Err(Next::Stay(Verdict::pass(Counter::OwnPass)));
            }
            miss.from = self.below_me();
            return Ok(miss);
        }
        let detour = self
            .arrival
            .is_some_and(|tunnel| tunnel.phase == Phase::Detour);
        if detour && owner != self.me && owner != 0 {
            (miss.to, miss.purpose) = (owner, Purpose::Deliver);
            return Ok(miss);
        }
        if owner == self.me {
            let proxy = heartbeat::proxy(self.tables, self.config);
            let leaving = self.config.flags() & flag::DRAINING != 0 || proxy == Proxy::Silent;
            miss.own_syn = self.is_syn();
            if !miss.own_syn && !self.row.in_transition() && !leaving && proxy != Proxy::Doubtful {
                return Err(Next::Stay(Verdict::pass(Counter::OwnPass)));
            }
            if !(miss.own_syn && leaving) {
                return Ok(miss);
            }
        } else if owner == 0 {
            if self.row.next(0) == 0 {
                return Err(Next::Stay(Verdict::drop(Counter::NoOwner)));
            }
            return Ok(miss);
        } else if !self.ranks_below_owner() && self.comes_from_peer() {
            // A peer took this node for the owner, but here the owner ranks lower (this node joins or leaves), or may do so
            // (the row has no room for this node): a delivery might come back.
            self.strays = true;
            miss.to = owner;
            if self.is_syn() {
                miss.purpose = Purpose::Inherit;
                // Its proxy would take it, and may end before it has served it.
                if self.config.flags() & flag::DRAINING != 0 && !suspect {
                    return Err(self.send(owner, Purpose::Inherit));
                }
            }
            return Ok(miss);
        } else if !suspect {
            return Err(self.send(owner, Purpose::Deliver));
        } else if !self.is_syn() && self.comes_from_peer() {
            // A peer took this node for the owner: a detour might lead back to it.
            self.strays = true;
            miss.to = owner;
            return Ok(miss);
        }
        self.for_heir(owner, miss)
    }

    /// A packet of a suspect owner, or a SYN of this node while it is leaving: it goes to the heir, which for another
    /// node's rows may be this one.
    #[inline(always)]
    fn for_heir(&self, owner: NodeIndex, mut miss: Miss) -> Result<Miss, Next> {
        let heir = self.first_from(0, true, true);
        if heir == self.me {
            if self.is_syn() {
                miss.from = self.below_me();
            } else {
                (miss.to, miss.purpose) = (owner, Purpose::Deliver);
            }
            return Ok(miss);
        }
        if heir != 0 {
            let purpose = if self.is_syn() {
                Purpose::Inherit
            } else {
                Purpose::Detour
            };
            return Err(self.send(heir, purpose));
        }
        if owner == self.me {
            return Ok(miss);
        }
        Err(self.send(owner, Purpose::Deliver))
    }

    /// To the next rank, from place `from` of the other nodes on, that may take the packet.
    #[inline(always)]
    fn down(&self, from: usize) -> Next {
        let fingerprint = self.fingerprint();
        let syn = self.is_syn();
        // UDP keeps one hop for the way back to the owner.
        let to = if self.is_udp() && self.hops() <= 1 {
            0
        } else {
            self.first_from(from, false, syn)
        };
        if to != 0 {
            let purpose = if syn {
                Purpose::Inherit
            } else {
                Purpose::Search
            };
            return self.send(to, purpose);
        }
        let owner = self.row.owner();
        if self.waited {
            Next::Stay(Verdict::pass(Counter::OwnSocket))
        } else if syn && owner == 0 {
            Next::Stay(Verdict::drop(Counter::NoOwner))
        } else if syn {
            Next::Stay(Verdict::drop(Counter::SynNoListener))
        } else if self.is_udp() && (owner == self.me || owner == 0) {
            Next::Stay(Verdict::pass(Counter::OwnPass))
        } else if self.is_udp() {
            self.send(owner, Purpose::Search)
        } else if fingerprint == self.config.fingerprint() {
            Next::Stay(Verdict::pass(Counter::ExhaustedPass))
        } else {
            Next::Stay(Verdict::drop(Counter::ExhaustedDrop))
        }
    }

    /// The membership fingerprint of all nodes on the packet's way so far, as far as they are known; [`NOBODYS`] if they do
    /// not agree: a node in between may have left out whom the others would have asked. Also if an earlier connection
    /// waits here.
    #[inline(always)]
    fn fingerprint(&self) -> u32 {
        let own = self.config.fingerprint();
        match self.arrival {
            Some(tunnel) if tunnel.fingerprint != own => NOBODYS,
            _ if self.strays || self.waited => NOBODYS,
            _ => own,
        }
    }

    #[inline(always)]
    fn is_second_chance(&self) -> bool {
        self.arrival
            .is_some_and(|tunnel| tunnel.phase == Phase::SecondChance)
    }

    /// Times that the packet may still be sent on.
    #[inline(always)]
    fn hops(&self) -> u8 {
        match self.arrival {
            Some(tunnel) => tunnel.hops,
            None if self.comes_from_peer() => MAX_HOPS - 1,
            None => MAX_HOPS,
        }
    }

    #[inline(always)]
    fn send(&self, to: NodeIndex, purpose: Purpose) -> Next {
        Next::Send(Errand {
            to,
            purpose,
            fingerprint: self.fingerprint(),
        })
    }

    #[inline(always)]
    fn is_syn(&self) -> bool {
        self.place.is(kind::SYN)
    }

    /// Whether the packet has sessions instead of sockets.
    #[inline(always)]
    fn is_udp(&self) -> bool {
        self.place.protocol == protocol::UDP
    }

    /// Why the packet stays here, if a socket or a session takes it.
    #[inline(always)]
    fn held(&mut self) -> Option<Counter> {
        if self.is_udp() {
            return self
                .tables
                .session(self.hash)
                .then_some(Counter::OwnSession);
        }
        if self.place.is(kind::NOT_HELD) && !self.is_syn() {
            return None;
        }
        match self.tables.call_held(self.packet, self.place.pack()) {
            NOTHING => None,
            _ if self.is_syn() => Some(Counter::OwnSyn),
            LISTENER => None,
            COOKIE => Some(Counter::OwnCookie),
            WAITED => {
                self.waited = true;
                None
            }
            _ => Some(Counter::OwnSocket),
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

    /// [`first_from`], out of line.
    #[inline(always)]
    fn first_from(&self, from: usize, or_me: bool, ready: bool) -> NodeIndex {
        self.tables
            .call_first(self.row.0, from as u64, or_me, ready) as NodeIndex
    }

    /// Whether this node ranks below the owner of the row, as far as the row has room to say so.
    #[inline(always)]
    fn ranks_below_owner(&self) -> bool {
        let mut i = 0;
        while i < OTHERS {
            if self.row.next(i) == self.me {
                return !self.row.outranks_owner(i);
            }
            i += 1;
        }
        self.row.next(OTHERS - 1) == 0
    }

    /// Whether a peer sent the packet here.
    #[inline(always)]
    fn comes_from_peer(&self) -> bool {
        self.arrival.is_some() || is_from_peer(self.packet, self.tables, self.config)
    }
}

#[cfg(test)]
mod tests;
