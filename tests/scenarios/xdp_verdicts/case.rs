//! A case of the packet table, and what most cases are made of.

use gateway_common::hash::row_of;
use gateway_common::host::HostPacket;
use gateway_common::steer::steer;
use gateway_tests::object::{HEADROOM, INGRESS, Run, reasons};

pub(super) use gateway_tests::object::Object;

pub(super) use gateway_common::abi::{Counter, Row, config::flag, cpu_state, node_flag, state};
pub(super) use gateway_common::host::HostTables;
pub(super) use gateway_common::verdict::Action;
pub(super) use gateway_tests::object::fixture::*;
pub(super) use gateway_tests::packet::frame::{fragment, number, padding, verify};
pub(super) use gateway_tests::packet::{
    ACK, Ends, Frame, Ip, Load, RST, SYN, TcpPacket, Tunnelled, arp, ethernet,
};

/// What the host's decision makes of a packet, in the form of a kernel run.
pub(crate) fn on_host(tables: &HostTables, packet: &[u8]) -> Run {
    on_host_in(tables, packet, HEADROOM)
}

fn on_host_in(tables: &HostTables, packet: &[u8], headroom: u32) -> Run {
    let mut packet = HostPacket {
        bytes: packet.to_vec(),
        ingress: INGRESS,
        headroom,
    };
    let verdict = steer(&mut packet, tables);
    let mut cells = tables.cells.borrow().clone();
    cells.push(verdict.cell());
    cells.sort_unstable();
    Run {
        action: verdict.action(),
        bytes: packet.bytes,
        counted: reasons(&cells),
        cells,
    }
}

#[derive(Clone)]
pub(super) struct Case {
    pub(super) name: String,
    pub(super) packet: Vec<u8>,
    pub(super) rows: Vec<(u64, Row)>,
    pub(super) setups: Vec<fn(&mut HostTables)>,
    pub(super) action: Action,
    pub(super) counted: Vec<Counter>,
    pub(super) bytes: Vec<u8>,
    /// UDP sessions of this node.
    pub(super) sessions: Vec<u64>,
    /// Bytes of headroom that the packet has.
    pub(super) headroom: u32,
}

impl Case {
    /// A packet that is passed as it is.
    pub(super) fn pass(name: impl Into<String>, packet: Vec<u8>, counter: Counter) -> Self {
        let bytes = packet.clone();
        Self {
            name: name.into(),
            packet,
            rows: Vec::new(),
            setups: Vec::new(),
            sessions: Vec::new(),
            action: Action::Pass,
            counted: vec![counter],
            bytes,
            headroom: HEADROOM,
        }
    }

    /// A packet that is dropped as it is.
    pub(super) fn drop(name: impl Into<String>, packet: Vec<u8>, counter: Counter) -> Self {
        Self {
            action: Action::Drop,
            ..Self::pass(name, packet, counter)
        }
    }

    /// A packet that is sent out as `bytes`.
    pub(super) fn send(
        name: impl Into<String>,
        packet: Vec<u8>,
        counter: Counter,
        bytes: Vec<u8>,
    ) -> Self {
        Self {
            action: Action::Transmit,
            bytes,
            ..Self::pass(name, packet, counter)
        }
    }

    /// With this row for the flow of `packet`.
    pub(super) fn row(mut self, packet: &impl Steered, row: Row) -> Self {
        self.rows.push((packet.hash(), row));
        self
    }

    /// With this row for flows of this hash.
    pub(super) fn hashed(mut self, hash: u64, row: Row) -> Self {
        self.rows.push((hash, row));
        self
    }

    /// With a UDP session here.
    pub(super) fn session(mut self, hash: u64) -> Self {
        self.sessions.push(hash);
        self
    }

    /// With these changes of the tables.
    pub(super) fn setup(mut self, setup: fn(&mut HostTables)) -> Self {
        self.setups.push(setup);
        self
    }

