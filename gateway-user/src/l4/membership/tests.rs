//! One test for each rule, and random histories of what peers report.

use gateway_common::probe::view;

use super::*;
use crate::l4::liveness::{PeerReport, Quiet, Report, Standing};

const TIMEOUT: Duration = Duration::from_secs(60);

fn at(seconds: u64) -> Time {
    Duration::from_secs(seconds)
}

fn replica(name: &str, state: ReplicaState) -> Replica {
    Replica {
        name: name.to_owned(),
        address: IpAddr::from([10, 0, 0, name.as_bytes()[0]]),
        state,
        weight: 1,
    }
}

fn membership() -> Membership {
    Membership::new("a", IpAddr::from([10, 0, 0, 1]), TIMEOUT)
}

fn states(m: &Membership) -> Vec<(String, ReplicaState)> {
    m.members().map(|m| (m.name.clone(), m.state)).collect()
}

#[test]
fn an_empty_list_is_this_node_alone_and_ready() {
    let mut m = membership();
    m.update(&[], at(0));
    assert_eq!(states(&m), [("a".to_owned(), ReplicaState::Ready)]);
}

#[test]
fn a_list_without_this_node_leaves_it_joining() {
    let mut m = membership();
    m.update(&[replica("b", ReplicaState::Ready)], at(0));
    assert_eq!(
        states(&m),
        [
            ("a".to_owned(), ReplicaState::Joining),
            ("b".to_owned(), ReplicaState::Ready)
        ]
    );
}

#[test]
fn doubt_at_the_start_ends_with_the_drain_timeout() {
    let mut m = membership();
    m.update(
        &[
            replica("a", ReplicaState::Ready),
            replica("b", ReplicaState::Joining),
        ],
        at(5),
    );
    assert_eq!(m.poll_timeout(), Some(at(65)));
    let b = m.members().nth(1).unwrap();
    assert_eq!(
        (b.holds_until, b.settles_at),
        (Some(at(65)), None),
        "its past is not known"
    );
    m.handle_timeout(at(65));
    assert_eq!(m.poll_timeout(), None);
}

#[test]
fn a_node_that_joins_while_we_watch_holds_nothing_until_it_is_ready() {
    let mut m = membership();
    m.update(&[replica("a", ReplicaState::Ready)], at(0));
    m.handle_timeout(at(60));
    let joining = [
        replica("a", ReplicaState::Ready),
        replica("b", ReplicaState::Joining),
    ];
    m.update(&joining, at(100));
    assert_eq!(m.poll_timeout(), None);
    let ready = [
        replica("a", ReplicaState::Ready),
        replica("b", ReplicaState::Ready),
    ];
    m.update(&ready, at(110));
    assert_eq!(m.members().nth(1).unwrap().settles_at, Some(at(170)));
    m.update(&ready, at(120));
    assert_eq!(
        m.poll_timeout(),
        Some(at(170)),
        "the same list again starts nothing"
    );
}

#[test]
fn the_own_decision_to_drain_beats_the_snapshot() {
    let mut m = membership();
    let all = [
        replica("a", ReplicaState::Ready),
        replica("b", ReplicaState::Ready),
    ];
    m.update(&all, at(0));
    m.handle_timeout(at(60));
    m.set_draining(true, at(100));
    m.update(&all, at(101));
    let a = m.members().next().unwrap();
    assert_eq!(
        (a.state, a.holds_until),
        (ReplicaState::Draining, Some(at(160)))
    );
    m.set_draining(false, at(130));
    let a = m.members().next().unwrap();
    assert_eq!(
        (a.state, a.settles_at),
        (ReplicaState::Ready, Some(at(190)))
    );
}

#[test]
fn a_ready_node_that_loses_readiness_still_holds_sockets() {
    let mut m = membership();
    m.update(
        &[
            replica("a", ReplicaState::Ready),
            replica("b", ReplicaState::Ready),
        ],
        at(0),
    );
    m.update(
        &[
            replica("a", ReplicaState::Ready),
            replica("b", ReplicaState::Joining),
        ],
        at(9),
    );
    assert_eq!(m.members().nth(1).unwrap().holds_until, Some(at(69)));
}

