//! The packet table: named packets through the loaded object and through the host's decision, with the action,
//! the reason and the bytes that each must come to. Every reason that the decision knows is hit.

mod announced;
mod answers;
mod asked;
mod case;
mod cookies;
mod cut;
mod doubt;
mod flooded;
mod foreign;
mod forwarded;
mod hostile;
mod odd;
mod owned;
mod probed;
mod searched;
mod tunnelled;
mod unfit;
mod ways;

use std::collections::BTreeSet;

use gateway_common::abi::{Counter, Row, state};
use gateway_common::host::HostTables;
use gateway_tests::kernel::at_least;
use gateway_tests::object::fixture::{
    FAR_INTERFACE, ME, ON_LINK, Sockets, listen_for_group, set_row, tables,
};
use gateway_tests::object::{Form, Object, fresh_namespace};
use gateway_tests::packet::TcpPacket;

pub(crate) use self::case::on_host;
pub(crate) use self::probed::{probe, question};

#[test]
fn xdp_programs_are_accepted_by_the_kernel() {
    let [xdp, tc, lookup] = Object::load().unwrap().verified_instructions().unwrap();
    println!("verified instructions: forebay_xdp {xdp}, forebay_tc {tc}, forebay_lookup {lookup}");
    assert!(
        xdp < 100_000 && tc < 150_000 && lookup < 10_000,
        "{xdp} {tc} {lookup}"
    );
}

#[test]
fn xdp_verdicts_are_as_the_table_says() {
    verdicts_are_as_the_table_says(Form::Xdp);
}

#[test]
fn tc_verdicts_are_as_the_table_says() {
    verdicts_are_as_the_table_says(Form::Tc);
}

fn verdicts_are_as_the_table_says(form: Form) {
    fresh_namespace().unwrap();
    let mut object = Object::of(form).unwrap();
    object.add_device(FAR_INTERFACE).unwrap();
    let mut base = tables();
    let sockets = Sockets::open(&mut base).unwrap();
    let _proxy = listen_for_group(&mut base, &mut object).unwrap();
    base.jiffies = jiffies(&mut object, &base);
    let cases = [
        // Those with real sockets first: cookies are taken and ended sockets wait for a minute only.
        owned::owned(&sockets),
        searched::searched(&sockets),
        tunnelled::tunnelled(&sockets),
        doubt::doubt(&sockets),
        foreign::foreign(),
        forwarded::forwarded(),
        unfit::unfit(),
        announced::announced(),
        flooded::flooded(),
        ways::ways(),
        cut::cut(),
        odd::odd(),
        hostile::hostile(),
        answers::answers(),
        probed::probed(),
        asked::asked(),
    ]
    .concat();
    let mut hit = BTreeSet::new();
    let mut failures = Vec::new();
    let mut report = |(wrong, counted): (Vec<String>, Vec<Counter>)| {
        failures.extend(wrong);
        hit.extend(counted.iter().map(|counter| counter.slot()));
    };
    for case in &cases {
        report(case.judge(&mut object, &base));
    }
    cookies::cookies(&base, &mut object, report);
    println!("{} cases", cases.len());
    assert!(
        failures.is_empty(),
        "{} wrong, {} cases:\n{}",
        failures.len(),
        cases.len(),
        failures.join("\n")
    );
    let missed: Vec<_> = Counter::ALL
        .iter()
        .filter(|counter| !hit.contains(&counter.slot()))
        .collect();
    // Socket lookups count for themselves.
    let mut beyond = vec![
        Counter::LookupRedirected,
        Counter::LookupRefused,
        Counter::LookupLoopback,
        Counter::LookupNoSocket,
    ];
    assert_eq!(
        object.takes_short(),
        form == Form::Xdp && at_least(6, 12),
        "test runs with less headroom"
    );
    if !object.takes_short() {
        // A socket buffer gets the headroom that it needs, and older kernels make no test run with less.
        beyond.push(Counter::AdjustFailed);
        beyond.sort_by_key(|counter| counter.slot());
    }
    assert_eq!(
        missed,
        beyond.iter().collect::<Vec<_>>(),
        "reasons that no case hits"
    );
}

/// The kernel's tick counter, as a second chance writes it down.
pub(crate) fn jiffies(object: &mut Object, base: &HostTables) -> u64 {
    let packet = TcpPacket::default();
    let mut tables = base.clone();
    tables.config.hop_limit = 1;
    set_row(
        &mut tables,
        &packet,
        Row::new(ME, true, [(ON_LINK, false), (0, false), (0, false)]),
    );
    object.write(&tables).unwrap();
    assert_eq!(
        object.run(&packet.build()).unwrap().counted,
        [Counter::SecondChance]
    );
    object.state(state::HOP_WINDOW).unwrap()
}
