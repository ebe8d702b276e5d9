//! Probes: answered for peers, dropped from others, and nothing else on their port is touched.

use gateway_common::abi::fact;
use gateway_common::packet::mapped;
use gateway_common::probe::{ANSWER, Message, Probe, REQUEST, SIZE, flag as probe_flag, view};
use gateway_tests::packet::UdpPacket;

use super::case::*;

/// A question of a peer to this node.
pub(crate) fn question() -> Probe {
    Probe {
        kind: REQUEST,
        sequence: 0x0102_0304_0506_0708,
        sender: 0x7065_6572,
        addressee: OWN_NAME,
        subject: mapped(address(ROUTED)),
        ..Probe::default()
    }
}

/// A probe on its way from [`ON_LINK`] to this node.
pub(crate) fn probe(message: Message) -> UdpPacket {
    UdpPacket {
        to_mac: OWN_MAC,
        from_mac: mac(ON_LINK),
        source: address(ON_LINK),
        destination: address(ME),
        source_port: 40_000,
        destination_port: PROBES,
        checksum: [0xab, 0xcd],
        ttl: 61,
        payload: bytemuck::bytes_of(&message).to_vec(),
    }
}

/// Probes: answered for peers, dropped from others, and nothing else on their port is touched.
pub(super) fn probed() -> Vec<Case> {
    let asked = question();
    let good = probe(asked.sign(PROBE_KEY));
    let answer = Probe {
        kind: ANSWER,
        flags: probe_flag::PROXY_ALIVE | probe_flag::READY | probe_flag::COUNTED,
        asker: view::LISTED,
        verdict: view::LISTED,
        fingerprint: FINGERPRINT,
        sender: asked.addressee,
        addressee: asked.sender,
        foreign: FOREIGN,
        rounds: ROUNDS as u32,
        ..asked
    };
    let back = |answer: Probe| {
        let packet = UdpPacket {
            to_mac: good.from_mac,
            from_mac: good.to_mac,
            source: good.destination,
            destination: good.source,
            source_port: good.destination_port,
            destination_port: good.source_port,
            checksum: [0; 2],
            ttl: 64,
            payload: bytemuck::bytes_of(&answer.sign(PROBE_KEY)).to_vec(),
        };
        packet.build()
    };
    let answered = |name, packet: &UdpPacket, answer| {
        Case::send(name, packet.build(), Counter::ProbeAnswered, back(answer))
    };
    let refused =
        |name, packet: &UdpPacket| Case::drop(name, packet.build(), Counter::ProbeRefused);
    let untouched = |name, packet: &UdpPacket| Case::pass(name, packet.build(), Counter::NotOurs);
    let mut forged = good.clone();
    forged.payload[40] ^= 1;
    let mut newer = good.clone();
    newer.payload[0] = 2;
    let mut longer = good.clone();
    longer.payload.push(0);
    let mut cut = good.build();
    cut.truncate(cut.len() - 1);
    vec![
        answered("probe of a peer", &good, answer),
        {
            let packet = probe(asked.sign(PROBE_KEY_PREVIOUS)).build();
            let mut old = back(answer);
            old.truncate(old.len() - SIZE);
            old.extend(bytemuck::bytes_of(&answer.sign(PROBE_KEY_PREVIOUS)));
            let name = "probe under the previous key";
            Case::send(name, packet, Counter::ProbeAnswered, old)
        },
        answered(
            "probe while the proxy hangs and this node drains",
            &good,
            Probe {
                flags: probe_flag::DRAINING | probe_flag::READY | probe_flag::COUNTED,
                ..answer
            },
        )
        .setup(|t| {
            t.config.beat_limit_jiffies = 75;
            t.config.flags |= flag::DRAINING;
        }),
        answered(
            "probe before anything was counted",
            &good,
            Probe {
                flags: probe_flag::PROXY_ALIVE | probe_flag::READY,
                fingerprint: 0,
                foreign: 0,
                ..answer
            },
        )
        .setup(|t| t.facts[fact::COUNTED as usize] = 0),
        answered(
            "probe of a peer with an episode about a silent one",
            &good,
            Probe {
                asker: view::LISTED | view::EPISODE,
                verdict: view::LISTED | view::SUSPECT | view::SILENT,
                ..answer
            },
        )
        .setup(|t| t.alive = vec![(ON_LINK, 4), (ROUTED, 3)]),
        answered(
            "probe about nobody",
            &probe(
                Probe {
                    subject: [0; 16],
                    ..asked
                }
                .sign(PROBE_KEY),
            ),
            Probe {
                subject: [0; 16],
                verdict: 0,
                ..answer
            },
        ),
        refused("forged probe", &forged),
        refused("probe under another key", &probe(asked.sign([3, 3]))),
        refused(
            "probe without a previous key, under zero",
            &probe(asked.sign([0, 0])),
        )
        .setup(|t| t.config.probe_key_previous = [0, 0]),
        refused(
            "probe for another node",
            &probe(
                Probe {
                    addressee: OWN_NAME + 1,
                    ..asked
                }
                .sign(PROBE_KEY),
            ),
        ),
        refused("probe before the own name is known", &good)
            .setup(|t| t.facts[fact::NAME_HASH as usize] = 0),
        refused(
            "probe from an address that is no node",
            &UdpPacket {
                source: [198, 51, 100, 7],
                ..good.clone()
            },
        ),
        untouched("probe of another version", &newer),
        untouched(
            "answer on the probe port",
            &probe(
                Probe {
                    kind: ANSWER,
                    ..asked
                }
                .sign(PROBE_KEY),
            ),
        ),
        untouched("longer than a probe", &longer),
        Case::pass("cut off probe", cut, Counter::NotOurs),
        untouched(
            "probe for another address",
            &UdpPacket {
                destination: [192, 0, 2, 77],
                ..good.clone()
            },
        ),
        untouched(
            "answer to the own prober",
            &UdpPacket {
                destination_port: 40_000,
                ..good.clone()
            },
        ),
    ]
}
