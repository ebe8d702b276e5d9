//! Paths over a switch that drops what it likes, and a clock of steps.

use proptest::prelude::*;

use super::*;

const MS: Duration = Duration::from_millis(1);
const INTERVAL: Duration = Duration::from_millis(100);
const PEER: u64 = 7;

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn target(mac: u8) -> Target {
    Target {
        name_hash: PEER,
        address: ip("10.0.0.2"),
        way: ([mac; 6], 3),
    }
}

/// Paths to one node, its switch and a clock.
struct World {
    paths: Paths,
    now: Time,
    /// VIPs that the switch drops.
    dropped: Vec<IpAddr>,
    /// Whether the node answers ordinary probes.
    well: bool,
    heard: Option<Time>,
    vips: Vec<IpAddr>,
}

impl World {
    fn new(vips: &[&str]) -> Self {
        let vips: Vec<IpAddr> = vips.iter().map(|vip| ip(vip)).collect();
        let mut paths = Paths::new(INTERVAL, 1_000);
        paths.set_peers(1, ip("10.0.0.1"), &[target(2)], Time::ZERO);
        paths.set_vips(vips.clone());
        Self {
            paths,
            now: Time::ZERO,
            dropped: Vec::new(),
            well: true,
            heard: None,
            vips,
        }
    }

    /// Ten milliseconds. What is asked and not dropped is answered at once.
    fn step(&mut self) {
        self.now += 10 * MS;
        self.heard = self.well.then_some(self.now).or(self.heard);
        self.paths.advance(self.now, |_| self.heard);
        for question in self.paths.ask(self.now) {
            assert!(self.vips.contains(&question.vip));
            if self.well && !self.dropped.contains(&question.vip) {
                assert!(self.paths.hear(&answer(&question), self.now + MS));
            }
        }
    }

    /// Steps until the standing is this; how long that took.
    fn until(&mut self, standing: Standing) -> Duration {
        let began = self.now;
        while self.standing() != standing {
            self.step();
            assert!(self.now - began < Duration::from_secs(100), "{standing:?}");
        }
        self.now - began
    }

    fn run(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            self.step();
        }
    }

    fn standing(&self) -> Standing {
        self.paths.report(PEER).unwrap().standing
    }
}

fn answer(question: &Question) -> Probe {
    Probe {
        kind: PATH_ANSWER,
        sender: question.probe.addressee,
        addressee: question.probe.sender,
        ..question.probe
    }
}

#[test]
fn a_path_is_proven_by_answers_and_not_by_hope() {
    let mut world = World::new(&["192.0.2.1"]);
    assert_eq!(world.standing(), Standing::Asking);
    assert_eq!(world.paths.proven().count(), 0);
    assert!(world.until(Standing::Proven) <= 50 * MS);
    assert_eq!(world.paths.proven().collect::<Vec<_>>(), [ip("10.0.0.2")]);
    let mut silent = World::new(&["192.0.2.1"]);
    silent.dropped = silent.vips.clone();
    assert!(silent.until(Standing::NotAnswered) <= 600 * MS);
    assert_eq!(silent.paths.proven().count(), 0);
}

#[test]
fn a_filter_is_noticed_in_time_and_its_end_after_a_while() {
    let mut world = World::new(&["192.0.2.1"]);
    world.until(Standing::Proven);
    world.run(Duration::from_secs(5));
    world.dropped = world.vips.clone();
    let noticed = world.until(Standing::NotAnswered);
    assert!(noticed <= 800 * MS, "{noticed:?}");
    let report = world.paths.report(PEER).unwrap();
    assert_eq!((report.changes, report.vip), (1, Some(ip("192.0.2.1"))));
    world.run(Duration::from_secs(5));
    world.dropped.clear();
    let back = world.until(Standing::Proven);
    assert!((700 * MS..1_500 * MS).contains(&back), "{back:?}");
    let to: Vec<Standing> = world.paths.take_changes().iter().map(|c| c.to).collect();
    assert_eq!(
        to,
        [Standing::Proven, Standing::NotAnswered, Standing::Proven]
    );
}

#[test]
fn a_path_that_comes_and_goes_is_used_less_and_less() {
    let mut world = World::new(&["192.0.2.1"]);
    world.until(Standing::Proven);
    let mut waits = Vec::new();
    for _ in 0..4 {
        world.dropped = world.vips.clone();
        world.until(Standing::NotAnswered);
        world.dropped.clear();
        waits.push(world.until(Standing::Proven));
    }
    assert!(
        waits.windows(2).all(|two| two[1] > two[0] * 3 / 2),
        "{waits:?}"
    );
    world.run(FORGIVEN);
    world.dropped = world.vips.clone();
    world.until(Standing::NotAnswered);
    world.dropped.clear();
    assert!(world.until(Standing::Proven) < waits[1]);
}

#[test]
fn a_single_lost_question_changes_nothing() {
    let mut world = World::new(&["192.0.2.1"]);
    world.until(Standing::Proven);
    for _ in 0..20 {
        world.dropped = world.vips.clone();
        world.run(250 * MS);
        world.dropped.clear();
        world.run(300 * MS);
    }
    let report = world.paths.report(PEER).unwrap();
    assert!(report.missed > 10, "{report:?}");
    assert_eq!((report.standing, report.changes), (Standing::Proven, 0));
}

