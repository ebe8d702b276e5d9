//! What each fault does to whole nodes.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use gateway_tests::backend::Behaviour;
use gateway_tests::machine::{Filled, bind, calendar_jumps, unbind};
use gateway_tests::rig::{Rig, VIP};
use gateway_tests::soak::course::Course;
use gateway_tests::soak::flood::{LITTLE, flood, sender};
use gateway_tests::soak::history::Window;
use gateway_tests::soak::nemesis::{Act, Fault};
use gateway_tests::topology::{BACKENDS_V1, UPLINK};

use super::Pace;

/// Memory that is left when it is filled, in MB.
const LEFT: u64 = 64;
/// Files of the quick start with a route's weights.
const ROUTE: &str = "route.yaml";

/// What it takes to do them.
pub(super) struct Hand<'h> {
    rig: &'h mut Rig,
    course: &'h Course,
    pace: Pace,
}

impl<'h> Hand<'h> {
    pub(super) fn new(rig: &'h mut Rig, course: &'h Course, pace: Pace) -> Self {
        Self { rig, course, pace }
    }

    /// Does it and undoes it; when that was, part by part.
    pub(super) fn do_it(&mut self, act: &Act) -> Result<Vec<Window>> {
        let node = (act.number % self.rig.daemons.len() as u64) as usize;
        let begin = self.course.now();
        if act.fault == Fault::Kill {
            return self.kill(node, act.hold);
        }
        match act.fault {
            Fault::Pause => {
                self.rig.daemons[node].pause()?;
                self.course.wait(act.hold);
                self.rig.daemons[node].resume()?;
            }
            Fault::Upgrade => {
                self.rig.leave(node)?;
                self.rig.come_back(node)?;
            }
            Fault::Churn => self.churn(act)?,
            Fault::Flood => {
                let sender = self.rig.topology.client.run(|| Ok(sender()?))?;
                flood(
                    &sender,
                    [VIP.ip().octets(); 2],
                    LITTLE,
                    act.hold,
                    act.number,
                );
            }
            Fault::Flap => {
                let netns = &self.rig.topology.nodes[node].netns;
                netns.ip(&format!("link set {UPLINK} down"))?;
                self.course.wait(act.hold);
                netns.ip(&format!("link set {UPLINK} up"))?;
            }
            Fault::Endpoint => {
                let address = BACKENDS_V1[(act.number / 3 % 3) as usize];
                let backend = self.rig.backends.at(address)?;
                backend.set(Behaviour {
                    fail: true,
                    ..Behaviour::default()
                });
                self.course.wait(act.hold);
                backend.set(Behaviour::default());
            }
            Fault::Wreck => {
                self.rig.backends.set_all(Behaviour {
                    fail: true,
                    ..Behaviour::default()
                });
                self.course.wait(act.hold);
                self.rig.backends.set_all(Behaviour::default());
            }
            Fault::Reload => self.reload(act)?,
            Fault::Queues => {
                // What the card refuses is not changed, which is as good.
                let rings = [32, 64, 128, 256][(act.number % 4) as usize].to_string();
                let mut ethtool = Command::new("ethtool");
                ethtool.args(["-G", UPLINK, "rx", &rings]);
                self.rig.topology.nodes[0].netns.output(&mut ethtool)?;
            }
            Fault::Memory => {
                let filled = Filled::all_but(LEFT)?;
                self.course.wait(act.hold);
                drop(filled);
            }
            Fault::Clock => {
                let by = 1 + (act.number % 7200) as i64;
                calendar_jumps(by)?;
                self.course.wait(act.hold);
                calendar_jumps(-by)?;
            }
            other => anyhow::bail!("whole nodes know no fault {}", other.name()),
        }
        Ok(vec![Window {
            fault: act.fault,
            begin,
            heal: self.course.now(),
        }])
    }

    /// The card loses its driver: the node's interface is another one afterwards.
    fn reload(&self, act: &Act) -> Result<()> {
        let topology = &self.rig.topology;
        let card = topology.card.as_deref();
        let card = card.context("the first node has no card: `vm soak --whole` gives it one")?;
        unbind(card)?;
        self.course.wait(act.hold);
        bind(card)?;
        topology.nodes[0].take_card()
    }

    /// Only until the others have noticed may anything fail; not while it comes back.
    fn kill(&mut self, node: usize, hold: Duration) -> Result<Vec<Window>> {
        let begin = self.course.now();
        self.rig.daemons[node].kill()?;
        let killed = Window {
            fault: Fault::Kill,
            begin,
            heal: self.course.now() + self.pace.noticed,
        };
        self.course.wait(self.pace.grace + hold);
        let begin = self.course.now();
        self.rig.start_again(node)?;
        let restarted = Window {
            fault: Fault::Restart,
            begin,
            heal: self.course.now(),
        };
        Ok(vec![killed, restarted])
    }

    /// Twenty changes of the weights; the last one is as the first was.
    fn churn(&self, act: &Act) -> Result<()> {
        let directory = self.rig.fixture.directory();
        let text = std::fs::read_to_string(directory.join(ROUTE)).context("the route")?;
        for round in 0..20 {
            let weight = (act.number >> (round % 8)) % 100;
            let changed = text.replacen("weight: 50", &format!("weight: {weight}"), 1);
            self.rig.fixture.write(ROUTE, &changed)?;
            self.course.wait(Duration::from_millis(50));
        }
        self.rig.fixture.write(ROUTE, &text)
    }
}
