//! A node leaves while long requests run: none breaks.

use std::time::Duration;

use gateway_tests::{
    demo::drain::drain,
    leftovers::Ledger,
    rig::{Options, Rig},
};

#[test]
fn no_request_breaks_when_a_node_leaves() {
    let mut rig = Rig::start(Ledger::open().unwrap(), &Options::default()).unwrap();
    print!("{}", drain(&mut rig, Duration::from_secs(3)).unwrap());
}
