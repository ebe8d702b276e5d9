//! Connections go where the hash says, on-link and by UDP, and the tutorial's curls split evenly.

use gateway_tests::{
    demo::{curls::curls, spread::spread},
    leftovers::Ledger,
    rig::{Options, Rig},
};

#[test]
fn three_nodes_share_as_the_hash_gives() {
    let mut rig = Rig::start(Ledger::open().unwrap(), &Options::default()).unwrap();
    curls(&mut rig).unwrap();
    print!("{}", spread(&mut rig).unwrap());
    rig.restart_with_forward("udp").unwrap();
    print!("{}", spread(&mut rig).unwrap());
}

#[test]
fn ten_curls_through_one_node_are_five_and_five() {
    let options = Options {
        nodes: 1,
        ..Options::default()
    };
    let mut rig = Rig::start(Ledger::open().unwrap(), &options).unwrap();
    curls(&mut rig).unwrap();
    spread(&mut rig).unwrap();
}
