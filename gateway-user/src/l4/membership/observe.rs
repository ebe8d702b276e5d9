//! What the reports about peers do to states and doubts: the rules of the parent module, one function each.

use std::collections::BTreeSet;

use gateway_common::fingerprint::MemberState;
use gateway_common::hash::Key;
use gateway_common::probe::view;

use super::{CONFIRM, Episode, JOIN_LIMIT, Member, Membership, QUIET};
use crate::l4::Time;
use crate::l4::liveness::{PeerReport, Quiet, Report, Standing};
use crate::snapshot::ReplicaState;

/// What rows and fingerprint depend on.
type Shape = (bool, Vec<(ReplicaState, [bool; 5])>);

impl Membership {
    /// Takes what is known of the peers; true if states or doubts changed. `key` is that of the fingerprint.
    pub fn observe(&mut self, report: &Report, key: Key, now: Time) -> bool {
        if !self.started || !self.probing {
            return false;
        }
        let before = self.shape();
        self.hear_who_drains(report, now);
        self.take_back(report, now);
        self.bury(report);
        let knows_not = |name: &str| {
            of(report, name).is_some_and(|peer| {
                peer.standing == Standing::Answering && peer.proxy_alive && peer.ready
            })
        };
        self.end_stays(|name, _| !knows_not(name), now);
        if !self.joining.is_empty() && self.all_know_who_joins(report, key) {
            self.end_waits(|_| true, now);
        }
        self.follow_episodes(report, now);
        self.end_doubts(report, key, now);
        self.shape() != before
    }

    fn shape(&self) -> Shape {
        let member = |m: &Member| {
            let (holds, settles) = (m.holds_until.is_some(), m.settles_at.is_some());
            let flags = [m.dead, m.unheard, holds, settles, m.episode.is_some()];
            (m.state, flags)
        };
        let members = self.members.values().map(member).collect();
        (self.all_until.is_some(), members)
    }

    /// What a peer says of its own draining holds until it says otherwise: its kernel answers for a process that has ended.
    fn hear_who_drains(&mut self, report: &Report, now: Time) {
        let says = |m: &&Member| match of(report, &m.name) {
            Some(peer) if peer.standing == Standing::Answering => peer.draining,
            _ => self.say_draining.contains(&m.name),
        };
        let heard: BTreeSet<String> = self.others().filter(says).map(|m| m.name.clone()).collect();
        if heard != self.say_draining {
            self.say_draining = heard;
            self.refresh(now);
        }
    }

    /// Dead nodes that answer are back.
    fn take_back(&mut self, report: &Report, now: Time) {
        for member in self.members.values_mut().filter(|m| m.dead) {
            if standing(report, &member.name) == Standing::Answering {
                member.dead = false;
                member.state = member.wanted;
                member.holds_until = Some(now + self.drain_timeout);
                if member.wanted == ReplicaState::Ready {
                    member.state = ReplicaState::Joining;
                    self.joining.insert(member.name.clone(), now + JOIN_LIMIT);
                }
            }
        }
    }

    /// Takes for dead who is agreed to be.
    fn bury(&mut self, report: &Report) {
        let silent = |m: &&Member| m.dead || unwell(report, &m.name);
        let lost = self.others().filter(silent).count();
        let held = 2 * lost > self.members.len();
        let own_name = &self.own_name;
        let alive = |m: &&mut Member| !m.dead && m.name != *own_name;
        for member in self.members.values_mut().filter(alive) {
            member.unheard = !held && unwell(report, &member.name);
            let agreed = of(report, &member.name).and_then(|peer| peer.agreed_for);
            if agreed.is_some_and(|time| !held || time >= CONFIRM) {
                member.dead = true;
                (member.holds_until, member.settles_at, member.episode) = (None, None, None);
                self.joining.remove(&member.name);
                self.leaving.remove(&member.name);
            }
        }
    }

    /// Whether every peer that answers works with our list or with the one that follows from it.
    fn all_know_who_joins(&self, report: &Report, key: Key) -> bool {
        let next = |m: &Member| match self.joining.contains_key(&m.name) {
            true => MemberState::Ready,
            false => m.as_all_see_it(),
        };
        let now_and_next = [self.fingerprint(key), self.fingerprint_of(key, next)];
        self.others().filter(|m| !m.dead).all(|peer| {
            let Some(said) = of(report, &peer.name) else {
                return false;
            };
            match said.standing {
                Standing::New => false,
                Standing::Suspect | Standing::Silent => true,
                Standing::Answering => said.fingerprint.is_some_and(|works_with| {
                    // It may itself be one of those who wait.
                    let waiting = |m: &Member, state| match m.name == peer.name {
                        true => MemberState::Waiting,
                        false => state,
                    };
                    now_and_next.contains(&works_with)
                        || works_with == self.fingerprint_of(key, |m| waiting(m, m.as_all_see_it()))
                        || works_with == self.fingerprint_of(key, |m| waiting(m, next(m)))
                }),
            }
        })
    }

