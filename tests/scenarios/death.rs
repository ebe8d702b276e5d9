//! A node's process is killed: only its own connections break.

use std::time::Duration;

use gateway_tests::{
    demo::{death::death, drain::drain},
    leftovers::Ledger,
    rig::{Options, Rig},
};

#[test]
fn only_its_own_connections_break() {
    let mut rig = Rig::start(Ledger::open().unwrap(), &Options::default()).unwrap();
    print!("{}", death(&mut rig, Duration::from_secs(3)).unwrap());
}

#[test]
fn only_its_own_connections_break_after_another_has_come_back() {
    let mut rig = Rig::start(Ledger::open().unwrap(), &Options::default()).unwrap();
    drain(&mut rig, Duration::from_secs(1)).unwrap();
    print!("{}", death(&mut rig, Duration::from_secs(3)).unwrap());
}
