//! The cases of the test runs: one path through the decision each, or a floor.

use gateway_common::abi::{Counter, Row};

use super::frames::{
    ACK, CLIENT_PORT, DNS, FLOODED, Frame, OTHER_PORT, SILENT, STRANGER, SYN, VIP, VIP6, WEB,
};
use super::sockets::CONNECTIONS;
use super::tables::{IN_VLAN, OTHER, OVER_V6, SELF, Setting, VLAN, address};

const DROP: u32 = 1;
const PASS: u32 = 2;
const TX: u32 = 3;

const FEW: u32 = 10_000;
const MANY: u32 = 100_000;
/// The flow's number has 20 bits.
const MOST: u32 = 1_000_000;

pub(super) const STUB: &str = "floor: stub";
pub(super) const PUSH_V4: &str = "floor: push and pop 36 bytes";
pub(super) const PUSH_V6: &str = "floor: push and pop 56 bytes";
pub(super) const POP: &str = "floor: pop and push 36 bytes";
pub(super) const C_STUB: &str = "C floor: stub";
pub(super) const C_PUSH: &str = "C floor: push and pop 36 bytes";

/// The cases that others are compared with.
pub(super) const ACK_L2: &str = "ACK to another node, MAC rewrite, 10k flows";
pub(super) const ACK_L2_1M: &str = "ACK to another node, MAC rewrite, 1M flows";
pub(super) const ACK_UDP: &str = "ACK to another node, UDP, 10k flows";
pub(super) const OWN: &str = "ACK, own row, 10k flows";
pub(super) const STRANGE_TCP: &str = "not a VIP: TCP";
pub(super) const SYN_L2_1M: &str = "SYN flood, 1M sources, to another node";
pub(super) const SYN_OWN: &str = "SYN flood, 1M sources, own row, listener found";
pub(super) const HIT: &str = "second chance, hit among 10k sockets";
pub(super) const MISS: &str = "second chance, miss among 10k sockets, on by UDP";

/// A case and the same path in C.
pub(super) const TWINS: [(&str, &str); 5] = [
    (ACK_L2, "C: ACK to another node, MAC rewrite, 10k flows"),
    (ACK_L2_1M, "C: ACK to another node, MAC rewrite, 1M flows"),
    (ACK_UDP, "C: ACK to another node, UDP, 10k flows"),
    (OWN, "C: ACK, own row, 10k flows"),
    (STRANGE_TCP, "C: not a VIP: TCP"),
];

/// One path through the decision, or a floor.
#[derive(Clone, Debug)]
pub(super) struct Case {
    pub(super) name: &'static str,
    /// The floor to take off; `None` for a floor itself.
    pub(super) floor: Option<&'static str>,
    /// Highest difference to the floor, in ns.
    pub(super) bar: Option<f64>,
    pub(super) program: &'static str,
    pub(super) frame: Frame,
    pub(super) flows: u32,
    pub(super) row: Row,
    pub(super) setting: Setting,
    pub(super) action: u32,
    /// What each pass must count; `None` for floors, which count nothing.
    pub(super) counter: Option<Counter>,
}

/// All cases in the order in which they run. Those in C, if there is such a program, run right after those that they copy.
pub(super) fn cases(with_c: bool) -> Vec<Case> {
    let mut floors = floors();
    if with_c {
        floors.extend(c_floors());
    }
    let paths = [
        elsewhere(),
        v6().into(),
        here().into(),
        strangers(),
        unusual().into(),
        syns().into(),
    ];
    let with_twin = |case: Case| {
        let twin = with_c.then(|| twin(&case)).flatten();
        std::iter::once(case).chain(twin)
    };
    floors
        .into_iter()
        .chain(paths.concat().into_iter().flat_map(with_twin))
        .collect()
}

/// A row that `owner` owns; the other one comes next.
fn row(owner: u16) -> Row {
    let next = if owner == SELF { OTHER } else { SELF };
    Row::new(owner, false, [(next, false), (0, false), (0, false)])
}

/// A row of this node in transition: the other node may hold its sockets.
fn moving() -> Row {
    Row::new(SELF, true, [(OTHER, true), (0, false), (0, false)])
}

