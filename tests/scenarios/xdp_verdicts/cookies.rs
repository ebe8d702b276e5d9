//! SYNs beyond the budget: the kernel's cookie in our answer.

use super::case::*;
use gateway_common::steer::Cookie;

/// Runs all cases; each result goes to `report`.
pub(super) fn cookies(
    base: &HostTables,
    object: &mut Object,
    mut report: impl FnMut((Vec<String>, Vec<Counter>)),
) {
    for opens in both(VIP, VIP6, &tcp(LISTENING, SYN)) {
        let with_options = opens.with(Load::Tcp {
            ports: [40_000, LISTENING],
            flags: SYN,
            numbers: [u32::MAX, 0],
            options: vec![2, 4, 4, 0xb0, 1, 3, 3, 7],
            data: Vec::new(),
        });
        // The stack drops these as martians.
        let (group, itself) = match opens.ends {
            Ends::V4(_, vip) => (Ends::V4([224, 0, 0, 1], vip), Ends::V4(vip, vip)),
            Ends::V6(_, vip) => (Ends::V6([0xff; 16], vip), Ends::V6(vip, vip)),
        };
        let from = |ends| Frame {
            ends,
            ..opens.clone()
        };
        for (what, syn) in [
            ("from a group", from(group)),
            ("from the VIP", from(itself)),
            ("from a group's MAC", opens.between(OWN_MAC, [1; 6])),
        ] {
            let name = format!("SYN beyond the budget {what}, {}", version(&syn));
            let case = Case::pass(name, syn.build(), Counter::OwnSyn);
            report(case.row(&syn, MINE).setup(over_budget).judge(object, base));
        }
        for syn in [&opens, &with_options] {
            let name = format!("SYN beyond the budget, {}", version(syn));
            let padded = [syn.build(), vec![0; 30]].concat();
            for packet in [syn.build(), padded] {
                report(answer(base, object, &name, syn, &packet));
            }
            let behind = Frame {
                options: vec![1; 4],
                extensions: vec![padding(number::DESTINATION, 0)],
                ..syn.clone()
            };
            // This machine does not forward: from a peer it knows no way back.
            for (what, frame) in [
                ("tagged", syn.tagged(&[[number::VLAN, 9]])),
                ("behind more headers", behind),
                ("from a peer's MAC", syn.between(OWN_MAC, mac(ON_LINK))),
            ] {
                let case = Case::pass(format!("{name}, {what}"), frame.build(), Counter::OwnSyn);
                report(case.row(syn, MINE).setup(over_budget).judge(object, base));
            }
        }
    }
}

/// A SYN that is answered. The cookie is the kernel's and changes once a minute: it is taken from an answer, and everything
/// else is computed.
fn answer(
    base: &HostTables,
    object: &mut Object,
    name: &str,
    syn: &Frame,
    packet: &[u8],
) -> (Vec<String>, Vec<Counter>) {
    let tables = Case::pass(name, Vec::new(), Counter::OwnSyn)
        .row(syn, MINE)
        .setup(over_budget)
        .tables(base);
    let asked = |object: &mut Object| {
        object.write(&tables).unwrap();
        let answer = object.run(packet).unwrap().bytes;
        let at = if version(syn) == "IPv4" { 34 } else { 54 };
        let word = |at: usize| u32::from_be_bytes(answer[at..at + 4].try_into().unwrap());
        Cookie {
            sequence: word(at + 4),
            segment: word(at + 20) as u16,
        }
    };
    let mut cookie = asked(object);
    loop {
        let mut base = base.clone();
        base.cookie = Some(cookie);
        let result = Case::send(
            name,
            packet.to_vec(),
            Counter::SynCookie,
            answered(syn, cookie),
        )
        .row(syn, MINE)
        .setup(over_budget)
        .judge(object, &base);
        let now = asked(object);
        if result.0.is_empty() || now == cookie {
            return result;
        }
        cookie = now;
    }
}

fn over_budget(tables: &mut HostTables) {
    (tables.config.syn_limit, tables.config.window_jiffies) = (3, 1_000_000);
    let slot = cpu_state::SYNS as usize;
    let mut words = tables.cpu_state.borrow_mut();
    (words[slot], words[slot + 1]) = (tables.jiffies, 3);
}

/// The SYN-ACK to a SYN.
fn answered(syn: &Frame, cookie: Cookie) -> Vec<u8> {
    let ends = match syn.ends {
        Ends::V4(from, to) => Ends::V4(to, from),
        Ends::V6(from, to) => Ends::V6(to, from),
    };
    let number = match syn.load {
        Load::Tcp { numbers, .. } => numbers[0].wrapping_add(1),
        _ => 0,
    };
    let [high, low] = cookie.segment.to_be_bytes();
    let load = Load::Tcp {
        ports: [LISTENING, 40_000],
        flags: SYN | ACK,
        numbers: [cookie.sequence, number],
        options: vec![2, 4, high, low],
        data: Vec::new(),
    };
    Frame::new(syn.from_mac, syn.to_mac, ends, load).build()
}
