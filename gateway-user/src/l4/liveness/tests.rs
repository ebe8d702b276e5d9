//! Peers that answer, fall silent, flap and vote; a prober that stalls and a clock that jumps.

use gateway_common::probe::Probe;

use super::*;

const INTERVAL: Duration = Duration::from_millis(100);
const OWN: u64 = 100;

fn ms(millis: u64) -> Time {
    Duration::from_millis(millis)
}

fn id(n: u8) -> PeerId {
    PeerId {
        name: format!("n{n}"),
        name_hash: u64::from(n),
        address: IpAddr::from([10, 0, 0, n]),
    }
}

/// A prober with its peers, who answer as a test says.
struct Prober {
    liveness: Liveness,
    now: Time,
    /// Rounds that the peers have probed.
    rounds: u32,
}

/// How a peer behaves: none is silence.
type Says<'a> = &'a dyn Fn(u8, &Probe) -> Option<Probe>;

fn answer(question: &Probe) -> Probe {
    Probe {
        kind: ANSWER,
        flags: flag::PROXY_ALIVE | flag::COUNTED,
        asker: view::LISTED,
        fingerprint: 7,
        sender: question.addressee,
        addressee: question.sender,
        ..*question
    }
}

fn subject(question: &Probe) -> u8 {
    question.subject[15]
}

impl Prober {
    fn new(peers: &[u8]) -> Self {
        let mut liveness = Liveness::new(Settings::default(), 1 << 40, ms(0));
        let ids: Vec<PeerId> = peers.iter().map(|n| id(*n)).collect();
        liveness.set_peers(OWN, &ids);
        Self {
            liveness,
            now: ms(0),
            rounds: 0,
        }
    }

    /// One interval: questions, answers, and a look at the end.
    fn round(&mut self, says: Says<'_>) {
        self.rounds += 1;
        let peers: Vec<u64> = self.liveness.peers().map(|peer| peer.name_hash).collect();
        for peer in peers {
            let question = self.liveness.ask(peer, self.now).unwrap();
            self.liveness.sent(peer, true);
            if let Some(said) = says(u8::try_from(peer).unwrap(), &question) {
                let said = Probe {
                    rounds: self.rounds,
                    ..said
                };
                assert!(self.liveness.hear(&said, self.now + ms(1)));
            }
        }
        self.now += INTERVAL;
        self.liveness.advance(self.now);
    }

    fn rounds(&mut self, count: u32, says: Says<'_>) {
        for _ in 0..count {
            self.round(says);
        }
    }

    fn peer(&self, n: u8) -> PeerReport {
        self.liveness.report().peers[&format!("n{n}")].clone()
    }

    fn standing(&self, n: u8) -> Standing {
        self.peer(n).standing
    }
}

#[test]
fn silence_makes_suspect_then_silent_and_one_answer_ends_both() {
    let mut prober = Prober::new(&[1]);
    prober.round(&|_, q| Some(answer(q)));
    assert_eq!(prober.standing(1), Standing::Answering);
    prober.round(&|_, _| None);
    assert_eq!(
        prober.standing(1),
        Standing::Answering,
        "200 ms since the answer"
    );
    assert_eq!(prober.liveness.poll_timeout(), Some(prober.now + INTERVAL));
    prober.round(&|_, _| None);
    assert_eq!(prober.standing(1), Standing::Suspect, "300 ms");
    assert_eq!(prober.liveness.alive_bits(1), view::SUSPECT);
    prober.rounds(26, &|_, _| None);
    assert_eq!(prober.standing(1), Standing::Suspect, "2.9 s");
    prober.round(&|_, _| None);
    assert_eq!(prober.standing(1), Standing::Silent, "3 s");
    assert_eq!(prober.liveness.alive_bits(1), view::SUSPECT | view::SILENT);
    prober.round(&|_, q| Some(answer(q)));
    assert_eq!(prober.standing(1), Standing::Answering);
    assert_eq!(prober.liveness.alive_bits(1), 0);
    assert_eq!(prober.peer(1).suspected, 1);
}

#[test]
fn a_peer_that_never_answered_has_time_to_see_the_list() {
    let mut prober = Prober::new(&[1]);
    prober.rounds(19, &|_, _| None);
    assert_eq!(prober.standing(1), Standing::New, "1.9 s");
    assert_eq!(prober.liveness.poll_timeout(), Some(prober.now + INTERVAL));
    prober.round(&|_, _| None);
    assert_eq!(prober.standing(1), Standing::Suspect, "2 s");
    prober.rounds(10, &|_, _| None);
    assert_eq!(prober.standing(1), Standing::Silent, "3 s");
}

