//! The limits of a DestinationRule are exact with one, two and four workers.

use std::time::Duration;

use gateway_tests::{
    demo::limits::limits,
    leftovers::Ledger,
    rig::{Options, Rig},
};

fn of_three_hundred_half_are_served(workers: usize) {
    let options = Options {
        nodes: 1,
        workers: Some(workers),
        ..Options::default()
    };
    let mut rig = Rig::start(Ledger::open().unwrap(), &options).unwrap();
    print!("{}", limits(&mut rig, Duration::from_secs(2)).unwrap());
}

#[test]
fn one_worker() {
    of_three_hundred_half_are_served(1);
}

#[test]
fn two_workers() {
    of_three_hundred_half_are_served(2);
}

#[test]
fn four_workers() {
    of_three_hundred_half_are_served(4);
}