    fn follow_episodes(&mut self, report: &Report, now: Time) {
        let held_for = view::SUSPECT | view::SILENT | view::EPISODE;
        let doubts_us = |m: &Member| {
            of(report, &m.name).is_some_and(|peer| match peer.standing {
                Standing::New => false,
                Standing::Answering => peer.holds_us & held_for != 0,
                Standing::Suspect | Standing::Silent => peer.known,
            })
        };
        let we_are_doubted = self.others().any(|m| !m.dead && doubts_us(m));
        for member in self.members.values_mut() {
            let not_well = if member.name == self.own_name {
                we_are_doubted
            } else {
                let hangs =
                    |peer: &PeerReport| peer.standing == Standing::Answering && !peer.proxy_alive;
                unwell(report, &member.name) || of(report, &member.name).is_some_and(hangs)
            };
            let ready = member.state == ReplicaState::Ready && !member.dead;
            member.episode = match member.episode {
                _ if !ready => None,
                _ if not_well => Some(Episode::default()),
                Some(Episode { calm_since: None }) => Some(Episode {
                    calm_since: Some(now),
                }),
                episode => episode,
            };
        }
    }

    /// Ends the doubts about sockets that those concerned say they do not hold.
    fn end_doubts(&mut self, report: &Report, key: Key, now: Time) {
        let fingerprint = self.fingerprint(key);
        let agree = self.others().filter(|m| !m.dead).all(|m| {
            of(report, &m.name).is_none_or(|peer| {
                peer.standing != Standing::Answering || peer.fingerprint == Some(fingerprint)
            })
        });
        if !agree {
            return;
        }
        let long = |quiet: Option<Quiet>| {
            quiet.is_some_and(|quiet| quiet.fingerprint == fingerprint && quiet.lasted >= QUIET)
        };
        let quiet = |m: &Member| match m.name == self.own_name {
            true => long(report.own_quiet),
            false => of(report, &m.name).is_some_and(|peer| long(peer.quiet)),
        };
        let noisy: BTreeSet<String> = (self.members.values())
            .filter(|m| !m.dead && !quiet(m))
            .map(|m| m.name.clone())
            .collect();
        // What was said before the doubt arose does not end it: those who said so may have taken connections since.
        let drain_timeout = self.drain_timeout;
        let is_fresh = |until: Option<Time>| until.is_some_and(|t| t + QUIET > now + drain_timeout);
        let says_so = |name: &String| {
            let holds = |peer: &PeerReport| {
                peer.standing == Standing::Answering && peer.foreign.is_some_and(|n| n > 0)
            };
            of(report, name).is_some_and(holds)
        };
        let holders: BTreeSet<String> = noisy.iter().filter(|n| says_so(n)).cloned().collect();
        for member in self.members.values_mut() {
            if holders.iter().any(|name| *name != member.name) {
                // Connections that others still hold in its place outlive the drain timeout.
                if let Some(until) = &mut member.settles_at {
                    *until = now + drain_timeout;
                }
                if let Some(Episode {
                    calm_since: Some(since),
                }) = &mut member.episode
                {
                    *since = (*since).max(now.saturating_sub(QUIET));
                }
            }
            let others_quiet = noisy.iter().all(|name| *name == member.name);
            if others_quiet {
                member.settles_at = member.settles_at.filter(|_| is_fresh(member.settles_at));
                member.episode = member.episode.filter(|episode| {
                    let calm = |since| now.saturating_sub(since) >= QUIET;
                    !episode.calm_since.is_some_and(calm)
                });
            }
            if !noisy.contains(&member.name) {
                member.holds_until = member.holds_until.filter(|_| is_fresh(member.holds_until));
            }
        }
        if noisy.is_empty() {
            self.all_until = None;
        }
    }
}

fn of<'a>(report: &'a Report, name: &str) -> Option<&'a PeerReport> {
    report.peers.get(name)
}

fn standing(report: &Report, name: &str) -> Standing {
    of(report, name).map_or(Standing::New, |peer| peer.standing)
}

fn unwell(report: &Report, name: &str) -> bool {
    matches!(standing(report, name), Standing::Suspect | Standing::Silent)
}