#[test]
fn a_stalled_prober_takes_no_silence_for_death() {
    let mut prober = Prober::new(&[1, 2]);
    prober.round(&|_, q| Some(answer(q)));
    for _ in 0..20 {
        // The questions are out, the answers wait in the socket, the process does not run.
        let questions = [1, 2].map(|n| prober.liveness.ask(n, prober.now).unwrap());
        for n in [1, 2] {
            prober.liveness.sent(n, true);
        }
        prober.now += ms(10_000);
        for question in &questions {
            assert!(prober.liveness.hear(&answer(question), prober.now));
        }
        prober.liveness.advance(prober.now);
        assert_eq!(prober.standing(1), Standing::Answering);
    }
    // Even without a single answer a stall counts for an interval and a half.
    prober.liveness.ask(1, prober.now).unwrap();
    prober.liveness.sent(1, true);
    prober.now += ms(3_600_000);
    prober.liveness.advance(prober.now);
    assert_eq!(prober.standing(1), Standing::Answering);
    assert!(prober.liveness.report().stalled > ms(3_600_000));
}

#[test]
fn a_node_that_was_not_asked_for_long_is_not_suspected_by_the_first_question() {
    let mut prober = Prober::new(&[1]);
    prober.round(&|_, q| Some(answer(q)));
    for _ in 0..50 {
        prober.now += INTERVAL;
        prober.liveness.advance(prober.now);
    }
    prober.round(&|_, _| None);
    assert_eq!(
        prober.standing(1),
        Standing::Answering,
        "an interval and this one"
    );
    prober.round(&|_, _| None);
    assert_eq!(prober.standing(1), Standing::Suspect);
}

#[test]
fn a_clock_that_goes_back_changes_nothing() {
    let mut prober = Prober::new(&[1]);
    prober.rounds(3, &|_, q| Some(answer(q)));
    let before = prober.liveness.report();
    prober.liveness.advance(ms(0));
    assert_eq!(prober.liveness.report(), before);
}

#[test]
fn a_question_that_could_not_be_sent_says_nothing() {
    let mut prober = Prober::new(&[1]);
    prober.round(&|_, q| Some(answer(q)));
    for _ in 0..100 {
        prober.liveness.ask(1, prober.now).unwrap();
        prober.liveness.sent(1, false);
        prober.now += INTERVAL;
        prober.liveness.advance(prober.now);
    }
    assert_eq!(prober.standing(1), Standing::Answering);
    assert_eq!((prober.peer(1).asked, prober.peer(1).lost), (1, 0));
}

#[test]
fn flapping_is_followed_and_never_agreed() {
    let mut prober = Prober::new(&[1, 2]);
    for turn in 0_u64..50 {
        let silent = turn % 2 == 1;
        prober.rounds(5, &|n, q| (n == 2 || !silent).then(|| answer(q)));
        let wanted = if silent {
            Standing::Suspect
        } else {
            Standing::Answering
        };
        assert_eq!(prober.standing(1), wanted, "turn {turn}");
        assert_eq!(prober.peer(1).agreed_for, None);
        assert_eq!(prober.standing(2), Standing::Answering);
        assert_eq!(prober.peer(1).suspected, turn.div_ceil(2));
    }
}

#[test]
fn only_open_questions_of_this_node_to_that_peer_are_answered() {
    let mut prober = Prober::new(&[1, 2]);
    let question = prober.liveness.ask(1, ms(0)).unwrap();
    prober.liveness.sent(1, true);
    let good = answer(&question);
    let wrong = [
        Probe { sender: 2, ..good },
        Probe { sender: 9, ..good },
        Probe {
            addressee: OWN + 1,
            ..good
        },
        Probe {
            sequence: good.sequence + 1,
            ..good
        },
        Probe {
            kind: REQUEST,
            ..good
        },
    ];
    for wrong in &wrong {
        assert!(!prober.liveness.hear(wrong, ms(1)), "{wrong:?}");
    }
    assert_eq!(prober.standing(1), Standing::New);
    assert!(prober.liveness.hear(&good, ms(1)));
    assert!(!prober.liveness.hear(&good, ms(2)), "a second time");
    assert_eq!(prober.peer(1).round_trip, Some(ms(1)));
}

/// Peers 1 to 5; number 5 is silent, the others hold it for what `held` says.
fn votes(held: [u8; 4]) -> Prober {
    let mut prober = Prober::new(&[1, 2, 3, 4, 5]);
    prober.round(&|_, q| Some(answer(q)));
    prober.rounds(32, &move |n, q| {
        (n != 5).then(|| Probe {
            verdict: if subject(q) == 5 {
                held[usize::from(n) - 1]
            } else {
                0
            },
            ..answer(q)
        })
    });
    assert_eq!(prober.standing(5), Standing::Silent);
    prober
}

#[test]
fn death_takes_most_of_those_who_answer() {
    let silent = view::LISTED | view::SUSPECT | view::SILENT;
    let alive = view::LISTED;
    let suspect = view::LISTED | view::SUSPECT;
    for (held, dead) in [
        ([silent; 4], true),
        ([silent, silent, alive, alive], true),
        ([silent, alive, alive, alive], false),
        ([suspect; 4], false),
        ([0; 4], false),
    ] {
        assert_eq!(votes(held).peer(5).agreed_for.is_some(), dead, "{held:?}");
    }
}