    /// Out of the other interface.
    pub(super) fn far(self) -> Self {
        let action = Action::Redirect {
            ifindex: FAR_INTERFACE,
        };
        Self { action, ..self }
    }

    pub(super) fn also(mut self, counter: Counter) -> Self {
        self.counted.push(counter);
        self
    }

    /// The packet as it leaves although nothing else is expected of it.
    pub(super) fn leaves(self, bytes: Vec<u8>) -> Self {
        Self { bytes, ..self }
    }

    /// What is wrong with what both sides make of the packet, and what the kernel counted.
    pub(super) fn judge(
        &self,
        object: &mut Object,
        base: &HostTables,
    ) -> (Vec<String>, Vec<Counter>) {
        if !object.takes(&self.packet, self.headroom) {
            return (Vec::new(), Vec::new());
        }
        let tables = self.tables(base);
        object.write(&tables).unwrap();
        let kernel = object.run_in(&self.packet, self.headroom).unwrap();
        let mut counted = self.counted.clone();
        counted.sort_by_key(|counter| counter.slot());
        let host = on_host_in(&tables, &self.packet, self.headroom);
        let expected = Run {
            action: self.action,
            bytes: self.bytes.clone(),
            counted,
            // By node and VIP as the host has it.
            cells: host.cells.clone(),
        };
        let mut wrong = Vec::new();
        for (side, run, right) in [
            ("kernel", &kernel, object.agrees(&kernel, &expected)),
            ("host", &host, host == expected),
        ] {
            if !right {
                wrong.push(format!(
                    "{} ({side}):\n  expected {expected:02x?}\n  got      {run:02x?}",
                    self.name
                ));
            }
        }
        let leaves = !matches!(self.action, Action::Drop) && kernel.bytes != self.packet;
        if leaves && let Err(sum) = verify(&kernel.bytes, TUNNEL) {
            wrong.push(format!("{}: wrong checksum of {sum}", self.name));
        }
        (wrong, kernel.counted)
    }

    pub(super) fn tables(&self, base: &HostTables) -> HostTables {
        let mut tables = base.clone();
        for (hash, row) in &self.rows {
            tables.rows[row_of(*hash) as usize] = *row;
        }
        tables.sessions.clone_from(&self.sessions);
        for setup in &self.setups {
            setup(&mut tables);
        }
        tables
    }
}

/// A stable row that this node owns, alone.
pub(super) const MINE: Row = Row::new(ME, false, [(0, false), (0, false), (0, false)]);
/// A row in transition that this node owns, with a draining node above and a ready one below.
pub(super) const MOVING: Row = Row::new(ME, true, [(DRAINING, true), (ON_LINK, false), (0, false)]);

pub(super) fn owned_by(owner: u16) -> Row {
    Row::new(owner, false, [(ME, false), (0, false), (0, false)])
}

pub(super) fn ack() -> TcpPacket {
    TcpPacket::default()
}

pub(super) fn syn() -> TcpPacket {
    TcpPacket {
        flags: SYN,
        ..ack()
    }
}

/// The packet a hop later.
pub(super) fn aged(packet: &TcpPacket) -> TcpPacket {
    TcpPacket {
        ttl: packet.ttl - 1,
        ..packet.clone()
    }
}

/// The UDP form of a packet that this node sends, a hop later.
pub(super) fn sent(packet: &TcpPacket, to: u16, first: [u8; 2]) -> Vec<u8> {
    let source_port = 0xc000 | (hash(packet) >> 16) as u16 & 0x3fff;
    let (source, destination) = (address(ME), address(to));
    let form = Tunnelled {
        to_mac: mac(to),
        from_mac: OWN_MAC,
        source,
        destination,
        source_port,
        port: TUNNEL,
        first,
        fingerprint: FINGERPRINT,
        tos: packet.tos,
    };
    form.build(&aged(packet).build())
}