#[test]
fn a_new_weight_puts_everything_in_transition() {
    let mut m = membership();
    let mut all = [
        replica("a", ReplicaState::Ready),
        replica("b", ReplicaState::Ready),
    ];
    m.update(&all, at(0));
    m.handle_timeout(at(60));
    assert!(!m.all_in_transition());
    all[1].weight = 2;
    m.update(&all, at(70));
    assert!(m.all_in_transition());
    m.handle_timeout(at(130));
    assert!(!m.all_in_transition());
}

const KEY: Key = [1, 2];

fn ms(millis: u64) -> Time {
    Duration::from_millis(millis)
}

/// A membership of node `a` that is probed, among nodes that were all ready before it came.
fn probing(names: &[&str]) -> (Membership, Vec<Replica>) {
    let replicas: Vec<Replica> = (names.iter())
        .map(|name| replica(name, ReplicaState::Ready))
        .collect();
    let mut m = membership();
    m.set_probing();
    m.update(&replicas, at(0));
    (m, replicas)
}

/// The same, settled: everybody answers, is quiet and knows of `a`.
fn settled(names: &[&str]) -> (Membership, Vec<Replica>) {
    let (mut m, replicas) = probing(names);
    let joined = with_state(&m, "a", MemberState::Ready);
    m.observe(&all(&m, &|_| answers(joined)), KEY, at(1));
    let report = all(&m, &|m| answers(m.fingerprint(KEY)));
    m.observe(&report, KEY, at(10));
    assert_eq!(
        (m.poll_timeout(), state_of(&m, "a")),
        (None, ReplicaState::Ready)
    );
    (m, replicas)
}

/// The fingerprint of the list with another state of one node.
fn with_state(m: &Membership, name: &str, state: MemberState) -> u32 {
    m.fingerprint_of(KEY, |member| match member.name == name {
        true => state,
        false => member.as_all_see_it(),
    })
}

/// A healthy answer of a node that has been quiet for long.
fn answers(fingerprint: u32) -> PeerReport {
    PeerReport {
        standing: Standing::Answering,
        known: true,
        fingerprint: Some(fingerprint),
        foreign: Some(0),
        quiet: Some(Quiet {
            fingerprint,
            lasted: QUIET,
        }),
        proxy_alive: true,
        holds_us: view::LISTED,
        ..PeerReport::default()
    }
}

fn holds_foreign(fingerprint: u32) -> PeerReport {
    PeerReport {
        foreign: Some(1),
        quiet: None,
        ..answers(fingerprint)
    }
}

fn suspect() -> PeerReport {
    PeerReport {
        standing: Standing::Suspect,
        known: true,
        ..PeerReport::default()
    }
}

fn agreed(seconds: u64) -> PeerReport {
    PeerReport {
        standing: Standing::Silent,
        agreed_for: Some(at(seconds)),
        ..suspect()
    }
}

/// A report in which all peers say the same, and this node is quiet.
fn all(m: &Membership, says: &dyn Fn(&Membership) -> PeerReport) -> Report {
    let others = m.members().filter(|member| member.name != "a");
    Report {
        peers: others.map(|peer| (peer.name.clone(), says(m))).collect(),
        own_quiet: Some(Quiet {
            fingerprint: m.fingerprint(KEY),
            lasted: QUIET,
        }),
        stalled: Duration::ZERO,
    }
}

/// A report in which all are well but some.
fn but(m: &Membership, some: &[(&str, PeerReport)]) -> Report {
    let mut report = all(m, &|m| answers(m.fingerprint(KEY)));
    for (name, says) in some {
        report.peers.insert((*name).to_owned(), says.clone());
    }
    report
}

fn member<'a>(m: &'a Membership, name: &str) -> &'a Member {
    m.members().find(|member| member.name == name).unwrap()
}

fn state_of(m: &Membership, name: &str) -> ReplicaState {
    member(m, name).state
}

fn dead(m: &Membership) -> Vec<&str> {
    let dead = m.members().filter(|member| member.dead);
    dead.map(|member| member.name.as_str()).collect()
}

fn episodes(m: &Membership) -> Vec<&str> {
    let with = m.members().filter(|member| member.episode.is_some());
    with.map(|member| member.name.as_str()).collect()
}

#[test]
fn without_a_list_a_node_of_a_cluster_is_not_ready_and_later_keeps_the_last() {
    let mut m = membership();
    m.set_absence(Absence::Unknown);
    m.update(&[], at(0));
    assert_eq!(states(&m), [("a".to_owned(), ReplicaState::Joining)]);
    let list = [
        replica("a", ReplicaState::Ready),
        replica("b", ReplicaState::Ready),
    ];
    m.update(&list, at(1));
    let known = states(&m);
    m.update(&[], at(2));
    assert_eq!(states(&m), known);
}