#[test]
fn who_does_not_probe_has_no_vote() {
    let mut prober = Prober::new(&[1, 2, 3]);
    prober.round(&|_, q| Some(answer(q)));
    // The daemons of 1 and 2 are gone, their kernels go on answering what was written last.
    for _ in 0..35 {
        prober.rounds = 0;
        prober.round(&|n, q| (n != 3).then(|| answer(q)));
    }
    assert!(prober.peer(3).agreed_for.is_some());
}

#[test]
fn alone_a_node_takes_nobody_for_dead_who_never_answered() {
    let mut prober = Prober::new(&[1, 2]);
    prober.rounds(100, &|_, _| None);
    assert_eq!(prober.standing(1), Standing::Silent);
    assert_eq!(prober.peer(1).agreed_for, None);
    // Two nodes: the one that answered and falls silent is dead on this node's word alone.
    let mut two = Prober::new(&[1]);
    two.round(&|_, q| Some(answer(q)));
    two.rounds(31, &|_, _| None);
    assert!(two.peer(1).agreed_for.is_some());
}

#[test]
fn an_old_opinion_is_none() {
    let silent = view::LISTED | view::SUSPECT | view::SILENT;
    let mut prober = votes([silent; 4]);
    // From now on the others do not know the node any more.
    prober.rounds(12, &|n, q| (n != 5).then(|| answer(q)));
    assert_eq!(prober.peer(5).agreed_for, None);
}

#[test]
fn everybody_is_asked_about_every_suspect() {
    let mut prober = Prober::new(&[1, 2, 3, 4, 5, 6]);
    prober.round(&|_, q| Some(answer(q)));
    prober.rounds(4, &|n, q| (n < 4).then(|| answer(q)));
    let asked = std::cell::RefCell::new(std::collections::BTreeSet::new());
    prober.rounds(12, &|n, q| {
        asked.borrow_mut().insert((n, subject(q)));
        (n < 4).then(|| answer(q))
    });
    for asked_of in 1..=6 {
        for about in 4..=6 {
            let there = asked.borrow().contains(&(asked_of, about));
            assert_eq!(there, asked_of != about, "{asked_of} about {about}");
        }
    }
}

#[test]
fn quiet_lasts_under_one_membership_with_a_living_proxy() {
    let mut prober = Prober::new(&[1]);
    let lasted = |prober: &Prober| prober.peer(1).quiet.map(|quiet| quiet.lasted);
    prober.rounds(10, &|_, q| Some(answer(q)));
    assert_eq!(lasted(&prober), Some(ms(1000)));
    for ended in [
        Probe {
            foreign: 1,
            ..answer(&Probe::default())
        },
        Probe {
            flags: flag::COUNTED,
            ..answer(&Probe::default())
        },
        Probe {
            flags: flag::PROXY_ALIVE,
            ..answer(&Probe::default())
        },
    ] {
        prober.round(&|_, q| {
            Some(Probe {
                foreign: ended.foreign,
                flags: ended.flags,
                ..answer(q)
            })
        });
        assert_eq!(lasted(&prober), None);
        prober.rounds(2, &|_, q| Some(answer(q)));
        assert_eq!(lasted(&prober), Some(ms(200)));
    }
    prober.round(&|_, q| {
        Some(Probe {
            fingerprint: 8,
            ..answer(q)
        })
    });
    let quiet = prober.peer(1).quiet.unwrap();
    assert_eq!((quiet.fingerprint, quiet.lasted), (8, ms(100)));
    prober.rounds(3, &|_, _| None);
    assert_eq!(lasted(&prober), None, "a suspect is not quiet");
}

#[test]
fn a_peer_at_another_address_begins_anew() {
    let mut prober = Prober::new(&[1]);
    prober.round(&|_, q| Some(answer(q)));
    prober.liveness.set_peers(OWN, &[id(1), id(2)]);
    assert_eq!(prober.standing(1), Standing::Answering);
    let moved = PeerId {
        address: IpAddr::from([10, 9, 9, 9]),
        ..id(1)
    };
    prober.liveness.set_peers(OWN, &[moved]);
    assert_eq!(prober.standing(1), Standing::New);
    assert_eq!(prober.liveness.peers().len(), 1);
}

#[test]
fn a_peer_that_knows_only_the_previous_key_is_not_suspected() {
    let (present, previous) = ([1, 1], [2, 2]);
    let mut prober = Prober::new(&[1]);
    assert_eq!(prober.liveness.key_for(1, [present, [0, 0]]), present);
    for round in 0..50 {
        let key = prober.liveness.key_for(1, [present, previous]);
        prober.round(&|_, q| (key == previous).then(|| answer(q)));
        if round > 0 {
            assert_eq!(prober.standing(1), Standing::Answering, "round {round}");
        }
    }
    // Who knows the present one is asked under no other.
    let mut prober = Prober::new(&[1]);
    for _ in 0..50 {
        assert_eq!(prober.liveness.key_for(1, [present, previous]), present);
        prober.round(&|_, q| Some(answer(q)));
    }
}
