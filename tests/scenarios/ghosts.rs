//! A list full of nodes that do not exist: they hold up neither the probes of those that do nor, for long, the clients.

use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Result, ensure};
use gateway_tests::client::{Load, Tally};
use gateway_tests::eventually::eventually;
use gateway_tests::fixture::{HOST, Replica, ReplicaState};
use gateway_tests::leftovers::Ledger;
use gateway_tests::rig::{Options, Rig, VIP};

/// Frames for more of them than this fill a socket's buffer while they wait for a neighbour.
const GHOSTS: u8 = 40;
/// Silence, the ten seconds for which the loss of most nodes must be agreed, and the time to ask about forty.
const BURIED: Duration = Duration::from_secs(45);

#[test]
fn nodes_that_never_were_are_buried_and_hold_up_no_probe() {
    let mut rig = Rig::start(Ledger::open().unwrap(), &Options::default()).unwrap();
    rig.fixture
        .set_replicas(|replicas| {
            let ghosts = (0..GHOSTS).map(|n| Replica {
                name: format!("ghost{n}"),
                address: Ipv4Addr::new(192, 0, 2, 120 + n),
                state: ReplicaState::Ready,
            });
            replicas.extend(ghosts);
        })
        .unwrap();
    eventually("forty funerals", BURIED, || {
        (0..rig.daemons.len()).try_for_each(|index| buried(&rig, index))
    })
    .unwrap();
    for index in 0..rig.daemons.len() {
        rig.deliver_to(index).unwrap();
        let tally = Tally::of(&rig.client.send(Load::new(VIP, HOST, 20)).unwrap());
        assert_eq!(tally.status(200), 20, "{tally}");
    }
}

/// Whether a node holds all ghosts for dead, and has never suspected the others nor failed to ask them.
fn buried(rig: &Rig, index: usize) -> Result<()> {
    let status = rig.daemons[index].status()?;
    for node in status["datapath"]["nodes"].as_array().into_iter().flatten() {
        let ghost = node["name"]
            .as_str()
            .is_some_and(|n| n.starts_with("ghost"));
        ensure!(node["dead"] == ghost, "{node}");
        let probes = &node["probes"];
        let well =
            probes.is_null() || probes["standing"] == "answering" && probes["suspected"] == 0;
        ensure!(ghost || well, "{node}");
    }
    Ok(())
}
