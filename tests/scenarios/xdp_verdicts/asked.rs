//! Probes by way of a MAC rewrite: for a VIP, answered to the node that their subject names; untouched if they are not for
//! this node.

use gateway_common::packet::mapped;
use gateway_common::probe::{PATH, PATH_ANSWER, Probe, REQUEST};

use super::case::*;
use super::probed::question;

/// The address that such probes come from: no node's.
const NOBODY: [u8; 4] = [198, 18, 0, 1];
const NOBODY6: [u8; 16] = [0x20, 1, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];

/// From this node's peer to a VIP by this node's MAC.
fn asks(ends: Ends, probe: Probe, key: [u64; 2]) -> Frame {
    Frame {
        hops: 1,
        ..Frame::new(
            OWN_MAC,
            mac(ON_LINK),
            ends,
            carrying([40_000, PROBES], probe, key, true),
        )
    }
}

fn carrying(ports: [u16; 2], probe: Probe, key: [u64; 2], summed: bool) -> Load {
    Load::Udp {
        ports,
        summed,
        data: bytemuck::bytes_of(&probe.sign(key)).to_vec(),
    }
}

/// The answer, without what the code under test leaves to nobody: IPv6 has a checksum, IPv4 none.
fn answer(ends: Ends, probe: Probe, key: [u64; 2]) -> Frame {
    let probe = Probe {
        kind: PATH_ANSWER,
        sender: probe.addressee,
        addressee: probe.sender,
        ..probe
    };
    let summed = matches!(ends, Ends::V6(..));
    let load = carrying([PROBES, 40_000], probe, key, summed);
    Frame::new(mac(ON_LINK), OWN_MAC, ends, load)
}

/// Questions are answered, refused or left alone.
pub(super) fn asked() -> Vec<Case> {
    let ask = Probe {
        kind: PATH,
        subject: mapped(address(ON_LINK)),
        ..question()
    };
    let ask6 = Probe {
        subject: address6(ON_LINK),
        ..ask
    };
    let (to, to6) = (Ends::V4(NOBODY, VIP), Ends::V6(NOBODY6, VIP6));
    let back = Ends::V4(address(ME), address(ON_LINK));
    let back6 = Ends::V6(address6(ME), address6(ON_LINK));
    let key = PROBE_KEY;
    let answered = |name, packet: Vec<u8>, frame: Frame| {
        Case::send(name, packet, Counter::PathAnswered, frame.build())
    };
    let refused = |name, frame: Frame| Case::drop(name, frame.build(), Counter::ProbeRefused);
    let untouched = |name, frame: Frame| Case::pass(name, frame.build(), Counter::NotOurs);
    let longer = |mut packet: Vec<u8>| {
        packet.extend([0; 20]);
        packet
    };
    let tag = [[0x8100, 7]];
    vec![
        answered(
            "question for a VIP",
            asks(to, ask, key).build(),
            answer(back, ask, key),
        ),
        answered(
            "question for a VIP under the previous key",
            asks(to, ask, PROBE_KEY_PREVIOUS).build(),
            answer(back, ask, PROBE_KEY_PREVIOUS),
        ),
        answered(
            "question for a VIP, with padding behind it",
            longer(asks(to, ask, key).build()),
            answer(back, ask, key),
        ),
        answered(
            "question for a VIP with a tag",
            asks(to, ask, key).tagged(&tag).build(),
            answer(back, ask, key).tagged(&tag),
        ),
        // What is signed for this node comes from one that has more VIPs, or other ones.
        answered(
            "question for an address that is no VIP here",
            asks(Ends::V4(NOBODY, [192, 0, 2, 77]), ask, key).build(),
            answer(back, ask, key),
        ),
        answered(
            "question for a VIP of IPv6 among nodes of IPv4",
            asks(to6, ask, key).build(),
            answer(back, ask, key),
        ),
        answered(
            "question for a VIP of IPv4 among nodes of IPv6",
            longer(asks(to, ask6, key).build()),
            answer(back6, ask6, key),
        )
        .setup(over_v6),
        answered(
            "question for a VIP of IPv6",
            asks(to6, ask6, key).build(),
            answer(back6, ask6, key),
        )
        .setup(over_v6),
        answered(
            "question for a tagged VIP of IPv6 among nodes of IPv4",
            asks(to6, ask, key).tagged(&tag).build(),
            answer(back, ask, key).tagged(&tag),
        ),
        refused("forged question for a VIP", asks(to, ask, [3, 3])),
        refused("forged question for a VIP of IPv6", asks(to6, ask, [3, 3])),
        refused(
            "question of a node that is not listed",
            asks(
                to,
                Probe {
                    subject: mapped([198, 51, 100, 7]),
                    ..ask
                },
                key,
            ),
        ),
        refused(
            "question without a previous key, under zero",
            asks(to, ask, [0, 0]),
        )
        .setup(|t| t.config.probe_key_previous = [0, 0]),
        untouched(
            "forged question for an address that is no VIP",
            asks(Ends::V4(NOBODY, [192, 0, 2, 77]), ask, [3, 3]),
        ),
        untouched(
            "question for a VIP and another node",
            asks(
                to,
                Probe {
                    addressee: OWN_NAME + 1,
                    ..ask
                },
                key,
            ),
        ),
        untouched(
            "ordinary question for a VIP",
            asks(
                to,
                Probe {
                    kind: REQUEST,
                    ..ask
                },
                key,
            ),
        ),
        untouched("question to another port of a VIP", {
            let load = carrying([40_000, PROBES + 1], ask, key, true);
            asks(to, ask, key).with(load)
        }),
        untouched("question for a VIP to a group", {
            asks(to, ask, key).between([1, 0, 0x5e, 0, 0, 1], mac(ON_LINK))
        }),
        untouched(
            "question for a VIP with options",
            Frame {
                options: vec![1, 1, 1, 0],
                ..asks(to, ask, key)
            },
        ),
        untouched(
            "question for a VIP before the own name is known",
            asks(to, ask, key),
        )
        .setup(|t| t.facts[gateway_common::abi::fact::NAME_HASH as usize] = 0),
    ]
}
