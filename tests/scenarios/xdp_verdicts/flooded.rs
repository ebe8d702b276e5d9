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
    cases
}
