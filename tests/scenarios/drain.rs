//! A node leaves while long requests run: none breaks.

use std::time::Duration;

use anyhow::ensure;
use gateway_tests::{
    backend::Behaviour,
    client::{Load, Tally},
    demo::drain::drain,
    eventually::eventually,
    fixture::HOST,
    leftovers::Ledger,
    rig::{Options, Rig},
};

#[test]
fn no_request_breaks_when_a_node_leaves() {
    let mut rig = Rig::start(Ledger::open().unwrap(), &Options::default()).unwrap();
    print!("{}", drain(&mut rig, Duration::from_secs(3)).unwrap());
}

#[test]
fn what_outlasts_the_drain_hears_of_its_end() {
    const HELD: usize = 8;
    const SOON: Duration = Duration::from_secs(10);
    let options = Options {
        drain_timeout: Duration::from_secs(1),
        ..Options::default()
    };
    let mut rig = Rig::start(Ledger::open().unwrap(), &options).unwrap();
    rig.backends.set_all(Behaviour {
        hold: 3 * SOON,
        fail: false,
    });
    let load = Load {
        overlap: HELD,
        timeout: 2 * SOON,
        ..rig.load_through(0, HOST, HELD).unwrap()
    };
    let running = rig.client.start(load).unwrap();
    eventually("the held requests at the backends", SOON, || {
        let seen = rig.backends.count();
        ensure!(seen == HELD, "{seen} of {HELD}");
        Ok(())
    })
    .unwrap();
    rig.daemons[0].terminate(SOON).unwrap();
    let tally = Tally::of(&running.stop().unwrap());
    // A VIP that is not local any more sends nothing: who waits would wait for as long as it likes.
    assert_eq!(tally.reset + tally.cut_off, HELD, "{tally}");
}