/// An ACK on a row that this node owns.
fn own() -> Case {
    Case {
        name: OWN,
        floor: Some(STUB),
        bar: None,
        program: "bench_decide",
        frame: Frame::tcp(VIP, OTHER_PORT, WEB, ACK),
        flows: FEW,
        row: row(SELF),
        setting: Setting::default(),
        action: PASS,
        counter: Some(Counter::OwnPass),
    }
}

/// An ACK on a row that another node owns.
fn rewritten(name: &'static str, flows: u32) -> Case {
    Case {
        name,
        flows,
        row: row(OTHER),
        action: TX,
        counter: Some(Counter::ForwardL2),
        bar: Some(70.0),
        ..own()
    }
}

/// The same in the UDP form.
fn encapsulated(name: &'static str, flows: u32) -> Case {
    Case {
        setting: Setting {
            encapsulate: true,
            ..Setting::default()
        },
        floor: Some(PUSH_V4),
        counter: Some(Counter::ForwardUdp),
        ..rewritten(name, flows)
    }
}

fn floors() -> Vec<Case> {
    let stub = Case {
        name: STUB,
        program: "bench_stub",
        floor: None,
        counter: None,
        ..own()
    };
    let floor = |name, program, action| Case {
        name,
        program,
        action,
        ..stub.clone()
    };
    let mut popped = floor(POP, "bench_pop", PASS);
    popped.frame = popped.frame.tunnelled(address(OTHER), address(SELF));
    let pushed = [
        floor(PUSH_V4, "bench_push_v4", TX),
        floor(PUSH_V6, "bench_push_v6", TX),
    ];
    [vec![stub], pushed.to_vec(), vec![popped]].concat()
}

fn c_floors() -> [Case; 2] {
    let stub = Case {
        name: C_STUB,
        program: "c_stub",
        floor: None,
        counter: None,
        ..own()
    };
    let push = Case {
        name: C_PUSH,
        program: "c_push",
        action: TX,
        ..stub.clone()
    };
    [stub, push]
}

/// The case in C, if there is one.
fn twin(case: &Case) -> Option<Case> {
    let (_, name) = TWINS.iter().find(|(name, _)| *name == case.name)?;
    let floor = case
        .floor
        .map(|floor| if floor == PUSH_V4 { C_PUSH } else { C_STUB });
    Some(Case {
        name,
        floor,
        bar: None,
        program: "c_decide",
        ..case.clone()
    })
}

fn elsewhere() -> Vec<Case> {
    let udp = |name, case: Case| Case {
        frame: Frame::udp(VIP, DNS),
        name,
        ..case
    };
    vec![
        rewritten("ACK to another node, MAC rewrite, 1 flow", 1),
        rewritten(ACK_L2, FEW),
        rewritten("ACK to another node, MAC rewrite, 100k flows", MANY),
        rewritten(ACK_L2_1M, MOST),
        encapsulated("ACK to another node, UDP, 1 flow", 1),
        encapsulated(ACK_UDP, FEW),
        encapsulated("ACK to another node, UDP, 100k flows", MANY),
        encapsulated("ACK to another node, UDP, 1M flows", MOST),
        udp(
            "UDP to another node, MAC rewrite, 10k flows",
            rewritten("", FEW),
        ),
        udp("UDP to another node, UDP, 10k flows", encapsulated("", FEW)),
        Case {
            setting: Setting {
                many: true,
                ..Setting::default()
            },
            ..rewritten("ACK to another node, MAC rewrite, 2,000 VIPs", FEW)
        },
    ]
}

fn v6() -> [Case; 3] {
    let on = |name, case: Case| Case {
        name,
        frame: Frame::tcp_v6(VIP6, WEB, ACK),
        bar: Some(85.0),
        ..case
    };
    let over_v6 = Case {
        row: row(OVER_V6),
        setting: Setting {
            encapsulate: true,
            over_v6: true,
            ..Setting::default()
        },
        floor: Some(PUSH_V6),
        ..on(
            "IPv6 ACK to another node, UDP over IPv6, 10k flows",
            encapsulated("", FEW),
        )
    };
    [
        on(
            "IPv6 ACK to another node, MAC rewrite, 10k flows",
            rewritten("", FEW),
        ),
        on(
            "IPv6 ACK to another node, UDP over IPv4, 10k flows",
            encapsulated("", FEW),
        ),
        over_v6,
    ]
}