#[test]
fn a_node_joins_as_soon_as_all_who_answer_know_of_it() {
    let (mut m, mut replicas) = settled(&["a", "b", "c"]);
    replicas.push(replica("d", ReplicaState::Joining));
    m.update(&replicas, at(20));
    let joining = m.fingerprint(KEY);
    replicas[3].state = ReplicaState::Ready;
    m.update(&replicas, at(30));
    assert_eq!(state_of(&m, "d"), ReplicaState::Joining);
    assert_ne!(
        m.fingerprint(KEY),
        joining,
        "who does not know yet says another"
    );
    assert!(member(&m, "d").waits());
    let behind = answers(joining);
    assert!(!m.observe(&but(&m, &[("b", behind)]), KEY, ms(30_050)));
    assert_eq!(m.poll_timeout(), Some(at(32)));
    let old = answers(99);
    assert!(!m.observe(&but(&m, &[("c", old.clone())]), KEY, ms(30_100)));
    let newcomer = PeerReport {
        standing: Standing::New,
        ..PeerReport::default()
    };
    assert!(!m.observe(&but(&m, &[("d", newcomer)]), KEY, ms(30_200)));
    // Who does not answer is not waited for, and who went ahead agrees.
    let ahead = answers(with_state(&m, "d", MemberState::Ready));
    let report = but(&m, &[("b", suspect()), ("c", ahead)]);
    assert!(m.observe(&report, KEY, ms(30_300)));
    assert_eq!(state_of(&m, "d"), ReplicaState::Ready);
    assert!(member(&m, "d").settles_at.is_some());
}

#[test]
fn a_node_that_is_no_longer_ready_keeps_its_rows_until_it_knows() {
    for (state, says) in [
        (ReplicaState::Draining, "it knows"),
        (ReplicaState::Joining, "its proxy is silent"),
        (ReplicaState::Draining, "it is silent"),
        (ReplicaState::Joining, "nothing, for long"),
    ] {
        let (mut m, mut replicas) = settled(&["a", "b", "c"]);
        replicas[2].state = state;
        m.update(&replicas, at(20));
        let before = m.fingerprint(KEY);
        let behind = PeerReport {
            ready: true,
            ..answers(before)
        };
        assert!(!m.observe(&but(&m, &[("c", behind.clone())]), KEY, at(20)));
        m.update(&replicas, at(21));
        assert_eq!(state_of(&m, "c"), ReplicaState::Ready, "{says}");
        assert_eq!(m.poll_timeout(), Some(at(22)));
        let said = match says {
            "it knows" => answers(99),
            "its proxy is silent" => PeerReport {
                proxy_alive: false,
                ..behind.clone()
            },
            "it is silent" => suspect(),
            _ => behind.clone(),
        };
        m.observe(&but(&m, &[("c", said)]), KEY, at(21));
        m.handle_timeout(at(22));
        assert_eq!(state_of(&m, "c"), state, "{says}");
        assert!(member(&m, "c").holds_until.is_some());
        // Ready again before it knew: nothing has happened.
        let (mut m, mut replicas) = settled(&["a", "b", "c"]);
        replicas[2].state = state;
        m.update(&replicas, at(20));
        replicas[2].state = ReplicaState::Ready;
        m.update(&replicas, at(21));
        assert_eq!((m.fingerprint(KEY), m.poll_timeout()), (before, None));
    }
}

