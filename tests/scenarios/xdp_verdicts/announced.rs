//! Address resolution.

use super::case::*;

/// ARP.
pub(super) fn announced() -> Vec<Case> {
    const ALL: [u8; 6] = [0xff; 6];
    let client = (mac(99), [203, 0, 113, 1]);
    let ask = |target| arp(ALL, 1, client, ([0; 6], target));
    vec![
        Case::send("who has the VIP", ask(VIP), Counter::ArpReply, {
            arp(mac(99), 2, (OWN_MAC, VIP), client)
        }),
        Case::pass(
            "who has another address",
            ask([203, 0, 113, 99]),
            Counter::NotOurs,
        ),
        Case::pass("who has a shared address", ask(SHARED), Counter::NotOurs),
        Case::pass(
            "who has a VIP announced elsewhere",
            ask(DELETED),
            Counter::NotOurs,
        ),
        Case::pass(
            "announcement of the VIP",
            arp(ALL, 1, (mac(99), VIP), ([0; 6], VIP)),
            Counter::NotOurs,
        ),
        Case::pass(
            "answer about the VIP",
            arp(OWN_MAC, 2, client, (OWN_MAC, VIP)),
            Counter::NotOurs,
        ),
        Case::pass("half a request", ask(VIP)[..40].to_vec(), Counter::NotOurs),
    ]
}
