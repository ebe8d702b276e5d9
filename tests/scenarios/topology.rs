//! The kit itself: packets reach every node, the client's view of failures is right, waits are bounded.

use std::{
    net::{Ipv4Addr, SocketAddrV4},
    time::Duration,
};

use gateway_tests::{
    backend::{Backends, Behaviour, PORT},
    client::{Client, Load, Tally},
    leftovers::Ledger,
    netns::Netns,
    topology::{BACKENDS_V1, CLIENT, Topology},
};

const BACKEND: Ipv4Addr = BACKENDS_V1[0];

#[test]
fn every_node_reaches_client_and_backends() {
    let ledger = Ledger::open().unwrap();
    let topology = Topology::new(&ledger, 3).unwrap();
    let backends = Backends::start(&topology.backends, &[(BACKEND, "hello")]).unwrap();
    for site in &topology.nodes {
        // Nobody listens there: only the node itself can refuse.
        let closed = Load::new(SocketAddrV4::new(site.address, 9), "any", 1);
        let finished = Client::new(&topology.client, CLIENT).send(closed).unwrap();
        assert_eq!(Tally::of(&finished).to_string(), "1 refused");
        let target = SocketAddrV4::new(BACKEND, PORT);
        let finished = Client::new(&site.netns, site.back)
            .send(Load::new(target, "any", 2))
            .unwrap();
        assert_eq!(Tally::of(&finished).to_string(), "2 x 200");
    }
    let seen = backends.at(BACKEND).unwrap().seen();
    let peers: Vec<_> = seen.iter().map(|seen| seen.peer).collect();
    let expected: Vec<std::net::IpAddr> = topology
        .nodes
        .iter()
        .flat_map(|site| [site.back.into(), site.back.into()])
        .collect();
    assert_eq!(peers, expected);
    assert_eq!(seen[1].path, "/1");
}

#[test]
fn failures_are_told_apart() {
    let ledger = Ledger::open().unwrap();
    let netns = Netns::new(&ledger, "alone").unwrap();
    netns.bridge("br0").unwrap();
    netns.address("br0", BACKEND, 24).unwrap();
    let backends = Backends::start(&netns, &[(BACKEND, "hello")]).unwrap();
    let client = Client::new(&netns, BACKEND);
    let tally = |target: SocketAddrV4| {
        let load = Load {
            timeout: Duration::from_millis(300),
            ..Load::new(target, "any", 1)
        };
        Tally::of(&client.send(load).unwrap()).to_string()
    };
    assert_eq!(tally(SocketAddrV4::new(BACKEND, PORT)), "1 x 200");
    assert_eq!(tally(SocketAddrV4::new(BACKEND, 1)), "1 refused");
    assert_eq!(
        tally(SocketAddrV4::new(Ipv4Addr::new(198, 51, 100, 99), 80)),
        "1 timed out"
    );
    let backend = backends.at(BACKEND).unwrap();
    backend.set(Behaviour {
        fail: true,
        ..Behaviour::default()
    });
    assert_eq!(tally(SocketAddrV4::new(BACKEND, PORT)), "1 x 500");
    backend.set(Behaviour {
        hold: Duration::from_secs(30),
        fail: false,
    });
    assert_eq!(tally(SocketAddrV4::new(BACKEND, PORT)), "1 timed out");
    assert_eq!(backend.count(), 3);
}