#[test]
fn a_peer_that_says_that_it_drains_owns_nothing_whatever_the_list_says() {
    let (mut m, mut replicas) = settled(&["a", "b", "c"]);
    let drains = with_state(&m, "c", MemberState::Draining);
    let said = |fingerprint, draining| PeerReport {
        draining,
        ready: !draining,
        ..answers(fingerprint)
    };
    assert!(m.observe(&but(&m, &[("c", said(drains, true))]), KEY, at(20)));
    assert_eq!(state_of(&m, "c"), ReplicaState::Draining);
    assert_eq!(m.fingerprint(KEY), drains, "as it sees itself");
    assert!(member(&m, "c").holds_until.is_some());
    // The list comes late, or calls it something else.
    for state in [ReplicaState::Ready, ReplicaState::Joining] {
        replicas[2].state = state;
        m.update(&replicas, at(21));
        assert_eq!(state_of(&m, "c"), ReplicaState::Draining);
    }
    // It is not heard for a while.
    m.observe(&but(&m, &[("c", suspect())]), KEY, at(22));
    assert_eq!(state_of(&m, "c"), ReplicaState::Draining);
    // Another process, for which the list holds; and one more time, without an entry in the list meanwhile.
    replicas[2].state = ReplicaState::Ready;
    m.update(&replicas, at(23));
    m.observe(&but(&m, &[("c", said(drains, false))]), KEY, at(23));
    assert!(member(&m, "c").waits());
    let agrees = said(m.fingerprint(KEY), false);
    m.observe(&but(&m, &[("c", agrees)]), KEY, at(23));
    assert_eq!(state_of(&m, "c"), ReplicaState::Ready);
    m.observe(&but(&m, &[("c", said(drains, true))]), KEY, at(24));
    m.update(&replicas[..2], at(25));
    m.update(&replicas, at(26));
    assert!(member(&m, "c").waits());
}

#[test]
fn nobody_waits_longer_than_two_seconds_to_join() {
    let (mut m, mut replicas) = settled(&["a", "b"]);
    replicas.push(replica("c", ReplicaState::Ready));
    m.update(&replicas, at(30));
    m.observe(&but(&m, &[("b", answers(99))]), KEY, ms(31_900));
    m.handle_timeout(ms(31_999));
    assert_eq!(state_of(&m, "c"), ReplicaState::Joining);
    m.handle_timeout(at(32));
    assert_eq!(state_of(&m, "c"), ReplicaState::Ready);
}

#[test]
fn three_nodes_that_start_cold_are_ready_with_their_first_answers() {
    let names = ["a", "b", "c"];
    let list: Vec<Replica> = (names.iter())
        .map(|name| replica(name, ReplicaState::Ready))
        .collect();
    let mut nodes = names.map(|name| {
        let mut m = Membership::new(name, IpAddr::from([10, 0, 0, 1]), TIMEOUT);
        m.set_probing();
        m.update(&list, at(0));
        m
    });
    for (node, name) in nodes.iter().zip(names) {
        assert_eq!(state_of(node, name), ReplicaState::Joining);
    }
    // One after the other hears the others' answers.
    for me in 0..3 {
        let peers = (0..3).filter(|peer| *peer != me);
        let peers = peers.map(|peer| {
            let says = answers(nodes[peer].fingerprint(KEY));
            (names[peer].to_owned(), says)
        });
        let report = Report {
            peers: peers.collect(),
            ..Report::default()
        };
        assert!(nodes[me].observe(&report, KEY, ms(100)), "{}", names[me]);
    }
    let fingerprints = nodes.map(|node| node.fingerprint(KEY));
    assert_eq!(fingerprints[0], fingerprints[1]);
    assert_eq!(fingerprints[0], fingerprints[2]);
}

#[test]
fn a_node_that_restarts_owns_its_rows_with_the_first_answers() {
    let (mut m, _) = probing(&["a", "b", "c"]);
    assert_eq!(state_of(&m, "a"), ReplicaState::Joining);
    assert_eq!(state_of(&m, "b"), ReplicaState::Ready);
    let ready = with_state(&m, "a", MemberState::Ready);
    assert!(m.observe(&all(&m, &|_| answers(ready)), KEY, ms(100)));
    assert_eq!(state_of(&m, "a"), ReplicaState::Ready);
}

#[test]
fn suspicion_changes_no_list_and_marks_only_that_nodes_rows_and_ours() {
    let (mut m, _) = settled(&["a", "b", "c", "d"]);
    let before = m.fingerprint(KEY);
    assert!(m.observe(&but(&m, &[("c", suspect())]), KEY, at(20)));
    assert_eq!(m.fingerprint(KEY), before);
    assert_eq!(episodes(&m), ["a", "c"], "c may hold us for suspect too");
    assert_eq!(m.poll_timeout(), None, "as long as it lasts");
    // It is back, its heir took a connection.
    let report = but(&m, &[("b", holds_foreign(before))]);
    m.observe(&report, KEY, at(21));
    m.observe(&report, KEY, at(40));
    assert_eq!(episodes(&m), ["a", "c"]);
    assert_eq!(m.poll_timeout(), Some(at(98)), "as long as b says so");
    assert!(m.observe(&but(&m, &[]), KEY, at(41)));
    assert_eq!(episodes(&m), [""; 0]);
}

