//! A failing backend is out after its fifth error and back after the base time.

use std::time::Duration;

use gateway_tests::{
    demo::ejection::ejection,
    leftovers::Ledger,
    rig::{Options, Rig},
};

#[test]
fn out_after_the_fifth_error_and_back_after_a_second() {
    let options = Options {
        nodes: 1,
        ejection_seconds: 1,
        ..Options::default()
    };
    let mut rig = Rig::start(Ledger::open().unwrap(), &options).unwrap();
    print!(
        "{}",
        ejection(&mut rig, Duration::from_secs(1), |_| {}).unwrap()
    );
}
