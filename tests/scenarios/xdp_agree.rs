//! Kernel and host agree: random packets through both, with equal action, reason and bytes.

use gateway_common::abi::{Row, config::flag};
use gateway_common::host::HostTables;
use gateway_tests::object::fixture::{
    DELETED, DRAINING, FAR_INTERFACE, FINGERPRINT, LISTENING, ME, ON_LINK, ROUTED, SHARED, Sockets,
    TUNNEL, VIP, address, mac, tables,
};
use gateway_tests::object::{Object, fresh_namespace};
use gateway_tests::packet::{SYN, TcpPacket, Tunnelled, arp, ethernet};

use crate::xdp_verdicts::on_host;

/// Tables to try, and packets through each.
const TABLES: u64 = 10;
const PACKETS: u64 = 300;

#[test]
fn xdp_agree_on_random_packets() {
    fresh_namespace().unwrap();
    let mut base = tables();
    let sockets = Sockets::open(&mut base).unwrap();
    let mut object = Object::load().unwrap();
    object.add_device(FAR_INTERFACE).unwrap();
    let mut counted = std::collections::BTreeMap::new();
    for seed in 0..TABLES {
        let mut random = Random(seed);
        let tables = random.tables(&base);
        object.write(&tables).unwrap();
        for i in 0..PACKETS {
            let packet = random.packet(&sockets);
            let (kernel, host) = (object.run(&packet).unwrap(), on_host(&tables, &packet));
            assert_eq!(kernel, host, "seed {seed}, packet {i}: {packet:02x?}");
            for counter in kernel.counted {
                *counted.entry(counter.name()).or_insert(0) += 1;
            }
            tables.counted.borrow_mut().clear();
        }
    }
    println!("{} packets: {counted:?}", TABLES * PACKETS);
    assert!(
        counted.len() >= 20,
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

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }

    fn tables(&mut self, base: &HostTables) -> HostTables {
        let mut tables = base.clone();
        for row in &mut tables.rows {
            let nodes = [ME, ME, ON_LINK, ON_LINK, ROUTED, DRAINING, 0, 9];
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
        tables.config.flags = self.pick(&[0, 0, flag::ENCAP_ALWAYS, flag::DRAINING]);
        // Never beaten is dead; a limit of 0 watches nothing: neither depends on the clock.
        tables.config.beat_limit_jiffies = self.pick(&[0, 0, 0, 75]);
        if self.rarely(8) {
            tables.suspects.push(self.pick(&[ON_LINK, ROUTED]));
        }
        tables
    }

    fn packet(&mut self, sockets: &Sockets) -> Vec<u8> {
        let tcp = self.tcp(sockets);
        let mut packet = match self.below(12) {
            0 => self.arp(),
            1..=4 => self.tunnelled(&tcp),
            5 => [&tcp.build()[..12], &[0x81, 0, 0, 5], &tcp.build()[12..]].concat(),
            6 => ethernet(tcp.to_mac, tcp.from_mac, [0x86, 0xdd], &[0x60; 48]),
            _ => tcp.build(),
        };
        if self.rarely(6) {
            // From the shortest frame that a test run takes.
            packet.truncate(14 + self.below(packet.len() as u64 - 13) as usize);
        }
        // A wrong byte in one of the headers; but the host does not know which cookies are right.
        while self.rarely(4) && tcp.source != sockets.cookie.source {
            let at = self.below(packet.len().min(96) as u64) as usize;
            packet[at] = self.next() as u8;
        }
        packet
    }

    fn tcp(&mut self, sockets: &Sockets) -> TcpPacket {
        match self.below(16) {
            0 => return sockets.flow.clone(),
            1 => return sockets.cookie.clone(),
            _ => {}
        }
        let elsewhere = [203, 0, 113, 99];
        let length = if self.rarely(4) {
            self.below(1_400)
        } else {
            self.below(64)
        };
        TcpPacket {
            from_mac: self.pick(&[mac(99), mac(99), mac(ON_LINK), mac(DRAINING)]),
            source: [198, 51, 100, self.next() as u8],
            destination: self.pick(&[VIP, VIP, VIP, VIP, SHARED, DELETED, elsewhere]),
            source_port: self.next() as u16,
            destination_port: self.pick(&[80, 80, LISTENING, LISTENING, 22]),
            flags: self.pick(&[SYN, SYN, 16, 16, 18, 4, 17]),
            ttl: self.pick(&[64, 64, 64, 2, 1, 0]),
            tos: self.pick(&[0, 0, 2, 3, 0xb8]),
            fragment: self.pick(&[0x4000, 0x4000, 0x4000, 0x4000, 0, 0x2000, 0x2007, 0x0007]),
            options: if self.rarely(10) {
                vec![1; 4 * (1 + self.below(10) as usize)]
            } else {
                Vec::new()
            },
            payload: (0..length).map(|_| self.next() as u8).collect(),
            ..TcpPacket::default()
        }
    }

    fn tunnelled(&mut self, inner: &TcpPacket) -> Vec<u8> {
        let form = Tunnelled {
            to_mac: mac(ME),
            from_mac: self.pick(&[mac(ON_LINK), mac(99)]),
            source: address(self.pick(&[ON_LINK, ON_LINK, ROUTED, DRAINING, 9])),
            destination: self.pick(&[address(ME), address(ME), address(ME), address(ON_LINK), VIP]),
            source_port: self.next() as u16,
            port: self.pick(&[TUNNEL, TUNNEL, TUNNEL, 53]),
            first: [
                self.pick(&[0x13, 0x13, 0x12, 0x11, 0x10, 0x14, 0x23]),
                self.pick(&[0, 1, 1, 2]),
            ],
            fingerprint: self.pick(&[FINGERPRINT, 7]),
            tos: self.pick(&[0, 2, 3]),
        };
        form.build(&inner.build())
    }

    fn arp(&mut self) -> Vec<u8> {
        let ends = [VIP, SHARED, DELETED, [203, 0, 113, 99]];
        let (sender, target) = ((mac(99), self.pick(&ends)), ([0; 6], self.pick(&ends)));
        arp([0xff; 6], self.pick(&[1, 1, 2]), sender, target)
    }
}