#[test]
fn who_is_not_heard_announces_nothing_unless_most_are_not() {
    let unheard = |m: &Membership| -> Vec<String> {
        let members = m.members().filter(|member| member.unheard);
        members.map(|member| member.name.clone()).collect()
    };
    let (mut m, replicas) = settled(&["a", "b", "c", "d"]);
    assert!(m.observe(&but(&m, &[("c", suspect())]), KEY, at(20)));
    assert_eq!(unheard(&m), ["c"]);
    m.update(&replicas, at(21));
    assert_eq!(unheard(&m), ["c"]);
    let three = [("b", suspect()), ("c", suspect()), ("d", suspect())];
    m.observe(&but(&m, &three), KEY, at(22));
    assert_eq!(unheard(&m), [""; 0], "we are cut off");
    m.observe(&but(&m, &[("d", suspect())]), KEY, at(23));
    assert_eq!(unheard(&m), ["d"]);
    assert!(m.observe(&but(&m, &[]), KEY, at(24)));
    assert_eq!(unheard(&m), [""; 0]);
}

#[test]
fn an_episode_lasts_two_seconds_after_its_cause_and_at_most_the_drain_timeout() {
    let (mut m, _) = settled(&["a", "b", "c"]);
    m.observe(&but(&m, &[("c", suspect())]), KEY, at(20));
    m.observe(&but(&m, &[]), KEY, at(21));
    m.observe(&but(&m, &[]), KEY, ms(22_999));
    assert_eq!(episodes(&m), ["a", "c"]);
    m.observe(&but(&m, &[]), KEY, at(23));
    assert_eq!(episodes(&m), [""; 0]);
    let noisy = holds_foreign(m.fingerprint(KEY));
    m.observe(&but(&m, &[("c", suspect())]), KEY, at(30));
    m.observe(&but(&m, &[("b", noisy)]), KEY, at(31));
    m.handle_timeout(ms(90_999));
    assert_eq!(episodes(&m), ["a", "c"]);
    m.handle_timeout(at(91));
    assert_eq!(episodes(&m), [""; 0]);
}

#[test]
fn a_hanging_proxy_is_an_episode_of_its_node_alone() {
    let (mut m, _) = settled(&["a", "b", "c"]);
    let hangs = PeerReport {
        proxy_alive: false,
        quiet: None,
        ..answers(m.fingerprint(KEY))
    };
    assert!(m.observe(&but(&m, &[("b", hangs)]), KEY, at(20)));
    assert_eq!(episodes(&m), ["b"]);
}

#[test]
fn what_others_hold_us_for_is_an_episode_of_ours() {
    for held_for in [view::SUSPECT, view::SILENT, view::EPISODE] {
        let (mut m, _) = settled(&["a", "b", "c"]);
        let says = PeerReport {
            holds_us: view::LISTED | held_for,
            ..answers(m.fingerprint(KEY))
        };
        assert!(m.observe(&but(&m, &[("b", says)]), KEY, at(20)));
        assert_eq!(episodes(&m), ["a"]);
    }
    let (mut m, _) = settled(&["a", "b"]);
    m.after_gap(at(20));
    assert_eq!(episodes(&m), ["a"], "after the own heart stood still");
    m.observe(&but(&m, &[]), KEY, at(22));
    assert_eq!(episodes(&m), [""; 0]);
}

#[test]
fn a_dead_node_is_out_of_the_fingerprint_and_joins_again_when_it_answers() {
    let (mut m, mut replicas) = settled(&["a", "b", "c"]);
    let whole = m.fingerprint(KEY);
    assert!(m.observe(&but(&m, &[("c", agreed(0))]), KEY, at(20)));
    assert_eq!(dead(&m), ["c"]);
    assert_ne!(m.fingerprint(KEY), whole);
    // The list says the same again: it stays dead.
    m.update(&replicas, at(21));
    assert_eq!(dead(&m), ["c"]);
    let back = answers(whole);
    assert!(m.observe(&but(&m, &[("c", back.clone())]), KEY, at(30)));
    assert_eq!(dead(&m), [""; 0]);
    assert_eq!(state_of(&m, "c"), ReplicaState::Joining);
    assert!(member(&m, "c").holds_until.is_some(), "it lived on");
    m.handle_timeout(at(32));
    assert_eq!(m.fingerprint(KEY), whole);
    // At another address it is another machine.
    m.observe(&but(&m, &[("c", agreed(0))]), KEY, at(50));
    assert_eq!(dead(&m), ["c"]);
    replicas[2].address = IpAddr::from([10, 0, 9, 9]);
    m.update(&replicas, at(51));
    assert_eq!(dead(&m), [""; 0]);
}