fn here() -> [Case; 4] {
    let decapsulated = Case {
        name: "ACK out of the tunnel, own row, 10k flows",
        frame: own().frame.tunnelled(address(OTHER), address(SELF)),
        floor: Some(POP),
        ..own()
    };
    let hit = Case {
        name: HIT,
        frame: Frame::tcp(VIP, CLIENT_PORT, WEB, ACK),
        flows: CONNECTIONS,
        row: moving(),
        counter: Some(Counter::OwnSocket),
        ..own()
    };
    let miss = Case {
        name: MISS,
        frame: own().frame,
        action: TX,
        floor: Some(PUSH_V4),
        counter: Some(Counter::SecondChance),
        ..hit.clone()
    };
    [own(), decapsulated, hit, miss]
}

fn strangers() -> Vec<Case> {
    let of = |name, frame| Case {
        name,
        frame,
        counter: Some(Counter::NotOurs),
        bar: Some(30.0),
        ..own()
    };
    let one = |case: Case| Case { flows: 1, ..case };
    let tcp = Frame::tcp(STRANGER, OTHER_PORT, WEB, ACK);
    vec![
        of(STRANGE_TCP, tcp.clone()),
        of("not a VIP: UDP", Frame::udp(STRANGER, DNS)),
        of("not a VIP: ICMP echo", Frame::echo(STRANGER)),
        of("not a VIP: neither TCP nor UDP (ESP)", Frame::esp(STRANGER)),
        one(of("no IP (LLDP)", Frame::lldp())),
        Case {
            setting: Setting {
                many: true,
                ..Setting::default()
            },
            ..of("not a VIP: TCP, 2,000 VIPs", tcp)
        },
    ]
}

fn unusual() -> [Case; 2] {
    let tagged = rewritten("ACK in a VLAN to another node, MAC rewrite, 10k flows", FEW);
    let tagged = Case {
        frame: tagged.frame.tagged(VLAN),
        row: row(IN_VLAN),
        bar: None,
        ..tagged
    };
    let error = Case {
        frame: Frame::too_big(VIP, WEB),
        bar: None,
        ..rewritten("ICMP error to another node, MAC rewrite, 10k flows", FEW)
    };
    [tagged, error]
}

fn syns() -> [Case; 4] {
    let syn = |port| Frame::tcp(VIP, OTHER_PORT, port, SYN);
    let found = Case {
        name: SYN_OWN,
        frame: syn(WEB),
        flows: MOST,
        counter: Some(Counter::OwnSyn),
        ..own()
    };
    let refused = Case {
        name: "SYN flood, 1M sources, own row, nobody listens: drop",
        frame: syn(SILENT),
        row: Row::new(SELF, false, [(0, false); 3]),
        action: DROP,
        counter: Some(Counter::SynNoListener),
        ..found.clone()
    };
    let answered = Case {
        name: "SYN flood, 1M sources, own row, answered by cookies",
        frame: syn(FLOODED),
        setting: Setting {
            flooded: true,
            ..Setting::default()
        },
        action: TX,
        counter: Some(Counter::SynCookie),
        bar: Some(330.0),
        ..found.clone()
    };
    let elsewhere = Case {
        frame: syn(WEB),
        bar: None,
        ..rewritten(SYN_L2_1M, MOST)
    };
    [elsewhere, found, refused, answered]
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_are_unique_and_every_floor_is_a_case() {
        let cases = cases(true);
        let names: BTreeSet<&str> = cases.iter().map(|case| case.name).collect();
        assert_eq!(names.len(), cases.len());
        for floor in cases.iter().filter_map(|case| case.floor) {
            let floor = cases.iter().find(|case| case.name == floor).expect(floor);
            assert!(floor.floor.is_none() && floor.counter.is_none());
        }
        for name in TWINS.iter().flat_map(|(rust, c)| [rust, c]) {
            assert!(names.contains(name), "{name}");
        }
        for name in [HIT, MISS, SYN_L2_1M, SYN_OWN] {
            assert!(names.contains(name), "{name}");
        }
    }

    #[test]
    fn a_twin_differs_in_program_and_floor_alone() {
        let case = encapsulated(ACK_UDP, FEW);
        let twin = twin(&case).unwrap();
        assert_eq!((twin.program, twin.floor), ("c_decide", Some(C_PUSH)));
        assert_eq!((twin.frame, twin.row), (case.frame, case.row));
        assert_eq!((twin.counter, twin.setting), (case.counter, case.setting));
    }
}
