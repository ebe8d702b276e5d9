//! What each fault does.

use gateway_tests::machine::{Filled, bind, calendar_jumps, unbind};
use gateway_tests::soak::flood::{LITTLE, flood, sender};
use gateway_tests::soak::nemesis::Act;

use super::*;

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
    pub(super) fn do_it(&self, act: &Act, course: &Course) -> Window {
        let begin = course.now();
        let mut heal = None;
        match act.fault {
            Fault::Flap => self.flap(act.hold, course),
            Fault::Reload => self.reload(act, course),
            Fault::Queues => self.queues(act),
            Fault::Restart => self.restart(),
            Fault::Away => {
                self.one.node().driver = None;
                course.wait(act.hold);
                self.restart();
            }
            Fault::Memory => {
                let filled = Filled::all_but(LEFT).unwrap();
                course.wait(act.hold);
                drop(filled);
            }
            Fault::Churn => self.churn(act),
            Fault::Drain => {
                self.tell(0, ReplicaState::Draining);
                course.wait(act.hold);
                self.tell(0, ReplicaState::Ready);
            }
            Fault::Flood => {
                let sender = self.client.enter(|| sender().unwrap());
                let vips = [[10, 77, 9, 1], [10, 77, 9, 2]];
                flood(&sender, vips, LITTLE, act.hold, act.number);
            }
            Fault::Clock => {
                let by = 1 + (act.number % 7200) as i64;
                calendar_jumps(by).unwrap();
                course.wait(act.hold);
                calendar_jumps(-by).unwrap();
            }
            Fault::Wreck => {
                heal = Some(begin);
                self.flap(act.hold + GRACE, course);
            }
            other => panic!("the kernel's part knows no fault {}", other.name()),
        }
        Window {
            fault: act.fault,
            begin,
            heal: heal.unwrap_or_else(|| course.now()),
        }
    }

    fn flap(&self, hold: Duration, course: &Course) {
        self.one.node().namespace.ip("link set up0 down");
        course.wait(hold);
        let node = self.one.node();
        node.namespace.ip("link set up0 up");
        // The kernel takes a default route away with the link.
        node.namespace.ip("route replace default via 10.77.0.9");
    }

    fn reload(&self, act: &Act, course: &Course) {
        let device = self.device.expect("a virtual machine's card");
        unbind(device).unwrap();
        course.wait(act.hold);
        bind(device).unwrap();
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
}