#[test]
fn more_than_half_lost_is_held_until_it_has_been_agreed_for_ten_seconds() {
    let (mut m, _) = settled(&["a", "b", "c", "d"]);
    let three = |a: PeerReport| but(&m, &[("b", a.clone()), ("c", a.clone()), ("d", a)]);
    let (early, late) = (three(agreed(9)), three(agreed(10)));
    // The first of them is agreed while the others are merely suspect.
    let first = but(&m, &[("b", agreed(0)), ("c", suspect()), ("d", suspect())]);
    m.observe(&first, KEY, at(20));
    m.observe(&early, KEY, at(29));
    assert_eq!(dead(&m), [""; 0]);
    assert!(m.observe(&late, KEY, at(30)));
    assert_eq!(dead(&m), ["b", "c", "d"]);
    assert_eq!(m.members().filter(|member| !member.dead).count(), 1);
    // Half of the list is not more than half.
    let (mut m, _) = settled(&["a", "b", "c", "d"]);
    let two = but(&m, &[("b", agreed(0)), ("c", agreed(0))]);
    assert!(m.observe(&two, KEY, at(20)));
    assert_eq!(dead(&m), ["b", "c"]);
}

#[test]
fn a_drain_ends_when_the_draining_node_says_that_it_holds_nothing() {
    let (mut m, mut replicas) = settled(&["a", "b", "c"]);
    replicas[2].state = ReplicaState::Draining;
    m.update(&replicas, at(20));
    m.observe(&but(&m, &[]), KEY, at(20));
    let now = m.fingerprint(KEY);
    let holds = |m: &Membership| member(m, "c").holds_until.is_some();
    assert!(holds(&m));
    let short = PeerReport {
        quiet: Some(Quiet {
            fingerprint: now,
            lasted: QUIET - ms(1),
        }),
        ..answers(now)
    };
    let before = PeerReport {
        quiet: Some(Quiet {
            fingerprint: 99,
            lasted: QUIET * 9,
        }),
        ..answers(now)
    };
    for not_yet in [
        but(&m, &[("c", holds_foreign(now))]),
        but(&m, &[("c", short)]),
        but(&m, &[("c", before)]),
        but(&m, &[("c", suspect())]),
        // Somebody may still send it new connections.
        but(&m, &[("b", answers(99))]),
    ] {
        m.observe(&not_yet, KEY, at(25));
        assert!(holds(&m), "{not_yet:?}");
    }
    let (mut drained, mut held) = (m.clone(), m.clone());
    assert!(drained.observe(&but(&m, &[]), KEY, at(26)));
    assert!(!holds(&drained));
    // What others hold has no say in what the draining node holds.
    held.observe(&but(&m, &[("b", holds_foreign(now))]), KEY, at(26));
    assert!(!holds(&held));
}

#[test]
fn rows_of_a_new_owner_settle_when_all_others_say_that_they_hold_nothing() {
    let (mut m, mut replicas) = settled(&["a", "b", "c"]);
    replicas.push(replica("d", ReplicaState::Ready));
    m.update(&replicas, at(20));
    m.handle_timeout(at(22));
    let settles = |m: &Membership| member(m, "d").settles_at.is_some();
    let noisy = holds_foreign(m.fingerprint(KEY));
    m.observe(&but(&m, &[("b", noisy.clone())]), KEY, at(25));
    assert!(settles(&m));
    let mut ours = but(&m, &[]);
    ours.own_quiet = None;
    m.observe(&ours, KEY, at(26));
    assert!(settles(&m), "we hold some ourselves");
    m.observe(&but(&m, &[("c", suspect())]), KEY, at(27));
    assert!(settles(&m), "a suspect says nothing");
    m.observe(&but(&m, &[("d", noisy)]), KEY, at(28));
    assert!(!settles(&m), "what it holds itself is no doubt about it");
}

