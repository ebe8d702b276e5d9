//! What each fault does.

use gateway_tests::packet::{SYN, TcpPacket};
use gateway_tests::soak::nemesis::Act;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use super::*;

/// Bytes of an Ethernet header.
const ETHERNET: usize = 14;
/// Memory that is left when it is filled, in MB.
const LEFT: u64 = 64;

/// What it takes to do them.
pub(super) struct Hand<'h> {
    pub(super) one: &'h Live,
    pub(super) two: &'h Live,
    /// The second Gateway's socket on node one.
    pub(super) other: &'h TcpListener,
    /// The card of node one.
    pub(super) device: Option<&'h str>,
    pub(super) client: &'h Namespace,
}

impl Hand<'_> {
    /// Does it and undoes it; when that was.
    pub(super) fn do_it(&self, act: &Act, clients: &Clients<'_>) -> Window {
        let begin = clients.now();
        let mut heal = None;
        match act.fault {
            Fault::Flap => self.flap(act.hold, clients),
            Fault::Reload => self.reload(act, clients),
            Fault::Queues => self.queues(act),
            Fault::Restart => self.restart(),
            Fault::Away => {
                self.one.node().driver = None;
                clients.wait(act.hold);
                self.restart();
            }
            Fault::Memory => {
                let filled = Filled::all_but(LEFT);
                clients.wait(act.hold);
                drop(filled);
            }
            Fault::Churn => self.churn(act),
            Fault::Drain => {
                self.tell(0, ReplicaState::Draining);
                clients.wait(act.hold);
                self.tell(0, ReplicaState::Ready);
            }
            Fault::Flood => self.flood(act),
            Fault::Stall => {}
            Fault::Wreck => {
                heal = Some(begin);
                self.flap(act.hold + GRACE, clients);
            }
        }
        Window {
            fault: act.fault,
            begin,
            heal: heal.unwrap_or_else(|| clients.now()),
        }
    }

    fn flap(&self, hold: Duration, clients: &Clients<'_>) {
        self.one.node().namespace.ip("link set up0 down");
        clients.wait(hold);
        let node = self.one.node();
        node.namespace.ip("link set up0 up");
        // The kernel takes a default route away with the link.
        node.namespace.ip("route replace default via 10.77.0.9");
    }

    fn reload(&self, act: &Act, clients: &Clients<'_>) {
        let device = self.device.expect("a virtual machine's card");
        unbind(device);
        clients.wait(act.hold);
        bind(device);
        let node = self.one.node();
        give(1, &node.namespace, "up0", "10.77.0.1/24", 1500);
        node.namespace.ip("route replace default via 10.77.0.9");
    }

    /// What is refused is not changed, which is as good.
    fn queues(&self, act: &Act) {
        let rings = [32, 64, 128, 256][(act.number % 4) as usize];
        let number = 1 + act.number / 4 % 4;
        for (live, words) in [
            (self.one, format!("-G up0 rx {rings}")),
            (self.one, format!("-L up0 combined {number}")),
        ] {
            drop(attempt(&live.node().namespace, &format!("ethtool {words}")));
        }
        drop(attempt(self.client, "ethtool -L p2 rx 4 tx 1"));
        let words = format!("ethtool -L up0 rx {number} tx {number}");
        drop(attempt(&self.two.node().namespace, &words));
    }

    fn restart(&self) {
        let mut node = self.one.node();
        node.open();
        configure(&mut node, self.other);
    }

    fn churn(&self, act: &Act) {
        for round in 0..20 {
            let more = (act.number >> (round % 8)) % 40;
            self.tell(more as u8, ReplicaState::Ready);
        }
        self.tell(0, ReplicaState::Ready);
    }

    /// Both nodes hear of it, one after the other.
    fn tell(&self, more: u8, first: ReplicaState) {
        let wanted = wanted(more, first);
        self.one.node().snapshot(&wanted);
        self.two.node().snapshot(&wanted);
    }

    /// About 1,000 packets a second: SYNs that nobody answers further, every fourth cut off within its header.
    fn flood(&self, act: &Act) {
        let raw = self.client.enter(|| {
            Socket::new(
                Domain::IPV4,
                Type::RAW,
                Some(Protocol::from(libc::IPPROTO_RAW)),
            )
            .unwrap()
        });
        let begun = Instant::now();
        let mut number = u32::try_from(act.number).unwrap_or(0);
        while begun.elapsed() < act.hold {
            for _ in 0..10 {
                number = number.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                let [a, b, c, d] = number.to_be_bytes();
                let vip = [10, 77, 9, 1 + (a & 1)];
                let packet = TcpPacket {
                    source: [10, 78, a, b],
                    destination: vip,
                    source_port: u16::from_be_bytes([b | 4, c]),
                    sequence: number,
                    flags: SYN,
                    ..TcpPacket::default()
                };
                let built = packet.build();
                let whole = &built[ETHERNET..];
                let cut = if number.is_multiple_of(4) {
                    usize::from(d % 20)
                } else {
                    0
                };
                let to: SocketAddr = (vip, 0).into();
                // The queue of the client's own interface may be full.
                drop(raw.send_to(&whole[..whole.len() - cut], &SockAddr::from(to)));
            }
            thread::park_timeout(Duration::from_millis(10));
        }
    }
}
