//! Kernel and host agree: random packets through both, with equal action, reason and bytes.

use std::collections::BTreeMap;

use gateway_common::abi::trace::want;
use gateway_common::abi::{Row, TraceFilter, config::flag};
use gateway_common::host::HostTables;
use gateway_common::packet::mapped;
use gateway_common::probe::Probe;
use gateway_common::verdict::Verdict;
use gateway_tests::object::fixture::{
    DELETED, DNS, DRAINING, FAR_INTERFACE, FINGERPRINT, FLAT, FLAT6, HERE, LISTED, LISTED6,
    LISTENING, ME, NARROW, ON_LINK, PROBE_KEY, PROBE_KEY_PREVIOUS, ROUTED, SHARED, SHARED6,
    Sockets, Steered, TAGGED, TUNNEL, VIP, VIP6, VLAN, address, address6, change_node,
    listen_for_group, mac, over_v6, served_by_group, six, tables,
};
use gateway_tests::object::{Form, HEADROOM, Object, fresh_namespace, on_one_processor};
use gateway_tests::packet::frame::{fragment, number, padding};
use gateway_tests::packet::{Ends, Frame, Load, SYN, TcpPacket, arp};

use crate::xdp_verdicts::{on_host, probe, question};

/// Tables to try, and packets through each.
const TABLES: u64 = 24;
const PACKETS: u64 = 900;

#[test]
fn xdp_agree_on_random_packets() {
    agree_on_random_packets(Form::Xdp);
}

#[test]
fn tc_agree_on_random_packets() {
    agree_on_random_packets(Form::Tc);
}

fn agree_on_random_packets(form: Form) {
    fresh_namespace().unwrap();
    // Budgets are each processor's own; the host has one.
    on_one_processor().unwrap();
    let mut object = Object::of(form).unwrap();
    object.add_device(FAR_INTERFACE).unwrap();
    let mut base = tables();
    let mut sockets = Sockets::open(&mut base).unwrap();
    // Which cookie the kernel makes the host does not know: it makes none while its queue has room, but takes those it made.
    std::fs::write("/proc/sys/net/ipv4/tcp_syncookies", "1").unwrap();
    // Every window is over at first, and then lasts.
    base.jiffies = 1 << 40;
    base.config.window_jiffies = 1_000_000;
    let _proxy = listen_for_group(&mut base, &mut object).unwrap();
    let (mut counted, mut traced) = (BTreeMap::new(), BTreeMap::new());
    for seed in 0..TABLES {
        sockets.refresh().unwrap();
        let mut random = Random(seed);
        let mut tables = random.tables(&base);
        tables.filter = random.filter(seed);
        tables.config.trace = u32::from(seed % 3 != 0);
        object.set_filter(&tables.filter).unwrap();
        object.write(&tables).unwrap();
        for i in 0..PACKETS {
            let packet = random.packet(&sockets);
            if !object.takes(&packet, HEADROOM) {
                continue;
            }
            let (kernel, host) = (object.run(&packet).unwrap(), on_host(&tables, &packet));
            assert!(
                object.agrees(&kernel, &host),
                "seed {seed}, packet {i}: {packet:02x?}\nkernel {kernel:02x?}\nhost {host:02x?}"
            );
            let (told, events) = (object.events().unwrap(), tables.events.take());
            assert_eq!(told, events, "seed {seed}, packet {i}: {packet:02x?}");
            for event in told {
                // It says what became of the packet.
                let verdict = Verdict::unpack(event.verdict).unwrap();
                assert!(kernel.cells.contains(&verdict.cell()), "{event:?}");
                assert_eq!(verdict.action(), kernel.action);
                *traced.entry(verdict.counter().name()).or_insert(0) += 1;
            }
            for counter in kernel.counted {
                *counted.entry(counter.name()).or_insert(0) += 1;
            }
            tables.cells.borrow_mut().clear();
        }
    }
    println!("{} packets: {counted:?}", TABLES * PACKETS);
    println!("traced: {traced:?}");
    assert!(
        traced.len() >= 20,
        "the tracer is told of too few reasons: {traced:?}"
    );
    let reached = counted.values().filter(|times| **times >= 5).count();
    assert!(
        reached >= 30,
        "the packets reach too few reasons: {counted:?}"
    );
}