#[test]
fn what_was_said_before_a_node_was_ready_again_settles_nothing() {
    let (mut m, mut replicas) = settled(&["a", "b", "c"]);
    let whole = m.fingerprint(KEY);
    replicas[0].state = ReplicaState::Joining;
    m.update(&replicas, at(20));
    replicas[0].state = ReplicaState::Ready;
    m.update(&replicas, ms(20_200));
    // The others have not noticed.
    let unaware = all(&m, &|_| answers(whole));
    assert!(m.observe(&unaware, KEY, ms(20_300)));
    assert_eq!(m.fingerprint(KEY), whole);
    for millis in [20_400, 22_299] {
        m.observe(&but(&m, &[]), KEY, ms(millis));
        assert!(
            member(&m, "a").settles_at.is_some(),
            "one of them may notice late"
        );
    }
    m.observe(&but(&m, &[]), KEY, ms(22_300));
    assert_eq!(member(&m, "a").settles_at, None);
}

#[test]
fn doubt_lasts_as_long_as_somebody_says_that_it_holds_connections() {
    let (mut m, mut replicas) = settled(&["a", "b", "c"]);
    replicas.push(replica("d", ReplicaState::Ready));
    m.update(&replicas, at(20));
    m.handle_timeout(at(22));
    let settles = |m: &Membership| member(m, "d").settles_at;
    let timeout = settles(&m).unwrap() - at(22);
    let noisy = holds_foreign(m.fingerprint(KEY));
    for second in 23..500 {
        m.observe(&but(&m, &[("b", noisy.clone())]), KEY, at(second));
        m.handle_timeout(at(second));
        assert_eq!(settles(&m), Some(at(second) + timeout));
    }
    // It says nothing any more.
    m.observe(&but(&m, &[("b", suspect())]), KEY, at(500));
    m.handle_timeout(at(499) + timeout);
    assert_eq!(settles(&m), None);
}

#[test]
fn new_weights_settle_when_all_say_that_they_hold_nothing() {
    let (mut m, mut replicas) = settled(&["a", "b", "c"]);
    replicas[1].weight = 3;
    m.update(&replicas, at(20));
    assert!(m.all_in_transition());
    let noisy = holds_foreign(m.fingerprint(KEY));
    m.observe(&but(&m, &[("c", noisy)]), KEY, at(23));
    assert!(m.all_in_transition());
    assert!(m.observe(&but(&m, &[]), KEY, at(24)));
    assert!(!m.all_in_transition());
}

#[test]
fn a_partition_of_one_node_leaves_both_sides_whole_until_it_is_long() {
    // The lone node: everybody else is silent, nobody agrees but itself.
    let (mut lone, _) = settled(&["a", "b", "c"]);
    let before = lone.fingerprint(KEY);
    for second in 0..10 {
        let silent = but(&lone, &[("b", agreed(second)), ("c", agreed(second))]);
        lone.observe(&silent, KEY, at(20 + second));
        assert_eq!(lone.fingerprint(KEY), before);
        assert_eq!(episodes(&lone), ["a", "b", "c"]);
    }
    // The others take it for dead, and take it back as soon as it answers.
    let (mut most, _) = settled(&["a", "b", "c"]);
    most.observe(&but(&most, &[("c", agreed(0))]), KEY, at(23));
    assert_eq!(dead(&most), ["c"]);
    let back = but(&most, &[("c", answers(before))]);
    most.observe(&back, KEY, at(30));
    assert_eq!(state_of(&most, "c"), ReplicaState::Joining);
    let whole = but(&most, &[("c", answers(before))]);
    most.observe(&whole, KEY, ms(30_100));
    assert_eq!(most.fingerprint(KEY), before);
}

