//! Frames for other machines, which a switch floods while it does not know where they are.

use super::case::*;

pub(super) fn flooded() -> Vec<Case> {
    let mut cases = Vec::new();
    for load in [tcp(80, ACK), tcp(80, SYN)] {
        for frame in both(VIP, VIP6, &load) {
            let name = |what| format!("{what} over {}", version(&frame));
            let away = |case: Case| case.hashed(frame.hash(), owned_by(ON_LINK));
            let sent = || frame.aged().between(mac(ON_LINK), OWN_MAC).build();
            let others = frame.between(mac(98), mac(99));
            cases.push(away(Case::pass(
                name("flooded, of a node's row"),
                others.build(),
                Counter::OtherHost,
            )));
            cases.push(
                Case::pass(
                    name("flooded, of our row"),
                    others.build(),
                    Counter::OtherHost,
                )
                .hashed(frame.hash(), owned_by(ME)),
            );
            cases.push(away(Case::pass(
                name("flooded and tagged"),
                others.tagged(&[[number::VLAN, 9]]).build(),
                Counter::OtherHost,
            )));
            cases.push(away(Case::send(
                name("to our second MAC"),
                frame.between(SECOND_MAC, mac(99)).build(),
                Counter::ForwardL2,
                sent(),
            )));
            cases.push(
                away(Case::send(
                    name("to any MAC, ours is not known"),
                    others.build(),
                    Counter::ForwardL2,
                    sent(),
                ))
                .setup(|t| t.config.own_macs = [0; 4]),
            );
        }
    }
    // What would be refused is the other machine's to refuse.
    let short = Load::Raw(number::TCP, vec![0x9c, 0x40, 0, 80, 0, 0]);
    for (name, vip, vip6, load) in [
        ("too short", VIP, VIP6, short),
        ("of a refused source", LISTED, LISTED6, udp(DNS, 4)),
        ("without ports", VIP, VIP6, Load::Raw(number::TCP, vec![])),
    ] {
        for frame in both(vip, vip6, &load) {
            let others = frame.between(mac(98), mac(99));
            let name = format!("flooded, {name}, {}", version(&frame));
            cases.push(Case::pass(name, others.build(), Counter::OtherHost));
        }
    }
    for frame in both(VIP, VIP6, &Load::Raw(number::TCP, vec![0; 32])) {
        let part = Frame {
            fragment: 0x2000,
            extensions: vec![fragment(0, true)],
            ..frame.between(mac(98), mac(99))
        };
        let name = format!("flooded, a fragment, {}", version(&frame));
        cases.push(Case::pass(name, part.build(), Counter::OtherHost));
    }
    cases
}
