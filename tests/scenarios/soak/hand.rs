//! What each fault does to whole nodes.

use std::time::Duration;

use anyhow::{Context, Result};
use gateway_tests::backend::Behaviour;
use gateway_tests::rig::{Rig, VIP};
use gateway_tests::soak::course::Course;
use gateway_tests::soak::flood::{flood, sender};
use gateway_tests::soak::history::Window;
use gateway_tests::soak::nemesis::{Act, Fault};
use gateway_tests::topology::{BACKENDS_V1, UPLINK};

/// In this time the others hold a node for dead: `--suspect-after` and a probe.
const NOTICED: Duration = Duration::from_millis(400);
/// Files of the quick start with a route's weights.
const ROUTE: &str = "route.yaml";

/// What it takes to do them.
pub(super) struct Hand<'h> {
    rig: &'h mut Rig,
    course: &'h Course,
}

impl<'h> Hand<'h> {
    pub(super) fn new(rig: &'h mut Rig, course: &'h Course) -> Self {
        Self { rig, course }
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
                flood(&sender, [VIP.ip().octets(); 2], act.hold, act.number);
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
            other => anyhow::bail!("whole nodes know no fault {}", other.name()),
        }
        Ok(vec![Window {
            fault: act.fault,
            begin,
            heal: self.course.now(),
        }])
    }

    /// Only until the others have noticed may anything fail; not while it comes back.
    fn kill(&mut self, node: usize, hold: Duration) -> Result<Vec<Window>> {
        let begin = self.course.now();
        self.rig.daemons[node].kill()?;
        let killed = Window {
            fault: Fault::Kill,
            begin,
            heal: self.course.now() + NOTICED,
        };
        self.course.wait(super::GRACE + hold);
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