mod histories {
    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Copy, Debug)]
    enum Says {
        Well,
        Foreign,
        Hangs,
        DoubtsUs,
        OtherList,
        Suspect,
        Silent(u64),
    }

    fn says() -> impl Strategy<Value = Says> {
        prop_oneof![
            8 => Just(Says::Well),
            2 => Just(Says::Foreign),
            1 => Just(Says::Hangs),
            1 => Just(Says::DoubtsUs),
            1 => Just(Says::OtherList),
            2 => Just(Says::Suspect),
            2 => (0..20_u64).prop_map(Says::Silent),
        ]
    }

    fn report(says: Says, fingerprint: u32) -> PeerReport {
        match says {
            Says::Well => answers(fingerprint),
            Says::Foreign => holds_foreign(fingerprint),
            Says::Hangs => PeerReport {
                proxy_alive: false,
                quiet: None,
                ..answers(fingerprint)
            },
            Says::DoubtsUs => PeerReport {
                holds_us: view::LISTED | view::EPISODE,
                ..answers(fingerprint)
            },
            Says::OtherList => answers(fingerprint ^ 1),
            Says::Suspect => suspect(),
            Says::Silent(seconds) => agreed(seconds),
        }
    }

    const NAMES: [&str; 5] = ["a", "b", "c", "d", "e"];

    fn state() -> impl Strategy<Value = ReplicaState> {
        prop_oneof![
            4 => Just(ReplicaState::Ready),
            1 => Just(ReplicaState::Joining),
            1 => Just(ReplicaState::Draining),
        ]
    }

    /// Time that passes, what the four others say, and perhaps a new list.
    type Step = (u64, [Says; 4], Option<[ReplicaState; 5]>);

    fn step() -> impl Strategy<Value = Step> {
        let list = prop::option::weighted(0.2, prop::array::uniform5(state()));
        (50..4_000_u64, prop::array::uniform4(says()), list)
    }

    fn list(states: [ReplicaState; 5]) -> Vec<Replica> {
        let pairs = NAMES.iter().zip(states);
        pairs.map(|(name, state)| replica(name, state)).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(400))]
        #[test]
        fn never_empty_the_table_nor_mark_more_than_needed(steps in prop::collection::vec(step(), 1..40)) {
            let mut m = membership();
            m.set_probing();
            let mut states = [ReplicaState::Ready; 5];
            m.update(&list(states), at(0));
            let mut now = at(0);
            for (millis, said, change) in &steps {
                now += ms(*millis);
                if let Some(new) = change {
                    states = *new;
                    m.update(&list(states), now);
                }
                if m.poll_timeout().is_some_and(|at| at <= now) {
                    m.handle_timeout(now);
                }
                let fingerprint = m.fingerprint(KEY);
                let pairs: Vec<(&str, Says)> = NAMES[1..].iter().copied().zip(*said).collect();
                let some: Vec<_> = pairs.iter().map(|(n, s)| (*n, report(*s, fingerprint))).collect();
                let before = m.clone();
                m.observe(&but(&m, &some), KEY, now);

                prop_assert!(!member(&m, "a").dead, "this node is never dead");
                let of = |name: &str| pairs.iter().find(|(n, _)| *n == name).map(|(_, s)| *s);
                let answers = |s: &Says| !matches!(s, Says::Suspect | Says::Silent(_));
                let lost = pairs.iter().filter(|(_, s)| !answers(s)).count();
                for name in dead(&m) {
                    let was = member(&before, name).dead;
                    match of(name) {
                        Some(Says::Silent(seconds)) => {
                            prop_assert!(was || 2 * lost <= 5 || seconds >= 10, "{name} of {pairs:?}");
                        }
                        Some(Says::Suspect) => prop_assert!(was, "suspicion alone is no death"),
                        other => prop_assert!(false, "{name} answers: {other:?}"),
                    }
                }
                let changed = m.fingerprint(KEY) != fingerprint;
                let reason = dead(&m) != dead(&before) || m.joining != before.joining || m.leaving != before.leaving;
                prop_assert!(!changed || reason, "only death, return, joining and leaving change the list");
                for new in episodes(&m).iter().filter(|n| !episodes(&before).contains(n)) {
                    let cause = match of(new) {
                        Some(says) => matches!(says, Says::Suspect | Says::Silent(_) | Says::Hangs),
                        None => pairs.iter().any(|(_, s)| matches!(s, Says::Suspect | Says::Silent(_) | Says::DoubtsUs)),
                    };
                    prop_assert!(cause, "{new} is marked without a cause: {pairs:?}");
                }
            }
            // All is well for a while: nothing is left of it.
            for _ in 0..4 {
                now += QUIET;
                if m.poll_timeout().is_some_and(|at| at <= now) {
                    m.handle_timeout(now);
                }
                m.observe(&but(&m, &[]), KEY, now);
            }
            prop_assert!(dead(&m).is_empty() && episodes(&m).is_empty() && !m.all_in_transition());
            for (member, state) in m.members().zip(states) {
                prop_assert_eq!(member.state, state);
                prop_assert!(member.holds_until.is_none() && member.settles_at.is_none(), "{:?}", member);
            }
        }
    }
}