/// The case of a packet that a peer sends on by another row than ours: nobody's fingerprint is on its header.
pub(super) fn astray(mut case: Case) -> Case {
    case.bytes[46..50].fill(0);
    case
}

/// The UDP form of a packet that a peer sends here.
pub(super) fn from_peer(packet: &TcpPacket, first: [u8; 2], fingerprint: u32) -> Vec<u8> {
    let form = Tunnelled {
        to_mac: OWN_MAC,
        from_mac: mac(ON_LINK),
        source: address(ON_LINK),
        destination: address(ME),
        source_port: 50_000,
        port: TUNNEL,
        first,
        fingerprint,
        tos: 0,
    };
    form.build(&packet.build())
}

/// A packet out of [`from_peer`].
pub(super) fn opened(packet: &TcpPacket) -> TcpPacket {
    TcpPacket {
        to_mac: OWN_MAC,
        from_mac: mac(ON_LINK),
        ..packet.clone()
    }
}

/// An address of a client.
pub(super) const CLIENT: [u8; 4] = [198, 51, 100, 7];
/// An address of a client.
pub(super) const CLIENT6: [u8; 16] = six(0x77);

/// A frame from a client, both versions of it.
pub(super) fn both(vip: [u8; 4], vip6: [u8; 16], load: &Load) -> [Frame; 2] {
    [Ends::V4(CLIENT, vip), Ends::V6(CLIENT6, vip6)]
        .map(|ends| Frame::new(OWN_MAC, mac(99), ends, load.clone()))
}

/// A segment to a port.
pub(super) fn tcp(port: u16, flags: u8) -> Load {
    Load::Tcp {
        ports: [40_000, port],
        flags,
        numbers: [1, 1],
        options: Vec::new(),
        data: Vec::new(),
    }
}

/// A datagram to a port.
pub(super) fn udp(port: u16, length: usize) -> Load {
    Load::Udp {
        ports: [40_000, port],
        summed: true,
        data: (0..length).map(|byte| byte as u8).collect(),
    }
}

/// The version in a name.
pub(super) const fn version(frame: &Frame) -> &'static str {
    match frame.ends {
        Ends::V4(..) => "IPv4",
        Ends::V6(..) => "IPv6",
    }
}

/// The UDP form of a frame, unchanged, between nodes that have IPv4 addresses or IPv6 addresses.
pub(super) fn form(
    frame: &Frame,
    [from, to]: [u16; 2],
    [to_mac, from_mac]: [[u8; 6]; 2],
    first: [u8; 2],
    source_port: u16,
    over_v6: bool,
) -> Frame {
    let mut data = vec![first[0], first[1], 0, 0];
    data.extend(FINGERPRINT.to_be_bytes());
    data.extend(frame.packet());
    let load = Load::Udp {
        ports: [source_port, TUNNEL],
        summed: false,
        data,
    };
    let ends = if over_v6 {
        Ends::V6(address6(from), address6(to))
    } else {
        Ends::V4(address(from), address(to))
    };
    Frame {
        class: frame.class,
        ..Frame::new(to_mac, from_mac, ends, load)
    }
}

/// The UDP form of a frame that this node sends on for a flow with this hash, a hop later.
pub(super) fn sent_for(hash: u64, frame: &Frame, to: u16, first: [u8; 2], over_v6: bool) -> Frame {
    let port = 0xc000 | (hash >> 16) as u16 & 0x3fff;
    let form = form(
        &frame.aged(),
        [ME, to],
        [mac(to), OWN_MAC],
        first,
        port,
        over_v6,
    );
    let label = if over_v6 { hash as u32 & 0xf_ffff } else { 0 };
    Frame { label, ..form }
}

/// The UDP form of a frame that a peer sends here.
pub(super) fn arrives(frame: &Frame, first: [u8; 2], over_v6: bool) -> Frame {
    let macs = [OWN_MAC, mac(ON_LINK)];
    form(frame, [ON_LINK, ME], macs, first, 50_000, over_v6)
}