/// A small generator (Weyl sequence and a finalizer), so that a seed names its packets for good.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        gateway_common::hash::mix(self.0)
    }

    fn below(&mut self, limit: u64) -> u64 {
        (self.next() >> 16) % limit
    }

    /// True once in `of` times.
    fn rarely(&mut self, of: u64) -> bool {
        self.below(of) == 0
    }

    fn pick<T: Clone>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize].clone()
    }

    fn bytes(&mut self, length: u64) -> Vec<u8> {
        (0..length).map(|_| self.next() as u8).collect()
    }

    /// Everything, or what some of the packets are. Never over for the kernel's clock, nor for the host's.
    fn filter(&mut self, seed: u64) -> TraceFilter {
        let all = TraceFilter {
            until: u64::MAX,
            most: u32::MAX,
            session: seed as u32,
            ..TraceFilter::default()
        };
        let address = self.pick(&[mapped([198, 51, 100, 7]), mapped(VIP), VIP6, six(0x77)]);
        match seed % 6 {
            1 => TraceFilter {
                wants: want::ADDRESS,
                address,
                ..all
            },
            2 => TraceFilter {
                wants: want::VIP,
                vip: self.pick(&[mapped(VIP), VIP6]),
                vip_port: [0, 80],
                protocol: 6,
                ..all
            },
            4 => TraceFilter {
                port: self.pick(&[[0, 80], DNS.to_be_bytes(), 40_000_u16.to_be_bytes()]),
                most: u32::MAX / 2,
                ..all
            },
            _ => all,
        }
    }

    fn tables(&mut self, base: &HostTables) -> HostTables {
        let mut tables = base.clone();
        let nodes = [
            ME, ME, ME, ON_LINK, ON_LINK, ROUTED, DRAINING, TAGGED, NARROW, NARROW, 0, 77,
        ];
        for row in tables.rows.iter_mut() {
            let (owner, transition) = (self.pick(&nodes), self.rarely(2));
            let mut next = [(0, false); 3];
            for place in &mut next {
                *place = (self.pick(&nodes), self.rarely(2));
                if place.0 == 0 {
                    break;
                }
            }
            *row = Row::new(owner, transition, next);
        }
        let config = &mut tables.config;
        config.flags = self.pick(&[0, 0, flag::ENCAP_ALWAYS, flag::DRAINING]);
        // Never beaten is dead; a limit of 0 watches nothing: neither depends on the clock.
        config.beat_limit_jiffies = self.pick(&[0, 0, 0, 75]);
        config.hop_limit = self.pick(&[0, 0, 60]);
        config.too_big_limit = self.pick(&[0, 3, 1_000]);
        config.syn_limit = self.pick(&[0, 5]);
        if self.rarely(2) {
            over_v6(&mut tables);
        }
        if self.rarely(2) {
            served_by_group(&mut tables);
        }
        // Where ports do not count, some packets are of these.
        for last in [7, 8, 150] {
            for ends in [
                Ends::V4([198, 51, 100, last], FLAT),
                Ends::V6(six(last), FLAT6),
            ] {
                let load = Load::Raw(number::UDP, vec![0; 8]);
                let frame = Frame::new(mac(ME), mac(99), ends, load);
                tables.sessions.push(Steered::hash(&frame));
            }
        }
        for node in [ON_LINK, ROUTED, DRAINING, TAGGED, NARROW] {
            if self.rarely(4) {
                let (mtu, vlan) = (
                    self.pick(&[0, 576, 1_280, 1_500]),
                    self.pick(&[0, VLAN, 4_095]),
                );
                change_node(&mut tables, node, |entry| {
                    (entry.mtu, entry.vlan) = (mtu, vlan);
                });
            }
            if self.rarely(8) {
                let flags = self.next() as u32 & 0x1e;
                change_node(&mut tables, node, |entry| entry.flags ^= flags);
            }
            if self.rarely(6) {
                tables.suspects.push(node);
            }
        }
        tables
    }

    fn packet(&mut self, sockets: &Sockets) -> Vec<u8> {
        let mut holds_cookie = false;
        let frame = match self.below(20) {
            0 => from_tcp(&sockets.flow),
            1 => sockets.flow6.clone(),
            2 => {
                holds_cookie = true;
                from_tcp(&sockets.cookie)
            }
            3 => {
                holds_cookie = true;
                sockets.cookie6.clone()
            }
            4..=6 => self.error(),
            7 => self.solicitation(),
            _ => self.frame(),
        };
        let mut packet = match self.below(17) {
            16 => self.probe(),
            0 => self.arp(),
            1..=5 => self.tunnelled(&frame),
            6 => {
                let frame = self.tunnelled_frame(&frame);
                self.tunnelled(&frame)
            }
            _ => frame.build(),
        };
        // What lies beyond a page a test run keeps apart, where the program does not see it.
        packet.truncate(2_000);
        if self.rarely(12) {
            // From the shortest frame that a test run takes.
            packet.truncate(14 + self.below(packet.len() as u64 - 13) as usize);
        }
        if self.rarely(16) {
            let padding = self.below(30);
            packet.extend(self.bytes(padding));
        }
        // A wrong byte in one of the headers; but the host does not know which cookies are right.
        while self.rarely(5) && !holds_cookie {
            let at = self.below(packet.len().min(140) as u64) as usize;
            packet[at] = self.pick(&[packet[at] ^ 1, packet[at] ^ 0x10, self.0 as u8, 0, 0xff]);
        }
        packet
    }

    fn probe(&mut self) -> Vec<u8> {
        let subject = self.pick(&[mapped(address(ROUTED)), mapped(address(ME)), [0; 16]]);
        let question = Probe {
            subject,
            sequence: self.next(),
            ..question()
        };
        let key = self.pick(&[PROBE_KEY, PROBE_KEY_PREVIOUS, [0, 0]]);
        probe(question.sign(key)).build()
    }

    fn ends(&mut self) -> Ends {
        let last = self.pick(&[7, 8, 0x77, 0x80, 150, 200]);
        if self.rarely(2) {
            let elsewhere = [203, 0, 113, 99];
            let vips = [
                VIP,
                VIP,
                VIP,
                VIP,
                SHARED,
                DELETED,
                FLAT,
                FLAT,
                HERE,
                LISTED,
                LISTED,
                elsewhere,
                address(ME),
            ];
            let source = self.pick(&[
                [198, 51, 100, last],
                [198, 51, 100, last],
                [10, 0, 0, last],
                [127, 0, 0, 1],
            ]);
            Ends::V4(source, self.pick(&vips))
        } else {
            let mut mapped = [0; 16];
            mapped[10..12].fill(0xff);
            mapped[12..].copy_from_slice(&VIP);
            let vips = [
                VIP6,
                VIP6,
                VIP6,
                VIP6,
                SHARED6,
                six(0x12),
                FLAT6,
                FLAT6,
                six(0x14),
                LISTED6,
                LISTED6,
                six(0x99),
                address6(ME),
                mapped,
            ];
            let source = self.pick(&[six(last), six(last), address6(last.into()), [0; 16]]);
            Ends::V6(source, self.pick(&vips))
        }
    }

    fn frame(&mut self) -> Frame {
        let ends = self.ends();
        let load = self.load(matches!(ends, Ends::V6(..)));
        let mut frame = Frame {
            to_mac: if self.rarely(20) {
                self.pick(&[[0xff; 6], [0x33, 0x33, 0, 0, 0, 1]])
            } else {
                mac(ME)
            },
            tags: self.tags(),
            hops: self.pick(&[64, 64, 64, 2, 1, 0]),
            class: self.pick(&[0, 0, 2, 3, 0xb8]),
            label: self.next() as u32 & 0xf_ffff,
            ..Frame::new(
                mac(ME),
                self.pick(&[mac(99), mac(99), mac(99), mac(ON_LINK), mac(DRAINING)]),
                ends,
                load,
            )
        };
        if self.rarely(8) {
            let words = 1 + self.below(10) as usize;
            frame.options = vec![1; 4 * words];
            let headers = 1 + self.below(10) as usize;
            frame.extensions = (0..headers).map(|_| self.extension()).collect();
        }
        if self.rarely(8) {
            let (offset, more) = (self.below(3) as u16, self.rarely(2));
            frame.fragment = offset | if more { 0x2000 } else { 0 };
            frame.extensions.push(fragment(offset, more));
        }
        self.fit(frame)
    }

    /// Makes a frame most often one for a VIP's port.
    fn fit(&mut self, mut frame: Frame) -> Frame {
        if self.rarely(6) {
            return frame;
        }
        let (four, six, port) = match frame.load {
            Load::Tcp { .. } => self.pick(&[
                (VIP, VIP6, 80),
                (VIP, VIP6, 80),
                (VIP, VIP6, LISTENING),
                (LISTED, LISTED6, 80),
                (DELETED, six(0x12), 80),
                (HERE, six(0x14), 80),
            ]),
            _ => self.pick(&[
                (VIP, VIP6, DNS),
                (VIP, VIP6, DNS),
                (FLAT, FLAT6, 443),
                (LISTED, LISTED6, DNS),
                (LISTED, LISTED6, 443),
            ]),
        };
        match &mut frame.ends {
            Ends::V4(_, to) => *to = four,
            Ends::V6(_, to) => *to = six,
        }
        if let Load::Tcp { ports, .. } | Load::Udp { ports, .. } = &mut frame.load {
            ports[1] = port;
        }
        frame
    }

    fn extension(&mut self) -> (u8, Vec<u8>) {
        let kinds = [
            number::HOP_BY_HOP,
            number::DESTINATION,
            number::DESTINATION,
            number::ROUTING,
            51,
        ];
        let more = self.pick(&[0, 0, 0, 1, 3, 30, 54, 55, 60]);
        padding(self.pick(&kinds), more)
    }

    fn tags(&mut self) -> Vec<[u16; 2]> {
        let count = self.pick(&[0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 3]);
        (0..count)
            .map(|_| {
                let control = self.pick(&[0, VLAN, VLAN, 0x6000 | VLAN, 9, 0xefff]);
                [
                    self.pick(&[number::VLAN, number::VLAN, number::OUTER_VLAN]),
                    control,
                ]
            })
            .collect()
    }

    fn load(&mut self, v6: bool) -> Load {
        let length = match self.below(8) {
            0 => self.below(1_480),
            1 => 1_300 + self.below(120),
            _ => self.below(64),
        };
        let data = self.bytes(length);
        let source = self.next() as u16;
        match self.below(10) {
            0..=4 => Load::Tcp {
                ports: [source, self.pick(&[80, 80, 80, LISTENING, LISTENING, 22])],
                flags: self.pick(&[SYN, SYN, 16, 16, 16, 18, 4, 17]),
                numbers: [self.next() as u32, self.next() as u32],
                options: vec![1; 4 * self.pick(&[0, 0, 0, 3, 10])],
                data,
            },
            5..=7 => Load::Udp {
                ports: [source, self.pick(&[DNS, DNS, 443, 443, 80, TUNNEL])],
                summed: self.rarely(2),
                data,
            },
            8 => Load::Icmp {
                kind: [
                    if v6 {
                        self.pick(&[128, 128, 129, 135])
                    } else {
                        self.pick(&[8, 8, 0, 13])
                    },
                    self.pick(&[0, 0, 0, 1]),
                ],
                rest: [0, 1, 2, 3],
                data,
            },
            _ => Load::Raw(
                self.pick(&[4, 6, 17, 41, 47, 50, 51, 58, 1, 0, 43, 44, 60, 59]),
                data,
            ),
        }
    }

    /// An ICMP error about a packet that a VIP sent, or might have sent.
    fn error(&mut self) -> Frame {
        let outer = self.frame();
        let mut quoted = self.frame();
        let (ends, kind) = match (outer.ends, quoted.ends) {
            (Ends::V4(client, vip), _) => (Ends::V4(vip, client), self.pick(&[3, 3, 11, 12, 5])),
            (Ends::V6(client, vip), _) => (Ends::V6(vip, client), self.pick(&[1, 2, 3, 4, 5])),
        };
        quoted.ends = ends;
        if let Load::Tcp { ports, .. } | Load::Udp { ports, .. } = &mut quoted.load {
            ports.reverse();
        }
        let mut data = quoted.packet();
        let length = self.pick(&[20, 28, 30, 48, 52, 80, 1_400]);
        data.truncate(length);
        let code = self.pick(&[0, 4]);
        outer.with(Load::Icmp {
            kind: [kind, code],
            rest: [0, 0, 5, 0],
            data,
        })
    }

    fn solicitation(&mut self) -> Frame {
        let target = self.pick(&[VIP6, VIP6, VIP6, SHARED6, six(0x12), six(0x99)]);
        let option = self.pick(&[&[][..], &[1, 1, 2, 0, 0, 0, 1, 99], &[1, 1, 2]]);
        let load = Load::Icmp {
            kind: [135, 0],
            rest: [0; 4],
            data: [&target[..], option].concat(),
        };
        let ends = Ends::V6(self.pick(&[six(7), six(7), [0; 16]]), target);
        Frame {
            hops: self.pick(&[255, 255, 255, 64]),
            ..Frame::new([0x33, 0x33, 0xff, 0, 0, 0x10], mac(99), ends, load)
        }
    }

    fn tunnelled(&mut self, inner: &Frame) -> Vec<u8> {
        self.tunnelled_frame(inner).build()
    }

    fn tunnelled_frame(&mut self, inner: &Frame) -> Frame {
        let first = [
            self.pick(&[0x13, 0x13, 0x12, 0x11, 0x10, 0x14, 0x23]),
            self.pick(&[0, 0, 1, 1, 1, 2]),
        ];
        let mut data = [
            &first[..],
            &[0, 0],
            &self.pick(&[FINGERPRINT, 7]).to_be_bytes(),
        ]
        .concat();
        data.extend(inner.packet());
        let load = Load::Udp {
            ports: [
                self.next() as u16,
                self.pick(&[TUNNEL, TUNNEL, TUNNEL, TUNNEL, 53]),
            ],
            summed: false,
            data,
        };
        let from = self.pick(&[ON_LINK, ON_LINK, ON_LINK, ROUTED, DRAINING, 9]);
        let ends = if self.rarely(2) {
            Ends::V4(
                address(from),
                self.pick(&[address(ME), address(ME), address(ME), address(ON_LINK), VIP]),
            )
        } else {
            Ends::V6(
                address6(from),
                self.pick(&[
                    address6(ME),
                    address6(ME),
                    address6(ME),
                    address6(ON_LINK),
                    VIP6,
                ]),
            )
        };
        Frame {
            tags: self.tags(),
            class: self.pick(&[0, 0, 2, 3]),
            ..Frame::new(mac(ME), self.pick(&[mac(ON_LINK), mac(99)]), ends, load)
        }
    }

    fn arp(&mut self) -> Vec<u8> {
        let ends = [VIP, SHARED, DELETED, [203, 0, 113, 99], [0; 4]];
        let (sender, target) = ((mac(99), self.pick(&ends)), ([0; 6], self.pick(&ends)));
        arp([0xff; 6], self.pick(&[1, 1, 2]), sender, target)
    }
}

fn from_tcp(packet: &TcpPacket) -> Frame {
    let load = Load::Tcp {
        ports: [packet.source_port, packet.destination_port],
        flags: packet.flags,
        numbers: [packet.sequence, packet.acknowledgment],
        options: Vec::new(),
        data: Vec::new(),
    };
    Frame::new(
        packet.to_mac,
        packet.from_mac,
        Ends::V4(packet.source, packet.destination),
        load,
    )
}