#[test]
fn a_node_that_is_not_well_says_nothing_of_its_path() {
    let mut world = World::new(&["192.0.2.1"]);
    world.until(Standing::Proven);
    world.well = false;
    world.run(STALE - 10 * MS);
    let report = world.paths.report(PEER).unwrap();
    assert_eq!((report.standing, report.missed), (Standing::Proven, 0));
}

#[test]
fn a_node_that_is_not_heard_for_long_proves_its_path_anew() {
    let mut world = World::new(&["192.0.2.1"]);
    world.until(Standing::Proven);
    world.well = false;
    let forgotten = world.until(Standing::Asking);
    assert!(
        (STALE..STALE + 50 * MS).contains(&forgotten),
        "{forgotten:?}"
    );
    world.run(Duration::from_secs(10));
    assert_eq!(world.paths.proven().count(), 0);
    world.well = true;
    let back = world.until(Standing::Proven);
    assert!(back <= 300 * MS, "it is not held against it: {back:?}");
    assert_eq!(world.paths.report(PEER).unwrap().changes, 0);
}

#[test]
fn a_filter_on_one_address_of_many_is_noticed_and_stays() {
    let vips: Vec<String> = (1..=20).map(|n| format!("192.0.2.{n}")).collect();
    let vips: Vec<&str> = vips.iter().map(String::as_str).collect();
    let mut world = World::new(&vips);
    world.until(Standing::Proven);
    assert!(world.paths.report(PEER).unwrap().sent >= VIPS_FIRST as u64);
    world.dropped = vec![ip("192.0.2.17")];
    assert!(world.until(Standing::NotAnswered) < Duration::from_secs(6));
    let end = world.now + Duration::from_secs(20);
    while world.now < end {
        world.step();
        assert_eq!(world.standing(), Standing::NotAnswered);
    }
    assert_eq!(
        world.paths.report(PEER).unwrap().vip,
        Some(ip("192.0.2.17"))
    );
}

#[test]
fn only_the_answer_to_the_open_question_counts() {
    let mut world = World::new(&["192.0.2.1"]);
    let question = world.paths.ask(world.now)[0];
    let good = answer(&question);
    for bad in [
        Probe {
            kind: gateway_common::probe::ANSWER,
            ..good
        },
        Probe {
            sequence: good.sequence + 1,
            ..good
        },
        Probe {
            sender: PEER + 1,
            ..good
        },
        Probe {
            addressee: 9,
            ..good
        },
    ] {
        assert!(!world.paths.hear(&bad, world.now), "{bad:?}");
    }
    assert!(world.paths.hear(&good, world.now));
    assert!(!world.paths.hear(&good, world.now), "a second time");
}

#[test]
fn another_way_begins_anew_and_without_vips_nobody_is_asked() {
    let mut world = World::new(&["192.0.2.1"]);
    world.until(Standing::Proven);
    let own = ip("10.0.0.1");
    world.paths.set_peers(1, own, &[target(2)], world.now);
    assert_eq!(world.standing(), Standing::Proven);
    world.paths.set_peers(1, own, &[target(9)], world.now);
    assert_eq!(world.standing(), Standing::Asking);
    world.paths.set_vips(Vec::new());
    assert_eq!(world.paths.poll_timeout(), None);
    assert_eq!(world.paths.ask(world.now + INTERVAL), []);
    world.paths.set_peers(1, own, &[], world.now);
    assert_eq!(world.paths.report(PEER), None);
}

#[test]
fn a_question_that_is_not_answered_is_signed_under_the_other_key_next() {
    let mut world = World::new(&["192.0.2.1"]);
    let first = world.paths.ask(world.now)[0];
    world.now += 200 * MS;
    world.paths.advance(world.now, |_| Some(200 * MS));
    let second = world.paths.ask(world.now)[0];
    let keys = [[1, 2], [3, 4]];
    assert_eq!([key_of(&first, keys), key_of(&second, keys)], keys);
    assert_eq!(key_of(&second, [[1, 2], [0, 0]]), [1, 2]);
}

proptest! {
    #[test]
    fn no_two_failures_come_sooner_than_three_misses_and_proof_needs_answers(
        weather in prop::collection::vec((any::<bool>(), any::<bool>(), 1u64..80), 1..60),
    ) {
        let mut world = World::new(&["192.0.2.1", "2001:db8::1"]);
        let mut before = (Standing::Asking, 0);
        for (dropped, well, steps) in weather {
            world.dropped = if dropped { world.vips.clone() } else { Vec::new() };
            world.well = well;
            for _ in 0..steps {
                world.step();
                let report = world.paths.report(PEER).unwrap();
                if report.standing != before.0 {
                    if report.standing == Standing::NotAnswered {
                        prop_assert!(report.missed >= before.1 + u64::from(MISSES));
                    } else if report.standing == Standing::Asking {
                        prop_assert!(!well);
                    } else {
                        prop_assert!(!dropped && well);
                    }
                    before = (report.standing, report.missed);
                }
            }
        }
    }
}
