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
    rig::{Options, Rig, VIP},
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

#[test]
fn others_hear_of_a_drain_from_the_node_itself() {
    const REQUESTS: usize = 60;
    // Less than it takes a list to go round, and less than a node that was stopped waits for others to take over.
    const SOON: Duration = Duration::from_millis(500);
    let mut rig = Rig::start(Ledger::open().unwrap(), &Options::default()).unwrap();
    let names: Vec<String> = (rig.topology.nodes.iter())
        .map(|site| site.name.clone())
        .collect();
    // The list calls it ready all the time.
    rig.daemons[0].ask(&["drain"]).unwrap();
    eventually("what the others hold it for", SOON, || {
        for daemon in &rig.daemons[1..] {
            let status = daemon.status()?;
            let nodes = status["datapath"]["nodes"].as_array();
            let mut nodes = nodes.into_iter().flatten();
            let one = nodes.find(|node| node["name"] == *names[0]);
            ensure!(one.is_some_and(|one| one["state"] == "Draining"), "{one:?}");
        }
        Ok(())
    })
    .unwrap();
    let back = rig.topology.nodes[0].back;
    for through in [1, 0] {
        rig.backends.forget_all();
        let load = Load {
            ports: rig.ports(0, REQUESTS).unwrap(),
            ..Load::new(VIP, HOST, REQUESTS)
        };
        rig.deliver_to(through).unwrap();
        let tally = Tally::of(&rig.client.send(load).unwrap());
        assert_eq!(tally.status(200), REQUESTS, "{tally}");
        let seen = rig.backends.seen();
        assert_eq!(seen.len(), REQUESTS);
        assert!(seen.iter().all(|one| one.peer != back));
    }
}
